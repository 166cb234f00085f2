use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::limits::{BLOCK_BYTES_MAX, INTERFACES_MAX, PACKET_BYTES_MAX};

/// Writes numbers in one byte order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, value: u16) -> [u8; 2] {
        if self == Self::Little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        if self == Self::Little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    }

    fn words(self, values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|&value| self.u32(value)).collect()
    }
}

fn pcap_header(order: Order, magic: u32, link_type: u32) -> Vec<u8> {
    let mut bytes = order.u32(magic).to_vec();
    bytes.extend(order.u16(2));
    bytes.extend(order.u16(4));
    bytes.extend(order.words(&[0, 0, 65_535, link_type]));
    bytes
}

fn record(order: Order, seconds: u32, fraction: u32, wire_bytes: u32, bytes: &[u8]) -> Vec<u8> {
    let mut record = order.words(&[seconds, fraction, bytes.len() as u32, wire_bytes]);
    record.extend_from_slice(bytes);
    record
}

fn block(order: Order, block_type: u32, body: &[u8]) -> Vec<u8> {
    let mut padded = body.to_vec();
    padded.resize(body.len().next_multiple_of(4), 0);
    let length = padded.len() as u32 + 12;
    [
        &order.words(&[block_type, length])[..],
        &padded,
        &order.u32(length),
    ]
    .concat()
}

fn section(order: Order) -> Vec<u8> {
    let mut body = order.u32(0x1a2b_3c4d).to_vec();
    body.extend(order.u16(1));
    body.extend(order.u16(0));
    body.extend([0xff; 8]);
    block(order, 0x0a0d_0d0a, &body)
}

