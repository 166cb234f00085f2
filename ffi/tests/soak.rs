//! Everything at once, through the C functions: several sessions at full speed, a model swap every second, workers that are kept from
//! the processor, a queue that is full half of the time. No verdict may go to the wrong flow or come from the wrong model, memory stays
//! flat, and the counters add up.
//!
//! Takes 12 seconds; `TLLM_SOAK_SECONDS=3600 cargo test --release -p trafficllm-ffi --test soak -- --nocapture` takes an hour.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper that fails is a failed test; a long run says how it goes"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::atomic::{
    AtomicBool, AtomicIsize, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::time::{Duration, Instant};

use trafficllm::{Bundle, Direction, Flow, Model};
use trafficllm_ffi::*;
use trafficllm_traffic::{CaptureReader, FlowConfig, FlowTable, decode};

const SESSIONS: usize = 3;
const QUEUE_FLOWS: u64 = 256;
/// Answers of one flow and model: task, label, score and status of each entry.
type Expected = Vec<(u32, u32, u32, i32)>;

fn seconds() -> u64 {
    let told = std::env::var("TLLM_SOAK_SECONDS").ok();
    told.map_or(12, |text| text.parse().unwrap())
}

/// Holds a status to what it should be.
fn ok(status: i32) {
    let mut text = [0; 512];
    // SAFETY: the buffer has the size that is told.
    let last = unsafe { tllm_last_error(text.as_mut_ptr(), text.len(), null_mut()) };
    assert!(status >= 0, "{status}, last error {last}: {}", name(&text));
}

fn name(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|&byte| byte as u8).collect();
    let text = CStr::from_bytes_until_nul(&bytes).unwrap();
    text.to_str().unwrap().to_owned()
}

/// Bundles that answer differently: the temperature of each task but the first, whose self-test stays.
fn bundles(folder: &Path) -> Vec<CString> {
    let bundle = Model::default_bundle().unwrap();
    let names = bundle.manifest().files.keys();
    let files: BTreeMap<String, Vec<u8>> = names
        .map(|name| (name.clone(), bundle.file(name).unwrap().to_vec()))
        .collect();
    let paths = [1.0_f32, 1.7, 2.9]
        .iter()
        .enumerate()
        .map(|(number, factor)| {
            let mut manifest = bundle.manifest().clone();
            let first = manifest.tasks[0].name.clone();
            manifest.self_test.retain(|test| test.task == first);
            for task in &mut manifest.tasks[1..] {
                task.temperature *= factor;
            }
            let path = folder.join(format!("{number}.tllm"));
            let made = Bundle::build(manifest, files.clone()).unwrap();
            made.write_packed(&path).unwrap();
            CString::new(path.to_str().unwrap()).unwrap()
        });
    paths.collect()
}

/// The flows of the recorded captures, and as many again whose payload differs in a byte.
fn flows() -> Vec<Flow> {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(captures)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|found| found != "jsonl"));
    paths.sort();
    let mut flows = Vec::new();
    for path in paths {
        let mut reader = CaptureReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut table = FlowTable::new(FlowConfig::default()).unwrap();
        while let Some(raw) = reader.next_packet().unwrap() {
            if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                table.push(&packet, &mut |flow| flows.push(flow));
            }
        }
        table.flush(&mut |flow| flows.push(flow));
    }
    assert!(flows.len() > 40);
    flows
}

/// A flow handle that has seen the packets of a flow.
fn feed(engine: *mut tllm_engine, flow: &Flow, variant: u8) -> *mut tllm_flow {
    // SAFETY: all pointers are to locals that live through the calls; the payload is a slice's.
    unsafe {
        let mut info: tllm_flow_info = std::mem::zeroed();
        ok(tllm_flow_info_init(&raw mut info, size_of_val(&info)));
        info.protocol = flow.endpoints.protocol;
        let mut handle = null_mut();
        ok(tllm_flow_new(engine, &raw const info, &raw mut handle));
        let mut packet: tllm_packet = std::mem::zeroed();
        ok(tllm_packet_init(&raw mut packet, size_of_val(&packet)));
        for (record, payload) in flow.kept() {
            let mut payload = payload.to_vec();
            if let Some(last) = payload.last_mut() {
                *last ^= variant;
            }
            packet.direction = u8::from(record.direction == Direction::FromResponder);
            packet.tcp_flags = record.tcp_flags.0;
            packet.time_ns += u64::from(record.gap_us) * 1_000;
            packet.payload_bytes = record.payload_bytes;
            packet.ip_bytes = record.payload_bytes + 40;
            packet.payload = payload.as_ptr();
            packet.payload_size = payload.len();
            ok(tllm_flow_feed(handle, &raw const packet));
        }
        handle
    }
}

