//! One million packets through decode, flow table and tokens on one core, beside a pass that only reads the headers with
//! etherparse: `cargo bench -p trafficllm-benches --bench traffic`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that fails may stop, and prints its figures"
)]

use std::hint::black_box;
use std::ops::Range;

use criterion::{Criterion, Throughput};
use etherparse::SlicedPacket;
use trafficllm_benches::{Contender, interleaved_medians};
use trafficllm_traffic::token::{EncodeScratch, Encoder, Profile, Tokenizer, train_merges};
use trafficllm_traffic::{Flow, FlowConfig, FlowTable, LinkType, decode};

const PACKETS: usize = 1_000_000;
/// Flows under way at the same time: each packet belongs to another flow than the one before.
const CONCURRENT_FLOWS: usize = 4_096;
const VOCABULARY: usize = 2_048;
const ROUNDS: usize = 7;

/// Frames one after the other, as a capture has them.
struct Traffic {
    bytes: Vec<u8>,
    frames: Vec<(Range<usize>, u64)>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

/// A flow that is still sending.
#[derive(Clone, Copy)]
struct Sender {
    number: u32,
    sent: usize,
    length: usize,
    is_http: bool,
}

impl Sender {
    /// 10 to 20 packets; a third of the flows is HTTP, the others look like TLS.
    fn new(number: u32, random: &mut Random) -> Self {
        Self {
            number,
            sent: 0,
            length: 10 + random.below(11),
            is_http: random.below(3) == 0,
        }
    }

    /// TCP flags, direction and payload of the next packet.
    fn next(&mut self, random: &mut Random, payload: &mut Vec<u8>) -> (u8, bool) {
        let step = self.sent;
        self.sent += 1;
        payload.clear();
        match step {
            0 => (0x02, true),
            1 => (0x12, false),
            2 => (0x10, true),
            _ if step + 1 == self.length => (0x11, true),
            _ => {
                let from_client = step == 3 || random.below(3) == 0;
                // Acknowledgements without payload are as frequent as in real downloads.
                if step > 4 && random.below(3) == 0 {
                    return (0x10, from_client);
                }
                self.fill(step, from_client, random, payload);
                (0x18, from_client)
            }
        }
    }

