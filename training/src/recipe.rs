//! Everything that decides what a bundle becomes, besides the data and the seed. The recipe is written into the bundle.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trafficllm_traffic::token::Profile;

use crate::adapters::AdapterRecipe;
use crate::batches::{AugmentRecipe, SamplingRecipe};
use crate::data::TaskKind;
use crate::error::{Result, TrainError};
use crate::instructions::InstructionRecipe;
use crate::network::is_zero;
use crate::ops::Precision;
use crate::optimiser::AdamWConfig;
use crate::phase::PhaseRecipe;
use crate::requests::{RequestRecipe, default_group_exponent};

/// The tasks of the default bundle.
pub const DEFAULT_TASKS: [&str; 6] = [
    "malware_traffic_detection",
    "botnet_detection",
    "encrypted_vpn_detection",
    "malicious_doh_detection",
    "iot_device_classification",
    "web_attack_http",
];

/// Most copies of an item, and most lines of a pattern.
pub const COPIES_MAX: usize = 1_000;
/// Most shards of a batch.
pub const SHARDS_MAX: usize = 1_024;

/// Sizes of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeRecipe {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of the gated MLP.
    pub feed_forward: usize,
    /// P-Tuning v2 positions of each task, per layer.
    pub prefix_tokens: usize,
    /// Rows that a task appends to a flow.
    pub query_tokens: usize,
    /// Rank of the low-rank additions (LoRA) of each task; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lora_rank: usize,
}

/// How scores are made honest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecipe {
    /// Verdicts abstain below the score at which this share of the remaining ones is right.
    pub accuracy_min: f32,
    /// The lowest threshold, and the one of tasks that reach that accuracy with none.
    pub fallback_threshold: f32,
}

/// A whole recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What of the traffic the model sees.
    pub profile: Profile,
    /// Tokens of the vocabulary; merges fill up what the fixed tokens leave.
    pub vocabulary: usize,
    /// Sizes of the network.
    pub shape: ShapeRecipe,
    /// Reading traffic without labels, before any task.
    pub pretrain: PhaseRecipe,
    /// Base and adapters on labelled traffic, all tasks together.
    pub tune: PhaseRecipe,
    /// Each task's adapter alone on the base that both have made, which is frozen; without it this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapters: Option<AdapterRecipe>,
    /// How labelled items are drawn.
    pub sampling: SamplingRecipe,
    /// How requests are varied.
    pub requests: RequestRecipe,
    /// How instructions are varied; without it the bundle has no instruction adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<InstructionRecipe>,
    /// Parts of a step that run side by side; the sums of a step depend on it, the number of threads does not.
    pub shards: usize,
    /// How often the network is scored on the data for choosing while it is tuned.
    pub scorings: u64,
    /// How scores are made honest.
    pub calibration: CalibrationRecipe,
}

const NO_CHANGE: AugmentRecipe = AugmentRecipe {
    token_dropout: 0.0,
    request_dropout: 0.0,
    size_jitter: 0.0,
    gap_jitter: 0,
    gap_drop: 0.0,
    payload_drop: 0.0,
    crop: 0.0,
};

impl Default for Recipe {
    fn default() -> Self {
        let optimiser = AdamWConfig {
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            average_decay: None,
        };
        let tune = PhaseRecipe {
            tokens: 48_000_000,
            batch_tokens: 4096,
            learning_rate: 2e-3,
            warmup_share: 0.03,
            final_share: 0.02,
            next_token_weight: 0.3,
            next_token_share: 0.25,
            label_smoothing: 0.1,
            augment: AugmentRecipe::TUNING,
            optimiser: AdamWConfig {
                average_decay: Some(0.99),
                ..optimiser
            },
            precision: Precision::Mixed,
        };
        Self {
            profile: Profile::default(),
            vocabulary: 8192,
            shape: ShapeRecipe {
                hidden: 192,
                layers: 4,
                heads: 6,
                kv_heads: 2,
                feed_forward: 512,
                prefix_tokens: 4,
                query_tokens: 1,
                lora_rank: 0,
            },
            pretrain: PhaseRecipe {
                tokens: 2_000_000,
                next_token_weight: 1.0,
                next_token_share: 1.0,
                augment: AugmentRecipe {
                    token_dropout: 0.05,
                    request_dropout: 0.05,
                    ..NO_CHANGE
                },
                optimiser,
                ..tune
            },
            tune,
            adapters: Some(AdapterRecipe::default()),
            sampling: SamplingRecipe {
                task_exponent: 0.25,
                label_exponent: 0.3,
                group_exponent: 0.5,
            },
            requests: RequestRecipe {
                variants: 8,
                one_sided_groups_min: 10,
                harmless_label: "normal".to_owned(),
                group_exponent: default_group_exponent(),
                subset: 0.5,
                rename_page: 0.7,
                rename_parameter: 0.7,
            },
            instructions: Some(InstructionRecipe {
                variants: 16,
                typing_errors: 0.25,
                word_dropout: 0.03,
                lines_of_pattern: 8,
                task_exponent: 0.35,
            }),
            shards: 2,
            scorings: 4,
            calibration: CalibrationRecipe {
                accuracy_min: 0.9,
                fallback_threshold: 0.5,
            },
        }
    }
}

