//! The blocks of quantised tensors as they lie in a file, and what their numbers stand for.
//!
//! All fields are bytes, so a block may start at any address. Scales are 16-bit floats, little endian.

use bytemuck::Pod;
use trafficllm_kernels::{Int4Matrix, half};

/// Numbers of a block, or of a part of a super-block that has a scale of its own.
pub(super) const BLOCK_ELEMENTS: usize = 32;
/// Bytes of 32 nibbles: the low nibble of byte `j` is number `j`, the high one number `j + 16`.
const NIBBLE_BYTES: usize = BLOCK_ELEMENTS / 2;
/// Numbers of a super-block.
const SUPER_ELEMENTS: usize = 256;
/// Parts of a super-block with a scale and a minimum of 6 bits each.
const SUPER_GROUPS: usize = SUPER_ELEMENTS / BLOCK_ELEMENTS;

/// A block whose numbers are turned into floats.
pub(super) trait FloatBlock: Pod {
    /// Numbers of a block.
    const ELEMENTS: usize;

    /// Writes the block's numbers to `output`, which has room for exactly them.
    fn dequantise(&self, output: &mut [f32]);
}

/// A block whose numbers fit [`Int4Matrix`] as they are.
pub(super) trait Int4Block: Pod {
    /// Whether groups have minimums.
    const HAS_MINIMUMS: bool;

    /// Appends the block's groups.
    fn append_to(&self, matrix: &mut Int4Matrix);
}

/// `number * scale`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q8_0 {
    pub(super) scale: [u8; 2],
    pub(super) values: [i8; BLOCK_ELEMENTS],
}

/// `(nibble - 8) * scale`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q4_0 {
    pub(super) scale: [u8; 2],
    pub(super) nibbles: [u8; NIBBLE_BYTES],
}

/// `nibble * scale + minimum`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q4_1 {
    scale: [u8; 2],
    minimum: [u8; 2],
    nibbles: [u8; NIBBLE_BYTES],
}

/// `(number - 16) * scale`; bit `i` of `high` (as a 32-bit integer) is the fifth of number `i`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q5_0 {
    scale: [u8; 2],
    high: [u8; 4],
    nibbles: [u8; NIBBLE_BYTES],
}

/// `number * scale + minimum`; `high` as in [`Q5_0`].
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q5_1 {
    scale: [u8; 2],
    minimum: [u8; 2],
    high: [u8; 4],
    nibbles: [u8; NIBBLE_BYTES],
}

/// `nibble * (scale * scales[group]) - minimum * minimums[group]`. Each 32 bytes of `nibbles` hold two
/// groups: the low nibbles the first, the high ones the second.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q4K {
    scale: [u8; 2],
    minimum: [u8; 2],
    groups: [u8; 12],
    nibbles: [u8; SUPER_ELEMENTS / 2],
}

/// As [`Q4K`], with a fifth bit: bit `group` of `high[i]` is that of number `i` of the group.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q5K {
    scale: [u8; 2],
    minimum: [u8; 2],
    groups: [u8; 12],
    high: [u8; BLOCK_ELEMENTS],
    nibbles: [u8; SUPER_ELEMENTS / 2],
}

/// `(number - 32) * scale * scales[number's index / 16]`. Of each 128 numbers, `low` has four bits in 64
/// bytes and `high` two in 32: number `i` is in the nibble `i / 64` of `low[i % 64]` and in the pair
/// of bits `i / 32` of `high[i % 32]`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Q6K {
    low: [u8; SUPER_ELEMENTS / 2],
    high: [u8; SUPER_ELEMENTS / 4],
    scales: [i8; SUPER_ELEMENTS / 16],
    scale: [u8; 2],
}

/// A 16-bit float of a block.
pub(super) fn float(bytes: [u8; 2]) -> f32 {
    half::from_bits(u16::from_le_bytes(bytes))
}

