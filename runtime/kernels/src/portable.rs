//! The reference kernels: plain loops that say what every level computes.

use std::ops::Range;

use crate::attention::{AttentionShape, KeyBlocks, KeysValues};
use crate::fast::output::Then;
use crate::int4::NIBBLE_OFFSET;
use crate::packed::{Epilogue, PANEL_CHANNELS};
use crate::rotary::RotaryTable;
use crate::{GROUP_COLUMNS, QuantisedRows, WeightMatrix};

/// The product of row `row` and output channel `channel`.
fn dot(matrix: &WeightMatrix, channel: usize, rows: &QuantisedRows, row: usize) -> f32 {
    let (activations, row_scale) = rows.row(row);
    match matrix {
        // Exact in `i32`, then scaled by the channel and by the row.
        WeightMatrix::Int8(matrix) => {
            let weights = &matrix.values[channel * matrix.columns..][..matrix.columns];
            let sum: i32 = weights
                .iter()
                .zip(activations)
                .map(|(&weight, &activation)| i32::from(weight) * i32::from(activation))
                .sum();
            sum as f32 * matrix.scales[channel] * row_scale
        }
        // Exact in `i32` within a group, then summed over the groups, each step rounded once.
        WeightMatrix::Int4(matrix) => {
            let groups = matrix.groups();
            let product = (0..groups).fold(0.0_f32, |product, group| {
                let columns = group * GROUP_COLUMNS..(group + 1) * GROUP_COLUMNS;
                let sum: i32 = columns
                    .map(|column| {
                        i32::from(matrix.nibble(channel, column)) * i32::from(activations[column])
                    })
                    .sum();
                let scale = matrix.scales[channel * groups + group];
                let group_sum = rows.group_sums[row * groups + group];
                match matrix.minimums.get(channel * groups + group) {
                    None => ((sum - NIBBLE_OFFSET * group_sum) as f32).mul_add(scale, product),
                    Some(minimum) => {
                        (-group_sum as f32).mul_add(*minimum, (sum as f32).mul_add(scale, product))
                    }
                }
            });
            product * row_scale
        }
    }
}

/// See [`PackedMatrix::multiply`](crate::PackedMatrix::multiply), which checks the sizes.
pub(crate) fn product(
    matrix: &WeightMatrix,
    rows: &QuantisedRows,
    channels: Range<usize>,
    output: &mut [f32],
    stride: usize,
    then: Then,
) {
    for row in 0..rows.rows() {
        match then {
            // Panels of 16 gate channels and of 16 up channels take turns in `matrix`.
            Then::Gated => {
                for channel in 0..matrix.rows() / 2 {
                    let gate_channel = channel + channel / PANEL_CHANNELS * PANEL_CHANNELS;
                    let gate = dot(matrix, gate_channel, rows, row);
                    let up = dot(matrix, gate_channel + PANEL_CHANNELS, rows, row);
                    output[row * stride + channel] = gate / (1.0 + (-gate).exp()) * up;
                }
            }
            Then::Plain(epilogue) => {
                for channel in channels.clone() {
                    let product = dot(matrix, channel, rows, row);
                    let output = &mut output[row * stride + channel];
                    match epilogue {
                        Epilogue::Store => *output = product,
                        Epilogue::Add => *output += product,
                    }
                }
            }
        }
    }
}

/// `input * weight / sqrt(mean(input^2) + epsilon)`, value by value.
pub(crate) fn rms_norm<'a>(
    input: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
) -> impl Iterator<Item = f32> + Clone + 'a {
    let mean_square = input.iter().map(|value| value * value).sum::<f32>() / input.len() as f32;
    let factor = 1.0 / (mean_square + epsilon).sqrt();
    input
        .iter()
        .zip(weight)
        .map(move |(input, weight)| input * factor * weight)
}

/// Symmetric: scale = largest magnitude / 127, nearest byte (ties to even). A row that holds NaN or infinity gets the
/// scale NaN, so that every product with it is NaN too: an overflow is never mistaken for a result.
pub(crate) fn quantise(
    input: impl Iterator<Item = f32> + Clone,
    values: &mut [i8],
    scale: &mut f32,
    sum: &mut i32,
) {
    // Magnitudes order like their bits, and NaN comes last.
    let largest = input
        .clone()
        .fold(0, |largest, value| largest.max(value.abs().to_bits()));
    let factor;
    (*scale, factor) = quantisation(f32::from_bits(largest));
    *sum = 0;
    for (value, input) in values.iter_mut().zip(input) {
        *value = (input * factor).round_ties_even() as i8;
        *sum += i32::from(*value);
    }
}

/// Scale, and what to multiply values by, for a row of that largest magnitude. Factor 0 makes every value 0.
pub(crate) fn quantisation(largest: f32) -> (f32, f32) {
    let factor = 127.0 / largest;
    match largest.is_finite() {
        // Zeros, and rows so small that the factor overflows.
        true if !factor.is_finite() => (0.0, 0.0),
        true => (largest / 127.0, factor),
        false => (f32::NAN, 0.0),
    }
}

/// Rotates heads in place; `row` holds whole heads.
pub(crate) fn rotate(row: &mut [f32], table: &RotaryTable, position: usize) {
    let (cosines, sines) = table.at(position);
    for head in row.chunks_exact_mut(table.head_dim) {
        for (pair, (cosines, sines)) in head
            .chunks_exact_mut(2)
            .zip(cosines.chunks_exact(2).zip(sines.chunks_exact(2)))
        {
            let (even, odd) = (pair[0], pair[1]);
            pair[0] = even * cosines[0] + odd * sines[0];
            pair[1] = odd * cosines[1] + even * sines[1];
        }
    }
}

/// See [`Kernels::attend`](crate::Kernels::attend).
pub(crate) fn attend(
    shape: AttentionShape,
    context: &[KeysValues<'_>],
    own: &KeyBlocks,
    rows: &mut [f32],
    scores: &mut Vec<f32>,
) {
    let (row_size, value_start) = (shape.row_size(), shape.query_size() + shape.key_size());
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    for row in 0..rows.len() / row_size {
        for head in 0..shape.heads {
            let kv_head = head / shape.group();
            let query = row * row_size + head * shape.head_dim;
            let score = |keys: &KeyBlocks, key: usize, query: &[f32]| {
                let dot: f32 = query
                    .iter()
                    .enumerate()
                    .map(|(at, value)| value * keys.at(kv_head, key, at))
                    .sum();
                dot * scale
            };
            let query = query..query + shape.head_dim;
            scores.clear();
            for part in context {
                scores.extend(
                    (0..part.keys.keys()).map(|key| score(part.keys, key, &rows[query.clone()])),
                );
            }
            scores.extend((0..=row).map(|key| score(own, key, &rows[query.clone()])));
            softmax(scores);
            for dimension in 0..shape.head_dim {
                let mut weights = scores.iter();
                let column = kv_head * shape.head_dim + dimension;
                let mut sum = 0.0;
                for part in context {
                    let values =
                        (0..part.keys.keys()).map(|key| part.values[key * part.stride + column]);
                    sum += values
                        .zip(&mut weights)
                        .map(|(value, weight)| value * weight)
                        .sum::<f32>();
                }
                let values = (0..=row).map(|key| rows[key * row_size + value_start + column]);
                sum += values
                    .zip(&mut weights)
                    .map(|(value, weight)| value * weight)
                    .sum::<f32>();
                // The query is no longer needed: its scores are known.
                rows[row * row_size + head * shape.head_dim + dimension] = sum;
            }
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
    }
    let sum: f32 = scores.iter().sum();
    for score in scores {
        *score /= sum;
    }
}
