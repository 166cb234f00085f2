//! No allocation per flow: buffers have their size from the start, and batches through the model and through the engine allocate
//! nothing, on any thread of the process.

#![allow(
    clippy::unwrap_used,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use common::{FLOW_TASKS, captures, recorded_flows, small_bundle};
use trafficllm::{
    Direction, Endpoints, Engine, EngineOptions, Flow, FlowConfig, FlowRecorder, HostPacket,
    Judgement, Level, Model, Outcome, Sink, TcpFlags,
};
use trafficllm_model::{Item, Scratch};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of all threads during `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(SeqCst);
    work();
    ALLOCATIONS.load(SeqCst) - before
}

/// Passes in which nothing may be allocated.
const QUIET_PASSES: usize = 100;

/// What the packets of a flow may allocate on their way to its outcome.
const DETECTION_ALLOCATIONS_MAX: f64 = 0.0;

/// Waits until all other threads sleep: one that has just been started allocates what the system's library needs for it.
fn wait_for_threads_to_sleep() {
    let own = std::process::id().to_string();
    let is_awake = |stat: &str| {
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        fields.next() == Some("R")
    };
    let this = fs::read_link("/proc/thread-self").ok();
    let this = this.and_then(|path| path.file_name().map(|name| name.to_owned()));
    let Ok(tasks) = fs::read_dir(format!("/proc/{own}/task")) else {
        // Not Linux: there is no better way.
        std::thread::sleep(Duration::from_millis(500));
        return;
    };
    for task in tasks
        .flatten()
        .filter(|task| Some(task.file_name()) != this)
    {
        let stat = || fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        while is_awake(&stat()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn classify(model: &Model, flows: &[Flow]) {
    let mut encode_scratch = trafficllm_traffic::token::EncodeScratch::default();
    let tokens: Vec<Vec<u32>> = flows
        .iter()
        .map(|flow| {
            let mut tokens = Vec::new();
            model
                .encoder()
                .encode_flow(flow, &mut encode_scratch, &mut tokens);
            tokens
        })
        .collect();
    let tasks = [0, 1];
    let items: Vec<Item<'_>> = tokens
        .iter()
        .map(|tokens| Item {
            tokens,
            tasks: &tasks,
        })
        .collect();
    let (mut scratch, mut verdicts) = (Scratch::default(), Vec::with_capacity(2 * 7));
    let longest = tokens.iter().map(Vec::len).max().unwrap();
    let reserve = || scratch.try_reserve(model.core(), 7 * longest, 7).unwrap();
    assert!(allocations(reserve) > 0, "the counter does not count");
    let run = || {
        for items in items.chunks(7) {
            model
                .core()
                .classify(items, &mut scratch, &mut verdicts)
                .unwrap();
            assert_eq!(verdicts.len(), 2 * items.len());
        }
    };
    assert_eq!(allocations(run), 0, "batches through the model");
    assert!(scratch.bytes() > 0);
}

fn submit(model: &Arc<Model>, flows: &[Flow], workers: usize, tasks: &[&str]) {
    let options = EngineOptions {
        workers,
        tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::clone(model), options).unwrap();
    engine.start().unwrap();
    let mut submitter = engine.submitter().unwrap();
    let mut answers = 0;
    let mut pass = |count: usize| {
        for flows in flows.chunks(count) {
            for (id, flow) in (0..).zip(flows) {
                submitter.submit(flow, id).unwrap();
            }
            engine.run_pending();
            while submitter.in_flight() > 0 {
                submitter.wait(Duration::from_secs(1), |answer| {
                    assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
                    answers += 1;
                });
            }
        }
    };
    // Workers that have just been started allocate what the system's library needs for them.
    pass(flows.len());
    wait_for_threads_to_sleep();
    let memory = engine.memory();
    let sizes = (1..=flows.len()).cycle().take(QUIET_PASSES);
    assert_eq!(
        allocations(|| sizes.for_each(&mut pass)),
        0,
        "an engine with {workers} workers"
    );
    assert_eq!(
        engine.memory(),
        memory,
        "the reported memory is what is held"
    );
    assert_eq!(answers, engine.counters().done);
}

/// A flow with these packets of the initiator, an answer of the responder behind them.
fn flow_of(payloads: &[&[u8]]) -> Flow {
    let endpoints = Endpoints {
        initiator: IpAddr::V4(Ipv4Addr::LOCALHOST),
        responder: IpAddr::V4(Ipv4Addr::BROADCAST),
        initiator_port: 40_000,
        responder_port: 80,
        protocol: 6,
    };
    let config = FlowConfig {
        max_packets: 1_024,
        max_payload_bytes: 65_535,
        max_payloads: 16,
        ..FlowConfig::default()
    };
    let mut recorder = FlowRecorder::new(config, endpoints).unwrap();
    let mut push = |direction, payload: &[u8]| {
        recorder.push(&HostPacket {
            direction,
            time_ns: 0,
            ip_bytes: 40 + payload.len() as u32,
            payload_bytes: payload.len() as u32,
            tcp_flags: TcpFlags(TcpFlags::ACK),
            payload,
        });
    };
    for payload in payloads {
        push(Direction::FromInitiator, payload);
    }
    push(Direction::FromResponder, b"HTTP/1.1 200 OK\r\n\r\n");
    recorder.flow().clone()
}

/// The first flow that a submitter ever sees may be the largest there is.
fn submit_first(model: &Arc<Model>) {
    let long = [b"POST /".as_slice(), &b"~^".repeat(6_000)].concat();
    let body = b"x=1%20&".repeat(3_000);
    let lines = "a: b\r\n".repeat(500);
    let flows = [
        flow_of(&[b"GET /a HTTP/1.1\r\n", b"Host: b\r\n", b"\r\n"]),
        flow_of(&[
            b"POST /a HTTP/1.1\r\n",
            lines.as_bytes(),
            b"\r\n",
            &body,
            &body,
        ]),
        flow_of(&[&long[..4_000], &long[4_000..]]),
        flow_of(&[&long]),
        // It begins like a request, and only the second packet shows that it is none.
        flow_of(&[b"GET /no-version", b" at all\r\n\r\n"]),
        flow_of(&[[0x16; 60_000].as_slice(); 16]),
        flow_of(&[[b'~'; 1_400].as_slice(); 1_000]),
    ];
    for first in 0..flows.len() {
        let engine = Engine::new(Arc::clone(model), EngineOptions::default()).unwrap();
        let mut submitter = engine.submitter().unwrap();
        let memory = engine.memory();
        let allocated = allocations(|| {
            for flow in flows[first..].iter().chain(&flows) {
                submitter.submit(flow, 0).unwrap();
            }
        });
        assert_eq!(allocated, 0, "flow {first} first");
        let allocated = allocations(|| {
            submitter.submit_request(&long, 0).unwrap();
            submitter
                .submit_request(b"GET / HTTP/1.1\r\n\r\n", 0)
                .unwrap();
        });
        assert_eq!(allocated, 0, "a request after flow {first}");
        assert_eq!(engine.memory(), memory);
    }
}

/// Counts outcomes and verdicts.
#[derive(Default)]
struct Count(u64);

impl Sink for Count {
    fn outcome(&mut self, _outcome: &Outcome<'_>) -> ControlFlow<()> {
        self.0 += 1;
        ControlFlow::Continue(())
    }
}

/// A capture again and again in one file, ten minutes later and between other hosts each time.
fn repeated(once: &[u8], times: u16) -> Vec<u8> {
    let (header, packets) = once.split_at(24);
    let mut capture = header.to_vec();
    for round in 0..times {
        let mut rest = packets;
        while let Some((head, after)) = rest.split_at_checked(16) {
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let (packet, next) = after.split_at(word(8) as usize);
            let seconds = word(0) + 600 * u32::from(round);
            capture.extend_from_slice(&seconds.to_le_bytes());
            capture.extend_from_slice(&head[4..]);
            let first = capture.len();
            capture.extend_from_slice(packet);
            // The middle of both IPv4 addresses behind an Ethernet header.
            for address in [26, 30] {
                capture[first + address + 1..][..2].copy_from_slice(&round.to_be_bytes());
            }
            rest = next;
        }
    }
    capture
}

/// Allocations for each flow from the bytes of a capture to its outcome.
fn detect(model: &Arc<Model>) -> f64 {
    let paths = captures();
    let path = paths
        .iter()
        .find(|path| path.ends_with("/http.pcap"))
        .unwrap();
    let once = fs::read(path).unwrap();
    let count = |times| {
        let capture = repeated(&once, times);
        let options = EngineOptions {
            tasks: FLOW_TASKS.map(str::to_owned).to_vec(),
            ..EngineOptions::default()
        };
        let engine = Engine::new(Arc::clone(model), options).unwrap();
        engine.start().unwrap();
        let mut flows = 0;
        let allocated = allocations(|| {
            let mut detection = engine.detect(Count::default());
            let report = detection.capture(capture.as_slice()).unwrap();
            assert!(report.failure.is_none());
            flows = detection.finish().unwrap().1.0;
        });
        (flows, allocated)
    };
    let (few_flows, few) = count(50);
    let (many_flows, many) = count(150);
    assert!(few_flows > 500 && many_flows > 2 * few_flows);
    (many as f64 - few as f64) / (many_flows - few_flows) as f64
}

/// One test, so that no other one allocates at the same time.
#[test]
fn nothing_is_allocated_for_a_flow() {
    let model = Arc::new(Model::load(&small_bundle(|_| ()), Level::detect()).unwrap());
    let flows = recorded_flows(&model);
    classify(&model, &flows);
    for workers in [0, 1, 2] {
        submit(&model, &flows, workers, &FLOW_TASKS);
    }
    submit(&model, &flows, 0, &[]);
    submit_first(&model);
    let per_flow = detect(&model);
    assert!(
        per_flow <= DETECTION_ALLOCATIONS_MAX,
        "{per_flow} allocations for a flow of a detection"
    );
}
