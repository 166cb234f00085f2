//! libtrafficllm's C ABI, as `include/trafficllm.h` declares it. Held to `ffi/abi/layout.txt` and to the header by `tests/abi.rs`.

use std::ffi::{c_char, c_void};

/// `TLLM_ABI_VERSION` that this file was written for.
pub const ABI_VERSION: u32 = 0;

/// The statuses that the plugin tells apart.
pub mod status {
    /// `TLLM_OK`.
    pub const OK: i32 = 0;
    /// `TLLM_NEED_MORE`.
    pub const NEED_MORE: i32 = 2;
    /// `TLLM_ABSTAINED`.
    pub const ABSTAINED: i32 = 3;
    /// `TLLM_QUEUE_FULL`.
    pub const QUEUE_FULL: i32 = 4;
    /// `TLLM_EXPIRED`.
    pub const EXPIRED: i32 = 5;
    /// `TLLM_ABANDONED`.
    pub const ABANDONED: i32 = 6;
    /// `TLLM_FLOW_FULL`.
    pub const FLOW_FULL: i32 = 7;
    /// `TLLM_NOT_APPLICABLE`.
    pub const NOT_APPLICABLE: i32 = 11;
    /// `TLLM_ERR_HANDLE`.
    pub const ERR_HANDLE: i32 = -3;
    /// `TLLM_ERR_BUSY`.
    pub const ERR_BUSY: i32 = -4;
    /// `TLLM_ERR_FORKED`.
    pub const ERR_FORKED: i32 = -16;
    /// `TLLM_ERR_PANIC`.
    pub const ERR_PANIC: i32 = -17;
}

/// `TLLM_FROM_INITIATOR`.
pub const FROM_INITIATOR: u8 = 0;
/// `TLLM_FROM_RESPONDER`.
pub const FROM_RESPONDER: u8 = 1;
/// `TLLM_REASON_BYTES`.
pub const REASON_BYTES: usize = 16;
/// `TLLM_EVIDENCE_BYTES`.
pub const EVIDENCE_BYTES: usize = 248;
/// `TLLM_TASK_BYTES`.
pub const TASK_BYTES: usize = 64;
/// `TLLM_LABEL_BYTES`.
pub const LABEL_BYTES: usize = 128;
/// `TLLM_MODEL_ID_BYTES`.
pub const MODEL_ID_BYTES: usize = 24;
/// Most entries of one answer: no model has more tasks.
pub const ANSWER_ENTRIES_MAX: usize = 64;

/// Something that the library gives a number to.
pub type Handle = *mut c_void;

/// `tllm_log_callback`.
pub type LogFn = unsafe extern "C" fn(*mut c_void, i32, *const c_char, *const c_char);

/// Texts of the library's structs end with a NUL within their field.
macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident = $c_name:literal { $($field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            $(#[doc = concat!("`", $c_name, ".", stringify!($field), "`")] pub $field: $type,)*
        }

        impl $name {
            /// All zeros, which every field of these structs may be.
            pub const ZERO: Self = {
                // SAFETY: integers, floats and pointers; zeros are a value of each.
                unsafe { std::mem::zeroed() }
            };
        })*

        /// Size, alignment and the fields' names, offsets and sizes of every struct, as `ffi/abi/layout.txt` lists them.
        #[must_use]
        pub fn layout() -> Vec<(&'static str, usize, usize, Vec<(&'static str, usize, usize)>)> {
            vec![$((
                $c_name,
                size_of::<$name>(),
                align_of::<$name>(),
                vec![$((
                    stringify!($field),
                    std::mem::offset_of!($name, $field),
                    size_of::<$type>(),
                )),*],
            )),*]
        }
    };
}

