//! What abstaining buys: the share of wrong answers among those that are kept, over the share that is kept.
//!
//! The risk-coverage curve of El-Yaniv and Wiener 2010 ("On the Foundations of Noise-free Selective Classification") and the area under it
//! as Geifman et al. 2019 ("Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers") take it: the mean of the risk over all coverages.

use serde::{Deserialize, Serialize};

use super::{Judged, ratio};

/// Points that are kept of a curve, evenly spaced over the coverage.
const POINTS: usize = 100;

/// One point of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoveragePoint {
    /// Share of the answers that are kept, those with the highest scores first.
    pub coverage: f64,
    /// Share of wrong answers among them.
    pub risk: f64,
    /// The lowest score that is kept.
    pub score: f64,
}

/// The curve with its area, and the point that a threshold picks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RiskCoverage {
    /// Mean risk over all coverages; lower is better, 0 where the best scores are all right.
    pub area: f64,
    /// The same area if the scores put every right answer before every wrong one: what no score can beat.
    pub area_best: f64,
    /// The threshold that the model ships: lower scores abstain.
    pub threshold: f64,
    /// Share of the answers at or above the threshold.
    pub coverage_at_threshold: f64,
    /// Share of right answers among those at or above the threshold; 0 where there is none.
    pub accuracy_at_threshold: f64,
    /// At most a hundred points, by ascending coverage.
    pub points: Vec<CoveragePoint>,
}

impl RiskCoverage {
    /// The curve over these answers.
    #[must_use]
    pub fn of(answers: &[Judged], threshold: f32) -> Self {
        let risks = risks(answers);
        let wrong = answers.iter().filter(|answer| !answer.right).count();
        let kept = answers.iter().filter(|answer| answer.score >= threshold);
        let (kept, kept_right) = kept.fold((0, 0), |(kept, right), answer| {
            (kept + 1, right + u64::from(answer.right))
        });
        let items = answers.len();
        let best = (0..items).map(|kept| {
            let wrong = (kept + 1).saturating_sub(items - wrong);
            wrong as f64 / (kept + 1) as f64
        });
        let shown = items.min(POINTS);
        Self {
            area: risks.iter().map(|(risk, _)| risk).sum::<f64>() / items.max(1) as f64,
            area_best: best.sum::<f64>() / items.max(1) as f64,
            threshold: f64::from(threshold),
            coverage_at_threshold: ratio(kept, items as u64),
            accuracy_at_threshold: ratio(kept_right, kept),
            points: (1..=shown)
                .map(|point| {
                    let kept = (point * items).div_ceil(shown);
                    let (risk, score) = risks[kept - 1];
                    CoveragePoint {
                        coverage: kept as f64 / items as f64,
                        risk,
                        score,
                    }
                })
                .collect(),
        }
    }
}

/// The risk and the lowest score of the best answer, of the best two, and so on. Answers of equal score come in no order: each is wrong by
/// the share of the wrong ones among them, so that the order of the items says nothing.
fn risks(answers: &[Judged]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<Judged> = answers.to_vec();
    sorted.sort_by(|left, right| right.score.total_cmp(&left.score));
    let mut risks = Vec::with_capacity(sorted.len());
    let mut wrong = 0.0;
    for equal in sorted.chunk_by(|left, right| left.score == right.score) {
        let errors = equal.iter().filter(|answer| !answer.right).count();
        let share = errors as f64 / equal.len() as f64;
        for (place, answer) in equal.iter().enumerate() {
            let expected = wrong + share * (place + 1) as f64;
            let kept = risks.len() + 1;
            risks.push((expected / kept as f64, f64::from(answer.score)));
        }
        wrong += errors as f64;
    }
    risks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answers: &[(f32, bool)]) -> Vec<Judged> {
        let answers = answers.iter();
        answers
            .map(|&(score, right)| Judged { score, right })
            .collect()
    }

    #[test]
    fn four_answers_by_hand() {
        // Kept one by one: right, wrong, right, wrong. Risks 0, 1/2, 1/3, 2/4.
        let answers = judged(&[(0.9, true), (0.8, false), (0.7, true), (0.6, false)]);
        let curve = RiskCoverage::of(&answers, 0.7);
        assert!((curve.area - (0.0 + 0.5 + 1.0 / 3.0 + 0.5) / 4.0).abs() < 1e-12);
        // In the best order the two wrong ones come last: 0, 0, 1/3, 2/4.
        assert!((curve.area_best - (1.0 / 3.0 + 0.5) / 4.0).abs() < 1e-12);
        assert!(
            (curve.coverage_at_threshold - 0.75).abs() < 1e-12,
            "a score at the threshold is kept"
        );
        assert!((curve.accuracy_at_threshold - 2.0 / 3.0).abs() < 1e-12);
        let coverages: Vec<f64> = curve.points.iter().map(|point| point.coverage).collect();
        assert_eq!(coverages, [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(curve.points[1].risk, 0.5);
    }

    #[test]
    fn the_order_of_equal_scores_says_nothing() {
        let one = judged(&[(0.5, true), (0.5, false), (0.5, true), (0.5, false)]);
        let mut other = one.clone();
        other.reverse();
        let curve = RiskCoverage::of(&one, 0.5);
        assert_eq!(curve, RiskCoverage::of(&other, 0.5));
        assert!(
            (curve.area - 0.5).abs() < 1e-12,
            "a score that tells nothing has the error rate as its area"
        );
    }

    #[test]
    fn many_answers_keep_a_hundred_points_and_none_keeps_none() {
        let answers: Vec<Judged> = (0..1_001)
            .map(|index| Judged {
                score: index as f32 / 1_001.0,
                right: index % 3 > 0,
            })
            .collect();
        let curve = RiskCoverage::of(&answers, 0.0);
        assert_eq!(curve.points.len(), POINTS);
        let last = curve.points.last().expect("points");
        assert_eq!(last.coverage, 1.0);
        assert!((last.risk - 334.0 / 1_001.0).abs() < 1e-12);
        let empty = RiskCoverage::of(&[], 0.5);
        assert!(empty.points.is_empty() && empty.area == 0.0 && empty.accuracy_at_threshold == 0.0);
    }
}
