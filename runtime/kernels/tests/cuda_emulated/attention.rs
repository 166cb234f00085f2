//! Attention on a device against the CPU's, which is f32 throughout. A device rounds queries, keys and values to 16-bit floats, and the
//! weights of the softmax too.

use trafficllm_kernels::cuda::{AttentionTile, KeyRange, KeySources, QUERY_TILE, TOKEN_TILE, Tiles};
use trafficllm_kernels::{
    AttentionScratch, AttentionShape, KeyBlocks, Kernels, KeysValues, Level, half,
};

use crate::rig::{Lists, Rig};
use crate::support::Random;

/// Largest difference, relative to the largest magnitude of the row and head. Measured over these cases: 1.2e-3.
const TOLERANCE: f32 = 1.5e-3;
/// The same where queries, keys and values are 16-bit floats to begin with. Measured: 4.8e-4.
const TOLERANCE_OF_WEIGHTS: f32 = 6e-4;
/// What stands in rows that nobody may read, and in results that nobody may write.
const UNTOUCHED: f32 = -12_345.0;

/// Rows of one source of keys and values, `[rows, kv_heads * head_dim]` each.
#[derive(Clone)]
struct Source {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// A sequence of tokens with a query after it; parts of its context may be empty.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    beginning: usize,
    prefix: usize,
    tokens: usize,
    queries: usize,
}

/// All sequences of a batch. Rows: tokens of all, then query rows of all.
#[derive(Clone)]
struct Case {
    shape: AttentionShape,
    sequences: Vec<Sequence>,
    queries: Vec<f32>,
    /// Rows of the batch, prefixes, beginnings.
    sources: [Source; 3],
}

/// Where the rows of a sequence stand.
#[derive(Clone, Copy)]
struct Place {
    tokens: usize,
    queries: usize,
    prefix: usize,
    beginning: usize,
}

impl Case {
    /// Between the prefixes of sequences, and between their beginnings, stand rows of NaN.
    fn random(random: &mut Random, shape: AttentionShape, sequences: &[Sequence]) -> Self {
        let sum = |part: fn(&Sequence) -> usize| sequences.iter().map(part).sum::<usize>();
        let rows = sum(|sequence| sequence.tokens + sequence.queries);
        let counts = [
            rows,
            sum(|sequence| sequence.prefix + 1) + 1,
            sum(|sequence| sequence.beginning + 1) + 1,
        ];
        let size = shape.key_size();
        let sources = counts.map(|count| Source {
            keys: random.values(count * size, 2.0),
            values: random.values(count * size, 1.0),
        });
        let mut case = Self {
            shape,
            sequences: sequences.to_vec(),
            queries: random.values(rows * shape.query_size(), 2.0),
            sources,
        };
        let mut free = [vec![true; counts[1]], vec![true; counts[2]]];
        for (sequence, place) in sequences.iter().zip(case.places()) {
            free[0][place.prefix..][..sequence.prefix].fill(false);
            free[1][place.beginning..][..sequence.beginning].fill(false);
        }
        for (source, free) in case.sources[1..].iter_mut().zip(free) {
            for row in (0..free.len()).filter(|row| free[*row]) {
                source.keys[row * size..][..size].fill(f32::NAN);
                source.values[row * size..][..size].fill(f32::NAN);
            }
        }
        case
    }

    /// The same with numbers that 16-bit floats can have.
    fn rounded(mut self) -> Self {
        let sources = self.sources.iter_mut();
        let lists = sources.flat_map(|source| [&mut source.keys, &mut source.values]);
        for value in lists.chain([&mut self.queries]).flatten() {
            *value = half::from_bits(f16(*value));
        }
        self
    }

    fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens).sum()
    }

    fn rows(&self) -> usize {
        self.queries.len() / self.shape.query_size()
    }

    fn places(&self) -> Vec<Place> {
        let mut next = Place {
            tokens: 0,
            queries: self.tokens(),
            prefix: 1,
            beginning: 1,
        };
        let place = |sequence: &Sequence| {
            let place = next;
            next.tokens += sequence.tokens;
            next.queries += sequence.queries;
            next.prefix += sequence.prefix + 1;
            next.beginning += sequence.beginning + 1;
            place
        };
        self.sequences.iter().map(place).collect()
    }

    /// What the CPU's reference gives, `[rows, heads * head_dim]`.
    fn expected(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.queries.len()];
        for (sequence, place) in self.sequences.iter().zip(self.places()) {
            let context = [
                (2, place.beginning, sequence.beginning),
                (1, place.prefix, sequence.prefix),
                (0, place.tokens, sequence.tokens),
            ];
            self.attend(&context[..2], place.tokens, sequence.tokens, &mut output);
            self.attend(&context, place.queries, sequence.queries, &mut output);
        }
        output
    }

    /// Rows `first..first + count` of the batch, with a context of `(source, first, count)`.
    fn attend(
        &self,
        context: &[(usize, usize, usize)],
        first: usize,
        count: usize,
        output: &mut [f32],
    ) {
        let shape = self.shape;
        let (size, query_size) = (shape.key_size(), shape.query_size());
        let blocks = |source: usize, first: usize, count: usize| {
            let mut blocks = KeyBlocks::default();
            blocks.fill(shape, &self.sources[source].keys[first * size..], size, count);
            blocks
        };
        let keys: Vec<KeyBlocks> = context
            .iter()
            .map(|&(source, first, count)| blocks(source, first, count))
            .collect();
        let parts: Vec<KeysValues<'_>> = context
            .iter()
            .zip(&keys)
            .map(|(&(source, first, _), keys)| KeysValues {
                keys,
                values: &self.sources[source].values[first * size..],
                stride: size,
            })
            .collect();
        let mut rows = Vec::new();
        for row in first..first + count {
            rows.extend_from_slice(&self.queries[row * query_size..][..query_size]);
            rows.extend_from_slice(&self.sources[0].keys[row * size..][..size]);
            rows.extend_from_slice(&self.sources[0].values[row * size..][..size]);
        }
        let own = blocks(0, first, count);
        let mut scratch = AttentionScratch::default();
        let kernels = Kernels::new(Level::Portable).unwrap();
        kernels.attend(shape, &parts, &own, &mut rows, &mut scratch);
        for (row, result) in rows.chunks_exact(shape.row_size()).enumerate() {
            output[(first + row) * query_size..][..query_size]
                .copy_from_slice(&result[..query_size]);
        }
    }

    /// The tiles of tokens, and those of queries.
    fn tiles(&self) -> (Vec<AttentionTile>, Vec<AttentionTile>) {
        let (mut token_tiles, mut query_tiles) = (Vec::new(), Vec::new());
        for (at, (sequence, place)) in self.sequences.iter().zip(self.places()).enumerate() {
            let range = |source: u32, first: usize, count: usize| KeyRange {
                source,
                first: first as u32,
                count: count as u32,
                ..KeyRange::default()
            };
            let mut context = vec![
                range(2, place.beginning, sequence.beginning),
                range(1, place.prefix, sequence.prefix),
            ];
            if at % 2 == 0 {
                // Empty ranges may be left out or not.
                context.retain(|range| range.count > 0);
            }
            let tile = |context: &[KeyRange], own: usize, first: usize, rows: usize| {
                let mut tile = AttentionTile {
                    first_row: first as u32,
                    rows: rows as u32,
                    own_first: own as u32,
                    ranges: context.len() as u32,
                    ..AttentionTile::default()
                };
                tile.context[..context.len()].copy_from_slice(context);
                tile
            };
            for start in (0..sequence.tokens).step_by(TOKEN_TILE as usize) {
                let rows = (sequence.tokens - start).min(TOKEN_TILE as usize);
                token_tiles.push(tile(&context, place.tokens, place.tokens + start, rows));
            }
            context.push(range(0, place.tokens, sequence.tokens));
            if sequence.queries > 0 {
                assert!(sequence.queries <= QUERY_TILE as usize);
                query_tiles.push(tile(&context, place.queries, place.queries, sequence.queries));
            }
        }
        (token_tiles, query_tiles)
    }

    /// What a device gives, its threads in the order of that seed. Rows past those of the batch stay as they were.
    fn run(&self, seed: u64) -> Vec<f32> {
        let shape = self.shape;
        let (tokens, rows) = (self.tokens(), self.rows());
        let (token_tiles, query_tiles) = self.tiles();
        let size = shape.key_size();
        let mut lists = Lists::rows(tokens, &vec![-1; rows], 0);
        lists.bounds.prefix_rows = self.sources[1].keys.len() / size;
        lists.bounds.beginning_rows = self.sources[2].keys.len() / size;
        (lists.token_tiles, lists.query_tiles) = (token_tiles, query_tiles);
        let mut rig = Rig::new(seed, lists);
        let class_rows = rig.class.rows();
        // Rows of the class that the batch does not have hold NaN.
        let mut upload = |values: &[f32], length: usize| {
            let mut bits: Vec<u16> = values.iter().map(|value| f16(*value)).collect();
            bits.resize(bits.len().max(length), f16(f32::NAN));
            rig.upload(&bits)
        };
        let queries = upload(&self.queries, class_rows * shape.query_size());
        let mut pair = |source: &Source, rows: usize| {
            (upload(&source.keys, rows * size), upload(&source.values, rows * size))
        };
        let own = pair(&self.sources[0], class_rows);
        let prefixes = pair(&self.sources[1], 0);
        let beginnings = pair(&self.sources[2], 0);
        let output = rig.upload(&vec![UNTOUCHED; class_rows * shape.query_size()]);
        rig.run(|run| {
            let sources = KeySources {
                own: (&own.0, &own.1),
                prefixes: Some((&prefixes.0, &prefixes.1)),
                beginnings: Some((&beginnings.0, &beginnings.1)),
            };
            run.attend(Tiles::Tokens, shape, &queries, sources, &output)?;
            run.attend(Tiles::Queries, shape, &queries, sources, &output)
        });
        let mut results = rig.read(&output);
        let rest = results.split_off(rows * shape.query_size());
        assert!(rest.iter().all(|value| *value == UNTOUCHED), "rows past the batch's");
        results
    }
}

/// As the products store queries, keys and values.
fn f16(value: f32) -> u16 {
    // `clamp` keeps NaN.
    half::to_bits(value.clamp(-65_504.0, 65_504.0))
}

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
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        expected.iter().zip(found).fold(0.0_f32, |difference, (expected, found)| {
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
        source.values.iter_mut().for_each(|value| *value *= 65_504.0);
        &mut source.keys
    });
    for value in keys.chain(&mut case.queries) {
        *value *= 8_000.0;
    }
    let case = case.rounded();
    let found = difference(shape, &case.expected(), &case.run(0));
    assert!(found < 1e-6, "{found:e}");
}
