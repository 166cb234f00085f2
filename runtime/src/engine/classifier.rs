//! The synchronous way in: flows are judged on the thread that asks.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use trafficllm_model::emptied;
use trafficllm_traffic::Flow;

use super::counters::Unsettled;
use super::generation::{Generation, Selection};
use super::judge::{BatchSizes, Judge};
use super::shared::Shared;
use super::slot::{Slot, SlotSizes, State, Ticket};
use super::submitter::{Answer, Filler, Judgement, SubmitError, name_verdicts};
use crate::error::Error;
use crate::limits::CLASSIFIER_FLOWS;
use crate::outcome::Verdict;

/// Judges flows on the calling thread, without queue and workers: also before [`crate::Engine::start`]. One per thread.
///
/// The verdicts are those that a [`crate::Submitter`] would get. Each call runs the model that is current when it begins, or was when it
/// was prepared ([`Classifier::prepare`]), and all of its flows run the same.
#[derive(Debug)]
pub struct Classifier {
    shared: Arc<Shared>,
    judge: Judge,
    #[expect(
        clippy::vec_box,
        reason = "a slot moves from here to the batch and back as a pointer"
    )]
    free: Vec<Box<Slot>>,
    filler: Filler,
    /// The model of the next call, where it is settled.
    prepared: Option<Arc<Generation>>,
    /// Empty between calls: only its memory is kept.
    verdicts: Vec<Verdict<'static>>,
    /// Bytes that are counted in the engine's memory.
    bytes: usize,
}

impl Classifier {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Self, Error> {
        let making = shared.lock_making();
        let current = shared.generations.current();
        let slots_bytes = CLASSIFIER_FLOWS * current.sizes.bytes();
        making.check_budget("a classifier", slots_bytes)?;
        let sizes = BatchSizes {
            tokens: shared.batch_sizes().tokens,
            flows: CLASSIFIER_FLOWS,
        };
        let mut classifier = Self {
            shared: Arc::clone(shared),
            judge: Judge::new(sizes, &current, false)?,
            free: Slot::several(CLASSIFIER_FLOWS, current.sizes)?,
            filler: Filler::new()?,
            prepared: None,
            verdicts: Vec::new(),
            bytes: 0,
        };
        making.check_budget("a classifier", slots_bytes + classifier.buffers_bytes())?;
        classifier.count_bytes(current.sizes);
        drop(making);
        Ok(classifier)
    }

    /// Settles that the next call runs the model that is current now, whatever is activated meanwhile, and gives back the most verdicts
    /// that an answer of it can have: what to make room for before the call. The model is kept until then, or until the classifier is
    /// dropped; preparing again takes the model that is current then.
    pub fn prepare(&mut self) -> usize {
        let current = self.shared.generations.current();
        let Selection { flow, request, .. } = &current.selection;
        let heads = current.heads.as_ref().map_or(0, |heads| heads.count());
        let verdicts = flow.len() + request.len() + heads;
        if let Some(before) = self.prepared.replace(current) {
            self.let_go(before);
        }
        verdicts
    }

    /// Undoes [`Classifier::prepare`], for a call that does not come.
    pub fn forget_prepared(&mut self) {
        if let Some(generation) = self.prepared.take() {
            self.let_go(generation);
        }
    }

    /// Judges flows and gives each answer to `take`, with the flow's index in `flows`, which is the answer's id as well.
    ///
    /// # Errors
    /// [`SubmitError::Closed`] after [`crate::Engine::stop`], [`SubmitError::NoMemory`]: the flows that have no answer then are counted
    /// as abandoned or shed.
    pub fn classify(
        &mut self,
        flows: &[&Flow],
        mut take: impl FnMut(usize, &Answer<'_>),
    ) -> Result<(), SubmitError> {
        let shared = Arc::clone(&self.shared);
        let mut unsettled = Unsettled::new(&shared.counts, flows.len());
        let generation = self.begin();
        let mut judged = self.make_ready(&generation);
        let mut flows = flows.iter().enumerate().peekable();
        while judged.is_ok() && flows.peek().is_some() {
            // What has found room is judged also where the next one has not.
            let opened = self.gather(&generation, &mut flows);
            let run = self.run(&generation, &mut unsettled, &mut take);
            judged = run.and(opened);
        }
        self.end(generation, &mut unsettled, judged)
    }

    /// Fills the batch.
    fn gather<'f>(
        &mut self,
        generation: &Arc<Generation>,
        flows: &mut impl Iterator<Item = (usize, &'f &'f Flow)>,
    ) -> Result<(), SubmitError> {
        let mut batch_tokens = 0;
        while batch_tokens < self.shared.batch_tokens()
            && self.judge.batch.len() < CLASSIFIER_FLOWS
            && let Some((index, flow)) = flows.next()
        {
            let mut slot = self.open_slot(generation, index as u64)?;
            self.shared.meet_encoding_faults(slot.id);
            self.filler.flow(generation, &mut slot, flow);
            batch_tokens += slot.tokens();
            self.judge.batch.push(Ticket::local(slot));
        }
        Ok(())
    }

