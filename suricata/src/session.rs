//! The threads' ways into the engine.
//!
//! Each thread of Suricata that submits has a session of its own, which it makes when it first needs it. Its answers are taken by the
//! thread itself with its next packet, or by the plugin's own thread if none comes for a while. Nobody waits for the other: who finds
//! the session taken goes on and comes again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use crate::host::{Level, log};
use crate::library::abi::{self, status};
use crate::library::{CallError, Engine, Recorder, Session};
use crate::limits;

/// A flow that was submitted: its place in the table and the packets that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Place in the table.
    pub place: u32,
    /// Packets that the flow had.
    pub packets: u32,
}

impl Ticket {
    fn number(self) -> u64 {
        u64::from(self.packets) << 32 | u64::from(self.place)
    }

    /// The ticket of an answer.
    #[must_use]
    pub fn of(number: u64) -> Self {
        Self {
            place: number as u32,
            packets: (number >> 32) as u32,
        }
    }
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// An answer will come.
    Queued,
    /// The queue is full.
    Shed,
    /// The flow has too few packets.
    NeedMore,
    /// The session or the flow is another thread's for the moment, or there is no session.
    Busy,
    /// There are no packets that were not offered before.
    Nothing,
    /// The library refused, with a status.
    Failed(i32),
}

impl Submitted {
    /// What a submission's status says.
    #[must_use]
    pub fn of(status: i32) -> Self {
        match status {
            status::OK => Self::Queued,
            status::QUEUE_FULL => Self::Shed,
            status::NEED_MORE => Self::NeedMore,
            // A packet is being added to the flow, or it is being submitted.
            status::ERR_BUSY => Self::Busy,
            failed => Self::Failed(failed),
        }
    }

    /// Whether it may go well the next time.
    #[must_use]
    pub fn is_to_be_repeated(self) -> bool {
        matches!(self, Self::Busy | Self::Shed)
    }
}

/// What was submitted and not answered, the oldest first: answers come nearly in that order.
#[derive(Debug, Default)]
struct UnderWay(VecDeque<u64>);

impl UnderWay {
    fn add(&mut self, ticket: Ticket) {
        self.0.push_back(ticket.number());
    }

    /// An answer has come; whether one was expected.
    fn answered(&mut self, number: u64) -> bool {
        let place = self.0.iter().position(|&expected| expected == number);
        place.and_then(|place| self.0.remove(place)).is_some()
    }

    fn take_all(&mut self) -> Vec<Ticket> {
        self.0.drain(..).map(Ticket::of).collect()
    }
}

/// Whether a session can only be freed after a status of one of its calls.
fn ends_session(status: i32) -> bool {
    matches!(
        status,
        status::ERR_PANIC | status::ERR_FORKED | status::ERR_HANDLE
    )
}

#[derive(Debug)]
struct Way {
    session: Session,
    under_way: UnderWay,
}

/// A session with what other threads may know of it.
#[derive(Debug)]
pub struct Lane {
    way: Mutex<Way>,
    /// Whether the session can only be freed.
    is_dead: AtomicBool,
    /// Submitted and not answered.
    in_flight: AtomicU32,
    looks: Looks,
}

/// When answers are looked for: a look costs more than the rest of a packet does.
#[derive(Debug, Default)]
struct Looks {
    /// When answers were last looked for, on the plugin's clock.
    last_ms: AtomicU64,
    /// Packets of the lane's thread since. No other thread counts them.
    passed: AtomicU32,
}

impl Looks {
    /// Whether it is time with this packet: with one that `is_awaited` by its own flow, with every some others, and with the first after
    /// the plugin's clock has moved.
    fn is_due(&self, is_awaited: bool, now_ms: u64) -> bool {
        let passed = self.passed.load(Ordering::Relaxed).saturating_add(1);
        let has_moved = self.last_ms.load(Ordering::Relaxed) != now_ms;
        let is_due = is_awaited || has_moved || passed >= limits::PACKETS_PER_LOOK;
        let rest = if is_due { 0 } else { passed };
        self.passed.store(rest, Ordering::Relaxed);
        is_due
    }
}

impl Lane {
    /// Whether answers are under way.
    #[must_use]
    pub fn has_flows(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// When answers were last looked for, on the plugin's clock.
    #[must_use]
    pub fn looked_ms(&self) -> u64 {
        self.looks.last_ms.load(Ordering::Relaxed)
    }

    /// Whether its thread shall look for answers with this packet, by whose own flow one may be awaited.
    #[must_use]
    pub fn is_due(&self, is_awaited: bool, now_ms: u64) -> bool {
        self.has_flows() && self.looks.is_due(is_awaited, now_ms)
    }

    /// Whether a defect has ended its session: nothing more comes of it.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Acquire)
    }

