//! How far a look-up table gets that knows one field and has never seen the traffic.
//!
//! The table answers with the label that a value has most often in `train` (the first in byte order where two are as frequent), and
//! with the most frequent label of all for a value that `train` does not hold. Its skill is how much of the way from chance to a
//! perfect score it goes: `(score - chance) / (1 - chance)`, where chance is the score of always giving the most frequent label of
//! `train`. Both accuracy and macro-F1 are looked at, and the larger skill decides the verdict. A shortcut is no proof of a bad data
//! set (a port may be what a class is about), but a model that sees the field need not have learnt anything else.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Facts;
use crate::metrics::Confusion;

/// From this skill on a field alone is a shortcut.
pub const SHORTCUT_SKILL: f64 = 0.5;
/// Below this skill a field says next to nothing.
pub const WEAK_SKILL: f64 = 0.2;

/// What the skill of a look-up table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The field goes half of the way or more: [`SHORTCUT_SKILL`].
    Shortcut,
    /// It goes a part of the way that is worth knowing: from [`WEAK_SKILL`] on.
    Leans,
    /// It goes less.
    Weak,
}

/// What a look-up table over one field reaches.
#[derive(Clone, Debug, Serialize)]
pub struct Shortcut {
    /// The field.
    pub feature: String,
    /// Different values in `train`.
    pub values: usize,
    /// Items of the scored split whose value stands in `train`, of all, in `0..=1`.
    pub known: f64,
    /// Share of right answers, in `0..=1`.
    pub accuracy: f64,
    /// Macro-F1 over the labels of the scored split, in `0..=1`.
    pub macro_f1: f64,
    /// Accuracy of always giving the most frequent label of `train`.
    pub chance_accuracy: f64,
    /// Macro-F1 of the same.
    pub chance_macro_f1: f64,
    /// The larger of the two parts of the way from chance to a perfect score; below 0 where it is worse than chance.
    pub skill: f64,
    /// What that means.
    pub verdict: Verdict,
}

/// Makes and scores a table for each field.
pub(super) fn audit(labels: &[String], train: &Facts, scored: &Facts) -> Vec<Shortcut> {
    if train.features != scored.features || train.items.is_empty() || scored.items.is_empty() {
        return Vec::new();
    }
    let mut totals = vec![0_u64; labels.len()];
    for item in &train.items {
        totals[item.label] += 1;
    }
    let majority = most_frequent(&totals);
    let mut chance = Confusion::new(labels);
    for item in &scored.items {
        chance.record(item.label, majority, false);
    }
    let chance = chance.scores();
    let each = train.features.iter().enumerate();
    each.map(|(place, feature)| {
        let table = look_up_table(train, place, labels.len());
        let mut answers = Confusion::new(labels);
        let mut known = 0_u64;
        for item in &scored.items {
            let found = table.get(item.features[place].as_str()).copied();
            known += u64::from(found.is_some());
            answers.record(item.label, found.unwrap_or(majority), false);
        }
        let scores = answers.scores();
        let skill = part_of_way(scores.accuracy, chance.accuracy)
            .max(part_of_way(scores.macro_f1, chance.macro_f1));
        Shortcut {
            feature: (*feature).into(),
            values: table.len(),
            known: known as f64 / scored.items.len() as f64,
            accuracy: scores.accuracy,
            macro_f1: scores.macro_f1,
            chance_accuracy: chance.accuracy,
            chance_macro_f1: chance.macro_f1,
            skill,
            verdict: verdict(skill),
        }
    })
    .collect()
}

fn look_up_table(train: &Facts, place: usize, labels: usize) -> BTreeMap<&str, usize> {
    let mut counts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for item in &train.items {
        let count = counts
            .entry(&item.features[place])
            .or_insert_with(|| vec![0; labels]);
        count[item.label] += 1;
    }
    counts
        .into_iter()
        .map(|(value, count)| (value, most_frequent(&count)))
        .collect()
}

/// The first of the largest.
fn most_frequent(counts: &[u64]) -> usize {
    let largest = counts.iter().max();
    let place = counts.iter().position(|count| Some(count) == largest);
    place.unwrap_or_default()
}

fn part_of_way(score: f64, chance: f64) -> f64 {
    if chance >= 1.0 {
        0.0
    } else {
        (score - chance) / (1.0 - chance)
    }
}

pub(super) fn verdict(skill: f64) -> Verdict {
    if skill >= SHORTCUT_SKILL {
        Verdict::Shortcut
    } else if skill >= WEAK_SKILL {
        Verdict::Leans
    } else {
        Verdict::Weak
    }
}

impl Verdict {
    /// The verdict in a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shortcut => "shortcut",
            Self::Leans => "leans",
            Self::Weak => "weak",
        }
    }
}
