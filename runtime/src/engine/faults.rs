//! Faults on demand, for tests: a thread that panics, and one that the system does not let run.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};

/// No flow.
const NONE: u64 = u64::MAX;

/// A flow on which a thread stands still.
#[derive(Debug)]
struct Hold {
    id: Mutex<u64>,
    released: Condvar,
}

impl Hold {
    fn set(&self, id: Option<u64>) {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id.unwrap_or(NONE);
        self.released.notify_all();
    }

    fn meet(&self, id: u64) {
        let held = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        let released = self
            .released
            .wait_while(held, |held| id != NONE && *held == id);
        drop(released);
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            id: Mutex::new(NONE),
            released: Condvar::new(),
        }
    }
}

/// Which flows bring a fault about.
#[derive(Debug)]
pub(super) struct Faults {
    poison: AtomicU64,
    poison_encoding: AtomicU64,
    hold: Hold,
    hold_encoding: Hold,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            poison: AtomicU64::new(NONE),
            poison_encoding: AtomicU64::new(NONE),
            hold: Hold::default(),
            hold_encoding: Hold::default(),
        }
    }
}

impl Faults {
    /// Whoever runs the flow with this id panics; `None` ends that.
    pub(super) fn poison(&self, id: Option<u64>) {
        self.poison.store(id.unwrap_or(NONE), SeqCst);
    }

    /// Whoever makes tokens of the flow with this id panics; `None` ends that.
    pub(super) fn poison_encoding(&self, id: Option<u64>) {
        self.poison_encoding.store(id.unwrap_or(NONE), SeqCst);
    }

    /// Whoever runs the flow with this id stands still in its batch until this is called again; `None` ends that.
    pub(super) fn hold(&self, id: Option<u64>) {
        self.hold.set(id);
    }

    /// Whoever makes tokens of the flow with this id stands still before that until this is called again; `None` ends that.
    pub(super) fn hold_encoding(&self, id: Option<u64>) {
        self.hold_encoding.set(id);
    }

    /// Is called for every flow that is submitted or classified.
    #[expect(clippy::panic, reason = "that is the fault that was asked for")]
    pub(super) fn meet_encoding(&self, id: u64) {
        if id != NONE && id == self.poison_encoding.load(SeqCst) {
            panic!("a flow that cannot be made tokens of");
        }
        self.hold_encoding.meet(id);
    }

    /// Is called for every flow that is run.
    #[expect(clippy::panic, reason = "that is the fault that was asked for")]
    pub(super) fn meet(&self, id: u64) {
        if id != NONE && id == self.poison.load(SeqCst) {
            panic!("a poisoned flow");
        }
        self.hold.meet(id);
    }
}
