//! What kernels are given, as `cuda/arguments.cuh` has it.

use bytemuck::{Pod, Zeroable};

use super::Address;

/// Which rows a kernel works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RowSet {
    /// All rows of the batch.
    All = 0,
    /// Those of tokens.
    Tokens = 1,
    /// Those of queries.
    Queries = 2,
    /// The last row of each query, after [`Run::gather`](super::Run::gather).
    Last = 3,
}

/// Most ranks of low-rank factors: the distance of rows of coefficients.
pub const LOW_RANK_MAX: usize = crate::limits::LOW_RANK_MAX;

pub(super) const FORM_INT8: u32 = 0;
pub(super) const FORM_BF16: u32 = 1;
pub(super) const FORM_F32: u32 = 2;

/// Counts of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct BatchHeader {
    pub(super) rows: u32,
    pub(super) tokens: u32,
    pub(super) queries: u32,
    pub(super) token_tiles: u32,
    pub(super) query_tiles: u32,
    pub(super) reserved: [u32; 11],
}

/// Keys that all rows of an attention tile see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KeyRange {
    /// 0: rows of this batch, 1: prefixes of tasks, 2: a shared beginning.
    pub source: u32,
    /// Row of the first key in its source.
    pub first: u32,
    /// Number of keys; may be 0.
    pub count: u32,
    /// 0.
    pub reserved: u32,
}

/// Rows that attend together: at most 64 of tokens, or 16 of queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionTile {
    /// Their first row.
    pub first_row: u32,
    /// How many.
    pub rows: u32,
    /// Row `i` of them sees the keys `own_first ..= first_row + i` of this batch.
    pub own_first: u32,
    /// How many entries of `context` are in use.
    pub ranges: u32,
    /// What all of them see besides, before the own keys.
    pub context: [KeyRange; 3],
}

/// One node of a task's label trie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct LabelNode {
    /// Index of its first child in the list of all children.
    pub first_child: u32,
    /// Number of children, at least 1.
    pub children: u32,
    /// What logits are divided by.
    pub temperature: f32,
    /// 0.
    pub reserved: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LowRankFactors {
    pub(super) a: Address,
    pub(super) b: Address,
    pub(super) rank: u32,
    pub(super) reserved: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct EmbedArguments {
    pub(super) header: Address,
    pub(super) row_index: Address,
    pub(super) token_values: Address,
    pub(super) token_nibbles: Address,
    pub(super) token_scales: Address,
    pub(super) token_minimums: Address,
    pub(super) query_embeddings: Address,
    pub(super) residual: Address,
    pub(super) hidden: u32,
    pub(super) reserved: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct QuantiseArguments {
    pub(super) header: Address,
    pub(super) input: Address,
    pub(super) weight: Address,
    pub(super) values: Address,
    pub(super) scales: Address,
    pub(super) group_sums: Address,
    pub(super) epsilon: f32,
    pub(super) columns: u32,
    pub(super) input_stride: u32,
    pub(super) stride: u32,
    pub(super) row_set: u32,
    pub(super) form: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ProductArguments {
    pub(super) header: Address,
    pub(super) rows: Address,
    pub(super) row_scales: Address,
    pub(super) group_sums: Address,
    pub(super) weights: Address,
    pub(super) scales: Address,
    pub(super) minimums: Address,
    pub(super) output: Address,
    pub(super) queries: Address,
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) rotary: Address,
    pub(super) positions: Address,
    pub(super) coefficients: Address,
    pub(super) row_task: Address,
    pub(super) factors: Address,
    pub(super) columns: u32,
    pub(super) channels: u32,
    pub(super) first_channel: u32,
    pub(super) output_stride: u32,
    pub(super) query_size: u32,
    pub(super) key_size: u32,
    pub(super) head_dim: u32,
    pub(super) row_set: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AttentionArguments {
    pub(super) header: Address,
    pub(super) tiles: Address,
    pub(super) queries: Address,
    pub(super) keys: [Address; 3],
    pub(super) values: [Address; 3],
    pub(super) output: Address,
    pub(super) score_factor: f32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) reserved: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GatherArguments {
    pub(super) header: Address,
    pub(super) last_rows: Address,
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) stride: u32,
    pub(super) reserved: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CoefficientsArguments {
    pub(super) header: Address,
    pub(super) input: Address,
    pub(super) weight: Address,
    pub(super) row_task: Address,
    pub(super) factors: Address,
    pub(super) coefficients: Address,
    pub(super) epsilon: f32,
    pub(super) columns: u32,
    pub(super) input_stride: u32,
    pub(super) row_set: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LabelArguments {
    pub(super) header: Address,
    pub(super) states: Address,
    pub(super) query_node: Address,
    pub(super) nodes: Address,
    pub(super) children: Address,
    pub(super) label_weight: Address,
    pub(super) best: Address,
    pub(super) probabilities: Address,
    pub(super) hidden: u32,
    pub(super) probability_stride: u32,
}
