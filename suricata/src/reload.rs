//! A new model without a restart: when the bundle's path leads to another file, or rules are loaded again.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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
    /// Follows links. Of a directory all files count: a bundle that is still being copied is another one when it is whole.
    fn of(path: &str) -> Option<Self> {
        let path = std::fs::canonicalize(path).ok()?;
        let mut files = Vec::new();
        let mut rest = vec![path.clone()];
        while let Some(next) = rest.pop() {
            let found = std::fs::metadata(&next).ok()?;
            if found.is_dir() {
                let entries = std::fs::read_dir(&next).ok()?;
                rest.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            } else {
                let time = (found.mtime(), found.mtime_nsec());
                files.push((found.dev(), found.ino(), found.size(), time.0, time.1));
            }
            if files.len() + rest.len() > BUNDLE_FILES_MAX {
                return None;
            }
        }
        files.sort_unstable();
        Some(Self { path, files })
    }
}

/// The bundle that was looked at last, whether it took over or was refused; and a lock, so that one is loaded at a time.
static LAST: Mutex<Option<Identity>> = Mutex::new(None);
/// The rules that keywords were set up in last.
static RULES: AtomicUsize = AtomicUsize::new(0);

/// Remembers which bundle was opened first.
pub fn remember(plugin: &Plugin) {
    if let Ok(mut last) = LAST.lock() {
        *last = Identity::of(&plugin.config.bundle);
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
    // A path that leads nowhere for a moment is no other bundle yet.
    let Some(found) = Identity::of(path) else {
        return;
    };
    if last.as_ref() == Some(&found) {
        return;
    }
    *last = Some(found);
    let result = guarded(Err("a defect".to_owned()), || activate(plugin, path));
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
