//! What an evaluation finds, as it is written to JSON. Shares and scores are in `0..=1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::baselines::BaselineScores;
use crate::evaluate::TaskEvaluation;
use crate::metrics::{Reliability, RiskCoverage, Scores};

/// Version of the JSON's shape.
pub const FORMAT: u32 = 1;

/// Everything that was measured, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// How it was measured.
    pub protocol: Protocol,
    /// The tasks in the order of the bundle.
    pub tasks: Vec<TaskReport>,
}

/// How the figures were measured: with this and the data they can be measured again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// [`FORMAT`].
    pub format: u32,
    /// The program and its version.
    pub program: String,
    /// The identity of the bundle: a hash over its bytes.
    pub bundle: String,
    /// The publisher's name for it.
    pub bundle_name: String,
    /// The profile that made the tokens.
    pub profile: serde_json::Value,
    /// The CPU level of the kernels.
    pub level: String,
    /// The split that was scored.
    pub split: String,
    /// Seed of noise and baselines.
    pub seed: u64,
    /// What each figure means.
    pub figures: BTreeMap<String, String>,
}

/// All figures of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Macro-F1, accuracy and per-class scores, with and without items that repeat the training.
    #[serde(flatten)]
    pub evaluation: TaskEvaluation,
    /// The bundle's labels.
    pub labels: Vec<String>,
    /// Items by true label (row) and answered label (column), in the order of `labels`.
    pub confusion: Vec<Vec<u64>>,
    /// Whether scores mean what they say.
    pub reliability: Reliability,
    /// What abstaining buys.
    pub risk_coverage: RiskCoverage,
    /// The task restricted to labels with a common beginning.
    pub groups: Vec<GroupReport>,
    /// How well the score tells items that no label of the task fits.
    pub unknown: Vec<UnknownReport>,
    /// The scores under noise, if they were asked for.
    pub noise: Vec<VariantReport>,
    /// The scores without one family of tokens, if they were asked for.
    pub occlusion: Vec<VariantReport>,
    /// Simple models on the same split, if they were asked for.
    pub baselines: Vec<BaselineScores>,
    /// Macro-F1 of the model minus that of the best baseline, in points of a hundred.
    pub lead_points: Option<f64>,
    /// What an item costs; the times differ from run to run.
    pub cost: Cost,
}

/// A task among the labels with one beginning only: items with other labels are left out, and so are the other labels' scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// What the labels begin with.
    pub prefix: String,
    /// All items of these labels.
    pub all: Scores,
    /// Without those that repeat the training.
    pub unseen: Scores,
    /// Of the scores among these labels alone.
    pub expected_calibration_error: f64,
    /// Simple models that were fitted and scored on these labels alone, if they were asked for.
    pub baselines: Vec<BaselineScores>,
    /// Macro-F1 of the model minus that of the best baseline, in points of a hundred.
    pub lead_points: Option<f64>,
}

/// How well the score tells outsiders from the task's own items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnknownReport {
    /// Who they are: a task of the data, or the labels that the bundle lacks.
    pub outsiders: String,
    /// Their labels.
    pub labels: Vec<String>,
    /// How many items they are.
    pub items: u64,
    /// Items that were left out because their label or their payload is known to the task.
    pub left_out: u64,
    /// Area under the ROC curve of the best label's score.
    pub auroc: f64,
    /// Share of the task's own items that are answered and not abstained.
    pub answered_inside: f64,
    /// Share of the outsiders that are answered all the same.
    pub answered_outside: f64,
}

/// The scores of the same items, changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantReport {
    /// What was done to them.
    pub name: String,
    /// See [`Scores`].
    pub macro_f1: f64,
    /// See [`Scores`].
    pub macro_f1_supported: f64,
    /// See [`Scores`].
    pub accuracy: f64,
    /// See [`Scores`].
    pub abstained: f64,
    /// See [`Scores`].
    pub accuracy_answered: f64,
    /// Whether the scores still mean what they say.
    pub expected_calibration_error: f64,
}

/// What an item costs on one thread, asked for this task alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Mean tokens of all items.
    pub tokens_mean: f64,
    /// Most tokens of an item.
    pub tokens_max: usize,
    /// Items that were timed, spread evenly over the split.
    pub timed_items: usize,
    /// Mean time to make tokens of an item, in microseconds; the median of the rounds.
    pub encoding_us: f64,
    /// Mean time of the model for an item in batches of 32, in microseconds; the median of the rounds.
    pub model_us: f64,
}

/// Macro-F1 of the model minus that of the best baseline, in points of a hundred.
pub(super) fn lead_points(model: &Scores, baselines: &[BaselineScores]) -> Option<f64> {
    let best = baselines.iter().map(|baseline| baseline.all.macro_f1);
    let best = best.reduce(f64::max)?;
    Some(100.0 * (model.macro_f1 - best))
}
