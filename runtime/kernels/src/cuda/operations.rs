//! The operations: every size is checked against the buffers, then a kernel is launched.
//!
//! Grids are those of a class; how many rows there are in a batch stands in its header, in the device's memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use super::arguments::{
    AttentionArguments, CoefficientsArguments, EmbedArguments, FORM_BF16, FORM_F32, FORM_INT8,
    GatherArguments, LOW_RANK_MAX, LabelArguments, QuantiseArguments,
};
use super::check::{at_least, at_most, exactly, heads, multiple, small};
use super::memory::Allocation;
use super::pack::TILE;
use super::tables::address_of;
use super::variants::{THREADS, attention_shared_bytes};
use super::{
    Activations, Address, Batch, Buffer, Class, DeviceError, DeviceMatrix, DeviceMemory,
    EmbeddingTable, Epilogue, FactorTable, Handle, KernelSource, LabelTable, Launch,
    ProductVariant, QUERY_TILE, RowKind, RowSet, Stream, TOKEN_TILE, attention, common,
};
use crate::AttentionShape;

/// Rows, or queries, of a block of the kernels that work row by row: one for each warp.
const BLOCK_ROWS: usize = 4;
/// Shared memory of a block of `low_rank_coefficients`: the factors of its rows' norms.
const NORM_BYTES: u32 = 16;
/// Heads of a block of attention of query tiles.
const BLOCK_HEADS: usize = 4;

/// Rows of f32 values.
#[derive(Debug, Clone, Copy)]
pub struct Floats<'a> {
    /// The rows, one after the other.
    pub values: &'a Buffer<f32>,
    /// Values of a row that are taken.
    pub columns: usize,
    /// Values from row to row.
    pub stride: usize,
}

/// RMSNorm.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[columns]`.
    pub weight: &'a Buffer<f32>,
    /// What is added to the mean of squares.
    pub epsilon: f32,
}

/// Keys and values, f16 `[rows, kv_heads * head_dim]` each.
pub type KeysValuesBuffers<'a> = (&'a Buffer<u16>, &'a Buffer<u16>);

/// Where the keys and values of a layer stand.
#[derive(Debug, Clone, Copy)]
pub struct KeySources<'a> {
    /// Of the batch's rows.
    pub own: KeysValuesBuffers<'a>,
    /// Of the tasks' prefixes.
    pub prefixes: Option<KeysValuesBuffers<'a>>,
    /// Of shared beginnings.
    pub beginnings: Option<KeysValuesBuffers<'a>>,
}

/// Which rows attend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiles {
    /// Those of tokens.
    Tokens,
    /// Those of queries.
    Queries,
}

impl Tiles {
    fn rows(self) -> u32 {
        match self {
            Self::Tokens => TOKEN_TILE,
            Self::Queries => QUERY_TILE,
        }
    }
}

/// The kernels of one device.
#[derive(Debug)]
pub struct Operations {
    memory: Arc<DeviceMemory>,
    kernels: Mutex<HashMap<KernelSource, Handle>>,
}

