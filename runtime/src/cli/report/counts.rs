//! What is kept of the verdicts: counts whose size does not grow with the number of flows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

/// Addresses that are counted one by one.
pub(super) const ADDRESSES_MAX: usize = 1 << 16;
/// Pairs of task and label that are counted one by one.
pub(super) const LABELS_MAX: usize = 4_096;
/// Captures, models and profiles that are counted by name, of each.
pub(super) const NAMES_MAX: usize = 1_024;
/// Longest name of a task, label, capture, model or profile that is kept: as long as the longest path of a file.
pub(super) const NAME_BYTES_MAX: usize = 4_096;
/// Pairs of address and label that are counted one by one.
pub(super) const ADDRESS_LABELS_MAX: usize = 1 << 18;
/// Intervals of the timeline; where the flows reach over more, the intervals become twice as long.
pub(super) const INTERVALS_MAX: u64 = 512;
/// Bins of the histogram of scores.
pub(super) const SCORE_BINS: usize = 20;
/// Latest start of a flow that is believed, in seconds since 1970: the year 5138.
const START_S_MAX: f64 = 1e11;

/// One line of `detect --format json`. Keys that a later version adds are passed over.
#[derive(Deserialize)]
struct Line {
    capture: Option<String>,
    flow: Option<u64>,
    request: Option<u64>,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    start: Option<f64>,
    packets: Option<u64>,
    bytes: Option<u64>,
    profile: String,
    model: String,
    verdicts: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    task: String,
    label: String,
    score: f64,
    abstained: bool,
}

/// A flow's own values.
struct Flow {
    ends: (IpAddr, IpAddr),
    start_s: f64,
    packets: u64,
    bytes: u64,
}

/// The verdicts with one label of one task.
#[derive(Clone, Debug, Default)]
pub(super) struct LabelCounts {
    /// Its place among the labels of all tasks, in the order in which they came.
    pub(super) number: usize,
    pub(super) answered: u64,
    pub(super) abstained: u64,
    pub(super) score_sum: f64,
}

/// The verdicts of one task.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskCounts {
    pub(super) labels: BTreeMap<String, LabelCounts>,
    /// Answered and abstained verdicts by score.
    pub(super) scores: [(u64, u64); SCORE_BINS],
}

/// The flows of one address.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressCounts {
    pub(super) started: u64,
    pub(super) taken: u64,
    pub(super) bytes: u64,
    /// Answered labels of the flows that it started, by [`LabelCounts::number`].
    pub(super) labels: BTreeMap<usize, u64>,
}

/// Flows by the time of their first packet.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    /// Length of an interval in seconds.
    pub(super) interval_s: u64,
    /// Flows, and those of them with a verdict that was abstained, by interval since 1970.
    pub(super) intervals: BTreeMap<u64, (u64, u64)>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            interval_s: 1,
            intervals: BTreeMap::new(),
        }
    }
}

/// What did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    /// Ends of flows whose address was one too many.
    pub(super) addresses: u64,
    /// Verdicts whose label was one too many.
    pub(super) verdicts: u64,
    /// Lines whose capture, model or profile was one too many.
    pub(super) names: u64,
    /// Names of captures, models and profiles, and verdicts by their task or label, that were longer than [`NAME_BYTES_MAX`].
    pub(super) long_names: u64,
    /// Answers that are not told of their address, as its label was one pair too many.
    pub(super) address_labels: u64,
}

/// Everything that the page shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) flows: u64,
    pub(super) requests: u64,
    /// Flows and requests without any verdict.
    pub(super) unasked: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) captures: BTreeMap<String, u64>,
    pub(super) models: BTreeMap<String, u64>,
    pub(super) profiles: BTreeMap<String, u64>,
    pub(super) tasks: BTreeMap<String, TaskCounts>,
    pub(super) addresses: BTreeMap<IpAddr, AddressCounts>,
    pub(super) timeline: Timeline,
    pub(super) losses: Losses,
    /// Pairs of task and label in `tasks`.
    labels: usize,
    /// Pairs of address and label in `addresses`.
    address_labels: usize,
}

impl Counts {
    /// Counts one line, or says what is wrong with it; a bad line changes nothing.
    pub(super) fn add(&mut self, line: &[u8]) -> Result<(), String> {
        let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        for verdict in &line.verdicts {
            if !(0.0..=1.0).contains(&verdict.score) {
                return Err(format!("score: expected 0 to 1, found {}", verdict.score));
            }
        }
        let flow = line.subject()?;
        if line.verdicts.is_empty() {
            self.unasked += 1;
        }
        let names = [
            (&mut self.captures, line.capture.as_ref()),
            (&mut self.models, Some(&line.model)),
            (&mut self.profiles, Some(&line.profile)),
        ];
        for (counts, name) in names {
            match name {
                Some(name) if name.len() > NAME_BYTES_MAX => self.losses.long_names += 1,
                Some(name) => self.losses.names += u64::from(!count_name(counts, name)),
                None => {}
            }
        }
        let mut answers = Vec::new();
        for verdict in &line.verdicts {
            let counted = self.count_verdict(verdict);
            answers.extend(counted.filter(|_| !verdict.abstained));
        }
        match flow {
            None => self.requests += 1,
            Some(flow) => {
                let doubtful = line.verdicts.iter().any(|verdict| verdict.abstained);
                self.count_flow(&flow, &answers, doubtful);
            }
        }
        Ok(())
    }

