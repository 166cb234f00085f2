//! AVX-512 kernels with VNNI byte products. The functions here are safe to call: they take [`Kernels`] or [`Panels`], which
//! only exist where the processor was found to have the instructions.

mod attend;
mod math;
mod multiply;
mod rows;

use crate::attention::{AttentionScratch, AttentionShape, KeyBlocks, KeysValues};
use crate::rotary::RotaryTable;
use crate::{Kernels, Level};

pub(crate) use multiply::Panels;

/// What every `unsafe` call below relies on.
fn assert_available(kernels: Kernels) {
    assert_eq!(
        kernels.level(),
        Level::Avx512Vnni,
        "kernels of another level"
    );
}

pub(crate) fn rms_norm(
    kernels: Kernels,
    input: &[f32],
    weight: &[f32],
    epsilon: f32,
    output: &mut [f32],
) {
    assert_available(kernels);
    // SAFETY: `Kernels` of this level exist only where its instructions do.
    unsafe { rows::rms_norm(input, weight, epsilon, output) }
}

pub(crate) fn rms_norm_quantise(
    kernels: Kernels,
    input: &[f32],
    weight: &[f32],
    epsilon: f32,
    values: &mut [i8],
    scale: &mut f32,
    sum: &mut i32,
) {
    assert_available(kernels);
    // SAFETY: `Kernels` of this level exist only where its instructions do.
    unsafe { rows::rms_norm_quantise(input, weight, epsilon, values, scale, sum) }
}

pub(crate) fn quantise(
    kernels: Kernels,
    input: &[f32],
    values: &mut [i8],
    scale: &mut f32,
    sum: &mut i32,
) {
    assert_available(kernels);
    // SAFETY: `Kernels` of this level exist only where its instructions do.
    unsafe { rows::quantise(input, values, scale, sum) }
}

pub(crate) fn rotate(kernels: Kernels, row: &mut [f32], table: &RotaryTable, position: usize) {
    assert_available(kernels);
    // SAFETY: `Kernels` of this level exist only where its instructions do.
    unsafe { rows::rotate(row, table, position) }
}

pub(crate) fn dequantise(kernels: Kernels, values: &[i8], scale: f32, output: &mut [f32]) {
    assert_available(kernels);
    // SAFETY: `Kernels` of this level exist only where its instructions do.
    unsafe { rows::dequantise(values, scale, output) }
}

pub(crate) fn attend(
    kernels: Kernels,
    shape: AttentionShape,
    context: &[KeysValues<'_>],
    own: &KeyBlocks,
    rows: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    assert_available(kernels);
    // SAFETY: `Kernels` of this level exist only where its instructions do.
    unsafe { attend::attend(shape, context, own, rows, &mut scratch.scores) }
}
