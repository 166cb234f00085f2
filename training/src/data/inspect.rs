//! A look at a data set before anything is learnt from it: what is there, what stands twice, and how far one would get without
//! looking at the traffic at all.

mod read;
mod shortcuts;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::shortcuts::{SHORTCUT_SKILL, Shortcut, Verdict, WEAK_SKILL};
use super::repeats::{Repeat, Repeats};
use super::{Split, TaskKind, tasks_of};
use crate::error::{Result, TrainError};

/// What was found in a data folder.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The data folder.
    pub data: PathBuf,
    /// Its tasks.
    pub tasks: Vec<TaskInspection>,
}

/// What was found in a task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskInspection {
    /// The task's folder name.
    pub task: String,
    /// `flows` or `requests`.
    pub kind: &'static str,
    /// What stands in each split.
    pub splits: Vec<SplitInspection>,
    /// How far look-up tables get that are made from `train` and scored on `val` (on `test` where there is no `val`).
    pub shortcuts: Vec<Shortcut>,
    /// The split that the look-up tables were scored on.
    pub shortcuts_scored_on: Option<String>,
    /// What is wrong, or worth knowing.
    pub findings: Vec<Finding>,
}

/// What stands in a split.
#[derive(Clone, Debug, Serialize)]
pub struct SplitInspection {
    /// The split.
    pub split: String,
    /// Leakage groups.
    pub groups: u64,
    /// Flows or requests.
    pub items: u64,
    /// Packets; 0 for requests.
    pub packets: u64,
    /// Packets that are part of no flow.
    pub skipped_packets: u64,
    /// Items whose kept packets carry no payload: they have no fingerprint.
    pub without_payload: u64,
    /// Different payload fingerprints.
    pub distinct_payloads: u64,
    /// Items of the largest label over those of the smallest.
    pub imbalance: f64,
    /// Entropy of the labels over that of as many equal ones, in `0..=1`; 1 is balanced.
    pub balance: f64,
    /// Items whose payload also stands in `train`; none for `train` itself.
    pub repeats: Option<RepeatShare>,
    /// Per label, in byte order.
    pub labels: Vec<LabelInspection>,
}

/// Items of one label in one split.
#[derive(Clone, Debug, Serialize)]
pub struct LabelInspection {
    /// The label.
    pub label: String,
    /// Leakage groups.
    pub groups: u64,
    /// Flows or requests.
    pub items: u64,
    /// Packets; 0 for requests.
    pub packets: u64,
    /// Items whose kept packets carry no payload.
    pub without_payload: u64,
    /// Items by group.
    pub by_group: BTreeMap<String, u64>,
}

/// Items whose payload also stands in `train`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RepeatShare {
    /// Items that carry payload.
    pub with_payload: u64,
    /// Of these, in `train` under the same label.
    pub same_label: u64,
    /// Of these, in `train` under other labels only.
    pub other_label: u64,
    /// All of these over all items of the split.
    pub share: f64,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Scores from this data are wrong.
    Error,
    /// Scores from this data need a word beside them.
    Warning,
}

/// What is wrong, or worth knowing.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is.
    pub text: String,
}

impl Inspection {
    /// Findings that make scores wrong.
    #[must_use]
    pub fn errors(&self) -> usize {
        let findings = self.tasks.iter().flat_map(|task| &task.findings);
        findings
            .filter(|finding| finding.level == Level::Error)
            .count()
    }
}

/// One item, with what the audit looks at.
#[derive(Clone, Debug)]
struct Item {
    label: usize,
    fingerprint: Option<u64>,
    /// In the order of [`Facts::features`].
    features: Vec<String>,
}

/// All of one split.
#[derive(Clone, Debug)]
struct Facts {
    split: Split,
    kind: TaskKind,
    features: &'static [&'static str],
    items: Vec<Item>,
    /// By label and group.
    counts: BTreeMap<(usize, String), Tally>,
    skipped_packets: u64,
    /// Files that could not be used, and why.
    broken: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    items: u64,
    packets: u64,
    without_payload: u64,
}

/// Inspects tasks of a data folder; all of them where none is named. With `merge_at` labels are cut before the first such character
/// and those that become the same are one: shortcuts often tell families of labels apart (`vpn-chat` from `nonvpn-chat`) and hide
/// behind many labels.
///
/// # Errors
/// Where the folder or a task is not there, or a split cannot be listed. Captures that cannot be read are findings.
pub fn inspect(data: &Path, tasks: &[String], merge_at: Option<char>) -> Result<Inspection> {
    let present = tasks_of(data)?;
    let chosen = if tasks.is_empty() { &present } else { tasks };
    for task in chosen {
        if !present.contains(task) {
            return Err(TrainError::TaskUnknown {
                task: task.clone(),
                path: data.into(),
                found: present.join(", "),
            });
        }
    }
    let inspected: Result<Vec<TaskInspection>> = chosen
        .iter()
        .map(|task| inspect_task(data, task, merge_at))
        .collect();
    Ok(Inspection {
        data: data.into(),
        tasks: inspected?,
    })
}

