//! What became of the flows that were submitted.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// What became of the flows and requests that were submitted to an engine. Each number only grows.
///
/// Each submitted flow has one fate, which is counted when its submitter learns of it:
/// `submitted = done + shed + expired + abandoned + failed + in_flight()`. Those of a [`crate::Detection`] count as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounters {
    /// Offered, those included that the queue had no room for.
    pub submitted: u64,
    /// Judged, and the verdicts taken by the caller.
    pub done: u64,
    /// Refused because the queue was full.
    pub shed: u64,
    /// Not judged because the deadline had passed.
    pub expired: u64,
    /// Never answered because the submitter or the engine was gone before.
    pub abandoned: u64,
    /// Lost to a defect in the model or in a worker.
    pub failed: u64,
}

impl EngineCounters {
    /// Flows that wait, run or have an answer that is not taken yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let settled = self.done + self.shed + self.expired + self.abandoned + self.failed;
        self.submitted.saturating_sub(settled)
    }
}

/// [`EngineCounters`] that several threads add to.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) submitted: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) shed: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) abandoned: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Counts {
    /// Adds to one of the counters.
    pub(super) fn add(counter: &AtomicU64, flows: u64) {
        counter.fetch_add(flows, SeqCst);
    }

    pub(super) fn read(&self) -> EngineCounters {
        let fates = [
            &self.done,
            &self.shed,
            &self.expired,
            &self.abandoned,
            &self.failed,
        ];
        let [done, shed, expired, abandoned, failed] = fates.map(|counter| counter.load(SeqCst));
        EngineCounters {
            // Read last: a flow is counted as submitted before it has a fate, so the fates never exceed it.
            submitted: self.submitted.load(SeqCst),
            done,
            shed,
            expired,
            abandoned,
            failed,
        }
    }
}
