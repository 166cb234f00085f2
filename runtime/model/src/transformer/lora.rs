//! Low-rank additions of tasks (LoRA, arXiv:2106.09685) to the products of their query rows.
//!
//! The trunk stays shared: only query rows are changed, each by its own task's factors, in f32 beside the int8 products.

use super::pass::{Chunk, tiles_of};
use super::{Layer, Query, Scratch, Transformer, TransformerConfig};
use crate::adapter::AdapterShape;
use crate::limits::LORA_RANK_MAX;
use std::ops::Range;
use trafficllm_kernels::LowRank;

/// The two factors of one kind of matrix, for all layers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoraFactors {
    /// `[layers, rank, input channels]` f32.
    pub a: Vec<f32>,
    /// `[layers, rank, output channels]` f32, any scale included.
    pub b: Vec<f32>,
}

/// One task's low-rank additions: the query rows' products `W x` become `W x + sum over r of (a[r] . x) b[r]`, where `x` is the f32
/// input that the product's bytes are made from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskLora {
    /// 1 to [`limits::LORA_RANK_MAX`](crate::limits::LORA_RANK_MAX).
    pub rank: usize,
    /// In the order of [`TaskLora::NAMES`].
    pub factors: [LoraFactors; 4],
}

/// Indices into [`TaskLora::factors`].
const QUERY_KEY_VALUE: usize = 0;
const OUTPUT: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

impl TaskLora {
    /// The matrices: query, key and value stacked; attention output; gate and up stacked; down.
    pub const NAMES: [&str; 4] = ["attn_qkv", "attn_output", "ffn_gate_up", "ffn_down"];

    /// Bytes of the factors.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let values = self.factors.iter().map(|of| of.a.len() + of.b.len());
        values.sum::<usize>() * size_of::<f32>()
    }

    /// What is wrong with the sizes: the matrix, what was expected and what was found.
    pub(in crate::transformer) fn mismatch(
        &self,
        config: &TransformerConfig,
    ) -> Option<(&'static str, String, usize)> {
        if !(1..=LORA_RANK_MAX).contains(&self.rank) {
            return Some(("LoRA rank", format!("1 to {LORA_RANK_MAX}"), self.rank));
        }
        let channels = AdapterShape::of(config).lora_channels();
        self.factors
            .iter()
            .zip(channels)
            .find_map(|(of, (inputs, outputs))| {
                let sides = [
                    ("LoRA factor a", inputs, of.a.len()),
                    ("LoRA factor b", outputs, of.b.len()),
                ];
                sides.into_iter().find_map(|(tensor, channels, found)| {
                    // A text is made of what is wrong only: this runs for each batch.
                    (found != config.layers * self.rank * channels).then(|| {
                        let expected = format!("{} x {} x {channels}", config.layers, self.rank);
                        (tensor, expected, found)
                    })
                })
            })
    }

    /// The factors of one matrix of a layer.
    fn of(&self, matrix: usize, (layer, layers): (usize, usize)) -> LowRank<'_> {
        let LoraFactors { a, b } = &self.factors[matrix];
        let part = |values| -> &[f32] {
            let values: &[f32] = values;
            let size = values.len() / layers;
            &values[layer * size..][..size]
        };
        LowRank {
            rank: self.rank,
            a: part(a),
            b: part(b),
        }
    }
}

/// The additions of consecutive query rows of a chunk; `None` for rows of tasks without any.
#[derive(Clone, Copy)]
pub(super) enum QueryRows {
    /// Every row of each query.
    All,
    /// The last row of each query.
    Last,
}

impl Chunk<'_> {
    /// Whether any of its queries has low-rank additions.
    pub(super) fn has_lora(&self) -> bool {
        let mut queries = self.sequences.iter().flat_map(|sequence| sequence.queries);
        queries.any(|query| query.lora.is_some())
    }

    /// Of each query row in turn.
    fn loras(
        &self,
        hidden: usize,
        rows: QueryRows,
    ) -> impl Iterator<Item = Option<&TaskLora>> + Clone {
        let queries = self.sequences.iter().flat_map(|sequence| sequence.queries);
        queries.flat_map(move |query: &Query<'_>| {
            let rows = match rows {
                QueryRows::All => query.embeddings.len() / hidden,
                QueryRows::Last => 1,
            };
            std::iter::repeat_n(query.lora, rows)
        })
    }
}