fn interface(
    order: Order,
    link_type: u16,
    snapshot_bytes: u32,
    options: &[(u16, &[u8])],
) -> Vec<u8> {
    let mut body = order.u16(link_type).to_vec();
    body.extend(order.u16(0));
    body.extend(order.u32(snapshot_bytes));
    for (code, value) in options {
        body.extend(order.u16(*code));
        body.extend(order.u16(value.len() as u16));
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    block(order, 1, &body)
}

fn enhanced(order: Order, interface: u32, units: u64, wire_bytes: u32, bytes: &[u8]) -> Vec<u8> {
    let header = [
        interface,
        (units >> 32) as u32,
        units as u32,
        bytes.len() as u32,
        wire_bytes,
    ];
    block(order, 6, &[&order.words(&header)[..], bytes].concat())
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    link_type: u16,
    bytes: Vec<u8>,
    wire_bytes: u32,
    timestamp_ns: u64,
    interface: u32,
}

/// All packets before the end or the error, and the error.
fn read(source: impl Read) -> (Vec<Seen>, Option<CaptureError>) {
    let mut reader = match CaptureReader::new(source) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut seen = Vec::new();
    loop {
        match reader.next_packet() {
            Ok(Some(packet)) => seen.push(Seen {
                link_type: packet.link_type.0,
                bytes: packet.bytes.to_vec(),
                wire_bytes: packet.wire_bytes,
                timestamp_ns: packet.timestamp_ns,
                interface: packet.interface,
            }),
            Ok(None) => {
                assert_eq!(reader.packets(), seen.len() as u64);
                return (seen, None);
            }
            Err(error) => {
                assert!(
                    matches!(reader.next_packet(), Ok(None)),
                    "a reader goes on after its error"
                );
                return (seen, Some(error));
            }
        }
    }
}

fn read_whole(bytes: &[u8]) -> Vec<Seen> {
    let (seen, error) = read(bytes);
    assert!(error.is_none(), "{}", error.unwrap());
    seen
}

fn error_of(bytes: &[u8]) -> CaptureError {
    read(bytes).1.expect("an error")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn good_pcap() -> Vec<u8> {
    let mut file = pcap_header(Order::Little, 0xa1b2_c3d4, 101);
    file.extend(record(Order::Little, 1, 0, 5, b"first"));
    file.extend(record(Order::Little, 1, 1, 900, b"second"));
    file.extend(record(Order::Little, 2, 0, 0, b""));
    file
}

/// Every kind of block, in two sections of different byte order; four packets.
fn good_pcapng() -> Vec<u8> {
    let little = Order::Little;
    let mut file = section(little);
    file.extend(interface(
        little,
        1,
        0,
        &[(2, b"eth0"), (9, &[9]), (0, b"")],
    ));
    file.extend(block(little, 5, &[7; 20]));
    file.extend(enhanced(little, 0, 1_500_000_001, 5, b"first"));
    file.extend(block(little, 3, &[&little.u32(6)[..], b"simple"].concat()));
    file.extend(section(Order::Big));
    file.extend(interface(Order::Big, 101, 0, &[]));
    file.extend(enhanced(Order::Big, 0, 2_000_000, 99, b"other"));
    let old = [
        &Order::Big.u16(0)[..],
        &Order::Big.u16(3),
        &Order::Big.words(&[0, 3_000_000, 3, 3]),
        b"old",
    ]
    .concat();
    file.extend(block(Order::Big, 2, &old));
    file
}

#[test]
fn pcap_in_both_orders_and_both_clocks() {
    for order in [Order::Little, Order::Big] {
        for (magic, fraction_ns) in [(0xa1b2_c3d4, 1_000), (0xa1b2_3c4d, 1)] {
            // The upper half of the link type tells of a frame check sequence.
            let mut file = pcap_header(order, magic, 0x1400_0001);
            file.extend(record(order, 1_700_000_000, 123_456, 1_514, b"bytes"));
            let expected = Seen {
                link_type: 1,
                bytes: b"bytes".to_vec(),
                wire_bytes: 1_514,
                timestamp_ns: 1_700_000_000_000_000_000 + 123_456 * fraction_ns,
                interface: 0,
            };
            assert_eq!(read_whole(&file), [expected]);
        }
    }
}

#[test]
fn the_modified_pcap_has_longer_record_headers() {
    let mut file = pcap_header(Order::Little, 0xa1b2_cd34, 1);
    for bytes in [b"one", b"two"] {
        file.extend(Order::Little.words(&[1, 2, 3, 60, 0xdead, 0xbeef]));
        file.extend(bytes);
    }
    let seen = read_whole(&file);
    assert_eq!(
        seen.iter()
            .map(|packet| packet.bytes.as_slice())
            .collect::<Vec<_>>(),
        [b"one", b"two"]
    );
    assert_eq!(seen[1].timestamp_ns, 1_000_002_000);
}

#[test]
fn pcapng_keeps_each_interface_apart() {
    for order in [Order::Little, Order::Big] {
        let offset = if order == Order::Little {
            100_i64.to_le_bytes()
        } else {
            100_i64.to_be_bytes()
        };
        let mut file = section(order);
        file.extend(interface(order, 1, 0, &[]));
        file.extend(interface(
            order,
            113,
            0,
            &[(9, &[9]), (14, &offset), (0, &[])],
        ));
        file.extend(interface(order, 276, 0, &[(9, &[0x80 | 1])]));
        for number in 0..3 {
            file.extend(enhanced(order, number, 3_000_000_000, 60, b"x"));
        }
        let seen: Vec<_> = read_whole(&file)
            .iter()
            .map(|seen| (seen.link_type, seen.timestamp_ns))
            .collect();
        assert_eq!(
            seen,
            [
                (1, 3_000_000_000_000),
                (113, 103_000_000_000),
                (276, 1_500_000_000_000_000_000)
            ]
        );
    }
}

#[test]
fn every_kind_of_block_is_read_or_passed_over() {
    let bytes = good_pcapng();
    let mut reader = CaptureReader::new(&bytes[..]).unwrap();
    assert_eq!(
        (reader.format(), reader.is_gzip()),
        (CaptureFormat::PcapNg, false)
    );
    while reader.next_packet().unwrap().is_some() {}
    assert_eq!((reader.packets(), reader.skipped_blocks()), (4, 1));
    assert_eq!(
        (reader.offset(), reader.source_bytes()),
        (bytes.len() as u64, bytes.len() as u64)
    );
    let seen = read_whole(&bytes);
    let all: Vec<_> = seen
        .iter()
        .map(|seen| (seen.bytes.as_slice(), seen.wire_bytes, seen.timestamp_ns))
        .collect();
    let expected: [(&[u8], u32, u64); 4] = [
        (b"first", 5, 1_500_000_001),
        (b"simple", 6, 1_500_000_001),
        (b"other", 99, 2_000_000_000),
        (b"old", 3, 3_000_000_000),
    ];
    assert_eq!(all, expected);
}

#[test]
fn a_simple_packet_is_cut_by_its_interface() {
    let mut file = section(Order::Little);
    file.extend(interface(Order::Little, 1, 4, &[]));
    file.extend(block(
        Order::Little,
        3,
        &[&Order::Little.u32(900)[..], b"cut!"].concat(),
    ));
    let seen = read_whole(&file);
    assert_eq!(
        (seen[0].bytes.as_slice(), seen[0].wire_bytes),
        (&b"cut!"[..], 900)
    );
}

#[test]
fn gzip_in_any_number_of_members_is_the_same_capture() {
    for plain in [good_pcap(), good_pcapng()] {
        let (front, back) = plain.split_at(plain.len() / 2);
        let members = [gzip(front), gzip(back)].concat();
        assert_eq!(read_whole(&gzip(&plain)), read_whole(&plain));
        assert_eq!(read_whole(&members), read_whole(&plain));
        let reader = CaptureReader::new(&members[..]).unwrap();
        assert!(reader.is_gzip());
    }
}

/// A source that gives one byte at a time and is interrupted in between.
struct Slow<'a> {
    rest: &'a [u8],
    interrupted: bool,
}

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = self.rest.len().min(buffer.len()).min(1);
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest = &self.rest[count..];
        Ok(count)
    }
}

