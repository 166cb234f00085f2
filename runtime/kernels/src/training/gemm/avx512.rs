//! The tile with AVX-512: 12 rows by 32 columns, 24 accumulators.

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

use super::{Left, Output, TILE_ROWS_MAX};

const COLUMNS: usize = 32;

/// One tile: `height` (1 to 12) rows of A times a panel.
///
/// # Safety
/// The processor must have AVX-512 F. `left` must have `height` rows of `depth` values, `right` `depth` rows of 32
/// values, `output` `height` rows of `output.columns` (at most 32) values that nothing else refers to.
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
    of_height!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// # Safety
/// As [`tile`]; `PACKED` says that `left` has steps of 1 and `TILE_ROWS_MAX`, otherwise the inner step is 1.
#[target_feature(enable = "avx512f")]
unsafe fn rows<const ROWS: usize, const PACKED: bool>(
    depth: usize,
    left: Left,
    right: *const f32,
    output: Output,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
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
            let low = _mm512_loadu_ps(values);
            let high = _mm512_loadu_ps(values.add(16));
            for (row, sum) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(*factors.add(row * row_step));
                sum[0] = _mm512_fmadd_ps(factor, low, sum[0]);
                sum[1] = _mm512_fmadd_ps(factor, high, sum[1]);
            }
            values = values.add(COLUMNS);
            factors = factors.add(inner_step);
        }
    }
    let (low, high) = masks(output.columns);
    for (row, sum) in sums.iter().enumerate() {
        // SAFETY: the masks keep loads and stores within the existing columns of this row of C.
        unsafe {
            let target = output.values.add(row * output.row_stride);
            store(target, low, sum[0], output.accumulate);
            store(target.wrapping_add(16), high, sum[1], output.accumulate);
        }
    }
}

/// # Safety
/// The values under the mask must be valid for reads and writes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store(target: *mut f32, mask: __mmask16, sum: __m512, accumulate: bool) {
    // SAFETY: the caller's promise; masked-out values are not touched.
    unsafe {
        let sum = if accumulate {
            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, target), sum)
        } else {
            sum
        };
        _mm512_mask_storeu_ps(target, mask, sum);
    }
}

/// Masks of the first `count` lanes of two registers.
#[inline]
pub(super) fn masks(count: usize) -> (__mmask16, __mmask16) {
    let mask = if count >= COLUMNS {
        u32::MAX
    } else {
        (1_u32 << count) - 1
    };
    (mask as __mmask16, (mask >> 16) as __mmask16)
}
