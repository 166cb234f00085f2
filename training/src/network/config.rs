//! Sizes of a network, and what a batch and its results look like.

use serde::{Deserialize, Serialize};

use trafficllm_model::limits::LORA_RANK_MAX;

use super::{NetworkError, POSITIONS_MAX, Scale};

/// What low-rank products are multiplied with while they are trained; written into the second factor on export. A power of two, so
/// that writing and reading back changes no bit. The same for every rank: with Adam the rank then hardly moves the best learning rate.
pub const LORA_SCALE: f32 = 2.0;

/// Largest of any single size: keeps every product of two far from overflow.
const SIZE_MAX: usize = 1 << 20;

/// Sizes of a network. Everything that a checkpoint needs to be read again, but the values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads per layer; `hidden / heads` is the (even) head width.
    pub heads: usize,
    /// Key and value heads per layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of the gated MLP.
    pub feed_forward: usize,
    /// Learnt keys and values per layer and task, seen by the task's query rows only. May be 0.
    pub prefix_tokens: usize,
    /// Learnt input rows that a task appends to a flow; the last one is where the label is read. At least 1 if there are tasks.
    pub query_tokens: usize,
    /// Rank of the low-rank additions (LoRA) to the matrices of each layer, per task, on the task's query rows only; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lora_rank: usize,
    /// Number of labels of each task; empty for a base without tasks.
    pub task_labels: Vec<usize>,
    /// Tokens that stand for numbers in order; they matter in training only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<Scale>,
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rotary_base: f32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
pub(crate) fn is_zero(size: &usize) -> bool {
    *size == 0
}

impl NetworkConfig {
    /// Width of one head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.hidden / self.heads.max(1)
    }

    /// Width of all key heads (equally of all value heads) of a layer.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width()
    }

    /// First row of `task`'s labels in the shared label table.
    #[must_use]
    pub fn label_start(&self, task: usize) -> usize {
        self.task_labels[..task].iter().sum()
    }

    /// Whether the sizes fit each other.
    ///
    /// # Errors
    /// [`NetworkError::Size`] naming the first that does not.
    pub fn check(&self) -> Result<(), NetworkError> {
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("feed_forward", self.feed_forward),
        ];
        let label_sizes = self
            .task_labels
            .iter()
            .map(|&labels| ("task_labels", labels));
        for (name, size) in sizes.into_iter().chain(label_sizes) {
            if !(1..=SIZE_MAX).contains(&size) {
                return Err(NetworkError::size(name, format!("1 to {SIZE_MAX}"), size));
            }
        }
        if let Some(scale) = self.scales.iter().find(|scale| {
            let tokens = &scale.tokens;
            tokens.is_empty() || tokens.end > self.vocabulary || scale.reach > tokens.len()
        }) {
            return Err(NetworkError::size(
                "tokens of a scale",
                format!(
                    "some below {}, and no further a reach than they are many",
                    self.vocabulary
                ),
                format!("{:?} and {}", scale.tokens, scale.reach),
            ));
        }
        if !self.hidden.is_multiple_of(self.heads) || !self.head_width().is_multiple_of(2) {
            return Err(NetworkError::size(
                "heads",
                format!("heads of an even width in {}", self.hidden),
                self.heads,
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(NetworkError::size(
                "kv_heads",
                format!("a divisor of {}", self.heads),
                self.kv_heads,
            ));
        }
        let least_queries = usize::from(!self.task_labels.is_empty());
        if !(least_queries..POSITIONS_MAX).contains(&self.query_tokens) {
            return Err(NetworkError::size(
                "query_tokens",
                format!("{least_queries} to {}", POSITIONS_MAX - 1),
                self.query_tokens,
            ));
        }
        if self.prefix_tokens >= POSITIONS_MAX {
            return Err(NetworkError::size(
                "prefix_tokens",
                format!("at most {}", POSITIONS_MAX - 1),
                self.prefix_tokens,
            ));
        }
        if self.lora_rank > LORA_RANK_MAX {
            return Err(NetworkError::size(
                "lora_rank",
                format!("at most {LORA_RANK_MAX}"),
                self.lora_rank,
            ));
        }
        Ok(())
    }

    /// Rows of the shared label table.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.task_labels.iter().sum()
    }
}

