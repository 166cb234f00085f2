//! Counters as Prometheus text: the exposition format 0.0.4, base units, all names beginning with `trafficllm_`.

use std::fmt::{Display, Formatter, Result};

use trafficllm_traffic::RecorderCounters;

use crate::device::{DeviceState, DeviceStatus};
use crate::engine::{EngineCounters, Latency};
use crate::heads::HeadStatus;

/// What a host's monitoring is told of an engine, at one moment.
#[derive(Debug)]
pub(crate) struct Metrics<'a> {
    /// [`crate::Model::id`] of the current model.
    pub(crate) model: &'a str,
    /// [`crate::Model::profile_name`] of the current model.
    pub(crate) profile: &'a str,
    /// Name of the CPU level that runs it.
    pub(crate) level: &'a str,
    /// Number of the current model among those that the engine has run, from 1.
    pub(crate) generation: u64,
    /// What became of submitted flows.
    pub(crate) counters: EngineCounters,
    /// Flows that wait in the queue.
    pub(crate) queue_flows: u64,
    /// Flows that the host feeds at present.
    pub(crate) live_flows: u64,
    /// Packets that the host has fed.
    pub(crate) packets: RecorderCounters,
    /// Bytes by what holds them.
    pub(crate) memory_bytes: &'a [(&'a str, usize)],
    /// What became of the device that was chosen.
    pub(crate) device: &'a DeviceStatus,
    /// Bytes of the device's memory.
    pub(crate) device_bytes: u64,
    /// How long judged flows took.
    pub(crate) latency: Latency,
    /// Heads and what they did.
    pub(crate) heads: &'a [HeadStatus],
}

/// One line of a metric: its labels and its value.
type Sample<'a> = (&'a [(&'a str, &'a str)], u64);

impl Display for Metrics<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        metric(
            out,
            ["build_info", "gauge", "The version of the library."],
            &[(&version, 1)],
        )?;
        self.write_model(out)?;
        self.write_flows(out)?;
        self.write_packets(out)?;
        self.write_memory(out)?;
        self.write_device(out)?;
        self.write_latency(out)?;
        self.write_heads(out)
    }
}

