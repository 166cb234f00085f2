//! What the C border costs: packets and verdicts through the functions of `trafficllm.h` and through the Rust library, in turns, on
//! the same flows: `cargo bench -p trafficllm-benches --bench border`.
//!
//! Flows are those of the recorded captures. Feeding is measured per packet, with the flow's handle looked up each time; verdicts are
//! measured for all tasks, from submission to the verdicts in the host's own memory, with the model run on the same thread.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that fails may stop, and prints its figures"
)]

use std::cell::RefCell;
use std::hint::black_box;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use trafficllm::{Direction, Engine, EngineOptions, Flow, FlowRecorder, HostPacket, Model};
use trafficllm_benches::{Contender, interleaved_medians, recorded_captures};
use trafficllm_ffi::*;
use trafficllm_traffic::{CaptureReader, FlowConfig, FlowTable, decode};

const ROUNDS: usize = 41;
/// How often all flows are fed in one round.
const FEEDS: usize = 200;

fn ok(status: i32) {
    assert!(status >= 0, "{status}");
}

fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for capture in recorded_captures(&repository).unwrap() {
        let mut reader = CaptureReader::new(capture.as_slice()).unwrap();
        let mut table = FlowTable::new(FlowConfig::default()).unwrap();
        while let Some(raw) = reader.next_packet().unwrap() {
            if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                table.push(&packet, &mut |flow| flows.push(flow));
            }
        }
        table.flush(&mut |flow| flows.push(flow));
    }
    flows
}

/// The packets of a flow as a host has them, for each side.
struct Packets<'a> {
    rust: Vec<HostPacket<'a>>,
    c: Vec<tllm_packet>,
    info: tllm_flow_info,
}

impl<'a> Packets<'a> {
    fn of(flow: &'a Flow) -> Self {
        let mut time_ns = flow.start_ns;
        let rust = flow.kept().map(|(record, payload)| {
            time_ns += u64::from(record.gap_us) * 1_000;
            HostPacket {
                direction: record.direction,
                time_ns,
                ip_bytes: record.payload_bytes + 40,
                payload_bytes: record.payload_bytes,
                tcp_flags: record.tcp_flags,
                payload,
            }
        });
        let rust: Vec<HostPacket<'a>> = rust.collect();
        // SAFETY: both structs are plain data, and the functions get their sizes.
        let (packet, mut info) = unsafe {
            let (mut packet, mut info): (tllm_packet, tllm_flow_info) = std::mem::zeroed();
            ok(tllm_packet_init(&raw mut packet, size_of_val(&packet)));
            ok(tllm_flow_info_init(&raw mut info, size_of_val(&info)));
            (packet, info)
        };
        info.protocol = flow.endpoints.protocol;
        let c = rust.iter().map(|host| tllm_packet {
            direction: u8::from(host.direction == Direction::FromResponder),
            tcp_flags: host.tcp_flags.0,
            time_ns: host.time_ns,
            ip_bytes: host.ip_bytes,
            payload_bytes: host.payload_bytes,
            payload: host.payload.as_ptr(),
            payload_size: host.payload.len(),
            ..packet
        });
        let c = c.collect();
        Self { rust, c, info }
    }
}

/// The two ways in, each with an engine that has no worker: the model runs on this thread.
struct Host {
    engine: *mut tllm_engine,
    session: *mut tllm_session,
}

impl Host {
    fn new() -> Self {
        let (mut config, mut model, mut engine, mut session) =
            (null_mut(), null_mut(), null_mut(), null_mut());
        // SAFETY: all pointers are to locals that live through the calls.
        unsafe {
            ok(tllm_config_new(&raw mut config));
            ok(tllm_config_set(
                config,
                c"engine.workers".as_ptr(),
                c"0".as_ptr(),
            ));
            ok(tllm_model_open_default(null(), &raw mut model));
            ok(tllm_engine_new(model, config, &raw mut engine));
            ok(tllm_session_new(engine, &raw mut session));
        }
        Self { engine, session }
    }

    fn flow(&self, packets: &Packets<'_>) -> *mut tllm_flow {
        let mut flow = null_mut();
        // SAFETY: both pointers are to what lives through the call.
        ok(unsafe { tllm_flow_new(self.engine, &raw const packets.info, &raw mut flow) });
        flow
    }
}

