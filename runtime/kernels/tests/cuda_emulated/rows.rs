//! Embedding, norm, quantisation and gathering on a device, bit for bit what the CPU gives.

use trafficllm_kernels::cuda::{Activations, EmbeddingTable, Floats, Norm, RowKind, RowSet};
use trafficllm_kernels::{
    GROUP_COLUMNS, Int4Matrix, Kernels, Level, QuantisedMatrix, QuantisedRows, WeightMatrix,
};

use crate::rig::{Lists, Rig};
use crate::support::Random;

const UNTOUCHED: f32 = -7.0;
const EPSILON: f32 = 1e-5;
/// Rows of the batch, and how many of them are tokens.
const ROWS: usize = 27;
const TOKENS: usize = 14;

fn rig(seed: u64) -> Rig {
    Rig::new(seed, Lists::rows(TOKENS, &[-1; ROWS], 0))
}

/// Which rows a set stands for, in a batch of these sizes.
fn rows_of(set: RowSet, rig: &Rig) -> std::ops::Range<usize> {
    match set {
        RowSet::All => 0..ROWS,
        RowSet::Tokens => 0..TOKENS,
        RowSet::Queries => TOKENS..ROWS,
        RowSet::Last => 0..rig.last_rows.len(),
    }
}

const SETS: [RowSet; 4] = [RowSet::All, RowSet::Tokens, RowSet::Queries, RowSet::Last];

