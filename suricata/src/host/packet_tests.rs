//! Packets as Suricata lays them out, read back.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

/// A packet of Suricata's in memory, with its IP datagram beside it.
struct Fake {
    bytes: Vec<u8>,
    datagram: Vec<u8>,
}

const FLOW: usize = 0x1234_5678;

impl Fake {
    fn new(
        ip_type: u32,
        protocol: u8,
        datagram: Vec<u8>,
        transport: Option<usize>,
        payload: Option<usize>,
    ) -> Self {
        let mut fake = Self {
            bytes: vec![0; 512],
            datagram,
        };
        fake.put(layout::FLOW, &FLOW.to_ne_bytes());
        fake.put(layout::FLOW_HASH, &0xdead_beef_u32.to_ne_bytes());
        fake.put(layout::PROTOCOL, &[protocol]);
        let time = Time {
            seconds: 1_700_000_000,
            microseconds: 123_456,
        };
        fake.put(layout::TIME, &time.packed().to_ne_bytes());
        fake.put(layout::IP_TYPE, &ip_type.to_ne_bytes());
        fake.point(layout::IP_HEADER, Some(0));
        fake.point(layout::TRANSPORT_HEADER, transport);
        fake.point(layout::PAYLOAD, payload);
        fake
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn point(&mut self, offset: usize, place: Option<usize>) {
        let address = place.map_or(0, |place| self.datagram.as_ptr().addr() + place);
        // Exposed, as the pointers of a C program are.
        let _ = self.datagram.as_ptr().expose_provenance();
        self.put(offset, &address.to_ne_bytes());
    }

    fn view(&self) -> Result<View<'_>, Unreadable> {
        // SAFETY: the bytes are laid out as a packet's, and its pointers are NULL or into the datagram, which lives as long.
        unsafe {
            View::of(
                self.bytes.as_ptr().cast(),
                std::ptr::without_provenance(FLOW),
            )
        }
    }
}

fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend(((20 + rest.len()) as u16).to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    bytes.extend(rest);
    bytes
}

fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, flags];
    bytes.extend([0; 10]);
    bytes.extend(payload);
    bytes
}

#[test]
fn a_tcp_packet_is_read() {
    let fake = Fake::new(1, TCP, ipv4(TCP, &tcp(0x18, b"hello")), Some(20), Some(44));
    let view = fake.view().unwrap();
    assert_eq!(
        (view.ip_version, view.protocol, view.tcp_flags),
        (4, TCP, 0x18)
    );
    assert_eq!((view.source.port, view.destination.port), (40_000, 443));
    assert_eq!(view.source.address[..5], [192, 0, 2, 1, 0]);
    assert_eq!(
        (view.ip_bytes, view.payload_bytes, view.payload),
        (49, 5, &b"hello"[..])
    );
    assert_eq!(view.time.nanoseconds(), 1_700_000_000_123_456_000);
    assert_eq!(view.flow_hash, 0xdead_beef);
}

#[test]
fn link_layer_padding_is_no_payload() {
    let mut datagram = ipv4(TCP, &tcp(0x10, b""));
    datagram.extend([0; 6]);
    let fake = Fake::new(1, TCP, datagram, Some(20), Some(44));
    let view = fake.view().unwrap();
    assert_eq!((view.ip_bytes, view.payload_bytes), (44, 0));
}

#[test]
fn a_udp_length_counts_if_it_can_be() {
    let udp = |length: u16| {
        let mut bytes = vec![0, 53, 0x30, 0x39];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 1, 2, 3, 4]);
        ipv4(UDP, &bytes)
    };
    for (length, payload) in [(10, 2), (12, 4), (0, 4), (13, 4), (8, 0)] {
        let fake = Fake::new(1, UDP, udp(length), Some(20), Some(28));
        let view = fake.view().unwrap();
        assert_eq!(view.payload_bytes, payload, "length {length}");
        assert_eq!(view.payload.len(), payload as usize);
        assert_eq!((view.source.port, view.destination.port), (53, 12_345));
    }
}

