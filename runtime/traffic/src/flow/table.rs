//! The table of open flows: bounded, and constant work per packet.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::config::{FlowConfig, FlowCounters};
use super::key::FlowKey;
use super::list::{Arena, LINKS_BYTES, List};
use super::payload::{Payload, SpareBuffers};
use super::record::{Direction, Endpoints, Flow, PacketRecord};
use super::recorder::{self, HostPacket, TCP};
use super::tcp::{Belongs, TcpState};
use crate::decode::Packet;
use crate::error::FlowConfigError;
use crate::limits::RECYCLED_FLOWS_MAX;
use crate::memory::{MemoryError, try_grow, try_hold};

/// What a flow takes beside records and payload: its entry, links, a place in `free` and those in `slots`. There a place is a slot
/// number and a byte, and in the worst case, right after it has grown, each flow has 16 / 7 of them.
pub(super) const FLOW_BYTES_FIXED: usize =
    size_of::<Option<Entry>>() + LINKS_BYTES + size_of::<u32>() + (size_of::<u32>() + 1) * 16 / 7;

struct Entry {
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

/// What errors call the table.
pub(super) const TABLE: &str = "flow table";
/// Flows that a table has room for from its start, so that there is always one to give way where the system has no memory for more.
const FIRST_FLOWS: usize = 64;

/// Gathers packets into flows.
///
/// Where the system has no memory for more flows than there are, the least recently active one gives way, as in a full table.
///
/// Flows come out through the `emit` callback when they end, in an order that depends on the packets only. Time is that
/// of the packets: a flow whose last packet is further than its timeout from the present one, before or after, has
/// ended, so a clock that jumps back far does not leave flows behind forever.
pub struct FlowTable {
    config: FlowConfig,
    active_timeout_ns: u64,
    /// Finds the slot of a key. The key itself is not kept: a flow's endpoints tell it. Never iterated, so `seed` has no effect
    /// on order.
    slots: HashTable<u32>,
    /// Random: a sender cannot choose colliding keys.
    seed: RandomState,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    links: Arena,
    /// Indexed by [`Queue`].
    waiting: [Waiting; 3],
    counters: FlowCounters,
    spare_records: Vec<Vec<PacketRecord>>,
    spare_buffers: SpareBuffers,
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
        let first_flows = FIRST_FLOWS.min(config.max_flows);
        Ok(Self {
            config,
            active_timeout_ns: config.active_timeout_us * 1_000,
            slots: HashTable::with_capacity(first_flows),
            seed: RandomState::new(),
            entries: Vec::with_capacity(first_flows),
            free: Vec::with_capacity(first_flows),
            links: Arena::default(),
            waiting: [
                waiting(config.tcp_idle_timeout_us),
                waiting(config.other_idle_timeout_us),
                waiting(config.closed_timeout_us),
            ],
            counters: FlowCounters::default(),
            spare_records: Vec::new(),
            spare_buffers: SpareBuffers::default(),
        })
    }

    /// Adds one packet; flows that end with it or before it go to `emit`.
    pub fn push(&mut self, packet: &Packet<'_>, emit: &mut impl FnMut(Flow)) {
        self.counters.packets += 1;
        self.counters.fragments += u64::from(packet.fragment);
        self.expire(packet.timestamp_ns, emit);
        let (key, source_is_lower) = FlowKey::of(packet);
        let hash = self.seed.hash_one(key);
        let is_own = |slot: &u32| self.entry(*slot).is_some_and(|entry| entry.key() == key);
        if let Some(&slot) = self.slots.find(hash, is_own) {
            match self.ends_before(slot, packet, source_is_lower) {
                None => return self.append(slot, packet, source_is_lower),
                Some(end) => self.end(slot, end, emit),
            }
        }
        // Where memory is refused several may have to go: the hash table is put in order in place only when it is half empty.
        while self.slots.len() >= self.config.max_flows || self.try_grow().is_err() {
            if self.is_empty() {
                break;
            }
            self.make_room(emit);
        }
        let slot = self.begin(hash, packet, source_is_lower);
        self.append(slot, packet, source_is_lower);
    }

