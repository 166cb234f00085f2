//! IPv4 and IPv6 with their extension headers, and the transport header behind them.

use std::net::IpAddr;

use etherparse::err::{ip_auth, ipv4, ipv6};
use etherparse::{
    IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, UdpHeaderSlice, ip_number,
};

use super::link::Version;
use super::{Packet, Skip};
use crate::flow::TcpFlags;
use crate::limits::EXTENSION_HEADERS_MAX;

const TCP: u8 = ip_number::TCP.0;
const UDP: u8 = ip_number::UDP.0;
const ICMP: u8 = ip_number::ICMP.0;
const ICMP_V6: u8 = ip_number::IPV6_ICMP.0;
const AUTHENTICATION: u8 = ip_number::AUTH.0;
const FRAGMENT: u8 = ip_number::IPV6_FRAG.0;
const NO_NEXT_HEADER: u8 = ip_number::IPV6_NO_NEXT_HEADER.0;
/// Hop-by-hop, routing, destination options, mobility, host identity and shim6: next header, then a length.
const GENERIC_EXTENSIONS: [u8; 6] = [0, 43, 60, 135, 139, 140];

const TCP_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const ICMP_HEADER_BYTES: usize = 8;

/// The IP layer of a packet.
struct IpLayer<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: bool,
    /// Length of the whole IP packet.
    ip_bytes: u32,
    /// Length of what follows the IP headers.
    rest_bytes: u32,
    /// The captured part of what follows, without link-layer padding.
    rest: &'a [u8],
}

pub(super) fn decode_ip(
    version: Version,
    bytes: &[u8],
    wire_bytes: u32,
    timestamp_ns: u64,
) -> Result<Packet<'_>, Skip> {
    let found = bytes.first().ok_or(Skip::HeaderCut)? >> 4;
    let mut layer = match (version, found) {
        (Version::Four | Version::Any, 4) => ipv4_layer(bytes, wire_bytes)?,
        (Version::Six | Version::Any, 6) => ipv6_layer(bytes, wire_bytes)?,
        (Version::Any, _) => return Err(Skip::NotIp),
        _ => return Err(Skip::BadVersion),
    };
    behind_extensions(&mut layer)?;
    transport(&layer, timestamp_ns)
}

fn ipv4_layer(bytes: &[u8], wire_bytes: u32) -> Result<IpLayer<'_>, Skip> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|error| match error {
        ipv4::HeaderSliceError::Len(_) => Skip::HeaderCut,
        ipv4::HeaderSliceError::Content(_) => Skip::BadHeaderLength,
    })?;
    if header.fragments_offset().value() > 0 {
        return Err(Skip::LaterFragment);
    }
    let header_bytes = header.slice().len();
    // Segmentation offload leaves the length 0.
    let ip_bytes = match u32::from(header.total_len()) {
        0 => wire_bytes,
        length => length,
    };
    let rest_bytes = ip_bytes
        .checked_sub(header_bytes as u32)
        .ok_or(Skip::BadHeaderLength)?;
    Ok(IpLayer {
        source: IpAddr::V4(header.source_addr()),
        destination: IpAddr::V4(header.destination_addr()),
        protocol: header.protocol().0,
        fragment: header.more_fragments(),
        ip_bytes,
        rest_bytes,
        rest: without_padding(bytes.get(header_bytes..).unwrap_or_default(), rest_bytes),
    })
}

fn ipv6_layer(bytes: &[u8], wire_bytes: u32) -> Result<IpLayer<'_>, Skip> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|error| match error {
        ipv6::HeaderSliceError::Len(_) => Skip::HeaderCut,
        ipv6::HeaderSliceError::Content(_) => Skip::BadVersion,
    })?;
    let header_bytes = header.slice().len();
    let protocol = header.next_header().0;
    // A length of 0 is a jumbogram or segmentation offload, unless there is nothing to follow.
    let rest_bytes = match u32::from(header.payload_length()) {
        0 if protocol != NO_NEXT_HEADER => wire_bytes.saturating_sub(header_bytes as u32),
        length => length,
    };
    Ok(IpLayer {
        source: IpAddr::V6(header.source_addr()),
        destination: IpAddr::V6(header.destination_addr()),
        protocol,
        fragment: false,
        ip_bytes: rest_bytes.saturating_add(header_bytes as u32),
        rest_bytes,
        rest: without_padding(bytes.get(header_bytes..).unwrap_or_default(), rest_bytes),
    })
}

