//! Runs models over flows: on the caller's thread, or on workers that are gone when the engine is.
//!
//! There is one way through it. A [`Submitter`] puts a flow's tokens into a slot and the slot into its lane of the queue; a worker
//! takes as many slots as make a batch, runs the model once and sends each slot home. A [`Detection`] is a submitter that never
//! sheds and puts the answers in order; a [`Classifier`] runs a batch of its own without the queue.

mod classifier;
mod counters;
mod detection;
#[cfg(feature = "cuda")]
mod device;
#[cfg(not(feature = "cuda"))]
#[path = "engine/no_device.rs"]
mod device;
#[cfg(any(test, feature = "faults"))]
mod faults;
mod generation;
#[cfg(feature = "heads-run")]
pub(crate) mod heads;
#[cfg(not(feature = "heads-run"))]
#[path = "engine/no_heads.rs"]
mod heads;
mod inline;
mod judge;
mod options;
mod queue;
mod report;
mod requests;
mod shared;
mod slot;
mod submitter;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trafficllm_kernels::Level;
use trafficllm_model::Bundle;
use trafficllm_traffic::{FlowConfig, RecorderCounters};

use crate::device::DeviceStatus;
use crate::error::Error;
use crate::heads::{HeadOptions, HeadStatus};
use crate::metrics::Metrics;
use crate::model::Model;
use counters::Swap;
use inline::Inline;
use shared::Shared;
use worker::{Pool, Worker};

pub use classifier::Classifier;
pub use counters::{EngineCounters, Latency};
pub use detection::Detection;
pub use options::{EngineMemory, EngineOptions};
pub use report::{CaptureReport, Progress, RequestsReport, Sink};
pub use requests::LineError;
pub use submitter::{Answer, Judgement, SubmitError, Submitter};
pub use worker::WORKER_NAME;

/// How an engine was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Flows that still waited when the time was over, of all calls so far: they are sent home and nobody judges them.
    pub abandoned: u64,
    /// Worker threads that had not ended when the time was over. Each ends after the batch that it is in; a later
    /// [`Engine::stop`] tells whether it has.
    pub running_workers: usize,
}

/// Runs a [`Model`], and the next one after [`Engine::activate`]. Making one starts no thread; dropping it leaves none, but for those that
/// [`Engine::stop`] gave up on.
pub struct Engine {
    flows: FlowConfig,
    workers: usize,
    shared: Arc<Shared>,
    /// What runs the model on the caller's thread; `None` where there are workers.
    inline: Option<Box<Inline>>,
    pool: Mutex<Pool>,
}

impl Engine {
    /// Checks the options and takes the memory that is needed; starts no thread.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], a setting out of its range, no memory or more than [`EngineOptions::memory_bytes_max`].
    pub fn new(model: Arc<Model>, options: EngineOptions) -> Result<Self, Error> {
        let flows = options.flows.unwrap_or_else(|| model.flow_config());
        flows.validate()?;
        let shared = Arc::new(Shared::new(model, flows, &options)?);
        let mut inline = None;
        let mut idle = VecDeque::new();
        if options.workers == 0 {
            inline = Some(Box::new(Inline::new(Worker::new(&shared, 0)?)));
        } else {
            for number in 0..options.workers {
                idle.push_back(Worker::new(&shared, number)?);
            }
        }
        shared.lock_making().check_budget("the workers", 0)?;
        Ok(Self {
            flows,
            workers: options.workers,
            shared,
            inline,
            pool: Mutex::new(Pool::new(idle)),
        })
    }

    /// Opens the device that [`EngineOptions::device`] chooses, gives it the model and runs the model's self-test there; starts the
    /// workers. What was done before is not done again, so where there is neither device nor worker there is nothing to do.
    ///
    /// The device is opened here and not before because it does not survive a fork, and because its driver starts threads of its own; they
    /// have the signal mask of the caller. With [`crate::DeviceChoice::Auto`] a device that cannot be used is no error:
    /// [`Engine::device_status`] says what is the matter.
    ///
    /// # Errors
    /// [`Error::Stopped`]; [`Error::Device`] and [`Error::MemoryBudget`], neither with `Auto`, and no worker is started then; a thread that the system does not
    /// give: those before it run, and another call starts the others.
    pub fn start(&self) -> Result<(), Error> {
        if self.shared.is_open() {
            self.shared.start_device()?;
        }
        let mut pool = self.lock_pool();
        if self.shared.is_open() {
            pool.start(&self.shared)
        } else {
            Err(Error::Stopped)
        }
    }

