//! The sizes that are compared, and the cases.

/// Prompts of a batch.
pub(crate) const PROMPTS: usize = 32;
/// Tokens of a prompt.
pub(crate) const PROMPT_TOKENS: usize = 128;
/// Tokens that all flows share where a prefix is shared.
pub(crate) const PREFIX_TOKENS: usize = 160;
/// Own tokens of a flow after the shared prefix.
pub(crate) const OWN_TOKENS: usize = 96;

/// Size of a head in all shapes.
pub(crate) const HEAD_DIM: usize = 64;
/// Positions that the files ask for: enough for all cases.
pub(crate) const CONTEXT: usize = 4096;

/// A llama-family model with tied embeddings; every size is a multiple of 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) feed_forward: usize,
}

pub(crate) const SHAPES: [Shape; 3] = [
    Shape {
        name: "10M",
        vocabulary: 4096,
        hidden: 256,
        layers: 8,
        kv_heads: 4,
        feed_forward: 1024,
    },
    Shape {
        name: "135M",
        vocabulary: 36_864,
        hidden: 768,
        layers: 17,
        kv_heads: 4,
        feed_forward: 2048,
    },
    Shape {
        name: "0.5B",
        vocabulary: 126_976,
        hidden: 1024,
        layers: 24,
        kv_heads: 4,
        feed_forward: 4096,
    },
];

impl Shape {
    pub(crate) fn heads(&self) -> usize {
        self.hidden / HEAD_DIM
    }

    pub(crate) fn key_size(&self) -> usize {
        self.kv_heads * HEAD_DIM
    }

    /// The matrices of a layer: GGUF name, rows, columns.
    pub(crate) fn matrices(&self) -> [(&'static str, usize, usize); 7] {
        let (hidden, key_size, feed_forward) = (self.hidden, self.key_size(), self.feed_forward);
        [
            ("attn_q", hidden, hidden),
            ("attn_k", key_size, hidden),
            ("attn_v", key_size, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", feed_forward, hidden),
            ("ffn_up", feed_forward, hidden),
            ("ffn_down", hidden, feed_forward),
        ]
    }

    /// Weights of the linear layers: each takes one multiplication and one addition per token.
    pub(crate) fn linear_weights(&self) -> usize {
        let layer: usize = self
            .matrices()
            .iter()
            .map(|(_, rows, columns)| rows * columns)
            .sum();
        layer * self.layers
    }

    /// All weights but the norms'.
    pub(crate) fn weights(&self) -> usize {
        self.linear_weights() + self.vocabulary * self.hidden
    }
}

/// Token ids of prompt `prompt`: the same in every run.
pub(crate) fn tokens(prompt: usize, length: usize, vocabulary: usize) -> Vec<u32> {
    (0..length)
        .map(|at| ((prompt * 7919 + at * 104_729 + 13) % vocabulary) as u32)
        .collect()
}
