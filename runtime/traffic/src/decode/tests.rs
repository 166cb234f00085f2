use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const LINK_TYPES: [LinkType; 13] = [
    LinkType::NULL,
    LinkType::ETHERNET,
    LinkType::PPP,
    LinkType::RAW_BSD,
    LinkType::RAW_OPENBSD,
    LinkType::PPP_HDLC,
    LinkType::PPP_ETHER,
    LinkType::RAW,
    LinkType::LOOP,
    LinkType::LINUX_SLL,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::LINUX_SLL2,
];

fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
    let length = (20 + rest.len() as u16).to_be_bytes();
    let mut bytes = vec![
        0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    bytes.extend_from_slice(rest);
    bytes
}

fn ipv6(next_header: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    bytes.extend_from_slice(rest);
    bytes
}

fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![
        0x9c, 0x41, 0x01, 0xbb, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0,
    ];
    bytes.extend_from_slice(payload);
    bytes
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let mut bytes = vec![0x30, 0x39, 0, 53, length[0], length[1], 0, 0];
    bytes.extend_from_slice(payload);
    bytes
}

fn ethernet(ether_type: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend_from_slice(rest);
    bytes
}

fn with_front(front: &[u8], rest: &[u8]) -> Vec<u8> {
    [front, rest].concat()
}

