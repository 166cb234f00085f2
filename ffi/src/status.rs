//! What functions return: 0 is done, negative is an error with a text, positive is a state. Numbers never change their meaning.

use std::ffi::{CStr, c_char};

use crate::boundary::guard_total;

/// Done.
pub const TLLM_OK: i32 = 0;

/// Nothing has come yet: ask again later.
pub const TLLM_PENDING: i32 = 1;
/// The flow has fewer packets than `flow.min_packets` asks for. Nothing was submitted.
pub const TLLM_NEED_MORE: i32 = 2;
/// The verdict's score is below its threshold: the model does not know. The best label is named all the same.
pub const TLLM_ABSTAINED: i32 = 3;
/// The queue is full: the flow was shed, and is counted so.
pub const TLLM_QUEUE_FULL: i32 = 4;
/// The flow's deadline passed before its turn came.
pub const TLLM_EXPIRED: i32 = 5;
/// The engine was stopped before the turn of these flows came.
pub const TLLM_ABANDONED: i32 = 6;
/// The flow keeps no more packets: later ones are counted only, and cannot change its verdict.
pub const TLLM_FLOW_FULL: i32 = 7;
/// The time is over and workers of the engine still run their last batch; or what was freed is in use by a call, and goes when that
/// returns.
pub const TLLM_RUNNING: i32 = 8;
/// The callback ended it.
pub const TLLM_CANCELLED: i32 = 9;
/// There is no entry of this number: the end of a list.
pub const TLLM_END: i32 = 10;
/// None of the chosen tasks can judge this flow or request.
pub const TLLM_NOT_APPLICABLE: i32 = 11;

/// A pointer that must not be NULL is NULL.
pub const TLLM_ERR_NULL: i32 = -1;
/// An argument or a field has a value that is not allowed.
pub const TLLM_ERR_ARGUMENT: i32 = -2;
/// Not a live handle of this kind: freed before, of another kind, or never one.
pub const TLLM_ERR_HANDLE: i32 = -3;
/// The session, flow or config is in use by another thread, or by the callback that this call comes from.
pub const TLLM_ERR_BUSY: i32 = -4;
/// The buffer is too small; what is needed was written.
pub const TLLM_ERR_BUFFER: i32 = -5;
/// No configuration key of this name.
pub const TLLM_ERR_KEY: i32 = -6;
/// A configuration value that its key does not allow.
pub const TLLM_ERR_VALUE: i32 = -7;
/// The system could not read or give something.
pub const TLLM_ERR_IO: i32 = -8;
/// The bundle is broken, or does not fit to its use.
pub const TLLM_ERR_MODEL: i32 = -9;
/// This processor or system cannot run the library.
pub const TLLM_ERR_PLATFORM: i32 = -10;
/// The system gave no memory.
pub const TLLM_ERR_MEMORY: i32 = -11;
/// More than `engine.memory_bytes_max` would be needed.
pub const TLLM_ERR_BUDGET: i32 = -12;
/// A limit on the number of things is reached.
pub const TLLM_ERR_LIMIT: i32 = -13;
/// The system gave no thread.
pub const TLLM_ERR_THREAD: i32 = -14;
/// The engine was stopped.
pub const TLLM_ERR_STOPPED: i32 = -15;
/// The process was forked after the engine was started: its threads are not in this process.
pub const TLLM_ERR_FORKED: i32 = -16;
/// A defect of the library, caught at the border. The session, flow or config of the call cannot be used any more.
pub const TLLM_ERR_PANIC: i32 = -17;
/// The flow was lost to a defect in the model or in a worker; the engine goes on.
pub const TLLM_ERR_WORKER: i32 = -18;
/// The text does not start like an HTTP request.
pub const TLLM_ERR_REQUEST: i32 = -19;
/// The capture could not be read to its end; what was read is reported.
pub const TLLM_ERR_CAPTURE: i32 = -20;
/// `struct_size` is too small or too large, or a reserved byte is not zero: the struct was not initialised by its function.
pub const TLLM_ERR_STRUCT: i32 = -21;
/// A text is longer than the border takes, or not UTF-8.
pub const TLLM_ERR_TEXT: i32 = -22;
/// No task of this name or number in the model.
pub const TLLM_ERR_TASK: i32 = -23;
/// The library was built without this part.
pub const TLLM_ERR_UNSUPPORTED: i32 = -24;

