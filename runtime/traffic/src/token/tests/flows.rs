//! Flows to tokens and back, and the token budget.

use crate::token::mask::Ranges;
use std::net::{IpAddr, Ipv6Addr};

use proptest::prelude::*;

use super::{TestPacket, encoder, flow, flow_ids, packet};
use crate::flow::{Direction, Flow, TcpFlags};
use crate::token::vocabulary::{self, FIRST_BYTE, FlowKind, Token};
use crate::token::{DecodedFlow, Encoder, PayloadPiece, TokenError, decode_flow};

use Direction::{FromInitiator, FromResponder};

prop_compose! {
    fn test_packet()(
        from_responder: bool,
        flags: u8,
        gap_us in prop_oneof![Just(0), 0_u32..2_000, any::<u32>()],
        // No digits, no dots and no first bytes of hellos: nothing that a mask would hide.
        payload in prop::collection::vec(prop_oneof![b'a'..=b'd', 0x80_u8..=0xff, Just(0)], 0..80),
    ) -> TestPacket {
        TestPacket { direction: if from_responder { FromResponder } else { FromInitiator }, flags, gap_us, payload }
    }
}

prop_compose! {
    fn test_flow()(
        protocol in prop_oneof![Just(6), Just(17), Just(1), any::<u8>()],
        packets in prop::collection::vec(test_packet(), 0..26),
    ) -> Flow {
        flow(protocol, &packets)
    }
}

fn decoded(encoder: &Encoder, flow: &Flow) -> DecodedFlow {
    decode_flow(
        encoder.tokenizer(),
        encoder.profile(),
        &flow_ids(encoder, flow),
    )
    .unwrap()
}

/// Holds a decoded flow against the flow it was made of.
fn assert_same_up_to_buckets(flow: &Flow, encoder: &Encoder, budget_is_enough: bool) {
    let found = decoded(encoder, flow);
    let profile = encoder.profile();
    assert_eq!(found.kind, FlowKind::of_protocol(flow.endpoints.protocol));
    let expected_packets = flow.records.len().min(profile.max_packets as usize);
    assert!(
        found.packets.len() == expected_packets
            || (!budget_is_enough && found.packets.len() < expected_packets)
    );
    let mut payloads_left = profile.payload_packets;
    for (packet, (record, payload)) in found.packets.iter().zip(flow.kept()) {
        assert_eq!(packet.direction, record.direction);
        let flags = if found.kind == FlowKind::Tcp {
            record.tcp_flags.0 & 0x1f
        } else {
            0
        };
        assert_eq!(packet.tcp_flags, TcpFlags(flags));
        assert!(
            packet.payload_bytes.0 <= record.payload_bytes
                && record.payload_bytes <= packet.payload_bytes.1
        );
        let gap_us = u64::from(record.gap_us);
        assert!(packet.gap_us.0 <= gap_us && gap_us <= packet.gap_us.1);
        let shown = match packet.payload.as_slice() {
            [] => &[][..],
            [PayloadPiece::Bytes(bytes)] => bytes,
            other => panic!("expected one run of bytes, found {other:?}"),
        };
        let mut limit = 0;
        if !payload.is_empty() && payloads_left > 0 {
            payloads_left -= 1;
            limit = payload
                .len()
                .min(profile.shown_limit(payload, &Ranges::default()));
        }
        assert!(payload.starts_with(shown) && shown.len() <= limit);
        assert!(
            !budget_is_enough || shown.len() == limit,
            "{} of {limit} bytes",
            shown.len()
        );
    }
}

