//! Takes flows from the queue, as many as are there, and runs the model over them: on a thread of the engine's own or on the
//! caller's.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use trafficllm_model::{Item, ModelError, Scratch, TaskVerdict, emptied};

use super::counters::Counts;
use super::slot::{Kind, SlotSizes, State, Ticket};
use crate::error::Error;
use crate::limits::BATCH_SUBJECTS_MAX;
use crate::model::Model;

/// Indices of the chosen tasks, ascending.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) flow: Vec<usize>,
    pub(super) request: Vec<usize>,
}

impl Selection {
    /// All chosen tasks, ascending.
    pub(super) fn all(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.flow.iter().chain(&self.request).copied().collect();
        all.sort_unstable();
        all
    }
}

/// What engine, workers and submitters have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) model: Arc<Model>,
    pub(super) selection: Selection,
    pub(super) sizes: SlotSizes,
    pub(super) batch_tokens: usize,
    /// How long a worker waits for more, counted from the submission of the batch's first flow; always shorter than the deadline.
    pub(super) batch_wait: Duration,
    pub(super) deadline: Option<Duration>,
    /// Both ends of the queue. It is never disconnected: who finds the engine closed empties it.
    pub(super) queue: Sender<Ticket>,
    pub(super) waiting: Receiver<Ticket>,
    /// The engine is gone: nobody takes from the queue any more.
    pub(super) is_closed: AtomicBool,
    pub(super) counts: Counts,
    /// Slots of all submitters.
    pub(super) slots: AtomicUsize,
    /// Bytes that each worker holds.
    pub(super) worker_bytes: Vec<AtomicUsize>,
    /// A worker panics when it runs the flow with this id.
    #[cfg(test)]
    pub(super) poison: std::sync::atomic::AtomicU64,
}

impl Shared {
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Sends home what nobody will run any more.
    pub(super) fn abandon_waiting(&self) {
        while let Ok(ticket) = self.waiting.try_recv() {
            drop(ticket);
        }
    }
}

/// The buffers of one thread that runs the model.
pub(super) struct Worker {
    shared: Arc<Shared>,
    number: usize,
    pub(super) batch: Vec<Ticket>,
    /// Empty between batches: only its memory is kept.
    items: Vec<Item<'static>>,
    verdicts: Vec<TaskVerdict>,
    scratch: Scratch,
}

