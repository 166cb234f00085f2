//! AVX-512 (F, BW, DQ, VL) with VNNI byte products: 16 lanes, 32 registers.

use std::arch::x86_64::*;

use super::{EXP2_COEFFICIENTS, NIBBLE_STEP_COLUMNS, STEP_ACTIVATION_BYTES, Task, Vector};

/// Proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ, VL and VNNI.
    #[inline]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Calls intrinsics.
macro_rules! have {
    ($call:expr) => {
        // SAFETY: `Avx512` exists only where the instructions do; what is read or written is the caller's promise.
        unsafe { $call }
    };
}

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

impl Vector for Avx512 {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;
    const NIBBLE_TILE_ROWS: usize = 6;
    const STEP_COLUMNS: usize = 4;
    // `vpdpbusd` multiplies unsigned by signed bytes.
    const WEIGHT_OFFSET: i32 = 128;
    const WIDE_ROWS: bool = false;

    type Floats = __m512;
    type Ints = __m512i;
    type Weights = __m512i;
    type Activations = __m512i;
    type GroupSums = __m512i;

    #[inline]
    fn run<T: Task>(self, task: T) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn run<T: Task>(vector: Avx512, task: T) {
            task.run(vector);
        }
        have!(run(self, task));
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        have!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        have!(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: __m512) {
        have!(_mm512_storeu_ps(to, lanes));
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m512 {
        have!(_mm512_maskz_loadu_ps(first(count), from))
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, lanes: __m512) {
        have!(_mm512_mask_storeu_ps(to, first(count), lanes));
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn divide(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fused(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        have!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn first_of(self, count: usize, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_mask_mov_ps(b, first(count), a))
    }
    #[inline(always)]
    fn reduce_add(self, lanes: __m512) -> f32 {
        have!(_mm512_reduce_add_ps(lanes))
    }
    #[inline(always)]
    fn reduce_max(self, lanes: __m512) -> f32 {
        have!(_mm512_reduce_max_ps(lanes))
    }
    #[inline(always)]
    fn swap_pairs(self, lanes: __m512) -> __m512 {
        have!(_mm512_permute_ps::<0b10_11_00_01>(lanes))
    }
    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        // Past these bounds f32 has nothing but 0 and infinity. The second operand is what comes out where one is NaN.
        let x = have!(_mm512_max_ps(
            _mm512_set1_ps(-250.0),
            _mm512_min_ps(_mm512_set1_ps(250.0), x)
        ));
        // `vreduceps` would take one instruction, but does not round as the other levels do.
        let rest = have!(_mm512_sub_ps(x, _mm512_roundscale_ps::<1>(x)));
        let mut power = self.splat(EXP2_COEFFICIENTS[0]);
        for coefficient in &EXP2_COEFFICIENTS[1..] {
            power = self.fused(power, rest, self.splat(*coefficient));
        }
        have!(_mm512_scalef_ps(power, x))
    }

    #[inline(always)]
    fn zeros(self) -> __m512i {
        have!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        have!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    unsafe fn load_ints(self, from: *const i32) -> __m512i {
        have!(_mm512_loadu_si512(from.cast()))
    }
    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn max_ints(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn reduce_add_ints(self, lanes: __m512i) -> i32 {
        have!(_mm512_reduce_add_epi32(lanes))
    }
    #[inline(always)]
    fn reduce_max_ints(self, lanes: __m512i) -> i32 {
        have!(_mm512_reduce_max_epi32(lanes))
    }
    #[inline(always)]
    fn to_floats(self, lanes: __m512i) -> __m512 {
        have!(_mm512_cvtepi32_ps(lanes))
    }
    #[inline(always)]
    fn round(self, lanes: __m512) -> __m512i {
        have!(_mm512_cvtps_epi32(lanes))
    }
    #[inline(always)]
    fn magnitude_bits(self, lanes: __m512) -> __m512i {
        have!(_mm512_castps_si512(_mm512_abs_ps(lanes)))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, count: usize, lanes: __m512i) {
        have!(_mm_mask_storeu_epi8(
            to,
            first(count),
            _mm512_cvtsepi32_epi8(lanes)
        ));
    }
    #[inline(always)]
    unsafe fn load_bytes(self, from: *const i8, count: usize) -> __m512 {
        have!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
            _mm_maskz_loadu_epi8(first(count), from)
        )))
    }

    #[inline(always)]
    fn pack_int8(channel: usize, weights: &[i8], step: &mut [u8]) {
        for (byte, weight) in step[channel * STEP_ACTIVATION_BYTES..]
            .iter_mut()
            .zip(weights)
        {
            *byte = weight.cast_unsigned() ^ 0x80;
        }
    }
    #[inline(always)]
    fn pack_nibbles(
        channel: usize,
        half: u32,
        nibbles: [u8; NIBBLE_STEP_COLUMNS],
        step: &mut [u8],
    ) {
        for (byte, nibble) in step[channel * NIBBLE_STEP_COLUMNS..]
            .iter_mut()
            .zip(nibbles)
        {
            *byte |= nibble << (4 * half);
        }
    }
    #[inline(always)]
    unsafe fn weights(self, from: *const u8) -> __m512i {
        have!(_mm512_loadu_si512(from.cast()))
    }
    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> __m512i {
        have!(_mm512_set1_epi32(from.cast::<i32>().read_unaligned()))
    }
    #[inline(always)]
    fn add_products(self, sums: __m512i, weights: __m512i, activations: __m512i) -> __m512i {
        have!(_mm512_dpbusd_epi32(sums, weights, activations))
    }
    #[inline(always)]
    fn halves(self, bytes: __m512i) -> [__m512i; 2] {
        let low = have!(_mm512_set1_epi8(15));
        have!([
            _mm512_and_si512(bytes, low),
            _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)
        ])
    }
    #[inline(always)]
    fn group_zero(self) -> __m512i {
        self.zeros()
    }
    #[inline(always)]
    fn add_nibble_products(self, sums: __m512i, nibbles: __m512i, activations: __m512i) -> __m512i {
        self.add_products(sums, nibbles, activations)
    }
    #[inline(always)]
    fn group_sum(self, sums: __m512i) -> __m512i {
        sums
    }
}