impl Operations {
    /// No kernel is compiled yet.
    #[must_use]
    pub fn new(memory: &Arc<DeviceMemory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            kernels: Mutex::default(),
        }
    }

    /// Compiles kernels, so that none has to be while a graph is captured.
    ///
    /// # Errors
    /// [`DeviceError::Compile`], what the driver says.
    pub fn prepare(&self, sources: &[KernelSource]) -> Result<(), DeviceError> {
        sources
            .iter()
            .try_for_each(|source| self.kernel(source, false).map(|_handle| ()))
    }

    /// Compiles the kernels that all models need.
    ///
    /// # Errors
    /// As [`Operations::prepare`].
    pub fn prepare_common(&self) -> Result<(), DeviceError> {
        self.prepare(&common())
    }

    /// Compiles the products of a matrix for classes of these numbers of rows.
    ///
    /// # Errors
    /// As [`Operations::prepare`].
    pub fn prepare_products(
        &self,
        matrix: &DeviceMatrix,
        rows: RowKind,
        epilogue: Epilogue,
        low_rank: bool,
        counts: impl IntoIterator<Item = usize>,
    ) -> Result<(), DeviceError> {
        for count in counts {
            let variant = self.variant(matrix.kind, rows, epilogue, low_rank, count);
            self.prepare(&[variant.source()])?;
        }
        Ok(())
    }

    /// Compiles attention.
    ///
    /// # Errors
    /// As [`Operations::prepare`]; [`DeviceError::Unsupported`] for heads that the kernels cannot work with.
    pub fn prepare_attention(&self, shape: AttentionShape) -> Result<(), DeviceError> {
        heads(shape)?;
        let head_dim = small("values of a head", shape.head_dim)?;
        self.prepare(&[TOKEN_TILE, QUERY_TILE].map(|tile| attention(head_dim, tile)))
    }

    /// The operations for a batch of a class, asked of a stream.
    ///
    /// # Errors
    /// [`DeviceError::Size`] for a class that is larger than what the batch has room for.
    pub fn on<'a>(
        &'a self,
        stream: &'a mut Stream,
        batch: &'a Batch,
        class: Class,
    ) -> Result<Run<'a>, DeviceError> {
        batch.capacity().check(&class)?;
        Ok(Run {
            operations: self,
            stream,
            batch,
            class,
        })
    }

    pub(super) fn variant(
        &self,
        weights: super::WeightKind,
        rows: RowKind,
        epilogue: Epilogue,
        low_rank: bool,
        count: usize,
    ) -> ProductVariant {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let capability = self.memory.facts().capability;
        ProductVariant::choose(weights, rows, epilogue, low_rank, count, capability)
    }

    fn kernel(&self, source: &KernelSource, is_capturing: bool) -> Result<Handle, DeviceError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = kernels.get(source) {
            return Ok(*handle);
        }
        if is_capturing {
            return Err(DeviceError::Order {
                what: "a kernel that is captured has to be prepared before",
            });
        }
        let handle = self.memory.device().kernel(source)?;
        kernels.insert(source.clone(), handle);
        Ok(handle)
    }
}

/// The operations for one batch.
#[derive(Debug)]
pub struct Run<'a> {
    pub(super) operations: &'a Operations,
    stream: &'a mut Stream,
    pub(super) batch: &'a Batch,
    pub(super) class: Class,
}