proptest! {
    #[test]
    fn flows_come_back_up_to_buckets(flow in test_flow()) {
        assert_same_up_to_buckets(&flow, &encoder(|profile| profile.max_tokens = 1_000), true);
    }

    #[test]
    fn the_budget_is_kept_and_what_is_left_still_decodes(flow in test_flow(), max_tokens in 8_u32..120, ports: bool) {
        let encoder = encoder(|profile| (profile.max_tokens, profile.ports) = (max_tokens, ports));
        let ids = flow_ids(&encoder, &flow);
        prop_assert!(ids.len() <= max_tokens as usize);
        assert_same_up_to_buckets(&flow, &encoder, false);
    }

    #[test]
    fn what_the_record_holds_of_ends_and_times_does_not_matter(
        flow in test_flow(),
        address: u128,
        ports: (u16, u16),
        numbers: (u64, u64, u64, u64, u64),
    ) {
        let encoder = encoder(|_| {});
        let mut other = flow.clone();
        other.endpoints.initiator = IpAddr::V6(Ipv6Addr::from_bits(address));
        other.endpoints.responder = IpAddr::V6(Ipv6Addr::from_bits(!address));
        (other.endpoints.initiator_port, other.endpoints.responder_port) = ports;
        (other.index, other.start_ns, other.end_ns, other.packets, other.bytes) = numbers;
        prop_assert_eq!(flow_ids(&encoder, &flow), flow_ids(&encoder, &other));
    }

    #[test]
    fn any_ids_decode_or_say_where_they_do_not(ids in prop::collection::vec(0_u32..700, 0..60)) {
        let encoder = encoder(|_| {});
        match decode_flow(encoder.tokenizer(), encoder.profile(), &ids) {
            Ok(found) => prop_assert!(found.packets.len() < ids.len()),
            Err(TokenError::Sequence { position, .. }) => prop_assert!(position <= ids.len()),
            Err(other) => panic!("expected an error of the sequence, found {other}"),
        }
    }
}

#[test]
fn a_flow_is_laid_out_as_declared() {
    let encoder = encoder(|_| {});
    let mut packets = [
        packet(FromInitiator, b""),
        packet(FromResponder, b""),
        packet(FromInitiator, b"zq"),
    ];
    packets[0].flags = TcpFlags::SYN;
    packets[1].flags = TcpFlags::SYN | TcpFlags::ACK;
    packets[1].gap_us = 2_500;
    packets[2].flags = TcpFlags::PSH | TcpFlags::ACK;
    let ids = flow_ids(&encoder, &flow(6, &packets));
    let names: Vec<String> = ids
        .iter()
        .map(|id| encoder.tokenizer().token_name(*id).unwrap())
        .collect();
    let expected = [
        "<flow:tcp>",
        "<tcp:initiator:SYN>",
        "<tcp:responder:SYN+ACK>",
        "<gap:2304us>",
        "<tcp:initiator:ACK+PSH>",
        "<size:2>",
        "z",
        "q",
    ];
    assert_eq!(names, expected);
}

#[test]
fn packets_come_before_payload_and_payload_in_order() {
    let encoder = encoder(|profile| profile.max_tokens = 12);
    // Own tokens: 1 + 2 + 2 + 2, so five tokens are left: three for the first payload, two for the second.
    let packets = [b"xyz", b"pqr", b"jkv"].map(|payload| packet(FromInitiator, payload));
    let found = decoded(&encoder, &flow(6, &packets));
    let shown: Vec<_> = found
        .packets
        .into_iter()
        .map(|packet| packet.payload)
        .collect();
    let bytes = |bytes: &[u8]| vec![PayloadPiece::Bytes(bytes.to_vec())];
    assert_eq!(shown, [bytes(b"xyz"), bytes(b"pq"), vec![]]);
}

#[test]
fn packets_that_do_not_fit_are_left_out_whole_from_the_end() {
    let encoder = encoder(|profile| profile.max_tokens = 8);
    let mut packets = vec![packet(FromInitiator, b"xyz"); 5];
    packets.iter_mut().for_each(|packet| packet.gap_us = 5_000);
    let ids = flow_ids(&encoder, &flow(17, &packets));
    // One and two times three tokens; the one that is left goes to the first payload.
    assert_eq!(ids.len(), 8);
    let found = decode_flow(encoder.tokenizer(), encoder.profile(), &ids).unwrap();
    assert_eq!(found.packets.len(), 2);
    assert_eq!(
        found.packets[0].payload,
        [PayloadPiece::Bytes(b"x".to_vec())]
    );
}

#[test]
fn the_profile_limits_packets_and_payloads() {
    let encoder = encoder(|profile| {
        (
            profile.max_packets,
            profile.payload_packets,
            profile.payload_bytes_per_packet,
        ) = (3, 2, 4);
    });
    let mut packets = vec![packet(FromInitiator, b"wxyzv"); 4];
    packets[0].payload.clear();
    let found = decoded(&encoder, &flow(6, &packets));
    let shown: Vec<usize> = found
        .packets
        .iter()
        .map(|packet| packet.payload.len())
        .collect();
    assert_eq!(shown, [0, 1, 1]);
    assert_eq!(
        found.packets[1].payload,
        [PayloadPiece::Bytes(b"wxyz".to_vec())]
    );
}

