//! What is counted of a classifier's answers: macro-F1, accuracy, per-class scores and the share of abstained answers.
//!
//! Macro-F1 is the plain mean of the F1 of the labels that the split really holds. An abstained answer counts with its
//! best label here, and its share is reported beside: otherwise a model could raise its score by not answering.

mod coverage;
mod detector;
mod reliability;

use serde::{Deserialize, Serialize};

pub use coverage::{CoveragePoint, RiskCoverage};
pub use detector::area_under_roc;
pub use reliability::{RELIABILITY_BINS, Reliability, ReliabilityBin};

/// One answer as calibration and abstention see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The score of the best label, in `0..=1`.
    pub score: f32,
    /// The best label is the true one.
    pub right: bool,
}

/// A table of truths against answers.
#[derive(Clone, Debug)]
pub struct Confusion {
    labels: Vec<String>,
    /// `[truth, answer]`, row-major.
    counts: Vec<u64>,
    abstained: u64,
    /// Answers that were right among those that were not abstained.
    kept_right: u64,
}

/// The scores of one label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// The label's name.
    pub label: String,
    /// Items of the split that truly carry the label.
    pub support: u64,
    /// Share of the answers with this label that were right; 0 where there was none.
    pub precision: f64,
    /// Share of the items of this label that were found; 0 where there was none.
    pub recall: f64,
    /// Harmonic mean of precision and recall; 0 where both are.
    pub f1: f64,
}

/// What is published of one task on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Items scored.
    pub items: u64,
    /// Labels with at least one item in the split; the macro-F1 is their mean.
    pub labels_scored: usize,
    /// Mean F1 over the labels that are present in the split, in `0..=1`.
    pub macro_f1: f64,
    /// Mean F1 over the labels with at least [`MIN_SUPPORT`] items; equal to `macro_f1` where all have them.
    pub macro_f1_supported: f64,
    /// Labels with at least [`MIN_SUPPORT`] items.
    pub labels_supported: usize,
    /// Share of right answers, in `0..=1`, abstained answers counted with their best label.
    pub accuracy: f64,
    /// Share of the answers whose score stayed under the task's threshold, in `0..=1`.
    pub abstained: f64,
    /// Share of right answers among those that were not abstained; 0 where all were.
    pub accuracy_answered: f64,
    /// Per label, in the task's label order, the ones that are absent from the split left out.
    pub per_class: Vec<ClassScore>,
}

/// Labels with fewer items than this are too few to trust one by one: the second macro-F1 leaves them out.
pub const MIN_SUPPORT: u64 = 20;

impl Confusion {
    /// An empty table over the task's labels.
    #[must_use]
    pub fn new(labels: &[String]) -> Self {
        Self {
            labels: labels.to_vec(),
            counts: vec![0; labels.len() * labels.len()],
            abstained: 0,
            kept_right: 0,
        }
    }

    /// Counts one answer. Labels outside the table are ignored; the callers check theirs where the data is read.
    pub fn record(&mut self, truth: usize, answer: usize, abstained: bool) {
        let width = self.labels.len();
        if truth >= width || answer >= width {
            return;
        }
        self.counts[truth * width + answer] += 1;
        if abstained {
            self.abstained += 1;
        } else if truth == answer {
            self.kept_right += 1;
        }
    }

    /// Items of label `truth` that were answered with label `answer`; 0 outside the table.
    #[must_use]
    pub fn count(&self, truth: usize, answer: usize) -> u64 {
        if answer >= self.labels.len() {
            return 0;
        }
        self.counts
            .get(truth * self.labels.len() + answer)
            .copied()
            .unwrap_or(0)
    }

