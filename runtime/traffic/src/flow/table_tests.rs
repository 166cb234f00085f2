use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::flow::record::TcpFlags;
use crate::limits::TIMEOUT_US_MAX;

const SECOND: u64 = 1_000_000_000;
const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;
const PSH: u8 = TcpFlags::PSH;

fn packet(
    source: (u8, u16),
    destination: (u8, u16),
    protocol: u8,
    seconds: u64,
) -> Packet<'static> {
    let address = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
    Packet {
        timestamp_ns: seconds * SECOND,
        source: address(source.0),
        destination: address(destination.0),
        source_port: source.1,
        destination_port: destination.1,
        protocol,
        tcp_flags: TcpFlags(0),
        tcp_sequence: 0,
        fragment: false,
        ip_bytes: 33,
        payload_bytes: 5,
        payload: b"hello",
    }
}

fn udp(port: u16, seconds: u64) -> Packet<'static> {
    packet((1, port), (2, 53), 17, seconds)
}

/// A segment from the client, or from the server, at a time in seconds.
fn tcp(from_client: bool, flags: u8, sequence: u32, seconds: u64) -> Packet<'static> {
    let (client, server) = ((1, 40_000), (2, 443));
    let (source, destination) = if from_client {
        (client, server)
    } else {
        (server, client)
    };
    let tcp_flags = TcpFlags(flags);
    Packet {
        tcp_flags,
        tcp_sequence: sequence,
        ..packet(source, destination, 6, seconds)
    }
}

struct Run {
    table: FlowTable,
    flows: Vec<Flow>,
}

impl Run {
    fn new(config: FlowConfig) -> Self {
        Self {
            table: FlowTable::new(config).unwrap(),
            flows: Vec::new(),
        }
    }

    fn push(&mut self, packet: &Packet<'_>) {
        self.table.push(packet, &mut |flow| self.flows.push(flow));
    }

    fn finish(mut self) -> (Vec<Flow>, FlowCounters) {
        self.table.flush(&mut |flow| self.flows.push(flow));
        assert!(self.table.is_empty());
        let counters = *self.table.counters();
        let ended = counters.tcp_end + counters.idle + counters.active + counters.port_reuse;
        assert_eq!(counters.flows, ended + counters.evicted + counters.flushed);
        assert_eq!(counters.flows, self.flows.len() as u64);
        assert_eq!(
            counters.packets,
            self.flows.iter().map(|flow| flow.packets).sum::<u64>()
        );
        (self.flows, counters)
    }
}

fn run(packets: &[Packet<'_>]) -> (Vec<Flow>, FlowCounters) {
    let mut run = Run::new(FlowConfig::default());
    for packet in packets {
        run.push(packet);
    }
    run.finish()
}

fn packet_counts(flows: &[Flow]) -> Vec<u64> {
    flows.iter().map(|flow| flow.packets).collect()
}

const CONNECTION: [(bool, u8, u32); 8] = [
    (true, SYN, 100),
    (false, SYN | ACK, 900),
    (true, ACK, 101),
    (true, PSH | ACK, 101),
    (false, PSH | ACK, 901),
    (true, FIN | ACK, 106),
    (false, FIN | ACK, 906),
    (true, ACK, 107),
];

fn connection(start: u64) -> Vec<Packet<'static>> {
    CONNECTION
        .iter()
        .zip(start..)
        .map(|(&(client, flags, sequence), at)| tcp(client, flags, sequence, at))
        .collect()
}

#[test]
fn both_directions_are_one_flow() {
    let (flows, counters) = run(&connection(10));
    assert_eq!((flows.len(), counters.tcp_end, counters.flushed), (1, 1, 0));
    let flow = &flows[0];
    assert_eq!(
        (flow.endpoints.initiator_port, flow.endpoints.responder_port),
        (40_000, 443)
    );
    assert_eq!(
        (flow.start_ns, flow.end_ns, flow.packets, flow.bytes),
        (10 * SECOND, 17 * SECOND, 8, 8 * 33)
    );
    let directions: Vec<bool> = flow
        .records
        .iter()
        .map(|record| record.direction == Direction::FromInitiator)
        .collect();
    assert_eq!(directions, CONNECTION.map(|(from_client, ..)| from_client));
    let flags: Vec<u8> = flow
        .records
        .iter()
        .map(|record| record.tcp_flags.0)
        .collect();
    assert_eq!(flags, CONNECTION.map(|(_, flags, _)| flags));
    assert_eq!(
        flow.records.iter().map(|record| record.gap_us).sum::<u32>(),
        7_000_000
    );
    assert_eq!(flow.records[0].gap_us, 0);
    assert!(flow.kept().all(|(_, payload)| payload == b"hello"));
}

