//! Products of int8 weights, exact in 32 bits over all input channels.

use super::output::{ADD, GATED, Product, STORE, Strip, write};
use crate::matrix::WEIGHTS;
use crate::memory::{Memory, MemoryMut, try_copy};
use crate::vector::{STEP_ACTIVATION_BYTES, Task, Vector};
use crate::{KernelError, QuantisedMatrix, QuantisedRows};

/// Weights packed into panels of `lanes` output channels: `[panels, steps, lanes * 4 bytes]`.
#[derive(Debug)]
pub(crate) struct Int8Panels {
    /// Steps of a panel.
    pub(crate) steps: usize,
    pub(crate) weights: Memory,
    /// `[panels * lanes]` f32; 0 past the last channel.
    pub(crate) scales: Vec<f32>,
}

impl Int8Panels {
    /// Packs a valid matrix for the registers of `V`.
    ///
    /// # Errors
    /// Memory that the system does not give.
    pub(crate) fn new<V: Vector>(matrix: &QuantisedMatrix) -> Result<Self, KernelError> {
        let steps = matrix.columns.div_ceil(V::STEP_COLUMNS);
        let panels = matrix.rows.div_ceil(V::LANES);
        let mut weights = MemoryMut::zeroed(panels * steps * V::STEP_BYTES)?;
        let zeros = [0; 4];
        for channel in 0..panels * V::LANES {
            let panel = channel / V::LANES * steps * V::STEP_BYTES;
            let places = weights[panel..][..steps * V::STEP_BYTES].chunks_exact_mut(V::STEP_BYTES);
            let row = matrix
                .values
                .chunks_exact(matrix.columns)
                .nth(channel)
                .unwrap_or_default();
            let mut values = row.chunks(V::STEP_COLUMNS);
            for place in places {
                // Padding is weight 0, which is not always byte 0.
                let mut step = zeros;
                let found = values.next().unwrap_or_default();
                step[..found.len()].copy_from_slice(found);
                V::pack_int8(channel % V::LANES, &step[..V::STEP_COLUMNS], place);
            }
        }
        let mut scales = try_copy(WEIGHTS, &matrix.scales, panels * V::LANES)?;
        scales.resize(panels * V::LANES, 0.0);
        Ok(Self {
            steps,
            weights: weights.seal()?,
            scales,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.len() + self.scales.capacity() * 4
    }
}

/// See [`PackedMatrix::multiply`](crate::PackedMatrix::multiply).
pub(crate) struct Multiply<'a> {
    pub(crate) panels: &'a Int8Panels,
    pub(crate) product: Product<'a>,
}

impl Task for Multiply<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let Self { panels, product } = self;
        product.for_strips(
            V::LANES,
            #[inline(always)]
            |rows, both, then, strip| match (then, both) {
                (STORE, true) => pass::<V, 2, STORE>(vector, panels, rows, strip),
                (STORE, false) => pass::<V, 1, STORE>(vector, panels, rows, strip),
                (ADD, true) => pass::<V, 2, ADD>(vector, panels, rows, strip),
                (ADD, false) => pass::<V, 1, ADD>(vector, panels, rows, strip),
                _ => pass::<V, 2, GATED>(vector, panels, rows, strip),
            },
        );
    }
}

/// One or two panels with all rows: the panels stay in the first cache while the rows pass.
#[inline(always)]
fn pass<V: Vector, const PANELS: usize, const THEN: u8>(
    vector: V,
    panels: &Int8Panels,
    rows: &QuantisedRows,
    mut strip: Strip<'_>,
) {
    let mut row = 0;
    while row < rows.rows() {
        let left = rows.rows() - row;
        row += match left {
            12.. if V::TILE_ROWS >= 12 => {
                tile::<V, 12, PANELS, THEN>(vector, panels, rows, row, &mut strip)
            }
            6.. => tile::<V, 6, PANELS, THEN>(vector, panels, rows, row, &mut strip),
            3.. => tile::<V, 3, PANELS, THEN>(vector, panels, rows, row, &mut strip),
            _ => tile::<V, 1, PANELS, THEN>(vector, panels, rows, row, &mut strip),
        };
    }
}

/// `ROWS` rows from `row` with the strip's panels, accumulated in registers. Gives back `ROWS`.
#[inline(always)]
fn tile<V: Vector, const ROWS: usize, const PANELS: usize, const THEN: u8>(
    vector: V,
    panels: &Int8Panels,
    rows: &QuantisedRows,
    row: usize,
    strip: &mut Strip<'_>,
) -> usize {
    let steps = panels.steps;
    let weights = &panels.weights[strip.channel * STEP_ACTIVATION_BYTES * steps..]
        [..PANELS * steps * V::STEP_BYTES];
    assert!(row + ROWS <= rows.rows() && steps * V::STEP_COLUMNS <= rows.stride);
    let (activations, stride) = V::activation_bytes(rows);
    // Weights may be stored too large; what that adds to a product is known beforehand and taken off here.
    let mut sums = [[vector.zeros(); PANELS]; ROWS];
    if V::WEIGHT_OFFSET != 0 {
        for (sums, sum) in sums.iter_mut().zip(&rows.sums[row..row + ROWS]) {
            *sums = [vector.splat_int(-V::WEIGHT_OFFSET * sum); PANELS];
        }
    }
    // SAFETY: `rows` holds `stride` bytes of activations for each of its rows, and `row + ROWS` of them.
    let activations = unsafe { activations.add(row * stride) };
    let weights = weights.as_ptr();
    for step in 0..steps {
        // SAFETY: `weights` holds `PANELS * steps` times `STEP_BYTES`.
        let weights: [V::Weights; PANELS] = std::array::from_fn(
            #[inline(always)]
            |panel| unsafe { vector.weights(weights.add((panel * steps + step) * V::STEP_BYTES)) },
        );
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: a row has 4 bytes for every step, as its stride reaches that far.
            let activations = unsafe {
                vector.activations(activations.add(row * stride + step * STEP_ACTIVATION_BYTES))
            };
            for (sum, weights) in sums.iter_mut().zip(&weights) {
                *sum = vector.add_products(*sum, *weights, activations);
            }
        }
    }
    let products =
        scaled::<V, ROWS, PANELS>(vector, &sums, panels, strip.channel, &rows.scales[row..]);
    write::<V, ROWS, PANELS, THEN>(vector, &products, row, strip);
    ROWS
}

/// The sums times the scales of channel and row, in the order of the reference, so that the bits agree.
#[inline(always)]
pub(crate) fn scaled<V: Vector, const ROWS: usize, const PANELS: usize>(
    vector: V,
    sums: &[[V::Ints; PANELS]; ROWS],
    panels: &Int8Panels,
    channel: usize,
    row_scales: &[f32],
) -> [[V::Floats; PANELS]; ROWS] {
    let scales = &panels.scales[channel..][..PANELS * V::LANES];
    let mut products = [[vector.splat(0.0); PANELS]; ROWS];
    for ((products, sums), row_scale) in products.iter_mut().zip(sums).zip(&row_scales[..ROWS]) {
        let row_scale = vector.splat(*row_scale);
        for (panel, (product, sum)) in products.iter_mut().zip(sums).enumerate() {
            // SAFETY: a register of scales was taken for each panel.
            let scale = unsafe { vector.load(scales.as_ptr().add(panel * V::LANES)) };
            let scaled = vector.multiply(vector.to_floats(*sum), scale);
            *product = vector.multiply(scaled, row_scale);
        }
    }
    products
}
