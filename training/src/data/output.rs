//! Writing data sets: what is made appears whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PreparationError;
use crate::error::{Result, TrainError};

/// The file that lists the captures of a data folder.
pub const MANIFEST: &str = "MANIFEST.csv";

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

/// A folder that is made beside its place, moved there when it is whole, and gone where it never is.
#[derive(Debug)]
pub(super) struct Partial {
    root: PathBuf,
    place: PathBuf,
    /// The data folder, where it was not there before.
    made: Option<PathBuf>,
}

impl Partial {
    /// Begins `<out>/<inner>`, which must not be there yet.
    pub(super) fn begin(out: &Path, inner: &str) -> Result<Self> {
        let place = out.join(inner);
        if place.exists() {
            return Err(PreparationError::OutputExists { path: place }.into());
        }
        let made = (!out.exists()).then(|| out.to_path_buf());
        let root = out.join(format!(".partial-{}", inner.replace(['/', '\\'], "-")));
        if root.exists() {
            // Left by a run that was ended.
            fs::remove_dir_all(&root).map_err(TrainError::io(&root))?;
        }
        let partial = Self { root, place, made };
        fs::create_dir_all(partial.folder()).map_err(TrainError::io(&partial.root))?;
        Ok(partial)
    }

    /// Where to write for now.
    pub(super) fn folder(&self) -> PathBuf {
        self.root.join("whole")
    }

    /// Moves the folder to its place and lists it in the manifest.
    pub(super) fn publish(mut self, out: &Path, rows: &[Row]) -> Result<()> {
        if let Some(parent) = self.place.parent() {
            fs::create_dir_all(parent).map_err(TrainError::io(parent))?;
        }
        fs::rename(self.folder(), &self.place).map_err(TrainError::io(&self.place))?;
        self.made = None;
        add_to_manifest(out, rows)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing can be done about a folder that does not go; the next run removes it.
        let _removed = fs::remove_dir_all(&self.root);
        if let Some(out) = &self.made {
            let _removed = fs::remove_dir(out);
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

/// Rows of other tasks and splits stay.
fn add_to_manifest(out: &Path, rows: &[Row]) -> Result<()> {
    let path = out.join(MANIFEST);
    let wrong = |source| PreparationError::Manifest {
        path: path.clone(),
        source,
    };
    let mut all: Vec<Row> = Vec::new();
    if path.exists() {
        for row in csv::Reader::from_path(&path).map_err(wrong)?.deserialize() {
            all.push(row.map_err(wrong)?);
        }
    }
    let replaced = |old: &Row| {
        rows.iter()
            .any(|new| new.task == old.task && new.split == old.split)
    };
    all.retain(|old| !replaced(old));
    all.extend_from_slice(rows);
    let beside = out.join(format!(".{MANIFEST}.partial"));
    let mut writer = csv::Writer::from_path(&beside).map_err(wrong)?;
    for row in &all {
        writer.serialize(row).map_err(wrong)?;
    }
    writer.flush().map_err(TrainError::io(&beside))?;
    drop(writer);
    fs::rename(&beside, &path).map_err(TrainError::io(&path))
}
