//! Engines: a model with a queue, threads and counters, and its life with a host.

use std::ffi::c_char;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use trafficllm::{DeviceChoice, Engine, FlowConfig, FlowRecorder, RecorderCounters, Settings};

use crate::boundary::{Output, fill_name, growing, guard, text, write_struct, write_text};
use crate::config::{settings_of, tllm_config};
use crate::fault::Fault;
use crate::fork::forks;
use crate::handle::Table;
use crate::model::{TLLM_TASK_BYTES, handle_of, load, model_of, tllm_model};
use crate::signals::SignalsBlocked;
use crate::status::{
    TLLM_ABANDONED, TLLM_END, TLLM_ERR_FORKED, TLLM_ERR_LIMIT, TLLM_OK, TLLM_RUNNING,
};

/// An engine: a model at work. Any number of threads use it at the same time. Sessions, flows and calls under way keep what they use
/// of it alive after its handle is freed.
#[derive(Debug)]
pub struct tllm_engine {
    _opaque: [u8; 0],
}

/// What became of the flows and requests that were submitted or classified. Each number only grows, but for `in_flight` and
/// `waiting`: submitted = done + shed + expired + abandoned + failed + in_flight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_counters {
    /// Offered, those included that were shed.
    pub submitted: u64,
    /// Judged, and the verdicts taken by the host.
    pub done: u64,
    /// Refused because the queue was full.
    pub shed: u64,
    /// Not judged because the deadline had passed.
    pub expired: u64,
    /// Never answered: the flow, the session or the engine was gone before.
    pub abandoned: u64,
    /// Lost to a defect in the model or in a worker.
    pub failed: u64,
    /// Under way, or with an answer that is not taken yet.
    pub in_flight: u64,
    /// Waiting in the queue for a worker.
    pub waiting: u64,
    /// Number of the active model: 1 for the first, one more with each activation.
    pub generation: u64,
    /// Models that were activated after the first.
    pub activations: u64,
    /// Activations that were refused; the model before went on.
    pub activations_failed: u64,
    /// Batches that were run.
    pub batches: u64,
    /// Batches that ended in a defect, which was caught.
    pub worker_panics: u64,
    /// Live flow handles of the engine.
    pub flows: u64,
    /// Packets of the flows that were freed; so are the three that follow.
    pub packets: u64,
    /// Packets that were counted only, because their flow kept no more.
    pub packets_beyond_limit: u64,
    /// Payload bytes of kept packets that found no room.
    pub payload_bytes_cut: u64,
    /// Packets whose time was before that of the packet before.
    pub time_backwards: u64,
    /// Batches that a device ran.
    pub device_batches: u64,
    /// Batches that a device could not run: the processor ran them.
    pub device_failures: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

/// What an engine holds in memory, in bytes. The sum of the fields but `device_bytes` is what "engine.memory_bytes_max" limits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_memory {
    /// Weights and adapters of the active model; shared by all engines.
    pub model_bytes: u64,
    /// The same of models that were replaced and have flows to finish.
    pub retired_bytes: u64,
    /// Buffers of the workers.
    pub worker_bytes: u64,
    /// Buffers of the sessions that judge synchronously, and heads of detections.
    pub classifier_bytes: u64,
    /// The queue, and what the sessions have reserved.
    pub queue_bytes: u64,
    /// The most that the live flows of the engine can take.
    pub flow_bytes: u64,
    /// Code of WebAssembly heads, and all that their memory can grow to, without that on the sessions that judge synchronously.
    pub head_bytes: u64,
    /// Memory of the device: models and buffers. "engine.device_memory_bytes_max" limits it.
    pub device_bytes: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

/// How long flows and requests took from submission to their verdicts, since the engine was made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_latency {
    /// Flows and requests judged.
    pub count: u64,
    /// Sum of their times in microseconds.
    pub sum_us: u64,
    /// Half of them took at most so many microseconds. This and what follows is read off the histogram that tllm_engine_metrics
    /// writes: right to within its steps, and at most 10 seconds.
    pub median_us: u64,
    /// Nine of ten took at most so many microseconds.
    pub p90_us: u64,
    /// 99 of a hundred took at most so many microseconds.
    pub p99_us: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// A head at work, and what it did since it was loaded: where heads are replaced, all numbers begin at 0 again, and where the model is
