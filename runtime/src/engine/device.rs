//! The device of an engine: opened at the start, given the model of every generation, and left when it fails.
//!
//! A thread that runs the model has a lane, its buffers on the device. What the device cannot do the processor does in the same call,
//! so that a flow never depends on it.

mod lanes;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use trafficllm_kernels::cuda::{Device, DeviceError, OpenOptions, open};
use trafficllm_model::{Activations, DeviceModel, ModelError, Scratch};

use super::counters::Counts;
use super::generation::Generations;
use super::judge::BatchSizes;
use crate::device::{DeviceActivations, DeviceChoice, DeviceOptions, DeviceState, DeviceStatus};
use crate::error::Error;
use crate::model::Model;
use lanes::OnDevice;

pub(super) use lanes::Lanes;

/// Where the model of a generation runs.
#[derive(Debug)]
pub(super) enum Placement {
    Device(OnDevice),
    /// On the processor, and why.
    Cpu(String),
}

impl Placement {
    /// Memory of the host that no thread has taken yet.
    pub(super) fn host_bytes(&self) -> usize {
        match self {
            Self::Device(placed) => placed.host_bytes(),
            Self::Cpu(_) => 0,
        }
    }
}

/// See the file's first line.
#[derive(Debug)]
pub(super) struct Devices {
    options: DeviceOptions,
    /// Held while the device is opened and given the first model.
    starting: Mutex<()>,
    /// The device, or why there is none. Held while it is given a model: one at a time, so that what is left of its memory is known.
    opened: Mutex<Option<Result<Arc<dyn Device>, String>>>,
    /// Its number and name.
    name: OnceLock<String>,
    /// New generations are given to it.
    is_opened: AtomicBool,
    /// It runs the current generation.
    is_active: AtomicBool,
    /// Why it is not used any more.
    lost: Arc<OnceLock<String>>,
}

impl Devices {
    #[expect(clippy::unnecessary_wraps, reason = "a build without devices refuses")]
    pub(super) fn new(options: &DeviceOptions) -> Result<Self, Error> {
        Ok(Self {
            options: options.clone(),
            starting: Mutex::default(),
            opened: Mutex::default(),
            name: OnceLock::new(),
            is_opened: AtomicBool::new(false),
            is_active: AtomicBool::new(false),
            lost: Arc::default(),
        })
    }

    /// Whether a device may run the model at some time.
    pub(super) fn is_chosen(&self) -> bool {
        self.options.choice != DeviceChoice::Cpu
    }

    /// Whether a device runs the current model.
    pub(super) fn is_active(&self) -> bool {
        self.is_active.load(SeqCst)
    }

