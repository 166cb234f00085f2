//! Loads, stores and elementary functions on 16 lanes.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _mm512_abs_ps, _mm512_add_ps, _mm512_castps_si512, _mm512_div_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_reduce_ps, _mm512_scalef_ps, _mm512_set1_ps,
};

/// Lanes of a register.
pub(super) const LANES: usize = 16;

/// The lanes below `count` (all from 16 on).
pub(super) fn first_lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Up to 16 values, 0 in the lanes past them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(values: &[f32]) -> __m512 {
    // SAFETY: only lanes within the slice are read.
    unsafe { _mm512_maskz_loadu_ps(first_lanes(values.len()), values.as_ptr()) }
}

/// 16 values.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_all(values: &[f32; LANES]) -> __m512 {
    // SAFETY: there are 16.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Writes lanes as far as `values` goes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(values: &mut [f32], lanes: __m512) {
    // SAFETY: only lanes within the slice are written.
    unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), first_lanes(values.len()), lanes) }
}

/// The bits of the lanes' magnitudes.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn magnitude_bits(lanes: __m512) -> __m512i {
    _mm512_castps_si512(_mm512_abs_ps(lanes))
}

/// `2^x`, 0 or infinite where that is what f32 has. Relative error below 5e-7.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn exp2(x: __m512) -> __m512 {
    // x - floor(x); scaling by 2^x takes the floor of x again.
    let rest = _mm512_reduce_ps::<9>(x);
    // (2^x - 1) / x through the Chebyshev nodes of 0 to 1.
    let mut power = _mm512_set1_ps(1.788_368_8e-3);
    for coefficient in [
        9.199_387e-3,
        5.565_705_5e-2,
        2.402_072e-1,
        6.931_475_4e-1,
        1.0,
    ] {
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(power, x)
}

/// `gate / (1 + exp(-gate)) * up`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn gated(gate: __m512, up: __m512) -> __m512 {
    let exponential = exp2(_mm512_mul_ps(
        gate,
        _mm512_set1_ps(-std::f32::consts::LOG2_E),
    ));
    let silu = _mm512_div_ps(gate, _mm512_add_ps(exponential, _mm512_set1_ps(1.0)));
    _mm512_mul_ps(silu, up)
}
