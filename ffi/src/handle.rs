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
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

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

/// Places are made in chunks of so many: few enough that making one is nothing that a packet would have to wait for.
pub(crate) const CHUNK_PLACES: u32 = 1 << 10;

/// Most chunks of a table: what the places of a handle can count, and not more than 4,194,304 places.
pub(crate) const CHUNKS_MAX: usize = if PLACE_BITS == 28 { 1 << 12 } else { 1 << 6 };

// The state of a place: its generation in the high half; in the low half the number of calls that clone it, or one of these.
const LOW: u64 = 0xffff_ffff;
/// One call has it alone.
const EXCLUSIVE: u64 = 0xffff_ffff;
/// Nothing is there.
const VACANT: u64 = 0xffff_fffe;
/// A call panicked while it had it alone.
const POISONED: u64 = 0xffff_fffd;
/// One call has it alone, and its handle has ended: that call takes it out.
const ENDED: u64 = 0xffff_fffc;
/// Added to the number of calls that clone it: its handle has ended, and the last of them takes it out.
const RETIRED: u64 = 0x4000_0000;

struct Place<T> {
    state: AtomicU64,
    /// Of a vacant place: the next one of the free list, plus one.
    next_free: AtomicU32,
    value: UnsafeCell<Option<T>>,
}

/// The places of a chunk, side by side.
type Chunk<T> = [Place<T>; CHUNK_PLACES as usize];

/// All things of one kind that the host has handles of, at most `CHUNKS` times [`CHUNK_PLACES`].
pub(crate) struct Table<T, const CHUNKS: usize> {
    kind: usize,
    limit: u32,
    /// NULL until the first thing needs it; never changed after.
    chunks: [AtomicPtr<Chunk<T>>; CHUNKS],
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
unsafe impl<T: Send, const CHUNKS: usize> Sync for Table<T, CHUNKS> {}

impl<T: Send, const CHUNKS: usize> Table<T, CHUNKS> {
    /// Places that there can be.
    pub(crate) const PLACES: u32 = CHUNKS as u32 * CHUNK_PLACES;

    /// An empty table. `kind` is 1 to 15, `limit` the most things it holds, at most [`Self::PLACES`].
    pub(crate) const fn new(kind: usize, limit: u32) -> Self {
        assert!(kind > 0 && kind < 1 << KIND_BITS);
        assert!(CHUNKS <= CHUNKS_MAX && limit <= Self::PLACES);
        Self {
            kind,
            limit,
            chunks: [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS],
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
    pub(crate) fn exclusive(&self, handle: usize) -> Result<Exclusive<'_, T, CHUNKS>, HandleError> {
        let (index, generation, place) = self.find(handle)?;
        claim(place, generation)?;
        // SAFETY: the state was brought from idle to EXCLUSIVE, so that no other call reaches the value until the guard is dropped.
        let value = unsafe { (*place.value.get()).as_mut() };
        let value = value.map(NonNull::from).ok_or(HandleError::Stale)?;
        let held = Exclusive {
            table: self,
            index,
            generation,
            place,
            value,
            is_in_panic: std::thread::panicking(),
        };
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

    /// Takes a thing that is used by one call at a time out of the table: at once, or, where a call has it, at the end of that call,
    /// which drops it. Its handle ends now in either case.
    pub(crate) fn remove(&self, handle: usize) -> Result<Option<T>, HandleError> {
        let (index, generation, place) = self.find(handle)?;
        let removed = place
            .state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
                ended(state, generation)
            });
        match removed {
            Ok(before) if before & LOW == EXCLUSIVE => Ok(None),
            Ok(_) => Ok(self.vacate(index, generation, place)),
            Err(_) => Err(HandleError::Stale),
        }
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
        let chunk = self.chunks.get((index / CHUNK_PLACES) as usize)?;
        let places = NonNull::new(chunk.load(Ordering::Acquire))?;
        // SAFETY: a chunk that was put there stays there, unchanged but for its atomics and cells, as long as the table.
        let places = unsafe { places.as_ref() };
        places.get((index % CHUNK_PLACES) as usize)
    }