#[test]
fn the_sender_of_the_first_packet_is_the_initiator() {
    let (flows, _) = run(&[tcp(false, SYN | ACK, 900, 0), tcp(true, ACK, 101, 1)]);
    assert_eq!((flows.len(), flows[0].endpoints.initiator_port), (1, 443));
    assert_eq!(flows[0].records[1].direction, Direction::FromResponder);
}

#[test]
fn packets_and_payload_are_bounded_and_the_rest_is_counted() {
    let config = FlowConfig {
        max_packets: 3,
        max_payload_bytes: 2,
        max_payloads: 2,
        ..FlowConfig::default()
    };
    let mut run = Run::new(config);
    for at in 0..10 {
        run.push(&udp(9, at));
    }
    let (flows, counters) = run.finish();
    assert_eq!(
        (
            flows[0].packets,
            flows[0].records.len(),
            flows[0].payload.buffer_bytes()
        ),
        (10, 3, 4)
    );
    assert_eq!(
        (counters.packets_beyond_limit, counters.payload_bytes_cut),
        (7, 3 + 3 + 5),
        "the third payload finds no room"
    );
    assert!(
        flows[0]
            .records
            .iter()
            .all(|record| record.payload_bytes == 5)
    );
    let kept: Vec<&[u8]> = flows[0].kept().map(|(_, payload)| payload).collect();
    assert_eq!(kept, [&b"he"[..], b"he", b""]);
    assert_eq!(flows[0].records.capacity(), 3);
}

#[test]
fn idle_flows_end_by_packet_time() {
    let config = FlowConfig {
        other_idle_timeout_us: 5_000_000,
        tcp_idle_timeout_us: 50_000_000,
        ..FlowConfig::default()
    };
    let mut run = Run::new(config);
    run.push(&udp(1, 100));
    run.push(&tcp(true, ACK, 1, 100));
    run.push(&udp(2, 105));
    assert_eq!(
        run.flows.len(),
        0,
        "a gap of exactly the timeout keeps the flow"
    );
    run.push(&udp(2, 106));
    assert_eq!(run.flows.len(), 1);
    run.push(&udp(1, 107));
    run.push(&tcp(true, ACK, 1, 150));
    assert_eq!(packet_counts(&run.flows), [1, 2, 1]);
    let (flows, counters) = run.finish();
    assert_eq!(flows.len(), 4);
    assert_eq!((counters.idle, counters.flushed), (3, 1));
}

#[test]
fn long_flows_are_cut_by_the_active_timeout() {
    let config = FlowConfig {
        active_timeout_us: 10_000_000,
        ..FlowConfig::default()
    };
    let mut run = Run::new(config);
    for at in 0..25 {
        run.push(&udp(1, at));
    }
    let (flows, counters) = run.finish();
    assert_eq!(packet_counts(&flows), [11, 11, 3]);
    assert_eq!((counters.active, counters.flushed), (2, 1));
}

#[test]
fn a_closed_connection_waits_for_trailing_packets() {
    let mut packets = connection(0);
    packets.push(tcp(false, FIN | ACK, 906, 20));
    packets.push(tcp(true, ACK, 107, 21));
    let (flows, counters) = run(&packets);
    assert_eq!((packet_counts(&flows), counters.tcp_end), (vec![10], 1));

    packets.push(udp(1, 21 + 61));
    let (flows, _) = run(&packets);
    assert_eq!(packet_counts(&flows), [10, 1]);
    assert_eq!(flows[0].index, 0);
}

#[test]
fn a_reset_closes_at_once() {
    let packets = [
        tcp(true, SYN, 100, 0),
        tcp(false, RST | ACK, 0, 1),
        tcp(true, SYN, 100, 2),
        tcp(true, SYN, 555, 3),
    ];
    let (flows, counters) = run(&packets);
    assert_eq!(packet_counts(&flows), [3, 1]);
    assert_eq!(
        (counters.tcp_end, counters.port_reuse, counters.flushed),
        (1, 0, 1)
    );
}

