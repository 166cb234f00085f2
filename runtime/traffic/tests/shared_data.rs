//! Holds the flow table against labelled captures whose number of flows is known.
//!
//! The captures are not part of the project: without them the test says so and passes, unless
//! `TLLM_REQUIRE_SHARED=1` asks for them.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking and say why they skip"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use trafficllm_traffic::{
    CaptureReader, Flow, FlowConfig, FlowCounters, FlowTable, SkipCounters, decode,
};

/// One line of the manifest.
struct Expected {
    file: String,
    flows: u64,
    packets: u64,
}

struct Found {
    flows: u64,
    packets: u64,
    skipped: SkipCounters,
    counters: FlowCounters,
}

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

/// The lines `task,split,label,file,source,flows,packets`.
fn manifest(folder: &Path) -> Vec<Expected> {
    let text = fs::read_to_string(folder.join("MANIFEST.csv")).expect("the manifest is readable");
    let lines = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect::<Vec<_>>());
    lines
        .filter(|columns| columns.len() == 7 && columns[3].ends_with(".pcap"))
        .map(|columns| Expected {
            file: columns[3].to_owned(),
            flows: columns[5].parse().expect("a number of flows"),
            packets: columns[6].parse().expect("a number of packets"),
        })
        .collect()
}

fn read(path: &Path, config: FlowConfig) -> Found {
    let mut reader =
        CaptureReader::new(File::open(path).expect("the capture opens")).expect("a capture");
    let mut table = FlowTable::new(config).expect("a valid configuration");
    let mut skipped = SkipCounters::default();
    let mut flows = 0;
    let mut count = |_: Flow| flows += 1;
    while let Some(raw) = reader.next_packet().expect("an undamaged capture") {
        match decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
            Ok(packet) => table.push(&packet, &mut count),
            Err(reason) => skipped.count(reason),
        }
    }
    table.flush(&mut count);
    Found {
        flows,
        packets: reader.packets(),
        skipped,
        counters: *table.counters(),
    }
}

#[test]
fn flows_agree_with_the_manifest() {
    let Some(folder) = shared_data() else { return };
    let expected = manifest(&folder);
    assert!(
        expected.len() > 1_000,
        "the manifest has only {} captures",
        expected.len()
    );
    let (mut flows, mut flows_expected, mut flows_off, mut files_off) = (0, 0, 0, 0);
    let mut counters = FlowCounters::default();
    let mut skipped = SkipCounters::default();
    for capture in &expected {
        let found = read(&folder.join(&capture.file), FlowConfig::default());
        assert_eq!(
            found.packets, capture.packets,
            "packets of {}",
            capture.file
        );
        flows += found.flows;
        flows_expected += capture.flows;
        flows_off += found.flows.abs_diff(capture.flows);
        files_off += u64::from(found.flows != capture.flows);
        if std::env::var_os("TLLM_LIST").is_some() && found.flows != capture.flows {
            println!(
                "{} expected {} found {} {:?}",
                capture.file, capture.flows, found.flows, found.counters
            );
        }
        counters.add(&found.counters);
        skipped.add(&found.skipped);
    }
    println!(
        "{} captures, {files_off} differ; {flows} flows, {flows_expected} expected, {flows_off} off",
        expected.len()
    );
    println!("{counters:?}");
    println!("skipped {:?}", skipped.iter().collect::<Vec<_>>());
    assert_eq!(counters.flows, flows);
    assert!(
        flows_off * 50 <= flows_expected,
        "{flows_off} of {flows_expected} flows are off: more than 2 %"
    );
}
