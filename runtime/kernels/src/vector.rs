//! What a processor's registers can do, so that every kernel is written once: [`Vector`] is the list of operations, one
//! implementation for each instruction set.
//!
//! A value of a type that implements [`Vector`] exists only where the processor has its instructions: that makes its methods
//! sound. They are inlined into [`Vector::run`], which is compiled for these instructions.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

use crate::QuantisedRows;

/// A kernel, written for any registers.
pub(crate) trait Task {
    /// Runs it. To be `#[inline(always)]`, as everything that it calls with the vector.
    fn run<V: Vector>(self, vector: V);
}

/// Lanes in which every level adds up, whatever its registers: so that all levels round alike.
pub(crate) const SUM_LANES: usize = 16;

/// Registers that hold these lanes, at most.
pub(crate) const SUM_REGISTERS_MAX: usize = 4;

/// Bytes of activations that one step of a product takes from a row.
pub(crate) const STEP_ACTIVATION_BYTES: usize = 4;

/// Input channels of one step of 4-bit products.
pub(crate) const NIBBLE_STEP_COLUMNS: usize = 4;

/// Most rows of a tile, of all levels.
pub(crate) const TILE_ROWS_MAX: usize = 12;

/// Registers of 32-bit lanes. `first` methods read or write only that many lanes.
pub(crate) trait Vector: Copy {
    /// Lanes of a register: output channels of a panel of packed weights.
    const LANES: usize;
    /// Rows of a tile of products or attention: its sums, two registers a row, stay in registers.
    const TILE_ROWS: usize;
    /// Rows of a tile of 4-bit products, which have two kinds of sums.
    const NIBBLE_TILE_ROWS: usize;
    /// Input channels of one step of int8 products.
    const STEP_COLUMNS: usize;
    /// What is added to an int8 weight to store it.
    const WEIGHT_OFFSET: i32;
    /// Whether products read the rows' 16-bit copy.
    const WIDE_ROWS: bool;
    /// Bytes of the weights of one step of one panel.
    const STEP_BYTES: usize = Self::LANES * STEP_ACTIVATION_BYTES;

    /// f32 lanes.
    type Floats: Copy;
    /// i32 lanes.
    type Ints: Copy;
    /// The weights of one step of one panel.
    type Weights: Copy;
    /// The activations of one step, for all lanes.
    type Activations: Copy;
    /// Sums of 4-bit products within a group.
    type GroupSums: Copy;

    /// Runs a kernel, compiled for these instructions.
    fn run<T: Task>(self, task: T);

    fn splat(self, value: f32) -> Self::Floats;
    /// # Safety
    /// `LANES` values can be read from `from`.
    unsafe fn load(self, from: *const f32) -> Self::Floats;
    /// # Safety
    /// `LANES` values can be written to `to`.
    unsafe fn store(self, to: *mut f32, lanes: Self::Floats);
    /// The first `count` lanes (all, if there are fewer), 0 in the others.
    /// # Safety
    /// That many values can be read from `from`.
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::Floats;
    /// # Safety
    /// `count` values, or `LANES` if that is less, can be written to `to`.
    unsafe fn store_first(self, to: *mut f32, count: usize, lanes: Self::Floats);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn divide(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn fused(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Lanes below `count` of `a`, the others of `b`.
    fn first_of(self, count: usize, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Halves added to halves, down to one lane.
    fn reduce_add(self, lanes: Self::Floats) -> f32;
    /// The sum of [`SUM_LANES`] lanes, in the first registers: halves added to halves, as in `reduce_add`.
    #[inline(always)]
    fn reduce_add_all(self, registers: [Self::Floats; SUM_REGISTERS_MAX]) -> f32 {
        let [first, second, third, fourth] = registers;
        self.reduce_add(match SUM_LANES / Self::LANES {
            1 => first,
            2 => self.add(first, second),
            _ => self.add(self.add(first, third), self.add(second, fourth)),
        })
    }
    fn reduce_max(self, lanes: Self::Floats) -> f32;
    /// Each even lane and the odd one after it in each other's place.
    fn swap_pairs(self, lanes: Self::Floats) -> Self::Floats;
    /// `2^x`, 0 or infinite where that is what f32 has. Relative error below 5e-7.
    fn exp2(self, x: Self::Floats) -> Self::Floats;

    fn zeros(self) -> Self::Ints;
    fn splat_int(self, value: i32) -> Self::Ints;
    /// # Safety
    /// `LANES` values can be read from `from`.
    unsafe fn load_ints(self, from: *const i32) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn max_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn reduce_add_ints(self, lanes: Self::Ints) -> i32;
    fn reduce_max_ints(self, lanes: Self::Ints) -> i32;
    fn to_floats(self, lanes: Self::Ints) -> Self::Floats;
    /// To the nearest integer, ties to even.
    fn round(self, lanes: Self::Floats) -> Self::Ints;
    /// The bits of the lanes' magnitudes.
    fn magnitude_bits(self, lanes: Self::Floats) -> Self::Ints;
    /// Writes the lanes as signed bytes, saturated.
    /// # Safety
    /// `count` bytes, or `LANES` if that is less, can be written to `to`.
    unsafe fn store_bytes(self, to: *mut i8, count: usize, lanes: Self::Ints);
    /// Signed bytes as floats.
    /// # Safety
    /// `count` bytes, or `LANES` if that is less, can be read from `from`.
    unsafe fn load_bytes(self, from: *const i8, count: usize) -> Self::Floats;

    /// Puts the weights of one step of one output channel of a panel into `step` `[STEP_BYTES]`, in whose layout they are read.
    fn pack_int8(channel: usize, weights: &[i8], step: &mut [u8]);
    /// As `pack_int8` for 4 nibbles of the low (`half` 0) or high half of each byte.
    fn pack_nibbles(channel: usize, half: u32, nibbles: [u8; NIBBLE_STEP_COLUMNS], step: &mut [u8]);
    /// # Safety
    /// `STEP_BYTES` can be read from `from`.
    unsafe fn weights(self, from: *const u8) -> Self::Weights;
    /// # Safety
    /// `STEP_ACTIVATION_BYTES` can be read from `from`.
    unsafe fn activations(self, from: *const u8) -> Self::Activations;
    /// Adds the products of one step to the sums.
    fn add_products(
        self,
        sums: Self::Ints,
        weights: Self::Weights,
        activations: Self::Activations,
    ) -> Self::Ints;
    /// The low and the high halves of bytes.
    fn halves(self, bytes: Self::Weights) -> [Self::Weights; 2];
    fn group_zero(self) -> Self::GroupSums;
    /// Adds products of nibbles and activation bytes; at most 8 steps fit the sums.
    fn add_nibble_products(
        self,
        sums: Self::GroupSums,
        nibbles: Self::Weights,
        activations: Self::Activations,
    ) -> Self::GroupSums;
    fn group_sum(self, sums: Self::GroupSums) -> Self::Ints;

    /// Where the activations of `rows` start, and bytes from one row to the next.
    #[inline(always)]
    fn activation_bytes(rows: &QuantisedRows) -> (*const u8, usize) {
        if Self::WIDE_ROWS {
            (rows.wide.as_ptr().cast(), rows.stride * 2)
        } else {
            (rows.values.as_ptr().cast(), rows.stride)
        }
    }
}

/// The Chebyshev interpolation of `(2^x - 1) / x` on 0 to 1, highest power first, and then of 1.
pub(crate) const EXP2_COEFFICIENTS: [f32; 6] = [
    1.788_368_8e-3,
    9.199_387e-3,
    5.565_705_5e-2,
    2.402_072e-1,
    6.931_475_4e-1,
    1.0,
];
