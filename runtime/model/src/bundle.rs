//! Model bundles: a directory, or the same files packed in one. Nothing is used before its hash has
//! been checked.

mod lists;
mod manifest;
mod names;
mod packed;
mod task;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use manifest::{FileEntry, FileReference, MANIFEST_SCHEMA, Manifest, SelfTest};
pub use task::{
    AdapterVersion, HeadManifest, INSTRUCTION, InstructionManifest, NO_INTENTION, TaskKind,
    TaskManifest,
};

use crate::error::{ModelError, check_limit};
use crate::limits;
use crate::memory::{try_copy, try_with_capacity};
use names::sha256_hex;

/// What errors call the bytes of a bundle.
const BYTES: &str = "bytes of a bundle";

/// The name of the manifest inside a bundle.
pub const MANIFEST_NAME: &str = "bundle.json";
/// How many hexadecimal digits of the manifest's hash identify a model.
const ID_DIGITS: usize = 16;

/// A verified bundle: its manifest is sound, every file is there, and every hash agrees.
#[derive(Clone, Debug)]
pub struct Bundle {
    id: String,
    manifest: Arc<Manifest>,
    manifest_bytes: Vec<u8>,
    files: Files,
}

#[derive(Clone, Debug)]
enum Files {
    /// Ranges of one packed file; a compiled-in bundle is borrowed, not copied.
    Packed {
        bytes: Cow<'static, [u8]>,
        ranges: BTreeMap<String, Range<usize>>,
    },
    /// One buffer per file.
    Loose(BTreeMap<String, Vec<u8>>),
}

impl Files {
    fn get(&self, name: &str) -> Option<&[u8]> {
        match self {
            Self::Packed { bytes, ranges } => ranges.get(name).map(|range| &bytes[range.clone()]),
            Self::Loose(files) => files.get(name).map(Vec::as_slice),
        }
    }
}

