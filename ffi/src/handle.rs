//! Handles that cannot hurt: what the host holds is no address but a number that is looked up.
//!
//! A handle names a kind, a place and the place's generation. Freeing a thing makes the generation go on, so a handle that was
//! freed, one of another kind and any other number are found out, where an address could only crash. Finding a thing takes one
//! atomic exchange and no lock; two threads that use one thing at the same time are told so.
//!
//! This module is the only one that turns a number into a reference.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Why a handle gives nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandleError {
    /// NULL.
    Null,
    /// The handle of something else, or no handle at all.
    OtherKind,
    /// It was freed, or never given out.
    Stale,
    /// Somebody else has it in use.
    Busy,
    /// A call panicked while it had it: it can only be freed.
    Poisoned,
}

/// Why nothing could be put into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// The table's limit is reached.
    Full {
        /// The most that the table takes.
        limit: u32,
    },
    /// The system gave no memory.
    Memory {
        /// What was asked for.
        bytes: usize,
    },
}

// A handle: generation, place, kind, from the high bits down. No kind is 0, so no handle is NULL, and an address that the memory
// allocator gave is none.
const KIND_BITS: u32 = 4;
#[cfg(target_pointer_width = "64")]
const PLACE_BITS: u32 = 28;
#[cfg(not(target_pointer_width = "64"))]
const PLACE_BITS: u32 = 16;
const GENERATION_BITS: u32 = usize::BITS - KIND_BITS - PLACE_BITS;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// Most things that a table can be told to hold: what the places of a handle can count.
pub(crate) const PLACES_MAX: u32 = if PLACE_BITS == 28 { 1 << 22 } else { 1 << 16 };

/// Places of the first chunk; each further chunk has twice as many as the one before.
const FIRST_PLACES: u32 = 64;
const CHUNKS: usize = 17;
const _: () = assert!(FIRST_PLACES as u64 * ((1 << CHUNKS) - 1) > PLACES_MAX as u64);

// The state of a place: its generation in the high half; in the low half the number of calls that clone it, or one of these.
const LOW: u64 = 0xffff_ffff;
/// One call has it alone.
const EXCLUSIVE: u64 = 0xffff_ffff;
/// Nothing is there.
const VACANT: u64 = 0xffff_fffe;
/// A call panicked while it had it alone.
const POISONED: u64 = 0xffff_fffd;
/// Added to the number of calls that clone it: its handle has ended, and the last of them takes it out.
const RETIRED: u64 = 0x4000_0000;

struct Place<T> {
    state: AtomicU64,
    /// Of a vacant place: the next one of the free list, plus one.
    next_free: AtomicU32,
    value: UnsafeCell<Option<T>>,
}

/// All things of one kind that the host has handles of.
pub(crate) struct Table<T> {
    kind: usize,
    limit: u32,
    chunks: [OnceLock<Box<[Place<T>]>>; CHUNKS],
    /// Places that were ever given out.
    used: AtomicU32,
    /// The first vacant place plus one in the low half; the high half counts changes, so that an exchange cannot mistake a list
    /// that has come back to the same head for the one it read.
    free: AtomicU64,
    live: AtomicU32,
}

// SAFETY: a `&mut T` or the `T` itself is given to one thread at a time, which is what `Send` allows: the state word is exchanged
// to EXCLUSIVE with acquire ordering before and set free with release ordering after. A `&T` is shared between threads only in
// `cloned`, which asks for `T: Sync`.
unsafe impl<T: Send> Sync for Table<T> {}

impl<T: Send> Table<T> {
    /// An empty table. `kind` is 1 to 15, `limit` the most things it holds, at most [`PLACES_MAX`].
    pub(crate) const fn new(kind: usize, limit: u32) -> Self {
        assert!(kind > 0 && kind < 1 << KIND_BITS && limit <= PLACES_MAX);
        Self {
            kind,
            limit,
            chunks: [const { OnceLock::new() }; CHUNKS],
            used: AtomicU32::new(0),
            free: AtomicU64::new(0),
            live: AtomicU32::new(0),
        }
    }

