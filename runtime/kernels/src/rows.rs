//! Activations as the products take them: one signed byte each, one scale per row.

use crate::memory::try_hold;
use crate::{GROUP_COLUMNS, KernelError, Kernels};

/// Bytes to which a row is padded, so that rows start on cache lines of their own.
const ROW_ALIGNMENT: usize = 64;

/// Rows to which a buffer is padded with zeros, so that kernels may read whole tiles of them.
pub(crate) const ROWS_PADDING: usize = 16;

/// Quantised activations `[rows, columns]`; activation = `value * scale` of its row. A buffer that is written by
/// [`Kernels`](crate::Kernels) and read by [`PackedMatrix`](crate::PackedMatrix), reused without allocating.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct QuantisedRows {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Bytes from one row to the next; the bytes past `columns` are 0.
    pub(crate) stride: usize,
    /// `[rows, stride]`, within -127 to 127; then zeros up to a multiple of 16 rows.
    pub(crate) values: Vec<i8>,
    /// `[rows, stride]` i16: the values again, where the level in use multiplies 16 bits, else empty.
    pub(crate) wide: Vec<i16>,
    /// `[rows]` f32.
    pub(crate) scales: Vec<f32>,
    /// `[rows]`: the sum of a row's values.
    pub(crate) sums: Vec<i32>,
    /// `[rows, columns / 32]`: the sums of groups of values, as products with 4-bit weights need them; empty unless asked for.
    pub(crate) group_sums: Vec<i32>,
    pub(crate) wants_group_sums: bool,
}

impl QuantisedRows {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of values of a row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The bytes `[columns]` of one row and its scale.
    #[must_use]
    pub fn row(&self, row: usize) -> (&[i8], f32) {
        (
            &self.values[row * self.stride..][..self.columns],
            self.scales[row],
        )
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sums = self.sums.capacity() + self.group_sums.capacity();
        self.values.capacity() + self.wide.capacity() * 2 + (self.scales.capacity() + sums) * 4
    }

    /// Whether rows quantised from now on carry what products with 4-bit weights need.
    pub fn set_group_sums(&mut self, wanted: bool) {
        self.wants_group_sums = wanted;
    }

    /// Makes room for any shape of at most `rows` rows of at most `columns` values, for the kernels in use and with group sums where they
    /// are wanted ([`QuantisedRows::set_group_sums`]). Within it, quantising allocates nothing.
    ///
    /// # Errors
    /// [`KernelError::Memory`].
    pub fn try_reserve(
        &mut self,
        kernels: Kernels,
        rows: usize,
        columns: usize,
    ) -> Result<(), KernelError> {
        const WHAT: &str = "quantised activations";
        let stride = columns.next_multiple_of(ROW_ALIGNMENT);
        let padded = rows.next_multiple_of(ROWS_PADDING);
        try_hold(WHAT, &mut self.values, padded * stride)?;
        if kernels.has_wide_rows() {
            try_hold(WHAT, &mut self.wide, rows * stride)?;
        }
        if self.wants_group_sums {
            try_hold(WHAT, &mut self.group_sums, rows * (columns / GROUP_COLUMNS))?;
        }
        try_hold(WHAT, &mut self.scales, rows)?;
        try_hold(WHAT, &mut self.sums, rows)
    }

    /// Takes the shape `[rows, columns]`. Values are to be written by the caller; padding is 0.
    pub(crate) fn reset(&mut self, rows: usize, columns: usize) {
        let stride = columns.next_multiple_of(ROW_ALIGNMENT);
        if stride != self.stride || columns != self.columns {
            // Another width moves the padding: clear so that it is 0 wherever it lies now.
            self.values.clear();
        }
        // What pads rows to whole tiles is 0, whatever stood there.
        self.values.truncate(rows * stride);
        self.values
            .resize(rows.next_multiple_of(ROWS_PADDING) * stride, 0);
        self.scales.resize(rows, 0.0);
        self.sums.resize(rows, 0);
        (self.rows, self.columns, self.stride) = (rows, columns, stride);
    }

    /// Row by row: bytes `[columns]`, scale, sum.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = (&mut [i8], &mut f32, &mut i32)> {
        let columns = self.columns;
        self.values
            .chunks_exact_mut(self.stride.max(1))
            .zip(&mut self.scales)
            .zip(&mut self.sums)
            .map(move |((values, scale), sum)| (&mut values[..columns], scale, sum))
    }

    /// Makes what is derived of the values, once they are written: the 16-bit copy for a level that is `wide`, group sums where
    /// they are wanted.
    pub(crate) fn complete(&mut self, wide: bool) {
        self.wide.clear();
        if wide {
            let values = &self.values[..self.rows * self.stride];
            self.wide.extend(values.iter().copied().map(i16::from));
        }
        self.group_sums.clear();
        if self.wants_group_sums {
            let rows = self.values[..self.rows * self.stride].chunks_exact(self.stride.max(1));
            let groups = rows.flat_map(|row| row[..self.columns].chunks_exact(GROUP_COLUMNS));
            let sum = |group: &[i8]| group.iter().map(|&value| i32::from(value)).sum::<i32>();
            self.group_sums.extend(groups.map(sum));
        }
    }
}