impl Metrics<'_> {
    fn write_model(&self, out: &mut Formatter<'_>) -> Result {
        let info = [
            ("model", self.model),
            ("profile", self.profile),
            ("level", self.level),
        ];
        let head = ["model_info", "gauge", "The model that is at work."];
        metric(out, head, &[(&info, 1)])?;
        let help = "Number of the model that is at work among those that were.";
        single(out, ["model_generation", "gauge", help], self.generation)?;
        let help = "Models that came to replace the one at work.";
        let swaps: [Sample<'_>; 2] = [
            (&[("result", "activated")], self.counters.swaps),
            (&[("result", "refused")], self.counters.swaps_failed),
        ];
        metric(out, ["model_swaps_total", "counter", help], &swaps)
    }

    fn write_flows(&self, out: &mut Formatter<'_>) -> Result {
        let counters = &self.counters;
        let help = "Flows and requests that were submitted, those included that were shed.";
        let head = ["flows_submitted_total", "counter", help];
        single(out, head, counters.submitted)?;
        let help = "Submitted flows and requests by what became of them.";
        let fates: [Sample<'_>; 5] = [
            (&[("fate", "done")], counters.done),
            (&[("fate", "shed")], counters.shed),
            (&[("fate", "expired")], counters.expired),
            (&[("fate", "abandoned")], counters.abandoned),
            (&[("fate", "failed")], counters.failed),
        ];
        metric(out, ["flows_ended_total", "counter", help], &fates)?;
        let help = "Submitted flows whose fate is open.";
        let head = ["flows_in_flight", "gauge", help];
        single(out, head, counters.in_flight())?;
        let help = "Flows that wait for a worker.";
        single(out, ["queue_flows", "gauge", help], self.queue_flows)?;
        let help = "Flows that the host feeds.";
        single(out, ["live_flows", "gauge", help], self.live_flows)?;
        let help = "Batches that the model ran.";
        single(
            out,
            ["batches_total", "counter", help],
            self.counters.batches,
        )?;
        let help = "Defects that were caught; each failed the flows of one batch.";
        let head = ["worker_panics_total", "counter", help];
        single(out, head, self.counters.worker_panics)
    }

    fn write_packets(&self, out: &mut Formatter<'_>) -> Result {
        let RecorderCounters {
            packets,
            packets_beyond_limit,
            payload_bytes_cut,
            time_backwards,
        } = self.packets;
        let help = "Packets that the host fed.";
        single(out, ["packets_total", "counter", help], packets)?;
        let help = "Fed packets that are only counted because their flow keeps no more.";
        let head = ["packets_beyond_limit_total", "counter", help];
        single(out, head, packets_beyond_limit)?;
        let help = "Payload of kept packets that was cut off.";
        let head = ["payload_cut_bytes_total", "counter", help];
        single(out, head, payload_bytes_cut)?;
        let help = "Fed packets that are older than their flow's packet before.";
        let head = ["packets_time_backwards_total", "counter", help];
        single(out, head, time_backwards)
    }

    fn write_memory(&self, out: &mut Formatter<'_>) -> Result {
        let head = ["memory_bytes", "gauge", "Memory by what holds it."];
        heading(out, head)?;
        for (part, bytes) in self.memory_bytes {
            sample(out, head[0], "", &[("part", part)], &bytes)?;
        }
        Ok(())
    }

    fn write_device(&self, out: &mut Formatter<'_>) -> Result {
        if self.device.state == DeviceState::Cpu {
            return Ok(());
        }
        let info = [
            ("device", self.device.name.as_str()),
            ("state", self.device.state.name()),
        ];
        let help = "The device that was chosen to run the model, and what became of it.";
        metric(out, ["device_info", "gauge", help], &[(&info, 1)])?;
        let help = "Whether the device runs the model that is at work; else the processor does.";
        let is_active = u64::from(self.device.state == DeviceState::Active);
        single(out, ["device_active", "gauge", help], is_active)?;
        let help = "Memory of the device that models and buffers take.";
        let head = ["device_memory_bytes", "gauge", help];
        single(out, head, self.device_bytes)?;
        let help = "Batches that the device ran.";
        let head = ["device_batches_total", "counter", help];
        single(out, head, self.counters.device_batches)?;
        let help = "Batches that the device could not run: the processor ran them.";
        let head = ["device_failures_total", "counter", help];
        single(out, head, self.counters.device_failures)
    }

    fn write_heads(&self, out: &mut Formatter<'_>) -> Result {
        if self.heads.is_empty() {
            return Ok(());
        }
        let each = |out: &mut Formatter<'_>, head: [&str; 3], value: fn(&HeadStatus) -> u64| {
            heading(out, head)?;
            for status in self.heads {
                sample(out, head[0], "", &[("head", &status.name)], &value(status))?;
            }
            Ok(())
        };
        let help = "Whether a head is asked; one that is not was switched off.";
        let value = |head: &HeadStatus| u64::from(head.is_enabled);
        each(out, ["head_enabled", "gauge", help], value)?;
        let help = "Verdicts of a head, those included in which it abstained.";
        each(out, ["head_verdicts_total", "counter", help], |head| {
            head.verdicts
        })?;
        let help = "Verdicts in which a head abstained itself.";
        each(out, ["head_abstained_total", "counter", help], |head| {
            head.abstained
        })?;
        let help = "Calls of a head that ended in a fault.";
        each(out, ["head_faults_total", "counter", help], |head| {
            head.faults
        })?;
        let help = "How often a head began anew on a thread, after a fault or because its memory had grown.";
        each(out, ["head_restarts_total", "counter", help], |head| {
            head.restarts
        })?;
        let help = "How often a head was switched off because of faults in a row or because it began anew too often.";
        let head = ["head_switched_off_total", "counter", help];
        each(out, head, |head| head.switched_off)?;
        let help = "Lines that a head logged and that were not kept.";
        let head = ["head_log_lines_lost_total", "counter", help];
        each(out, head, |head| head.log_lines_lost)?;
        let help = "Flows without a verdict of a head, by reason.";
        let head = ["head_without_verdict_total", "counter", help];
        heading(out, head)?;
        for status in self.heads {
            for (reason, count) in &status.without {
                let labels = [("head", status.name.as_str()), ("reason", *reason)];
                sample(out, head[0], "", &labels, count)?;
            }
        }
        Ok(())
    }

    fn write_latency(&self, out: &mut Formatter<'_>) -> Result {
        const NAME: &str = "verdict_latency_seconds";
        let latency = &self.latency;
        let help = "Time from the submission of a flow to its verdicts.";
        heading(out, [NAME, "histogram", help])?;
        let mut sum = 0;
        for (bound_us, count) in latency.bounds_us.iter().zip(latency.counts) {
            sum += count;
            let bound = Seconds(*bound_us).to_string();
            sample(out, NAME, "_bucket", &[("le", &bound)], &sum)?;
        }
        sample(out, NAME, "_bucket", &[("le", "+Inf")], &latency.count)?;
        sample(out, NAME, "_sum", &[], &Seconds(latency.sum_us))?;
        sample(out, NAME, "_count", &[], &latency.count)
    }
}

