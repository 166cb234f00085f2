//! Runs the model over one batch; the buffers that this takes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use trafficllm_model::{Item, ModelError, Scratch, TaskVerdict, emptied};

use super::counters::Counts;
use super::device::Lanes;
use super::generation::{Generation, Selection};
use super::heads::Bench;
use super::shared::Shared;
use super::slot::{Kind, State, Ticket, reserve};
use crate::error::Error;

/// What the largest batch consists of.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSizes {
    /// Tokens after which a batch is cut: the last flow may go beyond.
    pub(super) tokens: usize,
    /// Most flows.
    pub(super) flows: usize,
}

impl BatchSizes {
    /// Most runs of tokens: a flow has up to one of each kind, and each has a token at least.
    pub(super) fn items(self) -> usize {
        (2 * self.flows).min(self.tokens + 1)
    }

    /// Buffers for the largest batch of a model.
    pub(super) fn buffers(self, generation: &Generation) -> Result<Scratch, Error> {
        let mut scratch = Scratch::default();
        self.reserve(&mut scratch, generation)?;
        Ok(scratch)
    }

    /// Makes room in buffers for the largest batch of a model.
    pub(super) fn reserve(
        self,
        scratch: &mut Scratch,
        generation: &Generation,
    ) -> Result<(), Error> {
        let tokens = self.tokens + generation.sizes.flow_tokens + generation.sizes.request_tokens;
        Ok(scratch.try_reserve(generation.model.core(), tokens, self.items())?)
    }
}

/// The buffers of one thread that runs the model. They have their full size from the start, and grow only for a model that needs
/// more than those before.
#[derive(Debug)]
pub(super) struct Judge {
    sizes: BatchSizes,
    /// Number of the generation that the buffers were last made ready for.
    ready_for: u64,
    /// The highest such number; none is higher where the buffers that a generation brings are for others.
    newest: u64,
    /// All of one generation.
    pub(super) batch: Vec<Ticket>,
    /// Empty between batches: only its memory is kept.
    items: Vec<Item<'static>>,
    verdicts: Vec<TaskVerdict>,
    scratch: Scratch,
    lanes: Lanes,
    heads: Bench,
}

impl Judge {
    /// One that is ready for a generation; a worker's takes the buffers that later ones bring for workers.
    pub(super) fn new(
        sizes: BatchSizes,
        generation: &Generation,
        is_worker: bool,
    ) -> Result<Self, Error> {
        let mut judge = Self {
            sizes,
            ready_for: 0,
            newest: if is_worker { 0 } else { u64::MAX },
            batch: Vec::new(),
            items: Vec::new(),
            verdicts: Vec::new(),
            scratch: Scratch::default(),
            lanes: Lanes::default(),
            heads: Bench::default(),
        };
        reserve("a batch", &mut judge.batch, sizes.flows)?;
        judge.prepare(generation)?;
        judge.start_heads();
        Ok(judge)
    }

    /// Makes the buffers ready for a generation, which was given some for it where it needs more than the one before.
    pub(super) fn prepare(&mut self, generation: &Generation) -> Result<(), Error> {
        if self.is_ready_for(generation) {
            return Ok(());
        }
        self.ready_for = 0;
        if generation.number > self.newest {
            self.newest = generation.number;
            if let Some(buffers) = generation.take_buffers() {
                self.lanes.move_to(buffers, &mut self.scratch);
            }
        }
        let items = self.sizes.items();
        let Selection { flow, request, .. } = &generation.selection;
        reserve("a batch", &mut self.items, items)?;
        reserve(
            "a batch",
            &mut self.verdicts,
            items * flow.len().max(request.len()),
        )?;
        self.sizes.reserve(&mut self.scratch, generation)?;
        let (heads, core) = (generation.heads.as_ref(), generation.model.core());
        self.heads.prepare(heads, core, items, self.sizes.flows)?;
        let is_worker = self.newest != u64::MAX;
        let sizes = (self.sizes, is_worker);
        self.lanes.prepare(&mut self.scratch, generation, sizes);
        self.ready_for = generation.number;
        Ok(())
    }

    /// Starts the heads that have not begun, which takes as long as they like: in a batch they begin within its time.
    pub(super) fn start_heads(&mut self) {
        self.heads.start();
    }

    /// Gives the buffers of the model back; they are taken again before the next batch.
    pub(super) fn forget(&mut self) {
        self.scratch = Scratch::default();
        self.lanes = Lanes::default();
        self.heads = Bench::default();
        self.ready_for = 0;
    }

    /// Whether the buffers are ready for a generation.
    pub(super) fn is_ready_for(&self, generation: &Generation) -> bool {
        self.ready_for == generation.number && !self.lanes.wants(&self.scratch, generation)
    }

    /// Whether [`Self::forget_retired`] has something to do.
    pub(super) fn has_retired(&self) -> bool {
        self.lanes.has_other()
    }

