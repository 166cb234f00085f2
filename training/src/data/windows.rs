//! Data as a model in the field meets it: what was there when it was made, what came after, and what comes last.
//!
//! For tests of drift. The groups of a label are taken in the order of the times of their first packets, as the captures tell them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trafficllm_traffic::Flow;

use super::augment::check_captures;
use super::build::Tally;
use super::output::{self, MANIFEST, Partial, Row};
use super::{PreparationError, Split, group_name, list_captures};
use crate::captures::{BARE_FLOW_CONFIG, FlowPacket, Visit, walk};
use crate::error::{Result, TrainError};
use crate::progress::Progress;

/// Groups that a label must have: fewer cannot be cut into five parts.
pub const GROUPS_MIN: usize = 8;
/// The two data folders that are made.
const PARTS: [&str; 2] = ["before", "after"];

/// What is asked for.
#[derive(Clone, Debug)]
pub struct WindowOptions {
    /// The data folder; of the task only the training split is read, so that its split for choosing stays unseen.
    pub data: PathBuf,
    /// The task, one of captures.
    pub task: String,
    /// Where `before`, `after` and in each of them the same `test` split go; must not exist.
    pub out: PathBuf,
}

/// How many groups went where.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Windows {
    /// `before`: train and val.
    pub before: [usize; 2],
    /// `after`: train and val.
    pub after: [usize; 2],
    /// The last ones.
    pub test: usize,
    /// Labels with too few groups.
    pub labels_left_out: Vec<String>,
    /// Labels with groups that begin at the same time on both sides of a cut: the names, not time, decided between them.
    pub labels_tied: Vec<String>,
}

/// Cuts a task's training split by time: the first half of each label's groups is `before`, the next quarter `after`, the last one `test`.
///
/// # Errors
/// Where the data is not as it should be, fewer than two labels have enough groups, a capture cannot be read or copied, or a group
/// would come to two splits; then nothing was made.
pub fn cut(options: &WindowOptions) -> Result<Windows> {
    let train = options.data.join(&options.task).join(Split::Train.name());
    check_captures(&options.data, &options.task)?;
    let listed = list_captures(&train)?;
    output::check_outside(&options.out, &train)?;
    let nameless = || TrainError::DataMissing {
        path: options.out.clone(),
        expected: "the name of a folder to write",
    };
    let name = options.out.file_name().ok_or_else(nameless)?;
    let parent = options.out.parent().unwrap_or(Path::new(""));
    let partial = Partial::begin(parent, &name.to_string_lossy())?;
    let mut windows = Windows::default();
    let mut cut = Cut {
        options,
        folder: partial.folder(),
        rows: BTreeMap::new(),
        places: BTreeMap::new(),
    };
    let files = listed.values().map(|captures| captures.len() as u64).sum();
    let mut progress = Progress::new("windows", files, 0);
    let (mut read, mut labels) = (0, 0);
    for (label, captures) in &listed {
        if captures.len() < GROUPS_MIN {
            windows.labels_left_out.push(label.clone());
            read += captures.len() as u64;
            continue;
        }
        let mut groups = Vec::new();
        for capture in captures {
            groups.push(survey(capture)?);
            read += 1;
            progress.advance(read, || label.clone());
        }
        // In byte order of their names where the times are the same.
        groups.sort_by_key(|group| group.start_ns);
        cut.label(label, &groups, &mut windows)?;
        labels += 1;
    }
    if labels < 2 {
        return Err(PreparationError::TooFewLabelsToCut {
            path: train,
            groups: GROUPS_MIN,
            found: labels,
            left_out: windows.labels_left_out.join(", "),
        }
        .into());
    }
    for (part, rows) in &cut.rows {
        output::write_manifest(&cut.folder.join(part).join(MANIFEST), rows)?;
    }
    partial.publish_alone()?;
    Ok(windows)
}

/// A capture, and when it begins.
struct Group {
    path: PathBuf,
    start_ns: u64,
    flows: u64,
    packets: u64,
}

