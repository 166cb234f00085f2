//! From a link-layer header to the IP header behind it.

use etherparse::{Ethernet2HeaderSlice, SingleVlanHeaderSlice};

use super::Skip;
use crate::capture::LinkType;
use crate::limits::VLAN_TAGS_MAX;

/// What the layer below says about the IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Four,
    Six,
    /// Only the IP header itself tells.
    Any,
}

const ETHER_TYPE_IPV4: u16 = 0x0800;
const ETHER_TYPE_ARP: u16 = 0x0806;
const ETHER_TYPE_REVERSE_ARP: u16 = 0x8035;
const ETHER_TYPE_VLAN: u16 = 0x8100;
const ETHER_TYPE_IPV6: u16 = 0x86dd;
const ETHER_TYPE_PPPOE_SESSION: u16 = 0x8864;
const ETHER_TYPE_PROVIDER_BRIDGE: u16 = 0x88a8;
const ETHER_TYPE_VLAN_DOUBLE: [u16; 2] = [0x9100, 0x9200];

const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;
const PPP_ADDRESS_CONTROL: [u8; 2] = [0xff, 0x03];
const PPPOE_HEADER_BYTES: usize = 6;

const FAMILY_IPV4: u32 = 2;
/// `AF_INET6` on Linux, NetBSD/OpenBSD, FreeBSD and macOS.
const FAMILIES_IPV6: [u32; 4] = [10, 24, 28, 30];

const SLL_HEADER_BYTES: usize = 16;
const SLL2_HEADER_BYTES: usize = 20;

/// IP version and place of the IP header.
pub(super) fn find_ip(link_type: LinkType, bytes: &[u8]) -> Result<(Version, usize), Skip> {
    match link_type {
        LinkType::ETHERNET => {
            let header = Ethernet2HeaderSlice::from_slice(bytes).map_err(|_| Skip::HeaderCut)?;
            behind_ether_type(header.ether_type().0, bytes, header.slice().len())
        }
        LinkType::RAW | LinkType::RAW_BSD | LinkType::RAW_OPENBSD => Ok((Version::Any, 0)),
        LinkType::IPV4 => Ok((Version::Four, 0)),
        LinkType::IPV6 => Ok((Version::Six, 0)),
        LinkType::NULL | LinkType::LOOP => loopback(bytes),
        // The library's slice of this header refuses hardware types that it does not know, so the field is read here.
        LinkType::LINUX_SLL => {
            let ether_type = u16_at(bytes, SLL_HEADER_BYTES - 2)?;
            behind_ether_type(ether_type, bytes, SLL_HEADER_BYTES)
        }
        LinkType::LINUX_SLL2 => {
            let header = bytes.get(..SLL2_HEADER_BYTES).ok_or(Skip::HeaderCut)?;
            behind_ether_type(u16_at(header, 0)?, bytes, SLL2_HEADER_BYTES)
        }
        LinkType::PPP_ETHER => pppoe(bytes, 0),
        LinkType::PPP | LinkType::PPP_HDLC => {
            if bytes == &PPP_ADDRESS_CONTROL[..1] {
                return Err(Skip::HeaderCut);
            }
            let framed = bytes.starts_with(&PPP_ADDRESS_CONTROL);
            ppp(bytes, if framed { PPP_ADDRESS_CONTROL.len() } else { 0 })
        }
        _ => Err(Skip::UnsupportedLinkType),
    }
}

fn behind_ether_type(
    ether_type: u16,
    bytes: &[u8],
    place: usize,
) -> Result<(Version, usize), Skip> {
    let (mut ether_type, mut place) = (ether_type, place);
    let mut tags = 0;
    loop {
        match ether_type {
            ETHER_TYPE_IPV4 => return Ok((Version::Four, place)),
            ETHER_TYPE_IPV6 => return Ok((Version::Six, place)),
            ETHER_TYPE_ARP | ETHER_TYPE_REVERSE_ARP => return Err(Skip::Arp),
            ETHER_TYPE_PPPOE_SESSION => return pppoe(bytes, place),
            tag if is_vlan(tag) => {
                tags += 1;
                if tags > VLAN_TAGS_MAX {
                    return Err(Skip::TooManyHeaders);
                }
                let rest = bytes.get(place..).unwrap_or_default();
                let header =
                    SingleVlanHeaderSlice::from_slice(rest).map_err(|_| Skip::HeaderCut)?;
                ether_type = header.ether_type().0;
                place += header.slice().len();
            }
            _ => return Err(Skip::NotIp),
        }
    }
}

fn is_vlan(ether_type: u16) -> bool {
    ether_type == ETHER_TYPE_VLAN
        || ether_type == ETHER_TYPE_PROVIDER_BRIDGE
        || ETHER_TYPE_VLAN_DOUBLE.contains(&ether_type)
}

/// The family stands in the byte order of the host that captured: only one order gives a known family.
fn loopback(bytes: &[u8]) -> Result<(Version, usize), Skip> {
    let field: [u8; 4] = bytes
        .get(..4)
        .and_then(|found| found.try_into().ok())
        .ok_or(Skip::HeaderCut)?;
    let is = |known: &dyn Fn(u32) -> bool| {
        known(u32::from_le_bytes(field)) || known(u32::from_be_bytes(field))
    };
    if is(&|family| family == FAMILY_IPV4) {
        Ok((Version::Four, field.len()))
    } else if is(&|family| FAMILIES_IPV6.contains(&family)) {
        Ok((Version::Six, field.len()))
    } else {
        Err(Skip::NotIp)
    }
}

fn pppoe(bytes: &[u8], place: usize) -> Result<(Version, usize), Skip> {
    let header = bytes
        .get(place..place + PPPOE_HEADER_BYTES)
        .ok_or(Skip::HeaderCut)?;
    match header {
        // Version 1, type 1, code 0: session data.
        [0x11, 0, ..] => ppp(bytes, place + PPPOE_HEADER_BYTES),
        _ => Err(Skip::NotIp),
    }
}

fn ppp(bytes: &[u8], place: usize) -> Result<(Version, usize), Skip> {
    let first = *bytes.get(place).ok_or(Skip::HeaderCut)?;
    // An odd first byte is a protocol number compressed to one byte.
    let (protocol, place) = if first & 1 == 1 {
        (u16::from(first), place + 1)
    } else {
        (u16_at(bytes, place)?, place + 2)
    };
    match protocol {
        PPP_IPV4 => Ok((Version::Four, place)),
        PPP_IPV6 => Ok((Version::Six, place)),
        _ => Err(Skip::NotIp),
    }
}

fn u16_at(bytes: &[u8], place: usize) -> Result<u16, Skip> {
    let field = bytes
        .get(place..place + 2)
        .and_then(|found| found.try_into().ok())
        .ok_or(Skip::HeaderCut)?;
    Ok(u16::from_be_bytes(field))
}
