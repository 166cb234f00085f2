//! From folders of captures, one per label, to a task of the data layout: grouped, split, cut and without repeats.

mod captures;
mod input;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use trafficllm_model::{INSTRUCTION, limits};

pub(crate) use self::captures::Tally;
use self::input::Input;
use super::output::{self, Partial, Row};
use super::repeats::{Repeat, Repeats};
use super::split::{self, GroupSizes, Indivisible, Shares};
use super::{PreparationError, Split};
use crate::error::{Result, TrainError};

/// Most time windows that a capture may be cut into: their files are open at the same time.
pub const WINDOWS_MAX: usize = 500;
/// Most packets that may be kept of a flow.
pub const PACKETS_MAX: usize = 1_000_000;

/// What a leakage group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupUnit {
    /// A capture file.
    File,
    /// A capture file; for labels with fewer files than splits, a time window of one.
    Window,
}

/// What to build, and from what.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Folder with one folder per label, or with `.jsonl` files of requests.
    pub from: PathBuf,
    /// The data folder; the task must not be in it.
    pub out: PathBuf,
    /// The task's name, one that a bundle can take; without one, that of the input folder.
    pub task: Option<String>,
    /// What is never divided between splits.
    pub unit: GroupUnit,
    /// Windows of a capture, each with as many flows, where captures are cut.
    pub windows: usize,
    /// What goes to which split.
    pub shares: Shares,
    /// Seed of the choice of groups.
    pub seed: u64,
    /// Packets kept of a flow.
    pub packets: usize,
    /// Payload bytes kept of a packet.
    pub payload_bytes: usize,
    /// Whether items of `val` and `test` stay whose payload also stands in `train`.
    pub keep_duplicates: bool,
    /// Whether captures that cannot be read are left out; otherwise they are an error.
    pub skip_broken: bool,
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    /// The task.
    pub task: String,
    /// The seed.
    pub seed: u64,
    /// What stands where, by label and split.
    pub counts: Vec<Count>,
    /// Repeats found in `val` and `test`.
    pub repeats: Vec<RepeatCount>,
    /// Labels with nothing left in a split, since all of it was repeated: `<split>: <label>`.
    pub emptied: Vec<String>,
    /// Packets that are part of no flow, by reason.
    pub skipped_packets: BTreeMap<String, u64>,
    /// Flows that could not be told from an earlier one with the same addresses and ports any more when their packets were cut.
    pub joined_flows: u64,
    /// Captures that were left out, and why.
    pub left_out: Vec<LeftOut>,
    /// Files that are neither captures nor requests.
    pub ignored_files: Vec<PathBuf>,
}

/// Items of one label in one split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The label.
    pub label: String,
    /// The split.
    pub split: String,
    /// Leakage groups.
    pub groups: u64,
    /// Flows or requests.
    pub items: u64,
    /// Packets; 0 for requests.
    pub packets: u64,
}

/// Items of one split whose payload also stands in an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepeatCount {
    /// The split.
    pub split: String,
    /// Items before any was dropped.
    pub items: u64,
    /// Of these, repeated under the same label.
    pub same_label: u64,
    /// Of these, repeated under other labels only.
    pub other_label: u64,
    /// Whether they were dropped.
    pub dropped: bool,
}

/// A capture that was left out.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// The capture.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Makes a task from labelled captures or requests. The same input, options and seed give the same bytes.
///
/// # Errors
/// Where something cannot be read or written, a label has too few groups, or nothing would be left; then nothing was made.
pub fn build(options: &BuildOptions) -> Result<BuildReport> {
    check(options)?;
    let (input, ignored_files) = input::scan(&options.from)?;
    let task = match &options.task {
        Some(task) => task.clone(),
        None => input::folder_name(&options.from)?,
    };
    check_name(&task, options)?;
    if let Input::Captures { labels, .. } = &input {
        check_labels(labels, &options.from)?;
    }
    output::check_outside(&options.out, &options.from)?;
    output::check_manifest(&options.out)?;
    let partial = Partial::begin(&options.out, &task)?;
    let mut report = BuildReport {
        task,
        seed: options.seed,
        counts: Vec::new(),
        repeats: Vec::new(),
        emptied: Vec::new(),
        skipped_packets: BTreeMap::new(),
        joined_flows: 0,
        left_out: Vec::new(),
        ignored_files,
    };
    let rows = match input {
        Input::Captures { labels, sources } => {
            captures::build(options, &labels, sources, &partial.folder(), &mut report)?
        }
        Input::Requests(files) => requests::build(options, &files, &partial.folder(), &mut report)?,
    };
    report.emptied = emptied(options, &report.counts);
    partial.publish(&rows)?;
    Ok(report)
}

