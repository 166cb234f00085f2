//! A batch that attends: on the CPU, and on a device.

use trafficllm_kernels::cuda::{
    AttentionTile, KeyRange, KeySources, QUERY_TILE, TOKEN_TILE, Tiles,
};
use trafficllm_kernels::{
    AttentionScratch, AttentionShape, Kernels, KeyBlocks, KeysValues, Level, half,
};

use crate::rig::{Lists, Rig};
use crate::support::Random;

/// What stands in rows that nobody may read, and in results that nobody may write.
const UNTOUCHED: f32 = -12_345.0;

/// Rows of one source of keys and values, `[rows, kv_heads * head_dim]` each.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

/// A sequence of tokens with a query after it; parts of its context may be empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub(super) beginning: usize,
    pub(super) prefix: usize,
    pub(super) tokens: usize,
    pub(super) queries: usize,
}

/// All sequences of a batch. Rows: tokens of all, then query rows of all.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) shape: AttentionShape,
    pub(super) sequences: Vec<Sequence>,
    pub(super) queries: Vec<f32>,
    /// Rows of the batch, prefixes, beginnings.
    pub(super) sources: [Source; 3],
}

/// Where the rows of a sequence stand.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) tokens: usize,
    pub(super) queries: usize,
    pub(super) prefix: usize,
    pub(super) beginning: usize,
}

impl Case {
    /// Between the prefixes of sequences, and between their beginnings, stand rows of NaN.
    pub(super) fn random(
        random: &mut Random,
        shape: AttentionShape,
        sequences: &[Sequence],
    ) -> Self {
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
    pub(super) fn rounded(mut self) -> Self {
        let sources = self.sources.iter_mut();
        let lists = sources.flat_map(|source| [&mut source.keys, &mut source.values]);
        for value in lists.chain([&mut self.queries]).flatten() {
            *value = half::from_bits(f16(*value));
        }
        self
    }

    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens).sum()
    }

    pub(super) fn rows(&self) -> usize {
        self.queries.len() / self.shape.query_size()
    }

    pub(super) fn places(&self) -> Vec<Place> {
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
    pub(super) fn expected(&self) -> Vec<f32> {
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
            blocks.fill(
                shape,
                &self.sources[source].keys[first * size..],
                size,
                count,
            );
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
                query_tiles.push(tile(
                    &context,
                    place.queries,
                    place.queries,
                    sequence.queries,
                ));
            }
        }
        (token_tiles, query_tiles)
    }

    /// What a device gives, its threads in the order of that seed. Rows past those of the batch stay as they were.
    pub(super) fn run(&self, seed: u64) -> Vec<f32> {
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
            (
                upload(&source.keys, rows * size),
                upload(&source.values, rows * size),
            )
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
        assert!(
            rest.iter().all(|value| *value == UNTOUCHED),
            "rows past the batch's"
        );
        results
    }
}

/// As the products store queries, keys and values.
pub(super) fn f16(value: f32) -> u16 {
    // `clamp` keeps NaN.
    half::to_bits(value.clamp(-65_504.0, 65_504.0))
}
