//! Packing and the tile with AVX-512 BF16: like the f32 tile, but a packed value is a pair of neighbouring inner indices,
//! rounded to bf16 and multiplied and added up in f32 by one instruction.
//!
//! Pairs are kept as the bits of f32 slots, so that they live in the same memory as unrounded values.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512bh, __m512i, __mmask16, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32,
    _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_slli_epi32,
};

use super::avx512::{masks, store};
use super::{Left, Matrix, Output, TILE_ROWS_MAX};

/// Columns of the tile.
const COLUMNS: usize = 32;
/// Values of a register.
const LANES: usize = 16;

/// Slots that `depth` values take.
pub(super) fn slots(depth: usize) -> usize {
    depth.div_ceil(2)
}

/// Packs `columns` (at most 32) columns of a block of B from `first` on as a panel `[slots][32]`, zero where there is nothing.
///
/// # Safety
/// The processor must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn pack_panel(
    b: Matrix<'_>,
    (inner_start, depth): (usize, usize),
    (first, columns): (usize, usize),
    panel: &mut [f32],
) {
    if !b.transposed {
        for (slot, target) in panel.chunks_exact_mut(COLUMNS).enumerate() {
            // SAFETY: this function's own promise.
            unsafe {
                interleave(
                    b,
                    inner_start + 2 * slot,
                    inner_start + depth,
                    first,
                    columns,
                    target,
                )
            };
        }
        return;
    }
    panel.fill(0.0);
    let mut pairs = [0.0; LANES];
    for column in 0..columns {
        let start = (first + column) * b.row_stride + inner_start;
        for (chunk, values) in b.values[start..start + depth].chunks(2 * LANES).enumerate() {
            // SAFETY: this function's own promise.
            unsafe { round(values, &mut pairs) };
            for (offset, pair) in pairs[..slots(values.len())].iter().enumerate() {
                panel[(chunk * LANES + offset) * COLUMNS + column] = *pair;
            }
        }
    }
}

/// Packs `height` rows of A: `[slots][TILE_ROWS_MAX]` if it is transposed, else `[height][slots]`.
///
/// # Safety
/// The processor must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn pack_left(
    a: Matrix<'_>,
    (row, height): (usize, usize),
    (inner_start, depth): (usize, usize),
    left: &mut Vec<f32>,
) {
    let slots = slots(depth);
    if a.transposed {
        left.resize(slots * TILE_ROWS_MAX, 0.0);
        for (slot, target) in left.chunks_exact_mut(TILE_ROWS_MAX).enumerate() {
            // SAFETY: this function's own promise.
            unsafe {
                interleave(
                    a,
                    inner_start + 2 * slot,
                    inner_start + depth,
                    row,
                    height,
                    target,
                )
            };
        }
        return;
    }
    left.resize(slots * height, 0.0);
    for (offset, target) in left.chunks_exact_mut(slots).enumerate() {
        let start = (row + offset) * a.row_stride + inner_start;
        let values = a.values[start..start + depth].chunks(2 * LANES);
        for (values, target) in values.zip(target.chunks_mut(LANES)) {
            // SAFETY: this function's own promise.
            unsafe { round(values, target) };
        }
    }
}

/// Rounds up to 32 values to pairs, with a zero behind an odd last one.
///
/// # Safety
/// The processor must have AVX-512 F and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(values: &[f32], pairs: &mut [f32]) {
    let (low, high) = masks(values.len());
    let (targets, _) = masks(slots(values.len()));
    assert!(values.len() <= 2 * LANES && slots(values.len()) <= pairs.len());
    // SAFETY: the masks keep loads within `values` and the store within `pairs`.
    unsafe {
        let low = _mm512_maskz_loadu_ps(low, values.as_ptr());
        let high = _mm512_maskz_loadu_ps(high, values.as_ptr().wrapping_add(LANES));
        let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        _mm512_mask_storeu_epi32(pairs.as_mut_ptr().cast(), targets, rounded);
    }
}

/// Pairs of the values of stored rows `inner` and `inner + 1` (zero from `end` on) at `count` columns from `first` on; zeros
/// in the rest of `target`.
///
/// # Safety
/// The processor must have AVX-512 F and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn interleave(
    matrix: Matrix<'_>,
    inner: usize,
    end: usize,
    first: usize,
    count: usize,
    target: &mut [f32],
) {
    for (part, target) in target.chunks_mut(LANES).enumerate() {
        let columns = count.saturating_sub(part * LANES).min(target.len());
        let (mask, _) = masks(columns);
        let (whole, _) = masks(target.len());
        let row = |inner: usize| {
            let start = inner * matrix.row_stride + first + part * LANES;
            if inner < end && columns > 0 {
                &matrix.values[start..start + columns]
            } else {
                &[]
            }
        };
        let (even, odd) = (row(inner), row(inner + 1));
        let odd_mask: __mmask16 = if odd.is_empty() { 0 } else { mask };
        let even_mask: __mmask16 = if even.is_empty() { 0 } else { mask };
        // SAFETY: the masks keep loads within the two slices, which have `columns` values or none, and the store within `target`.
        unsafe {
            let even = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(even_mask, even.as_ptr()));
            let odd = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(odd_mask, odd.as_ptr()));
            let even = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(even));
            let odd = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(odd));
            let pairs = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
            _mm512_mask_storeu_epi32(target.as_mut_ptr().cast(), whole, pairs);
        }
    }
}

/// One tile: `height` (1 to 12) rows of A times a panel, `depth` slots deep.
///
/// # Safety
/// The processor must have AVX-512 F and BF16. `left` must have `height` rows of `depth` slots, `right` `depth` rows of 32
/// slots, `output` `height` rows of `output.columns` (at most 32) values that nothing else refers to.
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
                // SAFETY: the caller's promises, handed on; the transposed form has rows one slot apart and inner steps of
                // TILE_ROWS_MAX, the other one has inner steps of one slot.
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
#[target_feature(enable = "avx512f,avx512bf16")]
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
    let mut factors = left.values.cast::<i32>();
    let mut values = right.cast::<i32>();
    for _ in 0..depth {
        // SAFETY: within the panel and the rows of A by the caller's promise; every bit pattern is a pair of bf16.
        unsafe {
            let low = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(values.cast()));
            let high = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(
                values.add(LANES).cast(),
            ));
            for (row, sum) in sums.iter_mut().enumerate() {
                let factor = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(
                    *factors.add(row * row_step),
                ));
                sum[0] = _mm512_dpbf16_ps(sum[0], factor, low);
                sum[1] = _mm512_dpbf16_ps(sum[1], factor, high);
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
            store(target.wrapping_add(LANES), high, sum[1], output.accumulate);
        }
    }
}
