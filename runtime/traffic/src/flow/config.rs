//! The settings of a flow table and its counters.

use crate::error::FlowConfigError;
use crate::limits::{
    FLOW_PACKETS_MAX, FLOWS_MAX, PACKET_PAYLOAD_BYTES_MAX, TIMEOUT_US_MAX, TIMEOUT_US_MIN,
};

use super::record::PacketRecord;
use super::table::FLOW_BYTES_FIXED;

/// Settings of a [`super::FlowTable`]; memory is bounded by the first four.
///
/// With the default settings a flow takes at most 2,104 bytes ([`FlowConfig::flow_bytes_max`]), 20 packets with 400 bytes of payload
/// in four of them: 201 MiB for 100,000 such flows, 263 MiB for the 131,072 that there is room for. The memory allocator adds about
/// a twentieth. A flow of two short packets takes 900 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowConfig {
    /// Most flows held at once; the least recently active one gives way to a new one.
    pub max_flows: usize,
    /// Most packet records kept of a flow; later packets are only counted.
    pub max_packets: usize,
    /// Most payload bytes kept of one packet.
    pub max_payload_bytes: usize,
    /// Room for payload in a flow: so many times `max_payload_bytes`. The first packets with payload, so many of them, are sure of
    /// theirs; of later ones is kept what still finds room behind shorter ones.
    pub max_payloads: usize,
    /// An open TCP flow ends when the packet time is this far from its last packet, in microseconds.
    pub tcp_idle_timeout_us: u64,
    /// A flow of any other protocol ends when the packet time is this far from its last packet, in microseconds.
    pub other_idle_timeout_us: u64,
    /// A flow that has lasted this long ends with its next packet, which begins a new one, in microseconds.
    pub active_timeout_us: u64,
    /// How long a closed TCP connection waits for trailing packets, in microseconds.
    pub closed_timeout_us: u64,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FlowConfig {
    /// The default settings.
    pub const DEFAULT: Self = Self {
        max_flows: 131_072,
        max_packets: 20,
        max_payload_bytes: 400,
        max_payloads: 4,
        tcp_idle_timeout_us: 3_600_000_000,
        other_idle_timeout_us: 3_600_000_000,
        active_timeout_us: 86_400_000_000,
        closed_timeout_us: 60_000_000,
    };

    /// Checks every setting against the hard limits.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn validate(&self) -> Result<(), FlowConfigError> {
        let check = |field, found, minimum, maximum| {
            if (minimum..=maximum).contains(&found) {
                Ok(())
            } else {
                Err(FlowConfigError {
                    field,
                    minimum,
                    maximum,
                    found,
                })
            }
        };
        check("max_flows", self.max_flows as u64, 1, FLOWS_MAX as u64)?;
        check(
            "max_packets",
            self.max_packets as u64,
            1,
            FLOW_PACKETS_MAX as u64,
        )?;
        check(
            "max_payload_bytes",
            self.max_payload_bytes as u64,
            0,
            PACKET_PAYLOAD_BYTES_MAX as u64,
        )?;
        check(
            "max_payloads",
            self.max_payloads as u64,
            0,
            FLOW_PACKETS_MAX as u64,
        )?;
        check(
            "tcp_idle_timeout_us",
            self.tcp_idle_timeout_us,
            TIMEOUT_US_MIN,
            TIMEOUT_US_MAX,
        )?;
        check(
            "other_idle_timeout_us",
            self.other_idle_timeout_us,
            TIMEOUT_US_MIN,
            TIMEOUT_US_MAX,
        )?;
        check(
            "active_timeout_us",
            self.active_timeout_us,
            TIMEOUT_US_MIN,
            TIMEOUT_US_MAX,
        )?;
        check(
            "closed_timeout_us",
            self.closed_timeout_us,
            TIMEOUT_US_MIN,
            TIMEOUT_US_MAX,
        )
    }

    /// Most bytes that one flow takes in the table, what the memory allocator adds to its two to six pieces left out.
    #[must_use]
    pub fn flow_bytes_max(&self) -> usize {
        let payload = self.max_payloads * (size_of::<Box<[u8]>>() + self.max_payload_bytes);
        FLOW_BYTES_FIXED + self.max_packets * size_of::<PacketRecord>() + payload
    }
}

/// What a flow table has seen and lost. `flows` = all kinds of ended flows + the flows still in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Packets pushed.
    pub packets: u64,
    /// Flows begun.
    pub flows: u64,
    /// Flows ended by a TCP close or reset.
    pub tcp_end: u64,
    /// Flows ended because no packet came for the idle timeout.
    pub idle: u64,
    /// Flows cut by the active timeout.
    pub active: u64,
    /// Unclosed TCP flows ended because a new connection took their ports.
    pub port_reuse: u64,
    /// Flows ended early to make room.
    pub evicted: u64,
    /// Flows that were open at the end of the input.
    pub flushed: u64,
    /// Packets that are only counted because their flow keeps no more records.
    pub packets_beyond_limit: u64,
    /// Captured payload bytes of kept packets that are beyond the limit per packet or find no room in their flow, or no memory.
    pub payload_bytes_cut: u64,
    /// Packets whose time is before that of their flow's previous packet.
    pub time_backwards: u64,
    /// First fragments, used as the whole packet.
    pub fragments: u64,
}

impl FlowCounters {
    /// Adds the counts of another table.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.flows += other.flows;
        self.tcp_end += other.tcp_end;
        self.idle += other.idle;
        self.active += other.active;
        self.port_reuse += other.port_reuse;
        self.evicted += other.evicted;
        self.flushed += other.flushed;
        self.packets_beyond_limit += other.packets_beyond_limit;
        self.payload_bytes_cut += other.payload_bytes_cut;
        self.time_backwards += other.time_backwards;
        self.fragments += other.fragments;
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
