//! The tile in plain Rust.

use super::{Left, Output};

const COLUMNS: usize = 16;

/// One tile: `height` (1 to 4) rows of A times a panel.
///
/// # Safety
/// `left` must have `height` rows of `depth` values, `right` `depth` rows of 16 values, `output` `height` rows of
/// `output.columns` (at most 16) values that nothing else refers to.
pub(super) unsafe fn tile(
    height: usize,
    depth: usize,
    left: Left,
    right: *const f32,
    output: Output,
) {
    for row in 0..height {
        let mut sums = [0.0_f32; COLUMNS];
        for inner in 0..depth {
            // SAFETY: the caller's promise about `left` and `right`; the panel's rows are 16 values long.
            let (factor, values) = unsafe {
                let factor = *left
                    .values
                    .add(row * left.row_step + inner * left.inner_step);
                (
                    factor,
                    std::slice::from_raw_parts(right.add(inner * COLUMNS), COLUMNS),
                )
            };
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = factor.mul_add(*value, *sum);
            }
        }
        // SAFETY: the caller's promise about `output`.
        let target = unsafe {
            std::slice::from_raw_parts_mut(
                output.values.add(row * output.row_stride),
                output.columns,
            )
        };
        for (value, sum) in target.iter_mut().zip(&sums) {
            *value = if output.accumulate {
                *value + sum
            } else {
                *sum
            };
        }
    }
}
