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
    /// How far the model is above the best baseline, if they were asked for.
    pub lead: Option<Lead>,
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
    /// How far the model is above the best baseline, if they were asked for.
    pub lead: Option<Lead>,
}

/// How well the score tells outsiders from the task's own items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnknownReport {
    /// Who they are: a task of the data, or the labels that the bundle lacks.
    pub outsiders: String,
    /// Their labels.
    pub labels: Vec<String>,
    /// How many items they are; 0 where all were left out, or there were none.
    pub items: u64,
    /// Items that were left out because their label or their payload is known to the task.
    pub left_out: u64,
    /// Area under the ROC curve of the best label's score; none without outsiders.
    pub auroc: Option<f64>,
    /// Share of the task's own items that are answered and not abstained.
    pub answered_inside: f64,
    /// Share of the outsiders that are answered all the same; none without outsiders.
    pub answered_outside: Option<f64>,
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

/// How far the model is above the best baseline, in points of a hundred; below 0 it is under it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lead {
    /// By macro-F1.
    pub points: f64,
    /// By macro-F1 over the labels with enough items: a label with one item moves the other by points.
    pub points_supported: f64,
}

impl Lead {
    /// Of a model over baselines; nothing where none was measured. Each figure is held against the baseline that is best by it.
    pub(super) fn of(model: &Scores, baselines: &[BaselineScores]) -> Option<Self> {
        let over = |figure: fn(&Scores) -> f64| {
            let best = baselines.iter().map(|baseline| figure(&baseline.all));
            best.reduce(f64::max)
                .map(|best| 100.0 * (figure(model) - best))
        };
        Some(Self {
            points: over(|scores| scores.macro_f1)?,
            points_supported: over(|scores| scores.macro_f1_supported)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Confusion;

    /// Scores of two labels: of `items` items each, so many are answered right and the others with the other label.
    fn scores(right: [u64; 2], items: [u64; 2]) -> Scores {
        let mut table = Confusion::new(&["a".to_owned(), "b".to_owned()]);
        for label in 0..2 {
            for item in 0..items[label] {
                let answer = if item < right[label] {
                    label
                } else {
                    1 - label
                };
                table.record(label, answer, false);
            }
        }
        table.scores()
    }

    #[test]
    fn the_lead_is_over_the_best_baseline_by_each_figure() {
        let baseline = |name: &str, all: Scores| BaselineScores {
            name: name.into(),
            description: String::new(),
            unseen: all.clone(),
            all,
        };
        // `b` has one item: too few to count in the second figure.
        let model = scores([20, 1], [20, 1]);
        let weak = baseline("weak", scores([10, 1], [20, 1]));
        let strong = baseline("strong", scores([20, 0], [20, 1]));
        let by = |figure: f64| 100.0 * (1.0 - figure);
        let lead = Lead::of(&model, &[weak.clone(), strong.clone()]).expect("measured");
        let best = weak.all.macro_f1.max(strong.all.macro_f1);
        assert!((lead.points - by(best)).abs() < 1e-9 && lead.points > 0.0);
        // Of the strong one: 20 right of 20 items and 21 answers.
        assert!((lead.points_supported - by(40.0 / 41.0)).abs() < 1e-9);
        let under = Lead::of(&weak.all, &[strong]).expect("measured");
        assert!(under.points_supported < 0.0);
        assert_eq!(Lead::of(&model, &[]), None);
    }
}
