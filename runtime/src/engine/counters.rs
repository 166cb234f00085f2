//! What became of the flows that were submitted.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

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
    /// Batches that the model ran.
    pub batches: u64,
    /// Panics of the model or of a worker; each failed the flows of one batch, and the worker went on.
    pub worker_panics: u64,
    /// Models that [`crate::Engine::activate`] put to work.
    pub swaps: u64,
    /// Models that it refused.
    pub swaps_failed: u64,
    /// Batches of [`Self::batches`] that a device ran.
    pub device_batches: u64,
    /// Batches that a device could not run: the processor ran them.
    pub device_failures: u64,
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
    pub(super) batches: AtomicU64,
    pub(super) worker_panics: AtomicU64,
    pub(super) swaps: AtomicU64,
    pub(super) swaps_failed: AtomicU64,
    pub(super) device_batches: AtomicU64,
    pub(super) device_failures: AtomicU64,
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
            batches: self.batches.load(SeqCst),
            worker_panics: self.worker_panics.load(SeqCst),
            swaps: self.swaps.load(SeqCst),
            swaps_failed: self.swaps_failed.load(SeqCst),
            device_batches: self.device_batches.load(SeqCst),
            device_failures: self.device_failures.load(SeqCst),
        }
    }
}

/// Flows that were counted as submitted and have no fate yet. Those that still have none when this is dropped were lost to a panic: they
/// count as failed.
pub(super) struct Unsettled<'a> {
    counts: &'a Counts,
    flows: u64,
}

impl<'a> Unsettled<'a> {
    /// Counts so many flows as submitted.
    pub(super) fn new(counts: &'a Counts, flows: usize) -> Self {
        let flows = flows as u64;
        Counts::add(&counts.submitted, flows);
        Self { counts, flows }
    }

    /// Gives one of them its fate.
    pub(super) fn settle(&mut self, fate: &AtomicU64) {
        Counts::add(fate, 1);
        self.flows -= 1;
    }

    /// Gives all that are left theirs.
    pub(super) fn settle_rest(&mut self, fate: &AtomicU64) {
        Counts::add(fate, self.flows);
        self.flows = 0;
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.settle_rest(&self.counts.failed);
    }
}

/// A model that is to be put to work. It is counted when this is dropped: as refused where it is not done, by a panic as well.
pub(super) struct Swap<'a> {
    counts: &'a Counts,
    pub(super) is_done: bool,
}

impl<'a> Swap<'a> {
    pub(super) fn new(counts: &'a Counts) -> Self {
        Self {
            counts,
            is_done: false,
        }
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        let counts = self.counts;
        let counter = if self.is_done {
            &counts.swaps
        } else {
            &counts.swaps_failed
        };
        Counts::add(counter, 1);
    }
}

/// Upper bounds of the classes of [`Latency`], in microseconds.
const BOUNDS_US: [u64; 17] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// How long flows took from their submission to the end of their batch. Each number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Upper bounds of the classes, inclusive, ascending, in microseconds.
    pub bounds_us: &'static [u64],
    /// Judged flows by class: `counts[i]` took at most `bounds_us[i]` and more than the bound before; the last took longer than all.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// Sum of all, in microseconds.
    pub sum_us: u64,
    /// Judged flows: the sum of `counts`.
    pub count: u64,
}

impl Latency {
    /// The time that a share `q` of the judged flows, 0 to 1, did not exceed, in microseconds: 0.5 is the median, 0.99 what one in a
    /// hundred exceeded. The flows of a class are taken to lie evenly between its bounds, so it is right to within the class; of flows that
    /// took longer than all bounds it says the last bound. 0 where no flow was judged.
    #[must_use]
    pub fn quantile_us(&self, q: f64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        // The flow that it is about, from 1. What is no share is taken for the nearest one.
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        let (mut before, mut lower_us) = (0, 0);
        for (&upper_us, &count) in self.bounds_us.iter().zip(&self.counts) {
            if rank <= before + count {
                let share = (rank - before) as f64 / count as f64;
                return lower_us + ((upper_us - lower_us) as f64 * share).ceil() as u64;
            }
            before += count;
            lower_us = upper_us;
        }
        lower_us
    }
}

/// [`Latency`] that several threads add to.
#[derive(Debug, Default)]
pub(super) struct LatencyCounts {
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl LatencyCounts {
    /// Counts a flow that took so long.
    pub(super) fn add(&self, latency_us: u64) {
        let class = BOUNDS_US.partition_point(|bound| *bound < latency_us);
        self.counts[class].fetch_add(1, SeqCst);
        self.sum_us.fetch_add(latency_us, SeqCst);
    }

    pub(super) fn read(&self) -> Latency {
        let counts = self.counts.each_ref().map(|count| count.load(SeqCst));
        Latency {
            bounds_us: &BOUNDS_US,
            counts,
            sum_us: self.sum_us.load(SeqCst),
            count: counts.iter().sum(),
        }
    }
}

/// Whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_falls_into_the_class_whose_bound_it_does_not_exceed() {
        let counts = LatencyCounts::default();
        for latency_us in [0, 50, 51, 100, 10_000_000, 10_000_001] {
            counts.add(latency_us);
        }
        let found = counts.read();
        assert_eq!(found.bounds_us.len() + 1, found.counts.len());
        assert!(found.bounds_us.is_sorted());
        assert_eq!((found.counts[0], found.counts[1]), (2, 2));
        assert_eq!((found.counts[16], found.counts[17]), (1, 1));
        assert_eq!((found.count, found.sum_us), (6, 20_000_202));
    }
    #[test]
    fn a_quantile_lies_in_the_class_of_its_flow() {
        let counts = LatencyCounts::default();
        assert_eq!(counts.read().quantile_us(0.5), 0, "no flow");
        // Ten flows up to 50 us, nine between 500 us and 1 ms, one that took longer than all bounds.
        (0..10).for_each(|_| counts.add(30));
        (0..9).for_each(|_| counts.add(700));
        let without_last = counts.read();
        counts.add(20_000_000);
        let found = counts.read();
        for (q, expected) in [
            (0.05, 5),
            (0.5, 50),
            (0.51, 500 + 56),
            (0.95, 1_000),
            (0.96, 10_000_000),
            (1.0, 10_000_000),
            // What is no share.
            (0.0, 5),
            (-1.0, 5),
            (7.0, 10_000_000),
            (f64::NAN, 5),
        ] {
            assert_eq!(found.quantile_us(q), expected, "{q}");
        }
        assert_eq!(without_last.quantile_us(1.0), 1_000);
        assert!((0..=100).is_sorted_by_key(|q| found.quantile_us(f64::from(q) / 100.0)));
    }
}
