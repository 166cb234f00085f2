//! Compiled kernels, kept in a folder.
//!
//! What is in there is loaded as code of the device, so it is taken only from files that are whole and made for what is asked (their hash
//! stands before them) and that belong to the user and cannot be changed by others; so does the folder. Whoever can write as the user can
//! change the program itself. A file that is not as it should be is made anew, and a folder that cannot be used means that nothing is kept.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

/// Where compiled kernels are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImageCache {
    /// Nowhere: they are compiled in every process.
    None,
    /// `trafficllm/kernels` in the user's folder for such things: `$XDG_CACHE_HOME`, else `~/.cache`.
    #[default]
    User,
    /// A folder of one's own, made where it is not there.
    Folder(PathBuf),
}

/// What tells images apart: the hash of all that they are made of.
pub(super) type Key = [u8; 32];

/// Most bytes that are kept. All kernels of a target take about a tenth.
const BYTES_MAX: u64 = 128 << 20;
/// After this time, nobody is writing a file any more that was not finished.
const UNFINISHED_MAX: Duration = Duration::from_secs(3600);

/// Before the image stand these, the key, the image's length and its hash.
const MAGIC: [u8; 8] = *b"TLLMIMG1";
const HEADER_BYTES: usize = MAGIC.len() + 32 + 8 + 32;

/// A folder of images.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    bytes_max: u64,
}

impl Cache {
    /// Opens a folder, or none where it cannot be used.
    pub(super) fn open(choice: &ImageCache) -> Option<Self> {
        let folder = match choice {
            ImageCache::None => return None,
            ImageCache::User => {
                user_folder(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))?
            }
            ImageCache::Folder(folder) => folder.clone(),
        };
        Self::with_limit(folder, BYTES_MAX)
    }

    fn with_limit(folder: PathBuf, bytes_max: u64) -> Option<Self> {
        // Of a folder that is there already, only the look at it below counts.
        let _ = make_folder(&folder);
        let metadata = fs::metadata(&folder).ok()?;
        (metadata.is_dir() && is_own(&metadata)).then_some(Self { folder, bytes_max })
    }

    fn path(&self, key: &Key) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name + ".image")
    }

    /// The image of a key, if it is there, whole and nobody else's.
    pub(super) fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.path(key);
        // A pipe would make the opening wait.
        if !fs::symlink_metadata(&path).ok()?.is_file() {
            return None;
        }
        let file = File::open(&path).ok()?;
        // Asked of what was opened: the name may stand for something else by now.
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_own(&metadata) || metadata.len() > self.bytes_max {
            return None;
        }
        let mut bytes = Vec::new();
        (&file).take(self.bytes_max).read_to_end(&mut bytes).ok()?;
        let (header, image) = bytes.split_at_checked(HEADER_BYTES)?;
        if *header != header_of(key, image) {
            return None;
        }
        // What is used stays: the oldest are removed first. Where that cannot be told, the file is still good.
        let _ = file.set_modified(SystemTime::now());
        bytes.drain(..HEADER_BYTES);
        Some(bytes)
    }

    /// Keeps an image, in place of what stood there. That it cannot be kept is no error.
    pub(super) fn store(&self, key: &Key, image: &[u8]) {
        if (image.len() + HEADER_BYTES) as u64 <= self.bytes_max {
            let _ = self.write(key, image);
            let _ = self.remove_oldest();
        }
    }

    fn write(&self, key: &Key, image: &[u8]) -> std::io::Result<()> {
        // Two processes, or threads, write to files of their own, and the last one stays.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let unfinished = self
            .folder
            .join(format!("{}-{count}.unfinished", std::process::id()));
        let written = (|| {
            let mut file = new_file(&unfinished)?;
            file.write_all(&header_of(key, image))?;
            file.write_all(image)?;
            file.sync_data()?;
            fs::rename(&unfinished, self.path(key))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Removes the images that were used last the longest ago until the rest is within the limit, and what was left unfinished.
    fn remove_oldest(&self) -> std::io::Result<()> {
        let mut images = Vec::new();
        let mut bytes = 0_u64;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // One that another process has just removed is none.
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("image") => {
                    bytes = bytes.saturating_add(metadata.len());
                    images.push((modified, metadata.len(), path));
                }
                Some("unfinished") if modified.elapsed().is_ok_and(|age| age > UNFINISHED_MAX) => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        images.sort();
        for (_, length, path) in images {
            if bytes <= self.bytes_max {
                break;
            }
            let _ = fs::remove_file(path);
            bytes -= length;
        }
        Ok(())
    }
}

fn header_of(key: &Key, image: &[u8]) -> [u8; HEADER_BYTES] {
    let hash: [u8; 32] = Sha256::digest(image).into();
    let parts = [&MAGIC[..], key, &(image.len() as u64).to_le_bytes(), &hash].concat();
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&parts);
    header
}

/// A variable that is not an absolute path is one that is not there, as the rules for `$XDG_CACHE_HOME` have it.
fn user_folder(cache: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let cache = cache.and_then(absolute);
    let cache = cache.or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
    Some(cache.join("trafficllm").join("kernels"))
}

#[cfg(unix)]
fn make_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_folder(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).create(folder)
}

#[cfg(unix)]
fn new_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(not(unix))]
fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Whether it belongs to the user who runs the process, and nobody else may write to it.
#[cfg(unix)]
fn is_own(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    // What the system shows of this process is the user's that it runs as.
    let own = fs::metadata("/proc/self").map(|own| own.uid());
    own.is_ok_and(|own| own == metadata.uid()) && metadata.mode() & 0o022 == 0
}

/// Who may write to it is not known there: nothing is kept.
#[cfg(not(unix))]
fn is_own(_metadata: &Metadata) -> bool {
    false
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
