//! The table of open flows: bounded, and constant work per packet.

use std::collections::HashMap;

use super::config::{FlowConfig, FlowCounters};
use super::key::FlowKey;
use super::list::{Arena, List};
use super::record::{Direction, Endpoints, Flow, PacketRecord};
use super::tcp::{Belongs, TcpState};
use crate::decode::Packet;
use crate::error::FlowConfigError;
use crate::limits::RECYCLED_FLOWS_MAX;

const TCP: u8 = 6;
/// Room that a flow begins with, so that short flows grow once.
const FIRST_RECORDS: usize = 8;
const FIRST_PAYLOAD_BYTES: usize = 256;

struct Entry {
    key: FlowKey,
    flow: Flow,
    tcp: TcpState,
    /// Time of the last packet that came, which may be before that of an earlier one.
    last_ns: u64,
    /// Number of the last packet in the table's input.
    last_packet: u64,
    initiator_is_lower: bool,
    queue: Queue,
}

/// Flows wait in the order of their last packets, apart by timeout: so only the oldest of each queue can have run out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Tcp,
    Other,
    /// TCP connections that have ended and wait for trailing packets.
    Closed,
}

const QUEUES: [Queue; 3] = [Queue::Closed, Queue::Tcp, Queue::Other];

struct Waiting {
    list: List,
    timeout_ns: u64,
}

#[derive(Clone, Copy)]
enum End {
    Idle,
    Active,
    PortReuse,
    Evicted,
    Flushed,
}

/// Gathers packets into flows.
///
/// Flows come out through the `emit` callback when they end, in an order that depends on the packets only. Time is that
/// of the packets: a flow whose last packet is further than its timeout from the present one, before or after, has
/// ended, so a clock that jumps back far does not leave flows behind forever.
pub struct FlowTable {
    config: FlowConfig,
    active_timeout_ns: u64,
    /// Keyed by a random seed: a sender cannot choose colliding keys. Never iterated, so the seed has no effect on order.
    slots: HashMap<FlowKey, u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    links: Arena,
    /// Indexed by [`Queue`].
    waiting: [Waiting; 3],
    counters: FlowCounters,
    recycled: Vec<(Vec<PacketRecord>, Vec<u8>)>,
}

impl FlowTable {
    /// An empty table.
    ///
    /// # Errors
    /// A setting out of its range.
    pub fn new(config: FlowConfig) -> Result<Self, FlowConfigError> {
        config.validate()?;
        let waiting = |timeout_us| Waiting {
            list: List::new(),
            timeout_ns: timeout_us * 1_000,
        };
        Ok(Self {
            config,
            active_timeout_ns: config.active_timeout_us * 1_000,
            slots: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            links: Arena::default(),
            waiting: [
                waiting(config.tcp_idle_timeout_us),
                waiting(config.other_idle_timeout_us),
                waiting(config.closed_timeout_us),
            ],
            counters: FlowCounters::default(),
            recycled: Vec::new(),
        })
    }

    /// Adds one packet; flows that end with it or before it go to `emit`.
    pub fn push(&mut self, packet: &Packet<'_>, emit: &mut impl FnMut(Flow)) {
        self.counters.packets += 1;
        self.counters.fragments += u64::from(packet.fragment);
        self.expire(packet.timestamp_ns, emit);
        let (key, source_is_lower) = FlowKey::of(packet);
        if let Some(&slot) = self.slots.get(&key) {
            match self.ends_before(slot, packet, source_is_lower) {
                None => return self.append(slot, packet, source_is_lower),
                Some(end) => self.end(slot, end, emit),
            }
        }
        if self.slots.len() >= self.config.max_flows {
            self.make_room(emit);
        }
        let slot = self.begin(key, packet, source_is_lower);
        self.append(slot, packet, source_is_lower);
    }

