//! What is read of a packet: its headers, as libtrafficllm's own reader of captures reads them.

use super::layout;
use super::symbols::{Flow, Packet};

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMP_V6: u8 = 58;

/// `PACKET_L3_IPV4`.
const IP_TYPE_FOUR: u32 = 1;
/// `PACKET_L3_IPV6`.
const IP_TYPE_SIX: u32 = 2;

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const TCP_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const ICMP_HEADER_BYTES: usize = 8;

/// A time as Suricata keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Seconds since the Unix epoch, 44 bits.
    pub seconds: u64,
    /// Microseconds of the second, 20 bits.
    pub microseconds: u64,
}

impl Time {
    /// As it stands in memory (`SCTime_t`).
    #[must_use]
    pub const fn packed(self) -> u64 {
        self.seconds & SECONDS_MASK | self.microseconds << SECONDS_BITS
    }

    const fn unpacked(bits: u64) -> Self {
        Self {
            seconds: bits & SECONDS_MASK,
            microseconds: bits >> SECONDS_BITS,
        }
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn nanoseconds(self) -> u64 {
        self.seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(self.microseconds * 1_000)
    }
}

const SECONDS_BITS: u32 = 44;
const SECONDS_MASK: u64 = (1 << SECONDS_BITS) - 1;

/// An address and a port; IPv4 addresses stand in the first four bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address, in network byte order.
    pub address: [u8; 16],
    /// The port in host byte order; 0 where the protocol has none.
    pub port: u16,
}

/// A packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// When it came.
    pub time: Time,
    /// Suricata's hash of the flow.
    pub flow_hash: u32,
    /// 4 or 6.
    pub ip_version: u8,
    /// Protocol behind all IP headers.
    pub protocol: u8,
    /// Who sent it.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
    /// Length of the IP packet as its header says.
    pub ip_bytes: u32,
    /// Byte 13 of the TCP header; 0 for other protocols.
    pub tcp_flags: u8,
    /// Length of the transport payload as the headers say.
    pub payload_bytes: u32,
    /// That payload.
    pub payload: &'a [u8],
}

/// Why a packet cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Neither IPv4 nor IPv6, or lengths that do not fit into each other: no part of a flow.
    Headers,
    /// Suricata's packets are not laid out as the plugin knows them.
    Layout,
}

/// Reads a value at an offset of a packet.
///
/// # Safety
/// So many bytes of the live packet stand there, and any bits are a `T`.
pub(super) unsafe fn read<T: Copy>(packet: *const Packet, offset: usize) -> T {
    // SAFETY: as the caller says; the read needs no alignment.
    unsafe { packet.cast::<u8>().add(offset).cast::<T>().read_unaligned() }
}

/// The flow of a packet.
///
/// # Safety
/// `packet` is a live packet of Suricata 8.0.
#[must_use]
pub unsafe fn flow_of(packet: *const Packet) -> *mut Flow {
    // SAFETY: as the caller says, and [`layout`] has been checked.
    unsafe { read(packet, layout::FLOW) }
}

