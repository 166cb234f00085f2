//! Multinomial logistic regression on dense features: labels weigh the same however many items they have, squared weights are penalised, and the
//! minimum is found by limited-memory BFGS (Nocedal, 1980) over all items, the same every time.

use std::collections::VecDeque;

use crate::data::TaskData;
use crate::engine::highest;

/// Steps at most.
const STEPS_MAX: usize = 100;
/// Pairs of steps and changes that are kept.
const MEMORY: usize = 8;
/// The slope, relative to where it began, at which the minimum is reached.
const SLOPE_MIN: f64 = 1e-3;
/// Sums of a product: as many as wide registers hold.
const LANES: usize = 16;

/// Items with standardised features.
pub(super) struct Problem {
    features: usize,
    labels: usize,
    /// `[items, features]`: mean 0 and deviation 1 over all items.
    rows: Vec<f32>,
    truths: Vec<usize>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Problem {
    pub(super) fn new(states: &[Vec<f32>], data: &TaskData) -> Self {
        let truths = data.items.iter().map(|item| item.label).collect();
        Self::of(states, truths, data.labels.len())
    }

    fn of(states: &[Vec<f32>], truths: Vec<usize>, labels: usize) -> Self {
        let features = states.first().map_or(0, Vec::len);
        let count = states.len().max(1) as f64;
        let mut sums = vec![0.0_f64; features];
        let mut squares = vec![0.0_f64; features];
        for state in states {
            for ((sum, square), &value) in sums.iter_mut().zip(&mut squares).zip(state) {
                *sum += f64::from(value);
                *square += f64::from(value).powi(2);
            }
        }
        let mean: Vec<f32> = sums.iter().map(|sum| (sum / count) as f32).collect();
        let both = sums.iter().zip(&squares);
        let deviation: Vec<f32> = both
            .map(|(sum, square)| (square / count - (sum / count).powi(2)).max(0.0).sqrt() as f32)
            // What never changes tells nothing, and must not be blown up.
            .map(|deviation| if deviation > 1e-6 { deviation } else { 1.0 })
            .collect();
        let mut rows = Vec::with_capacity(states.len() * features);
        for state in states {
            let scaled = state.iter().zip(&mean).zip(&deviation);
            rows.extend(scaled.map(|((value, mean), deviation)| (value - mean) / deviation));
        }
        Self {
            features,
            labels,
            rows,
            truths,
            mean,
            deviation,
        }
    }

    fn row(&self, item: usize) -> &[f32] {
        &self.rows[item * self.features..][..self.features]
    }
}

/// A fitted regression: `[labels, features]` weights of standardised features, then `[labels]` bias.
#[derive(Clone)]
pub(super) struct Regression {
    parameters: Vec<f32>,
    features: usize,
}

impl Regression {
    /// Fits on some of the items; `from` is where to begin.
    pub(super) fn fit(
        problem: &Problem,
        items: &[usize],
        penalty: f64,
        from: Option<&Self>,
    ) -> Self {
        let width = problem.labels * (problem.features + 1);
        let mut fitted = Self {
            parameters: from.map_or_else(|| vec![0.0; width], |from| from.parameters.clone()),
            features: problem.features,
        };
        let weights = item_weights(problem, items);
        let mut history: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
        let (mut loss, mut slope) = fitted.loss(problem, items, &weights, penalty);
        let start = length(&slope).max(1e-12);
        for _ in 0..STEPS_MAX {
            if length(&slope) <= SLOPE_MIN * start {
                break;
            }
            let direction = direction(&slope, &history);
            let descent = dot64(&direction, &slope);
            let mut step = if history.is_empty() {
                1.0 / length(&slope).max(1.0)
            } else {
                1.0
            };
            let mut taken = None;
            while step > 1e-6 {
                let moved = fitted.parameters.iter().zip(&direction);
                let candidate = Self {
                    parameters: moved
                        .map(|(at, by)| (f64::from(*at) + step * by) as f32)
                        .collect(),
                    features: fitted.features,
                };
                let (there, slope_there) = candidate.loss(problem, items, &weights, penalty);
                // Armijo's rule.
                if there <= loss + 1e-4 * step * descent {
                    taken = Some((candidate, there, slope_there));
                    break;
                }
                step *= 0.5;
            }
            let Some((next, there, slope_there)) = taken else {
                break;
            };
            let pairs = next.parameters.iter().zip(&fitted.parameters);
            let moved: Vec<f64> = pairs.map(|(to, from)| f64::from(to - from)).collect();
            let changed: Vec<f64> = slope_there
                .iter()
                .zip(&slope)
                .map(|(to, from)| to - from)
                .collect();
            let curvature = dot64(&moved, &changed);
            if curvature > 1e-12 {
                if history.len() == MEMORY {
                    history.pop_front();
                }
                history.push_back((moved, changed, 1.0 / curvature));
            }
            (fitted, loss, slope) = (next, there, slope_there);
        }
        fitted
    }

