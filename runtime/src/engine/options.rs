//! Settings of an engine and what it holds.

use trafficllm_traffic::FlowConfig;

use crate::device::DeviceOptions;
use crate::error::Error;
use crate::heads::HeadOptions;
use crate::limits::{
    BATCH_TOKENS_MAX, BATCH_TOKENS_MIN, BATCH_WAIT_US_MAX, DEADLINE_US_MAX, HEAD_BATCH_US_MAX,
    HEAD_FUEL_MAX, HEAD_MEMORY_BYTES_MAX, QUEUE_FLOWS_MAX, WORKERS_MAX,
};

/// Settings of an [`crate::Engine`].
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Worker threads; with 0 the caller's thread does the work.
    pub workers: usize,
    /// The tasks to ask, by name; none means all. A model that is to replace the first one must have them too.
    pub tasks: Vec<String>,
    /// Tokens after which a batch is cut; 0 means the default, which is larger where a device runs the model. Verdicts do not depend on it.
    pub batch_tokens: usize,
    /// Settings of the flow table; `None` means those of [`crate::Model::flow_config`].
    pub flows: Option<FlowConfig>,
    /// Most flows of all submitters that wait in the queue, and that one [`crate::Submitter`] has under way; 0 means the default. A
    /// detection has a bound of its own.
    pub queue_flows: usize,
    /// How long a worker waits for more flows to run together while its batch is not full, in microseconds from the submission of
    /// the batch's first flow on, but at most half of the deadline. With 0 it runs what is there.
    pub batch_wait_us: u64,
    /// A submitted flow whose turn comes later than this after its submission is answered without being run, in microseconds;
    /// 0 means never. A [`crate::Detection`] has no deadline.
    pub deadline_us: u64,
    /// Most bytes that the models, WebAssembly heads, the buffers of workers and classifiers, the slots of submitters and the flows of a host
    /// ([`crate::Engine::charge_flow_bytes`]) may take together; what would exceed it is refused when it is made. 0 means no
    /// limit.
    pub memory_bytes_max: usize,
    /// What runs the model.
    pub device: DeviceOptions,
    /// Heads of one's own.
    pub heads: HeadOptions,
}

impl EngineOptions {
    /// Whether every setting is within its range; 0 stands for a default.
    pub(super) fn check(&self) -> Result<(), Error> {
        let size = |us: u64| usize::try_from(us).unwrap_or(usize::MAX);
        check("workers", self.workers, 0, WORKERS_MAX)?;
        if self.batch_tokens > 0 {
            let (minimum, maximum) = (BATCH_TOKENS_MIN, BATCH_TOKENS_MAX);
            check("batch_tokens", self.batch_tokens, minimum, maximum)?;
        }
        if self.queue_flows > 0 {
            check("queue_flows", self.queue_flows, 1, QUEUE_FLOWS_MAX)?;
        }
        let maximum = size(BATCH_WAIT_US_MAX);
        check("batch_wait_us", size(self.batch_wait_us), 0, maximum)?;
        let maximum = size(DEADLINE_US_MAX);
        check("deadline_us", size(self.deadline_us), 0, maximum)?;
        self.heads.check()
    }
}

impl HeadOptions {
    /// Whether every setting is within its range.
    pub(super) fn check(&self) -> Result<(), Error> {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (fuel, memory) = (size(HEAD_FUEL_MAX), size(HEAD_MEMORY_BYTES_MAX));
        check("heads.fuel_per_flow", size(self.fuel_per_flow), 1, fuel)?;
        check("heads.memory_bytes_max", self.memory_bytes_max, 1, memory)?;
        let maximum = size(HEAD_BATCH_US_MAX);
        check("heads.batch_us_max", size(self.batch_us_max), 0, maximum)
    }
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

/// What an engine holds in memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineMemory {
    /// Weights and adapters of the current model, shared by all engines of the model.
    pub model_bytes: usize,
    /// The same of models that were replaced and still have flows to finish.
    pub retired_bytes: usize,
    /// Buffers that were taken for the workers when a model came that needs larger ones, until each worker has its own.
    pub spare_bytes: usize,
    /// The buffers of each worker, or of the caller's thread where there is none.
    pub worker_bytes: Vec<usize>,
    /// The buffers of all classifiers, and the heads of detections.
    pub classifier_bytes: usize,
    /// The queue, the slots and the other buffers of all submitters; of a fixed size from the start of each, unless a model comes that needs more.
    pub queue_bytes: usize,
    /// Of WebAssembly heads: their code, and all that their memory can grow to, on the workers and of those that keep what they know. That
    /// of classifiers and detections is among theirs; what native heads take is not known.
    pub head_bytes: usize,
    /// What a host has charged for the flows that it feeds, by [`crate::Engine::charge_flow_bytes`].
    pub flow_bytes: usize,
    /// Memory of the device: models and buffers. It is no part of the others, and [`crate::DeviceOptions::memory_bytes_max`] limits it.
    pub device_bytes: u64,
}

impl EngineMemory {
    /// Each part of the host's memory with its name, as monitoring shows it; together they are all of it.
    pub(crate) fn parts(&self) -> [(&'static str, usize); 8] {
        [
            ("model", self.model_bytes),
            ("retired", self.retired_bytes),
            ("spare", self.spare_bytes),
            ("workers", self.worker_bytes.iter().sum()),
            ("classifiers", self.classifier_bytes),
            ("queue", self.queue_bytes),
            ("heads", self.head_bytes),
            ("flows", self.flow_bytes),
        ]
    }

    /// All of the host's memory.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}
