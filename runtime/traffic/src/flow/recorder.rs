//! Gathers the packets of one flow that somebody else has told apart: a host with a flow table of its own.

use super::config::FlowConfig;
use super::payload::{Payload, SpareBuffers};
use super::record::{Direction, Endpoints, Flow, PacketRecord, TcpFlags};
use crate::error::RecorderError;
use crate::memory::try_with_capacity;

/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Records that a flow of a table has room for at first; the default settings allow no more, so that no flow ever grows.
const FIRST_RECORDS: usize = 20;

/// One packet as a host knows it; its flow and its addresses are known from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPacket<'a> {
    /// Who sent it.
    pub direction: Direction,
    /// Time in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Length of the IP packet in bytes, as its header says.
    pub ip_bytes: u32,
    /// Length of the transport payload in bytes, as the headers say.
    pub payload_bytes: u32,
    /// The TCP flags; of no meaning for other protocols.
    pub tcp_flags: TcpFlags,
    /// The captured part of the payload; what is beyond `payload_bytes` is no part of it and is left out.
    pub payload: &'a [u8],
}

/// What a recorder has seen and lost, of all its flows. Each number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecorderCounters {
    /// Packets pushed.
    pub packets: u64,
    /// Packets that are only counted because their flow keeps no more records.
    pub packets_beyond_limit: u64,
    /// Captured payload bytes of kept packets that are beyond the limit per packet or find no room in their flow, or no memory.
    pub payload_bytes_cut: u64,
    /// Packets whose time is before that of their flow's previous packet.
    pub time_backwards: u64,
}

/// Gathers the packets of one flow into the same record that a [`super::FlowTable`] makes of them.
///
/// Where the flow begins and ends is the host's to say. The memory of the records, [`FlowConfig::max_packets`] of them, is taken at
/// once, that of the payload when it comes, at most [`FlowConfig::max_payloads`] buffers. It is used again after
/// [`FlowRecorder::reset`]. Where the system refuses a buffer, packets go on without that part of their payload.
#[derive(Debug)]
pub struct FlowRecorder {
    config: FlowConfig,
    flow: Flow,
    last_ns: u64,
    spare: SpareBuffers,
    counters: RecorderCounters,
}

impl FlowRecorder {
    /// A recorder of a flow without packets. Of the settings only `max_packets`, `max_payload_bytes` and `max_payloads` matter.
    ///
    /// # Errors
    /// A setting out of its range; no memory for the records.
    pub fn new(config: FlowConfig, endpoints: Endpoints) -> Result<Self, RecorderError> {
        config.validate()?;
        let records = try_with_capacity("the records of a flow", config.max_packets)?;
        Ok(Self {
            config,
            flow: Flow {
                index: 0,
                endpoints,
                start_ns: 0,
                end_ns: 0,
                packets: 0,
                bytes: 0,
                records,
                payload: Payload::default(),
            },
            last_ns: 0,
            spare: SpareBuffers::default(),
            counters: RecorderCounters::default(),
        })
    }

    /// Adds one packet. Its payload is copied as far as the settings leave room and the system gives memory;
    /// [`RecorderCounters::payload_bytes_cut`] tells what was left out.
    pub fn push(&mut self, packet: &HostPacket<'_>) {
        let within = packet.payload.get(..packet.payload_bytes as usize);
        let tcp_flags = if self.flow.endpoints.protocol == TCP {
            packet.tcp_flags
        } else {
            TcpFlags::default()
        };
        let packet = HostPacket {
            payload: within.unwrap_or(packet.payload),
            tcp_flags,
            ..*packet
        };
        if self.flow.packets == 0 {
            self.flow.start_ns = packet.time_ns;
            self.flow.end_ns = packet.time_ns;
            self.last_ns = packet.time_ns;
        }
        let lost = append(
            &mut self.flow,
            &mut self.last_ns,
            &packet,
            &self.config,
            &mut self.spare,
        );
        self.counters.packets += 1;
        self.counters.packets_beyond_limit += u64::from(lost.is_beyond_limit);
        self.counters.payload_bytes_cut += lost.payload_bytes_cut;
        self.counters.time_backwards += u64::from(lost.is_time_backwards);
    }