    /// Judges an HTTP request, as text from its first line on, with the request tasks. The answer's id is 0.
    ///
    /// # Errors
    /// As [`Classifier::classify`]; [`SubmitError::NotARequest`] for a text that is none, which is not counted.
    pub fn classify_request(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(&Answer<'_>),
    ) -> Result<(), SubmitError> {
        let shared = Arc::clone(&self.shared);
        let generation = self.begin();
        if let Err(error) = self.filler.read_request(&generation, request) {
            self.let_go(generation);
            return Err(error.into());
        }
        let mut unsettled = Unsettled::new(&shared.counts, 1);
        let opened = self.make_ready(&generation);
        let opened = opened.and_then(|()| self.open_slot(&generation, 0));
        let judged = opened.and_then(|mut slot| {
            shared.meet_encoding_faults(slot.id);
            self.filler.request(&generation, &mut slot);
            self.judge.batch.push(Ticket::local(slot));
            self.run(&generation, &mut unsettled, &mut |_, answer| take(answer))
        });
        self.end(generation, &mut unsettled, judged)
    }

    /// The model of a call. What a call before has left behind when it panicked is not run.
    fn begin(&mut self) -> Arc<Generation> {
        for mut slot in self.judge.batch.drain(..).filter_map(Ticket::take_back) {
            slot.clear();
            self.free.push(slot);
        }
        let prepared = self.prepared.take();
        prepared.unwrap_or_else(|| self.shared.generations.current())
    }

    /// Takes the buffers that a new model needs, if the memory budget has room for them.
    fn make_ready(&mut self, generation: &Generation) -> Result<(), SubmitError> {
        if self.judge.is_ready_for(generation) {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let making = shared.lock_making();
        let needed = CLASSIFIER_FLOWS * generation.sizes.bytes() + self.buffers_bytes();
        let grown = needed.saturating_sub(self.bytes);
        let made = making
            .check_budget("a classifier", grown)
            .and_then(|()| self.judge.prepare(generation));
        let held = made.and_then(|()| {
            self.count_bytes(generation.sizes);
            making.check_budget("a classifier", 0)
        });
        if held.is_err() {
            self.judge.forget();
            self.count_bytes(generation.sizes);
        }
        drop(making);
        held.map_err(|error| {
            tracing::warn!(%error, "no buffers for the new model");
            SubmitError::NoMemory
        })
    }

    fn open_slot(
        &mut self,
        generation: &Arc<Generation>,
        id: u64,
    ) -> Result<Box<Slot>, SubmitError> {
        // One is missing where `take` panicked.
        let slot = self.free.pop().map_or_else(
            || Slot::new(generation.sizes),
            |mut slot| slot.fit(generation.sizes).map(|()| slot),
        );
        let mut slot = slot.map_err(|_| SubmitError::NoMemory)?;
        slot.id = id;
        slot.generation = Some(Arc::clone(generation));
        slot.submitted = Instant::now();
        Ok(slot)
    }

    /// Runs the batch, unless the engine was stopped, and gives its answers to `take`.
    fn run(
        &mut self,
        generation: &Generation,
        unsettled: &mut Unsettled<'_>,
        take: &mut dyn FnMut(usize, &Answer<'_>),
    ) -> Result<(), SubmitError> {
        if !self.shared.is_open() {
            self.judge.batch.clear();
            return Err(SubmitError::Closed);
        }
        self.judge.run(&self.shared);
        let mut batch = std::mem::take(&mut self.judge.batch);
        // Before the first is shown: `take` may panic.
        for slot in batch.iter().filter_map(Ticket::slot) {
            let counts = &self.shared.counts;
            unsettled.settle(match &slot.state {
                State::Judged => &counts.done,
                _ => &counts.failed,
            });
        }
        for mut slot in batch.drain(..).filter_map(Ticket::take_back) {
            let mut verdicts: Vec<Verdict<'_>> = std::mem::take(&mut self.verdicts);
            name_verdicts(generation, &slot, &mut verdicts);
            let answer = Answer {
                id: slot.id,
                judgement: Judgement::of(&slot, &verdicts),
                generation: generation.number,
                model: &generation.model,
                latency_us: slot.latency_us,
            };
            take(usize::try_from(slot.id).unwrap_or(usize::MAX), &answer);
            self.verdicts = emptied(verdicts);
            slot.clear();
            self.free.push(slot);
        }
        self.judge.batch = batch;
        Ok(())
    }

    /// Ends a call: gives the flows that were not judged their fate, and lets go of the generation.
    fn end(
        &mut self,
        generation: Arc<Generation>,
        unsettled: &mut Unsettled<'_>,
        judged: Result<(), SubmitError>,
    ) -> Result<(), SubmitError> {
        let counts = &self.shared.counts;
        unsettled.settle_rest(match &judged {
            Err(SubmitError::Closed) => &counts.abandoned,
            _ => &counts.shed,
        });
        self.count_bytes(generation.sizes);
        self.let_go(generation);
        judged
    }

    fn let_go(&self, generation: Arc<Generation>) {
        let number = generation.number;
        drop(generation);
        self.shared.let_go_and_free(number);
    }

    fn buffers_bytes(&self) -> usize {
        self.judge.bytes() + self.judge.head_bytes() + self.filler.bytes()
    }

    fn count_bytes(&mut self, sizes: SlotSizes) {
        let bytes = self.buffers_bytes() + CLASSIFIER_FLOWS * sizes.bytes();
        let total = &self.shared.classifier_bytes;
        total.fetch_add(bytes, SeqCst);
        total.fetch_sub(self.bytes, SeqCst);
        self.bytes = bytes;
    }
}

impl Drop for Classifier {
    fn drop(&mut self) {
        self.forget_prepared();
        self.shared.classifier_bytes.fetch_sub(self.bytes, SeqCst);
    }
}