structs! {
    /// What a model is.
    ModelInfo = "tllm_model_info" {
        id: [u8; MODEL_ID_BYTES],
        profile: [u8; 64],
        level: [u8; 16],
        memory_bytes: u64,
        tasks: u32,
        tokens_max: u32,
        reserved: [u64; 4],
    }
    /// What a task of a model is.
    TaskInfo = "tllm_task_info" {
        name: [u8; TASK_BYTES],
        kind: u32,
        labels: u32,
        threshold: f32,
        reserved0: u32,
        reserved: [u64; 2],
    }
    /// What an engine holds in memory.
    Memory = "tllm_memory" {
        model_bytes: u64,
        retired_bytes: u64,
        worker_bytes: u64,
        classifier_bytes: u64,
        queue_bytes: u64,
        flow_bytes: u64,
        head_bytes: u64,
        device_bytes: u64,
        reserved: [u64; 2],
    }
    /// How long judgements took.
    Latency = "tllm_latency" {
        count: u64,
        sum_us: u64,
        median_us: u64,
        p90_us: u64,
        p99_us: u64,
        reserved: [u64; 4],
    }
    /// What became of the flows that were submitted.
    Counters = "tllm_counters" {
        submitted: u64,
        done: u64,
        shed: u64,
        expired: u64,
        abandoned: u64,
        failed: u64,
        in_flight: u64,
        waiting: u64,
        generation: u64,
        activations: u64,
        activations_failed: u64,
        batches: u64,
        worker_panics: u64,
        flows: u64,
        packets: u64,
        packets_beyond_limit: u64,
        payload_bytes_cut: u64,
        time_backwards: u64,
        device_batches: u64,
        device_failures: u64,
        reserved: [u64; 2],
    }
    /// What is known of a flow before its first packet.
    FlowInfo = "tllm_flow_info" {
        struct_size: u32,
        protocol: u8,
        ip_version: u8,
        initiator_port: u16,
        responder_port: u16,
        reserved0: u16,
        reserved1: u32,
        initiator: [u8; 16],
        responder: [u8; 16],
        reserved: [u64; 2],
    }
    /// One packet.
    Packet = "tllm_packet" {
        struct_size: u32,
        direction: u8,
        tcp_flags: u8,
        reserved0: u16,
        time_ns: u64,
        ip_bytes: u32,
        payload_bytes: u32,
        payload: *const u8,
        payload_size: usize,
        reserved: [u64; 2],
    }
    /// One task's verdict on one flow.
    Verdict = "tllm_verdict" {
        status: i32,
        position: u32,
        entries: u32,
        task: u32,
        label: u32,
        score: f32,
        id: u64,
        generation: u64,
        latency_us: u64,
        task_name: [u8; TASK_BYTES],
        label_name: [u8; LABEL_BYTES],
        model_id: [u8; MODEL_ID_BYTES],
        reserved: [u64; 2],
        reason: [u8; REASON_BYTES],
        evidence: [u8; EVIDENCE_BYTES],
    }
}

/// A text that stands in a field of a struct, up to its NUL.
#[must_use]
pub fn field_text(field: &[u8]) -> &str {
    let end = field.iter().position(|&byte| byte == 0);
    std::str::from_utf8(&field[..end.unwrap_or(field.len())]).unwrap_or_default()
}

macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident: $symbol:literal, fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library's functions.
        #[derive(Clone, Copy, Debug)]
        pub struct Functions {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            /// The names of all of them, each with the number of its arguments.
            pub const NAMES: &'static [(&'static str, usize)] =
                &[$(($symbol, { const ARGUMENTS: &[&str] = &[$(stringify!($argument)),*]; ARGUMENTS.len() })),*];

            /// Finds all of them.
            ///
            /// # Errors
            /// The name of the first that is not there.
            pub fn find(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the type is that of the function in include/trafficllm.h, and the ABI number was compared before.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol.as_bytes())
                        };
                        *found.map_err(|_| $symbol)?
                    },)*
                })
            }
        }
    };
}

