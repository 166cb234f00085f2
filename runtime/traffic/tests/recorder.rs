//! A recorder that is fed with a capture's packets, flow by flow, makes the flows that the table makes.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking and say where"
)]

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use trafficllm_traffic::{
    CaptureReader, Direction, Endpoints, Flow, FlowConfig, FlowRecorder, FlowTable, HostPacket,
    Packet, TcpFlags, decode,
};

/// Both ends in ascending order, and the protocol.
type Key = ([(IpAddr, u16); 2], u8);

struct Owned {
    source: (IpAddr, u16),
    time_ns: u64,
    ip_bytes: u32,
    payload_bytes: u32,
    tcp_flags: TcpFlags,
    payload: Vec<u8>,
}

fn key(first: (IpAddr, u16), second: (IpAddr, u16), protocol: u8) -> Key {
    ([first.min(second), first.max(second)], protocol)
}

fn key_of(packet: &Packet<'_>) -> Key {
    key(
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
        packet.protocol,
    )
}

fn owned(packet: &Packet<'_>) -> Owned {
    Owned {
        source: (packet.source, packet.source_port),
        time_ns: packet.timestamp_ns,
        ip_bytes: packet.ip_bytes,
        payload_bytes: packet.payload_bytes,
        tcp_flags: packet.tcp_flags,
        payload: packet.payload.to_vec(),
    }
}

/// The flow that a recorder makes of its packets: the first ones of its addresses and ports that are left, for flows with the
/// same ends follow each other.
fn record(
    recorder: &mut FlowRecorder,
    ends: &Endpoints,
    packets: &mut VecDeque<Owned>,
    count: u64,
) {
    recorder.reset(*ends);
    for packet in packets.drain(..count as usize) {
        let direction = if packet.source == (ends.initiator, ends.initiator_port) {
            Direction::FromInitiator
        } else {
            Direction::FromResponder
        };
        recorder.push(&HostPacket {
            direction,
            time_ns: packet.time_ns,
            ip_bytes: packet.ip_bytes,
            payload_bytes: packet.payload_bytes,
            tcp_flags: packet.tcp_flags,
            payload: &packet.payload,
        });
    }
}

/// Compares all flows of a capture and gives their number.
fn compare(path: &Path, config: FlowConfig) -> usize {
    let mut reader = CaptureReader::new(File::open(path).unwrap()).unwrap();
    let mut table = FlowTable::new(config).unwrap();
    let mut packets: HashMap<Key, VecDeque<Owned>> = HashMap::new();
    let mut flows: Vec<Flow> = Vec::new();
    while let Some(raw) = reader.next_packet().unwrap() {
        if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
            packets
                .entry(key_of(&packet))
                .or_default()
                .push_back(owned(&packet));
            table.push(&packet, &mut |flow| flows.push(flow));
        }
    }
    table.flush(&mut |flow| flows.push(flow));
    flows.sort_by_key(|flow| flow.index);
    let Some(first) = flows.first() else { return 0 };
    let mut recorder = FlowRecorder::new(config, first.endpoints).unwrap();
    for flow in &mut flows {
        let ends = flow.endpoints;
        let key = key(
            (ends.initiator, ends.initiator_port),
            (ends.responder, ends.responder_port),
            ends.protocol,
        );
        let packets = packets.get_mut(&key).unwrap();
        record(&mut recorder, &ends, packets, flow.packets);
        // The recorder does not number its flows.
        flow.index = 0;
        assert_eq!(recorder.flow(), flow, "{}", path.display());
    }
    let (found, expected) = (recorder.counters(), table.counters());
    assert_eq!(
        (
            found.packets,
            found.packets_beyond_limit,
            found.payload_bytes_cut,
            found.time_backwards
        ),
        (
            expected.packets,
            expected.packets_beyond_limit,
            expected.payload_bytes_cut,
            expected.time_backwards
        ),
        "{}",
        path.display()
    );
    assert!(packets.values().all(VecDeque::is_empty));
    flows.len()
}

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/captures");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_capture = |path: &PathBuf| {
        path.extension()
            .is_none_or(|extension| extension != "jsonl")
    };
    files.filter(is_capture).collect()
}

#[test]
fn recorders_and_tables_make_the_same_flows_of_recorded_captures() {
    let captures = captures();
    assert!(captures.len() >= 7, "{captures:?}");
    let lean = FlowConfig {
        max_packets: 3,
        max_payload_bytes: 20,
        max_payloads: 2,
        ..FlowConfig::default()
    };
    let short = FlowConfig {
        tcp_idle_timeout_us: 100_000,
        other_idle_timeout_us: 100_000,
        max_flows: 2,
        ..FlowConfig::default()
    };
    for config in [FlowConfig::default(), lean, short] {
        let flows: usize = captures.iter().map(|path| compare(path, config)).sum();
        assert!(flows >= captures.len(), "{flows} flows");
    }
}
