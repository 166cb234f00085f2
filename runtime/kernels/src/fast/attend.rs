//! Attention in f32: scores, softmax and weighted values of several rows at a time.

use crate::attention::{AttentionShape, BLOCK_KEYS, CONTEXT_PARTS_MAX, KeyBlocks, KeysValues};
use crate::vector::{SUM_LANES, SUM_REGISTERS_MAX, Task, Vector};

/// Registers of keys, or of values, that a tile works on.
const REGISTERS: usize = 2;
/// A block of keys is what one sum of weights spans.
const _: () = assert!(BLOCK_KEYS == SUM_LANES);
/// Values of a query that lie together, for all rows of a tile.
const QUERY_CHUNK: usize = 16;

/// See [`Kernels::attend`](crate::Kernels::attend), which checks the sizes.
pub(crate) struct Attend<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) context: &'a [KeysValues<'a>],
    pub(crate) own: &'a KeyBlocks,
    pub(crate) rows: &'a mut [f32],
    pub(crate) memory: &'a mut Vec<f32>,
}

impl Task for Attend<'_> {
    /// A row here is a pair of a token and one of the query heads that share a key head, token by token, so that rows share
    /// keys whatever the grouping.
    #[inline(always)]
    fn run<V: Vector>(self, vector: V) {
        let Self {
            shape,
            context,
            own,
            rows,
            memory,
        } = self;
        let tokens = rows.len() / shape.row_size();
        let blocks = own.blocks + context.iter().map(|part| part.keys.blocks).sum::<usize>();
        let needed = V::TILE_ROWS * (shape.head_dim + blocks * BLOCK_KEYS);
        if memory.len() < needed {
            memory.resize(needed, 0.0);
        }
        for kv_head in 0..shape.kv_heads {
            let rows = rows.as_mut_ptr();
            let mut tile = Tile {
                vector,
                shape,
                kv_head,
                context,
                own,
                rows,
                memory,
                first_row: 0,
            };
            let rows_count = tokens * shape.group();
            while tile.first_row < rows_count {
                tile.first_row += match rows_count - tile.first_row {
                    12.. if V::TILE_ROWS >= 12 => tile.attend::<12>(),
                    6.. => tile.attend::<6>(),
                    3.. => tile.attend::<3>(),
                    _ => tile.attend::<1>(),
                };
            }
        }
    }
}

/// Some rows of one key head.
struct Tile<'a, V> {
    vector: V,
    shape: AttentionShape,
    kv_head: usize,
    context: &'a [KeysValues<'a>],
    own: &'a KeyBlocks,
    /// `[tokens, query | key | value]`: values are read while results are written, hence no reference.
    rows: *mut f32,
    /// `[head_dim / 16, rows, 16]` queries, then `[blocks of keys, rows, 16]` scores.
    memory: &'a mut [f32],
    first_row: usize,
}

/// Keys and values as far as any row of a tile sees them.
#[derive(Clone, Copy)]
struct Part {
    /// `[blocks, head_dim, 16]`.
    keys: *const f32,
    /// Value of key `j` at `j * stride`.
    values: *const f32,
    stride: usize,
    count: usize,
    /// Whether a token sees itself and those before it only.
    causal: bool,
}

impl Part {
    #[inline(always)]
    fn blocks(&self) -> usize {
        self.count.div_ceil(BLOCK_KEYS)
    }
}