    /// Takes no more flows, judges what waits, and ends the workers. What still waits when the time is over is abandoned. Without
    /// workers, this thread judges.
    ///
    /// It does not wait longer than that for a worker that the system does not let run: such a worker is left behind, and ends by
    /// itself. It may be called again, to wait for that.
    ///
    /// A worker may stop its own engine, in a function that is told of answers: it then waits for the others, and ends when it is back from
    /// that function.
    ///
    /// Whoever sleeps in [`Submitter::wait`] returns, and every function that is told of answers ([`Engine::submitter_with`]) is called
    /// once more, on this thread.
    pub fn stop(&self, timeout: Duration) -> Stopped {
        let now = Instant::now();
        // Longer than anybody waits, where the time has no end.
        let until = now.checked_add(timeout);
        let until = until.unwrap_or_else(|| now + Duration::from_secs(1 << 30));
        self.shared.refuse_flows();
        // Who is just starting workers has started them now.
        let is_own = self.lock_pool().is_own();
        if let Some(inline) = &self.inline {
            let finish = |worker: &mut Worker| {
                worker.run_waiting(Some(until));
                worker.send_home();
            };
            // Another thread that is at work does what this one would; this one itself goes on when the stop has returned.
            while inline.try_work(finish).is_none()
                && !inline.is_own_work()
                && Instant::now() < until
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        } else if is_own {
            self.shared.wait_for_workers(until);
        }
        let is_first = self.shared.close();
        self.shared.send_home_waiting(until);
        self.shared.tell_stopped(until, is_first);
        let mut pool = self.lock_pool();
        let running_workers = if is_own {
            self.shared.running_workers()
        } else {
            0
        };
        pool.join_ended(running_workers);
        drop(pool);
        self.shared.generations.try_release();
        let abandoned = self.shared.sent_home();
        tracing::info!(abandoned, running_workers, "an engine was stopped");
        Stopped {
            abandoned,
            running_workers,
        }
    }

    /// Lets another model judge what is submitted from now on, and gives back its number; the first model is 1. Flows that are under
    /// way, and detections, end with the model that they began with. It is freed when the last of them is done: by a worker or, where none
    /// runs, by the next [`Engine::run_pending`], `activate`, [`Engine::stop`] or the engine's end, and never by a [`Submitter`].
    /// On a device it stays longer where a [`Classifier`] has judged with it and is idle now: until that one's next call, or its end.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] where the model lacks a task of [`EngineOptions::tasks`], [`Error::MemoryBudget`] where both models do not
    /// fit, [`Error::Device`] where the device that was chosen by number cannot run it (both do not fit, it was
    /// opened without what a device needs, its self-test differs there), [`Error::Memory`], [`Error::Stopped`]. Nothing
    /// changes then, and [`EngineCounters::swaps_failed`] counts it.
    pub fn activate(&self, model: Arc<Model>) -> Result<u64, Error> {
        self.activate_with(|| Ok(model))
    }

    /// Opens the bundle at `path`, verifies it, runs its self-test and lets it judge, as [`Engine::activate`] does.
    ///
    /// # Errors
    /// Those of [`Bundle::open`], [`Model::load`] and [`Engine::activate`]. Nothing changes then, and
    /// [`EngineCounters::swaps_failed`] counts it.
    pub fn activate_bundle(&self, path: &Path, level: Level) -> Result<u64, Error> {
        let load = if self.shared.device.is_chosen() {
            Model::load_for_device
        } else {
            Model::load
        };
        self.activate_with(|| load(&Bundle::open(path)?, level).map(Arc::new))
    }

    /// As [`Engine::activate`], with the model that `open` gives: whatever goes wrong in it counts as a model that was refused, a panic as
    /// well.
    ///
    /// # Errors
    /// Those of `open` and of [`Engine::activate`].
    pub fn activate_with(
        &self,
        open: impl FnOnce() -> Result<Arc<Model>, Error>,
    ) -> Result<u64, Error> {
        let counts = &self.shared.counts;
        let mut swap = Swap::new(counts);
        let activated = open().and_then(|model| {
            let id = model.id().to_owned();
            let generation = self.shared.activate(&model)?;
            Ok((generation, id))
        });
        swap.is_done = activated.is_ok();
        drop(swap);
        match activated {
            Ok((generation, id)) => {
                tracing::info!(generation, id, "a model was activated");
                Ok(generation)
            }
            Err(error) => {
                tracing::warn!(%error, "a model was refused; the model before goes on");
                Err(error)
            }
        }
    }

