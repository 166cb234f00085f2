//! What happens to gradients and parameters between two passes.

use super::cpu::compiled_per_cpu;
use super::exponential::dot;

/// Factors of one AdamW step, the same for every value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Multiplies the gradient (clipping).
    pub gradient_scale: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Learning rate over the first mean's bias correction.
    pub step_size: f32,
    /// 1 over the root of the second mean's bias correction.
    pub second_scale: f32,
    /// Added to the root of the second mean.
    pub epsilon: f32,
    /// What is left of the parameter after decoupled weight decay: 1 - learning rate x decay.
    pub shrink: f32,
}

compiled_per_cpu!(
    /// One AdamW step on one parameter with its two means; all slices have the same length.
    ///
    /// # Panics
    /// If the lengths differ.
    adamw = adamw, (step: &AdamWStep, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32])
);

#[inline(always)]
fn adamw(
    step: &AdamWStep,
    parameter: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let length = parameter.len();
    assert_eq!(
        (gradient.len(), first.len(), second.len()),
        (length, length, length)
    );
    for (((parameter, gradient), first), second) in
        parameter.iter_mut().zip(gradient).zip(first).zip(second)
    {
        let gradient = gradient * step.gradient_scale;
        *first = step.beta1.mul_add(*first, (1.0 - step.beta1) * gradient);
        *second = step
            .beta2
            .mul_add(*second, (1.0 - step.beta2) * gradient * gradient);
        let root = second.sqrt().mul_add(step.second_scale, step.epsilon);
        *parameter = parameter.mul_add(step.shrink, -(step.step_size * *first / root));
    }
}

compiled_per_cpu!(
    /// `target += source`.
    ///
    /// # Panics
    /// If the lengths differ.
    add_assign = add_assign, (target: &mut [f32], source: &[f32])
);

#[inline(always)]
fn add_assign(target: &mut [f32], source: &[f32]) {
    assert_eq!(target.len(), source.len());
    for (target, source) in target.iter_mut().zip(source) {
        *target += source;
    }
}

compiled_per_cpu!(
    /// `target = target * factor`.
    scale = scale, (target: &mut [f32], factor: f32)
);

#[inline(always)]
fn scale(target: &mut [f32], factor: f32) {
    for target in target {
        *target *= factor;
    }
}

compiled_per_cpu!(
    /// Moving average: `average = decay * average + (1 - decay) * values`.
    ///
    /// # Panics
    /// If the lengths differ.
    move_average = move_average, (average: &mut [f32], values: &[f32], decay: f32)
);

#[inline(always)]
fn move_average(average: &mut [f32], values: &[f32], decay: f32) {
    assert_eq!(average.len(), values.len());
    for (average, value) in average.iter_mut().zip(values) {
        *average = decay.mul_add(*average, (1.0 - decay) * value);
    }
}

compiled_per_cpu!(
    /// Sum of squares: blocks in f32, their sums in f64.
    sum_of_squares = sum_of_squares, (values: &[f32]) -> f64
);

#[inline(always)]
fn sum_of_squares(values: &[f32]) -> f64 {
    values
        .chunks(4096)
        .map(|block| f64::from(dot(block, block)))
        .sum()
}
