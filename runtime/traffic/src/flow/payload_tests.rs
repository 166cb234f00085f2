use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::flow::{Direction, Endpoints, Flow, PacketRecord, TcpFlags};
use crate::limits::PACKET_PAYLOAD_BYTES_MAX;

fn config(max_payload_bytes: usize, max_payloads: usize) -> FlowConfig {
    FlowConfig {
        max_payload_bytes,
        max_payloads,
        ..FlowConfig::default()
    }
}

/// Keeps payloads and gives what is read of them.
fn kept(payloads: &[&[u8]], config: &FlowConfig, spare: &mut SpareBuffers) -> Vec<Vec<u8>> {
    let mut payload = Payload::default();
    let lengths: Vec<usize> = payloads
        .iter()
        .map(|bytes| payload.push(bytes, config, spare))
        .collect();
    assert!(payload.buffer_bytes() <= config.max_payloads * config.max_payload_bytes);
    let mut reader = payload.reader();
    let read = lengths
        .iter()
        .map(|&kept| reader.next(kept).to_vec())
        .collect();
    spare.give_back(payload, config);
    read
}

fn record() -> PacketRecord {
    PacketRecord {
        direction: Direction::FromInitiator,
        tcp_flags: TcpFlags(0),
        payload_kept: 0,
        payload_bytes: 100_000,
        gap_us: 0,
    }
}

fn flow() -> Flow {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Flow {
        index: 0,
        endpoints: Endpoints {
            initiator: address,
            responder: address,
            initiator_port: 1,
            responder_port: 2,
            protocol: 17,
        },
        start_ns: 0,
        end_ns: 0,
        packets: 0,
        bytes: 0,
        records: Vec::new(),
        payload: Payload::default(),
    }
}

#[test]
fn the_first_payloads_are_sure_of_their_room() {
    let config = config(4, 2);
    let read = kept(
        &[b"abcd", b"efghij", b"k"],
        &config,
        &mut SpareBuffers::default(),
    );
    assert_eq!(read, [&b"abcd"[..], b"efgh", b""]);
    let read = kept(
        &[b"a", b"bcde", b"fg"],
        &config,
        &mut SpareBuffers::default(),
    );
    assert_eq!(read, [&b"a"[..], b"bcde", b""]);
}

#[test]
fn short_payloads_share_a_buffer_and_the_last_is_cut_where_it_ends() {
    let config = config(4, 2);
    let payloads: [&[u8]; 6] = [b"a", b"bcd", b"", b"e", b"fghi", b"j"];
    let read = kept(&payloads, &config, &mut SpareBuffers::default());
    assert_eq!(read, [&b"a"[..], b"bcd", b"", b"e", b"fgh", b""]);
}

#[test]
fn settings_of_nothing_keep_nothing() {
    for config in [config(0, 4), config(4, 0)] {
        let read = kept(&[b"ab", b"", b"c"], &config, &mut SpareBuffers::default());
        assert!(read.iter().all(Vec::is_empty));
    }
}

#[test]
fn what_a_buffer_held_before_is_never_read() {
    let config = config(8, 2);
    let mut spare = SpareBuffers::default();
    kept(&[b"secret!!", b"secret!!"], &config, &mut spare);
    assert_eq!((spare.buffers.len(), spare.lists.len()), (2, 1));
    let read = kept(&[b"ab", b"c"], &config, &mut spare);
    assert_eq!(read, [&b"ab"[..], b"c"]);
    assert_eq!((spare.buffers.len(), spare.lists.len()), (2, 1));
}