    /// A place that was never used before.
    fn fresh(&self) -> Result<(u32, &Place<T>), InsertError> {
        // `live` has been counted and is within the limit, but places that another thread is just giving back are not on the
        // free list yet: so the places may go a little past the limit, never past those that a handle can name.
        let used = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < Self::PLACES).then_some(used + 1)
            });
        let full = InsertError::Full { limit: self.limit };
        let index = used.map_err(|_| full)?;
        let chunk = self.chunks.get((index / CHUNK_PLACES) as usize);
        let chunk = chunk.ok_or(full)?;
        if chunk.load(Ordering::Acquire).is_null() {
            let made = vacant_chunk().inspect_err(|_| {
                // The place is lost to later calls only if another thread has taken the one after it meanwhile.
                let _kept = self.used.compare_exchange(
                    index + 1,
                    index,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            })?;
            let made = Box::into_raw(made);
            let put = chunk.compare_exchange(
                std::ptr::null_mut(),
                made,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if put.is_err() {
                // Another thread was faster, and its chunk is as good.
                // SAFETY: the pointer comes from the box above and was given to nobody.
                drop(unsafe { Box::from_raw(made) });
            }
        }
        Ok((index, self.place(index).ok_or(full)?))
    }

    /// Empties a place that this call has alone, and makes it free for another thing.
    fn vacate(&self, index: u32, generation: u64, place: &Place<T>) -> Option<T> {
        // SAFETY: the caller has brought the state from idle to EXCLUSIVE or ENDED, or was the last call out of a retired place; so
        // no other thread reaches the value.
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

impl<T, const CHUNKS: usize> Drop for Table<T, CHUNKS> {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            let chunk = *chunk.get_mut();
            if !chunk.is_null() {
                // SAFETY: it came from a box, and nobody has a reference into the table any more.
                drop(unsafe { Box::from_raw(chunk) });
            }
        }
    }
}

/// A thing that this call has alone; it is free again when this is dropped.
pub(crate) struct Exclusive<'a, T: Send, const CHUNKS: usize> {
    table: &'a Table<T, CHUNKS>,
    index: u32,
    generation: u64,
    place: &'a Place<T>,
    /// A pointer and no reference: when the place is set free in `drop`, no reference to the value may be around any more.
    value: NonNull<T>,
    /// Whether a panic was on its way before: then it is not this call's.
    is_in_panic: bool,
}

impl<T: Send, const CHUNKS: usize> Deref for Exclusive<'_, T, CHUNKS> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value stands in a chunk that is never freed, and while this guard lives nobody else has it.
        unsafe { self.value.as_ref() }
    }
}

impl<T: Send, const CHUNKS: usize> DerefMut for Exclusive<'_, T, CHUNKS> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the borrow of the guard keeps it the only reference.
        unsafe { self.value.as_mut() }
    }
}

/// Sees whether the handle of a thing that is in use was freed.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    state: &'a AtomicU64,
    generation: u64,
}

impl Watch<'_> {
    pub(crate) fn is_ended(self) -> bool {
        self.state.load(Ordering::Relaxed) == self.generation << 32 | ENDED
    }
}

impl<'a, T: Send, const CHUNKS: usize> Exclusive<'a, T, CHUNKS> {
    pub(crate) fn watch(&self) -> Watch<'a> {
        Watch {
            state: &self.place.state,
            generation: self.generation,
        }
    }
}

impl<T: Send, const CHUNKS: usize> Drop for Exclusive<'_, T, CHUNKS> {
    fn drop(&mut self) {
        let is_defect = std::thread::panicking() && !self.is_in_panic;
        let generation = self.generation << 32;
        let freed = self.place.state.compare_exchange(
            generation | EXCLUSIVE,
            generation | if is_defect { POISONED } else { 0 },
            Ordering::Release,
            Ordering::Acquire,
        );
        if freed.is_err() {
            // Its handle was freed while this call had it.
            let value = self.table.vacate(self.index, self.generation, self.place);
            if is_defect {
                // Half done as it is, it may not even be fit to be dropped, and a panic in a panic would end the process.
                std::mem::forget(value);
            }
        }
    }
}

