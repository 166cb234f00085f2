//! One chunk of sequences through all layers.
//!
//! Rows of a chunk: the tokens of all its sequences, then the query rows of all its sequences.

use super::lora::QueryRows;
use super::{Beginning, Layer, Scratch, Sequence, Transformer};
use std::ops::Range;
use trafficllm_kernels::{KeyBlocks, KeysValues, Level};

/// Rows that go through the products together where a layer's matrices stay in the second cache: enough for a panel of weights to be
/// reused from the first, few enough for what they produce to stay there too.
const TILE_ROWS_SMALL: usize = 48;

/// The same where matrices come from further away, or are used up faster than they come: each is read once for so many rows.
const TILE_ROWS_LARGE: usize = 192;

/// Bytes of a matrix that count as small.
const SMALL_MATRIX_BYTES: usize = 512 * 1024;

/// Bytes of a full chunk's residual stream with its queries, keys and values: with the weights of a small layer they stay in a second
/// cache of 1 MiB.
const CHUNK_BYTES: usize = 512 * 1024;

/// Fewest rows of a full chunk: a large model's weights pass through the caches once for each chunk.
const CHUNK_ROWS_MIN: usize = 128;

/// Rows that go through all layers together, of `row_values` values each (residual, query, key and value): a chunk holds as many whole
/// sequences as fit, at least one.
#[must_use]
pub fn chunk_rows(row_values: usize) -> usize {
    CHUNK_ROWS_MIN.max(CHUNK_BYTES / (row_values * size_of::<f32>()))
}

/// Rows of a chunk that go through the products together.
#[must_use]
pub fn tile_rows(level: Level, largest_matrix_bytes: usize) -> usize {
    if largest_matrix_bytes > SMALL_MATRIX_BYTES || level == Level::Amx {
        TILE_ROWS_LARGE
    } else {
        TILE_ROWS_SMALL
    }
}

/// Some sequences of a batch.
pub(super) struct Chunk<'a> {
    pub(super) sequences: &'a [Sequence<'a>],
    /// Index in the batch of the chunk's first query.
    pub(super) first_query: usize,
}

/// Which rows the last layer finishes.
pub(super) enum Outputs<'a> {
    /// The last row of each query; of tokens it computes keys and values only.
    Queries,
    /// All tokens.
    Tokens,
    /// None: only the keys and values of all layers are wanted.
    Keys(&'a mut Beginning),
}

impl<'a> Chunk<'a> {
    /// Cuts a batch into chunks of consecutive sequences, at least one each, of at most `rows_max` rows where it is more.
    pub(super) fn split(
        mut sequences: &'a [Sequence<'a>],
        hidden: usize,
        rows_max: usize,
    ) -> impl Iterator<Item = &'a [Sequence<'a>]> {
        std::iter::from_fn(move || {
            let mut rows = 0;
            let full = sequences.iter().position(|sequence| {
                let before = rows;
                rows += sequence.tokens.len() + query_rows(sequence, hidden);
                before > 0 && rows > rows_max
            });
            let chunk;
            (chunk, sequences) = sequences.split_at(full.unwrap_or(sequences.len()));
            (!chunk.is_empty()).then_some(chunk)
        })
    }

    pub(super) fn queries(&self) -> usize {
        self.sequences
            .iter()
            .map(|sequence| sequence.queries.len())
            .sum()
    }

    fn tokens(&self) -> usize {
        self.sequences
            .iter()
            .map(|sequence| sequence.tokens.len())
            .sum()
    }
}

fn query_rows(sequence: &Sequence<'_>, hidden: usize) -> usize {
    sequence
        .queries
        .iter()
        .map(|query| query.embeddings.len() / hidden)
        .sum()
}

