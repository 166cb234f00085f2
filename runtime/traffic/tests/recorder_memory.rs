//! A system that refuses memory, however little: a recorder goes on with what it has, and says what it lost.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking and say where"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::ptr::null_mut;

use trafficllm_traffic::{
    Direction, Endpoints, FlowConfig, FlowRecorder, FlowTable, HostPacket, Packet, RecorderError,
    TcpFlags,
};

thread_local! {
    /// Allocations of this thread that are still granted before all are refused; below 0 none is.
    static GRANTED: Cell<i64> = const { Cell::new(-1) };
}

struct Refusing;

impl Refusing {
    fn refuses() -> bool {
        let granted = GRANTED.get();
        GRANTED.set(granted - i64::from(granted > 0));
        granted == 0
    }
}

// SAFETY: a call is refused with a null pointer or goes on to the system's allocator unchanged; deciding touches no memory of the
// caller and allocates nothing.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::refuses() {
            return null_mut();
        }
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Self::refuses() {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static REFUSING: Refusing = Refusing;

/// Runs `work` with so many allocations granted, and then none.
fn with<T>(granted: i64, work: impl FnOnce() -> T) -> T {
    GRANTED.set(granted);
    let result = work();
    GRANTED.set(-1);
    result
}

const CONFIG: FlowConfig = FlowConfig {
    max_packets: 1_024,
    max_payload_bytes: 4,
    max_payloads: 8,
    ..FlowConfig::DEFAULT
};

fn endpoints() -> Endpoints {
    Endpoints {
        initiator: IpAddr::V4(Ipv4Addr::LOCALHOST),
        responder: IpAddr::V4(Ipv4Addr::BROADCAST),
        initiator_port: 40_000,
        responder_port: 443,
        protocol: 6,
    }
}

fn push(recorder: &mut FlowRecorder, payload: &[u8]) {
    recorder.push(&HostPacket {
        direction: Direction::FromInitiator,
        time_ns: 0,
        ip_bytes: 40 + payload.len() as u32,
        payload_bytes: payload.len() as u32,
        tcp_flags: TcpFlags(TcpFlags::ACK),
        payload,
    });
}

fn kept(recorder: &FlowRecorder) -> Vec<Vec<u8>> {
    let flow = recorder.flow();
    flow.kept().map(|(_, payload)| payload.to_vec()).collect()
}

#[test]
fn a_recorder_without_memory_for_its_records_is_an_error() {
    let refused = with(0, || FlowRecorder::new(CONFIG, endpoints()).err());
    let Some(RecorderError::Memory(error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.bytes, 1_024 * 12);
    assert!(FlowRecorder::new(CONFIG, endpoints()).is_ok());
}

#[test]
fn packets_go_on_without_the_payload_that_there_is_no_memory_for() {
    // Neither a list nor a buffer; a list and no buffer; a list and one buffer.
    for (granted, first) in [(0, ""), (1, ""), (2, "abcd")] {
        let mut recorder = FlowRecorder::new(CONFIG, endpoints()).unwrap();
        with(granted, || {
            push(&mut recorder, b"abc");
            push(&mut recorder, b"def");
            push(&mut recorder, b"");
        });
        // Memory is back: what comes now has its own place.
        push(&mut recorder, b"ghi");
        push(&mut recorder, b"jk");
        let expected: [&[u8]; 5] = match first {
            "" => [b"", b"", b"", b"ghi", b"jk"],
            _ => [b"abc", b"d", b"", b"ghi", b"jk"],
        };
        assert_eq!(kept(&recorder), expected, "{granted} granted");
        let counters = recorder.counters();
        assert_eq!((counters.packets, counters.packets_beyond_limit), (5, 0));
        let lost = 6 - first.len() as u64;
        assert_eq!(counters.payload_bytes_cut, lost, "{granted} granted");
        assert_eq!(recorder.flow().packets, 5);
        recorder.reset(endpoints());
        push(&mut recorder, b"lmn");
        assert_eq!(kept(&recorder), [b"lmn"]);
    }
}

#[test]
fn a_reset_without_memory_frees_what_it_cannot_keep() {
    let mut recorder = FlowRecorder::new(CONFIG, endpoints()).unwrap();
    for _ in 0..8 {
        push(&mut recorder, b"abcd");
    }
    with(0, || {
        recorder.reset(endpoints());
        push(&mut recorder, b"efgh");
    });
    assert_eq!(kept(&recorder), [b""]);
    push(&mut recorder, b"ijkl");
    assert_eq!(kept(&recorder), [b"".as_slice(), b"ijkl"]);
}

#[test]
fn a_table_only_counts_packets_that_there_is_no_memory_to_record() {
    let mut table = FlowTable::new(CONFIG).unwrap();
    let packet = Packet {
        timestamp_ns: 0,
        source: endpoints().initiator,
        destination: endpoints().responder,
        source_port: 1_000,
        destination_port: 53,
        protocol: 17,
        tcp_flags: TcpFlags(0),
        tcp_sequence: 0,
        fragment: false,
        ip_bytes: 28,
        payload_bytes: 0,
        payload: b"",
    };
    let mut flows = Vec::with_capacity(1);
    for _ in 0..20 {
        table.push(&packet, &mut |flow| flows.push(flow));
    }
    with(0, || {
        table.push(&packet, &mut |flow| flows.push(flow));
        table.push(&packet, &mut |flow| flows.push(flow));
    });
    table.push(&packet, &mut |flow| flows.push(flow));
    assert_eq!(table.counters().packets_beyond_limit, 2);
    table.flush(&mut |flow| flows.push(flow));
    assert_eq!((flows[0].packets, flows[0].records.len()), (23, 21));
}
