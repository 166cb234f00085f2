//! Suricata 8.0 as the plugin sees it: everything that is called or read of the host goes through here.

pub mod conf;
pub mod layout;
pub mod packet;
pub mod symbols;

use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use symbols::{
    EveFn, Flow, FlowStorageId, FlowUpdateFn, JsonBuilder, StorageFreeFn, Symbols, ThreadInitFn,
};

/// Levels of Suricata's log (`SCLogLevel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// Something does not work.
    Error = 1,
    /// Something should be looked at.
    Warning = 2,
    /// What everybody should see.
    Notice = 3,
    /// What happens seldom.
    Info = 4,
    /// For those who look for a fault.
    Debug = 7,
}

static HOST: OnceLock<Host> = OnceLock::new();

/// The host's functions, and the plugin's place in flows.
#[derive(Debug)]
pub struct Host {
    symbols: Symbols,
    storage: OnceLock<FlowStorageId>,
}

/// Finds the host's functions, once.
///
/// # Errors
/// The name of a function that the process does not have.
pub fn attach() -> Result<&'static Host, &'static str> {
    if let Some(host) = HOST.get() {
        return Ok(host);
    }
    let host = Host {
        symbols: Symbols::find()?,
        storage: OnceLock::new(),
    };
    Ok(HOST.get_or_init(|| host))
}

/// The host, if it was attached to.
#[must_use]
pub fn get() -> Option<&'static Host> {
    HOST.get()
}

/// Set when Suricata's log is closed.
static IS_LOG_CLOSED: AtomicBool = AtomicBool::new(false);

/// Suricata's log is closed: nothing is written to it any more.
pub fn close_log() {
    IS_LOG_CLOSED.store(true, Ordering::SeqCst);
}

/// Writes a line to Suricata's log; without a host nothing happens.
pub fn log(level: Level, text: &str) {
    let Some(host) = get().filter(|_| !IS_LOG_CLOSED.load(Ordering::SeqCst)) else {
        return;
    };
    let clean: String = text.chars().filter(|&letter| letter != '\0').collect();
    let Ok(message) = CString::new(clean) else {
        return;
    };
    // SAFETY: all texts are C texts that outlive the call; the function copies them.
    unsafe {
        (host.symbols.log)(
            level as i32,
            c"plugin".as_ptr(),
            0,
            c"trafficllm".as_ptr(),
            c"trafficllm".as_ptr(),
            message.as_ptr(),
        );
    }
}

impl Host {
    /// The functions themselves, for the modules of this folder and the keywords.
    #[must_use]
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Reserves the plugin's pointer in flows; `free` gets what a flow has when it ends. Only before the storages are laid out.
    #[must_use]
    pub fn reserve_storage(&self, name: &'static CStr, free: StorageFreeFn) -> bool {
        let pointer_bytes = size_of::<*mut c_void>() as u32;
        // SAFETY: the name is static, `free` takes what `set_stored` was given, and no allocator is needed for a bare pointer.
        let id = unsafe {
            (self.symbols.flow_storage_register)(name.as_ptr(), pointer_bytes, None, free)
        };
        id.id >= 0 && self.storage.set(id).is_ok()
    }

    /// Has `function` called for every packet of a flow.
    #[must_use]
    pub fn on_flow_update(&self, function: FlowUpdateFn) -> bool {
        // SAFETY: the function has the type that Suricata calls; no data goes with it.
        unsafe { (self.symbols.flow_register_update)(function, std::ptr::null_mut()) }
    }

    /// Has `function` called for every thread that is made.
    #[must_use]
    pub fn on_thread_init(&self, function: ThreadInitFn) -> bool {
        // SAFETY: as above.
        unsafe { (self.symbols.thread_register_init)(function, std::ptr::null_mut()) }
    }

    /// Has `function` called for every EVE record.
    #[must_use]
    pub fn on_eve_record(&self, function: EveFn) -> bool {
        // SAFETY: as above.
        unsafe { (self.symbols.eve_register)(function, std::ptr::null_mut()) }
    }

    /// What the flow has in the plugin's place: NULL, or what [`Host::set_stored`] put there.
    ///
    /// # Safety
    /// `flow` is a live flow whose lock the calling thread holds.
    #[must_use]
    pub unsafe fn stored(&self, flow: *const Flow) -> *mut c_void {
        match self.storage.get() {
            // SAFETY: the caller vouches for the flow; the number is that of a registered storage.
            Some(&id) => unsafe { (self.symbols.flow_storage_get)(flow, id) },
            None => std::ptr::null_mut(),
        }
    }

    /// Puts something in the plugin's place; whether it is there now.
    ///
    /// # Safety
    /// As [`Host::stored`]; `value` is what the free function of the storage takes.
    #[must_use]
    pub unsafe fn set_stored(&self, flow: *mut Flow, value: *mut c_void) -> bool {
        match self.storage.get() {
            // SAFETY: as above.
            Some(&id) => unsafe { (self.symbols.flow_storage_set)(flow, id, value) == 0 },
            None => false,
        }
    }

    /// Whether packets come from a file and nobody waits for them.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        // SAFETY: both take and give numbers.
        unsafe { (self.symbols.is_offline)((self.symbols.run_mode)()) }
    }

    /// Adds a counter to Suricata's statistics. Where there are none, or none yet, nothing happens; what is there is not added again.
    ///
    /// With its unix socket Suricata makes threads before statistics, and new statistics for each capture: so this is for each
    /// thread that is made.
    pub fn add_counter(&self, name: &'static CStr, read: unsafe extern "C" fn() -> u64) {
        // SAFETY: the name is static; the function can be called on any thread at any time. Adding is allowed once statistics are
        // prepared, which is right before the limit of flows' memory is set.
        unsafe {
            if (self.symbols.stats_enabled)() && (self.symbols.flow_memory_limit)() > 0 {
                (self.symbols.stats_register)(name.as_ptr(), read);
            }
        }
    }

    /// The folder of Suricata's logs.
    #[must_use]
    pub fn log_directory(&self) -> PathBuf {
        // SAFETY: it gives a text of the configuration, which stays.
        let text = unsafe { (self.symbols.log_directory)() };
        if text.is_null() {
            return PathBuf::from(".");
        }
        // SAFETY: not NULL, a C text.
        PathBuf::from(
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned(),
        )
    }

    /// The first bytes of a record that is being written, at most `limit`.
    ///
    /// # Safety
    /// `record` is the live record of an EVE callback; the bytes are gone with the next call that changes it.
    #[must_use]
    pub unsafe fn record_start<'a>(&self, record: *mut JsonBuilder, limit: usize) -> &'a [u8] {
        // SAFETY: the caller vouches for the record.
        let (start, bytes) = unsafe {
            (
                (self.symbols.json_start)(record),
                (self.symbols.json_bytes)(record),
            )
        };
        if start.is_null() {
            return &[];
        }
        // SAFETY: so many bytes stand there, until the record changes.
        unsafe { std::slice::from_raw_parts(start, bytes.min(limit)) }
    }

    /// Adds `"key":value`, whose JSON the caller has made, to a record.
    ///
    /// # Safety
    /// `record` is the live record of an EVE callback.
    #[must_use]
    pub unsafe fn add_to_record(&self, record: *mut JsonBuilder, member: &CStr) -> bool {
        // SAFETY: the caller vouches for the record; the text is copied.
        unsafe { (self.symbols.json_formatted)(record, member.as_ptr()) }
    }
}