    /// Things in the table.
    #[cfg(test)]
    pub(crate) fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Puts a thing in and gives its handle.
    pub(crate) fn insert(&self, value: T) -> Result<usize, InsertError> {
        let full = InsertError::Full { limit: self.limit };
        let counted = self
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                (live < self.limit).then_some(live + 1)
            });
        counted.map_err(|_| full)?;
        let vacant = self.pop_free().map_or_else(|| self.fresh(), Ok);
        let (index, place) = vacant.inspect_err(|_| {
            self.live.fetch_sub(1, Ordering::Relaxed);
        })?;
        let generation = place.state.load(Ordering::Relaxed) >> 32;
        // SAFETY: the place is vacant and was taken off the free list, or was never used: no other thread reaches its value
        // until the state below says that it is idle.
        unsafe { *place.value.get() = Some(value) };
        place.state.store(generation << 32, Ordering::Release);
        Ok(self.handle(index, generation))
    }

    /// The thing of a handle, for this call alone.
    pub(crate) fn exclusive(&self, handle: usize) -> Result<Exclusive<'_, T>, HandleError> {
        let (_, generation, place) = self.find(handle)?;
        claim(place, generation, 0)?;
        // SAFETY: the state was brought from idle to EXCLUSIVE, so that no other call reaches the value until the guard is dropped.
        let value = unsafe { (*place.value.get()).as_mut() };
        let value = value.map(NonNull::from).ok_or(HandleError::Stale)?;
        let held = Exclusive { place, value };
        crate::faults::panic_in_use_if_told();
        Ok(held)
    }

    /// A clone of the thing of a handle.
    pub(crate) fn cloned(&self, handle: usize) -> Result<T, HandleError>
    where
        T: Clone + Sync,
    {
        let (index, generation, place) = self.find(handle)?;
        let counted = place
            .state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
                (state >> 32 == generation && state & LOW < RETIRED).then_some(state + 1)
            });
        counted.map_err(|_| HandleError::Stale)?;
        // SAFETY: while calls are counted nobody gets the value exclusively, so shared references are all there are, and
        // `T: Sync` lets several threads have one.
        let value = unsafe { (*place.value.get()).clone() };
        let before = place.state.fetch_sub(1, Ordering::AcqRel);
        if before & LOW == RETIRED + 1 {
            drop(self.vacate(index, generation, place));
        }
        value.ok_or(HandleError::Stale)
    }

    /// Ends the handle of a thing that calls clone: calls under way keep their clone, later ones find the handle stale.
    pub(crate) fn retire(&self, handle: usize) -> Result<(), HandleError> {
        let (index, generation, place) = self.find(handle)?;
        let retired = place
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
                let (found, calls) = (state >> 32, state & LOW);
                let is_live = found == generation && calls < RETIRED;
                is_live.then_some(if calls == 0 {
                    state | EXCLUSIVE
                } else {
                    state | RETIRED
                })
            });
        let before = retired.map_err(|_| HandleError::Stale)?;
        if before & LOW == 0 {
            drop(self.vacate(index, generation, place));
        }
        Ok(())
    }

    /// Takes a thing that is used by one call at a time out of the table.
    pub(crate) fn remove(&self, handle: usize) -> Result<T, HandleError> {
        let (index, generation, place) = self.find(handle)?;
        match claim(place, generation, 0) {
            Err(HandleError::Poisoned) => claim(place, generation, POISONED),
            claimed => claimed,
        }?;
        self.vacate(index, generation, place)
            .ok_or(HandleError::Stale)
    }

    /// The place that a handle names, with its index and generation, which may have ended.
    fn find(&self, handle: usize) -> Result<(u32, u64, &Place<T>), HandleError> {
        if handle == 0 {
            return Err(HandleError::Null);
        }
        if handle & ((1 << KIND_BITS) - 1) != self.kind {
            return Err(HandleError::OtherKind);
        }
        let rest = handle >> KIND_BITS;
        let index = (rest & ((1 << PLACE_BITS) - 1)) as u32;
        let generation = (rest >> PLACE_BITS) as u64;
        let place = self.place(index).ok_or(HandleError::Stale)?;
        Ok((index, generation, place))
    }

    fn handle(&self, index: u32, generation: u64) -> usize {
        ((generation as usize) << PLACE_BITS | index as usize) << KIND_BITS | self.kind
    }

    /// A place of a chunk that exists.
    fn place(&self, index: u32) -> Option<&Place<T>> {
        let (chunk, offset) = chunk_of(index);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// A place that was never used before.
    fn fresh(&self) -> Result<(u32, &Place<T>), InsertError> {
        // `live` has been counted and is within the limit, but places that another thread is just giving back are not on the
        // free list yet: so the places may go a little past the limit, never past those that a handle can name.
        let used = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < PLACES_MAX).then_some(used + 1)
            });
        let index = used.map_err(|_| InsertError::Full { limit: self.limit })?;
        let (chunk, _) = chunk_of(index);
        if self.chunks[chunk].get().is_none() {
            let made = chunk_places(chunk).inspect_err(|_| {
                // The place is lost to later calls only if another thread has taken the one after it meanwhile.
                let _kept = self.used.compare_exchange(
                    index + 1,
                    index,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            })?;
            // Another thread may have been faster: its chunk is as good.
            let _faster = self.chunks[chunk].set(made);
        }
        let place = self.place(index);
        Ok((index, place.ok_or(InsertError::Full { limit: self.limit })?))
    }

    /// Empties a place that this call has alone, and makes it free for another thing.
    fn vacate(&self, index: u32, generation: u64, place: &Place<T>) -> Option<T> {
        // SAFETY: the caller has brought the state from idle to EXCLUSIVE, or was the last call out of a retired place; so no
        // other thread reaches the value.
        let value = unsafe { (*place.value.get()).take() };
        let next = (generation + 1) & GENERATION_MASK;
        place.state.store(next << 32 | VACANT, Ordering::Release);
        self.push_free(index, place);
        self.live.fetch_sub(1, Ordering::Relaxed);
        value
    }

    fn push_free(&self, index: u32, place: &Place<T>) {
        let _pushed = self
            .free
            .fetch_update(Ordering::Release, Ordering::Relaxed, |head| {
                place.next_free.store(head as u32, Ordering::Relaxed);
                Some(changed(head, index + 1))
            });
    }

    fn pop_free(&self) -> Option<(u32, &Place<T>)> {
        let popped = self
            .free
            .fetch_update(Ordering::Acquire, Ordering::Acquire, |head| {
                let place = self.place((head as u32).checked_sub(1)?)?;
                Some(changed(head, place.next_free.load(Ordering::Relaxed)))
            });
        let index = (popped.ok()? as u32).checked_sub(1)?;
        Some((index, self.place(index)?))
    }
}

