//! What can go wrong with a device.

use crate::KernelError;

/// What a device needs and this system does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Missing {
    /// The driver's library.
    Driver,
    /// A driver that is new enough.
    DriverVersion,
    /// The library that compiles kernels.
    Compiler,
    /// One that is new enough.
    CompilerVersion,
    /// A device, or one of that number.
    Device,
    /// A device of capability 8.0 or more.
    Capability,
    /// The driver's leave to use it.
    Context,
}

/// Errors of devices.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is no device to be used.
    #[error("no CUDA device: {reason}")]
    Unavailable {
        /// What is missing.
        missing: Missing,
        /// Why.
        reason: String,
    },
    /// What is asked for is more than is left of the device's memory, or of what may be used of it.
    #[error("{bytes} bytes of device memory for {what}: {left} are left")]
    Memory {
        /// What it is for.
        what: &'static str,
        /// What was asked for.
        bytes: u64,
        /// What could be had.
        left: u64,
    },
    /// A kernel could not be compiled or loaded.
    #[error("kernel {kernel} for {target}: {log}")]
    Compile {
        /// Its name and defines.
        kernel: String,
        /// What it was compiled for.
        target: String,
        /// What the compiler says.
        log: String,
    },
    /// The device failed for good: nothing that it holds can be used any more.
    #[error("the device is lost: {call}: {reason} ({code})")]
    Lost {
        /// The call that said so.
        call: &'static str,
        /// The driver's number for it.
        code: i32,
        /// What the driver says.
        reason: String,
    },
    /// A call of the driver failed; the device goes on.
    #[error("{call}: {reason} ({code})")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's number for it.
        code: i32,
        /// What the driver says.
        reason: String,
    },
    /// The process that opened the device has forked, and this is the child: the driver cannot be used here.
    #[error("the device was opened before this process forked")]
    Forked,
    /// Something does not have the size that goes with the rest.
    #[error("{what}: expected {expected}, found {found}")]
    Size {
        /// What was measured.
        what: &'static str,
        /// What goes with the rest: where buffers may be larger, the least.
        expected: usize,
        /// Size that was given.
        found: usize,
    },
    /// A model's size that the kernels cannot work with.
    #[error("{what}: expected {limit}, found {found}")]
    Unsupported {
        /// What was measured.
        what: &'static str,
        /// What the kernels can work with.
        limit: &'static str,
        /// Size that was given.
        found: usize,
    },
    /// A number of the batch points past what it is an index of.
    #[error("{what} {at}: expected less than {limit}, found {found}")]
    Index {
        /// What the number is.
        what: &'static str,
        /// Which of them.
        at: usize,
        /// What it has to stay below.
        limit: usize,
        /// The number.
        found: usize,
    },
    /// A call that cannot be made now.
    #[error("{what}")]
    Order {
        /// What was done too early or too late.
        what: &'static str,
    },
    /// Weights that cannot be packed.
    #[error(transparent)]
    Weights(#[from] KernelError),
}

impl DeviceError {
    /// Whether the device is of no use any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Forked)
    }

    /// The same, with a better name for what memory was for.
    pub(crate) fn named(self, name: &'static str) -> Self {
        match self {
            Self::Memory { bytes, left, .. } => Self::Memory {
                what: name,
                bytes,
                left,
            },
            other => other,
        }
    }
}
