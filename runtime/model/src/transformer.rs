//! The forward pass of a llama-family decoder: one shared trunk per flow, a few query rows per task.
//!
//! Tokens of a sequence run once, causally, without any task's prefix. Query rows follow at positions `tokens`,
//! `tokens + 1`, ...; they see their task's prefix, all tokens and the earlier rows of the same query. So the trunk is
//! shared by all tasks. Sequences are packed without padding into chunks of rows that stay in the second cache.
//!
//! A result depends on its own sequence and query alone: not on what it is batched with, nor on the thread.

mod beginning;
mod config;
#[cfg(feature = "cuda")]
mod device;
mod error;
mod lora;
mod pass;
mod scratch;
#[cfg(test)]
mod tests;

pub use beginning::Beginning;
pub use config::{CONTEXT_MAX, LayerWeights, TransformerConfig, TransformerWeights};
#[cfg(feature = "cuda")]
pub use device::{
    Activations, Decided, DeviceBase, DeviceBeginning, DeviceOptions, DeviceQuery, DeviceSequence,
    DeviceTask, DeviceTransformer, LaneSizes, TransformerLane,
};
pub use error::TransformerError;
pub use lora::{LoraFactors, TaskLora};
pub use pass::{chunk_rows, tile_rows};
pub use scratch::{BatchSizes, Scratch};

use pass::{Chunk, Outputs};
use trafficllm_kernels::memory::{try_filled, try_hold};
use trafficllm_kernels::{AttentionShape, Kernels, Level, PackedMatrix, RotaryTable, WeightMatrix};

/// What errors call hidden states.
const STATES: &str = "hidden states";

/// The keys and values of one task's P-Tuning v2 prefix, seen by that task's query rows only.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskPrefix {
    /// Number of prefix positions; may be 0.
    pub prefix_tokens: usize,
    /// `[layers, prefix_tokens, kv_heads * head_dim]` f32, used as they are (no rotary).
    pub keys: Vec<f32>,
    /// `[layers, prefix_tokens, kv_heads * head_dim]` f32.
    pub values: Vec<f32>,
}

/// The rows that ask one task's question at the end of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// What these rows see besides the sequence and each other.
    pub prefix: &'a TaskPrefix,
    /// `[query_tokens, hidden]` f32, `query_tokens` at least 1.
    pub embeddings: &'a [f32],
    /// What is added to the products of these rows, if anything.
    pub lora: Option<&'a TaskLora>,
}

/// One flow (or request) and the questions about it.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// What comes before the tokens and was run before: an instruction that many sequences share.
    pub beginning: Option<&'a Beginning>,
    /// `[tokens]` ids; may be empty.
    pub tokens: &'a [u32],
    /// One per task; may be empty.
    pub queries: &'a [Query<'a>],
}

impl Sequence<'_> {
    /// The position of the first token.
    fn first_position(&self) -> usize {
        self.beginning.map_or(0, Beginning::tokens)
    }
}

/// A model, packed for one level of kernels; immutable, shared by all threads.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    shape: AttentionShape,
    kernels: Kernels,
    token_embedding: WeightMatrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: PackedMatrix,
    rotary: RotaryTable,
    /// Whether any matrix has 4-bit weights.
    needs_group_sums: bool,
    /// Rows that go through the products together.
    tile_rows: usize,
    /// Rows of a full chunk.
    chunk_rows: usize,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    /// Query, key and value, stacked.
    query_key_value: PackedMatrix,
    output: PackedMatrix,
    mlp_norm: Vec<f32>,
    gate_up: PackedMatrix,
    down: PackedMatrix,
}

