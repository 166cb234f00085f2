//! What an exported function failed with: a status and a text that says where, what was expected and what was found.

use trafficllm::{Error, ModelError, SubmitError};

use crate::handle::{HandleError, InsertError};
use crate::status::*;

/// An error on its way to the border.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) status: i32,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(status: i32, text: String) -> Self {
        Self { status, text }
    }

    pub(crate) fn null(name: &str) -> Self {
        Self::new(
            TLLM_ERR_NULL,
            format!("{name}: expected a pointer, found NULL"),
        )
    }

    pub(crate) fn argument(text: String) -> Self {
        Self::new(TLLM_ERR_ARGUMENT, text)
    }

    pub(crate) fn text(text: String) -> Self {
        Self::new(TLLM_ERR_TEXT, text)
    }

    pub(crate) fn structure(text: String) -> Self {
        Self::new(TLLM_ERR_STRUCT, text)
    }

    /// What is wrong with the handle of a `kind`.
    pub(crate) fn handle(kind: &str, error: HandleError) -> Self {
        match error {
            HandleError::Null => Self::null(kind),
            HandleError::OtherKind => Self::new(
                TLLM_ERR_HANDLE,
                format!("{kind}: the pointer is no handle of this kind"),
            ),
            HandleError::Stale => {
                Self::new(TLLM_ERR_HANDLE, format!("{kind}: the handle was freed"))
            }
            HandleError::Poisoned => Self::new(
                TLLM_ERR_PANIC,
                format!("{kind}: a call on it met a defect: it can only be freed"),
            ),
            HandleError::Busy => Self::new(
                TLLM_ERR_BUSY,
                format!("{kind}: another thread, or a callback's caller, is using it"),
            ),
        }
    }

    /// Why there is no handle for another `kind`.
    pub(crate) fn insert(kind: &str, error: InsertError) -> Self {
        match error {
            InsertError::Full { limit } => Self::new(
                TLLM_ERR_LIMIT,
                format!("{kind}: expected at most {limit} at a time"),
            ),
            InsertError::Memory { bytes } => Self::memory(kind, bytes),
        }
    }

    pub(crate) fn memory(what: &str, bytes: usize) -> Self {
        Self::new(
            TLLM_ERR_MEMORY,
            format!("{what}: the system did not give {bytes} bytes"),
        )
    }
}

/// What a host learns of a thing that it freed.
pub(crate) fn freed<T>(removed: Result<Option<T>, HandleError>, kind: &str) -> Result<i32, Fault> {
    match removed {
        Ok(Some(thing)) => {
            drop(thing);
            Ok(TLLM_OK)
        }
        Ok(None) => Ok(TLLM_RUNNING),
        Err(error) => Err(Fault::handle(kind, error)),
    }
}

impl From<SubmitError> for Fault {
    fn from(error: SubmitError) -> Self {
        let status = match &error {
            SubmitError::Closed => TLLM_ERR_STOPPED,
            SubmitError::NotARequest(_) => TLLM_ERR_REQUEST,
            SubmitError::NoMemory => TLLM_ERR_MEMORY,
            // A full queue is a state; whoever makes an error of it may as well say so.
            _ => TLLM_ERR_LIMIT,
        };
        Self::new(status, error.to_string())
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::UnknownTask { .. } | Error::UnknownHead { .. } => TLLM_ERR_TASK,
            Error::Level(_) => TLLM_ERR_PLATFORM,
            Error::Setting {
                setting: "submitters",
                ..
            } => TLLM_ERR_LIMIT,
            Error::Setting { .. } | Error::FlowConfig(_) | Error::Head(_) => TLLM_ERR_VALUE,
            Error::Spawn { .. } => TLLM_ERR_THREAD,
            Error::Worker { .. } => TLLM_ERR_WORKER,
            Error::Stopped => TLLM_ERR_STOPPED,
            Error::MemoryBudget { .. } => TLLM_ERR_BUDGET,
            Error::Memory { .. } | Error::Model(ModelError::Memory { .. }) => TLLM_ERR_MEMORY,
            Error::Model(ModelError::Io { .. }) => TLLM_ERR_IO,
            Error::Device { .. } => TLLM_ERR_DEVICE,
            Error::NoDevices { .. } => TLLM_ERR_UNSUPPORTED,
            Error::NotStarted => TLLM_ERR_NOT_STARTED,
            Error::OwnWork => TLLM_ERR_BUSY,
            _ => TLLM_ERR_MODEL,
        };
        Self::new(status, error.to_string())
    }
}
