//! The online way in: flows go into a bounded queue and their verdicts come back to the thread that asked.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use trafficllm_model::emptied;
use trafficllm_traffic::token::limits::ENCODING_TOKENS_MAX;
use trafficllm_traffic::token::{EncodeScratch, TokenError};
use trafficllm_traffic::{Flow, MemoryError};

use super::counters::{Counts, EngineCounters};
use super::generation::{Generation, View};
use super::queue::Lane;
use super::shared::Shared;
use super::slot::{Mailbox, Notify, Slot, State, reserve, room_for_answers};
use crate::error::Error;
use crate::model::Model;
use crate::outcome::Verdict;

/// Why a flow or request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As much is under way as the queue holds. The flow is shed, and counted so.
    #[error("the queue is full: the flow is shed")]
    QueueFull,
    /// The model was replaced by one that needs more room for a flow, and the system has no memory for it. The flow is shed, and
    /// counted so.
    #[error("no memory for the tokens of a flow: the flow is shed")]
    NoMemory,
    /// The engine was stopped or dropped. The flow is abandoned, and counted so.
    #[error("the engine is gone")]
    Closed,
    /// The text is no HTTP request; it is not counted.
    #[error(transparent)]
    NotARequest(#[from] TokenError),
}

/// What became of one submitted flow or request.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// What the caller called it.
    pub id: u64,
    /// Its fate.
    pub judgement: Judgement<'a>,
    /// Number of the model that judged it, or would have: as [`crate::Engine::activate`] gave it, 1 for the first.
    pub generation: u64,
    /// That model.
    pub model: &'a Model,
    /// Time from the submission to this fate in microseconds, without the time that it waited to be taken.
    pub latency_us: u64,
}

impl std::fmt::Debug for Answer<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Answer")
            .field("id", &self.id)
            .field("judgement", &self.judgement)
            .field("generation", &self.generation)
            .field("model", &self.model.id())
            .field("latency_us", &self.latency_us)
            .finish()
    }
}

/// The fate of a flow or request that was taken into the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judgement<'a> {
    /// One per task that applies, in the model's order; none where no chosen task does.
    Verdicts(&'a [Verdict<'a>]),
    /// Its deadline passed before its turn came.
    Expired,
    /// The engine was stopped or dropped before its turn came.
    Abandoned,
    /// It was lost to a defect in the model or a worker, which said this.
    Failed(&'a str),
}

impl<'a> Judgement<'a> {
    /// What to tell of a slot, with its verdicts by name.
    pub(super) fn of(slot: &'a Slot, verdicts: &'a [Verdict<'a>]) -> Self {
        match &slot.state {
            State::Judged => Self::Verdicts(verdicts),
            State::Expired => Self::Expired,
            State::Failed(message) => Self::Failed(message),
            State::Open | State::Abandoned => Self::Abandoned,
        }
    }
}

/// Makes tokens of flows and requests.
#[derive(Debug)]
pub(super) struct Filler {
    tokens: Vec<u32>,
    scratch: EncodeScratch,
    /// Outcomes are put in order: heads that keep what they know are asked then.
    is_ordered: bool,
}

impl Filler {
    /// One with room for every flow and request of every model.
    pub(super) fn new() -> Result<Self, Error> {
        let scratch = EncodeScratch::with_room();
        let scratch =
            scratch.map_err(|MemoryError { what, bytes }| Error::Memory { what, bytes })?;
        let mut tokens = Vec::new();
        reserve("room for encoding", &mut tokens, ENCODING_TOKENS_MAX)?;
        Ok(Self {
            tokens,
            scratch,
            is_ordered: false,
        })
    }

    /// Bytes held beside itself.
    pub(super) fn bytes(&self) -> usize {
        self.scratch.bytes() + self.tokens.capacity() * size_of::<u32>()
    }

    /// Gives a slot the tokens of a flow, for the tasks that were chosen.
    pub(super) fn flow(&mut self, generation: &Generation, slot: &mut Slot, flow: &Flow) {
        let encoder = generation.model.encoder();
        if let (Some(set), Some(heads)) = (&generation.heads, &mut slot.heads) {
            heads.fill(set, flow, self.is_ordered);
        }
        // Encoding needs more room for a moment than what it leaves: the slots have just the room for that.
        if !generation.selection.flow.is_empty() {
            encoder.encode_flow(flow, &mut self.scratch, &mut self.tokens);
            slot.flow_tokens.extend_from_slice(&self.tokens);
        }
        if !generation.selection.request.is_empty()
            && encoder.encode_first_request(flow, &mut self.scratch, &mut self.tokens)
        {
            slot.request_tokens.extend_from_slice(&self.tokens);
        }
    }