impl Bundle {
    /// Opens a bundle: a directory with a `bundle.json`, or a packed file. Files of a directory
    /// that the manifest does not list are not read.
    ///
    /// # Errors
    /// What the system refuses, and everything that [`Bundle::from_bytes`] and [`Manifest::parse`]
    /// refuse.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = fs::metadata(path).map_err(|error| ModelError::io(path, "open", error))?;
        if metadata.is_dir() {
            return Self::open_directory(path);
        }
        Self::from_bytes(read_file(path, limits::BUNDLE_BYTES_MAX)?)
    }

    /// Verifies a packed bundle in memory: a `Vec<u8>`, or a `&'static [u8]` that was compiled in.
    ///
    /// # Errors
    /// A broken index, files that overlap, are missing or not listed, hashes that differ, and all
    /// that [`Manifest::parse`] refuses.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ModelError> {
        let bytes = bytes.into();
        let mut ranges = packed::read_index(&bytes)?;
        // The index guarantees the manifest.
        let manifest_range = ranges.remove(MANIFEST_NAME).unwrap_or_default();
        let manifest_bytes = try_copy(BYTES, &bytes[manifest_range])?;
        let manifest = Manifest::parse(&manifest_bytes)?;
        if let Some(name) = ranges
            .keys()
            .find(|name| !manifest.files.contains_key(*name))
        {
            return Err(ModelError::invalid(
                packed::FILE,
                "index",
                "only files that the manifest lists",
                name,
            ));
        }
        Self::verified(manifest, manifest_bytes, Files::Packed { bytes, ranges })
    }

    /// Puts a bundle together: fills `files` and all hashes of `manifest` in from `files`, then
    /// checks it as if it had been read.
    ///
    /// # Errors
    /// Everything that reading the bundle back would refuse.
    pub fn build(
        mut manifest: Manifest,
        files: BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, ModelError> {
        manifest.files = files
            .iter()
            .map(|(name, bytes)| {
                (
                    name.clone(),
                    FileEntry {
                        sha256: sha256_hex(bytes),
                        bytes: bytes.len() as u64,
                    },
                )
            })
            .collect();
        let instruction = manifest.instruction.iter_mut();
        let references = manifest
            .tasks
            .iter_mut()
            .flat_map(|task| {
                let aside = task.set_aside.iter_mut();
                [&mut task.adapter]
                    .into_iter()
                    .chain(aside.map(|aside| &mut aside.adapter))
            })
            .chain(instruction.map(|instruction| &mut instruction.adapter))
            .chain(manifest.heads.iter_mut().map(|head| &mut head.module));
        for reference in references.chain([&mut manifest.tokenizer, &mut manifest.base]) {
            if let Some(entry) = manifest.files.get(&reference.file) {
                reference.sha256.clone_from(&entry.sha256);
            }
        }
        let manifest_bytes = manifest.to_bytes()?;
        Self::verified(manifest, manifest_bytes, Files::Loose(files))
    }

    fn open_directory(path: &Path) -> Result<Self, ModelError> {
        let manifest_bytes = read_file(&path.join(MANIFEST_NAME), limits::MANIFEST_BYTES_MAX)?;
        let manifest = Manifest::parse(&manifest_bytes)?;
        let mut files = BTreeMap::new();
        for (name, entry) in &manifest.files {
            // The name has been checked: it cannot leave the directory.
            files.insert(
                name.clone(),
                read_file(&path.join(name), entry.bytes as usize)?,
            );
        }
        Self::verified(manifest, manifest_bytes, Files::Loose(files))
    }

    /// The one way to a `Bundle`: every listed file is there with its size and hash.
    fn verified(
        manifest: Manifest,
        manifest_bytes: Vec<u8>,
        files: Files,
    ) -> Result<Self, ModelError> {
        for (name, entry) in &manifest.files {
            let bytes = files.get(name).ok_or_else(|| {
                ModelError::missing(
                    packed::FILE,
                    format!("file {name}"),
                    "a file that the manifest lists",
                )
            })?;
            if bytes.len() as u64 != entry.bytes {
                return Err(ModelError::invalid(
                    name,
                    "size in bytes",
                    entry.bytes.to_string(),
                    bytes.len(),
                ));
            }
            let found = sha256_hex(bytes);
            if found != entry.sha256 {
                return Err(ModelError::Hash {
                    file: name.clone(),
                    expected: entry.sha256.clone(),
                    found,
                });
            }
        }
        let mut id = sha256_hex(&manifest_bytes);
        id.truncate(ID_DIGITS);
        Ok(Self {
            id,
            manifest: Arc::new(manifest),
            manifest_bytes,
            files,
        })
    }

    /// The model's identity: the first 16 hexadecimal digits of the manifest's SHA-256. The
    /// manifest holds the hash of every file, so two models with the same id are the same in every
    /// byte that matters.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest, for whoever keeps it longer than the bundle.
    #[must_use]
    pub fn shared_manifest(&self) -> Arc<Manifest> {
        Arc::clone(&self.manifest)
    }

    /// The bytes of `bundle.json`, as they are hashed.
    #[must_use]
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// [`ModelError::Missing`] for a name that the manifest does not list.
    pub fn file(&self, name: &str) -> Result<&[u8], ModelError> {
        self.files.get(name).ok_or_else(|| {
            ModelError::missing(MANIFEST_NAME, format!("files[{name}]"), "a listed file")
        })
    }

    /// The packed form; the same bundle gives the same bytes.
    ///
    /// # Errors
    /// [`ModelError::Limit`] past the size limits.
    pub fn to_packed(&self) -> Result<Vec<u8>, ModelError> {
        let mut entries = vec![(MANIFEST_NAME, self.manifest_bytes.as_slice())];
        for name in self.manifest.files.keys() {
            entries.push((name, self.file(name)?));
        }
        packed::write(&entries)
    }

    /// Writes the packed form to `path`: first beside it, then in its place, so that no reader sees
    /// half a file.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write_packed(&self, path: &Path) -> Result<(), ModelError> {
        write_file(path, &self.to_packed()?)
    }

    /// Writes the directory form into `path`, which is made if need be; the manifest comes last.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write_directory(&self, path: &Path) -> Result<(), ModelError> {
        for name in self.manifest.files.keys() {
            write_file(&path.join(name), self.file(name)?)?;
        }
        write_file(&path.join(MANIFEST_NAME), &self.manifest_bytes)
    }
}

/// Reads a regular file of at most `limit` bytes.
fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, ModelError> {
    let io = |operation| move |error| ModelError::io(path, operation, error);
    let shown = path.display().to_string();
    // Looked at before opening: opening a named pipe would wait for a writer.
    let metadata = fs::metadata(path).map_err(io("open"))?;
    if !metadata.is_file() {
        return Err(ModelError::invalid(
            &shown,
            "kind",
            "a regular file",
            "something else",
        ));
    }
    check_limit(&shown, "file size", limit, metadata.len())?;
    let file = File::open(path).map_err(io("open"))?;
    let mut bytes = try_with_capacity(BYTES, metadata.len() as usize)?;
    // One byte more than the limit shows a file that grew in between.
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(io("read"))?;
    check_limit(&shown, "file size", limit, bytes.len() as u64)?;
    Ok(bytes)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let io = |operation| move |error| ModelError::io(path, operation, error);
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent).map_err(io("create the folder"))?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut file = File::create(&partial).map_err(io("create"))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io("write"))?;
    drop(file);
    fs::rename(&partial, path).map_err(io("rename"))
}