/// A thing that this call has alone; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Exclusive<'a, T> {
    place: &'a Place<T>,
    /// A pointer and no reference: when the place is set free in `drop`, no reference to the value may be around any more.
    value: NonNull<T>,
}

impl<T> Deref for Exclusive<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value stands in a chunk that is never freed, and while this guard lives nobody else has it.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Exclusive<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the borrow of the guard keeps it the only reference.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Exclusive<'_, T> {
    fn drop(&mut self) {
        let generation = self.place.state.load(Ordering::Relaxed) & !LOW;
        let left = if std::thread::panicking() {
            POISONED
        } else {
            0
        };
        self.place.state.store(generation | left, Ordering::Release);
    }
}

impl<T> std::fmt::Debug for Place<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.state).finish()
    }
}

/// Brings a place of this generation from a state that nobody uses, idle or [`POISONED`], to EXCLUSIVE.
fn claim<T>(place: &Place<T>, generation: u64, from: u64) -> Result<(), HandleError> {
    let unused = generation << 32 | from;
    let claimed = place.state.compare_exchange(
        unused,
        generation << 32 | EXCLUSIVE,
        Ordering::Acquire,
        Ordering::Relaxed,
    );
    claimed
        .map(|_| ())
        .map_err(|found| match (found >> 32 == generation, found & LOW) {
            (false, _) | (true, VACANT) => HandleError::Stale,
            (true, POISONED) => HandleError::Poisoned,
            (true, _) => HandleError::Busy,
        })
}

