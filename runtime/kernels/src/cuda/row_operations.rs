//! Operations that work row by row.

use std::sync::Arc;

use super::arguments::{
    CoefficientsArguments, EmbedArguments, FORM_BF16, FORM_F32, FORM_INT8, GatherArguments,
    LOW_RANK_MAX, LabelArguments, QuantiseArguments,
};
use super::check::{at_least, at_most, exactly, fours, small};
use super::memory::Allocation;
use super::pack::TILE;
use super::tables::address_of;
use super::{
    Activations, Address, Buffer, DeviceError, EmbeddingTable, FactorTable, KernelSource,
    LabelTable, RowKind, RowSet, Run,
};

/// Rows, or queries, of a block of the kernels that work row by row: one for each warp.
const BLOCK_ROWS: usize = 4;
/// Shared memory of a block of `low_rank_coefficients`: the factors of its rows' norms.
const NORM_BYTES: u32 = 16;

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
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
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
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
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
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
        unsafe { self.launch(&source, grid, NORM_BYTES, &arguments, &memory) }
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
        fours("columns of rows", columns)?;
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
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
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
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
        unsafe { self.launch(&source, grid, 0, &arguments, &memory) }
    }

    fn check_input(
        &self,
        set: RowSet,
        input: Floats<'_>,
        norm: Option<Norm<'_>>,
    ) -> Result<(), DeviceError> {
        fours("columns of rows", input.columns)?;
        fours("values from row to row", input.stride)?;
        at_least("values from row to row", input.columns, input.stride)?;
        self.check_rows("rows", set, input.stride, input.values)?;
        match norm {
            Some(norm) => at_least("weights of a norm", input.columns, norm.weight.length()),
            None => Ok(()),
        }
    }

    fn row_grid(&self, set: RowSet) -> [u32; 3] {
        let blocks = self.class.rows_of(set).div_ceil(BLOCK_ROWS);
        // Rows of a class are at most 2^21.
        [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1]
    }
}