    /// Keeps others from starting it.
    pub(super) fn lock_starting(&self) -> MutexGuard<'_, ()> {
        lock(&self.starting)
    }

    /// Opens the device, unless that was done.
    pub(super) fn open(&self) -> Result<(), Error> {
        let mut opened = lock(&self.opened);
        if opened.is_some() {
            return Ok(());
        }
        match self.find() {
            Ok(device) => {
                let facts = device.facts();
                let name = format!("cuda:{} {}", facts.ordinal, facts.name);
                tracing::info!(device = name, "a device was opened");
                self.name.get_or_init(|| name);
                *opened = Some(Ok(device));
                Ok(())
            }
            Err(error) => {
                let reason = self.refuse(error.to_string())?;
                *opened = Some(Err(reason));
                Ok(())
            }
        }
    }

    fn find(&self) -> Result<Arc<dyn Device>, DeviceError> {
        if let Some(device) = &self.options.given {
            return Ok(Arc::clone(device));
        }
        open(&OpenOptions {
            ordinal: match self.options.choice {
                DeviceChoice::Cuda(ordinal) => Some(ordinal),
                DeviceChoice::Cpu | DeviceChoice::Auto => None,
            },
            ..OpenOptions::default()
        })
    }

    /// What a device that cannot be used means: an error, or the processor for this reason.
    fn refuse(&self, reason: String) -> Result<String, Error> {
        if self.options.choice == DeviceChoice::Auto {
            tracing::warn!(reason, "no device: the model runs on the processor");
            return Ok(reason);
        }
        Err(Error::Device {
            device: self.options.choice.to_string(),
            reason,
        })
    }

    /// From now on generations are to have a placement.
    pub(super) fn set_opened(&self) {
        self.is_opened.store(true, SeqCst);
    }

    /// Whether generations are to have a placement.
    pub(super) fn is_opened(&self) -> bool {
        self.is_opened.load(SeqCst)
    }

    /// Gives the device a model, with buffers for so many workers, and runs its self-test there. `None` before it is opened.
    pub(super) fn place(
        &self,
        model: &Model,
        generations: &Generations,
        (sizes, workers): (BatchSizes, usize),
    ) -> Result<Option<Placement>, Error> {
        if !self.is_opened() {
            return Ok(None);
        }
        let opened = lock(&self.opened);
        let reason = match (&*opened, self.lost.get()) {
            (None, _) => return Ok(None),
            (Some(_), Some(reason)) => reason.clone(),
            (Some(Err(reason)), None) => reason.clone(),
            (Some(Ok(device)), None) => {
                match self.upload(device, model, generations, (sizes, workers)) {
                    Ok(placed) => return Ok(Some(Placement::Device(placed))),
                    Err(reason) => self.refuse(reason)?,
                }
            }
        };
        Ok(Some(Placement::Cpu(reason)))
    }

    fn upload(
        &self,
        device: &Arc<dyn Device>,
        model: &Model,
        generations: &Generations,
        (sizes, workers): (BatchSizes, usize),
    ) -> Result<OnDevice, String> {
        let core = model.core();
        let others = device_models(generations);
        let lost = Arc::clone(&self.lost);
        // Other heads, or the model before again: it is there.
        if let Some(same) = others.iter().find(|other| other.is_of(core)) {
            return Ok(OnDevice::new(Arc::clone(same), Vec::new(), lost));
        }
        if !core.is_for_device() {
            return Err(NOT_FOR_DEVICE.to_owned());
        }
        let in_use: u64 = others.iter().map(|other| other.bytes()).sum();
        let budget = self.options.memory_bytes_max;
        let options = trafficllm_model::DeviceOptions {
            memory_bytes_max: (budget > 0).then(|| budget.saturating_sub(in_use)),
            activations: match self.options.activations {
                DeviceActivations::Int8 => Activations::Int8,
                DeviceActivations::Bf16 => Activations::Bf16,
            },
        };
        let make = || {
            let placed = Arc::new(DeviceModel::new(core, Arc::clone(device), options)?);
            let (tokens, items) = lanes::sizes(model, sizes);
            let mut all = Vec::new();
            while all.len() < workers {
                let lane = placed.lane(tokens, items)?;
                // One is as good as the other.
                all.push(if all.is_empty() {
                    DeviceModel::self_test(core, lane)?
                } else {
                    lane
                });
            }
            Ok(OnDevice::new(placed, all, lost))
        };
        make().map_err(|error: ModelError| {
            if let ModelError::Device(source) = &error
                && source.is_lost()
            {
                self.lose(source);
            }
            error.to_string()
        })
    }

    /// Tells where the current generation runs.
    pub(super) fn set_current(&self, placement: Option<&Placement>) {
        let is_on_device = matches!(placement, Some(Placement::Device(_)));
        self.is_active.store(is_on_device, SeqCst);
        // A device that is lost meanwhile either sees that or is seen here.
        if self.lost.get().is_some() {
            self.is_active.store(false, SeqCst);
        }
    }

    /// What became of the device, where the current generation runs there.
    pub(super) fn status(&self, placement: Option<&Placement>) -> DeviceStatus {
        let name = self.name.get().cloned().unwrap_or_default();
        let (state, reason) = match (placement, self.lost.get()) {
            _ if !self.is_chosen() => (DeviceState::Cpu, String::new()),
            (_, Some(reason)) => (DeviceState::Lost, reason.clone()),
            (None, None) => (DeviceState::Waiting, String::new()),
            (Some(Placement::Device(_)), None) => (DeviceState::Active, String::new()),
            (Some(Placement::Cpu(reason)), None) => (DeviceState::Unavailable, reason.clone()),
        };
        DeviceStatus {
            state,
            name,
            reason,
        }
    }

    /// A placement whose buffers the host's budget allows; else the error, or the processor for this reason.
    pub(super) fn unless_short(
        &self,
        placement: Placement,
        checked: Result<(), Error>,
    ) -> Result<Placement, Error> {
        match checked {
            Ok(()) => Ok(placement),
            Err(error) if self.options.choice == DeviceChoice::Auto => {
                self.refuse(error.to_string()).map(Placement::Cpu)
            }
            Err(error) => Err(error),
        }
    }

    /// Counts what the device did of a batch or refused to a thread, and leaves it where it is of no use any more.
    pub(super) fn count(
        &self,
        (scratch, lanes): (&mut Scratch, &mut Lanes),
        counts: &Counts,
        is_done: bool,
    ) {
        if is_done && scratch.used_device() {
            Counts::add(&counts.device_batches, 1);
        }
        if let Some(refusal) = lanes.take_refusal() {
            Counts::add(&counts.device_failures, 1);
            if let ModelError::Device(error) = &refusal
                && error.is_lost()
            {
                self.lose(error);
            }
        }
        if let Some(error) = scratch.take_device_error() {
            let failures = counts.device_failures.fetch_add(1, SeqCst) + 1;
            if error.is_lost() {
                self.lose(&error);
            } else if failures.is_power_of_two() {
                tracing::warn!(failures, %error, "the device failed: the processor ran the batch");
            }
        }
    }

    fn lose(&self, error: &DeviceError) {
        self.lost.get_or_init(|| {
            tracing::error!(%error, "the device is lost: the processor goes on");
            error.to_string()
        });
        self.is_active.store(false, SeqCst);
    }
}

/// Bytes of a device's memory that all generations take.
pub(super) fn device_bytes(generations: &Generations) -> u64 {
    let models = device_models(generations);
    models.iter().map(|model| model.bytes()).sum()
}

/// The models that a device has, each once.
fn device_models(generations: &Generations) -> Vec<Arc<DeviceModel>> {
    let mut models: Vec<Arc<DeviceModel>> = Vec::new();
    generations.each_placement(|placement| {
        if let Placement::Device(placed) = placement
            && !models.iter().any(|known| Arc::ptr_eq(known, &placed.model))
        {
            models.push(Arc::clone(&placed.model));
        }
    });
    models
}

/// Why a model cannot be given to a device.
const NOT_FOR_DEVICE: &str = "the model was opened without what a device needs of it: open it with Model::load_for_device, in C with a config \
                              whose engine.device is set";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