/// The scale and the minimum of a group in units of the super-block's: 6 bits each. The first four of
/// either are the low six bits of bytes 0 to 7; the others have their low four bits in bytes 8 to 11
/// and their high two in what is left of bytes 0 to 7.
fn group_factors(groups: &[u8; 12], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (groups[group] & 63, groups[group + 4] & 63)
    } else {
        let low = groups[group + 4];
        (
            (low & 15) | (groups[group - 4] >> 6 << 4),
            (low >> 4) | (groups[group] >> 6 << 4),
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// The 32 bytes with a group's nibbles, and how far these are shifted.
fn group_nibbles(nibbles: &[u8; SUPER_ELEMENTS / 2], group: usize) -> (&[u8], u32) {
    let bytes = &nibbles[group / 2 * BLOCK_ELEMENTS..][..BLOCK_ELEMENTS];
    (bytes, group as u32 % 2 * 4)
}

/// The numbers 0 to 31 of nibbles and fifth bits.
fn five_bits(nibbles: &[u8; NIBBLE_BYTES], high: [u8; 4]) -> [u8; BLOCK_ELEMENTS] {
    let high = u32::from_le_bytes(high);
    std::array::from_fn(|index| {
        let low = nibbles[index % NIBBLE_BYTES] >> (index / NIBBLE_BYTES * 4) & 15;
        low | ((high >> index & 1) as u8) << 4
    })
}

impl FloatBlock for Q8_0 {
    const ELEMENTS: usize = BLOCK_ELEMENTS;

    fn dequantise(&self, output: &mut [f32]) {
        let scale = float(self.scale);
        for (output, &value) in output.iter_mut().zip(&self.values) {
            *output = f32::from(value) * scale;
        }
    }
}

impl FloatBlock for Q5_0 {
    const ELEMENTS: usize = BLOCK_ELEMENTS;

    fn dequantise(&self, output: &mut [f32]) {
        let scale = float(self.scale);
        for (output, number) in output.iter_mut().zip(five_bits(&self.nibbles, self.high)) {
            *output = (f32::from(number) - 16.0) * scale;
        }
    }
}

impl FloatBlock for Q5_1 {
    const ELEMENTS: usize = BLOCK_ELEMENTS;

    fn dequantise(&self, output: &mut [f32]) {
        let (scale, minimum) = (float(self.scale), float(self.minimum));
        for (output, number) in output.iter_mut().zip(five_bits(&self.nibbles, self.high)) {
            *output = f32::from(number) * scale + minimum;
        }
    }
}

impl FloatBlock for Q5K {
    const ELEMENTS: usize = SUPER_ELEMENTS;

    fn dequantise(&self, output: &mut [f32]) {
        let (scale, minimum) = (float(self.scale), float(self.minimum));
        for (group, output) in output.chunks_exact_mut(BLOCK_ELEMENTS).enumerate() {
            let factors = group_factors(&self.groups, group);
            let (scale, minimum) = (scale * factors.0, minimum * factors.1);
            let (nibbles, shift) = group_nibbles(&self.nibbles, group);
            for ((output, nibble), high) in output.iter_mut().zip(nibbles).zip(&self.high) {
                let number = (nibble >> shift & 15) | (high >> group & 1) << 4;
                *output = f32::from(number) * scale - minimum;
            }
        }
    }
}

impl FloatBlock for Q6K {
    const ELEMENTS: usize = SUPER_ELEMENTS;

    fn dequantise(&self, output: &mut [f32]) {
        let scale = float(self.scale);
        for (part, output) in output.chunks_exact_mut(16).enumerate() {
            let scale = scale * f32::from(self.scales[part]);
            for (index, output) in output.iter_mut().enumerate() {
                let number = part * 16 + index;
                let (half, number) = (number / 128, number % 128);
                let low = self.low[half * 64 + number % 64] >> (number / 64 * 4) & 15;
                let high = self.high[half * 32 + number % 32] >> (number / 32 * 2) & 3;
                *output = (f32::from(low | high << 4) - 32.0) * scale;
            }
        }
    }
}

impl Int4Block for Q4_0 {
    const HAS_MINIMUMS: bool = false;

    fn append_to(&self, matrix: &mut Int4Matrix) {
        matrix.scales.push(float(self.scale));
        matrix.nibbles.extend_from_slice(&self.nibbles);
    }
}

impl Int4Block for Q4_1 {
    const HAS_MINIMUMS: bool = true;

    fn append_to(&self, matrix: &mut Int4Matrix) {
        matrix.scales.push(float(self.scale));
        matrix.minimums.push(-float(self.minimum));
        matrix.nibbles.extend_from_slice(&self.nibbles);
    }
}

impl Int4Block for Q4K {
    const HAS_MINIMUMS: bool = true;

    fn append_to(&self, matrix: &mut Int4Matrix) {
        let (scale, minimum) = (float(self.scale), float(self.minimum));
        for group in 0..SUPER_GROUPS {
            let factors = group_factors(&self.groups, group);
            matrix.scales.push(scale * factors.0);
            matrix.minimums.push(minimum * factors.1);
            let (bytes, shift) = group_nibbles(&self.nibbles, group);
            let (low, high) = bytes.split_at(NIBBLE_BYTES);
            let pairs = low.iter().zip(high);
            matrix
                .nibbles
                .extend(pairs.map(|(low, high)| (low >> shift & 15) | (high >> shift & 15) << 4));
        }
    }
}