impl Transformer {
    /// Checks the weights (sizes, shapes, finite numbers) and packs them for `level`.
    ///
    /// # Errors
    /// [`TransformerError::Config`], [`TransformerError::Shape`], [`TransformerError::NotFinite`],
    /// [`TransformerError::Matrix`]; [`TransformerError::Kernels`] where this processor lacks the level.
    pub fn new(level: Level, weights: TransformerWeights) -> Result<Self, TransformerError> {
        weights.validate()?;
        let TransformerWeights {
            config,
            token_embedding,
            layers,
            output_norm,
            output,
        } = weights;
        let kernels = Kernels::new(level)?;
        // A layer's weights are dropped when they are packed, so that a large model is not held twice.
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(index, layer)| Layer::new(kernels, index, layer))
            .collect::<Result<Vec<_>, _>>()?;
        let output = pack(
            "output".to_owned(),
            PackedMatrix::stacked(kernels, &[output.as_ref().unwrap_or(&token_embedding)]),
        )?;
        let needs_group_sums = output.needs_group_sums()
            || layers
                .iter()
                .flat_map(Layer::matrices)
                .any(PackedMatrix::needs_group_sums);
        let largest = layers
            .iter()
            .flat_map(Layer::matrices)
            .map(PackedMatrix::bytes)
            .max();
        let tile_rows = tile_rows(level, largest.unwrap_or(0));
        let shape = AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        Ok(Self {
            shape,
            kernels,
            token_embedding,
            layers,
            output_norm,
            output,
            needs_group_sums,
            tile_rows,
            chunk_rows: chunk_rows(config.hidden + shape.row_size()),
            rotary: RotaryTable::new(config.context, config.head_dim, config.rope_base)?,
            config,
        })
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The kernels in use.
    #[must_use]
    pub fn level(&self) -> Level {
        self.kernels.level()
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            let matrices = layer.matrices();
            let norms = layer.attention_norm.capacity() + layer.mlp_norm.capacity();
            matrices.iter().map(|matrix| matrix.bytes()).sum::<usize>() + norms * 4
        });
        layers.sum::<usize>()
            + self.token_embedding.bytes()
            + self.output_norm.capacity() * 4
            + self.output.bytes()
            + self.rotary.bytes()
    }

    /// Runs sequences as one packed batch and replaces `states` by the final-norm hidden state of each query's last row:
    /// `[queries of all sequences, hidden]` f32, in order of sequences, then of queries.
    ///
    /// Memory is that of the longest sequence with its queries, or of one chunk, whichever is more; once `scratch` and
    /// `states` have grown, nothing is allocated.
    ///
    /// # Errors
    /// [`TransformerError::Token`], [`TransformerError::Context`], [`TransformerError::Query`], [`TransformerError::Kernels`] where the
    /// system gives no memory; `states` is then empty.
    pub fn forward(
        &self,
        sequences: &[Sequence<'_>],
        scratch: &mut Scratch,
        states: &mut Vec<f32>,
    ) -> Result<(), TransformerError> {
        states.clear();
        for (index, sequence) in sequences.iter().enumerate() {
            self.check(index, sequence)?;
        }
        let sizes = BatchSizes::of(self, sequences);
        scratch.try_reserve(self, &sizes)?;
        try_hold(STATES, states, sizes.queries * self.config.hidden)?;
        scratch.prefixes.prepare(self, sequences)?;
        let mut first_query = 0;
        for sequences in Chunk::split(sequences, self.config.hidden, self.chunk_rows) {
            let chunk = Chunk {
                sequences,
                first_query,
            };
            first_query += chunk.queries();
            if chunk.queries() == 0 {
                continue;
            }
            self.run(&chunk, Outputs::Queries, scratch, states);
        }
        Ok(())
    }

    /// Runs tokens that many sequences begin with, once for all of them: see [`Sequence::beginning`].
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn begin(
        &self,
        tokens: &[u32],
        scratch: &mut Scratch,
    ) -> Result<Beginning, TransformerError> {
        let sequence = Sequence {
            beginning: None,
            tokens,
            queries: &[],
        };
        self.check(0, &sequence)?;
        scratch.try_reserve(self, &BatchSizes::of(self, &[sequence]))?;
        let mut beginning = Beginning::new(self.shape, self.config.layers, tokens.len())?;
        let chunk = Chunk {
            sequences: &[sequence],
            first_query: 0,
        };
        self.run(
            &chunk,
            Outputs::Keys(&mut beginning),
            scratch,
            &mut Vec::new(),
        );
        Ok(beginning)
    }

    /// Next-token logits `[tokens, vocabulary]` f32 of one sequence.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn logits(
        &self,
        tokens: &[u32],
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>, TransformerError> {
        let sequence = Sequence {
            beginning: None,
            tokens,
            queries: &[],
        };
        self.check(0, &sequence)?;
        scratch.try_reserve(self, &BatchSizes::of(self, &[sequence]))?;
        let hidden = self.config.hidden;
        scratch
            .quantised
            .try_reserve(self.kernels, tokens.len(), hidden)?;
        let mut states = Vec::new();
        try_hold(STATES, &mut states, tokens.len() * hidden)?;
        let chunk = Chunk {
            sequences: &[sequence],
            first_query: 0,
        };
        self.run(&chunk, Outputs::Tokens, scratch, &mut states);
        let mut logits = try_filled("logits", tokens.len() * self.config.vocabulary, 0.0)?;
        if !tokens.is_empty() {
            self.kernels
                .quantise(&states, hidden, hidden, &mut scratch.quantised);
            let vocabulary = self.config.vocabulary;
            self.output
                .multiply(&scratch.quantised, 0..vocabulary, &mut logits, vocabulary);
        }
        Ok(logits)
    }

    /// Checks one sequence of a batch against the model.
    fn check(&self, index: usize, sequence: &Sequence<'_>) -> Result<(), TransformerError> {
        let vocabulary = self.config.vocabulary;
        if let Some(position) = sequence
            .tokens
            .iter()
            .position(|&token| token as usize >= vocabulary)
        {
            let found = sequence.tokens[position];
            return Err(TransformerError::Token {
                sequence: index,
                position,
                vocabulary,
                found,
            });
        }
        let mut longest_query = 0;
        for (query, of_query) in sequence.queries.iter().enumerate() {
            let Query {
                prefix,
                embeddings,
                lora,
            } = of_query;
            let error = |tensor, expected, found| TransformerError::Query {
                sequence: index,
                query,
                tensor,
                expected,
                found,
            };
            let hidden = self.config.hidden;
            if embeddings.is_empty() || !embeddings.len().is_multiple_of(hidden) {
                let expected = format!("a multiple of {hidden}, at least once");
                return Err(error("query embeddings", expected, embeddings.len()));
            }
            longest_query = longest_query.max(embeddings.len() / hidden);
            let expected = prefix
                .prefix_tokens
                .checked_mul(self.config.layers * self.config.key_size());
            for (tensor, found) in [
                ("prefix keys", prefix.keys.len()),
                ("prefix values", prefix.values.len()),
            ] {
                if expected != Some(found) {
                    let expected = format!(
                        "{} x {} x {}",
                        self.config.layers,
                        prefix.prefix_tokens,
                        self.config.key_size()
                    );
                    return Err(error(tensor, expected, found));
                }
            }
            if let Some(wrong) = lora.and_then(|lora| lora.mismatch(&self.config)) {
                let (tensor, expected, found) = wrong;
                return Err(error(tensor, expected, found));
            }
        }
        if let Some(beginning) = sequence.beginning {
            let shape = |layers: usize, key_size: usize| format!("{layers} x {key_size}");
            let expected = shape(self.config.layers, self.config.key_size());
            let found = shape(beginning.layers(), beginning.key_size());
            if found != expected {
                return Err(TransformerError::Beginning {
                    sequence: index,
                    expected,
                    found,
                });
            }
        }
        let context = self.config.context;
        let found = sequence.first_position() + sequence.tokens.len() + longest_query;
        if found > context {
            Err(TransformerError::Context {
                sequence: index,
                context,
                found,
            })
        } else {
            Ok(())
        }
    }
}

