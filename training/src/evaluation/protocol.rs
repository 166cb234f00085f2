//! What the figures mean, written beside them.

use std::collections::BTreeMap;

use trafficllm_model::{Bundle, Level};

use super::{EvaluationOptions, FORMAT, Protocol};
use crate::metrics::{MIN_SUPPORT, RELIABILITY_BINS};

/// The protocol of a run.
pub(super) fn protocol(bundle: &Bundle, level: Level, options: &EvaluationOptions) -> Protocol {
    let manifest = bundle.manifest();
    let figures = figures();
    Protocol {
        format: FORMAT,
        program: format!("trafficllm-train {}", env!("CARGO_PKG_VERSION")),
        bundle: bundle.id().to_owned(),
        bundle_name: manifest.id.clone(),
        profile: manifest.profile.clone(),
        level: level.name().to_owned(),
        split: options.split.name().to_owned(),
        seed: options.seed,
        figures: figures
            .into_iter()
            .map(|(name, meaning)| (name.to_owned(), meaning))
            .collect(),
    }
}

fn figures() -> BTreeMap<&'static str, String> {
    let text = str::to_owned;
    BTreeMap::from([
        (
            "items",
            text(
                "flows or requests of the split; the answer is the runtime's quantised engine's, one task asked at a time",
            ),
        ),
        (
            "macro_f1",
            text(
                "plain mean of the F1 of the labels that the split holds; abstained answers count with their best label",
            ),
        ),
        (
            "macro_f1_supported",
            format!("the same over the labels with at least {MIN_SUPPORT} items"),
        ),
        (
            "unseen",
            text(
                "without the items whose payload (all kept packets; of a request its text) also stands in the training split",
            ),
        ),
        (
            "reliability",
            format!(
                "score of the best label against the share of right answers in {RELIABILITY_BINS} bins of equal width; expected_calibration_error is the mean distance, weighted by items. Where the split also chose temperature and threshold, as val does, it is better than on new data"
            ),
        ),
        (
            "risk_coverage",
            text(
                "share of wrong answers among those with the highest scores, over the share that is kept; area is the mean over all coverages, answers of equal score counted without order; area_best is what a perfect order would give",
            ),
        ),
        (
            "groups",
            text(
                "only items whose label begins so, best label among these labels alone, their scores scaled to one; the threshold is the whole task's; baselines are fitted on these labels alone",
            ),
        ),
        (
            "unknown",
            text(
                "area under the ROC curve of the best label's score, own items against outsiders; outsiders with a label of the task, or with a payload that stands under one in the training or the scored split, are left out and counted; without outsiders there is no figure",
            ),
        ),
        (
            "noise",
            text(
                "done to the kept packets of each flow (at most 20): the tap loses packets, packets change places with their neighbour, are late, or lose the end of their payload; requests are not changed",
            ),
        ),
        (
            "occlusion",
            text(
                "one family of tokens hidden from the model that was trained with all: sizes, direction and flags are replaced by the token for what is dropped, gaps and payload are left out",
            ),
        ),
        (
            "baselines",
            text(
                "fitted on the training split and scored on the same items, with addresses, ports and times of day hidden; labels that the bundle lacks are left out",
            ),
        ),
        (
            "lead",
            text(
                "macro-F1 of the model minus that of the best baseline, in points of a hundred; points_supported by macro_f1_supported",
            ),
        ),
        (
            "cost",
            text(
                "tokens of an item; time of encoding and of the model on one thread, this task alone, batches of 32, median of three rounds; times differ from run to run and machine to machine",
            ),
        ),
    ])
}
