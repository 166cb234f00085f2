//! Memory of a forward pass, reused from call to call.

use super::{Sequence, TaskPrefix, Transformer};
use trafficllm_kernels::{AttentionScratch, KeyBlocks, QuantisedRows};

/// Buffers that a forward pass needs; keep one per thread and reuse it, also between models.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[rows, hidden]` f32 residual stream of a chunk.
    pub(super) residual: Vec<f32>,
    /// `[rows, query | key | value]` f32; attention replaces queries by its results.
    pub(super) attention_rows: Vec<f32>,
    /// `[tile, feed_forward]` f32.
    pub(super) gated: Vec<f32>,
    /// `[tile, ...]` input of the next product.
    pub(super) quantised: QuantisedRows,
    /// Keys of the sequence at hand.
    pub(super) sequence_keys: KeyBlocks,
    /// Keys of the query at hand.
    pub(super) query_keys: KeyBlocks,
    pub(super) attention: AttentionScratch,
    pub(super) prefixes: Prefixes,
}

impl Scratch {
    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats =
            self.residual.capacity() + self.attention_rows.capacity() + self.gated.capacity();
        let keys = self.sequence_keys.bytes() + self.query_keys.bytes();
        floats * 4 + self.quantised.bytes() + keys + self.attention.bytes() + self.prefixes.bytes()
    }
}

/// The distinct prefixes of a batch, their keys laid out once for all sequences.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// Addresses of the distinct prefixes; they tell prefixes apart within one call and are never followed.
    addresses: Vec<usize>,
    /// `[queries of the batch]`: index of the query's prefix.
    of_query: Vec<usize>,
    /// `[distinct prefixes, layers]`.
    keys: Vec<KeyBlocks>,
}

impl Prefixes {
    /// Lays out the prefixes of a checked batch.
    pub(super) fn prepare(&mut self, model: &Transformer, sequences: &[Sequence<'_>]) {
        let (layers, key_size) = (model.config.layers, model.config.key_size());
        self.addresses.clear();
        self.of_query.clear();
        for query in sequences.iter().flat_map(|sequence| sequence.queries) {
            let address = std::ptr::from_ref::<TaskPrefix>(query.prefix) as usize;
            let index = self
                .addresses
                .iter()
                .position(|&known| known == address)
                .unwrap_or_else(|| {
                    let index = self.addresses.len();
                    self.addresses.push(address);
                    if self.keys.len() < (index + 1) * layers {
                        self.keys
                            .resize_with((index + 1) * layers, KeyBlocks::default);
                    }
                    let prefix_tokens = query.prefix.prefix_tokens;
                    for (layer, keys) in
                        self.keys[index * layers..][..layers].iter_mut().enumerate()
                    {
                        let rows = &query.prefix.keys[layer * prefix_tokens * key_size..]
                            [..prefix_tokens * key_size];
                        keys.fill(model.shape, rows, key_size, prefix_tokens);
                    }
                    index
                });
            self.of_query.push(index);
        }
    }

    /// The keys that query `query` of the batch sees in layer `layer`.
    pub(super) fn keys(&self, query: usize, layer: usize, layers: usize) -> &KeyBlocks {
        &self.keys[self.of_query[query] * layers + layer]
    }

    fn bytes(&self) -> usize {
        let keys = self.keys.iter().map(KeyBlocks::bytes).sum::<usize>();
        let blocks = self.keys.capacity() * size_of::<KeyBlocks>();
        keys + blocks + (self.addresses.capacity() + self.of_query.capacity()) * size_of::<usize>()
    }
}
