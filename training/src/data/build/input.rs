//! What lies in the input folder.

use std::path::{Path, PathBuf};

use crate::data::{PreparationError, is_capture, sorted_entries};
use crate::error::{Result, TrainError};

/// Folders inside a label's folder are followed this deep.
const DEPTH_MAX: usize = 32;

/// One capture of a label.
#[derive(Debug)]
pub(super) struct Source {
    /// Index into the labels.
    pub(super) label: usize,
    pub(super) path: PathBuf,
    /// From the input folder.
    pub(super) relative: String,
    /// From the label's folder, without endings; the group's name is made of it.
    pub(super) stem: String,
    pub(super) file_bytes: u64,
}

/// The two kinds of input.
#[derive(Debug)]
pub(super) enum Input {
    Captures {
        labels: Vec<String>,
        sources: Vec<Source>,
    },
    Requests(Vec<PathBuf>),
}

/// Finds captures by label, or files of requests; beside them the files that are neither.
pub(super) fn scan(from: &Path) -> Result<(Input, Vec<PathBuf>)> {
    let mut requests = Vec::new();
    let mut ignored = Vec::new();
    let mut labels = Vec::new();
    let mut sources = Vec::new();
    for entry in sorted_entries(from, "a folder with one folder of captures per label")? {
        if is_hidden(&entry) {
            continue;
        }
        if !entry.is_dir() {
            if is_capture(&entry) {
                let name = file_name(&entry);
                return Err(PreparationError::Unlabelled { path: entry, name }.into());
            }
            sort_out(entry, &mut requests, &mut ignored);
            continue;
        }
        let (mut files, requests_before) = (Vec::new(), requests.len());
        gather(&entry, 0, &mut files)?;
        let (captures, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|path| is_capture(path));
        for other in others {
            sort_out(other, &mut requests, &mut ignored);
        }
        if captures.is_empty() {
            if requests.len() > requests_before {
                continue;
            }
            return Err(TrainError::DataEmpty {
                path: entry,
                expected: "at least one capture (.pcap, .pcapng or .cap, plain or .gz)",
            });
        }
        for path in captures {
            sources.push(source(from, &entry, path, labels.len())?);
        }
        labels.push(file_name(&entry));
    }
    match (sources.first(), requests.first()) {
        (Some(capture), Some(first)) => Err(PreparationError::TwoKinds {
            path: from.into(),
            capture: capture.path.clone(),
            requests: first.clone(),
        }
        .into()),
        (None, None) => Err(TrainError::DataEmpty {
            path: from.into(),
            expected: "one folder of captures per label, or files of requests (.jsonl)",
        }),
        (None, Some(_)) => Ok((Input::Requests(requests), ignored)),
        (Some(_), None) => Ok((Input::Captures { labels, sources }, ignored)),
    }
}

fn source(from: &Path, label_folder: &Path, path: PathBuf, label: usize) -> Result<Source> {
    let file_bytes = std::fs::metadata(&path)
        .map_err(TrainError::io(&path))?
        .len();
    let below = |folder: &Path| {
        let rest = path.strip_prefix(folder).unwrap_or(&path);
        rest.to_string_lossy().into_owned()
    };
    let relative = below(from);
    let mut stem = below(label_folder);
    for ending in [".gz", ".pcapng", ".pcap", ".cap"] {
        let cut = stem.len().saturating_sub(ending.len());
        if stem.is_char_boundary(cut) && stem[cut..].eq_ignore_ascii_case(ending) {
            stem.truncate(cut);
        }
    }
    Ok(Source {
        label,
        path,
        relative,
        stem,
        file_bytes,
    })
}

fn sort_out(path: PathBuf, requests: &mut Vec<PathBuf>, ignored: &mut Vec<PathBuf>) {
    if path
        .extension()
        .is_some_and(|extension| extension == "jsonl")
    {
        requests.push(path);
    } else {
        ignored.push(path);
    }
}

/// All files below a folder, in byte order. Links to folders are not followed: they may lead back.
fn gather(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in sorted_entries(folder, "a folder")? {
        if is_hidden(&entry) {
            continue;
        }
        if !entry.is_dir() {
            files.push(entry);
        } else if !entry.is_symlink() && depth < DEPTH_MAX {
            gather(&entry, depth + 1, files)?;
        } else {
            tracing::warn!("{}: a folder that is not followed", entry.display());
        }
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    file_name(path).starts_with('.')
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The name of a folder, also of one given as `.`.
pub(super) fn folder_name(folder: &Path) -> Result<String> {
    let real = std::fs::canonicalize(folder).map_err(TrainError::io(folder))?;
    Ok(file_name(&real))
}