/// The engine has workers and was not started: nobody would judge.
pub const TLLM_ERR_NOT_STARTED: i32 = -25;
/// The device that "engine.device" names cannot be used; the text says what is missing.
pub const TLLM_ERR_DEVICE: i32 = -26;

/// All status codes with the texts of [`tllm_status_string`].
pub(crate) const STATUSES: [(i32, &CStr); 38] = [
    (TLLM_OK, c"done"),
    (TLLM_PENDING, c"nothing has come yet"),
    (TLLM_NEED_MORE, c"the flow needs more packets"),
    (TLLM_ABSTAINED, c"the model does not know"),
    (TLLM_QUEUE_FULL, c"the queue is full: the flow was shed"),
    (TLLM_EXPIRED, c"the deadline passed"),
    (TLLM_ABANDONED, c"abandoned: the engine was stopped"),
    (TLLM_FLOW_FULL, c"the flow keeps no more packets"),
    (TLLM_RUNNING, c"still at work"),
    (TLLM_CANCELLED, c"ended by the callback"),
    (TLLM_END, c"no entry of this number"),
    (TLLM_NOT_APPLICABLE, c"no chosen task applies"),
    (TLLM_ERR_NULL, c"a pointer is NULL"),
    (TLLM_ERR_ARGUMENT, c"a value is not allowed"),
    (TLLM_ERR_HANDLE, c"not a live handle of this kind"),
    (TLLM_ERR_BUSY, c"in use by another thread"),
    (TLLM_ERR_BUFFER, c"the buffer is too small"),
    (TLLM_ERR_KEY, c"no configuration key of this name"),
    (TLLM_ERR_VALUE, c"the configuration value is not allowed"),
    (TLLM_ERR_IO, c"the system refused"),
    (TLLM_ERR_MODEL, c"the model bundle cannot be used"),
    (
        TLLM_ERR_PLATFORM,
        c"this processor or system cannot run the library",
    ),
    (TLLM_ERR_MEMORY, c"no memory"),
    (TLLM_ERR_BUDGET, c"the memory budget is reached"),
    (TLLM_ERR_LIMIT, c"a limit is reached"),
    (TLLM_ERR_THREAD, c"no thread"),
    (TLLM_ERR_STOPPED, c"the engine was stopped"),
    (
        TLLM_ERR_FORKED,
        c"the process was forked after the engine was started",
    ),
    (TLLM_ERR_PANIC, c"a defect of the library"),
    (TLLM_ERR_WORKER, c"the flow was lost to a defect"),
    (TLLM_ERR_REQUEST, c"not an HTTP request"),
    (
        TLLM_ERR_CAPTURE,
        c"the capture could not be read to its end",
    ),
    (TLLM_ERR_STRUCT, c"the struct was not initialised"),
    (TLLM_ERR_TEXT, c"a text is too long or not UTF-8"),
    (TLLM_ERR_TASK, c"no such task"),
    (TLLM_ERR_UNSUPPORTED, c"the library was built without this"),
    (TLLM_ERR_NOT_STARTED, c"the engine was not started"),
    (TLLM_ERR_DEVICE, c"the device cannot be used"),
];

/// A short text for any status, static and never NULL; "unknown status" for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_status_string(status: i32) -> *const c_char {
    let known = STATUSES.iter().find(|(code, _)| *code == status);
    guard_total(|| known.map_or(c"unknown status", |(_, text)| text)).as_ptr()
}
