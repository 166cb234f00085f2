//! AVX2 with FMA: 8 lanes, 16 registers; byte products by AVX-VNNI or, without it, in 16 bits.

use std::arch::x86_64::*;

use super::{EXP2_COEFFICIENTS, NIBBLE_STEP_COLUMNS, STEP_ACTIVATION_BYTES, Task, Vector};

/// Proof that the processor has the instructions, with `VNNI` also those of AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The processor has AVX2 and FMA, with `VNNI` also AVX-VNNI.
    #[inline]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Calls intrinsics.
macro_rules! have {
    ($call:expr) => {
        // SAFETY: `Avx2` exists only where the instructions do; what is read or written is the caller's promise.
        unsafe { $call }
    };
}

/// All bits in the lanes below `count`.
#[inline(always)]
fn first(count: usize) -> __m256i {
    have!(_mm256_cmpgt_epi32(
        _mm256_set1_epi32(count.min(8) as i32),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
    ))
}

/// `2^exponent` for exponents of normal floats.
#[inline(always)]
fn power_of_two(exponent: __m256i) -> __m256 {
    have!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(
        _mm256_add_epi32(exponent, _mm256_set1_epi32(127))
    )))
}

impl<const VNNI: bool> Vector for Avx2<VNNI> {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const NIBBLE_TILE_ROWS: usize = 3;
    // Without byte products weights are widened when they are packed: two of 16 bits make a lane.
    const STEP_COLUMNS: usize = if VNNI { 4 } else { 2 };
    const WEIGHT_OFFSET: i32 = if VNNI { 128 } else { 0 };
    const WIDE_ROWS: bool = !VNNI;

    type Floats = __m256;
    type Ints = __m256i;
    type Weights = __m256i;
    type Activations = __m256i;
    type GroupSums = __m256i;