#[test]
fn a_slow_source_gives_the_same_packets() {
    for plain in [good_pcap(), good_pcapng(), gzip(&good_pcap())] {
        let (seen, error) = read(Slow {
            rest: &plain,
            interrupted: false,
        });
        assert!(error.is_none());
        assert_eq!(seen, read_whole(&plain));
    }
}

#[test]
fn a_failing_source_is_told_after_what_it_gave() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let plain = good_pcap();
    let whole = plain.len() as u64;
    let (seen, error) = read((&plain[..]).chain(Failing));
    assert_eq!(seen, read_whole(&plain));
    assert!(matches!(error, Some(CaptureError::Io { offset, .. }) if offset == whole));
    assert!(matches!(
        read(Failing).1,
        Some(CaptureError::Io { offset: 0, .. })
    ));
}

#[test]
fn many_packets_pass_through_the_bounded_buffer() {
    let mut file = pcap_header(Order::Little, 0xa1b2_c3d4, 1);
    let bytes: Vec<u8> = (0..70_000_u32).map(|byte| byte as u8).collect();
    for number in 0..100_u32 {
        file.extend(record(
            Order::Little,
            number,
            0,
            0,
            &bytes[..(number * 691) as usize],
        ));
    }
    let seen = read_whole(&file);
    assert_eq!(seen.len(), 100);
    for (number, packet) in (0..100).zip(&seen) {
        assert_eq!(packet.bytes, bytes[..number * 691]);
        assert_eq!(packet.wire_bytes as usize, packet.bytes.len());
    }
}

/// Cuts a capture at every byte: whole packets come out, and all but a cut between two packets is an error.
fn cut_everywhere(file: &[u8], ends: &[usize]) {
    let whole = read_whole(file);
    for length in 0..file.len() {
        let (seen, error) = read(&file[..length]);
        let complete = ends.iter().filter(|&&(mut end)| {
            end = end.min(file.len());
            end <= length
        });
        let expected = complete.count().min(whole.len());
        assert_eq!(seen, whole[..expected], "cut at {length}");
        match error {
            None => assert!(
                read(&file[..length]).0.len() == expected && length >= 24,
                "silent cut at {length}"
            ),
            Some(CaptureError::Empty) => assert_eq!(length, 0),
            Some(CaptureError::Truncated {
                offset,
                expected_bytes,
                found_bytes,
                ..
            }) => {
                assert!(found_bytes < expected_bytes, "cut at {length}");
                assert_eq!(offset + found_bytes, length as u64);
            }
            Some(other) => panic!("cut at {length}: {other}"),
        }
    }
}

#[test]
fn a_pcap_cut_at_every_byte() {
    let file = good_pcap();
    cut_everywhere(&file, &[24 + 21, 24 + 21 + 22, 24 + 21 + 22 + 16]);
    let silent = (0..file.len()).filter(|&length| read(&file[..length]).1.is_none());
    assert_eq!(
        silent.collect::<Vec<_>>(),
        [24, 24 + 21, 24 + 21 + 22],
        "only whole records end without an error"
    );
}

#[test]
fn a_pcapng_cut_at_every_byte() {
    let file = good_pcapng();
    let mut place = 0;
    let (mut borders, mut packet_ends) = (Vec::new(), Vec::new());
    while place < file.len() {
        let big = place >= 28 + 40 + 32 + 40 + 24;
        let number = |at: usize| {
            let field: [u8; 4] = file[at..at + 4].try_into().unwrap();
            if big {
                u32::from_be_bytes(field)
            } else {
                u32::from_le_bytes(field)
            }
        };
        let block_type = number(place);
        place += number(place + 4) as usize;
        borders.push(place);
        if matches!(block_type, 2 | 3 | 6) {
            packet_ends.push(place);
        }
    }
    assert_eq!(
        (place, packet_ends.len(), borders.len()),
        (file.len(), 4, 9)
    );
    cut_everywhere(&file, &packet_ends);
    let silent = (0..file.len()).filter(|&length| read(&file[..length]).1.is_none());
    assert_eq!(
        silent.collect::<Vec<_>>(),
        borders[..8],
        "only whole blocks end without an error"
    );
}

