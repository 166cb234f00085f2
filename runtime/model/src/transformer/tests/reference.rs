//! The forward pass written down naively in f64 over dequantised weights: one row at a time, no batch, no cache.

use crate::transformer::{LayerWeights, Query, TaskLora, TransformerConfig, TransformerWeights};
use trafficllm_kernels::{QuantisedMatrix, WeightMatrix};

/// What the reference does with the inputs of its products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Activations {
    /// Keeps them.
    Floats,
    /// Rounds them as the engine does: 255 levels per row.
    Bytes,
}

pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(super) fn values(&mut self, count: usize, magnitude: f32) -> Vec<f32> {
        (0..count)
            .map(|_| (self.next() as f32 / (1_u64 << 30) as f32 - 1.0) * magnitude)
            .collect()
    }

    pub(super) fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count)
            .map(|_| (self.next() as usize % vocabulary) as u32)
            .collect()
    }

    fn matrix(&mut self, rows: usize, columns: usize, gain: f32) -> WeightMatrix {
        // Uniform values of this size keep the variance times `gain` squared.
        let magnitude = gain * (3.0 / columns as f32).sqrt();
        QuantisedMatrix::quantise(&self.values(rows * columns, magnitude), rows, columns)
            .unwrap()
            .into()
    }

    fn norm(&mut self, size: usize) -> Vec<f32> {
        self.values(size, 0.3)
            .iter()
            .map(|value| 1.0 + value)
            .collect()
    }
}

pub(super) fn config(
    hidden: usize,
    layers: usize,
    (heads, kv_heads): (usize, usize),
    head_dim: usize,
    feed_forward: usize,
) -> TransformerConfig {
    let (vocabulary, context, rms_epsilon, rope_base) = (100, 140, 1e-5, 10_000.0);
    TransformerConfig {
        vocabulary,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        feed_forward,
        context,
        rms_epsilon,
        rope_base,
    }
}

pub(super) fn model_weights(
    config: &TransformerConfig,
    random: &mut Random,
    tied: bool,
) -> TransformerWeights {
    let (hidden, feed_forward) = (config.hidden, config.feed_forward);
    let (query_size, key_size) = (config.query_size(), config.key_size());
    let layer = |_| LayerWeights {
        attention_norm: random.norm(hidden),
        query: random.matrix(query_size, hidden, 1.5),
        key: random.matrix(key_size, hidden, 1.5),
        value: random.matrix(key_size, hidden, 1.0),
        output: random.matrix(hidden, query_size, 1.0),
        mlp_norm: random.norm(hidden),
        gate: random.matrix(feed_forward, hidden, 1.0),
        up: random.matrix(feed_forward, hidden, 1.0),
        down: random.matrix(hidden, feed_forward, 1.0),
    };
    let layers = (0..config.layers).map(layer).collect();
    TransformerWeights {
        config: config.clone(),
        layers,
        token_embedding: random.matrix(config.vocabulary, hidden, 4.0),
        output_norm: random.norm(hidden),
        output: (!tied).then(|| random.matrix(config.vocabulary, hidden, 1.0)),
    }
}

/// Root mean square of the differences over that of the expected values.
pub(super) fn relative_difference(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let differences = expected
        .iter()
        .zip(found)
        .map(|(expected, found)| (expected - f64::from(*found)).powi(2));
    (differences.sum::<f64>() / expected.iter().map(|value| value * value).sum::<f64>()).sqrt()
}

/// Next-token logits `[tokens, vocabulary]`.
pub(super) fn logits(
    weights: &TransformerWeights,
    tokens: &[u32],
    activations: Activations,
) -> Vec<f64> {
    let rows = embed(weights, tokens);
    let states = run(weights, rows, tokens.len(), None, activations);
    let output = weights.output.as_ref().unwrap_or(&weights.token_embedding);
    states
        .iter()
        .flat_map(|state| product(output, &final_norm(weights, state), activations))
        .collect()
}

