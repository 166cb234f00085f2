//! Temperature and threshold of each task, fitted on the data for choosing with the quantised engine.

use trafficllm_model::Model;
use trafficllm_model::calibration::{choose_threshold, fit_temperature, softmax};

use crate::engine::{self, highest};
use crate::error::Result;
use crate::recipe::CalibrationRecipe;

/// What was fitted for one task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Logits are divided by this before softmax.
    pub temperature: f32,
    /// A verdict with a lower score abstains.
    pub threshold: f32,
}

/// Fits both on `items`, whose true labels are `labels` (indices in the task's label order).
///
/// # Errors
/// Where there are no items, or the engine refuses one.
pub fn calibrate(
    model: &Model,
    task: usize,
    items: &[Vec<u32>],
    labels: &[u32],
    recipe: &CalibrationRecipe,
    threads: usize,
) -> Result<Calibration> {
    let logits = engine::logits(model, task, items, threads)?;
    fit(logits, labels, recipe)
}

fn fit(
    mut logits: Vec<Vec<f32>>,
    labels: &[u32],
    recipe: &CalibrationRecipe,
) -> Result<Calibration> {
    let temperature = fit_temperature(&logits, labels)?;
    let mut scores = Vec::with_capacity(labels.len());
    let mut correct = Vec::with_capacity(labels.len());
    for (row, &label) in logits.iter_mut().zip(labels) {
        softmax(row, temperature);
        let best = highest(row);
        scores.push(row[best].clamp(0.0, 1.0));
        correct.push(best as u32 == label);
    }
    let chosen = choose_threshold(&scores, &correct, recipe.accuracy_min)?;
    // The data for choosing holds known labels only, so a task that is right on most of it would never abstain; on foreign traffic
    // a label that is less likely than all others together is no answer.
    let threshold = chosen.map_or(recipe.fallback_threshold, |chosen| {
        chosen.threshold.max(recipe.fallback_threshold)
    });
    Ok(Calibration {
        temperature,
        threshold,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_answers_fall_under_the_threshold() {
        // 80 sure and right, 20 unsure of which half are wrong.
        let mut logits = vec![vec![6.0, 0.0]; 80];
        logits.extend(vec![vec![0.4, 0.0]; 20]);
        let labels: Vec<u32> = (0..100).map(|index| u32::from(index >= 90)).collect();
        let recipe = CalibrationRecipe {
            accuracy_min: 0.95,
            fallback_threshold: 0.5,
        };
        let fitted = fit(logits.clone(), &labels, &recipe).expect("fitted");
        let score = |row: &[f32]| {
            let mut row = row.to_vec();
            softmax(&mut row, fitted.temperature);
            row[0]
        };
        assert!(
            score(&logits[0]) >= fitted.threshold && score(&logits[99]) < fitted.threshold,
            "{fitted:?}"
        );
    }

    #[test]
    fn hopeless_answers_get_the_fallback() {
        let recipe = CalibrationRecipe {
            accuracy_min: 0.95,
            fallback_threshold: 0.4,
        };
        let fitted = fit(vec![vec![1.0, 0.0]; 10], &[1; 10], &recipe).expect("fitted");
        assert_eq!(fitted.threshold, 0.4);
    }

    #[test]
    fn a_task_that_is_always_right_still_abstains_below_the_lowest_threshold() {
        let logits = vec![vec![5.0, 0.0, 0.0]; 50];
        let recipe = CalibrationRecipe {
            accuracy_min: 0.9,
            fallback_threshold: 0.5,
        };
        let fitted = fit(logits, &[0; 50], &recipe).expect("fitted");
        assert!(fitted.threshold >= 0.5, "{fitted:?}");
    }
}