#[test]
fn a_cut_gzip_gives_its_packets_and_an_error() {
    let plain = good_pcap();
    let packed = gzip(&plain);
    let whole = read_whole(&plain);
    for length in 2..packed.len() {
        let (seen, error) = read(&packed[..length]);
        assert_eq!(seen, whole[..seen.len()]);
        assert!(
            matches!(error, Some(CaptureError::Gzip { .. })),
            "cut at {length}: {error:?}"
        );
    }
    let (seen, _) = read(&packed[..packed.len() - 1]);
    assert_eq!(seen, whole, "the packets before a cut checksum are whole");
}

#[test]
fn a_packet_is_held_to_its_limit() {
    for order in [Order::Little, Order::Big] {
        let file = |length: usize| {
            let mut file = pcap_header(order, 0xa1b2_c3d4, 1);
            file.extend(record(order, 0, 0, 0, &vec![7; length]));
            file
        };
        assert_eq!(
            read_whole(&file(PACKET_BYTES_MAX))[0].bytes.len(),
            PACKET_BYTES_MAX
        );
        let error = error_of(&file(PACKET_BYTES_MAX + 1));
        let expected =
            "offset 24: captured packet too large: expected at most 262144 bytes, found 262145";
        assert_eq!(error.to_string(), expected);
    }
    let file = |length: usize| {
        let packet = enhanced(Order::Little, 0, 0, 0, &vec![7; length]);
        [
            section(Order::Little),
            interface(Order::Little, 1, 0, &[]),
            packet,
        ]
        .concat()
    };
    assert_eq!(
        read_whole(&file(PACKET_BYTES_MAX))[0].bytes.len(),
        PACKET_BYTES_MAX
    );
    let error = error_of(&file(PACKET_BYTES_MAX + 1));
    assert!(
        matches!(
            error,
            CaptureError::TooLarge {
                what: "captured packet",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_kept_block_is_held_to_its_limit_and_a_passed_one_is_not() {
    let file = |block_type: u32, body_bytes: usize| {
        let body = [&Order::Little.words(&[1, 0])[..], &vec![0; body_bytes - 8]].concat();
        let mut file = [
            section(Order::Little),
            block(Order::Little, block_type, &body),
        ]
        .concat();
        file.extend(interface(Order::Little, 1, 0, &[]));
        file.extend(enhanced(Order::Little, 0, 0, 0, b"x"));
        file
    };
    assert_eq!(read_whole(&file(1, BLOCK_BYTES_MAX - 12)).len(), 1);
    let error = error_of(&file(1, BLOCK_BYTES_MAX - 8));
    assert!(
        matches!(
            error,
            CaptureError::TooLarge {
                what: "interface description block",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(read_whole(&file(0x0bad, 5 * BLOCK_BYTES_MAX)).len(), 1);
}

#[test]
fn interfaces_are_held_to_their_limit() {
    let file = |count: usize| {
        [
            section(Order::Little),
            interface(Order::Little, 1, 0, &[]).repeat(count),
        ]
        .concat()
    };
    assert!(read_whole(&file(INTERFACES_MAX)).is_empty());
    let error = error_of(&file(INTERFACES_MAX + 1));
    assert!(
        matches!(
            error,
            CaptureError::TooManyInterfaces {
                limit: INTERFACES_MAX,
                ..
            }
        ),
        "{error}"
    );
}

proptest! {
    #[test]
    fn random_bytes_never_panic(front in 0..9_usize, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let fronts = [
            Vec::new(),
            pcap_header(Order::Little, 0xa1b2_c3d4, 1),
            pcap_header(Order::Big, 0xa1b2_3c4d, 1),
            section(Order::Little),
            section(Order::Big),
            [section(Order::Little), interface(Order::Little, 1, 0, &[])].concat(),
            [section(Order::Big), interface(Order::Big, 1, 0, &[])].concat(),
            vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
            vec![0x0a, 0x0d, 0x0d, 0x0a],
        ];
        let file = [&fronts[front][..], &bytes].concat();
        let (seen, _) = read(&file[..]);
        prop_assert!(seen.iter().all(|packet| packet.wire_bytes as usize >= packet.bytes.len()));
    }

    #[test]
    fn a_changed_byte_never_panics(ng: bool, place: prop::sample::Index, value: u8) {
        let mut file = if ng { good_pcapng() } else { good_pcap() };
        let place = place.index(file.len());
        file[place] = value;
        let _ = read(&file[..]);
    }
}
