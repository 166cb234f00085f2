//! One batch through all layers: what is asked of a device, in order.

use std::sync::Arc;

use trafficllm_kernels::cuda::{
    Activations, Buffer, Class, DeviceError, DeviceMemory, FactorTable, Floats, KeySources,
    KeysValuesBuffers, LOW_RANK_MAX, LowRankRows, Norm, Rotated, RowSet, Run, Then, Tiles,
};

use super::weights::Layer;
use super::{DeviceBeginning, DeviceTransformer};

/// Indices of a layer's tables of low-rank factors, as in [`TaskLora::factors`](crate::transformer::TaskLora::factors).
const QUERY_KEY_VALUE: usize = 0;
const OUTPUT: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

/// What errors call the buffers.
const BUFFERS: &str = "buffers of a forward pass";

/// Everything that rows become on their way.
#[derive(Debug)]
pub(super) struct Buffers {
    /// `[rows, hidden]` f32 residual stream.
    residual: Buffer<f32>,
    /// The input of the next product.
    activations: Activations,
    /// `[rows, query size]` 16-bit floats.
    queries: Buffer<u16>,
    /// `[rows, key size]` 16-bit floats.
    keys: Buffer<u16>,
    values: Buffer<u16>,
    /// `[rows, query size]` f32.
    attended: Buffer<f32>,
    /// `[rows, feed_forward]` f32.
    gated: Buffer<f32>,
    /// `[rows, LOW_RANK_MAX]` f32, where any task has low-rank additions.
    coefficients: Option<Buffer<f32>>,
    /// `[queries, query size]` and `[queries, hidden]` f32: what the last layer goes on with.
    last_attended: Buffer<f32>,
    last_residual: Buffer<f32>,
    /// `[queries, hidden]` f32.
    pub(super) states: Buffer<f32>,
}

impl Buffers {
    /// Buffers for batches of at most that class.
    pub(super) fn new(model: &DeviceTransformer, capacity: &Class) -> Result<Self, DeviceError> {
        let (config, memory) = (&model.config, &model.memory);
        let (rows, queries) = (capacity.rows(), capacity.queries);
        let (query_size, key_size) = (config.query_size(), config.key_size());
        let widest = config.hidden.max(query_size).max(config.feed_forward);
        let mut matrices = model.layers.iter().flat_map(Layer::matrices);
        let group_sums = matrices.any(|matrix| matrix.needs_group_sums());
        let activations = Activations::new(memory, model.activations, rows, widest, group_sums)?;
        let has_lora = !model.tasks.factors.is_empty();
        let coefficients = has_lora.then(|| floats(memory, rows, LOW_RANK_MAX));
        Ok(Self {
            residual: floats(memory, rows, config.hidden)?,
            activations,
            queries: halves(memory, rows, query_size)?,
            keys: halves(memory, rows, key_size)?,
            values: halves(memory, rows, key_size)?,
            attended: floats(memory, rows, query_size)?,
            gated: floats(memory, rows, config.feed_forward)?,
            coefficients: coefficients.transpose()?,
            last_attended: floats(memory, queries, query_size)?,
            last_residual: floats(memory, queries, config.hidden)?,
            states: floats(memory, queries, config.hidden)?,
        })
    }

    /// Bytes of the device's memory.
    pub(super) fn bytes(&self) -> usize {
        let floats = [
            &self.residual,
            &self.attended,
            &self.gated,
            &self.last_attended,
            &self.last_residual,
            &self.states,
        ];
        let floats = floats.into_iter().chain(&self.coefficients);
        let halves = [&self.queries, &self.keys, &self.values];
        floats.map(Buffer::bytes).sum::<usize>()
            + halves.map(Buffer::bytes).iter().sum::<usize>()
            + self.activations.bytes()
    }
}

fn floats(
    memory: &Arc<DeviceMemory>,
    rows: usize,
    columns: usize,
) -> Result<Buffer<f32>, DeviceError> {
    Buffer::zeroed(memory, BUFFERS, rows.saturating_mul(columns))
}

