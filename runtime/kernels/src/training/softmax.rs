//! Softmax of attention scores, forward and backward.

use super::cpu::compiled_per_cpu;
use super::exponential::{dot, exp, exp_and_sum, maximum};

compiled_per_cpu!(
    /// Softmax of the first `limits[row]` scores of each row (`width` values); the others become 0.
    /// `maxima` and `inverse_sums` receive what [`Cpu::softmax_again`](super::Cpu::softmax_again) needs.
    ///
    /// # Panics
    /// If the slices do not have these shapes or a limit is above `width`.
    softmax = softmax, (scores: &mut [f32], width: usize, limits: &[usize], maxima: &mut [f32], inverse_sums: &mut [f32])
);

#[inline(always)]
fn softmax(
    scores: &mut [f32],
    width: usize,
    limits: &[usize],
    maxima: &mut [f32],
    inverse_sums: &mut [f32],
) {
    assert_eq!(scores.len(), limits.len() * width);
    let rows = scores
        .chunks_exact_mut(width)
        .zip(limits)
        .zip(maxima.iter_mut().zip(inverse_sums));
    for ((row, &limit), (row_maximum, inverse_sum)) in rows {
        let (seen, hidden) = row.split_at_mut(limit);
        *row_maximum = maximum(seen);
        *inverse_sum = 1.0 / exp_and_sum(seen, *row_maximum);
        for value in seen {
            *value *= *inverse_sum;
        }
        hidden.fill(0.0);
    }
}

compiled_per_cpu!(
    /// The same probabilities as [`Cpu::softmax`](super::Cpu::softmax), from its maxima and sums.
    ///
    /// # Panics
    /// If the slices do not have these shapes or a limit is above `width`.
    softmax_again = softmax_again, (scores: &mut [f32], width: usize, limits: &[usize], maxima: &[f32], inverse_sums: &[f32])
);

#[inline(always)]
fn softmax_again(
    scores: &mut [f32],
    width: usize,
    limits: &[usize],
    maxima: &[f32],
    inverse_sums: &[f32],
) {
    assert_eq!(scores.len(), limits.len() * width);
    let rows = scores
        .chunks_exact_mut(width)
        .zip(limits)
        .zip(maxima.iter().zip(inverse_sums));
    for ((row, &limit), (&row_maximum, &inverse_sum)) in rows {
        let (seen, hidden) = row.split_at_mut(limit);
        for value in seen {
            *value = exp(*value - row_maximum) * inverse_sum;
        }
        hidden.fill(0.0);
    }
}

compiled_per_cpu!(
    /// Backward of softmax: turns `gradient` (of the probabilities, `[rows, width]`) into that of the scores, in place:
    /// `p * (gradient - shift)`, where the row's `shift` is the sum of p * gradient.
    ///
    /// # Panics
    /// If the slices do not have these shapes.
    softmax_backward = softmax_backward, (probabilities: &[f32], width: usize, shifts: &[f32], gradient: &mut [f32])
);

#[inline(always)]
fn softmax_backward(probabilities: &[f32], width: usize, shifts: &[f32], gradient: &mut [f32]) {
    assert_eq!(
        (probabilities.len(), gradient.len()),
        (shifts.len() * width, shifts.len() * width)
    );
    let rows = probabilities
        .chunks_exact(width)
        .zip(gradient.chunks_exact_mut(width))
        .zip(shifts);
    for ((probabilities, gradient), shift) in rows {
        for (gradient, probability) in gradient.iter_mut().zip(probabilities) {
            *gradient = probability * (*gradient - shift);
        }
    }
}

compiled_per_cpu!(
    /// Scalar product of each row of `a` with the same row of `b`, both `[rows, width]`.
    ///
    /// # Panics
    /// If the slices do not have these shapes.
    row_products = row_products, (a: &[f32], b: &[f32], width: usize, products: &mut [f32])
);

#[inline(always)]
fn row_products(a: &[f32], b: &[f32], width: usize, products: &mut [f32]) {
    assert_eq!(
        (a.len(), b.len()),
        (products.len() * width, products.len() * width)
    );
    for ((product, a), b) in products
        .iter_mut()
        .zip(a.chunks_exact(width))
        .zip(b.chunks_exact(width))
    {
        *product = dot(a, b);
    }
}