/// A metric of one value without labels; `head` is its name without prefix, its type and what it means.
fn single(out: &mut Formatter<'_>, head: [&str; 3], value: u64) -> Result {
    metric(out, head, &[(&[], value)])
}

fn metric(out: &mut Formatter<'_>, head: [&str; 3], samples: &[Sample<'_>]) -> Result {
    heading(out, head)?;
    for (labels, value) in samples {
        sample(out, head[0], "", labels, value)?;
    }
    Ok(())
}

fn heading(out: &mut Formatter<'_>, [name, kind, help]: [&str; 3]) -> Result {
    writeln!(out, "# HELP trafficllm_{name} {help}")?;
    writeln!(out, "# TYPE trafficllm_{name} {kind}")
}

fn sample(
    out: &mut Formatter<'_>,
    name: &str,
    suffix: &str,
    labels: &[(&str, &str)],
    value: &dyn Display,
) -> Result {
    write!(out, "trafficllm_{name}{suffix}")?;
    for (index, (label, text)) in labels.iter().enumerate() {
        let before = if index == 0 { "{" } else { "," };
        write!(out, "{before}{label}=\"{}\"", Escaped(text))?;
    }
    let end = if labels.is_empty() { "" } else { "}" };
    writeln!(out, "{end} {value}")
}

/// Text of a label: a backslash, a quote and the end of a line stand behind a backslash.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        for character in self.0.chars() {
            match character {
                '\\' => out.write_str("\\\\")?,
                '"' => out.write_str("\\\"")?,
                '\n' => out.write_str("\\n")?,
                other => write!(out, "{other}")?,
            }
        }
        Ok(())
    }
}

