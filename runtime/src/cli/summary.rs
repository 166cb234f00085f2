//! What a detection says at its end: nothing that was lost or left out stays unsaid.

use std::fmt::Write;
use std::time::Duration;

use trafficllm::{CaptureReport, FlowCounters, RequestsReport, SkipCounters, Tally};

/// The reports of all inputs together.
#[derive(Default)]
pub(super) struct Totals {
    captures: u64,
    packets: u64,
    packet_bytes: u64,
    blocks_skipped: u64,
    skipped: SkipCounters,
    flows: FlowCounters,
    request_files: u64,
    lines: u64,
    bad_lines: u64,
    /// Inputs that could not be read to their end.
    pub(super) failures: u64,
}

impl Totals {
    pub(super) fn add_capture(&mut self, report: &CaptureReport) {
        self.captures += 1;
        self.packets += report.packets;
        self.packet_bytes += report.packet_bytes;
        self.blocks_skipped += report.blocks_skipped;
        self.skipped.add(&report.skipped);
        self.flows.add(&report.flows);
        self.failures += u64::from(report.failure.is_some());
    }

    pub(super) fn add_requests(&mut self, report: &RequestsReport) {
        self.request_files += 1;
        self.lines += report.lines;
        self.bad_lines += report.bad_lines;
        self.failures += u64::from(report.failure.is_some());
    }

    pub(super) fn add_unopened(&mut self) {
        self.failures += 1;
    }

    /// Whether something of the inputs could not be used.
    pub(super) fn is_incomplete(&self) -> bool {
        self.failures > 0 || self.bad_lines > 0
    }

    /// The summary, a few lines.
    pub(super) fn describe(&self, tally: &Tally, stopped: bool, elapsed: Duration) -> String {
        let mut text = String::new();
        self.describe_input(&mut text);
        describe_verdicts(tally, &mut text);
        self.describe_losses(&mut text);
        if stopped {
            text.push_str("stopped early: the reader of the output is gone\n");
        } else if tally.flows + tally.requests == 0 {
            text.push_str("no verdicts: nothing that was read holds a flow or a request\n");
        } else if tally.verdicts() == 0 {
            text.push_str("no verdicts: no chosen task applies to what was read\n");
        }
        let outcomes = tally.flows + tally.requests;
        let seconds = elapsed.as_secs_f64();
        let _infallible = write!(
            text,
            "time: {seconds:.3} s, {:.0} flows/s",
            outcomes as f64 / seconds.max(1e-6)
        );
        text
    }

    fn describe_input(&self, text: &mut String) {
        let _infallible = writeln!(
            text,
            "read: {} ({} bytes) of {}, {}",
            count(self.packets, "packet"),
            self.packet_bytes,
            count(self.captures, "capture"),
            count(self.flows.flows, "flow")
        );
        if self.request_files > 0 {
            let files = count(self.request_files, "requests file");
            let _infallible = writeln!(
                text,
                "read: {} of {files}, {} bad",
                count(self.lines, "line"),
                self.bad_lines
            );
        }
        if self.failures > 0 {
            let _infallible = writeln!(
                text,
                "not read to the end: {}",
                count(self.failures, "input")
            );
        }
        if self.skipped.total() > 0 {
            let reasons = list(
                self.skipped
                    .iter()
                    .map(|(reason, number)| (reason.name(), number)),
            );
            let _infallible = writeln!(
                text,
                "skipped: {} ({reasons})",
                count(self.skipped.total(), "packet")
            );
        }
        if self.blocks_skipped > 0 {
            let _infallible = writeln!(
                text,
                "passed over: {} without a packet",
                count(self.blocks_skipped, "block")
            );
        }
    }

    fn describe_losses(&self, text: &mut String) {
        let flows = &self.flows;
        let ended = [
            ("closed", flows.tcp_end),
            ("idle", flows.idle),
            ("cut by the active timeout", flows.active),
            ("ports reused", flows.port_reuse),
            ("evicted to make room", flows.evicted),
            ("open at the end", flows.flushed),
        ];
        if flows.flows > 0 {
            let _infallible = writeln!(text, "flows ended: {}", list(ended));
        }
        let losses = [
            (
                "flows judged early because the table was full",
                flows.evicted,
            ),
            (
                "packets beyond the first of their flow only counted",
                flows.packets_beyond_limit,
            ),
            (
                "payload bytes beyond the first of their packet or flow cut",
                flows.payload_bytes_cut,
            ),
            ("first fragments judged without the rest", flows.fragments),
            ("packets whose time ran backwards", flows.time_backwards),
        ];
        if losses.iter().any(|(_, number)| *number > 0) {
            let _infallible = writeln!(text, "losses: {}", list(losses));
        }
    }
}

fn describe_verdicts(tally: &Tally, text: &mut String) {
    let abstained = tally.abstained();
    let _infallible = writeln!(
        text,
        "verdicts: {}, {abstained} of them abstained",
        tally.verdicts()
    );
    for task in &tally.tasks {
        let _infallible = write!(text, "  {}: {}", task.task, task.verdicts);
        let mut labels: Vec<(&str, u64)> = task
            .labels
            .iter()
            .map(|(label, number)| (label.as_str(), *number))
            .collect();
        labels.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(other.0)));
        let shown = labels.into_iter().chain([("abstained", task.abstained)]);
        let shown = list(shown);
        if !shown.is_empty() {
            let _infallible = write!(text, " ({shown})");
        }
        if task.not_applicable > 0 {
            let _infallible = write!(text, "; does not apply to {}", task.not_applicable);
        }
        text.push('\n');
    }
}

/// `name number` for all that are not zero.
fn list<'a>(entries: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let shown: Vec<String> = entries
        .into_iter()
        .filter(|(_, number)| *number > 0)
        .map(|(name, number)| format!("{} {number}", super::console::printable(name)))
        .collect();
    shown.join(", ")
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
