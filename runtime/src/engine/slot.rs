//! The place of one flow on its way through the engine, and the box where its answer arrives.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use trafficllm_model::TaskVerdict;

use super::counters::micros;
use super::generation::{Generation, try_lock};
use super::heads::{HeadSizes, SlotHeads};
use crate::error::Error;

/// Which tasks a run of tokens is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The tokens of a flow: all flow tasks share one run of the base.
    Flow,
    /// The tokens of a request.
    Request,
}

/// How far a flow has come.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// It is filled, waits or runs.
    Open,
    Judged,
    Expired,
    Abandoned,
    /// What went wrong.
    Failed(Arc<str>),
}

/// One flow or request with its tokens, later with its verdicts. A slot is used again and again: its memory has its full size from
/// the start, and grows only for a model that needs more than the one before.
#[derive(Debug)]
pub(super) struct Slot {
    /// What the caller calls it.
    pub(super) id: u64,
    /// The model that judges it; `None` in a free slot.
    pub(super) generation: Option<Arc<Generation>>,
    /// Nobody wants the answer once this is gone.
    pub(super) owner: Option<Weak<()>>,
    pub(super) flow_tokens: Vec<u32>,
    pub(super) request_tokens: Vec<u32>,
    pub(super) submitted: Instant,
    /// After this it is not worth a run.
    pub(super) deadline: Option<Instant>,
    /// From the submission to the answer.
    pub(super) latency_us: u64,
    /// By task, ascending.
    pub(super) verdicts: Vec<TaskVerdict>,
    /// What heads are told and what they answered; `None` where there never was one.
    pub(super) heads: Option<Box<SlotHeads>>,
    pub(super) state: State,
}

/// How large the parts of a slot get.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotSizes {
    pub(super) flow_tokens: usize,
    pub(super) request_tokens: usize,
    /// Of the model's tasks.
    pub(super) verdicts: usize,
    pub(super) heads: HeadSizes,
}

impl SlotSizes {
    /// Bytes of one slot, with its places in the submitter's lists.
    pub(super) fn bytes(&self) -> usize {
        let tokens = self.flow_tokens + self.request_tokens;
        size_of::<Slot>()
            + tokens * size_of::<u32>()
            + self.verdicts * size_of::<TaskVerdict>()
            + self.heads.bytes()
            + 3 * size_of::<Box<Slot>>()
    }

    /// What is enough for both.
    pub(super) fn with(self, other: Self) -> Self {
        Self {
            flow_tokens: self.flow_tokens.max(other.flow_tokens),
            request_tokens: self.request_tokens.max(other.request_tokens),
            verdicts: self.verdicts.max(other.verdicts),
            heads: self.heads.with(other.heads),
        }
    }
}

impl Slot {
    pub(super) fn new(sizes: SlotSizes) -> Result<Box<Self>, Error> {
        let mut slot = Box::new(Self {
            id: 0,
            generation: None,
            owner: None,
            flow_tokens: Vec::new(),
            request_tokens: Vec::new(),
            submitted: Instant::now(),
            deadline: None,
            latency_us: 0,
            verdicts: Vec::new(),
            heads: None,
            state: State::Open,
        });
        slot.fit(sizes)?;
        Ok(slot)
    }