impl Transformer {
    /// Appends the final-norm hidden states `[outputs, hidden]` of a checked chunk to `states`.
    pub(super) fn run(
        &self,
        chunk: &Chunk<'_>,
        mut outputs: Outputs<'_>,
        scratch: &mut Scratch,
        states: &mut Vec<f32>,
    ) {
        let hidden = self.config.hidden;
        let (tokens, rows) = self.embed(chunk, &mut scratch.residual);
        scratch
            .attention_rows
            .resize(rows * self.shape.row_size(), 0.0);
        let last = self.layers.len() - 1;
        let has_lora = chunk.has_lora();
        for (index, layer) in self.layers.iter().enumerate() {
            let keys_only = match outputs {
                Outputs::Queries | Outputs::Keys(_) if index == last => tokens,
                _ => 0,
            };
            self.project(layer, keys_only, scratch);
            if has_lora {
                self.add_to_projections((index, layer), chunk, tokens, scratch);
            }
            self.rotate(chunk, keys_only, scratch);
            if let Outputs::Keys(beginning) = &mut outputs {
                beginning.take(self.shape, &scratch.attention_rows);
                if index == last {
                    return;
                }
            }
            self.attend(index, chunk, keys_only > 0, scratch);
            let finished = match outputs {
                _ if index < last => 0..rows,
                Outputs::Queries => self.gather_last_rows(chunk, scratch),
                _ => 0..tokens,
            };
            if has_lora {
                // Outputs of the last layer are query rows only.
                let tokens = if index < last { 0..tokens } else { 0..0 };
                let (which, queries) = if index < last {
                    (QueryRows::All, tokens.end..rows)
                } else {
                    (QueryRows::Last, finished.clone())
                };
                self.finish(layer, tokens, scratch);
                self.finish_with_lora((index, layer), chunk, which, queries, scratch);
            } else {
                self.finish(layer, finished.clone(), scratch);
            }
            if index == last {
                let start = states.len();
                states.resize(start + finished.len() * hidden, 0.0);
                let residual = &scratch.residual[finished.start * hidden..finished.end * hidden];
                if !residual.is_empty() {
                    let epsilon = self.config.rms_epsilon;
                    self.kernels.rms_norm(
                        residual,
                        &self.output_norm,
                        epsilon,
                        &mut states[start..],
                    );
                }
            }
        }
    }

    /// Fills the residual stream; gives back the number of token rows and of all rows.
    fn embed(&self, chunk: &Chunk<'_>, residual: &mut Vec<f32>) -> (usize, usize) {
        let hidden = self.config.hidden;
        let tokens = chunk.tokens();
        let rows = tokens
            + chunk
                .sequences
                .iter()
                .map(|sequence| query_rows(sequence, hidden))
                .sum::<usize>();
        residual.resize(rows * hidden, 0.0);
        let (token_rows, mut rest) = residual.split_at_mut(tokens * hidden);
        let ids = chunk.sequences.iter().flat_map(|sequence| sequence.tokens);
        for (row, id) in token_rows.chunks_exact_mut(hidden).zip(ids) {
            self.kernels
                .dequantise_row(&self.token_embedding, *id as usize, row);
        }
        for query in chunk.sequences.iter().flat_map(|sequence| sequence.queries) {
            let rows;
            (rows, rest) = rest.split_at_mut(query.embeddings.len());
            rows.copy_from_slice(query.embeddings);
        }
        (tokens, rows)
    }

    /// Norm, query, key and value of all rows; only key and value of the first `keys_only` rows.
    fn project(&self, layer: &Layer, keys_only: usize, scratch: &mut Scratch) {
        let (hidden, row_size) = (self.config.hidden, self.shape.row_size());
        let query_size = self.shape.query_size();
        let rows = scratch.residual.len() / hidden;
        for (tiles, first_channel) in [(0..keys_only, query_size), (keys_only..rows, 0)] {
            for tile in tiles_of(tiles, self.tile_rows) {
                let residual = &scratch.residual[tile.start * hidden..tile.end * hidden];
                let epsilon = self.config.rms_epsilon;
                self.kernels.rms_norm_quantise(
                    residual,
                    &layer.attention_norm,
                    epsilon,
                    &mut scratch.quantised,
                );
                let output =
                    &mut scratch.attention_rows[tile.start * row_size..tile.end * row_size];
                let channels = first_channel..row_size;
                layer
                    .query_key_value
                    .multiply(&scratch.quantised, channels, output, row_size);
            }
        }
    }

    /// Rotary of queries and keys; only of keys of the first `keys_only` rows.
    fn rotate(&self, chunk: &Chunk<'_>, keys_only: usize, scratch: &mut Scratch) {
        let (hidden, row_size) = (self.config.hidden, self.shape.row_size());
        let (query_size, key_end) = (
            self.shape.query_size(),
            self.shape.query_size() + self.shape.key_size(),
        );
        let positions = chunk
            .sequences
            .iter()
            .flat_map(|sequence| (sequence.first_position()..).take(sequence.tokens.len()));
        let query_positions = chunk.sequences.iter().flat_map(|sequence| {
            let start = sequence.first_position() + sequence.tokens.len();
            sequence
                .queries
                .iter()
                .flat_map(move |query| start..start + query.embeddings.len() / hidden)
        });
        let rows = scratch.attention_rows.chunks_exact_mut(row_size);
        for (index, (row, position)) in rows.zip(positions.chain(query_positions)).enumerate() {
            let start = if index < keys_only { query_size } else { 0 };
            self.kernels
                .rotate(&mut row[start..key_end], &self.rotary, position);
        }
    }

