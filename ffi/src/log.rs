//! What the library has to say goes to a callback of the host, or nowhere.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Once, PoisonError, RwLock, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::boundary::{guard, take_panic_place};
use crate::fault::Fault;
use crate::status::{TLLM_ERR_ARGUMENT, TLLM_ERR_BUSY, TLLM_OK};

/// No messages.
pub const TLLM_LOG_OFF: i32 = 0;
/// Something was lost or failed.
pub const TLLM_LOG_ERROR: i32 = 1;
/// Something that should be looked at.
pub const TLLM_LOG_WARN: i32 = 2;
/// What happens seldom: a model was activated, an engine stopped.
pub const TLLM_LOG_INFO: i32 = 3;
/// For those who look for a fault.
pub const TLLM_LOG_DEBUG: i32 = 4;
/// Everything.
pub const TLLM_LOG_TRACE: i32 = 5;

/// Takes a message. `level` is one of TLLM_LOG_*; `target` names the part of the library; both texts are UTF-8 and
/// belong to the library, which may use them again as soon as the callback returns.
///
/// It is called by any thread that is in the library, workers included, by several at a time. It may call every function of
/// the library but tllm_log_set, which answers TLLM_ERR_BUSY. It must not throw or jump out, and should not wait: the thread that
/// logs waits for it.
pub type tllm_log_callback = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        level: i32,
        target: *const c_char,
        message: *const c_char,
    ),
>;

/// Where messages go.
struct Receiver {
    callback: unsafe extern "C" fn(*mut c_void, i32, *const c_char, *const c_char),
    user: *mut c_void,
    /// The least important level that it asked for.
    level: i32,
}

// SAFETY: the header says that the callback is called by any thread, several at a time, with this pointer, which the library only
// hands on.
unsafe impl Send for Receiver {}
// SAFETY: as above.
unsafe impl Sync for Receiver {}

static RECEIVER: RwLock<Option<Receiver>> = RwLock::new(None);
static LEVEL: AtomicI32 = AtomicI32::new(TLLM_LOG_OFF);

/// Whether somebody listens.
pub(crate) fn is_on() -> bool {
    LEVEL.load(Ordering::Relaxed) != TLLM_LOG_OFF
}

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Sends messages up to `level` (TLLM_LOG_*) to `callback`, with `user` handed on; NULL or TLLM_LOG_OFF ends it. When this returns, the
/// callback before is not running any more and will not be called again. Until the first call the library is silent.
///
/// Errors: TLLM_ERR_ARGUMENT (no such level), TLLM_ERR_BUSY (called from a log callback, or one has not returned for
/// a second: the callback before stays).
///
/// # Safety
/// The callback can be called with `user` by any thread until another one is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_log_set(
    callback: tllm_log_callback,
    user: *mut c_void,
    level: i32,
) -> i32 {
    guard(|| {
        if !(TLLM_LOG_OFF..=TLLM_LOG_TRACE).contains(&level) {
            return Err(Fault::new(
                TLLM_ERR_ARGUMENT,
                format!("level: expected {TLLM_LOG_OFF} to {TLLM_LOG_TRACE}, found {level}"),
            ));
        }
        if IN_CALLBACK.try_with(Cell::get).unwrap_or(false) {
            return Err(Fault::new(
                TLLM_ERR_BUSY,
                "tllm_log_set was called by a log callback".to_owned(),
            ));
        }
        // Nobody is left to call once this returns: a thread may have asked for the level before, and call after.
        let callback = callback.filter(|_| level != TLLM_LOG_OFF);
        let receiver = callback.map(|callback| Receiver {
            callback,
            user,
            level,
        });
        let level = receiver
            .as_ref()
            .map_or(TLLM_LOG_OFF, |receiver| receiver.level);
        *write_receiver()? = receiver;
        LEVEL.store(level, Ordering::Relaxed);
        subscribe();
        Ok(TLLM_OK)
    })
}

/// Longest time that a message may take before its callback is given up on.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// The place of the receiver, once no message is on its way. A callback may hang, and in the child of a fork one may stand there for
/// ever that a thread of the parent was in: who sets a callback does not hang with it.
fn write_receiver() -> Result<RwLockWriteGuard<'static, Option<Receiver>>, Fault> {
    let start = Instant::now();
    loop {
        match RECEIVER.try_write() {
            Ok(receiver) => return Ok(receiver),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if start.elapsed() > CALLBACK_TIMEOUT => {
                return Err(Fault::new(
                    TLLM_ERR_BUSY,
                    "the log callback before has not returned for a second".to_owned(),
                ));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Makes the callback the receiver of the library's own messages. This copy of `tracing` is the library's alone: its global
/// subscriber is no one else's.
fn subscribe() {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| {
        // Fails only in a program that links this crate as Rust and has a subscriber of its own: then that one gets the messages.
        let _own = tracing::subscriber::set_global_default(Forward);
    });
    tracing::callsite::rebuild_interest_cache();
}

/// Hands events to the callback.
struct Forward;

impl Forward {
    fn filter() -> LevelFilter {
        match LEVEL.load(Ordering::Relaxed) {
            TLLM_LOG_ERROR => LevelFilter::ERROR,
            TLLM_LOG_WARN => LevelFilter::WARN,
            TLLM_LOG_INFO => LevelFilter::INFO,
            TLLM_LOG_DEBUG => LevelFilter::DEBUG,
            TLLM_LOG_TRACE => LevelFilter::TRACE,
            _ => LevelFilter::OFF,
        }
    }
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Self::filter()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(Self::filter())
    }

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => TLLM_LOG_ERROR,
            Level::WARN => TLLM_LOG_WARN,
            Level::INFO => TLLM_LOG_INFO,
            Level::DEBUG => TLLM_LOG_DEBUG,
            Level::TRACE => TLLM_LOG_TRACE,
        };
        let mut line = Line::default();
        event.record(&mut line);
        if level == TLLM_LOG_ERROR
            && let Some(place) = take_panic_place()
        {
            // Writing into a string does not fail.
            let _written = write!(line.fields, " at={place}");
        }
        let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let (target, message) = (text(event.metadata().target()), text(&line.text()));
        // A message about a message would go round for ever.
        if IN_CALLBACK
            .try_with(|inside| inside.replace(true))
            .unwrap_or(true)
        {
            return;
        }
        let receiver = RECEIVER.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = receiver.as_ref().filter(|receiver| level <= receiver.level);
        if let Some(Receiver { callback, user, .. }) = wanted {
            // SAFETY: the host has vouched for callback and pointer until another one is set, which waits for this lock; both texts
            // end with a NUL and live until the call returns.
            unsafe { callback(*user, level, target.as_ptr(), message.as_ptr()) };
        }
        drop(receiver);
        let _left = IN_CALLBACK.try_with(|inside| inside.set(false));
    }

    // The library makes no spans.
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

/// An event's message, with its other fields behind it.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn text(&self) -> String {
        format!("{}{}", self.message, self.fields)
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a string does not fail.
        let _written = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _written = if field.name() == "message" {
            write!(self.message, "{value}")
        } else {
            write!(self.fields, " {}={value}", field.name())
        };
    }
}
