//! Doubly linked lists of slot numbers: the flows in the order of their last packets.

use crate::memory::{MemoryError, try_hold};

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    previous: u32,
    next: u32,
}

/// What one slot takes in an [`Arena`].
pub(super) const LINKS_BYTES: usize = size_of::<Links>();

/// One list; the links of all slots live in an [`Arena`] so that a slot can move between lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(super) fn new() -> Self {
        Self {
            head: NONE,
            tail: NONE,
        }
    }

    /// The slot that was pushed longest ago.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }
}

/// The links of all slots. A slot is in at most one list at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Arena(Vec<Links>);

impl Arena {
    /// Takes memory for `count` slots.
    pub(super) fn try_hold(&mut self, count: usize) -> Result<(), MemoryError> {
        try_hold(super::table::TABLE, &mut self.0, count)
    }

    /// Makes room for the slots below `count`.
    pub(super) fn grow(&mut self, count: usize) {
        if self.0.len() < count {
            self.0.resize(
                count,
                Links {
                    previous: NONE,
                    next: NONE,
                },
            );
        }
    }

    /// Puts a slot that is in no list at the young end.
    pub(super) fn push(&mut self, list: &mut List, slot: u32) {
        let previous = list.tail;
        if let Some(links) = self.0.get_mut(slot as usize) {
            *links = Links {
                previous,
                next: NONE,
            };
        }
        match self.0.get_mut(previous as usize) {
            Some(links) => links.next = slot,
            None => list.head = slot,
        }
        list.tail = slot;
    }

    /// Takes a slot out of its list.
    pub(super) fn remove(&mut self, list: &mut List, slot: u32) {
        let Some(&Links { previous, next }) = self.0.get(slot as usize) else {
            return;
        };
        match self.0.get_mut(previous as usize) {
            Some(links) => links.next = next,
            None => list.head = next,
        }
        match self.0.get_mut(next as usize) {
            Some(links) => links.previous = previous,
            None => list.tail = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(arena: &mut Arena, list: &mut List) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(slot) = list.oldest() {
            arena.remove(list, slot);
            order.push(slot);
        }
        order
    }

    #[test]
    fn keeps_the_order_of_pushes() {
        let (mut arena, mut list) = (Arena::default(), List::new());
        arena.grow(4);
        for slot in [2, 0, 3, 1] {
            arena.push(&mut list, slot);
        }
        arena.remove(&mut list, 0);
        arena.push(&mut list, 0);
        arena.remove(&mut list, 2);
        assert_eq!(drain(&mut arena, &mut list), [3, 1, 0]);
        assert_eq!(list.oldest(), None);
    }

    #[test]
    fn moves_a_slot_between_lists() {
        let (mut arena, mut first, mut second) = (Arena::default(), List::new(), List::new());
        arena.grow(3);
        for slot in 0..3 {
            arena.push(&mut first, slot);
        }
        arena.remove(&mut first, 2);
        arena.push(&mut second, 2);
        assert_eq!(drain(&mut arena, &mut first), [0, 1]);
        assert_eq!(drain(&mut arena, &mut second), [2]);
    }
}