fn halves(
    memory: &Arc<DeviceMemory>,
    rows: usize,
    columns: usize,
) -> Result<Buffer<u16>, DeviceError> {
    Buffer::zeroed(memory, BUFFERS, rows.saturating_mul(columns))
}

/// What a pass is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// The final state of the last row of each query; all sequences follow the beginning.
    Queries(Option<&'a DeviceBeginning>),
    /// The keys and values of all tokens.
    Beginning(&'a DeviceBeginning),
}

/// A pass that is being asked for.
pub(super) struct Pass<'a, 'r> {
    pub(super) model: &'a DeviceTransformer,
    pub(super) buffers: &'a Buffers,
    pub(super) run: Run<'r>,
    pub(super) purpose: Purpose<'a>,
    pub(super) has_lora: bool,
}

impl<'a> Pass<'a, '_> {
    /// Asks for all of it; leaves the states in the buffers.
    pub(super) fn ask(mut self) -> Result<(), DeviceError> {
        let (model, buffers) = (self.model, self.buffers);
        let embeddings = &model.tasks.embeddings;
        let table = &model.base.token_embedding;
        self.run.embed(table, embeddings, &buffers.residual)?;
        let last = model.layers.len().saturating_sub(1);
        for (index, layer) in model.layers.iter().enumerate() {
            let is_last = index == last;
            self.project(index, layer, is_last)?;
            if is_last && matches!(self.purpose, Purpose::Beginning(_)) {
                return Ok(());
            }
            self.attend(index, is_last)?;
            self.finish(index, layer, is_last)?;
        }
        let output = Norm {
            weight: &model.base.output_norm,
            epsilon: model.config.rms_epsilon,
        };
        let residual = rows_of(&buffers.last_residual, model.config.hidden);
        self.run
            .normalise(RowSet::Last, residual, output, &buffers.states)
    }

    /// Norm, query, key and value of all rows; in the last layer only key and value of tokens.
    fn project(&mut self, index: usize, layer: &Layer, is_last: bool) -> Result<(), DeviceError> {
        let (model, buffers) = (self.model, self.buffers);
        let residual = rows_of(&buffers.residual, model.config.hidden);
        let norm = Norm {
            weight: &layer.attention_norm,
            epsilon: model.config.rms_epsilon,
        };
        self.run
            .quantise(RowSet::All, residual, Some(norm), &buffers.activations)?;
        let low_rank = self.coefficients(
            RowSet::Queries,
            residual,
            Some(norm),
            (index, QUERY_KEY_VALUE),
        )?;
        let (keys, values) = self.own_keys(index);
        let then = |keys_only| {
            Then::Rotary(Rotated {
                queries: &buffers.queries,
                keys,
                values,
                rotary: &model.base.rotary,
                shape: model.shape,
                keys_only,
            })
        };
        let (activations, matrix) = (&buffers.activations, &layer.query_key_value);
        let rows = if is_last {
            self.run
                .product(RowSet::Tokens, activations, matrix, then(true), None)?;
            RowSet::Queries
        } else {
            RowSet::All
        };
        self.run
            .product(rows, activations, matrix, then(false), low_rank)
    }

    /// Attention of all rows; in the last layer only of query rows.
    fn attend(&mut self, index: usize, is_last: bool) -> Result<(), DeviceError> {
        let (model, buffers) = (self.model, self.buffers);
        let beginnings = match self.purpose {
            Purpose::Queries(beginning) => beginning.and_then(|beginning| beginning.layer(index)),
            Purpose::Beginning(_) => None,
        };
        let prefixes = match &model.tasks.prefixes {
            Some((keys, values)) => {
                let size = model.tasks.prefix_rows * model.config.key_size();
                let part = index * size..(index + 1) * size;
                Some((keys.part(part.clone())?, values.part(part)?))
            }
            None => None,
        };
        let own = self.own_keys(index);
        let sources = KeySources {
            own,
            prefixes: prefixes.as_ref().map(|(keys, values)| (keys, values)),
            // Where no sequence follows a beginning nobody looks there, but the batch was made for one.
            beginnings: beginnings.or(Some(own)),
        };
        let (queries, output) = (&buffers.queries, &buffers.attended);
        if !is_last {
            self.run
                .attend(Tiles::Tokens, model.shape, queries, sources, output)?;
        }
        self.run
            .attend(Tiles::Queries, model.shape, queries, sources, output)
    }

    /// Attention output, norm and gated MLP, added to the residual stream; in the last layer of the last row of each query.
    fn finish(&mut self, index: usize, layer: &Layer, is_last: bool) -> Result<(), DeviceError> {
        let (model, buffers) = (self.model, self.buffers);
        let (hidden, query_size) = (model.config.hidden, model.config.query_size());
        let (rows, with_factors, attended, residual) = if is_last {
            let (attended, residual) = (&buffers.last_attended, &buffers.last_residual);
            self.run.gather(&buffers.attended, query_size, attended)?;
            self.run.gather(&buffers.residual, hidden, residual)?;
            (RowSet::Last, RowSet::Last, attended, residual)
        } else {
            let (attended, residual) = (&buffers.attended, &buffers.residual);
            (RowSet::All, RowSet::Queries, attended, residual)
        };
        let activations = &buffers.activations;
        let attended = rows_of(attended, query_size);
        self.run.quantise(rows, attended, None, activations)?;
        let low_rank = self.coefficients(with_factors, attended, None, (index, OUTPUT))?;
        self.run.product(
            rows,
            activations,
            &layer.output,
            Then::Add(residual),
            low_rank,
        )?;
        let norm = Norm {
            weight: &layer.mlp_norm,
            epsilon: model.config.rms_epsilon,
        };
        let normed = rows_of(residual, hidden);
        self.run.quantise(rows, normed, Some(norm), activations)?;
        let low_rank = self.coefficients(with_factors, normed, Some(norm), (index, GATE_UP))?;
        let then = Then::Gated(&buffers.gated);
        self.run
            .product(rows, activations, &layer.gate_up, then, low_rank)?;
        let gated = rows_of(&buffers.gated, model.config.feed_forward);
        self.run.quantise(rows, gated, None, activations)?;
        let low_rank = self.coefficients(with_factors, gated, None, (index, DOWN))?;
        self.run.product(
            rows,
            activations,
            &layer.down,
            Then::Add(residual),
            low_rank,
        )
    }

    /// The first half of low-rank additions to the next product of these rows, where any row of the batch has some.
    fn coefficients(
        &mut self,
        rows: RowSet,
        input: Floats<'_>,
        norm: Option<Norm<'_>>,
        (layer, matrix): (usize, usize),
    ) -> Result<Option<LowRankRows<'a>>, DeviceError> {
        let factors: Option<&FactorTable> =
            self.model.tasks.factors.get(layer).map(|of| &of[matrix]);
        let both = factors.zip(self.buffers.coefficients.as_ref());
        let Some((factors, coefficients)) = both.filter(|_| self.has_lora) else {
            return Ok(None);
        };
        self.run
            .coefficients(rows, input, norm, factors, coefficients)?;
        Ok(Some(LowRankRows {
            coefficients,
            factors,
        }))
    }

    /// Where the keys and values of the batch's rows go.
    fn own_keys(&self, layer: usize) -> KeysValuesBuffers<'a> {
        let own = match self.purpose {
            Purpose::Beginning(beginning) => beginning.layer(layer),
            Purpose::Queries(_) => None,
        };
        own.unwrap_or((&self.buffers.keys, &self.buffers.values))
    }
}

/// All values of rows.
fn rows_of(values: &Buffer<f32>, columns: usize) -> Floats<'_> {
    Floats {
        values,
        columns,
        stride: columns,
    }
}
