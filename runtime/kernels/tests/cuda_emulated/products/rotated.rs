//! Queries, keys and values of a batch.

use trafficllm_kernels::cuda::{PackedWeights, Rotary, Rotated, RowKind, RowSet, Then, WeightKind};
use trafficllm_kernels::{AttentionShape, RotaryTable, half};

use super::rows::{Additions, FEW, MANY, MORE, Rows, SOME, kernels, matrix};
use crate::support::Random;

/// What stands where nothing is written.
const UNTOUCHED: u16 = 0x7a5a;

/// Largest finite value of 16-bit floats where a value is larger.
fn to_half(value: f32) -> u16 {
    half::to_bits(value.clamp(-65504.0, 65504.0))
}

#[test]
fn rotated_products_are_the_cpus_rounded_to_16_bits() {
    let mut random = Random(54);
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 48,
    };
    let (query_size, key_size) = (shape.query_size(), shape.key_size());
    let cases = [
        (WeightKind::Int8, SOME, false),
        (WeightKind::Int8, MANY, true),
        (WeightKind::Int4, MORE, false),
        (WeightKind::Int4Minimums, FEW, true),
    ];
    for (kind, counts, has_additions) in cases {
        let mut rows = Rows::new(&mut random, counts, 192);
        let parts = [query_size, key_size, key_size]
            .map(|channels| matrix(&mut random, kind, channels, 192));
        let parts = [&parts[0], &parts[1], &parts[2]];
        let packed = rows.upload(&PackedWeights::stacked(&parts).unwrap());
        let table = RotaryTable::new(40, shape.head_dim, 10_000.0).unwrap();
        let rotary = Rotary::upload(&mut rows.rig.stream, &table).unwrap();
        let activations = rows.activations(RowSet::All, RowKind::Int8);
        let additions = has_additions
            .then(|| Additions::new(&mut random, &mut rows, RowSet::All, shape.row_size()));
        let [queries, keys, values] = [query_size, key_size, key_size].map(|size| {
            rows.rig
                .upload(&vec![UNTOUCHED; rows.rig.class.rows() * size])
        });
        // As in a last layer: keys and values of all rows, queries of those of queries alone.
        for (set, keys_only) in [(RowSet::Tokens, true), (RowSet::Queries, false)] {
            let rotated = Rotated {
                queries: &queries,
                keys: &keys,
                values: &values,
                rotary: &rotary,
                shape,
                keys_only,
            };
            let low_rank = additions.as_ref().map(Additions::rows);
            rows.product(set, &activations, &packed, Then::Rotary(rotated), low_rank);
        }
        let [queries, keys, values] =
            [&queries, &keys, &values].map(|buffer| rows.rig.read(buffer));
        let mut products = rows.expected(&parts);
        let products = products.chunks_exact_mut(shape.row_size()).enumerate();
        let (mut expected_queries, mut expected_keys, mut expected_values) =
            (Vec::new(), Vec::new(), Vec::new());
        for (row, product) in products {
            let in_batch = row < rows.row_task.len();
            if let (true, Some(additions)) = (in_batch, &additions) {
                additions.add(&rows, RowSet::All, row, product);
            }
            if in_batch {
                let position = rows.positions[row] as usize;
                kernels().rotate(&mut product[..query_size + key_size], &table, position);
            }
            let halves = |values: &[f32], is_written: bool| -> Vec<u16> {
                values
                    .iter()
                    .map(|value| {
                        if is_written {
                            to_half(*value)
                        } else {
                            UNTOUCHED
                        }
                    })
                    .collect()
            };
            let (query, rest) = product.split_at(query_size);
            let (key, value) = rest.split_at(key_size);
            expected_queries.extend(halves(query, in_batch && row >= rows.tokens));
            expected_keys.extend(halves(key, in_batch));
            expected_values.extend(halves(value, in_batch));
        }
        for (found, expected) in [
            (queries, expected_queries),
            (keys, expected_keys),
            (values, expected_values),
        ] {
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let is_nan = [found, expected].map(|bits| half::from_bits(*bits).is_nan());
                assert!(
                    found == expected || is_nan == [true; 2],
                    "{kind:?} value {at}: {found:x} is not {expected:x}"
                );
            }
        }
    }
}
