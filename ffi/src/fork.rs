//! Notices that the process was forked: a child has the memory of its parent, but none of its threads.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Forks between this process and the one that loaded the library. Looking costs one load.
pub(crate) fn forks() -> u32 {
    static HANDLER: Once = Once::new();
    // After a fork in another thread's first call `Once` could be left half done: the handler is set by the first call of all, which
    // opens a model or makes a config, before there is anything to protect.
    HANDLER.call_once(|| {
        // SAFETY: the handler is a function of this library, which is never unloaded, and only adds to an atomic, which is
        // allowed in a child of a process with several threads.
        let _status = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    });
    FORKS.load(Ordering::Relaxed)
}
