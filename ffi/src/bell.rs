//! Wakes a host that waits for file descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::Fault;
use crate::fork::forks;
#[cfg(target_os = "linux")]
use crate::status::TLLM_ERR_IO;
#[cfg(not(target_os = "linux"))]
use crate::status::TLLM_ERR_UNSUPPORTED;

/// A descriptor that is readable while answers wait. It is made when it is first asked for.
///
/// In the low half of the word the descriptor plus one, 0 if there is none; in the high half [`forks`] when it was made: a child has its
/// parent's, which is not to hear of the child's answers.
#[derive(Debug)]
pub(crate) struct Bell(AtomicU64);

impl Bell {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0)))
    }

    /// This process's descriptor.
    fn own(&self) -> Option<i32> {
        let word = self.0.load(Ordering::Acquire);
        let descriptor = i32::try_from((word as u32).checked_sub(1)?).ok()?;
        (word >> 32 == u64::from(forks())).then_some(descriptor)
    }

    /// The descriptor. Called by the session's thread only.
    #[cfg(target_os = "linux")]
    pub(crate) fn descriptor(&self) -> Result<i32, Fault> {
        if let Some(known) = self.own() {
            return Ok(known);
        }
        // SAFETY: the call takes no pointer.
        let made = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if made < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Fault::new(TLLM_ERR_IO, format!("eventfd: {error}")));
        }
        let word = u64::from(forks()) << 32 | u64::from(made.unsigned_abs() + 1);
        self.0.store(word, Ordering::Release);
        Ok(made)
    }

    /// This system has no descriptor for it.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn descriptor(&self) -> Result<i32, Fault> {
        Err(Fault::new(
            TLLM_ERR_UNSUPPORTED,
            "a descriptor needs Linux's eventfd".to_owned(),
        ))
    }

    /// Makes it readable. It never waits: the counter would have to stand at 2^64 - 2.
    pub(crate) fn ring(&self) {
        if let Some(descriptor) = self.own() {
            let one = 1_u64;
            // SAFETY: the descriptor is open as long as `self`, and the 8 bytes are there.
            let _written =
                unsafe { libc::write(descriptor, (&raw const one).cast(), size_of::<u64>()) };
        }
    }

    /// Makes it not readable. What arrives after this rings again.
    pub(crate) fn silence(&self) {
        if let Some(descriptor) = self.own() {
            let mut count = 0_u64;
            // SAFETY: as in `ring`; without a ring the call returns at once, the descriptor does not block.
            let _read =
                unsafe { libc::read(descriptor, (&raw mut count).cast(), size_of::<u64>()) };
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // A parent's stays open in a child: the host may have closed it there and given its number to something else.
        if let Some(descriptor) = self.own() {
            // SAFETY: it is this bell's own, and nobody else has a reference to it any more.
            unsafe { libc::close(descriptor) };
        }
    }
}
