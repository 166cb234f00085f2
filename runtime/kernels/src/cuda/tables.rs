//! What operations read besides the rows of a batch: weights, embeddings, angles. They are checked here, once.

use std::sync::Arc;

use super::check::fours;
use super::pack::TILE;
use super::{
    Address, Buffer, DeviceError, DeviceMemory, PackedWeights, RowKind, Stream, WeightKind,
};
use crate::{GROUP_COLUMNS, RotaryTable, WeightMatrix};

/// Packed weights on a device.
#[derive(Debug, Clone)]
pub struct DeviceMatrix {
    pub(super) kind: WeightKind,
    pub(super) channels: usize,
    pub(super) columns: usize,
    pub(super) is_gated: bool,
    pub(super) weights: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
    pub(super) minimums: Option<Buffer<f32>>,
}

impl DeviceMatrix {
    /// Copies packed weights. `what` is the name that an error gives them.
    ///
    /// # Errors
    /// [`DeviceError::Memory`], what the driver says.
    pub fn upload(
        stream: &mut Stream,
        what: &'static str,
        packed: &PackedWeights,
    ) -> Result<Self, DeviceError> {
        let minimums = match packed.kind {
            WeightKind::Int4Minimums => Some(Buffer::uploaded(stream, what, &packed.minimums)?),
            WeightKind::Int8 | WeightKind::Int4 => None,
        };
        Ok(Self {
            kind: packed.kind,
            channels: packed.channels,
            columns: packed.columns,
            is_gated: packed.is_gated,
            weights: Buffer::uploaded(stream, what, &packed.weights)?,
            scales: Buffer::uploaded(stream, what, &packed.scales)?,
            minimums,
        })
    }

    /// What the weights are.
    #[must_use]
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Output channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Input channels.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether channels of a gate and of what it gates take turns.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.is_gated
    }

    /// Whether products with rows of bytes need [`Activations`] with group sums.
    #[must_use]
    pub fn needs_group_sums(&self) -> bool {
        self.kind == WeightKind::Int4Minimums
    }

    /// Bytes of the device's memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let minimums = self.minimums.as_ref().map_or(0, Buffer::bytes);
        self.weights.bytes() + self.scales.bytes() + minimums
    }
}

/// The embeddings of all tokens on a device, row by row as they are stored.
#[derive(Debug, Clone)]
pub struct EmbeddingTable {
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) is_int4: bool,
    pub(super) weights: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
    pub(super) minimums: Option<Buffer<f32>>,
}

impl EmbeddingTable {
    /// Copies a matrix `[vocabulary, hidden]`.
    ///
    /// # Errors
    /// [`DeviceError::Weights`]: what [`WeightMatrix::validate`] refuses; [`DeviceError::Unsupported`] for rows that are not a multiple of
    /// 4 values; [`DeviceError::Memory`], what the driver says.
    pub fn upload(stream: &mut Stream, matrix: &WeightMatrix) -> Result<Self, DeviceError> {
        const WHAT: &str = "token embeddings";
        matrix.validate()?;
        fours("values of a token's embedding", matrix.columns())?;
        let (weights, scales, minimums) = match matrix {
            WeightMatrix::Int8(matrix) => (
                bytemuck::cast_slice(&matrix.values),
                &matrix.scales,
                [].as_slice(),
            ),
            WeightMatrix::Int4(matrix) => (
                matrix.nibbles.as_slice(),
                &matrix.scales,
                matrix.minimums.as_slice(),
            ),
        };
        let minimums = match minimums {
            [] => None,
            values => Some(Buffer::uploaded(stream, WHAT, values)?),
        };
        Ok(Self {
            vocabulary: matrix.rows(),
            hidden: matrix.columns(),
            is_int4: matches!(matrix, WeightMatrix::Int4(_)),
            weights: Buffer::uploaded(stream, WHAT, weights)?,
            scales: Buffer::uploaded(stream, WHAT, scales)?,
            minimums,
        })
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Values of an embedding.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Bytes of the device's memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let minimums = self.minimums.as_ref().map_or(0, Buffer::bytes);
        self.weights.bytes() + self.scales.bytes() + minimums
    }
}