/// replaced, those of its bundle's heads do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_head {
    /// Its name: `task_name` of its verdicts.
    pub name: [c_char; TLLM_TASK_BYTES],
    /// Its own version.
    pub version: [c_char; TLLM_TASK_BYTES],
    /// The task whose hidden state it is given; empty where it asks for none.
    pub source_task: [c_char; TLLM_TASK_BYTES],
    /// 1 if it is asked; 0 if it was switched off.
    pub enabled: u32,
    /// 1 if it keeps what it knows from flow to flow.
    pub stateful: u32,
    /// Labels.
    pub labels: u32,
    /// Zero.
    pub reserved0: u32,
    /// Verdicts, those included in which it abstained.
    pub verdicts: u64,
    /// Verdicts in which it abstained itself.
    pub abstained: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// How often it was switched off because of them.
    pub switched_off: u64,
    /// Flows without a verdict of it, for whatever reason. tllm_engine_metrics has them by reason.
    pub without_verdict: u64,
    /// Lines that it logged and that were not kept.
    pub log_lines_lost: u64,
    /// 1 if it is of the bundle and could not be loaded: it has no verdicts then, for the reason "unavailable".
    pub missing: u32,
    /// Zero.
    pub reserved1: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

growing!(
    tllm_head = 280 or 280,
    tllm_counters = 176 or 176,
    tllm_memory = 80 or 80,
    tllm_latency = 72 or 72,
);

/// [`RecorderCounters`] that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct PacketCounts {
    packets: AtomicU64,
    packets_beyond_limit: AtomicU64,
    payload_bytes_cut: AtomicU64,
    time_backwards: AtomicU64,
}