fn check(options: &BuildOptions) -> Result<()> {
    options.shares.validate()?;
    let ranges = [
        ("windows", options.windows, 2, WINDOWS_MAX, "2 to 500"),
        ("packets", options.packets, 1, PACKETS_MAX, "1 to 1000000"),
        (
            "payload-bytes",
            options.payload_bytes,
            0,
            65_535,
            "0 to 65535",
        ),
    ];
    for (name, value, least, most, expected) in ranges {
        if !(least..=most).contains(&value) {
            let found = value.to_string();
            return Err(PreparationError::OutOfRange {
                name,
                expected,
                found,
            }
            .into());
        }
    }
    if !options.from.is_dir() {
        return Err(TrainError::DataMissing {
            path: options.from.clone(),
            expected: "a folder with one folder of captures per label",
        });
    }
    Ok(())
}

/// Refuses names that no bundle can take: what is built is to be trained on.
fn check_name(task: &str, options: &BuildOptions) -> Result<()> {
    const EXPECTED: &str = "1 to 63 lower-case letters (a-z), digits and '_', and not instruction";
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let fits = (1..=limits::TASK_NAME_BYTES_MAX).contains(&task.len());
    if fits && task.bytes().all(allowed) && task != INSTRUCTION {
        return Ok(());
    }
    let (expected, found) = (EXPECTED, task.to_owned());
    let refused = if options.task.is_some() {
        PreparationError::OutOfRange {
            name: "task",
            expected,
            found,
        }
    } else {
        PreparationError::TaskOfFolder {
            path: options.from.clone(),
            expected,
            found,
        }
    };
    Err(refused.into())
}

/// Refuses labels that no bundle can take.
fn check_labels(labels: &[String], from: &Path) -> Result<()> {
    if labels.len() > limits::LABELS_MAX {
        return Err(PreparationError::TooManyLabels {
            path: from.into(),
            limit: limits::LABELS_MAX,
            found: labels.len(),
        }
        .into());
    }
    for label in labels {
        let found = match label.len() {
            0 => "no byte".to_owned(),
            bytes if bytes > limits::LABEL_BYTES_MAX => format!("{bytes} bytes"),
            _ if label.chars().any(char::is_control) => "a control character".to_owned(),
            _ => continue,
        };
        return Err(PreparationError::Label {
            label: label.clone(),
            expected: "1 to 127 bytes of text without control characters",
            found,
        }
        .into());
    }
    Ok(())
}

/// Divides groups, with errors that tell what to do.
fn divide(
    options: &BuildOptions,
    labels: &[String],
    groups: &[GroupSizes],
    unit: &'static str,
    hint: &'static str,
) -> Result<Vec<Split>> {
    if labels.len() < 2 {
        return Err(PreparationError::TooFewLabels {
            path: options.from.clone(),
            found: labels.len(),
        }
        .into());
    }
    let name = |label: usize| labels.get(label).cloned().unwrap_or_default();
    let divided = split::assign(groups, labels.len(), &options.shares, options.seed);
    divided.map_err(|reason| {
        let refused = match reason {
            Indivisible::TooFew { label, groups } => PreparationError::TooFewGroups {
                label: name(label),
                found: groups,
                unit,
                expected: options.shares.splits().len(),
                hint,
            },
            Indivisible::NothingFor { label, split } => PreparationError::LabelWithoutSplit {
                label: name(label),
                split: split.name(),
            },
        };
        refused.into()
    })
}

/// One item on its way to a split.
struct Candidate {
    label: usize,
    split: Split,
    fingerprint: Option<u64>,
}