/// Cosines and sines of every position on a device.
#[derive(Debug, Clone)]
pub struct Rotary {
    pub(super) positions: usize,
    pub(super) head_dim: usize,
    pub(super) values: Buffer<f32>,
}

impl Rotary {
    /// Copies a table.
    ///
    /// # Errors
    /// [`DeviceError::Memory`], what the driver says.
    pub fn upload(stream: &mut Stream, table: &RotaryTable) -> Result<Self, DeviceError> {
        Ok(Self {
            positions: table.positions,
            head_dim: table.head_dim,
            values: Buffer::uploaded(stream, "rotary angles", &table.values)?,
        })
    }

    /// Number of positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Size of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes of the device's memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.bytes()
    }
}

/// Rows as products take them, of any number of columns up to a limit: what [`Run::quantise`](super::Run::quantise) writes.
#[derive(Debug, Clone)]
pub struct Activations {
    pub(super) kind: RowKind,
    pub(super) rows: usize,
    /// A multiple of 128.
    pub(super) stride: usize,
    pub(super) values: Buffer<u8>,
    pub(super) scales: Option<Buffer<f32>>,
    pub(super) group_sums: Option<Buffer<i32>>,
}

impl Activations {
    /// Room for `rows` rows of up to `columns` values. Group sums are what [`DeviceMatrix::needs_group_sums`] asks for.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    pub fn new(
        memory: &Arc<DeviceMemory>,
        kind: RowKind,
        rows: usize,
        columns: usize,
        group_sums: bool,
    ) -> Result<Self, DeviceError> {
        const WHAT: &str = "quantised activations";
        let is_int8 = kind == RowKind::Int8;
        // What overflows is more than any device has.
        let stride = columns.checked_next_multiple_of(TILE).unwrap_or(usize::MAX);
        let padded_rows = rows.checked_next_multiple_of(TILE).unwrap_or(usize::MAX);
        let values = padded_rows.saturating_mul(stride);
        let bytes = values.saturating_mul(if is_int8 { 1 } else { 2 });
        let optional = |wanted: bool| wanted && is_int8;
        let scales = optional(true).then(|| Buffer::zeroed(memory, WHAT, padded_rows));
        let group_sums =
            optional(group_sums).then(|| Buffer::zeroed(memory, WHAT, values / GROUP_COLUMNS));
        Ok(Self {
            kind,
            rows,
            stride,
            values: Buffer::zeroed(memory, WHAT, bytes)?,
            scales: scales.transpose()?,
            group_sums: group_sums.transpose()?,
        })
    }

    /// What the rows are.
    #[must_use]
    pub fn kind(&self) -> RowKind {
        self.kind
    }

    /// The rows: bytes, or 16-bit brain floats. After [`Run::quantise`](super::Run::quantise) the distance of rows is their columns,
    /// padded with zeros to a multiple of 128.
    #[must_use]
    pub fn values(&self) -> &Buffer<u8> {
        &self.values
    }

    /// The scale of each row of bytes.
    #[must_use]
    pub fn scales(&self) -> Option<&Buffer<f32>> {
        self.scales.as_ref()
    }

    /// The sums of 32 bytes each, padding too.
    #[must_use]
    pub fn group_sums(&self) -> Option<&Buffer<i32>> {
        self.group_sums.as_ref()
    }

    /// Bytes of the device's memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, Buffer::bytes);
        let group_sums = self.group_sums.as_ref().map_or(0, Buffer::bytes);
        self.values.bytes() + scales + group_sums
    }
}

/// The address of a buffer, or null.
pub(super) fn address_of<T: bytemuck::Pod>(buffer: Option<&Buffer<T>>) -> Address {
    buffer.map_or_else(Address::default, Buffer::address)
}
