//! Writing data sets: what is made appears whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::PreparationError;
use crate::error::{Result, TrainError};
use crate::files;

/// The file that lists the captures of a data folder.
pub const MANIFEST: &str = "MANIFEST.csv";
/// Bytes of a manifest, 256 MiB: some million captures.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// One line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The task's folder name.
    pub task: String,
    /// The split.
    pub split: String,
    /// The label.
    pub label: String,
    /// The file, from the data folder.
    pub file: String,
    /// What it was made of.
    pub source: String,
    /// Flows, as they are read again from the file; requests where the file holds these.
    pub flows: u64,
    /// Packets; 0 for requests.
    pub packets: u64,
}

/// How the names of folders begin that are being made.
const PARTIAL: &str = ".partial-";

/// A folder that is made beside its place, moved there when it is whole, and gone where it never is.
#[derive(Debug)]
pub(super) struct Partial {
    root: TempDir,
    out: PathBuf,
    place: PathBuf,
    /// Folders on the way that were not there before, the innermost first.
    made: Vec<PathBuf>,
    /// Held for as long as the folder is being made: other runs leave it alone.
    _lock: Option<File>,
}

impl Partial {
    /// Begins `<out>/<inner>`, which must not be there yet. Its name until it is whole is this run's own.
    pub(super) fn begin(out: &Path, inner: &str) -> Result<Self> {
        // In the working directory there is no parent to name.
        let out = if out.as_os_str().is_empty() {
            Path::new(".")
        } else {
            out
        };
        let place = out.join(inner);
        if place.exists() {
            return Err(PreparationError::OutputExists { path: place }.into());
        }
        let made = missing(&place);
        let prefix = format!("{PARTIAL}{}-", inner.replace(['/', '\\'], "-"));
        let begun = fs::create_dir_all(out).and_then(|()| {
            let locked = lock(out);
            sweep(out);
            let root = tempfile::Builder::new().prefix(&prefix).tempdir_in(out)?;
            // Locked before another run may look for what was left.
            let own_lock = lock(root.path());
            drop(locked);
            Ok((root, own_lock))
        });
        let (root, own_lock) = match begun {
            Ok(begun) => begun,
            Err(source) => {
                remove_empty(&made);
                return Err(TrainError::io(out)(source));
            }
        };
        let partial = Self {
            root,
            out: out.to_path_buf(),
            place,
            made,
            _lock: own_lock,
        };
        let folder = partial.folder();
        fs::create_dir(&folder).map_err(TrainError::io(&folder))?;
        Ok(partial)
    }

    /// Where to write for now.
    pub(super) fn folder(&self) -> PathBuf {
        self.root.path().join("whole")
    }

    /// Moves the folder to its place and lists it in the manifest; neither is done where one of them cannot be.
    pub(super) fn publish(self, rows: &[Row]) -> Result<()> {
        let _locked = lock(&self.out);
        let path = self.out.join(MANIFEST);
        // All that takes space or reads what others wrote comes before anything is moved.
        let beside = self.root.path().join(MANIFEST);
        write_manifest(&beside, &merged(&path, rows)?)?;
        self.move_in()?;
        if let Err(source) = fs::rename(&beside, &path) {
            // It was moved the other way a moment ago.
            let _back = fs::rename(&self.place, self.folder());
            return Err(TrainError::io(&path)(source));
        }
        self.keep();
        Ok(())
    }

    /// Moves the folder, which has manifests of its own, to its place.
    pub(super) fn publish_alone(self) -> Result<()> {
        let _locked = lock(&self.out);
        self.move_in()?;
        self.keep();
        Ok(())
    }

    fn move_in(&self) -> Result<()> {
        // Another run may have been faster, and an empty folder would be written over.
        if self.place.exists() {
            let path = self.place.clone();
            return Err(PreparationError::OutputExists { path }.into());
        }
        if let Some(parent) = self.place.parent() {
            fs::create_dir_all(parent).map_err(TrainError::io(parent))?;
        }
        fs::rename(self.folder(), &self.place).map_err(TrainError::io(&self.place))
    }

    fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing can be done about a folder that does not go; the next run removes it.
        let _removed = fs::remove_dir_all(self.root.path());
        remove_empty(&self.made);
    }
}

/// The folders above `place` that are not there, the innermost first.
fn missing(place: &Path) -> Vec<PathBuf> {
    let above = place.ancestors().skip(1);
    above
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .map(Path::to_path_buf)
        .collect()
}

/// Only what is empty goes: what another run has put there stays.
fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        let _removed = fs::remove_dir(folder);
    }
}

/// Waits until no other run has the folder; nothing on systems or file systems that cannot lock folders, where two runs at a time
/// are not kept apart.
fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.lock().ok().map(|()| file)
}

/// Removes what runs have left that were ended: nobody holds it.
fn sweep(out: &Path) {
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let is_partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        let free = || {
            let file = File::open(entry.path()).ok();
            file.filter(|file| file.try_lock().is_ok())
        };
        if is_partial && let Some(_held) = free() {
            let _removed = fs::remove_dir_all(entry.path());
        }
    }
}

/// Refuses an output that would be read as input.
pub(super) fn check_outside(out: &Path, from: &Path) -> Result<()> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(TrainError::io(path));
    let from_place = fs::canonicalize(from).map_err(TrainError::io(from))?;
    let mut out_place = absolute(out)?;
    // What is there of the way to it may stand elsewhere.
    for parent in absolute(out)?.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(parent), out_place.strip_prefix(parent)) {
            out_place = real.join(rest);
            break;
        }
    }
    if out_place.starts_with(&from_place) {
        return Err(PreparationError::OutputInsideInput {
            out: out.into(),
            from: from.into(),
        }
        .into());
    }
    Ok(())
}

/// Refuses a data folder whose manifest cannot be read, before any work is done for it.
pub(super) fn check_manifest(out: &Path) -> Result<()> {
    merged(&out.join(MANIFEST), &[]).map(drop)
}

/// Rows of other tasks and splits stay.
fn merged(path: &Path, rows: &[Row]) -> Result<Vec<Row>> {
    let mut all: Vec<Row> = Vec::new();
    if path.exists() {
        let text = files::read(path, MANIFEST_BYTES_MAX)?;
        for row in csv::Reader::from_reader(&text[..]).deserialize() {
            all.push(row.map_err(wrong(path))?);
        }
    }
    let replaced = |old: &Row| {
        rows.iter()
            .any(|new| new.task == old.task && new.split == old.split)
    };
    all.retain(|old| !replaced(old));
    all.extend_from_slice(rows);
    Ok(all)
}

/// Writes a manifest, to the disk.
pub(super) fn write_manifest(path: &Path, rows: &[Row]) -> Result<()> {
    let mut writer = csv::Writer::from_path(path).map_err(wrong(path))?;
    for row in rows {
        writer.serialize(row).map_err(wrong(path))?;
    }
    let file = writer
        .into_inner()
        .map_err(|error| TrainError::io(path)(error.into_error()))?;
    file.sync_all().map_err(TrainError::io(path))
}

fn wrong(path: &Path) -> impl Fn(csv::Error) -> PreparationError {
    let path = path.to_path_buf();
    move |source| PreparationError::Manifest {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