/// One flow (or request) of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// How many tokens of the batch belong to it, at least 1.
    pub flow_rows: usize,
    /// The task whose query rows are appended; `None` if only the next-token loss is wanted.
    pub task: Option<usize>,
    /// The true label, from 0 within the task. Ignored without a task.
    pub label: u32,
    /// Weight of the label's loss; 0 leaves it out.
    pub weight: f32,
}

/// The part of a batch that one thread works on. Sequences are packed one after the other, without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardBatch {
    /// Input token ids of all sequences, after any dropout of tokens.
    pub tokens: Vec<u32>,
    /// For each token the id that should follow it. Same length as `tokens`, or empty: no next-token loss.
    pub targets: Vec<u32>,
    /// Weight of each target; 0 (the last token of a sequence, for example) leaves it out. Same length as `targets`.
    pub target_weights: Vec<f32>,
    /// The sequences, in the order of their tokens.
    pub sequences: Vec<Sequence>,
}

/// How the parts of the loss are put together: `label part + lm_weight * next-token part`, each a weighted mean over the whole batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Weight of the next-token part; 0 leaves it out (and saves its time).
    pub lm_weight: f32,
    /// Share of the label's target spread evenly over the task's labels.
    pub label_smoothing: f32,
}

/// Sums over rows, so that they can be added up over shards and batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Sum of weight x loss of the labels.
    pub label_loss: f64,
    /// Sum of the labels' weights.
    pub label_weight: f64,
    /// Rows with a label of weight above 0.
    pub label_rows: usize,
    /// How many of them had the highest logit at the true label.
    pub label_correct: usize,
    /// Sum of weight x loss of the next tokens.
    pub token_loss: f64,
    /// Sum of the next tokens' weights.
    pub token_weight: f64,
}

impl Statistics {
    /// Adds another batch's sums.
    pub fn add(&mut self, other: &Self) {
        self.label_loss += other.label_loss;
        self.label_weight += other.label_weight;
        self.label_rows += other.label_rows;
        self.label_correct += other.label_correct;
        self.token_loss += other.token_loss;
        self.token_weight += other.token_weight;
    }

    /// Mean label loss in nats; 0 without labels.
    #[must_use]
    pub fn mean_label_loss(&self) -> f64 {
        mean(self.label_loss, self.label_weight)
    }

    /// Mean next-token loss in nats; 0 without targets.
    #[must_use]
    pub fn mean_token_loss(&self) -> f64 {
        mean(self.token_loss, self.token_weight)
    }
}

fn mean(sum: f64, weight: f64) -> f64 {
    if weight > 0.0 { sum / weight } else { 0.0 }
}

/// What one training step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The loss that was minimised.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Sums over the batch.
    pub statistics: Statistics,
}

/// Which parameters a step may change. Where the base is frozen, the way back runs through the query rows alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trainable {
    /// Token table, layers and norms.
    pub base: bool,
    /// Queries, prefixes, low-rank additions and labels of the tasks.
    pub adapters: TrainedAdapters,
}

/// Whose adapters a step may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainedAdapters {
    /// Nobody's.
    None,
    /// Those of all tasks.
    All,
    /// That of one task. Every other value of the network stays as it is, bit for bit, and the optimiser keeps nothing for it.
    Task(usize),
}

impl Trainable {
    /// Everything.
    pub const ALL: Self = Self {
        base: true,
        adapters: TrainedAdapters::All,
    };

    /// The base alone.
    pub const BASE: Self = Self {
        base: true,
        adapters: TrainedAdapters::None,
    };

    /// All adapters on a frozen base.
    pub const ADAPTERS: Self = Self {
        base: false,
        adapters: TrainedAdapters::All,
    };

    /// One task's adapter on a frozen base.
    #[must_use]
    pub const fn task(task: usize) -> Self {
        Self {
            base: false,
            adapters: TrainedAdapters::Task(task),
        }
    }

    pub(super) fn is_all(&self) -> bool {
        *self == Self::ALL
    }
}

impl Default for Trainable {
    fn default() -> Self {
        Self::ALL
    }
}

/// A parameter as plain values.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedValues {
    /// Name of the tensor.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}