impl PacketCounts {
    pub(crate) fn add(&self, counters: &RecorderCounters) {
        for (sum, count) in [
            (&self.packets, counters.packets),
            (&self.packets_beyond_limit, counters.packets_beyond_limit),
            (&self.payload_bytes_cut, counters.payload_bytes_cut),
            (&self.time_backwards, counters.time_backwards),
        ] {
            sum.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn read(&self) -> RecorderCounters {
        RecorderCounters {
            packets: self.packets.load(Ordering::Relaxed),
            packets_beyond_limit: self.packets_beyond_limit.load(Ordering::Relaxed),
            payload_bytes_cut: self.payload_bytes_cut.load(Ordering::Relaxed),
            time_backwards: self.time_backwards.load(Ordering::Relaxed),
        }
    }
}

/// The number of forks at which an engine that has no threads belongs to the process.
const NOT_STARTED: u32 = u32::MAX;

/// An engine with what the border keeps of it.
pub(crate) struct EngineState {
    engine: ManuallyDrop<Engine>,
    settings: Settings,
    flow_config: FlowConfig,
    /// Live flow handles.
    flows: AtomicUsize,
    /// What the flows saw that are freed.
    pub(crate) packets: PacketCounts,
    /// [`forks`] when the workers were started.
    started_at: AtomicU32,
}

impl EngineState {
    /// The engine, if its threads are in this process.
    pub(crate) fn get(&self) -> Result<&Engine, Fault> {
        if self.is_forked() {
            Err(Fault::new(
                TLLM_ERR_FORKED,
                "engine: it was started before this process was forked; make one in this process"
                    .to_owned(),
            ))
        } else {
            Ok(&self.engine)
        }
    }

    /// Whether this process is a child that has the engine's memory without its threads. Locks may stand as another thread has left
    /// them: nothing of the engine may be waited for, not even to free it.
    pub(crate) fn is_forked(&self) -> bool {
        let started_at = self.started_at.load(Ordering::Relaxed);
        started_at != NOT_STARTED && started_at != forks()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn flow_config(&self) -> FlowConfig {
        self.flow_config
    }

    /// Room for verdicts that every answer fits into.
    pub(crate) fn verdicts_max(&self) -> usize {
        self.engine.verdicts_max().max(1)
    }

    /// Takes the place and the memory of one flow more, as far as limit and budget allow.
    pub(crate) fn take_flow(&self) -> Result<(), Fault> {
        let limit = self.settings.flows_max();
        let counted = self
            .flows
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |flows| {
                (flows < limit).then_some(flows + 1)
            });
        counted.map_err(|_| {
            Fault::new(
                TLLM_ERR_LIMIT,
                format!("flow: expected at most engine.flows_max = {limit} at a time"),
            )
        })?;
        let charged = self.engine.charge_flow_bytes(self.flow_bytes_max());
        charged.map_err(|error| {
            self.flows.fetch_sub(1, Ordering::Relaxed);
            error.into()
        })
    }

    /// Gives back what [`Self::take_flow`] has taken.
    pub(crate) fn release_flow(&self) {
        self.flows.fetch_sub(1, Ordering::Relaxed);
        self.engine.release_flow_bytes(self.flow_bytes_max());
    }

    /// The most that a flow can take, in bytes.
    fn flow_bytes_max(&self) -> usize {
        FlowRecorder::bytes_max(&self.flow_config)
    }

    fn stop(&self, timeout: Duration) -> Result<i32, Fault> {
        let stopped = self.get()?.stop(timeout);
        Ok(if stopped.running_workers > 0 {
            TLLM_RUNNING
        } else if stopped.abandoned > 0 {
            TLLM_ABANDONED
        } else {
            TLLM_OK
        })
    }
}

impl Drop for EngineState {
    fn drop(&mut self) {
        if !self.is_forked() {
            // SAFETY: this is the only place that takes it, and nothing uses it after.
            unsafe { ManuallyDrop::drop(&mut self.engine) }
        }
    }
}

const KIND: &str = "engine";
/// Most engines at a time.
const ENGINES_MAX: u32 = 1_024;
static ENGINES: Table<Arc<EngineState>, 1> = Table::new(3, ENGINES_MAX);

/// The engine of a handle.
pub(crate) fn engine_of(engine: *const tllm_engine) -> Result<Arc<EngineState>, Fault> {
    ENGINES
        .cloned(engine.addr())
        .map_err(|error| Fault::handle(KIND, error))
}

/// Makes an engine: checks the settings and takes the memory for queue and workers. It starts no thread and opens no device: that is
/// tllm_engine_start. Sessions and flows can be made, and flows submitted, before that. `config` may be NULL. Free it with
/// tllm_engine_free.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_VALUE, TLLM_ERR_TASK, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT,
/// TLLM_ERR_UNSUPPORTED ("engine.device" names a device, and the library was built without them).
///
/// # Safety
/// `engine` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_new(
    model: *const tllm_model,
    config: *const tllm_config,
    engine: *mut *mut tllm_engine,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(engine, KIND) }?;
        let (model, settings) = (model_of(model)?, settings_of(config)?);
        let options = settings.engine_options(&model);
        let flow_config = settings.flow_config(&model);
        let state = EngineState {
            engine: ManuallyDrop::new(Engine::new(model, options)?),
            settings,
            flow_config,
            flows: AtomicUsize::new(0),
            packets: PacketCounts::default(),
            started_at: AtomicU32::new(NOT_STARTED),
        };
        let made = ENGINES.insert(Arc::new(state));
        let handle = made.map_err(|error| Fault::insert(KIND, error))?;
        output.write(std::ptr::without_provenance_mut(handle));
        Ok(TLLM_OK)
    })
}