#[test]
fn icmp_has_eight_bytes_of_header_and_no_ports() {
    for (rest, payload) in [(vec![8, 0, 1, 2, 0, 1, 0, 1, 7, 7], 2), (vec![8, 0, 1], 0)] {
        let fake = Fake::new(1, ICMP, ipv4(ICMP, &rest), Some(20), None);
        let view = fake.view().unwrap();
        assert_eq!((view.payload_bytes, view.source.port), (payload, 0));
    }
}

#[test]
fn ipv6_extension_headers_are_passed_over() {
    let mut datagram = vec![0x60, 0, 0, 0, 0, 16, 0, 64];
    datagram.extend([1; 16]);
    datagram.extend([2; 16]);
    datagram.extend([UDP, 0, 0, 0, 0, 0, 0, 0, 0, 53, 0, 54, 0, 8, 0, 0]);
    let fake = Fake::new(2, UDP, datagram, Some(48), Some(56));
    let view = fake.view().unwrap();
    assert_eq!(
        (view.ip_version, view.ip_bytes, view.payload_bytes),
        (6, 56, 0)
    );
    assert_eq!(
        (view.source.address, view.destination.address),
        ([1; 16], [2; 16])
    );
    assert_eq!((view.source.port, view.destination.port), (53, 54));
}

#[test]
fn other_protocols_are_all_payload() {
    let fake = Fake::new(1, 50, ipv4(50, &[9; 12]), Some(20), Some(28));
    assert_eq!(fake.view().unwrap().payload, [9; 12]);
    let fake = Fake::new(1, 2, ipv4(2, &[9; 8]), None, None);
    assert_eq!(fake.view().unwrap().payload, [9; 8]);
}

#[test]
fn pointers_that_do_not_fit_are_not_followed() {
    let fake = || Fake::new(1, TCP, ipv4(TCP, &tcp(0, b"")), Some(20), Some(44));
    let changed = |offset: usize, bytes: &[u8]| {
        let mut fake = fake();
        fake.put(offset, bytes);
        fake.view().map(|_| ())
    };
    assert_eq!(changed(layout::IP_TYPE, &1_u32.to_ne_bytes()), Ok(()));
    for (offset, value) in [
        (layout::FLOW, 1_usize),
        (layout::IP_HEADER, 0),
        (layout::IP_HEADER, 0x10),
        (layout::IP_HEADER, usize::MAX),
        (layout::TRANSPORT_HEADER, 0x10),
        (layout::PAYLOAD, 0x10),
        (layout::PAYLOAD, usize::MAX),
    ] {
        let found = changed(offset, &value.to_ne_bytes());
        assert_eq!(found, Err(Unreadable::Layout), "{offset} {value:x}");
    }
    assert_eq!(
        changed(layout::IP_TYPE, &3_u32.to_ne_bytes()),
        Err(Unreadable::Headers)
    );
    assert_eq!(
        changed(layout::IP_TYPE, &2_u32.to_ne_bytes()),
        Err(Unreadable::Layout)
    );
}

#[test]
fn headers_that_cannot_be_are_told() {
    let short = Fake::new(1, TCP, ipv4(TCP, &[0; 10]), Some(20), None);
    assert_eq!(short.view().map(|_| ()), Err(Unreadable::Headers));
    let mut wrong = tcp(0, b"");
    wrong[12] = 0xf0;
    let wrong = Fake::new(1, TCP, ipv4(TCP, &wrong), Some(20), None);
    assert_eq!(wrong.view().map(|_| ()), Err(Unreadable::Headers));
    let mut lying = ipv4(TCP, &tcp(0, b""));
    lying[2..4].copy_from_slice(&5_u16.to_be_bytes());
    let lying = Fake::new(1, TCP, lying, Some(20), None);
    assert_eq!(lying.view().map(|_| ()), Err(Unreadable::Headers));
}
