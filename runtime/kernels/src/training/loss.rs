//! Cross-entropy over rows of logits.

use super::cpu::compiled_per_cpu;
use super::exponential::{exp_and_sum, maximum, sum};

compiled_per_cpu!(
    /// Weighted cross-entropy of rows of logits (`width` each) against one target per row. `smoothing` of the target is
    /// spread evenly over all columns. The logits become the gradient of the returned sum of weight x loss.
    ///
    /// # Panics
    /// If the slices do not have these shapes or a target is not below `width`.
    cross_entropy = cross_entropy, (logits: &mut [f32], width: usize, targets: &[u32], weights: &[f32], smoothing: f32) -> f64
);

#[inline(always)]
fn cross_entropy(
    logits: &mut [f32],
    width: usize,
    targets: &[u32],
    weights: &[f32],
    smoothing: f32,
) -> f64 {
    assert_eq!(
        (logits.len(), weights.len()),
        (targets.len() * width, targets.len())
    );
    let mut total = 0.0_f64;
    for ((row, &target), &weight) in logits.chunks_exact_mut(width).zip(targets).zip(weights) {
        let target = target as usize;
        let row_maximum = maximum(row);
        let mean = if smoothing > 0.0 {
            sum(row) / width as f32
        } else {
            0.0
        };
        let expected = (1.0 - smoothing).mul_add(row[target], smoothing * mean);
        let row_sum = exp_and_sum(row, row_maximum);
        total += f64::from(weight)
            * (f64::from(row_sum).ln() + f64::from(row_maximum) - f64::from(expected));
        let (factor, spread) = (weight / row_sum, weight * smoothing / width as f32);
        for value in &mut *row {
            *value = value.mul_add(factor, -spread);
        }
        row[target] -= weight * (1.0 - smoothing);
    }
    total
}
