//! A system that refuses a large buffer costs the host a status and nothing else: no abort, no leak, and the same call works later.
//!
//! Each sweep refuses the first large allocation of a call, then the second, and so on until none is refused any more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use trafficllm_ffi::*;

/// From this size on an allocation may be refused.
const LARGE_BYTES: usize = 64 * 1024;

thread_local! {
    /// Least bytes of an allocation of this thread that may be refused.
    static REFUSED_FROM_BYTES: Cell<usize> = const { Cell::new(LARGE_BYTES) };
    /// Large allocations of this thread that are still granted before one is refused; below 0 all are.
    static GRANTED: Cell<i64> = const { Cell::new(-1) };
    /// Large allocations of this thread that were refused.
    static REFUSED: Cell<u64> = const { Cell::new(0) };
    /// Large blocks that this thread has taken and not given back.
    static LARGE_BLOCKS: Cell<i64> = const { Cell::new(0) };
}

struct Refusing;

impl Refusing {
    fn refuses(bytes: usize) -> bool {
        if GRANTED.get() < 0 || bytes < REFUSED_FROM_BYTES.get() {
            return false;
        }
        let refuses = GRANTED.get() == 0;
        GRANTED.set(GRANTED.get() - 1);
        REFUSED.set(REFUSED.get() + u64::from(refuses));
        refuses
    }

    fn count(before: usize, after: usize) {
        let change = i64::from(after >= LARGE_BYTES) - i64::from(before >= LARGE_BYTES);
        // A thread that is ending has nothing to count.
        let _counted = LARGE_BLOCKS.try_with(|blocks| blocks.set(blocks.get() + change));
    }
}

// SAFETY: a call is refused with a null pointer or goes on to the system's allocator unchanged; deciding and counting touch no memory
// of the caller and allocate nothing.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::refuses(layout.size()) {
            return null_mut();
        }
        Self::count(0, layout.size());
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Self::refuses(layout.size()) {
            return null_mut();
        }
        Self::count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Self::refuses(size) {
            return null_mut();
        }
        Self::count(layout.size(), size);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        Self::count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static REFUSING: Refusing = Refusing;

/// Refuses each large allocation of `call` in turn: it has to answer TLLM_ERR_MEMORY and to keep no large block. At the end the call
/// works; `undo` takes back what it made. Gives the number of large allocations.
fn sweep(what: &str, mut call: impl FnMut() -> i32, mut undo: impl FnMut()) -> i64 {
    // What is made once and stays (tables of handles) is made now.
    assert_eq!(call(), TLLM_OK, "{what}: {}", last_error());
    undo();
    let before = LARGE_BLOCKS.get();
    for granted in 0..2_000 {
        REFUSED.set(0);
        GRANTED.set(granted);
        let status = call();
        GRANTED.set(-1);
        if REFUSED.get() == 0 {
            assert_eq!(status, TLLM_OK, "{what}: {}", last_error());
            undo();
            assert_eq!(LARGE_BLOCKS.get(), before, "{what}: a block is left");
            return granted;
        }
        assert_eq!(
            status,
            TLLM_ERR_MEMORY,
            "{what}, refusal {granted}: {}",
            last_error()
        );
        assert_eq!(
            LARGE_BLOCKS.get(),
            before,
            "{what}, refusal {granted}: a block is left"
        );
        assert!(
            last_error().contains("memory") || last_error().contains("bytes"),
            "{}",
            last_error()
        );
    }
    panic!("{what}: large allocations without end");
}