    /// Makes tokens of a request, for [`Self::request`].
    pub(super) fn read_request(
        &mut self,
        generation: &Generation,
        request: &[u8],
    ) -> Result<(), TokenError> {
        let encoder = generation.model.encoder();
        encoder.encode_request(request, &mut self.scratch, &mut self.tokens)
    }

    /// Gives a slot the tokens of the request that was read.
    pub(super) fn request(&self, generation: &Generation, slot: &mut Slot) {
        if !generation.selection.request.is_empty() {
            slot.request_tokens.extend_from_slice(&self.tokens);
        }
    }
}

/// Submits flows to an engine and takes their verdicts back. One per thread; any number of them share an engine's workers.
///
/// [`Submitter::submit`], [`Submitter::poll`] and dropping it never wait for another thread: not for a worker that the system does not
/// let run, whatever it was doing, and not for a model that is being replaced. They free no model either, as long as the engine is
/// there. They allocate nothing as long as no model comes that needs more room. A flow becomes tokens on the submitting thread: its record may
/// be reused at once, and what waits in the queue is a few hundred token ids of a size known beforehand instead of packets.
#[derive(Debug)]
pub struct Submitter {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    lane: Arc<Lane>,
    view: Arc<View>,
    /// All slots that are not under way.
    #[expect(
        clippy::vec_box,
        reason = "a slot moves from here to the queue and back as a pointer"
    )]
    free: Vec<Box<Slot>>,
    slots: usize,
    /// Bytes of the other buffers, as they are counted in the engine's memory.
    buffers: usize,
    in_flight: usize,
    /// Answers that have been taken out of the mailbox.
    ready: VecDeque<Box<Slot>>,
    /// The slot whose answer the caller sees.
    shown: Option<Box<Slot>>,
    /// Number of the oldest generation of the slots that were made free since the engine was last told.
    let_go: u64,
    /// Empty between calls: only its memory is kept.
    verdicts: Vec<Verdict<'static>>,
    filler: Filler,
}

/// How long a submitter sleeps before it looks whether the engine was stopped: as a rule it is woken for that.
const PAUSE: Duration = Duration::from_millis(100);
/// The same while something is left in its lane and somebody else is just taking from it.
const SHORT_PAUSE: Duration = Duration::from_millis(1);

impl Submitter {
    /// One whose flows count for the queue's limit, or one that waits where it finds no free slot.
    pub(super) fn new(
        shared: &Arc<Shared>,
        slots: usize,
        is_limited: bool,
        notify: Option<Notify>,
    ) -> Result<Self, Error> {
        if !shared.is_open() {
            return Err(Error::Stopped);
        }
        let making = shared.lock_making();
        let current = shared.generations.current();
        making.check_budget("a submitter", slots * shared.slot_bytes())?;
        let mailbox = Arc::new(Mailbox::new(slots, notify)?);
        let lane = Arc::new(Lane::new(slots, &mailbox, is_limited)?);
        let mut filler = Filler::new()?;
        filler.is_ordered = !is_limited;
        let buffers = lane.bytes() + filler.bytes();
        making.check_budget("a submitter", slots * shared.slot_bytes() + buffers)?;
        let free = Slot::several(slots, current.sizes)?;
        let ready = room_for_answers(slots)?;
        let verdicts = Vec::with_capacity(current.verdicts_max());
        shared.open_lane(&lane)?;
        shared.add_submitter(slots, buffers);
        drop(making);
        Ok(Self {
            shared: Arc::clone(shared),
            mailbox,
            lane,
            view: shared.generations.view(),
            free,
            slots,
            buffers,
            in_flight: 0,
            ready,
            shown: None,
            let_go: u64::MAX,
            verdicts,
            filler,
        })
    }

    /// Puts a flow into the queue. Its answer comes with `id`, which is the caller's alone.
    ///
    /// Where the engine is stopped meanwhile, the answer says that the flow is abandoned.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`], [`SubmitError::NoMemory`], [`SubmitError::Closed`]; the flow is then counted, and has no answer.
    pub fn submit(&mut self, flow: &Flow, id: u64) -> Result<(), SubmitError> {
        self.submit_owned(flow, id, None)
    }

