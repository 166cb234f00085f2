//! Runs a model over flows: on the caller's thread, or on workers that are gone when the engine is.
//!
//! There is one way through it. A [`Submitter`] puts a flow's tokens into a slot and the slot into the queue; a worker takes as
//! many slots as make a batch, runs the model once and sends each slot home. A [`Detection`] is a submitter that never sheds
//! and puts the answers in order.

mod counters;
mod detection;
mod requests;
mod slot;
mod submitter;
#[cfg(test)]
mod tests;
mod worker;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::bounded;

use trafficllm_model::TaskKind;
use trafficllm_traffic::{CaptureError, FlowConfig, FlowCounters, SkipCounters};

use crate::error::Error;
use crate::limits::{
    BATCH_TOKENS_DEFAULT, BATCH_TOKENS_MAX, BATCH_TOKENS_MIN, BATCH_WAIT_US_MAX, DEADLINE_US_MAX,
    QUEUE_FLOWS_DEFAULT, QUEUE_FLOWS_MAX, WORKERS_MAX,
};
use crate::model::Model;
use crate::outcome::Outcome;
use counters::Counts;
use slot::{SlotSizes, Ticket};
use worker::{Pool, Selection, Shared, Worker};

pub use counters::EngineCounters;
pub use detection::Detection;
pub use requests::LineError;
pub use submitter::{Answer, Judgement, SubmitError, Submitter};

/// Settings of an [`Engine`].
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Worker threads; with 0 the caller's thread does the work.
    pub workers: usize,
    /// The tasks to ask, by name; none means all.
    pub tasks: Vec<String>,
    /// Tokens after which a batch is cut; 0 means the default. Verdicts do not depend on it.
    pub batch_tokens: usize,
    /// Settings of the flow table; `None` means those of [`Model::flow_config`].
    pub flows: Option<FlowConfig>,
    /// Most flows that wait in the queue, and that one [`Submitter`] has under way; 0 means the default.
    pub queue_flows: usize,
    /// How long a worker waits for more flows to run together while its batch is not full, in microseconds from the submission of
    /// the batch's first flow on, but at most half of the deadline. With 0 it runs what is there.
    pub batch_wait_us: u64,
    /// A submitted flow whose turn comes later than this after its submission is answered without being run, in microseconds;
    /// 0 means never. A [`Detection`] has no deadline.
    pub deadline_us: u64,
}

/// What an engine holds in memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineMemory {
    /// Weights and adapters, shared by all engines of the model.
    pub model_bytes: usize,
    /// The buffers of each worker, or of the caller's thread where there is none; they grow with the first batches and then stay.
    pub worker_bytes: Vec<usize>,
    /// The queue and the slots of all submitters; of a fixed size from the start of each.
    pub queue_bytes: usize,
}

/// Where outcomes go.
pub trait Sink {
    /// Takes one outcome. They come in the order in which the flows ended and the lines stood, whatever the number of workers.
    ///
    /// `Break` stops the detection: what is read after it is not judged.
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()>;

    /// Is told now and then how far reading has come.
    fn progress(&mut self, _progress: &Progress) {}

    /// Takes a line of a requests file that could not be used.
    fn bad_line(&mut self, _source: usize, _error: &LineError) {}
}

/// How far a detection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the current source so far, before decompression.
    pub source_bytes: u64,
    /// Flows and requests of all sources that have their outcome.
    pub outcomes: u64,
}

/// What was read of one capture.
#[derive(Debug, Default)]
pub struct CaptureReport {
    /// Packets read.
    pub packets: u64,
    /// Their captured bytes.
    pub packet_bytes: u64,
    /// Blocks of a pcapng file that hold no packet.
    pub blocks_skipped: u64,
    /// Packets that became no part of a flow, by reason.
    pub skipped: SkipCounters,
    /// What the flow table saw and lost.
    pub flows: FlowCounters,
    /// Why the capture could not be read to its end.
    pub failure: Option<CaptureError>,
}

/// What was read of one requests file.
#[derive(Debug, Default)]
pub struct RequestsReport {
    /// Lines read, without those that are blank.
    pub lines: u64,
    /// Lines that could not be used.
    pub bad_lines: u64,
    /// Why the file could not be read to its end.
    pub failure: Option<std::io::Error>,
}

/// Runs a [`Model`]. Starting one starts its workers, dropping it ends them.
pub struct Engine {
    flows: FlowConfig,
    workers: usize,
    shared: Arc<Shared>,
    /// What runs the model on the caller's thread; `None` where there are workers.
    inline: Option<Box<Mutex<Worker>>>,
    pool: Pool,
}