functions! {
    /// The library's version as text.
    version: "tllm_version", fn() -> *const c_char;
    /// A text for a status.
    status_string: "tllm_status_string", fn(i32) -> *const c_char;
    /// The last error of this thread.
    last_error: "tllm_last_error", fn(*mut c_char, usize, *mut usize) -> i32;
    /// Whether this processor can run it.
    check_platform: "tllm_check_platform", fn() -> i32;
    /// Where messages go.
    log_set: "tllm_log_set", fn(Option<LogFn>, *mut c_void, i32) -> i32;
    /// A config.
    config_new: "tllm_config_new", fn(*mut Handle) -> i32;
    /// Sets a key of it.
    config_set: "tllm_config_set", fn(Handle, *const c_char, *const c_char) -> i32;
    /// Frees it.
    config_free: "tllm_config_free", fn(Handle) -> i32;
    /// Opens a bundle.
    model_open: "tllm_model_open", fn(*const c_char, Handle, *mut Handle) -> i32;
    /// Opens the bundle that is compiled in.
    model_open_default: "tllm_model_open_default", fn(Handle, *mut Handle) -> i32;
    /// Says what a model is.
    model_describe: "tllm_model_describe", fn(Handle, *mut ModelInfo, usize) -> i32;
    /// Says what a task is.
    model_task: "tllm_model_task", fn(Handle, usize, *mut TaskInfo, usize) -> i32;
    /// Says what a label is.
    model_label: "tllm_model_label", fn(Handle, usize, usize, *mut c_char, usize, *mut usize) -> i32;
    /// Frees a model.
    model_free: "tllm_model_free", fn(Handle) -> i32;
    /// Makes an engine.
    engine_new: "tllm_engine_new", fn(Handle, Handle, *mut Handle) -> i32;
    /// Starts its workers.
    engine_start: "tllm_engine_start", fn(Handle) -> i32;
    /// Stops them.
    engine_stop: "tllm_engine_stop", fn(Handle, u64) -> i32;
    /// Changes the model.
    engine_activate_model: "tllm_engine_activate_model", fn(Handle, Handle) -> i32;
    /// Reads the counters.
    engine_counters: "tllm_engine_counters", fn(Handle, *mut Counters, usize) -> i32;
    /// Reads how long judgements took.
    engine_latency: "tllm_engine_latency", fn(Handle, *mut Latency, usize) -> i32;
    /// Reads what is held in memory.
    engine_memory: "tllm_engine_memory", fn(Handle, *mut Memory, usize) -> i32;
    /// Writes all that in Prometheus' format.
    engine_metrics: "tllm_engine_metrics", fn(Handle, *mut c_char, usize, *mut usize) -> i32;
    /// Prepares a `FlowInfo`.
    flow_info_init: "tllm_flow_info_init", fn(*mut FlowInfo, usize) -> i32;
    /// Prepares a `Packet`.
    packet_init: "tllm_packet_init", fn(*mut Packet, usize) -> i32;
    /// Makes a flow.
    flow_new: "tllm_flow_new", fn(Handle, *const FlowInfo, *mut Handle) -> i32;
    /// Adds a packet.
    flow_feed: "tllm_flow_feed", fn(Handle, *const Packet) -> i32;
    /// Empties a flow for another connection.
    flow_reset: "tllm_flow_reset", fn(Handle, *const FlowInfo) -> i32;
    /// Frees a flow.
    flow_free: "tllm_flow_free", fn(Handle) -> i32;
    /// Makes a session.
    session_new: "tllm_session_new", fn(Handle, *mut Handle) -> i32;
    /// Puts a flow into the queue.
    session_submit: "tllm_session_submit", fn(Handle, Handle, u64) -> i32;
    /// Takes answers.
    session_poll: "tllm_session_poll", fn(Handle, *mut Verdict, usize, usize, *mut usize) -> i32;
    /// Waits for answers.
    session_wait: "tllm_session_wait", fn(Handle, u64, *mut Verdict, usize, usize, *mut usize) -> i32;
    /// Frees a session.
    session_free: "tllm_session_free", fn(Handle) -> i32;
}
