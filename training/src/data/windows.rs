//! Data as a model in the field meets it: what was there when it was made, what came after, and what comes last.
//!
//! For tests of drift. The groups of a label are taken in the order of the numbers in their names, which count time windows or files in
//! the order of their recording, where the data is made so.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use crate::error::{Result, TrainError};

/// Groups that a label must have: fewer cannot be cut into five parts.
pub const GROUPS_MIN: usize = 8;

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
}

/// Cuts a task's training split by time: the first half of each label's groups is `before`, the next quarter `after`, the last one `test`.
///
/// # Errors
/// Where the data is not as it should be, no label has enough groups, or a file cannot be copied.
pub fn cut(options: &WindowOptions) -> Result<Windows> {
    let train = options.data.join(&options.task).join("train");
    if options.out.exists() {
        return Err(TrainError::io(&options.out)(
            std::io::ErrorKind::AlreadyExists.into(),
        ));
    }
    let mut windows = Windows::default();
    for folder in entries(&train, "one folder per label")? {
        let label = name_of(&folder);
        let mut groups = entries(&folder, "captures")?;
        groups.sort_by(|one, other| in_order(&name_of(one), &name_of(other)));
        if groups.len() < GROUPS_MIN {
            windows.labels_left_out.push(label);
            continue;
        }
        for (number, group) in groups.iter().enumerate() {
            for (part, split) in places(number, groups.len(), &mut windows) {
                let target = options
                    .out
                    .join(part)
                    .join(&options.task)
                    .join(split)
                    .join(&label);
                std::fs::create_dir_all(&target).map_err(TrainError::io(&target))?;
                let target = target.join(name_of(group));
                std::fs::copy(group, &target).map_err(TrainError::io(&target))?;
            }
        }
    }
    if windows.test == 0 {
        return Err(TrainError::DataEmpty {
            path: train,
            expected: "labels with at least eight groups",
        });
    }
    Ok(windows)
}

/// Where a group goes, counted in the order of time.
fn places(
    number: usize,
    groups: usize,
    windows: &mut Windows,
) -> Vec<(&'static str, &'static str)> {
    let (half, three_quarters) = (groups / 2, groups * 3 / 4);
    let is_last_fifth = |start: usize, end: usize| number + (end - start).div_ceil(5) >= end;
    if number < half {
        let is_val = is_last_fifth(0, half);
        windows.before[usize::from(is_val)] += 1;
        vec![("before", if is_val { "val" } else { "train" })]
    } else if number < three_quarters {
        let is_val = is_last_fifth(half, three_quarters);
        windows.after[usize::from(is_val)] += 1;
        vec![("after", if is_val { "val" } else { "train" })]
    } else {
        windows.test += 1;
        vec![("before", "test"), ("after", "test")]
    }
}

/// Names compared part by part, runs of digits as numbers.
fn in_order(one: &str, other: &str) -> Ordering {
    let (one, other) = (parts(one), parts(other));
    one.cmp(&other)
}

/// Text and number, again and again.
fn parts(name: &str) -> Vec<(String, u64)> {
    let mut parts: Vec<(String, u64)> = vec![(String::new(), 0)];
    let mut was_digit = false;
    for letter in name.chars() {
        let digit = letter.to_digit(10);
        if digit.is_none() && was_digit {
            parts.push((String::new(), 0));
        }
        if let Some((text, number)) = parts.last_mut() {
            match digit {
                Some(digit) => *number = number.saturating_mul(10).saturating_add(digit.into()),
                None => text.push(letter),
            }
        }
        was_digit = digit.is_some();
    }
    parts
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn entries(folder: &Path, expected: &'static str) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Err(TrainError::DataMissing {
            path: folder.into(),
            expected,
        });
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(TrainError::io(folder))? {
        found.push(entry.map_err(TrainError::io(folder))?.path());
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(data: &Path, name: &str, groups: usize) {
        let folder = data.join("task/train").join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for group in 0..groups {
            std::fs::write(folder.join(format!("{name}_{group}.pcap")), [group as u8])
                .expect("a file");
        }
    }

    fn groups(folder: &Path) -> Vec<u8> {
        let mut groups: Vec<u8> = entries(folder, "files")
            .expect("a folder")
            .iter()
            .map(|path| std::fs::read(path).expect("bytes")[0])
            .collect();
        groups.sort_unstable();
        groups
    }

    #[test]
    fn later_groups_come_later_and_no_group_is_in_two_parts() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        label(&data, "many", 20);
        label(&data, "least", GROUPS_MIN);
        label(&data, "few", GROUPS_MIN - 1);
        let options = WindowOptions {
            data,
            task: "task".into(),
            out: folder.path().join("out"),
        };
        let windows = cut(&options).expect("cut");
        assert_eq!(windows.labels_left_out, ["few"]);
        let of = |part: &str, label: &str| groups(&options.out.join(part).join(label));
        assert_eq!(of("before/task/train", "many"), (0..8).collect::<Vec<u8>>());
        assert_eq!(of("before/task/val", "many"), [8, 9]);
        assert_eq!(of("after/task/train", "many"), [10, 11, 12, 13]);
        assert_eq!(of("after/task/val", "many"), [14]);
        assert_eq!(of("before/task/test", "many"), [15, 16, 17, 18, 19]);
        assert_eq!(of("after/task/test", "many"), [15, 16, 17, 18, 19]);
        assert_eq!(of("before/task/train", "least"), [0, 1, 2]);
        assert_eq!(of("after/task/val", "least"), [5]);
        assert_eq!(
            (windows.before, windows.after, windows.test),
            ([11, 3], [5, 2], 7)
        );
        assert!(cut(&options).is_err(), "what is there is not written over");
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert_eq!(in_order("a_9.pcap", "a_10.pcap"), Ordering::Less);
        assert_eq!(in_order("a-2-x", "a-2-y"), Ordering::Less);
        assert_eq!(in_order("b1", "a2"), Ordering::Greater);
        assert_eq!(in_order("a", "a1"), Ordering::Less);
    }

    #[test]
    fn a_task_without_windows_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        label(folder.path(), "few", 2);
        let mut options = WindowOptions {
            data: folder.path().into(),
            task: "task".into(),
            out: folder.path().join("out"),
        };
        assert!(matches!(cut(&options), Err(TrainError::DataEmpty { .. })));
        options.task = "other".into();
        assert!(matches!(cut(&options), Err(TrainError::DataMissing { .. })));
    }
}