    /// The best label of an item.
    pub(super) fn answer(&self, problem: &Problem, item: usize) -> usize {
        let mut scores = vec![0.0; problem.labels];
        self.scores(problem.row(item), &mut scores);
        highest(&scores)
    }

    /// Weights and bias for features as they are.
    pub(super) fn unscaled(&self, problem: &Problem) -> (Vec<f32>, Vec<f32>) {
        let (weights, bias) = self.parameters.split_at(problem.labels * self.features);
        let mut bias = bias.to_vec();
        let mut unscaled = Vec::with_capacity(weights.len());
        for (row, bias) in weights.chunks_exact(self.features.max(1)).zip(&mut bias) {
            for ((weight, mean), deviation) in row.iter().zip(&problem.mean).zip(&problem.deviation)
            {
                let weight = weight / deviation;
                *bias -= weight * mean;
                unscaled.push(weight);
            }
        }
        (unscaled, bias)
    }

    fn scores(&self, row: &[f32], scores: &mut [f32]) {
        let (weights, bias) = self.parameters.split_at(scores.len() * self.features);
        let rows = weights.chunks_exact(self.features.max(1));
        for ((score, weights), bias) in scores.iter_mut().zip(rows).zip(bias) {
            *score = bias + dot(weights, row);
        }
    }