/// Starts the workers, in this process: after the host has forked, before or after it has dropped privileges. Their signals are
/// blocked: the host's handlers never run on them. Where "engine.device" asks for a device, it is opened and given the model here, also
/// without workers; that can take seconds the first time, since kernels are compiled, and the driver starts threads of its own, whose
/// signals are blocked too. A second call does nothing.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_THREAD, TLLM_ERR_DEVICE (never with "engine.device" at "auto"), TLLM_ERR_BUDGET,
/// TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_engine_start(engine: *mut tllm_engine) -> i32 {
    guard(|| {
        let state = engine_of(engine)?;
        let running = state.get()?;
        let _blocked = SignalsBlocked::block();
        // Before the threads: a fork meanwhile is after the start.
        state.started_at.store(forks(), Ordering::Relaxed);
        running.start()?;
        Ok(TLLM_OK)
    })
}

/// Takes no more flows from now on, gives the workers `timeout_us` to judge those that wait, abandons the rest and ends the workers.
/// Answers that have come can still be polled, and sessions that wait are woken. Calls of other threads go on meanwhile.
///
/// Returns TLLM_OK; TLLM_ABANDONED if flows were abandoned; TLLM_RUNNING if workers were still in a batch when the time was over: they
/// end after it, and calling again waits for them.
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_engine_stop(engine: *mut tllm_engine, timeout_us: u64) -> i32 {
    guard(|| engine_of(engine)?.stop(Duration::from_micros(timeout_us)))
}

/// Where a device was chosen: its driver may start threads when it is given a model.
fn blocked_for_device(settings: &Settings) -> Option<SignalsBlocked> {
    let is_chosen = settings.device_options().choice != DeviceChoice::Cpu;
    is_chosen.then(SignalsBlocked::block)
}

/// Changes the model while the engine works: opens and verifies the bundle at `path`, runs its self-test, and swaps. Flows under way
/// finish on the model before; every verdict says which model gave it. A device keeps that model until synchronous sessions that used it
/// judge again or are freed. On an error the model before goes on, and the text says what
/// was wrong. It takes as long as tllm_model_open: call it beside the packet path.
///
/// Errors: as tllm_model_open; TLLM_ERR_TASK (a chosen task is not in the new model), TLLM_ERR_DEVICE (the device that was chosen
/// by number has no room for it or cannot run it), TLLM_ERR_BUDGET, TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
///
/// # Safety
/// `path` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_activate(
    engine: *mut tllm_engine,
    path: *const c_char,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { text(path, "path") }?;
        let state = engine_of(engine)?;
        let engine = state.get()?;
        let mut blocked = None;
        engine.activate_with(|| {
            let model = load(path, &state.settings)?;
            blocked = blocked_for_device(&state.settings);
            Ok(model)
        })?;
        drop(blocked);
        Ok(TLLM_OK)
    })
}

/// As tllm_engine_activate, with a model that is open already. Activating the model before again is the way back.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_TASK, TLLM_ERR_DEVICE, TLLM_ERR_BUDGET, TLLM_ERR_MEMORY, TLLM_ERR_STOPPED,
/// TLLM_ERR_FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_engine_activate_model(
    engine: *mut tllm_engine,
    model: *const tllm_model,
) -> i32 {
    guard(|| {
        let state = engine_of(engine)?;
        let _blocked = blocked_for_device(&state.settings);
        state.get()?.activate(model_of(model)?)?;
        Ok(TLLM_OK)
    })
}

/// Gives a new handle of the active model. Free it with tllm_model_free.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_LIMIT, TLLM_ERR_MEMORY, TLLM_ERR_FORKED.
///
/// # Safety
/// `model` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_model(
    engine: *const tllm_engine,
    model: *mut *mut tllm_model,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::new(model, "model") }?;
        output.write(handle_of(engine_of(engine)?.get()?.model())?);
        Ok(TLLM_OK)
    })
}

