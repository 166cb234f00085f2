//! Memory that the system may refuse: everything here that can be large is asked for in this way, so that a host without memory
//! gets an error and goes on.

use trafficllm_kernels::KernelError;

use crate::error::ModelError;

/// Makes room for `count` values in all; `what` is the name that an error gives them. What the vector holds stays.
pub(crate) fn try_hold<T>(
    what: &'static str,
    values: &mut Vec<T>,
    count: usize,
) -> Result<(), ModelError> {
    let additional = count.saturating_sub(values.len());
    let refused = |_| ModelError::Memory {
        what,
        bytes: count.saturating_mul(size_of::<T>()),
    };
    values.try_reserve_exact(additional).map_err(refused)
}

/// An empty vector with room for `count` values.
pub(crate) fn try_with_capacity<T>(what: &'static str, count: usize) -> Result<Vec<T>, ModelError> {
    let mut values = Vec::new();
    try_hold(what, &mut values, count)?;
    Ok(values)
}

/// A copy.
pub(crate) fn try_copy<T: Copy>(what: &'static str, values: &[T]) -> Result<Vec<T>, ModelError> {
    let mut copy = try_with_capacity(what, values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// Adds a value to a list that grows by doubling.
pub(crate) fn try_push<T>(
    what: &'static str,
    values: &mut Vec<T>,
    value: T,
) -> Result<(), ModelError> {
    let bytes = (values.len() + 1).saturating_mul(size_of::<T>());
    let refused = |_| ModelError::Memory { what, bytes };
    values.try_reserve(1).map_err(refused)?;
    values.push(value);
    Ok(())
}

/// The error where memory was refused; anything else is left to the caller.
pub(crate) fn refused(error: &KernelError) -> Option<ModelError> {
    match error {
        KernelError::Memory { what, bytes, .. } => Some(ModelError::Memory {
            what,
            bytes: *bytes,
        }),
        _ => None,
    }
}
