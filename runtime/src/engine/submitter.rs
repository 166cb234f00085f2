//! The online way in: flows go into a bounded queue and their verdicts come back to the thread that asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;
use trafficllm_model::{TaskVerdict, emptied};
use trafficllm_traffic::Flow;
use trafficllm_traffic::token::{EncodeScratch, TokenError, first_request};

use super::counters::{Counts, EngineCounters};
use super::slot::{Mailbox, Slot, State, Ticket};
use super::worker::Shared;
use crate::model::Model;
use crate::outcome::Verdict;

/// Why a flow or request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As much is under way as the queue holds. The flow is shed, and counted so.
    #[error("the queue is full: the flow is shed")]
    QueueFull,
    /// The engine was dropped. The flow is abandoned, and counted so.
    #[error("the engine is gone")]
    Closed,
    /// The text is no HTTP request; it is not counted.
    #[error(transparent)]
    NotARequest(#[from] TokenError),
}

/// What became of one submitted flow or request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer<'a> {
    /// What the caller called it.
    pub id: u64,
    /// Its fate.
    pub judgement: Judgement<'a>,
}

/// The fate of a flow or request that was taken into the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judgement<'a> {
    /// One per task that applies, in the model's order; none where no chosen task does.
    Verdicts(&'a [Verdict<'a>]),
    /// Its deadline passed before its turn came.
    Expired,
    /// The engine was dropped before its turn came.
    Abandoned,
    /// It was lost to a defect in the model or a worker, which said this.
    Failed(&'a str),
}

/// Submits flows to an engine and takes their verdicts back. One per thread; any number of them share an engine's workers.
///
/// [`Submitter::submit`] and [`Submitter::poll`] never wait for a worker, and allocate nothing once their buffers have grown.
/// A flow becomes tokens on the submitting thread: its record may be reused at once, and what waits in the queue is a few
/// hundred token ids of a size known beforehand instead of packets.
#[derive(Debug)]
pub struct Submitter {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    /// All slots that are not under way.
    #[expect(
        clippy::vec_box,
        reason = "a slot moves from here to the queue and back as a pointer"
    )]
    free: Vec<Box<Slot>>,
    slots: usize,
    in_flight: usize,
    /// Answers that have been taken out of the mailbox.
    ready: VecDeque<Box<Slot>>,
    /// The slot whose answer the caller sees.
    shown: Option<Box<Slot>>,
    /// Empty between calls: only its memory is kept.
    verdicts: Vec<Verdict<'static>>,
    tokens: Vec<u32>,
    scratch: EncodeScratch,
}

impl Submitter {
    pub(super) fn new(shared: &Arc<Shared>, slots: usize) -> Self {
        shared.slots.fetch_add(slots, Ordering::SeqCst);
        Self {
            shared: Arc::clone(shared),
            mailbox: Arc::new(Mailbox::new(slots)),
            free: (0..slots).map(|_| Slot::new(shared.sizes)).collect(),
            slots,
            in_flight: 0,
            ready: VecDeque::with_capacity(slots),
            shown: None,
            verdicts: Vec::with_capacity(shared.sizes.verdicts),
            tokens: Vec::new(),
            scratch: EncodeScratch::default(),
        }
    }

    /// Puts a flow into the queue. Its answer comes with `id`, which is the caller's alone.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`], [`SubmitError::Closed`]; the flow is then counted, and has no answer.
    pub fn submit(&mut self, flow: &Flow, id: u64) -> Result<(), SubmitError> {
        let mut slot = self.open_slot()?;
        self.fill(&mut slot, flow);
        slot.deadline = self.shared.deadline.map(|after| slot.submitted + after);
        self.offer(slot, id)
    }

    /// Puts an HTTP request into the queue, as text from its first line on, for the request tasks.
    ///
    /// # Errors
    /// As [`Submitter::submit`]; [`SubmitError::NotARequest`] for a text that is none.
    pub fn submit_request(&mut self, request: &[u8], id: u64) -> Result<(), SubmitError> {
        self.encode_request(request)?;
        let mut slot = self.open_slot()?;
        self.fill_with_request(&mut slot);
        slot.deadline = self.shared.deadline.map(|after| slot.submitted + after);
        self.offer(slot, id)
    }

