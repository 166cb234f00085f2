//! Any bytes as a row of calls of the C ABI: right, wrong, freed and NULL handles, all lengths and sizes, several engines and sessions,
//! swaps of the model, callbacks that call back. No crash, no hang, only statuses that are documented, counters that add up, and no
//! verdict for a flow that was freed, emptied or never submitted there.
#![no_main]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trafficllm_ffi::*;

static SMALL: &[u8] = include_bytes!("../../c/bundles/small.tllm");
static OTHER: &[u8] = include_bytes!("../../c/bundles/other.tllm");

/// Most calls of one input.
const CALLS_MAX: usize = 200;
/// Handles of a kind that are remembered, freed ones included.
const REMEMBERED: usize = 6;
/// Room for what the library writes: more than any size that it takes.
const ROOM: usize = 4_096;
/// Tasks of the models.
const TASKS: usize = 3;

/// A model that is never freed.
struct Opened(*mut tllm_model);
// SAFETY: a handle is a number, and a model is used by any number of threads.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

static MODELS: LazyLock<[Opened; 2]> = LazyLock::new(|| {
    [SMALL, OTHER].map(|bytes| {
        let mut model = null_mut();
        // SAFETY: the bytes are there, the place can be written.
        let status =
            unsafe { tllm_model_open_memory(bytes.as_ptr(), bytes.len(), null(), &raw mut model) };
        assert_eq!(status, TLLM_OK);
        Opened(model)
    })
});

/// The input, as numbers.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Mostly the size of a struct, sometimes another one.
    fn size(&mut self, right: usize) -> usize {
        match self.byte() {
            0 => 0,
            1 => right - 1,
            2 => right + 8,
            3 => ROOM,
            4 => ROOM + 1,
            5 => usize::MAX,
            _ => right,
        }
    }

    /// The size of a text's buffer.
    fn text_size(&mut self) -> usize {
        match self.byte() {
            0 => 0,
            small @ 1..=60 => usize::from(small),
            _ => ROOM,
        }
    }
}

/// A handle that was given out.
#[derive(Clone, Copy)]
struct Given {
    handle: usize,
    is_live: bool,
}

/// What was submitted and may be answered.
#[derive(Clone, Copy)]
struct Submitted {
    session: usize,
    /// The flow and how often it was emptied; `None` for a request.
    flow: Option<(usize, u32)>,
}

const CONFIG: usize = 0;
const MODEL: usize = 1;
const ENGINE: usize = 2;
const SESSION: usize = 3;
const FLOW: usize = 4;

#[derive(Default)]
struct World {
    given: [Vec<Given>; 5],
    /// Of flows that live: how often each was emptied.
    emptied: HashMap<usize, u32>,
    submitted: HashMap<u64, Submitted>,
    next_id: u64,
    captures: u32,
}

fn statuses(what: &str, status: i32, allowed: &[i32]) -> i32 {
    assert!(
        status == TLLM_OK || allowed.contains(&status),
        "{what}: {status} is not documented: {}",
        last_error()
    );
    status
}

