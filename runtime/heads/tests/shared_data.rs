//! The beaconing head over labelled captures: which tunnels it finds, which harmless hosts it calls beacons, and whether the flows that it
//! names were there.
//!
//! The captures are not part of the project: without them the test says so and passes, unless `TLLM_REQUIRE_SHARED=1` asks for them. The table:
//! `cargo test -p trafficllm-heads --all-features --test shared_data -- --nocapture`.
#![cfg(feature = "cranelift")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails may stop, and prints its figures"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::plugins;
use trafficllm_heads::*;
use trafficllm_traffic::{CaptureReader, Direction, Flow, FlowConfig, FlowTable, decode};

const BEACON: u16 = 1;
const LOCKSTEP: u16 = 2;

fn shared_data() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if folder.join("MANIFEST.csv").is_file() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("TLLM_REQUIRE_SHARED").is_none(),
        "TLLM_REQUIRE_SHARED is set but {} is absent",
        folder.display()
    );
    println!("skipped: {} is absent", folder.display());
    None
}

/// The flows of a capture in the order in which they end, which is that of heads that keep state.
fn flows_of(capture: &Path) -> Vec<Flow> {
    let mut reader = CaptureReader::new(File::open(capture).unwrap()).unwrap();
    let mut table = FlowTable::new(FlowConfig::DEFAULT).unwrap();
    let mut flows = Vec::new();
    while let Some(raw) = reader.next_packet().unwrap() {
        if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
            table.push(&packet, &mut |flow| flows.push(flow));
        }
    }
    table.flush(&mut |flow| flows.push(flow));
    flows
}

fn packets_of(flow: &Flow) -> Vec<PacketInput> {
    let records = flow.records.iter();
    let packets = records.map(|record| PacketInput {
        payload_bytes: record.payload_bytes,
        gap_us: record.gap_us,
        payload_kept: record.payload_kept,
        is_from_responder: record.direction == Direction::FromResponder,
        tcp_flags: record.tcp_flags.0,
    });
    packets.collect()
}

fn pair_of(flow: &Flow) -> u64 {
    pair_number([3, 4], flow.endpoints.initiator, flow.endpoints.responder)
}

/// What the head says of a flow: the label, or none where it abstains.
struct Said {
    label: Option<u16>,
    evidence: String,
}

/// A head that knows nothing yet judges the flows of one capture.
fn said_of(head: &Arc<dyn Head>, flows: &[Flow]) -> Vec<Said> {
    let guard = Arc::new(Guard::new(Arc::clone(head), GuardOptions::default()));
    let mut station = Station::new(guard, Arc::new(Conditions::default()));
    let mut answers = Answers::default();
    let mut said = Vec::new();
    for some in flows.chunks(16) {
        let packets: Vec<Vec<PacketInput>> = some.iter().map(packets_of).collect();
        let inputs = some.iter().zip(&packets).map(|(flow, packets)| FlowInput {
            pair: pair_of(flow),
            start_us: flow.start_ns / 1_000,
            duration_us: flow.end_ns.saturating_sub(flow.start_ns) / 1_000,
            packets_total: flow.packets,
            bytes_total: flow.bytes,
            protocol: flow.endpoints.protocol,
            is_complete: packets.len() as u64 == flow.packets,
            packets,
            ..FlowInput::default()
        });
        let inputs: Vec<FlowInput<'_>> = inputs.collect();
        answers.clear();
        station.judge(&inputs, &mut answers);
        for answer in answers.iter() {
            let Answer::Verdict(verdict) = answer else {
                panic!("{answer:?}")
            };
            said.push(Said {
                label: (!verdict.abstained).then_some(verdict.label),
                evidence: verdict.evidence.to_owned(),
            });
        }
    }
    assert_eq!(station.guard().counters().faults, 0);
    said
}

/// Every flow that the evidence names is one of the same hosts that began when it says.
fn check_named(capture: &Path, flows: &[Flow], said: &[Said]) -> usize {
    let mut starts: BTreeMap<u64, BTreeSet<i64>> = BTreeMap::new();
    let centiseconds = |flow: &Flow| (flow.start_ns / 10_000_000) as i64;
    for flow in flows {
        let of_pair = starts.entry(pair_of(flow)).or_default();
        of_pair.insert(centiseconds(flow));
    }
    let mut checked = 0;
    for (flow, said) in flows.iter().zip(said) {
        let Some((_, list)) = said.evidence.split_once("flows that began ") else {
            continue;
        };
        for named in list.strip_suffix(" s before").unwrap().split(' ') {
            let at = centiseconds(flow) - (named.parse::<f64>().unwrap() * 100.0).round() as i64;
            let of_pair = &starts[&pair_of(flow)];
            assert!(
                of_pair.range(at - 2..=at + 2).next().is_some(),
                "{}: {}",
                capture.display(),
                said.evidence
            );
            checked += 1;
        }
    }
    checked
}

