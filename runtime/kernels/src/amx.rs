//! Products of int8 weights on Intel's tile registers (AMX): 32 rows by 32 output channels at a time, 64 input channels a step.
//!
//! The compiler does not know tiles, so they are named in assembly; everything around them is AVX-512.

use std::arch::asm;

use crate::fast::int8::{Int8Panels, scaled};
use crate::fast::output::{ADD, GATED, Product, STORE, Strip, write};
use crate::matrix::WEIGHTS;
use crate::memory::{MemoryMut, try_copy};
use crate::rows::ROWS_PADDING;
use crate::vector::{Task, Vector};
use crate::{KernelError, QuantisedMatrix, QuantisedRows};

/// Rows of a tile, and output channels of a panel.
pub(crate) const TILE_ROWS: usize = 16;
/// Input channels of a tile: bytes of its rows.
const TILE_COLUMNS: usize = 64;
/// Input channels whose weights of one output channel lie together.
const STEP_COLUMNS: usize = 4;
/// Bytes of a tile of weights, `[16 steps, 16 output channels, 4 input channels]`.
const TILE_BYTES: usize = TILE_ROWS * TILE_COLUMNS;
/// Rows that are scaled and written together.
const WRITE_ROWS: usize = 4;

/// Packs a valid matrix: panels of 16 output channels, steps of 4 input channels as with AVX-512 but whole tiles of them, and
/// one panel more than there are, as products read panels in pairs that may begin with the last.
///
/// # Errors
/// Memory that the system does not give.
pub(crate) fn pack(matrix: &QuantisedMatrix) -> Result<Int8Panels, KernelError> {
    let tiles = matrix.columns.div_ceil(TILE_COLUMNS);
    let panels = matrix.rows.div_ceil(TILE_ROWS) + 1;
    let mut weights = MemoryMut::zeroed(panels * tiles * TILE_BYTES)?;
    for (channel, values) in matrix.values.chunks_exact(matrix.columns).enumerate() {
        let place = &mut weights[channel / TILE_ROWS * tiles * TILE_BYTES..][..tiles * TILE_BYTES];
        let lines = place.chunks_exact_mut(TILE_COLUMNS);
        for (line, values) in lines.zip(values.chunks(STEP_COLUMNS)) {
            let line = &mut line[channel % TILE_ROWS * STEP_COLUMNS..];
            for (byte, value) in line.iter_mut().zip(values) {
                *byte = value.cast_unsigned();
            }
        }
    }
    let mut scales = try_copy(WEIGHTS, &matrix.scales, panels * TILE_ROWS)?;
    scales.resize(panels * TILE_ROWS, 0.0);
    Ok(Int8Panels {
        steps: tiles * TILE_COLUMNS / STEP_COLUMNS,
        weights: weights.seal()?,
        scales,
    })
}

/// What multiplies tiles: the processor, or in tests a model of it.
pub(crate) trait TileUnit {
    /// Sets up the tiles of this thread; they are released when the value is dropped.
    fn new() -> Self;

    /// Products of `A` times 16 rows with two panels, `[A, 2, 16, 16]` i32 in `sums`.
    ///
    /// # Safety
    /// `rows` is `A * 16` rows of `tiles * 64` bytes, `stride` bytes apart; each panel is `tiles * 1024` bytes.
    unsafe fn multiply<const A: usize>(
        &mut self,
        rows: *const i8,
        stride: usize,
        panels: [*const u8; 2],
        tiles: usize,
        sums: &mut Sums,
    );
}

/// `[rows / 16, panel, row, output channel]`.
#[repr(align(64))]
pub(crate) struct Sums([[[[i32; TILE_ROWS]; TILE_ROWS]; 2]; 2]);

/// The configuration that `ldtilecfg` reads (Intel SDM volume 1, 18.2.4): all eight tiles are 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The processor's tiles. Made only by [`Multiply`], which exists only where the processor and the system have them.
pub(crate) struct Hardware(());