#[test]
fn a_fresh_connection_on_used_ports_is_a_new_flow() {
    let mut packets = connection(0);
    packets.extend(connection(8).into_iter().map(|packet| Packet {
        tcp_sequence: packet.tcp_sequence + 5_000,
        ..packet
    }));
    let (flows, counters) = run(&packets);
    assert_eq!((packet_counts(&flows), counters.tcp_end), (vec![8, 8], 2));

    // Without a close, the other sequence number tells; the same one is a retransmission.
    let open = [
        tcp(true, SYN, 100, 0),
        tcp(true, SYN, 100, 1),
        tcp(false, SYN | ACK, 900, 2),
        tcp(true, ACK, 101, 3),
    ];
    let mut packets = open.to_vec();
    packets.push(tcp(true, SYN, 7_777, 4));
    packets.push(tcp(false, SYN | ACK, 8_888, 5));
    let (flows, counters) = run(&packets);
    assert_eq!(
        (packet_counts(&flows), counters.port_reuse, counters.flushed),
        (vec![4, 2], 1, 1)
    );
}

#[test]
fn the_new_connection_may_come_from_the_other_side() {
    let mut packets = connection(0);
    packets.push(tcp(false, SYN, 3_333, 9));
    let (flows, _) = run(&packets);
    assert_eq!(packet_counts(&flows), [8, 1]);
    assert_eq!(flows[1].endpoints.initiator_port, 443);

    let simultaneous = [
        tcp(true, SYN, 1, 0),
        tcp(false, SYN, 2, 1),
        tcp(true, SYN | ACK, 1, 2),
        tcp(false, ACK, 3, 3),
    ];
    assert_eq!(packet_counts(&run(&simultaneous).0), [4]);
}

#[test]
fn the_least_recently_active_flow_gives_way() {
    let mut run = Run::new(FlowConfig {
        max_flows: 2,
        ..FlowConfig::default()
    });
    run.push(&udp(1, 0));
    run.push(&tcp(true, ACK, 1, 0));
    run.push(&udp(1, 1));
    run.push(&udp(3, 2));
    assert_eq!(run.flows.len(), 1);
    assert_eq!(run.flows[0].endpoints.protocol, 6);
    assert_eq!(run.table.len(), 2);
    run.push(&udp(4, 3));
    assert_eq!(run.flows[1].endpoints.initiator_port, 1);
    let (_, counters) = run.finish();
    assert_eq!((counters.evicted, counters.flushed), (2, 2));
}

#[test]
fn a_closed_connection_gives_way_first() {
    let mut run = Run::new(FlowConfig {
        max_flows: 2,
        ..FlowConfig::default()
    });
    run.push(&udp(1, 0));
    connection(1).iter().for_each(|packet| run.push(packet));
    run.push(&udp(2, 10));
    let (flows, counters) = run.finish();
    assert_eq!(flows[0].endpoints.protocol, 6);
    assert_eq!(
        (counters.evicted, counters.tcp_end, counters.flushed),
        (0, 1, 2)
    );
}

#[test]
fn time_may_run_backwards() {
    let (flows, counters) = run(&[udp(1, 100), udp(1, 90), udp(1, 95)]);
    assert_eq!((counters.time_backwards, flows.len()), (1, 1));
    let gaps: Vec<u32> = flows[0]
        .records
        .iter()
        .map(|record| record.gap_us)
        .collect();
    assert_eq!(gaps, [0, 0, 5_000_000]);
    assert_eq!(
        (flows[0].start_ns, flows[0].end_ns),
        (100 * SECOND, 100 * SECOND)
    );
}

#[test]
fn a_gap_counts_up_to_its_limit() {
    let mut run = Run::new(FlowConfig {
        other_idle_timeout_us: TIMEOUT_US_MAX,
        active_timeout_us: TIMEOUT_US_MAX,
        ..FlowConfig::default()
    });
    let limit_ns = u64::from(u32::MAX) * 1_000;
    for timestamp_ns in [0, limit_ns - 1_000, 2 * limit_ns - 1_000, 3 * limit_ns] {
        run.push(&Packet {
            timestamp_ns,
            ..udp(1, 0)
        });
    }
    let (flows, _) = run.finish();
    let gaps: Vec<u32> = flows[0]
        .records
        .iter()
        .map(|record| record.gap_us)
        .collect();
    assert_eq!(gaps, [0, u32::MAX - 1, u32::MAX, u32::MAX]);
}

