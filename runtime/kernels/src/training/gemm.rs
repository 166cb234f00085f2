//! Matrix products `C = A B` and `C += A B` in f32, any of A and B transposed.
//!
//! B is packed into panels of a register width, block by block along the inner size; A is read where it is, or, if it is
//! transposed, packed panel by panel. A tile of C stays in registers over a block of the inner size, so each element
//! of C is a chain of fused multiply-adds in the order of the inner index, the same on every instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod portable;
#[cfg(test)]
mod tests;

use super::cpu::{Cpu, Instructions};

/// Inner size of a block. Part of the result: between blocks, sums are rounded.
const INNER_BLOCK: usize = 512;
/// Largest tile height of any instruction set.
const TILE_ROWS_MAX: usize = 12;
/// Values of packed B that are used over and over: they must stay in the second-level cache.
const PACKED_VALUES_MAX: usize = 128 * 1024;

/// A view of a matrix: rows of `row_stride` values each, or the transpose of that.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    row_stride: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Row-major rows, `row_stride` values apart.
    #[must_use]
    pub fn new(values: &'a [f32], row_stride: usize) -> Self {
        Self {
            values,
            row_stride,
            transposed: false,
        }
    }

    /// The transposed matrix, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Panics if `rows` x `columns` reach outside the values: what makes the unchecked reads below sound.
    fn check(&self, rows: usize, columns: usize) {
        let (stored_rows, stored_columns) = if self.transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        check_inside(
            self.values.len(),
            self.row_stride,
            stored_rows,
            stored_columns,
        );
    }
}

/// Panics unless rows of `columns` values, `row_stride` apart, lie within `length` values.
fn check_inside(length: usize, row_stride: usize, rows: usize, columns: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let end = (rows - 1)
        .checked_mul(row_stride)
        .and_then(|start| start.checked_add(columns));
    assert!(
        columns <= row_stride && end.is_some_and(|end| end <= length),
        "matrix of {rows} x {columns} values, rows {row_stride} apart, in a slice of {length}"
    );
}

/// Memory that products reuse.
#[derive(Debug, Default)]
pub struct GemmScratch {
    packed: Vec<f32>,
    left: Vec<f32>,
}

/// A right-hand matrix packed once for several products.
#[derive(Debug, Default)]
pub struct Packed {
    values: Vec<f32>,
    inner: usize,
    columns: usize,
    /// For which instructions; `None` before the first packing.
    instructions: Option<Instructions>,
}

/// Shape of the register tile.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    columns: usize,
}

/// Where a tile's rows of A are: the value of row i at inner index p is at `values[i * row_step + p * inner_step]`.
#[derive(Clone, Copy)]
struct Left {
    values: *const f32,
    row_step: usize,
    inner_step: usize,
}

/// Where a tile of C is.
#[derive(Clone, Copy)]
struct Output {
    values: *mut f32,
    row_stride: usize,
    /// Columns of the tile that exist.
    columns: usize,
    /// Adds to what is there.
    accumulate: bool,
}

impl Cpu {
    fn tile(self) -> Tile {
        match self.instructions() {
            Instructions::Portable => Tile {
                rows: 4,
                columns: 16,
            },
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => Tile {
                rows: 6,
                columns: 16,
            },
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 | Instructions::Avx512Bf16 => Tile {
                rows: 12,
                columns: 32,
            },
        }
    }

