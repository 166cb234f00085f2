//! Other addresses and ports in captured packets.
//!
//! Checksums are corrected by the difference (RFC 1624, equation 3): what was right stays right, also where the payload was cut away
//! and could not be summed again; what was wrong stays wrong.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::random::Random;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
const AUTHENTICATION: u8 = 51;
const FRAGMENT: u8 = 44;
/// Hop-by-hop, routing, destination options, mobility, host identity and shim6.
const GENERIC_EXTENSIONS: [u8; 6] = [0, 43, 60, 135, 139, 140];

/// Ports that systems give to clients (RFC 6335).
const FIRST_CLIENT_PORT: u16 = 49_152;
const CLIENT_PORTS: usize = 16_384;

/// Both ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Addresses {
    pub(super) protocol: u8,
    pub(super) initiator: (IpAddr, u16),
    pub(super) responder: (IpAddr, u16),
}

/// Draws for one flow before it keeps what it has. Only between two addresses that never change can so many fail: then all but about
/// one in fifty of the client ports are given out.
const TRIES_MAX: usize = 256;

/// Addresses given out in one file: no two flows get the same.
#[derive(Debug, Default)]
pub(super) struct Readdressed {
    given: HashSet<Addresses>,
    kept: u64,
}

impl Readdressed {
    /// New addresses of the same kind (private for private, global for global), and a new port for the client, which is the side with
    /// the higher one. The server's port stays: it tells what is spoken. Group addresses stay too.
    ///
    /// Nothing where no others are free, or where there is nothing to choose, as between two group addresses of a portless protocol:
    /// the flow then keeps what it has.
    pub(super) fn draw(&mut self, old: &Addresses, random: &mut Random) -> Option<Addresses> {
        for _ in 0..TRIES_MAX {
            let new = new_addresses(old, random);
            if new != *old && self.take(new) {
                return Some(new);
            }
        }
        self.take(*old);
        self.kept += 1;
        None
    }

    /// How many flows kept what they had.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// Whether nobody has had these yet, from either side.
    fn take(&mut self, new: Addresses) -> bool {
        let turned = Addresses {
            initiator: new.responder,
            responder: new.initiator,
            ..new
        };
        !self.given.contains(&turned) && self.given.insert(new)
    }
}

fn new_addresses(old: &Addresses, random: &mut Random) -> Addresses {
    let mut new = *old;
    new.initiator.0 = new_address(old.initiator.0, random);
    new.responder.0 = if old.responder.0 == old.initiator.0 {
        new.initiator.0
    } else {
        new_address(old.responder.0, random)
    };
    if matches!(old.protocol, TCP | UDP) {
        let port = FIRST_CLIENT_PORT + random.below(CLIENT_PORTS) as u16;
        if old.initiator.1 >= old.responder.1 {
            new.initiator.1 = port;
        } else {
            new.responder.1 = port;
        }
    }
    new
}

fn new_address(old: IpAddr, random: &mut Random) -> IpAddr {
    match old {
        IpAddr::V4(four) => IpAddr::V4(new_four(four, random)),
        IpAddr::V6(six) => IpAddr::V6(new_six(six, random)),
    }
}

fn new_four(old: Ipv4Addr, random: &mut Random) -> Ipv4Addr {
    if old.is_multicast() || old.is_broadcast() || old.is_unspecified() || old.octets()[3] == 255 {
        return old;
    }
    let drawn = random.next_u64().to_be_bytes();
    let [a, b, c, _, _, _, _, d] = drawn;
    let host = 1 + d % 254;
    if old.is_private() {
        return Ipv4Addr::new(10, b, c, host);
    }
    if old.is_loopback() || old.is_link_local() {
        let [first, second, ..] = old.octets();
        return Ipv4Addr::new(first, second, c, host);
    }
    // 11 to 99: none of it is private, shared, loopback or link-local.
    Ipv4Addr::new(11 + a % 89, b, c, host)
}

fn new_six(old: Ipv6Addr, random: &mut Random) -> Ipv6Addr {
    if old.is_multicast() || old.is_unspecified() || old.is_loopback() {
        return old;
    }
    let drawn = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
    let bits = if old.is_unicast_link_local() {
        // The interface half only.
        old.to_bits() >> 64 << 64 | drawn & u128::from(u64::MAX)
    } else if old.is_unique_local() {
        0xFD << 120 | drawn >> 8
    } else {
        // 2000::/3 is what is given out.
        0b001 << 125 | drawn >> 3
    };
    Ipv6Addr::from_bits(bits)
}

