//! Broken and lying captures: each gives the packets, flows, skips and error that `expected.tsv` names.
//!
//! The files in `tests/hostile/captures` are made by this test and held against it; `TLLM_UPDATE=1` writes them anew.
//! The expectations are written by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use trafficllm_traffic::{CaptureReader, FlowConfig, FlowTable, SkipCounters, decode};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/hostile/captures")
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn pcap(link_type: u32) -> Vec<u8> {
    words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link_type])
}

fn record(seconds: u32, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u32;
    [&words(&[seconds, 0, length, length])[..], bytes].concat()
}

/// A pcap of packets one second apart.
fn pcap_of(link_type: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let records = packets
        .iter()
        .zip(1..)
        .map(|(packet, seconds)| record(seconds, packet));
    [pcap(link_type), records.collect::<Vec<_>>().concat()].concat()
}

fn block(block_type: u32, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32 + 12;
    [&words(&[block_type, length])[..], body, &words(&[length])].concat()
}

fn section() -> Vec<u8> {
    block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]))
}

fn pcapng() -> Vec<u8> {
    [section(), block(1, &words(&[101, 0]))].concat()
}

/// A pcapng with one good packet and then something else.
fn pcapng_then(tail: &[u8]) -> Vec<u8> {
    let packet = udp();
    let length = packet.len() as u32;
    let body = [&words(&[0, 0, 1, length, length])[..], &packet].concat();
    [&pcapng()[..], &block(6, &body), tail].concat()
}

fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
    let length = (20 + rest.len() as u16).to_be_bytes();
    let header = [
        0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    [&header[..], rest].concat()
}

/// A UDP datagram of 40 bytes in all.
fn udp() -> Vec<u8> {
    ipv4(
        17,
        &[&[0x30, 0x39, 0, 53, 0, 20, 0, 0][..], b"twelve bytes"].concat(),
    )
}

fn tcp(flags: u8) -> Vec<u8> {
    ipv4(
        6,
        &[
            0x9c, 0x41, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0,
        ],
    )
}

fn changed(mut bytes: Vec<u8>, place: usize, value: u8) -> Vec<u8> {
    bytes[place] = value;
    bytes
}

fn ethernet(ether_types: &[u16], rest: &[u8]) -> Vec<u8> {
    let tags: Vec<u8> = ether_types
        .iter()
        .flat_map(|tag| [tag.to_be_bytes(), [0, 1]].concat())
        .collect();
    [&[2; 12][..], &tags[..tags.len() - 2], rest].concat()
}

fn ipv6_tower(headers: usize) -> Vec<u8> {
    let rest = [60, 0, 0, 0, 0, 0, 0, 0].repeat(headers);
    let length = (rest.len() as u16).to_be_bytes();
    [
        &[0x60, 0, 0, 0, length[0], length[1], 60, 64][..],
        &[0xfd; 32],
        &rest,
    ]
    .concat()
}

/// Gzip without compression, so that its bytes do not depend on a compressor's version.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u16;
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    packed.extend(length.to_le_bytes());
    packed.extend((!length).to_le_bytes());
    packed.extend_from_slice(bytes);
    packed.extend(words(&[sum.sum(), u32::from(length)]));
    packed
}

fn cut(mut bytes: Vec<u8>, surplus: usize) -> Vec<u8> {
    bytes.truncate(bytes.len() - surplus);
    bytes
}

fn broken_pcaps() -> Vec<(&'static str, Vec<u8>)> {
    let good = || pcap_of(101, &[udp(), udp()]);
    vec![
        ("empty.pcap", Vec::new()),
        ("text.pcap", b"this is no capture\n".to_vec()),
        ("one-byte.pcap", vec![b'x']),
        ("magic-cut.pcap", pcap(101)[..3].to_vec()),
        ("header-cut.pcap", cut(pcap(101), 1)),
        ("version-9.pcap", changed(good(), 4, 9)),
        ("record-header-cut.pcap", cut(good(), 45)),
        ("record-cut.pcap", cut(good(), 1)),
        (
            "captured-length-lies.pcap",
            changed(good(), 24 + 56 + 8, 200),
        ),
        (
            "captured-length-huge.pcap",
            [good(), words(&[0, 0, u32::MAX, u32::MAX])].concat(),
        ),
        (
            "captured-length-over-limit.pcap",
            [good(), words(&[0, 0, 262_145, 262_145])].concat(),
        ),
        ("wire-length-lies.pcap", changed(good(), 24 + 12, 1)),
        ("no-packets.pcap", pcap(101)),
        ("cut.pcap.gz", cut(gzip(&good()), 20)),
        (
            "checksum.pcap.gz",
            changed(gzip(&good()), 10 + 5 + good().len(), 0),
        ),
        ("text.gz", gzip(b"this is no capture\n")),
        ("empty.gz", gzip(b"")),
        ("header-only.gz", gzip(b"")[..10].to_vec()),
        (
            "garbage-behind.pcap.gz",
            [&gzip(&good())[..], b"garbage"].concat(),
        ),
    ]
}

