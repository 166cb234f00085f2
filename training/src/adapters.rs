//! One task's adapter on the frozen base: prefixes (P-Tuning v2, arXiv 2110.07602) and low-rank additions (LoRA, arXiv 2106.09685) on the rows
//! that the task appends. Everything else of the network stays as it is, bit for bit.

use serde::{Deserialize, Serialize};

use crate::batches::{AugmentRecipe, Sampler, SamplingRecipe, Sequence, TokenRanges};
use crate::checkpoint::CheckpointStore;
use crate::choose::{self, ChoosingSet};
use crate::error::Result;
use crate::network::{Network, Trainable};
use crate::ops::Precision;
use crate::optimiser::AdamWConfig;
use crate::phase::{Phase, PhaseRecipe};
use crate::recipe::in_range;

/// Keeps the random numbers of adapters apart from those of the phases of a bundle; tasks count on from here.
const STREAM: u64 = 0x100;

/// How an adapter is tuned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// Rank of the low-rank additions; 0 for none.
    pub lora_rank: usize,
    /// The steps; an end that comes earlier is `patience`'s.
    pub phase: PhaseRecipe,
    /// How often it is scored on the items for choosing.
    pub scorings: u64,
    /// Ends the tuning after so many scorings in a row without a new best one.
    pub patience: u64,
}

impl Default for AdapterRecipe {
    fn default() -> Self {
        Self {
            lora_rank: 8,
            phase: PhaseRecipe {
                tokens: 2_000_000,
                batch_tokens: 4_096,
                learning_rate: 5e-3,
                warmup_share: 0.05,
                final_share: 0.02,
                // Nothing of the base moves, so there is nothing that reading could teach.
                next_token_weight: 0.0,
                next_token_share: 0.0,
                label_smoothing: 0.1,
                augment: AugmentRecipe::TUNING,
                optimiser: AdamWConfig {
                    beta1: 0.9,
                    beta2: 0.98,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    clip_norm: 1.0,
                    average_decay: Some(0.98),
                },
                precision: Precision::Mixed,
            },
            scorings: 12,
            patience: 4,
        }
    }
}

/// Most scorings of a tuning.
pub const SCORINGS_MAX: u64 = 1_000;

impl AdapterRecipe {
    /// Holds every number to its range.
    ///
    /// # Errors
    /// [`crate::error::TrainError::RecipeField`] for the first outside.
    pub fn check(&self) -> Result<()> {
        in_range(
            "lora_rank",
            self.lora_rank <= trafficllm_model::limits::LORA_RANK_MAX,
            "0 to 64",
            &self.lora_rank,
        )?;
        self.phase.check(1)?;
        let weight = self.phase.next_token_weight;
        in_range(
            "next_token_weight",
            weight == 0.0,
            "0: the base is frozen",
            &weight,
        )?;
        in_range(
            "scorings",
            (1..=SCORINGS_MAX).contains(&self.scorings),
            "1 to 1000",
            &self.scorings,
        )
    }
}

/// What adapters are tuned with, whichever they are.
#[derive(Clone, Copy, Debug)]
pub struct Tuning<'a> {
    /// How.
    pub recipe: &'a AdapterRecipe,
    /// Shards of a batch.
    pub shards: usize,
    /// The seed.
    pub seed: u64,
    /// Threads for scoring.
    pub threads: usize,
    /// Where checkpoints go.
    pub checkpoints: &'a CheckpointStore,
    /// Steps between two checkpoints.
    pub checkpoint_steps: u64,
}

/// One task's items.
#[derive(Clone, Copy, Debug)]
pub struct TaskItems<'a> {
    /// Index of the task in the network, and in the items' targets.
    pub task: usize,
    /// Its name.
    pub name: &'a str,
    /// Items to tune on.
    pub train: &'a [Sequence],
    /// How they are drawn.
    pub sampling: SamplingRecipe,
    /// Items for choosing.
    pub val: ChoosingSet<'a>,
}

/// A tuned adapter.
#[derive(Debug)]
pub struct Tuned {
    /// The network with the best adapter on the items for choosing: the one that it came with, if none was better.
    pub network: Network,
    /// Macro-F1 of the adapter that it came with, on the items for choosing.
    pub before: f64,
    /// The same of the best one that was tuned.
    pub after: f64,
}

impl Tuned {
    /// Whether the adapter is another one than before.
    #[must_use]
    pub fn is_better(&self) -> bool {
        self.after > self.before
    }
}

/// Tunes the adapter of one task.
///
/// # Errors
/// As [`Phase::run`].
pub fn tune(network: Network, items: &TaskItems<'_>, tuning: &Tuning<'_>) -> Result<Tuned> {
    let recipe = tuning.recipe;
    let score = |network: &Network| choose::mean_macro_f1(network, &[items.val], tuning.threads);
    let before = score(&network)?;
    let start = network;
    let rank = recipe.lora_rank.max(start.config().lora_rank);
    let network = start.with_lora_rank(rank, tuning.seed)?;
    let sampler = Sampler::of_task(
        items.train,
        items.task,
        items.sampling,
        recipe.phase.augment,
        TokenRanges::of_vocabulary(),
        tuning.seed,
    );
    let name = format!("adapter-{}", items.name);
    let phase = Phase {
        name: &name,
        stream: STREAM + items.task as u64,
        recipe: &recipe.phase,
        sampler: &sampler,
        shards: tuning.shards,
        checkpoints: tuning.checkpoints,
        checkpoint_steps: tuning.checkpoint_steps,
        scorings: recipe.scorings,
        patience: recipe.patience,
        trainable: Trainable::task(items.task),
        halt_before_step: None,
    };
    let tuned = phase.run(network, Some(&score))?;
    let after = score(&tuned)?;
    tracing::info!(
        "{}: macro-F1 {before:.4} before, {after:.4} after tuning",
        items.name
    );
    Ok(Tuned {
        network: if after > before { tuned } else { start },
        before,
        after,
    })
}
