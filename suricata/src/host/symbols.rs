//! What of Suricata 8.0's C interface the plugin uses, found by name in the running process.
//!
//! Nothing is linked: a function that is missing is a message, where a linked one would make `dlopen` fail. The signatures are those
//! of Suricata's public headers.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::os::unix::Library;

/// A thing of Suricata's that the plugin only hands on.
macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])*
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            _opaque: [u8; 0],
        })*
    };
}

opaque! {
    /// A thread of Suricata.
    ThreadVars
    /// A flow of Suricata. Whoever has it holds its lock.
    Flow
    /// A packet of Suricata; see [`super::packet`] for what is read of it.
    Packet
    /// An EVE record that is being written.
    JsonBuilder
    /// A set of rules that is being loaded.
    DetectEngineCtx
    /// A rule that is being loaded.
    Signature
    /// State of a thread that matches rules.
    DetectEngineThreadCtx
    /// What a keyword keeps of its option in a rule.
    SigMatchCtx
    /// A node of suricata.yaml.
    ConfNode
}

/// Called for every packet of a flow, under the flow's lock, before detection.
pub type FlowUpdateFn = unsafe extern "C" fn(*mut ThreadVars, *mut Flow, *mut Packet, *mut c_void);
/// Called for every thread, on the thread that makes it, before it runs.
pub type ThreadInitFn = unsafe extern "C" fn(*mut ThreadVars, *mut c_void);
/// Called for every EVE record but `stats`, before its last brace; packet and flow may be NULL.
pub type EveFn =
    unsafe extern "C" fn(*mut ThreadVars, *const Packet, *mut Flow, *mut JsonBuilder, *mut c_void);
/// Frees what a flow has in its storage.
pub type StorageFreeFn = unsafe extern "C" fn(*mut c_void);
/// Parses a keyword's option; not 0 fails the rule.
pub type SetupFn =
    unsafe extern "C" fn(*mut DetectEngineCtx, *mut Signature, *const c_char) -> c_int;
/// Frees what `SetupFn` made.
pub type KeywordFreeFn = unsafe extern "C" fn(*mut DetectEngineCtx, *mut c_void);
/// Whether a keyword matches a packet.
pub type MatchFn = unsafe extern "C" fn(
    *mut DetectEngineThreadCtx,
    *mut Packet,
    *const Signature,
    *const SigMatchCtx,
) -> c_int;

/// A plugin as Suricata 8 knows it (`SCPlugin`).
#[repr(C)]
#[derive(Debug)]
pub struct PluginRecord {
    /// `SC_API_VERSION` of the host.
    pub version: u64,
    /// Of the host that it was made for.
    pub suricata_version: *const c_char,
    /// Name in Suricata's log.
    pub name: *const c_char,
    /// Version of the plugin.
    pub plugin_version: *const c_char,
    /// Licence of the plugin.
    pub license: *const c_char,
    /// Who made it.
    pub author: *const c_char,
    /// Called once, right after loading.
    pub init: unsafe extern "C" fn(),
}

/// A keyword as the helper takes it (`SCSigTableAppLiteElmt`).
#[repr(C)]
#[derive(Debug)]
pub struct KeywordRecord {
    /// Name in rules.
    pub name: *const c_char,
    /// What it does.
    pub description: *const c_char,
    /// Where it is described.
    pub url: *const c_char,
    /// `SIGMATCH_*`.
    pub flags: u16,
    /// Parses the option.
    pub setup: Option<SetupFn>,
    /// Frees what `setup` made.
    pub free: Option<KeywordFreeFn>,
    /// For transactions; not used.
    pub transaction_match: Option<unsafe extern "C" fn()>,
}

/// `FlowStorageId`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowStorageId {
    /// Negative where there is none.
    pub id: c_int,
}