/// Walks over extension headers; the authentication header may also follow IPv4.
fn behind_extensions(layer: &mut IpLayer<'_>) -> Result<(), Skip> {
    let six = layer.source.is_ipv6();
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let (next, header_bytes) = match layer.protocol {
            AUTHENTICATION => {
                let header =
                    IpAuthHeaderSlice::from_slice(layer.rest).map_err(|error| match error {
                        ip_auth::HeaderSliceError::Len(_) => header_end(layer),
                        ip_auth::HeaderSliceError::Content(_) => Skip::BadHeaderLength,
                    })?;
                (header.next_header().0, header.slice().len())
            }
            FRAGMENT if six => {
                let header = Ipv6FragmentHeaderSlice::from_slice(layer.rest)
                    .map_err(|_| header_end(layer))?;
                if header.fragment_offset().value() > 0 {
                    return Err(Skip::LaterFragment);
                }
                layer.fragment |= header.more_fragments();
                (header.next_header().0, header.slice().len())
            }
            generic if six && GENERIC_EXTENSIONS.contains(&generic) => {
                let header =
                    Ipv6RawExtHeaderSlice::from_slice(layer.rest).map_err(|_| header_end(layer))?;
                (header.next_header().0, header.slice().len())
            }
            _ => return Ok(()),
        };
        layer.rest_bytes = layer
            .rest_bytes
            .checked_sub(header_bytes as u32)
            .ok_or(Skip::BadHeaderLength)?;
        layer.rest = layer.rest.get(header_bytes..).unwrap_or_default();
        layer.protocol = next;
    }
    Err(Skip::TooManyHeaders)
}

/// Whether a header that is not wholly there was cut by the capture, or does not fit into the packet at all.
fn header_end(layer: &IpLayer<'_>) -> Skip {
    if (layer.rest.len() as u64) < u64::from(layer.rest_bytes) {
        Skip::HeaderCut
    } else {
        Skip::BadHeaderLength
    }
}

fn transport<'a>(layer: &IpLayer<'a>, timestamp_ns: u64) -> Result<Packet<'a>, Skip> {
    let mut packet = Packet {
        timestamp_ns,
        source: layer.source,
        destination: layer.destination,
        source_port: 0,
        destination_port: 0,
        protocol: layer.protocol,
        tcp_flags: TcpFlags::default(),
        tcp_sequence: 0,
        fragment: layer.fragment,
        ip_bytes: layer.ip_bytes,
        payload_bytes: layer.rest_bytes,
        payload: layer.rest,
    };
    let header_bytes = match layer.protocol {
        TCP => tcp(layer, &mut packet)?,
        UDP => udp(layer, &mut packet)?,
        // A message shorter than its header has no payload; portless flows do not need the header itself.
        ICMP | ICMP_V6 => ICMP_HEADER_BYTES.min(layer.rest_bytes as usize),
        _ => 0,
    };
    packet.payload_bytes = packet.payload_bytes.saturating_sub(header_bytes as u32);
    packet.payload = without_padding(
        layer.rest.get(header_bytes..).unwrap_or_default(),
        packet.payload_bytes,
    );
    Ok(packet)
}

/// Reads the fixed part by hand: a snapshot length often cuts the options, which are not needed.
fn tcp(layer: &IpLayer<'_>, packet: &mut Packet<'_>) -> Result<usize, Skip> {
    let header: &[u8; TCP_HEADER_BYTES] =
        layer.rest.first_chunk().ok_or_else(|| header_end(layer))?;
    let header_bytes = usize::from(header[12] >> 4) * 4;
    if header_bytes < TCP_HEADER_BYTES || header_bytes as u64 > u64::from(layer.rest_bytes) {
        return Err(Skip::BadHeaderLength);
    }
    packet.source_port = u16::from_be_bytes([header[0], header[1]]);
    packet.destination_port = u16::from_be_bytes([header[2], header[3]]);
    packet.tcp_sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    packet.tcp_flags = TcpFlags(header[13]);
    Ok(header_bytes)
}

fn udp(layer: &IpLayer<'_>, packet: &mut Packet<'_>) -> Result<usize, Skip> {
    let header = UdpHeaderSlice::from_slice(layer.rest).map_err(|_| header_end(layer))?;
    packet.source_port = header.source_port();
    packet.destination_port = header.destination_port();
    // A length that cannot be (0 from offload, or that of the whole datagram in a first fragment) gives way to IP's.
    let length = u32::from(header.length());
    if (UDP_HEADER_BYTES as u32..=layer.rest_bytes).contains(&length) {
        packet.payload_bytes = length;
    }
    Ok(UDP_HEADER_BYTES)
}

fn without_padding(bytes: &[u8], length: u32) -> &[u8] {
    bytes.get(..length as usize).unwrap_or(bytes)
}