fn broken_pcapngs() -> Vec<(&'static str, Vec<u8>)> {
    let packet = |interface: u32, captured: u32| {
        block(6, &words(&[interface, 0, 0, captured, captured, 0, 0]))
    };
    let lengths_differ = {
        let mut tail = block(5, &[0; 8]);
        let last = tail.len() - 4;
        tail[last] = 24;
        tail
    };
    vec![
        ("section-cut.pcapng", cut(section(), 1)),
        (
            "section-short.pcapng",
            block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d])),
        ),
        ("byte-order.pcapng", changed(pcapng(), 8, 0)),
        ("version-7.pcapng", changed(pcapng(), 12, 7)),
        ("zero-length-block.pcapng", pcapng_then(&words(&[5, 0, 0]))),
        ("short-block.pcapng", pcapng_then(&words(&[5, 8, 8]))),
        (
            "unaligned-block.pcapng",
            pcapng_then(&words(&[5, 14, 0, 14])),
        ),
        (
            "huge-unknown-block.pcapng",
            pcapng_then(&words(&[0x0bad, 0xffff_fffc, 0, 0])),
        ),
        (
            "huge-packet-block.pcapng",
            pcapng_then(&words(&[6, 0xffff_fffc, 0, 0])),
        ),
        (
            "huge-interface-block.pcapng",
            pcapng_then(&words(&[1, 0x7fff_fffc, 0, 0])),
        ),
        ("lengths-differ.pcapng", pcapng_then(&lengths_differ)),
        ("captured-beyond-block.pcapng", pcapng_then(&packet(0, 9))),
        (
            "captured-over-limit.pcapng",
            pcapng_then(&packet(0, 262_145)),
        ),
        ("captured-huge.pcapng", pcapng_then(&packet(0, u32::MAX))),
        ("unknown-interface.pcapng", pcapng_then(&packet(1, 8))),
        (
            "unknown-interface-huge.pcapng",
            pcapng_then(&packet(u32::MAX, 8)),
        ),
        (
            "packet-before-interface.pcapng",
            [section(), packet(0, 8)].concat(),
        ),
        (
            "simple-before-interface.pcapng",
            [section(), block(3, &words(&[4, 0]))].concat(),
        ),
        (
            "simple-beyond-block.pcapng",
            pcapng_then(&block(3, &words(&[5, 0]))),
        ),
        (
            "packet-block-short.pcapng",
            pcapng_then(&block(6, &words(&[0, 0]))),
        ),
        (
            "interface-block-short.pcapng",
            pcapng_then(&block(1, &words(&[101]))),
        ),
        (
            "option-lies.pcapng",
            [section(), block(1, &words(&[101, 0, 0xffff_0009, 9]))].concat(),
        ),
        (
            "new-section-forgets.pcapng",
            pcapng_then(&[section(), packet(0, 8)].concat()),
        ),
        ("block-cut.pcapng", cut(pcapng_then(&[]), 1)),
        (
            "passed-block-cut.pcapng",
            cut(pcapng_then(&block(5, &[0; 8])), 4),
        ),
    ]
}

