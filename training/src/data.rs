//! Labelled data sets: `<data>/<task>/<split>/<label>/<group>.pcap`, or `<data>/<task>/<split>.jsonl` for HTTP requests.
//!
//! The file name without `.pcap` is the leakage group. A group that stands in two splits is refused before anything is
//! learnt from it.

pub mod augment;
pub mod build;
mod error;
pub mod inspect;
pub mod output;
pub mod pcap;
pub mod repeats;
pub mod split;
pub mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trafficllm_traffic::Flow;

pub use self::error::PreparationError;

use crate::captures;
use crate::error::{Result, TrainError};
use crate::files;

/// Bytes of a file of requests, 1 GiB: it is read whole.
pub const REQUESTS_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one line of it, 1 MiB: far more than any server takes.
pub const REQUEST_LINE_BYTES_MAX: usize = 1 << 20;

/// What a task gives its verdict on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// Network flows out of captures.
    Flow,
    /// HTTP requests, as text.
    Request,
    /// What somebody asks, as text: names a task.
    Instruction,
}

/// One of the parts that the data is divided into by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Split {
    /// For fitting.
    Train,
    /// For choosing and early stopping.
    Val,
    /// For a last look, where the data has one.
    Test,
}

impl Split {
    /// The split's name in the data layout.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

/// What is classified.
#[derive(Clone, Debug)]
pub enum Content {
    /// A flow.
    Flow(Flow),
    /// The text of an HTTP request.
    Request(String),
    /// What somebody asks.
    Instruction(String),
}

/// One labelled item.
#[derive(Clone, Debug)]
pub struct Item {
    /// Index into [`TaskData::labels`].
    pub label: usize,
    /// Index into [`TaskData::groups`].
    pub group: usize,
    /// What is classified.
    pub content: Content,
}

/// One split of one task.
#[derive(Clone, Debug)]
pub struct TaskData {
    /// The task's folder name.
    pub task: String,
    /// What the task gives its verdict on.
    pub kind: TaskKind,
    /// The labels of the training split in byte order, whatever split this is.
    pub labels: Vec<String>,
    /// The leakage groups of this split in byte order.
    pub groups: Vec<String>,
    /// The items in the order of labels, groups and their place in the file.
    pub items: Vec<Item>,
}

/// The tasks of a data folder: every entry that holds a training split, in byte order.
///
/// # Errors
/// [`TrainError::DataMissing`] where the folder is not there, [`TrainError::DataEmpty`] where it holds no task.
pub fn tasks_of(data: &Path) -> Result<Vec<String>> {
    let mut tasks = Vec::new();
    for entry in sorted_entries(data, "a data folder: one folder per task")? {
        if entry.join("train").is_dir() || entry.join("train.jsonl").is_file() {
            tasks.extend(
                entry
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    if tasks.is_empty() {
        return Err(TrainError::DataEmpty {
            path: data.into(),
            expected: "one folder per task with a train split",
        });
    }
    Ok(tasks)
}

/// Reads one split of one task. The labels are those of the training split; for other splits the groups are held
/// against those of the training split.
///
/// # Errors
/// Where the layout is not as described, a capture cannot be read, a label is unknown to the training split, or a group
/// stands in both.
pub fn load(data: &Path, task: &str, split: Split) -> Result<TaskData> {
    let folder = data.join(task);
    if !folder.is_dir() {
        let found = tasks_of(data)?.join(", ");
        return Err(TrainError::TaskUnknown {
            task: task.into(),
            path: data.into(),
            found,
        });
    }
    if folder.join("train.jsonl").is_file() {
        load_requests(&folder, task, split)
    } else {
        load_flows(&folder, task, split)
    }
}

/// Refuses a data set whose group `group` of one split also stands in another.
fn check_groups(
    task: &str,
    split: Split,
    train: &BTreeSet<String>,
    other: &BTreeSet<String>,
) -> Result<()> {
    match other.intersection(train).next() {
        None => Ok(()),
        Some(group) => Err(TrainError::GroupInTwoSplits {
            task: task.into(),
            group: group.clone(),
            split: split.name().into(),
        }),
    }
}

fn load_flows(folder: &Path, task: &str, split: Split) -> Result<TaskData> {
    let train = list_captures(&folder.join(Split::Train.name()))?;
    let listed = if split == Split::Train {
        train.clone()
    } else {
        list_captures(&folder.join(split.name()))?
    };
    let labels: Vec<String> = train.keys().cloned().collect();
    let groups = group_names(&listed);
    if split != Split::Train {
        check_groups(task, split, &group_names(&train), &groups)?;
    }
    let groups: Vec<String> = groups.into_iter().collect();
    let mut items = Vec::new();
    for (name, captures) in &listed {
        let label = label_index(&labels, name, task, split)?;
        for capture in captures {
            let group = groups
                .binary_search(&group_name(capture))
                .unwrap_or_default();
            let flows = captures::read_flows(capture)?;
            if flows.is_empty() {
                return Err(TrainError::DataEmpty {
                    path: capture.clone(),
                    expected: "a capture with at least one flow",
                });
            }
            items.extend(flows.into_iter().map(|flow| Item {
                label,
                group,
                content: Content::Flow(flow),
            }));
        }
    }
    Ok(TaskData {
        task: task.into(),
        kind: TaskKind::Flow,
        labels,
        groups,
        items,
    })
}

fn label_index(labels: &[String], label: &str, task: &str, split: Split) -> Result<usize> {
    labels
        .binary_search_by(|known| known.as_str().cmp(label))
        .map_err(|_| TrainError::LabelUnknown {
            task: task.into(),
            split: split.name().into(),
            label: label.into(),
            known: labels.len(),
        })
}

/// Whether a file's name ends like that of a capture: `.pcap`, `.pcapng` or `.cap`, plain or with `.gz`.
pub(crate) fn is_capture(path: &Path) -> bool {
    let extension = |path: &Path| {
        let extension = path.extension().unwrap_or_default();
        extension.to_string_lossy().to_lowercase()
    };
    let last = extension(path);
    let kind = if last == "gz" {
        extension(&path.with_extension(""))
    } else {
        last
    };
    ["pcap", "pcapng", "cap"].contains(&kind.as_str())
}

/// The captures of one split by label, both in byte order.
pub(crate) fn list_captures(split: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut listed = BTreeMap::new();
    for folder in sorted_entries(split, "a split: one folder per label")? {
        if !folder.is_dir() {
            continue;
        }
        let captures: Vec<PathBuf> = sorted_entries(&folder, "a label: one capture per group")?
            .into_iter()
            .filter(|path| is_capture(path))
            .collect();
        if captures.is_empty() {
            return Err(TrainError::DataEmpty {
                path: folder,
                expected: "at least one capture (.pcap, .pcapng or .cap, plain or .gz)",
            });
        }
        let label = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        listed.insert(label, captures);
    }
    if listed.is_empty() {
        return Err(TrainError::DataEmpty {
            path: split.into(),
            expected: "one folder per label",
        });
    }
    Ok(listed)
}

/// What stands in a folder, in byte order.
pub(crate) fn sorted_entries(folder: &Path, expected: &'static str) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Err(TrainError::DataMissing {
            path: folder.into(),
            expected,
        });
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(TrainError::io(folder))? {
        entries.push(entry.map_err(TrainError::io(folder))?.path());
    }
    entries.sort();
    Ok(entries)
}

/// The leakage group that a capture is: its name without endings.
pub(crate) fn group_name(capture: &Path) -> String {
    let is_packed = capture
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    let plain = if is_packed {
        capture.with_extension("")
    } else {
        capture.to_path_buf()
    };
    plain
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn group_names(listed: &BTreeMap<String, Vec<PathBuf>>) -> BTreeSet<String> {
    listed
        .values()
        .flatten()
        .map(|capture| group_name(capture))
        .collect()
}

/// One line of a request file.
#[derive(Deserialize, Serialize)]
pub(crate) struct RequestLine {
    pub(crate) label: String,
    pub(crate) group: String,
    pub(crate) request: String,
}

fn load_requests(folder: &Path, task: &str, split: Split) -> Result<TaskData> {
    let train = read_requests(&folder.join("train.jsonl"))?;
    let known: BTreeSet<&str> = train.iter().map(|line| line.label.as_str()).collect();
    let labels: Vec<String> = known.into_iter().map(str::to_owned).collect();
    let train_groups: BTreeSet<String> = train.iter().map(|line| line.group.clone()).collect();
    let lines = if split == Split::Train {
        train
    } else {
        read_requests(&folder.join(format!("{}.jsonl", split.name())))?
    };
    let groups: BTreeSet<String> = lines.iter().map(|line| line.group.clone()).collect();
    if split != Split::Train {
        check_groups(task, split, &train_groups, &groups)?;
    }
    let groups: Vec<String> = groups.into_iter().collect();
    let mut items = Vec::with_capacity(lines.len());
    for line in lines {
        let label = label_index(&labels, &line.label, task, split)?;
        let group = groups.binary_search(&line.group).unwrap_or_default();
        items.push(Item {
            label,
            group,
            content: Content::Request(line.request),
        });
    }
    // The order of the file is kept inside a label, as it is for captures.
    items.sort_by_key(|item| item.label);
    Ok(TaskData {
        task: task.into(),
        kind: TaskKind::Request,
        labels,
        groups,
        items,
    })
}

pub(crate) fn read_requests(path: &Path) -> Result<Vec<RequestLine>> {
    read_requests_within(path, REQUESTS_BYTES_MAX)
}

fn read_requests_within(path: &Path, limit_bytes: u64) -> Result<Vec<RequestLine>> {
    if !path.is_file() {
        return Err(TrainError::DataMissing {
            path: path.into(),
            expected: "one request per line (JSON)",
        });
    }
    let bytes = files::read(path, limit_bytes)?;
    let wrong = |number: usize, reason: String| TrainError::RequestLine {
        path: path.into(),
        line: number + 1,
        reason,
    };
    let mut lines = Vec::new();
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if line.len() > REQUEST_LINE_BYTES_MAX {
            let (limit, found) = (REQUEST_LINE_BYTES_MAX, line.len());
            let reason = format!("expected at most {limit} bytes, found {found}");
            return Err(wrong(number, reason));
        }
        let parsed = serde_json::from_slice(line);
        lines.push(parsed.map_err(|error| wrong(number, error.to_string()))?);
    }
    if lines.is_empty() {
        return Err(TrainError::DataEmpty {
            path: path.into(),
            expected: "at least one request",
        });
    }
    Ok(lines)
}

impl Content {
    /// A hash of what the item carries as payload; nothing where it carries none. Two items with the same hash say the
    /// same thing, so one of them in training and the other in a scored split makes the score a memory test.
    #[must_use]
    pub fn payload_fingerprint(&self) -> Option<u64> {
        let mut hash = Fingerprint::default();
        match self {
            Self::Request(text) | Self::Instruction(text) => hash.update(text.as_bytes()),
            Self::Flow(flow) => {
                for (record, payload) in flow.kept().filter(|(_, payload)| !payload.is_empty()) {
                    hash.update(payload);
                    // A border, so that two packets never hash like one.
                    hash.update(&[0xFF, record.direction as u8, 0xFE]);
                }
            }
        }
        hash.finish()
    }
}

/// FNV-1a over 64 bits: fast, and collisions among some ten thousand items are out of the question.
#[derive(Default)]
pub(crate) struct Fingerprint {
    state: Option<u64>,
}

impl Fingerprint {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let state = self.state.unwrap_or(0xCBF2_9CE4_8422_2325);
            self.state = Some((state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        }
    }

    pub(crate) fn finish(self) -> Option<u64> {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn reads_the_layout_and_keeps_groups_apart() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 3);
        assert_eq!(
            tasks_of(data.path()).expect("tasks"),
            ["colours", "requests"]
        );
        let train = load(data.path(), "colours", Split::Train).expect("train");
        let val = load(data.path(), "colours", Split::Val).expect("val");
        assert_eq!(train.labels, ["blue", "green", "red"]);
        assert_eq!(val.labels, train.labels);
        assert!(val.groups.iter().all(|group| !train.groups.contains(group)));
        assert!(
            train
                .items
                .iter()
                .all(|item| item.group < train.groups.len())
        );
        assert!(train.items.len() > val.items.len());
        let requests = load(data.path(), "requests", Split::Val).expect("requests");
        assert_eq!(requests.kind, TaskKind::Request);
        assert_eq!(requests.labels, ["attack", "normal"]);
    }

    #[test]
    fn a_group_in_two_splits_is_refused() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 3);
        let from = data.path().join("colours/train/red/red-0.pcap");
        std::fs::copy(&from, data.path().join("colours/val/blue/red-0.pcap")).expect("copied");
        let error = load(data.path(), "colours", Split::Val).expect_err("must be refused");
        assert!(
            matches!(&error, TrainError::GroupInTwoSplits { group, .. } if group == "red-0"),
            "{error}"
        );
    }

    #[test]
    fn what_is_missing_or_empty_is_named() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 3);
        let path = data.path();
        assert!(matches!(
            load(&path.join("no"), "colours", Split::Train),
            Err(TrainError::DataMissing { .. })
        ));
        assert!(
            matches!(load(path, "shapes", Split::Train), Err(TrainError::TaskUnknown { found, .. }) if found.contains("colours"))
        );
        assert!(matches!(
            load(path, "colours", Split::Test),
            Err(TrainError::DataMissing { .. })
        ));
        std::fs::create_dir(path.join("colours/train/white")).expect("created");
        assert!(
            matches!(load(path, "colours", Split::Train), Err(TrainError::DataEmpty { path, .. }) if path.ends_with("white"))
        );
        std::fs::write(path.join("colours/train/white/w.pcap"), b"not a capture").expect("written");
        assert!(
            matches!(load(path, "colours", Split::Train), Err(TrainError::Capture { path, .. }) if path.ends_with("w.pcap"))
        );
    }

    #[test]
    fn a_label_that_was_never_trained_is_refused() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 3);
        let path = data.path();
        std::fs::rename(path.join("colours/val/red"), path.join("colours/val/pink"))
            .expect("renamed");
        let error = load(path, "colours", Split::Val).expect_err("must be refused");
        assert!(
            matches!(&error, TrainError::LabelUnknown { label, known: 3, .. } if label == "pink"),
            "{error}"
        );
    }

    #[test]
    fn a_broken_request_line_is_named_by_its_number() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 3);
        let file = data.path().join("requests/train.jsonl");
        let mut text = std::fs::read_to_string(&file).expect("read");
        text.push_str("{\"label\":\"normal\"}\n");
        let count = text.lines().count();
        std::fs::write(&file, text).expect("written");
        let error = load(data.path(), "requests", Split::Train).expect_err("must be refused");
        assert!(
            matches!(&error, TrainError::RequestLine { line, .. } if *line == count),
            "{error}"
        );
    }

    #[test]
    fn a_file_of_requests_may_be_as_long_as_the_limit_and_no_longer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("train.jsonl");
        let line = "{\"label\":\"a\",\"group\":\"g\",\"request\":\"GET /\"}\r\n\n";
        std::fs::write(&path, line).expect("written");
        let length = line.len() as u64;
        let read = read_requests_within(&path, length).expect("at the limit");
        assert_eq!(read.len(), 1);
        let too_large = |limit_bytes| {
            let error = read_requests_within(&path, limit_bytes).err();
            matches!(error, Some(TrainError::FileTooLarge { limit_bytes: found, .. }) if found == limit_bytes)
        };
        assert!(too_large(length - 1));
        // A hole: it takes no space.
        let file = std::fs::File::create(&path).expect("made");
        file.set_len(REQUESTS_BYTES_MAX + 1).expect("long");
        assert!(matches!(
            read_requests(&path),
            Err(TrainError::FileTooLarge { .. })
        ));
    }

    #[test]
    fn a_request_may_be_as_long_as_the_limit_and_no_longer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("train.jsonl");
        let mut line = "{\"label\":\"a\",\"group\":\"g\",\"request\":\"".to_owned();
        line += &"x".repeat(REQUEST_LINE_BYTES_MAX - line.len() - 2);
        line += "\"}";
        assert_eq!(line.len(), REQUEST_LINE_BYTES_MAX);
        std::fs::write(&path, &line).expect("written");
        assert_eq!(read_requests(&path).expect("at the limit").len(), 1);
        std::fs::write(&path, format!("\n{line} \n")).expect("written");
        let error = read_requests(&path).map(drop).expect_err("past the limit");
        let text = error.to_string();
        assert!(
            text.contains("line 2") && text.contains("1048576"),
            "{text}"
        );
    }

    #[test]
    fn equal_payloads_have_equal_fingerprints() {
        let request = |text: &str| Content::Request(text.into()).payload_fingerprint();
        assert_eq!(request("GET /"), request("GET /"));
        assert_ne!(request("GET /"), request("GET /a"));
        assert_eq!(request(""), None);
    }
}