/// A head of the free list that follows `head`.
fn changed(head: u64, first: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | u64::from(first)
}

/// The chunk of a place, and its offset there.
fn chunk_of(index: u32) -> (usize, usize) {
    let number = (index / FIRST_PLACES + 1).ilog2();
    let before = FIRST_PLACES * ((1 << number) - 1);
    (number as usize, (index - before) as usize)
}

/// The vacant places of a chunk.
fn chunk_places<T>(chunk: usize) -> Result<Box<[Place<T>]>, InsertError> {
    let count = (FIRST_PLACES as usize) << chunk;
    let mut places = Vec::new();
    let reserved = places.try_reserve_exact(count);
    reserved.map_err(|_| InsertError::Memory {
        bytes: count * size_of::<Place<T>>(),
    })?;
    places.extend((0..count).map(|_| Place {
        // The first generation is 1: a handle is more than its kind and place.
        state: AtomicU64::new(1 << 32 | VACANT),
        next_free: AtomicU32::new(0),
        value: UnsafeCell::new(None),
    }));
    Ok(places.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// Counts how many of it are alive.
    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn new(alive: &Arc<AtomicUsize>) -> Self {
            alive.fetch_add(1, Ordering::SeqCst);
            Self(Arc::clone(alive))
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_handle_gives_its_thing_until_it_is_freed_and_never_after() {
        let table: Table<String> = Table::new(3, 10);
        let handle = table.insert("one".to_owned()).unwrap();
        table.exclusive(handle).unwrap().push('!');
        assert_eq!(*table.exclusive(handle).unwrap(), "one!");
        assert_eq!(table.remove(handle).unwrap(), "one!");
        let reused = table.insert("two".to_owned()).unwrap();
        assert_ne!(handle, reused, "the same place, another generation");
        assert_eq!(handle >> KIND_BITS & 0xffff, reused >> KIND_BITS & 0xffff);
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Stale);
        assert_eq!(table.remove(handle).unwrap_err(), HandleError::Stale);
        assert_eq!(*table.exclusive(reused).unwrap(), "two");
    }

    #[test]
    fn any_other_number_is_found_out() {
        let table: Table<u32> = Table::new(3, 10);
        let other: Table<u32> = Table::new(4, 10);
        let handle = table.insert(1).unwrap();
        let foreign = other.insert(1).unwrap();
        let address = std::ptr::from_ref(&table).addr();
        for (number, expected) in [
            (0, HandleError::Null),
            (foreign, HandleError::OtherKind),
            (address, HandleError::OtherKind),
            (usize::MAX, HandleError::OtherKind),
            (3, HandleError::Stale),
            (handle + (1 << KIND_BITS), HandleError::Stale),
            (usize::MAX - 12, HandleError::Stale),
        ] {
            assert_eq!(
                table.exclusive(number).map(|found| *found).unwrap_err(),
                expected,
                "{number:#x}"
            );
            assert_eq!(table.cloned(number).unwrap_err(), expected);
            assert_eq!(table.remove(number).unwrap_err(), expected);
        }
        assert_eq!(*table.exclusive(handle).unwrap(), 1);
    }

    #[test]
    fn a_thing_in_use_is_neither_given_again_nor_freed() {
        let table: Table<u32> = Table::new(1, 10);
        let handle = table.insert(7).unwrap();
        let held = table.exclusive(handle).unwrap();
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Busy);
        assert_eq!(table.remove(handle).unwrap_err(), HandleError::Busy);
        drop(held);
        assert_eq!(table.remove(handle).unwrap(), 7);
    }

    #[test]
    fn a_thing_whose_call_panicked_can_only_be_freed() {
        let table: Table<u32> = Table::new(1, 10);
        let handle = table.insert(7).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = table.exclusive(handle).unwrap();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Poisoned);
        assert_eq!(table.remove(handle).unwrap(), 7);
        assert_eq!(table.remove(handle).unwrap_err(), HandleError::Stale);
    }

    #[test]
    fn the_limit_is_exact() {
        let table: Table<u32> = Table::new(1, 100);
        let handles: Vec<usize> = (0..100)
            .map(|number| table.insert(number).unwrap())
            .collect();
        assert_eq!(
            table.insert(100).unwrap_err(),
            InsertError::Full { limit: 100 }
        );
        assert_eq!(table.live(), 100);
        for (number, &handle) in handles.iter().enumerate() {
            assert_eq!(table.remove(handle).unwrap(), number as u32);
        }
        assert_eq!(table.live(), 0);
        assert!(table.insert(0).is_ok());
    }

    #[test]
    fn places_lie_in_chunks_that_double() {
        assert_eq!(chunk_of(0), (0, 0));
        assert_eq!(chunk_of(63), (0, 63));
        assert_eq!(chunk_of(64), (1, 0));
        assert_eq!(chunk_of(191), (1, 127));
        assert_eq!(chunk_of(192), (2, 0));
        assert!(chunk_of(PLACES_MAX - 1).0 < CHUNKS);
    }

    #[test]
    fn a_retired_thing_lives_as_long_as_a_clone() {
        let alive = Arc::new(AtomicUsize::new(0));
        let table: Table<Arc<Counted>> = Table::new(2, 10);
        let handle = table.insert(Arc::new(Counted::new(&alive))).unwrap();
        let clone = table.cloned(handle).unwrap();
        table.retire(handle).unwrap();
        assert_eq!(table.retire(handle).unwrap_err(), HandleError::Stale);
        assert!(table.cloned(handle).is_err());
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        drop(clone);
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn threads_that_free_use_and_make_things_lose_none() {
        let rounds = if cfg!(miri) { 60 } else { 20_000 };
        let alive = Arc::new(AtomicUsize::new(0));
        let table: Table<Counted> = Table::new(1, 64);
        let shared: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for thread in 0..3_usize {
                let (table, shared, alive) = (&table, &shared, &alive);
                scope.spawn(move || {
                    for round in 0..rounds {
                        let cell = &shared[(round * 7 + thread * 3) % shared.len()];
                        let made = table.insert(Counted::new(alive)).unwrap();
                        // What stood there is freed by whoever finds it; uses of it may be refused, never wrong.
                        let old = cell.swap(made, Ordering::SeqCst);
                        let other = shared[round % shared.len()].load(Ordering::SeqCst);
                        if let Ok(found) = table.exclusive(other) {
                            assert!(found.0.load(Ordering::SeqCst) > 0);
                        }
                        while old != 0 && table.remove(old).err() == Some(HandleError::Busy) {
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        assert_eq!(table.live() as usize, alive.load(Ordering::SeqCst));
        for cell in &shared {
            let _empty = table.remove(cell.load(Ordering::SeqCst));
        }
        assert_eq!((table.live(), alive.load(Ordering::SeqCst)), (0, 0));
    }

    #[test]
    fn threads_that_clone_and_retire_free_each_thing_once() {
        let rounds = if cfg!(miri) { 40 } else { 10_000 };
        let alive = Arc::new(AtomicUsize::new(0));
        let table: Table<Arc<Counted>> = Table::new(2, 64);
        let current = AtomicUsize::new(table.insert(Arc::new(Counted::new(&alive))).unwrap());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        if let Ok(found) = table.cloned(current.load(Ordering::SeqCst)) {
                            assert!(found.0.load(Ordering::SeqCst) > 0);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..rounds {
                    let made = table.insert(Arc::new(Counted::new(&alive))).unwrap();
                    table.retire(current.swap(made, Ordering::SeqCst)).unwrap();
                }
            });
        });
        table.retire(current.load(Ordering::SeqCst)).unwrap();
        assert_eq!((table.live(), alive.load(Ordering::SeqCst)), (0, 0));
    }
}