fn measure_feeding(host: &Host, packets: &[Packets<'_>], flows: &[Flow]) {
    let count: usize = packets.iter().map(|packets| packets.c.len()).sum();
    let handles: Vec<*mut tllm_flow> = packets.iter().map(|packets| host.flow(packets)).collect();
    let recorders = flows
        .iter()
        .map(|flow| FlowRecorder::new(FlowConfig::default(), flow.endpoints).unwrap());
    let recorders = RefCell::new(recorders.collect::<Vec<_>>());
    let mut contenders: [Contender<'_>; 4] = [
        (
            "Rust, reset and feed",
            Box::new(|| {
                for _ in 0..FEEDS {
                    for (recorder, packets) in recorders.borrow_mut().iter_mut().zip(packets) {
                        recorder.reset(recorder.flow().endpoints);
                        packets.rust.iter().for_each(|packet| recorder.push(packet));
                    }
                }
            }),
        ),
        (
            "C, reset and feed",
            Box::new(|| {
                for _ in 0..FEEDS {
                    for (&flow, packets) in handles.iter().zip(packets) {
                        // SAFETY: the packets and their payload live in `packets` and `flows`.
                        unsafe {
                            ok(tllm_flow_reset(flow, &raw const packets.info));
                            for packet in &packets.c {
                                ok(tllm_flow_feed(flow, packet));
                            }
                        }
                    }
                }
            }),
        ),
        (
            "C, new, feed and free",
            Box::new(|| {
                for _ in 0..FEEDS {
                    for packets in packets {
                        let flow = host.flow(packets);
                        for packet in &packets.c {
                            // SAFETY: as above.
                            ok(unsafe { tllm_flow_feed(flow, packet) });
                        }
                        ok(tllm_flow_free(flow));
                    }
                }
            }),
        ),
        (
            "C, new and free",
            Box::new(|| {
                for _ in 0..FEEDS {
                    for packets in packets {
                        ok(tllm_flow_free(host.flow(packets)));
                    }
                }
            }),
        ),
    ];
    println!(
        "{} flows, {count} packets; nanoseconds per packet, medians of {ROUNDS} rounds:",
        flows.len()
    );
    let medians = interleaved_medians(ROUNDS, &mut contenders);
    for ((name, _), seconds) in contenders.iter().zip(&medians) {
        let per_packet = seconds * 1e9 / (FEEDS * count) as f64;
        println!("  {name:24} {per_packet:7.1}");
    }
}

fn measure_verdicts(host: &Host, packets: &[Packets<'_>], flows: &[Flow]) {
    let model = Arc::new(Model::open_default().unwrap());
    let engine = Engine::new(model, EngineOptions::default()).unwrap();
    let submitter = RefCell::new(engine.submitter().unwrap());
    let owner = Arc::new(());
    let handles: Vec<*mut tllm_flow> = packets
        .iter()
        .map(|packets| {
            let flow = host.flow(packets);
            for packet in &packets.c {
                // SAFETY: the packets and their payload live in `packets` and `flows`.
                ok(unsafe { tllm_flow_feed(flow, packet) });
            }
            flow
        })
        .collect();
    // SAFETY: verdicts are plain numbers.
    let verdicts: Vec<tllm_verdict> = vec![unsafe { std::mem::zeroed() }; flows.len() * 8];
    let verdicts = RefCell::new(verdicts);
    let mut contenders: [Contender<'_>; 2] = [
        (
            "Rust",
            Box::new(|| {
                let mut submitter = submitter.borrow_mut();
                for (id, flow) in flows.iter().enumerate() {
                    submitter.submit_for(flow, id as u64, &owner).unwrap();
                }
                engine.run_pending();
                let taken = submitter.poll(|answer| _ = black_box(answer.id));
                assert_eq!(taken, flows.len());
            }),
        ),
        (
            "C",
            Box::new(|| {
                let mut verdicts = verdicts.borrow_mut();
                for (id, &flow) in handles.iter().enumerate() {
                    ok(tllm_session_submit(host.session, flow, id as u64));
                }
                let mut count = 0;
                // SAFETY: the pointers are to locals and to the vector, whose length is told.
                unsafe {
                    ok(tllm_engine_run_pending(host.engine, null_mut()));
                    ok(tllm_session_poll(
                        host.session,
                        verdicts.as_mut_ptr(),
                        size_of::<tllm_verdict>(),
                        verdicts.len(),
                        &raw mut count,
                    ));
                }
                assert!(count >= flows.len());
            }),
        ),
    ];
    let medians = interleaved_medians(ROUNDS, &mut contenders);
    println!(
        "microseconds per flow from submission to verdicts, all tasks, medians of {ROUNDS} rounds:"
    );
    for ((name, _), seconds) in contenders.iter().zip(&medians) {
        println!("  {name:24} {:7.2}", seconds * 1e6 / flows.len() as f64);
    }
    println!(
        "  the border adds {:+.2} %",
        (medians[1] / medians[0] - 1.0) * 100.0
    );
}

fn main() {
    let flows = flows();
    let packets: Vec<Packets<'_>> = flows.iter().map(Packets::of).collect();
    let host = Host::new();
    measure_feeding(&host, &packets, &flows);
    measure_verdicts(&host, &packets, &flows);
}
