//! The reference kernels: plain loops that say what every level computes.

use crate::attention::{AttentionShape, KeyBlocks, KeysValues};
use crate::fast::output::{Product, Then};
use crate::int4::NIBBLE_OFFSET;
use crate::limits::LOW_RANK_MAX;
use crate::low_rank::LowRank;
use crate::packed::{Epilogue, PANEL_CHANNELS};
use crate::rotary::RotaryTable;
use crate::vector::{EXP2_COEFFICIENTS, SUM_LANES};
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

/// See [`PackedMatrix::multiply`](crate::PackedMatrix::multiply).
pub(crate) fn multiply(matrix: &WeightMatrix, product: Product<'_>) {
    let Product {
        rows,
        channels,
        output,
        stride,
        then,
    } = product;
    for row in 0..rows.rows() {
        match then {
            // Panels of 16 gate channels and of 16 up channels take turns in `matrix`.
            Then::Gated => {
                for channel in 0..matrix.rows() / 2 {
                    let gate_channel = channel + channel / PANEL_CHANNELS * PANEL_CHANNELS;
                    let gate = dot(matrix, gate_channel, rows, row);
                    let up = dot(matrix, gate_channel + PANEL_CHANNELS, rows, row);
                    output[row * stride + channel] = gated(gate, up);
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

/// `gate / (1 + exp(-gate)) * up`.
fn gated(gate: f32, up: f32) -> f32 {
    let power = exp2(gate * -std::f32::consts::LOG2_E);
    gate / (power + 1.0) * up
}

/// The products of a row with the rows of the first factor, and how many they are.
fn coefficients(factors: LowRank<'_>, input: &[f32]) -> ([f32; LOW_RANK_MAX], usize) {
    let mut coefficients = [0.0; LOW_RANK_MAX];
    for (rank, coefficient) in coefficients[..factors.rank].iter_mut().enumerate() {
        let row = &factors.a[rank * input.len()..][..input.len()];
        *coefficient = fold(four_sums(row, input));
    }
    (coefficients, factors.rank)
}

/// See [`Kernels::add_low_rank`](crate::Kernels::add_low_rank).
pub(crate) fn add_low_rank(factors: LowRank<'_>, input: &[f32], output: &mut [f32]) {
    let (coefficients, rank) = coefficients(factors, input);
    let columns = output.len();
    for (rank, coefficient) in coefficients[..rank].iter().enumerate() {
        let row = &factors.b[rank * columns..][..columns];
        for (output, value) in output.iter_mut().zip(row) {
            *output = fused(*coefficient, *value, *output);
        }
    }
}

/// See [`Kernels::gate_low_rank`](crate::Kernels::gate_low_rank).
pub(crate) fn gate_low_rank(
    factors: LowRank<'_>,
    input: &[f32],
    products: &[f32],
    output: &mut [f32],
) {
    let (coefficients, rank) = coefficients(factors, input);
    let width = output.len();
    for (channel, output) in output.iter_mut().enumerate() {
        let gate_channel = channel + channel / PANEL_CHANNELS * PANEL_CHANNELS;
        let (mut gate, mut up) = (
            products[gate_channel],
            products[gate_channel + PANEL_CHANNELS],
        );
        for (rank, coefficient) in coefficients[..rank].iter().enumerate() {
            let row = &factors.b[rank * 2 * width..][..2 * width];
            gate = fused(*coefficient, row[channel], gate);
            up = fused(*coefficient, row[width + channel], up);
        }
        *output = gated(gate, up);
    }
}

/// `a * b + c`. Rounded once where the target's instructions do so; else through f64, which differs from that once in some hundred
/// million times, but does not take a call.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        (f64::from(a) * f64::from(b) + f64::from(c)) as f32
    }
}

/// `2^x`, as the other levels compute it.
fn exp2(x: f32) -> f32 {
    let x = x.clamp(-250.0, 250.0);
    let floor = x.floor();
    let [first, rest @ ..] = EXP2_COEFFICIENTS;
    let power = rest.iter().fold(first, |power, coefficient| {
        fused(power, x - floor, *coefficient)
    });
    // In two factors, so that each has a normal exponent and the product rounds once. NaN makes `power` NaN.
    let exponent = floor as i32;
    let factor = |exponent: i32| f32::from_bits(((exponent + 127) << 23).cast_unsigned());
    power * factor(exponent >> 1) * factor(exponent - (exponent >> 1))
}

/// Adds halves to halves, down to one value.
fn fold(mut sums: [f32; SUM_LANES]) -> f32 {
    let mut half = SUM_LANES / 2;
    while half > 0 {
        let (low, high) = sums.split_at_mut(half);
        low.iter_mut()
            .zip(high)
            .for_each(|(low, high)| *low += *high);
        half /= 2;
    }
    sums[0]
}

/// Sums of the products of two rows in lanes: 64 take every 64th product each, then four become one.
fn four_sums(a: &[f32], b: &[f32]) -> [f32; SUM_LANES] {
    let mut sums = [[0.0; SUM_LANES]; 4];
    for (group, (a, b)) in a.chunks(SUM_LANES).zip(b.chunks(SUM_LANES)).enumerate() {
        for (sum, (a, b)) in sums[group % 4].iter_mut().zip(a.iter().zip(b)) {
            *sum = fused(*a, *b, *sum);
        }
    }
    let [first, second, third, fourth] = sums;
    std::array::from_fn(|at| (first[at] + second[at]) + (third[at] + fourth[at]))
}

/// `input * weight / sqrt(mean(input^2) + epsilon)`, value by value.
pub(crate) fn rms_norm<'a>(
    input: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
) -> impl Iterator<Item = f32> + Clone + 'a {
    let factor = 1.0 / (fold(four_sums(input, input)) / input.len() as f32 + epsilon).sqrt();
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
    // exp(x) = 2^(x log2(e)).
    let factor = std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt();
    for row in 0..rows.len() / row_size {
        for head in 0..shape.heads {
            let kv_head = head / shape.group();
            let query = row * row_size + head * shape.head_dim;
            let score = |keys: &KeyBlocks, key: usize, query: &[f32]| {
                let values = query.iter().enumerate();
                values.fold(0.0, |sum, (at, value)| {
                    fused(keys.at(kv_head, key, at), *value, sum)
                })
            };
            let query = query..query + shape.head_dim;
            scores.clear();
            for part in context {
                scores.extend(
                    (0..part.keys.keys()).map(|key| score(part.keys, key, &rows[query.clone()])),
                );
            }
            scores.extend((0..=row).map(|key| score(own, key, &rows[query.clone()])));
            let counts = context.iter().map(|part| part.keys.keys()).chain([row + 1]);
            let sum = weigh(scores, counts, factor);
            for dimension in 0..shape.head_dim {
                let mut weights = scores.iter();
                let column = kv_head * shape.head_dim + dimension;
                let mut result = 0.0;
                for part in context {
                    for key in 0..part.keys.keys() {
                        let weight = weights.next().copied().unwrap_or_default();
                        result = fused(part.values[key * part.stride + column], weight, result);
                    }
                }
                for (key, weight) in weights.enumerate() {
                    result = fused(rows[key * row_size + value_start + column], *weight, result);
                }
                // The query is no longer needed: its scores are known.
                rows[row * row_size + head * shape.head_dim + dimension] = result * (1.0 / sum);
            }
        }
    }
}

/// Replaces scores by `2^(score * factor - largest)` and gives back their sum. Key `j` of a part of that many keys is added up with the others
/// whose number leaves the same rest.
fn weigh(scores: &mut [f32], counts: impl Iterator<Item = usize>, factor: f32) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) * factor;
    let mut sums = [0.0; SUM_LANES];
    let mut rest = scores;
    for count in counts {
        let part;
        (part, rest) = rest.split_at_mut(count);
        for (key, score) in part.iter_mut().enumerate() {
            *score = exp2(fused(*score, factor, -largest));
            sums[key % SUM_LANES] += *score;
        }
    }
    fold(sums)
}
