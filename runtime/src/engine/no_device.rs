//! What stands for devices in a build without them: everything runs on the processor.

use std::sync::{Mutex, MutexGuard, PoisonError};

use trafficllm_model::Scratch;

use super::counters::Counts;
use super::generation::{Generation, Generations};
use super::judge::BatchSizes;
use crate::device::{DeviceChoice, DeviceOptions, DeviceState, DeviceStatus};
use crate::error::Error;
use crate::model::Model;

/// There is none.
#[derive(Debug)]
pub(super) enum Placement {}

impl Placement {
    pub(super) fn host_bytes(&self) -> usize {
        match *self {}
    }
}

#[derive(Debug)]
pub(super) struct Devices {
    status: DeviceStatus,
    starting: Mutex<()>,
}

impl Devices {
    pub(super) fn new(options: &DeviceOptions) -> Result<Self, Error> {
        let status = match options.choice {
            DeviceChoice::Cpu => DeviceStatus::default(),
            DeviceChoice::Auto => DeviceStatus {
                state: DeviceState::Unavailable,
                name: String::new(),
                reason: "this build runs models on the processor only".to_owned(),
            },
            DeviceChoice::Cuda(_) => {
                return Err(Error::NoDevices {
                    device: options.choice.to_string(),
                });
            }
        };
        if !status.reason.is_empty() {
            tracing::warn!(status.reason, "no device: the model runs on the processor");
        }
        Ok(Self {
            status,
            starting: Mutex::default(),
        })
    }

    pub(super) fn is_chosen(&self) -> bool {
        false
    }

    pub(super) fn is_active(&self) -> bool {
        false
    }

    pub(super) fn lock_starting(&self) -> MutexGuard<'_, ()> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn set_opened(&self) {}

    pub(super) fn is_opened(&self) -> bool {
        false
    }

    pub(super) fn place(
        &self,
        _model: &Model,
        _generations: &Generations,
        _sizes: (BatchSizes, usize),
    ) -> Result<Option<Placement>, Error> {
        Ok(None)
    }

    pub(super) fn set_current(&self, _placement: Option<&Placement>) {}

    pub(super) fn status(&self, _placement: Option<&Placement>) -> DeviceStatus {
        self.status.clone()
    }

    pub(super) fn unless_short(
        &self,
        placement: Placement,
        _checked: Result<(), Error>,
    ) -> Result<Placement, Error> {
        match placement {}
    }

    pub(super) fn count(
        &self,
        _used: (&mut Scratch, &mut Lanes),
        _counts: &Counts,
        _is_done: bool,
    ) {
    }
}

pub(super) fn device_bytes(generations: &Generations) -> u64 {
    generations.each_placement(|placement| match *placement {});
    0
}

#[derive(Debug, Default)]
pub(super) struct Lanes;

impl Lanes {
    pub(super) fn wants(&self, _scratch: &Scratch, _generation: &Generation) -> bool {
        false
    }

    pub(super) fn prepare(
        &mut self,
        _scratch: &mut Scratch,
        _generation: &Generation,
        _sizes: (BatchSizes, bool),
    ) {
    }

    pub(super) fn move_to(&self, buffers: Scratch, scratch: &mut Scratch) {
        *scratch = buffers;
    }

    pub(super) fn has_attached(_scratch: &Scratch) -> bool {
        false
    }

    pub(super) fn forget_attached(_scratch: &mut Scratch, _left: &Generation) {}

    pub(super) fn has_other(&self) -> bool {
        false
    }

    pub(super) fn forget_other(&mut self) {}
}
