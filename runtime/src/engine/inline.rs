//! The worker of an engine without threads of its own: whoever asks lends it the thread that it asks on.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::generation::try_lock;
use super::worker::Worker;

/// See the file's first line. While it works it calls functions of the host: the subscriber of the log, and those that are told of
/// answers. They may call the engine again, so nobody waits for the worker here.
pub(super) struct Inline {
    worker: Mutex<Worker>,
    /// The thread that has the worker.
    at_work: Mutex<Option<ThreadId>>,
}

impl Inline {
    pub(super) fn new(worker: Worker) -> Self {
        Self {
            worker: Mutex::new(worker),
            at_work: Mutex::new(None),
        }
    }

    /// Lets `work` have the worker. `None` where a thread has it, another one or this one further up.
    pub(super) fn try_work<T>(&self, work: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let mut worker = try_lock(&self.worker)?;
        *self.lock_at_work() = Some(thread::current().id());
        let ended = Ended(self);
        let result = work(&mut worker);
        drop(ended);
        Some(result)
    }

    /// Whether this thread has the worker, further up: to wait for it would be to wait for oneself.
    pub(super) fn is_own_work(&self) -> bool {
        *self.lock_at_work() == Some(thread::current().id())
    }

    fn lock_at_work(&self) -> MutexGuard<'_, Option<ThreadId>> {
        // Nobody panics while holding it.
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the thread, also where the work panics.
struct Ended<'a>(&'a Inline);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *self.0.lock_at_work() = None;
    }
}
