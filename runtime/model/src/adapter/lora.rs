//! The low-rank additions in an adapter file: `lora.MATRIX.a` and `lora.MATRIX.b` for each matrix.

use safetensors::SafeTensors;

use super::{AdapterShape, check_values, matrix};
use crate::error::{ModelError, check_limit};
use crate::limits;
use crate::transformer::{LoraFactors, TaskLora};

/// The first factor `[layers, rank, in]` and the second `[layers, rank, out]`.
const SIDES: [&str; 2] = ["a", "b"];

fn name(matrix: &str, side: &str) -> String {
    format!("lora.{matrix}.{side}")
}

/// Whether a tensor of this name belongs to low-rank additions.
pub(super) fn is_tensor(found: &str) -> bool {
    names().any(|name| name == found)
}

fn names() -> impl Iterator<Item = String> {
    let matrices = TaskLora::NAMES.into_iter();
    matrices.flat_map(|matrix| SIDES.map(|side| name(matrix, side)))
}

/// Reads them, if the file has any.
pub(super) fn read(
    file: &str,
    tensors: &SafeTensors<'_>,
    shape: AdapterShape,
) -> Result<Option<TaskLora>, ModelError> {
    if !names().any(|name| tensors.names().contains(&name.as_str())) {
        return Ok(None);
    }
    let mut lora = TaskLora::default();
    let mut rank = None;
    for ((of, matrix_name), channels) in lora
        .factors
        .iter_mut()
        .zip(TaskLora::NAMES)
        .zip(shape.lora_channels())
    {
        for (values, side, channels) in [
            (&mut of.a, SIDES[0], channels.0),
            (&mut of.b, SIDES[1], channels.1),
        ] {
            let name = name(matrix_name, side);
            let wanted = [Some(shape.layers), rank, Some(channels)];
            let found;
            (found, *values) = matrix(file, tensors, &name, &wanted)?;
            rank = Some(found[1]);
        }
    }
    lora.rank = rank.unwrap_or(0);
    Ok(Some(lora))
}

/// Their names, shapes and values.
pub(super) fn tensors(
    lora: &TaskLora,
    shape: AdapterShape,
) -> impl Iterator<Item = (String, Vec<usize>, &[f32])> {
    let rank = lora.rank;
    let matrices = TaskLora::NAMES.into_iter().zip(shape.lora_channels());
    let all = matrices.zip(&lora.factors);
    all.flat_map(move |((matrix, (inputs, outputs)), LoraFactors { a, b })| {
        let sides = [(SIDES[0], inputs, a), (SIDES[1], outputs, b)];
        sides.map(|(side, channels, values)| {
            let sizes = vec![shape.layers, rank, channels];
            (name(matrix, side), sizes, values.as_slice())
        })
    })
}

/// A rank within its limit, lengths that follow from it, finite numbers.
pub(super) fn check(file: &str, lora: &TaskLora, shape: AdapterShape) -> Result<(), ModelError> {
    check_limit(file, "LoRA rank", limits::LORA_RANK_MAX, lora.rank as u64)?;
    if lora.rank == 0 {
        return Err(ModelError::invalid(file, "LoRA rank", "at least 1", 0));
    }
    for (name, sizes, values) in tensors(lora, shape) {
        check_values(file, &name, &sizes, values)?;
    }
    Ok(())
}