#[test]
fn a_far_jump_of_the_clock_ends_what_it_leaves_behind() {
    let far = 1_000_000;
    let (flows, counters) = run(&[
        udp(1, far),
        udp(2, far),
        udp(3, 5),
        udp(1, 6),
        udp(3, far),
        udp(1, 7),
    ]);
    assert_eq!(flows.len(), 6);
    assert_eq!((counters.idle, counters.time_backwards), (5, 0));
    let extreme = Packet {
        timestamp_ns: u64::MAX,
        ..udp(1, 0)
    };
    let (flows, _) = run(&[extreme, udp(1, 0), extreme]);
    assert_eq!(flows.len(), 3);
}

#[test]
fn flush_keeps_the_order_of_first_packets() {
    let (flows, _) = run(&[udp(5, 0), udp(4, 1), udp(3, 2), udp(5, 3)]);
    let order: Vec<(u64, u16)> = flows
        .iter()
        .map(|flow| (flow.index, flow.endpoints.initiator_port))
        .collect();
    assert_eq!(order, [(0, 5), (1, 4), (2, 3)]);
}

#[test]
fn fragments_are_counted() {
    let (_, counters) = run(&[
        Packet {
            fragment: true,
            ..udp(1, 0)
        },
        udp(1, 1),
    ]);
    assert_eq!(counters.fragments, 1);
}

#[test]
fn recycled_memory_carries_nothing_over() {
    let mut run = Run::new(FlowConfig::default());
    run.push(&udp(1, 0));
    run.table.flush(&mut |flow| run.flows.push(flow));
    let flow = run.flows.pop().unwrap();
    let records = flow.records.as_ptr();
    run.table.recycle(flow);
    run.push(&Packet {
        payload: b"",
        payload_bytes: 0,
        ..udp(2, 9)
    });
    run.table.flush(&mut |flow| run.flows.push(flow));
    assert_eq!(
        (
            run.flows[0].payload.buffer_bytes(),
            run.flows[0].records.len(),
            run.flows[0].index
        ),
        (0, 1, 1)
    );
    assert_eq!(run.flows[0].records.as_ptr(), records, "the same memory");
}

/// Any row of packets: few hosts and ports so that flows meet, any flags, times near and far.
fn any_packets() -> impl Strategy<Value = Vec<(u8, u16, bool, bool, u8, u32, u64)>> {
    let time = prop_oneof![8 => 0..40_000_u64, 1 => Just(0), 1 => Just(u64::MAX / 1_000_000)];
    prop::collection::vec(
        (
            0..3_u8,
            0..3_u16,
            any::<bool>(),
            any::<bool>(),
            0..32_u8,
            0..3_u32,
            time,
        ),
        0..200,
    )
}

proptest! {
    #[test]
    fn any_packets_keep_the_table_bounded_and_counted(rows in any_packets(), max_flows in 1_usize..5) {
        let config = FlowConfig {
            max_flows,
            max_packets: 4,
            max_payload_bytes: 3,
            max_payloads: 2,
            tcp_idle_timeout_us: 9_000_000,
            other_idle_timeout_us: 5_000_000,
            active_timeout_us: 20_000_000,
            closed_timeout_us: 2_000_000,
        };
        let push = |run: &mut Run| {
            for &(host, port, is_tcp, forward, flags, sequence, milliseconds) in &rows {
                let (near, far) = ((host, 1000 + port), (9, 443));
                let (source, destination) = if forward { (near, far) } else { (far, near) };
                let mut packet = packet(source, destination, if is_tcp { 6 } else { 17 }, 0);
                packet.timestamp_ns = milliseconds * 1_000_000;
                packet.tcp_flags = TcpFlags(if is_tcp { flags } else { 0 });
                packet.tcp_sequence = sequence;
                run.push(&packet);
                assert!(run.table.len() <= max_flows);
            }
        };
        let (mut first, mut second) = (Run::new(config), Run::new(config));
        push(&mut first);
        push(&mut second);
        let (flows, counters) = first.finish();
        prop_assert_eq!(counters.packets, rows.len() as u64);
        for flow in &flows {
            prop_assert!(flow.records.len() <= 4 && flow.payload.buffer_bytes() <= 6 && flow.end_ns >= flow.start_ns);
        }
        // The tables' hash seeds differ: the order must not depend on them.
        prop_assert_eq!((flows, counters), second.finish());
    }
}
