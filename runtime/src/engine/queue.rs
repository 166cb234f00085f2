//! What waits for a worker: a lane for each submitter, from which workers take in turn.
//!
//! Putting a flow in is wait-free. A lane has one producer, which never meets a lock that somebody holds; workers agree among
//! themselves who takes from it. So a worker that the system does not let run, whatever it was doing, delays no submitter.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;

use super::generation::try_lock;
use super::slot::{Mailbox, Slot, Ticket, reserve};
use crate::error::Error;
use crate::limits::SUBMITTERS_MAX;

/// In the tests of this file, a moment in which other threads go on.
#[cfg(test)]
use tests::meanwhile;

#[cfg(not(test))]
fn meanwhile() {}

/// A ring for one thread that puts in, and one at a time that takes out. The two never meet in a cell: a cell is only written before
/// `tail` passes it and only read after, and again written after `head` has passed it. So none of its locks is ever waited for; they
/// are there because they make the hand-over safe whatever happens.
#[derive(Debug)]
struct Ring {
    /// A power of two of them.
    cells: Vec<Mutex<Option<Box<Slot>>>>,
    /// Slots that were taken out so far.
    head: AtomicUsize,
    /// Slots that were put in so far.
    tail: AtomicUsize,
}

impl Ring {
    fn new(slots: usize) -> Result<Self, Error> {
        let count = slots.next_power_of_two();
        let mut cells = Vec::new();
        reserve("a submitter's lane", &mut cells, count)?;
        cells.resize_with(count, || Mutex::new(None));
        Ok(Self {
            cells,
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
        })
    }

    fn cell(&self, position: usize) -> &Mutex<Option<Box<Slot>>> {
        &self.cells[position & (self.cells.len() - 1)]
    }

    fn len(&self) -> usize {
        // The head first: it never passes the tail.
        let head = self.head.load(SeqCst);
        self.tail.load(SeqCst).wrapping_sub(head)
    }

    fn push(&self, slot: Box<Slot>) -> Result<(), Box<Slot>> {
        let tail = self.tail.load(SeqCst);
        if self.len() >= self.cells.len() {
            return Err(slot);
        }
        let Some(mut cell) = try_lock(self.cell(tail)) else {
            return Err(slot);
        };
        *cell = Some(slot);
        drop(cell);
        self.tail.store(tail.wrapping_add(1), SeqCst);
        Ok(())
    }

    fn pop(&self) -> Option<Box<Slot>> {
        if self.len() == 0 {
            return None;
        }
        let head = self.head.load(SeqCst);
        let slot = try_lock(self.cell(head))?.take();
        self.head.store(head.wrapping_add(1), SeqCst);
        slot
    }

    fn bytes(&self) -> usize {
        self.cells.capacity() * size_of::<Mutex<Option<Box<Slot>>>>()
    }
}

/// One submitter's part of the queue.
#[derive(Debug)]
pub(super) struct Lane {
    ring: Ring,
    /// Held by whoever takes from the ring, for one slot at a time.
    taking: Mutex<()>,
    mailbox: Arc<Mailbox>,
    /// Whether its flows count for the queue's limit.
    is_limited: bool,
}