    fn fill(&self, step: usize, from_client: bool, random: &mut Random, payload: &mut Vec<u8>) {
        let length = if from_client {
            60 + random.below(400)
        } else {
            100 + random.below(1_300)
        };
        if self.is_http && from_client {
            payload.extend_from_slice(b"GET /shop/item?id=");
            payload.extend_from_slice(random.below(100_000).to_string().as_bytes());
            payload.extend_from_slice(b" HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n");
        } else if self.is_http {
            payload.extend_from_slice(
                b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: text/html\r\n\r\n<html>",
            );
        } else {
            payload.extend_from_slice(&[if step < 6 { 0x16 } else { 0x17 }, 3, 3]);
            payload.extend_from_slice(&(length as u16).to_be_bytes());
        }
        while payload.len() < length {
            payload.push(random.below(256) as u8);
        }
    }
}

fn traffic() -> Traffic {
    let mut random = Random(1);
    let mut traffic = Traffic {
        bytes: Vec::new(),
        frames: Vec::with_capacity(PACKETS),
    };
    let mut next_flow = 0;
    let mut begin = |random: &mut Random| {
        next_flow += 1;
        Sender::new(next_flow, random)
    };
    let mut senders: Vec<Sender> = (0..CONCURRENT_FLOWS).map(|_| begin(&mut random)).collect();
    let mut payload = Vec::new();
    for packet in 0..PACKETS {
        let place = random.below(CONCURRENT_FLOWS);
        let (flags, from_client) = senders[place].next(&mut random, &mut payload);
        let start = traffic.bytes.len();
        push_frame(
            &senders[place],
            flags,
            from_client,
            &payload,
            &mut traffic.bytes,
        );
        // 100,000 packets per second.
        let timestamp_ns = 1_700_000_000_000_000_000 + packet as u64 * 10_000;
        traffic
            .frames
            .push((start..traffic.bytes.len(), timestamp_ns));
        if senders[place].sent == senders[place].length {
            senders[place] = begin(&mut random);
        }
    }
    traffic
}

fn push_frame(sender: &Sender, flags: u8, from_client: bool, payload: &[u8], out: &mut Vec<u8>) {
    let [_, a, b, c] = sender.number.to_be_bytes();
    let client = ([10, a, b, c], 20_000 + (sender.number % 40_000) as u16);
    let server = ([198, 51, 100, c], if sender.is_http { 80 } else { 443 });
    let (source, destination) = if from_client {
        (client, server)
    } else {
        (server, client)
    };
    out.extend_from_slice(&[2; 12]);
    out.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
    out.extend_from_slice(&((40 + payload.len()) as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]);
    out.extend_from_slice(&source.0);
    out.extend_from_slice(&destination.0);
    out.extend_from_slice(&source.1.to_be_bytes());
    out.extend_from_slice(&destination.1.to_be_bytes());
    out.extend_from_slice(&(sender.sent as u32 * 1_000).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend_from_slice(payload);
}

/// Merges learnt from part of the traffic itself, so that they apply as often as a trained vocabulary's do.
fn encoder(traffic: &Traffic) -> Encoder {
    let profile = Profile::default();
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut learn =
        |flow: Flow| Encoder::flow_segments(&profile, &flow, |bytes| segments.push(bytes.to_vec()));
    let mut table = FlowTable::new(FlowConfig::default()).unwrap();
    for (frame, timestamp_ns) in traffic.frames.iter().take(PACKETS / 20) {
        let frame = &traffic.bytes[frame.clone()];
        if let Ok(packet) = decode(LinkType::ETHERNET, frame, frame.len() as u32, *timestamp_ns) {
            table.push(&packet, &mut learn);
        }
    }
    table.flush(&mut learn);
    let merges = train_merges(
        segments.iter().map(|segment| (segment.as_slice(), 1)),
        VOCABULARY,
    )
    .unwrap();
    Encoder::new(Tokenizer::from_merges(merges).unwrap(), profile).unwrap()
}

/// The least that any program does with a packet: find its headers.
fn read_headers(traffic: &Traffic) -> usize {
    let parsed = traffic.frames.iter().filter(|(frame, _)| {
        let sliced = SlicedPacket::from_ethernet(&traffic.bytes[frame.clone()]);
        black_box(&sliced)
            .as_ref()
            .is_ok_and(|packet| packet.transport.is_some())
    });
    parsed.count()
}

fn decode_only(traffic: &Traffic) -> usize {
    let decoded = traffic.frames.iter().filter(|(frame, timestamp_ns)| {
        let frame = &traffic.bytes[frame.clone()];
        black_box(decode(
            LinkType::ETHERNET,
            frame,
            frame.len() as u32,
            *timestamp_ns,
        ))
        .is_ok()
    });
    decoded.count()
}

/// Decode, flow table and tokens. Gives flows and tokens.
fn to_tokens(traffic: &Traffic, encoder: &Encoder) -> (u64, u64) {
    let mut table = FlowTable::new(FlowConfig::default()).unwrap();
    let (mut scratch, mut ids) = (EncodeScratch::default(), Vec::new());
    let (mut flows, mut tokens) = (0, 0);
    let mut ended = Vec::new();
    let mut drain = |ended: &mut Vec<Flow>, table: &mut FlowTable| {
        for flow in ended.drain(..) {
            encoder.encode_flow(&flow, &mut scratch, &mut ids);
            flows += 1;
            tokens += ids.len() as u64;
            table.recycle(flow);
        }
    };
    for (frame, timestamp_ns) in &traffic.frames {
        let frame = &traffic.bytes[frame.clone()];
        if let Ok(packet) = decode(LinkType::ETHERNET, frame, frame.len() as u32, *timestamp_ns) {
            table.push(&packet, &mut |flow| ended.push(flow));
        }
        drain(&mut ended, &mut table);
    }
    table.flush(&mut |flow| ended.push(flow));
    drain(&mut ended, &mut table);
    (flows, tokens)
}

fn main() {
    let traffic = traffic();
    let encoder = encoder(&traffic);
    assert_eq!(read_headers(&traffic), PACKETS);
    assert_eq!(decode_only(&traffic), PACKETS);
    let (flows, tokens) = to_tokens(&traffic, &encoder);
    println!(
        "{PACKETS} packets, {} MB, {flows} flows, {tokens} tokens",
        traffic.bytes.len() / 1_000_000
    );

    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("packets");
    group.throughput(Throughput::Elements(PACKETS as u64));
    group.bench_function("etherparse headers only", |bench| {
        bench.iter(|| read_headers(&traffic))
    });
    group.bench_function("decode only", |bench| bench.iter(|| decode_only(&traffic)));
    group.bench_function("decode, flow table, tokens", |bench| {
        bench.iter(|| to_tokens(&traffic, &encoder))
    });
    group.finish();
    criterion.final_summary();

    let mut contenders: [Contender<'_>; 3] = [
        (
            "etherparse headers only",
            Box::new(|| _ = black_box(read_headers(&traffic))),
        ),
        (
            "decode only",
            Box::new(|| _ = black_box(decode_only(&traffic))),
        ),
        (
            "decode, flow table, tokens",
            Box::new(|| _ = black_box(to_tokens(&traffic, &encoder))),
        ),
    ];
    let medians = interleaved_medians(ROUNDS, &mut contenders);
    println!("medians of {ROUNDS} rounds in turns, one core:");
    for ((name, _), seconds) in contenders.iter().zip(&medians) {
        let rate = PACKETS as f64 / seconds / 1e6;
        println!(
            "  {name:<28}{rate:>8.2} Mpackets/s  {:>6.2} x etherparse's time",
            seconds / medians[0]
        );
    }
}
