//! Keeps the host's signals away from the library's threads.

/// Blocks all signals on this thread while it lives: threads that are started meanwhile begin so, and stay so.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
    is_blocked: bool,
}

impl SignalsBlocked {
    pub(crate) fn block() -> Self {
        // SAFETY: a signal set is plain data; both are valid to write, and the call changes this thread's mask only. Signals that
        // a defect raises (SIGSEGV and its like) are delivered all the same.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            let status = libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self {
                before,
                is_blocked: status == 0,
            }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        if self.is_blocked {
            // SAFETY: the set is the one that the system has given.
            unsafe {
                libc::pthread_sigmask(
                    libc::SIG_SETMASK,
                    &raw const self.before,
                    std::ptr::null_mut(),
                );
            }
        }
    }
}
