//! What attention kernels work on.

use crate::KernelError;
use crate::memory::try_hold;
use crate::vector::TILE_ROWS_MAX;

/// Keys per block of [`KeyBlocks`]: the lanes of the widest kernel.
pub(crate) const BLOCK_KEYS: usize = 16;

/// Most parts of the context of one call.
pub(crate) const CONTEXT_PARTS_MAX: usize = 3;

/// Sizes of grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` uses key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Size of a query row, and where the keys start in a row `[query | key | value]`.
    #[must_use]
    pub fn query_size(self) -> usize {
        self.heads * self.head_dim
    }

    /// Size of a key row and of a value row.
    #[must_use]
    pub fn key_size(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Size of a row `[query | key | value]`.
    #[must_use]
    pub fn row_size(self) -> usize {
        self.query_size() + 2 * self.key_size()
    }

    /// Query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Keys laid out so that one load takes the same dimension of 16 keys:
/// `[kv_heads, blocks, head_dim, 16]` f32, where key `j` is lane `j % 16` of block `j / 16`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct KeyBlocks {
    pub(crate) keys: usize,
    pub(crate) blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) values: Vec<f32>,
}

impl KeyBlocks {
    /// Takes keys `[keys, kv_heads * head_dim]` f32, the row of key `j` starting at `rows[j * stride]`.
    ///
    /// # Panics
    /// If `rows` is too short.
    pub fn fill(&mut self, shape: AttentionShape, rows: &[f32], stride: usize, keys: usize) {
        let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
        let blocks = keys.div_ceil(BLOCK_KEYS);
        // Lanes past the last key keep what they held: kernels mask them.
        self.values
            .resize(kv_heads * blocks * head_dim * BLOCK_KEYS, 0.0);
        (self.keys, self.blocks) = (keys, blocks);
        (self.kv_heads, self.head_dim) = (kv_heads, head_dim);
        for key in 0..keys {
            let row = &rows[key * stride..][..kv_heads * head_dim];
            for (head, values) in row.chunks_exact(head_dim).enumerate() {
                let block = head * blocks + key / BLOCK_KEYS;
                let block =
                    &mut self.values[block * head_dim * BLOCK_KEYS..][..head_dim * BLOCK_KEYS];
                for (lanes, value) in block.chunks_exact_mut(BLOCK_KEYS).zip(values) {
                    lanes[key % BLOCK_KEYS] = *value;
                }
            }
        }
    }

    /// Makes room for so many keys: within it, [`KeyBlocks::fill`] allocates nothing.
    ///
    /// # Errors
    /// [`KernelError::Memory`].
    pub fn try_reserve(&mut self, shape: AttentionShape, keys: usize) -> Result<(), KernelError> {
        let values = keys.next_multiple_of(BLOCK_KEYS) * shape.key_size();
        try_hold("keys of attention", &mut self.values, values)
    }

    /// Number of keys.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.capacity() * 4
    }

    /// Dimension `dimension` of key `key` of head `head`.
    pub(crate) fn at(&self, head: usize, key: usize, dimension: usize) -> f32 {
        let block = head * self.blocks + key / BLOCK_KEYS;
        self.values[(block * self.head_dim + dimension) * BLOCK_KEYS + key % BLOCK_KEYS]
    }
}

/// Keys and values that every row of a call sees.
#[derive(Debug, Clone, Copy)]
pub struct KeysValues<'a> {
    /// The keys.
    pub keys: &'a KeyBlocks,
    /// The value of key `j` is `values[j * stride..][..kv_heads * head_dim]` f32.
    pub values: &'a [f32],
    /// Distance between values.
    pub stride: usize,
}

/// Memory that attention works in; reused between calls.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    pub(crate) scores: Vec<f32>,
}

impl AttentionScratch {
    /// Makes room for rows that see so many keys, their own and those of the context: within it, attention allocates nothing.
    ///
    /// # Errors
    /// [`KernelError::Memory`].
    pub fn try_reserve(&mut self, shape: AttentionShape, keys: usize) -> Result<(), KernelError> {
        // Each part of the context and the rows themselves may end inside a block.
        let keys = keys + (CONTEXT_PARTS_MAX + 1) * BLOCK_KEYS;
        let scores = TILE_ROWS_MAX * (shape.head_dim + keys);
        try_hold("scores of attention", &mut self.scores, scores)
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.scores.capacity() * 4
    }
}
