//! Products with rows of 16-bit brain floats.

use trafficllm_kernels::cuda::{PackedWeights, RowKind, RowSet, Then};
use trafficllm_kernels::{GROUP_COLUMNS, WeightMatrix};

use super::rows::{FEW, KINDS, MANY, Rows, SOME, UNTOUCHED, matrix, same};
use crate::support::Random;

/// The bf16 value next to it.
fn rounded(value: f32) -> f64 {
    let bits = value.to_bits();
    let near = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    f64::from(if value.is_nan() {
        value
    } else {
        f32::from_bits(near)
    })
}

/// A weight, and the sum of the magnitudes of what it is made of.
fn weight(matrix: &WeightMatrix, channel: usize, column: usize) -> (f64, f64) {
    match matrix {
        WeightMatrix::Int8(matrix) => {
            let value = f64::from(matrix.values[channel * matrix.columns + column]);
            let weight = value * f64::from(matrix.scales[channel]);
            (weight, weight.abs())
        }
        WeightMatrix::Int4(matrix) => {
            let (group, at) = (
                (channel * matrix.columns + column) / GROUP_COLUMNS,
                column % GROUP_COLUMNS,
            );
            let byte = matrix.nibbles[group * GROUP_COLUMNS / 2 + at % (GROUP_COLUMNS / 2)];
            let nibble = f64::from(if at < GROUP_COLUMNS / 2 {
                byte & 15
            } else {
                byte >> 4
            });
            let scale = f64::from(matrix.scales[group]);
            match matrix.minimums.get(group) {
                None => ((nibble - 8.0) * scale, ((nibble - 8.0) * scale).abs()),
                Some(minimum) => {
                    let minimum = f64::from(*minimum);
                    (
                        nibble * scale - minimum,
                        (nibble * scale).abs() + minimum.abs(),
                    )
                }
            }
        }
    }
}

/// Rows are rounded to bf16 and weights are exact: what is left are sums in f32, which the matrix units may cut instead of rounding. Each of the
/// at most 2 for 16 columns costs 2^-23 of the magnitudes that were added up.
#[test]
fn products_of_bf16_rows_are_those_of_the_weights_within_the_rounding_of_sums() {
    let mut random = Random(55);
    for kind in KINDS {
        for (counts, channels, columns) in [(FEW, 37, 288), (SOME, 130, 64), (MANY, 24, 416)] {
            let mut rows = Rows::new(&mut random, counts, columns);
            let weights = matrix(&mut random, kind, channels, columns);
            let packed = rows.upload(&PackedWeights::stacked(&[&weights]).unwrap());
            let activations = rows.activations(RowSet::All, RowKind::Bf16);
            let output = rows
                .rig
                .upload(&vec![UNTOUCHED; rows.rig.class.rows() * channels]);
            rows.product(
                RowSet::All,
                &activations,
                &packed,
                Then::Store(&output),
                None,
            );
            let steps = (columns.next_multiple_of(128) / 8 + 2) as f64;
            for (at, found) in rows.rig.read(&output).iter().enumerate() {
                let (row, channel) = (at / channels, at % channels);
                if row >= rows.row_task.len() {
                    assert!(same(*found, UNTOUCHED), "row {row} is past the end");
                    continue;
                }
                let input = &rows.input[row * columns..][..columns];
                let (mut expected, mut magnitude) = (0.0, 0.0);
                for (column, value) in input.iter().enumerate() {
                    let (weight, parts) = weight(&weights, channel, column);
                    expected += rounded(*value) * weight;
                    magnitude += rounded(*value).abs() * parts;
                }
                let tolerance = magnitude * steps * 2.0_f64.powi(-23);
                let near = (f64::from(*found) - expected).abs() <= tolerance;
                let both_nan = found.is_nan() && expected.is_nan();
                assert!(
                    near || both_nan,
                    "{kind:?} row {row}, channel {channel}: {found} is not {expected}"
                );
            }
        }
    }
}
