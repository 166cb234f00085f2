//! The plugin's own thread: what must not be done on a packet's way.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{self, Level, log};
use crate::late::{self, LateFile};
use crate::limits;
use crate::plugin::{self, Plugin, Refusal};
use crate::reload::Watch;
use crate::session::Submitted;
use crate::table::Place;
use crate::{counters, guarded};

/// How often it looks around.
const ROUND: Duration = Duration::from_millis(20);
/// Rounds between two looks at all flows for those that rest.
const ROUNDS_PER_SCAN: u32 = 5;
/// How long nobody must have looked for a lane's answers before they are taken for its thread.
const LANE_REST_MS: u64 = 40;

static THREAD: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);
static IS_ENDING: AtomicBool = AtomicBool::new(false);
static END: End = End::new();

/// The end of the thread, which is not waited for without a bound: what it writes to may hang.
struct End {
    is_there: Mutex<bool>,
    changed: Condvar,
}

impl End {
    const fn new() -> Self {
        Self {
            is_there: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    fn tell(&self) {
        if let Ok(mut is_there) = self.is_there.lock() {
            *is_there = true;
        }
        self.changed.notify_all();
    }

    /// Waits at most so long; whether it is there.
    fn wait(&self, longest: Duration) -> bool {
        let Ok(is_there) = self.is_there.lock() else {
            return false;
        };
        let waited = self
            .changed
            .wait_timeout_while(is_there, longest, |is_there| !*is_there);
        waited.is_ok_and(|(is_there, _)| *is_there)
    }
}

/// Starts the engine and the plugin's thread, and has both end with the process.
///
/// # Errors
/// The system gives no thread.
pub fn start(plugin: &'static Plugin) -> Result<(), String> {
    plugin
        .engine
        .start()
        .map_err(|error| format!("the engine cannot be started: {error}"))?;
    plugin
        .lanes
        .make_shared(&plugin.engine)
        .map_err(|error| format!("no session: {error}"))?;
    plugin.tick();
    let thread = std::thread::Builder::new()
        .name("trafficllm".to_owned())
        .spawn(move || work(plugin))
        .map_err(|error| format!("no thread: {error}"))?;
    if let Ok(mut place) = THREAD.lock() {
        *place = Some(thread);
    }
    // SAFETY: the function takes nothing, and the plugin is never unloaded.
    unsafe { libc::atexit(at_exit) };
    Ok(())
}

/// The process ends, Suricata's threads have: what waits is judged for a while, then the files are ended.
extern "C" fn at_exit() {
    guarded((), || {
        let Some(plugin) = plugin::remains() else {
            return;
        };
        host::close_log();
        let wait_us = plugin.config.stop_wait_ms.saturating_mul(1_000);
        // What is left unjudged then is counted by the engine itself.
        let _ = plugin.engine.stop(wait_us);
        IS_ENDING.store(true, Ordering::Release);
        let thread = THREAD.lock().ok().and_then(|mut place| place.take());
        if let Some(thread) = thread {
            thread.thread().unpark();
            if END.wait(Duration::from_millis(limits::END_WAIT_MS)) {
                // It panics only into its own guard.
                let _ = thread.join();
            }
        }
    });
}

fn work(plugin: &'static Plugin) {
    block_signals();
    plugin.lanes.use_shared();
    guarded((), || {
        let mut work = Work::new(plugin);
        while !IS_ENDING.load(Ordering::Acquire) {
            std::thread::park_timeout(ROUND);
            work.round();
        }
        work.end();
    });
    END.tell();
}

/// Suricata's signals are for its own threads.
fn block_signals() {
    // SAFETY: a set on the stack, filled before it is used; it concerns this thread alone.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

struct Work {
    plugin: &'static Plugin,
    late: LateFile,
    watch: Watch,
    rounds: u32,
    /// Where the next look at the flows begins.
    next_place: u32,
    next_metrics: Instant,
    is_metrics_error_told: bool,
}

impl Work {
    fn new(plugin: &'static Plugin) -> Self {
        Self {
            plugin,
            late: LateFile::new(plugin),
            watch: Watch::new(plugin),
            rounds: 0,
            next_place: 0,
            next_metrics: Instant::now(),
            is_metrics_error_told: false,
        }
    }

    fn round(&mut self) {
        let now_ms = self.plugin.tick();
        self.rounds = self.rounds.wrapping_add(1);
        self.plugin.lanes.renew_shared(&self.plugin.engine);
        for lane in self.plugin.lanes.all() {
            self.plugin.lose(&lane);
            if lane.has_flows() && now_ms.saturating_sub(lane.looked_ms()) >= LANE_REST_MS {
                while self.plugin.take_answers(&lane, 0) {}
            }
        }
        self.plugin.deliver_rest();
        self.plugin.lanes.prune();
        self.unpause();
        if self.rounds.is_multiple_of(ROUNDS_PER_SCAN) {
            self.judge_resting(now_ms);
        }
        self.late.write(self.plugin);
        self.watch.look(self.plugin);
        if Instant::now() >= self.next_metrics {
            self.next_metrics =
                Instant::now() + Duration::from_secs(self.plugin.config.metrics_interval_s);
            self.write_metrics();
        }
    }

    fn end(&mut self) {
        for lane in self.plugin.lanes.all() {
            while self.plugin.take_answers(&lane, 0) {}
        }
        self.plugin.deliver_rest();
        self.late.write(self.plugin);
        self.write_metrics();
    }

    /// Has live flows judged that rest, as many as half of the queue has room for: the other half is for flows that do not. Flows
    /// that find no room are not shed; they come first in the next round.
    fn judge_resting(&mut self, now_ms: u64) {
        let idle_ms = self.plugin.config.idle_ms;
        if idle_ms == 0 || self.plugin.is_offline() || plugin::get().is_none() {
            return;
        }
        let waiting = self.plugin.engine.counters().waiting;
        let mut room = (self.plugin.config.queue_flows / 2).saturating_sub(waiting);
        let used = self.plugin.table.used();
        for _ in 0..used {
            if room == 0 {
                return;
            }
            let number = self.next_place % used;
            self.next_place = number + 1;
            if let Some(place) = self.plugin.table.place(number)
                && self.is_resting(place, now_ms)
            {
                match self.plugin.offer(number, Refusal::IsNotCounted) {
                    Submitted::Shed => {
                        self.next_place = number;
                        return;
                    }
                    Submitted::Busy | Submitted::Nothing => {}
                    Submitted::Queued | Submitted::NeedMore | Submitted::Failed(_) => {
                        // Of another flow, if this one has ended: then that one rests longer, once.
                        place.rests.fetch_add(1, Ordering::Relaxed);
                        room -= 1;
                    }
                }
            }
        }
    }

    /// Whether a flow has rested for its time, with packets that were not judged.
    fn is_resting(&self, place: &Place, now_ms: u64) -> bool {
        let packets = place.packets.load(Ordering::Acquire);
        if packets <= place.offered.load(Ordering::Acquire) || !place.is_alive() {
            return false;
        }
        let rests = place.rests.load(Ordering::Relaxed).min(limits::RESTS_MAX);
        let rested_ms = now_ms.saturating_sub(place.touched_ms.load(Ordering::Relaxed));
        rested_ms >= self.plugin.config.idle_ms << rests
    }

    fn unpause(&self) {
        if self.plugin.is_paused.load(Ordering::Relaxed) {
            let waiting = self.plugin.engine.counters().waiting;
            if waiting <= self.plugin.config.queue_flows / 2 {
                self.plugin.is_paused.store(false, Ordering::Relaxed);
            }
        }
    }

    fn write_metrics(&mut self) {
        let path = &self.plugin.config.metrics_file;
        if path.is_empty() {
            return;
        }
        // Readers see the old text or the new one, never a part.
        let aside = format!("{path}.new");
        let written = overwrite(Path::new(&aside), &counters::metrics(self.plugin))
            .and_then(|()| std::fs::rename(&aside, path));
        if let Err(error) = written
            && !std::mem::replace(&mut self.is_metrics_error_told, true)
        {
            log(Level::Error, &format!("metrics-file {path}: {error}"));
        }
    }
}

/// Writes a file anew. Nothing but a file: nobody is waited for.
fn overwrite(path: &Path, text: &str) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    late::regular(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn an_end_that_does_not_come_is_left() {
        let end = End::new();
        assert!(!end.wait(Duration::from_millis(1)));
        end.tell();
        assert!(end.wait(Duration::ZERO));
    }

    #[test]
    fn an_end_that_comes_is_met() {
        let end = End::new();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| end.wait(Duration::from_secs(600)));
            end.tell();
            assert!(waits.join().unwrap());
        });
    }

    #[test]
    fn metrics_are_written_to_a_file_only() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("metrics");
        for text in ["a long text\n", "short\n"] {
            overwrite(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        assert!(overwrite(&fifo, "text").is_err());
    }
}
