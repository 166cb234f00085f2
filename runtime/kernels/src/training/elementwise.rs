//! Norms, the gate of the MLP and rotary positions, forward and backward.

use super::cpu::compiled_per_cpu;
use super::exponential::{LANES, dot, exp};

compiled_per_cpu!(
    /// RMS norm of each row: `output = x * weight / sqrt(mean(x^2) + epsilon)`.
    /// `x`, `output` `[rows, hidden]`, `weight` `[hidden]`; `scales` `[rows]` receives the factor of each row.
    ///
    /// # Panics
    /// If a slice is shorter than these shapes.
    rms_norm = rms_norm, (x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32], scales: &mut [f32])
);

#[inline(always)]
fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32], scales: &mut [f32]) {
    let hidden = weight.len();
    assert_eq!(
        (x.len(), output.len()),
        (scales.len() * hidden, scales.len() * hidden)
    );
    for ((x, output), scale) in x
        .chunks_exact(hidden)
        .zip(output.chunks_exact_mut(hidden))
        .zip(scales)
    {
        *scale = 1.0 / (dot(x, x) / hidden as f32 + epsilon).sqrt();
        for ((output, x), weight) in output.iter_mut().zip(x).zip(weight) {
            *output = x * *scale * weight;
        }
    }
}

compiled_per_cpu!(
    /// Backward of [`Cpu::rms_norm`](super::Cpu::rms_norm): turns `gradient` `[rows, hidden]` (of the output) into that
    /// of `x`, in place, and adds to `weight_gradient` `[hidden]`.
    ///
    /// # Panics
    /// If a slice is shorter than these shapes.
    rms_norm_backward = rms_norm_backward,
    (x: &[f32], weight: &[f32], scales: &[f32], gradient: &mut [f32], weight_gradient: &mut [f32])
);

#[inline(always)]
fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    scales: &[f32],
    gradient: &mut [f32],
    weight_gradient: &mut [f32],
) {
    let hidden = weight.len();
    assert_eq!(
        (x.len(), gradient.len()),
        (scales.len() * hidden, scales.len() * hidden)
    );
    assert_eq!(weight_gradient.len(), hidden);
    for ((x, gradient), &scale) in x
        .chunks_exact(hidden)
        .zip(gradient.chunks_exact_mut(hidden))
        .zip(scales)
    {
        for (((sum, gradient), x), weight) in weight_gradient
            .iter_mut()
            .zip(&mut *gradient)
            .zip(x)
            .zip(weight)
        {
            *sum = gradient.mul_add(x * scale, *sum);
            *gradient *= weight;
        }
        let factor = dot(gradient, x) * scale * scale * scale / hidden as f32;
        for (gradient, x) in gradient.iter_mut().zip(x) {
            *gradient = x.mul_add(-factor, *gradient * scale);
        }
    }
}

compiled_per_cpu!(
    /// `activation = silu(gate) * up`: `gate_up` `[rows, 2 * width]` holds gate and up side by side, `activation` `[rows, width]`.
    ///
    /// # Panics
    /// If the slices do not have these shapes.
    silu_gate = silu_gate, (gate_up: &[f32], width: usize, activation: &mut [f32])
);