/// The same TCP packet behind every link layer that is read.
fn framed() -> Vec<(&'static str, LinkType, Vec<u8>)> {
    let four = ipv4(6, &tcp(0x18, b"hello"));
    let six = ipv6(6, &tcp(0x18, b"hello"));
    let pppoe = with_front(&[0x11, 0, 0, 1, 0, 47, 0x00, 0x21], &four);
    let cooked = |ether_type: [u8; 2]| {
        let front = [
            0,
            0,
            0,
            1,
            0,
            6,
            2,
            0,
            0,
            0,
            0,
            1,
            0,
            0,
            ether_type[0],
            ether_type[1],
        ];
        front.to_vec()
    };
    let cooked2 = |ether_type: [u8; 2]| {
        let mut front = vec![ether_type[0], ether_type[1]];
        front.extend([0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
        front
    };
    vec![
        ("ethernet", LinkType::ETHERNET, ethernet(0x0800, &four)),
        ("ethernet, IPv6", LinkType::ETHERNET, ethernet(0x86dd, &six)),
        (
            "VLAN",
            LinkType::ETHERNET,
            ethernet(0x8100, &with_front(&[0, 5, 8, 0], &four)),
        ),
        (
            "QinQ",
            LinkType::ETHERNET,
            ethernet(
                0x88a8,
                &with_front(&[0, 5, 0x81, 0, 0, 6, 0x86, 0xdd], &six),
            ),
        ),
        (
            "PPPoE in Ethernet",
            LinkType::ETHERNET,
            ethernet(0x8864, &pppoe),
        ),
        (
            "PPPoE in VLAN",
            LinkType::ETHERNET,
            ethernet(0x8100, &with_front(&[0, 5, 0x88, 0x64], &pppoe)),
        ),
        ("PPPoE", LinkType::PPP_ETHER, pppoe.clone()),
        (
            "PPPoE, IPv6",
            LinkType::PPP_ETHER,
            with_front(&[0x11, 0, 0, 1, 0, 47, 0x00, 0x57], &six),
        ),
        ("PPP", LinkType::PPP, with_front(&[0x00, 0x21], &four)),
        (
            "PPP framed",
            LinkType::PPP_HDLC,
            with_front(&[0xff, 0x03, 0x00, 0x57], &six),
        ),
        (
            "PPP, short protocol",
            LinkType::PPP,
            with_front(&[0x21], &four),
        ),
        ("raw", LinkType::RAW, four.clone()),
        ("raw, IPv6", LinkType::RAW, six.clone()),
        ("raw 12", LinkType::RAW_BSD, four.clone()),
        ("raw 14", LinkType::RAW_OPENBSD, six.clone()),
        ("IPv4", LinkType::IPV4, four.clone()),
        ("IPv6", LinkType::IPV6, six.clone()),
        (
            "null, little-endian",
            LinkType::NULL,
            with_front(&[2, 0, 0, 0], &four),
        ),
        (
            "null, big-endian",
            LinkType::NULL,
            with_front(&[0, 0, 0, 2], &four),
        ),
        (
            "null, IPv6 of macOS",
            LinkType::NULL,
            with_front(&[30, 0, 0, 0], &six),
        ),
        (
            "null, IPv6 of FreeBSD",
            LinkType::NULL,
            with_front(&[0, 0, 0, 28], &six),
        ),
        ("loop", LinkType::LOOP, with_front(&[0, 0, 0, 2], &four)),
        (
            "loop, IPv6 of OpenBSD",
            LinkType::LOOP,
            with_front(&[0, 0, 0, 24], &six),
        ),
        (
            "SLL",
            LinkType::LINUX_SLL,
            with_front(&cooked([8, 0]), &four),
        ),
        (
            "SLL, IPv6",
            LinkType::LINUX_SLL,
            with_front(&cooked([0x86, 0xdd]), &six),
        ),
        (
            "SLL, VLAN",
            LinkType::LINUX_SLL,
            with_front(&cooked([0x81, 0]), &with_front(&[0, 5, 8, 0], &four)),
        ),
        (
            "SLL2",
            LinkType::LINUX_SLL2,
            with_front(&cooked2([8, 0]), &four),
        ),
        (
            "SLL2, IPv6",
            LinkType::LINUX_SLL2,
            with_front(&cooked2([0x86, 0xdd]), &six),
        ),
    ]
}

fn whole(link_type: LinkType, bytes: &[u8]) -> Result<Packet<'_>, Skip> {
    decode(link_type, bytes, bytes.len() as u32, 7)
}

#[test]
fn every_link_layer_leads_to_the_same_packet() {
    for (name, link_type, bytes) in framed() {
        let packet = whole(link_type, &bytes).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        let six = packet.source.is_ipv6();
        let (source, destination): (IpAddr, IpAddr) = if six {
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        } else {
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
        };
        assert_eq!(
            (packet.source, packet.destination),
            (source, destination),
            "{name}"
        );
        assert_eq!(
            (packet.source_port, packet.destination_port, packet.protocol),
            (40_001, 443, 6),
            "{name}"
        );
        assert_eq!(
            (packet.payload, packet.payload_bytes),
            (&b"hello"[..], 5),
            "{name}"
        );
        assert_eq!(packet.ip_bytes, if six { 65 } else { 45 }, "{name}");
        assert_eq!(
            (packet.tcp_flags, packet.tcp_sequence),
            (TcpFlags(0x18), 0x0102_0304),
            "{name}"
        );
        assert_eq!((packet.timestamp_ns, packet.fragment), (7, false), "{name}");
    }
}

#[test]
fn every_cut_is_a_header_cut_or_a_shorter_payload() {
    for (name, link_type, bytes) in framed() {
        let headers = bytes.len() - 5;
        for length in 0..bytes.len() {
            match decode(link_type, &bytes[..length], bytes.len() as u32, 0) {
                Ok(packet) => {
                    assert!(length >= headers, "{name} decoded from {length} bytes");
                    assert_eq!(packet.payload, &b"hello"[..length - headers], "{name}");
                    assert_eq!(packet.payload_bytes, 5, "{name}");
                }
                Err(reason) => {
                    assert!(length < headers, "{name} skipped at {length} bytes");
                    assert_eq!(reason, Skip::HeaderCut, "{name} at {length} bytes");
                }
            }
        }
    }
}

#[test]
fn options_cut_by_the_snapshot_length_do_not_hide_the_packet() {
    let mut segment = tcp(0x02, &[1; 12]);
    segment[12] = 0x80;
    let bytes = ipv4(6, &segment);
    let packet = decode(LinkType::RAW, &bytes[..44], bytes.len() as u32, 0).unwrap();
    assert_eq!(
        (
            packet.source_port,
            packet.payload_bytes,
            packet.payload.len()
        ),
        (40_001, 0, 0)
    );
}

#[test]
fn link_layer_padding_is_no_payload() {
    let mut bytes = ethernet(0x0800, &ipv4(6, &tcp(0x10, b"")));
    bytes.resize(60, 0xee);
    let packet = whole(LinkType::ETHERNET, &bytes).unwrap();
    assert_eq!((packet.payload_bytes, packet.payload.len()), (0, 0));
}

#[test]
fn a_zero_length_is_that_of_the_wire() {
    let mut four = ipv4(6, &tcp(0x18, b"hello"));
    four[2..4].fill(0);
    let packet = decode(LinkType::ETHERNET, &ethernet(0x0800, &four), 14 + 3_040, 0)
        .map(|packet| packet.payload_bytes);
    assert_eq!(packet, Ok(3_000));
    let mut six = ipv6(6, &tcp(0x18, b"hello"));
    six[4..6].fill(0);
    let packet = decode(LinkType::RAW, &six, 70_060, 0)
        .map(|packet| (packet.ip_bytes, packet.payload_bytes));
    assert_eq!(packet, Ok((70_060, 70_000)));
    assert_eq!(
        whole(LinkType::RAW, &ipv6(59, b"")).map(|packet| (packet.protocol, packet.payload_bytes)),
        Ok((59, 0))
    );
}

#[test]
fn udp_lengths_give_way_to_ip_where_they_cannot_be() {
    let decoded = |datagram: &[u8]| {
        whole(LinkType::RAW, &ipv4(17, datagram)).map(|packet| packet.payload_bytes)
    };
    let mut datagram = udp(b"0123456789");
    assert_eq!(decoded(&datagram), Ok(10));
    datagram[5] = 12;
    assert_eq!(decoded(&datagram), Ok(4));
    for impossible in [0, 7, 19, 255] {
        datagram[5] = impossible;
        assert_eq!(decoded(&datagram), Ok(10), "UDP length {impossible}");
    }
    assert_eq!(decoded(&datagram[..7]), Err(Skip::BadHeaderLength));
}

#[test]
fn icmp_and_other_protocols_have_no_ports() {
    let echo = [8, 0, 0x12, 0x34, 0, 1, 0, 2, b'a', b'b'];
    let bytes = ipv4(1, &echo);
    let packet = whole(LinkType::RAW, &bytes).unwrap();
    assert_eq!(
        (packet.protocol, packet.source_port, packet.destination_port),
        (1, 0, 0)
    );
    assert_eq!((packet.payload, packet.payload_bytes), (&b"ab"[..], 2));
    let short = ipv4(1, &echo[..3]);
    assert_eq!(
        whole(LinkType::RAW, &short).map(|packet| packet.payload_bytes),
        Ok(0)
    );
    let bytes = ipv6(58, &echo);
    assert_eq!(
        whole(LinkType::RAW, &bytes).map(|packet| (packet.protocol, packet.payload_bytes)),
        Ok((58, 2))
    );
    let bytes = ipv4(47, &echo);
    assert_eq!(
        whole(LinkType::RAW, &bytes).map(|packet| (packet.protocol, packet.payload_bytes)),
        Ok((47, 10))
    );
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let inner = udp(b"query");
    let hop = with_front(
        &[60, 0, 0, 0, 0, 0, 0, 0],
        &with_front(&[51, 0, 0, 0, 0, 0, 0, 0], &[]),
    );
    let authentication = [
        17, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
    ];
    let bytes = ipv6(0, &[&hop[..], &authentication, &inner].concat());
    let packet = whole(LinkType::RAW, &bytes).unwrap();
    assert_eq!(
        (packet.protocol, packet.source_port, packet.payload),
        (17, 12_345, &b"query"[..])
    );
    for length in 0..bytes.len() - 5 {
        assert_eq!(
            decode(LinkType::RAW, &bytes[..length], bytes.len() as u32, 0),
            Err(Skip::HeaderCut)
        );
    }
    let long = ipv6(0, &[17, 9, 0, 0, 0, 0, 0, 0]);
    assert_eq!(whole(LinkType::RAW, &long), Err(Skip::BadHeaderLength));
}

#[test]
fn the_first_fragment_is_used_and_later_ones_are_not() {
    let mut first = ipv4(17, &udp(&[7; 16]));
    first[6] = 0x20;
    first[25] = 200;
    let packet = whole(LinkType::RAW, &first).unwrap();
    assert_eq!((packet.fragment, packet.payload_bytes), (true, 16));
    let mut later = first.clone();
    later[7] = 3;
    assert_eq!(whole(LinkType::RAW, &later), Err(Skip::LaterFragment));

    let fragment = |offset: [u8; 2]| {
        [
            &[17, 0, offset[0], offset[1], 0, 0, 0, 9][..],
            &udp(&[7; 16]),
        ]
        .concat()
    };
    let first = ipv6(44, &fragment([0, 1]));
    assert_eq!(
        whole(LinkType::RAW, &first).map(|packet| (packet.fragment, packet.payload_bytes)),
        Ok((true, 16))
    );
    let later = ipv6(44, &fragment([0, 8]));
    assert_eq!(whole(LinkType::RAW, &later), Err(Skip::LaterFragment));
}

#[test]
fn lying_headers_have_their_reasons() {
    let good = ipv4(6, &tcp(0x10, b"x"));
    let with = |place: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[place] = value;
        bytes
    };
    let reason = |bytes: &[u8]| whole(LinkType::RAW, bytes).unwrap_err();
    assert_eq!(reason(&with(0, 0x44)), Skip::BadHeaderLength);
    assert_eq!(reason(&with(3, 19)), Skip::BadHeaderLength);
    assert_eq!(reason(&with(3, 39)), Skip::BadHeaderLength);
    assert_eq!(reason(&with(32, 0x40)), Skip::BadHeaderLength);
    assert_eq!(reason(&with(32, 0xf0)), Skip::BadHeaderLength);
    assert_eq!(reason(&with(0, 0x75)), Skip::NotIp);
    assert_eq!(
        whole(LinkType::IPV4, &with(0, 0x65)).unwrap_err(),
        Skip::BadVersion
    );
    assert_eq!(whole(LinkType::IPV6, &good).unwrap_err(), Skip::BadVersion);
    assert_eq!(
        whole(LinkType(9999), &good).unwrap_err(),
        Skip::UnsupportedLinkType
    );
    assert_eq!(
        whole(LinkType::ETHERNET, &ethernet(0x0806, &[0; 28])).unwrap_err(),
        Skip::Arp
    );
    assert_eq!(
        whole(LinkType::ETHERNET, &ethernet(0x88cc, &[0; 28])).unwrap_err(),
        Skip::NotIp
    );
    assert_eq!(
        whole(LinkType::NULL, &with_front(&[9, 9, 9, 9], &good)).unwrap_err(),
        Skip::NotIp
    );
}

