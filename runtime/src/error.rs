//! What can go wrong in the facade: each error says where, what was expected and what was found.

use trafficllm_kernels::KernelError;
use trafficllm_model::ModelError;
use trafficllm_traffic::token::TokenError;
use trafficllm_traffic::{FlowConfigError, MemoryError, RecorderError};

use crate::settings::SettingError;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bundle or the model in it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The bundle's tokenizer or profile.
    #[error("{file}: {source}")]
    Token {
        /// The file of the bundle.
        file: String,
        /// What is wrong with it.
        source: TokenError,
    },
    /// The bundle's profile is not JSON of the expected shape.
    #[error("bundle.json: profile: expected the fields of profile clean/1, found: {message}")]
    ProfileShape {
        /// What the JSON reader says.
        message: String,
    },
    /// Two parts of a bundle do not fit together.
    #[error("bundle.json: {what}: expected at most {limit}, as the base has, found {found}")]
    DoesNotFit {
        /// Which number.
        what: &'static str,
        /// What the base allows.
        limit: usize,
        /// What the other part asks for.
        found: usize,
    },
    /// A CPU level that does not exist or that this processor lacks.
    #[error(transparent)]
    Level(#[from] KernelError),
    /// A task that the model does not have.
    #[error("unknown task {found:?}: the model has {}", known.join(", "))]
    UnknownTask {
        /// The name that was asked for.
        found: String,
        /// The names of the model's tasks.
        known: Vec<String>,
    },
    /// A head that cannot be used: its file, and what is wrong with it.
    #[error("head {0}")]
    Head(String),
    /// A head that the engine does not have.
    #[error("unknown head {found:?}: the engine has {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    UnknownHead {
        /// The name that was asked for.
        found: String,
        /// The names of the heads.
        known: Vec<String>,
    },
    /// The bundle cannot tell what a text asks for.
    #[error("bundle.json: instruction: expected an adapter that reads instructions, found none")]
    NoInstruction,
    /// The text of a setting, or its key.
    #[error(transparent)]
    Settings(#[from] SettingError),
    /// A setting of the flow table.
    #[error(transparent)]
    FlowConfig(#[from] FlowConfigError),
    /// A setting of the engine.
    #[error("{setting}: expected {minimum} to {maximum}, found {found}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Smallest allowed value.
        minimum: usize,
        /// Largest allowed value.
        maximum: usize,
        /// The value given.
        found: usize,
    },
    /// A worker thread could not be started.
    #[error("worker {worker} could not be started: {source}")]
    Spawn {
        /// Number of the worker, from 0.
        worker: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The device that was chosen cannot be used: which, and why.
    #[error("device {device}: {reason}")]
    Device {
        /// As it was chosen.
        device: String,
        /// What is missing or went wrong.
        reason: String,
    },
    /// A device was chosen, and this build has only the processor.
    #[error(
        "device {device}: this build runs models on the processor only (it was built without the feature cuda)"
    )]
    NoDevices {
        /// As it was chosen.
        device: String,
    },
    /// A flow was lost to a defect in the model or in a worker; the detection is over.
    #[error("a worker failed: {message}")]
    Worker {
        /// What it said.
        message: String,
    },
    /// The engine has workers, and they were not started: nobody would judge anything.
    #[error("the engine is not started")]
    NotStarted,
    /// The engine was stopped: it judges nothing any more.
    #[error("the engine was stopped")]
    Stopped,
    /// This thread is just judging for the engine: a detection that is called from within would wait for itself.
    #[error("this thread is judging for the engine already: it cannot wait for its own work")]
    OwnWork,
    /// What was asked for would exceed [`crate::EngineOptions::memory_bytes_max`].
    #[error(
        "{what}: expected at most {budget_bytes} bytes in all, as memory_bytes_max says, found {needed_bytes}"
    )]
    MemoryBudget {
        /// What was asked for.
        what: &'static str,
        /// The budget in bytes.
        budget_bytes: usize,
        /// What the engine would then hold in bytes.
        needed_bytes: usize,
    },
    /// The system has no memory for a part of the engine, or for a flow that a host feeds.
    #[error("{what}: no memory for {bytes} bytes")]
    Memory {
        /// What it was for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
}

impl From<RecorderError> for Error {
    fn from(error: RecorderError) -> Self {
        match error {
            RecorderError::Config(error) => Self::FlowConfig(error),
            RecorderError::Memory(MemoryError { what, bytes }) => Self::Memory { what, bytes },
        }
    }
}
