//! A new model without a restart: when the bundle's path leads to another file, or rules are loaded again.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::guarded;
use crate::host::{Level, log};
use crate::limits::BUNDLE_FILES_MAX;
use crate::plugin::{self, Plugin};
use crate::verdict::Names;

/// What a path leads to; another one is another bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    /// Of each file: device, inode, size, and time of change in seconds and nanoseconds.
    files: Vec<(u64, u64, u64, i64, i64)>,
}

impl Identity {
    /// Follows links; `None` where nothing is. Of a directory all files count: a bundle that is still being copied is another one when it
    /// is whole. What goes while its directory is read does not count.
    fn of(path: &str) -> io::Result<Option<Self>> {
        let Some(path) = if_there(std::fs::canonicalize(path))? else {
            return Ok(None);
        };
        let mut files = Vec::new();
        let mut rest = vec![path.clone()];
        while let Some(next) = rest.pop() {
            let Some(found) = if_there(look_at(&next))? else {
                if next == path {
                    return Ok(None);
                }
                continue;
            };
            if found.is_dir() {
                for entry in if_there(std::fs::read_dir(&next))?.into_iter().flatten() {
                    rest.push(entry?.path());
                    if files.len() + rest.len() > BUNDLE_FILES_MAX {
                        let crowd = format!("more than {BUNDLE_FILES_MAX} files");
                        return Err(io::Error::other(crowd));
                    }
                }
            } else {
                let time = (found.mtime(), found.mtime_nsec());
                files.push((found.dev(), found.ino(), found.size(), time.0, time.1));
            }
        }
        files.sort_unstable();
        Ok(Some(Self { path, files }))
    }
}

/// What stands at a path, behind its links; of a link that leads nowhere the link itself, so that a folder is known by it, too.
fn look_at(path: &Path) -> io::Result<Metadata> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::symlink_metadata(path),
        found => found,
    }
}

/// `None` for what is not there.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was found at the bundle's path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// A bundle, it seems.
    Bundle(Identity),
    /// Something that cannot be watched, and why.
    Unusable(String),
}

impl Found {
    /// `None` for a path that leads nowhere, as it may for a moment: that is no other bundle yet.
    fn at(path: &str) -> Option<Self> {
        match Identity::of(path) {
            Ok(identity) => identity.map(Self::Bundle),
            Err(error) => Some(Self::Unusable(error.to_string())),
        }
    }
}

/// What was looked at last, whether it took over or was refused; and a lock, so that one is loaded at a time.
static LAST: Mutex<Option<Found>> = Mutex::new(None);
/// The rules that keywords were set up in last.
static RULES: AtomicUsize = AtomicUsize::new(0);

/// Remembers which bundle was opened first.
pub fn remember(plugin: &Plugin) {
    if let Ok(mut last) = LAST.lock() {
        // What cannot be watched is said with the first look.
        *last = Found::at(&plugin.config.bundle).filter(|found| matches!(found, Found::Bundle(_)));
    }
}

/// Looks at the bundle now and then.
#[derive(Debug)]
pub struct Watch {
    next: Instant,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn new(plugin: &Plugin) -> Self {
        Self {
            next: Instant::now() + interval(plugin),
        }
    }

    /// Loads the bundle if it is time to look, and it is another.
    pub fn look(&mut self, plugin: &Plugin) {
        if plugin.config.reload_interval_s == 0 || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + interval(plugin);
        renew(plugin);
    }
}

fn interval(plugin: &Plugin) -> Duration {
    Duration::from_secs(plugin.config.reload_interval_s)
}

impl Plugin {
    /// A keyword is set up in these rules. The first one of new rules is when a new bundle is looked for: the rules may name its labels.
    pub fn rules_are_loaded(&self, rules: usize) {
        let before = RULES.swap(rules, Ordering::Relaxed);
        if before != 0 && before != rules {
            renew(self);
        }
    }
}

