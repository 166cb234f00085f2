//! What engine, workers, submitters and classifiers have in common.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use trafficllm_traffic::FlowConfig;

use super::EngineMemory;
use super::counters::{Counts, LatencyCounts};
use super::device::{Devices, Placement, device_bytes};
#[cfg(any(test, feature = "faults"))]
use super::faults::Faults;
use super::generation::{Generation, Generations, Selection};
use super::heads::HeadSet;
use super::judge::BatchSizes;
use super::options::EngineOptions;
use super::queue::{Lane, Queue};
use crate::error::Error;
use crate::heads::HeadOptions;
use crate::limits::{
    BATCH_SUBJECTS_MAX, BATCH_TOKENS_DEFAULT, DEVICE_BATCH_TOKENS_DEFAULT, QUEUE_FLOWS_DEFAULT,
};
use crate::model::Model;

/// Takes flows.
const OPEN: u8 = 0;
/// Takes no more, and judges what waits.
const STOPPING: u8 = 1;
/// Judges nothing any more.
const CLOSED: u8 = 2;

/// How often something is loaded beside others that replace the current generation, before they have to wait.
const REPLACE_TRIES: usize = 3;

/// See the file's first line.
#[derive(Debug)]
pub(super) struct Shared {
    /// The tasks to ask of every model, by name; none means all.
    tasks: Vec<String>,
    flows: FlowConfig,
    /// Tokens after which a batch is cut that the processor runs.
    batch_tokens: usize,
    /// The same for a device.
    device_batch_tokens: usize,
    pub(super) device: Devices,
    /// How long a worker waits for more, counted from the submission of the batch's first flow; always shorter than the deadline.
    pub(super) batch_wait: Duration,
    pub(super) deadline: Option<Duration>,
    memory_bytes_max: usize,
    pub(super) generations: Generations,
    pub(super) queue: Queue,
    phase: AtomicU8,
    pub(super) counts: Counts,
    pub(super) latency: LatencyCounts,
    /// Slots of all submitters.
    slots: AtomicUsize,
    /// Bytes that a slot takes at most: what the largest generation so far needs.
    slot_bytes: AtomicUsize,
    /// Bytes of the lanes and of the other buffers of all submitters.
    submitter_bytes: AtomicUsize,
    pub(super) classifier_bytes: AtomicUsize,
    /// Bytes that the flows of a host take.
    flow_bytes: AtomicUsize,
    /// Bytes of what is just being made.
    making_bytes: AtomicUsize,
    /// Bytes that each worker holds.
    pub(super) worker_bytes: Vec<AtomicUsize>,
    /// Held while something is made that counts for the memory budget.
    making: Mutex<()>,
    /// Worker threads that have not ended.
    running: AtomicUsize,
    /// Those of them that are just stopping the engine.
    stopping_workers: AtomicUsize,
    /// Flows that waited and were sent home because the engine was closed.
    sent_home: AtomicU64,
    /// The engine was stopped, and its submitters could not be told.
    is_untold: AtomicBool,
    #[cfg(any(test, feature = "faults"))]
    pub(super) faults: Faults,
}

impl Shared {
    /// Checks the options and the model.
    pub(super) fn new(
        model: Arc<Model>,
        flows: FlowConfig,
        options: &EngineOptions,
    ) -> Result<Self, Error> {
        options.check()?;
        let device = Devices::new(&options.device)?;
        let or_default = |found: usize, default| if found == 0 { default } else { found };
        let deadline =
            (options.deadline_us > 0).then(|| Duration::from_micros(options.deadline_us));
        let batch_wait = Duration::from_micros(options.batch_wait_us);
        let mut first = Generation::new(model, &options.tasks, None)?;
        let wanted = (&options.heads, &flows, options.workers.max(1));
        let heads = HeadSet::load(wanted, (&first.model, &first.selection), None)?;
        first.set_heads(heads, Arc::new(options.heads.clone()));
        let slot_bytes = first.sizes.bytes();
        let shared = Self {
            tasks: options.tasks.clone(),
            flows,
            batch_tokens: or_default(options.batch_tokens, BATCH_TOKENS_DEFAULT),
            device_batch_tokens: or_default(options.batch_tokens, DEVICE_BATCH_TOKENS_DEFAULT),
            device,
            batch_wait: deadline.map_or(batch_wait, |deadline| batch_wait.min(deadline / 2)),
            deadline,
            memory_bytes_max: or_default(options.memory_bytes_max, usize::MAX),
            generations: Generations::new(first, options.workers.max(1)),
            queue: Queue::new(
                or_default(options.queue_flows, QUEUE_FLOWS_DEFAULT),
                options.workers,
            ),
            phase: AtomicU8::new(OPEN),
            counts: Counts::default(),
            latency: LatencyCounts::default(),
            slots: AtomicUsize::new(0),
            slot_bytes: AtomicUsize::new(slot_bytes),
            submitter_bytes: AtomicUsize::new(0),
            classifier_bytes: AtomicUsize::new(0),
            flow_bytes: AtomicUsize::new(0),
            making_bytes: AtomicUsize::new(0),
            worker_bytes: (0..options.workers.max(1))
                .map(|_| AtomicUsize::new(0))
                .collect(),
            making: Mutex::new(()),
            running: AtomicUsize::new(0),
            stopping_workers: AtomicUsize::new(0),
            sent_home: AtomicU64::new(0),
            is_untold: AtomicBool::new(false),
            #[cfg(any(test, feature = "faults"))]
            faults: Faults::default(),
        };
        shared.lock_making().check_budget("the model", 0)?;
        Ok(shared)
    }