/// Final-norm hidden state `[hidden]` of the query's last row.
pub(super) fn query_state(
    weights: &TransformerWeights,
    tokens: &[u32],
    query: &Query<'_>,
    activations: Activations,
) -> Vec<f64> {
    let mut rows = embed(weights, tokens);
    let query_rows = query.embeddings.chunks_exact(weights.config.hidden);
    rows.extend(query_rows.map(|row| {
        row.iter()
            .map(|value| f64::from(*value))
            .collect::<Vec<_>>()
    }));
    let states = run(weights, rows, tokens.len(), Some(query), activations);
    final_norm(weights, &states[states.len() - 1])
}

fn embed(weights: &TransformerWeights, tokens: &[u32]) -> Vec<Vec<f64>> {
    let (table, hidden) = (weights.token_embedding.dequantise(), weights.config.hidden);
    let row = |token: &u32| {
        table[*token as usize * hidden..][..hidden]
            .iter()
            .map(|value| f64::from(*value))
            .collect()
    };
    tokens.iter().map(row).collect()
}

fn final_norm(weights: &TransformerWeights, state: &[f64]) -> Vec<f64> {
    norm(state, &weights.output_norm, weights.config.rms_epsilon)
}

/// All layers; rows from `tokens` on see the query's prefix.
fn run(
    weights: &TransformerWeights,
    mut rows: Vec<Vec<f64>>,
    tokens: usize,
    query: Option<&Query<'_>>,
    activations: Activations,
) -> Vec<Vec<f64>> {
    for (index, layer) in weights.layers.iter().enumerate() {
        let attended = attention(
            &weights.config,
            layer,
            index,
            &rows,
            tokens,
            query,
            activations,
        );
        for (position, (row, attended)) in rows.iter_mut().zip(attended).enumerate() {
            let lora = query
                .filter(|_| position >= tokens)
                .and_then(|query| query.lora);
            let added = |matrix: usize, input: &[f64]| {
                added(lora, matrix, (index, weights.config.layers), input)
            };
            add(row, &product(&layer.output, &attended, activations));
            add(row, &added(1, &attended));
            let normed = norm(row, &layer.mlp_norm, weights.config.rms_epsilon);
            let mut gates = product(&layer.gate, &normed, activations);
            let mut ups = product(&layer.up, &normed, activations);
            let to_both = added(2, &normed);
            let (to_gates, to_ups) = to_both.split_at(to_both.len() / 2);
            add(&mut gates, to_gates);
            add(&mut ups, to_ups);
            let gated: Vec<f64> = gates
                .iter()
                .zip(ups)
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            add(row, &product(&layer.down, &gated, activations));
            add(row, &added(3, &gated));
        }
    }
    rows
}

/// What low-rank factors add to a matrix's product with `input`; nothing without.
fn added(
    lora: Option<&TaskLora>,
    matrix: usize,
    (layer, layers): (usize, usize),
    input: &[f64],
) -> Vec<f64> {
    let Some(TaskLora { rank, factors }) = lora else {
        return Vec::new();
    };
    let part = |values: &[f32]| -> Vec<Vec<f64>> {
        let size = values.len() / layers;
        let rows = values[layer * size..][..size].chunks_exact(size / rank);
        rows.map(|row| row.iter().map(|value| f64::from(*value)).collect())
            .collect()
    };
    let (a, b) = (part(&factors[matrix].a), part(&factors[matrix].b));
    let mut sum = vec![0.0; b[0].len()];
    for (a, b) in a.iter().zip(b) {
        let coefficient: f64 = a.iter().zip(input).map(|(a, input)| a * input).sum();
        add(
            &mut sum,
            &b.iter().map(|b| coefficient * b).collect::<Vec<_>>(),
        );
    }
    sum
}