impl Lane {
    pub(super) fn new(
        slots: usize,
        mailbox: &Arc<Mailbox>,
        is_limited: bool,
    ) -> Result<Self, Error> {
        Ok(Self {
            ring: Ring::new(slots)?,
            taking: Mutex::new(()),
            mailbox: Arc::clone(mailbox),
            is_limited,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.len() == 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Tells the submitter that the engine was stopped.
    pub(super) fn tell_stopped(&self) {
        self.mailbox.tell_stopped();
    }

    /// Nobody puts anything in any more, and nothing is left.
    fn is_done(&self) -> bool {
        self.mailbox.is_closed() && self.is_empty()
    }

    /// Whether something is there that nobody else is just taking.
    fn is_ready(&self) -> bool {
        !self.is_empty() && try_lock(&self.taking).is_some()
    }
}

/// A worker that may be asleep.
#[derive(Debug, Default)]
struct Sleeper {
    is_asleep: AtomicBool,
    /// Set when the thread begins.
    thread: OnceLock<Thread>,
}

impl Sleeper {
    /// Wakes the worker if it is asleep, and says whether it was.
    fn wake(&self) -> bool {
        let was_asleep = self.is_asleep.load(SeqCst) && self.is_asleep.swap(false, SeqCst);
        if was_asleep && let Some(thread) = self.thread.get() {
            thread.unpark();
        }
        was_asleep
    }
}

/// All lanes, and the workers that sleep while there is nothing in them.
#[derive(Debug)]
pub(super) struct Queue {
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// Changes with the lanes.
    version: AtomicUsize,
    /// Slots that wait in limited lanes.
    waiting: AtomicUsize,
    waiting_max: usize,
    sleepers: Box<[Sleeper]>,
}

impl Queue {
    pub(super) fn new(waiting_max: usize, workers: usize) -> Self {
        Self {
            lanes: Mutex::new(Vec::new()),
            version: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiting_max,
            sleepers: (0..workers).map(|_| Sleeper::default()).collect(),
        }
    }

    /// Most flows that wait in limited lanes.
    pub(super) fn waiting_max(&self) -> usize {
        self.waiting_max
    }

    fn lock_lanes(&self) -> MutexGuard<'_, Vec<Arc<Lane>>> {
        // Nobody panics while holding it.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets workers look into one more lane.
    pub(super) fn open(&self, lane: &Arc<Lane>) -> Result<(), Error> {
        let mut lanes = self.lock_lanes();
        lanes.retain(|lane| !lane.is_done());
        if lanes.len() >= SUBMITTERS_MAX {
            return Err(Error::Setting {
                setting: "submitters",
                minimum: 0,
                maximum: SUBMITTERS_MAX,
                found: lanes.len() + 1,
            });
        }
        lanes.push(Arc::clone(lane));
        self.version.fetch_add(1, SeqCst);
        Ok(())
    }

    /// For a lane whose mailbox is closed: takes out what waits, and the lane itself; what a worker is just at is left to the workers.
    pub(super) fn close(&self, lane: &Lane) {
        while let Some(slot) = self.take_back(lane) {
            drop(slot);
        }
        if let Some(mut lanes) = try_lock(&self.lanes) {
            lanes.retain(|lane| !lane.is_done());
        }
        self.version.fetch_add(1, SeqCst);
    }

    /// Slots that wait.
    pub(super) fn depth(&self) -> usize {
        self.lock_lanes().iter().map(|lane| lane.ring.len()).sum()
    }

    /// Whether there are workers with threads of their own, started or not.
    pub(super) fn has_workers(&self) -> bool {
        !self.sleepers.is_empty()
    }

    /// Whether a limited lane would refuse a flow now.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(SeqCst) >= self.waiting_max
    }

    /// Puts a slot into the submitter's own lane and wakes a worker; gives it back where the queue is full.
    pub(super) fn put(&self, lane: &Lane, slot: Box<Slot>) -> Result<(), Box<Slot>> {
        if lane.is_limited && self.waiting.fetch_add(1, SeqCst) >= self.waiting_max {
            self.waiting.fetch_sub(1, SeqCst);
            return Err(slot);
        }
        let put = lane.ring.push(slot);
        meanwhile();
        if put.is_ok() {
            self.wake();
        } else if lane.is_limited {
            self.waiting.fetch_sub(1, SeqCst);
        }
        put
    }

    /// Takes from a lane. `None` where nothing is there, or where somebody else is just taking.
    pub(super) fn take_back(&self, lane: &Lane) -> Option<Box<Slot>> {
        if lane.is_empty() {
            return None;
        }
        let taking = try_lock(&lane.taking)?;
        let slot = lane.ring.pop()?;
        drop(taking);
        if lane.is_limited {
            self.waiting.fetch_sub(1, SeqCst);
        }
        Some(slot)
    }

    fn take(&self, lane: &Lane) -> Option<Ticket> {
        let slot = self.take_back(lane)?;
        Some(Ticket::new(slot, &lane.mailbox))
    }

    /// All lanes. Where a worker that the system does not let run holds their list, this tries until the time has come; the submitters
    /// then take back what is theirs.
    pub(super) fn lanes(&self, until: Instant) -> Option<Vec<Arc<Lane>>> {
        loop {
            match try_lock(&self.lanes) {
                Some(lanes) => return Some(lanes.clone()),
                None if Instant::now() >= until => return None,
                None => thread::yield_now(),
            }
        }
    }

    /// Sends home what waits in a lane and nobody will run any more, and says how many flows that were.
    pub(super) fn abandon(&self, lane: &Lane) -> usize {
        let mut flows = 0;
        while let Some(ticket) = self.take(lane) {
            drop(ticket);
            flows += 1;
        }
        flows
    }

    /// Wakes one worker, if one is asleep, and says whether.
    ///
    /// A worker says that it is asleep before it looks a last time into the lanes. So for a slot that was put in before this call,
    /// either the worker finds the slot or this finds the worker, in the one order that all `SeqCst` operations have.
    pub(super) fn wake(&self) -> bool {
        fence(SeqCst);
        self.sleepers.iter().any(Sleeper::wake)
    }

    /// Whether this thread is one of the workers.
    pub(super) fn is_worker(&self) -> bool {
        let own = thread::current().id();
        let threads = self.sleepers.iter().filter_map(|it| it.thread.get());
        threads.into_iter().any(|thread| thread.id() == own)
    }

    /// Wakes all workers.
    pub(super) fn wake_all(&self) {
        fence(SeqCst);
        for sleeper in &self.sleepers {
            sleeper.wake();
        }
    }
}

/// How one worker looks at the queue.
#[derive(Debug)]
pub(super) struct Taker {
    number: usize,
    lanes: Vec<Arc<Lane>>,
    version: usize,
    /// The lane to begin with: each gets its turn.
    next: usize,
    /// Whether the lane of the last slot is a limited one.
    is_at_limited: bool,
}

impl Taker {
    /// For the worker with this number.
    pub(super) fn new(number: usize) -> Self {
        Self {
            number,
            lanes: Vec::with_capacity(SUBMITTERS_MAX),
            version: 0,
            next: 0,
            is_at_limited: false,
        }
    }

    /// Tells the queue which thread to wake.
    pub(super) fn begin(&self, queue: &Queue) {
        if let Some(sleeper) = queue.sleepers.get(self.number) {
            sleeper.thread.get_or_init(thread::current);
        }
    }

    fn refresh(&mut self, queue: &Queue) {
        if self.version == queue.version.load(SeqCst) {
            return;
        }
        let mut lanes = queue.lock_lanes();
        self.version = queue.version.load(SeqCst);
        lanes.retain(|lane| !lane.is_done());
        self.lanes.clear();
        self.lanes.extend(lanes.iter().map(Arc::clone));
    }

    /// The next slot, one from each lane in turn.
    pub(super) fn take(&mut self, queue: &Queue) -> Option<Ticket> {
        self.take_where(queue, |_| true)
    }

    /// As [`Self::take`], from lanes that are limited where that of the slot before was, and not where it was not.
    pub(super) fn take_alike(&mut self, queue: &Queue) -> Option<Ticket> {
        let is_limited = self.is_at_limited;
        self.take_where(queue, |lane| lane.is_limited == is_limited)
    }

    fn take_where(&mut self, queue: &Queue, is_meant: impl Fn(&Lane) -> bool) -> Option<Ticket> {
        self.refresh(queue);
        let count = self.lanes.len();
        let first = self.next;
        (first..first + count).find_map(|place| {
            let place = place % count;
            let lane = &self.lanes[place];
            let ticket = is_meant(lane).then(|| queue.take(lane)).flatten()?;
            self.is_at_limited = lane.is_limited;
            self.next = (place + 1) % count;
            Some(ticket)
        })
    }

    /// Whether something waits that no other worker is just taking. Another worker looks itself, by [`Self::pass_on`], when it has
    /// taken what it wants.
    pub(super) fn has_waiting(&mut self, queue: &Queue) -> bool {
        self.refresh(queue);
        self.lanes.iter().any(|lane| lane.is_ready())
    }

    /// Wakes another worker for what this one leaves behind.
    pub(super) fn pass_on(&mut self, queue: &Queue) {
        self.refresh(queue);
        fence(SeqCst);
        if self.lanes.iter().any(|lane| !lane.is_empty()) {
            queue.wake();
        }
    }

    /// Sleeps until something waits, until `until`, or until woken; not at all where `is_needed` says so after this worker has said
    /// that it is asleep.
    pub(super) fn sleep(
        &mut self,
        queue: &Queue,
        until: Option<Instant>,
        is_needed: impl Fn() -> bool,
    ) {
        let Some(sleeper) = queue.sleepers.get(self.number) else {
            return;
        };
        meanwhile();
        sleeper.is_asleep.store(true, SeqCst);
        fence(SeqCst);
        meanwhile();
        if !self.has_waiting(queue) && !is_needed() {
            meanwhile();
            match until {
                None => thread::park(),
                Some(until) => {
                    thread::park_timeout(until.saturating_duration_since(Instant::now()));
                }
            }
        }
        sleeper.is_asleep.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests;
