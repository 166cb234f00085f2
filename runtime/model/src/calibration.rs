//! Calibration: a temperature that makes scores honest, and a threshold below which a verdict
//! abstains.

use crate::error::ModelError;
use crate::limits::TEMPERATURE_RANGE;

const FILE: &str = "calibration";
/// Steps of the golden-section search: each shortens the interval by 0.618, so 60 reach the end of
/// f32 precision.
const SEARCH_STEPS: usize = 60;

/// A threshold, and what it does to the verdicts that it was chosen on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Verdicts with a score below this abstain.
    pub threshold: f32,
    /// The share of verdicts that do not abstain, 0 to 1.
    pub coverage: f32,
    /// The share of right ones among those, 0 to 1.
    pub accuracy: f32,
}

/// Turns logits into probabilities in place: `softmax(logits / temperature)`. An empty slice stays
/// empty.
pub fn softmax(logits: &mut [f32], temperature: f32) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = ((*logit - highest) / temperature).exp();
        sum += *logit;
    }
    for logit in logits.iter_mut() {
        *logit /= sum;
    }
}

/// The mean negative log-likelihood of `targets` under `softmax(logits / temperature)`, in nats.
///
/// # Errors
/// As [`fit_temperature`].
pub fn negative_log_likelihood(
    logits: &[Vec<f32>],
    targets: &[u32],
    temperature: f32,
) -> Result<f64, ModelError> {
    check_examples(logits, targets)?;
    Ok(mean_loss(logits, targets, f64::from(temperature)))
}

/// The temperature, within [`TEMPERATURE_RANGE`], under which `targets` are most likely. `logits`
/// has one row per example; a target is an index into its row.
///
/// # Errors
/// No examples, another number of targets than rows, a target outside its row, logits that are not
/// finite.
pub fn fit_temperature(logits: &[Vec<f32>], targets: &[u32]) -> Result<f32, ModelError> {
    check_examples(logits, targets)?;
    let loss = |log_temperature: f64| mean_loss(logits, targets, log_temperature.exp());
    let golden = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (
        f64::from(*TEMPERATURE_RANGE.start()).ln(),
        f64::from(*TEMPERATURE_RANGE.end()).ln(),
    );
    let (mut left, mut right) = (high - golden * (high - low), low + golden * (high - low));
    let (mut left_loss, mut right_loss) = (loss(left), loss(right));
    for _ in 0..SEARCH_STEPS {
        // The loss is convex in 1/temperature, so it falls to one minimum and then rises: a bracket
        // never loses it.
        if left_loss <= right_loss {
            (high, right, right_loss) = (right, left, left_loss);
            left = high - golden * (high - low);
            left_loss = loss(left);
        } else {
            (low, left, left_loss) = (left, right, right_loss);
            right = low + golden * (high - low);
            right_loss = loss(right);
        }
    }
    let fitted = f64::midpoint(low, high).exp() as f32;
    Ok(fitted.clamp(*TEMPERATURE_RANGE.start(), *TEMPERATURE_RANGE.end()))
}

/// The threshold that keeps most verdicts while at least `accuracy_min` of those kept are right.
/// `None` if no threshold does.
///
/// # Errors
/// No verdicts, another number of `correct` than of `scores`, scores or `accuracy_min` outside 0 to
/// 1.
pub fn choose_threshold(
    scores: &[f32],
    correct: &[bool],
    accuracy_min: f32,
) -> Result<Option<Threshold>, ModelError> {
    if scores.is_empty() || scores.len() != correct.len() {
        let expected = "as many outcomes as scores, at least 1";
        return Err(ModelError::invalid(
            FILE,
            "correct",
            expected,
            format!("{} and {}", correct.len(), scores.len()),
        ));
    }
    let outside = scores
        .iter()
        .chain([&accuracy_min])
        .find(|value| !(0.0..=1.0).contains(*value));
    if let Some(value) = outside {
        return Err(ModelError::invalid(
            FILE,
            "scores and accuracy_min",
            "0 to 1",
            value,
        ));
    }
    let mut ranked: Vec<(f32, bool)> = scores
        .iter()
        .copied()
        .zip(correct.iter().copied())
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut best, mut right) = (None, 0_usize);
    for (index, &(score, is_right)) in ranked.iter().enumerate() {
        right += usize::from(is_right);
        // Equal scores stay or go together.
        if ranked.get(index + 1).is_some_and(|next| next.0 == score) {
            continue;
        }
        let kept = index + 1;
        let accuracy = right as f32 / kept as f32;
        if accuracy >= accuracy_min {
            let coverage = kept as f32 / ranked.len() as f32;
            best = Some(Threshold {
                threshold: score,
                coverage,
                accuracy,
            });
        }
    }
    // When all may stay there is no reason to abstain on scores a little lower than any seen.
    Ok(best.map(|best| {
        if best.coverage >= 1.0 {
            Threshold {
                threshold: 0.0,
                ..best
            }
        } else {
            best
        }
    }))
}

fn check_examples(logits: &[Vec<f32>], targets: &[u32]) -> Result<(), ModelError> {
    if logits.is_empty() || logits.len() != targets.len() {
        let expected = "as many targets as rows of logits, at least 1";
        return Err(ModelError::invalid(
            FILE,
            "targets",
            expected,
            format!("{} and {}", targets.len(), logits.len()),
        ));
    }
    for (index, (row, &target)) in logits.iter().zip(targets).enumerate() {
        if target as usize >= row.len() {
            let expected = format!("below {}", row.len());
            return Err(ModelError::invalid(
                FILE,
                format!("targets[{index}]"),
                expected,
                target,
            ));
        }
        if let Some(value) = row.iter().find(|value| !value.is_finite()) {
            return Err(ModelError::invalid(
                FILE,
                format!("logits[{index}]"),
                "finite numbers",
                value,
            ));
        }
    }
    Ok(())
}

fn mean_loss(logits: &[Vec<f32>], targets: &[u32], temperature: f64) -> f64 {
    let losses = logits.iter().zip(targets).map(|(row, &target)| {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scaled = |logit: f32| f64::from(logit - highest) / temperature;
        let sum: f64 = row.iter().map(|&logit| scaled(logit).exp()).sum();
        sum.ln() - scaled(row[target as usize])
    });
    losses.sum::<f64>() / logits.len() as f64
}
