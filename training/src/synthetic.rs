//! A small made-up data set for the tests: three labels of TCP flows that differ in payload, sizes and direction, and two
//! labels of HTTP requests. Nothing of it was recorded.

use std::fs;
use std::path::Path;

use crate::random::Random;

/// Leakage groups of each label in the training split; the val split has two.
const TRAIN_GROUPS: usize = 4;
/// Flows in each group.
const FLOWS: usize = 6;

/// Writes the tasks `colours` (captures) and `requests` (JSON Lines) under `data`.
pub(crate) fn write(data: &Path, seed: u64) {
    let mut random = Random::new(seed);
    for (label_number, label) in ["blue", "green", "red"].into_iter().enumerate() {
        for (split, first, groups) in [("train", 0, TRAIN_GROUPS), ("val", TRAIN_GROUPS, 2)] {
            let folder = data.join("colours").join(split).join(label);
            fs::create_dir_all(&folder).expect("folder");
            for group in first..first + groups {
                let capture = capture(label_number, group, &mut random);
                fs::write(folder.join(format!("{label}-{group}.pcap")), capture).expect("capture");
            }
        }
    }
    fs::create_dir_all(data.join("requests")).expect("folder");
    for (split, first, groups) in [("train", 0, 30), ("val", 30, 12)] {
        let lines: String = (first..first + groups)
            .map(|group| request_line(group, &mut random))
            .collect();
        fs::write(data.join("requests").join(format!("{split}.jsonl")), lines).expect("requests");
    }
}

fn request_line(group: usize, random: &mut Random) -> String {
    let number = random.below(10_000);
    let (label, query) = if group.is_multiple_of(2) {
        ("normal", format!("page={number}"))
    } else {
        ("attack", format!("id={number}' OR '1'='1"))
    };
    let request = format!(
        "GET http://shop.example/item?{query} HTTP/1.1\nHost: shop.example\nConnection: close"
    );
    let line =
        serde_json::json!({"label": label, "group": format!("query-{group}"), "request": request});
    format!("{line}\n")
}

/// A little-endian pcap of raw IPv4 packets.
fn capture(label: usize, group: usize, random: &mut Random) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xA1B2_C3D4_u32, 0x0004_0002, 0, 0, 65_535, 101] {
        file.extend(word.to_le_bytes());
    }
    for flow in 0..FLOWS {
        let port = 20_000 + (group * FLOWS + flow) as u16;
        let start_s = 1_700_000_000 + (flow * 600) as u32;
        for packet in 0..4_u32 {
            let outwards = packet.is_multiple_of(2) || label == 2;
            let payload = payload(label, packet, random);
            let packet_bytes = tcp(port, outwards, &payload);
            let header = [
                start_s,
                packet * 20_000,
                packet_bytes.len() as u32,
                packet_bytes.len() as u32,
            ];
            header
                .iter()
                .for_each(|word| file.extend(word.to_le_bytes()));
            file.extend(packet_bytes);
        }
    }
    file
}

fn payload(label: usize, packet: u32, random: &mut Random) -> Vec<u8> {
    let word: &[u8] = [
        b"azure sky ".as_slice(),
        b"green leaf ",
        b"\x16\x03\x01\x02",
    ][label];
    let mut bytes: Vec<u8> = word
        .iter()
        .copied()
        .cycle()
        .take(20 + 30 * label + packet as usize)
        .collect();
    bytes.extend((0..8).map(|_| random.below(256) as u8));
    bytes
}

/// An IPv4 packet with a TCP segment (PSH, ACK); checksums stay zero, as in many captures taken where hardware adds them.
fn tcp(client_port: u16, outwards: bool, payload: &[u8]) -> Vec<u8> {
    let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let (source, target) = if outwards {
        (client, server)
    } else {
        (server, client)
    };
    let (source_port, target_port) = if outwards {
        (client_port, 80)
    } else {
        (80, client_port)
    };
    let total = (40 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    packet.extend(source);
    packet.extend(target);
    packet.extend(source_port.to_be_bytes());
    packet.extend(target_port.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}