impl TileUnit for Hardware {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: the configuration is valid and lies in static memory; tiles are no register of the compiler's.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, preserves_flags))
        };
        Self(())
    }

    #[inline(always)]
    unsafe fn multiply<const A: usize>(
        &mut self,
        rows: *const i8,
        stride: usize,
        panels: [*const u8; 2],
        tiles: usize,
        sums: &mut Sums,
    ) {
        // SAFETY: the loops read `tiles` tiles from each pointer, which the caller promises, and write `A * 2` tiles of 1,024
        // bytes to `sums`. Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
        unsafe {
            if A == 2 {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    "tileloadd tmm6, [{first} + {line}]",
                    "tileloadd tmm4, [{upper} + {stride}]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{second} + {line}]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{lower} + {stride}]",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "add {first}, 1024", "add {second}, 1024", "add {upper}, 64", "add {lower}, 64",
                    "dec {tiles}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 3072], tmm3",
                    first = inout(reg) panels[0] => _, second = inout(reg) panels[1] => _,
                    upper = inout(reg) rows => _, lower = inout(reg) rows.add(TILE_ROWS * stride) => _,
                    tiles = inout(reg) tiles => _, sums = in(reg) sums,
                    stride = in(reg) stride, line = in(reg) TILE_COLUMNS,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            } else {
                asm!(
                    "tilezero tmm0", "tilezero tmm1",
                    "2:",
                    "tileloadd tmm4, [{upper} + {stride}]",
                    "tileloadd tmm6, [{first} + {line}]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{second} + {line}]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "add {first}, 1024", "add {second}, 1024", "add {upper}, 64",
                    "dec {tiles}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    first = inout(reg) panels[0] => _, second = inout(reg) panels[1] => _,
                    upper = inout(reg) rows => _,
                    tiles = inout(reg) tiles => _, sums = in(reg) sums,
                    stride = in(reg) stride, line = in(reg) TILE_COLUMNS,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    }
}

impl Drop for Hardware {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the thread's tiles are no longer needed; a switch to another thread need not save them.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// See [`PackedMatrix::multiply`](crate::PackedMatrix::multiply).
pub(crate) struct Multiply<'a, U = Hardware> {
    panels: &'a Int8Panels,
    product: Product<'a>,
    unit: std::marker::PhantomData<U>,
}

impl<'a, U: TileUnit> Multiply<'a, U> {
    /// # Safety
    /// With [`Hardware`], the processor has AMX with int8 and the system has permitted this process to use it.
    pub(crate) unsafe fn new(panels: &'a Int8Panels, product: Product<'a>) -> Self {
        Self {
            panels,
            product,
            unit: std::marker::PhantomData,
        }
    }
}

impl<U: TileUnit> Task for Multiply<'_, U> {
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        assert_eq!(V::LANES, TILE_ROWS, "lanes of a tile");
        let panels = self.panels;
        let mut unit = U::new();
        self.product.for_strips(
            V::LANES,
            #[inline(always)]
            |rows, _, then, strip| match then {
                STORE => pass::<V, U, STORE>(vector, &mut unit, panels, rows, strip),
                ADD => pass::<V, U, ADD>(vector, &mut unit, panels, rows, strip),
                _ => pass::<V, U, GATED>(vector, &mut unit, panels, rows, strip),
            },
        );
    }
}