    /// Replaces all heads by those that these options name and those of the model's bundle, as [`Engine::activate`] replaces a model:
    /// flows under way end with the heads that they began with, and files of modules are read again. A native library stays loaded as
    /// long as the process: a new version needs a path of its own, and one that has changed under its path is refused. Gives back the
    /// number of the generation.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Head`], [`Error::MemoryBudget`], [`Error::Memory`], [`Error::Stopped`], [`Error::Device`] where the start
    /// has failed for that; nothing changes then.
    pub fn set_heads(&self, options: &HeadOptions) -> Result<u64, Error> {
        let activated = self.shared.activate_heads(options);
        match &activated {
            Ok(generation) => tracing::info!(generation, "heads were replaced"),
            Err(error) => tracing::warn!(%error, "heads were refused; those before go on"),
        }
        activated
    }

    /// What each head is and what it did since it was loaded, in the order of their verdicts.
    #[must_use]
    pub fn heads(&self) -> Vec<HeadStatus> {
        let current = self.shared.generations.current();
        let heads = current.heads.as_ref();
        heads.map_or_else(Vec::new, |heads| heads.statuses())
    }

    /// Switches a head on, with no fault held against it, or off: its verdicts then abstain. Flows in batches that run are not affected.
    ///
    /// # Errors
    /// [`Error::UnknownHead`].
    pub fn set_head_enabled(&self, name: &str, is_enabled: bool) -> Result<(), Error> {
        let current = self.shared.generations.current();
        let heads = current.heads.as_ref();
        if heads.is_some_and(|heads| heads.set_enabled(name, is_enabled)) {
            tracing::info!(head = name, is_enabled, "a head was switched");
            return Ok(());
        }
        let known = self.heads().into_iter().map(|head| head.name);
        Err(Error::UnknownHead {
            found: name.to_owned(),
            known: known.collect(),
        })
    }