    /// Packed values that `depth` values of a row or column take.
    fn slots(self, depth: usize) -> usize {
        match self.instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => bf16::slots(depth),
            _ => depth,
        }
    }

    /// `C = A B`, or `C += A B` if `accumulate`. A is `[rows, inner]`, B `[inner, columns]`, C `[rows, columns]` with
    /// rows `c_stride` values apart.
    ///
    /// # Panics
    /// If a matrix reaches outside its slice.
    #[allow(
        clippy::too_many_arguments,
        reason = "a matrix product has three matrices and three sizes"
    )]
    pub fn gemm(
        self,
        scratch: &mut GemmScratch,
        (rows, columns, inner): (usize, usize, usize),
        a: Matrix<'_>,
        b: Matrix<'_>,
        c: &mut [f32],
        c_stride: usize,
        accumulate: bool,
    ) {
        a.check(rows, inner);
        b.check(inner, columns);
        check_inside(c.len(), c_stride, rows, columns);
        if inner == 0 && !accumulate {
            for row in 0..rows {
                c[row * c_stride..row * c_stride + columns].fill(0.0);
            }
        }
        let tile = self.tile();
        let mut inner_start = 0;
        while inner_start < inner {
            let depth = INNER_BLOCK.min(inner - inner_start);
            let column_block = (PACKED_VALUES_MAX / depth / tile.columns).max(1) * tile.columns;
            let mut column_start = 0;
            while column_start < columns {
                let width = column_block.min(columns - column_start);
                self.pack_block(
                    b,
                    (inner_start, depth),
                    (column_start, width),
                    &mut scratch.packed,
                );
                let panels = Panels {
                    values: &scratch.packed,
                    stride: self.slots(depth) * tile.columns,
                    depth,
                    columns: width,
                };
                self.multiply_block(
                    (rows, a, inner_start),
                    &panels,
                    &mut scratch.left,
                    &mut c[column_start..],
                    c_stride,
                    accumulate || inner_start > 0,
                );
                column_start += width;
            }
            inner_start += depth;
        }
    }

    /// Packs B `[inner, columns]` for [`Cpu::gemm_packed`].
    ///
    /// # Panics
    /// If the matrix reaches outside its slice.
    pub fn pack(self, packed: &mut Packed, (columns, inner): (usize, usize), b: Matrix<'_>) {
        b.check(inner, columns);
        packed.inner = inner;
        packed.columns = columns;
        packed.instructions = Some(self.instructions());
        packed.values.clear();
        let mut block = Vec::new();
        let mut inner_start = 0;
        while inner_start < inner {
            let depth = INNER_BLOCK.min(inner - inner_start);
            if inner <= INNER_BLOCK {
                self.pack_block(b, (0, depth), (0, columns), &mut packed.values);
            } else {
                self.pack_block(b, (inner_start, depth), (0, columns), &mut block);
                packed.values.extend_from_slice(&block);
            }
            inner_start += depth;
        }
    }

    /// [`Cpu::gemm`] with a packed B, of which the first `columns` columns and the first `inner` rows are used.
    ///
    /// # Panics
    /// If A or C reaches outside its slice, or more of B is asked for than was packed.
    #[allow(
        clippy::too_many_arguments,
        reason = "a matrix product has three matrices and three sizes"
    )]
    pub fn gemm_packed(
        self,
        scratch: &mut GemmScratch,
        (rows, columns, inner): (usize, usize, usize),
        a: Matrix<'_>,
        b: &Packed,
        c: &mut [f32],
        c_stride: usize,
        accumulate: bool,
    ) {
        a.check(rows, inner);
        check_inside(c.len(), c_stride, rows, columns);
        assert!(
            columns <= b.columns && inner <= b.inner,
            "{inner} x {columns} values of a packed matrix of {} x {}",
            b.inner,
            b.columns
        );
        assert!(
            inner == 0 || b.instructions == Some(self.instructions()),
            "a matrix packed for {:?} instructions, used with {:?}",
            b.instructions,
            self.instructions()
        );
        let tile = self.tile();
        let padded_columns = b.columns.div_ceil(tile.columns) * tile.columns;
        let mut inner_start = 0;
        while inner_start < inner {
            let packed_depth = INNER_BLOCK.min(b.inner - inner_start);
            let stride = self.slots(packed_depth) * tile.columns;
            let depth = packed_depth.min(inner - inner_start);
            // Every block but the last has INNER_BLOCK values, an even number: slots of all add up.
            let block = &b.values[self.slots(inner_start) * padded_columns..];
            let column_block =
                (PACKED_VALUES_MAX / packed_depth / tile.columns).max(1) * tile.columns;
            for column_start in (0..columns).step_by(column_block) {
                let values = &block[column_start / tile.columns * stride..];
                let panels = Panels {
                    values,
                    stride,
                    depth,
                    columns: column_block.min(columns - column_start),
                };
                let accumulate = accumulate || inner_start > 0;
                self.multiply_block(
                    (rows, a, inner_start),
                    &panels,
                    &mut scratch.left,
                    &mut c[column_start..],
                    c_stride,
                    accumulate,
                );
            }
            inner_start += packed_depth;
        }
    }

    /// C (+)= A[.., inner_start..] times the panels. The callers have checked that A and C lie in their slices.
    fn multiply_block(
        self,
        (rows, a, inner_start): (usize, Matrix<'_>, usize),
        panels: &Panels<'_>,
        left: &mut Vec<f32>,
        c: &mut [f32],
        c_stride: usize,
        accumulate: bool,
    ) {
        let tile = self.tile();
        let panel_count = panels.columns.div_ceil(tile.columns);
        assert!(
            self.slots(panels.depth) * tile.columns <= panels.stride
                && panel_count * panels.stride <= panels.values.len()
        );
        a.check(rows, inner_start + panels.depth);
        check_inside(c.len(), c_stride, rows, panels.columns);
        let mut row = 0;
        while row < rows {
            let height = tile.rows.min(rows - row);
            let tile_left = self.place_left(a, (row, height), (inner_start, panels.depth), left);
            for panel in 0..panel_count {
                let column = panel * tile.columns;
                let output = Output {
                    values: c[row * c_stride + column..].as_mut_ptr(),
                    row_stride: c_stride,
                    columns: tile.columns.min(panels.columns - column),
                    accumulate,
                };
                let right = panels.values[panel * panels.stride..].as_ptr();
                // SAFETY: checked above and by `Matrix::check`/`check_inside`: A has `height` rows from `row` and `depth`
                // values of each from `inner_start`, the panel has `depth` times the tile's columns, C has the tile's
                // rows and columns; `c` is borrowed mutably, so it overlaps none of them.
                unsafe {
                    match self.instructions() {
                        Instructions::Portable => {
                            portable::tile(height, panels.depth, tile_left, right, output)
                        }
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx2 => {
                            avx2::tile(height, panels.depth, tile_left, right, output)
                        }
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx512 => {
                            avx512::tile(height, panels.depth, tile_left, right, output)
                        }
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx512Bf16 => {
                            let depth = bf16::slots(panels.depth);
                            bf16::tile(height, depth, tile_left, right, output)
                        }
                    }
                }
            }
            row += height;
        }
    }
}

