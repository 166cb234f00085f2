//! Keys and values of tokens that many sequences begin with.

use trafficllm_kernels::memory::try_with_capacity;
use trafficllm_kernels::{AttentionShape, KernelError, KeyBlocks, KeysValues};

/// What the tokens of a shared beginning left behind, made by [`Transformer::begin`](super::Transformer::begin). Immutable, shared by all threads.
#[derive(Debug)]
pub struct Beginning {
    tokens: usize,
    key_size: usize,
    layers: Vec<LayerKeys>,
    /// Layers whose keys and values have been taken.
    taken: usize,
}

#[derive(Debug)]
struct LayerKeys {
    keys: KeyBlocks,
    /// `[tokens, kv_heads * head_dim]` f32.
    values: Vec<f32>,
}

impl Beginning {
    /// With room for all layers.
    pub(super) fn new(
        shape: AttentionShape,
        layers: usize,
        tokens: usize,
    ) -> Result<Self, KernelError> {
        let layer = |_| {
            let mut keys = KeyBlocks::default();
            keys.try_reserve(shape, tokens)?;
            let values = try_with_capacity("values of a beginning", tokens * shape.key_size())?;
            Ok(LayerKeys { keys, values })
        };
        Ok(Self {
            tokens,
            key_size: shape.key_size(),
            layers: (0..layers).map(layer).collect::<Result<_, KernelError>>()?,
            taken: 0,
        })
    }

    /// Takes the keys and values of the next layer from rows `[tokens, query | key | value]`.
    pub(super) fn take(&mut self, shape: AttentionShape, rows: &[f32]) {
        let (row_size, key_start) = (shape.row_size(), shape.query_size());
        let Some(layer) = self.layers.get_mut(self.taken) else {
            return;
        };
        let from = rows.get(key_start..).unwrap_or_default();
        layer.keys.fill(shape, from, row_size, self.tokens);
        for row in rows.chunks_exact(row_size) {
            let values = &row[key_start + self.key_size..];
            layer.values.extend_from_slice(values);
        }
        self.taken += 1;
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