    /// Mean weighted loss with the penalty, and its slope.
    fn loss(
        &self,
        problem: &Problem,
        items: &[usize],
        weights: &[f32],
        penalty: f64,
    ) -> (f64, Vec<f64>) {
        let labels = problem.labels;
        let split = labels * self.features;
        let mut slope = vec![0.0_f32; self.parameters.len()];
        let mut scores = vec![0.0_f32; labels];
        let mut loss = 0.0_f64;
        for (&item, &weight) in items.iter().zip(weights) {
            let (row, truth) = (problem.row(item), problem.truths[item]);
            self.scores(row, &mut scores);
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
            loss += f64::from(weight) * f64::from(sum.ln() + most - scores[truth]);
            for (label, score) in scores.iter().enumerate() {
                let probability = (score - most).exp() / sum;
                let by = weight * (probability - f32::from(u8::from(label == truth)));
                slope[split + label] += by;
                let slopes = &mut slope[label * self.features..][..self.features];
                for (slope, value) in slopes.iter_mut().zip(row) {
                    *slope += by * value;
                }
            }
        }
        let mut slope: Vec<f64> = slope.into_iter().map(f64::from).collect();
        // The bias is free.
        for (slope, &weight) in slope[..split].iter_mut().zip(&self.parameters) {
            *slope += penalty * f64::from(weight);
            loss += 0.5 * penalty * f64::from(weight).powi(2);
        }
        (loss, slope)
    }
}

/// What each item weighs: together 1, and each label that is there as much as any other.
fn item_weights(problem: &Problem, items: &[usize]) -> Vec<f32> {
    let mut counts = vec![0_usize; problem.labels];
    for &item in items {
        counts[problem.truths[item]] += 1;
    }
    let there = counts.iter().filter(|&&count| count > 0).count().max(1);
    let weight = |&item: &usize| 1.0 / (there * counts[problem.truths[item]].max(1)) as f32;
    items.iter().map(weight).collect()
}

/// Down the slope, as the last steps have bent it: the two loops of Nocedal's method.
fn direction(slope: &[f64], history: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut direction: Vec<f64> = slope.iter().map(|slope| -slope).collect();
    let mut factors = Vec::with_capacity(history.len());
    for (moved, changed, inverse) in history.iter().rev() {
        let factor = inverse * dot64(moved, &direction);
        add(&mut direction, -factor, changed);
        factors.push(factor);
    }
    if let Some((_, changed, inverse)) = history.back() {
        let scale = 1.0 / (inverse * dot64(changed, changed));
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    for ((moved, changed, inverse), factor) in history.iter().zip(factors.iter().rev()) {
        let back = inverse * dot64(changed, &direction);
        add(&mut direction, factor - back, moved);
    }
    direction
}

fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    for (to, what) in to.iter_mut().zip(what) {
        *to += factor * what;
    }
}

fn dot64(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn length(values: &[f64]) -> f64 {
    dot64(values, values).sqrt()
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    let (ones, one_rest) = one.as_chunks::<LANES>();
    let (others, other_rest) = other.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (one, other) in ones.iter().zip(others) {
        for (sum, (one, other)) in sums.iter_mut().zip(one.iter().zip(other)) {
            *sum += one * other;
        }
    }
    let rest: f32 = one_rest
        .iter()
        .zip(other_rest)
        .map(|(one, other)| one * other)
        .sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Three labels around corners of a triangle, ten times as many of the first; a feature that never changes and one of another size.
    fn problem() -> Problem {
        let mut random = Random::new(3);
        let mut states = Vec::new();
        let mut truths = Vec::new();
        for item in 0..360 {
            let label = if item % 12 < 10 { 0 } else { item % 12 - 9 };
            let corner = [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]][label];
            let mut noise = || (random.unit() + random.unit() + random.unit() - 1.5) as f32;
            states.push(vec![
                corner[0] + noise(),
                1_000.0 * (corner[1] + noise()),
                7.0,
            ]);
            truths.push(label);
        }
        Problem::of(&states, truths, 3)
    }

    #[test]
    fn the_slope_is_that_of_the_loss() {
        let problem = problem();
        let items: Vec<usize> = (0..360).collect();
        let weights = item_weights(&problem, &items);
        let mut at = Regression {
            parameters: (0..12).map(|number| number as f32 * 0.1 - 0.5).collect(),
            features: 3,
        };
        let (_, slope) = at.loss(&problem, &items, &weights, 0.02);
        for number in 0..12 {
            let mut side = |by: f32| {
                at.parameters[number] += by;
                let (loss, _) = at.loss(&problem, &items, &weights, 0.02);
                at.parameters[number] -= by;
                loss
            };
            let measured = (side(0.01) - side(-0.01)) / 0.02;
            assert!(
                (measured - slope[number]).abs() < 1e-3,
                "{measured} {slope:?}"
            );
        }
    }

    #[test]
    fn labels_are_told_apart_however_few_and_the_minimum_is_one() {
        let problem = problem();
        let items: Vec<usize> = (0..360).collect();
        let fitted = Regression::fit(&problem, &items, 1e-3, None);
        for label in 0..3 {
            let of_label = items.iter().filter(|&&item| problem.truths[item] == label);
            let (right, all) = of_label.fold((0, 0), |(right, all), &item| {
                let is_right = fitted.answer(&problem, item) == label;
                (right + usize::from(is_right), all + 1)
            });
            assert!(right * 100 >= all * 93, "{label}: {right} of {all}");
        }
        // From elsewhere to the same place.
        let strong = Regression::fit(&problem, &items, 0.3, None);
        let again = Regression::fit(&problem, &items, 1e-3, Some(&strong));
        let weights = item_weights(&problem, &items);
        let loss = |regression: &Regression| regression.loss(&problem, &items, &weights, 1e-3).0;
        assert!((loss(&fitted) - loss(&again)).abs() < 1e-3);
        let size = |regression: &Regression| {
            let weights = &regression.parameters[..9];
            weights.iter().map(|weight| weight * weight).sum::<f32>()
        };
        assert!(size(&strong) < 0.3 * size(&fitted));
    }

    #[test]
    fn unscaled_weights_give_the_same_answers() {
        let problem = problem();
        let items: Vec<usize> = (0..360).collect();
        let fitted = Regression::fit(&problem, &items, 1e-2, None);
        let (weights, bias) = fitted.unscaled(&problem);
        for &item in &items {
            let scaled = problem
                .row(item)
                .iter()
                .zip(&problem.mean)
                .zip(&problem.deviation);
            let state: Vec<f32> = scaled
                .map(|((value, mean), deviation)| value * deviation + mean)
                .collect();
            let score = |label: usize| bias[label] + dot(&weights[label * 3..][..3], &state);
            let scores: Vec<f32> = (0..3).map(score).collect();
            assert_eq!(highest(&scores), fitted.answer(&problem, item));
        }
    }
}