fn attention(
    config: &TransformerConfig,
    layer: &LayerWeights,
    index: usize,
    rows: &[Vec<f64>],
    tokens: usize,
    query: Option<&Query<'_>>,
    activations: Activations,
) -> Vec<Vec<f64>> {
    let dim = config.head_dim;
    let normed: Vec<_> = rows
        .iter()
        .map(|row| norm(row, &layer.attention_norm, config.rms_epsilon))
        .collect();
    // Channels from `first` on of query, key and value stacked.
    let project = |matrix, first: usize| {
        let rows = normed.iter().enumerate();
        rows.map(|(position, row)| {
            let mut projected = product(matrix, row, activations);
            let lora = query
                .filter(|_| position >= tokens)
                .and_then(|query| query.lora);
            let added = added(lora, 0, (index, config.layers), row);
            add(&mut projected, added.get(first..).unwrap_or_default());
            projected
        })
        .collect::<Vec<_>>()
    };
    let rotate_all = |mut rows: Vec<Vec<f64>>| {
        rows.iter_mut()
            .enumerate()
            .for_each(|(position, row)| rotate(row, dim, position, config.rope_base));
        rows
    };
    let (queries, keys) = (
        rotate_all(project(&layer.query, 0)),
        rotate_all(project(&layer.key, config.query_size())),
    );
    let values = project(&layer.value, config.query_size() + config.key_size());
    let prefix_row = |values: &[f32], at: usize, prefix_tokens: usize| -> Vec<f64> {
        let row = &values[(index * prefix_tokens + at) * config.key_size()..][..config.key_size()];
        row.iter().map(|value| f64::from(*value)).collect()
    };
    let mut attended = Vec::new();
    for (position, row) in queries.iter().enumerate() {
        let mut pairs: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
        if let Some(query) = query.filter(|_| position >= tokens) {
            let count = query.prefix.prefix_tokens;
            let pair = |at| {
                (
                    prefix_row(&query.prefix.keys, at, count),
                    prefix_row(&query.prefix.values, at, count),
                )
            };
            pairs.extend((0..count).map(pair));
        }
        pairs.extend((0..=position).map(|at| (keys[at].clone(), values[at].clone())));
        let mut output = Vec::new();
        for (head, head_query) in row.chunks_exact(dim).enumerate() {
            let column = head / (config.heads / config.kv_heads) * dim;
            let score = |key: &[f64]| {
                head_query
                    .iter()
                    .zip(&key[column..])
                    .map(|(a, b)| a * b)
                    .sum::<f64>()
            };
            let scores: Vec<f64> = pairs
                .iter()
                .map(|(key, _)| score(key) / (dim as f64).sqrt())
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> =
                scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            output.extend((column..column + dim).map(|at| {
                pairs
                    .iter()
                    .zip(&exponentials)
                    .map(|((_, value), weight)| value[at] * weight)
                    .sum::<f64>()
                    / sum
            }));
        }
        attended.push(output);
    }
    attended
}

fn rotate(row: &mut [f64], dim: usize, position: usize, base: f32) {
    for head in row.chunks_exact_mut(dim) {
        for (pair, values) in head.chunks_exact_mut(2).enumerate() {
            let angle = position as f64 * f64::from(base).powf(-2.0 * pair as f64 / dim as f64);
            let (even, odd) = (values[0], values[1]);
            values[0] = even * angle.cos() - odd * angle.sin();
            values[1] = even * angle.sin() + odd * angle.cos();
        }
    }
}

fn norm(row: &[f64], weight: &[f32], epsilon: f32) -> Vec<f64> {
    let mean_square = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
    let factor = 1.0 / (mean_square + f64::from(epsilon)).sqrt();
    row.iter()
        .zip(weight)
        .map(|(value, weight)| value * factor * f64::from(*weight))
        .collect()
}

fn product(matrix: &WeightMatrix, row: &[f64], activations: Activations) -> Vec<f64> {
    let mut row = row.to_vec();
    if activations == Activations::Bytes {
        let scale = row
            .iter()
            .fold(0.0_f64, |largest, value| largest.max(value.abs()))
            / 127.0;
        row.iter_mut()
            .for_each(|value| *value = (*value / scale).round_ties_even() * scale);
    }
    let weights = matrix.dequantise();
    let channels = weights.chunks_exact(matrix.columns());
    channels
        .map(|weights| {
            let terms = weights.iter().zip(&row);
            terms
                .map(|(weight, value)| f64::from(*weight) * value)
                .sum()
        })
        .collect()
}

fn add(row: &mut [f64], other: &[f64]) {
    row.iter_mut()
        .zip(other)
        .for_each(|(row, other)| *row += other);
}
