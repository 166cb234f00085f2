//! The buffers of threads on a device.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use trafficllm_model::{DeviceModel, Lane, ModelError, Scratch};

use super::super::generation::Generation;
use super::super::judge::BatchSizes;
use super::Placement;
use crate::limits::DEVICE_LANE_TOKENS_MAX;
use crate::model::Model;

/// A generation's model on a device.
#[derive(Debug)]
pub(in super::super) struct OnDevice {
    pub(super) model: Arc<DeviceModel>,
    /// One for each worker, until it has taken it.
    spare: Mutex<Vec<Lane>>,
    /// Set where the device is of no use any more.
    lost: Arc<OnceLock<String>>,
}

impl OnDevice {
    pub(super) fn new(
        model: Arc<DeviceModel>,
        spare: Vec<Lane>,
        lost: Arc<OnceLock<String>>,
    ) -> Self {
        Self {
            model,
            spare: Mutex::new(spare),
            lost,
        }
    }

    /// Memory of the host that the spare lanes take.
    pub(super) fn host_bytes(&self) -> usize {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.iter().map(Lane::host_bytes).sum()
    }

    /// A worker's lane, or a new one.
    fn lane(&self, model: &Model, sizes: BatchSizes, is_worker: bool) -> Result<Lane, ModelError> {
        if is_worker {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(lane) = spare.pop() {
                return Ok(lane);
            }
        }
        let (tokens, items) = self::sizes(model, sizes);
        self.model.lane(tokens, items)
    }

    fn is_of(&self, lane: Option<&Lane>) -> bool {
        lane.is_some_and(|lane| Arc::ptr_eq(lane.model(), &self.model))
    }
}

/// Tokens and items of a lane that takes the largest batch whole, or in parts where that would be too much.
pub(super) fn sizes(model: &Model, batch: BatchSizes) -> (usize, usize) {
    let profile = model.encoder().profile();
    // The last flow may go beyond.
    let last = profile.max_tokens as usize + profile.request_tokens as usize;
    let tokens = (batch.tokens + last).min(DEVICE_LANE_TOKENS_MAX.max(last));
    (tokens, batch.items())
}

/// Sees to it that a thread's lane is that of the generation that it runs.
#[derive(Debug, Default)]
pub(in super::super) struct Lanes {
    /// Of the generation before, as long as it has flows to finish: they may come in turn with newer ones.
    other: Option<Lane>,
    /// Number of the generation for which there was no memory.
    refused_for: u64,
    /// Why, until it is counted.
    refusal: Option<ModelError>,
}

impl Lanes {
    /// Whether [`Self::prepare`] has something to do.
    pub(in super::super) fn wants(&self, scratch: &Scratch, generation: &Generation) -> bool {
        let placed = match generation.placement() {
            None => return false,
            Some(Placement::Cpu(_)) => return scratch.lane().is_some(),
            Some(Placement::Device(placed)) => placed,
        };
        if placed.lost.get().is_some() {
            return scratch.lane().is_some();
        }
        self.refused_for != generation.number && !placed.is_of(scratch.lane())
    }

    /// Attaches the lane of a generation that runs on a device, and gives back that of a device that is lost.
    pub(in super::super) fn prepare(
        &mut self,
        scratch: &mut Scratch,
        generation: &Generation,
        (sizes, is_worker): (BatchSizes, bool),
    ) {
        if !self.wants(scratch, generation) {
            return;
        }
        let Some(Placement::Device(placed)) = generation.placement() else {
            self.other = scratch.detach().filter(|_| is_worker);
            return;
        };
        if placed.lost.get().is_some() {
            drop(scratch.detach());
            self.other = None;
            return;
        }
        let lane = match self.other.take() {
            Some(lane) if placed.is_of(Some(&lane)) => Ok(lane),
            other => {
                // Its memory may be what the new one lacks.
                drop(other);
                placed.lane(&generation.model, sizes, is_worker)
            }
        };
        match lane {
            Ok(lane) => {
                let before = scratch.detach();
                self.other = before.filter(|_| is_worker);
                scratch.attach(lane);
            }
            Err(error) => {
                tracing::warn!(%error, "no buffers on the device: the processor runs the model");
                self.refused_for = generation.number;
                self.refusal = Some(error);
            }
        }
    }

    /// Puts buffers in the place of a thread's; its lane stays.
    pub(in super::super) fn move_to(&self, buffers: Scratch, scratch: &mut Scratch) {
        let lane = scratch.detach();
        *scratch = buffers;
        if let Some(lane) = lane {
            scratch.attach(lane);
        }
    }

    /// Why there was no lane, once.
    pub(super) fn take_refusal(&mut self) -> Option<ModelError> {
        self.refusal.take()
    }

    /// Whether there is a lane that [`Self::forget_attached`] could give back.
    pub(in super::super) fn has_attached(scratch: &Scratch) -> bool {
        scratch.lane().is_some()
    }

    /// Gives back the attached lane, unless a generation, the only one that is left, runs on it.
    pub(in super::super) fn forget_attached(scratch: &mut Scratch, left: &Generation) {
        let is_left = matches!(left.placement(), Some(Placement::Device(placed)) if placed.is_of(scratch.lane()));
        if !is_left {
            drop(scratch.detach());
        }
    }

    /// Whether [`Self::forget_other`] has something to do.
    pub(in super::super) fn has_other(&self) -> bool {
        self.other.is_some()
    }

    /// Gives back the lane of a generation that is gone.
    pub(in super::super) fn forget_other(&mut self) {
        self.other = None;
    }
}