impl<T: Send, const CHUNKS: usize> std::fmt::Debug for Exclusive<'_, T, CHUNKS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Exclusive").field(&self.index).finish()
    }
}

impl<T> std::fmt::Debug for Place<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.state).finish()
    }
}

/// Brings a place of this generation from idle to EXCLUSIVE.
fn claim<T>(place: &Place<T>, generation: u64) -> Result<(), HandleError> {
    let claimed = place.state.compare_exchange(
        generation << 32,
        generation << 32 | EXCLUSIVE,
        Ordering::Acquire,
        Ordering::Relaxed,
    );
    claimed
        .map(|_| ())
        .map_err(|found| match (found >> 32 == generation, found & LOW) {
            (false, _) | (true, VACANT | ENDED) => HandleError::Stale,
            (true, POISONED) => HandleError::Poisoned,
            (true, _) => HandleError::Busy,
        })
}

/// The state of a place of this generation after its handle was freed; `None` where it has ended before.
///
/// Never EXCLUSIVE, not even where nobody has the thing: who frees it at the same time would take this call for one that uses it,
/// and both would be told that they have freed it.
fn ended(state: u64, generation: u64) -> Option<u64> {
    let is_live = matches!(state & LOW, 0 | POISONED | EXCLUSIVE);
    (state >> 32 == generation && is_live).then_some(generation << 32 | ENDED)
}

/// A head of the free list that follows `head`.
fn changed(head: u64, first: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | u64::from(first)
}