impl Run<'_> {
    /// Fills `residual` `[rows, hidden]`: embeddings of tokens, then rows of `query_embeddings`.
    ///
    /// # Errors
    /// [`DeviceError::Size`], what the driver says.
    pub fn embed(
        &mut self,
        table: &EmbeddingTable,
        query_embeddings: &Buffer<f32>,
        residual: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let (hidden, bounds) = (table.hidden, *self.batch.bounds());
        at_most("tokens of a batch", table.vocabulary, bounds.vocabulary)?;
        let embeddings = bounds.query_embeddings.saturating_mul(hidden);
        at_least("query embeddings", embeddings, query_embeddings.length())?;
        self.check_rows("residual stream", RowSet::All, hidden, residual)?;
        let weights = table.weights.address();
        let (token_values, token_nibbles) = match table.is_int4 {
            false => (weights, Address::default()),
            true => (Address::default(), weights),
        };
        let arguments = EmbedArguments {
            header: self.batch.header(),
            row_index: self.batch.address(self.batch.sections().row_index),
            token_values,
            token_nibbles,
            token_scales: table.scales.address(),
            token_minimums: address_of(table.minimums.as_ref()),
            query_embeddings: query_embeddings.address(),
            residual: residual.address(),
            hidden: small("hidden size", hidden)?,
            reserved: 0,
        };
        let mut memory = vec![
            table.weights.allocation(),
            table.scales.allocation(),
            query_embeddings.allocation(),
            residual.allocation(),
        ];
        memory.extend(table.minimums.as_ref().map(Buffer::allocation));
        let grid = self.row_grid(RowSet::All);
        // SAFETY: sizes are checked above against rows of the batch's capacity, and numbers in its lists against what is indexed.
        unsafe { self.launch(&KernelSource::rows("embed"), grid, 0, &arguments, &memory) }
    }

    /// Rows as products take them, after a norm if there is one.
    ///
    /// # Errors
    /// [`DeviceError::Size`]; [`DeviceError::Unsupported`] for rows that are not a multiple of 4 values; what the driver says.
    pub fn quantise(
        &mut self,
        set: RowSet,
        input: Floats<'_>,
        norm: Option<Norm<'_>>,
        output: &Activations,
    ) -> Result<(), DeviceError> {
        let stride = input.columns.next_multiple_of(TILE);
        at_least("columns of activations", stride, output.stride)?;
        at_least("rows of activations", self.row_end(set), output.rows)?;
        let mut memory = vec![output.values.allocation()];
        memory.extend(output.scales.as_ref().map(Buffer::allocation));
        memory.extend(output.group_sums.as_ref().map(Buffer::allocation));
        let arguments = QuantiseArguments {
            values: output.values.address(),
            scales: address_of(output.scales.as_ref()),
            group_sums: address_of(output.group_sums.as_ref()),
            stride: small("columns of activations", stride)?,
            form: match output.kind {
                RowKind::Int8 => FORM_INT8,
                RowKind::Bf16 => FORM_BF16,
            },
            ..QuantiseArguments::default()
        };
        self.launch_quantise(set, input, norm, arguments, memory)
    }

    /// RMSNorm of rows, to f32 `[rows, columns]`.
    ///
    /// # Errors
    /// As [`Run::quantise`].
    pub fn normalise(
        &mut self,
        set: RowSet,
        input: Floats<'_>,
        norm: Norm<'_>,
        output: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        self.check_rows("normalised rows", set, input.columns, output)?;
        let arguments = QuantiseArguments {
            values: output.address(),
            stride: small("columns of rows", input.columns)?,
            form: FORM_F32,
            ..QuantiseArguments::default()
        };
        self.launch_quantise(set, input, Some(norm), arguments, vec![output.allocation()])
    }

    /// The output is checked by the caller.
    fn launch_quantise<'b>(
        &mut self,
        set: RowSet,
        input: Floats<'b>,
        norm: Option<Norm<'b>>,
        output: QuantiseArguments,
        mut memory: Vec<&'b Arc<Allocation>>,
    ) -> Result<(), DeviceError> {
        self.check_input(set, input, norm)?;
        let arguments = QuantiseArguments {
            header: self.batch.header(),
            input: input.values.address(),
            weight: address_of(norm.map(|norm| norm.weight)),
            epsilon: norm.map_or(0.0, |norm| norm.epsilon),
            columns: small("columns of rows", input.columns)?,
            input_stride: small("columns of rows", input.stride)?,
            row_set: set as u32,
            ..output
        };
        memory.push(input.values.allocation());
        memory.extend(norm.map(|norm| norm.weight.allocation()));
        let grid = self.row_grid(set);
        // SAFETY: sizes are checked here and by the callers against rows of the batch's capacity.
        unsafe {
            self.launch(
                &KernelSource::rows("quantise"),
                grid,
                0,
                &arguments,
                &memory,
            )
        }
    }

    /// The products of rows with the first low-rank factors of their tasks, `[rows, LOW_RANK_MAX]`; rows of tasks without factors stay
    /// as they are.
    ///
    /// # Errors
    /// As [`Run::quantise`].
    pub fn coefficients(
        &mut self,
        set: RowSet,
        input: Floats<'_>,
        norm: Option<Norm<'_>>,
        table: &FactorTable,
        coefficients: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        self.check_input(set, input, norm)?;
        exactly(
            "input channels of low-rank factors",
            input.columns,
            table.inputs,
        )?;
        self.check_rows("coefficients", set, LOW_RANK_MAX, coefficients)?;
        let arguments = CoefficientsArguments {
            header: self.batch.header(),
            input: input.values.address(),
            weight: address_of(norm.map(|norm| norm.weight)),
            row_task: self.row_task(set),
            factors: self.factors(table)?,
            coefficients: coefficients.address(),
            epsilon: norm.map_or(0.0, |norm| norm.epsilon),
            columns: small("columns of rows", input.columns)?,
            input_stride: small("columns of rows", input.stride)?,
            row_set: set as u32,
        };
        let mut memory = vec![input.values.allocation(), coefficients.allocation()];
        memory.extend(norm.map(|norm| norm.weight.allocation()));
        memory.extend(table.allocations());
        let (grid, source) = (self.row_grid(set), KernelSource::low_rank_coefficients());
        // SAFETY: sizes are checked above against rows of the batch's capacity, and tasks of rows against the table.
        unsafe { self.launch(&source, grid, NORM_BYTES, &arguments, &memory) }
    }

    /// Attention of tiles of rows: f32 `[rows, heads * head_dim]` from f16 queries of the same size.
    ///
    /// # Errors
    /// [`DeviceError::Size`]; [`DeviceError::Unsupported`] for heads that the kernels cannot work with; what the driver says.
    pub fn attend(
        &mut self,
        tiles: Tiles,
        shape: AttentionShape,
        queries: &Buffer<u16>,
        sources: KeySources<'_>,
        output: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        heads(shape)?;
        let (query_size, key_size) = (shape.query_size(), shape.key_size());
        self.check_rows("queries", RowSet::All, query_size, queries)?;
        self.check_rows("attention", RowSet::All, query_size, output)?;
        let bounds = self.batch.bounds();
        let rows = [
            self.batch.capacity().rows(),
            bounds.prefix_rows,
            bounds.beginning_rows,
        ];
        let (mut keys, mut values) = ([Address::default(); 3], [Address::default(); 3]);
        let mut memory = vec![queries.allocation(), output.allocation()];
        let sources = [Some(sources.own), sources.prefixes, sources.beginnings];
        for (at, (source, rows)) in sources.into_iter().zip(rows).enumerate() {
            let expected = rows.saturating_mul(key_size);
            let lengths = source.map_or([0; 2], |(keys, values)| [keys.length(), values.length()]);
            at_least("keys of a source", expected, lengths[0])?;
            at_least("values of a source", expected, lengths[1])?;
            keys[at] = address_of(source.map(|source| source.0));
            values[at] = address_of(source.map(|source| source.1));
            memory.extend(source.map(|source| source.0.allocation()));
            memory.extend(source.map(|source| source.1.allocation()));
        }
        let sections = self.batch.sections();
        let (list, count, blocks) = match tiles {
            Tiles::Tokens => (sections.token_tiles, self.class.token_tiles, shape.heads),
            Tiles::Queries => {
                let blocks = shape.heads.div_ceil(BLOCK_HEADS);
                (sections.query_tiles, self.class.query_tiles, blocks)
            }
        };
        let arguments = AttentionArguments {
            header: self.batch.header(),
            tiles: self.batch.address(list),
            queries: queries.address(),
            keys,
            values,
            output: output.address(),
            score_factor: std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt(),
            heads: small("heads", shape.heads)?,
            kv_heads: small("heads of keys", shape.kv_heads)?,
            reserved: 0,
        };
        let head_dim = small("values of a head", shape.head_dim)?;
        let grid = [small("tiles", count)?, small("heads", blocks)?, 1];
        let shared = attention_shared_bytes(head_dim, tiles.rows());
        let source = attention(head_dim, tiles.rows());
        // SAFETY: sizes are checked above against rows of the batch's capacity, and what tiles see against its bounds.
        unsafe { self.launch(&source, grid, shared, &arguments, &memory) }
    }

    /// Moves the last row of each query of `from` `[rows, columns]` to `to` `[queries, columns]`.
    ///
    /// # Errors
    /// As [`Run::quantise`].
    pub fn gather(
        &mut self,
        from: &Buffer<f32>,
        columns: usize,
        to: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        multiple("columns of rows", 4, columns)?;
        self.check_rows("rows to gather", RowSet::All, columns, from)?;
        self.check_rows("gathered rows", RowSet::Last, columns, to)?;
        let arguments = GatherArguments {
            header: self.batch.header(),
            last_rows: self.batch.address(self.batch.sections().last_rows),
            from: from.address(),
            to: to.address(),
            stride: small("columns of rows", columns)?,
            reserved: 0,
        };
        let memory = [from.allocation(), to.allocation()];
        let grid = self.row_grid(RowSet::Last);
        // SAFETY: sizes are checked above against the batch's capacity, and last rows against its rows.
        unsafe { self.launch(&KernelSource::rows("gather"), grid, 0, &arguments, &memory) }
    }

    /// For each query, from its state `[queries, hidden]`, the likeliest child of its node, and the probabilities of all of them
    /// `[queries, probability_stride]`.
    ///
    /// # Errors
    /// [`DeviceError::Size`], what the driver says.
    pub fn label_scores(
        &mut self,
        states: &Buffer<f32>,
        table: &LabelTable,
        best: &Buffer<u32>,
        probabilities: &Buffer<f32>,
        probability_stride: usize,
    ) -> Result<(), DeviceError> {
        let nodes = self.batch.bounds().nodes;
        at_most("nodes of a batch", table.nodes(), nodes)?;
        at_least(
            "probabilities of a query",
            table.children_max,
            probability_stride,
        )?;
        self.check_rows("states", RowSet::Last, table.hidden, states)?;
        self.check_rows("best labels", RowSet::Last, 1, best)?;
        self.check_rows(
            "probabilities",
            RowSet::Last,
            probability_stride,
            probabilities,
        )?;
        let arguments = LabelArguments {
            header: self.batch.header(),
            states: states.address(),
            query_node: self.batch.address(self.batch.sections().query_node),
            nodes: table.nodes.address(),
            children: table.children.address(),
            label_weight: table.label_weight.address(),
            best: best.address(),
            probabilities: probabilities.address(),
            hidden: small("hidden size", table.hidden)?,
            probability_stride: small("probabilities of a query", probability_stride)?,
        };
        let memory = [
            states.allocation(),
            table.nodes.allocation(),
            table.children.allocation(),
            table.label_weight.allocation(),
            best.allocation(),
            probabilities.allocation(),
        ];
        let grid = [small("queries", self.class.queries)?, 1, 1];
        let source = KernelSource::label_scores();
        // SAFETY: sizes are checked above against the batch's capacity, nodes against its bounds, children by the table.
        unsafe { self.launch(&source, grid, 0, &arguments, &memory) }
    }

    /// One past the last row that a batch can have of these.
    pub(super) fn row_end(&self, set: RowSet) -> usize {
        let capacity = self.batch.capacity();
        match set {
            // They come after those of tokens.
            RowSet::Queries => capacity.rows(),
            RowSet::All | RowSet::Tokens | RowSet::Last => capacity.rows_of(set),
        }
    }

    pub(super) fn check_rows<T: Pod>(
        &self,
        what: &'static str,
        set: RowSet,
        columns: usize,
        values: &Buffer<T>,
    ) -> Result<(), DeviceError> {
        let rows = self.row_end(set);
        at_least(what, rows.saturating_mul(columns), values.length())
    }

    fn check_input(
        &self,
        set: RowSet,
        input: Floats<'_>,
        norm: Option<Norm<'_>>,
    ) -> Result<(), DeviceError> {
        multiple("columns of rows", 4, input.columns)?;
        multiple("values from row to row", 4, input.stride)?;
        at_least("values from row to row", input.columns, input.stride)?;
        self.check_rows("rows", set, input.stride, input.values)?;
        match norm {
            Some(norm) => at_least("weights of a norm", input.columns, norm.weight.length()),
            None => Ok(()),
        }
    }

    /// The list of tasks that goes with these rows.
    pub(super) fn row_task(&self, set: RowSet) -> Address {
        let sections = self.batch.sections();
        self.batch.address(match set {
            RowSet::Last => sections.last_task,
            RowSet::All | RowSet::Tokens | RowSet::Queries => sections.row_task,
        })
    }

    /// The entries of a table that has all tasks of the batch.
    pub(super) fn factors(&self, table: &FactorTable) -> Result<Address, DeviceError> {
        let tasks = self.batch.bounds().tasks;
        at_least("tasks with low-rank factors", tasks, table.tasks())?;
        Ok(table.entries.address())
    }

    fn row_grid(&self, set: RowSet) -> [u32; 3] {
        let blocks = self.class.rows_of(set).div_ceil(BLOCK_ROWS);
        // Rows of a class are at most 2^21.
        [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1]
    }

    /// # Safety
    /// The arguments are the kernel's, and what it reads and writes lies in `memory` and in the batch's lists.
    unsafe fn launch<A: Pod>(
        &mut self,
        source: &KernelSource,
        grid: [u32; 3],
        shared_bytes: u32,
        arguments: &A,
        memory: &[&Arc<Allocation>],
    ) -> Result<(), DeviceError> {
        let launch = Launch {
            grid,
            threads: THREADS,
            shared_bytes,
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch_sized(source, launch, arguments, memory) }
    }

    /// # Safety
    /// As [`Run::launch`].
    pub(super) unsafe fn launch_sized<A: Pod>(
        &mut self,
        source: &KernelSource,
        launch: Launch,
        arguments: &A,
        memory: &[&Arc<Allocation>],
    ) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let most = self.operations.memory.facts().shared_bytes_max;
        if launch.shared_bytes > most {
            return Err(DeviceError::Unsupported {
                what: "bytes of shared memory",
                limit: "what the device has",
                found: launch.shared_bytes as usize,
            });
        }
        if !Arc::ptr_eq(&self.operations.memory, self.stream.memory()) {
            return Err(DeviceError::Order {
                what: "a stream of another device than the operations'",
            });
        }
        let kernel = self.operations.kernel(source, self.stream.is_capturing())?;
        let mut held = memory.to_vec();
        held.push(self.batch.allocation());
        let arguments = bytemuck::bytes_of(arguments);
        // SAFETY: the caller's promise; `held` has all of it.
        unsafe { self.stream.launch(kernel, launch, arguments, &held) }
    }
}
