//! Sizes of heads, rows of sequences and angles of positions.

use std::sync::Arc;

/// Angles of the rotary positions: position p turns pair i by `p * base^(-i / pairs)`.
#[derive(Clone, Debug)]
pub struct Rotary {
    pairs: usize,
    /// `[positions, pairs]`.
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// Angles for positions below `positions`.
    #[must_use]
    pub fn new(head_width: usize, base: f32, positions: usize) -> Self {
        let pairs = head_width / 2;
        let frequencies: Vec<f64> = (0..pairs)
            .map(|pair| f64::from(base).powf(-(pair as f64) / pairs as f64))
            .collect();
        let angles = (0..positions).flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f64 * frequency)
        });
        let (cosines, sines) = angles
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .unzip();
        Self {
            pairs,
            cosines,
            sines,
        }
    }

    /// Number of positions that have angles.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cosines.len() / self.pairs.max(1)
    }

    pub(super) fn from(&self, position: usize) -> (&[f32], &[f32]) {
        (
            &self.cosines[position * self.pairs..],
            &self.sines[position * self.pairs..],
        )
    }
}

/// Sizes of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_width: usize,
    /// Learnt keys and values per task.
    pub prefix_tokens: usize,
}

impl AttentionSizes {
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(super) fn hidden(&self) -> usize {
        self.heads * self.head_width
    }

    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    pub(super) fn row_width(&self) -> usize {
        self.hidden() + 2 * self.kv_width()
    }
}

/// Rows of one sequence: flow rows in one tensor, then the query rows of its task in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Its first row among the flow rows of all sequences.
    pub flow_start: usize,
    /// Rows that see only the flow rows up to themselves.
    pub flow_rows: usize,
    /// Its first row among the query rows of all sequences.
    pub query_start: usize,
    /// Rows that also see the task's prefix and earlier query rows; 0 without a task.
    pub query_rows: usize,
    /// Whose prefix the query rows see.
    pub task: usize,
}

/// What is attended to what.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Sizes of the heads.
    pub sizes: AttentionSizes,
    /// Angles for at least as many positions as the longest sequence has rows.
    pub rotary: Arc<Rotary>,
    /// Sequences in the order of their rows.
    pub sequences: Arc<[SequenceRows]>,
}

/// The rows that ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryRows {
    /// All query rows.
    All,
    /// The last one of each sequence that has any: the result has one row per such sequence.
    Last,
}
