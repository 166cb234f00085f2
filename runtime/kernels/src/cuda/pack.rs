//! Weights in the layout that the kernels of products read: tiles of 128 output channels by 128 input channels, padded with zeros.
//!
//! - 8 bits, 16,384 bytes a tile: each channel has 128 bytes, whose eight chunks of 16 bytes stand in turned order (chunk `c` of channel `n`
//!   at `c ^ (n % 8)`), so that the loads of eight channels meet different banks of shared memory. One scale for each channel.
//! - 4 bits, 8,192 bytes a tile: `[4 groups, 128 channels, 16 bytes]`, each 16 bytes as GGUF has them. Scales, and minimums where there
//!   are any, `[tiles of channels, groups, 128]`.

use crate::int4::GROUP_BYTES;
use crate::matrix::WEIGHTS;
use crate::memory::try_filled;
use crate::packed::{stack, take_turns};
use crate::{GROUP_COLUMNS, Int4Matrix, KernelError, QuantisedMatrix, WeightMatrix};

use super::{DeviceError, WeightKind};

/// Output channels, and input channels, of a tile.
pub(super) const TILE: usize = 128;
/// Bytes that kernels copy at once.
const CHUNK: usize = 16;
/// Chunks of a channel of 8-bit weights in a tile.
const CHUNKS: usize = TILE / CHUNK;
const TILE_GROUPS: usize = TILE / GROUP_COLUMNS;
const INT8_TILE_BYTES: usize = TILE * TILE;
const INT4_TILE_BYTES: usize = INT8_TILE_BYTES / 2;
/// Two weights of 0 without minimums.
const ZERO_NIBBLES: u8 = 0x88;

/// One or more matrices, stacked along their output channels and packed for a device; still in the host's memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedWeights {
    pub(super) kind: WeightKind,
    pub(super) channels: usize,
    pub(super) columns: usize,
    pub(super) is_gated: bool,
    pub(super) weights: Vec<u8>,
    pub(super) scales: Vec<f32>,
    pub(super) minimums: Vec<f32>,
}

impl PackedWeights {
    /// Packs `parts` (all with the same number of columns) stacked in this order. Where 4-bit and 8-bit weights are stacked, or 4-bit
    /// ones with and without minimums, all become 8-bit ones.
    ///
    /// # Errors
    /// [`DeviceError::Weights`]: what [`WeightMatrix::validate`] refuses; different numbers of columns; memory that the system does not give.
    pub fn stacked(parts: &[&WeightMatrix]) -> Result<Self, DeviceError> {
        if let [WeightMatrix::Int8(only)] = parts {
            only.validate()?;
            return Ok(int8(only)?);
        }
        Ok(pack(&stack(parts)?)?)
    }

    /// Packs a gate and an up projection (of the same shape): channels of either in turn, so that one thread has both halves of an output.
    ///
    /// # Errors
    /// As [`PackedWeights::stacked`]; different shapes.
    pub fn gated(gate: &WeightMatrix, up: &WeightMatrix) -> Result<Self, DeviceError> {
        let stacked = stack(&[gate, up])?;
        if gate.rows() != up.rows() {
            return Err(DeviceError::Weights(KernelError::Length {
                what: "rows of the up projection",
                expected: gate.rows(),
                found: up.rows(),
            }));
        }
        let turns = take_turns(&stacked, 1)?;
        drop(stacked);
        Ok(Self {
            is_gated: true,
            ..pack(&turns)?
        })
    }

    /// What the weights are.
    #[must_use]
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Output channels, of all parts together.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Input channels.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that the weights take on a device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.len() + (self.scales.len() + self.minimums.len()) * size_of::<f32>()
    }
}

fn pack(matrix: &WeightMatrix) -> Result<PackedWeights, KernelError> {
    match matrix {
        WeightMatrix::Int8(matrix) => int8(matrix),
        WeightMatrix::Int4(matrix) => int4(matrix),
    }
}

/// Tiles of channels and of columns. The limits of matrices keep what follows from them far below overflow on 64-bit systems.
fn tiles(rows: usize, columns: usize) -> Result<(usize, usize), KernelError> {
    let (channel_tiles, column_tiles) = (rows.div_ceil(TILE), columns.div_ceil(TILE));
    let values = channel_tiles
        .checked_mul(column_tiles)
        .and_then(|tiles| tiles.checked_mul(INT8_TILE_BYTES));
    if values.is_none() {
        return Err(KernelError::Size {
            what: "values of packed weights",
            limit: usize::MAX,
            found: usize::MAX,
        });
    }
    Ok((channel_tiles, column_tiles))
}

fn int8(matrix: &QuantisedMatrix) -> Result<PackedWeights, KernelError> {
    let (channel_tiles, column_tiles) = tiles(matrix.rows, matrix.columns)?;
    let bytes = channel_tiles * column_tiles * INT8_TILE_BYTES;
    let mut weights = try_filled(WEIGHTS, bytes, 0_u8)?;
    let rows = matrix.values.chunks_exact(matrix.columns);
    for (channel, row) in rows.enumerate() {
        let first_tile = channel / TILE * column_tiles;
        let in_tile = channel % TILE;
        for (at, chunk) in row.chunks(CHUNK).enumerate() {
            let start = (first_tile + at / CHUNKS) * INT8_TILE_BYTES
                + in_tile * TILE
                + ((at % CHUNKS) ^ (in_tile % CHUNKS)) * CHUNK;
            weights[start..start + chunk.len()].copy_from_slice(bytemuck::cast_slice(chunk));
        }
    }
    let mut scales = try_filled(WEIGHTS, channel_tiles * TILE, 0.0)?;
    scales[..matrix.rows].copy_from_slice(&matrix.scales);
    Ok(PackedWeights {
        kind: WeightKind::Int8,
        channels: matrix.rows,
        columns: matrix.columns,
        is_gated: false,
        weights,
        scales,
        minimums: Vec::new(),
    })
}

fn int4(matrix: &Int4Matrix) -> Result<PackedWeights, KernelError> {
    let (channel_tiles, column_tiles) = tiles(matrix.rows, matrix.columns)?;
    let has_minimums = !matrix.minimums.is_empty();
    let padding = if has_minimums { 0 } else { ZERO_NIBBLES };
    let bytes = channel_tiles * column_tiles * INT4_TILE_BYTES;
    let mut weights = try_filled(WEIGHTS, bytes, padding)?;
    let (groups, padded_groups) = (matrix.groups(), column_tiles * TILE_GROUPS);
    // Where a group of a channel stands, in groups.
    let place = |at: usize| {
        let (channel, group) = (at / groups, at % groups);
        (channel / TILE * padded_groups + group) * TILE + channel % TILE
    };
    for (at, nibbles) in matrix.nibbles.chunks_exact(GROUP_BYTES).enumerate() {
        weights[place(at) * GROUP_BYTES..][..GROUP_BYTES].copy_from_slice(nibbles);
    }
    let of_groups = |values: &[f32]| {
        let length = if values.is_empty() {
            0
        } else {
            channel_tiles * padded_groups * TILE
        };
        let mut placed = try_filled(WEIGHTS, length, 0.0)?;
        for (at, value) in values.iter().enumerate() {
            placed[place(at)] = *value;
        }
        Ok::<_, KernelError>(placed)
    };
    Ok(PackedWeights {
        kind: match has_minimums {
            true => WeightKind::Int4Minimums,
            false => WeightKind::Int4,
        },
        channels: matrix.rows,
        columns: matrix.columns,
        is_gated: false,
        weights,
        scales: of_groups(&matrix.scales)?,
        minimums: of_groups(&matrix.minimums)?,
    })
}
