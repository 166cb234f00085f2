//! Takes flows from the queue, as many as are there, and runs the model over them: on a thread of the engine's own or on the
//! caller's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::judge::Judge;
use super::queue::Taker;
use super::shared::Shared;
use super::slot::Ticket;
use crate::error::Error;
use crate::limits::BATCH_SUBJECTS_MAX;

/// What the names of an engine's threads begin with.
pub const WORKER_NAME: &str = "trafficllm";

/// How long to sleep at once while a replaced generation has buffers on the device.
const RETIRED_SLEEP: Duration = Duration::from_secs(1);

/// One thread that takes from the queue.
pub(super) struct Worker {
    shared: Arc<Shared>,
    number: usize,
    taker: Taker,
    pub(super) judge: Judge,
    /// The first flow of the next batch: it came while a batch of another generation was gathered.
    held: Option<Ticket>,
}

impl Worker {
    pub(super) fn new(shared: &Arc<Shared>, number: usize) -> Result<Self, Error> {
        let current = shared.generations.current();
        let worker = Self {
            shared: Arc::clone(shared),
            number,
            taker: Taker::new(number),
            judge: Judge::new(shared.batch_sizes(), &current, true)?,
            held: None,
        };
        worker.tell_bytes();
        Ok(worker)
    }

    /// Runs what waits until the time has come, if there is one, and gives back how many flows were judged.
    pub(super) fn run_waiting(&mut self, until: Option<Instant>) -> usize {
        let mut flows = 0;
        while !self.shared.is_closed() && until.is_none_or(|until| Instant::now() < until) {
            let Some(first) = self.next() else { break };
            self.gather(first, Duration::ZERO);
            flows += self.run();
        }
        if self.shared.is_closed() {
            self.send_home();
        }
        self.release();
        flows
    }

    /// Frees generations that nobody uses any more.
    fn release(&mut self) {
        let generations = &self.shared.generations;
        generations.release();
        if generations.has_retired() {
            return;
        }
        self.judge.forget_retired();
        if self.judge.has_replaced(generations.number()) {
            let current = generations.current();
            self.judge.forget_replaced(&current);
            let number = current.number;
            drop(current);
            self.shared.let_go_and_free(number);
            self.tell_bytes();
        }
    }

    pub(super) fn next(&mut self) -> Option<Ticket> {
        self.held
            .take()
            .or_else(|| self.taker.take(&self.shared.queue))
    }

    /// Fills the batch up to its budget with what waits already, and with what comes while the first flow may still wait.
    pub(super) fn gather(&mut self, first: Ticket, wait: Duration) {
        let tokens = |ticket: &Ticket| ticket.slot().map_or(0, super::slot::Slot::tokens);
        let generation = |ticket: &Ticket| ticket.slot().map(super::slot::Slot::generation_number);
        // Heads take their time for flows of a detection, and those of hosts cannot wait for it.
        let is_apart = first.slot().is_some_and(super::slot::Slot::has_heads);
        let shared = Arc::clone(&self.shared);
        let until = first
            .slot()
            .filter(|_| !wait.is_zero())
            .map(|slot| slot.submitted + wait);
        let batch_generation = generation(&first);
        let mut batch_tokens = tokens(&first);
        self.judge.batch.push(first);
        while batch_tokens < shared.batch_tokens() && self.judge.batch.len() < BATCH_SUBJECTS_MAX {
            let next = if is_apart {
                self.taker.take_alike(&shared.queue)
            } else {
                self.taker.take(&shared.queue)
            };
            let Some(next) = next else {
                if is_apart && self.taker.has_waiting(&shared.queue) {
                    break;
                }
                if shared.is_open() && until.is_some_and(|until| Instant::now() < until) {
                    self.taker.sleep(&shared.queue, until, || !shared.is_open());
                    continue;
                }
                break;
            };
            if !next.is_wanted() {
                continue;
            }
            if generation(&next) != batch_generation {
                self.held = Some(next);
                break;
            }
            batch_tokens += tokens(&next);
            self.judge.batch.push(next);
        }
        self.taker.pass_on(&shared.queue);
    }

    /// Answers the batch, and gives back for how many flows the model ran.
    fn run(&mut self) -> usize {
        if self.shared.is_closed() {
            self.send_home();
            return 0;
        }
        let flows = self.judge.run(&self.shared);
        self.tell_bytes();
        self.judge.batch.clear();
        flows
    }