impl<'a> View<'a> {
    /// Reads a packet that Suricata has decoded.
    ///
    /// # Errors
    /// See [`Unreadable`].
    ///
    /// # Safety
    /// `packet` is a live packet of Suricata 8.0 with a flow, decoded, and does not change while the view lives.
    pub unsafe fn of(packet: *const Packet, flow: *const Flow) -> Result<Self, Unreadable> {
        // SAFETY: all places are within a packet (the layout was checked when the plugin was loaded).
        let (own_flow, ip_type, ip, transport, payload, time, flow_hash, protocol) = unsafe {
            (
                read::<*const Flow>(packet, layout::FLOW),
                read::<u32>(packet, layout::IP_TYPE),
                read::<*const u8>(packet, layout::IP_HEADER),
                read::<*const u8>(packet, layout::TRANSPORT_HEADER),
                read::<*const u8>(packet, layout::PAYLOAD),
                read::<u64>(packet, layout::TIME),
                read::<u32>(packet, layout::FLOW_HASH),
                read::<u8>(packet, layout::PROTOCOL),
            )
        };
        // Numbers only until here. What is a pointer must be one that fits to the others before it is followed.
        if own_flow != flow {
            return Err(Unreadable::Layout);
        }
        let header_bytes = match ip_type {
            IP_TYPE_FOUR => IPV4_HEADER_BYTES,
            IP_TYPE_SIX => IPV6_HEADER_BYTES,
            _ => return Err(Unreadable::Headers),
        };
        let distance = |pointer: *const u8| match pointer.addr() {
            0 => None,
            place => Some(place.wrapping_sub(ip.addr())),
        };
        let within = header_bytes..=usize::from(u16::MAX) + IPV6_HEADER_BYTES;
        let (transport, payload) = (distance(transport), distance(payload));
        let fits = |place: Option<usize>| place.is_none_or(|place| within.contains(&place));
        if ip.is_null() || !fits(transport) || !fits(payload) || transport > payload.or(transport) {
            return Err(Unreadable::Layout);
        }
        // SAFETY: Suricata's decoder has seen that the captured bytes hold the fixed header, and all that it says.
        let (version, ip_bytes) = unsafe {
            let version = *ip >> 4;
            match (ip_type, version) {
                (IP_TYPE_FOUR, 4) => (4, usize::from(be16(ip.add(2)))),
                (IP_TYPE_SIX, 6) => (6, usize::from(be16(ip.add(4))) + IPV6_HEADER_BYTES),
                _ => return Err(Unreadable::Layout),
            }
        };
        if ip_bytes < header_bytes {
            return Err(Unreadable::Headers);
        }
        // SAFETY: as above: the decoder refuses packets of which less was captured than their header says.
        let datagram = unsafe { std::slice::from_raw_parts(ip, ip_bytes) };
        let mut view = Self {
            time: Time::unpacked(time),
            flow_hash,
            ip_version: version,
            protocol,
            source: Endpoint::default(),
            destination: Endpoint::default(),
            ip_bytes: ip_bytes as u32,
            tcp_flags: 0,
            payload_bytes: 0,
            payload: &[],
        };
        view.read_headers(datagram, transport)
            .ok_or(Unreadable::Headers)?;
        Ok(view)
    }

    /// Reads addresses, ports, flags and payload of an IP packet whose transport header stands at `transport`.
    fn read_headers(&mut self, datagram: &'a [u8], transport: Option<usize>) -> Option<()> {
        let (addresses, behind) = if self.ip_version == 4 {
            let header_bytes = usize::from(datagram.first()? & 0x0f) * 4;
            (datagram.get(12..20)?, header_bytes)
        } else {
            (datagram.get(8..40)?, IPV6_HEADER_BYTES)
        };
        let (source, destination) = addresses.split_at(addresses.len() / 2);
        self.source.address[..source.len()].copy_from_slice(source);
        self.destination.address[..destination.len()].copy_from_slice(destination);
        let rest = datagram.get(transport.unwrap_or(behind)..)?;
        let (header_bytes, payload_bytes) = match self.protocol {
            TCP => {
                let header = rest.get(..TCP_HEADER_BYTES)?;
                self.tcp_flags = header[13];
                let header_bytes = usize::from(header[12] >> 4) * 4;
                (header_bytes, rest.len().checked_sub(header_bytes)?)
            }
            UDP => {
                let header = rest.get(..UDP_HEADER_BYTES)?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let fits = (UDP_HEADER_BYTES..=rest.len()).contains(&length);
                let length = if fits { length } else { rest.len() };
                (UDP_HEADER_BYTES, length - UDP_HEADER_BYTES)
            }
            ICMP | ICMP_V6 => {
                let header_bytes = ICMP_HEADER_BYTES.min(rest.len());
                (header_bytes, rest.len() - header_bytes)
            }
            _ => (0, rest.len()),
        };
        if matches!(self.protocol, TCP | UDP) {
            self.source.port = u16::from_be_bytes([rest[0], rest[1]]);
            self.destination.port = u16::from_be_bytes([rest[2], rest[3]]);
        }
        self.payload_bytes = payload_bytes as u32;
        self.payload = rest.get(header_bytes..header_bytes + payload_bytes)?;
        Some(())
    }
}

/// # Safety
/// Two bytes stand there.
unsafe fn be16(place: *const u8) -> u16 {
    // SAFETY: as the caller says.
    unsafe { u16::from_be_bytes([*place, *place.add(1)]) }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