/// Reads what is needed of a capture.
fn survey(capture: &Path) -> Result<Group> {
    struct Survey {
        start_ns: u64,
        tally: Tally,
    }
    impl Visit for Survey {
        fn packet(&mut self, packet: &FlowPacket<'_>) -> Result<()> {
            // The first in time, also where a capture is not sorted.
            self.start_ns = self.start_ns.min(packet.packet.timestamp_ns);
            self.tally.packet(packet)
        }
        fn flow(&mut self, flow: Flow) {
            self.tally.flow(flow);
        }
    }
    let mut survey = Survey {
        start_ns: u64::MAX,
        tally: Tally::default(),
    };
    walk(capture, BARE_FLOW_CONFIG, &mut survey)?;
    if survey.tally.flows == 0 {
        return Err(TrainError::DataEmpty {
            path: capture.into(),
            expected: "a capture with at least one flow",
        });
    }
    Ok(Group {
        path: capture.into(),
        start_ns: survey.start_ns,
        flows: survey.tally.flows,
        packets: survey.tally.packets,
    })
}

/// What is being written.
struct Cut<'a> {
    options: &'a WindowOptions,
    folder: PathBuf,
    /// Of each data folder.
    rows: BTreeMap<&'static str, Vec<Row>>,
    /// Where each group went, by its name.
    places: BTreeMap<String, Vec<Place>>,
}

impl Cut<'_> {
    /// Copies the groups of a label, which are in the order of time.
    fn label(&mut self, label: &str, groups: &[Group], windows: &mut Windows) -> Result<()> {
        let task = &self.options.task;
        let mut last: Option<(u64, Vec<Place>)> = None;
        for (number, group) in groups.iter().enumerate() {
            let places = places(number, groups.len(), windows);
            let tied = last.replace((group.start_ns, places.clone()));
            if tied.is_some_and(|(time, other)| time == group.start_ns && other != places)
                && !windows.labels_tied.iter().any(|tied| tied == label)
            {
                windows.labels_tied.push(label.into());
            }
            self.check_group(group, &places)?;
            for (part, split) in places {
                let name = group.path.file_name().unwrap_or_default();
                let target = self.folder.join(part).join(task).join(split).join(label);
                std::fs::create_dir_all(&target).map_err(TrainError::io(&target))?;
                let target = target.join(name);
                std::fs::copy(&group.path, &target).map_err(TrainError::io(&target))?;
                let source = group.path.strip_prefix(&self.options.data);
                self.rows.entry(part).or_default().push(Row {
                    task: task.clone(),
                    split: split.into(),
                    label: label.into(),
                    file: format!("{task}/{split}/{label}/{}", name.to_string_lossy()),
                    source: format!(
                        "copy of {}",
                        source.unwrap_or(&group.path).to_string_lossy()
                    ),
                    flows: group.flows,
                    packets: group.packets,
                });
            }
        }
        Ok(())
    }

    /// Refuses a group that stands under two labels, or twice, and would come to two splits: no reader would take that.
    fn check_group(&mut self, group: &Group, places: &[Place]) -> Result<()> {
        let name = group_name(&group.path);
        let known = self
            .places
            .entry(name.clone())
            .or_insert_with(|| places.to_vec());
        if known == places {
            return Ok(());
        }
        let other = |(_, split): &&Place| *split != Split::Train.name();
        let split = known.iter().chain(places).find(other);
        Err(TrainError::GroupInTwoSplits {
            task: self.options.task.clone(),
            group: name,
            split: split.map_or("after", |(_, split)| split).to_owned(),
        })
    }
}

/// One of [`PARTS`] and a split.
type Place = (&'static str, &'static str);

/// Where a group goes, counted in the order of time.
fn places(number: usize, groups: usize, windows: &mut Windows) -> Vec<Place> {
    let [before, after] = PARTS;
    let (half, three_quarters) = (groups / 2, groups * 3 / 4);
    let is_last_fifth = |start: usize, end: usize| number + (end - start).div_ceil(5) >= end;
    if number < half {
        let is_val = is_last_fifth(0, half);
        windows.before[usize::from(is_val)] += 1;
        vec![(before, if is_val { "val" } else { "train" })]
    } else if number < three_quarters {
        let is_val = is_last_fifth(half, three_quarters);
        windows.after[usize::from(is_val)] += 1;
        vec![(after, if is_val { "val" } else { "train" })]
    } else {
        windows.test += 1;
        vec![(before, "test"), (after, "test")]
    }
}

#[cfg(test)]
mod tests;
