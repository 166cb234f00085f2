//! The place of one flow on its way through the engine, and the box where its answer arrives.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use trafficllm_model::TaskVerdict;

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
/// the start.
#[derive(Debug)]
pub(super) struct Slot {
    /// What the caller calls it.
    pub(super) id: u64,
    pub(super) flow_tokens: Vec<u32>,
    pub(super) request_tokens: Vec<u32>,
    pub(super) submitted: Instant,
    /// After this it is not worth a run.
    pub(super) deadline: Option<Instant>,
    /// By task, ascending.
    pub(super) verdicts: Vec<TaskVerdict>,
    pub(super) state: State,
}

/// How large the parts of a slot get.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotSizes {
    pub(super) flow_tokens: usize,
    pub(super) request_tokens: usize,
    pub(super) verdicts: usize,
}

impl SlotSizes {
    /// Bytes of one slot, with its places in the queues.
    pub(super) fn bytes(&self) -> usize {
        let tokens = self.flow_tokens + self.request_tokens;
        size_of::<Slot>()
            + tokens * size_of::<u32>()
            + self.verdicts * size_of::<TaskVerdict>()
            + 3 * size_of::<Box<Slot>>()
    }
}

impl Slot {
    pub(super) fn new(sizes: SlotSizes) -> Box<Self> {
        Box::new(Self {
            id: 0,
            flow_tokens: Vec::with_capacity(sizes.flow_tokens),
            request_tokens: Vec::with_capacity(sizes.request_tokens),
            submitted: Instant::now(),
            deadline: None,
            verdicts: Vec::with_capacity(sizes.verdicts),
            state: State::Open,
        })
    }

    /// Its runs of tokens, which are not empty.
    pub(super) fn items(&self) -> impl Iterator<Item = (Kind, &[u32])> {
        let items = [
            (Kind::Flow, self.flow_tokens.as_slice()),
            (Kind::Request, self.request_tokens.as_slice()),
        ];
        items.into_iter().filter(|(_, tokens)| !tokens.is_empty())
    }

    /// All its tokens.
    pub(super) fn tokens(&self) -> usize {
        self.flow_tokens.len() + self.request_tokens.len()
    }

    /// Empties it for another flow.
    pub(super) fn clear(&mut self) {
        self.flow_tokens.clear();
        self.request_tokens.clear();
        self.verdicts.clear();
        self.deadline = None;
        self.state = State::Open;
    }
}

/// A slot that is under way. Wherever it is dropped, in a queue that nobody reads any more or by a worker that fails, its slot
/// goes back to the submitter.
#[derive(Debug)]
pub(super) struct Ticket {
    /// `None` only after it was sent home.
    slot: Option<Box<Slot>>,
    mailbox: Arc<Mailbox>,
}

impl Ticket {
    pub(super) fn new(slot: Box<Slot>, mailbox: &Arc<Mailbox>) -> Self {
        Self {
            slot: Some(slot),
            mailbox: Arc::clone(mailbox),
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
        !self.mailbox.lock().is_closed
    }

    /// The slot itself, for a ticket that was not accepted.
    pub(super) fn take_back(mut self) -> Option<Box<Slot>> {
        self.slot.take()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(mut slot) = self.slot.take() {
            if matches!(slot.state, State::Open) {
                slot.state = State::Abandoned;
            }
            self.mailbox.put(slot);
        }
    }
}

/// Where the answers of one submitter arrive. It is locked for the time of moving pointers only.
#[derive(Debug)]
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

#[derive(Debug)]
struct Inbox {
    /// Has room for all slots of the submitter.
    ready: VecDeque<Box<Slot>>,
    /// The submitter sleeps until something arrives.
    is_awaited: bool,
    /// The submitter is gone.
    is_closed: bool,
}

impl Mailbox {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            inbox: Mutex::new(Inbox {
                ready: VecDeque::with_capacity(slots),
                is_awaited: false,
                is_closed: false,
            }),
            arrived: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nobody panics while holding it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, slot: Box<Slot>) {
        let mut inbox = self.lock();
        if inbox.is_closed {
            // Freed without the lock.
            drop(inbox);
            drop(slot);
            return;
        }
        inbox.ready.push_back(slot);
        let wake = std::mem::take(&mut inbox.is_awaited);
        drop(inbox);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// Swaps what has arrived with `taken`, which is empty. Does not wait for a worker that is just putting something in.
    pub(super) fn try_take(&self, taken: &mut VecDeque<Box<Slot>>) {
        let mut inbox = match self.inbox.try_lock() {
            Ok(inbox) => inbox,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        std::mem::swap(&mut inbox.ready, taken);
    }

    /// As [`Self::try_take`], but sleeps until something arrives or the time is over.
    pub(super) fn wait(&self, taken: &mut VecDeque<Box<Slot>>, timeout: Duration) {
        let inbox = self.lock();
        let waited = self
            .arrived
            .wait_timeout_while(inbox, timeout, |inbox| {
                inbox.is_awaited = inbox.ready.is_empty();
                inbox.is_awaited
            })
            .unwrap_or_else(PoisonError::into_inner);
        let mut inbox = waited.0;
        inbox.is_awaited = false;
        std::mem::swap(&mut inbox.ready, taken);
    }

    /// Takes no more answers: those that come are freed.
    pub(super) fn close(&self) {
        let mut inbox = self.lock();
        inbox.is_closed = true;
        let left = std::mem::take(&mut inbox.ready);
        drop(inbox);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: SlotSizes = SlotSizes {
        flow_tokens: 4,
        request_tokens: 2,
        verdicts: 3,
    };

    #[test]
    fn a_ticket_that_is_dropped_goes_home_as_abandoned_and_one_with_an_answer_keeps_it() {
        let mailbox = Arc::new(Mailbox::new(2));
        drop(Ticket::new(Slot::new(SIZES), &mailbox));
        let mut judged = Ticket::new(Slot::new(SIZES), &mailbox);
        judged.slot_mut().unwrap().state = State::Judged;
        drop(judged);
        let mut taken = VecDeque::new();
        mailbox.try_take(&mut taken);
        assert!(matches!(taken[0].state, State::Abandoned));
        assert!(matches!(taken[1].state, State::Judged));
    }

    #[test]
    fn a_ticket_that_was_not_accepted_leaves_nothing_in_the_mailbox() {
        let mailbox = Arc::new(Mailbox::new(1));
        let ticket = Ticket::new(Slot::new(SIZES), &mailbox);
        assert!(ticket.take_back().is_some());
        let mut taken = VecDeque::new();
        mailbox.try_take(&mut taken);
        assert!(taken.is_empty());
    }

    #[test]
    fn a_closed_mailbox_frees_what_comes() {
        let mailbox = Arc::new(Mailbox::new(1));
        let ticket = Ticket::new(Slot::new(SIZES), &mailbox);
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
        let mailbox = Arc::new(Mailbox::new(1));
        let mut taken = VecDeque::new();
        mailbox.wait(&mut taken, Duration::from_millis(1));
        assert!(taken.is_empty());
        let ticket = Ticket::new(Slot::new(SIZES), &mailbox);
        let other = std::thread::spawn(move || drop(ticket));
        mailbox.wait(&mut taken, Duration::from_secs(60));
        assert_eq!(taken.len(), 1);
        other.join().unwrap();
    }

    #[test]
    fn a_slot_keeps_its_memory_and_nothing_of_the_flow_before() {
        let mut slot = Slot::new(SIZES);
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