    /// Submits a flow.
    pub fn submit(&self, recorder: Recorder, ticket: Ticket) -> Submitted {
        // The shared lane gets another session soon.
        let Some(mut way) = self.try_lock().filter(|_| !self.is_dead()) else {
            return Submitted::Busy;
        };
        let status = way.session.submit(recorder, ticket.number());
        let submitted = Submitted::of(status);
        if submitted == Submitted::Queued {
            way.under_way.add(ticket);
            self.in_flight.fetch_add(1, Ordering::AcqRel);
        } else if ends_session(status)
            // It may be the flow that is not known, or that an earlier defect has ended.
            && (status == status::ERR_FORKED || way.session.is_gone())
        {
            self.is_dead.store(true, Ordering::Release);
        }
        submitted
    }

    /// Takes the answers that have come, or that come within `wait_us`, and gives each to `answer`.
    pub fn take(&self, wait_us: u64, now_ms: u64, mut answer: impl FnMut(&[abi::Verdict])) -> bool {
        // With the lock in hand: who had it before may have found the session dead.
        let Some(mut way) = self.try_lock().filter(|_| !self.is_dead()) else {
            return false;
        };
        self.looks.last_ms.store(now_ms, Ordering::Relaxed);
        let Way { session, under_way } = &mut *way;
        let mut rest = match session.take(wait_us) {
            Ok(answers) => answers,
            Err(status) => {
                self.is_dead
                    .fetch_or(ends_session(status), Ordering::AcqRel);
                return false;
            }
        };
        let has_come = !rest.is_empty();
        while let Some(first) = rest.first() {
            let entries = (first.entries.max(1) as usize).min(rest.len());
            let (whole, behind) = rest.split_at(entries);
            rest = behind;
            if under_way.answered(first.id) {
                self.in_flight.fetch_sub(1, Ordering::AcqRel);
                answer(whole);
            }
        }
        has_come
    }