    /// Gives back what the device has of a generation that is gone.
    pub(super) fn forget_retired(&mut self) {
        self.lanes.forget_other();
    }

    /// Whether [`Self::forget_replaced`] may have something to do, where a generation is the only one that is left.
    pub(super) fn has_replaced(&self, left: u64) -> bool {
        Lanes::has_attached(&self.scratch) && self.ready_for != left
    }

    /// As [`Self::forget_retired`], of the buffers that the last batch ran on.
    pub(super) fn forget_replaced(&mut self, left: &Generation) {
        Lanes::forget_attached(&mut self.scratch, left);
    }

    /// Gives every flow of the batch its answer, drops those that nobody wants, and gives back for how many the model ran.
    pub(super) fn run(&mut self, shared: &Shared) -> usize {
        let now = Instant::now();
        // What is not kept is dropped, and so goes home.
        self.batch.retain_mut(|ticket| {
            let is_wanted = ticket.is_wanted();
            let Some(slot) = ticket.slot_mut() else {
                return false;
            };
            let is_late = slot.deadline.is_some_and(|deadline| deadline < now);
            if is_wanted && is_late {
                slot.close(State::Expired);
            }
            is_wanted && !is_late
        });
        let first = self.batch.first().and_then(Ticket::slot);
        let Some(generation) = first.and_then(|slot| slot.generation.clone()) else {
            self.batch.clear();
            return 0;
        };
        Counts::add(&shared.counts.batches, 1);
        let work = AssertUnwindSafe(|| {
            self.prepare(&generation)?;
            Ok::<(), Error>(self.classify(shared, &generation)?)
        });
        let failure = match catch_unwind(work) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => {
                Counts::add(&shared.counts.worker_panics, 1);
                // The buffers are in an unknown state.
                self.forget();
                Some(panic_text(&*panic))
            }
        };
        let flows = self.batch.len();
        if let Some(message) = failure {
            tracing::error!(flows, message, "a batch failed");
            let message: Arc<str> = message.into();
            for slot in self.batch.iter_mut().filter_map(Ticket::slot_mut) {
                slot.forget_answers();
                slot.close(State::Failed(Arc::clone(&message)));
            }
        } else {
            for slot in self.batch.iter_mut().filter_map(Ticket::slot_mut) {
                slot.close(State::Judged);
                shared.latency.add(slot.latency_us);
            }
        }
        flows
    }

    fn classify(&mut self, shared: &Shared, generation: &Generation) -> Result<(), ModelError> {
        let mut items: Vec<Item<'_>> = std::mem::take(&mut self.items);
        for slot in self.batch.iter().filter_map(Ticket::slot) {
            shared.meet_faults(slot.id);
            items.extend(slot.items().map(|(kind, tokens)| Item {
                tokens,
                tasks: match kind {
                    Kind::Flow => &generation.selection.flow,
                    Kind::Request => &generation.selection.request,
                },
            }));
        }
        self.verdicts.clear();
        let result = if items.is_empty() {
            Ok(())
        } else {
            let core = generation.model.core();
            let (scratch, verdicts) = (&mut self.scratch, &mut self.verdicts);
            let judged = match self.heads.insight() {
                None => core.classify(&items, scratch, verdicts),
                Some(insight) => core.classify_with(&items, scratch, verdicts, insight),
            };
            let used = (scratch, &mut self.lanes);
            shared.device.count(used, &shared.counts, judged.is_ok());
            judged
        };
        self.items = emptied(items);
        result?;
        let mut answers = self.verdicts.as_slice();
        let (mut items_end, mut verdicts_end) = (0, 0);
        self.heads.forget_places();
        for (index, ticket) in self.batch.iter_mut().enumerate() {
            let Some(slot) = ticket.slot_mut() else {
                continue;
            };
            items_end += slot.items().count();
            let count = answers
                .iter()
                .take_while(|verdict| verdict.item < items_end)
                .count();
            let (own, rest) = answers.split_at(count);
            answers = rest;
            slot.verdicts.extend_from_slice(own);
            slot.verdicts.sort_unstable_by_key(|verdict| verdict.task);
            let own = verdicts_end..verdicts_end + count;
            verdicts_end += count;
            self.heads.place(index, slot, own);
        }
        self.heads.judge(&mut self.batch, &self.verdicts);
        Ok(())
    }

    /// Bytes that the heads at work here can take.
    pub(super) fn head_bytes(&self) -> usize {
        self.heads.head_bytes()
    }

    /// Bytes held, without those of [`Self::head_bytes`].
    pub(super) fn bytes(&self) -> usize {
        self.scratch.bytes()
            + self.heads.bytes()
            + self.batch.capacity() * size_of::<Ticket>()
            + self.items.capacity() * size_of::<Item<'_>>()
            + self.verdicts.capacity() * size_of::<TaskVerdict>()
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