    /// Gives the answers that have come to `take`, and their number back. They come in any order.
    pub fn poll(&mut self, mut take: impl FnMut(&Answer<'_>)) -> usize {
        let shared = Arc::clone(&self.shared);
        let mut verdicts: Vec<Verdict<'_>> = std::mem::take(&mut self.verdicts);
        let mut answers = 0;
        while let Some(slot) = self.take_slot() {
            let slot = self.shown.insert(slot);
            name_verdicts(&shared.model, &slot.verdicts, &mut verdicts);
            take(&Answer {
                id: slot.id,
                judgement: match &slot.state {
                    State::Judged => Judgement::Verdicts(&verdicts),
                    State::Expired => Judgement::Expired,
                    State::Failed(message) => Judgement::Failed(message),
                    State::Open | State::Abandoned => Judgement::Abandoned,
                },
            });
            answers += 1;
        }
        self.verdicts = emptied(verdicts);
        answers
    }

    /// As [`Submitter::poll`], but where nothing has come yet, sleeps until something does, until the time is over or until
    /// nothing is under way.
    pub fn wait(&mut self, timeout: Duration, take: impl FnMut(&Answer<'_>)) -> usize {
        self.sleep(timeout);
        self.poll(take)
    }

    /// Flows under way: submitted, and their answers not taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The counters of the engine; they can still be read when it is gone.
    #[must_use]
    pub fn counters(&self) -> EngineCounters {
        self.shared.counts.read()
    }

    /// A slot for a flow that is submitted now, unless the queue is full.
    fn open_slot(&mut self) -> Result<Box<Slot>, SubmitError> {
        Counts::add(&self.shared.counts.submitted, 1);
        if self.shared.is_closed() {
            Counts::add(&self.shared.counts.abandoned, 1);
            return Err(SubmitError::Closed);
        }
        self.reuse_shown();
        // A full queue is found out before the work of encoding.
        let slot = if self.shared.queue.is_full() {
            None
        } else {
            self.free.pop()
        };
        let Some(mut slot) = slot else {
            Counts::add(&self.shared.counts.shed, 1);
            return Err(SubmitError::QueueFull);
        };
        slot.submitted = Instant::now();
        Ok(slot)
    }

    fn offer(&mut self, mut slot: Box<Slot>, id: u64) -> Result<(), SubmitError> {
        slot.id = id;
        match self.shared.queue.try_send(Ticket::new(slot, &self.mailbox)) {
            Ok(()) => {
                self.in_flight += 1;
                Ok(())
            }
            // The queue is never disconnected: another submitter was faster.
            Err(TrySendError::Full(ticket) | TrySendError::Disconnected(ticket)) => {
                if let Some(slot) = ticket.take_back() {
                    self.reuse(slot);
                }
                Counts::add(&self.shared.counts.shed, 1);
                Err(SubmitError::QueueFull)
            }
        }
    }

    /// A slot that is free now; it has no deadline.
    pub(super) fn free_slot(&mut self) -> Option<Box<Slot>> {
        self.free.pop()
    }

    /// Puts a slot into the queue if there is room, or sleeps until there is; else gives it back.
    pub(super) fn send(
        &mut self,
        mut slot: Box<Slot>,
        id: u64,
        sleep: bool,
    ) -> Result<(), Box<Slot>> {
        slot.id = id;
        slot.submitted = Instant::now();
        let ticket = Ticket::new(slot, &self.mailbox);
        let refused = if sleep {
            let sent = self.shared.queue.send(ticket);
            sent.err().map(|refused| refused.0)
        } else {
            let sent = self.shared.queue.try_send(ticket);
            sent.err().map(TrySendError::into_inner)
        };
        if let Some(slot) = refused.and_then(Ticket::take_back) {
            return Err(slot);
        }
        Counts::add(&self.shared.counts.submitted, 1);
        self.in_flight += 1;
        Ok(())
    }

    /// The tokens of a flow, for the tasks that were chosen.
    pub(super) fn fill(&mut self, slot: &mut Slot, flow: &Flow) {
        let encoder = self.shared.model.encoder();
        let selection = &self.shared.selection;
        // Encoding needs more room for a moment than what it leaves: the slots have just the room for that.
        if !selection.flow.is_empty() {
            encoder.encode_flow(flow, &mut self.scratch, &mut self.tokens);
            slot.flow_tokens.extend_from_slice(&self.tokens);
        }
        if !selection.request.is_empty()
            && let Some(request) = first_request(flow)
            && self.encode_request(&request).is_ok()
        {
            self.fill_with_request(slot);
        }
    }

    /// Makes tokens of a request, for [`Self::fill_with_request`].
    pub(super) fn encode_request(&mut self, request: &[u8]) -> Result<(), TokenError> {
        let encoder = self.shared.model.encoder();
        encoder.encode_request(request, &mut self.scratch, &mut self.tokens)
    }

    pub(super) fn fill_with_request(&self, slot: &mut Slot) {
        if !self.shared.selection.request.is_empty() {
            slot.request_tokens.extend_from_slice(&self.tokens);
        }
    }

    /// An answer that has come; its fate is counted.
    pub(super) fn take_slot(&mut self) -> Option<Box<Slot>> {
        self.reuse_shown();
        if self.in_flight == 0 {
            return None;
        }
        if self.ready.is_empty() {
            self.mailbox.try_take(&mut self.ready);
            if self.ready.is_empty() && self.shared.is_closed() {
                self.shared.abandon_waiting();
                self.mailbox.try_take(&mut self.ready);
            }
        }
        let slot = self.ready.pop_front()?;
        self.in_flight -= 1;
        let counts = &self.shared.counts;
        let fate = match &slot.state {
            State::Judged => &counts.done,
            State::Expired => &counts.expired,
            State::Failed(_) => &counts.failed,
            State::Open | State::Abandoned => &counts.abandoned,
        };
        Counts::add(fate, 1);
        Some(slot)
    }

    /// Sleeps until an answer comes, unless nothing is under way.
    pub(super) fn sleep(&mut self, timeout: Duration) {
        if self.ready.is_empty() && self.in_flight > 0 && !self.shared.is_closed() {
            self.mailbox.wait(&mut self.ready, timeout);
        }
    }

    /// Makes a slot free again.
    pub(super) fn reuse(&mut self, mut slot: Box<Slot>) {
        slot.clear();
        self.free.push(slot);
    }

    fn reuse_shown(&mut self) {
        if let Some(slot) = self.shown.take() {
            self.reuse(slot);
        }
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        self.mailbox.close();
        Counts::add(&self.shared.counts.abandoned, self.in_flight as u64);
        self.shared.slots.fetch_sub(self.slots, Ordering::SeqCst);
    }
}

/// Replaces `named` by verdicts with the names of the model's tasks and labels.
pub(super) fn name_verdicts<'a>(
    model: &'a Model,
    verdicts: &[TaskVerdict],
    named: &mut Vec<Verdict<'a>>,
) {
    named.clear();
    let tasks = model.core().tasks();
    named.extend(verdicts.iter().map(|verdict| {
        let task = &tasks[verdict.task];
        Verdict {
            task: task.name(),
            label: &task.labels()[verdict.label as usize],
            score: verdict.score,
            abstained: verdict.abstained,
        }
    }));
}
