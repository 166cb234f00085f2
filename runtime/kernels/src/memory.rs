//! Memory that the system may refuse.
//!
//! Packed weights are written once, then sealed read-only, so that no stray write of a host can change a verdict.

use std::ops::{Deref, DerefMut};

use memmap2::{Mmap, MmapMut};

use crate::KernelError;

/// What errors call packed weights.
const PACKED: &str = "packed weights";

/// An empty vector with room for `count` values; `what` is the name that an error gives them.
///
/// # Errors
/// [`KernelError::Memory`], where the standard library's own way would end the host.
pub fn try_with_capacity<T>(what: &'static str, count: usize) -> Result<Vec<T>, KernelError> {
    let mut values = Vec::new();
    try_hold(what, &mut values, count)?;
    Ok(values)
}

/// Makes room for `count` values in all. What the vector holds stays.
///
/// # Errors
/// As [`try_with_capacity`].
pub fn try_hold<T>(
    what: &'static str,
    values: &mut Vec<T>,
    count: usize,
) -> Result<(), KernelError> {
    let additional = count.saturating_sub(values.len());
    let reserved = values.try_reserve_exact(additional);
    reserved.map_err(|source| KernelError::Memory {
        what,
        bytes: count.saturating_mul(size_of::<T>()),
        message: source.to_string(),
    })
}

/// `count` times the same value.
///
/// # Errors
/// As [`try_with_capacity`].
pub fn try_filled<T: Clone>(
    what: &'static str,
    count: usize,
    value: T,
) -> Result<Vec<T>, KernelError> {
    let mut values = try_with_capacity(what, count)?;
    values.resize(count, value);
    Ok(values)
}

/// A copy with room for `count` values in all.
///
/// # Errors
/// As [`try_with_capacity`].
pub(crate) fn try_copy<T: Copy>(
    what: &'static str,
    values: &[T],
    count: usize,
) -> Result<Vec<T>, KernelError> {
    let mut copy = try_with_capacity(what, count.max(values.len()))?;
    copy.extend_from_slice(values);
    Ok(copy)
}

fn refused(bytes: usize, source: &std::io::Error) -> KernelError {
    KernelError::Memory {
        what: PACKED,
        bytes,
        message: source.to_string(),
    }
}

/// From this size on the system is asked for large pages.
#[cfg(target_os = "linux")]
const LARGE_PAGES_FROM_BYTES: usize = 4 << 20;

/// Zeroed memory that can be written.
#[derive(Debug)]
pub(crate) struct MemoryMut(Option<MmapMut>);

/// Sealed memory, at the start of a page; empty where there is nothing to hold.
#[derive(Debug)]
pub(crate) struct Memory(Option<Mmap>);

impl MemoryMut {
    /// # Errors
    /// Memory that the system does not give: an error, where a `Vec` would end the host.
    pub(crate) fn zeroed(bytes: usize) -> Result<Self, KernelError> {
        if bytes == 0 {
            return Ok(Self(None));
        }
        let map = MmapMut::map_anon(bytes).map_err(|source| refused(bytes, &source))?;
        #[cfg(target_os = "linux")]
        if bytes >= LARGE_PAGES_FROM_BYTES {
            // Where the system has none, ordinary pages do.
            let _refused = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self(Some(map)))
    }

    /// # Errors
    /// A system that does not let the memory be sealed.
    pub(crate) fn seal(self) -> Result<Memory, KernelError> {
        let bytes = self.len();
        let sealed = self.0.map(MmapMut::make_read_only).transpose();
        Ok(Memory(sealed.map_err(|source| refused(bytes, &source))?))
    }
}

impl Deref for MemoryMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for MemoryMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Deref for Memory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