fn inspect_task(data: &Path, task: &str, merge_at: Option<char>) -> Result<TaskInspection> {
    let (labels, facts) = read::read(data, task, merge_at)?;
    let mut findings = Vec::new();
    check_layout(&labels, &facts, &mut findings);
    let mut seen = Repeats::default();
    let mut splits = Vec::new();
    for split in &facts {
        let repeats = (split.split != Split::Train).then(|| count_repeats(split, &seen));
        splits.push(describe(split, &labels, repeats));
        if split.split == Split::Train {
            for item in &split.items {
                if let Some(fingerprint) = item.fingerprint {
                    seen.learn(fingerprint, item.label);
                }
            }
        }
    }
    warn_of_repeats(&splits, &mut findings);
    let train = facts.iter().find(|split| split.split == Split::Train);
    let scored = [Split::Val, Split::Test]
        .into_iter()
        .find_map(|wanted| facts.iter().find(|split| split.split == wanted));
    let audited = match (train, scored) {
        (Some(train), Some(scored)) => shortcuts::audit(&labels, train, scored),
        _ => Vec::new(),
    };
    for shortcut in audited
        .iter()
        .filter(|found| found.verdict == Verdict::Shortcut)
    {
        findings.push(Finding {
            level: Level::Warning,
            text: format!(
                "{} alone tells the labels: accuracy {:.3}, macro-F1 {:.3}; hide it from the model, and say so beside a score",
                shortcut.feature, shortcut.accuracy, shortcut.macro_f1
            ),
        });
    }
    let kind = match facts.first().map(|split| split.kind) {
        Some(TaskKind::Request) => "requests",
        _ => "flows",
    };
    Ok(TaskInspection {
        task: task.into(),
        kind,
        splits,
        shortcuts: audited,
        shortcuts_scored_on: scored.map(|split| split.split.name().into()),
        findings,
    })
}

/// Groups in two splits, labels without training data, files that cannot be used.
fn check_layout(labels: &[String], facts: &[Facts], findings: &mut Vec<Finding>) {
    let mut error = |text| {
        let level = Level::Error;
        findings.push(Finding { level, text });
    };
    let mut places: BTreeMap<&str, BTreeSet<&'static str>> = BTreeMap::new();
    let mut trained = BTreeSet::new();
    for split in facts {
        for (label, group) in split.counts.keys() {
            places.entry(group).or_default().insert(split.split.name());
            if split.split == Split::Train {
                trained.insert(*label);
            }
        }
        for broken in &split.broken {
            error(broken.clone());
        }
    }
    for (group, splits) in places.iter().filter(|(_, splits)| splits.len() > 1) {
        let splits: Vec<&str> = splits.iter().copied().collect();
        error(format!("group {group} stands in {}", splits.join(" and ")));
    }
    for split in facts {
        let held: BTreeSet<usize> = split.counts.keys().map(|(label, _)| *label).collect();
        for label in held.difference(&trained) {
            let (label, split) = (&labels[*label], split.split.name());
            error(format!("label {label} stands in {split} and not in train"));
        }
    }
    if facts.len() < 2 {
        error("only one split: nothing can be scored".into());
    }
}

fn warn_of_repeats(splits: &[SplitInspection], findings: &mut Vec<Finding>) {
    for split in splits {
        let Some(repeats) = split.repeats.filter(|found| found.share > 0.0) else {
            continue;
        };
        findings.push(Finding {
            level: Level::Warning,
            text: format!(
                "{}: {:.1} % of the items have a payload that also stands in train; score with and without them",
                split.split,
                100.0 * repeats.share
            ),
        });
    }
}

fn count_repeats(split: &Facts, seen: &Repeats) -> RepeatShare {
    let (mut with_payload, mut same_label, mut other_label) = (0, 0, 0);
    for item in &split.items {
        let Some(fingerprint) = item.fingerprint else {
            continue;
        };
        with_payload += 1;
        match seen.find(fingerprint, item.label) {
            Some(Repeat::SameLabel) => same_label += 1,
            Some(Repeat::OtherLabel) => other_label += 1,
            None => {}
        }
    }
    RepeatShare {
        with_payload,
        same_label,
        other_label,
        share: (same_label + other_label) as f64 / split.items.len().max(1) as f64,
    }
}

fn describe(facts: &Facts, labels: &[String], repeats: Option<RepeatShare>) -> SplitInspection {
    let mut by_label: BTreeMap<usize, LabelInspection> = BTreeMap::new();
    let mut groups = BTreeSet::new();
    for ((label, group), tally) in &facts.counts {
        groups.insert(group);
        let entry = by_label.entry(*label).or_insert_with(|| LabelInspection {
            label: labels[*label].clone(),
            groups: 0,
            items: 0,
            packets: 0,
            without_payload: 0,
            by_group: BTreeMap::new(),
        });
        entry.groups += 1;
        entry.items += tally.items;
        entry.packets += tally.packets;
        entry.without_payload += tally.without_payload;
        entry.by_group.insert(group.clone(), tally.items);
    }
    let labels: Vec<LabelInspection> = by_label.into_values().collect();
    let sum = |value: fn(&LabelInspection) -> u64| labels.iter().map(value).sum();
    let items: u64 = sum(|label| label.items);
    let most = labels.iter().map(|label| label.items).max().unwrap_or(0);
    let least = labels.iter().map(|label| label.items).min().unwrap_or(0);
    let entropy: f64 = labels
        .iter()
        .map(|label| label.items as f64 / items.max(1) as f64)
        .filter(|share| *share > 0.0)
        .map(|share| -share * share.ln())
        .sum();
    let fingerprints: BTreeSet<u64> = facts
        .items
        .iter()
        .filter_map(|item| item.fingerprint)
        .collect();
    SplitInspection {
        split: facts.split.name().into(),
        groups: groups.len() as u64,
        items,
        packets: sum(|label| label.packets),
        skipped_packets: facts.skipped_packets,
        without_payload: sum(|label| label.without_payload),
        distinct_payloads: fingerprints.len() as u64,
        imbalance: most as f64 / least.max(1) as f64,
        balance: if labels.len() > 1 {
            entropy / (labels.len() as f64).ln()
        } else {
            1.0
        },
        repeats,
        labels,
    }
}

#[cfg(test)]
mod tests;
