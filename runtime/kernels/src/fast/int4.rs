//! Products of 4-bit weights: exact within a group of 32 input channels, then summed over the groups in f32.

use super::output::{ADD, GATED, Product, STORE, Strip, write};
use crate::int4::{GROUP_COLUMNS, Int4Matrix, NIBBLE_OFFSET};
use crate::memory::{Memory, MemoryMut};
use crate::vector::{NIBBLE_STEP_COLUMNS, STEP_ACTIVATION_BYTES, Task, Vector};
use crate::{KernelError, QuantisedRows};

/// Registers of nibbles of a group: each holds two steps.
const GROUP_LINES: usize = GROUP_COLUMNS / NIBBLE_STEP_COLUMNS / 2;

/// Weights packed into panels of `lanes` output channels: `[panels, groups, 4, lanes * 4 bytes]`, where the low halves of line
/// `l` are step `l` of the group and the high ones step `l + 4`.
#[derive(Debug)]
pub(crate) struct Int4Panels {
    groups: usize,
    weights: Memory,
    /// `[panels, groups, lanes]` f32; 0 past the last channel.
    scales: Memory,
    /// As `scales`; empty where nibbles are offset by 8 instead.
    minimums: Memory,
}

impl Int4Panels {
    /// Packs a valid matrix for the registers of `V`.
    ///
    /// # Errors
    /// Memory that the system does not give.
    pub(crate) fn new<V: Vector>(matrix: &Int4Matrix) -> Result<Self, KernelError> {
        let groups = matrix.groups();
        let panels = matrix.rows.div_ceil(V::LANES);
        let mut weights = MemoryMut::zeroed(panels * groups * GROUP_LINES * V::STEP_BYTES)?;
        for channel in 0..matrix.rows {
            let panel = channel / V::LANES * groups;
            for group in 0..groups {
                let place = &mut weights[(panel + group) * GROUP_LINES * V::STEP_BYTES..];
                for step in 0..2 * GROUP_LINES {
                    let column = group * GROUP_COLUMNS + step * NIBBLE_STEP_COLUMNS;
                    let nibbles = std::array::from_fn(|at| matrix.nibble(channel, column + at));
                    let line = &mut place[step % GROUP_LINES * V::STEP_BYTES..][..V::STEP_BYTES];
                    V::pack_nibbles(
                        channel % V::LANES,
                        (step / GROUP_LINES) as u32,
                        nibbles,
                        line,
                    );
                }
            }
        }
        let by_lane = |values: &[f32]| -> Result<Memory, KernelError> {
            let mut memory = MemoryMut::zeroed(
                panels * groups * V::LANES * 4 * usize::from(!values.is_empty()),
            )?;
            for (row, values) in values.chunks_exact(groups).enumerate() {
                for (group, value) in values.iter().enumerate() {
                    let lane = (row / V::LANES * groups + group) * V::LANES + row % V::LANES;
                    memory[lane * 4..][..4].copy_from_slice(&value.to_ne_bytes());
                }
            }
            memory.seal()
        };
        Ok(Self {
            groups,
            weights: weights.seal()?,
            scales: by_lane(&matrix.scales)?,
            minimums: by_lane(&matrix.minimums)?,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.len() + self.scales.len() + self.minimums.len()
    }
}

/// See [`PackedMatrix::multiply`](crate::PackedMatrix::multiply).
pub(crate) struct Multiply<'a> {
    pub(crate) panels: &'a Int4Panels,
    pub(crate) product: Product<'a>,
}

impl Task for Multiply<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        if self.panels.minimums.is_empty() {
            self.strips::<V, false>(vector);
        } else {
            self.strips::<V, true>(vector);
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn strips<V: Vector, const MINIMUMS: bool>(self, vector: V) {
        let Self { panels, product } = self;
        product.for_strips(
            V::LANES,
            #[inline(always)]
            |rows, both, then, strip| match (then, both) {
                (STORE, true) => pass::<V, 2, STORE, MINIMUMS>(vector, panels, rows, strip),
                (STORE, false) => pass::<V, 1, STORE, MINIMUMS>(vector, panels, rows, strip),
                (ADD, true) => pass::<V, 2, ADD, MINIMUMS>(vector, panels, rows, strip),
                (ADD, false) => pass::<V, 1, ADD, MINIMUMS>(vector, panels, rows, strip),
                _ => pass::<V, 2, GATED, MINIMUMS>(vector, panels, rows, strip),
            },
        );
    }
}

/// One or two panels with all rows: the panels stay in the first cache while the rows pass.
#[inline(always)]
fn pass<V: Vector, const PANELS: usize, const THEN: u8, const MINIMUMS: bool>(
    vector: V,
    panels: &Int4Panels,
    rows: &QuantisedRows,
    mut strip: Strip<'_>,
) {
    let mut row = 0;
    while row < rows.rows() {
        let left = rows.rows() - row;
        row += match left {
            6.. if V::NIBBLE_TILE_ROWS >= 6 => {
                tile::<V, 6, PANELS, THEN, MINIMUMS>(vector, panels, rows, row, &mut strip)
            }
            3.. => tile::<V, 3, PANELS, THEN, MINIMUMS>(vector, panels, rows, row, &mut strip),
            _ => tile::<V, 1, PANELS, THEN, MINIMUMS>(vector, panels, rows, row, &mut strip),
        };
    }
}

/// `ROWS` rows from `row` with the strip's panels, accumulated in registers. Gives back `ROWS`.
#[inline(always)]
fn tile<V: Vector, const ROWS: usize, const PANELS: usize, const THEN: u8, const MINIMUMS: bool>(
    vector: V,
    panels: &Int4Panels,
    rows: &QuantisedRows,
    row: usize,
    strip: &mut Strip<'_>,
) -> usize {
    let groups = panels.groups;
    let group_bytes = GROUP_LINES * V::STEP_BYTES;
    let first = strip.channel / V::LANES * groups;
    let weights = &panels.weights[first * group_bytes..][..PANELS * groups * group_bytes];
    let lanes_bytes = first * V::LANES * 4..(first + PANELS * groups) * V::LANES * 4;
    let scales: *const f32 = panels.scales[lanes_bytes.clone()].as_ptr().cast();
    let minimums: *const f32 = if MINIMUMS {
        panels.minimums[lanes_bytes].as_ptr().cast()
    } else {
        scales
    };
    assert!(row + ROWS <= rows.rows() && groups * GROUP_COLUMNS <= rows.stride);
    let group_sums = &rows.group_sums[row * groups..][..ROWS * groups];
    let activations = rows.values[row * rows.stride..][..ROWS * rows.stride]
        .as_ptr()
        .cast::<u8>();
    let mut products = [[vector.splat(0.0); PANELS]; ROWS];
    for group in 0..groups {
        let mut sums = [[vector.group_zero(); PANELS]; ROWS];
        for line in 0..GROUP_LINES {
            // SAFETY: `weights` holds `PANELS * groups * GROUP_LINES` times `STEP_BYTES`.
            let halves: [[V::Weights; 2]; PANELS] = std::array::from_fn(
                #[inline(always)]
                |panel| unsafe {
                    let line = (panel * groups + group) * GROUP_LINES + line;
                    vector.halves(vector.weights(weights.as_ptr().add(line * V::STEP_BYTES)))
                },
            );
            for half in 0..2 {
                let step = line + half * GROUP_LINES;
                let at = group * GROUP_COLUMNS + step * STEP_ACTIVATION_BYTES;
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the slice above holds `ROWS` rows of `stride` bytes, and all groups lie within a row.
                    let activations =
                        unsafe { vector.activations(activations.add(row * rows.stride + at)) };
                    for (sum, halves) in sums.iter_mut().zip(&halves) {
                        *sum = vector.add_nibble_products(*sum, halves[half], activations);
                    }
                }
            }
        }
        for (panel, at) in (0..PANELS).map(|panel| (panel, (panel * groups + group) * V::LANES)) {
            // SAFETY: both hold `PANELS * groups * LANES` values, sliced above.
            let (scale, minimum) =
                unsafe { (vector.load(scales.add(at)), vector.load(minimums.add(at))) };
            for (row, (sums, products)) in sums.iter().zip(&mut products).enumerate() {
                let sum = vector.group_sum(sums[panel]);
                let group_sum = group_sums[row * groups + group];
                let product = &mut products[panel];
                if MINIMUMS {
                    *product = vector.fused(vector.to_floats(sum), scale, *product);
                    *product = vector.fused(vector.splat(-group_sum as f32), minimum, *product);
                } else {
                    let sum = vector.add_ints(sum, vector.splat_int(-NIBBLE_OFFSET * group_sum));
                    *product = vector.fused(vector.to_floats(sum), scale, *product);
                }
            }
        }
    }
    for (products, scale) in products.iter_mut().zip(&rows.scales[row..row + ROWS]) {
        let scale = vector.splat(*scale);
        for product in products {
            *product = vector.multiply(*product, scale);
        }
    }
    write::<V, ROWS, PANELS, THEN>(vector, &products, row, strip);
    ROWS
}
