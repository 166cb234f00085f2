//! Whether a score means what it says: of the answers with score 0.8, four of five should be right.
//!
//! Expected calibration error over bins of equal width, as Naeini et al. 2015 ("Obtaining Well Calibrated Probabilities Using Bayesian
//! Binning") and Guo et al. 2017 ("On Calibration of Modern Neural Networks") define it.

use serde::{Deserialize, Serialize};

use super::{Judged, ratio};

/// Bins of equal width over `0..=1`: the number that the literature mostly uses.
pub const RELIABILITY_BINS: usize = 15;

/// One bin of scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Scores above this belong to the bin; in the first bin 0 does too.
    pub above: f64,
    /// The highest score of the bin.
    pub up_to: f64,
    /// Answers in the bin.
    pub items: u64,
    /// Mean score of the answers in the bin; 0 where there is none.
    pub mean_score: f64,
    /// Share of right answers in the bin; 0 where there is none.
    pub accuracy: f64,
}

/// The reliability table with its summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// Mean over the answers of the distance between mean score and accuracy of their bin.
    pub expected_calibration_error: f64,
    /// The bins in ascending order, empty ones too.
    pub bins: Vec<ReliabilityBin>,
}

impl Reliability {
    /// Counts the answers into [`RELIABILITY_BINS`] bins.
    #[must_use]
    pub fn of(answers: &[Judged]) -> Self {
        let mut sums = [(0_u64, 0.0_f64, 0_u64); RELIABILITY_BINS];
        for answer in answers {
            let score = f64::from(answer.score).clamp(0.0, 1.0);
            let bin = (score * RELIABILITY_BINS as f64).ceil() as usize;
            let (items, scores, right) = &mut sums[bin.saturating_sub(1).min(RELIABILITY_BINS - 1)];
            *items += 1;
            *scores += score;
            *right += u64::from(answer.right);
        }
        let edge = |bin: usize| bin as f64 / RELIABILITY_BINS as f64;
        let bins: Vec<ReliabilityBin> = sums
            .iter()
            .enumerate()
            .map(|(bin, &(items, scores, right))| ReliabilityBin {
                above: edge(bin),
                up_to: edge(bin + 1),
                items,
                mean_score: scores / items.max(1) as f64,
                accuracy: ratio(right, items),
            })
            .collect();
        let distances = bins
            .iter()
            .map(|bin| bin.items as f64 * (bin.mean_score - bin.accuracy).abs());
        Self {
            expected_calibration_error: distances.sum::<f64>() / answers.len().max(1) as f64,
            bins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(score: f32, right: usize, wrong: usize) -> Vec<Judged> {
        let answer = |right| Judged { score, right };
        let right = std::iter::repeat_n(answer(true), right);
        right
            .chain(std::iter::repeat_n(answer(false), wrong))
            .collect()
    }

    #[test]
    fn the_error_is_the_weighted_distance_of_the_bins() {
        // 10 answers at 0.9, 6 right: 0.3 apart. 30 answers at 0.5, 15 right: 0 apart.
        let mut all = answers(0.9, 6, 4);
        all.extend(answers(0.5, 15, 15));
        let table = Reliability::of(&all);
        assert!((table.expected_calibration_error - 0.3 * 10.0 / 40.0).abs() < 1e-7);
        let filled: Vec<&ReliabilityBin> = table.bins.iter().filter(|bin| bin.items > 0).collect();
        assert_eq!(filled.len(), 2);
        assert_eq!((filled[0].items, filled[1].items), (30, 10));
        assert!((filled[1].accuracy - 0.6).abs() < 1e-12);
        assert!((filled[1].mean_score - 0.9).abs() < 1e-7);
    }

    #[test]
    fn right_and_sure_is_no_error_and_wrong_and_sure_is_all() {
        assert_eq!(
            Reliability::of(&answers(1.0, 20, 0)).expected_calibration_error,
            0.0
        );
        assert_eq!(
            Reliability::of(&answers(1.0, 0, 20)).expected_calibration_error,
            1.0
        );
        assert_eq!(Reliability::of(&[]).expected_calibration_error, 0.0);
    }

    #[test]
    fn the_ends_belong_to_the_outer_bins() {
        for (score, bin) in [
            (0.0, 0),
            (1.0, RELIABILITY_BINS - 1),
            (0.999, RELIABILITY_BINS - 1),
            (0.01, 0),
        ] {
            let table = Reliability::of(&answers(score, 1, 0));
            assert_eq!(table.bins[bin].items, 1, "{score}");
        }
    }
}
