//! The threads' ways into the engine.
//!
//! Each thread of Suricata that submits has a session of its own, which it makes when it first needs it. Its answers are taken by the
//! thread itself with its next packet, or by the plugin's own thread if none comes for a while. Nobody waits for the other: who finds
//! the session taken goes on and comes again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};

use crate::host::{Level, log};
use crate::library::abi::{self, status};
use crate::library::{CallError, Engine, Recorder, Session};

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

/// A session with what other threads may know of it.
#[derive(Debug)]
pub struct Lane {
    session: Mutex<Session>,
    /// Submitted and not answered.
    in_flight: AtomicU32,
    /// When it was last used, on the plugin's clock.
    used_ms: AtomicU64,
}

impl Lane {
    /// Whether answers are under way.
    #[must_use]
    pub fn has_flows(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// When it was last used, on the plugin's clock.
    #[must_use]
    pub fn used_ms(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }

    /// Submits a flow.
    pub fn submit(&self, recorder: Recorder, ticket: Ticket, now_ms: u64) -> Submitted {
        let Some(mut session) = self.try_lock() else {
            return Submitted::Busy;
        };
        self.used_ms.store(now_ms, Ordering::Relaxed);
        let submitted = Submitted::of(session.submit(recorder, ticket.number()));
        if submitted == Submitted::Queued {
            self.in_flight.fetch_add(1, Ordering::AcqRel);
        }
        submitted
    }

    /// Takes the answers that have come, or that come within `wait_us`, and gives each to `answer`.
    pub fn take(&self, wait_us: u64, now_ms: u64, mut answer: impl FnMut(&[abi::Verdict])) -> bool {
        let Some(mut session) = self.try_lock() else {
            return false;
        };
        self.used_ms.store(now_ms, Ordering::Relaxed);
        let mut rest = session.take(wait_us);
        let has_come = !rest.is_empty();
        while let Some(first) = rest.first() {
            let entries = (first.entries.max(1) as usize).min(rest.len());
            let (whole, behind) = rest.split_at(entries);
            let fewer = |flows: u32| flows.checked_sub(1);
            let _ = self
                .in_flight
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer);
            answer(whole);
            rest = behind;
        }
        has_come
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Session>> {
        match self.session.try_lock() {
            Ok(session) => Some(session),
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
    shared: OnceLock<Arc<Lane>>,
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
        // Nobody else makes one.
        let _ = self.shared.set(lane);
        Ok(())
    }

    /// Makes the shared lane the calling thread's own.
    pub fn use_shared(&self) {
        // A thread that has just begun has its variables.
        let _ = OWN.try_with(|own| own.replace(self.shared.get().cloned()));
    }

    /// Calls `function` with the calling thread's lane. A thread that has none gets one of its own, or where that is refused the
    /// shared one. `None` where there is neither: a thread that is ending.
    pub fn own<R>(&self, engine: &Engine, function: impl FnOnce(&Lane) -> R) -> Option<R> {
        OWN.try_with(|own| {
            let mut own = own.try_borrow_mut().ok()?;
            if own.is_none() {
                *own = self.add(engine).map_or_else(
                    |error| {
                        self.tell_refusal(&error);
                        self.shared.get().cloned()
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
        self.shared.get().map(|lane| function(lane))
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
            session: Mutex::new(engine.new_session()?),
            in_flight: AtomicU32::new(0),
            used_ms: AtomicU64::new(0),
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
    fn tickets_come_back_as_they_went() {
        for (place, packets) in [(0, 0), (u32::MAX, 1), (7, u32::MAX)] {
            let ticket = Ticket { place, packets };
            assert_eq!(Ticket::of(ticket.number()), ticket);
        }
    }
}
