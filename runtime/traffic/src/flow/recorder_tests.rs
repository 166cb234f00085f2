use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::limits::FLOW_PACKETS_MAX;

fn endpoints(protocol: u8) -> Endpoints {
    let address = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
    Endpoints {
        initiator: address(1),
        responder: address(2),
        initiator_port: 40_000,
        responder_port: 443,
        protocol,
    }
}

fn packet(time_ns: u64, payload: &[u8]) -> HostPacket<'_> {
    HostPacket {
        direction: Direction::FromInitiator,
        time_ns,
        ip_bytes: payload.len() as u32 + 40,
        payload_bytes: payload.len() as u32,
        tcp_flags: TcpFlags(TcpFlags::ACK),
        payload,
    }
}

fn config() -> FlowConfig {
    FlowConfig {
        max_packets: 3,
        max_payload_bytes: 4,
        max_payloads: 2,
        ..FlowConfig::default()
    }
}

fn recorder() -> FlowRecorder {
    FlowRecorder::new(config(), endpoints(6)).unwrap()
}

#[test]
fn settings_are_checked() {
    for (max_packets, is_ok) in [
        (0, false),
        (FLOW_PACKETS_MAX, true),
        (FLOW_PACKETS_MAX + 1, false),
    ] {
        let config = FlowConfig {
            max_packets,
            ..config()
        };
        assert_eq!(FlowRecorder::new(config, endpoints(6)).is_ok(), is_ok);
    }
}

#[test]
fn a_flow_without_packets_says_nothing() {
    let recorder = recorder();
    let flow = recorder.flow();
    assert_eq!((flow.packets, flow.bytes, flow.start_ns), (0, 0, 0));
    assert_eq!(flow.kept().count(), 0);
    assert!(!recorder.is_full());
    assert_eq!(*recorder.counters(), RecorderCounters::default());
}

#[test]
fn what_is_cut_is_counted() {
    let mut recorder = recorder();
    recorder.push(&packet(5_000, b"abcdef"));
    recorder.push(&packet(4_000, b"gh"));
    recorder.push(&packet(9_000, b"ijk"));
    assert!(recorder.is_full());
    recorder.push(&packet(10_000, b"lost"));
    let flow = recorder.flow();
    assert_eq!((flow.start_ns, flow.end_ns), (5_000, 10_000));
    assert_eq!((flow.packets, flow.bytes), (4, 175));
    let kept: Vec<_> = flow
        .kept()
        .map(|(record, payload)| (record.gap_us, record.payload_bytes, payload))
        .collect();
    assert_eq!(
        kept,
        [(0, 6, &b"abcd"[..]), (0, 2, b"gh"), (5, 3, b"ij")],
        "the last payload finds room behind the one before it"
    );
    assert_eq!(
        *recorder.counters(),
        RecorderCounters {
            packets: 4,
            packets_beyond_limit: 1,
            payload_bytes_cut: 3,
            time_backwards: 1,
        }
    );
}

#[test]
fn a_payload_is_no_longer_than_the_headers_say() {
    let mut recorder = recorder();
    recorder.push(&HostPacket {
        payload_bytes: 1,
        ..packet(0, b"padding")
    });
    let kept: Vec<_> = recorder.flow().kept().collect();
    assert_eq!((kept[0].0.payload_kept, kept[0].1), (1, &b"p"[..]));
    assert_eq!(recorder.counters().payload_bytes_cut, 0);
}

#[test]
fn only_tcp_has_flags() {
    for (protocol, flags) in [(6, TcpFlags::ACK), (17, 0)] {
        let mut recorder = FlowRecorder::new(config(), endpoints(protocol)).unwrap();
        recorder.push(&packet(0, b""));
        assert_eq!(recorder.flow().records[0].tcp_flags, TcpFlags(flags));
    }
}

#[test]
fn a_reset_recorder_is_like_a_new_one_in_the_same_memory() {
    let (mut used, mut fresh) = (recorder(), recorder());
    for _ in 0..5 {
        used.push(&packet(7_000, b"abcdef"));
    }
    used.reset(endpoints(17));
    let bytes = used.bytes();
    fresh.reset(endpoints(17));
    for recorder in [&mut used, &mut fresh] {
        recorder.push(&packet(100_000, b"xyz"));
        recorder.push(&packet(102_000, b"12345"));
    }
    assert_eq!(used.flow(), fresh.flow());
    assert_eq!(used.flow().start_ns, 100_000);
    assert_eq!(used.bytes(), bytes);
    assert_eq!(used.counters().packets, 7);
}

#[test]
fn bytes_grow_with_what_is_kept_and_no_further() {
    let mut recorder = recorder();
    let empty = recorder.bytes();
    assert!(empty >= size_of::<FlowRecorder>() + 3 * size_of::<PacketRecord>());
    recorder.push(&packet(0, b"abcd"));
    recorder.push(&packet(0, b"abcd"));
    let full = recorder.bytes();
    assert_eq!(full, empty + 2 * (4 + size_of::<Box<[u8]>>()));
    for _ in 0..100 {
        recorder.push(&packet(0, b"abcd"));
    }
    assert_eq!(recorder.bytes(), full);
}