impl Engine {
    /// Checks the options and starts the workers.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], a setting out of its range, a thread that the system does not give.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self, Error> {
        let workers = options.workers;
        let flows = options.flows.unwrap_or_else(|| model.flow_config());
        flows.validate()?;
        let shared = Arc::new(share(model, &options)?);
        let inline = (workers == 0).then(|| Box::new(Mutex::new(Worker::new(&shared, 0))));
        let pool = Pool::start(workers, &shared)?;
        Ok(Self {
            flows,
            workers,
            shared,
            inline,
            pool,
        })
    }

    /// Begins a detection, whose outcomes go to `sink`.
    pub fn detect<S: Sink>(&mut self, sink: S) -> Detection<'_, S> {
        Detection::new(self, sink)
    }

    /// A way in for flows that come one by one, for one thread. It takes memory for [`EngineOptions::queue_flows`] flows, and may
    /// outlive the engine.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        let slots = self.shared.queue.capacity().unwrap_or(QUEUE_FLOWS_DEFAULT);
        Submitter::new(&self.shared, slots)
    }

    /// Without workers, judges all that waits in the queue, on this thread; gives back the number of flows. With workers there is
    /// nothing to do, and it does nothing. One thread at a time does the work, another one waits for it.
    pub fn run_pending(&self) -> usize {
        // Panics of the work are caught before they could poison the lock.
        self.inline.as_ref().map_or(0, |worker| {
            let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            worker.run_waiting()
        })
    }

    /// What became of the flows that were submitted.
    #[must_use]
    pub fn counters(&self) -> EngineCounters {
        self.shared.counts.read()
    }

    /// What the engine holds in memory.
    #[must_use]
    pub fn memory(&self) -> EngineMemory {
        let shared = &self.shared;
        let queue = shared.queue.capacity().unwrap_or(0) * size_of::<(usize, Ticket)>();
        let slots = shared.slots.load(Ordering::SeqCst) * shared.sizes.bytes();
        let workers = shared.worker_bytes.iter();
        EngineMemory {
            model_bytes: shared.model.core().bytes(),
            worker_bytes: workers.map(|bytes| bytes.load(Ordering::SeqCst)).collect(),
            queue_bytes: queue + slots,
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.shared.model
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        self.pool.end();
        self.shared.abandon_waiting();
    }
}

/// Checks the options and makes what the engine's parts share.
fn share(model: Arc<Model>, options: &EngineOptions) -> Result<Shared, Error> {
    let or_default = |found: usize, default| if found == 0 { default } else { found };
    let batch_tokens = or_default(options.batch_tokens, BATCH_TOKENS_DEFAULT);
    let queue_flows = or_default(options.queue_flows, QUEUE_FLOWS_DEFAULT);
    check("workers", options.workers, 0, WORKERS_MAX)?;
    check(
        "batch_tokens",
        batch_tokens,
        BATCH_TOKENS_MIN,
        BATCH_TOKENS_MAX,
    )?;
    check("queue_flows", queue_flows, 1, QUEUE_FLOWS_MAX)?;
    check_us("batch_wait_us", options.batch_wait_us, BATCH_WAIT_US_MAX)?;
    check_us("deadline_us", options.deadline_us, DEADLINE_US_MAX)?;
    let selection = select(&model, &options.tasks)?;
    let profile = model.encoder().profile();
    let tokens_of =
        |tasks: &[usize], tokens: u32| if tasks.is_empty() { 0 } else { tokens as usize };
    let sizes = SlotSizes {
        flow_tokens: tokens_of(&selection.flow, profile.max_tokens),
        request_tokens: tokens_of(&selection.request, profile.request_tokens),
        verdicts: selection.all().len(),
    };
    let deadline = (options.deadline_us > 0).then(|| Duration::from_micros(options.deadline_us));
    let batch_wait = Duration::from_micros(options.batch_wait_us);
    let (queue, waiting) = bounded(queue_flows);
    Ok(Shared {
        model,
        selection,
        sizes,
        batch_tokens,
        batch_wait: deadline.map_or(batch_wait, |deadline| batch_wait.min(deadline / 2)),
        deadline,
        queue,
        waiting,
        is_closed: AtomicBool::new(false),
        counts: Counts::default(),
        slots: AtomicUsize::new(0),
        worker_bytes: (0..options.workers.max(1))
            .map(|_| AtomicUsize::new(0))
            .collect(),
        #[cfg(test)]
        poison: std::sync::atomic::AtomicU64::new(u64::MAX),
    })
}

/// The chosen tasks as indices, in the model's order: a task that is named twice is asked once.
fn select(model: &Model, names: &[String]) -> Result<Selection, Error> {
    let known: Vec<&str> = model.task_names().collect();
    if let Some(found) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::UnknownTask {
            found: found.clone(),
            known: known.into_iter().map(str::to_owned).collect(),
        });
    }
    let mut selection = Selection::default();
    for (index, task) in model.core().tasks().iter().enumerate() {
        if names.is_empty() || names.iter().any(|name| name == task.name()) {
            match task.kind() {
                TaskKind::Flow => selection.flow.push(index),
                TaskKind::Request => selection.request.push(index),
            }
        }
    }
    Ok(selection)
}

fn check(setting: &'static str, found: usize, minimum: usize, maximum: usize) -> Result<(), Error> {
    if (minimum..=maximum).contains(&found) {
        Ok(())
    } else {
        Err(Error::Setting {
            setting,
            minimum,
            maximum,
            found,
        })
    }
}

fn check_us(setting: &'static str, found: u64, maximum: u64) -> Result<(), Error> {
    let size = |us: u64| usize::try_from(us).unwrap_or(usize::MAX);
    check(setting, size(found), 0, size(maximum))
}
