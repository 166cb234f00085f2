//! Kernels that work row by row: norm, quantisation, rotary, embedding rows.

use crate::QuantisedRows;
use crate::portable::quantisation;
use crate::rotary::RotaryTable;
use crate::vector::{SUM_LANES, SUM_REGISTERS_MAX, Task, Vector};

/// Groups of [`SUM_LANES`] sums of squares that run side by side.
const SUM_GROUPS: usize = 4;

/// Walks along registers of a row: `count` lanes from value `at`.
#[inline(always)]
pub(super) fn registers<V: Vector>(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..columns)
        .step_by(V::LANES)
        .map(move |at| (at, columns - at))
}

/// `1 / sqrt(mean(input^2) + epsilon)`: 64 sums take every 64th value each, then fold, in the same order on every level.
#[inline(always)]
fn rms_factor<V: Vector>(vector: V, input: &[f32], epsilon: f32) -> f32 {
    let registers = SUM_LANES / V::LANES;
    let mut squares = [[vector.splat(0.0); SUM_REGISTERS_MAX]; SUM_GROUPS];
    for start in (0..input.len()).step_by(SUM_GROUPS * SUM_LANES) {
        for (group, squares) in squares.iter_mut().enumerate() {
            for (register, squares) in squares[..registers].iter_mut().enumerate() {
                let at = start + group * SUM_LANES + register * V::LANES;
                if at < input.len() {
                    // SAFETY: that many values are left.
                    let values = unsafe { load(vector, input, at, input.len() - at) };
                    *squares = vector.fused(values, values, *squares);
                }
            }
        }
    }
    let [first, second, third, fourth] = squares;
    let mut sums = first;
    for (register, sum) in sums[..registers].iter_mut().enumerate() {
        let low = vector.add(first[register], second[register]);
        *sum = vector.add(low, vector.add(third[register], fourth[register]));
    }
    1.0 / (vector.reduce_add_all(sums) / input.len() as f32 + epsilon).sqrt()
}

/// RMSNorm of each row.
pub(crate) struct RmsNorm<'a> {
    pub(crate) input: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
    pub(crate) output: &'a mut [f32],
}

impl Task for RmsNorm<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let columns = self.weight.len();
        let rows = self
            .input
            .chunks_exact(columns)
            .zip(self.output.chunks_exact_mut(columns));
        for (input, output) in rows {
            let rms = vector.splat(rms_factor(vector, input, self.epsilon));
            for (at, count) in registers::<V>(columns) {
                // SAFETY: `count` values are left in each of the three, which are equally long.
                unsafe {
                    let lanes = normed(vector, input, self.weight, rms, at, count);
                    vector.store_first(output.as_mut_ptr().add(at), count, lanes);
                }
            }
        }
    }
}

/// `input * rms * weight`, as many lanes from `at` as there are, at most `count`.
///
/// # Safety
/// `count` values, or a register if that is less, can be read from `at` on in both slices.
#[inline(always)]
unsafe fn normed<V: Vector>(
    vector: V,
    input: &[f32],
    weight: &[f32],
    rms: V::Floats,
    at: usize,
    count: usize,
) -> V::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        let lanes = load(vector, input, at, count);
        vector.multiply(vector.multiply(lanes, rms), load(vector, weight, at, count))
    }
}

/// # Safety
/// As [`Vector::load_first`].
#[inline(always)]
pub(super) unsafe fn load<V: Vector>(
    vector: V,
    values: &[f32],
    at: usize,
    count: usize,
) -> V::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        let from = values.as_ptr().add(at);
        if count >= V::LANES {
            vector.load(from)
        } else {
            vector.load_first(from, count)
        }
    }
}

/// Quantises the first values of each row of `input` `[rows, stride]`, with `norm` after RMSNorm.
pub(crate) struct Quantise<'a> {
    pub(crate) input: &'a [f32],
    pub(crate) stride: usize,
    /// Weight and epsilon.
    pub(crate) norm: Option<(&'a [f32], f32)>,
    /// Has the shape already.
    pub(crate) output: &'a mut QuantisedRows,
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let columns = self.output.columns();
        for (input, (values, scale, sum)) in self
            .input
            .chunks_exact(self.stride)
            .zip(self.output.rows_mut())
        {
            let input = &input[..columns];
            match self.norm {
                Some((weight, epsilon)) => {
                    let rms = rms_factor(vector, input, epsilon);
                    quantise::<V, true>(vector, input, weight, rms, values, scale, sum);
                }
                None => quantise::<V, false>(vector, input, input, 1.0, values, scale, sum),
            }
        }
        self.output.complete(V::WIDE_ROWS);
    }
}

