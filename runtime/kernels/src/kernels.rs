//! The operations, dispatched to the level in use.

use crate::attention::{
    AttentionScratch, AttentionShape, CONTEXT_PARTS_MAX, KeyBlocks, KeysValues,
};
use crate::fast::attend::Attend;
use crate::fast::low_rank::{AddLowRank, GateLowRank};
use crate::fast::rows::{Dequantise, Quantise, RmsNorm, Rotate};
use crate::low_rank::LowRank;
use crate::packed::PANEL_CHANNELS;
use crate::rotary::RotaryTable;
use crate::vector::{Task, Vector};
use crate::{KernelError, Level, QuantisedRows, WeightMatrix, portable};

/// A level that this processor is known to have: the proof that the fast kernels need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    level: Level,
}

impl Kernels {
    /// The kernels of that level.
    ///
    /// # Errors
    /// [`KernelError::LevelUnavailable`].
    pub fn new(level: Level) -> Result<Self, KernelError> {
        Ok(Self {
            level: level.available()?,
        })
    }

    /// The level.
    #[must_use]
    pub fn level(self) -> Level {
        self.level
    }

    /// Whether products read activations as 16-bit values.
    pub(crate) fn has_wide_rows(self) -> bool {
        let mut wide = false;
        // The reference, which has no registers, reads bytes.
        let _reference = self.run(WideRows(&mut wide));
        wide
    }

    /// Runs a kernel on the level's registers; gives it back where the level has none but the reference's plain loops.
    #[inline]
    pub(crate) fn run<T: Task>(self, task: T) -> Option<T> {
        #[cfg(target_arch = "aarch64")]
        use crate::vector::neon::Neon;
        #[cfg(target_arch = "x86_64")]
        use crate::vector::{avx2::Avx2, avx512::Avx512};
        // SAFETY: `Kernels` of a level exist only where the level's instructions do.
        unsafe {
            match self.level {
                #[cfg(target_arch = "x86_64")]
                Level::Amx | Level::Avx512Vnni => Avx512::new().run(task),
                #[cfg(target_arch = "x86_64")]
                Level::AvxVnni => Avx2::<true>::new().run(task),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => Avx2::<false>::new().run(task),
                #[cfg(target_arch = "aarch64")]
                Level::NeonDot => Neon::<true>::new().run(task),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => Neon::<false>::new().run(task),
                _ => return Some(task),
            }
        }
        None
    }