#[test]
fn the_responders_port_is_shown_only_where_the_profile_says_so() {
    let flow = flow(6, &[packet(FromInitiator, b"")]);
    let hidden = encoder(|_| {});
    assert_eq!(decoded(&hidden, &flow).responder_port, None);
    let shown = encoder(|profile| profile.ports = true);
    assert_eq!(decoded(&shown, &flow).responder_port, Some(443));
    assert_eq!(
        flow_ids(&shown, &flow).len(),
        flow_ids(&hidden, &flow).len() + 2
    );
}

#[test]
fn sequences_that_no_flow_gives_are_told() {
    let encoder = encoder(|_| {});
    let flow_token = FlowKind::Tcp.token();
    let tcp = vocabulary::packet_token(FlowKind::Tcp, FromInitiator, TcpFlags(0));
    let udp = vocabulary::packet_token(FlowKind::Udp, FromInitiator, TcpFlags(0));
    let size = vocabulary::size_token(1).unwrap();
    let gap = vocabulary::gap_token(1_000).unwrap();
    let cases: [(&[u32], usize, &str, &str); 8] = [
        (&[], 0, "a flow token", "the end"),
        (&[tcp], 0, "a flow token", "<tcp:initiator:none>"),
        (
            &[flow_token, udp],
            1,
            "the next token of a TCP packet or a TCP packet",
            "<packet:initiator>",
        ),
        (
            &[flow_token, tcp, gap, size],
            3,
            "the next token of a TCP packet or a TCP packet",
            "<size:1>",
        ),
        (
            &[flow_token, tcp, FIRST_BYTE],
            2,
            "a packet, as one without a size has no payload",
            "\\x00",
        ),
        (
            &[flow_token, tcp, size, FIRST_BYTE, FIRST_BYTE],
            4,
            "no more payload than the packet's size",
            "\\x00",
        ),
        (
            &[flow_token, vocabulary::PAD],
            1,
            "the next token of a TCP packet or a TCP packet",
            "<pad>",
        ),
        (
            &[flow_token, tcp, size, 60_000],
            3,
            "the next token of a TCP packet or a TCP packet",
            "id 60000, past the vocabulary",
        ),
    ];
    for (ids, position, expected, found) in cases {
        let error = decode_flow(encoder.tokenizer(), encoder.profile(), ids).unwrap_err();
        assert_eq!(
            error,
            TokenError::Sequence {
                position,
                expected,
                found: found.to_owned()
            }
        );
    }
}

#[test]
fn segments_are_what_the_payload_tokens_spell() {
    let encoder = encoder(|profile| {
        (
            profile.payload_bytes_per_packet,
            profile.text_bytes_per_packet,
        ) = (32, 50);
    });
    let packets = [
        packet(FromInitiator, b"to 10.1.2.3 and back"),
        packet(FromResponder, &[b'v'; 100]),
        packet(FromInitiator, &[0xf0; 100]),
    ];
    let flow = flow(6, &packets);
    let mut segments = Vec::new();
    Encoder::flow_segments(encoder.profile(), &flow, |segment| {
        segments.push(segment.to_vec())
    });
    let shown: Vec<Vec<u8>> = decoded(&encoder, &flow)
        .packets
        .into_iter()
        .flat_map(|packet| packet.payload)
        .filter_map(|piece| match piece {
            PayloadPiece::Bytes(bytes) => Some(bytes),
            PayloadPiece::Mask => None,
        })
        .collect();
    assert_eq!(
        segments,
        [
            b"to ".to_vec(),
            b" and back".to_vec(),
            vec![b'v'; 50],
            vec![0xf0; 32]
        ]
    );
    assert_eq!(shown, segments);
}

#[test]
fn no_encoder_makes_the_training_tokens() {
    let encoder = encoder(|_| {});
    let ids = flow_ids(
        &encoder,
        &flow(6, &[packet(FromInitiator, b"<pad><drop><mask>")]),
    );
    let typed = ids[3..]
        .iter()
        .filter(|id| !matches!(Token::of(**id), Token::Symbol(_)));
    assert_eq!(typed.count(), 0);
}