    /// As [`Submitter::submit`], for an owner: once the last `Arc` of it is dropped, the flow is not run any more and its answer does
    /// not come; it is then counted as abandoned.
    ///
    /// # Errors
    /// As [`Submitter::submit`].
    pub fn submit_for(&mut self, flow: &Flow, id: u64, owner: &Arc<()>) -> Result<(), SubmitError> {
        self.submit_owned(flow, id, Some(Arc::downgrade(owner)))
    }

    fn submit_owned(
        &mut self,
        flow: &Flow,
        id: u64,
        owner: Option<Weak<()>>,
    ) -> Result<(), SubmitError> {
        let slot = self.open_slot()?;
        let generation = self.current();
        let (mut slot, generation) = self.fit(slot, generation)?;
        slot.owner = owner;
        let slot = self.fill(slot, id, |filler, slot| {
            filler.flow(&generation, slot, flow);
        });
        self.offer(slot, generation, id)
    }

    /// Puts an HTTP request into the queue, as text from its first line on, for the request tasks.
    ///
    /// # Errors
    /// As [`Submitter::submit`]; [`SubmitError::NotARequest`] for a text that is none.
    pub fn submit_request(&mut self, request: &[u8], id: u64) -> Result<(), SubmitError> {
        let generation = self.current();
        if let Some(generation) = &generation {
            self.filler.read_request(generation, request)?;
        }
        let slot = self.open_slot()?;
        let (slot, generation) = self.fit(slot, generation)?;
        let slot = self.fill(slot, id, |filler, slot| filler.request(&generation, slot));
        self.offer(slot, generation, id)
    }

