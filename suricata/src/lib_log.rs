//! The library's own messages, on their way to Suricata's log.

use std::ffi::c_char;

use crate::host::{Level, log};
use crate::library::{LogData, log_text};

/// `TLLM_LOG_ERROR` to `TLLM_LOG_DEBUG`, by the word in the configuration; `None` for no messages.
#[must_use]
pub fn level_of(word: &str) -> Option<i32> {
    match word {
        "error" => Some(1),
        "warning" => Some(2),
        "info" => Some(3),
        "debug" => Some(4),
        _ => None,
    }
}

/// Passes a message on.
///
/// # Safety
/// The library calls it, with C texts.
pub unsafe extern "C" fn on_message(
    _data: LogData,
    level: i32,
    _target: *const c_char,
    message: *const c_char,
) {
    let level = match level {
        1 => Level::Error,
        2 => Level::Warning,
        3 => Level::Info,
        _ => Level::Debug,
    };
    // SAFETY: the library gives a C text that stays until this returns.
    let text = unsafe { log_text(message) };
    crate::guarded((), || log(level, &format!("libtrafficllm: {text}")));
}