    /// Ends all flows, in the order of their first packets.
    pub fn flush(&mut self, emit: &mut impl FnMut(Flow)) {
        let mut order: Vec<(u64, u32)> = self
            .entries
            .iter()
            .zip(0..)
            .filter_map(|(entry, slot)| entry.as_ref().map(|entry| (entry.flow.index, slot)))
            .collect();
        order.sort_unstable();
        for (_, slot) in order {
            self.end(slot, End::Flushed, emit);
        }
    }

    /// Gives an emitted flow's memory back for reuse.
    pub fn recycle(&mut self, flow: Flow) {
        if self.recycled.len() < RECYCLED_FLOWS_MAX {
            let Flow {
                mut records,
                mut payload,
                ..
            } = flow;
            records.clear();
            payload.clear();
            self.recycled.push((records, payload));
        }
    }

    /// What was seen and lost so far.
    #[must_use]
    pub fn counters(&self) -> &FlowCounters {
        &self.counters
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &FlowConfig {
        &self.config
    }

    /// Flows in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the table holds no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Ends the flows whose last packet is too far from now.
    fn expire(&mut self, now_ns: u64, emit: &mut impl FnMut(Flow)) {
        for queue in QUEUES {
            while let Some(slot) = self
                .oldest(queue)
                .filter(|&slot| self.is_stale(slot, now_ns))
            {
                self.end(slot, End::Idle, emit);
            }
        }
    }

    fn oldest(&self, queue: Queue) -> Option<u32> {
        self.waiting[queue as usize].list.oldest()
    }

    fn is_stale(&self, slot: u32, now_ns: u64) -> bool {
        self.entry(slot).is_some_and(|entry| {
            entry.last_ns.abs_diff(now_ns) > self.waiting[entry.queue as usize].timeout_ns
        })
    }

    /// Whether the packet's flow has ended before it, and how.
    fn ends_before(&self, slot: u32, packet: &Packet<'_>, source_is_lower: bool) -> Option<End> {
        // Behind a neighbour with a later time a stale flow is hidden from `expire`.
        if self.is_stale(slot, packet.timestamp_ns) {
            return Some(End::Idle);
        }
        let entry = self.entry(slot)?;
        if packet.protocol == TCP {
            let direction = entry.direction(source_is_lower);
            if entry
                .tcp
                .judge(direction, packet.tcp_flags, packet.tcp_sequence)
                == Belongs::ToNewConnection
            {
                return Some(End::PortReuse);
            }
        }
        let lasted_ns = packet.timestamp_ns.saturating_sub(entry.flow.start_ns);
        (lasted_ns > self.active_timeout_ns).then_some(End::Active)
    }

    /// A closed connection goes first: nothing is lost with it. Otherwise the least recently active flow.
    fn make_room(&mut self, emit: &mut impl FnMut(Flow)) {
        let least_recent = || {
            let open = [self.oldest(Queue::Tcp), self.oldest(Queue::Other)];
            open.into_iter()
                .flatten()
                .min_by_key(|&slot| self.entry(slot).map(|entry| entry.last_packet))
        };
        if let Some(slot) = self.oldest(Queue::Closed).or_else(least_recent) {
            self.end(slot, End::Evicted, emit);
        }
    }

    fn begin(&mut self, key: FlowKey, packet: &Packet<'_>, source_is_lower: bool) -> u32 {
        let (records, payload) = self.recycled.pop().unwrap_or_default();
        let flow = Flow {
            index: self.counters.flows,
            endpoints: Endpoints {
                initiator: packet.source,
                responder: packet.destination,
                initiator_port: packet.source_port,
                responder_port: packet.destination_port,
                protocol: packet.protocol,
            },
            start_ns: packet.timestamp_ns,
            end_ns: packet.timestamp_ns,
            packets: 0,
            bytes: 0,
            records,
            payload,
        };
        let entry = Entry {
            key,
            flow,
            tcp: TcpState::default(),
            last_ns: packet.timestamp_ns,
            last_packet: self.counters.packets,
            initiator_is_lower: source_is_lower,
            queue: if packet.protocol == TCP {
                Queue::Tcp
            } else {
                Queue::Other
            },
        };
        let queue = entry.queue;
        let slot = self.free.pop().unwrap_or(self.entries.len() as u32);
        match self.entries.get_mut(slot as usize) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        self.links.grow(self.entries.len());
        self.links
            .push(&mut self.waiting[queue as usize].list, slot);
        self.slots.insert(key, slot);
        self.counters.flows += 1;
        slot
    }

    fn append(&mut self, slot: u32, packet: &Packet<'_>, source_is_lower: bool) {
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        entry.append(packet, source_is_lower, &self.config, &mut self.counters);
        entry.last_packet = self.counters.packets;
        self.links
            .remove(&mut self.waiting[entry.queue as usize].list, slot);
        if entry.tcp.is_closed() {
            entry.queue = Queue::Closed;
        }
        self.links
            .push(&mut self.waiting[entry.queue as usize].list, slot);
    }

    fn end(&mut self, slot: u32, end: End, emit: &mut impl FnMut(Flow)) {
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.links
            .remove(&mut self.waiting[entry.queue as usize].list, slot);
        self.slots.remove(&entry.key);
        self.free.push(slot);
        let counter = match end {
            // Complete, whatever made it leave.
            _ if entry.queue == Queue::Closed => &mut self.counters.tcp_end,
            End::Idle => &mut self.counters.idle,
            End::Active => &mut self.counters.active,
            End::PortReuse => &mut self.counters.port_reuse,
            End::Evicted => &mut self.counters.evicted,
            End::Flushed => &mut self.counters.flushed,
        };
        *counter += 1;
        emit(entry.flow);
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }
}

impl Entry {
    fn direction(&self, source_is_lower: bool) -> Direction {
        if source_is_lower == self.initiator_is_lower {
            Direction::FromInitiator
        } else {
            Direction::FromResponder
        }
    }