    /// Opens the device, if one was chosen, and gives it the current model.
    pub(super) fn start_device(&self) -> Result<(), Error> {
        if !self.device.is_chosen() {
            return Ok(());
        }
        let _starting = self.device.lock_starting();
        self.device.open()?;
        // With the lock: what is installed from now on has a placement.
        let making = self.lock_making();
        self.device.set_opened();
        drop(making);
        loop {
            let current = self.generations.current();
            let placed = match current.placement() {
                Some(_) => Ok(true),
                None => self.place(&current),
            };
            let number = current.number;
            drop(current);
            self.let_go_and_free(number);
            if placed? {
                return Ok(());
            }
        }
    }

    /// Gives the device the model of a generation; says whether that was still the current one.
    fn place(&self, current: &Generation) -> Result<bool, Error> {
        let placement = self.place_model(&current.model)?;
        let making = self.lock_making();
        if current.number != self.generations.number() {
            return Ok(false);
        }
        if let Some(placement) = placement {
            let checked = making.check_budget("buffers for a device", placement.host_bytes());
            current.place(self.device.unless_short(placement, checked)?);
        }
        self.device.set_current(current.placement());
        self.generations.count_bytes();
        drop(making);
        Ok(true)
    }

    fn place_model(&self, model: &Model) -> Result<Option<Placement>, Error> {
        let workers = (self.batch_sizes(), self.worker_bytes.len());
        self.device.place(model, &self.generations, workers)
    }

    /// Tokens after which a batch is cut.
    pub(super) fn batch_tokens(&self) -> usize {
        if self.device.is_active() {
            self.device_batch_tokens
        } else {
            self.batch_tokens
        }
    }

    /// Replaces the model for all flows that are submitted from now on, or changes nothing.
    pub(super) fn activate(&self, model: &Arc<Model>) -> Result<u64, Error> {
        self.replace(Some(model), None)
    }

    /// Replaces the heads for all flows that are submitted from now on, or changes nothing.
    pub(super) fn activate_heads(&self, options: &HeadOptions) -> Result<u64, Error> {
        options.check()?;
        self.replace(None, Some(&Arc::new(options.clone())))
    }

    /// As both; what is not given stays as it is, heads of files with their counters.
    fn replace(
        &self,
        model: Option<&Arc<Model>>,
        heads: Option<&Arc<HeadOptions>>,
    ) -> Result<u64, Error> {
        for _ in 0..REPLACE_TRIES {
            let successor = self.successor(model, heads)?;
            if let Some(number) = self.install(self.lock_making(), successor)? {
                return Ok(number);
            }
        }
        // Others are always faster: now they wait.
        let making = self.lock_making();
        let successor = self.successor(model, heads)?;
        let installed = self.install(making, successor)?;
        // Only who holds the lock replaces a generation.
        installed.ok_or(Error::Stopped)
    }