fn last_error() -> String {
    let mut text = [0 as c_char; ROOM];
    // SAFETY: the buffer has that room, and ends with a NUL.
    unsafe {
        tllm_last_error(text.as_mut_ptr(), ROOM, null_mut());
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

/// What every function with a handle may answer.
const HANDLE: [i32; 2] = [TLLM_ERR_NULL, TLLM_ERR_HANDLE];

/// As `HANDLE`, and more.
fn with(more: &[i32]) -> Vec<i32> {
    [&HANDLE, more].concat()
}

impl World {
    /// A handle for a place of this kind: mostly a live one of it, else freed, NULL, of another kind or any number.
    fn handle<T>(&self, input: &mut Input<'_>, kind: usize) -> *mut T {
        let chosen = input.byte();
        let number = match chosen {
            0 => 0,
            1 => usize::from(input.byte()) << 4 | usize::from(input.byte()) & 15,
            2 => usize::MAX - usize::from(input.byte()),
            3..=9 => self.any_of(input, usize::from(chosen) % 5, false),
            10..=20 => self.any_of(input, kind, false),
            _ => self.any_of(input, kind, true),
        };
        std::ptr::without_provenance_mut(number)
    }

    fn any_of(&self, input: &mut Input<'_>, kind: usize, must_live: bool) -> usize {
        let known = self.given[kind].iter();
        let fit: Vec<usize> = known
            .filter(|given| given.is_live || !must_live)
            .map(|given| given.handle)
            .collect();
        if fit.is_empty() {
            return 0;
        }
        input.pick(&fit)
    }

    fn is_live<T>(&self, kind: usize, handle: *const T) -> bool {
        let mut known = self.given[kind].iter();
        known.any(|given| given.is_live && given.handle == handle.addr())
    }

    /// Remembers a handle if one was made, and forgets an old one.
    fn made<T>(&mut self, kind: usize, status: i32, handle: *mut T) {
        assert_eq!(status >= 0, !handle.is_null(), "written if and only if it worked");
        if status < 0 {
            return;
        }
        let list = &mut self.given[kind];
        assert!(list.iter().all(|given| given.handle != handle.addr()));
        list.push(Given {
            handle: handle.addr(),
            is_live: true,
        });
        if kind == FLOW {
            self.emptied.insert(handle.addr(), 0);
        }
        if self.given[kind].len() > REMEMBERED {
            let oldest = self.given[kind].remove(0);
            if oldest.is_live {
                self.free(kind, oldest.handle);
            }
        }
    }

    fn free(&mut self, kind: usize, handle: usize) {
        let status = free(kind, handle);
        let is_live = self.is_live(kind, std::ptr::without_provenance::<u8>(handle));
        if is_live || status >= 0 {
            let fine = [TLLM_OK, TLLM_ABANDONED, TLLM_RUNNING];
            assert!(fine.contains(&status), "{kind}: {status}: {}", last_error());
        } else {
            assert_eq!(status, TLLM_ERR_HANDLE);
        }
        self.forget(kind, handle);
    }

    fn forget(&mut self, kind: usize, handle: usize) {
        for given in &mut self.given[kind] {
            given.is_live &= given.handle != handle;
        }
        if kind == FLOW {
            self.emptied.remove(&handle);
        }
        if kind == SESSION {
            self.submitted.retain(|_, known| known.session != handle);
        }
    }

    /// Holds the entries that a session gave to what was submitted to it.
    fn check_answers(&mut self, session: usize, entries: &[tllm_verdict]) {
        let mut at = 0;
        while let Some(first) = entries.get(at) {
            let count = first.entries as usize;
            assert!((1..=TASKS).contains(&count));
            for (position, entry) in entries[at..at + count].iter().enumerate() {
                check_entry(entry, first, position);
            }
            at += count;
            let known = self.submitted.remove(&first.id);
            let known = known.expect("a verdict for what was not under way");
            assert_eq!(known.session, session, "a verdict in another session");
            if let Some((flow, emptied)) = known.flow {
                let now = self.emptied.get(&flow);
                assert_eq!(now, Some(&emptied), "a verdict for a flow that is gone");
            }
        }
    }
}

fn check_entry(entry: &tllm_verdict, first: &tllm_verdict, position: usize) {
    let fates = [
        TLLM_OK,
        TLLM_ABSTAINED,
        TLLM_NOT_APPLICABLE,
        TLLM_EXPIRED,
        TLLM_ABANDONED,
        TLLM_NEED_MORE,
    ];
    assert!(fates.contains(&entry.status), "{}", entry.status);
    assert_eq!(
        (entry.id, entry.position as usize, entry.entries),
        (first.id, position, first.entries)
    );
    assert_eq!((entry.generation, entry.model_id), (first.generation, first.model_id));
    assert!((0.0..=1.0).contains(&entry.score) && entry.reserved == [0; 2]);
    for name in [&entry.task_name[..], &entry.label_name, &entry.model_id] {
        assert!(name.contains(&0));
    }
    let is_judged = matches!(entry.status, TLLM_OK | TLLM_ABSTAINED);
    assert_eq!(is_judged, entry.label_name[0] != 0);
}

fn free(kind: usize, handle: usize) -> i32 {
    match kind {
        CONFIG => tllm_config_free(std::ptr::without_provenance_mut(handle)),
        MODEL => tllm_model_free(std::ptr::without_provenance_mut(handle)),
        ENGINE => tllm_engine_free(std::ptr::without_provenance_mut(handle)),
        SESSION => tllm_session_free(std::ptr::without_provenance_mut(handle)),
        _ => tllm_flow_free(std::ptr::without_provenance_mut(handle)),
    }
}

fn path(name: &str) -> CString {
    CString::new(format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"))).expect("no NUL")
}

unsafe extern "C" fn log(_: *mut c_void, level: i32, target: *const c_char, message: *const c_char) {
    assert!((TLLM_LOG_ERROR..=TLLM_LOG_TRACE).contains(&level) && !target.is_null() && !message.is_null());
    // SAFETY: the call is refused.
    let status = unsafe { tllm_log_set(None, null_mut(), TLLM_LOG_OFF) };
    assert_eq!(status, TLLM_ERR_BUSY);
}

/// What the callback of tllm_session_each knows.
struct Each<'a> {
    world: &'a mut World,
    session: *mut tllm_session,
    left: usize,
}

unsafe extern "C" fn take(user: *mut c_void, verdicts: *const tllm_verdict, count: usize) -> i32 {
    // SAFETY: `each` gives its own, and nobody else uses it meanwhile; the entries are there.
    let (each, entries) =
        unsafe { (&mut *user.cast::<Each<'_>>(), std::slice::from_raw_parts(verdicts, count)) };
    each.world.check_answers(each.session.addr(), entries);
    let mut flows = 0;
    // SAFETY: the place can be written.
    let status = unsafe { tllm_session_in_flight(each.session, &raw mut flows) };
    assert_eq!(status, TLLM_ERR_BUSY);
    assert_eq!(tllm_session_free(each.session), TLLM_ERR_BUSY);
    each.left = each.left.saturating_sub(1);
    i32::from(each.left == 0)
}

unsafe extern "C" fn subject(user: *mut c_void, subject: *const tllm_subject, verdicts: *const tllm_verdict, count: usize) -> i32 {
    let mut text = [0 as c_char; ROOM];
    // SAFETY: `capture` gives a number that nobody else uses meanwhile; the buffer has that room; subject and entries are there.
    unsafe {
        let left = &mut *user.cast::<usize>();
        let status = tllm_subject_json(
            c"x".as_ptr(),
            subject,
            size_of::<tllm_subject>(),
            verdicts,
            size_of::<tllm_verdict>(),
            count,
            text.as_mut_ptr(),
            ROOM,
            null_mut(),
        );
        assert_eq!(status, TLLM_OK, "{}", last_error());
        *left = left.saturating_sub(1);
        i32::from(*left == 0)
    }
}

const KEYS: [&CStr; 12] = [
    c"engine.workers",
    c"engine.tasks",
    c"engine.batch_tokens",
    c"engine.queue_flows",
    c"engine.deadline_us",
    c"engine.memory_bytes_max",
    c"engine.stop_timeout_us",
    c"engine.flows_max",
    c"flow.min_packets",
    c"flow.max_packets",
    c"flow.max_payload_bytes",
    c"no.such_key",
];

const VALUES: [&CStr; 12] = [
    c"0",
    c"1",
    c"2",
    c"3",
    c"64",
    c"1000",
    c"4000000",
    c"first_task",
    c"second_task,request_task",
    c"",
    c"-1",
    c"\xff",
];

impl World {
    fn config_call(&mut self, input: &mut Input<'_>) {
        let config: *mut tllm_config = self.handle(input, CONFIG);
        let mut text = [0 as c_char; ROOM];
        let mut needed = 0;
        // SAFETY: all places have the room that is told, all texts end with a NUL.
        unsafe {
            match input.below(5) {
                0 => {
                    let mut made = null_mut();
                    let status = statuses("config_new", tllm_config_new(&raw mut made), &[TLLM_ERR_LIMIT]);
                    self.made(CONFIG, status, made);
                }
                1 | 2 => {
                    let (key, value) = (input.pick(&KEYS), input.pick(&VALUES));
                    // Many threads would only make it slow.
                    let is_slow = key == c"engine.workers" && [c"64", c"1000"].contains(&value);
                    if !is_slow {
                        let status = tllm_config_set(config, key.as_ptr(), value.as_ptr());
                        statuses("config_set", status, &with(&[TLLM_ERR_KEY, TLLM_ERR_VALUE, TLLM_ERR_TEXT]));
                    }
                }
                3 => {
                    let (key, size) = (input.pick(&KEYS), input.text_size());
                    let status = tllm_config_get(config, key.as_ptr(), text.as_mut_ptr(), size, &raw mut needed);
                    statuses("config_get", status, &with(&[TLLM_ERR_KEY, TLLM_ERR_BUFFER]));
                }
                _ => {
                    let mut option = [0_u64; ROOM / 8];
                    let size = input.size(size_of::<tllm_option>());
                    let status = tllm_config_option(input.below(30), option.as_mut_ptr().cast(), size);
                    statuses("config_option", status, &[TLLM_END, TLLM_ERR_STRUCT]);
                }
            }
        }
    }

    fn model_call(&mut self, input: &mut Input<'_>) {
        let model: *mut tllm_model = self.handle(input, MODEL);
        let config: *mut tllm_config = self.handle(input, CONFIG);
        let mut room = [0_u64; ROOM / 8];
        let mut text = [0 as c_char; ROOM];
        let mut needed = 0;
        let mut made = null_mut();
        let open = [TLLM_ERR_BUSY, TLLM_ERR_MODEL, TLLM_ERR_LIMIT, TLLM_ERR_IO, TLLM_ERR_UNSUPPORTED];
        // SAFETY: all places have the room that is told, all texts end with a NUL.
        unsafe {
            match input.below(9) {
                0 => {
                    let size = input.size(size_of::<tllm_model_info>());
                    let status = tllm_model_describe(model, room.as_mut_ptr().cast(), size);
                    statuses("model_describe", status, &with(&[TLLM_ERR_STRUCT]));
                }
                1 => {
                    let status = tllm_model_manifest(model, text.as_mut_ptr(), input.text_size(), &raw mut needed);
                    statuses("model_manifest", status, &with(&[TLLM_ERR_BUFFER]));
                }
                2 => {
                    let size = input.size(size_of::<tllm_task_info>());
                    let status = tllm_model_task(model, input.below(5), room.as_mut_ptr().cast(), size);
                    statuses("model_task", status, &with(&[TLLM_END, TLLM_ERR_STRUCT]));
                }
                3 => {
                    let (task, label, size) = (input.below(5), input.below(6), input.text_size());
                    let status = tllm_model_label(model, task, label, text.as_mut_ptr(), size, &raw mut needed);
                    statuses("model_label", status, &with(&[TLLM_END, TLLM_ERR_TASK, TLLM_ERR_BUFFER]));
                }
                4 => {
                    let cut = usize::from(input.byte()) * 700;
                    let bytes = input.pick(&[SMALL, OTHER]);
                    let size = if cut < 60_000 { bytes.len() } else { cut.min(bytes.len() - 1) };
                    let status = tllm_model_open_memory(bytes.as_ptr(), size, config, &raw mut made);
                    statuses("model_open_memory", status, &with(&open));
                    self.made(MODEL, status, made);
                }
                5 => {
                    let engine: *mut tllm_engine = self.handle(input, ENGINE);
                    let status = statuses("engine_model", tllm_engine_model(engine, &raw mut made), &HANDLE);
                    self.made(MODEL, status, made);
                }
                6 => {
                    let status = tllm_model_open_default(config, &raw mut made);
                    statuses("model_open_default", status, &with(&open));
                    self.made(MODEL, status, made);
                }
                7 => {
                    let path = path(input.pick(&["c/bundles/small.tllm", "no-such", "hostile/bundles/gguf-cut.tllm"]));
                    let status = tllm_model_open(path.as_ptr(), config, &raw mut made);
                    statuses("model_open", status, &with(&open));
                    self.made(MODEL, status, made);
                }
                _ => {
                    let path = path(input.pick(&["no-such", "hostile/bundles/file-hash.tllm"]));
                    let status = tllm_model_verify(path.as_ptr(), config);
                    assert_ne!(status, TLLM_OK);
                    statuses("model_verify", status, &with(&open));
                }
            }
        }
    }

    fn engine_call(&mut self, input: &mut Input<'_>) {
        let engine: *mut tllm_engine = self.handle(input, ENGINE);
        let mut room = [0_u64; ROOM / 8];
        let mut needed = 0;
        let swap = [TLLM_ERR_TASK, TLLM_ERR_BUDGET, TLLM_ERR_STOPPED, TLLM_ERR_MODEL, TLLM_ERR_IO];
        // SAFETY: all places have the room that is told, all texts end with a NUL.
        unsafe {
            match input.below(12) {
                0 | 1 => {
                    let mut made = null_mut();
                    let model = match input.byte() {
                        0..40 => self.handle(input, MODEL),
                        number => MODELS[usize::from(number) % 2].0,
                    };
                    let config: *mut tllm_config = self.handle(input, CONFIG);
                    let refused = [TLLM_ERR_BUSY, TLLM_ERR_VALUE, TLLM_ERR_TASK, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT];
                    let status = tllm_engine_new(model, config, &raw mut made);
                    statuses("engine_new", status, &with(&refused));
                    self.made(ENGINE, status, made);
                }
                2 => {
                    statuses("engine_start", tllm_engine_start(engine), &with(&[TLLM_ERR_STOPPED]));
                }
                3 if input.byte() < 80 => {
                    let status = tllm_engine_stop(engine, u64::from(input.byte()) * 10);
                    statuses("engine_stop", status, &with(&[TLLM_ABANDONED, TLLM_RUNNING]));
                }
                4 | 5 => {
                    let model = match input.byte() {
                        0..40 => self.handle(input, MODEL),
                        number => MODELS[usize::from(number) % 2].0,
                    };
                    statuses("engine_activate_model", tllm_engine_activate_model(engine, model), &with(&swap));
                }
                6 if input.byte() < 80 => {
                    let path = path(input.pick(&["c/bundles/other.tllm", "no-such", "hostile/bundles/gguf-cut.tllm"]));
                    statuses("engine_activate", tllm_engine_activate(engine, path.as_ptr()), &with(&swap));
                }
                7 => {
                    let size = input.size(size_of::<tllm_memory>());
                    let status = tllm_engine_memory(engine, room.as_mut_ptr().cast(), size);
                    statuses("engine_memory", status, &with(&[TLLM_ERR_STRUCT]));
                }
                8 => {
                    let mut text = [0 as c_char; 4 * ROOM];
                    let size = input.text_size() * 4;
                    let status = tllm_engine_metrics(engine, text.as_mut_ptr(), size, &raw mut needed);
                    statuses("engine_metrics", status, &with(&[TLLM_ERR_BUFFER]));
                }
                9 => {
                    statuses("engine_run_pending", tllm_engine_run_pending(engine, &raw mut needed), &HANDLE);
                }
                10 if self.captures < 1 => {
                    self.captures += 1;
                    let mut left = input.below(20);
                    let size = input.size(size_of::<tllm_capture_report>());
                    let path = path(input.pick(&[
                        "captures/dns-tunnel.pcap",
                        "captures/cooked.pcap",
                        "captures/requests.jsonl",
                        "hostile/captures/record-cut.pcap",
                        "no-such",
                    ]));
                    let status = tllm_capture_detect(
                        engine,
                        path.as_ptr(),
                        Some(subject),
                        (&raw mut left).cast(),
                        room.as_mut_ptr().cast(),
                        size,
                    );
                    let ended = [TLLM_CANCELLED, TLLM_ERR_STRUCT, TLLM_ERR_IO, TLLM_ERR_CAPTURE, TLLM_ERR_STOPPED];
                    let ended = [&ended[..], &[TLLM_ERR_NOT_STARTED, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT]].concat();
                    statuses("capture_detect", status, &with(&ended));
                }
                _ => check_counters(engine, input.size(size_of::<tllm_counters>())),
            }
        }
    }

    fn flow_call(&mut self, input: &mut Input<'_>) {
        let flow: *mut tllm_flow = self.handle(input, FLOW);
        let mut room = [0_u64; ROOM / 8];
        // SAFETY: all places have the room that is told; the structs are plain data, and prepared.
        unsafe {
            match input.below(8) {
                0 | 1 => {
                    let engine: *mut tllm_engine = self.handle(input, ENGINE);
                    let info = flow_info(input);
                    let mut made = null_mut();
                    let status = tllm_flow_new(engine, info.as_ptr().cast(), &raw mut made);
                    let refused = [TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT, TLLM_ERR_LIMIT, TLLM_ERR_MEMORY];
                    statuses("flow_new", status, &with(&refused));
                    self.made(FLOW, status, made);
                }
                2 => {
                    let info = flow_info(input);
                    let status = tllm_flow_reset(flow, info.as_ptr().cast());
                    statuses("flow_reset", status, &with(&[TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT]));
                    if status == TLLM_OK {
                        *self.emptied.get_mut(&flow.addr()).expect("a live flow") += 1;
                    }
                }
                3 => {
                    let size = input.size(size_of::<tllm_flow_stats>());
                    let status = tllm_flow_describe(flow, room.as_mut_ptr().cast(), size);
                    statuses("flow_describe", status, &with(&[TLLM_ERR_STRUCT]));
                }
                _ => {
                    let payload = [input.byte(); 600];
                    let packet = packet(input, &payload);
                    for _ in 0..1 + input.below(3) {
                        let status = tllm_flow_feed(flow, packet.as_ptr().cast());
                        statuses("flow_feed", status, &with(&[TLLM_FLOW_FULL, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT]));
                    }
                }
            }
        }
    }

    fn session_call(&mut self, input: &mut Input<'_>) {
        let session: *mut tllm_session = self.handle(input, SESSION);
        let id = self.next_id;
        self.next_id += 1;
        // SAFETY: all places have the room that is told.
        unsafe {
            match input.below(12) {
                0 | 1 => {
                    let engine: *mut tllm_engine = self.handle(input, ENGINE);
                    let mut made = null_mut();
                    let status = tllm_session_new(engine, &raw mut made);
                    let refused = [TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT, TLLM_ERR_STOPPED];
                    statuses("session_new", status, &with(&refused));
                    self.made(SESSION, status, made);
                }
                2..=5 => {
                    let flow: *mut tllm_flow = self.handle(input, FLOW);
                    let status = tllm_session_submit(session, flow, id);
                    let fates = [TLLM_NEED_MORE, TLLM_QUEUE_FULL, TLLM_ERR_STOPPED];
                    if statuses("session_submit", status, &with(&fates)) == TLLM_OK {
                        let emptied = self.emptied[&flow.addr()];
                        let flow = Some((flow.addr(), emptied));
                        self.submitted.insert(id, Submitted { session: session.addr(), flow });
                    }
                }
                6 => {
                    let request = input.pick(&[&b"GET /a?b=c HTTP/1.1\r\n\r\n"[..], b"no request", b""]);
                    let status = tllm_session_submit_request(session, request.as_ptr(), request.len(), id);
                    let fates = [TLLM_QUEUE_FULL, TLLM_ERR_STOPPED, TLLM_ERR_REQUEST];
                    if statuses("session_submit_request", status, &with(&fates)) == TLLM_OK {
                        let known = Submitted { session: session.addr(), flow: None };
                        self.submitted.insert(id, known);
                    }
                }
                7 => {
                    let mut descriptor = -1;
                    let status = tllm_session_fd(session, &raw mut descriptor);
                    statuses("session_fd", status, &HANDLE);
                    assert_eq!(status == TLLM_OK, descriptor >= 0);
                }
                8 => {
                    let mut flows = 0;
                    let status = tllm_session_in_flight(session, &raw mut flows);
                    if statuses("session_in_flight", status, &HANDLE) == TLLM_OK {
                        let here = self.submitted.values();
                        let known = here.filter(|known| known.session == session.addr()).count();
                        assert!(flows <= known, "{flows} under way, {known} submitted");
                    }
                }
                9 => {
                    let left = input.below(4);
                    let mut each = Each { world: self, session, left };
                    let status =
                        tllm_session_each(session, 500, Some(take), (&raw mut each).cast(), null_mut());
                    statuses("session_each", status, &with(&[TLLM_PENDING, TLLM_CANCELLED]));
                }
                10 => self.classify(input, session),
                _ => self.take_answers(input, session),
            }
        }
    }

    fn take_answers(&mut self, input: &mut Input<'_>, session: *mut tllm_session) {
        let size = input.size(size_of::<tllm_verdict>());
        let capacity = input.pick(&[0, 1, 2, 3, 4, 8, 32]);
        let mut entries = vec![0_u64; 32 * ROOM / 8];
        let mut count = usize::MAX;
        // SAFETY: there is room for the most entries of the largest size that is taken.
        let status = unsafe {
            tllm_session_wait(
                session,
                input.pick(&[0, 0, 300]),
                entries.as_mut_ptr().cast(),
                size,
                capacity,
                &raw mut count,
            )
        };
        let refused = [TLLM_PENDING, TLLM_ERR_STRUCT, TLLM_ERR_BUFFER];
        statuses("session_wait", status, &with(&refused));
        if status < 0 {
            assert_eq!(count, usize::MAX, "nothing is written by a call that fails");
            return;
        }
        assert!(count <= capacity && (count > 0) == (status == TLLM_OK));
        self.check_answers(session.addr(), &read_entries(&entries, size, count));
    }

    fn classify(&mut self, input: &mut Input<'_>, session: *mut tllm_session) {
        let flows: Vec<*const tllm_flow> = (0..input.below(5))
            .map(|_| self.handle::<tllm_flow>(input, FLOW).cast_const())
            .collect();
        let size = input.size(size_of::<tllm_verdict>());
        let capacity = input.pick(&[0, 1, 3, 15, 32]);
        let mut entries = vec![0_u64; 32 * ROOM / 8];
        let mut count = usize::MAX;
        let refused = [
            TLLM_ERR_BUSY,
            TLLM_ERR_STRUCT,
            TLLM_ERR_BUFFER,
            TLLM_ERR_BUDGET,
            TLLM_ERR_STOPPED,
            TLLM_ERR_REQUEST,
            TLLM_ERR_ARGUMENT,
        ];
        let is_request = input.byte() < 40;
        let request = b"POST /x HTTP/1.1\r\n\r\na=b";
        // SAFETY: there is room for the most entries of the largest size that is taken; the handles are there.
        let status = unsafe {
            let into = entries.as_mut_ptr().cast();
            if is_request {
                let (bytes, length) = (request.as_ptr(), input.below(request.len()));
                tllm_session_classify_request(session, bytes, length, into, size, capacity, &raw mut count)
            } else {
                tllm_session_classify(session, flows.as_ptr(), flows.len(), into, size, capacity, &raw mut count)
            }
        };
        statuses("session_classify", status, &with(&refused));
        if status < 0 {
            assert_eq!(count, usize::MAX);
            return;
        }
        let entries = read_entries(&entries, size, count);
        let mut at = 0;
        for index in 0..if is_request { 1 } else { flows.len() } {
            let first = &entries[at];
            assert_eq!(first.id, index as u64);
            for position in 0..first.entries as usize {
                check_entry(&entries[at + position], first, position);
            }
            at += first.entries as usize;
        }
        assert_eq!(at, count);
    }

    fn other_call(&mut self, input: &mut Input<'_>) {
        let mut text = [0 as c_char; ROOM];
        // SAFETY: all places have the room that is told; a verdict and a subject are valid for any bytes.
        unsafe {
            match input.below(5) {
                0 => {
                    let level = i32::from(input.byte()) - 2;
                    let status = tllm_log_set((level % 2 == 0).then_some(log as _), null_mut(), level);
                    statuses("log_set", status, &[TLLM_ERR_ARGUMENT]);
                }
                1 => assert!(!tllm_status_string(i32::from(input.byte()) - 128).is_null()),
                2 => {
                    let status = tllm_last_error(text.as_mut_ptr(), input.text_size(), null_mut());
                    assert!((TLLM_ERR_NOT_STARTED..=TLLM_OK).contains(&status));
                }
                _ => {
                    let seed = input.byte();
                    let bytes = vec![u64::from_ne_bytes([seed; 8]); (ROOM + 4 * size_of::<tllm_verdict>()) / 8];
                    let (count, size) = (input.below(5), input.size(size_of::<tllm_verdict>()));
                    let size = if size <= ROOM && size > size_of::<tllm_verdict>() + 8 { 0 } else { size };
                    let bad = [TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT, TLLM_ERR_TEXT, TLLM_ERR_BUFFER];
                    let length = input.text_size();
                    let status =
                        tllm_verdicts_json(bytes.as_ptr().cast(), size, count, text.as_mut_ptr(), length, null_mut());
                    statuses("verdicts_json", status, &bad);
                    let status = tllm_subject_json(
                        null(),
                        bytes.as_ptr().cast(),
                        input.size(size_of::<tllm_subject>()),
                        bytes.as_ptr().cast(),
                        size,
                        count,
                        text.as_mut_ptr(),
                        length,
                        null_mut(),
                    );
                    statuses("subject_json", status, &bad);
                }
            }
        }
    }
}

/// Entries of any size that the library took.
fn read_entries(words: &[u64], size: usize, count: usize) -> Vec<tllm_verdict> {
    let read = |index: usize| {
        assert!((index + 1) * size <= size_of_val(words));
        // SAFETY: the entry is within the words; a verdict is valid for any bytes, and aligned like a word.
        unsafe { words.as_ptr().byte_add(index * size).cast::<tllm_verdict>().read() }
    };
    (0..count).map(read).collect()
}

fn check_counters(engine: *const tllm_engine, size: usize) {
    let mut room = [0_u64; ROOM / 8];
    // SAFETY: there is room for any size that is taken, and counters are plain numbers.
    let (status, counters) = unsafe {
        let status = tllm_engine_counters(engine, room.as_mut_ptr().cast(), size);
        (status, room.as_ptr().cast::<tllm_counters>().read())
    };
    if statuses("engine_counters", status, &with(&[TLLM_ERR_STRUCT])) == TLLM_OK {
        let settled = counters.done + counters.shed + counters.expired + counters.abandoned + counters.failed;
        assert_eq!(counters.submitted, settled + counters.in_flight);
        assert!(counters.waiting <= counters.in_flight);
        assert_eq!((counters.failed, counters.worker_panics), (0, 0));
        assert_eq!(counters.generation, counters.activations + 1);
    }
}

/// A tllm_flow_info, mostly right, with room behind it.
fn flow_info(input: &mut Input<'_>) -> [u64; ROOM / 8 + 1] {
    let mut room = [0_u64; ROOM / 8 + 1];
    let info: *mut tllm_flow_info = room.as_mut_ptr().cast();
    let size = input.size(size_of::<tllm_flow_info>());
    // SAFETY: there is room for the struct, which is plain data.
    unsafe {
        tllm_flow_info_init(info, size_of::<tllm_flow_info>());
        (*info).struct_size = u32::try_from(size).unwrap_or(u32::MAX);
        (*info).protocol = input.pick(&[6, 17, 1, 200]);
        (*info).ip_version = input.pick(&[0, 4, 6, 4, 6, 5]);
        (*info).reserved0 = u16::from(input.byte() == 1);
    }
    room
}

/// A tllm_packet, mostly right, with room behind it.
fn packet(input: &mut Input<'_>, payload: &[u8]) -> [u64; ROOM / 8 + 1] {
    let mut room = [0_u64; ROOM / 8 + 1];
    let packet: *mut tllm_packet = room.as_mut_ptr().cast();
    let size = input.size(size_of::<tllm_packet>());
    let length = input.pick(&[0, 1, 40, 600]);
    // SAFETY: there is room for the struct, which is plain data.
    unsafe {
        tllm_packet_init(packet, size_of::<tllm_packet>());
        (*packet).struct_size = u32::try_from(size).unwrap_or(u32::MAX);
        (*packet).direction = input.pick(&[0, 1, 0, 1, 0, 1, 2]);
        (*packet).time_ns = u64::from(input.byte()) << input.below(57);
        (*packet).ip_bytes = u32::MAX >> input.below(32);
        (*packet).payload_bytes = length as u32 + u32::from(input.byte());
        (*packet).payload_size = if input.byte() == 1 { usize::MAX } else { length };
        (*packet).payload = if input.byte() == 1 { null() } else { payload.as_ptr() };
        (*packet).tcp_flags = input.byte();
        (*packet).reserved[1] = u64::from(input.byte() == 1);
    }
    room
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut world = World::default();
    let workers = input.pick(&[c"0", c"0", c"0", c"1"]);
    let mut config = null_mut();
    // SAFETY: the place can be written, the texts end with a NUL.
    unsafe {
        assert_eq!(tllm_config_new(&raw mut config), TLLM_OK);
        for (key, value) in [
            (c"engine.workers", workers),
            (c"engine.queue_flows", input.pick(&[c"1", c"5", c"30"])),
            (c"engine.stop_timeout_us", c"2000"),
        ] {
            assert_eq!(tllm_config_set(config, key.as_ptr(), value.as_ptr()), TLLM_OK);
        }
        world.made(CONFIG, TLLM_OK, config);
        let mut engine = null_mut();
        assert_eq!(tllm_engine_new(MODELS[0].0, config, &raw mut engine), TLLM_OK);
        world.made(ENGINE, TLLM_OK, engine);
        let mut session = null_mut();
        assert_eq!(tllm_session_new(engine, &raw mut session), TLLM_OK);
        world.made(SESSION, TLLM_OK, session);
    }
    for _ in 0..CALLS_MAX {
        if input.0.is_empty() {
            break;
        }
        match input.below(24) {
            0 | 1 => world.config_call(&mut input),
            2 => world.model_call(&mut input),
            3..=5 => world.engine_call(&mut input),
            6..=12 => world.flow_call(&mut input),
            13..=21 => world.session_call(&mut input),
            22 => world.other_call(&mut input),
            _ => {
                let kind = input.below(5);
                let handle: *mut c_void = world.handle(&mut input, kind);
                let is_own = (0..5).any(|other| other == kind && world.is_live(kind, handle));
                if is_own {
                    world.free(kind, handle.addr());
                } else if !handle.is_null() {
                    assert_eq!(free(kind, handle.addr()), TLLM_ERR_HANDLE);
                } else {
                    assert_eq!(free(kind, 0), TLLM_OK);
                }
            }
        }
    }
    for (kind, list) in std::mem::take(&mut world.given).into_iter().enumerate() {
        for given in list {
            if given.is_live {
                if kind == ENGINE {
                    check_counters(std::ptr::without_provenance(given.handle), size_of::<tllm_counters>());
                }
                let status = free(kind, given.handle);
                assert!(status >= 0, "{kind}: {status}: {}", last_error());
            }
            assert_eq!(free(kind, given.handle), TLLM_ERR_HANDLE);
        }
    }
    // SAFETY: there is no callback to call.
    assert_eq!(unsafe { tllm_log_set(None, null_mut(), TLLM_LOG_OFF) }, TLLM_OK);
});