impl Layer {
    fn matrices(&self) -> [&PackedMatrix; 4] {
        [
            &self.query_key_value,
            &self.output,
            &self.gate_up,
            &self.down,
        ]
    }

    fn new(
        kernels: Kernels,
        index: usize,
        weights: LayerWeights,
    ) -> Result<Self, TransformerError> {
        let name = |matrix: &str| format!("layer {index}, {matrix}");
        let attention = [&weights.query, &weights.key, &weights.value];
        Ok(Self {
            attention_norm: weights.attention_norm,
            query_key_value: pack(
                name("query, key, value"),
                PackedMatrix::stacked(kernels, &attention),
            )?,
            output: pack(
                name("output"),
                PackedMatrix::stacked(kernels, &[&weights.output]),
            )?,
            mlp_norm: weights.mlp_norm,
            gate_up: pack(
                name("gate, up"),
                PackedMatrix::gated(kernels, &weights.gate, &weights.up),
            )?,
            down: pack(
                name("down"),
                PackedMatrix::stacked(kernels, &[&weights.down]),
            )?,
        })
    }
}

fn pack(
    tensor: String,
    packed: Result<PackedMatrix, trafficllm_kernels::KernelError>,
) -> Result<PackedMatrix, TransformerError> {
    packed.map_err(|source| TransformerError::Matrix { tensor, source })
}
