//! The progress bar: on standard error, and only if that is a terminal.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use trafficllm::Progress;

/// How often the bar may change.
const REFRESH: Duration = Duration::from_millis(100);

/// A bar over the bytes of all inputs, with flows per second.
pub(super) struct Bar {
    bar: ProgressBar,
    started: Instant,
    refreshed: Instant,
    /// Bytes of the inputs before the current one.
    bytes_before: u64,
}

impl Bar {
    /// A bar for these inputs; hidden where standard error is no terminal.
    pub(super) fn new(inputs: &[PathBuf]) -> Self {
        let sizes = inputs.iter().map(|path| {
            std::fs::metadata(path)
                .ok()
                .filter(std::fs::Metadata::is_file)
        });
        // Of standard input and pipes nobody knows the size.
        let total = sizes
            .map(|metadata| metadata.map(|metadata| metadata.len()))
            .sum::<Option<u64>>();
        let bar = if !stderr().is_terminal() {
            ProgressBar::hidden()
        } else if let Some(total) = total {
            ProgressBar::new(total).with_style(style("{bar:30} {percent:>3} % {msg}"))
        } else {
            ProgressBar::no_length().with_style(style("{spinner} {binary_bytes} {msg}"))
        };
        let now = Instant::now();
        Self {
            bar,
            started: now,
            refreshed: now,
            bytes_before: 0,
        }
    }

    pub(super) fn update(&mut self, progress: &Progress) {
        if self.bar.is_hidden() || self.refreshed.elapsed() < REFRESH {
            return;
        }
        self.refreshed = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = (progress.outcomes as f64 / seconds.max(1e-3)) as u64;
        self.bar.set_message(format!(
            "{} flows, {} flows/s",
            HumanCount(progress.outcomes),
            HumanCount(rate)
        ));
        self.bar
            .set_position(self.bytes_before + progress.source_bytes);
    }

    pub(super) fn end_input(&mut self, source_bytes: u64) {
        self.bytes_before += source_bytes;
    }

    /// Runs something that writes to the terminal, with the bar out of its way.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are fixed; should one be wrong, a plain bar is better than none.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
