//! NEON: 4 lanes, 32 registers; byte products by the dot product extension or, without it, in 16 bits.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{EXP2_COEFFICIENTS, NIBBLE_STEP_COLUMNS, STEP_ACTIVATION_BYTES, Task, Vector};

/// Proof that the processor has the instructions, with `DOT` also the dot products of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// # Safety
    /// The processor has NEON, with `DOT` also the dot product extension.
    #[inline]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Calls intrinsics.
macro_rules! have {
    ($call:expr) => {
        // SAFETY: `Neon` exists only where the instructions do; what is read or written is the caller's promise.
        unsafe { $call }
    };
}

/// All bits in the lanes below `count`.
#[inline(always)]
fn first(count: usize) -> uint32x4_t {
    const LANES: [u32; 4] = [0, 1, 2, 3];
    have!(vcltq_u32(
        vld1q_u32(LANES.as_ptr()),
        vdupq_n_u32(count.min(4) as u32)
    ))
}

/// Where a byte of a step stands: with the dot product a lane's 4 bytes together; without it a lane's first two bytes in the
/// lower half of the register and its last two in the upper one.
#[inline(always)]
fn place<const DOT: bool>(channel: usize, column: usize) -> usize {
    if DOT {
        channel * STEP_ACTIVATION_BYTES + column
    } else {
        column / 2 * 8 + channel * 2 + column % 2
    }
}

/// `2^exponent` for exponents of normal floats.
#[inline(always)]
fn power_of_two(exponent: int32x4_t) -> float32x4_t {
    have!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(
        exponent,
        vdupq_n_s32(127)
    ))))
}

impl<const DOT: bool> Vector for Neon<DOT> {
    const LANES: usize = 4;
    const TILE_ROWS: usize = 12;
    const NIBBLE_TILE_ROWS: usize = 6;
    const STEP_COLUMNS: usize = 4;
    const WEIGHT_OFFSET: i32 = 0;
    const WIDE_ROWS: bool = false;

    type Floats = float32x4_t;
    type Ints = int32x4_t;
    type Weights = int8x16_t;
    type Activations = int8x16_t;
    type GroupSums = int32x4_t;