    fn append(
        &mut self,
        packet: &Packet<'_>,
        source_is_lower: bool,
        config: &FlowConfig,
        counters: &mut FlowCounters,
    ) {
        // Both ends the same: direction cannot be told, and need not be.
        let direction = self.direction(source_is_lower);
        if packet.protocol == TCP {
            self.tcp
                .add(direction, packet.tcp_flags, packet.tcp_sequence);
        }
        let gap_ns = packet.timestamp_ns.checked_sub(self.last_ns);
        counters.time_backwards += u64::from(gap_ns.is_none());
        self.last_ns = packet.timestamp_ns;
        let flow = &mut self.flow;
        flow.end_ns = flow.end_ns.max(packet.timestamp_ns);
        flow.packets += 1;
        flow.bytes = flow.bytes.saturating_add(u64::from(packet.ip_bytes));
        if flow.records.len() >= config.max_packets {
            counters.packets_beyond_limit += 1;
            return;
        }
        let kept = packet
            .payload
            .get(..config.max_payload_bytes)
            .unwrap_or(packet.payload);
        counters.payload_bytes_cut += (packet.payload.len() - kept.len()) as u64;
        reserve(&mut flow.records, 1, FIRST_RECORDS, config.max_packets);
        flow.records.push(PacketRecord {
            direction,
            tcp_flags: packet.tcp_flags,
            gap_us: gap_ns.unwrap_or(0) / 1_000,
            payload_bytes: packet.payload_bytes,
            payload_start: flow.payload.len() as u32,
            payload_kept: kept.len() as u32,
        });
        reserve(
            &mut flow.payload,
            kept.len(),
            FIRST_PAYLOAD_BYTES,
            config.max_packets * config.max_payload_bytes,
        );
        flow.payload.extend_from_slice(kept);
    }
}

/// Grows by doubling like a plain `Vec`, but begins larger and never goes beyond what the limits allow it to hold.
fn reserve<T>(list: &mut Vec<T>, more: usize, first: usize, limit: usize) {
    let needed = list.len() + more;
    if needed > list.capacity() {
        let target = (list.capacity() * 2).max(first).min(limit).max(needed);
        list.reserve_exact(target - list.len());
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