    /// Begins a detection, whose outcomes go to `sink`. Where there are workers, they must be started.
    pub fn detect<S: Sink>(&self, sink: S) -> Detection<'_, S> {
        Detection::new(self, sink)
    }

    /// A way in for flows that come one by one, for one thread. It takes memory for [`EngineOptions::queue_flows`] flows, and may
    /// outlive the engine.
    ///
    /// # Errors
    /// No memory, or more than [`EngineOptions::memory_bytes_max`]; more than [`crate::limits::SUBMITTERS_MAX`] at a time;
    /// [`Error::Stopped`].
    pub fn submitter(&self) -> Result<Submitter, Error> {
        Submitter::new(&self.shared, self.shared.queue.waiting_max(), true, None)
    }

    /// As [`Engine::submitter`]; `notify` is called when answers arrive and none were waiting to be taken, and when the engine is stopped.
    /// The thread that sends the answers home calls it, a worker, the one that stops the engine or, where that comes in between,
    /// the one that submits: it must be quick, and wakes whoever polls. It may be called without a reason, and once more shortly
    /// after the submitter was dropped.
    ///
    /// # Errors
    /// As [`Engine::submitter`].
    pub fn submitter_with(&self, notify: Box<dyn Fn() + Send + Sync>) -> Result<Submitter, Error> {
        let slots = self.shared.queue.waiting_max();
        Submitter::new(&self.shared, slots, true, Some(notify))
    }

    /// A way to judge flows on the calling thread, also before the start. It takes memory for
    /// [`crate::limits::CLASSIFIER_FLOWS`] flows and for the model's buffers.
    ///
    /// # Errors
    /// No memory, or more than [`EngineOptions::memory_bytes_max`].
    pub fn classifier(&self) -> Result<Classifier, Error> {
        Classifier::new(&self.shared)
    }

    /// Without workers, judges all that waits in the queue, on this thread; gives back the number of flows. With workers there is
    /// nothing to do, and it does nothing.
    ///
    /// One thread at a time does the work. Called meanwhile, by another thread or by a function that the work calls (one that is told of
    /// answers, the subscriber of the log), it does nothing and gives back 0 at once: who is at work goes on until nothing waits.
    pub fn run_pending(&self) -> usize {
        self.try_run_pending().unwrap_or(0)
    }

    /// As [`Engine::run_pending`]; `None` where a thread is at it already.
    fn try_run_pending(&self) -> Option<usize> {
        let inline = self.inline.as_ref()?;
        inline.try_work(|worker| worker.run_waiting(None))
    }

    /// Whether this thread judges for the engine, further up: it was called by what the work calls.
    fn is_own_work(&self) -> bool {
        let inline = self.inline.as_ref();
        inline.is_some_and(|inline| inline.is_own_work()) || self.shared.queue.is_worker()
    }

    /// What became of the flows that were submitted.
    #[must_use]
    pub fn counters(&self) -> EngineCounters {
        self.shared.counts.read()
    }

    /// Which device runs the current model, or why none does.
    #[must_use]
    pub fn device_status(&self) -> DeviceStatus {
        let current = self.shared.generations.current();
        self.shared.device.status(current.placement())
    }

    /// How long judged flows took.
    #[must_use]
    pub fn latency(&self) -> Latency {
        self.shared.latency.read()
    }

    /// Flows that wait for a worker now.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.shared.queue_depth()
    }

    /// Counts the memory of a flow that the host begins to feed, [`trafficllm_traffic::FlowRecorder::bytes_max`] as a rule, for
    /// [`EngineOptions::memory_bytes_max`]. It waits for nobody. What the engine makes at the same moment counts as made.
    ///
    /// # Errors
    /// [`Error::MemoryBudget`]; nothing is counted then.
    pub fn charge_flow_bytes(&self, bytes: usize) -> Result<(), Error> {
        self.shared.charge_flow_bytes(bytes)
    }

    /// Takes back what [`Engine::charge_flow_bytes`] has counted, when the flow is freed; never more than that. It waits for nobody.
    pub fn release_flow_bytes(&self, bytes: usize) {
        self.shared.release_flow_bytes(bytes);
    }

    /// What the engine holds in memory.
    #[must_use]
    pub fn memory(&self) -> EngineMemory {
        self.shared.memory()
    }

    /// Counters, memory and latencies in Prometheus' text format 0.0.4. What only the host knows comes from it: the flows that it feeds at
    /// present, and the packets that it has fed.
    #[must_use]
    pub fn metrics(&self, live_flows: u64, packets: RecorderCounters) -> String {
        let (model, memory) = (self.model(), self.memory());
        let metrics = Metrics {
            model: model.id(),
            profile: model.profile_name(),
            level: model.level().name(),
            generation: self.generation(),
            counters: self.counters(),
            queue_flows: self.queue_depth() as u64,
            live_flows,
            packets,
            memory_bytes: &memory.parts(),
            device: &self.device_status(),
            device_bytes: memory.device_bytes,
            latency: self.latency(),
            heads: &self.heads(),
        };
        metrics.to_string()
    }

    /// The model that judges what is submitted now.
    #[must_use]
    pub fn model(&self) -> Arc<Model> {
        Arc::clone(&self.shared.generations.current().model)
    }

    /// Its number: 1 at first, and one more with each [`Engine::activate`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generations.number()
    }

    /// Most verdicts that an answer can have: the chosen tasks of the model that has had most of them. It never gets less, and every flow
    /// that was submitted before this call has an answer of so many at most, whatever is activated later. For a
    /// [`Classifier`], whose flows are submitted in the call itself, see [`Classifier::prepare`].
    #[must_use]
    pub fn verdicts_max(&self) -> usize {
        self.shared.generations.verdicts_max()
    }

    /// Whoever runs the flow with this id panics, from now on; `None` ends that.
    #[cfg(any(test, feature = "faults"))]
    pub fn poison(&self, id: Option<u64>) {
        self.shared.faults.poison(id);
    }

    /// Whoever makes tokens of the flow with this id, to submit or classify it, panics, from now on; `None` ends that.
    #[cfg(any(test, feature = "faults"))]
    pub fn poison_encoding(&self, id: Option<u64>) {
        self.shared.faults.poison_encoding(id);
    }

    /// Whoever runs the flow with this id stands still in its batch, as if the system did not let it run, until this is called
    /// again; `None` ends that.
    #[cfg(any(test, feature = "faults"))]
    pub fn hold(&self, id: Option<u64>) {
        self.shared.faults.hold(id);
    }

    /// Whoever makes tokens of the flow with this id, to submit or classify it, stands still before that until this is called again;
    /// `None` ends that.
    #[cfg(any(test, feature = "faults"))]
    pub fn hold_encoding(&self, id: Option<u64>) {
        self.shared.faults.hold_encoding(id);
    }

    fn lock_pool(&self) -> MutexGuard<'_, Pool> {
        // Nobody panics while holding it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.close();
        // No lock: in a process that was forked off, it may be held by a thread that does not exist.
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        pool.join_unless_given_up();
        self.shared.send_home_waiting(Instant::now());
        self.shared.generations.try_release();
    }
}
