//! Finds the headers of one captured packet. Allocates nothing; lengths come from the headers, not from the capture.

mod ip;
mod link;

use std::net::IpAddr;

use crate::capture::LinkType;
use crate::flow::TcpFlags;

/// One decoded IP packet; the payload borrows from the captured bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Time in nanoseconds since the Unix epoch.
    pub timestamp_ns: u64,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port of TCP and UDP; 0 otherwise.
    pub source_port: u16,
    /// Destination port of TCP and UDP; 0 otherwise.
    pub destination_port: u16,
    /// IP protocol number behind all extension headers.
    pub protocol: u8,
    /// TCP flags; zero for other protocols.
    pub tcp_flags: TcpFlags,
    /// TCP sequence number; 0 for other protocols.
    pub tcp_sequence: u32,
    /// Whether this is the first fragment of a longer packet.
    pub fragment: bool,
    /// Length of the IP packet as its header says.
    pub ip_bytes: u32,
    /// Length of the transport payload as the headers say. For ICMP this starts behind the first 8 bytes; for other
    /// portless protocols it is all that follows the IP headers.
    pub payload_bytes: u32,
    /// The captured part of that payload: at most `payload_bytes`.
    pub payload: &'a [u8],
}

/// Why a packet became no part of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Skip {
    /// An ARP packet.
    Arp,
    /// No IP packet.
    NotIp,
    /// A fragment that is not the first: it has no transport header.
    LaterFragment,
    /// The captured bytes end inside a header.
    HeaderCut,
    /// A header's length field cannot be.
    BadHeaderLength,
    /// The IP version contradicts what the layer below says.
    BadVersion,
    /// More VLAN tags or extension headers than the limit.
    TooManyHeaders,
    /// A link type that is not read.
    UnsupportedLinkType,
}

impl Skip {
    /// All reasons, in the order of [`SkipCounters`].
    pub const ALL: [Self; 8] = [
        Self::Arp,
        Self::NotIp,
        Self::LaterFragment,
        Self::HeaderCut,
        Self::BadHeaderLength,
        Self::BadVersion,
        Self::TooManyHeaders,
        Self::UnsupportedLinkType,
    ];

    /// The reason in words, for summaries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Arp => "ARP",
            Self::NotIp => "not IP",
            Self::LaterFragment => "later fragment",
            Self::HeaderCut => "header cut",
            Self::BadHeaderLength => "bad header length",
            Self::BadVersion => "bad IP version",
            Self::TooManyHeaders => "too many headers",
            Self::UnsupportedLinkType => "unsupported link type",
        }
    }
}

impl std::fmt::Display for Skip {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How many packets were skipped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkipCounters([u64; Skip::ALL.len()]);

impl SkipCounters {
    /// Counts one packet.
    pub fn count(&mut self, reason: Skip) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += 1;
        }
    }

    /// Packets skipped for that reason.
    #[must_use]
    pub fn get(&self, reason: Skip) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// All skipped packets.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Skip, u64)> + '_ {
        Skip::ALL
            .into_iter()
            .zip(self.0)
            .filter(|(_, count)| *count > 0)
    }

    /// Adds the counts of another capture.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

/// Decodes one captured packet.
///
/// `wire_bytes` is the packet's length on the wire; it stands in for an IP length of 0, which segmentation offload
/// writes.
///
/// # Errors
/// The reason why the packet belongs to no flow.
pub fn decode(
    link_type: LinkType,
    bytes: &[u8],
    wire_bytes: u32,
    timestamp_ns: u64,
) -> Result<Packet<'_>, Skip> {
    let (version, header_bytes) = link::find_ip(link_type, bytes)?;
    let datagram = bytes.get(header_bytes..).unwrap_or_default();
    let wire_bytes = wire_bytes.saturating_sub(header_bytes as u32);
    ip::decode_ip(version, datagram, wire_bytes, timestamp_ns)
}

/// Offset of the IP header in a captured packet, for who needs the packet's own bytes: what stands before it is the link layer's.
///
/// # Errors
/// The reason why there is none.
pub fn ip_offset(link_type: LinkType, bytes: &[u8]) -> Result<usize, Skip> {
    link::find_ip(link_type, bytes).map(|(_, offset)| offset)
}

#[cfg(test)]
mod tests;
