//! Attention in f32: scores, softmax and weighted values of up to 12 rows at a time.

use std::arch::x86_64::{
    _mm512_add_ps, _mm512_fmadd_ps, _mm512_fmsub_ps, _mm512_loadu_ps, _mm512_mask_max_ps,
    _mm512_maskz_mov_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::math::{LANES, exp2, first_lanes};
use crate::attention::{AttentionShape, BLOCK_KEYS, CONTEXT_PARTS_MAX, KeyBlocks, KeysValues};

/// See [`Kernels::attend`](crate::Kernels::attend), which checks the sizes.
///
/// A row here is a pair of a token and one of the query heads that share a key head, token by token, so that rows share
/// keys whatever the grouping.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(super) fn attend(
    shape: AttentionShape,
    context: &[KeysValues<'_>],
    own: &KeyBlocks,
    rows: &mut [f32],
    memory: &mut Vec<f32>,
) {
    let tokens = rows.len() / shape.row_size();
    let blocks = own.blocks + context.iter().map(|part| part.keys.blocks).sum::<usize>();
    memory.resize(12 * (shape.head_dim + blocks * BLOCK_KEYS), 0.0);
    for kv_head in 0..shape.kv_heads {
        let rows = rows.as_mut_ptr();
        let mut block = Block {
            shape,
            kv_head,
            context,
            own,
            rows,
            memory,
            first_row: 0,
        };
        let rows_count = tokens * shape.group();
        while block.first_row < rows_count {
            block.first_row += match rows_count - block.first_row {
                12.. => block.attend::<12>(),
                6.. => block.attend::<6>(),
                3.. => block.attend::<3>(),
                _ => block.attend::<1>(),
            };
        }
    }
}

/// Some rows of one key head.
struct Block<'a> {
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

/// Keys and values as far as any row of a block sees them.
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

impl Block<'_> {
    /// Gives back `ROWS`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    fn attend<const ROWS: usize>(&mut self) -> usize {
        let (parts, parts_count) = self.parts::<ROWS>();
        let parts = &parts[..parts_count];
        self.copy_queries::<ROWS>();
        let mut first_block = 0;
        for part in parts {
            let blocks = part.count.div_ceil(BLOCK_KEYS);
            for block in (0..blocks).step_by(2) {
                if block + 1 < blocks {
                    self.scores::<ROWS, 2>(part, block, first_block + block);
                } else {
                    self.scores::<ROWS, 1>(part, block, first_block + block);
                }
            }
            first_block += blocks;
        }
        let mut factors = [0.0; ROWS];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = 1.0 / self.softmax::<ROWS>(parts, row);
        }
        for dimension in (0..self.shape.head_dim).step_by(2 * LANES) {
            if dimension + LANES < self.shape.head_dim {
                self.weigh::<ROWS, 2>(parts, dimension, &factors);
            } else {
                self.weigh::<ROWS, 1>(parts, dimension, &factors);
            }
        }
        ROWS
    }

    /// The token of row `row` of the block.
    #[inline]
    fn token(&self, row: usize) -> usize {
        (self.first_row + row) / self.shape.group()
    }

    /// Where the query of row `row` of the block starts, and its result goes.
    #[inline]
    fn query_start(&self, row: usize) -> usize {
        let head = self.kv_head * self.shape.group() + (self.first_row + row) % self.shape.group();
        self.token(row) * self.shape.row_size() + head * self.shape.head_dim
    }

    /// What the rows see: the context, then their own tokens.
    #[inline]
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

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn copy_queries<const ROWS: usize>(&mut self) {
        for row in 0..ROWS {
            let start = self.query_start(row);
            for at in 0..self.shape.head_dim / LANES {
                let memory = &mut self.memory[(at * ROWS + row) * LANES..][..LANES];
                // SAFETY: the query has `head_dim` values, `memory` has 16.
                unsafe {
                    _mm512_storeu_ps(
                        memory.as_mut_ptr(),
                        _mm512_loadu_ps(self.rows.add(start + at * LANES)),
                    )
                };
            }
        }
    }

    /// Where the scores start in `memory`.
    #[inline]
    fn scores_start<const ROWS: usize>(&self) -> usize {
        self.shape.head_dim * ROWS
    }

    /// Unscaled scores of `BLOCKS` blocks of keys from `block`, written from block `to` of the scores.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn scores<const ROWS: usize, const BLOCKS: usize>(
        &mut self,
        part: &Part,
        block: usize,
        to: usize,
    ) {
        let head_dim = self.shape.head_dim;
        let mut sums = [[_mm512_setzero_ps(); BLOCKS]; ROWS];
        // SAFETY: the blocks lie within the head's keys, as the caller counts them.
        let keys = unsafe { part.keys.add(block * head_dim * BLOCK_KEYS) };
        for (at, queries) in self.memory[..head_dim * ROWS]
            .chunks_exact(ROWS * LANES)
            .enumerate()
        {
            for lane in 0..LANES {
                let dimension = at * LANES + lane;
                let mut lanes = [_mm512_setzero_ps(); BLOCKS];
                for (block, lanes) in lanes.iter_mut().enumerate() {
                    // SAFETY: dimension `dimension` of a block within the head's keys.
                    *lanes = unsafe {
                        _mm512_loadu_ps(keys.add((block * head_dim + dimension) * BLOCK_KEYS))
                    };
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a chunk has `ROWS * 16` values.
                    let query =
                        _mm512_set1_ps(unsafe { *queries.get_unchecked(row * LANES + lane) });
                    for (sum, lanes) in sums.iter_mut().zip(&lanes) {
                        *sum = _mm512_fmadd_ps(*lanes, query, *sum);
                    }
                }
            }
        }
        let start = self.scores_start::<ROWS>() + to * ROWS * BLOCK_KEYS;
        let scores = &mut self.memory[start..][..BLOCKS * ROWS * BLOCK_KEYS];
        for (row, sums) in sums.iter().enumerate() {
            for (block, sum) in sums.iter().enumerate() {
                // SAFETY: `scores` has `BLOCKS * ROWS * 16` values.
                unsafe {
                    _mm512_storeu_ps(
                        scores.as_mut_ptr().add((block * ROWS + row) * BLOCK_KEYS),
                        *sum,
                    )
                };
            }
        }
    }

    /// Replaces the scores of row `row` by `exp(score / sqrt(head_dim) - largest)`, 0 for keys that it does not see, and
    /// gives back their sum.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn softmax<const ROWS: usize>(&mut self, parts: &[Part], row: usize) -> f32 {
        let seen_until = self.token(row) + 1;
        let seen = |part: &Part| if part.causal { seen_until } else { part.count };
        let start = self.scores_start::<ROWS>() + row * BLOCK_KEYS;
        let blocks: usize = parts
            .iter()
            .map(|part| part.count.div_ceil(BLOCK_KEYS))
            .sum();
        // A row of every block.
        let scores = &mut self.memory[start..][..((blocks - 1) * ROWS + 1) * BLOCK_KEYS];
        let scores = scores.as_mut_ptr();
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut first_block = 0;
        for part in parts {
            let seen = seen(part);
            for block in 0..seen.div_ceil(BLOCK_KEYS) {
                // SAFETY: no row sees more than the part's blocks, and the slice above reaches to the last one's row.
                let lanes = unsafe {
                    _mm512_loadu_ps(scores.add((first_block + block) * ROWS * BLOCK_KEYS))
                };
                largest = _mm512_mask_max_ps(
                    largest,
                    first_lanes(seen - block * BLOCK_KEYS),
                    largest,
                    lanes,
                );
            }
            first_block += part.count.div_ceil(BLOCK_KEYS);
        }
        // exp(x) = 2^(x log2(e)), so both factors are applied at once.
        let factor = _mm512_set1_ps(std::f32::consts::LOG2_E / (self.shape.head_dim as f32).sqrt());
        let largest = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(largest)), factor);
        let mut sum = _mm512_setzero_ps();
        let mut first_block = 0;
        for part in parts {
            let (blocks, seen) = (part.count.div_ceil(BLOCK_KEYS), seen(part));
            for block in 0..blocks {
                let mask = first_lanes(seen.saturating_sub(block * BLOCK_KEYS));
                // SAFETY: as above.
                unsafe {
                    let scores = scores.add((first_block + block) * ROWS * BLOCK_KEYS);
                    let power = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores), factor, largest));
                    let weights = _mm512_maskz_mov_ps(mask, power);
                    sum = _mm512_add_ps(sum, weights);
                    _mm512_storeu_ps(scores, weights);
                }
            }
            first_block += blocks;
        }
        _mm512_reduce_add_ps(sum)
    }

    /// Sums weighted values, `DIMENSIONS` registers from `dimension`, and writes them over the queries.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn weigh<const ROWS: usize, const DIMENSIONS: usize>(
        &mut self,
        parts: &[Part],
        dimension: usize,
        factors: &[f32; ROWS],
    ) {
        let mut sums = [[_mm512_setzero_ps(); DIMENSIONS]; ROWS];
        let mut weights = self.memory[self.scores_start::<ROWS>()..].as_ptr();
        for part in parts {
            for block in (0..part.count).step_by(BLOCK_KEYS) {
                for lane in 0..(part.count - block).min(BLOCK_KEYS) {
                    let mut values = [_mm512_setzero_ps(); DIMENSIONS];
                    for (at, values) in values.iter_mut().enumerate() {
                        let start = (block + lane) * part.stride + dimension + at * LANES;
                        // SAFETY: the key is below `count`, so its value lies within the part's values.
                        *values = unsafe { _mm512_loadu_ps(part.values.add(start)) };
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: `weights` is at a block of `ROWS * 16` scores.
                        let weight =
                            _mm512_set1_ps(unsafe { *weights.add(row * BLOCK_KEYS + lane) });
                        for (sum, values) in sums.iter_mut().zip(&values) {
                            *sum = _mm512_fmadd_ps(*values, weight, *sum);
                        }
                    }
                }
                // SAFETY: the scores hold one such block after the other, and end one past the last at most.
                weights = unsafe { weights.add(ROWS * BLOCK_KEYS) };
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let factor = _mm512_set1_ps(factors[row]);
            let start = self.query_start(row) + dimension;
            for (at, sum) in sums.iter().enumerate() {
                // SAFETY: the result of a row has `head_dim` values.
                unsafe {
                    _mm512_storeu_ps(
                        self.rows.add(start + at * LANES),
                        _mm512_mul_ps(*sum, factor),
                    )
                };
            }
        }
    }
}
