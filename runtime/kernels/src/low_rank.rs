//! Low-rank additions to products (LoRA): what a row gets besides its product with the weights.

use crate::limits::LOW_RANK_MAX;

/// The factors of one addition, row-major f32.
#[derive(Debug, Clone, Copy, Default)]
pub struct LowRank<'a> {
    /// 0 to [`LOW_RANK_MAX`].
    pub rank: usize,
    /// `[rank, input channels]`.
    pub a: &'a [f32],
    /// `[rank, output channels]`: transposed, so that an output is made row by row.
    pub b: &'a [f32],
}

impl LowRank<'_> {
    pub(crate) fn check(&self, inputs: usize, outputs: usize) {
        assert!(self.rank <= LOW_RANK_MAX, "rank");
        assert_eq!(self.a.len(), self.rank * inputs, "size of the first factor");
        assert_eq!(
            self.b.len(),
            self.rank * outputs,
            "size of the second factor"
        );
    }
}
