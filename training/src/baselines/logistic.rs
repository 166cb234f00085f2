//! Multinomial logistic regression on sparse features: averaged AdaGrad, one pass after the other, the same every time.

use crate::random::Random;

/// A sparse feature vector; indices are strictly increasing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseVector {
    /// Feature numbers.
    pub indices: Vec<u32>,
    /// Their values, one per index.
    pub values: Vec<f32>,
}

impl SparseVector {
    /// Counts `features`, damps the counts by `ln(1 + n)` and scales the vector to length one.
    #[must_use]
    pub fn from_counts(mut features: Vec<u32>) -> Self {
        features.sort_unstable();
        let mut vector = Self::default();
        for run in features.chunk_by(|left, right| left == right) {
            vector.indices.push(run[0]);
            vector.values.push((run.len() as f32).ln_1p());
        }
        let length = vector
            .values
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt();
        if length > 0.0 {
            vector.values.iter_mut().for_each(|value| *value /= length);
        }
        vector
    }
}

/// How the regression is fitted.
#[derive(Clone, Copy, Debug)]
pub struct LogisticOptions {
    /// Passes over the training items.
    pub epochs: usize,
    /// AdaGrad step size.
    pub learning_rate: f32,
    /// Seed of the order of the items.
    pub seed: u64,
}

impl Default for LogisticOptions {
    fn default() -> Self {
        Self {
            epochs: 20,
            learning_rate: 0.5,
            seed: 1,
        }
    }
}

/// A fitted model: `weights` is `[features + 1, classes]` f32, the last row the bias.
#[derive(Clone, Debug)]
pub struct Logistic {
    classes: usize,
    weights: Vec<f32>,
}

impl Logistic {
    /// Fits the model. `features` is one more than the largest index in `items`; larger indices are ignored.
    #[must_use]
    pub fn fit(
        items: &[SparseVector],
        labels: &[usize],
        features: usize,
        classes: usize,
        options: &LogisticOptions,
    ) -> Self {
        let mut model = Self {
            classes,
            weights: vec![0.0; (features + 1) * classes],
        };
        let mut squares = vec![1e-8_f32; (features + 1) * classes];
        let mut order: Vec<usize> = (0..items.len().min(labels.len())).collect();
        let mut gradient = vec![0.0_f32; classes];
        for epoch in 0..options.epochs {
            Random::stream(options.seed, 0x10, epoch as u64).shuffle(&mut order);
            // The step shrinks linearly, so that the last passes average the noise of single items away.
            let rate = options.learning_rate * (1.0 - epoch as f32 / options.epochs as f32);
            for &item in &order {
                model.scores_into(&items[item], &mut gradient);
                softmax(&mut gradient);
                if let Some(truth) = gradient.get_mut(labels[item]) {
                    *truth -= 1.0;
                }
                model.descend(&items[item], &gradient, &mut squares, rate);
            }
        }
        model
    }

    /// The most probable class.
    #[must_use]
    pub fn predict(&self, item: &SparseVector) -> usize {
        let mut scores = vec![0.0; self.classes];
        self.scores_into(item, &mut scores);
        let mut best = 0;
        for (class, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = class;
            }
        }
        best
    }

    fn scores_into(&self, item: &SparseVector, scores: &mut [f32]) {
        let bias = self.weights.len() - self.classes;
        scores.copy_from_slice(&self.weights[bias..]);
        for (&index, &value) in item.indices.iter().zip(&item.values) {
            let start = index as usize * self.classes;
            if let Some(row) = self.weights[..bias].get(start..start + self.classes) {
                scores
                    .iter_mut()
                    .zip(row)
                    .for_each(|(score, weight)| *score += value * weight);
            }
        }
    }

    fn descend(&mut self, item: &SparseVector, gradient: &[f32], squares: &mut [f32], rate: f32) {
        let bias = self.weights.len() - self.classes;
        let features = item
            .indices
            .iter()
            .zip(&item.values)
            .map(|(&index, &value)| (index as usize * self.classes, value));
        for (start, value) in features
            .filter(|(start, _)| *start < bias)
            .chain([(bias, 1.0)])
        {
            let rows = self.weights[start..start + self.classes]
                .iter_mut()
                .zip(&mut squares[start..]);
            for ((weight, square), slope) in rows.zip(gradient) {
                let step = value * slope;
                *square += step * step;
                *weight -= rate * step / square.sqrt();
            }
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - top).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_a_unit_vector() {
        let vector = SparseVector::from_counts(vec![7, 3, 7]);
        assert_eq!(vector.indices, [3, 7]);
        let (one, two) = (2.0_f32.ln(), 3.0_f32.ln());
        let length = (one * one + two * two).sqrt();
        assert!((vector.values[0] - one / length).abs() < 1e-6);
        assert!((vector.values[1] - two / length).abs() < 1e-6);
        assert_eq!(
            SparseVector::from_counts(Vec::new()),
            SparseVector::default()
        );
    }

    #[test]
    fn separates_what_can_be_separated_and_repeats_itself() {
        // Class k carries feature k and noise from features 3..13.
        let mut random = Random::new(5);
        let labels: Vec<usize> = (0..300).map(|item| item % 3).collect();
        let items: Vec<SparseVector> = labels
            .iter()
            .map(|&label| {
                SparseVector::from_counts(vec![
                    label as u32,
                    3 + random.below(10) as u32,
                    3 + random.below(10) as u32,
                ])
            })
            .collect();
        let fit = || {
            Logistic::fit(
                &items[..200],
                &labels[..200],
                13,
                3,
                &LogisticOptions::default(),
            )
        };
        let model = fit();
        let right = (200..300)
            .filter(|&item| model.predict(&items[item]) == labels[item])
            .count();
        assert_eq!(right, 100);
        assert_eq!(model.weights, fit().weights);
    }
}