    /// What was submitted to a dead lane and will not be answered. Not on a packet's way.
    #[must_use]
    pub fn take_lost(&self) -> Vec<Ticket> {
        if !self.is_dead() {
            return Vec::new();
        }
        let Some(mut way) = self.try_lock() else {
            return Vec::new();
        };
        self.in_flight.store(0, Ordering::Release);
        way.under_way.take_all()
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Way>> {
        match self.way.try_lock() {
            Ok(way) => Some(way),
            // A panic was caught while it was held; the library has its own guard against what that may have left.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// All lanes.
#[derive(Debug, Default)]
pub struct Lanes {
    all: Mutex<Vec<Arc<Lane>>>,
    /// The lane of the plugin's own thread, for those that cannot get one.
    shared: Mutex<Option<Arc<Lane>>>,
    is_refusal_told: AtomicBool,
}

thread_local! {
    /// The calling thread's lane. It stays in the list of all when the thread ends, until its answers are taken.
    static OWN: RefCell<Option<Arc<Lane>>> = const { RefCell::new(None) };
}

impl Lanes {
    /// Makes the lane that is there for all. Before any other: later the budget may have no room for it.
    ///
    /// # Errors
    /// No memory, the budget.
    pub fn make_shared(&self, engine: &Engine) -> Result<(), CallError> {
        let lane = self.add(engine)?;
        if let Ok(mut shared) = self.shared.lock() {
            *shared = Some(lane);
        }
        Ok(())
    }

    /// Makes another shared lane if it is dead; the calling thread's own, then. Where there is no memory for it, the next time.
    pub fn renew_shared(&self, engine: &Engine) {
        if self.shared_lane().is_some_and(|lane| lane.is_dead()) && self.make_shared(engine).is_ok()
        {
            self.use_shared();
        }
    }

    fn shared_lane(&self) -> Option<Arc<Lane>> {
        // Held for a moment only: to take another pointer to it, or to put another lane in.
        self.shared.lock().ok()?.clone()
    }

    /// Makes the shared lane the calling thread's own.
    pub fn use_shared(&self) {
        // A thread that has just begun has its variables.
        let _ = OWN.try_with(|own| own.replace(self.shared_lane()));
    }

    /// Calls `function` with the calling thread's lane. A thread that has none gets one of its own, or where that is refused the
    /// shared one; so does a thread whose lane is dead. `None` where there is neither: a thread that is ending.
    pub fn own<R>(&self, engine: &Engine, function: impl FnOnce(&Lane) -> R) -> Option<R> {
        OWN.try_with(|own| {
            let mut own = own.try_borrow_mut().ok()?;
            if own.as_ref().is_none_or(|lane| lane.is_dead()) {
                *own = self.add(engine).map_or_else(
                    |error| {
                        self.tell_refusal(&error);
                        self.shared_lane()
                    },
                    Some,
                );
            }
            own.as_deref().map(function)
        })
        .ok()
        .flatten()
    }

    /// Calls `function` with the calling thread's lane if it has one.
    pub fn own_if_any<R>(function: impl FnOnce(&Lane) -> R) -> Option<R> {
        OWN.try_with(|own| own.try_borrow().ok()?.as_deref().map(function))
            .ok()
            .flatten()
    }

    /// Calls `function` with the lane that is there for all.
    pub fn shared<R>(&self, function: impl FnOnce(&Lane) -> R) -> Option<R> {
        self.shared_lane().map(|lane| function(&lane))
    }

    /// All lanes there are.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Lane>> {
        let lanes = self.all.lock();
        lanes.map(|lanes| lanes.clone()).unwrap_or_default()
    }

    /// Lets go of the lanes whose threads have ended and whose answers have come.
    pub fn prune(&self) {
        let is_needed = |lane: &Arc<Lane>| Arc::strong_count(lane) > 1 || lane.has_flows();
        let mut gone = Vec::new();
        if let Ok(mut lanes) = self.all.lock()
            && !lanes.iter().all(is_needed)
        {
            let (kept, rest) = std::mem::take(&mut *lanes).into_iter().partition(is_needed);
            *lanes = kept;
            gone = rest;
        }
        // Their sessions are freed without the lock that new threads take.
        drop(gone);
    }

    fn add(&self, engine: &Engine) -> Result<Arc<Lane>, CallError> {
        let lane = Arc::new(Lane {
            way: Mutex::new(Way {
                session: engine.new_session()?,
                under_way: UnderWay::default(),
            }),
            is_dead: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            looks: Looks::default(),
        });
        if let Ok(mut lanes) = self.all.lock() {
            lanes.push(Arc::clone(&lane));
        }
        Ok(lane)
    }

    fn tell_refusal(&self, error: &CallError) {
        if !self.is_refusal_told.swap(true, Ordering::Relaxed) {
            log(
                Level::Warning,
                &format!("no session for a thread: {error}; such threads share one"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_for_a_moment_is_offered_again() {
        for (status, submitted, is_to_be_repeated) in [
            (status::OK, Submitted::Queued, false),
            (status::NEED_MORE, Submitted::NeedMore, false),
            (status::QUEUE_FULL, Submitted::Shed, true),
            (status::ERR_BUSY, Submitted::Busy, true),
            (-3, Submitted::Failed(-3), false),
        ] {
            assert_eq!(Submitted::of(status), submitted);
            assert_eq!(submitted.is_to_be_repeated(), is_to_be_repeated);
        }
        assert!(!Submitted::Nothing.is_to_be_repeated());
    }

    #[test]
    fn answers_are_looked_for_now_and_then() {
        let looks = Looks::default();
        for round in 0..3 {
            for packet in 1..limits::PACKETS_PER_LOOK {
                assert!(!looks.is_due(false, 0), "round {round}, packet {packet}");
            }
            assert!(looks.is_due(false, 0), "round {round}");
        }
        assert!(!looks.is_due(false, 0));
        assert!(looks.is_due(true, 0), "its own flow waits");
        assert!(looks.is_due(false, 20), "the clock has moved");
        // Only a look that was had moves it: where another thread has the session, the next packet comes again.
        assert!(looks.is_due(false, 20));
        looks.last_ms.store(20, Ordering::Relaxed);
        assert!(!looks.is_due(false, 20));
    }

    #[test]
    fn answers_are_expected_once() {
        let ticket = |place| Ticket { place, packets: 3 };
        let mut under_way = UnderWay::default();
        // The same one twice: two threads may offer a flow at once.
        for place in [1, 2, 2, 4] {
            under_way.add(ticket(place));
        }
        assert!(under_way.answered(ticket(2).number()));
        assert!(!under_way.answered(ticket(3).number()));
        assert!(under_way.answered(ticket(4).number()));
        assert_eq!(under_way.take_all(), [ticket(1), ticket(2)]);
        assert!(!under_way.answered(ticket(1).number()));
    }

    #[test]
    fn only_a_defect_ends_a_session() {
        for status in [-3, -16, -17] {
            assert!(ends_session(status));
        }
        for status in [-4, -11, -15, -18, 0, 1, 2, 4] {
            assert!(!ends_session(status), "{status}");
        }
    }

    #[test]
    fn tickets_come_back_as_they_went() {
        for (place, packets) in [(0, 0), (u32::MAX, 1), (7, u32::MAX)] {
            let ticket = Ticket { place, packets };
            assert_eq!(Ticket::of(ticket.number()), ticket);
        }
    }
}