    /// Attention of all rows; of query rows only where `queries_only`.
    fn attend(&self, layer: usize, chunk: &Chunk<'_>, queries_only: bool, scratch: &mut Scratch) {
        let (hidden, row_size, key_size) = (
            self.config.hidden,
            self.shape.row_size(),
            self.shape.key_size(),
        );
        let (key_start, value_start) =
            (self.shape.query_size(), self.shape.query_size() + key_size);
        let fill = |keys: &mut KeyBlocks, rows: &[f32]| {
            // An empty sequence has no first key.
            keys.fill(
                self.shape,
                rows.get(key_start..).unwrap_or_default(),
                row_size,
                rows.len() / row_size,
            );
        };
        let (mut token_rows, mut query_rows) = scratch
            .attention_rows
            .split_at_mut(chunk.tokens() * row_size);
        let mut query_index = chunk.first_query;
        for sequence in chunk.sequences {
            let rows;
            (rows, token_rows) = token_rows.split_at_mut(sequence.tokens.len() * row_size);
            fill(&mut scratch.sequence_keys, rows);
            let beginning = sequence.beginning.map(|shared| shared.keys_values(layer));
            if !queries_only {
                self.kernels.attend(
                    self.shape,
                    beginning.as_slice(),
                    &scratch.sequence_keys,
                    rows,
                    &mut scratch.attention,
                );
            }
            let values = rows.get(value_start..).unwrap_or_default();
            let tokens = KeysValues {
                keys: &scratch.sequence_keys,
                values,
                stride: row_size,
            };
            for query in sequence.queries {
                let own;
                (own, query_rows) =
                    query_rows.split_at_mut(query.embeddings.len() / hidden * row_size);
                fill(&mut scratch.query_keys, own);
                let prefix = KeysValues {
                    keys: scratch
                        .prefixes
                        .keys(query_index, layer, self.config.layers),
                    values: &query.prefix.values[layer * query.prefix.prefix_tokens * key_size..],
                    stride: key_size,
                };
                let context = [prefix, tokens, beginning.unwrap_or(tokens)];
                let parts = 2 + usize::from(beginning.is_some());
                self.kernels.attend(
                    self.shape,
                    &context[..parts],
                    &scratch.query_keys,
                    own,
                    &mut scratch.attention,
                );
                query_index += 1;
            }
        }
    }

    /// Moves the last row of each query to the first rows of the residual stream and of the attention rows; gives back
    /// these first rows.
    fn gather_last_rows(&self, chunk: &Chunk<'_>, scratch: &mut Scratch) -> Range<usize> {
        let (hidden, row_size) = (self.config.hidden, self.shape.row_size());
        let mut end = chunk.tokens();
        let mut to = 0;
        for query in chunk.sequences.iter().flat_map(|sequence| sequence.queries) {
            end += query.embeddings.len() / hidden;
            let last = end - 1;
            // Rows only move forward, past rows that have moved before or are not needed any more.
            scratch
                .residual
                .copy_within(last * hidden..end * hidden, to * hidden);
            scratch
                .attention_rows
                .copy_within(last * row_size..end * row_size, to * row_size);
            to += 1;
        }
        0..to
    }

    /// Attention output, norm and gated MLP of these rows, added to the residual stream.
    fn finish(&self, layer: &Layer, rows: Range<usize>, scratch: &mut Scratch) {
        let (hidden, row_size, feed_forward) = (
            self.config.hidden,
            self.shape.row_size(),
            self.config.feed_forward,
        );
        for tile in tiles_of(rows, self.tile_rows) {
            let quantised = &mut scratch.quantised;
            let attended = &scratch.attention_rows[tile.start * row_size..tile.end * row_size];
            let residual = &mut scratch.residual[tile.start * hidden..tile.end * hidden];
            self.kernels
                .quantise(attended, row_size, self.shape.query_size(), quantised);
            layer.output.multiply_add(quantised, residual);
            self.kernels.rms_norm_quantise(
                residual,
                &layer.mlp_norm,
                self.config.rms_epsilon,
                quantised,
            );
            scratch.gated.resize(tile.len() * feed_forward, 0.0);
            layer.gate_up.multiply_gated(quantised, &mut scratch.gated);
            self.kernels
                .quantise(&scratch.gated, feed_forward, feed_forward, quantised);
            layer.down.multiply_add(quantised, residual);
        }
    }
}

pub(super) fn tiles_of(rows: Range<usize>, tile_rows: usize) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(tile_rows)
        .map(move |start| start..end.min(start + tile_rows))
}
