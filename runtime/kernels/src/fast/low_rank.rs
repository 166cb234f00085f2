//! Low-rank additions to single rows.

use super::output::gated;
use super::rows::{load, registers};
use crate::limits::LOW_RANK_MAX;
use crate::low_rank::LowRank;
use crate::vector::{SUM_LANES, SUM_REGISTERS_MAX, Task, Vector};

/// Groups of [`SUM_LANES`] sums of products that run side by side.
const SUM_GROUPS: usize = 4;

/// The product of two rows of equal length: 64 sums take every 64th value each, then fold, in the same order on every level.
#[inline(always)]
fn dot<V: Vector>(vector: V, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let registers = SUM_LANES / V::LANES;
    let mut sums = [[vector.splat(0.0); SUM_REGISTERS_MAX]; SUM_GROUPS];
    for start in (0..a.len()).step_by(SUM_GROUPS * SUM_LANES) {
        for (group, sums) in sums.iter_mut().enumerate() {
            for (register, sum) in sums[..registers].iter_mut().enumerate() {
                let at = start + group * SUM_LANES + register * V::LANES;
                if at < a.len() {
                    let count = a.len() - at;
                    // SAFETY: that many values are left in both, which are equally long.
                    let (a, b) =
                        unsafe { (load(vector, a, at, count), load(vector, b, at, count)) };
                    *sum = vector.fused(a, b, *sum);
                }
            }
        }
    }
    let [first, second, third, fourth] = sums;
    let mut sums = first;
    for (register, sum) in sums[..registers].iter_mut().enumerate() {
        let low = vector.add(first[register], second[register]);
        *sum = vector.add(low, vector.add(third[register], fourth[register]));
    }
    vector.reduce_add_all(sums)
}

/// The products of a row with the rows of the first factor; only the first `rank` are set.
#[inline(always)]
fn coefficients<V: Vector>(vector: V, factors: LowRank<'_>, input: &[f32]) -> [f32; LOW_RANK_MAX] {
    let mut coefficients = [0.0; LOW_RANK_MAX];
    if factors.rank > 0 {
        let rows = factors.a.chunks_exact(input.len());
        for (coefficient, row) in coefficients.iter_mut().zip(rows) {
            *coefficient = dot(vector, row, input);
        }
    }
    coefficients
}

/// `lanes + sum of coefficients * rows`, of the values from `at` on of rows of `columns` values each.
///
/// # Safety
/// `count` values, or a register if that is less, can be read from `at` on in each of the rows.
#[inline(always)]
unsafe fn add_rows<V: Vector>(
    vector: V,
    coefficients: &[f32],
    (rows, columns): (&[f32], usize),
    (at, count): (usize, usize),
    mut lanes: V::Floats,
) -> V::Floats {
    for (row, coefficient) in coefficients.iter().enumerate() {
        // SAFETY: the caller's promise.
        let values = unsafe { load(vector, rows, row * columns + at, count) };
        lanes = vector.fused(vector.splat(*coefficient), values, lanes);
    }
    lanes
}

/// See [`Kernels::add_low_rank`](crate::Kernels::add_low_rank); the sizes have been checked.
pub(crate) struct AddLowRank<'a> {
    pub(crate) factors: LowRank<'a>,
    pub(crate) input: &'a [f32],
    pub(crate) output: &'a mut [f32],
}

impl Task for AddLowRank<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let columns = self.output.len();
        let coefficients = coefficients(vector, self.factors, self.input);
        let coefficients = &coefficients[..self.factors.rank];
        assert_eq!(self.factors.b.len(), coefficients.len() * columns);
        for (at, count) in registers::<V>(columns) {
            // SAFETY: `count` values are left in the output and in each row of the factor, which are equally long.
            unsafe {
                let lanes = load(vector, self.output, at, count);
                let rows = (self.factors.b, columns);
                let lanes = add_rows(vector, coefficients, rows, (at, count), lanes);
                vector.store_first(self.output.as_mut_ptr().add(at), count, lanes);
            }
        }
    }
}

/// See [`Kernels::gate_low_rank`](crate::Kernels::gate_low_rank); the sizes have been checked.
pub(crate) struct GateLowRank<'a> {
    pub(crate) factors: LowRank<'a>,
    pub(crate) input: &'a [f32],
    /// Panels of gate and up in turn.
    pub(crate) products: &'a [f32],
    pub(crate) output: &'a mut [f32],
}

impl Task for GateLowRank<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let width = self.output.len();
        let coefficients = coefficients(vector, self.factors, self.input);
        let coefficients = &coefficients[..self.factors.rank];
        let rows = (self.factors.b, 2 * width);
        assert!(width.is_multiple_of(V::LANES) && self.products.len() == 2 * width);
        assert_eq!(self.factors.b.len(), coefficients.len() * 2 * width);
        for at in (0..width).step_by(V::LANES) {
            // SAFETY: whole registers, as asserted: the panels of gate and up that `at` belongs to, and as far into the first and
            // the second half of each row of the factor.
            unsafe {
                let gate = load(vector, self.products, 2 * at, V::LANES);
                let up = load(vector, self.products, 2 * at + V::LANES, V::LANES);
                let gate = add_rows(vector, coefficients, rows, (at, V::LANES), gate);
                let up = add_rows(vector, coefficients, rows, (width + at, V::LANES), up);
                vector.store(self.output.as_mut_ptr().add(at), gated(vector, gate, up));
            }
        }
    }
}
