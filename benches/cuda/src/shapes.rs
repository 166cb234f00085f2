//! The sizes that are measured.

use serde::Serialize;
use trafficllm_kernels::AttentionShape;
use trafficllm_model::TransformerConfig;

/// Tokens of a flow of the large shape.
pub(crate) const FLOW_TOKENS: usize = 256;
/// Of these, the first ones are the same in all flows.
pub(crate) const SHARED_TOKENS: usize = 160;
/// Labels to choose from.
pub(crate) const LABELS: usize = 20;

/// A llama; `tokens`, `shared_tokens` and `labels` are what the programs of other engines have to know besides.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) feed_forward: usize,
    pub(crate) tokens: usize,
    pub(crate) shared_tokens: usize,
    pub(crate) labels: usize,
}

impl Shape {
    pub(crate) fn llama_7b() -> Self {
        Self {
            name: "7B",
            vocabulary: 32_000,
            hidden: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            feed_forward: 11_008,
            tokens: FLOW_TOKENS,
            shared_tokens: SHARED_TOKENS,
            labels: LABELS,
        }
    }

    /// Small enough for an emulator.
    pub(crate) fn tiny() -> Self {
        Self {
            name: "tiny",
            vocabulary: 64,
            hidden: 128,
            layers: 2,
            heads: 4,
            kv_heads: 4,
            head_dim: 32,
            feed_forward: 160,
            tokens: 24,
            shared_tokens: 16,
            labels: 5,
        }
    }

    /// The sizes of a model, with flows that share nothing.
    pub(crate) fn of(name: &'static str, config: &TransformerConfig) -> Self {
        Self {
            name,
            vocabulary: config.vocabulary,
            hidden: config.hidden,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            feed_forward: config.feed_forward,
            tokens: 128,
            shared_tokens: 0,
            labels: LABELS,
        }
    }

    pub(crate) fn config(&self) -> TransformerConfig {
        TransformerConfig {
            vocabulary: self.vocabulary,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            feed_forward: self.feed_forward,
            context: self.tokens + 16,
            rms_epsilon: 1e-5,
            rope_base: 10_000.0,
        }
    }

    pub(crate) fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    pub(crate) fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn key_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Weights of a layer's linear parts: a multiplication and an addition for each token.
    pub(crate) fn layer_weights(&self) -> usize {
        let attention = self.hidden * (2 * self.query_size() + 2 * self.key_size());
        attention + 3 * self.hidden * self.feed_forward
    }

    /// Operations of one flow whose first tokens ran before, as the engine does it: in the last layer all rows have keys and values, and
    /// the query row alone the rest.
    pub(crate) fn flow_operations(&self) -> f64 {
        let rows = (self.tokens - self.shared_tokens) as f64;
        let keys = 2.0 * (self.hidden * self.key_size()) as f64;
        let layer = self.layer_weights() as f64;
        let linear = rows * layer * (self.layers - 1) as f64 + rows * keys + layer - keys;
        let seen: usize = (self.shared_tokens + 1..=self.tokens).sum();
        let attention = 2.0 * (seen * self.query_size() * (self.layers - 1)) as f64;
        2.0 * (linear + attention)
    }
}