    #[inline]
    fn run<T: Task>(self, task: T) {
        #[target_feature(enable = "neon")]
        fn run<T: Task, const DOT: bool>(vector: Neon<DOT>, task: T) {
            task.run(vector);
        }
        have!(run(self, task));
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        have!(vdupq_n_f32(value))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        have!(vld1q_f32(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: float32x4_t) {
        have!(vst1q_f32(to, lanes));
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> float32x4_t {
        if count >= 4 {
            return have!(vld1q_f32(from));
        }
        let mut lanes = [0.0; 4];
        have!(std::ptr::copy_nonoverlapping(
            from,
            lanes.as_mut_ptr(),
            count
        ));
        have!(vld1q_f32(lanes.as_ptr()))
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, lanes: float32x4_t) {
        if count >= 4 {
            return have!(vst1q_f32(to, lanes));
        }
        let mut values = [0.0; 4];
        have!(vst1q_f32(values.as_mut_ptr(), lanes));
        have!(std::ptr::copy_nonoverlapping(values.as_ptr(), to, count));
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        have!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn multiply(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        have!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn divide(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        have!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fused(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        have!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        have!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    fn first_of(self, count: usize, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        have!(vbslq_f32(first(count), a, b))
    }
    #[inline(always)]
    fn reduce_add(self, lanes: float32x4_t) -> f32 {
        have!({
            let halves = vadd_f32(vget_low_f32(lanes), vget_high_f32(lanes));
            vget_lane_f32::<0>(vpadd_f32(halves, halves))
        })
    }
    #[inline(always)]
    fn reduce_max(self, lanes: float32x4_t) -> f32 {
        have!(vmaxvq_f32(lanes))
    }
    #[inline(always)]
    fn swap_pairs(self, lanes: float32x4_t) -> float32x4_t {
        have!(vrev64q_f32(lanes))
    }
    #[inline(always)]
    fn exp2(self, x: float32x4_t) -> float32x4_t {
        // Past these bounds f32 has nothing but 0 and infinity; NaN stays NaN.
        let x = have!(vmaxq_f32(
            vdupq_n_f32(-250.0),
            vminq_f32(vdupq_n_f32(250.0), x)
        ));
        let floor = have!(vrndmq_f32(x));
        let rest = have!(vsubq_f32(x, floor));
        let mut power = self.splat(EXP2_COEFFICIENTS[0]);
        for coefficient in &EXP2_COEFFICIENTS[1..] {
            power = self.fused(power, rest, self.splat(*coefficient));
        }
        // 2^floor in two factors, so that each has a normal exponent and the product rounds once.
        have!({
            let exponent = vcvtq_s32_f32(floor);
            let half = vshrq_n_s32::<1>(exponent);
            vmulq_f32(
                vmulq_f32(power, power_of_two(half)),
                power_of_two(vsubq_s32(exponent, half)),
            )
        })
    }

    #[inline(always)]
    fn zeros(self) -> int32x4_t {
        have!(vdupq_n_s32(0))
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> int32x4_t {
        have!(vdupq_n_s32(value))
    }
    #[inline(always)]
    unsafe fn load_ints(self, from: *const i32) -> int32x4_t {
        have!(vld1q_s32(from))
    }
    #[inline(always)]
    fn add_ints(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        have!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn max_ints(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        have!(vmaxq_s32(a, b))
    }
    #[inline(always)]
    fn reduce_add_ints(self, lanes: int32x4_t) -> i32 {
        have!(vaddvq_s32(lanes))
    }
    #[inline(always)]
    fn reduce_max_ints(self, lanes: int32x4_t) -> i32 {
        have!(vmaxvq_s32(lanes))
    }
    #[inline(always)]
    fn to_floats(self, lanes: int32x4_t) -> float32x4_t {
        have!(vcvtq_f32_s32(lanes))
    }
    #[inline(always)]
    fn round(self, lanes: float32x4_t) -> int32x4_t {
        have!(vcvtnq_s32_f32(lanes))
    }
    #[inline(always)]
    fn magnitude_bits(self, lanes: float32x4_t) -> int32x4_t {
        have!(vreinterpretq_s32_f32(vabsq_f32(lanes)))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, count: usize, lanes: int32x4_t) {
        have!({
            let words = vqmovn_s32(lanes);
            let mut bytes = [0_i8; 8];
            vst1_s8(bytes.as_mut_ptr(), vqmovn_s16(vcombine_s16(words, words)));
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count.min(4));
        });
    }
    #[inline(always)]
    unsafe fn load_bytes(self, from: *const i8, count: usize) -> float32x4_t {
        have!({
            let mut bytes = [0_i8; 8];
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count.min(4));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes.as_ptr())))))
        })
    }

    #[inline(always)]
    fn pack_int8(channel: usize, weights: &[i8], step: &mut [u8]) {
        for (column, weight) in weights.iter().enumerate() {
            step[place::<DOT>(channel, column)] = weight.cast_unsigned();
        }
    }
    #[inline(always)]
    fn pack_nibbles(
        channel: usize,
        half: u32,
        nibbles: [u8; NIBBLE_STEP_COLUMNS],
        step: &mut [u8],
    ) {
        for (column, nibble) in nibbles.into_iter().enumerate() {
            step[place::<DOT>(channel, column)] |= nibble << (4 * half);
        }
    }
    #[inline(always)]
    unsafe fn weights(self, from: *const u8) -> int8x16_t {
        have!(vld1q_s8(from.cast()))
    }
    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> int8x16_t {
        if DOT {
            have!(vreinterpretq_s8_s32(vdupq_n_s32(
                from.cast::<i32>().read_unaligned()
            )))
        } else {
            have!({
                let [first, second] = from.cast::<[i16; 2]>().read_unaligned();
                vreinterpretq_s8_s16(vcombine_s16(vdup_n_s16(first), vdup_n_s16(second)))
            })
        }
    }
    #[inline(always)]
    fn add_products(
        self,
        sums: int32x4_t,
        weights: int8x16_t,
        activations: int8x16_t,
    ) -> int32x4_t {
        if DOT {
            let mut sums = sums;
            // The intrinsic is not stable yet.
            have!(asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {weights:v}.16b, {activations:v}.16b",
                sums = inout(vreg) sums,
                weights = in(vreg) weights,
                activations = in(vreg) activations,
                options(pure, nomem, nostack, preserves_flags)
            ));
            sums
        } else {
            // Two products of at most 127 x 127 fit a lane of 16 bits.
            have!({
                let products = vmull_s8(vget_low_s8(weights), vget_low_s8(activations));
                let products = vmlal_s8(products, vget_high_s8(weights), vget_high_s8(activations));
                vpadalq_s16(sums, products)
            })
        }
    }
    #[inline(always)]
    fn halves(self, bytes: int8x16_t) -> [int8x16_t; 2] {
        have!({
            let bytes = vreinterpretq_u8_s8(bytes);
            [
                vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))),
                vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes)),
            ]
        })
    }
    #[inline(always)]
    fn group_zero(self) -> int32x4_t {
        self.zeros()
    }
    #[inline(always)]
    fn add_nibble_products(
        self,
        sums: int32x4_t,
        nibbles: int8x16_t,
        activations: int8x16_t,
    ) -> int32x4_t {
        self.add_products(sums, nibbles, activations)
    }
    #[inline(always)]
    fn group_sum(self, sums: int32x4_t) -> int32x4_t {
        sums
    }
}