    /// So many free slots.
    #[expect(
        clippy::vec_box,
        reason = "a slot moves from here to the queue and back as a pointer"
    )]
    pub(super) fn several(count: usize, sizes: SlotSizes) -> Result<Vec<Box<Self>>, Error> {
        let mut slots = Vec::new();
        reserve("a list of free slots", &mut slots, count)?;
        for _ in 0..count {
            slots.push(Self::new(sizes)?);
        }
        Ok(slots)
    }

    /// Gives an empty slot the room for a model's tokens and verdicts.
    pub(super) fn fit(&mut self, sizes: SlotSizes) -> Result<(), Error> {
        reserve("a slot", &mut self.flow_tokens, sizes.flow_tokens)?;
        reserve("a slot", &mut self.request_tokens, sizes.request_tokens)?;
        reserve("a slot", &mut self.verdicts, sizes.verdicts)?;
        SlotHeads::fit(&mut self.heads, sizes.heads)
    }

    /// Its runs of tokens, which are not empty.
    pub(super) fn items(&self) -> impl Iterator<Item = (Kind, &[u32])> {
        let items = [
            (Kind::Flow, self.flow_tokens.as_slice()),
            (Kind::Request, self.request_tokens.as_slice()),
        ];
        items.into_iter().filter(|(_, tokens)| !tokens.is_empty())
    }

    /// Verdicts of the model and of heads.
    pub(super) fn answered(&self) -> usize {
        let heads = self.heads.as_ref();
        self.verdicts.len() + heads.map_or(0, |heads| heads.answered())
    }

    /// What was answered does not count: the batch has failed.
    pub(super) fn forget_answers(&mut self) {
        self.verdicts.clear();
        if let Some(heads) = &mut self.heads {
            heads.forget_answers();
        }
    }

    /// All its tokens.
    pub(super) fn tokens(&self) -> usize {
        self.flow_tokens.len() + self.request_tokens.len()
    }

    /// Whether its owner, if it has one, is still there.
    pub(super) fn is_owned(&self) -> bool {
        self.owner
            .as_ref()
            .is_none_or(|owner| owner.strong_count() > 0)
    }

    /// Whether there are heads to be asked about its flow.
    pub(super) fn has_heads(&self) -> bool {
        let generation = self.generation.as_ref();
        generation.is_some_and(|generation| generation.heads.is_some())
    }

    /// Number of the generation that judges it.
    pub(super) fn generation_number(&self) -> u64 {
        self.generation
            .as_ref()
            .map_or(0, |generation| generation.number)
    }

    /// It has its answer.
    pub(super) fn close(&mut self, state: State) {
        self.state = state;
        self.latency_us = micros(self.submitted.elapsed());
    }

    /// Empties it for another flow.
    pub(super) fn clear(&mut self) {
        self.generation = None;
        self.owner = None;
        self.flow_tokens.clear();
        self.request_tokens.clear();
        self.verdicts.clear();
        if let Some(heads) = &mut self.heads {
            heads.clear();
        }
        self.deadline = None;
        self.state = State::Open;
    }
}

/// Room for `count` values in an empty list, or an error.
pub(super) fn reserve<T>(what: &'static str, list: &mut Vec<T>, count: usize) -> Result<(), Error> {
    list.try_reserve_exact(count).map_err(|_| Error::Memory {
        what,
        bytes: count * size_of::<T>(),
    })
}

/// A slot that is under way. Wherever it is dropped, in a queue that nobody reads any more or by a worker that fails, its slot
/// goes back to the submitter.
#[derive(Debug)]
pub(super) struct Ticket {
    /// `None` only after it was sent home.
    slot: Option<Box<Slot>>,
    /// `None` where whoever made the ticket runs it and takes the slot back.
    mailbox: Option<Arc<Mailbox>>,
}

impl Ticket {
    pub(super) fn new(slot: Box<Slot>, mailbox: &Arc<Mailbox>) -> Self {
        Self {
            slot: Some(slot),
            mailbox: Some(Arc::clone(mailbox)),
        }
    }

    /// One that never leaves its thread.
    pub(super) fn local(slot: Box<Slot>) -> Self {
        Self {
            slot: Some(slot),
            mailbox: None,
        }
    }

    pub(super) fn slot(&self) -> Option<&Slot> {
        self.slot.as_deref()
    }

    pub(super) fn slot_mut(&mut self) -> Option<&mut Slot> {
        self.slot.as_deref_mut()
    }

    /// Whether somebody still wants the answer.
    pub(super) fn is_wanted(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.is_owned())
            && self
                .mailbox
                .as_ref()
                .is_none_or(|mailbox| !mailbox.is_closed())
    }

    /// The slot itself, for one who does not want it to be sent home.
    pub(super) fn take_back(mut self) -> Option<Box<Slot>> {
        self.slot.take()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let (Some(mut slot), Some(mailbox)) = (self.slot.take(), &self.mailbox) {
            if matches!(slot.state, State::Open) {
                slot.close(State::Abandoned);
            }
            mailbox.put(slot);
        }
    }
}

/// Is called when answers arrive where there was none.
pub(super) type Notify = Box<dyn Fn() + Send + Sync>;

/// Where the answers of one submitter arrive. It is locked for the time of moving pointers only, and [`Self::try_take`] and
/// [`Self::close`] do not even wait for that: the thread that holds the lock may be one that the system does not let run.
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    notify: Option<Notify>,
    /// Somebody found the inbox locked and went away without having looked into it.
    was_missed: AtomicBool,
    /// The submitter is gone.
    is_closed: AtomicBool,
}

#[derive(Debug)]
struct Inbox {
    /// Has room for all slots of the submitter.
    ready: VecDeque<Box<Slot>>,
    /// The submitter sleeps until something arrives.
    is_awaited: bool,
    /// The engine was stopped, and the submitter has not slept since.
    is_stopped: bool,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Mailbox")
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}

/// A list with room for so many answers, or an error.
pub(super) fn room_for_answers(slots: usize) -> Result<VecDeque<Box<Slot>>, Error> {
    let mut room = VecDeque::new();
    room.try_reserve_exact(slots).map_err(|_| Error::Memory {
        what: "a list of answers",
        bytes: slots * size_of::<Box<Slot>>(),
    })?;
    Ok(room)
}