    /// Loads what is to come after the current generation. Compiling modules can take seconds, so nothing is held meanwhile.
    pub(super) fn successor(
        &self,
        model: Option<&Arc<Model>>,
        heads: Option<&Arc<HeadOptions>>,
    ) -> Result<Successor, Error> {
        if !self.is_open() {
            return Err(Error::Stopped);
        }
        let current = self.generations.current();
        let after = current.number;
        let model = Arc::clone(model.unwrap_or(&current.model));
        let options = Arc::clone(heads.unwrap_or(&current.head_options));
        let before = current.heads.clone().filter(|_| heads.is_none());
        // Else it would stay until the modules are compiled, if it is replaced meanwhile.
        drop(current);
        self.let_go_and_free(after);
        let selection = Selection::new(&model, &self.tasks)?;
        let wanted = (&*options, &self.flows, self.worker_bytes.len());
        let heads = HeadSet::load(wanted, (&model, &selection), before.as_deref())?;
        let placement = self.place_model(&model)?;
        Ok(Successor {
            after,
            model,
            options,
            heads,
            placement,
        })
    }

    /// Makes it the current generation; gives `None` where another one has come after the one that it was loaded for: it may not fit
    /// that one's model or heads.
    pub(super) fn install(
        &self,
        making: Making<'_>,
        successor: Successor,
    ) -> Result<Option<u64>, Error> {
        if !self.is_open() {
            return Err(Error::Stopped);
        }
        let current = self.generations.current();
        let is_unplaced = self.device.is_opened() && successor.placement.is_none();
        if current.number != successor.after || is_unplaced {
            return Ok(None);
        }
        let mut next = Generation::new(successor.model, &self.tasks, Some(&current))?;
        next.set_heads(successor.heads, successor.options);
        let workers = self.worker_bytes.len();
        let buffers = next.add_buffers(&current, self.batch_sizes(), workers)?;
        drop(current);
        self.generations.release();
        let (number, slot_bytes) = (next.number, next.sizes.bytes());
        let grown = slot_bytes.saturating_sub(self.slot_bytes.load(SeqCst));
        let slots = grown * self.slots.load(SeqCst);
        let mut added = self.generations.added_bytes(&next) + slots + buffers;
        if let Some(placement) = successor.placement {
            let with_buffers = added + placement.host_bytes();
            let checked = making.check_budget("a second model", with_buffers);
            let placement = self.device.unless_short(placement, checked)?;
            added += placement.host_bytes();
            next.place(placement);
        }
        making.check_budget("a second model", added)?;
        self.slot_bytes.fetch_max(slot_bytes, SeqCst);
        // From here on it is held: counted twice it would have flows refused that have room.
        let is_held = || self.making_bytes.store(0, SeqCst);
        let heads = next.heads.clone();
        self.device.set_current(next.placement());
        self.generations.replace(next, is_held);
        if let Some(heads) = heads {
            heads.forgive();
        }
        // Idle workers take their buffers now.
        self.queue.wake_all();
        drop(making);
        Ok(Some(number))
    }

    /// The largest batch of a worker.
    pub(super) fn batch_sizes(&self) -> BatchSizes {
        BatchSizes {
            tokens: if self.device.is_chosen() {
                self.batch_tokens.max(self.device_batch_tokens)
            } else {
                self.batch_tokens
            },
            flows: BATCH_SUBJECTS_MAX,
        }
    }

    /// Whether flows are taken.
    pub(super) fn is_open(&self) -> bool {
        self.phase.load(SeqCst) == OPEN
    }

    /// Whether nothing is judged any more.
    pub(super) fn is_closed(&self) -> bool {
        self.phase.load(SeqCst) == CLOSED
    }

    /// Takes no more flows.
    pub(super) fn refuse_flows(&self) {
        self.phase.fetch_max(STOPPING, SeqCst);
        self.queue.wake_all();
    }

    /// Judges nothing any more. Says whether it did before.
    pub(super) fn close(&self) -> bool {
        let before = self.phase.swap(CLOSED, SeqCst);
        self.queue.wake_all();
        before != CLOSED
    }

    /// Once nothing is judged any more, sends home what waits; tries until the time has come.
    pub(super) fn send_home_waiting(&self, until: Instant) {
        if let Some(lanes) = self.queue.lanes(until) {
            let flows = lanes.iter().map(|lane| self.queue.abandon(lane)).sum();
            self.add_sent_home(flows);
        }
    }

