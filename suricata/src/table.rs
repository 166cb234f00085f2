//! The flows that are followed, in a table of numbered places.
//!
//! A place belongs to one flow of Suricata's from its first packet until the flow has ended *and* every answer on it has come: so an
//! answer that finds its place never finds another flow there. Who holds what:
//!
//! - the flow's own state ([`crate::collect`]) hangs in Suricata's flow and is touched under the flow's lock only;
//! - a place has what other threads need: the recorder, what was fed and judged, and a box for the answer;
//! - the box has a lock that packet paths only try: who finds it taken comes again with the next packet.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use crate::host::packet::Endpoint;
use crate::library::Recorder;
use crate::limits::TABLE_BLOCK;
use crate::verdict::FlowVerdict;

/// Set in a place's word while its flow lives; the low bits count answers under way.
const ALIVE: u32 = 1 << 31;
/// Set while a verdict on a flow that has ended waits to be written.
const LATE: u32 = 1 << 30;
const PENDING: u32 = LATE - 1;
/// No place: the end of a list.
const NONE: u32 = u32::MAX;

/// What identifies a flow outside of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Suricata's number of the flow, as EVE has it.
    pub flow_id: u64,
    /// 4 or 6.
    pub ip_version: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Who sent the first packet.
    pub initiator: Endpoint,
    /// To whom.
    pub responder: Endpoint,
}

/// What other threads leave for the flow.
#[derive(Debug, Default)]
pub struct Letter {
    /// Which flow.
    pub about: About,
    /// The newest answer, if it was not taken.
    pub verdict: Option<FlowVerdict>,
    /// Packets of the newest answer that was put in: answers come in any order.
    newest_packets: u32,
    /// Whether that was a verdict: one that failed has none.
    is_newest_judged: bool,
}

impl Letter {
    /// Puts an answer in, unless a better one has come before: a verdict is better than a failure, a newer one than an older one.
    pub fn put(&mut self, verdict: FlowVerdict) {
        let is_judged = verdict.state.is_judged();
        if (is_judged, verdict.packets) >= (self.is_newest_judged, self.newest_packets) {
            self.is_newest_judged = is_judged;
            self.newest_packets = verdict.packets;
            self.verdict = Some(verdict);
        }
    }
}

/// A place of the table.
#[derive(Debug, Default)]
pub struct Place {
    word: AtomicU32,
    /// The next place of the list that this one is in.
    next: AtomicU32,
    /// Number of the recorder; 0 for none.
    recorder: AtomicUsize,
    /// Packets fed.
    pub packets: AtomicU32,
    /// Packets fed when it was last submitted.
    pub offered: AtomicU32,
    /// When the last packet came, on the plugin's clock.
    pub touched_ms: AtomicU64,
    /// How many rests it was judged after.
    pub rests: AtomicU32,
    /// Whether an answer may be in the letter: else nobody has to open it.
    has_letter: AtomicBool,
    /// What other threads leave for the flow.
    letter: Mutex<Letter>,
}

impl Place {
    /// The letter; waits for another thread that has it.
    pub fn open(&self) -> MutexGuard<'_, Letter> {
        // A panic that was caught while it was held left it whole: each of its fields is good by itself.
        self.letter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The letter; `None` where another thread has it.
    #[must_use]
    pub fn try_open(&self) -> Option<MutexGuard<'_, Letter>> {
        match self.letter.try_lock() {
            Ok(letter) => Some(letter),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Its recorder.
    #[must_use]
    pub fn recorder(&self) -> Option<Recorder> {
        Recorder::of(self.recorder.load(Ordering::Acquire))
    }

    /// Whether a flow lives here.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.word.load(Ordering::Acquire) & ALIVE != 0
    }

    /// Answers under way.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.word.load(Ordering::Acquire) & PENDING
    }

    /// Puts an answer into the letter, unless a better one has come before.
    ///
    /// # Errors
    /// The answer, where another thread has the letter.
    pub fn put(&self, verdict: FlowVerdict) -> Result<(), FlowVerdict> {
        let Some(mut letter) = self.try_open() else {
            return Err(verdict);
        };
        letter.put(verdict);
        self.has_letter.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes the answer that is in the letter; `None` where there is none, or another thread has the letter.
    #[must_use]
    pub fn take_verdict(&self) -> Option<FlowVerdict> {
        if !self.has_letter.load(Ordering::Acquire) {
            return None;
        }
        let mut letter = self.try_open()?;
        // With the letter in hand: who puts another one in waits for no one, and sets it again.
        self.has_letter.store(false, Ordering::Release);
        letter.verdict.take()
    }

    /// Counts an answer that will come, if the flow lives. Without one the place may be another flow's at any time.
    #[must_use]
    pub fn expect_answer(&self) -> bool {
        self.hold(1)
    }

    fn hold(&self, times: u32) -> bool {
        let more = |word: u32| {
            let has_room = word & PENDING <= PENDING - times;
            (word & ALIVE != 0 && has_room).then_some(word + times)
        };
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok()
    }
}