impl<V: Vector> Tile<'_, V> {
    /// Gives back `ROWS`.
    #[inline(always)]
    fn attend<const ROWS: usize>(&mut self) -> usize {
        let (parts, parts_count) = self.parts::<ROWS>();
        let parts = &parts[..parts_count];
        self.copy_queries::<ROWS>();
        let mut first_block = 0;
        for part in parts {
            let keys = part.blocks() * BLOCK_KEYS;
            let mut key = 0;
            while key < keys {
                if key + REGISTERS * V::LANES <= keys {
                    self.scores::<ROWS, REGISTERS>(part, key, first_block);
                    key += REGISTERS * V::LANES;
                } else {
                    self.scores::<ROWS, 1>(part, key, first_block);
                    key += V::LANES;
                }
            }
            first_block += part.blocks();
        }
        let mut factors = [0.0; ROWS];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = 1.0 / self.softmax::<ROWS>(parts, row);
        }
        for dimension in (0..self.shape.head_dim).step_by(REGISTERS * V::LANES) {
            if dimension + REGISTERS * V::LANES <= self.shape.head_dim {
                self.weigh::<ROWS, REGISTERS>(parts, dimension, &factors);
            } else {
                self.weigh::<ROWS, 1>(parts, dimension, &factors);
            }
        }
        ROWS
    }

    /// The token of row `row` of the tile.
    #[inline(always)]
    fn token(&self, row: usize) -> usize {
        (self.first_row + row) / self.shape.group()
    }

    /// Where the query of row `row` of the tile starts, and its result goes.
    #[inline(always)]
    fn query_start(&self, row: usize) -> usize {
        let head = self.kv_head * self.shape.group() + (self.first_row + row) % self.shape.group();
        self.token(row) * self.shape.row_size() + head * self.shape.head_dim
    }

    /// What the rows see: the context, then their own tokens.
    #[inline(always)]
    fn parts<const ROWS: usize>(&self) -> ([Part; CONTEXT_PARTS_MAX + 1], usize) {
        let (head_dim, row_size) = (self.shape.head_dim, self.shape.row_size());
        let value_start = self.shape.query_size() + self.shape.key_size() + self.kv_head * head_dim;
        let keys = |keys: &KeyBlocks| {
            keys.values[self.kv_head * keys.blocks * head_dim * BLOCK_KEYS..].as_ptr()
        };
        let own = Part {
            keys: keys(self.own),
            // SAFETY: the first token's row is long enough.
            values: unsafe { self.rows.add(value_start) },
            stride: row_size,
            count: self.token(ROWS - 1) + 1,
            causal: true,
        };
        let mut parts = [own; CONTEXT_PARTS_MAX + 1];
        let mut count = 0;
        for part in self.context.iter().filter(|part| part.keys.keys > 0) {
            parts[count] = Part {
                keys: keys(part.keys),
                values: part.values[self.kv_head * head_dim..].as_ptr(),
                stride: part.stride,
                count: part.keys.keys,
                causal: false,
            };
            count += 1;
        }
        parts[count] = own;
        (parts, count + 1)
    }

    #[inline(always)]
    fn copy_queries<const ROWS: usize>(&mut self) {
        for row in 0..ROWS {
            let start = self.query_start(row);
            for chunk in 0..self.shape.head_dim / QUERY_CHUNK {
                let memory = &mut self.memory[(chunk * ROWS + row) * QUERY_CHUNK..][..QUERY_CHUNK];
                for at in (0..QUERY_CHUNK).step_by(V::LANES) {
                    // SAFETY: the query has `head_dim` values, `memory` has 16.
                    unsafe {
                        let query = self
                            .vector
                            .load(self.rows.add(start + chunk * QUERY_CHUNK + at));
                        self.vector.store(memory.as_mut_ptr().add(at), query);
                    }
                }
            }
        }
    }

    /// Where the scores start in `memory`.
    #[inline(always)]
    fn scores_start<const ROWS: usize>(&self) -> usize {
        self.shape.head_dim * ROWS
    }

    /// Unscaled scores of `COUNT` registers of keys from key `first` of the part, whose blocks start at `first_block` of the scores.
    #[inline(always)]
    fn scores<const ROWS: usize, const COUNT: usize>(
        &mut self,
        part: &Part,
        first: usize,
        first_block: usize,
    ) {
        let head_dim = self.shape.head_dim;
        let vector = self.vector;
        let key = |register: usize| first + register * V::LANES;
        let mut sums = [[vector.splat(0.0); COUNT]; ROWS];
        let queries = &self.memory[..head_dim * ROWS];
        for (chunk, queries) in queries.chunks_exact(ROWS * QUERY_CHUNK).enumerate() {
            for at in 0..QUERY_CHUNK {
                let dimension = chunk * QUERY_CHUNK + at;
                // SAFETY: the keys lie within the part's blocks, as the caller counts them.
                let keys: [V::Floats; COUNT] = std::array::from_fn(
                    #[inline(always)]
                    |register| unsafe {
                        let block = key(register) / BLOCK_KEYS * head_dim + dimension;
                        vector.load(
                            part.keys
                                .add(block * BLOCK_KEYS + key(register) % BLOCK_KEYS),
                        )
                    },
                );
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a chunk has `ROWS * 16` values.
                    let query =
                        vector.splat(unsafe { *queries.get_unchecked(row * QUERY_CHUNK + at) });
                    for (sum, keys) in sums.iter_mut().zip(&keys) {
                        *sum = vector.fused(*keys, query, *sum);
                    }
                }
            }
        }
        let start = self.scores_start::<ROWS>() + first_block * ROWS * BLOCK_KEYS;
        let scores = &mut self.memory[start..][..part.blocks() * ROWS * BLOCK_KEYS];
        for (row, sums) in sums.iter().enumerate() {
            for (register, sum) in sums.iter().enumerate() {
                let block = key(register) / BLOCK_KEYS * ROWS + row;
                // SAFETY: `scores` has a row of 16 for each of the part's blocks and of the tile's rows.
                unsafe {
                    vector.store(
                        scores
                            .as_mut_ptr()
                            .add(block * BLOCK_KEYS + key(register) % BLOCK_KEYS),
                        *sum,
                    );
                }
            }
        }
    }

    /// Replaces the scores of row `row` by `exp(score / sqrt(head_dim) - largest)`, 0 for keys that it does not see, and
    /// gives back their sum.
    #[inline(always)]
    fn softmax<const ROWS: usize>(&mut self, parts: &[Part], row: usize) -> f32 {
        let vector = self.vector;
        let seen_until = self.token(row) + 1;
        let seen = |part: &Part| if part.causal { seen_until } else { part.count };
        let start = self.scores_start::<ROWS>() + row * BLOCK_KEYS;
        let blocks: usize = parts.iter().map(Part::blocks).sum();
        // A row of every block.
        let scores = &mut self.memory[start..][..((blocks - 1) * ROWS + 1) * BLOCK_KEYS];
        let scores = scores.as_mut_ptr();
        // SAFETY (here and below): no key is past the part's blocks, and the slice above reaches to the last one's row.
        let place = |first_block: usize, key: usize| unsafe {
            scores.add((first_block + key / BLOCK_KEYS) * ROWS * BLOCK_KEYS + key % BLOCK_KEYS)
        };
        let mut largest = vector.splat(f32::NEG_INFINITY);
        let mut first_block = 0;
        for part in parts {
            let seen = seen(part);
            for key in (0..seen).step_by(V::LANES) {
                // SAFETY: as above.
                let lanes = unsafe { vector.load(place(first_block, key)) };
                let lanes = vector.first_of(seen - key, lanes, largest);
                largest = vector.max(largest, lanes);
            }
            first_block += part.blocks();
        }
        // exp(x) = 2^(x log2(e)), so both factors are applied at once.
        let factor = std::f32::consts::LOG2_E / (self.shape.head_dim as f32).sqrt();
        let largest = vector.splat(-vector.reduce_max(largest) * factor);
        let factor = vector.splat(factor);
        let mut sums = [vector.splat(0.0); SUM_REGISTERS_MAX];
        let mut first_block = 0;
        for part in parts {
            let seen = seen(part);
            for block in 0..part.blocks() {
                for (register, sum) in sums[..BLOCK_KEYS / V::LANES].iter_mut().enumerate() {
                    let key = block * BLOCK_KEYS + register * V::LANES;
                    // SAFETY: as above.
                    unsafe {
                        let scores = place(first_block, key);
                        let power = vector.exp2(vector.fused(vector.load(scores), factor, largest));
                        let unseen = vector.splat(0.0);
                        let weights = vector.first_of(seen.saturating_sub(key), power, unseen);
                        *sum = vector.add(*sum, weights);
                        vector.store(scores, weights);
                    }
                }
            }
            first_block += part.blocks();
        }
        vector.reduce_add_all(sums)
    }

    /// Sums weighted values, `COUNT` registers from `dimension`, and writes them over the queries.
    #[inline(always)]
    fn weigh<const ROWS: usize, const COUNT: usize>(
        &mut self,
        parts: &[Part],
        dimension: usize,
        factors: &[f32; ROWS],
    ) {
        let vector = self.vector;
        let mut sums = [[vector.splat(0.0); COUNT]; ROWS];
        let mut weights = self.memory[self.scores_start::<ROWS>()..].as_ptr();
        for part in parts {
            for block in (0..part.count).step_by(BLOCK_KEYS) {
                for lane in 0..(part.count - block).min(BLOCK_KEYS) {
                    // SAFETY: the key is below `count`, so its value lies within the part's values.
                    let values: [V::Floats; COUNT] = std::array::from_fn(
                        #[inline(always)]
                        |register| unsafe {
                            let start =
                                (block + lane) * part.stride + dimension + register * V::LANES;
                            vector.load(part.values.add(start))
                        },
                    );
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: `weights` is at a block of `ROWS * 16` scores.
                        let weight = vector.splat(unsafe { *weights.add(row * BLOCK_KEYS + lane) });
                        for (sum, values) in sums.iter_mut().zip(&values) {
                            *sum = vector.fused(*values, weight, *sum);
                        }
                    }
                }
                // SAFETY: the scores hold one such block after the other, and end one past the last at most.
                weights = unsafe { weights.add(ROWS * BLOCK_KEYS) };
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let factor = vector.splat(factors[row]);
            let start = self.query_start(row) + dimension;
            for (register, sum) in sums.iter().enumerate() {
                // SAFETY: the result of a row has `head_dim` values.
                unsafe {
                    vector.store(
                        self.rows.add(start + register * V::LANES),
                        vector.multiply(*sum, factor),
                    );
                }
            }
        }
    }
}