/// Reads the counters. `size` is sizeof(tllm_counters).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
///
/// # Safety
/// `counters` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_counters(
    engine: *const tllm_engine,
    counters: *mut tllm_counters,
    size: usize,
) -> i32 {
    guard(|| {
        let state = engine_of(engine)?;
        let engine = state.get()?;
        let (read, packets) = (engine.counters(), state.packets.read());
        let described = tllm_counters {
            submitted: read.submitted,
            done: read.done,
            shed: read.shed,
            expired: read.expired,
            abandoned: read.abandoned,
            failed: read.failed,
            in_flight: read.in_flight(),
            waiting: engine.queue_depth() as u64,
            generation: engine.generation(),
            activations: read.swaps,
            activations_failed: read.swaps_failed,
            batches: read.batches,
            worker_panics: read.worker_panics,
            flows: state.flows.load(Ordering::Relaxed) as u64,
            packets: packets.packets,
            packets_beyond_limit: packets.packets_beyond_limit,
            payload_bytes_cut: packets.payload_bytes_cut,
            time_backwards: packets.time_backwards,
            device_batches: read.device_batches,
            device_failures: read.device_failures,
            reserved: [0; 2],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, counters, size, "counters") }?;
        Ok(TLLM_OK)
    })
}

/// Says how long verdicts took. `size` is sizeof(tllm_latency).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
///
/// # Safety
/// `latency` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_latency(
    engine: *const tllm_engine,
    latency: *mut tllm_latency,
    size: usize,
) -> i32 {
    guard(|| {
        let read = engine_of(engine)?.get()?.latency();
        let described = tllm_latency {
            count: read.count,
            sum_us: read.sum_us,
            median_us: read.quantile_us(0.5),
            p90_us: read.quantile_us(0.9),
            p99_us: read.quantile_us(0.99),
            reserved: [0; 4],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, latency, size, "latency") }?;
        Ok(TLLM_OK)
    })
}

/// Says what the engine holds in memory. `size` is sizeof(tllm_memory).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
///
/// # Safety
/// `memory` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_memory(
    engine: *const tllm_engine,
    memory: *mut tllm_memory,
    size: usize,
) -> i32 {
    guard(|| {
        let state = engine_of(engine)?;
        let read = state.get()?.memory();
        let described = tllm_memory {
            model_bytes: read.model_bytes as u64,
            retired_bytes: read.retired_bytes as u64,
            worker_bytes: (read.worker_bytes.iter().sum::<usize>() + read.spare_bytes) as u64,
            classifier_bytes: read.classifier_bytes as u64,
            queue_bytes: read.queue_bytes as u64,
            flow_bytes: read.flow_bytes as u64,
            head_bytes: read.head_bytes as u64,
            device_bytes: read.device_bytes,
            reserved: [0; 2],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, memory, size, "memory") }?;
        Ok(TLLM_OK)
    })
}

/// Writes counters, memory and latencies in Prometheus' text format 0.0.4; packets are counted when their flow is freed. For `buffer`,
/// `size` and `needed` see "Texts that come out" above; the text grows by some bytes with its numbers, so leave room.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUFFER, TLLM_ERR_FORKED.
///
/// # Safety
/// `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_metrics(
    engine: *const tllm_engine,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        let state = engine_of(engine)?;
        let flows = state.flows.load(Ordering::Relaxed) as u64;
        let text = state.get()?.metrics(flows, state.packets.read());
        // SAFETY: the caller's promise.
        unsafe { write_text(&text, buffer, size, needed) }
    })
}

/// Says what runs the model: the device's number and name, as "cuda:0 NVIDIA H200", or a text that begins with "cpu" where no device
/// runs it, and says why where "engine.device" asks for one. For `buffer`, `size` and `needed` see "Texts that come out" above.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUFFER, TLLM_ERR_FORKED.
///
/// # Safety
/// `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_device(
    engine: *const tllm_engine,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        let status = engine_of(engine)?.get()?.device_status();
        // SAFETY: the caller's promise.
        unsafe { write_text(&status.to_string(), buffer, size, needed) }
    })
}