fn lying_packets() -> Vec<(&'static str, Vec<u8>)> {
    let later_fragment = changed(udp(), 7, 9);
    let far_times = [
        pcap(101),
        record(u32::MAX, &udp()),
        record(0, &udp()),
        record(u32::MAX, &udp()),
    ]
    .concat();
    let ip_lies = vec![
        changed(udp(), 0, 0x41),
        changed(udp(), 0, 0x4f),
        changed(udp(), 3, 19),
        changed(udp(), 3, 27),
        changed(tcp(16), 32, 0x10),
        changed(tcp(16), 32, 0xf0),
        changed(udp(), 0, 0x95),
    ];
    let udp_lies = vec![
        changed(udp(), 24, 255),
        changed(udp(), 25, 3),
        changed(udp(), 25, 0),
        changed(udp(), 2, 255),
    ];
    let flags: Vec<Vec<u8>> = (0..=255).map(tcp).collect();
    let tags = |count: usize| ethernet(&[&[0x8100].repeat(count)[..], &[0x0800]].concat(), &udp());
    vec![
        ("ip-lengths-lie.pcap", pcap_of(101, &ip_lies)),
        ("udp-lengths-lie.pcap", pcap_of(101, &udp_lies)),
        (
            "later-fragments-only.pcap",
            pcap_of(101, &[later_fragment.clone(), later_fragment]),
        ),
        ("unknown-link-type.pcap", pcap_of(9_999, &[udp(), udp()])),
        (
            "vlan-tower.pcap",
            pcap_of(1, &[tags(4), tags(5), tags(300)]),
        ),
        (
            "extension-tower.pcap",
            pcap_of(101, &[ipv6_tower(17), ipv6_tower(8_000), ipv6_tower(16)]),
        ),
        ("far-times.pcap", far_times),
        ("all-tcp-flags.pcap", pcap_of(101, &flags)),
        (
            "empty-packets.pcap",
            pcap_of(1, &[Vec::new(), Vec::new(), vec![0]]),
        ),
    ]
}

fn captures() -> Vec<(&'static str, Vec<u8>)> {
    [broken_pcaps(), broken_pcapngs(), lying_packets()].concat()
}

/// What came of a capture, in the columns of `expected.tsv`.
struct Found {
    packets: u64,
    flows: u64,
    skipped: SkipCounters,
    error: Option<String>,
}

fn read(path: &Path) -> Found {
    let mut table = FlowTable::new(FlowConfig::default()).unwrap();
    let mut found = Found {
        packets: 0,
        flows: 0,
        skipped: SkipCounters::default(),
        error: None,
    };
    match CaptureReader::new(File::open(path).unwrap()) {
        Err(error) => found.error = Some(error.to_string()),
        Ok(mut reader) => loop {
            match reader.next_packet() {
                Ok(None) => break,
                Ok(Some(raw)) => {
                    match decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                        Ok(packet) => table.push(&packet, &mut |_| found.flows += 1),
                        Err(reason) => found.skipped.count(reason),
                    }
                }
                Err(error) => {
                    found.error = Some(error.to_string());
                    break;
                }
            }
            found.packets = reader.packets();
        },
    }
    table.flush(&mut |_| found.flows += 1);
    found
}

#[test]
fn the_committed_captures_are_those_made_here() {
    let update = std::env::var_os("TLLM_UPDATE").is_some();
    for (name, bytes) in captures() {
        let path = folder().join(name);
        if update {
            fs::write(&path, &bytes).unwrap();
        }
        assert!(
            fs::read(&path).unwrap_or_default() == bytes,
            "{name} differs: TLLM_UPDATE=1 writes it anew"
        );
    }
    let expected = captures().len() + 1;
    assert_eq!(
        fs::read_dir(folder()).unwrap().count(),
        expected,
        "a file that is not made here"
    );
}

#[test]
fn every_hostile_capture_gives_what_is_expected() {
    let table = fs::read_to_string(folder().join("expected.tsv")).unwrap();
    let mut rows = 0;
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let [name, packets, flows, skipped, error] = line.split('\t').collect::<Vec<_>>()[..]
        else {
            panic!("expected five columns: {line}");
        };
        let found = read(&folder().join(name));
        let reasons: Vec<String> = found
            .skipped
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let reasons = if reasons.is_empty() {
            "-".to_owned()
        } else {
            reasons.join(", ")
        };
        let counts = (found.packets.to_string(), found.flows.to_string(), reasons);
        assert_eq!(
            counts,
            (packets.to_owned(), flows.to_owned(), skipped.to_owned()),
            "{name}"
        );
        match found.error {
            None => assert_eq!(error, "-", "{name}: no error"),
            Some(text) => assert!(error != "-" && text.contains(error), "{name}: {text}"),
        }
        rows += 1;
    }
    assert_eq!(rows, captures().len(), "each capture has one row");
}

#[test]
#[ignore = "prints what the captures give, as a help for writing expected.tsv"]
fn list() {
    for (name, _) in captures() {
        let found = read(&folder().join(name));
        let reasons: Vec<String> = found
            .skipped
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let error = found.error.unwrap_or_default();
        println!(
            "{name}\t{}\t{}\t{}\t{error}",
            found.packets,
            found.flows,
            reasons.join(", ")
        );
    }
}