fn kernels() -> Kernels {
    // A level whose products and sums are rounded once, where there is one.
    Kernels::new(Level::detect()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rows `[rows, stride]` of any kind: large, tiny, zeros, with NaN or infinity.
fn input(random: &mut Random, rows: usize, stride: usize, columns: usize) -> Vec<f32> {
    let mut input = random.values(rows * stride, 3.0);
    for (row, values) in input.chunks_exact_mut(stride).enumerate() {
        // What no kernel may read.
        values[columns..].fill(f32::NAN);
        let values = &mut values[..columns];
        match row % 11 {
            1 => values.fill(0.0),
            2 => values.iter_mut().for_each(|value| *value *= 1e30),
            3 => values.iter_mut().for_each(|value| *value *= 1e-42),
            4 => values[columns / 2] = f32::NAN,
            5 => values[columns - 1] = f32::NEG_INFINITY,
            6 => values[0] = 1e6,
            _ => {}
        }
    }
    input
}

#[test]
fn embeddings_are_those_of_the_cpu() {
    let mut random = Random(11);
    let vocabulary = 23;
    for hidden in [32, 96, 160, 1056] {
        let values = random.values(vocabulary * hidden, 0.4);
        let int8 = QuantisedMatrix::quantise(&values, vocabulary, hidden).unwrap();
        let groups = vocabulary * hidden / GROUP_COLUMNS;
        let mut int4 = |minimums: usize| Int4Matrix {
            rows: vocabulary,
            columns: hidden,
            nibbles: (0..vocabulary * hidden / 2)
                .map(|_| random.next() as u8)
                .collect(),
            scales: random.values(groups, 0.1),
            minimums: random.values(minimums, 0.5),
        };
        let tables: [WeightMatrix; 3] = [int8.into(), int4(0).into(), int4(groups).into()];
        let query_rows = 9;
        let query_embeddings = random.values(query_rows * hidden, 1.0);
        for table in tables {
            let mut lists = Lists::rows(TOKENS, &[-1; ROWS], 0);
            lists.bounds.vocabulary = vocabulary;
            lists.bounds.query_embeddings = query_rows;
            for (row, index) in lists.row_index.iter_mut().enumerate() {
                *index = random.below(if row < TOKENS { vocabulary } else { query_rows }) as u32;
            }
            let row_index = lists.row_index.clone();
            let mut rig = Rig::new(random.next(), lists);
            let device_table = EmbeddingTable::upload(&mut rig.stream, &table).unwrap();
            let device_queries = rig.upload(&query_embeddings);
            let residual = rig.upload(&vec![UNTOUCHED; rig.class.rows() * hidden]);
            rig.run(|run| run.embed(&device_table, &device_queries, &residual));
            let mut expected = vec![UNTOUCHED; rig.class.rows() * hidden];
            for (row, index) in row_index.iter().enumerate() {
                let (index, expected) = (*index as usize, &mut expected[row * hidden..][..hidden]);
                if row < TOKENS {
                    table.dequantise_row(index, expected);
                } else {
                    expected.copy_from_slice(&query_embeddings[index * hidden..][..hidden]);
                }
            }
            assert_eq!(
                bits(&rig.read(&residual)),
                bits(&expected),
                "hidden {hidden}"
            );
        }
    }
}

#[test]
fn quantised_rows_are_those_of_the_cpu() {
    let mut random = Random(12);
    // Less than a warp takes at once, whole steps, and tails of every kind.
    for columns in [16, 112, 128, 144, 512, 640, 1104] {
        for set in SETS {
            for has_norm in [false, true] {
                let mut rig = rig(random.next());
                let stride = columns + if has_norm { 0 } else { 20 };
                let rows = rig.class.rows();
                let input = input(&mut random, rows, stride, columns);
                let weight = random.values(columns, 2.0);
                let (values, device_weight) = (rig.upload(&input), rig.upload(&weight));
                let activations =
                    Activations::new(&rig.memory, RowKind::Int8, rows, columns, true).unwrap();
                let norm = has_norm.then_some(Norm {
                    weight: &device_weight,
                    epsilon: EPSILON,
                });
                let floats = Floats {
                    values: &values,
                    columns,
                    stride,
                };
                rig.run(|run| run.quantise(set, floats, norm, &activations));
                let mut expected = QuantisedRows::default();
                if has_norm {
                    kernels().rms_norm_quantise(&input, &weight, EPSILON, &mut expected);
                } else {
                    kernels().quantise(&input, stride, columns, &mut expected);
                }
                let padded = columns.next_multiple_of(128);
                let values = rig.read(activations.values());
                let scales = rig.read(activations.scales().unwrap());
                let sums = rig.read(activations.group_sums().unwrap());
                for row in rows_of(set, &rig) {
                    let (bytes, scale) = expected.row(row);
                    let mut bytes: Vec<u8> = bytes.iter().map(|byte| *byte as u8).collect();
                    bytes.resize(padded, 0);
                    let place = format!("row {row} of {columns} columns, {set:?}, norm {has_norm}");
                    assert_eq!(values[row * padded..][..padded], bytes, "{place}");
                    let same = scales[row].to_bits() == scale.to_bits();
                    assert!(same || scales[row].is_nan() && scale.is_nan(), "{place}");
                    for (group, bytes) in bytes.chunks_exact(GROUP_COLUMNS).enumerate() {
                        let sum: i32 = bytes.iter().map(|byte| i32::from(*byte as i8)).sum();
                        let found = sums[row * (padded / GROUP_COLUMNS) + group];
                        assert_eq!(found, sum, "group {group} of {place}");
                    }
                }
                // Rows that are not of the set stay zeros.
                let others = (0..rows).filter(|row| !rows_of(set, &rig).contains(row));
                for row in others {
                    assert!(
                        values[row * padded..][..padded]
                            .iter()
                            .all(|byte| *byte == 0)
                    );
                    assert_eq!(scales[row], 0.0);
                }
            }
        }
    }
}

/// The nearest 16-bit brain float, ties to even.
fn bf16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[test]
fn normed_rows_are_those_of_the_cpu() {
    let mut random = Random(13);
    for columns in [16, 48, 256, 1040] {
        for set in SETS {
            let mut rig = rig(random.next());
            let rows = rig.class.rows();
            let input = input(&mut random, rows, columns, columns);
            let weight = random.values(columns, 2.0);
            let (values, device_weight) = (rig.upload(&input), rig.upload(&weight));
            let output = rig.upload(&vec![UNTOUCHED; rows * columns]);
            let activations =
                Activations::new(&rig.memory, RowKind::Bf16, rows, columns, false).unwrap();
            rig.run(|run| {
                let norm = Norm {
                    weight: &device_weight,
                    epsilon: EPSILON,
                };
                let floats = Floats {
                    values: &values,
                    columns,
                    stride: columns,
                };
                run.normalise(set, floats, norm, &output)?;
                run.quantise(set, floats, Some(norm), &activations)
            });
            let mut expected = vec![0.0; input.len()];
            kernels().rms_norm(&input, &weight, EPSILON, &mut expected);
            let found = rig.read(&output);
            let halves = rig.read(activations.values());
            let padded = columns.next_multiple_of(128);
            for row in 0..rows {
                let found = &found[row * columns..][..columns];
                let halves: Vec<u16> = halves[row * padded * 2..][..padded * 2]
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|bytes| u16::from_le_bytes(*bytes))
                    .collect();
                let place = format!("row {row} of {columns} columns, {set:?}");
                if !rows_of(set, &rig).contains(&row) {
                    assert!(found.iter().all(|value| *value == UNTOUCHED), "{place}");
                    assert!(halves.iter().all(|half| *half == 0), "{place}");
                    continue;
                }
                let expected = &expected[row * columns..][..columns];
                let (halves, padding) = halves.split_at(columns);
                assert!(padding.iter().all(|half| *half == 0), "{place}");
                for ((expected, found), half) in expected.iter().zip(found).zip(halves) {
                    let same = expected.to_bits() == found.to_bits();
                    assert!(same || expected.is_nan() && found.is_nan(), "{place}");
                    assert_eq!(*half, bf16(*expected), "{place}");
                }
            }
        }
    }
}

#[test]
fn last_rows_are_gathered() {
    let mut random = Random(14);
    for columns in [16, 128, 520] {
        let mut rig = rig(random.next());
        let values = random.values(rig.class.rows() * columns, 1.0);
        let from = rig.upload(&values);
        let to = rig.upload(&vec![UNTOUCHED; rig.class.queries * columns]);
        rig.run(|run| run.gather(&from, columns, &to));
        let mut expected = vec![UNTOUCHED; rig.class.queries * columns];
        for (query, row) in rig.last_rows.iter().enumerate() {
            expected[query * columns..][..columns]
                .copy_from_slice(&values[*row as usize * columns..][..columns]);
        }
        assert_eq!(bits(&rig.read(&to)), bits(&expected));
    }
}
