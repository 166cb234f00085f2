//! The bounded log of untrusted heads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits;

/// Lines that a head may log in a [`WINDOW`], on all threads together.
pub(crate) const LINES_PER_WINDOW: u32 = 100;
pub(crate) const WINDOW: Duration = Duration::from_secs(1);

/// What stands between a head and the log: of a head, for all its threads.
#[derive(Debug)]
pub(crate) struct LogGate {
    head: String,
    /// When the window began, and its lines.
    window: Mutex<(Instant, u32)>,
    lost: AtomicU64,
}

impl LogGate {
    pub(crate) fn new(head: String) -> Self {
        Self {
            head,
            window: Mutex::new((Instant::now(), 0)),
            lost: AtomicU64::new(0),
        }
    }

    /// Lines that were not kept.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// A line of a call that logged `before` others. Control characters, and what is no UTF-8, are replaced.
    pub(crate) fn line(&self, before: u32, level: u32, text: &[u8]) {
        if before >= limits::LOG_LINES_MAX || !self.is_open() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let text = text.get(..limits::LOG_BYTES_MAX).unwrap_or(text);
        let text: String = String::from_utf8_lossy(text)
            .chars()
            .map(|character| {
                if character.is_control() {
                    char::REPLACEMENT_CHARACTER
                } else {
                    character
                }
            })
            .collect();
        let head = self.head.as_str();
        match level {
            0 | 1 => tracing::error!(head, "{text}"),
            2 => tracing::warn!(head, "{text}"),
            3 => tracing::info!(head, "{text}"),
            _ => tracing::debug!(head, "{text}"),
        }
    }

    fn is_open(&self) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() >= WINDOW {
            *window = (Instant::now(), 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1 <= LINES_PER_WINDOW
    }
}
