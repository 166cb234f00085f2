//! Tests of the token layer as a whole, and what they share.

mod flows;
mod hostile_json;
mod masks;
mod pairs;
mod requests;

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::flow::{Direction, Endpoints, Flow, PacketRecord, Payload, TcpFlags};

/// A tokenizer with merges learnt from a few texts.
fn tokenizer() -> Tokenizer {
    let texts: [&[u8]; 4] = [
        b"GET /index.html?id=1&name=value HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET /images/logo.gif HTTP/1.1\r\nUser-Agent: curl\r\n\r\n",
        b"POST /login user=admin&password=secret",
        &[0; 40],
    ];
    Tokenizer::from_merges(train_merges(texts.map(|text| (text, 2)), 768).unwrap()).unwrap()
}

fn encoder(change: impl Fn(&mut Profile)) -> Encoder {
    let mut profile = Profile::default();
    change(&mut profile);
    Encoder::new(tokenizer(), profile).unwrap()
}

fn flow_ids(encoder: &Encoder, flow: &Flow) -> Vec<u32> {
    let mut ids = Vec::new();
    encoder.encode_flow(flow, &mut EncodeScratch::default(), &mut ids);
    ids
}

/// A packet to build a flow of; all its payload is kept.
#[derive(Clone, Debug)]
struct TestPacket {
    direction: Direction,
    flags: u8,
    gap_us: u32,
    payload: Vec<u8>,
}

fn packet(direction: Direction, payload: &[u8]) -> TestPacket {
    TestPacket {
        direction,
        flags: TcpFlags::ACK,
        gap_us: 0,
        payload: payload.to_vec(),
    }
}

fn flow(protocol: u8, packets: &[TestPacket]) -> Flow {
    let mut flow = Flow {
        index: 0,
        endpoints: Endpoints {
            initiator: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            responder: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
            initiator_port: 40_000,
            responder_port: 443,
            protocol,
        },
        start_ns: 0,
        end_ns: 0,
        packets: packets.len() as u64,
        bytes: packets
            .iter()
            .map(|packet| packet.payload.len() as u64)
            .sum(),
        records: Vec::new(),
        payload: Payload::default(),
    };
    for packet in packets {
        let record = PacketRecord {
            direction: packet.direction,
            tcp_flags: TcpFlags(packet.flags),
            payload_kept: 0,
            payload_bytes: packet.payload.len() as u32,
            gap_us: packet.gap_us,
        };
        flow.push(record, &packet.payload);
    }
    flow
}