#[test]
fn spare_memory_is_kept_up_to_its_limit_and_of_the_right_size_only() {
    let config = config(PACKET_PAYLOAD_BYTES_MAX, 20);
    let limit = RECYCLED_PAYLOAD_BYTES_MAX / PACKET_PAYLOAD_BYTES_MAX;
    let mut spare = SpareBuffers::default();
    let full = vec![7; PACKET_PAYLOAD_BYTES_MAX];
    let give = |spare: &mut SpareBuffers, count: usize| {
        let mut payload = Payload::default();
        for _ in 0..count {
            payload.push(&full, &config, &mut SpareBuffers::default());
        }
        spare.give_back(payload, &config);
    };
    give(&mut spare, limit - 1);
    give(&mut spare, 1);
    assert_eq!((spare.buffers.len(), limit), (limit, 16));
    give(&mut spare, 1);
    assert_eq!(spare.buffers.len(), limit, "one more is let go");
    for _ in 0..RECYCLED_FLOWS_MAX {
        give(&mut spare, 0);
        give(&mut spare, 1);
    }
    assert_eq!(spare.lists.len(), RECYCLED_FLOWS_MAX);

    let config = FlowConfig {
        max_payload_bytes: 1,
        max_payloads: 1,
        ..config
    };
    let mut spare = SpareBuffers::default();
    for _ in 0..RECYCLED_FLOWS_MAX + 1 {
        let mut payload = Payload::default();
        payload.push(b"a", &config, &mut SpareBuffers::default());
        spare.give_back(payload, &config);
    }
    assert_eq!(spare.buffers.len(), RECYCLED_FLOWS_MAX, "tiny ones too");

    let mut spare = SpareBuffers::default();
    let mut other = Payload::default();
    other.push_whole(b"of another table");
    spare.give_back(other, &config);
    assert_eq!(spare.buffers.len(), 0);
}

#[test]
fn flows_can_be_built_and_added_to() {
    let mut flow = flow();
    let mut spare = SpareBuffers::default();
    let kept = flow.payload.push(b"ab", &config(4, 2), &mut spare);
    flow.records.push(PacketRecord {
        payload_kept: kept as u16,
        ..record()
    });
    let long = vec![7; PACKET_PAYLOAD_BYTES_MAX + 1];
    for payload in [&b"c"[..], b"", &long, &long[1..]] {
        flow.push(record(), payload);
    }
    let read: Vec<&[u8]> = flow.kept().map(|(_, payload)| payload).collect();
    assert_eq!(read, [&b"ab"[..], b"c", b"", &long[1..], &long[1..]]);
    assert_eq!(flow.records[3].payload_kept, u16::MAX);
}

#[test]
fn equal_flows_may_lie_differently_in_memory() {
    let (mut one, mut other) = (flow(), flow());
    let config = config(400, 4);
    let mut spare = SpareBuffers::default();
    for payload in [&b"ab"[..], b"cd"] {
        one.push(record(), payload);
        let kept = other.payload.push(payload, &config, &mut spare);
        other.records.push(PacketRecord {
            payload_kept: kept as u16,
            ..record()
        });
    }
    assert_eq!(one, other);
    assert_ne!(one.payload.buffer_bytes(), other.payload.buffer_bytes());
    one.push(record(), b"");
    assert_ne!(one, other);
    other.push(record(), b"");
    assert_eq!(one, other);
    other.push(record(), b"x");
    one.push(record(), b"y");
    assert_ne!(one, other);
}

#[test]
fn a_record_that_says_too_much_reads_what_there_is() {
    let mut flow = flow();
    flow.push(record(), b"abc");
    flow.records[0].payload_kept = 9;
    flow.records.push(record());
    let read: Vec<&[u8]> = flow.kept().map(|(_, payload)| payload).collect();
    assert_eq!(read, [&b"abc"[..], b""]);
}

proptest! {
    #[test]
    fn payloads_are_kept_from_their_start_and_read_as_they_came(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..30),
        max_payload_bytes in 0_usize..10,
        max_payloads in 0_usize..8,
    ) {
        let config = config(max_payload_bytes, max_payloads);
        let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        let mut spare = SpareBuffers::default();
        let read = kept(&slices, &config, &mut spare);
        let mut sure = max_payloads;
        for (payload, read) in payloads.iter().zip(&read) {
            let limit = payload.len().min(max_payload_bytes);
            prop_assert!(read.len() <= limit && payload.starts_with(read));
            if sure > 0 && !payload.is_empty() {
                sure -= 1;
                prop_assert_eq!(read.len(), limit);
            }
        }
        prop_assert_eq!(kept(&slices, &config, &mut spare), read, "with used buffers");
    }
}
