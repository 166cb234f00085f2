//! Where the payload of flows is kept: in buffers of one size that flows hand on to each other.
//!
//! A buffer never grows, so nothing is left behind in odd sizes when many flows grow at the same time, and what one flow gives
//! back fits every other flow.

use super::config::FlowConfig;
use crate::limits::{RECYCLED_FLOWS_MAX, RECYCLED_PAYLOAD_BYTES_MAX};
use crate::memory::{MemoryError, try_filled, try_grow, try_with_capacity};

/// The kept payload of a flow. Each packet's payload is whole in one buffer: one that does not fit behind the payload before it
/// begins the next buffer.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    buffers: Vec<Box<[u8]>>,
    /// Bytes taken of the last buffer.
    last_used: usize,
}

impl Payload {
    /// Bytes of the buffers, used or not.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.len()).sum()
    }

    /// All that it takes beside itself.
    pub(super) fn bytes(&self) -> usize {
        self.buffer_bytes() + self.buffers.capacity() * size_of::<Box<[u8]>>()
    }

    /// Keeps the start of a packet's payload as far as the settings leave room and the system gives memory, and says how many bytes
    /// that is.
    pub(super) fn push(
        &mut self,
        payload: &[u8],
        config: &FlowConfig,
        spare: &mut SpareBuffers,
    ) -> usize {
        let wanted = payload.get(..config.max_payload_bytes).unwrap_or(payload);
        if wanted.len() > self.room() && self.buffers.len() < config.max_payloads {
            // Where there is no memory for one, the room that is left is all there is.
            let _begun = self.begin_buffer(config, spare);
        }
        let kept = &wanted[..wanted.len().min(self.room())];
        let used = self.last_used;
        if let Some(last) = self.buffers.last_mut() {
            last[used..used + kept.len()].copy_from_slice(kept);
            self.last_used += kept.len();
        }
        kept.len()
    }

    fn begin_buffer(
        &mut self,
        config: &FlowConfig,
        spare: &mut SpareBuffers,
    ) -> Result<(), MemoryError> {
        if self.buffers.capacity() == 0 {
            self.buffers = spare.list(config)?;
        }
        try_grow(PAYLOAD, &mut self.buffers, 1)?;
        self.buffers.push(spare.buffer(config)?);
        self.last_used = 0;
        Ok(())
    }

    /// Keeps a payload in a buffer of its own.
    pub(super) fn push_whole(&mut self, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        // Left with room, the buffer before would be taken for the place of this payload.
        if let Some(last) = self
            .buffers
            .last_mut()
            .filter(|last| last.len() > self.last_used)
        {
            *last = last[..self.last_used].into();
        }
        self.buffers.push(payload.into());
        self.last_used = payload.len();
    }

    /// Reads the payloads in the order in which they were pushed.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            buffers: self.buffers.iter(),
            rest: &[],
        }
    }

    fn room(&self) -> usize {
        self.buffers
            .last()
            .map_or(0, |last| last.len() - self.last_used)
    }
}

/// Finds payloads by their lengths alone: where one stands follows from those before it.
pub(super) struct Reader<'a> {
    buffers: std::slice::Iter<'a, Box<[u8]>>,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next payload, of which `kept` bytes were kept; empty where the buffers end before.
    pub(super) fn next(&mut self, kept: usize) -> &'a [u8] {
        if kept > self.rest.len() {
            self.rest = self.buffers.next().map_or(&[], |buffer| buffer);
        }
        let (payload, rest) = self.rest.split_at(kept.min(self.rest.len()));
        self.rest = rest;
        payload
    }
}

/// Memory of ended flows that waits for new ones, a bounded amount.
#[derive(Debug, Default)]
pub(super) struct SpareBuffers {
    buffers: Vec<Box<[u8]>>,
    lists: Vec<Vec<Box<[u8]>>>,
}

impl SpareBuffers {
    /// Takes the memory of a payload back. Buffers of another size are those of another table.
    pub(super) fn give_back(&mut self, payload: Payload, config: &FlowConfig) {
        let limit = (RECYCLED_PAYLOAD_BYTES_MAX / config.max_payload_bytes.max(1))
            .min(RECYCLED_FLOWS_MAX * config.max_payloads);
        let mut list = payload.buffers;
        for buffer in list.drain(..) {
            let fits = self.buffers.len() < limit && buffer.len() == config.max_payload_bytes;
            // Without memory to remember it, the buffer itself goes.
            if fits && self.buffers.try_reserve(1).is_ok() {
                self.buffers.push(buffer);
            }
        }
        let is_own = (1..=config.max_payloads).contains(&list.capacity());
        let fits = self.lists.len() < RECYCLED_FLOWS_MAX;
        if is_own && fits && self.lists.try_reserve(1).is_ok() {
            self.lists.push(list);
        }
    }

    /// All that it takes beside itself.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.lists.iter().map(Vec::capacity).sum::<usize>() + self.buffers.capacity();
        self.buffers
            .iter()
            .map(|buffer| buffer.len())
            .sum::<usize>()
            + lists * size_of::<Box<[u8]>>()
            + self.lists.capacity() * size_of::<Vec<Box<[u8]>>>()
    }

    /// Most that the lists of one flow's buffers take, in use and spare: they grow by doubling, from four on.
    pub(super) fn lists_bytes_max(config: &FlowConfig) -> usize {
        let grown = (2 * config.max_payloads).max(4);
        2 * grown * size_of::<Box<[u8]>>() + 4 * size_of::<Vec<Box<[u8]>>>()
    }

    fn buffer(&mut self, config: &FlowConfig) -> Result<Box<[u8]>, MemoryError> {
        match self.buffers.pop() {
            Some(buffer) => Ok(buffer),
            None => Ok(try_filled(PAYLOAD, config.max_payload_bytes, 0)?.into_boxed_slice()),
        }
    }

    /// An empty list with room for all that a flow may keep, but few at first where that is much.
    fn list(&mut self, config: &FlowConfig) -> Result<Vec<Box<[u8]>>, MemoryError> {
        match self.lists.pop() {
            Some(list) => Ok(list),
            None => try_with_capacity(PAYLOAD, config.max_payloads.min(FIRST_PAYLOADS)),
        }
    }
}

/// What errors call it.
const PAYLOAD: &str = "the payload of a flow";

/// Buffers that a flow has room for at first; the default settings allow no more.
const FIRST_PAYLOADS: usize = 4;

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
