//! Resident memory of the library with the default bundle: with nothing but the model, and with 100,000 flows open at the same
//! time, each case in a process of its own. Ends with status 1 if a bound is broken:
//! `cargo bench -p trafficllm-benches --bench memory [-- CASE]`.
//!
//! `-- --write CASE` writes a case's capture to standard output instead, to be piped into `trafficllm detect -`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that fails may stop, and prints its figures"
)]

use std::fs;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use trafficllm::{CaptureReport, Engine, EngineOptions, Model, Outcome, Sink};

/// Flows open at the same time.
const FLOWS: u32 = 100_000;
/// Packets of each flow of the worst cases: as many as are kept.
const PACKETS: u32 = 20;
/// Payload of each packet of the worst cases: as much as is kept.
const PAYLOAD_BYTES: usize = 400;
/// Where a capture's packets begin to come, in seconds since the Unix epoch.
const START_S: u64 = 1_700_000_000;
/// Between two generations of flows: longer than any flow waits.
const SILENCE_S: u64 = 7_200;
const PACKETS_PER_SECOND: u64 = 200_000;
/// As the command starts on two cores.
const WORKERS: usize = 2;
const OPEN_FLOWS_MIB: f64 = 256.0;
const BARE_MIB: f64 = 32.0;

/// What the flows of a capture are like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    /// No capture at all.
    Bare,
    /// Full payloads of text, the first four one request; all flows are open when the capture ends.
    Text,
    /// Full payloads of random bytes; all flows end with one late packet, and as many come after it.
    Binary,
    /// Payloads just too long to stand two in a buffer.
    Halves,
    /// Half of the flows DNS, the others web traffic of some kilobytes.
    Ordinary,
}

const CASES: [(&str, Case); 5] = [
    ("bare", Case::Bare),
    ("text", Case::Text),
    ("binary", Case::Binary),
    ("halves", Case::Halves),
    ("ordinary", Case::Ordinary),
];

impl Case {
    fn generations(self) -> u64 {
        match self {
            Self::Bare => 0,
            Self::Binary => 2,
            Self::Text | Self::Halves | Self::Ordinary => 1,
        }
    }

    fn bound_mib(self) -> f64 {
        if self == Self::Bare {
            BARE_MIB
        } else {
            OPEN_FLOWS_MIB
        }
    }

    /// Protocol, whether the initiator sends it, and payload bytes of a flow's packet; `None` past its last one.
    fn packet(self, flow: u32, number: u32) -> Option<(u8, bool, usize)> {
        let (tcp, udp) = (6, 17);
        let even = number.is_multiple_of(2);
        let packets = match self {
            Self::Bare => 0,
            Self::Text | Self::Binary | Self::Halves => PACKETS,
            Self::Ordinary if flow.is_multiple_of(2) => 2,
            Self::Ordinary => 8 + flow / 2 % 20,
        };
        if number >= packets {
            return None;
        }
        Some(match self {
            Self::Bare => (tcp, even, 0),
            Self::Text => (tcp, number < 4 || even, PAYLOAD_BYTES),
            Self::Binary => (udp, even, PAYLOAD_BYTES),
            Self::Halves => (udp, even, PAYLOAD_BYTES / 2 + 1),
            Self::Ordinary if packets == 2 => (udp, even, 40 + 60 * number as usize),
            Self::Ordinary if number < 3 => (tcp, even, 0),
            Self::Ordinary => (tcp, !even, if even { 1_300 } else { 350 }),
        })
    }

    fn is_text(self, flow: u32) -> bool {
        self == Self::Text || (self == Self::Ordinary && flow % 4 == 1)
    }
}

/// The bytes of a capture, made as they are read. The flows send in turns, so all of them grow at the same time.
struct Capture {
    case: Case,
    generation: u64,
    number: u32,
    flow: u32,
    packets: u64,
    random: u64,
    ready: Vec<u8>,
    taken: usize,
}

impl Capture {
    fn new(case: Case) -> Self {
        // Microseconds, version 2.4, raw IP.
        let mut ready = Vec::new();
        for word in [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 262_144, 101_u32] {
            ready.extend_from_slice(&word.to_le_bytes());
        }
        Self {
            case,
            generation: 0,
            number: 0,
            flow: 0,
            packets: 0,
            random: 1,
            ready,
            taken: 0,
        }
    }

    /// Makes the next packet; without one left, nothing.
    fn advance(&mut self) {
        self.ready.clear();
        self.taken = 0;
        let mut has_sent = true;
        while self.generation < self.case.generations() {
            if self.flow == FLOWS {
                self.flow = 0;
                self.number += 1;
                if !has_sent {
                    self.number = 0;
                    self.generation += 1;
                }
                has_sent = false;
                continue;
            }
            let flow = self.flow;
            self.flow += 1;
            if let Some((protocol, forward, payload_bytes)) = self.case.packet(flow, self.number) {
                self.write_packet(flow, protocol, forward, payload_bytes);
                return;
            }
        }
    }