/// What a place has for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Packets that were not judged. The place is held twice, for the answer and for who asks: [`Table::answered`] must follow twice,
    /// so that who asks has the place to himself after the answer has come.
    Some {
        /// What was recorded.
        recorder: Recorder,
        /// Packets fed.
        packets: u32,
    },
    /// None, or no recorder. The place is not held.
    None(Left),
    /// No flow lives there, or too many answers are under way.
    NoFlow,
}

/// What is to be done with a place after something came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing: the flow lives, or answers are under way.
    Kept,
    /// Nobody needs it: it is free.
    Free,
}

/// What a place had that was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// The recorder that it shall not keep.
    pub surplus: Option<Recorder>,
    /// Whether an answer was in its letter that nobody took.
    pub has_letter: bool,
}

/// A list of places that threads push to and take from without waiting.
#[derive(Debug)]
struct Stack {
    /// Number of changes in the high half, so that an old head is not taken for a new one; first place in the low half.
    head: AtomicU64,
    length: AtomicU32,
}

impl Stack {
    const fn new() -> Self {
        Self {
            head: AtomicU64::new(NONE as u64),
            length: AtomicU32::new(0),
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Table {
    blocks: Box<[OnceLock<Box<[Place]>>]>,
    /// Places that were ever used.
    used: AtomicU32,
    /// Most places.
    limit: u32,
    free: Stack,
    late: Stack,
    spare_limit: u32,
}

impl Table {
    /// A table for so many flows, which keeps the recorders of some free places.
    #[must_use]
    pub fn new(flows: u32, spare_recorders: u32) -> Self {
        let blocks = (flows as usize).div_ceil(TABLE_BLOCK);
        Self {
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
            used: AtomicU32::new(0),
            limit: flows,
            free: Stack::new(),
            late: Stack::new(),
            spare_limit: spare_recorders,
        }
    }

    /// The place of a number.
    #[must_use]
    pub fn place(&self, number: u32) -> Option<&Place> {
        let block = self.blocks.get(number as usize / TABLE_BLOCK)?.get()?;
        block.get(number as usize % TABLE_BLOCK)
    }

    /// Places that were ever used: those from 0 up to here may have a flow.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }

    /// Most flows at a time.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Flows that live, or wait for answers.
    #[must_use]
    pub fn flows(&self) -> u32 {
        self.used()
            .saturating_sub(self.free.length.load(Ordering::Relaxed))
    }

    /// Takes a free place; `None` if there is none. Nobody else sees it before [`Table::begin`].
    #[must_use]
    pub fn take(&self) -> Option<u32> {
        if let Some(number) = self.pop(&self.free) {
            return Some(number);
        }
        let more = |used: u32| (used < self.limit).then_some(used + 1);
        let number = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        let block = self.blocks.get(number as usize / TABLE_BLOCK)?;
        block.get_or_init(|| (0..TABLE_BLOCK).map(|_| Place::default()).collect());
        Some(number)
    }

    /// Gives a taken place to a flow.
    pub fn begin(&self, number: u32, about: About, recorder: Recorder, now_ms: u64) {
        let Some(place) = self.place(number) else {
            return;
        };
        place.packets.store(0, Ordering::Relaxed);
        place.offered.store(0, Ordering::Relaxed);
        place.rests.store(0, Ordering::Relaxed);
        place.has_letter.store(false, Ordering::Relaxed);
        place.touched_ms.store(now_ms, Ordering::Relaxed);
        place.recorder.store(recorder.number(), Ordering::Release);
        // Free places are nobody's: the lock is not contended.
        *place.open() = Letter {
            about,
            ..Letter::default()
        };
        place.word.store(ALIVE, Ordering::Release);
    }

    /// Gives a taken place back that no flow began at. Its recorder, if it has one, stays with it.
    pub fn give_back(&self, number: u32) {
        self.push(&self.free, number);
    }

    /// Ends the flow of a place. If it is [`Left::Free`] now, its letter is the caller's, who frees it or has it written.
    #[must_use]
    pub fn end(&self, number: u32) -> Left {
        let Some(place) = self.place(number) else {
            return Left::Kept;
        };
        let before = place.word.fetch_and(!ALIVE, Ordering::AcqRel);
        Self::left(before & !ALIVE, before & ALIVE != 0)
    }

    /// Holds a place for an answer, and says what there is to judge. Only then: what was read of it before may be of a flow that has
    /// ended meanwhile. `is_late` as for [`Table::answered`].
    #[must_use]
    pub fn news(&self, number: u32, is_late: bool) -> News {
        let held = self.place(number).filter(|place| place.hold(2));
        let Some(place) = held else {
            return News::NoFlow;
        };
        let packets = place.packets.load(Ordering::Acquire);
        match place.recorder() {
            Some(recorder) if packets > place.offered.load(Ordering::Acquire) => {
                News::Some { recorder, packets }
            }
            // The flow may have ended meanwhile, with a verdict in its letter.
            _ => match self.answered(number, is_late) {
                Left::Kept => News::None(self.answered(number, is_late)),
                Left::Free => News::None(Left::Free),
            },
        }
    }

    /// An answer has come, or will not. On a flow that has ended and with `is_late`, the place waits for [`Table::take_late`].
    #[must_use]
    pub fn answered(&self, number: u32, is_late: bool) -> Left {
        let Some(place) = self.place(number) else {
            return Left::Kept;
        };
        let mut word = place.word.load(Ordering::Acquire);
        loop {
            if word & PENDING == 0 {
                return Left::Kept;
            }
            let is_last = word & (ALIVE | PENDING) == 1;
            let mut next = word - 1;
            if is_late && is_last {
                next |= LATE;
            }
            match place
                .word
                .compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) if next & LATE != 0 && is_last => {
                    self.push(&self.late, number);
                    return Left::Kept;
                }
                Ok(_) => return Self::left(next, is_last),
                Err(found) => word = found,
            }
        }
    }

    /// Has the letter of a place written that [`Left::Free`] was said of.
    pub fn write(&self, number: u32) {
        if let Some(place) = self.place(number) {
            place.word.store(LATE, Ordering::Release);
            self.push(&self.late, number);
        }
    }

    /// A flow that has ended and whose verdict is to be written: its number. The caller frees it with [`Table::written`].
    #[must_use]
    pub fn take_late(&self) -> Option<u32> {
        self.pop(&self.late)
    }

    /// The verdict of a late flow was written.
    #[must_use]
    pub fn written(&self, number: u32) -> Left {
        let Some(place) = self.place(number) else {
            return Left::Kept;
        };
        let before = place.word.fetch_and(!LATE, Ordering::AcqRel);
        Self::left(before & !LATE, before & LATE != 0)
    }

    fn left(word: u32, is_change: bool) -> Left {
        if word == 0 && is_change {
            Left::Free
        } else {
            Left::Kept
        }
    }

    /// Frees a place that [`Left::Free`] was said of.
    #[must_use]
    pub fn free(&self, number: u32) -> Freed {
        let Some(place) = self.place(number) else {
            return Freed::default();
        };
        // Nobody else has the letter now.
        let has_letter = place.open().verdict.take().is_some();
        let surplus = if self.free.length.load(Ordering::Relaxed) < self.spare_limit {
            None
        } else {
            Recorder::of(place.recorder.swap(0, Ordering::AcqRel))
        };
        self.push(&self.free, number);
        Freed {
            surplus,
            has_letter,
        }
    }

    /// Takes the recorder of a live flow that needs no more packets and has no answer under way.
    #[must_use]
    pub fn take_recorder(&self, number: u32) -> Option<Recorder> {
        let place = self.place(number)?;
        Recorder::of(place.recorder.swap(0, Ordering::AcqRel))
    }

    fn push(&self, stack: &Stack, number: u32) {
        let Some(place) = self.place(number) else {
            return;
        };
        let mut head = stack.head.load(Ordering::Acquire);
        loop {
            place.next.store(head as u32, Ordering::Relaxed);
            let next = ((head >> 32).wrapping_add(1) << 32) | u64::from(number);
            match stack
                .head
                .compare_exchange_weak(head, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(found) => head = found,
            }
        }
        stack.length.fetch_add(1, Ordering::Relaxed);
    }

    fn pop(&self, stack: &Stack) -> Option<u32> {
        let mut head = stack.head.load(Ordering::Acquire);
        loop {
            let number = head as u32;
            if number == NONE {
                return None;
            }
            let following = self.place(number)?.next.load(Ordering::Relaxed);
            let next = ((head >> 32).wrapping_add(1) << 32) | u64::from(following);
            match stack
                .head
                .compare_exchange_weak(head, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => {
                    stack.length.fetch_sub(1, Ordering::Relaxed);
                    return Some(number);
                }
                Err(found) => head = found,
            }
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
