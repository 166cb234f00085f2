//! Memory of packed weights: written once, then sealed read-only, so that no stray write of a host can change a verdict.

use std::ops::{Deref, DerefMut};

use memmap2::{Mmap, MmapMut};

use crate::KernelError;

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
        let map = MmapMut::map_anon(bytes).map_err(|source| KernelError::memory(bytes, &source))?;
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
        Ok(Memory(
            sealed.map_err(|source| KernelError::memory(bytes, &source))?,
        ))
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
