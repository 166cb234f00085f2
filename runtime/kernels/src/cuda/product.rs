//! Products of rows with packed weights.

use super::arguments::{LOW_RANK_MAX, ProductArguments};
use super::check::{at_least, exactly, heads, small};
use super::pack::TILE;
use super::tables::address_of;
use super::variants::TILE_CHANNELS;
use super::{
    Activations, Buffer, DeviceError, DeviceMatrix, Epilogue, FactorTable, Launch, Rotary, RowKind,
    RowSet, Run,
};
use crate::AttentionShape;

/// What a product does with its result.
#[derive(Debug, Clone, Copy)]
pub enum Then<'a> {
    /// Writes it to `[rows, channels]`.
    Store(&'a Buffer<f32>),
    /// Adds it to `[rows, channels]`.
    Add(&'a Buffer<f32>),
    /// Writes `silu(gate) * up` to `[rows, channels / 2]`.
    Gated(&'a Buffer<f32>),
    /// Queries and keys rotated, values as they are.
    Rotary(Rotated<'a>),
}

/// Where queries, keys and values go, as 16-bit floats.
#[derive(Debug, Clone, Copy)]
pub struct Rotated<'a> {
    /// `[rows, heads * head_dim]`.
    pub queries: &'a Buffer<u16>,
    /// `[rows, kv_heads * head_dim]`.
    pub keys: &'a Buffer<u16>,
    /// `[rows, kv_heads * head_dim]`.
    pub values: &'a Buffer<u16>,
    /// Angles of the rows' positions.
    pub rotary: &'a Rotary,
    /// Sizes of heads.
    pub shape: AttentionShape,
    /// Whether queries are left out.
    pub keys_only: bool,
}

/// What is added to the products of rows of tasks with low-rank factors.
#[derive(Debug, Clone, Copy)]
pub struct LowRankRows<'a> {
    /// `[rows, LOW_RANK_MAX]`, from [`Run::coefficients`] of the same rows.
    pub coefficients: &'a Buffer<f32>,
    /// The factors.
    pub factors: &'a FactorTable,
}

impl Then<'_> {
    fn epilogue(&self) -> Epilogue {
        match self {
            Self::Store(_) => Epilogue::Store,
            Self::Add(_) => Epilogue::Add,
            Self::Gated(_) => Epilogue::Gated,
            Self::Rotary(_) => Epilogue::Rotary,
        }
    }
}

