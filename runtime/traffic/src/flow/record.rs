//! What is kept of a flow: a bounded record that the token encoder reads.

use std::net::IpAddr;

use super::payload::Payload;
use crate::limits::PACKET_PAYLOAD_BYTES_MAX;

/// Which side of the flow sent a packet. The side that sent the flow's first packet is the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the side that sent the flow's first packet.
    FromInitiator,
    /// From the other side.
    FromResponder,
}

/// The TCP flag bits as they stand in byte 13 of the TCP header (RFC 9293 3.1); zero for other protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push function.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;

    /// Whether all bits of `mask` are set.
    #[must_use]
    pub fn has(self, mask: u8) -> bool {
        self.0 & mask == mask
    }
}

/// The addresses and ports of a flow, seen from its initiator. For output only: no token is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Address of the side that sent the first packet.
    pub initiator: IpAddr,
    /// Address of the other side.
    pub responder: IpAddr,
    /// Port of the initiator; 0 where the protocol has none.
    pub initiator_port: u16,
    /// Port of the responder; 0 where the protocol has none.
    pub responder_port: u16,
    /// IP protocol number (6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6, ...).
    pub protocol: u8,
}

/// What is kept of one packet, beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRecord {
    /// Who sent it.
    pub direction: Direction,
    /// TCP flags; zero for other protocols.
    pub tcp_flags: TcpFlags,
    /// Kept payload bytes: at most `payload_bytes` and at most what the configured limits leave.
    pub payload_kept: u16,
    /// Transport payload length in bytes as the headers say (not what the capture kept).
    pub payload_bytes: u32,
    /// Time since the flow's previous packet in microseconds; 0 for the first packet and where time ran backwards,
    /// `u32::MAX` for that (71 minutes) and all that is longer.
    pub gap_us: u32,
}

// A table holds two million of these: a field more is felt.
const _: () = assert!(size_of::<PacketRecord>() == 12);

/// A bounded record of one bidirectional flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Number of the flow in its capture, from 0, in the order of first packets.
    pub index: u64,
    /// Addresses and ports, for output.
    pub endpoints: Endpoints,
    /// Time of the first packet in nanoseconds since the Unix epoch.
    pub start_ns: u64,
    /// Time of the last packet in nanoseconds since the Unix epoch.
    pub end_ns: u64,
    /// All packets of the flow, also those beyond the kept ones.
    pub packets: u64,
    /// Sum of the IP lengths of all packets, as the headers say.
    pub bytes: u64,
    /// The first packets, at most the configured number.
    pub records: Vec<PacketRecord>,
    /// The kept payload bytes of all records, one after the other.
    pub payload: Payload,
}

impl Flow {
    /// Adds a record with its kept payload, of which the first [`PACKET_PAYLOAD_BYTES_MAX`] bytes are taken, and sets the
    /// record's `payload_kept` to match. For flows that come from elsewhere than a table: no other limit is applied.
    pub fn push(&mut self, record: PacketRecord, payload: &[u8]) {
        let kept = payload.get(..PACKET_PAYLOAD_BYTES_MAX).unwrap_or(payload);
        self.payload.push_whole(kept);
        self.records.push(PacketRecord {
            payload_kept: kept.len() as u16,
            ..record
        });
    }

    /// The records with their kept payload, which is empty where none was kept.
    pub fn kept(&self) -> impl Iterator<Item = (&PacketRecord, &[u8])> {
        let mut payloads = self.payload.reader();
        self.records
            .iter()
            .map(move |record| (record, payloads.next(usize::from(record.payload_kept))))
    }
}

/// Flows are equal if they say the same; how their payload lies in memory makes no difference.
impl PartialEq for Flow {
    fn eq(&self, other: &Self) -> bool {
        let head = |flow: &Self| {
            (
                (flow.index, flow.endpoints, flow.packets, flow.bytes),
                (flow.start_ns, flow.end_ns, flow.records.len()),
            )
        };
        head(self) == head(other) && self.kept().eq(other.kept())
    }
}

impl Eq for Flow {}