/// Microseconds as seconds, without zeros at the end.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        out.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Flows of three classes: two took 50 us at most, three 1 ms, five longer than all bounds.
    fn latency() -> Latency {
        let bounds_us: &[u64] = &[
            50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
            500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
        ];
        let mut counts = [0; 18];
        (counts[0], counts[4], counts[17]) = (2, 3, 5);
        Latency {
            bounds_us,
            counts,
            sum_us: 12_000_500,
            count: 10,
        }
    }

    fn metrics(device: &DeviceStatus) -> Metrics<'_> {
        Metrics {
            model: "0123456789abcdef",
            profile: "clean",
            level: "avx2",
            generation: 2,
            counters: EngineCounters {
                submitted: 20,
                done: 10,
                shed: 4,
                expired: 3,
                abandoned: 2,
                batches: 5,
                worker_panics: 6,
                swaps: 7,
                swaps_failed: 8,
                device_batches: 15,
                device_failures: 16,
                ..EngineCounters::default()
            },
            queue_flows: 9,
            live_flows: 11,
            packets: RecorderCounters {
                packets: 100,
                packets_beyond_limit: 12,
                payload_bytes_cut: 13,
                time_backwards: 14,
            },
            memory_bytes: &[("model", 1_000), ("queue", 200)],
            device,
            device_bytes: 17,
            latency: latency(),
            heads: &[],
        }
    }

    fn device() -> DeviceStatus {
        DeviceStatus {
            state: DeviceState::Active,
            name: "cuda:0 A".to_owned(),
            reason: String::new(),
        }
    }

    #[test]
    fn a_device_is_told_of_where_one_was_chosen() {
        let text = metrics(&DeviceStatus::default()).to_string();
        assert!(!text.contains("device"), "{text}");
        let mut device = device();
        for (state, active) in [(DeviceState::Active, 1), (DeviceState::Lost, 0)] {
            device.state = state;
            let text = metrics(&device).to_string();
            for line in [
                format!(
                    "device_info{{device=\"cuda:0 A\",state=\"{}\"}} 1",
                    state.name()
                ),
                format!("device_active {active}"),
                "device_memory_bytes 17".to_owned(),
                "device_batches_total 15".to_owned(),
                "device_failures_total 16".to_owned(),
            ] {
                let line = format!("trafficllm_{line}");
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
        }
    }

    #[test]
    fn every_value_is_there() {
        let text = metrics(&DeviceStatus::default()).to_string();
        for line in [
            "model_info{model=\"0123456789abcdef\",profile=\"clean\",level=\"avx2\"} 1",
            "model_generation 2",
            "model_swaps_total{result=\"activated\"} 7",
            "model_swaps_total{result=\"refused\"} 8",
            "flows_submitted_total 20",
            "flows_ended_total{fate=\"done\"} 10",
            "flows_ended_total{fate=\"shed\"} 4",
            "flows_ended_total{fate=\"expired\"} 3",
            "flows_ended_total{fate=\"abandoned\"} 2",
            "flows_ended_total{fate=\"failed\"} 0",
            "flows_in_flight 1",
            "queue_flows 9",
            "live_flows 11",
            "batches_total 5",
            "worker_panics_total 6",
            "packets_total 100",
            "packets_beyond_limit_total 12",
            "payload_cut_bytes_total 13",
            "packets_time_backwards_total 14",
            "memory_bytes{part=\"model\"} 1000",
            "memory_bytes{part=\"queue\"} 200",
            "verdict_latency_seconds_bucket{le=\"0.00005\"} 2",
            "verdict_latency_seconds_bucket{le=\"0.001\"} 5",
            "verdict_latency_seconds_bucket{le=\"10\"} 5",
            "verdict_latency_seconds_bucket{le=\"+Inf\"} 10",
            "verdict_latency_seconds_sum 12.0005",
            "verdict_latency_seconds_count 10",
        ] {
            let line = format!("trafficllm_{line}");
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    /// What a scraper holds the text to: each metric in one piece behind its own HELP and TYPE, no sample twice, numbers as values.
    #[test]
    fn the_text_is_of_the_exposition_format() {
        let text = metrics(&device()).to_string();
        assert!(text.ends_with('\n'));
        let (mut metric, mut seen, mut samples) = ("", BTreeSet::new(), BTreeSet::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                metric = help.split(' ').next().unwrap();
                assert!(
                    metric.starts_with("trafficllm_") && seen.insert(metric),
                    "{line}"
                );
                let kind = lines.next().and_then(|kind| kind.strip_prefix("# TYPE "));
                let (name, kind) = kind.unwrap().split_once(' ').unwrap();
                assert_eq!(name, metric);
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", metric.ends_with("_total"), "{line}");
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(metric), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(sample), "{line}");
        }
    }

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let device = device();
        let metrics = Metrics {
            profile: "a\"b\\c\nd",
            ..metrics(&device)
        };
        let text = metrics.to_string();
        assert!(text.contains("profile=\"a\\\"b\\\\c\\nd\""), "{text}");
    }

    #[test]
    fn seconds_are_exact() {
        for (us, text) in [
            (0, "0"),
            (1, "0.000001"),
            (50, "0.00005"),
            (10_000_000, "10"),
            (1_200_000, "1.2"),
        ] {
            assert_eq!(Seconds(us).to_string(), text);
        }
    }
}