    /// The flow as far as it has come. Its `index` is 0: the host knows it by another name.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Begins another flow in the same memory; the counters go on.
    pub fn reset(&mut self, endpoints: Endpoints) {
        let payload = std::mem::take(&mut self.flow.payload);
        self.spare.give_back(payload, &self.config);
        let mut records = std::mem::take(&mut self.flow.records);
        records.clear();
        self.flow = Flow {
            index: 0,
            endpoints,
            start_ns: 0,
            end_ns: 0,
            packets: 0,
            bytes: 0,
            records,
            payload: Payload::default(),
        };
        self.last_ns = 0;
    }

    /// Whether the flow keeps no more records: further packets are only counted, and its tokens do not change.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.flow.records.len() >= self.config.max_packets
    }

    /// What was seen and lost, of all flows since the recorder was made.
    #[must_use]
    pub fn counters(&self) -> &RecorderCounters {
        &self.counters
    }

    /// Bytes that the recorder takes now, what the memory allocator adds left out.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.flow.records.capacity() * size_of::<PacketRecord>()
            + self.flow.payload.bytes()
            + self.spare.bytes()
    }

    /// Most bytes that a recorder with these settings takes, what the memory allocator adds left out.
    #[must_use]
    pub fn bytes_max(config: &FlowConfig) -> usize {
        size_of::<Self>()
            + config.max_packets * size_of::<PacketRecord>()
            + config.max_payloads * config.max_payload_bytes
            + SpareBuffers::lists_bytes_max(config)
    }
}

/// What of a packet did not become part of its flow's record.
pub(super) struct Lost {
    pub(super) is_beyond_limit: bool,
    pub(super) payload_bytes_cut: u64,
    pub(super) is_time_backwards: bool,
}

/// Adds a packet to its flow, whose last packet came at `last_ns`. The only way into a flow's record, for tables and recorders.
pub(super) fn append(
    flow: &mut Flow,
    last_ns: &mut u64,
    packet: &HostPacket<'_>,
    config: &FlowConfig,
    spare: &mut SpareBuffers,
) -> Lost {
    let gap_ns = packet.time_ns.checked_sub(*last_ns);
    *last_ns = packet.time_ns;
    flow.end_ns = flow.end_ns.max(packet.time_ns);
    flow.packets += 1;
    flow.bytes = flow.bytes.saturating_add(u64::from(packet.ip_bytes));
    let mut lost = Lost {
        // A record that the system has no memory for is as good as one beyond the limit.
        is_beyond_limit: flow.records.len() >= config.max_packets
            || !has_room_for_record(&mut flow.records, config.max_packets),
        payload_bytes_cut: 0,
        is_time_backwards: gap_ns.is_none(),
    };
    if lost.is_beyond_limit {
        return lost;
    }
    let kept = flow.payload.push(packet.payload, config, spare);
    lost.payload_bytes_cut = (packet.payload.len() - kept) as u64;
    flow.records.push(PacketRecord {
        direction: packet.direction,
        tcp_flags: packet.tcp_flags,
        payload_kept: kept as u16,
        payload_bytes: packet.payload_bytes,
        gap_us: u32::try_from(gap_ns.unwrap_or(0) / 1_000).unwrap_or(u32::MAX),
    });
    lost
}

/// Makes room for one record more, if the system gives memory. Grows by doubling like a plain `Vec`, but begins larger and never goes
/// beyond what the limits allow it to hold.
fn has_room_for_record(records: &mut Vec<PacketRecord>, limit: usize) -> bool {
    let target = (records.capacity() * 2).max(FIRST_RECORDS).min(limit);
    let more = target.saturating_sub(records.len());
    records.len() < records.capacity() || records.try_reserve_exact(more).is_ok()
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