macro_rules! symbols {
    ($($(#[$doc:meta])* $field:ident: $symbol:literal, $type:ty;)*) => {
        /// The functions, by what they do.
        #[derive(Debug)]
        pub struct Symbols {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Symbols {
            /// Finds all of them in the running process.
            ///
            /// # Errors
            /// The name of the first that is not there.
            pub fn find() -> Result<Self, &'static str> {
                let process = Library::this();
                Ok(Self {
                    $($field: {
                        // SAFETY: the type is that of the symbol in Suricata 8.0's headers, and the version was asked for before.
                        let found = unsafe { process.get::<$type>($symbol.as_bytes()) };
                        *found.map_err(|_| $symbol)?
                    },)*
                })
            }
        }
    };
}

symbols! {
    /// Has a function called for every packet of a flow.
    flow_register_update: "SCFlowRegisterUpdateCallback",
        unsafe extern "C" fn(FlowUpdateFn, *mut c_void) -> bool;
    /// Has a function called for every new thread.
    thread_register_init: "SCThreadRegisterInitCallback",
        unsafe extern "C" fn(ThreadInitFn, *mut c_void) -> bool;
    /// Has a function called for every EVE record.
    eve_register: "SCEveRegisterCallback", unsafe extern "C" fn(EveFn, *mut c_void) -> bool;
    /// Reserves a pointer in every flow.
    flow_storage_register: "FlowStorageRegister",
        unsafe extern "C" fn(
            *const c_char,
            c_uint,
            Option<unsafe extern "C" fn(c_uint) -> *mut c_void>,
            StorageFreeFn,
        ) -> FlowStorageId;
    /// Reads a flow's pointer.
    flow_storage_get: "FlowGetStorageById",
        unsafe extern "C" fn(*const Flow, FlowStorageId) -> *mut c_void;
    /// Sets a flow's pointer.
    flow_storage_set: "FlowSetStorageById",
        unsafe extern "C" fn(*mut Flow, FlowStorageId, *mut c_void) -> c_int;
    /// Makes a keyword and gives its number.
    keyword_register: "SCDetectHelperKeywordRegister", unsafe extern "C" fn(*const KeywordRecord) -> u16;
    /// Adds a keyword's option to a rule.
    rule_append: "SCSigMatchAppendSMToList",
        unsafe extern "C" fn(*mut DetectEngineCtx, *mut Signature, u16, *mut SigMatchCtx, c_int) -> *mut c_void;
    /// The table of keywords: the address of the variable that points to it.
    keyword_table: "sigmatch_table", *mut *mut u8;
    /// A node of suricata.yaml by its path.
    conf_node: "SCConfGetNode", unsafe extern "C" fn(*const c_char) -> *mut ConfNode;
    /// The first child of a node.
    conf_first: "SCConfGetFirstNode", unsafe extern "C" fn(*const ConfNode) -> *mut ConfNode;
    /// The node behind it.
    conf_next: "SCConfGetNextNode", unsafe extern "C" fn(*const ConfNode) -> *mut ConfNode;
    /// Whether a node's children are a list.
    conf_is_sequence: "SCConfNodeIsSequence", unsafe extern "C" fn(*const ConfNode) -> c_int;
    /// Where logs are written.
    log_directory: "SCConfigGetLogDirectory", unsafe extern "C" fn() -> *const c_char;
    /// Bytes of a record so far.
    json_bytes: "SCJbLen", unsafe extern "C" fn(*const JsonBuilder) -> usize;
    /// The record so far.
    json_start: "SCJbPtr", unsafe extern "C" fn(*mut JsonBuilder) -> *const u8;
    /// Adds `"key":value` as it stands.
    json_formatted: "SCJbSetFormatted", unsafe extern "C" fn(*mut JsonBuilder, *const c_char) -> bool;
    /// Writes to Suricata's log.
    log: "SCLogMessage",
        unsafe extern "C" fn(c_int, *const c_char, c_uint, *const c_char, *const c_char, *const c_char) -> c_int;
    /// In which mode Suricata runs.
    run_mode: "SCRunmodeGet", unsafe extern "C" fn() -> c_int;
    /// Whether packets of that mode come from a file.
    is_offline: "IsRunModeOffline", unsafe extern "C" fn(c_int) -> bool;
    /// Adds a counter that asks a function.
    stats_register: "StatsRegisterGlobalCounter",
        unsafe extern "C" fn(*const c_char, unsafe extern "C" fn() -> u64) -> u16;
    /// Whether there are statistics.
    stats_enabled: "StatsEnabled", unsafe extern "C" fn() -> bool;
    /// Most memory of flows; 0 until Suricata has prepared flows and, before them, statistics.
    flow_memory_limit: "FlowGetMemcap", unsafe extern "C" fn() -> u64;
    /// Makes a packet, of zeros.
    packet_new: "PacketGetFromAlloc", unsafe extern "C" fn() -> *mut Packet;
    /// Frees such a packet.
    packet_free: "PacketFree", unsafe extern "C" fn(*mut Packet);
    /// Sets a packet's bytes.
    packet_copy: "PacketCopyData", unsafe extern "C" fn(*mut Packet, *const u8, u32) -> c_int;
    /// Sets a packet's time.
    packet_set_time: "SCPacketSetTime", unsafe extern "C" fn(*mut Packet, u64);
    /// Sets where a packet came from.
    packet_set_source: "SCPacketSetSource", unsafe extern "C" fn(*mut Packet, c_int);
    /// Sets a packet's interface.
    packet_set_device: "SCPacketSetLiveDevice", unsafe extern "C" fn(*mut Packet, *mut c_void);
}

// SAFETY: the functions may be called by any thread as far as Suricata's own threads do; the table's address is a number until the one
// place that writes to it, in `Init`, when Suricata has one thread.
unsafe impl Send for Symbols {}
// SAFETY: as above; nothing of it changes after it was found.
unsafe impl Sync for Symbols {}

/// Version of the host as it says it, "8.0.7 RELEASE"; empty where it does not say it.
#[must_use]
pub fn program_version() -> String {
    type Version = unsafe extern "C" fn() -> *const c_char;
    let process = Library::this();
    // SAFETY: the function has had this type since Suricata 5.
    let Ok(version) = (unsafe { process.get::<Version>(b"GetProgramVersion") }) else {
        return String::new();
    };
    // SAFETY: it takes nothing and gives a static text.
    let text = unsafe { version() };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not NULL, and a C text for as long as the process lives.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
