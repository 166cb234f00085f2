//! Memory of a forward pass, reused from call to call.

use super::{Sequence, TaskPrefix, Transformer, TransformerError};
use trafficllm_kernels::memory::try_hold;
use trafficllm_kernels::{AttentionScratch, KernelError, KeyBlocks, QuantisedRows};

/// What errors call the buffers of a pass.
const BUFFERS: &str = "buffers of a forward pass";

/// The sizes of a batch that decide how much memory its pass takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchSizes {
    /// Token and query rows of all sequences.
    pub rows: usize,
    /// Token and query rows of the sequence that has most of them.
    pub sequence_rows: usize,
    /// Most positions of a sequence, its beginning and one query included.
    pub positions: usize,
    /// Most tokens of a sequence.
    pub tokens: usize,
    /// Most rows of a query.
    pub query_rows: usize,
    /// Queries of all sequences.
    pub queries: usize,
    /// Distinct prefixes; those of a batch are found while it runs.
    pub prefixes: usize,
    /// Most positions of a prefix.
    pub prefix_tokens: usize,
    /// Whether any query has low-rank additions.
    pub lora: bool,
}

impl BatchSizes {
    /// The sizes of these sequences, without their prefixes.
    pub(super) fn of(model: &Transformer, sequences: &[Sequence<'_>]) -> Self {
        let hidden = model.config.hidden;
        let mut sizes = Self::default();
        for sequence in sequences {
            let mut rows = sequence.tokens.len();
            let mut longest = 0;
            for query in sequence.queries {
                let query_rows = query.embeddings.len() / hidden;
                rows += query_rows;
                longest = longest.max(query_rows);
                sizes.prefix_tokens = sizes.prefix_tokens.max(query.prefix.prefix_tokens);
                sizes.lora |= query.lora.is_some();
            }
            let positions = sequence.first_position() + sequence.tokens.len() + longest;
            sizes.rows += rows;
            sizes.queries += sequence.queries.len();
            sizes.sequence_rows = sizes.sequence_rows.max(rows);
            sizes.positions = sizes.positions.max(positions);
            sizes.tokens = sizes.tokens.max(sequence.tokens.len());
            sizes.query_rows = sizes.query_rows.max(longest);
        }
        sizes
    }
}

/// Buffers that a forward pass needs; keep one per thread and reuse it, also between models.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[rows, hidden]` f32 residual stream of a chunk.
    pub(super) residual: Vec<f32>,
    /// `[rows, query | key | value]` f32; attention replaces queries by its results.
    pub(super) attention_rows: Vec<f32>,
    /// `[tile, feed_forward]` f32.
    pub(super) gated: Vec<f32>,
    /// `[hidden]` f32, a row that has low-rank additions after its norm.
    pub(super) normed: Vec<f32>,
    /// `[tile, 2 * feed_forward]` f32, the products of query rows where any has low-rank additions.
    pub(super) gate_up: Vec<f32>,
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
    /// Makes room for batches of at most these sizes: a pass within them allocates nothing.
    ///
    /// # Errors
    /// [`TransformerError::Kernels`] with [`KernelError::Memory`].
    pub fn try_reserve(
        &mut self,
        model: &Transformer,
        sizes: &BatchSizes,
    ) -> Result<(), TransformerError> {
        let (config, shape) = (&model.config, model.shape);
        let rows = sizes.rows.min(sizes.sequence_rows.max(model.chunk_rows));
        let tile_rows = rows.min(model.tile_rows);
        let widest = config
            .hidden
            .max(shape.query_size())
            .max(config.feed_forward);
        try_hold(BUFFERS, &mut self.residual, rows * config.hidden)?;
        try_hold(BUFFERS, &mut self.attention_rows, rows * shape.row_size())?;
        try_hold(BUFFERS, &mut self.gated, tile_rows * config.feed_forward)?;
        if sizes.lora {
            try_hold(BUFFERS, &mut self.normed, config.hidden)?;
            try_hold(
                BUFFERS,
                &mut self.gate_up,
                tile_rows * 2 * config.feed_forward,
            )?;
        }
        self.quantised.set_group_sums(model.needs_group_sums);
        self.quantised
            .try_reserve(model.kernels, tile_rows, widest)?;
        self.sequence_keys.try_reserve(shape, sizes.tokens)?;
        self.query_keys.try_reserve(shape, sizes.query_rows)?;
        let keys = sizes.positions + sizes.prefix_tokens;
        self.attention.try_reserve(shape, keys)?;
        Ok(self.prefixes.try_reserve(model, sizes)?)
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.residual.capacity()
            + self.attention_rows.capacity()
            + self.gated.capacity()
            + self.normed.capacity()
            + self.gate_up.capacity();
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
    /// Makes room for the distinct prefixes and the queries of a batch.
    fn try_reserve(&mut self, model: &Transformer, sizes: &BatchSizes) -> Result<(), KernelError> {
        try_hold(BUFFERS, &mut self.of_query, sizes.queries)?;
        try_hold(BUFFERS, &mut self.addresses, sizes.prefixes)?;
        self.hold_keys(sizes.prefixes * model.config.layers)?;
        for keys in &mut self.keys[..sizes.prefixes * model.config.layers] {
            keys.try_reserve(model.shape, sizes.prefix_tokens)?;
        }
        Ok(())
    }

    fn hold_keys(&mut self, count: usize) -> Result<(), KernelError> {
        if self.keys.len() < count {
            try_hold(BUFFERS, &mut self.keys, count)?;
            self.keys.resize_with(count, KeyBlocks::default);
        }
        Ok(())
    }

    /// Lays out the prefixes of a checked batch.
    pub(super) fn prepare(
        &mut self,
        model: &Transformer,
        sequences: &[Sequence<'_>],
    ) -> Result<(), KernelError> {
        self.addresses.clear();
        self.of_query.clear();
        for query in sequences.iter().flat_map(|sequence| sequence.queries) {
            let address = std::ptr::from_ref::<TaskPrefix>(query.prefix) as usize;
            let known = self.addresses.iter().position(|&known| known == address);
            let index = match known {
                Some(index) => index,
                None => self.lay_out(model, query.prefix, address)?,
            };
            self.of_query.push(index);
        }
        Ok(())
    }

    /// Lays out one more prefix and gives back its index.
    fn lay_out(
        &mut self,
        model: &Transformer,
        prefix: &TaskPrefix,
        address: usize,
    ) -> Result<usize, KernelError> {
        let (layers, key_size) = (model.config.layers, model.config.key_size());
        let (index, tokens) = (self.addresses.len(), prefix.prefix_tokens);
        self.addresses.push(address);
        self.hold_keys((index + 1) * layers)?;
        for (layer, keys) in self.keys[index * layers..][..layers].iter_mut().enumerate() {
            let rows = &prefix.keys[layer * tokens * key_size..][..tokens * key_size];
            keys.try_reserve(model.shape, tokens)?;
            keys.fill(model.shape, rows, key_size, tokens);
        }
        Ok(index)
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
