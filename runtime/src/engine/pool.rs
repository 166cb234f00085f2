//! Worker threads behind bounded channels; results come back in the order in which batches were submitted.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::batch::{Batch, Classifier, Done};
use crate::error::Error;
use crate::limits::BATCHES_PER_WORKER;

type Answer = (u64, Result<Done, Error>);

/// Workers that sleep while there is no work.
pub(super) struct Pool {
    /// `None` only while the pool is dropped: closing the channel is what ends the workers.
    work: Option<Sender<Batch>>,
    answers: Receiver<Answer>,
    workers: Vec<JoinHandle<()>>,
    /// Answers that came before those of earlier batches.
    early: BTreeMap<u64, Result<Done, Error>>,
    submitted: u64,
    delivered: u64,
    in_flight_max: u64,
}

impl Pool {
    pub(super) fn start(count: usize, classifier: impl Fn() -> Classifier) -> Result<Self, Error> {
        // Both channels hold everything that can be under way, so neither side ever waits to send.
        let in_flight_max = count * BATCHES_PER_WORKER;
        let (work, receiver) = bounded::<Batch>(in_flight_max);
        let (sender, answers) = bounded(in_flight_max);
        let mut pool = Self {
            work: Some(work),
            answers,
            workers: Vec::with_capacity(count),
            early: BTreeMap::new(),
            submitted: 0,
            delivered: 0,
            in_flight_max: in_flight_max as u64,
        };
        for worker in 0..count {
            let (receiver, sender, classifier) = (receiver.clone(), sender.clone(), classifier());
            let handle = Builder::new()
                .name(format!("trafficllm-{worker}"))
                .spawn(move || work_on(&receiver, &sender, classifier))
                .map_err(|source| Error::Spawn { worker, source })?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Whether another batch may be submitted before an answer is taken.
    pub(super) fn has_room(&self) -> bool {
        self.submitted - self.delivered < self.in_flight_max
    }

    /// Batches whose answers have not been taken.
    pub(super) fn in_flight(&self) -> u64 {
        self.submitted - self.delivered
    }

    /// Hands a batch over. The caller has asked [`Pool::has_room`].
    pub(super) fn submit(&mut self, mut batch: Batch) -> Result<(), Error> {
        batch.sequence = self.submitted;
        let sent = self.work.as_ref().map(|work| work.send(batch).is_ok());
        if sent != Some(true) {
            return Err(lost(self.submitted));
        }
        self.submitted += 1;
        Ok(())
    }

    /// The answer of the earliest batch that has none yet; with `wait` unset only if it is there already.
    pub(super) fn next(&mut self, wait: bool) -> Option<Result<Done, Error>> {
        while self.in_flight() > 0 {
            if let Some(answer) = self.early.remove(&self.delivered) {
                self.delivered += 1;
                return Some(answer);
            }
            let received = if wait {
                self.answers.recv().ok()
            } else {
                self.answers.try_recv().ok()
            };
            match received {
                Some((sequence, answer)) => {
                    self.early.insert(sequence, answer);
                }
                None if wait => {
                    // All workers are gone, and with them every answer that was still to come.
                    let batch = self.delivered;
                    self.delivered = self.submitted;
                    return Some(Err(lost(batch)));
                }
                None => return None,
            }
        }
        None
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.work = None;
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its work; there is nothing left to tell.
            let _ended = worker.join();
        }
    }
}

fn lost(batch: u64) -> Error {
    Error::Worker {
        batch,
        message: "the workers are gone".to_owned(),
    }
}

fn work_on(receiver: &Receiver<Batch>, sender: &Sender<Answer>, mut classifier: Classifier) {
    while let Ok(batch) = receiver.recv() {
        let sequence = batch.sequence;
        // Without this a panic would leave the reader waiting for this batch as long as another worker lives.
        let answer = catch_unwind(AssertUnwindSafe(|| classifier.run(batch)));
        let broken = answer.is_err();
        let answer = match answer {
            Ok(answer) => answer.map_err(Error::from),
            Err(panic) => Err(Error::Worker {
                batch: sequence,
                message: panic_text(&*panic),
            }),
        };
        // The buffers of a run that panicked are in an unknown state.
        if sender.send((sequence, answer)).is_err() || broken {
            return;
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