/// What is quantised of a row: `input`, or with `NORM` `input * rms * weight`.
///
/// # Safety
/// As [`normed`].
#[inline(always)]
unsafe fn to_quantise<V: Vector, const NORM: bool>(
    vector: V,
    input: &[f32],
    weight: &[f32],
    rms: V::Floats,
    at: usize,
    count: usize,
) -> V::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        if NORM {
            normed(vector, input, weight, rms, at, count)
        } else {
            load(vector, input, at, count)
        }
    }
}

/// Quantises `input`, or with `NORM` `input * rms * weight`.
#[inline(always)]
fn quantise<V: Vector, const NORM: bool>(
    vector: V,
    input: &[f32],
    weight: &[f32],
    rms: f32,
    values: &mut [i8],
    scale: &mut f32,
    sum: &mut i32,
) {
    assert!(weight.len() >= input.len() && values.len() == input.len());
    let rms = vector.splat(rms);
    let mut largest = vector.zeros();
    for (at, count) in registers::<V>(input.len()) {
        // SAFETY: `count` values are left in both slices, as asserted.
        let lanes = unsafe { to_quantise::<V, NORM>(vector, input, weight, rms, at, count) };
        largest = vector.max_ints(largest, vector.magnitude_bits(lanes));
    }
    let factor;
    (*scale, factor) = quantisation(f32::from_bits(
        vector.reduce_max_ints(largest).cast_unsigned(),
    ));
    if factor == 0.0 {
        // Infinity times 0 would not be 0.
        values.fill(0);
        *sum = 0;
        return;
    }
    let factor = vector.splat(factor);
    let mut sums = vector.zeros();
    for (at, count) in registers::<V>(input.len()) {
        // SAFETY: as above.
        let lanes = unsafe { to_quantise::<V, NORM>(vector, input, weight, rms, at, count) };
        let rounded = vector.round(vector.multiply(lanes, factor));
        sums = vector.add_ints(sums, rounded);
        // SAFETY: `count` bytes are left.
        unsafe { vector.store_bytes(values.as_mut_ptr().add(at), count, rounded) };
    }
    *sum = vector.reduce_add_ints(sums);
}

/// Rotates the heads of a row in place.
pub(crate) struct Rotate<'a> {
    pub(crate) row: &'a mut [f32],
    pub(crate) table: &'a RotaryTable,
    pub(crate) position: usize,
}

impl Task for Rotate<'_> {
    /// Heads are multiples of 2, so pairs never straddle registers.
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let (cosines, sines) = self.table.at(self.position);
        for head in self.row.chunks_exact_mut(self.table.head_dim) {
            for (at, count) in registers::<V>(head.len()) {
                // SAFETY: `count` values are left in the head and in both rows of the table.
                unsafe {
                    let values = load(vector, head, at, count);
                    // Not fused, so that every level rounds alike.
                    let along = vector.multiply(values, load(vector, cosines, at, count));
                    let across =
                        vector.multiply(vector.swap_pairs(values), load(vector, sines, at, count));
                    vector.store_first(head.as_mut_ptr().add(at), count, vector.add(along, across));
                }
            }
        }
    }
}

/// `value * scale` of each value.
pub(crate) struct Dequantise<'a> {
    pub(crate) values: &'a [i8],
    pub(crate) scale: f32,
    pub(crate) output: &'a mut [f32],
}

impl Task for Dequantise<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        assert_eq!(self.values.len(), self.output.len());
        let scale = vector.splat(self.scale);
        for (at, count) in registers::<V>(self.values.len()) {
            // SAFETY: `count` values are left in both.
            unsafe {
                let lanes = vector.load_bytes(self.values.as_ptr().add(at), count);
                vector.store_first(
                    self.output.as_mut_ptr().add(at),
                    count,
                    vector.multiply(lanes, scale),
                );
            }
        }
    }
}