impl Transformer {
    /// Adds to query, key and value of the query rows, which start at row `first`; before rotary.
    pub(super) fn add_to_projections(
        &self,
        (index, layer): (usize, &Layer),
        chunk: &Chunk<'_>,
        first: usize,
        scratch: &mut Scratch,
    ) {
        let (hidden, row_size) = (self.config.hidden, self.shape.row_size());
        let place = (index, self.layers.len());
        scratch.normed.resize(hidden, 0.0);
        let residual = scratch.residual[first * hidden..].chunks_exact(hidden);
        let projected = scratch.attention_rows[first * row_size..].chunks_exact_mut(row_size);
        let loras = chunk.loras(hidden, QueryRows::All);
        for ((lora, residual), projected) in loras.zip(residual).zip(projected) {
            if let Some(lora) = lora {
                let epsilon = self.config.rms_epsilon;
                let normed = &mut scratch.normed;
                self.kernels
                    .rms_norm(residual, &layer.attention_norm, epsilon, normed);
                self.kernels
                    .add_low_rank(lora.of(QUERY_KEY_VALUE, place), normed, projected);
            }
        }
    }

    /// [`Transformer::finish`] for query rows of a chunk with low-rank additions.
    pub(super) fn finish_with_lora(
        &self,
        (index, layer): (usize, &Layer),
        chunk: &Chunk<'_>,
        which: QueryRows,
        rows: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (hidden, row_size, feed_forward) = (
            self.config.hidden,
            self.shape.row_size(),
            self.config.feed_forward,
        );
        let (kernels, epsilon) = (self.kernels, self.config.rms_epsilon);
        let (query_size, place) = (self.shape.query_size(), (index, self.layers.len()));
        scratch.normed.resize(hidden, 0.0);
        let mut rest = chunk.loras(hidden, which);
        for tile in tiles_of(rows, self.tile_rows) {
            let loras = rest.clone().take(tile.len());
            if let Some(last) = tile.len().checked_sub(1) {
                rest.nth(last);
            }
            let quantised = &mut scratch.quantised;
            let attended = &scratch.attention_rows[tile.start * row_size..tile.end * row_size];
            let residual = &mut scratch.residual[tile.start * hidden..tile.end * hidden];
            kernels.quantise(attended, row_size, query_size, quantised);
            layer.output.multiply_add(quantised, residual);
            let rows = attended.chunks_exact(row_size);
            for ((lora, attended), residual) in loras
                .clone()
                .zip(rows)
                .zip(residual.chunks_exact_mut(hidden))
            {
                if let Some(lora) = lora {
                    let attended = &attended[..query_size];
                    kernels.add_low_rank(lora.of(OUTPUT, place), attended, residual);
                }
            }
            kernels.rms_norm_quantise(residual, &layer.mlp_norm, epsilon, quantised);
            let both_size = 2 * feed_forward;
            scratch.gate_up.resize(tile.len() * both_size, 0.0);
            let both = &mut scratch.gate_up;
            layer
                .gate_up
                .multiply(quantised, 0..both_size, both, both_size);
            scratch.gated.resize(tile.len() * feed_forward, 0.0);
            let rows = residual
                .chunks_exact(hidden)
                .zip(both.chunks_exact(both_size));
            let gated = scratch.gated.chunks_exact_mut(feed_forward);
            for ((lora, (residual, both)), gated) in loras.clone().zip(rows).zip(gated) {
                let factors = lora.map(|lora| lora.of(GATE_UP, place));
                if factors.is_some() {
                    let normed = &mut scratch.normed;
                    kernels.rms_norm(residual, &layer.mlp_norm, epsilon, normed);
                }
                kernels.gate_low_rank(factors, &scratch.normed, both, gated);
            }
            kernels.quantise(&scratch.gated, feed_forward, feed_forward, quantised);
            layer.down.multiply_add(quantised, residual);
            let gated = scratch.gated.chunks_exact(feed_forward);
            for ((lora, gated), residual) in loras.zip(gated).zip(residual.chunks_exact_mut(hidden))
            {
                if let Some(lora) = lora {
                    kernels.add_low_rank(lora.of(DOWN, place), gated, residual);
                }
            }
        }
    }
}