    /// Tells all submitters that the engine was stopped, once, or as soon as that can be done: where a worker that the system does not let
    /// run stands in the way, it does it itself.
    pub(super) fn tell_stopped(&self, until: Instant, is_first: bool) {
        if !is_first && !self.is_untold.swap(false, SeqCst) {
            return;
        }
        let lanes = self.queue.lanes(until).or_else(|| {
            // Who stands in the way either has seen this when it ends, or has just gone out of it.
            self.is_untold.store(true, SeqCst);
            self.queue.lanes(Instant::now())
        });
        if let Some(lanes) = lanes {
            self.is_untold.store(false, SeqCst);
            lanes.iter().for_each(|lane| lane.tell_stopped());
        }
    }

    /// What everybody does who has held the list of lanes: perhaps a stop found it held, and could not tell the submitters.
    pub(super) fn end_closing(&self) {
        if self.is_untold.load(SeqCst) {
            self.send_home_waiting(Instant::now());
            self.tell_stopped(Instant::now(), false);
        }
    }

    /// Slots that wait.
    pub(super) fn queue_depth(&self) -> usize {
        let depth = self.queue.depth();
        self.end_closing();
        depth
    }

    /// Lets workers look into one more lane.
    pub(super) fn open_lane(&self, lane: &Arc<Lane>) -> Result<(), Error> {
        let opened = self.queue.open(lane);
        self.end_closing();
        opened
    }

    /// The opposite of [`Self::open_lane`], for a lane whose mailbox is closed.
    pub(super) fn close_lane(&self, lane: &Lane) {
        self.queue.close(lane);
        self.end_closing();
    }

    /// Brings about the fault that a test wants for this flow.
    pub(super) fn meet_faults(&self, id: u64) {
        #[cfg(any(test, feature = "faults"))]
        self.faults.meet(id);
        let _ = id;
    }

    /// As [`Self::meet_faults`], before tokens are made of the flow.
    pub(super) fn meet_encoding_faults(&self, id: u64) {
        #[cfg(any(test, feature = "faults"))]
        self.faults.meet_encoding(id);
        let _ = id;
    }

    /// Worker threads that have not ended.
    pub(super) fn running_workers(&self) -> usize {
        self.running.load(SeqCst)
    }

    pub(super) fn worker_begins(&self) {
        self.running.fetch_add(1, SeqCst);
    }

    pub(super) fn worker_ends(&self) {
        self.running.fetch_sub(1, SeqCst);
    }

    /// Sleeps until no worker is left, but this thread where it is one, or the time has come. It looks again and again: a lock that a
    /// worker would have to take could be held by one that the system does not let run.
    pub(super) fn wait_for_workers(&self, until: Instant) {
        // Workers that stop their own engine do not wait for each other.
        let own = usize::from(self.queue.is_worker());
        self.stopping_workers.fetch_add(own, SeqCst);
        let mut pause = Duration::from_micros(20);
        while self.running_workers() > self.stopping_workers.load(SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(pause.min(left));
            pause = (2 * pause).min(Duration::from_millis(1));
        }
        self.stopping_workers.fetch_sub(own, SeqCst);
    }

    /// Counts flows that were sent home because the engine was closed.
    pub(super) fn add_sent_home(&self, flows: usize) {
        self.sent_home.fetch_add(flows as u64, SeqCst);
    }

    /// All of them so far.
    pub(super) fn sent_home(&self) -> u64 {
        self.sent_home.load(SeqCst)
    }

    /// What is to be called by a thread that has let go of a slot, a detection or a call's hold of the generation with this number. If it
    /// was the last of a replaced one, the worker that is woken frees that; where there is none, whoever is next to run what waits, to
    /// activate a model or to end the engine. Says whether it is left to them.
    pub(super) fn let_go(&self, number: u64) -> bool {
        // Where nobody is asleep, all workers will pass by themselves.
        number != self.generations.number() && !self.queue.wake() && self.running_workers() == 0
    }

    /// As [`Self::let_go`], for a thread that is not in a hurry: it frees what is left to it.
    pub(super) fn let_go_and_free(&self, number: u64) {
        if self.let_go(number) {
            self.generations.release();
        }
    }