impl Mailbox {
    pub(super) fn new(slots: usize, notify: Option<Notify>) -> Result<Self, Error> {
        Ok(Self {
            inbox: Mutex::new(Inbox {
                ready: room_for_answers(slots)?,
                is_awaited: false,
                is_stopped: false,
            }),
            arrived: Condvar::new(),
            notify,
            was_missed: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nobody panics while holding it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(SeqCst)
    }

    fn put(&self, slot: Box<Slot>) {
        let mut inbox = self.lock();
        let is_first = inbox.ready.is_empty();
        inbox.ready.push_back(slot);
        let wake = std::mem::take(&mut inbox.is_awaited);
        drop(inbox);
        // Who found the lock taken has said so before it looked a second time: one of us two sees the other.
        fence(SeqCst);
        if self.is_closed() {
            self.empty(self.lock());
            return;
        }
        if wake {
            self.arrived.notify_one();
        }
        let was_missed = self.was_missed.load(SeqCst) && self.was_missed.swap(false, SeqCst);
        if is_first || was_missed {
            self.notify();
        }
    }

    /// Calls the function that is told of answers.
    pub(super) fn notify(&self) {
        if let Some(notify) = &self.notify
            && catch_unwind(AssertUnwindSafe(notify)).is_err()
        {
            tracing::error!("the function that is called when answers arrive panicked");
        }
    }

    /// Wakes a submitter that sleeps, and tells one that does not: the engine was stopped.
    pub(super) fn tell_stopped(&self) {
        if self.is_closed() {
            return;
        }
        // Whoever has it locked wakes the sleeper, or is one that looks itself now and then.
        if let Some(mut inbox) = try_lock(&self.inbox) {
            inbox.is_stopped = true;
            drop(inbox);
            self.arrived.notify_one();
        }
        self.notify();
    }

    /// Swaps what has arrived with `taken`, which is empty. Does not wait for a worker that is just putting something in.
    pub(super) fn try_take(&self, taken: &mut VecDeque<Box<Slot>>) {
        let inbox = try_lock(&self.inbox).or_else(|| {
            self.was_missed.store(true, SeqCst);
            fence(SeqCst);
            try_lock(&self.inbox)
        });
        if let Some(mut inbox) = inbox {
            std::mem::swap(&mut inbox.ready, taken);
        }
    }

    /// As [`Self::try_take`], but sleeps until something arrives, until the time is over or until the engine is stopped.
    pub(super) fn wait(&self, taken: &mut VecDeque<Box<Slot>>, timeout: Duration) {
        let inbox = self.lock();
        let waited = self
            .arrived
            .wait_timeout_while(inbox, timeout, |inbox| {
                inbox.is_awaited = inbox.ready.is_empty() && !inbox.is_stopped;
                inbox.is_awaited
            })
            .unwrap_or_else(PoisonError::into_inner);
        let mut inbox = waited.0;
        inbox.is_awaited = false;
        inbox.is_stopped = false;
        std::mem::swap(&mut inbox.ready, taken);
    }

    /// Takes no more answers: those that come are freed.
    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        fence(SeqCst);
        // Who holds the lock now looks whether the mailbox is closed when it has let go.
        if let Some(inbox) = try_lock(&self.inbox) {
            self.empty(inbox);
        }
    }

    fn empty(&self, mut inbox: MutexGuard<'_, Inbox>) {
        let left = std::mem::take(&mut inbox.ready);
        drop(inbox);
        // Freed without the lock.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const SIZES: SlotSizes = SlotSizes {
        flow_tokens: 4,
        request_tokens: 2,
        verdicts: 3,
        heads: HeadSizes::NONE,
    };

    #[test]
    fn a_ticket_that_is_dropped_goes_home_as_abandoned_and_one_with_an_answer_keeps_it() {
        let mailbox = Arc::new(Mailbox::new(2, None).unwrap());
        drop(Ticket::new(Slot::new(SIZES).unwrap(), &mailbox));
        let mut judged = Ticket::new(Slot::new(SIZES).unwrap(), &mailbox);
        judged.slot_mut().unwrap().state = State::Judged;
        drop(judged);
        let mut taken = VecDeque::new();
        mailbox.try_take(&mut taken);
        assert!(matches!(taken[0].state, State::Abandoned));
        assert!(matches!(taken[1].state, State::Judged));
    }

    #[test]
    fn a_ticket_that_was_not_accepted_leaves_nothing_in_the_mailbox() {
        let mailbox = Arc::new(Mailbox::new(1, None).unwrap());
        let ticket = Ticket::new(Slot::new(SIZES).unwrap(), &mailbox);
        assert!(ticket.take_back().is_some());
        let mut taken = VecDeque::new();
        mailbox.try_take(&mut taken);
        assert!(taken.is_empty());
    }

    #[test]
    fn a_closed_mailbox_frees_what_comes() {
        let mailbox = Arc::new(Mailbox::new(1, None).unwrap());
        let ticket = Ticket::new(Slot::new(SIZES).unwrap(), &mailbox);
        assert!(ticket.is_wanted());
        mailbox.close();
        assert!(!ticket.is_wanted());
        drop(ticket);
        assert!(mailbox.lock().ready.is_empty());
        assert_eq!(
            Arc::strong_count(&mailbox),
            1,
            "no ticket is left that would hold it"
        );
    }

    #[test]
    fn waiting_ends_with_an_answer_or_with_the_time() {
        let mailbox = Arc::new(Mailbox::new(1, None).unwrap());
        let mut taken = VecDeque::new();
        mailbox.wait(&mut taken, Duration::from_millis(1));
        assert!(taken.is_empty());
        let ticket = Ticket::new(Slot::new(SIZES).unwrap(), &mailbox);
        let other = std::thread::spawn(move || drop(ticket));
        mailbox.wait(&mut taken, Duration::from_secs(60));
        assert_eq!(taken.len(), 1);
        other.join().unwrap();
    }

    #[test]
    fn waiting_ends_with_the_stop_once() {
        let mailbox = Arc::new(Mailbox::new(1, None).unwrap());
        let mut taken = VecDeque::new();
        mailbox.tell_stopped();
        mailbox.wait(&mut taken, Duration::from_secs(60 * 60));
        let waiting = Arc::clone(&mailbox);
        let other = std::thread::spawn(move || {
            waiting.wait(&mut VecDeque::new(), Duration::from_secs(60 * 60));
        });
        while !mailbox.lock().is_awaited {
            std::thread::yield_now();
        }
        mailbox.tell_stopped();
        other.join().unwrap();
        let begin = Instant::now();
        mailbox.wait(&mut taken, Duration::from_millis(2));
        assert!(begin.elapsed() >= Duration::from_millis(2));
        assert!(taken.is_empty());
    }

    #[test]
    fn who_is_told_of_answers_is_told_of_the_first_and_of_one_that_it_missed() {
        let calls = Arc::new(AtomicU64::new(0));
        let notify = {
            let calls = Arc::clone(&calls);
            Box::new(move || _ = calls.fetch_add(1, SeqCst))
        };
        let mailbox = Arc::new(Mailbox::new(8, Some(notify)).unwrap());
        let answer = || drop(Ticket::new(Slot::new(SIZES).unwrap(), &mailbox));
        answer();
        answer();
        assert_eq!(calls.load(SeqCst), 1);
        // A worker is just putting something in.
        let putting = mailbox.lock();
        let mut taken = VecDeque::new();
        mailbox.try_take(&mut taken);
        assert!(taken.is_empty());
        drop(putting);
        answer();
        assert_eq!(calls.load(SeqCst), 2, "somebody went away without them");
        answer();
        assert_eq!(calls.load(SeqCst), 2);
        mailbox.try_take(&mut taken);
        assert_eq!(taken.len(), 4);
        mailbox.close();
        answer();
        assert_eq!(calls.load(SeqCst), 2, "nobody is there any more");
    }

    #[test]
    fn a_mailbox_that_is_closed_while_somebody_puts_something_in_is_emptied_by_the_next() {
        let mailbox = Arc::new(Mailbox::new(2, None).unwrap());
        drop(Ticket::new(Slot::new(SIZES).unwrap(), &mailbox));
        let putting = mailbox.lock();
        mailbox.close();
        assert_eq!(putting.ready.len(), 1, "it did not wait");
        drop(putting);
        drop(Ticket::new(Slot::new(SIZES).unwrap(), &mailbox));
        assert!(mailbox.lock().ready.is_empty());
    }

    #[test]
    fn a_slot_keeps_its_memory_and_nothing_of_the_flow_before() {
        let mut slot = Slot::new(SIZES).unwrap();
        slot.flow_tokens.extend([1, 2, 3]);
        slot.request_tokens.push(4);
        slot.deadline = Some(Instant::now());
        slot.state = State::Failed("something".into());
        assert_eq!(slot.tokens(), 4);
        assert_eq!(
            slot.items().collect::<Vec<_>>(),
            [(Kind::Flow, &[1, 2, 3][..]), (Kind::Request, &[4])]
        );
        slot.clear();
        assert_eq!((slot.tokens(), slot.items().count()), (0, 0));
        assert!(slot.deadline.is_none() && matches!(slot.state, State::Open));
        assert_eq!(slot.flow_tokens.capacity(), 4);
    }
}