    /// RMSNorm of each row: `input * weight / sqrt(mean(input^2) + epsilon)`; `input` and `output` `[rows, columns]`,
    /// `weight` `[columns]`.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn rms_norm(self, input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        let columns = check_rows(input.len(), weight.len());
        assert_eq!(input.len(), output.len(), "size of the output");
        let task = RmsNorm {
            input,
            weight,
            epsilon,
            output,
        };
        if let Some(RmsNorm { output, .. }) = self.run(task) {
            let rows = input.chunks_exact(columns);
            for (input, output) in rows.zip(output.chunks_exact_mut(columns)) {
                let normed = portable::rms_norm(input, weight, epsilon);
                output
                    .iter_mut()
                    .zip(normed)
                    .for_each(|(output, value)| *output = value);
            }
        }
    }

    /// RMSNorm of each row as [`Kernels::rms_norm`], quantised into `output`.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn rms_norm_quantise(
        self,
        input: &[f32],
        weight: &[f32],
        epsilon: f32,
        output: &mut QuantisedRows,
    ) {
        let columns = check_rows(input.len(), weight.len());
        output.reset(input.len() / columns, columns);
        self.quantise_rows(input, columns, Some((weight, epsilon)), output);
    }

    /// Quantises the first `columns` values of each row of `input` `[rows, stride]`: scale = largest magnitude / 127. A
    /// row that holds NaN or infinity gets the scale NaN, and every product with it is NaN.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn quantise(
        self,
        input: &[f32],
        stride: usize,
        columns: usize,
        output: &mut QuantisedRows,
    ) {
        check_rows(input.len(), stride);
        assert!((1..=stride).contains(&columns), "columns of a row");
        output.reset(input.len() / stride, columns);
        self.quantise_rows(input, stride, None, output);
    }

    fn quantise_rows(
        self,
        input: &[f32],
        stride: usize,
        norm: Option<(&[f32], f32)>,
        output: &mut QuantisedRows,
    ) {
        let task = Quantise {
            input,
            stride,
            norm,
            output,
        };
        if let Some(Quantise { output, .. }) = self.run(task) {
            let columns = output.columns();
            for (input, (values, scale, sum)) in input.chunks_exact(stride).zip(output.rows_mut()) {
                let input = &input[..columns];
                match norm {
                    Some((weight, epsilon)) => {
                        let normed = portable::rms_norm(input, weight, epsilon);
                        portable::quantise(normed, values, scale, sum);
                    }
                    None => portable::quantise(input.iter().copied(), values, scale, sum),
                }
            }
            output.complete(false);
        }
    }

    /// Writes row `row` of a matrix to `output` `[columns]`, as [`WeightMatrix::dequantise_row`]. Every level gives the
    /// same bits.
    ///
    /// # Panics
    /// If `row` or the length of `output` is wrong.
    pub fn dequantise_row(self, matrix: &WeightMatrix, row: usize, output: &mut [f32]) {
        assert_eq!(output.len(), matrix.columns(), "size of the output");
        match matrix {
            WeightMatrix::Int8(matrix) => {
                let values = &matrix.values[row * matrix.columns..][..matrix.columns];
                let task = Dequantise {
                    values,
                    scale: matrix.scales[row],
                    output,
                };
                if let Some(Dequantise { output, .. }) = self.run(task) {
                    matrix.dequantise_row(row, output);
                }
            }
            WeightMatrix::Int4(matrix) => matrix.dequantise_row(row, output),
        }
    }

    /// Rotates the heads in `row` in place, as those of position `position`. Every level gives the same bits.
    ///
    /// # Panics
    /// If `row` does not hold whole heads, or the table lacks the position.
    pub fn rotate(self, row: &mut [f32], table: &RotaryTable, position: usize) {
        assert!(row.len().is_multiple_of(table.head_dim), "whole heads");
        assert!(position < table.positions, "position in the table");
        let task = Rotate {
            row,
            table,
            position,
        };
        if let Some(Rotate { row, .. }) = self.run(task) {
            portable::rotate(row, table, position);
        }
    }

    /// Adds a low-rank product to a row: `output += sum over r of (a[r] . input) * b[r]`.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn add_low_rank(self, factors: LowRank<'_>, input: &[f32], output: &mut [f32]) {
        factors.check(input.len(), output.len());
        let task = AddLowRank {
            factors,
            input,
            output,
        };
        if let Some(AddLowRank { output, .. }) = self.run(task) {
            portable::add_low_rank(factors, input, output);
        }
    }

    /// `silu(gate) * up` of a row with low-rank products added to gate and up. `products` is a row that
    /// [`PackedMatrix::multiply`](crate::PackedMatrix::multiply) made with all channels of a matrix from
    /// [`PackedMatrix::gated`](crate::PackedMatrix::gated) on these kernels, in whose order of panels it is; the outputs of
    /// `factors` are gate, then up. Without factors the result is that of
    /// [`PackedMatrix::multiply_gated`](crate::PackedMatrix::multiply_gated), bit for bit.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn gate_low_rank(
        self,
        factors: Option<LowRank<'_>>,
        input: &[f32],
        products: &[f32],
        output: &mut [f32],
    ) {
        let factors = factors.unwrap_or_default();
        factors.check(input.len(), products.len());
        assert!(
            output.len().is_multiple_of(PANEL_CHANNELS) && products.len() == 2 * output.len(),
            "size of the output"
        );
        let task = GateLowRank {
            factors,
            input,
            products,
            output,
        };
        if let Some(GateLowRank { output, .. }) = self.run(task) {
            portable::gate_low_rank(factors, input, products, output);
        }
    }

    /// Attention of `rows` `[tokens, query | key | value]` f32, whose queries are replaced by the results. Row `t` sees
    /// all of `context` and the keys and values of rows `0..=t`; `own` holds the keys of `rows`. A row's result depends on
    /// nothing but what it sees.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn attend(
        self,
        shape: AttentionShape,
        context: &[KeysValues<'_>],
        own: &KeyBlocks,
        rows: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        if rows.is_empty() {
            return;
        }
        check_shape(shape);
        let tokens = rows.len() / check_rows(rows.len(), shape.row_size());
        check_keys(shape, own);
        assert_eq!(own.keys, tokens, "keys of the rows");
        assert!(context.len() <= CONTEXT_PARTS_MAX, "parts of the context");
        for part in context {
            check_keys(shape, part.keys);
            let values = part
                .keys
                .keys
                .checked_sub(1)
                .map_or(0, |last| last * part.stride + shape.key_size());
            assert!(
                part.values.len() >= values && part.stride >= shape.key_size(),
                "values of the context"
            );
        }
        let task = Attend {
            shape,
            context,
            own,
            rows,
            memory: &mut scratch.scores,
        };
        if let Some(Attend { rows, memory, .. }) = self.run(task) {
            portable::attend(shape, context, own, rows, memory);
        }
    }
}

/// Asks whether a level reads activations as 16-bit values.
struct WideRows<'a>(&'a mut bool);

impl Task for WideRows<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, _vector: V) {
        *self.0 = V::WIDE_ROWS;
    }
}

/// The size of a row, if `length` is a whole number of rows.
fn check_rows(length: usize, row: usize) -> usize {
    assert!(row > 0 && length.is_multiple_of(row), "whole rows");
    row
}

fn check_shape(shape: AttentionShape) {
    assert!(
        shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads),
        "heads of attention"
    );
    assert!(
        shape.head_dim > 0 && shape.head_dim.is_multiple_of(16),
        "size of a head"
    );
}

fn check_keys(shape: AttentionShape, keys: &KeyBlocks) {
    assert!(
        keys.keys == 0 || (keys.kv_heads, keys.head_dim) == (shape.kv_heads, shape.head_dim),
        "shape of the keys"
    );
}
