//! What the flow table does not keep of a flow's payload, the encoder would not have looked at: tokens stay the same where it
//! keeps all.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking and say where"
)]

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use trafficllm_traffic::token::{
    EncodeScratch, Encoder, Profile, Tokenizer, first_request, train_merges,
};
use trafficllm_traffic::{Flow, FlowConfig, FlowTable, Packet, TcpFlags};

#[derive(Clone, Debug)]
struct Sent {
    forward: bool,
    /// Bytes of the payload that the capture lacks.
    missing_bytes: u32,
    payload: Vec<u8>,
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    let lengths = prop_oneof![Just(0_usize), 1..60_usize, 150..450_usize, 380..1_400_usize];
    let hello: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let starts = prop::sample::select(vec![
        hello,
        &[22, 3, 3, 4, 0, 1, 0, 3, 252],
        b"GET /a/b?c=d HTTP/1.1\r\nHost: 10.0.0.1\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"www.Example.Attack",
        b"",
    ]);
    (starts, lengths, any::<bool>(), any::<u8>()).prop_map(|(start, length, is_text, seed)| {
        let filler = (0..length).map(|at| {
            let byte = (at as u8).wrapping_mul(31).wrapping_add(seed);
            if is_text { b' ' + byte % 95 } else { byte }
        });
        let payload = start.iter().copied().chain(filler);
        payload.take(length).collect()
    })
}

fn any_packets() -> impl Strategy<Value = Vec<Sent>> {
    let missing = prop_oneof![4 => Just(0_u32), 1 => 1..2_000_u32];
    let sent =
        (any::<bool>(), missing, any_payload()).prop_map(|(forward, missing_bytes, payload)| {
            Sent {
                forward,
                missing_bytes,
                payload,
            }
        });
    prop::collection::vec(sent, 1..25)
}

fn flow_of(packets: &[Sent], protocol: u8, config: FlowConfig) -> Flow {
    let mut table = FlowTable::new(config).unwrap();
    let mut flows = Vec::new();
    let ends = [1, 2].map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
    // The first packet says who the initiator is.
    for (number, sent) in packets.iter().enumerate() {
        let (from, to) = if sent.forward || number == 0 {
            (0, 1)
        } else {
            (1, 0)
        };
        let payload_bytes = sent.payload.len() as u32 + sent.missing_bytes;
        let packet = Packet {
            timestamp_ns: number as u64 * 3_000_000,
            source: ends[from],
            destination: ends[to],
            source_port: 1_000 + from as u16,
            destination_port: 1_000 + to as u16,
            protocol,
            tcp_flags: TcpFlags(TcpFlags::ACK),
            tcp_sequence: 0,
            fragment: false,
            ip_bytes: payload_bytes + 28,
            payload_bytes,
            payload: &sent.payload,
        };
        table.push(&packet, &mut |flow| flows.push(flow));
    }
    table.flush(&mut |flow| flows.push(flow));
    assert_eq!(flows.len(), 1);
    flows.remove(0)
}

fn encoder(tls_random: bool) -> Encoder {
    let texts: [&[u8]; 2] = [b"GET / HTTP/1.1\r\nHost: a", &[0; 40]];
    let merges = train_merges(texts.map(|text| (text, 2)), 720).unwrap();
    let profile = Profile {
        tls_random,
        // Payload to its end, instead of up to where the budget ends.
        max_tokens: 4_096,
        ..Profile::default()
    };
    Encoder::new(Tokenizer::from_merges(merges).unwrap(), profile).unwrap()
}

proptest! {
    #[test]
    fn tokens_do_not_depend_on_payload_that_is_not_kept(
        packets in any_packets(), protocol in prop::sample::select(vec![6_u8, 17]), tls_random: bool,
    ) {
        let lean = FlowConfig::default();
        let whole = FlowConfig { max_payloads: lean.max_packets, ..lean };
        let encoder = encoder(tls_random);
        let (lean, whole) = (flow_of(&packets, protocol, lean), flow_of(&packets, protocol, whole));
        let mut scratch = EncodeScratch::default();
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        encoder.encode_flow(&lean, &mut scratch, &mut found);
        encoder.encode_flow(&whole, &mut scratch, &mut expected);
        prop_assert_eq!(found, expected);
        // A request is cut, but only where all buffers are taken.
        let (found, expected) = (first_request(&lean), first_request(&whole));
        prop_assert_eq!(found.is_some(), expected.is_some());
        if let (Some(found), Some(expected)) = (found, expected) {
            prop_assert!(expected.starts_with(&found));
            prop_assert!(found == expected || lean.payload.buffer_bytes() == 1_600);
        }
    }
}