/// Writes the new ends into a packet that starts with its IP header; what was not captured stays so.
pub(super) fn rewrite(ip: &mut [u8], old: &Addresses, new: &Addresses, from_initiator: bool) {
    let turn = |ends: &Addresses| {
        if from_initiator {
            (ends.initiator, ends.responder)
        } else {
            (ends.responder, ends.initiator)
        }
    };
    let ((old_source, old_target), (new_source, new_target)) = (turn(old), turn(new));
    let transport = transport_offset(ip, old.protocol);
    let check = transport.and_then(|offset| match old.protocol {
        TCP => Some(offset + 16),
        UDP => Some(offset + 6),
        ICMP_V6 => Some(offset + 2),
        _ => None,
    });
    let is_udp = old.protocol == UDP;
    let is_four = ip.first().is_some_and(|first| first >> 4 == 4);
    let (source_at, target_at) = if is_four { (12, 16) } else { (8, 24) };
    for (at, old, new) in [
        (source_at, old_source.0, new_source.0),
        (target_at, old_target.0, new_target.0),
    ] {
        let (old, new) = (octets(old), octets(new));
        put(ip, at, &new);
        if is_four {
            correct(ip, 10, &old, &new, false);
        }
        if let Some(check) = check {
            correct(ip, check, &old, &new, is_udp);
        }
    }
    let Some(offset) = transport.filter(|_| matches!(old.protocol, TCP | UDP)) else {
        return;
    };
    for (at, old, new) in [
        (offset, old_source.1, new_source.1),
        (offset + 2, old_target.1, new_target.1),
    ] {
        let (old, new) = (old.to_be_bytes(), new.to_be_bytes());
        put(ip, at, &new);
        if let Some(check) = check {
            correct(ip, check, &old, &new, is_udp);
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn put(ip: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = ip.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Corrects the checksum at `at` for bytes that have changed at an even place of what it sums.
fn correct(ip: &mut [u8], at: usize, old: &[u8], new: &[u8], is_udp: bool) {
    let Some(place) = ip.get_mut(at..at + 2) else {
        return;
    };
    let before = u16::from_be_bytes([place[0], place[1]]);
    // Zero in UDP says that there is none (RFC 768).
    if is_udp && before == 0 {
        return;
    }
    let words = |bytes: &[u8]| -> Vec<u16> {
        let pairs = bytes.chunks_exact(2);
        pairs
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect()
    };
    let mut sum = u32::from(!before);
    for (old, new) in words(old).into_iter().zip(words(new)) {
        sum += u32::from(!old) + u32::from(new);
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    let mut after = !(sum as u16);
    if is_udp && after == 0 {
        after = 0xFFFF;
    }
    place.copy_from_slice(&after.to_be_bytes());
}

/// Where the transport header begins, behind extension headers. The packet was decoded, so they are there.
fn transport_offset(ip: &[u8], protocol: u8) -> Option<usize> {
    let is_four = ip.first()? >> 4 == 4;
    let (mut next, mut offset) = if is_four {
        (*ip.get(9)?, usize::from(ip.first()? & 15) * 4)
    } else {
        (*ip.get(6)?, 40)
    };
    while next != protocol {
        let (following, length) = (*ip.get(offset)?, usize::from(*ip.get(offset + 1)?));
        offset += match next {
            AUTHENTICATION => (length + 2) * 4,
            FRAGMENT => 8,
            generic if GENERIC_EXTENSIONS.contains(&generic) => (length + 1) * 8,
            _ => return None,
        };
        next = following;
    }
    Some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of RFC 1071 over whole words.
    fn sum(parts: &[&[u8]]) -> u16 {
        let bytes: Vec<u8> = parts.concat();
        let mut sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn transport_sum(
        ip: &[u8],
        protocol: u8,
        offset: usize,
        addresses: std::ops::Range<usize>,
    ) -> u16 {
        let length = (ip.len() - offset) as u16;
        sum(&[
            &ip[addresses],
            &[0, protocol],
            &length.to_be_bytes(),
            &ip[offset..],
        ])
    }

    fn four(protocol: u8, transport: &[u8], check_at: usize) -> Vec<u8> {
        let total = (24 + transport.len()) as u16;
        // One word of options, so that the header's length has to be read.
        let mut ip = vec![0x46, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
        ip.extend([192, 168, 1, 7, 93, 184, 216, 34, 1, 1, 1, 0]);
        ip.extend(transport);
        let header = sum(&[&ip[..24]]);
        ip[10..12].copy_from_slice(&header.to_be_bytes());
        let check = transport_sum(&ip, protocol, 24, 12..20);
        ip[24 + check_at..26 + check_at].copy_from_slice(&check.to_be_bytes());
        ip
    }

    fn tcp() -> Vec<u8> {
        let mut segment = vec![0xC3, 0x50, 1, 0xBB];
        segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        segment.extend(b"odd payload");
        segment
    }

    fn ends(protocol: u8) -> Addresses {
        Addresses {
            protocol,
            initiator: ("192.168.1.7".parse().expect("address"), 50_000),
            responder: ("93.184.216.34".parse().expect("address"), 443),
        }
    }

    #[test]
    fn right_checksums_stay_right_and_wrong_ones_wrong() {
        let mut random = Random::new(1);
        let mut all = Readdressed::default();
        for _ in 0..500 {
            let old = ends(TCP);
            let new = all.draw(&old, &mut random).expect("free");
            let right = four(TCP, &tcp(), 16);
            let mut changed = right.clone();
            rewrite(&mut changed, &old, &new, true);
            assert_eq!(sum(&[&changed[..24]]), 0, "IP header");
            assert_eq!(transport_sum(&changed, TCP, 24, 12..20), 0, "TCP");
            assert_eq!(changed[24..26], new.initiator.1.to_be_bytes());
            assert_eq!(changed[26..28], 443_u16.to_be_bytes());
            assert_eq!(changed[28..40], right[28..40]);
            assert_eq!(changed[44..], right[44..]);
            let mut wrong = right.clone();
            wrong[41] ^= 0x10;
            rewrite(&mut wrong, &old, &new, true);
            assert_ne!(transport_sum(&wrong, TCP, 24, 12..20), 0);
        }
    }

    #[test]
    fn a_cut_packet_carries_the_checksum_of_the_whole_one() {
        let old = ends(TCP);
        let new = Readdressed::default()
            .draw(&old, &mut Random::new(3))
            .expect("free");
        let mut whole = four(TCP, &tcp(), 16);
        let mut cut = whole[..44].to_vec();
        rewrite(&mut whole, &old, &new, true);
        rewrite(&mut cut, &old, &new, true);
        assert_eq!(cut, whole[..44]);
        // Cut inside the transport header: what is there is changed.
        let mut short = four(TCP, &tcp(), 16)[..30].to_vec();
        rewrite(&mut short, &old, &new, true);
        assert_eq!(short, whole[..30]);
    }

    #[test]
    fn no_udp_checksum_stays_none() {
        let mut datagram = vec![0xC3, 0x50, 1, 0xBB, 0, 12, 0, 0];
        datagram.extend(b"data");
        let mut random = Random::new(4);
        let mut all = Readdressed::default();
        for _ in 0..500 {
            let old = ends(UDP);
            let new = all.draw(&old, &mut random).expect("free");
            let mut summed = four(UDP, &datagram, 6);
            rewrite(&mut summed, &old, &new, true);
            assert_eq!(transport_sum(&summed, UDP, 24, 12..20), 0);
            let mut plain = four(UDP, &datagram, 6);
            plain[30..32].fill(0);
            rewrite(&mut plain, &old, &new, true);
            assert_eq!(plain[30..32], [0, 0]);
            assert_eq!(sum(&[&plain[..24]]), 0);
        }
    }

    #[test]
    fn ipv6_is_changed_behind_its_extension_headers() {
        let old = Addresses {
            protocol: TCP,
            initiator: ("2001:db8::7".parse().expect("address"), 443),
            responder: ("fe80::9".parse().expect("address"), 50_000),
        };
        let mut ip = vec![0x60, 0, 0, 0, 0, (8 + tcp().len()) as u8, 0, 64];
        ip.extend(octets(old.initiator.0));
        ip.extend(octets(old.responder.0));
        // Hop-by-hop options of eight bytes.
        ip.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        let mut segment = tcp();
        segment[..4].copy_from_slice(&[1, 0xBB, 0xC3, 0x50]);
        ip.extend(segment);
        let check = transport_sum(&ip, TCP, 48, 8..40);
        ip[64..66].copy_from_slice(&check.to_be_bytes());
        let new = Readdressed::default()
            .draw(&old, &mut Random::new(9))
            .expect("free");
        rewrite(&mut ip, &old, &new, true);
        assert_eq!(transport_sum(&ip, TCP, 48, 8..40), 0);
        assert_eq!(ip[8..24], octets(new.initiator.0)[..]);
        assert_eq!(ip[48..50], 443_u16.to_be_bytes(), "the server's port stays");
        assert_eq!(ip[50..52], new.responder.1.to_be_bytes());
        assert!(new.responder.0.to_string().starts_with("fe80::"));
    }

    #[test]
    fn both_directions_agree_and_flows_stay_apart() {
        let mut random = Random::new(5);
        let mut all = Readdressed::default();
        let drawn: HashSet<Addresses> = (0..2_000)
            .map(|_| all.draw(&ends(TCP), &mut random).expect("free"))
            .collect();
        assert_eq!(drawn.len(), 2_000);
        let old = ends(TCP);
        let new = all.draw(&old, &mut random).expect("free");
        let mut there = four(TCP, &tcp(), 16);
        let mut back = there.clone();
        back.copy_within(12..16, 40);
        rewrite(&mut there, &old, &new, true);
        assert_eq!(there[12..16], octets(new.initiator.0)[..]);
        rewrite(&mut back, &old, &new, false);
        assert_eq!(back[12..16], octets(new.responder.0)[..]);
        assert_eq!(back[26..28], new.initiator.1.to_be_bytes());
    }

    #[test]
    fn flows_keep_what_they_have_where_nothing_else_is_free() {
        // Neither address of a DHCP request ever changes.
        let old = Addresses {
            protocol: UDP,
            initiator: ("0.0.0.0".parse().expect("address"), 68),
            responder: ("255.255.255.255".parse().expect("address"), 67),
        };
        let mut random = Random::new(7);
        let mut all = Readdressed::default();
        let flows = CLIENT_PORTS + 2_000;
        let drawn: Vec<Option<Addresses>> =
            (0..flows).map(|_| all.draw(&old, &mut random)).collect();
        let given: HashSet<Addresses> = drawn.iter().flatten().copied().collect();
        assert_eq!(given.len(), drawn.iter().flatten().count(), "none twice");
        assert!(
            (CLIENT_PORTS - 1_000..=CLIENT_PORTS).contains(&given.len()),
            "{}",
            given.len()
        );
        assert!(!given.contains(&old));
        assert_eq!(all.kept(), (flows - given.len()) as u64);
        assert_eq!(drawn.last(), Some(&None));
    }

    #[test]
    fn where_there_is_nothing_to_choose_it_is_told() {
        let old = Addresses {
            protocol: 2,
            initiator: ("0.0.0.0".parse().expect("address"), 0),
            responder: ("224.0.0.22".parse().expect("address"), 0),
        };
        let mut all = Readdressed::default();
        assert_eq!(all.draw(&old, &mut Random::new(8)), None);
        assert_eq!(all.kept(), 1);
    }

    #[test]
    fn addresses_keep_their_kind() {
        let mut random = Random::new(6);
        for _ in 0..200 {
            let mut change = |text: &str| new_address(text.parse().expect("address"), &mut random);
            let IpAddr::V4(private) = change("172.16.3.4") else {
                panic!("IPv4")
            };
            assert!(private.is_private());
            let IpAddr::V4(global) = change("8.8.8.8") else {
                panic!("IPv4")
            };
            assert!(!global.is_private() && !global.is_loopback() && !global.is_multicast());
            for kept in [
                "224.0.0.251",
                "255.255.255.255",
                "0.0.0.0",
                "192.168.1.255",
                "ff02::fb",
                "::1",
            ] {
                assert_eq!(change(kept), kept.parse::<IpAddr>().expect("address"));
            }
            let IpAddr::V6(unique) = change("fd00::1") else {
                panic!("IPv6")
            };
            assert!(unique.is_unique_local());
            let IpAddr::V6(global) = change("2a00::1") else {
                panic!("IPv6")
            };
            assert_eq!(global.segments()[0] >> 13, 1);
        }
    }
}