/// Opens the bundle if it is another than last time, and has it take over. A refused one changes nothing but a counter.
fn renew(plugin: &Plugin) {
    let path = &plugin.config.bundle;
    if path.is_empty() || plugin::get().is_none() {
        return;
    }
    let Ok(mut last) = LAST.lock() else { return };
    let Some(found) = Found::at(path) else {
        return;
    };
    if last.as_ref() == Some(&found) {
        return;
    }
    let result = match &found {
        Found::Bundle(_) => guarded(Err("a defect".to_owned()), || activate(plugin, path)),
        Found::Unusable(reason) => Err(reason.clone()),
    };
    *last = Some(found);
    match result {
        Ok(model) => {
            plugin.counters.reloads.add(1);
            log(
                Level::Notice,
                &format!("bundle {path} has taken over, model {model}"),
            );
        }
        Err(reason) => {
            plugin.counters.reload_failures.add(1);
            log(
                Level::Error,
                &format!("bundle {path}: {reason}; the model before goes on"),
            );
        }
    }
}

fn activate(plugin: &Plugin, path: &str) -> Result<String, String> {
    let words = |error: crate::library::CallError| error.text;
    let library = &plugin.library;
    let config = library
        .config(&plugin::settings_of(&plugin.config))
        .map_err(words)?;
    let model = library.open_model(path, &config).map_err(words)?;
    let names = Arc::new(Names::of(&model).map_err(words)?);
    // Its verdicts may come before `activate` returns.
    let before = plugin.names.newest();
    plugin.names.add(Arc::clone(&names));
    if let Err(error) = plugin.engine.activate(&model) {
        plugin.names.take_back(&names.model, before);
        return Err(error.text);
    }
    Ok(names.model.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn what_is_at_a_path_is_known_by_its_files() {
        let folder = tempfile::TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(Found::at(&at("nothing")), None);
        std::fs::write(at("one"), "1").unwrap();
        let one = Found::at(&at("one"));
        assert!(matches!(one, Some(Found::Bundle(_))));
        assert_eq!(Found::at(&at("one")), one);
        // By whatever way.
        std::os::unix::fs::symlink("one", at("link")).unwrap();
        assert_eq!(Found::at(&at("link")), one);
        std::fs::write(at("other"), "1").unwrap();
        std::fs::rename(at("other"), at("one")).unwrap();
        assert_ne!(Found::at(&at("link")), one);
        // A link that leads nowhere is nothing.
        std::os::unix::fs::symlink("nothing", at("dangling")).unwrap();
        assert_eq!(Found::at(&at("dangling")), None);
    }

    #[test]
    fn a_folder_is_watched_with_a_link_in_it_that_leads_nowhere() {
        let folder = tempfile::TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(at("bundle")).unwrap();
        std::fs::write(at("bundle/one"), "1").unwrap();
        let one = Found::at(&at("bundle"));
        assert!(matches!(one, Some(Found::Bundle(_))));
        std::os::unix::fs::symlink("../target", at("bundle/link")).unwrap();
        let dangling = Found::at(&at("bundle"));
        assert!(matches!(dangling, Some(Found::Bundle(_))));
        assert_ne!(dangling, one);
        assert_eq!(Found::at(&at("bundle")), dangling);
        // It is seen when it leads somewhere, and when that changes.
        std::fs::write(at("target"), "1").unwrap();
        let whole = Found::at(&at("bundle"));
        assert!(whole != dangling && matches!(whole, Some(Found::Bundle(_))));
        std::fs::write(at("target"), "longer").unwrap();
        assert_ne!(Found::at(&at("bundle")), whole);
        // What cannot be followed is told.
        std::os::unix::fs::symlink("round", at("bundle/round")).unwrap();
        assert!(matches!(Found::at(&at("bundle")), Some(Found::Unusable(_))));
    }

    #[test]
    fn a_folder_has_so_many_files_and_no_more() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().to_str().unwrap();
        for number in 0..BUNDLE_FILES_MAX {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        assert!(matches!(Found::at(path), Some(Found::Bundle(_))));
        std::fs::write(folder.path().join("last"), "").unwrap();
        assert_eq!(
            Found::at(path),
            Some(Found::Unusable("more than 1024 files".to_owned()))
        );
    }
}
