//! What all heads have in common.

use std::fmt;

use crate::abi::{self, About, Answers, FlowInput, ModelContext, Needs, flow_bytes};
use crate::error::Fault;
use crate::limits;

/// A head that was loaded. Shared by all threads; each judges with an instance of its own.
pub trait Head: Send + Sync + fmt::Debug {
    /// What it says of itself.
    fn about(&self) -> &About;

    /// Makes an instance that is ready to judge flows of this model.
    ///
    /// # Errors
    /// The head has no use for the model, or fails.
    fn start(&self, conditions: &Conditions) -> Result<Box<dyn HeadInstance>, Fault>;

    /// Bytes that all of its instances share, as far as they are known: compiled code.
    fn bytes(&self) -> usize {
        0
    }

    /// Bytes that each of its instances can take, as far as they are known.
    fn instance_bytes_max(&self) -> usize {
        0
    }

    /// Lines that it logged and that were not kept.
    fn log_lines_lost(&self) -> u64 {
        0
    }
}

/// A head at work on one thread.
pub trait HeadInstance: Send {
    /// Adds one answer for each flow, in the same order.
    ///
    /// # Errors
    /// How the head failed. What it added then does not count, and the instance is given up, except after [`Fault::TooLarge`].
    fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault>;

    /// The most flows that one call may have.
    fn flows_max(&self) -> usize {
        limits::FLOWS_MAX
    }

    /// Whether it has to begin anew before the next call, which costs as much as starting it.
    fn is_spent(&self) -> bool {
        false
    }

    /// Fuel that the last call took; `None` where that is not measured.
    fn fuel_used(&self) -> Option<u64> {
        None
    }

    /// Bytes of memory of a module's instance, as it is now; `None` where that is not known.
    fn memory_bytes(&self) -> Option<usize> {
        None
    }
}

/// What a host promises the heads that it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// The model.
    pub model: ModelContext,
    /// Most flows of one call, 1 to [`limits::FLOWS_MAX`]. What comes beyond is given in further calls.
    pub flows_max: usize,
    /// Most listed packets of a flow.
    pub packets_max: usize,
    /// Most payload bytes of a flow.
    pub payload_bytes_max: usize,
}

impl Default for Conditions {
    /// No model; what the runtime keeps of a flow.
    fn default() -> Self {
        Self {
            model: ModelContext::default(),
            flows_max: 32,
            packets_max: 20,
            payload_bytes_max: 1_600,
        }
    }
}

impl Conditions {
    /// Bytes of the largest block that a head with these needs can be given.
    #[must_use]
    pub fn input_bytes_max(&self, needs: Needs) -> usize {
        let count = |needed, count: usize, most: usize| {
            if needs.has(needed) {
                count.min(most)
            } else {
                0
            }
        };
        let packets = count(Needs::PACKETS, self.packets_max, limits::PACKETS_MAX);
        let hidden = count(
            Needs::HIDDEN,
            self.model.hidden as usize,
            limits::HIDDEN_MAX,
        );
        let payload = count(
            Needs::PAYLOAD,
            self.payload_bytes_max,
            limits::PAYLOAD_BYTES_MAX,
        );
        let tasks = count(Needs::TASKS, self.model.tasks.len(), limits::TASKS_MAX);
        let labels = self.model.tasks.iter().take(tasks);
        let scores: usize = labels.map(|task| task.labels.len()).sum();
        let one = flow_bytes(&FlowInput::default(), Needs::default())
            + packets * 12
            + hidden * 4
            + tasks * 16
            + scores * 4
            + payload
            + 8;
        let flows = self.flows_max.clamp(1, limits::FLOWS_MAX);
        (abi::flow_block_bytes(&[], needs) + flows * one).max(self.model.bytes())
    }

    /// Fails if the head was made for another model.
    pub(crate) fn check(&self, about: &About) -> Result<(), Fault> {
        if about.hidden == 0 || about.hidden == self.model.hidden {
            return Ok(());
        }
        Err(Fault::Model {
            expected: about.hidden,
            found: self.model.hidden,
        })
    }
}

/// How many bytes of verdicts a head says that it wrote, by what `tllm_head_judge` returned: as many as it has room for at most.
#[cfg(any(feature = "wasm", feature = "native"))]
pub(crate) fn judged_bytes(status: i32, room: usize) -> Result<usize, Fault> {
    let Ok(length) = usize::try_from(status) else {
        return Err(Fault::Refused {
            export: "tllm_head_judge",
            status,
        });
    };
    if length > room {
        let expected = format!("at most {room} bytes");
        return Err(abi::AbiError::broken("verdicts", "bytes", expected, length).into());
    }
    Ok(length)
}

/// Starts a head with room for so many flows, or for half as many, and so on: a head has the room that its author gave it.
#[cfg(any(feature = "native", feature = "wasm"))]
pub(crate) fn start_with_room<T>(
    conditions: &Conditions,
    flows: usize,
    start: impl Fn(Conditions) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut flows = flows.clamp(1, limits::FLOWS_MAX);
    loop {
        let conditions = Conditions {
            flows_max: flows,
            ..conditions.clone()
        };
        match start(conditions) {
            Err(Fault::NoRoom { .. }) if flows > 1 => flows /= 2,
            result => return result,
        }
    }
}