/// Describes the head with the number `index`, from 0, in the order of their verdicts; returns TLLM_END after the last. `size` is
/// sizeof(tllm_head).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
///
/// # Safety
/// `head` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_head(
    engine: *const tllm_engine,
    index: usize,
    head: *mut tllm_head,
    size: usize,
) -> i32 {
    guard(|| {
        let heads = engine_of(engine)?.get()?.heads();
        let Some(read) = heads.get(index) else {
            return Ok(TLLM_END);
        };
        let mut described = tllm_head {
            name: [0; TLLM_TASK_BYTES],
            version: [0; TLLM_TASK_BYTES],
            source_task: [0; TLLM_TASK_BYTES],
            enabled: read.is_enabled.into(),
            stateful: read.is_stateful.into(),
            labels: u32::try_from(read.labels.len()).unwrap_or(u32::MAX),
            reserved0: 0,
            verdicts: read.verdicts,
            abstained: read.abstained,
            faults: read.faults,
            switched_off: read.switched_off,
            without_verdict: read.without.iter().map(|(_, flows)| flows).sum(),
            log_lines_lost: read.log_lines_lost,
            missing: (!read.error.is_empty()).into(),
            reserved1: 0,
            reserved: [0; 2],
        };
        fill_name(&mut described.name, &read.name);
        fill_name(&mut described.version, &read.version);
        fill_name(&mut described.source_task, &read.source_task);
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, head, size, "head") }?;
        Ok(TLLM_OK)
    })
}

/// Switches the head of that name on, where `enabled` is not 0, with no fault held against it, or off: its verdicts then abstain. A head
/// that was switched off because of its faults stays so until this is called, or heads or model are replaced.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_TEXT, TLLM_ERR_TASK (no head of this name), TLLM_ERR_FORKED.
///
/// # Safety
/// `name` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_head_enable(
    engine: *mut tllm_engine,
    name: *const c_char,
    enabled: i32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name") }?;
        engine_of(engine)?
            .get()?
            .set_head_enabled(name, enabled != 0)?;
        Ok(TLLM_OK)
    })
}

/// Replaces the heads while the engine works by those that the "heads." keys of `config` name, and those of the model's bundle: files of
/// modules are read again, heads begin anew. A native library stays loaded as long as the process: a new version needs a path of its
/// own, and one that has changed under its path is refused. Flows under way end with the heads before. NULL stands for the keys' defaults. Call it beside
/// the packet path: modules are compiled. On an error the heads before go on.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_VALUE (a head cannot be used: the text says which and why),
/// TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_DEVICE (as the start that failed), TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_engine_activate_heads(
    engine: *mut tllm_engine,
    config: *const tllm_config,
) -> i32 {
    guard(|| {
        let state = engine_of(engine)?;
        let options = settings_of(config)?.head_options();
        let _blocked = blocked_for_device(&state.settings);
        state.get()?.set_heads(&options)?;
        Ok(TLLM_OK)
    })
}

/// Judges all that waits, on the calling thread, in an engine with "engine.workers" 0; with workers it does nothing. `judged` may be
/// NULL; else it gets the number of flows.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_FORKED.
///
/// # Safety
/// `judged` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_engine_run_pending(
    engine: *mut tllm_engine,
    judged: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let output = unsafe { Output::optional(judged, "judged") }?;
        let flows = engine_of(engine)?.get()?.run_pending();
        if let Some(output) = output {
            output.write(flows);
        }
        Ok(TLLM_OK)
    })
}

/// Stops an engine, with "engine.stop_timeout_us" for what waits, and frees its handle; calls of other threads that are under way
/// finish, sessions that are left find it stopped. In a process that was forked after the start only the handle is freed. NULL
/// is nothing to do. Returns what tllm_engine_stop does.
///
/// Errors: TLLM_ERR_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_engine_free(engine: *mut tllm_engine) -> i32 {
    guard(|| {
        if engine.is_null() {
            return Ok(TLLM_OK);
        }
        let state = engine_of(engine)?;
        let retired = ENGINES.retire(engine.addr());
        retired.map_err(|error| Fault::handle(KIND, error))?;
        if state.is_forked() {
            return Ok(TLLM_OK);
        }
        state.stop(state.settings.stop_timeout())
    })
}