    fn write_packet(&mut self, flow: u32, protocol: u8, forward: bool, payload_bytes: usize) {
        let header_bytes = if protocol == 6 { 40 } else { 28 };
        let bytes = header_bytes + payload_bytes;
        let clock_us = self.packets * 1_000_000 / PACKETS_PER_SECOND;
        let seconds = START_S + self.generation * SILENCE_S + clock_us / 1_000_000;
        let out = &mut self.ready;
        for word in [
            seconds as u32,
            (clock_us % 1_000_000) as u32,
            bytes as u32,
            bytes as u32,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&[0x45, 0]);
        out.extend_from_slice(&(bytes as u16).to_be_bytes());
        out.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
        let client = [10, self.generation as u8, (flow >> 8) as u8, flow as u8];
        let server = [198, 51, 100, (flow >> 16) as u8];
        let (client_port, server_port) = (40_000_u16.to_be_bytes(), 443_u16.to_be_bytes());
        if forward {
            out.extend_from_slice(&[client, server].concat());
            out.extend_from_slice(&[client_port, server_port].concat());
        } else {
            out.extend_from_slice(&[server, client].concat());
            out.extend_from_slice(&[server_port, client_port].concat());
        }
        if protocol == 6 {
            out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            out.extend_from_slice(&((8 + payload_bytes) as u16).to_be_bytes());
            out.extend_from_slice(&[0, 0]);
        }
        self.packets += 1;
        self.write_payload(flow, payload_bytes);
    }

    fn write_payload(&mut self, flow: u32, payload_bytes: usize) {
        let end = self.ready.len() + payload_bytes;
        let is_text = self.case.is_text(flow);
        if is_text && payload_bytes > 0 {
            write!(
                self.ready,
                "GET /shop/item?id={flow} HTTP/1.1\r\nHost: www.example.org\r\nCookie: "
            )
            .unwrap();
        }
        while self.ready.len() < end {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let bytes = (self.random >> 32).to_le_bytes();
            let letter = |byte: u8| if is_text { b'a' + byte % 26 } else { byte };
            self.ready
                .extend(bytes[..4].iter().map(|byte| letter(*byte)));
        }
        self.ready.truncate(end);
    }
}

impl Read for Capture {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.ready.len() {
            self.advance();
        }
        let bytes = out.len().min(self.ready.len() - self.taken);
        out[..bytes].copy_from_slice(&self.ready[self.taken..self.taken + bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}

struct Discard;

impl Sink for Discard {
    fn outcome(&mut self, _outcome: &Outcome<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Reads the case's capture in this process. The model lives until the memory is read.
fn run(case: Case) -> (Arc<Model>, CaptureReport) {
    let model = Arc::new(Model::open_default().unwrap());
    if case == Case::Bare {
        return (model, CaptureReport::default());
    }
    let options = EngineOptions {
        workers: WORKERS,
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::clone(&model), options).unwrap();
    engine.start().unwrap();
    let mut detection = engine.detect(Discard);
    let report = detection.capture(Capture::new(case)).unwrap();
    let (tally, _) = detection.finish().unwrap();
    assert_eq!(tally.flows, u64::from(FLOWS) * case.generations());
    (model, report)
}

/// A line of `/proc/self/status` in MiB.
fn status_mib(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: f64 = line
        .trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .ok()?;
    Some(kilobytes / 1_024.0)
}

/// Runs one case and prints its line. Whether it keeps its bound, where that can be told.
fn measure(name: &str, case: Case) -> bool {
    let (model, report) = run(case);
    let (Some(peak), Some(end)) = (status_mib("VmHWM:"), status_mib("VmRSS:")) else {
        println!("{name:<10} not measured: the system has no /proc/self/status");
        return true;
    };
    let flows = &report.flows;
    let open = flows.flushed.max(flows.idle);
    assert_eq!(flows.evicted, 0, "a flow that gave way was not open");
    assert!(report.failure.is_none() && (open == u64::from(FLOWS) || case == Case::Bare));
    let keeps = peak < case.bound_mib();
    println!(
        "{name:<10}{:>10}{open:>12}{:>12}{:>12.1}{peak:>10.1}{end:>10.1}{:>10.0}  {}",
        flows.flows,
        report.packets,
        report.packet_bytes as f64 / 1e6,
        case.bound_mib(),
        if keeps { "kept" } else { "BROKEN" }
    );
    drop(model);
    keeps
}

fn case_of(name: &str) -> Option<(&'static str, Case)> {
    CASES.into_iter().find(|(known, _)| *known == name)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let chosen: Vec<(&str, Case)> = match words.as_slice() {
        ["--measure", name] => {
            let (name, case) = case_of(name).unwrap();
            return ExitCode::from(u8::from(!measure(name, case)));
        }
        ["--write", name] => {
            let (_, case) = case_of(name).unwrap();
            io::copy(&mut Capture::new(case), &mut io::stdout().lock()).unwrap();
            return ExitCode::SUCCESS;
        }
        [] => CASES.to_vec(),
        names => names.iter().map(|name| case_of(name).unwrap()).collect(),
    };
    println!(
        "{:<10}{:>10}{:>12}{:>12}{:>12}{:>10}{:>10}{:>10}",
        "case", "flows", "open at once", "packets", "MB", "peak MiB", "end MiB", "bound MiB"
    );
    let mut all_keep = true;
    for (name, _) in chosen {
        // A peak is a process's: each case needs one of its own.
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--measure", name])
            .status()
            .unwrap();
        all_keep &= status.success();
    }
    ExitCode::from(u8::from(!all_keep))
}