    /// For whoever makes something that counts for the memory budget.
    pub(super) fn lock_making(&self) -> Making<'_> {
        let lock = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        Making {
            shared: self,
            _lock: lock,
        }
    }

    /// Counts what the heads of a detection can take, if it fits into the memory budget.
    pub(super) fn charge_detection(&self, bytes: usize) -> Result<(), Error> {
        if bytes > 0 {
            let making = self.lock_making();
            making.check_budget("heads of a detection", bytes)?;
            self.classifier_bytes.fetch_add(bytes, SeqCst);
        }
        Ok(())
    }

    /// The opposite of [`Self::charge_detection`].
    pub(super) fn release_detection(&self, bytes: usize) {
        self.classifier_bytes.fetch_sub(bytes, SeqCst);
    }

    /// Counts more bytes for the flows of a host, if they fit into the memory budget. Waits for nobody.
    pub(super) fn charge_flow_bytes(&self, bytes: usize) -> Result<(), Error> {
        // First counted and then looked at, as in `Making::check_budget`: of two at the same time one sees the other.
        let before = self.flow_bytes.fetch_add(bytes, SeqCst);
        let others = self.generations.held_bytes()
            + self.all_worker_bytes()
            + self.classifier_bytes.load(SeqCst)
            + self.queue_bytes()
            + self.making_bytes.load(SeqCst);
        let needed_bytes = before.saturating_add(bytes).saturating_add(others);
        if needed_bytes <= self.memory_bytes_max {
            return Ok(());
        }
        self.release_flow_bytes(bytes);
        Err(Error::MemoryBudget {
            what: "a flow",
            budget_bytes: self.memory_bytes_max,
            needed_bytes,
        })
    }

    /// The opposite of [`Self::charge_flow_bytes`].
    pub(super) fn release_flow_bytes(&self, bytes: usize) {
        self.flow_bytes.fetch_sub(bytes, SeqCst);
    }

    fn all_worker_bytes(&self) -> usize {
        let workers = self.worker_bytes.iter();
        workers.map(|bytes| bytes.load(SeqCst)).sum()
    }

    fn queue_bytes(&self) -> usize {
        self.slots.load(SeqCst) * self.slot_bytes() + self.submitter_bytes.load(SeqCst)
    }

    /// Bytes of one slot.
    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes.load(SeqCst)
    }

    /// Counts a submitter's slots and other buffers as held.
    pub(super) fn add_submitter(&self, slots: usize, buffers: usize) {
        self.slots.fetch_add(slots, SeqCst);
        self.submitter_bytes.fetch_add(buffers, SeqCst);
    }

    /// The opposite of [`Self::add_submitter`].
    pub(super) fn remove_submitter(&self, slots: usize, buffers: usize) {
        self.slots.fetch_sub(slots, SeqCst);
        self.submitter_bytes.fetch_sub(buffers, SeqCst);
    }

    pub(super) fn memory(&self) -> EngineMemory {
        let held = self.generations.bytes();
        let workers = self.worker_bytes.iter();
        EngineMemory {
            model_bytes: held.model,
            retired_bytes: held.retired,
            spare_bytes: held.buffers,
            head_bytes: held.heads,
            worker_bytes: workers.map(|bytes| bytes.load(SeqCst)).collect(),
            classifier_bytes: self.classifier_bytes.load(SeqCst),
            queue_bytes: self.queue_bytes(),
            flow_bytes: self.flow_bytes.load(SeqCst),
            device_bytes: device_bytes(&self.generations),
        }
    }
}

/// A generation that is not yet one: what of it takes time to load.
#[derive(Debug)]
pub(super) struct Successor {
    /// Number of the generation that it was loaded for.
    after: u64,
    model: Arc<Model>,
    options: Arc<HeadOptions>,
    heads: Option<Arc<HeadSet>>,
    /// Where its model will run; `None` where no device was opened.
    placement: Option<Placement>,
}

/// One thing that counts for the memory budget is made at a time. What it takes has to be counted before this is dropped.
pub(super) struct Making<'a> {
    shared: &'a Shared,
    _lock: MutexGuard<'a, ()>,
}

impl Making<'_> {
    /// Whether so many more bytes fit into the memory budget; they are kept for what is made.
    pub(super) fn check_budget(&self, what: &'static str, added: usize) -> Result<(), Error> {
        let budget_bytes = self.shared.memory_bytes_max;
        self.shared.making_bytes.store(added, SeqCst);
        let needed_bytes = self.shared.memory().total_bytes().saturating_add(added);
        if needed_bytes <= budget_bytes {
            Ok(())
        } else {
            Err(Error::MemoryBudget {
                what,
                budget_bytes,
                needed_bytes,
            })
        }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.shared.making_bytes.store(0, SeqCst);
    }
}