impl Recipe {
    /// How the items of a kind of task are drawn.
    #[must_use]
    pub fn sampling_of(&self, kind: TaskKind) -> SamplingRecipe {
        match kind {
            TaskKind::Request => SamplingRecipe {
                group_exponent: self.requests.group_exponent,
                ..self.sampling
            },
            TaskKind::Instruction => SamplingRecipe {
                task_exponent: self
                    .instructions
                    .map_or(self.sampling.task_exponent, |recipe| recipe.task_exponent),
                ..self.sampling
            },
            TaskKind::Flow => self.sampling,
        }
    }

    /// Holds the numbers that say how often and how much to their ranges; what does not fit together is refused where it is used.
    ///
    /// # Errors
    /// [`TrainError::RecipeField`] for the first outside.
    pub fn check(&self) -> Result<()> {
        self.pretrain.check(0)?;
        self.tune.check(0)?;
        if let Some(adapters) = &self.adapters {
            adapters.check()?;
        }
        let copies =
            |field, count: usize| in_range(field, count <= COPIES_MAX, "0 to 1000", &count);
        copies("requests.variants", self.requests.variants)?;
        if let Some(recipe) = &self.instructions {
            copies("instructions.variants", recipe.variants)?;
            copies("instructions.lines_of_pattern", recipe.lines_of_pattern)?;
            let typing = recipe.typing_errors;
            let is_fine = (0.0..=100.0).contains(&typing);
            in_range("instructions.typing_errors", is_fine, "0 to 100", &typing)?;
            for (field, value) in [
                ("instructions.word_dropout", recipe.word_dropout),
                ("instructions.task_exponent", recipe.task_exponent),
            ] {
                in_range(field, (0.0..=1.0).contains(&value), "0 to 1", &value)?;
            }
        }
        in_range(
            "shards",
            (1..=SHARDS_MAX).contains(&self.shards),
            "1 to 1024",
            &self.shards,
        )
    }

    /// A hash of the whole recipe: two runs with the same one do the same.
    #[must_use]
    pub fn hash(&self) -> String {
        hash_of_json(self)
    }
}

/// Refuses a number of a recipe that is not in its range.
pub(crate) fn in_range(
    field: &'static str,
    is_fine: bool,
    expected: &'static str,
    found: &dyn Display,
) -> Result<()> {
    if is_fine {
        return Ok(());
    }
    Err(TrainError::RecipeField {
        field,
        expected,
        found: found.to_string(),
    })
}

/// A hash of plain numbers, texts and lists: serialising them cannot fail.
pub(crate) fn hash_of_json(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).unwrap_or_default();
    hex(&Sha256::digest(json))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_moves_the_hash_and_json_keeps_it() {
        let recipe = Recipe::default();
        let json = serde_json::to_string(&recipe).expect("json");
        let again: Recipe = serde_json::from_str(&json).expect("recipe");
        assert_eq!(again.hash(), recipe.hash());
        let mut other = recipe.clone();
        other.tune.learning_rate *= 1.0 + 1e-9;
        assert_ne!(other.hash(), recipe.hash());
        other = recipe.clone();
        other.profile.ports = true;
        assert_ne!(other.hash(), recipe.hash());
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut json = serde_json::to_value(Recipe::default()).expect("json");
        json["tuen"] = 1.into();
        assert!(serde_json::from_value::<Recipe>(json).is_err());
    }

    #[test]
    fn numbers_are_held_to_their_ranges() {
        type Change<'a> = &'a dyn Fn(&mut Recipe);
        let default = Recipe::default();
        default.check().expect("sound");
        let with = |change: Change<'_>| {
            let mut recipe = default.clone();
            change(&mut recipe);
            recipe.check().map_err(|error| error.to_string())
        };
        let lines = |recipe: &mut Recipe, lines| {
            if let Some(instructions) = &mut recipe.instructions {
                instructions.lines_of_pattern = lines;
            }
        };
        with(&|recipe| lines(recipe, COPIES_MAX)).expect("at the limit");
        with(&|recipe| recipe.pretrain.tokens = 0).expect("left out");
        let refused: [(Change<'_>, &str); 6] = [
            (
                &|recipe| lines(recipe, COPIES_MAX + 1),
                "lines_of_pattern: expected 0 to 1000",
            ),
            (
                &|recipe| recipe.tune.next_token_share = 0.0,
                "next_token_share: expected more than 0",
            ),
            (
                &|recipe| recipe.tune.next_token_share = 1.5,
                "next_token_share: expected 0 to 1",
            ),
            (
                &|recipe| recipe.tune.learning_rate = f64::NAN,
                "learning_rate: expected 0 to 1",
            ),
            (
                &|recipe| recipe.tune.augment.gap_jitter = 10_000,
                "gap_jitter",
            ),
            (
                &|recipe| recipe.shards = 0,
                "shards: expected 1 to 1024, found 0",
            ),
        ];
        for (change, expected) in refused {
            let error = with(change).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_default_profile_is_valid() {
        Recipe::default().profile.validate().expect("valid");
    }
}
