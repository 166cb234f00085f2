//! Kernels that work on one row: norm, quantisation, rotary.

use std::arch::x86_64::{
    __m512, __m512i, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8, _mm_storeu_si128,
    _mm512_add_epi32, _mm512_add_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtps_epi32,
    _mm512_cvtsepi32_epi8, _mm512_fmadd_ps, _mm512_max_epi32, _mm512_mul_ps, _mm512_permute_ps,
    _mm512_reduce_add_epi32, _mm512_reduce_add_ps, _mm512_reduce_max_epi32, _mm512_set1_ps,
    _mm512_setzero_ps,
};

use super::math::{LANES, first_lanes, load, load_all, magnitude_bits, store};
use crate::portable::quantisation;
use crate::rotary::RotaryTable;

/// `1 / sqrt(mean(input^2) + epsilon)`. 64 sums take every 64th value each, then fold, always in the same order.
#[inline]
#[target_feature(enable = "avx512f")]
fn rms_factor(input: &[f32], epsilon: f32) -> f32 {
    let mut squares = [_mm512_setzero_ps(); 4];
    let (chunks, rest) = input.as_chunks::<{ 4 * LANES }>();
    for chunk in chunks {
        for (values, squares) in chunk.as_chunks().0.iter().zip(&mut squares) {
            let values = load_all(values);
            *squares = _mm512_fmadd_ps(values, values, *squares);
        }
    }
    for (values, squares) in rest.chunks(LANES).zip(&mut squares) {
        let values = load(values);
        *squares = _mm512_fmadd_ps(values, values, *squares);
    }
    let [first, second, third, fourth] = squares;
    let squares = _mm512_add_ps(_mm512_add_ps(first, second), _mm512_add_ps(third, fourth));
    1.0 / (_mm512_reduce_add_ps(squares) / input.len() as f32 + epsilon).sqrt()
}

#[target_feature(enable = "avx512f")]
pub(super) fn rms_norm(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    let factor = _mm512_set1_ps(rms_factor(input, epsilon));
    let input = input.chunks(LANES).zip(weight.chunks(LANES));
    for (output, (input, weight)) in output.chunks_mut(LANES).zip(input) {
        store(output, normed(load(input), factor, load(weight)));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn normed(input: __m512, factor: __m512, weight: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_mul_ps(input, factor), weight)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn rms_norm_quantise(
    input: &[f32],
    weight: &[f32],
    epsilon: f32,
    values: &mut [i8],
    scale: &mut f32,
    sum: &mut i32,
) {
    let rms = rms_factor(input, epsilon);
    quantise_row::<true>(input, weight, rms, values, scale, sum);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn quantise(input: &[f32], values: &mut [i8], scale: &mut f32, sum: &mut i32) {
    // The weights are not looked at.
    quantise_row::<false>(input, input, 1.0, values, scale, sum);
}

/// Quantises `input`, or with `NORM` `input * rms * weight`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantise_row<const NORM: bool>(
    input: &[f32],
    weight: &[f32],
    rms: f32,
    values: &mut [i8],
    scale: &mut f32,
    sum: &mut i32,
) {
    let rms = _mm512_set1_ps(rms);
    let (inputs, input_rest) = input.as_chunks();
    let (weights, weight_rest) = weight.as_chunks();
    let rest = if NORM {
        normed(load(input_rest), rms, load(weight_rest))
    } else {
        load(input_rest)
    };
    let mut largest = magnitude_bits(rest);
    for (input, weight) in inputs.iter().zip(weights) {
        let input = load_all(input);
        let lanes = if NORM {
            normed(input, rms, load_all(weight))
        } else {
            input
        };
        largest = _mm512_max_epi32(largest, magnitude_bits(lanes));
    }
    let factor;
    (*scale, factor) = quantisation(f32::from_bits(
        _mm512_reduce_max_epi32(largest).cast_unsigned(),
    ));
    if factor == 0.0 {
        // Infinity times 0 would not be 0.
        values.fill(0);
        *sum = 0;
        return;
    }
    let factor = _mm512_set1_ps(factor);
    let (bytes, bytes_rest) = values.as_chunks_mut::<LANES>();
    let mut sums = bytes_of(rest, factor, bytes_rest);
    for (bytes, (input, weight)) in bytes.iter_mut().zip(inputs.iter().zip(weights)) {
        let input = load_all(input);
        let lanes = if NORM {
            normed(input, rms, load_all(weight))
        } else {
            input
        };
        let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(lanes, factor));
        sums = _mm512_add_epi32(sums, rounded);
        // SAFETY: `bytes` has 16 bytes.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(rounded)) };
    }
    *sum = _mm512_reduce_add_epi32(sums);
}

/// Writes `lanes * factor`, rounded, as far as `bytes` goes; gives back what was written, lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn bytes_of(lanes: __m512, factor: __m512, bytes: &mut [i8]) -> __m512i {
    let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(lanes, factor));
    // SAFETY: only lanes within the slice are written.
    unsafe {
        _mm_mask_storeu_epi8(
            bytes.as_mut_ptr(),
            first_lanes(bytes.len()),
            _mm512_cvtsepi32_epi8(rounded),
        )
    }
    rounded
}

/// Heads are multiples of 2, so pairs never straddle registers; heads that are no multiple of 16 end in a masked one.
#[target_feature(enable = "avx512f")]
pub(super) fn rotate(row: &mut [f32], table: &RotaryTable, position: usize) {
    let (cosines, sines) = table.at(position);
    for head in row.chunks_exact_mut(table.head_dim) {
        let table = cosines.chunks(LANES).zip(sines.chunks(LANES));
        for (head, (cosines, sines)) in head.chunks_mut(LANES).zip(table) {
            let values = load(head);
            let swapped = _mm512_permute_ps::<0b10_11_00_01>(values);
            // Not fused, so that every level rounds alike.
            let along = _mm512_mul_ps(values, load(cosines));
            let across = _mm512_mul_ps(swapped, load(sines));
            store(head, _mm512_add_ps(along, across));
        }
    }
}

/// `value * scale` of each value.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn dequantise(values: &[i8], scale: f32, output: &mut [f32]) {
    let scale = _mm512_set1_ps(scale);
    for (values, output) in values.chunks(LANES).zip(output.chunks_mut(LANES)) {
        // SAFETY: only lanes within the slice are read.
        let bytes = unsafe { _mm_maskz_loadu_epi8(first_lanes(values.len()), values.as_ptr()) };
        store(
            output,
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale),
        );
    }
}