#[inline(always)]
fn silu_gate(gate_up: &[f32], width: usize, activation: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * activation.len());
    for (gate_up, activation) in gate_up
        .chunks_exact(2 * width)
        .zip(activation.chunks_exact_mut(width))
    {
        let (gate, up) = gate_up.split_at(width);
        for ((activation, gate), up) in activation.iter_mut().zip(gate).zip(up) {
            *activation = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

compiled_per_cpu!(
    /// Backward of [`Cpu::silu_gate`](super::Cpu::silu_gate), all in place: `gate_up` becomes its own gradient, and
    /// `gradient` (of the activation) becomes the activation.
    ///
    /// # Panics
    /// If the slices do not have the shapes of the forward pass.
    silu_gate_backward = silu_gate_backward, (gate_up: &mut [f32], width: usize, gradient: &mut [f32])
);

#[inline(always)]
fn silu_gate_backward(gate_up: &mut [f32], width: usize, gradient: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * gradient.len());
    for (gate_up, gradient) in gate_up
        .chunks_exact_mut(2 * width)
        .zip(gradient.chunks_exact_mut(width))
    {
        let (gate, up) = gate_up.split_at_mut(width);
        let (gradient_whole, gradient_rest) = gradient.as_chunks_mut::<LANES>();
        let (gate_whole, gate_rest) = gate.as_chunks_mut::<LANES>();
        let (up_whole, up_rest) = up.as_chunks_mut::<LANES>();
        for ((gradient, gate), up) in gradient_whole.iter_mut().zip(gate_whole).zip(up_whole) {
            // Through copies: the compiler then knows that nothing overlaps, and uses whole registers.
            let (mut of_activation, mut of_gate, mut of_up) = (*gradient, *gate, *up);
            for lane in 0..LANES {
                silu_gate_gradient(
                    &mut of_activation[lane],
                    &mut of_gate[lane],
                    &mut of_up[lane],
                );
            }
            (*gradient, *gate, *up) = (of_activation, of_gate, of_up);
        }
        for ((gradient, gate), up) in gradient_rest.iter_mut().zip(gate_rest).zip(up_rest) {
            silu_gate_gradient(gradient, gate, up);
        }
    }
}

/// Turns gate and up into their gradients and the activation's gradient into the activation.
#[inline(always)]
fn silu_gate_gradient(gradient: &mut f32, gate: &mut f32, up: &mut f32) {
    let sigmoid = 1.0 / (1.0 + exp(-*gate));
    let silu = *gate * sigmoid;
    let slope = sigmoid * (*gate).mul_add(1.0 - sigmoid, 1.0);
    let (of_activation, up_value) = (*gradient, *up);
    *gradient = silu * up_value;
    *gate = of_activation * up_value * slope;
    *up = of_activation * silu;
}

compiled_per_cpu!(
    /// Takes columns `first .. first + width` of each of `rows` rows (`stride` values apart), turns each pair of
    /// neighbouring values by its angle and multiplies by `scale`. Every `2 * pairs` columns are a head; row r turns by
    /// `cosines[r * pairs ..]` and `sines[r * pairs ..]`. `output` `[rows, width]`.
    ///
    /// # Panics
    /// If the slices do not have these shapes.
    rotate = rotate,
    (source: &[f32], stride: usize, first: usize, width: usize, cosines: &[f32], sines: &[f32], pairs: usize, scale: f32, output: &mut [f32])
);

#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "a kernel takes its matrices and their sizes"
)]
fn rotate(
    source: &[f32],
    stride: usize,
    first: usize,
    width: usize,
    cosines: &[f32],
    sines: &[f32],
    pairs: usize,
    scale: f32,
    output: &mut [f32],
) {
    let angles = cosines.chunks_exact(pairs).zip(sines.chunks_exact(pairs));
    for ((source, output), (cosines, sines)) in source
        .chunks(stride)
        .zip(output.chunks_exact_mut(width))
        .zip(angles)
    {
        let heads = source[first..first + width].chunks_exact(2 * pairs);
        for (source, output) in heads.zip(output.chunks_exact_mut(2 * pairs)) {
            let (source, output) = (source.as_chunks::<2>().0, output.as_chunks_mut::<2>().0);
            for (((source, output), cosine), sine) in
                source.iter().zip(output).zip(cosines).zip(sines)
            {
                let (even, odd) = (source[0] * scale, source[1] * scale);
                *output = [
                    even.mul_add(*cosine, -(odd * sine)),
                    even.mul_add(*sine, odd * cosine),
                ];
            }
        }
    }
}

compiled_per_cpu!(
    /// Backward of [`Cpu::rotate`](super::Cpu::rotate): turns `gradient` `[rows, width]` back and writes it into columns
    /// `first .. first + width` of `output`, rows `stride` values apart.
    ///
    /// # Panics
    /// If the slices do not have these shapes.
    rotate_backward = rotate_backward,
    (gradient: &[f32], width: usize, cosines: &[f32], sines: &[f32], pairs: usize, scale: f32, output: &mut [f32], stride: usize, first: usize)
);

#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "a kernel takes its matrices and their sizes"
)]
fn rotate_backward(
    gradient: &[f32],
    width: usize,
    cosines: &[f32],
    sines: &[f32],
    pairs: usize,
    scale: f32,
    output: &mut [f32],
    stride: usize,
    first: usize,
) {
    let angles = cosines.chunks_exact(pairs).zip(sines.chunks_exact(pairs));
    for ((gradient, output), (cosines, sines)) in gradient
        .chunks_exact(width)
        .zip(output.chunks_mut(stride))
        .zip(angles)
    {
        let heads = output[first..first + width].chunks_exact_mut(2 * pairs);
        for (output, gradient) in heads.zip(gradient.chunks_exact(2 * pairs)) {
            let (gradient, output) = (gradient.as_chunks::<2>().0, output.as_chunks_mut::<2>().0);
            for (((gradient, output), cosine), sine) in
                gradient.iter().zip(output).zip(cosines).zip(sines)
            {
                let (even, odd) = (gradient[0] * scale, gradient[1] * scale);
                *output = [
                    even.mul_add(*cosine, odd * sine),
                    odd.mul_add(*cosine, -(even * sine)),
                ];
            }
        }
    }
}
