//! Keys and values of tokens that many sequences begin with.

use trafficllm_kernels::{AttentionShape, KeyBlocks, KeysValues};

/// What the tokens of a shared beginning left behind, made by [`Transformer::begin`](super::Transformer::begin). Immutable, shared by all threads.
#[derive(Debug)]
pub struct Beginning {
    tokens: usize,
    key_size: usize,
    layers: Vec<LayerKeys>,
}

#[derive(Debug)]
struct LayerKeys {
    keys: KeyBlocks,
    /// `[tokens, kv_heads * head_dim]` f32.
    values: Vec<f32>,
}

impl Beginning {
    pub(super) fn new(tokens: usize, key_size: usize) -> Self {
        Self {
            tokens,
            key_size,
            layers: Vec::new(),
        }
    }

    /// Takes the keys and values of the next layer from rows `[tokens, query | key | value]`.
    pub(super) fn take(&mut self, shape: AttentionShape, rows: &[f32]) {
        let (row_size, key_start) = (shape.row_size(), shape.query_size());
        let mut keys = KeyBlocks::default();
        let from = rows.get(key_start..).unwrap_or_default();
        keys.fill(shape, from, row_size, self.tokens);
        let values = rows
            .chunks_exact(row_size)
            .flat_map(|row| &row[key_start + self.key_size..]);
        self.layers.push(LayerKeys {
            keys,
            values: values.copied().collect(),
        });
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter();
        layers
            .map(|layer| layer.keys.bytes() + layer.values.capacity() * 4)
            .sum()
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    pub(super) fn key_size(&self) -> usize {
        self.key_size
    }

    pub(super) fn keys_values(&self, layer: usize) -> KeysValues<'_> {
        let LayerKeys { keys, values } = &self.layers[layer];
        KeysValues {
            keys,
            values,
            stride: self.key_size,
        }
    }
}