    /// Ends all flows, in the order of their first packets.
    pub fn flush(&mut self, emit: &mut impl FnMut(Flow)) {
        // When all flows have ended, no slot is in use: their list has room for the order in which they end.
        let mut order = std::mem::take(&mut self.free);
        order.clear();
        order.extend((0..self.entries.len() as u32).filter(|&slot| self.entry(slot).is_some()));
        order.sort_unstable_by_key(|&slot| self.entry(slot).map(|entry| entry.flow.index));
        for &slot in &order {
            self.take(slot, End::Flushed, emit);
        }
        order.clear();
        self.free = order;
        self.entries.clear();
    }

    /// Gives an emitted flow's memory back for reuse.
    pub fn recycle(&mut self, flow: Flow) {
        let Flow {
            mut records,
            payload,
            ..
        } = flow;
        let fits = (1..=self.config.max_packets).contains(&records.capacity());
        if fits && self.spare_records.len() < RECYCLED_FLOWS_MAX {
            records.clear();
            self.spare_records.push(records);
        }
        self.spare_buffers.give_back(payload, &self.config);
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

    /// Takes memory for one more flow.
    fn try_grow(&mut self) -> Result<(), MemoryError> {
        let Self {
            slots,
            entries,
            seed,
            free,
            links,
            ..
        } = self;
        if slots.len() == slots.capacity() {
            let bytes = (slots.len() + 1) * size_of::<u32>();
            let refused = |_| MemoryError { what: TABLE, bytes };
            let hash = |&slot: &u32| hash_of(entries, seed, slot);
            slots.try_reserve(1, hash).map_err(refused)?;
        }
        if free.is_empty() {
            try_grow(TABLE, entries, 1)?;
            links.try_hold(entries.capacity())?;
            try_hold(TABLE, free, entries.capacity())?;
        }
        Ok(())
    }

    fn begin(&mut self, hash: u64, packet: &Packet<'_>, source_is_lower: bool) -> u32 {
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
            records: self.spare_records.pop().unwrap_or_default(),
            payload: Payload::default(),
        };
        let entry = Entry {
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
        let Self {
            slots,
            entries,
            seed,
            ..
        } = self;
        slots.insert_unique(hash, slot, |&slot| hash_of(entries, seed, slot));
        self.counters.flows += 1;
        slot
    }

    fn append(&mut self, slot: u32, packet: &Packet<'_>, source_is_lower: bool) {
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        entry.append(
            packet,
            source_is_lower,
            &self.config,
            &mut self.counters,
            &mut self.spare_buffers,
        );
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
        if self.take(slot, end, emit) {
            self.free.push(slot);
        }
    }

    /// Ends the flow of a slot, which stays out of the list of free ones; whether there was one.
    fn take(&mut self, slot: u32, end: End, emit: &mut impl FnMut(Flow)) -> bool {
        let hash = hash_of(&self.entries, &self.seed, slot);
        let Some(entry) = self.entries.get_mut(slot as usize).and_then(Option::take) else {
            return false;
        };
        self.links
            .remove(&mut self.waiting[entry.queue as usize].list, slot);
        if let Ok(place) = self.slots.find_entry(hash, |found| *found == slot) {
            place.remove();
        }
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
        true
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }
}

/// The hash of a slot's key; of an empty slot, which is in no table, that of nothing.
fn hash_of(entries: &[Option<Entry>], seed: &RandomState, slot: u32) -> u64 {
    let entry = entries.get(slot as usize).and_then(Option::as_ref);
    entry.map_or(0, |entry| seed.hash_one(entry.key()))
}

impl Entry {
    fn key(&self) -> FlowKey {
        FlowKey::of_flow(&self.flow.endpoints).0
    }

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
        spare: &mut SpareBuffers,
    ) {
        // Both ends the same: direction cannot be told, and need not be.
        let direction = self.direction(source_is_lower);
        if packet.protocol == TCP {
            self.tcp
                .add(direction, packet.tcp_flags, packet.tcp_sequence);
        }
        let host_packet = HostPacket {
            direction,
            time_ns: packet.timestamp_ns,
            ip_bytes: packet.ip_bytes,
            payload_bytes: packet.payload_bytes,
            tcp_flags: packet.tcp_flags,
            payload: packet.payload,
        };
        let lost = recorder::append(
            &mut self.flow,
            &mut self.last_ns,
            &host_packet,
            config,
            spare,
        );
        counters.packets_beyond_limit += u64::from(lost.is_beyond_limit);
        counters.payload_bytes_cut += lost.payload_bytes_cut;
        counters.time_backwards += u64::from(lost.is_time_backwards);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