    /// All counts, one row per true label with one count per answered label.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<u64>> {
        let width = self.labels.len().max(1);
        self.counts.chunks(width).map(<[u64]>::to_vec).collect()
    }

    /// The scores of everything counted so far.
    #[must_use]
    pub fn scores(&self) -> Scores {
        let width = self.labels.len();
        let items: u64 = self.counts.iter().sum();
        let right: u64 = (0..width).map(|label| self.count(label, label)).sum();
        let per_class: Vec<ClassScore> = (0..width)
            .map(|label| self.class_score(label))
            .filter(|class| class.support > 0)
            .collect();
        let supported: Vec<&ClassScore> = per_class
            .iter()
            .filter(|class| class.support >= MIN_SUPPORT)
            .collect();
        Scores {
            items,
            labels_scored: per_class.len(),
            macro_f1: mean(per_class.iter().map(|class| class.f1)),
            macro_f1_supported: mean(supported.iter().map(|class| class.f1)),
            labels_supported: supported.len(),
            accuracy: ratio(right, items),
            abstained: ratio(self.abstained, items),
            accuracy_answered: ratio(self.kept_right, items - self.abstained),
            per_class,
        }
    }

    fn class_score(&self, label: usize) -> ClassScore {
        let width = self.labels.len();
        let support: u64 = (0..width).map(|answer| self.count(label, answer)).sum();
        let answered: u64 = (0..width).map(|truth| self.count(truth, label)).sum();
        let right = self.count(label, label);
        ClassScore {
            label: self.labels[label].clone(),
            support,
            precision: ratio(right, answered),
            recall: ratio(right, support),
            f1: ratio(2 * right, support + answered),
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u64), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-12, "{left} is not {right}");
    }

    #[test]
    fn three_classes_by_hand() {
        // a: 3 items, 2 found; b: 2 items, 1 found; c: 1 item, 1 found.
        let mut table = Confusion::new(&labels(&["a", "b", "c"]));
        for (truth, answer) in [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 2)] {
            table.record(truth, answer, false);
        }
        let scores = table.scores();
        assert_eq!(scores.items, 6);
        close(scores.accuracy, 4.0 / 6.0);
        // a: precision 2/2, recall 2/3, F1 0.8; b: 1/2 and 1/2, F1 0.5; c: precision 1/2, recall 1, F1 2/3.
        close(scores.per_class[0].f1, 0.8);
        close(scores.per_class[1].f1, 0.5);
        close(scores.per_class[2].f1, 2.0 / 3.0);
        close(scores.per_class[2].precision, 0.5);
        close(scores.per_class[2].recall, 1.0);
        close(scores.macro_f1, (0.8 + 0.5 + 2.0 / 3.0) / 3.0);
    }

    #[test]
    fn labels_absent_from_the_split_are_left_out_but_their_answers_still_cost() {
        // `b` never occurs; one of the two items of `a` is answered with it.
        let mut table = Confusion::new(&labels(&["a", "b"]));
        table.record(0, 0, false);
        table.record(0, 1, false);
        let scores = table.scores();
        assert_eq!(scores.labels_scored, 1);
        close(scores.macro_f1, 2.0 / 3.0);
        close(scores.accuracy, 0.5);
    }

    #[test]
    fn rare_labels_count_in_one_mean_only() {
        let mut table = Confusion::new(&labels(&["common", "rare"]));
        for _ in 0..MIN_SUPPORT {
            table.record(0, 0, false);
        }
        for _ in 0..MIN_SUPPORT - 1 {
            table.record(1, 0, false);
        }
        let scores = table.scores();
        assert_eq!((scores.labels_scored, scores.labels_supported), (2, 1));
        // common: 20 right of 20 items and 39 answers.
        close(scores.macro_f1_supported, 40.0 / 59.0);
        close(scores.macro_f1, 20.0 / 59.0);
        table.record(1, 1, false);
        assert_eq!(
            table.scores().labels_supported,
            2,
            "exactly {MIN_SUPPORT} items are enough"
        );
    }

    #[test]
    fn abstained_answers_count_with_their_best_label_and_are_shown() {
        let mut table = Confusion::new(&labels(&["a", "b"]));
        table.record(0, 0, false);
        table.record(0, 1, true);
        table.record(1, 1, true);
        table.record(1, 1, false);
        let scores = table.scores();
        close(scores.accuracy, 0.75);
        close(scores.abstained, 0.5);
        close(scores.accuracy_answered, 1.0);
    }

    #[test]
    fn nothing_counted_gives_zeros_and_not_nan() {
        let scores = Confusion::new(&labels(&["a"])).scores();
        assert_eq!(scores.items, 0);
        close(scores.macro_f1, 0.0);
        close(scores.accuracy, 0.0);
        close(scores.accuracy_answered, 0.0);
    }
}