/// What was found in the captures of a label.
#[derive(Default)]
struct Found {
    captures: usize,
    captures_found: usize,
    flows: usize,
    beacons: usize,
    lockstep: usize,
    names_checked: usize,
    /// Names and flows of the captures in which nothing was found.
    missed: Vec<(String, usize)>,
    /// Names of those in which something was.
    named: Vec<String>,
}

impl Found {
    fn flows_found(&self) -> usize {
        self.beacons + self.lockstep
    }
}

fn look(head: &Arc<dyn Head>, folder: &Path) -> Found {
    let mut found = Found::default();
    let mut captures: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    captures.sort();
    for capture in captures {
        let flows = flows_of(&capture);
        let said = said_of(head, &flows);
        let of = |label| said.iter().filter(|said| said.label == Some(label)).count();
        let (beacons, lockstep) = (of(BEACON), of(LOCKSTEP));
        found.captures += 1;
        found.flows += flows.len();
        found.beacons += beacons;
        found.lockstep += lockstep;
        found.names_checked += check_named(&capture, &flows, &said);
        let name = capture.file_name().unwrap().to_string_lossy().into_owned();
        if beacons + lockstep > 0 {
            found.captures_found += 1;
            found.named.push(name);
        } else {
            found.missed.push((name, flows.len()));
        }
    }
    found
}

fn is_tunnel(label: &str) -> bool {
    label.starts_with("dns-tunnel") || label.starts_with("doh-")
}

#[test]
fn the_beaconing_head_finds_the_tunnels_and_names_their_flows() {
    let Some(data) = shared_data() else { return };
    let sandbox = Sandbox::new(SandboxOptions {
        allows_state: true,
        ..SandboxOptions::default()
    })
    .unwrap();
    let module = fs::read(plugins().join("examples/modules/beaconing.wasm")).unwrap();
    let head: Arc<dyn Head> = Arc::new(sandbox.load("beaconing", &module, &[]).unwrap());
    println!(
        "{:<8}{:<24}{:>9}{:>7}{:>8}{:>8}{:>9}",
        "split", "label", "captures", "found", "flows", "beacon", "lockstep"
    );
    let mut tunnels = Found::default();
    let mut harmless = Found::default();
    for split in ["train", "val"] {
        let folder = data.join("malicious_doh_detection").join(split);
        let mut labels: Vec<PathBuf> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        labels.sort();
        for folder in labels {
            let label = folder.file_name().unwrap().to_string_lossy().into_owned();
            let found = look(&head, &folder);
            println!(
                "{split:<8}{label:<24}{:>9}{:>7}{:>8}{:>8}{:>9}",
                found.captures, found.captures_found, found.flows, found.beacons, found.lockstep
            );
            let sum = if is_tunnel(&label) {
                println!("    not found: {:?}", found.missed);
                &mut tunnels
            } else {
                &mut harmless
            };
            sum.captures += found.captures;
            sum.captures_found += found.captures_found;
            sum.flows += found.flows;
            sum.beacons += found.beacons;
            sum.lockstep += found.lockstep;
            sum.names_checked += found.names_checked;
            sum.missed.extend(found.missed);
            sum.named.extend(found.named);
        }
    }
    println!(
        "tunnels: {} of {} captures, {} of {} flows; harmless: {} of {} captures, {} of {} flows; {} named flows were there",
        tunnels.captures_found,
        tunnels.captures,
        tunnels.flows_found(),
        tunnels.flows,
        harmless.captures_found,
        harmless.captures,
        harmless.flows_found(),
        harmless.flows,
        tunnels.names_checked + harmless.names_checked
    );
    // What a flow at a time, or all flows at once, can show no clock.
    let missed = tunnels.missed.iter().filter(|(_, flows)| *flows > 1);
    let missed: Vec<_> = missed.collect();
    assert!(
        missed
            .iter()
            .all(|(name, _)| name.starts_with("korving_afc3bce0")),
        "{missed:?}"
    );
    assert!(tunnels.captures_found >= 49, "{:?}", tunnels.missed);
    assert!(tunnels.flows_found() * 5 > tunnels.flows * 4);
    // A Hue bridge asks for the same name every two seconds: a clock, if a harmless one.
    let other = harmless
        .named
        .iter()
        .filter(|name| !name.starts_with("HueBridge"));
    let other: Vec<_> = other.collect();
    assert!(other.len() <= 4, "{other:?}");
    assert!(harmless.flows_found() * 8 < harmless.flows);
    assert!(tunnels.names_checked > 10_000);
}