fn last_error() -> String {
    let mut text = vec![0_u8; 4_096];
    // SAFETY: the buffer has that room.
    unsafe { tllm_last_error(text.as_mut_ptr().cast(), text.len(), null_mut()) };
    let end = text.iter().position(|&byte| byte == 0).unwrap();
    String::from_utf8(text[..end].to_vec()).unwrap()
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn default_bundle() -> CString {
    c_path(&tests().join("../runtime/bundle/default.tllm"))
}

fn config(settings: &[(&str, &str)]) -> *mut tllm_config {
    let mut config = null_mut();
    // SAFETY: all pointers are to live things, all texts end with a NUL.
    unsafe {
        assert_eq!(tllm_config_new(&raw mut config), TLLM_OK);
        for (key, value) in settings {
            let (key, value) = (CString::new(*key).unwrap(), CString::new(*value).unwrap());
            let status = tllm_config_set(config, key.as_ptr(), value.as_ptr());
            assert_eq!(status, TLLM_OK, "{}", last_error());
        }
    }
    config
}

fn model() -> *mut tllm_model {
    let mut model = null_mut();
    // SAFETY: the pointer can be written.
    let status = unsafe { tllm_model_open_default(null(), &raw mut model) };
    assert_eq!(status, TLLM_OK, "{}", last_error());
    model
}

/// An engine whose work is done on this thread, with a long queue.
fn engine(model: *const tllm_model) -> *mut tllm_engine {
    let config = config(&[
        ("engine.workers", "0"),
        ("engine.queue_flows", "9000"),
        ("flow.max_packets", "1024"),
    ]);
    let mut engine = null_mut();
    // SAFETY: the pointer can be written.
    let status = unsafe { tllm_engine_new(model, config, &raw mut engine) };
    assert_eq!(status, TLLM_OK, "{}", last_error());
    assert_eq!(tllm_config_free(config), TLLM_OK);
    engine
}

fn flow(engine: *const tllm_engine) -> *mut tllm_flow {
    // SAFETY: both structs are plain data, and are prepared by their functions.
    unsafe {
        let mut info: tllm_flow_info = std::mem::zeroed();
        let mut packet: tllm_packet = std::mem::zeroed();
        let mut flow = null_mut();
        let payload = [7_u8; 600];
        assert_eq!(
            tllm_flow_info_init(&raw mut info, size_of_val(&info)),
            TLLM_OK
        );
        assert_eq!(
            tllm_packet_init(&raw mut packet, size_of_val(&packet)),
            TLLM_OK
        );
        info.protocol = 6;
        packet.payload = payload.as_ptr();
        packet.payload_size = payload.len();
        packet.payload_bytes = payload.len() as u32;
        packet.ip_bytes = packet.payload_bytes + 40;
        let status = tllm_flow_new(engine, &raw const info, &raw mut flow);
        assert_eq!(status, TLLM_OK, "{}", last_error());
        for _ in 0..10 {
            assert_eq!(tllm_flow_feed(flow, &raw const packet), TLLM_OK);
        }
        flow
    }
}

#[test]
fn opening_a_model() {
    let bytes = std::fs::read(tests().join("../runtime/bundle/default.tllm")).unwrap();
    let path = default_bundle();
    let made = Cell::new(null_mut());
    let place = made.as_ptr();
    let free = || assert_eq!(tllm_model_free(made.get()), TLLM_OK);
    // SAFETY: the place can be written, the path ends with a NUL, the bytes are there.
    unsafe {
        let opened = sweep(
            "open",
            || tllm_model_open(path.as_ptr(), null(), place),
            free,
        );
        let memory = || tllm_model_open_memory(bytes.as_ptr(), bytes.len(), null(), place);
        let from_memory = sweep("open from memory", memory, free);
        let default = sweep(
            "open the default",
            || tllm_model_open_default(null(), place),
            free,
        );
        let verified = sweep("verify", || tllm_model_verify(path.as_ptr(), null()), || {});
        for large in [opened, from_memory, default, verified] {
            assert!(large >= 10, "{large}");
        }
    }
}

#[test]
fn making_and_starting_an_engine() {
    let model = model();
    let made = Cell::new(null_mut());
    for workers in ["0", "2"] {
        let config = config(&[("engine.workers", workers), ("engine.queue_flows", "65536")]);
        let free = || assert_eq!(tllm_engine_free(made.get()), TLLM_OK);
        // SAFETY: the place can be written.
        let make = || unsafe { tllm_engine_new(model, config, made.as_ptr()) };
        let large = sweep("engine", make, free);
        assert!(large >= 2, "{large}");
        // Starting takes no large memory: the workers' buffers are there.
        assert_eq!(make(), TLLM_OK, "{}", last_error());
        REFUSED.set(0);
        GRANTED.set(0);
        let status = tllm_engine_start(made.get());
        GRANTED.set(-1);
        assert_eq!((status, REFUSED.get()), (TLLM_OK, 0), "{}", last_error());
        free();
        assert_eq!(tllm_config_free(config), TLLM_OK);
    }
    assert_eq!(tllm_model_free(model), TLLM_OK);
}

#[test]
fn sessions_and_what_they_do() {
    let model = model();
    let engine = engine(model);
    let made = Cell::new(null_mut());
    let free = || assert_eq!(tllm_session_free(made.get()), TLLM_OK);
    // SAFETY: the place can be written.
    let large = sweep(
        "session",
        || unsafe { tllm_session_new(engine, made.as_ptr()) },
        free,
    );
    assert!(large >= 1, "{large}");

    // The first synchronous call of a session makes its buffers.
    let flows = [flow(engine) as *const tllm_flow];
    // SAFETY: a verdict is plain data.
    let mut verdicts: Vec<tllm_verdict> = vec![unsafe { std::mem::zeroed() }; 16];
    let mut entries = 0;
    let first = || {
        // SAFETY: the places can be written, the arrays are there.
        unsafe {
            // Only the call itself is to meet a refusal.
            let granted = GRANTED.replace(-1);
            assert_eq!(tllm_session_new(engine, made.as_ptr()), TLLM_OK);
            GRANTED.set(granted);
            let status = tllm_session_classify(
                made.get(),
                flows.as_ptr(),
                1,
                verdicts.as_mut_ptr(),
                size_of::<tllm_verdict>(),
                verdicts.len(),
                &raw mut entries,
            );
            let granted = GRANTED.replace(-1);
            if status != TLLM_OK {
                free();
            }
            GRANTED.set(granted);
            status
        }
    };
    let large = sweep("classify", first, free);
    assert!(large >= 1, "{large}");
    assert!(entries >= 1);
    assert_eq!(tllm_flow_free(flows[0].cast_mut()), TLLM_OK);
    assert_eq!(tllm_engine_free(engine), TLLM_OK);
    assert_eq!(tllm_model_free(model), TLLM_OK);
}

#[test]
fn many_flows_in_one_call() {
    const FLOWS: usize = 9_000;
    let bundle = c_path(&tests().join("c/bundles/small.tllm"));
    let mut model = null_mut();
    // SAFETY: the place can be written, the path ends with a NUL.
    let status = unsafe { tllm_model_open(bundle.as_ptr(), null(), &raw mut model) };
    assert_eq!(status, TLLM_OK);
    let config = config(&[("engine.workers", "0"), ("flow.min_packets", "2")]);
    let (mut engine, mut session) = (null_mut(), null_mut());
    // SAFETY: as above.
    unsafe {
        assert_eq!(tllm_engine_new(model, config, &raw mut engine), TLLM_OK);
        assert_eq!(tllm_session_new(engine, &raw mut session), TLLM_OK);
    }
    // None has packets enough: the lists are what counts here.
    let flows: Vec<*const tllm_flow> = (0..FLOWS).map(|_| empty(engine)).collect();
    // SAFETY: a verdict is plain data.
    let mut verdicts: Vec<tllm_verdict> = vec![unsafe { std::mem::zeroed() }; FLOWS * 3];
    let mut entries = 0;
    let classify = || {
        // SAFETY: the arrays are there, the place can be written.
        unsafe {
            tllm_session_classify(
                session,
                flows.as_ptr(),
                FLOWS,
                verdicts.as_mut_ptr(),
                size_of::<tllm_verdict>(),
                verdicts.len(),
                &raw mut entries,
            )
        }
    };
    let large = sweep("classify many", classify, || {});
    assert!(large >= 3, "{large}");
    assert_eq!(entries, FLOWS);
    for flow in flows {
        assert_eq!(tllm_flow_free(flow.cast_mut()), TLLM_OK);
    }
    assert_eq!(tllm_session_free(session), TLLM_OK);
    assert_eq!(tllm_engine_free(engine), TLLM_OK);
    assert_eq!(tllm_config_free(config), TLLM_OK);
    assert_eq!(tllm_model_free(model), TLLM_OK);
}

fn empty(engine: *const tllm_engine) -> *const tllm_flow {
    let mut flow = null_mut();
    // SAFETY: the struct is plain data and is prepared by its function; the place can be written.
    unsafe {
        let mut info: tllm_flow_info = std::mem::zeroed();
        assert_eq!(
            tllm_flow_info_init(&raw mut info, size_of_val(&info)),
            TLLM_OK
        );
        let status = tllm_flow_new(engine, &raw const info, &raw mut flow);
        assert_eq!(status, TLLM_OK, "{}", last_error());
    }
    flow
}

#[test]
fn more_flows_than_there_are_places_for() {
    let model = model();
    let engine = engine(model);
    let mut flows = Vec::new();
    let mut refused = 0;
    // The table of handles grows by chunks, which are not large.
    REFUSED_FROM_BYTES.set(16 * 1024);
    while refused < 2 && flows.len() < 40_000 {
        // SAFETY: the struct is plain data and is prepared by its function; the place can be written.
        unsafe {
            let (mut info, mut flow): (tllm_flow_info, _) = (std::mem::zeroed(), null_mut());
            tllm_flow_info_init(&raw mut info, size_of_val(&info));
            REFUSED.set(0);
            GRANTED.set(0);
            let status = tllm_flow_new(engine, &raw const info, &raw mut flow);
            GRANTED.set(-1);
            if REFUSED.get() == 0 {
                assert_eq!(status, TLLM_OK, "{}", last_error());
            } else {
                assert_eq!(
                    (status, flow),
                    (TLLM_ERR_MEMORY, null_mut()),
                    "{}",
                    last_error()
                );
                refused += 1;
                let status = tllm_flow_new(engine, &raw const info, &raw mut flow);
                assert_eq!(status, TLLM_OK, "{}", last_error());
            }
            flows.push(flow);
        }
    }
    REFUSED_FROM_BYTES.set(LARGE_BYTES);
    assert!(refused >= 1, "{refused} of {}", flows.len());
    // SAFETY: the struct is plain data and has its room.
    unsafe {
        let mut counters: tllm_counters = std::mem::zeroed();
        let size = size_of_val(&counters);
        assert_eq!(
            tllm_engine_counters(engine, &raw mut counters, size),
            TLLM_OK
        );
        assert_eq!(counters.flows, flows.len() as u64);
    }
    for flow in flows {
        assert_eq!(tllm_flow_free(flow), TLLM_OK);
    }
    assert_eq!(tllm_engine_free(engine), TLLM_OK);
    assert_eq!(tllm_model_free(model), TLLM_OK);
}

unsafe extern "C" fn take(
    _user: *mut c_void,
    _subject: *const tllm_subject,
    _verdicts: *const tllm_verdict,
    _count: usize,
) -> i32 {
    0
}

#[test]
fn reading_a_capture() {
    let bundle = c_path(&tests().join("c/bundles/small.tllm"));
    let capture = c_path(&tests().join("captures/dns.pcap.gz"));
    let mut model = null_mut();
    // SAFETY: the place can be written, the path ends with a NUL.
    let status = unsafe { tllm_model_open(bundle.as_ptr(), null(), &raw mut model) };
    assert_eq!(status, TLLM_OK);
    let config = config(&[("engine.workers", "0")]);
    let mut engine = null_mut();
    // SAFETY: as above.
    let status = unsafe { tllm_engine_new(model, config, &raw mut engine) };
    assert_eq!(status, TLLM_OK);
    let detect = || {
        // SAFETY: the callback takes anything.
        unsafe {
            tllm_capture_detect(
                engine,
                capture.as_ptr(),
                size_of::<tllm_subject>(),
                size_of::<tllm_verdict>(),
                Some(take),
                null_mut(),
                null_mut(),
                0,
            )
        }
    };
    let large = sweep_with("capture", detect, &[TLLM_ERR_MEMORY, TLLM_ERR_CAPTURE]);
    assert!(large >= 1, "{large}");
    assert_eq!(tllm_engine_free(engine), TLLM_OK);
    assert_eq!(tllm_config_free(config), TLLM_OK);
    assert_eq!(tllm_model_free(model), TLLM_OK);
}

/// As [`sweep`], for a call that makes nothing, where a refusal may also be told as another status.
fn sweep_with(what: &str, mut call: impl FnMut() -> i32, allowed: &[i32]) -> i64 {
    assert_eq!(call(), TLLM_OK, "{what}: {}", last_error());
    let before = LARGE_BLOCKS.get();
    for granted in 0..2_000 {
        REFUSED.set(0);
        GRANTED.set(granted);
        let status = call();
        GRANTED.set(-1);
        assert_eq!(LARGE_BLOCKS.get(), before, "{what}: a block is left");
        if REFUSED.get() == 0 {
            assert_eq!(status, TLLM_OK, "{what}: {}", last_error());
            return granted;
        }
        assert!(
            allowed.contains(&status),
            "{what}, refusal {granted}: {status}: {}",
            last_error()
        );
    }
    panic!("{what}: large allocations without end");
}

#[test]
fn activating_a_model() {
    let model = model();
    let engine = engine(model);
    let path = default_bundle();
    let generation = || {
        // SAFETY: the struct is plain data and has its room.
        unsafe {
            let mut counters: tllm_counters = std::mem::zeroed();
            let size = size_of_val(&counters);
            assert_eq!(
                tllm_engine_counters(engine, &raw mut counters, size),
                TLLM_OK
            );
            (counters.generation, counters.activations_failed)
        }
    };
    let mut refused = 0;
    for granted in 0..2_000 {
        let before = generation();
        REFUSED.set(0);
        GRANTED.set(granted);
        // SAFETY: the path ends with a NUL.
        let status = unsafe { tllm_engine_activate(engine, path.as_ptr()) };
        GRANTED.set(-1);
        let after = generation();
        if REFUSED.get() == 0 {
            assert_eq!(status, TLLM_OK, "{}", last_error());
            assert_eq!(after, (before.0 + 1, before.1));
            break;
        }
        assert_eq!(
            status,
            TLLM_ERR_MEMORY,
            "refusal {granted}: {}",
            last_error()
        );
        // Nothing has changed, and it is counted.
        assert_eq!(after, (before.0, before.1 + 1));
        refused += 1;
    }
    assert!((10..2_000).contains(&refused), "{refused}");
    assert_eq!(tllm_engine_free(engine), TLLM_OK);
    assert_eq!(tllm_model_free(model), TLLM_OK);
}
