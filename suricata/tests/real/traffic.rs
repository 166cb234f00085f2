//! Captures as tests need them: read, cut, multiplied, written.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A packet of a capture, from its Ethernet header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) time_us: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The ends of a packet's flow, in order, with its protocol.
pub(crate) type Ends = ([Vec<u8>; 2], u8);

const ETHERNET: usize = 14;

impl Packet {
    fn is_ipv4(&self) -> bool {
        self.bytes[12..14] == [0x08, 0x00] && self.bytes[ETHERNET] == 0x45
    }

    fn is_ipv6(&self) -> bool {
        self.bytes[12..14] == [0x86, 0xdd]
    }

    /// Of TCP and UDP, without IPv6 extension headers.
    pub(crate) fn ends(&self) -> Option<Ends> {
        let (addresses, size, protocol, ports) = if self.is_ipv4() {
            (ETHERNET + 12, 4, self.bytes[ETHERNET + 9], ETHERNET + 20)
        } else if self.is_ipv6() {
            (ETHERNET + 8, 16, self.bytes[ETHERNET + 6], ETHERNET + 40)
        } else {
            return None;
        };
        if ![6, 17].contains(&protocol) {
            return None;
        }
        let end = |number: usize| {
            let address = &self.bytes[addresses + number * size..][..size];
            [address, &self.bytes[ports + number * 2..][..2]].concat()
        };
        let mut ends = [end(0), end(1)];
        ends.sort();
        Some((ends, protocol))
    }
}

/// A committed capture.
pub(crate) fn capture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/captures")
        .join(name)
}

/// All committed captures, those that are packed unpacked into `folder`.
pub(crate) fn captures(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(capture(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    let unpacked = found
        .into_iter()
        .filter_map(|path| match path.extension()?.to_str()? {
            "pcap" | "pcapng" => Some(path),
            "gz" => {
                let output = Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
                assert!(output.status.success());
                let plain = folder.join(path.file_stem().unwrap());
                fs::write(&plain, output.stdout).unwrap();
                Some(plain)
            }
            _ => None,
        });
    let found: Vec<PathBuf> = unpacked.collect();
    assert!(found.len() >= 7, "captures are missing: {found:?}");
    found
}

/// Reads a pcap of Ethernet packets, little-endian with microseconds or nanoseconds.
pub(crate) fn read(path: &Path) -> Vec<Packet> {
    let bytes = fs::read(path).unwrap();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let per_us = match number(0) {
        0xa1b2_c3d4 => 1,
        0xa1b2_3c4d => 1_000,
        other => panic!("{}: {other:x}", path.display()),
    };
    assert_eq!(number(20), 1, "{}: not of Ethernet", path.display());
    let mut packets = Vec::new();
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let (seconds, fraction, size) = (number(at), number(at + 4), number(at + 8) as usize);
        let time_us = u64::from(seconds) * 1_000_000 + u64::from(fraction) / per_us;
        packets.push(Packet {
            time_us,
            bytes: bytes[at + 16..at + 16 + size].to_vec(),
        });
        at += 16 + size;
    }
    packets
}

/// Copies a pcap in which packets may be cut, with zeros for what is missing: Suricata takes no part of a packet that is shorter than its
/// header says.
pub(crate) fn pad(from: &Path, to: &Path) {
    let bytes = fs::read(from).unwrap();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut out = bytes[..16].to_vec();
    out.extend(262_144_u32.to_le_bytes());
    out.extend(&bytes[20..24]);
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let (size, whole) = (
            number(at + 8) as usize,
            number(at + 12).clamp(number(at + 8), 65_535) as usize,
        );
        out.extend(&bytes[at..at + 8]);
        out.extend((whole as u32).to_le_bytes());
        out.extend(&bytes[at + 12..at + 16 + size]);
        out.resize(out.len() + whole - size, 0);
        at += 16 + size;
    }
    fs::write(to, out).unwrap();
}

/// Writes a pcap.
pub(crate) fn write(path: &Path, packets: &[Packet]) {
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1_u32] {
        out.extend(word.to_le_bytes());
    }
    for packet in packets {
        let size = packet.bytes.len() as u32;
        for word in [
            (packet.time_us / 1_000_000) as u32,
            (packet.time_us % 1_000_000) as u32,
            size,
            size,
        ] {
            out.extend(word.to_le_bytes());
        }
        out.extend(&packet.bytes);
    }
    fs::write(path, out).unwrap();
}

