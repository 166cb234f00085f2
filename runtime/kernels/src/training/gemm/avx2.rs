//! The tile with AVX2 and FMA: 6 rows by 16 columns, 12 accumulators.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::{Left, Output, TILE_ROWS_MAX};

const COLUMNS: usize = 16;

/// One tile: `height` (1 to 6) rows of A times a panel.
///
/// # Safety
/// The processor must have AVX2 and FMA. `left` must have `height` rows of `depth` values, `right` `depth` rows of 16
/// values, `output` `height` rows of `output.columns` (at most 16) values that nothing else refers to.
pub(super) unsafe fn tile(
    height: usize,
    depth: usize,
    left: Left,
    right: *const f32,
    output: Output,
) {
    macro_rules! of_height {
        ($($rows:literal)*) => {
            match height {
                // SAFETY: the caller's promises, handed on; the packed form has rows one value apart and inner steps of
                // TILE_ROWS_MAX, the other one has inner steps of one value.
                $($rows => unsafe {
                    if left.inner_step == 1 {
                        rows::<$rows, false>(depth, left, right, output);
                    } else {
                        rows::<$rows, true>(depth, left, right, output);
                    }
                },)*
                _ => {}
            }
        };
    }
    of_height!(1 2 3 4 5 6);
}

/// # Safety
/// As [`tile`]; `PACKED` says that `left` has steps of 1 and `TILE_ROWS_MAX`, otherwise the inner step is 1.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const ROWS: usize, const PACKED: bool>(
    depth: usize,
    left: Left,
    right: *const f32,
    output: Output,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let (row_step, inner_step) = if PACKED {
        (1, TILE_ROWS_MAX)
    } else {
        (left.row_step, 1)
    };
    let mut factors = left.values;
    let mut values = right;
    for _ in 0..depth {
        // SAFETY: within the panel and the rows of A by the caller's promise.
        unsafe {
            let low = _mm256_loadu_ps(values);
            let high = _mm256_loadu_ps(values.add(8));
            for (row, sum) in sums.iter_mut().enumerate() {
                let factor = _mm256_set1_ps(*factors.add(row * row_step));
                sum[0] = _mm256_fmadd_ps(factor, low, sum[0]);
                sum[1] = _mm256_fmadd_ps(factor, high, sum[1]);
            }
            values = values.add(COLUMNS);
            factors = factors.add(inner_step);
        }
    }
    for (row, sum) in sums.iter().enumerate() {
        // SAFETY: `columns` values of this row of C may be written, by the caller's promise.
        unsafe { store(output.values.add(row * output.row_stride), output, sum) };
    }
}

/// # Safety
/// `output.columns` values from `target` must be valid for reads and writes.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store(target: *mut f32, output: Output, sum: &[__m256; 2]) {
    if output.columns == COLUMNS {
        for (half, sum) in sum.iter().enumerate() {
            // SAFETY: 8 values of the 16 that the caller promises.
            unsafe {
                let target = target.add(half * 8);
                let sum = if output.accumulate {
                    _mm256_add_ps(_mm256_loadu_ps(target), *sum)
                } else {
                    *sum
                };
                _mm256_storeu_ps(target, sum);
            }
        }
        return;
    }
    let mut values = [0.0_f32; COLUMNS];
    // SAFETY: `values` has room for both halves; `target` has `columns` values by the caller's promise.
    let existing = unsafe {
        _mm256_storeu_ps(values.as_mut_ptr(), sum[0]);
        _mm256_storeu_ps(values.as_mut_ptr().add(8), sum[1]);
        std::slice::from_raw_parts_mut(target, output.columns)
    };
    for (value, sum) in existing.iter_mut().zip(&values) {
        *value = if output.accumulate {
            *value + sum
        } else {
            *sum
        };
    }
}
