//! What happens to the sums of a product: scaled, then stored, added or gated.

use std::ops::Range;

use crate::QuantisedRows;
use crate::packed::Epilogue;
use crate::vector::Vector;

/// `output = product`.
pub(crate) const STORE: u8 = 0;
/// `output += product`.
pub(crate) const ADD: u8 = 1;
/// `output = silu(product of the first panel) * product of the second`.
pub(crate) const GATED: u8 = 2;

/// Where the products with one or two panels go.
pub(crate) struct Strip<'a> {
    /// First output channel.
    pub(crate) channel: usize,
    /// Number of output channels.
    pub(crate) width: usize,
    /// From the strip's first value of the first row on.
    pub(crate) output: &'a mut [f32],
    /// From one row to the next.
    pub(crate) stride: usize,
}

/// What is done with the products of a call.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// The channels of a panel go where they belong.
    Plain(Epilogue),
    /// Panels of gate and up channels take turns.
    Gated,
}

/// What is multiplied, and where it goes; the sizes have been checked.
pub(crate) struct Product<'a> {
    pub(crate) rows: &'a QuantisedRows,
    pub(crate) channels: Range<usize>,
    pub(crate) output: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) then: Then,
}

impl Product<'_> {
    /// Calls `pass` for each strip of the channels with the rows, whether both panels are in use, and the epilogue as a constant's value.
    #[inline(always)]
    pub(crate) fn for_strips(
        self,
        lanes: usize,
        mut pass: impl FnMut(&QuantisedRows, bool, u8, Strip<'_>),
    ) {
        let Self {
            rows,
            channels,
            output,
            stride,
            then,
        } = self;
        let then = match then {
            Then::Plain(Epilogue::Store) => STORE,
            Then::Plain(Epilogue::Add) => ADD,
            Then::Gated => GATED,
        };
        for channel in channels.clone().step_by(2 * lanes) {
            let width = (channels.end - channel).min(2 * lanes);
            let first = if then == GATED { channel / 2 } else { channel };
            let strip = Strip {
                channel,
                width,
                output: &mut output[first..],
                stride,
            };
            pass(rows, width > lanes, then, strip);
        }
    }
}

/// Writes the products of `ROWS` rows from `row`: with `GATED` the first panel gates the second.
///
/// The bounds are checked once, so that the loops unroll and the sums stay in registers.
#[inline(always)]
pub(crate) fn write<V: Vector, const ROWS: usize, const PANELS: usize, const THEN: u8>(
    vector: V,
    products: &[[V::Floats; PANELS]; ROWS],
    row: usize,
    strip: &mut Strip<'_>,
) {
    let width = if THEN == GATED { V::LANES } else { strip.width };
    assert!((1..=PANELS * V::LANES).contains(&width));
    let output = &mut strip.output[row * strip.stride..];
    assert!((ROWS - 1) * strip.stride + width <= output.len());
    for (row, products) in products.iter().enumerate() {
        // SAFETY: row `row` starts within `output` and has `width` values there, as asserted; no more are touched.
        unsafe {
            let output = output.as_mut_ptr().add(row * strip.stride);
            if THEN == GATED {
                vector.store(output, gated(vector, products[0], products[PANELS - 1]));
                continue;
            }
            for (panel, product) in products.iter().enumerate() {
                let width = width - (panel * V::LANES).min(width);
                let output = output.add(panel * V::LANES);
                if width >= V::LANES {
                    let product = if THEN == ADD {
                        vector.add(vector.load(output), *product)
                    } else {
                        *product
                    };
                    vector.store(output, product);
                } else if width > 0 {
                    let product = if THEN == ADD {
                        vector.add(vector.load_first(output, width), *product)
                    } else {
                        *product
                    };
                    vector.store_first(output, width, product);
                }
            }
        }
    }
}

/// `gate / (1 + exp(-gate)) * up`.
#[inline(always)]
pub(super) fn gated<V: Vector>(vector: V, gate: V::Floats, up: V::Floats) -> V::Floats {
    let power = vector.multiply(gate, vector.splat(-std::f32::consts::LOG2_E));
    let silu = vector.divide(gate, vector.add(vector.exp2(power), vector.splat(1.0)));
    vector.multiply(silu, up)
}