    /// Gives the answers that have come to `take`, and their number back. They come in any order.
    pub fn poll(&mut self, take: impl FnMut(&Answer<'_>)) -> usize {
        self.poll_at_most(usize::MAX, take)
    }

    /// As [`Submitter::poll`], but gives at most so many answers; the others stay for the next call.
    pub fn poll_at_most(&mut self, answers: usize, mut take: impl FnMut(&Answer<'_>)) -> usize {
        let left = Cell::new(answers);
        self.poll_while(
            |_| left.get() > 0,
            |answer| {
                left.set(left.get() - 1);
                take(answer);
            },
        )
    }

    /// As [`Submitter::poll`], but asks `fits` before each answer, with the number of its verdicts, and ends where that is refused: the
    /// answer stays, with those after it, and can still be dropped with its owner.
    pub fn poll_while(
        &mut self,
        mut fits: impl FnMut(usize) -> bool,
        mut take: impl FnMut(&Answer<'_>),
    ) -> usize {
        let mut taken = 0;
        self.reuse_shown();
        while let Some(slot) = self.find_slot()
            && fits(slot.answered())
        {
            // Between the question and this the last owner may have gone.
            let Some(slot) = self.pop_slot() else {
                continue;
            };
            let slot = self.shown.insert(slot);
            if let Some(generation) = &slot.generation {
                let mut verdicts: Vec<Verdict<'_>> = std::mem::take(&mut self.verdicts);
                name_verdicts(generation, slot, &mut verdicts);
                take(&Answer {
                    id: slot.id,
                    judgement: Judgement::of(slot, &verdicts),
                    generation: generation.number,
                    model: &generation.model,
                    latency_us: slot.latency_us,
                });
                self.verdicts = emptied(verdicts);
                taken += 1;
            }
            self.reuse_shown();
        }
        self.tell_let_go();
        taken
    }

    /// As [`Submitter::poll`], but where nothing has come yet, sleeps until something does, until the time is over, until nothing is
    /// under way or until the engine is stopped meanwhile.
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

    /// A slot for a flow that is submitted now, unless the queue is full: that is found out before the work of encoding.
    fn open_slot(&mut self) -> Result<Box<Slot>, SubmitError> {
        let shared = &self.shared;
        Counts::add(&shared.counts.submitted, 1);
        if !shared.is_open() {
            Counts::add(&shared.counts.abandoned, 1);
            return Err(SubmitError::Closed);
        }
        let slot = if shared.queue.is_full() {
            None
        } else {
            self.free.pop()
        };
        let Some(mut slot) = slot else {
            Counts::add(&shared.counts.shed, 1);
            return Err(SubmitError::QueueFull);
        };
        slot.submitted = Instant::now();
        slot.deadline = shared.deadline.map(|after| slot.submitted + after);
        Ok(slot)
    }

    /// The model for a flow that is submitted now.
    fn current(&mut self) -> Option<Arc<Generation>> {
        let current = self.view.get();
        // It may be replaced before it is used, and then wants to be let go of.
        let number = current.as_ref().map(|generation| generation.number);
        self.let_go = self.let_go.min(number.unwrap_or(u64::MAX));
        current
    }

    /// Gives a slot the room that a generation needs. Without a generation the flow is shed as well.
    fn fit(
        &mut self,
        mut slot: Box<Slot>,
        generation: Option<Arc<Generation>>,
    ) -> Result<(Box<Slot>, Arc<Generation>), SubmitError> {
        let refused = match generation {
            Some(generation) if slot.fit(generation.sizes).is_ok() => {
                return Ok((slot, generation));
            }
            Some(_) => SubmitError::NoMemory,
            None => SubmitError::QueueFull,
        };
        self.free.push(slot);
        Counts::add(&self.shared.counts.shed, 1);
        Err(refused)
    }

    /// Gives a slot its tokens. Where that panics, the flow has failed and the slot is free again.
    fn fill(
        &mut self,
        mut slot: Box<Slot>,
        id: u64,
        work: impl FnOnce(&mut Filler, &mut Slot),
    ) -> Box<Slot> {
        let Self { shared, filler, .. } = self;
        let work = AssertUnwindSafe(|| {
            shared.meet_encoding_faults(id);
            work(filler, &mut slot);
        });
        match catch_unwind(work) {
            Ok(()) => slot,
            Err(panic) => {
                Counts::add(&shared.counts.failed, 1);
                slot.clear();
                self.free.push(slot);
                resume_unwind(panic)
            }
        }
    }

    fn offer(
        &mut self,
        mut slot: Box<Slot>,
        generation: Arc<Generation>,
        id: u64,
    ) -> Result<(), SubmitError> {
        slot.id = id;
        slot.generation = Some(generation);
        match self.shared.queue.put(&self.lane, slot) {
            Ok(()) => {
                self.in_flight += 1;
                // Stopped in between: perhaps nobody looks into the lane any more.
                if self.shared.is_closed() {
                    self.take_back();
                    self.mailbox.notify();
                }
                Ok(())
            }
            // Another submitter was faster.
            Err(slot) => {
                self.reuse(slot);
                Counts::add(&self.shared.counts.shed, 1);
                Err(SubmitError::QueueFull)
            }
        }
    }

    /// A slot that is free now, with room for a generation's tokens; it has no deadline.
    pub(super) fn free_slot(
        &mut self,
        generation: &Generation,
    ) -> Result<Option<Box<Slot>>, Error> {
        let Some(mut slot) = self.free.pop() else {
            return Ok(None);
        };
        slot.fit(generation.sizes)?;
        Ok(Some(slot))
    }

    /// What makes tokens of flows and requests.
    pub(super) fn filler(&mut self) -> &mut Filler {
        &mut self.filler
    }

    /// Puts a slot that was filled into the queue, of a submitter that is not limited.
    pub(super) fn send(&mut self, mut slot: Box<Slot>, generation: &Arc<Generation>, id: u64) {
        slot.id = id;
        slot.generation = Some(Arc::clone(generation));
        slot.submitted = Instant::now();
        Counts::add(&self.shared.counts.submitted, 1);
        self.in_flight += 1;
        // A lane has room for all slots; one that it had none for would be answered as abandoned.
        if let Err(slot) = self.shared.queue.put(&self.lane, slot) {
            self.ready.push_back(slot);
        }
    }

    /// An answer that has come and that somebody wants; its fate is counted.
    pub(super) fn take_slot(&mut self) -> Option<Box<Slot>> {
        self.reuse_shown();
        loop {
            self.find_slot()?;
            if let Some(slot) = self.pop_slot() {
                return Some(slot);
            }
        }
    }

    /// The next answer that has come and that somebody wants. It stays the first of those that are ready.
    fn find_slot(&mut self) -> Option<&Slot> {
        while self.in_flight > 0 {
            if self.ready.is_empty() {
                self.mailbox.try_take(&mut self.ready);
            }
            if self.ready.is_empty() {
                self.take_back();
            }
            if self.ready.front()?.is_owned() {
                break;
            }
            let _unwanted = self.pop_slot();
        }
        // None is ready where none is under way.
        self.ready.front().map(|slot| &**slot)
    }

    /// Takes the first of the answers that are ready and counts its fate; gives it back if somebody wants it.
    fn pop_slot(&mut self) -> Option<Box<Slot>> {
        let slot = self.ready.pop_front()?;
        self.in_flight -= 1;
        let counts = &self.shared.counts;
        let is_owned = slot.is_owned();
        let fate = match &slot.state {
            _ if !is_owned => &counts.abandoned,
            State::Judged => &counts.done,
            State::Expired => &counts.expired,
            State::Failed(_) => &counts.failed,
            State::Open | State::Abandoned => &counts.abandoned,
        };
        Counts::add(fate, 1);
        if is_owned {
            return Some(slot);
        }
        self.reuse(slot);
        None
    }

    /// Takes what still waits out of the lane, once nobody else will.
    fn take_back(&mut self) {
        if self.shared.is_closed() {
            while let Some(mut slot) = self.shared.queue.take_back(&self.lane) {
                slot.close(State::Abandoned);
                self.ready.push_back(slot);
            }
            // Somebody is just taking from it: there is something to look for again.
            if !self.lane.is_empty() {
                self.mailbox.notify();
            }
        }
    }

    /// Sleeps until an answer comes, until the time is over, until nothing is under way or until the engine is stopped meanwhile. It
    /// takes no answer: that is [`Submitter::poll`].
    pub fn sleep(&mut self, timeout: Duration) {
        self.sleep_while(timeout, || true);
    }

    /// As [`Submitter::sleep`], but also asks `goes_on` again and again, and ends where that says no: ten times a second, and a
    /// thousand times where the engine has no workers, so that `goes_on` can be what does their work.
    pub fn sleep_while(&mut self, timeout: Duration, mut goes_on: impl FnMut() -> bool) {
        let begin = Instant::now();
        let was_closed = self.shared.is_closed();
        loop {
            if self.ready.is_empty() {
                self.take_back();
            }
            let is_closed = self.shared.is_closed();
            let left = timeout.saturating_sub(begin.elapsed());
            let is_over = left.is_zero() || is_closed && !was_closed;
            if !self.ready.is_empty() || self.in_flight == 0 || is_over || !goes_on() {
                return;
            }
            let is_watched = is_closed && !self.lane.is_empty();
            let pause = if is_watched || !self.shared.queue.has_workers() {
                SHORT_PAUSE
            } else {
                PAUSE
            };
            self.mailbox.wait(&mut self.ready, left.min(pause));
        }
    }

    fn tell_let_go(&mut self) {
        if self.let_go != u64::MAX {
            let _left_to_others = self.shared.let_go(self.let_go);
            self.let_go = u64::MAX;
        }
    }

    /// Makes a slot free again.
    pub(super) fn reuse(&mut self, mut slot: Box<Slot>) {
        self.let_go = self.let_go.min(slot.generation_number());
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
        self.shared.close_lane(&self.lane);
        Counts::add(&self.shared.counts.abandoned, self.in_flight as u64);
        self.shared.remove_submitter(self.slots, self.buffers);
        let held = self.ready.drain(..).chain(self.shown.take());
        let oldest = held.map(|slot| slot.generation_number()).min();
        self.let_go = self.let_go.min(oldest.unwrap_or(u64::MAX));
        self.tell_let_go();
    }
}

/// Replaces `named` by a slot's verdicts with the names of tasks and labels: those of the model, then those of heads.
pub(super) fn name_verdicts<'a>(
    generation: &'a Generation,
    slot: &'a Slot,
    named: &mut Vec<Verdict<'a>>,
) {
    named.clear();
    let tasks = generation.model.core().tasks();
    named.extend(slot.verdicts.iter().map(|verdict| {
        let task = &tasks[verdict.task];
        Verdict {
            task: task.name(),
            label: &task.labels()[verdict.label as usize],
            task_index: verdict.task as u32,
            label_index: verdict.label,
            score: verdict.score,
            abstained: verdict.abstained,
            evidence: "",
            reason: "",
        }
    }));
    if let (Some(set), Some(part)) = (&generation.heads, &slot.heads) {
        set.name_verdicts(part, named);
    }
}
