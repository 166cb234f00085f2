//! Memory that the system may refuse: what can be large is asked for in this way, so that a host without memory gets an error
//! and goes on.

/// The system does not give memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {bytes} bytes of memory, found none")]
pub struct MemoryError {
    /// What it is for.
    pub what: &'static str,
    /// What was asked for.
    pub bytes: usize,
}

/// Makes room for `count` values in all; `what` is the name that an error gives them. What the vector holds stays.
pub(crate) fn try_hold<T>(
    what: &'static str,
    values: &mut Vec<T>,
    count: usize,
) -> Result<(), MemoryError> {
    let additional = count.saturating_sub(values.len());
    let bytes = count.saturating_mul(size_of::<T>());
    let refused = |_| MemoryError { what, bytes };
    values.try_reserve_exact(additional).map_err(refused)
}

/// An empty vector with room for `count` values.
pub(crate) fn try_with_capacity<T>(
    what: &'static str,
    count: usize,
) -> Result<Vec<T>, MemoryError> {
    let mut values = Vec::new();
    try_hold(what, &mut values, count)?;
    Ok(values)
}

/// `count` times the same value.
pub(crate) fn try_filled<T: Clone>(
    what: &'static str,
    count: usize,
    value: T,
) -> Result<Vec<T>, MemoryError> {
    let mut values = try_with_capacity(what, count)?;
    values.resize(count, value);
    Ok(values)
}

/// Makes room for `more` values in a list that grows by doubling.
pub(crate) fn try_grow<T>(
    what: &'static str,
    values: &mut Vec<T>,
    more: usize,
) -> Result<(), MemoryError> {
    let bytes = (values.len() + more).saturating_mul(size_of::<T>());
    let refused = |_| MemoryError { what, bytes };
    values.try_reserve(more).map_err(refused)
}

/// Adds a value to a list that grows by doubling.
pub(crate) fn try_push<T>(
    what: &'static str,
    values: &mut Vec<T>,
    value: T,
) -> Result<(), MemoryError> {
    try_grow(what, values, 1)?;
    values.push(value);
    Ok(())
}