    /// Counts a verdict; the number of its label, or nothing where there was no room for it.
    fn count_verdict(&mut self, verdict: &Verdict) -> Option<usize> {
        if verdict.task.len().max(verdict.label.len()) > NAME_BYTES_MAX {
            self.losses.long_names += 1;
            return None;
        }
        let known = self.tasks.get(&verdict.task);
        let is_new = !known.is_some_and(|task| task.labels.contains_key(&verdict.label));
        if is_new && self.labels >= LABELS_MAX {
            self.losses.verdicts += 1;
            return None;
        }
        let task = self.tasks.entry(verdict.task.clone()).or_default();
        let label = task.labels.entry(verdict.label.clone()).or_default();
        if is_new {
            label.number = self.labels;
            self.labels += 1;
        }
        label.score_sum += verdict.score;
        let bin = ((verdict.score * SCORE_BINS as f64) as usize).min(SCORE_BINS - 1);
        if verdict.abstained {
            label.abstained += 1;
            task.scores[bin].1 += 1;
        } else {
            label.answered += 1;
            task.scores[bin].0 += 1;
        }
        Some(label.number)
    }

    /// Counts a flow, whose answers have these numbers.
    fn count_flow(&mut self, flow: &Flow, answers: &[usize], doubtful: bool) {
        self.flows += 1;
        self.packets = self.packets.saturating_add(flow.packets);
        self.bytes = self.bytes.saturating_add(flow.bytes);
        if let Some(address) = self.address(flow.ends.0) {
            address.started += 1;
            address.bytes = address.bytes.saturating_add(flow.bytes);
            for label in answers {
                self.count_answer(flow.ends.0, *label);
            }
        }
        if flow.ends.0 != flow.ends.1
            && let Some(address) = self.address(flow.ends.1)
        {
            address.taken += 1;
            address.bytes = address.bytes.saturating_add(flow.bytes);
        }
        self.timeline.add(flow.start_s as u64, doubtful);
    }

    /// Counts an answer for an address that is counted itself.
    fn count_answer(&mut self, address: IpAddr, label: usize) {
        let Some(address) = self.addresses.get_mut(&address) else {
            return;
        };
        if let Some(count) = address.labels.get_mut(&label) {
            *count += 1;
        } else if self.address_labels < ADDRESS_LABELS_MAX {
            address.labels.insert(label, 1);
            self.address_labels += 1;
        } else {
            self.losses.address_labels += 1;
        }
    }

    fn address(&mut self, address: IpAddr) -> Option<&mut AddressCounts> {
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            self.losses.addresses += 1;
            return None;
        }
        Some(self.addresses.entry(address).or_default())
    }
}

impl Line {
    /// The flow that the line is of; nothing for a request.
    fn subject(&self) -> Result<Option<Flow>, String> {
        let missing = |key: &str| format!("{key}: expected in the line of a flow, found none");
        match (self.flow, self.request) {
            (None, Some(_)) => return Ok(None),
            (Some(_), None) => {}
            _ => return Err("expected either the key flow or the key request".to_owned()),
        }
        let start_s = self.start.ok_or_else(|| missing("start"))?;
        if !(0.0..=START_S_MAX).contains(&start_s) {
            return Err(format!(
                "start: expected seconds from 0 to {START_S_MAX}, found {start_s}"
            ));
        }
        Ok(Some(Flow {
            ends: (
                self.src.ok_or_else(|| missing("src"))?,
                self.dst.ok_or_else(|| missing("dst"))?,
            ),
            start_s,
            packets: self.packets.ok_or_else(|| missing("packets"))?,
            bytes: self.bytes.ok_or_else(|| missing("bytes"))?,
        }))
    }
}

impl Timeline {
    fn add(&mut self, second: u64, doubtful: bool) {
        let interval = self.intervals.entry(second / self.interval_s).or_default();
        interval.0 += 1;
        interval.1 += u64::from(doubtful);
        while self.reach() > INTERVALS_MAX {
            self.interval_s *= 2;
            let short = std::mem::take(&mut self.intervals);
            for (place, (flows, doubtful)) in short {
                let long = self.intervals.entry(place / 2).or_default();
                long.0 += flows;
                long.1 += doubtful;
            }
        }
    }

    /// Intervals from the first to the last one, both counted.
    pub(super) fn reach(&self) -> u64 {
        let first = self.intervals.first_key_value();
        let last = self.intervals.last_key_value();
        first
            .zip(last)
            .map_or(0, |((first, _), (last, _))| last - first + 1)
    }
}

/// Counts a name; whether there was room for it.
fn count_name(counts: &mut BTreeMap<String, u64>, name: &str) -> bool {
    if let Some(count) = counts.get_mut(name) {
        *count += 1;
        return true;
    }
    let fits = counts.len() < NAMES_MAX;
    if fits {
        counts.insert(name.to_owned(), 1);
    }
    fits
}