fn entry(verdict: &tllm_verdict) -> (u32, u32, u32, i32) {
    (
        verdict.task,
        verdict.label,
        verdict.score.to_bits(),
        verdict.status,
    )
}

fn no_verdict() -> tllm_verdict {
    // SAFETY: a verdict is plain numbers.
    unsafe { std::mem::zeroed() }
}

/// What each model says of each flow, by a classification on this thread.
fn expected(paths: &[CString], subjects: &[(Flow, u8)]) -> HashMap<String, Vec<Expected>> {
    let mut all = HashMap::new();
    for path in paths {
        // SAFETY: all pointers are to locals that live through the calls.
        unsafe {
            let (mut model, mut engine, mut session) = (null_mut(), null_mut(), null_mut());
            ok(tllm_model_open(path.as_ptr(), null(), &raw mut model));
            ok(tllm_engine_new(model, null(), &raw mut engine));
            ok(tllm_session_new(engine, &raw mut session));
            let mut info: tllm_model_info = std::mem::zeroed();
            ok(tllm_model_describe(
                model,
                &raw mut info,
                size_of_val(&info),
            ));
            let judged = subjects.iter().map(|(flow, variant)| {
                let handle = feed(engine, flow, *variant).cast_const();
                let mut verdicts = [no_verdict(); 8];
                let mut entries = 0;
                ok(tllm_session_classify(
                    session,
                    &raw const handle,
                    1,
                    verdicts.as_mut_ptr(),
                    size_of::<tllm_verdict>(),
                    verdicts.len(),
                    &raw mut entries,
                ));
                ok(tllm_flow_free(handle.cast_mut()));
                verdicts[..entries].iter().map(entry).collect()
            });
            all.insert(name(&info.id), judged.collect());
            ok(tllm_session_free(session));
            ok(tllm_engine_free(engine));
            ok(tllm_model_free(model));
        }
    }
    assert_eq!(
        all.len(),
        paths.len(),
        "the bundles have names of their own"
    );
    all
}

/// Handles that may go to another thread.
#[derive(Clone, Copy)]
struct Shared(*mut tllm_engine);

// SAFETY: an engine's handle is a number that any thread may use.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// What one session's thread has seen.
#[derive(Debug, Default)]
struct Seen {
    offered: u64,
    shed: u64,
    verdicts: u64,
    expired: u64,
    freed: u64,
    left: u64,
    submit_us_max: u64,
}

fn host_thread(
    number: u64,
    Shared(engine): Shared,
    subjects: &[(Flow, u8)],
    expected: &HashMap<String, Vec<Expected>>,
    is_flood: &AtomicBool,
    is_over: &AtomicBool,
) -> Seen {
    let mut seen = Seen::default();
    let mut session = null_mut();
    // SAFETY: all pointers in this function are to locals that live through the calls.
    ok(unsafe { tllm_session_new(engine, &raw mut session) });
    let flows: Vec<*mut tllm_flow> = subjects
        .iter()
        .map(|(flow, variant)| feed(engine, flow, *variant))
        .collect();
    let mut verdicts = [no_verdict(); 64];
    // Which subject each id under way is of.
    let mut under_way: HashMap<u64, usize> = HashMap::new();
    let mut next = number * 17;
    let mut take = |under_way: &mut HashMap<u64, usize>, seen: &mut Seen, timeout_us| {
        let mut count = 0;
        // SAFETY: as above.
        ok(unsafe {
            tllm_session_wait(
                session,
                timeout_us,
                verdicts.as_mut_ptr(),
                size_of::<tllm_verdict>(),
                verdicts.len(),
                &raw mut count,
            )
        });
        let mut at = 0;
        while at < count {
            let answer = &verdicts[at..at + verdicts[at].entries as usize];
            at += answer.len();
            // Fails for a flow that is not under way.
            let subject = under_way.remove(&answer[0].id).unwrap();
            for (position, verdict) in answer.iter().enumerate() {
                assert_eq!(
                    (verdict.id, verdict.position as usize),
                    (answer[0].id, position)
                );
            }
            match answer[0].status {
                TLLM_EXPIRED => seen.expired += 1,
                TLLM_OK | TLLM_ABSTAINED => {
                    let told: Expected = answer.iter().map(entry).collect();
                    assert_eq!(told, expected[&name(&answer[0].model_id)][subject]);
                    seen.verdicts += 1;
                }
                other => unexpected(other),
            }
        }
        count
    };
    while !is_over.load(SeqCst) {
        next += 1;
        let subject = (next * 31 % subjects.len() as u64) as usize;
        let id = number << 48 | next << 8 | subject as u64 & 0xff;
        // One in four belongs to a flow that is freed at once: its verdict must never come.
        let is_freed = next.is_multiple_of(4);
        let flow = if is_freed {
            let (flow, variant) = &subjects[subject];
            feed(engine, flow, *variant)
        } else {
            flows[subject]
        };
        let start = Instant::now();
        let status = tllm_session_submit(session, flow, id);
        seen.submit_us_max = seen.submit_us_max.max(start.elapsed().as_micros() as u64);
        ok(status);
        seen.offered += 1;
        match status {
            TLLM_OK if is_freed => seen.freed += 1,
            TLLM_OK => assert!(under_way.insert(id, subject).is_none()),
            TLLM_QUEUE_FULL => seen.shed += 1,
            other => unexpected(other),
        }
        if is_freed {
            ok(tllm_flow_free(flow));
        }
        if is_flood.load(SeqCst) {
            if next.is_multiple_of(64) {
                take(&mut under_way, &mut seen, 0);
            }
        } else {
            take(&mut under_way, &mut seen, 2_000);
        }
    }
    let until = Instant::now() + Duration::from_secs(60);
    while !under_way.is_empty() && Instant::now() < until {
        take(&mut under_way, &mut seen, 100_000);
    }
    seen.left = under_way.len() as u64;
    // What was freed may still be under way: that is abandoned with the session.
    ok(tllm_session_free(session));
    for flow in flows {
        ok(tllm_flow_free(flow));
    }
    seen
}