    fn tell_bytes(&self) {
        if let Some(told) = self.shared.worker_bytes.get(self.number) {
            let bytes = self.judge.bytes();
            let generations = &self.shared.generations;
            if told.swap(bytes, SeqCst) != bytes || generations.has_retired() {
                generations.count_bytes();
            }
        }
    }

    /// Takes the buffers for a new model before its first batch comes.
    fn prepare(&mut self) {
        let current = self.shared.generations.current();
        if !self.judge.is_ready_for(&current) {
            if let Err(error) = self.judge.prepare(&current) {
                // The first batch tries again, and fails where that does not help either.
                tracing::warn!(%error, "no buffers for the new model");
            }
            self.judge.start_heads();
            self.tell_bytes();
        }
        let number = current.number;
        drop(current);
        self.shared.let_go_and_free(number);
    }

    /// Sends home what was taken and will not be run.
    pub(super) fn send_home(&mut self) {
        let held = self.held.take();
        let flows = self.judge.batch.len() + held.iter().len();
        self.judge.batch.clear();
        self.shared.add_sent_home(flows);
    }

    fn work(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.taker.begin(&shared.queue);
        while !shared.is_closed() {
            if let Some(first) = self.next() {
                self.gather(first, shared.batch_wait);
                self.run();
            } else if !shared.is_open() {
                break;
            } else {
                self.prepare();
                let number = shared.generations.number();
                // What this thread has of a replaced generation on a device goes soon after it.
                let has_retired = self.judge.has_retired();
                let until = has_retired.then(|| Instant::now() + RETIRED_SLEEP);
                self.taker.sleep(&shared.queue, until, || {
                    !shared.is_open()
                        || shared.generations.has_unused()
                        || shared.generations.number() != number
                });
            }
            self.release();
        }
        self.send_home();
        shared.end_closing();
    }
}

/// Counts a worker as running for as long as it is alive.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.worker_ends();
    }
}

/// Threads that sleep while the queue is empty: none before the start, and there may be none at all.
#[derive(Default)]
pub(super) struct Pool {
    /// Workers that have no thread yet.
    idle: VecDeque<Worker>,
    threads: Vec<JoinHandle<()>>,
    /// The process that started the threads: in one that was forked off they do not exist.
    process: u32,
    /// A stop did not wait for the last of the threads.
    has_given_up: bool,
}

impl Pool {
    pub(super) fn new(idle: VecDeque<Worker>) -> Self {
        Self {
            idle,
            ..Self::default()
        }
    }

    /// Starts the workers that have no thread yet.
    pub(super) fn start(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        while let Some(mut worker) = self.idle.pop_front() {
            let number = worker.number;
            shared.worker_begins();
            // It goes with the thread, or with the closure where there will be none.
            let running = Running(Arc::clone(shared));
            let spawned = Builder::new()
                .name(format!("{WORKER_NAME}-{number}"))
                .spawn(move || {
                    worker.work();
                    drop(worker);
                    drop(running);
                });
            match spawned {
                Ok(thread) => self.threads.push(thread),
                Err(source) => {
                    self.idle.push_front(Worker::new(shared, number)?);
                    return Err(Error::Spawn {
                        worker: number,
                        source,
                    });
                }
            }
            self.process = std::process::id();
        }
        Ok(())
    }

    /// Whether the threads, if there are any, are those of this process.
    pub(super) fn is_own(&self) -> bool {
        self.threads.is_empty() || self.process == std::process::id()
    }

    /// Waits for the last steps of the threads whose work has ended, where so many have not ended.
    pub(super) fn join_ended(&mut self, running: usize) {
        self.has_given_up = running > 0;
        self.idle.clear();
        if self.is_own() {
            self.join(|thread| running == 0 || thread.is_finished());
        }
    }

    /// Waits for all threads to end, unless a stop did not, or unless they are those of another process.
    pub(super) fn join_unless_given_up(&mut self) {
        if self.is_own() && !self.has_given_up {
            self.join(|_| true);
        }
    }

    fn join(&mut self, is_meant: impl Fn(&JoinHandle<()>) -> bool) {
        // A worker that ends its own engine, from the function that it calls when answers arrive, cannot wait for itself.
        let own = thread::current().id();
        let meant = |thread: &mut JoinHandle<()>| thread.thread().id() != own && is_meant(thread);
        for thread in self.threads.extract_if(.., meant) {
            // A worker catches the panics of its work; there is nothing left to tell.
            let _ended = thread.join();
        }
    }
}
