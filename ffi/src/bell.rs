//! Wakes a host that waits for file descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::fault::Fault;
#[cfg(target_os = "linux")]
use crate::status::TLLM_ERR_IO;
#[cfg(not(target_os = "linux"))]
use crate::status::TLLM_ERR_UNSUPPORTED;

/// A descriptor that is readable while answers wait. It is made when it is first asked for.
#[derive(Debug)]
pub(crate) struct Bell(AtomicI32);

const NONE: i32 = -1;

impl Bell {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI32::new(NONE)))
    }

    /// The descriptor. Called by the session's thread only.
    #[cfg(target_os = "linux")]
    pub(crate) fn descriptor(&self) -> Result<i32, Fault> {
        let known = self.0.load(Ordering::Acquire);
        if known != NONE {
            return Ok(known);
        }
        // SAFETY: the call takes no pointer.
        let made = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if made < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Fault::new(TLLM_ERR_IO, format!("eventfd: {error}")));
        }
        self.0.store(made, Ordering::Release);
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
        let descriptor = self.0.load(Ordering::Acquire);
        if descriptor != NONE {
            let one = 1_u64;
            // SAFETY: the descriptor is open as long as `self`, and the 8 bytes are there.
            let _written =
                unsafe { libc::write(descriptor, (&raw const one).cast(), size_of::<u64>()) };
        }
    }

    /// Makes it not readable. What arrives after this rings again.
    pub(crate) fn silence(&self) {
        let descriptor = self.0.load(Ordering::Acquire);
        if descriptor != NONE {
            let mut count = 0_u64;
            // SAFETY: as in `ring`; without a ring the call returns at once, the descriptor does not block.
            let _read =
                unsafe { libc::read(descriptor, (&raw mut count).cast(), size_of::<u64>()) };
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let descriptor = *self.0.get_mut();
        if descriptor != NONE {
            // SAFETY: it is this bell's own, and nobody else has a reference to it any more.
            unsafe { libc::close(descriptor) };
        }
    }
}