impl Worker {
    pub(super) fn new(shared: &Arc<Shared>, number: usize) -> Self {
        Self {
            shared: Arc::clone(shared),
            number,
            batch: Vec::new(),
            items: Vec::new(),
            verdicts: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Runs all that waits, and gives back how many flows were judged.
    pub(super) fn run_waiting(&mut self) -> usize {
        let mut flows = 0;
        while let Ok(first) = self.shared.waiting.try_recv() {
            self.gather(first, Duration::ZERO);
            flows += self.run();
        }
        flows
    }

    /// Fills the batch up to its budget with what waits already, and with what comes while the first flow may still wait.
    pub(super) fn gather(&mut self, first: Ticket, wait: Duration) {
        let tokens = |ticket: &Ticket| ticket.slot().map_or(0, super::slot::Slot::tokens);
        let until = first.slot().map(|slot| slot.submitted + wait);
        let mut batch_tokens = tokens(&first);
        self.batch.push(first);
        while batch_tokens < self.shared.batch_tokens && self.batch.len() < BATCH_SUBJECTS_MAX {
            let waiting = &self.shared.waiting;
            let next = match (waiting.try_recv(), until) {
                (Err(_), Some(until)) if !wait.is_zero() => waiting.recv_deadline(until).ok(),
                (next, _) => next.ok(),
            };
            let Some(next) = next else { break };
            batch_tokens += tokens(&next);
            self.batch.push(next);
        }
    }

    /// Answers the batch, and gives back for how many flows the model ran.
    fn run(&mut self) -> usize {
        let now = Instant::now();
        // What is not kept is dropped, and so goes home.
        self.batch.retain_mut(|ticket| {
            let is_wanted = ticket.is_wanted();
            let Some(slot) = ticket.slot_mut() else {
                return false;
            };
            let is_late = slot.deadline.is_some_and(|deadline| deadline < now);
            if is_late {
                slot.state = State::Expired;
            }
            is_wanted && !is_late
        });
        let failure = match catch_unwind(AssertUnwindSafe(|| self.classify())) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => {
                // The buffers are in an unknown state.
                self.scratch = Scratch::default();
                Some(panic_text(&*panic))
            }
        };
        if let Some(message) = failure {
            tracing::error!(flows = self.batch.len(), message, "a batch failed");
            let message: Arc<str> = message.into();
            for slot in self.batch.iter_mut().filter_map(Ticket::slot_mut) {
                slot.verdicts.clear();
                slot.state = State::Failed(Arc::clone(&message));
            }
        }
        if let Some(bytes) = self.shared.worker_bytes.get(self.number) {
            bytes.store(self.bytes(), Ordering::Relaxed);
        }
        let flows = self.batch.len();
        self.batch.clear();
        flows
    }

    fn classify(&mut self) -> Result<(), ModelError> {
        let Selection { flow, request } = &self.shared.selection;
        let mut items: Vec<Item<'_>> = std::mem::take(&mut self.items);
        for slot in self.batch.iter().filter_map(Ticket::slot) {
            #[cfg(test)]
            assert_ne!(
                slot.id,
                self.shared.poison.load(Ordering::SeqCst),
                "a poisoned flow"
            );
            items.extend(slot.items().map(|(kind, tokens)| Item {
                tokens,
                tasks: match kind {
                    Kind::Flow => flow,
                    Kind::Request => request,
                },
            }));
        }
        self.verdicts.clear();
        let result = if items.is_empty() {
            Ok(())
        } else {
            let core = self.shared.model.core();
            core.classify(&items, &mut self.scratch, &mut self.verdicts)
        };
        self.items = emptied(items);
        result?;
        let mut answers = self.verdicts.as_slice();
        let mut items_end = 0;
        for slot in self.batch.iter_mut().filter_map(Ticket::slot_mut) {
            items_end += slot.items().count();
            let count = answers
                .iter()
                .take_while(|verdict| verdict.item < items_end)
                .count();
            let (own, rest) = answers.split_at(count);
            answers = rest;
            slot.verdicts.extend_from_slice(own);
            slot.verdicts.sort_unstable_by_key(|verdict| verdict.task);
            slot.state = State::Judged;
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.scratch.bytes()
            + self.batch.capacity() * size_of::<Ticket>()
            + self.items.capacity() * size_of::<Item<'_>>()
            + self.verdicts.capacity() * size_of::<TaskVerdict>()
    }
}

/// Threads that sleep while the queue is empty, and end with the pool; there may be none.
#[derive(Debug)]
pub(super) struct Pool {
    /// `None` once the pool has ended: closing this channel is what ends the workers.
    stop: Option<Sender<Infallible>>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(count: usize, shared: &Arc<Shared>) -> Result<Self, Error> {
        // Nothing is ever sent. A channel of size 0 would allocate each time that a worker waits on it.
        let (stop, stopped) = bounded(1);
        let mut pool = Self {
            stop: Some(stop),
            workers: Vec::with_capacity(count),
        };
        for number in 0..count {
            let (worker, stopped) = (Worker::new(shared, number), stopped.clone());
            let handle = Builder::new()
                .name(format!("trafficllm-{number}"))
                .spawn(move || work_on(worker, &stopped))
                .map_err(|source| Error::Spawn {
                    worker: number,
                    source,
                })?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }
}

impl Pool {
    /// Ends the workers, each after the batch that it runs.
    pub(super) fn end(&mut self) {
        self.stop = None;
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its work; there is nothing left to tell.
            let _ended = worker.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
    }
}

fn work_on(mut worker: Worker, stopped: &Receiver<Infallible>) {
    let wait = worker.shared.batch_wait;
    loop {
        // In this order: a worker that is to end leaves what still waits.
        let first = select_biased! {
            recv(stopped) -> _ => return,
            recv(worker.shared.waiting) -> first => first,
        };
        let Ok(first) = first else { return };
        worker.gather(first, wait);
        worker.run();
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
