//! Memory that ends where the next byte faults.

use std::io;
use std::ptr::NonNull;

/// More than the pages of any system that this runs on.
const PAGE_BYTES: usize = 64 * 1024;

/// A mapping between two pages that fault. What is used of it ends at the second one.
#[derive(Debug)]
pub(crate) struct Guarded {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    used_bytes: usize,
    /// What was asked for: the rest of what is used holds a pattern.
    bytes: usize,
}

/// Not a number in f16, bf16 and f32.
const PATTERN: u8 = 0xff;

// SAFETY: it owns its mapping, and hands out addresses only.
unsafe impl Send for Guarded {}
// SAFETY: as above.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// Zeros: `bytes` up to a multiple of `alignment`, which is a power of two of at most a page.
    pub(crate) fn new(bytes: usize, alignment: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let used_bytes = bytes
            .checked_next_multiple_of(alignment)
            .ok_or_else(too_large)?;
        let pages = used_bytes.div_ceil(PAGE_BYTES) + 2;
        let mapping_bytes = pages.checked_mul(PAGE_BYTES).ok_or_else(too_large)?;
        let mapping = map(mapping_bytes)?;
        let this = Self {
            mapping,
            mapping_bytes,
            used_bytes,
            bytes,
        };
        this.forbid(0, PAGE_BYTES)?;
        this.forbid(mapping_bytes - PAGE_BYTES, PAGE_BYTES)?;
        // SAFETY: the mapping has `used_bytes` from there on, and nobody else knows of it yet.
        unsafe {
            this.start()
                .add(bytes)
                .write_bytes(PATTERN, used_bytes - bytes)
        };
        Ok(this)
    }

    /// Bytes that were asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was written between what was asked for and the page that faults.
    pub(crate) fn is_whole(&self) -> bool {
        (self.bytes..self.used_bytes).all(|at| {
            // SAFETY: it is part of what is used; a kernel that writes it meanwhile is one that is to be found.
            unsafe { self.start().add(at).read_volatile() == PATTERN }
        })
    }

    /// Zeros that start at a multiple of `alignment`, a power of two: `count` times `each` bytes, and the lowest page of each faults.
    pub(crate) fn stacks(count: usize, each: usize, alignment: usize) -> io::Result<(Self, usize)> {
        let mapping_bytes = count * each + alignment;
        let mapping = map(mapping_bytes)?;
        let this = Self {
            mapping,
            mapping_bytes,
            used_bytes: mapping_bytes,
            bytes: mapping_bytes,
        };
        let first = this.address(0).next_multiple_of(alignment);
        let skipped = first - this.address(0);
        for stack in 0..count {
            this.forbid(skipped + stack * each, PAGE_BYTES.min(each / 4))?;
        }
        Ok((this, first))
    }

    fn address(&self, offset: usize) -> usize {
        self.mapping.as_ptr().expose_provenance() + offset
    }

    /// Where what is used begins.
    pub(crate) fn start(&self) -> NonNull<u8> {
        let offset = self.mapping_bytes - PAGE_BYTES - self.used_bytes;
        // SAFETY: `new` made the mapping longer than that.
        unsafe { self.mapping.add(offset) }
    }

    /// The address of the page that faults after what is used.
    pub(crate) fn end(&self) -> usize {
        self.address(self.mapping_bytes - PAGE_BYTES)
    }

    fn forbid(&self, offset: usize, bytes: usize) -> io::Result<()> {
        // SAFETY: the range is part of the mapping, and nothing was told of it yet.
        let result = unsafe {
            libc::mprotect(
                self.mapping.add(offset).as_ptr().cast(),
                bytes,
                libc::PROT_NONE,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, placed by the system.
    let found = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, kind, -1, 0) };
    if found == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(found.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}