/// The first packets of each flow of TCP and UDP, at most so many; and how many packets each flow had.
pub(crate) fn cut(packets: &[Packet], most: usize) -> (Vec<Packet>, HashMap<Ends, usize>) {
    let mut sizes = HashMap::new();
    let mut kept = Vec::new();
    for packet in packets {
        let Some(ends) = packet.ends() else { continue };
        let size: &mut usize = sizes.entry(ends).or_default();
        *size += 1;
        if *size <= most {
            kept.push(packet.clone());
        }
    }
    (kept, sizes)
}

/// Many flows: those over IPv4 of some captures again and again, each time from another address, `every_us` after the one before, and
/// in the order of time. At least `flows` of them; how many there are.
pub(crate) fn multiplied(captures: &[&str], flows: usize, every_us: u64) -> (Vec<Packet>, usize) {
    (multiplied_from(captures, 0..flows, every_us), flows)
}

/// The same for flows of other numbers than the first.
pub(crate) fn multiplied_from(
    captures: &[&str],
    flows: Range<usize>,
    every_us: u64,
) -> Vec<Packet> {
    let mut patterns: Vec<Vec<Packet>> = Vec::new();
    for name in captures {
        let mut places = HashMap::new();
        for packet in read(&capture(name)) {
            if let Some(ends) = packet.ends().filter(|_| packet.is_ipv4()) {
                let place = *places.entry(ends).or_insert_with(|| {
                    patterns.push(Vec::new());
                    patterns.len() - 1
                });
                patterns[place].push(packet);
            }
        }
    }
    assert!(!patterns.is_empty());
    let start_us = patterns[0][0].time_us;
    let mut packets = Vec::new();
    for number in flows {
        let pattern = &patterns[number % patterns.len()];
        let client = pattern[0].bytes[ETHERNET + 12..ETHERNET + 16].to_vec();
        let stand_in = (0x0a00_0001 + number as u32).to_be_bytes();
        for packet in pattern {
            let mut packet = packet.clone();
            packet.time_us =
                packet.time_us - pattern[0].time_us + start_us + number as u64 * every_us;
            let addresses = ETHERNET + 12;
            let place = if packet.bytes[addresses..addresses + 4] == client {
                addresses
            } else {
                addresses + 4
            };
            packet.bytes[place..place + 4].copy_from_slice(&stand_in);
            packets.push(packet);
        }
    }
    packets.sort_by_key(|packet| packet.time_us);
    packets
}

/// The same packets, those of IPv4 with much behind the IP header each in two fragments; how many there are of those.
pub(crate) fn fragmented(packets: &[Packet]) -> (Vec<Packet>, usize) {
    const HEADER: usize = ETHERNET + 20;
    // A multiple of 8; all of a TCP header is in the first fragment.
    const FIRST: usize = 64;
    let mut made = Vec::new();
    let mut count = 0;
    for packet in packets {
        // What is behind the IP packet is padding.
        let ip_bytes = usize::from(u16::from_be_bytes([packet.bytes[16], packet.bytes[17]]));
        let end = ETHERNET + ip_bytes;
        if !packet.is_ipv4() || end > packet.bytes.len() || end < HEADER + 2 * FIRST {
            made.push(packet.clone());
            continue;
        }
        count += 1;
        let part = |from: usize, to: usize, more: u16| {
            let mut bytes = packet.bytes[..HEADER].to_vec();
            bytes.extend(&packet.bytes[from..to]);
            let size = (bytes.len() - ETHERNET) as u16;
            bytes[16..18].copy_from_slice(&size.to_be_bytes());
            bytes[18..20].copy_from_slice(&(count as u16).to_be_bytes());
            let offset = ((from - HEADER) / 8) as u16 | more << 13;
            bytes[20..22].copy_from_slice(&offset.to_be_bytes());
            Packet {
                time_us: packet.time_us,
                bytes,
            }
        };
        made.push(part(HEADER, HEADER + FIRST, 1));
        made.push(part(HEADER + FIRST, end, 0));
    }
    (made, count)
}

/// The same packets, every `nth` of IPv4 with 0 for its length, as cards that cut packets themselves leave it; and those without these.
pub(crate) fn without_length(packets: &[Packet], nth: usize) -> (Vec<Packet>, Vec<Packet>) {
    let (mut all, mut rest) = (Vec::new(), Vec::new());
    for (number, packet) in packets.iter().enumerate() {
        let mut packet = packet.clone();
        if packet.is_ipv4() && number % nth == nth - 1 {
            packet.bytes[16..18].copy_from_slice(&[0, 0]);
        } else {
            rest.push(packet.clone());
        }
        all.push(packet);
    }
    (all, rest)
}