impl Cpu {
    /// Where a tile's rows of A can be read: in place, or packed into `left`.
    fn place_left(
        self,
        a: Matrix<'_>,
        (row, height): (usize, usize),
        (inner_start, depth): (usize, usize),
        left: &mut Vec<f32>,
    ) -> Left {
        match self.instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => {
                // SAFETY: a `Cpu` of this kind is only made after these features were found on the processor.
                unsafe { bf16::pack_left(a, (row, height), (inner_start, depth), left) };
                let row_step = if a.transposed { 1 } else { bf16::slots(depth) };
                let inner_step = if a.transposed { TILE_ROWS_MAX } else { 1 };
                Left {
                    values: left.as_ptr(),
                    row_step,
                    inner_step,
                }
            }
            _ if a.transposed => {
                pack_left(a, (row, height), (inner_start, depth), left);
                Left {
                    values: left.as_ptr(),
                    row_step: 1,
                    inner_step: TILE_ROWS_MAX,
                }
            }
            _ => {
                let values = &a.values[row * a.row_stride + inner_start..];
                Left {
                    values: values.as_ptr(),
                    row_step: a.row_stride,
                    inner_step: 1,
                }
            }
        }
    }

    /// Packs a block of B as panels `[panel][slot][tile column]`, zero where there is no column.
    fn pack_block(
        self,
        b: Matrix<'_>,
        (inner_start, depth): (usize, usize),
        (column_start, width): (usize, usize),
        packed: &mut Vec<f32>,
    ) {
        let tile = self.tile();
        let stride = self.slots(depth) * tile.columns;
        packed.resize(width.div_ceil(tile.columns) * stride, 0.0);
        for (panel, values) in packed.chunks_exact_mut(stride).enumerate() {
            let first = column_start + panel * tile.columns;
            let columns = tile.columns.min(column_start + width - first);
            match self.instructions() {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512Bf16 => {
                    // SAFETY: a `Cpu` of this kind is only made after these features were found on the processor.
                    unsafe { bf16::pack_panel(b, (inner_start, depth), (first, columns), values) };
                }
                _ => pack_panel(tile, b, (inner_start, depth), (first, columns), values),
            }
        }
    }
}

/// Packed columns of B: panels of the tile's width, `stride` values apart, of which `depth` rows are used.
struct Panels<'a> {
    values: &'a [f32],
    stride: usize,
    depth: usize,
    columns: usize,
}

/// Packs one panel `[inner][tile column]` of B, zero where there is no column.
fn pack_panel(
    tile: Tile,
    b: Matrix<'_>,
    (inner_start, depth): (usize, usize),
    (first, columns): (usize, usize),
    panel: &mut [f32],
) {
    if b.transposed {
        let source = &b.values[first * b.row_stride + inner_start..];
        pack_transposed(source, b.row_stride, columns, tile.columns, panel);
        return;
    }
    for (inner, row) in panel.chunks_exact_mut(tile.columns).enumerate().take(depth) {
        let start = (inner_start + inner) * b.row_stride + first;
        row[..columns].copy_from_slice(&b.values[start..start + columns]);
        row[columns..].fill(0.0);
    }
}

/// One panel out of a transposed B, in squares of 16 so that both sides are touched by whole cache lines.
fn pack_transposed(
    source: &[f32],
    row_stride: usize,
    columns: usize,
    tile_columns: usize,
    panel: &mut [f32],
) {
    const SQUARE: usize = 16;
    let depth = panel.len() / tile_columns;
    if columns < tile_columns {
        panel.fill(0.0);
    }
    let mut inner = 0;
    while inner < depth {
        let count = SQUARE.min(depth - inner);
        for column in 0..columns {
            let start = column * row_stride + inner;
            for (offset, value) in source[start..start + count].iter().enumerate() {
                panel[(inner + offset) * tile_columns + column] = *value;
            }
        }
        inner += count;
    }
}

/// Packs rows of a transposed A as `[inner][TILE_ROWS_MAX]`; rows past `height` are left as they are and never read.
fn pack_left(
    a: Matrix<'_>,
    (row, height): (usize, usize),
    (inner_start, depth): (usize, usize),
    left: &mut Vec<f32>,
) {
    left.resize(depth * TILE_ROWS_MAX, 0.0);
    for (inner, packed) in left.chunks_exact_mut(TILE_ROWS_MAX).enumerate() {
        let start = (inner_start + inner) * a.row_stride + row;
        if height == TILE_ROWS_MAX {
            packed.copy_from_slice(&a.values[start..start + TILE_ROWS_MAX]);
        } else {
            packed[..height].copy_from_slice(&a.values[start..start + height]);
        }
    }
}