fn unexpected(status: i32) -> ! {
    panic!("unexpected status {status}")
}

/// The system's allocator, with a count of the bytes that are in use: what leaks shows here, where the resident memory also has what the
/// allocator keeps for later.
struct Counting;

static HEAP_BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP_BYTES.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HEAP_BYTES.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HEAP_BYTES.fetch_add(size as isize - layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HEAP_BYTES.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes of the heap in use, in KiB, and mappings of the process: the weights of each model are one.
fn in_use() -> (isize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (HEAP_BYTES.load(Relaxed) / 1_024, maps.lines().count())
}

/// Bytes that the models take that were replaced and have flows to finish, in KiB.
fn retired_kib(engine: *mut tllm_engine) -> u64 {
    // SAFETY: the struct is plain data and has its room.
    unsafe {
        let mut memory: tllm_memory = std::mem::zeroed();
        let size = size_of_val(&memory);
        assert_eq!(tllm_engine_memory(engine, &raw mut memory, size), TLLM_OK);
        memory.retired_bytes / 1_024
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Gives the engine's threads the lowest priority, for good.
fn starve_workers() {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.starts_with(trafficllm::WORKER_NAME) {
            let id: libc::id_t = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // SAFETY: the call takes no pointer.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, id, 19) };
        }
    }
}

fn counters(engine: *mut tllm_engine) -> tllm_counters {
    // SAFETY: counters are plain numbers, and the pointer is to a local.
    unsafe {
        let mut counters: tllm_counters = std::mem::zeroed();
        ok(tllm_engine_counters(
            engine,
            &raw mut counters,
            size_of_val(&counters),
        ));
        counters
    }
}

#[test]
fn nothing_is_lost_or_mixed_up_while_models_change_and_workers_starve() {
    let folder = tempfile::tempdir().unwrap();
    let paths = bundles(folder.path());
    let mut resident = Vec::with_capacity(seconds() as usize);
    let broken = folder.path().join("broken.tllm");
    std::fs::write(&broken, b"no bundle").unwrap();
    let broken = CString::new(broken.to_str().unwrap()).unwrap();
    let subjects: Vec<(Flow, u8)> = flows()
        .into_iter()
        .flat_map(|flow| [(flow.clone(), 0), (flow, 1)])
        .collect();
    let expected = expected(&paths, &subjects);
    // What the library keeps for ever (tables of handles) is there: `expected` has used it.
    let before = in_use();

    let (mut config, mut model, mut engine) = (null_mut(), null_mut(), null_mut());
    // SAFETY: all pointers are to locals that live through the calls.
    unsafe {
        ok(tllm_config_new(&raw mut config));
        for (key, value) in [
            (c"engine.workers", c"2"),
            (c"engine.queue_flows", c"256"),
            (c"engine.deadline_us", c"2000000"),
        ] {
            ok(tllm_config_set(config, key.as_ptr(), value.as_ptr()));
        }
        ok(tllm_model_open(paths[0].as_ptr(), config, &raw mut model));
        ok(tllm_engine_new(model, config, &raw mut engine));
        ok(tllm_engine_start(engine));
    }
    let shared = Shared(engine);
    let (is_flood, is_hungry, is_over) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    let (samples, full) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut swaps = 0;

    starve_workers();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let hosts: Vec<_> = (0..SESSIONS as u64)
            .map(|number| {
                let (subjects, expected, is_flood, is_over) =
                    (&subjects, &expected, &is_flood, &is_over);
                scope.spawn(move || {
                    host_thread(number, shared, subjects, expected, is_flood, is_over)
                })
            })
            .collect();
        // As many as there are processors, so that the workers get next to nothing in every other second.
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            let (is_hungry, is_over) = (&is_hungry, &is_over);
            scope.spawn(move || {
                while !is_over.load(SeqCst) {
                    if is_hungry.load(SeqCst) {
                        std::hint::black_box((0..50_000_u64).fold(1, u64::wrapping_mul));
                    } else {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        let (samples, full, is_over_ref) = (&samples, &full, &is_over);
        scope.spawn(move || {
            while !is_over_ref.load(SeqCst) {
                let shared = shared;
                let waiting = counters(shared.0).waiting;
                samples.fetch_add(1, SeqCst);
                full.fetch_add(u64::from(waiting >= QUEUE_FLOWS - 1), SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let start = Instant::now();
        for second in 1.. {
            is_flood.store(second % 2 == 1, SeqCst);
            is_hungry.store(second % 4 < 2, SeqCst);
            let wake = start + Duration::from_secs(second);
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
            // SAFETY: the path ends with a NUL.
            let status = unsafe { tllm_engine_activate(engine, broken.as_ptr()) };
            assert_eq!(status, TLLM_ERR_MODEL);
            // SAFETY: as above.
            ok(unsafe {
                tllm_engine_activate(engine, paths[second as usize % paths.len()].as_ptr())
            });
            swaps += 1;
            // How many replaced models still have flows that wait is a matter of the queue and of how the workers starve: they are counted
            // apart. First they, so that one that goes in between does not look like growth.
            let retired = retired_kib(engine);
            resident.push(resident_kib().saturating_sub(retired));
            if second % 60 == 0 {
                let (resident, retired, in_use) = (resident_kib(), retired_kib(engine), in_use());
                let counters = counters(engine);
                println!(
                    "{second} s: resident {resident} KiB, of that models replaced {retired} KiB; heap KiB and mappings {in_use:?}; {counters:?}"
                );
            }
            if second >= seconds() {
                break;
            }
        }
        is_over.store(true, SeqCst);
        hosts.into_iter().map(|host| host.join().unwrap()).collect()
    });
    let stopped = tllm_engine_stop(engine, 10_000_000);
    assert_eq!(stopped, TLLM_OK);
    let total = counters(engine);
    println!("{seen:?}\n{total:?}");
    let share = full.load(SeqCst) as f64 / samples.load(SeqCst) as f64;
    println!(
        "{swaps} swaps, queue full in {:.0} % of the samples",
        share * 100.0
    );
    let quarter = resident.len() / 4;
    let most = |range: &[u64]| range.iter().copied().max().unwrap_or(0);
    let (early, late) = (
        most(&resident[..resident.len() / 2]),
        most(&resident[resident.len() - quarter.max(1)..]),
    );
    println!(
        "resident without replaced models: {early} KiB at most in the first half, {late} KiB in the last quarter"
    );

    let sum = |field: fn(&Seen) -> u64| seen.iter().map(field).sum::<u64>();
    assert_eq!(total.submitted, sum(|seen| seen.offered));
    assert_eq!(total.shed, sum(|seen| seen.shed));
    assert_eq!(total.failed, 0);
    assert_eq!(total.in_flight, 0);
    assert_eq!(
        total.submitted,
        total.done + total.shed + total.expired + total.abandoned
    );
    assert_eq!(
        sum(|seen| seen.left),
        0,
        "every flow that was kept has its answer"
    );
    assert_eq!(total.done, sum(|seen| seen.verdicts));
    // A freed flow is abandoned, or expires before that is noticed.
    let expired = sum(|seen| seen.expired);
    assert!(total.expired >= expired);
    assert_eq!(
        total.abandoned + (total.expired - expired),
        sum(|seen| seen.freed)
    );
    assert_eq!(
        (total.activations, total.activations_failed),
        (swaps, swaps)
    );
    assert!(sum(|seen| seen.verdicts) > 100 && total.shed > 100 && total.abandoned > 100);
    assert!(share > 0.2, "the queue was full in {share} of the samples");
    // The first seconds grow buffers, and two models may be alive at a time.
    assert!(
        late < early + 8_192,
        "resident memory grows: {resident:?} KiB"
    );
    assert_eq!(tllm_engine_free(engine), TLLM_OK);
    ok(tllm_model_free(model));
    ok(tllm_config_free(config));
    // A few hundred bytes for each swap or one for a thousand flows would be more. The threads have left stacks and arenas.
    let after = in_use();
    println!("heap in use in KiB and mappings: before {before:?}, after {after:?}");
    assert!(after.0 < before.0 + 128, "{before:?}, {after:?}");
    assert!(after.1 < before.1 + 100, "{before:?}, {after:?}");
}
