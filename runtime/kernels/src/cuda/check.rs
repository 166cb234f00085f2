//! Checks of sizes before anything is launched.

use super::DeviceError;
use crate::AttentionShape;
use crate::cuda::variants::HEAD_DIM_MAX;

/// Most heads: the second size of a grid is 16 bits.
const HEADS_MAX: usize = 65_535;

pub(super) fn at_least(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), DeviceError> {
    if found >= expected {
        return Ok(());
    }
    Err(DeviceError::Size {
        what,
        expected,
        found,
    })
}

pub(super) fn at_most(what: &'static str, limit: usize, found: usize) -> Result<(), DeviceError> {
    if found <= limit {
        return Ok(());
    }
    Err(DeviceError::Size {
        what,
        expected: limit,
        found,
    })
}

pub(super) fn exactly(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), DeviceError> {
    if found == expected {
        return Ok(());
    }
    Err(DeviceError::Size {
        what,
        expected,
        found,
    })
}

/// Kernels take four values at once.
pub(super) fn fours(what: &'static str, found: usize) -> Result<(), DeviceError> {
    if found > 0 && found.is_multiple_of(4) {
        return Ok(());
    }
    Err(DeviceError::Unsupported {
        what,
        limit: "a multiple of 4",
        found,
    })
}

/// That all numbers are below a limit.
pub(super) fn index(what: &'static str, numbers: &[u32], limit: usize) -> Result<(), DeviceError> {
    match numbers.iter().position(|number| *number as usize >= limit) {
        None => Ok(()),
        Some(at) => Err(DeviceError::Index {
            what,
            at,
            limit,
            found: numbers[at] as usize,
        }),
    }
}

/// A size for a kernel.
pub(super) fn small(what: &'static str, found: usize) -> Result<u32, DeviceError> {
    u32::try_from(found).map_err(|_large| DeviceError::Unsupported {
        what,
        limit: "32 bits",
        found,
    })
}

pub(super) fn heads(shape: AttentionShape) -> Result<(), DeviceError> {
    let AttentionShape {
        heads,
        kv_heads,
        head_dim,
    } = shape;
    if head_dim == 0 || !head_dim.is_multiple_of(16) || head_dim > HEAD_DIM_MAX as usize {
        return Err(DeviceError::Unsupported {
            what: "values of a head",
            limit: "a multiple of 16 up to 256",
            found: head_dim,
        });
    }
    if !(1..=HEADS_MAX).contains(&heads) {
        return Err(DeviceError::Unsupported {
            what: "heads",
            limit: "1 to 65535",
            found: heads,
        });
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(DeviceError::Unsupported {
            what: "heads of keys",
            limit: "a divisor of the heads",
            found: kv_heads,
        });
    }
    Ok(())
}