impl Run<'_> {
    /// The product of rows with a matrix.
    ///
    /// # Errors
    /// [`DeviceError::Size`]; [`DeviceError::Unsupported`] for heads that the kernels cannot work with; [`DeviceError::Order`] for a gated
    /// product of weights that were not packed for it, or the other way round; what the driver says.
    pub fn product(
        &mut self,
        set: RowSet,
        rows: &Activations,
        matrix: &DeviceMatrix,
        then: Then<'_>,
        low_rank: Option<LowRankRows<'_>>,
    ) -> Result<(), DeviceError> {
        let columns = matrix.columns.next_multiple_of(TILE);
        at_least("columns of activations", columns, rows.stride)?;
        at_least("rows of activations", self.row_end(set), rows.rows)?;
        let is_int8 = rows.kind == RowKind::Int8;
        if is_int8 && matrix.needs_group_sums() && rows.group_sums.is_none() {
            return Err(DeviceError::Order {
                what: "4-bit weights with minimums take activations with group sums",
            });
        }
        if matrix.is_gated != matches!(then, Then::Gated(_)) {
            return Err(DeviceError::Order {
                what: "gated products take weights that are packed as gated, others do not",
            });
        }
        let mut arguments = ProductArguments {
            header: self.batch.header(),
            rows: rows.values.address(),
            row_scales: address_of(rows.scales.as_ref()),
            group_sums: address_of(rows.group_sums.as_ref()),
            weights: matrix.weights.address(),
            scales: matrix.scales.address(),
            minimums: address_of(matrix.minimums.as_ref()),
            columns: small("input channels", columns)?,
            channels: small("output channels", matrix.channels)?,
            row_set: set as u32,
            ..ProductArguments::default()
        };
        let mut memory = vec![
            rows.values.allocation(),
            matrix.weights.allocation(),
            matrix.scales.allocation(),
        ];
        memory.extend(rows.scales.as_ref().map(Buffer::allocation));
        memory.extend(rows.group_sums.as_ref().map(Buffer::allocation));
        memory.extend(matrix.minimums.as_ref().map(Buffer::allocation));
        match then {
            Then::Store(output) | Then::Add(output) | Then::Gated(output) => {
                let stride = matrix.channels / if matrix.is_gated { 2 } else { 1 };
                self.check_rows("results of a product", set, stride, output)?;
                arguments.output = output.address();
                arguments.output_stride = small("output channels", stride)?;
                memory.push(output.allocation());
            }
            Then::Rotary(rotated) => {
                self.set_rotated(set, matrix, &rotated, &mut arguments)?;
                memory.extend([
                    rotated.queries.allocation(),
                    rotated.keys.allocation(),
                    rotated.values.allocation(),
                    rotated.rotary.values.allocation(),
                ]);
            }
        }
        if let Some(LowRankRows {
            coefficients,
            factors,
        }) = low_rank
        {
            self.check_rows("coefficients", set, LOW_RANK_MAX, coefficients)?;
            exactly(
                "input channels of low-rank factors",
                matrix.columns,
                factors.inputs,
            )?;
            exactly(
                "output channels of low-rank factors",
                matrix.channels,
                factors.outputs,
            )?;
            arguments.coefficients = coefficients.address();
            arguments.row_task = self.row_task(set);
            arguments.factors = self.factors(factors)?;
            memory.push(coefficients.allocation());
            memory.extend(factors.allocations());
        }
        let count = self.class.rows_of(set);
        let (epilogue, low_rank) = (then.epilogue(), low_rank.is_some());
        let operations = self.operations;
        let variant = operations.variant(matrix.kind, rows.kind, epilogue, low_rank, count);
        let row_tiles = small("rows", count)?.div_ceil(variant.tile_rows);
        let launch = Launch {
            grid: [arguments.channels.div_ceil(TILE_CHANNELS), row_tiles, 1],
            threads: variant.threads(),
            shared_bytes: variant.shared_bytes(),
        };
        // SAFETY: sizes are checked above against rows of the batch's capacity, positions and tasks of rows against the tables; weights are
        // as long as `pack.rs` makes them.
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
        unsafe { self.launch_sized(&variant.source(), launch, &arguments, &memory) }
    }

    fn set_rotated(
        &self,
        set: RowSet,
        matrix: &DeviceMatrix,
        rotated: &Rotated<'_>,
        arguments: &mut ProductArguments,
    ) -> Result<(), DeviceError> {
        let shape = rotated.shape;
        heads(shape)?;
        let (query_size, key_size) = (shape.query_size(), shape.key_size());
        exactly(
            "channels of queries, keys and values",
            shape.row_size(),
            matrix.channels,
        )?;
        exactly(
            "values of a head of angles",
            shape.head_dim,
            rotated.rotary.head_dim,
        )?;
        let positions = self.batch.bounds().positions;
        at_least("positions of angles", positions, rotated.rotary.positions)?;
        self.check_rows("queries", set, query_size, rotated.queries)?;
        self.check_rows("keys", set, key_size, rotated.keys)?;
        self.check_rows("values", set, key_size, rotated.values)?;
        arguments.queries = rotated.queries.address();
        arguments.keys = rotated.keys.address();
        arguments.values = rotated.values.address();
        arguments.rotary = rotated.rotary.values.address();
        arguments.positions = self.batch.address(self.batch.sections().positions);
        arguments.query_size = small("size of queries", query_size)?;
        arguments.key_size = small("size of keys", key_size)?;
        arguments.head_dim = small("values of a head", shape.head_dim)?;
        if rotated.keys_only {
            arguments.first_channel = arguments.query_size;
        }
        Ok(())
    }
}