    #[inline]
    fn run<T: Task>(self, task: T) {
        #[target_feature(enable = "avx2,fma,avxvnni")]
        fn with_vnni<T: Task, const VNNI: bool>(vector: Avx2<VNNI>, task: T) {
            task.run(vector);
        }
        #[target_feature(enable = "avx2,fma")]
        fn without<T: Task, const VNNI: bool>(vector: Avx2<VNNI>, task: T) {
            task.run(vector);
        }
        if VNNI {
            have!(with_vnni(self, task));
        } else {
            have!(without(self, task));
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        have!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        have!(_mm256_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: __m256) {
        have!(_mm256_storeu_ps(to, lanes));
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m256 {
        have!(_mm256_maskload_ps(from, first(count)))
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, lanes: __m256) {
        have!(_mm256_maskstore_ps(to, first(count), lanes));
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn multiply(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn divide(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fused(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        have!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn first_of(self, count: usize, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_blendv_ps(b, a, _mm256_castsi256_ps(first(count))))
    }
    #[inline(always)]
    fn reduce_add(self, lanes: __m256) -> f32 {
        have!({
            let sums = _mm_add_ps(
                _mm256_castps256_ps128(lanes),
                _mm256_extractf128_ps::<1>(lanes),
            );
            let sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
            _mm_cvtss_f32(_mm_add_ss(sums, _mm_shuffle_ps::<1>(sums, sums)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, lanes: __m256) -> f32 {
        have!({
            let most = _mm_max_ps(
                _mm256_castps256_ps128(lanes),
                _mm256_extractf128_ps::<1>(lanes),
            );
            let most = _mm_max_ps(most, _mm_movehl_ps(most, most));
            _mm_cvtss_f32(_mm_max_ss(most, _mm_shuffle_ps::<1>(most, most)))
        })
    }
    #[inline(always)]
    fn swap_pairs(self, lanes: __m256) -> __m256 {
        have!(_mm256_permute_ps::<0b10_11_00_01>(lanes))
    }
    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        // Past these bounds f32 has nothing but 0 and infinity. The second operand is what comes out where one is NaN.
        let x = have!(_mm256_max_ps(
            _mm256_set1_ps(-250.0),
            _mm256_min_ps(_mm256_set1_ps(250.0), x)
        ));
        let floor = have!(_mm256_floor_ps(x));
        let rest = have!(_mm256_sub_ps(x, floor));
        let mut power = self.splat(EXP2_COEFFICIENTS[0]);
        for coefficient in &EXP2_COEFFICIENTS[1..] {
            power = self.fused(power, rest, self.splat(*coefficient));
        }
        // 2^floor in two factors, so that each has a normal exponent and the product rounds once.
        have!({
            let exponent = _mm256_cvtps_epi32(floor);
            let half = _mm256_srai_epi32::<1>(exponent);
            _mm256_mul_ps(
                _mm256_mul_ps(power, power_of_two(half)),
                power_of_two(_mm256_sub_epi32(exponent, half)),
            )
        })
    }

    #[inline(always)]
    fn zeros(self) -> __m256i {
        have!(_mm256_setzero_si256())
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m256i {
        have!(_mm256_set1_epi32(value))
    }
    #[inline(always)]
    unsafe fn load_ints(self, from: *const i32) -> __m256i {
        have!(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    fn add_ints(self, a: __m256i, b: __m256i) -> __m256i {
        have!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn max_ints(self, a: __m256i, b: __m256i) -> __m256i {
        have!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    fn reduce_add_ints(self, lanes: __m256i) -> i32 {
        have!({
            let sums = _mm_add_epi32(
                _mm256_castsi256_si128(lanes),
                _mm256_extracti128_si256::<1>(lanes),
            );
            let sums = _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums));
            _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32::<1>(sums)))
        })
    }
    #[inline(always)]
    fn reduce_max_ints(self, lanes: __m256i) -> i32 {
        have!({
            let most = _mm_max_epi32(
                _mm256_castsi256_si128(lanes),
                _mm256_extracti128_si256::<1>(lanes),
            );
            let most = _mm_max_epi32(most, _mm_unpackhi_epi64(most, most));
            _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32::<1>(most)))
        })
    }
    #[inline(always)]
    fn to_floats(self, lanes: __m256i) -> __m256 {
        have!(_mm256_cvtepi32_ps(lanes))
    }
    #[inline(always)]
    fn round(self, lanes: __m256) -> __m256i {
        have!(_mm256_cvtps_epi32(lanes))
    }
    #[inline(always)]
    fn magnitude_bits(self, lanes: __m256) -> __m256i {
        have!(_mm256_and_si256(
            _mm256_castps_si256(lanes),
            _mm256_set1_epi32(i32::MAX)
        ))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, count: usize, lanes: __m256i) {
        have!({
            let words = _mm_packs_epi32(
                _mm256_castsi256_si128(lanes),
                _mm256_extracti128_si256::<1>(lanes),
            );
            let bytes = _mm_packs_epi16(words, words);
            if count >= 8 {
                _mm_storel_epi64(to.cast(), bytes);
            } else {
                let bytes = _mm_cvtsi128_si64(bytes).to_le_bytes();
                std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, count);
            }
        });
    }
    #[inline(always)]
    unsafe fn load_bytes(self, from: *const i8, count: usize) -> __m256 {
        have!({
            let bytes = if count >= 8 {
                _mm_loadl_epi64(from.cast())
            } else {
                let mut bytes = [0_u8; 8];
                std::ptr::copy_nonoverlapping(from.cast(), bytes.as_mut_ptr(), count);
                _mm_loadl_epi64(bytes.as_ptr().cast())
            };
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
        })
    }

    #[inline(always)]
    fn pack_int8(channel: usize, weights: &[i8], step: &mut [u8]) {
        let place = &mut step[channel * STEP_ACTIVATION_BYTES..][..STEP_ACTIVATION_BYTES];
        if VNNI {
            for (byte, weight) in place.iter_mut().zip(weights) {
                *byte = weight.cast_unsigned() ^ 0x80;
            }
        } else {
            for (bytes, weight) in place.chunks_exact_mut(2).zip(weights) {
                bytes.copy_from_slice(&i16::from(*weight).to_le_bytes());
            }
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
    unsafe fn weights(self, from: *const u8) -> __m256i {
        have!(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> __m256i {
        have!(_mm256_set1_epi32(from.cast::<i32>().read_unaligned()))
    }
    #[inline(always)]
    fn add_products(self, sums: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        if VNNI {
            have!(_mm256_dpbusd_avx_epi32(sums, weights, activations))
        } else {
            have!(_mm256_add_epi32(
                sums,
                _mm256_madd_epi16(weights, activations)
            ))
        }
    }
    #[inline(always)]
    fn halves(self, bytes: __m256i) -> [__m256i; 2] {
        let low = have!(_mm256_set1_epi8(15));
        have!([
            _mm256_and_si256(bytes, low),
            _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low)
        ])
    }
    #[inline(always)]
    fn group_zero(self) -> __m256i {
        self.zeros()
    }
    #[inline(always)]
    fn add_nibble_products(self, sums: __m256i, nibbles: __m256i, activations: __m256i) -> __m256i {
        if VNNI {
            have!(_mm256_dpbusd_avx_epi32(sums, nibbles, activations))
        } else {
            // 16 products of at most 15 x 127 a lane of 16 bits: 30,480.
            have!(_mm256_add_epi16(
                sums,
                _mm256_maddubs_epi16(nibbles, activations)
            ))
        }
    }
    #[inline(always)]
    fn group_sum(self, sums: __m256i) -> __m256i {
        if VNNI {
            sums
        } else {
            have!(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)))
        }
    }
}
