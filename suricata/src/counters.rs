//! What happened, in Suricata's statistics and in Prometheus' text format.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::host::Host;
use crate::plugin::{self, Plugin};
use crate::verdict::{FlowVerdict, State};

/// A number that threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Reads.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The plugin's own numbers. They are counted per flow, not per packet.
#[derive(Debug, Default)]
pub struct Counters {
    /// Flows of Suricata that were seen.
    pub flows: Counter,
    /// Flows without a place or a recorder.
    pub untracked: Counter,
    /// Submissions that were queued.
    pub submitted: Counter,
    /// Submissions that found no room.
    pub shed: Counter,
    /// Answers that came.
    pub answers: Counter,
    /// Answers with verdicts.
    pub done: Counter,
    /// Verdicts of tasks.
    pub verdicts: Counter,
    /// Verdicts of tasks that abstained.
    pub abstained: Counter,
    /// Flows whose newest answer came after their record, whether it is written or not.
    pub late: Counter,
    /// Late answers that could not be written.
    pub late_lost: Counter,
    /// Submissions and answers that failed.
    pub errors: Counter,
    /// Waits for a verdict that were too short.
    pub waits_over: Counter,
    /// Packets that could not be added to their flow.
    pub packets_lost: Counter,
    /// Models that took over.
    pub reloads: Counter,
    /// Models that were refused.
    pub reload_failures: Counter,
}

impl Counters {
    /// Counts an answer.
    pub fn count(&self, verdict: &FlowVerdict) {
        match verdict.state {
            State::Done | State::NotApplicable => self.done.add(1),
            State::Failed | State::Expired | State::Abandoned => self.errors.add(1),
        }
        self.verdicts.add(verdict.judgements.len() as u64);
        let abstained = verdict.judgements.iter().filter(|found| found.is_abstained);
        self.abstained.add(abstained.count() as u64);
    }
}

/// A counter as it is shown.
pub struct Shown {
    /// Name in Suricata's statistics.
    pub name: &'static CStr,
    /// What it says.
    pub help: &'static str,
    /// Whether it only grows.
    pub only_grows: bool,
    read: fn(&Plugin) -> u64,
    stats: unsafe extern "C" fn() -> u64,
}

macro_rules! shown {
    ($($name:literal, $grows:literal, $help:literal, $read:expr;)*) => {
        /// Every counter.
        pub const SHOWN: &[Shown] = &[$(Shown {
            name: $name,
            help: $help,
            only_grows: $grows,
            read: $read,
            stats: {
                unsafe extern "C" fn stats() -> u64 {
                    let read: fn(&Plugin) -> u64 = $read;
                    crate::guarded(0, || plugin::remains().map_or(0, read))
                }
                stats
            },
        }),*];
    };
}

shown! {
    c"trafficllm.flows", true, "Flows that the plugin has seen.", |plugin| plugin.counters.flows.get();
    c"trafficllm.flows_active", false, "Flows that are followed or wait for an answer.", |plugin| u64::from(plugin.table.flows());
    c"trafficllm.untracked", true, "Flows that were not followed, for want of room or memory.", |plugin| plugin.counters.untracked.get();
    c"trafficllm.submitted", true, "Judgements that were asked for.", |plugin| plugin.counters.submitted.get();
    c"trafficllm.done", true, "Judgements that came.", |plugin| plugin.counters.done.get();
    c"trafficllm.shed", true, "Judgements that found the queue full.", |plugin| plugin.counters.shed.get();
    c"trafficllm.late", true, "Flows whose newest judgement came after their record; late-file has it, if there is one.", |plugin| plugin.counters.late.get();
    c"trafficllm.late_lost", true, "Late judgements that could not be written.", |plugin| plugin.counters.late_lost.get();
    c"trafficllm.verdicts", true, "Verdicts: one for each judgement and task.", |plugin| plugin.counters.verdicts.get();
    c"trafficllm.abstained", true, "Verdicts that abstained.", |plugin| plugin.counters.abstained.get();
    c"trafficllm.errors", true, "Judgements that failed.", |plugin| plugin.counters.errors.get();
    c"trafficllm.waits_over", true, "Waits for a verdict, of captures that are read from files, that offline-wait was too short for.", |plugin| plugin.counters.waits_over.get();
    c"trafficllm.packets_lost", true, "Packets that could not be added to their flow.", |plugin| plugin.counters.packets_lost.get();
    c"trafficllm.worker_panics", true, "Defects in the engine that were caught.", |plugin| plugin.engine.counters().worker_panics;
    c"trafficllm.queue", false, "Judgements that wait for a worker.", |plugin| plugin.engine.counters().waiting;
    c"trafficllm.latency_us_median", false, "Half of the judgements took at most so long from asking.", |plugin| plugin.engine.latency().median_us;
    c"trafficllm.latency_us_p99", false, "99 of a hundred judgements took at most so long from asking.", |plugin| plugin.engine.latency().p99_us;
    c"trafficllm.generation", false, "Number of the active model, from 1.", |plugin| plugin.engine.counters().generation;
    c"trafficllm.reloads", true, "Models that took over.", |plugin| plugin.counters.reloads.get();
    c"trafficllm.reload_failures", true, "Models that were refused.", |plugin| plugin.counters.reload_failures.get();
    c"trafficllm.memory", false, "Bytes of model, workers, queues and flows.", |plugin| {
        let memory = plugin.engine.memory();
        let models = memory.model_bytes + memory.retired_bytes;
        models + memory.worker_bytes + memory.classifier_bytes + memory.queue_bytes + memory.flow_bytes
    };
}

/// Adds the counters to Suricata's statistics.
pub fn register(host: &Host) {
    for counter in SHOWN {
        host.add_counter(counter.name, counter.stats);
    }
}

/// The counters in Prometheus' text format, with those of the library behind them.
#[must_use]
pub fn metrics(plugin: &Plugin) -> String {
    let mut text = String::new();
    for counter in SHOWN {
        let dotted = counter.name.to_str().unwrap_or_default();
        let kind = if counter.only_grows {
            "counter"
        } else {
            "gauge"
        };
        let suffix = if counter.only_grows { "_total" } else { "" };
        let name = format!("suricata_{}{suffix}", dotted.replace('.', "_"));
        let value = (counter.read)(plugin);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "# HELP {name} {}\n# TYPE {name} {kind}\n{name} {value}\n",
            counter.help
        );
    }
    text.push_str(&plugin.engine.metrics().unwrap_or_default());
    text
}