/// Which of `items` repeat one of an earlier split (train, val, test in this order), counted in the report.
fn find_repeats(
    items: &[Candidate],
    options: &BuildOptions,
    report: &mut BuildReport,
) -> Result<Vec<bool>> {
    let mut repeated = vec![false; items.len()];
    let mut seen = Repeats::default();
    for split in options.shares.splits() {
        let mut count = RepeatCount {
            split: split.name().into(),
            items: 0,
            same_label: 0,
            other_label: 0,
            dropped: !options.keep_duplicates,
        };
        for (item, repeated) in items.iter().zip(&mut repeated) {
            if item.split != split {
                continue;
            }
            count.items += 1;
            let found = item
                .fingerprint
                .and_then(|fingerprint| seen.find(fingerprint, item.label));
            match found {
                Some(Repeat::SameLabel) => count.same_label += 1,
                Some(Repeat::OtherLabel) => count.other_label += 1,
                None => continue,
            }
            *repeated = true;
        }
        let own = items.iter().filter(|item| item.split == split);
        for (label, fingerprint) in own.filter_map(|item| Some((item.label, item.fingerprint?))) {
            seen.learn(fingerprint, label);
        }
        if split == Split::Train {
            // Nothing stands before it.
            repeated.fill(false);
            continue;
        }
        let dropped = count.same_label + count.other_label;
        if !options.keep_duplicates && dropped == count.items {
            let split = split.name();
            return Err(PreparationError::AllDuplicates { split, dropped }.into());
        }
        report.repeats.push(count);
    }
    if options.keep_duplicates {
        repeated.fill(false);
    }
    Ok(repeated)
}

/// Each label got a part of each split; what is not there any more was dropped.
fn emptied(options: &BuildOptions, counts: &[Count]) -> Vec<String> {
    let labels: BTreeSet<&str> = counts.iter().map(|count| count.label.as_str()).collect();
    let mut missing = Vec::new();
    for split in options.shares.splits() {
        for label in &labels {
            let is_there = |count: &Count| count.label == *label && count.split == split.name();
            if !counts.iter().any(is_there) {
                missing.push(format!("{}: {label}", split.name()));
            }
        }
    }
    missing
}

/// Sums the rows by label and split; `groups` of them are in each row.
fn count(rows: &[Row], groups: impl Fn(&Row) -> u64) -> Vec<Count> {
    let mut sums: BTreeMap<(String, String), Count> = BTreeMap::new();
    for row in rows {
        let key = (row.label.clone(), row.split.clone());
        let sum = sums.entry(key).or_insert_with(|| Count {
            label: row.label.clone(),
            split: row.split.clone(),
            groups: 0,
            items: 0,
            packets: 0,
        });
        sum.groups += groups(row);
        sum.items += row.flows;
        sum.packets += row.packets;
    }
    sums.into_values().collect()
}

impl BuildReport {
    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("task {}, seed {}\n", self.task, self.seed);
        let labels: BTreeSet<&str> = self
            .counts
            .iter()
            .map(|count| count.label.as_str())
            .collect();
        let width = labels
            .iter()
            .map(|label| label.chars().count())
            .max()
            .unwrap_or(0)
            .max(5);
        let splits: Vec<&str> = [Split::Train, Split::Val, Split::Test]
            .map(Split::name)
            .into_iter()
            .filter(|split| self.counts.iter().any(|count| count.split == *split))
            .collect();
        text += &format!("{:width$}", "label");
        for split in &splits {
            text += &format!("  {:>18}", format!("{split} items/groups"));
        }
        text.push('\n');
        for label in &labels {
            text += &format!("{label:width$}");
            for split in &splits {
                let found = self
                    .counts
                    .iter()
                    .find(|count| count.label == **label && count.split == *split);
                let cell = found.map_or("-".into(), |count| {
                    format!("{}/{}", count.items, count.groups)
                });
                text += &format!("  {cell:>18}");
            }
            text.push('\n');
        }
        for repeat in &self.repeats {
            text += &format!(
                "{}: of {} items, {} repeat a payload of an earlier split under the same label and {} under another; {}\n",
                repeat.split,
                repeat.items,
                repeat.same_label,
                repeat.other_label,
                if repeat.dropped { "dropped" } else { "kept" }
            );
        }
        for place in &self.emptied {
            text += &format!("nothing left in {place}: all of it was repeated\n");
        }
        for (reason, packets) in &self.skipped_packets {
            text += &format!("packets of no flow: {packets} ({reason})\n");
        }
        if self.joined_flows > 0 {
            text += &format!(
                "flows joined with an earlier one of the same addresses and ports, since its end was cut away: {}\n",
                self.joined_flows
            );
        }
        for left in &self.left_out {
            text += &format!("left out: {}: {}\n", left.path.display(), left.reason);
        }
        if let Some(first) = self.ignored_files.first() {
            let (count, first) = (self.ignored_files.len(), first.display());
            text +=
                &format!("files that are neither captures nor requests: {count} ({first} ...)\n");
        }
        text
    }
}

#[cfg(test)]
mod tests;