#[test]
fn headers_are_limited_in_number() {
    use crate::limits::{EXTENSION_HEADERS_MAX, VLAN_TAGS_MAX};
    let tagged = |tags: usize| {
        let mut rest = [0, 1, 0x81, 0].repeat(tags - 1);
        rest.extend([0, 1, 8, 0]);
        rest.extend(ipv4(17, &udp(b"q")));
        ethernet(0x8100, &rest)
    };
    assert!(whole(LinkType::ETHERNET, &tagged(VLAN_TAGS_MAX)).is_ok());
    assert_eq!(
        whole(LinkType::ETHERNET, &tagged(VLAN_TAGS_MAX + 1)),
        Err(Skip::TooManyHeaders)
    );

    let extended = |headers: usize| {
        let mut rest = [60, 0, 0, 0, 0, 0, 0, 0].repeat(headers - 1);
        rest.extend([17, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend(udp(b"q"));
        ipv6(60, &rest)
    };
    assert!(whole(LinkType::RAW, &extended(EXTENSION_HEADERS_MAX)).is_ok());
    assert_eq!(
        whole(LinkType::RAW, &extended(EXTENSION_HEADERS_MAX + 1)),
        Err(Skip::TooManyHeaders)
    );
}

#[test]
fn counters_keep_reasons_apart() {
    let mut counters = SkipCounters::default();
    for reason in Skip::ALL {
        counters.count(reason);
    }
    counters.count(Skip::Arp);
    assert_eq!(
        (
            counters.get(Skip::Arp),
            counters.get(Skip::NotIp),
            counters.total()
        ),
        (2, 1, 9)
    );
    let mut sum = counters;
    sum.add(&counters);
    assert_eq!(sum.total(), 18);
    assert_eq!(sum.iter().map(|(_, count)| count).sum::<u64>(), 18);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        link in 0..LINK_TYPES.len(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        wire_bytes: u32,
        timestamp_ns: u64,
    ) {
        if let Ok(packet) = decode(LINK_TYPES[link], &bytes, wire_bytes, timestamp_ns) {
            prop_assert!(packet.payload.len() as u64 <= u64::from(packet.payload_bytes));
        }
    }

    #[test]
    fn a_changed_byte_never_panics(which in 0_usize..28, place: prop::sample::Index, value: u8, cut: prop::sample::Index) {
        let (_, link_type, mut bytes) = framed().swap_remove(which);
        let place = place.index(bytes.len());
        bytes[place] = value;
        let length = cut.index(bytes.len() + 1);
        if let Ok(packet) = decode(link_type, &bytes[..length], bytes.len() as u32, 0) {
            prop_assert!(packet.payload.len() as u64 <= u64::from(packet.payload_bytes));
            prop_assert!(packet.payload_bytes <= packet.ip_bytes);
        }
    }
}
