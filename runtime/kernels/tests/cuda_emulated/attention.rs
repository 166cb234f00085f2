//! Attention on a device against the CPU's, which is f32 throughout. A device rounds queries, keys and values to 16-bit floats, and the
//! weights of the softmax too.

mod case;

use trafficllm_kernels::AttentionShape;

use crate::support::Random;

use self::case::{Case, Sequence, Source};

/// Largest difference, relative to the largest magnitude of the row and head. Measured over these cases: 1.2e-3.
const TOLERANCE: f32 = 1.5e-3;
/// The same where queries, keys and values are 16-bit floats to begin with. Measured: 4.8e-4.
const TOLERANCE_OF_WEIGHTS: f32 = 6e-4;

fn shape(head_dim: usize, heads: usize, kv_heads: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
    }
}

fn sequence(beginning: usize, prefix: usize, tokens: usize, queries: usize) -> Sequence {
    Sequence {
        beginning,
        prefix,
        tokens,
        queries,
    }
}

/// The largest difference of a row and head, relative to the largest magnitude of it.
fn difference(shape: AttentionShape, expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let heads = expected
        .chunks_exact(shape.head_dim)
        .zip(found.chunks_exact(shape.head_dim));
    let differences = heads.map(|(expected, found)| {
        let largest = expected
            .iter()
            .fold(0.0_f32, |largest, value| largest.max(value.abs()));
        expected
            .iter()
            .zip(found)
            .fold(0.0_f32, |difference, (expected, found)| {
                assert!(found.is_finite(), "{found} instead of {expected}");
                difference.max((expected - found).abs() / largest)
            })
    });
    differences.fold(0.0, f32::max)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn attention_agrees_with_the_cpu() {
    let mut random = Random(1);
    let shapes = [
        (16, 4, 4),
        (32, 6, 2),
        (64, 8, 1),
        (64, 3, 3),
        (80, 5, 1),
        (128, 4, 2),
        (208, 2, 1),
    ];
    let mut largest = 0.0_f32;
    for (head_dim, heads, kv_heads) in shapes {
        let shape = shape(head_dim, heads, kv_heads);
        let mut sequences = vec![
            // A prefix alone; a beginning alone; neither; both; more than one tile, and queries only.
            sequence(0, 9, 20, 16),
            sequence(17, 0, 1, 1),
            sequence(0, 0, 64, 3),
            sequence(31, 33, 70, 0),
            sequence(5, 40, 0, 7),
            sequence(0, 0, 0, 2),
        ];
        for _ in 0..2 {
            let [beginning, prefix, tokens] = [40, 40, 130].map(|end| random.below(end));
            sequences.push(sequence(beginning, prefix, tokens, 1 + random.below(16)));
        }
        let case = Case::random(&mut random, shape, &sequences);
        let found = difference(shape, &case.expected(), &case.run(random.next()));
        assert!(found < TOLERANCE, "{shape:?}: {found:e}");
        largest = largest.max(found);
        let rounded = case.rounded();
        let found = difference(shape, &rounded.expected(), &rounded.run(0));
        assert!(found < TOLERANCE_OF_WEIGHTS, "{shape:?}: {found:e}");
    }
    // A bound far off would hide a worse kernel.
    assert!(largest > TOLERANCE / 4.0, "{largest:e}");
}

/// Nor on the order in which threads run.
#[test]
fn results_depend_on_nothing_but_what_rows_see() {
    let mut random = Random(2);
    let shape = shape(32, 4, 2);
    let sequences = [
        sequence(3, 20, 90, 5),
        sequence(0, 7, 33, 16),
        sequence(12, 0, 50, 2),
    ];
    let case = Case::random(&mut random, shape, &sequences);
    let together = case.run(0);
    assert_eq!(bits(&together), bits(&case.run(7)));
    let size = shape.query_size();
    for (at, (sequence, place)) in sequences.iter().zip(case.places()).enumerate() {
        let rows = |values: &[f32], width: usize| {
            let tokens = &values[place.tokens * width..][..sequence.tokens * width];
            let queries = &values[place.queries * width..][..sequence.queries * width];
            [tokens, queries].concat()
        };
        // Shares what comes before it, which stands where it stood.
        let mut alone = case.clone();
        alone.sequences = vec![*sequence];
        alone.queries = rows(&case.queries, size);
        let sources = [place.prefix, place.beginning].map(|first| first - 1);
        let key_size = shape.key_size();
        alone.sources[0] = Source {
            keys: rows(&case.sources[0].keys, key_size),
            values: rows(&case.sources[0].values, key_size),
        };
        for (source, first) in alone.sources[1..].iter_mut().zip(sources) {
            source.keys.drain(..first * key_size);
            source.values.drain(..first * key_size);
        }
        let found = alone.run(0);
        assert_eq!(bits(&rows(&together, size)), bits(&found), "sequence {at}");
    }
}

/// NaN in a row's query, key or value reaches what sees it and nothing else.
#[test]
fn nan_stays_where_it_is_seen() {
    let mut random = Random(3);
    let shape = shape(32, 4, 2);
    let (query_size, key_size) = (shape.query_size(), shape.key_size());
    let sequences = [
        sequence(0, 5, 75, 4),
        sequence(6, 0, 40, 3),
        sequence(0, 0, 3, 16),
    ];
    let case = Case::random(&mut random, shape, &sequences);
    let clean = case.run(0);
    let places = case.places();
    let last_token = |at: usize| places[at].tokens + sequences[at].tokens - 1;
    // The first row of a sequence, one in the middle of a tile, one of a second tile, the last one, and rows of queries.
    let bad_rows = [
        places[1].tokens,
        places[0].tokens + 21,
        places[0].tokens + 66,
        last_token(1),
        places[2].queries + 9,
        places[0].queries,
    ];
    for bad in bad_rows {
        // All of the row; its key alone; one value of the second of its key heads.
        for kind in 0..3 {
            let mut case = case.clone();
            let (head, dimension) = (1, 13);
            let start = bad * key_size;
            match kind {
                0 => {
                    case.queries[bad * query_size..][..query_size].fill(f32::NAN);
                    case.sources[0].keys[start..][..key_size].fill(f32::NAN);
                    case.sources[0].values[start..][..key_size].fill(f32::NAN);
                }
                1 => case.sources[0].keys[start + head * shape.head_dim..][..shape.head_dim]
                    .fill(f32::NAN),
                _ => case.sources[0].values[start + head * shape.head_dim + dimension] = f32::NAN,
            }
            let found = case.run(0);
            for (at, (found, clean)) in found.iter().zip(&clean).enumerate() {
                let (row, column) = (at / query_size, at % query_size);
                let sees = sequences.iter().zip(&places).any(|(sequence, place)| {
                    let tokens = place.tokens..place.tokens + sequence.tokens;
                    let queries = place.queries..place.queries + sequence.queries;
                    (tokens.contains(&bad) || queries.contains(&bad))
                        && (tokens.contains(&row) || queries.contains(&row))
                        && row >= bad
                });
                let key_head = column / shape.head_dim / 2;
                let nan = sees
                    && (kind == 0
                        || key_head == head && (kind == 1 || column % shape.head_dim == dimension));
                let place = (bad, kind, row, column);
                assert_eq!(found.is_nan(), nan, "{place:?}");
                assert!(nan || found.to_bits() == clean.to_bits(), "{place:?}");
            }
        }
    }
}

/// Scores so large that all weight is on one key, and values at the end of the range of 16-bit floats.
#[test]
fn large_numbers_stay_numbers() {
    let mut random = Random(4);
    let shape = shape(64, 4, 4);
    let mut case = Case::random(&mut random, shape, &[sequence(0, 30, 100, 16)]);
    // With scores as large as these, rounding would choose other keys.
    let sources = case.sources.iter_mut();
    let keys = sources.flat_map(|source| {
        source
            .values
            .iter_mut()
            .for_each(|value| *value *= 65_504.0);
        &mut source.keys
    });
    for value in keys.chain(&mut case.queries) {
        *value *= 8_000.0;
    }
    let case = case.rounded();
    let found = difference(shape, &case.expected(), &case.run(0));
    assert!(found < 1e-6, "{found:e}");
}
