//! Plugin for Suricata 8.0: gives its flows the verdicts of libtrafficllm, in EVE records, rules and statistics.
//!
//! Suricata loads the library, calls [`SCPluginRegister`] and then `init`. Everything after that happens in its callbacks:
//!
//! | callback | module | what it does |
//! |---|---|---|
//! | packet of a flow | [`collect`] | feeds the flow's record, has it judged, takes answers |
//! | EVE record | [`eve`] | writes the `trafficllm` object |
//! | rule keyword | [`keywords`] | compares verdicts |
//! | end of a flow | [`collect`] | lets go of the flow, its verdict may still come |
//! | new thread | this file | starts the engine, once, after Suricata has forked |
//!
//! One thread of the plugin's own ([`background`]) does what must not be done on a packet's way: flows that rest, late verdicts,
//! metrics, new models. Whatever goes wrong, Suricata goes on: a wrong setting disables the plugin, a panic of it ends its work, and no
//! callback waits for another thread unless captures are read from files.

#![allow(
    unsafe_code,
    reason = "the plugin is called by C and calls C: each block says why it is sound"
)]

pub mod background;
pub mod collect;
pub mod config;
pub mod counters;
pub mod eve;
pub mod host;
pub mod keywords;
pub mod late;
pub mod lib_log;
pub mod library;
pub mod limits;
pub mod plugin;
pub mod reload;
pub mod session;
pub mod table;
pub mod verdict;

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::Ordering;

use config::Config;
use host::symbols::{PluginRecord, ThreadVars, program_version};
use host::{Host, Level, log};

/// `SC_API_VERSION` of Suricata 8.0.
const API_VERSION: u64 = 0x0800;
/// Versions of Suricata that the plugin knows.
const HOST_VERSIONS: &str = "8.0.";

const NAME: &CStr = c"trafficllm";
const LICENSE: &CStr = c"GPL-2.0-only";
const AUTHOR: &CStr = c"The libtrafficllm developers";
const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// Runs what a callback does. A panic ends the plugin's work, and is answered with `otherwise`.
pub(crate) fn guarded<R>(otherwise: R, function: impl FnOnce() -> R) -> R {
    // What a panic leaves half done is not used any more: the plugin is halted.
    catch_unwind(AssertUnwindSafe(function)).unwrap_or_else(|_| {
        plugin::halt("a defect, caught");
        otherwise
    })
}

/// A record that lives as long as the process.
#[repr(transparent)]
struct Static<T>(T);

// SAFETY: texts and functions that never change.
unsafe impl<T> Sync for Static<T> {}

static RECORD: Static<PluginRecord> = Static(PluginRecord {
    version: API_VERSION,
    suricata_version: c"8.0".as_ptr(),
    name: NAME.as_ptr(),
    plugin_version: VERSION.as_ptr(),
    license: LICENSE.as_ptr(),
    author: AUTHOR.as_ptr(),
    init,
});

/// A plugin as Suricata 6 and 7 know it: without a version they would take the first field of the other for the name.
#[repr(C)]
struct OldPluginRecord {
    name: *const c_char,
    license: *const c_char,
    author: *const c_char,
    init: unsafe extern "C" fn(),
}

static OLD_RECORD: Static<OldPluginRecord> = Static(OldPluginRecord {
    // All that they log of a plugin: so this is where it says what is wrong.
    name: c"trafficllm (disabled: it needs Suricata 8.0)".as_ptr(),
    license: LICENSE.as_ptr(),
    author: AUTHOR.as_ptr(),
    init: refuse,
});

/// What Suricata calls first.
#[unsafe(no_mangle)]
pub extern "C" fn SCPluginRegister() -> *const c_void {
    let major = program_version()
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < 8) {
        return (&raw const OLD_RECORD.0).cast();
    }
    // From 9 on Suricata compares the version itself, and says that it is another.
    (&raw const RECORD.0).cast()
}

/// Suricata 7 or older: nothing is done there.
unsafe extern "C" fn refuse() {}

unsafe extern "C" fn init() {
    guarded((), || {
        if let Err(reason) = start() {
            log(Level::Error, &format!("{reason}; the plugin is disabled"));
        }
    });
}

/// Makes everything that needs no thread.
fn start() -> Result<(), String> {
    let host = host::attach().map_err(|name| format!("this Suricata has no {name}"))?;
    let version = program_version();
    if !version.starts_with(HOST_VERSIONS) {
        return Err(format!(
            "expected Suricata {HOST_VERSIONS}x, found {version}"
        ));
    }
    host::layout::check(host).map_err(|mismatch| format!("Suricata {version}: {mismatch}"))?;
    let Some(block) = host.block(config::BLOCK) else {
        return Err("suricata.yaml has no block trafficllm".to_owned());
    };
    let config = Config::read(&block).map_err(|error| error.to_string())?;
    if !config.enabled {
        log(Level::Notice, "disabled by trafficllm.enabled");
        return Ok(());
    }
    config
        .check_files(&host.log_directory())
        .map_err(|error| error.to_string())?;
    let plugin = plugin::make(host, config).map_err(|error| error.to_string())?;
    hook(host).inspect_err(|what| {
        // What is registered already stays so: without a plugin it does nothing.
        plugin::halt(what);
    })?;
    reload::remember(plugin);
    log(Level::Notice, &plugin.introduction());
    Ok(())
}

/// Has Suricata call the plugin.
fn hook(host: &Host) -> Result<(), String> {
    let expect = |is_done: bool, what: &str| {
        if is_done {
            Ok(())
        } else {
            Err(format!("Suricata refuses {what}"))
        }
    };
    keywords::register(host)?;
    let is_reserved = host.reserve_storage(c"trafficllm", collect::on_free);
    expect(is_reserved, "a place in its flows")?;
    expect(host.on_flow_update(collect::on_packet), "the flow callback")?;
    expect(host.on_eve_record(eve::on_record), "the EVE callback")?;
    expect(host.on_thread_init(on_thread), "the thread callback")
}

/// Suricata makes a thread: it has forked and dropped its privileges, and threads of the plugin's own live from now on.
unsafe extern "C" fn on_thread(_thread: *mut ThreadVars, _data: *mut c_void) {
    static STARTED: Once = Once::new();
    let Some(plugin) = plugin::get() else { return };
    guarded((), || {
        counters::register(plugin.host);
        STARTED.call_once(|| {
            plugin
                .is_offline
                .store(plugin.host.is_offline(), Ordering::Relaxed);
            if let Err(reason) = background::start(plugin) {
                plugin::halt(&reason);
            }
        });
    });
}