/// Two panels with all rows.
#[inline(always)]
fn pass<V: Vector, U: TileUnit, const THEN: u8>(
    vector: V,
    unit: &mut U,
    panels: &Int8Panels,
    rows: &QuantisedRows,
    mut strip: Strip<'_>,
) {
    let tiles = panels.steps * STEP_COLUMNS / TILE_COLUMNS;
    let weights =
        &panels.weights[strip.channel / TILE_ROWS * tiles * TILE_BYTES..][..2 * tiles * TILE_BYTES];
    let pair = [weights.as_ptr(), weights[tiles * TILE_BYTES..].as_ptr()];
    // Rows are padded to whole tiles; what comes of padding is not written.
    const { assert!(ROWS_PADDING.is_multiple_of(TILE_ROWS)) };
    let padded = rows.rows().next_multiple_of(TILE_ROWS);
    assert!(tiles * TILE_COLUMNS <= rows.stride && padded * rows.stride <= rows.values.len());
    let mut sums = Sums([[[[0; TILE_ROWS]; TILE_ROWS]; 2]; 2]);
    let mut row = 0;
    while row < rows.rows() {
        let both = row + TILE_ROWS < padded;
        // SAFETY: the rows up to `padded` and both panels are there, as asserted and sliced above.
        unsafe {
            let from = rows.values.as_ptr().add(row * rows.stride);
            if both {
                unit.multiply::<2>(from, rows.stride, pair, tiles, &mut sums);
            } else {
                unit.multiply::<1>(from, rows.stride, pair, tiles, &mut sums);
            }
        }
        for sums in &sums.0[..1 + usize::from(both)] {
            write_tile::<V, THEN>(vector, sums, panels, rows, row, &mut strip);
            row += TILE_ROWS;
        }
    }
}

/// Scales and writes 16 rows from `row`, as far as there are.
#[inline(always)]
fn write_tile<V: Vector, const THEN: u8>(
    vector: V,
    sums: &[[[i32; TILE_ROWS]; TILE_ROWS]; 2],
    panels: &Int8Panels,
    rows: &QuantisedRows,
    first_row: usize,
    strip: &mut Strip<'_>,
) {
    let end = (rows.rows() - first_row).min(TILE_ROWS);
    let mut row = 0;
    while row < end {
        if row + WRITE_ROWS <= end {
            write_rows::<V, WRITE_ROWS, THEN>(vector, sums, panels, rows, first_row, row, strip);
            row += WRITE_ROWS;
        } else {
            write_rows::<V, 1, THEN>(vector, sums, panels, rows, first_row, row, strip);
            row += 1;
        }
    }
}

#[inline(always)]
fn write_rows<V: Vector, const ROWS: usize, const THEN: u8>(
    vector: V,
    sums: &[[[i32; TILE_ROWS]; TILE_ROWS]; 2],
    panels: &Int8Panels,
    rows: &QuantisedRows,
    first_row: usize,
    row: usize,
    strip: &mut Strip<'_>,
) {
    let mut lanes = [[vector.zeros(); 2]; ROWS];
    for (at, lanes) in lanes.iter_mut().enumerate() {
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            // SAFETY: a row of a tile has 16 values.
            *lanes = unsafe { vector.load_ints(sums[row + at].as_ptr()) };
        }
    }
    let row = first_row + row;
    let products = scaled::<V, ROWS, 2>(vector, &lanes, panels, strip.channel, &rows.scales[row..]);
    write::<V, ROWS, 2, THEN>(vector, &products, row, strip);
}

#[cfg(test)]
pub(crate) mod model {
    //! A plain model of the tile unit, so that packing, loops and writing are tested where there is none.

    use super::{STEP_COLUMNS, Sums, TILE_COLUMNS, TILE_ROWS, TileUnit};

    pub(crate) struct Model;

    impl TileUnit for Model {
        fn new() -> Self {
            Self
        }

        unsafe fn multiply<const A: usize>(
            &mut self,
            rows: *const i8,
            stride: usize,
            panels: [*const u8; 2],
            tiles: usize,
            sums: &mut Sums,
        ) {
            for (half, sums) in sums.0[..A].iter_mut().enumerate() {
                for (panel, sums) in panels.into_iter().zip(sums) {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (channel, sum) in sums.iter_mut().enumerate() {
                            *sum = (0..tiles * TILE_COLUMNS)
                                .map(|column| {
                                    let step = column / STEP_COLUMNS * TILE_COLUMNS;
                                    let weight =
                                        step + channel * STEP_COLUMNS + column % STEP_COLUMNS;
                                    let row = (half * TILE_ROWS + row) * stride + column;
                                    // SAFETY: the caller's promise.
                                    let (row, weight) =
                                        unsafe { (*rows.add(row), *panel.add(weight)) };
                                    i32::from(row) * i32::from(weight.cast_signed())
                                })
                                .sum();
                        }
                    }
                }
            }
        }
    }
}