/// A chunk of vacant places.
fn vacant_chunk<T>() -> Result<Box<Chunk<T>>, InsertError> {
    let refused = InsertError::Memory {
        bytes: size_of::<Chunk<T>>(),
    };
    let mut places = Vec::new();
    let reserved = places.try_reserve_exact(CHUNK_PLACES as usize);
    reserved.map_err(|_| refused)?;
    places.extend((0..CHUNK_PLACES).map(|_| Place {
        // The first generation is 1: a handle is more than its kind and place.
        state: AtomicU64::new(1 << 32 | VACANT),
        next_free: AtomicU32::new(0),
        value: UnsafeCell::new(None),
    }));
    places.into_boxed_slice().try_into().map_err(|_| refused)
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
        let table: Table<String, 1> = Table::new(3, 10);
        let handle = table.insert("one".to_owned()).unwrap();
        table.exclusive(handle).unwrap().push('!');
        assert_eq!(*table.exclusive(handle).unwrap(), "one!");
        assert_eq!(table.remove(handle).unwrap().unwrap(), "one!");
        let reused = table.insert("two".to_owned()).unwrap();
        assert_ne!(handle, reused, "the same place, another generation");
        assert_eq!(handle >> KIND_BITS & 0xffff, reused >> KIND_BITS & 0xffff);
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Stale);
        assert_eq!(table.remove(handle).unwrap_err(), HandleError::Stale);
        assert_eq!(*table.exclusive(reused).unwrap(), "two");
    }

    #[test]
    fn any_other_number_is_found_out() {
        let table: Table<u32, 1> = Table::new(3, 10);
        let other: Table<u32, 1> = Table::new(4, 10);
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
    fn a_thing_in_use_is_not_given_again_and_freed_when_its_use_ends() {
        let alive = Arc::new(AtomicUsize::new(0));
        let table: Table<Counted, 1> = Table::new(1, 10);
        let handle = table.insert(Counted::new(&alive)).unwrap();
        let held = table.exclusive(handle).unwrap();
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Busy);
        assert!(!held.watch().is_ended());
        assert!(table.remove(handle).unwrap().is_none());
        assert!(held.watch().is_ended());
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Stale);
        assert_eq!(table.remove(handle).err(), Some(HandleError::Stale));
        assert_eq!(alive.load(Ordering::SeqCst), 1, "it is still in use");
        drop(held);
        assert_eq!((table.live(), alive.load(Ordering::SeqCst)), (0, 0));
        assert!(table.insert(Counted::new(&alive)).is_ok());
    }

    #[test]
    fn a_use_during_a_panic_of_somebody_else_is_no_defect() {
        struct Uses<'a>(&'a Table<u32, 1>, usize);
        impl Drop for Uses<'_> {
            fn drop(&mut self) {
                *self.0.exclusive(self.1).unwrap() += 1;
            }
        }
        let table: Table<u32, 1> = Table::new(1, 10);
        let handle = table.insert(7).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _uses = Uses(&table, handle);
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(*table.exclusive(handle).unwrap(), 8);
    }

    #[test]
    fn a_thing_whose_call_panicked_can_only_be_freed() {
        let table: Table<u32, 1> = Table::new(1, 10);
        let handle = table.insert(7).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = table.exclusive(handle).unwrap();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(table.exclusive(handle).unwrap_err(), HandleError::Poisoned);
        assert_eq!(table.remove(handle).unwrap(), Some(7));
        assert_eq!(table.remove(handle).unwrap_err(), HandleError::Stale);
    }

    #[test]
    fn the_limit_is_exact() {
        let table: Table<u32, 1> = Table::new(1, 100);
        let handles: Vec<usize> = (0..100)
            .map(|number| table.insert(number).unwrap())
            .collect();
        assert_eq!(
            table.insert(100).unwrap_err(),
            InsertError::Full { limit: 100 }
        );
        assert_eq!(table.live(), 100);
        for (number, &handle) in handles.iter().enumerate() {
            assert_eq!(table.remove(handle).unwrap(), Some(number as u32));
        }
        assert_eq!(table.live(), 0);
        assert!(table.insert(0).is_ok());
    }

    #[test]
    fn things_of_several_chunks_are_told_apart() {
        let count = if cfg!(miri) { 1 } else { 3 } * CHUNK_PLACES + 1;
        let table: Table<u32, 4> = Table::new(1, 4 * CHUNK_PLACES);
        let handles: Vec<usize> = (0..count)
            .map(|number| table.insert(number).unwrap())
            .collect();
        for (number, &handle) in handles.iter().enumerate() {
            assert_eq!(*table.exclusive(handle).unwrap(), number as u32);
        }
    }

    #[test]
    fn the_places_of_a_full_table_are_all_usable() {
        let table: Table<u8, 1> = Table::new(1, CHUNK_PLACES);
        let handles: Vec<usize> = (0..CHUNK_PLACES)
            .map(|_| table.insert(7).unwrap())
            .collect();
        assert!(table.insert(7).is_err());
        table.remove(handles[5]).unwrap();
        assert!(table.insert(8).is_ok());
        assert!(table.insert(9).is_err());
    }

    #[test]
    fn a_retired_thing_lives_as_long_as_a_clone() {
        let alive = Arc::new(AtomicUsize::new(0));
        let table: Table<Arc<Counted>, 1> = Table::new(2, 10);
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
        let table: Table<Counted, 1> = Table::new(1, 64);
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
                        if old != 0 {
                            table.remove(old).unwrap();
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
    fn a_thing_that_is_being_freed_is_not_freed_again() {
        // Between the two steps of freeing a thing, which another thread's call may fall into.
        for before in [0, POISONED, EXCLUSIVE] {
            let freed = ended(7 << 32 | before, 7).unwrap();
            assert_eq!(ended(freed, 7), None);
        }
        for other in [6 << 32, 8 << 32, 7 << 32 | VACANT] {
            assert_eq!(ended(other, 7), None);
        }
    }

    #[test]
    fn threads_that_clone_and_retire_free_each_thing_once() {
        let rounds = if cfg!(miri) { 40 } else { 10_000 };
        let alive = Arc::new(AtomicUsize::new(0));
        let table: Table<Arc<Counted>, 1> = Table::new(2, 64);
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
