//! Scores of a bundle on a split, with the engine that will be used, and with and without items that repeat the training.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use trafficllm_model::{Bundle, Model, TaskVerdict};
use trafficllm_traffic::token::{EncodeScratch, Encoder, Profile, Tokenizer};

use crate::baselines::Floors;
use crate::data::{Split, TaskData};
use crate::engine;
use crate::error::{Result, TrainError};
use crate::metrics::{Confusion, MIN_SUPPORT, Scores};
use crate::tokenizer;

/// The scores of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEvaluation {
    /// The task.
    pub task: String,
    /// The split that was scored.
    pub split: String,
    /// All items.
    pub all: Scores,
    /// Without the items whose payload stands in the training split too.
    pub unseen: Scores,
    /// How many those are.
    pub repeated: u64,
}

/// The encoder that a bundle was made with.
///
/// # Errors
/// Where the bundle's profile or tokenizer is not valid.
pub fn encoder_of(bundle: &Bundle) -> Result<Encoder> {
    let manifest = bundle.manifest();
    let profile: Profile =
        serde_json::from_value(manifest.profile.clone()).map_err(|source| TrainError::Json {
            path: "bundle.json".into(),
            source,
        })?;
    let tokenizer = Tokenizer::from_json(bundle.file(&manifest.tokenizer.file)?)?;
    Ok(Encoder::new(tokenizer, profile)?)
}

/// The hashes of everything that the items of a split carry as payload.
#[must_use]
pub fn fingerprints(data: &TaskData) -> HashSet<u64> {
    data.items
        .iter()
        .filter_map(|item| item.content.payload_fingerprint())
        .collect()
}

/// Scores one task of a model on a split that was read already; `seen` are the fingerprints of the training split.
///
/// # Errors
/// Where an item cannot be encoded, a label is not the model's, or the engine refuses an item.
pub fn score(
    model: &Model,
    task: usize,
    encoder: &Encoder,
    scored: &TaskData,
    split: Split,
    seen: &HashSet<u64>,
    threads: usize,
) -> Result<TaskEvaluation> {
    let labels = engine::task(model, task)?.labels();
    let truths = truths(labels, scored, split)?;
    let mut scratch = EncodeScratch::default();
    let mut items = Vec::with_capacity(scored.items.len());
    for item in &scored.items {
        items.push(tokenizer::encode(encoder, &item.content, &mut scratch)?);
    }
    let verdicts: Vec<TaskVerdict> = engine::verdicts(model, task, &items, threads)?;
    let (mut all, mut unseen, mut repeated) = (Confusion::new(labels), Confusion::new(labels), 0);
    for ((item, truth), verdict) in scored.items.iter().zip(truths).zip(verdicts) {
        all.record(truth, verdict.label as usize, verdict.abstained);
        if item
            .content
            .payload_fingerprint()
            .is_some_and(|fingerprint| seen.contains(&fingerprint))
        {
            repeated += 1;
        } else {
            unseen.record(truth, verdict.label as usize, verdict.abstained);
        }
    }
    Ok(TaskEvaluation {
        task: scored.task.clone(),
        split: split.name().into(),
        all: all.scores(),
        unseen: unseen.scores(),
        repeated,
    })
}

/// The true labels in the model's label order, which need not be that of the data folder.
fn truths(labels: &[String], scored: &TaskData, split: Split) -> Result<Vec<usize>> {
    let mut places = Vec::with_capacity(scored.labels.len());
    for label in &scored.labels {
        places.push(labels.iter().position(|known| known == label));
    }
    let unknown = |label: usize| TrainError::LabelUnknown {
        task: scored.task.clone(),
        split: split.name().into(),
        label: scored.labels[label].clone(),
        known: labels.len(),
    };
    scored
        .items
        .iter()
        .map(|item| places[item.label].ok_or_else(|| unknown(item.label)))
        .collect()
}

/// The table that is printed: one line per task, percentages.
#[must_use]
pub fn table(evaluations: &[TaskEvaluation], per_class: bool) -> String {
    let mut text = format!(
        "{:<28}{:>7}{:>9}{:>11}{:>10}{:>11}{:>10}{:>13}\n",
        "task", "items", "macro-F1", "F1, n>=20", "accuracy", "abstained", "answered", "F1, unseen"
    );
    for evaluation in evaluations {
        let all = &evaluation.all;
        let percent = |value: f64| format!("{:.1}", 100.0 * value);
        let supported = format!(
            "{} ({})",
            percent(all.macro_f1_supported),
            all.labels_supported
        );
        let unseen = format!(
            "{} ({})",
            percent(evaluation.unseen.macro_f1),
            evaluation.unseen.items
        );
        // Writing to a text cannot fail.
        let _ = writeln!(
            text,
            "{:<28}{:>7}{:>9}{:>11}{:>10}{:>11}{:>10}{:>13}",
            evaluation.task,
            all.items,
            percent(all.macro_f1),
            supported,
            percent(all.accuracy),
            percent(all.abstained),
            percent(all.accuracy_answered),
            unseen
        );
    }
    let _ = writeln!(
        text,
        "\nmacro-F1: mean over the labels in the split; n>={MIN_SUPPORT}: over those with so many items (how many); abstained answers \
         count with their best label;\nanswered: accuracy of the others; unseen: without items whose payload also stands in train."
    );
    if per_class {
        for evaluation in evaluations {
            let _ = writeln!(
                text,
                "\n{}\n  {:<40}{:>7}{:>11}{:>8}{:>7}",
                evaluation.task, "label", "items", "precision", "recall", "F1"
            );
            for class in &evaluation.all.per_class {
                let _ = writeln!(
                    text,
                    "  {:<40}{:>7}{:>11.3}{:>8.3}{:>7.3}",
                    class.label, class.support, class.precision, class.recall, class.f1
                );
            }
        }
    }
    text
}

/// The table of the baselines, one line per task and baseline, percentages.
#[must_use]
pub fn floors_table(floors: &[Floors]) -> String {
    let mut text = format!(
        "{:<28}{:<20}{:>7}{:>9}{:>11}{:>10}{:>13}\n",
        "task", "baseline", "items", "macro-F1", "F1, n>=20", "accuracy", "F1, unseen"
    );
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    for (floor, baseline) in floors
        .iter()
        .flat_map(|floor| floor.baselines.iter().map(move |one| (floor, one)))
    {
        let all = &baseline.all;
        // Writing to a text cannot fail.
        let _ = writeln!(
            text,
            "{:<28}{:<20}{:>7}{:>9}{:>11}{:>10}{:>13}",
            floor.task,
            baseline.name,
            all.items,
            percent(all.macro_f1),
            percent(all.macro_f1_supported),
            percent(all.accuracy),
            percent(baseline.unseen.macro_f1),
        );
    }
    text
}
