//! Which device runs the model, and what came of it.

use std::fmt;
#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use trafficllm_kernels::cuda::Device;

use crate::limits::CUDA_ORDINAL_MAX;

/// What an engine runs its model on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// The first CUDA device, or the processor where none can be used: [`crate::Engine::device_status`] then says why.
    Auto,
    /// The CUDA device with this number; where it cannot be used, the engine does not start.
    Cuda(usize),
}

impl DeviceChoice {
    /// What [`Self::parse`] takes, in words.
    pub const EXPECTED: &'static str = "cpu, auto, cuda or cuda:N with N from 0 to 63";

    /// Reads `cpu`, `auto`, `cuda:N`, or `cuda` for `cuda:0`. `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "cpu" => Some(Self::Cpu),
            "auto" => Some(Self::Auto),
            "cuda" => Some(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:")?;
                // `parse` would take a sign.
                let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
                let ordinal = is_number.then(|| number.parse().ok()).flatten()?;
                (ordinal <= CUDA_ORDINAL_MAX).then_some(Self::Cuda(ordinal))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => out.write_str("cpu"),
            Self::Auto => out.write_str("auto"),
            Self::Cuda(ordinal) => write!(out, "cuda:{ordinal}"),
        }
    }
}

/// What a device multiplies its weights with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceActivations {
    /// As the processor does: rounded to 8 bits, so that both give the same labels.
    #[default]
    Int8,
    /// Not rounded: nearer to the network before it was quantised, and slower.
    Bf16,
}

impl DeviceActivations {
    /// What [`Self::parse`] takes, in words.
    pub const EXPECTED: &'static str = "int8 or bf16";

    /// Reads `int8` or `bf16`. `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "int8" => Some(Self::Int8),
            "bf16" => Some(Self::Bf16),
            _ => None,
        }
    }
}

/// The device of an engine.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Which one.
    pub choice: DeviceChoice,
    /// Most bytes of the device's memory that the engine's models and buffers may take together; 0 means as much as there is.
    pub memory_bytes_max: u64,
    /// What its weights are multiplied with.
    pub activations: DeviceActivations,
    /// A device that was opened already, to be used instead of one of the driver's where one is chosen.
    #[cfg(feature = "cuda")]
    pub given: Option<Arc<dyn Device>>,
}

/// What became of the device that was chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceState {
    /// None was chosen.
    #[default]
    Cpu,
    /// It is opened when the engine is started.
    Waiting,
    /// It runs the current model.
    Active,
    /// It cannot be used for the current model: the processor runs it.
    Unavailable,
    /// It failed while it ran, and is not used any more: the processor goes on.
    Lost,
}

impl DeviceState {
    /// `cpu`, `waiting`, `active`, `unavailable` or `lost`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Waiting => "waiting",
            Self::Active => "active",
            Self::Unavailable => "unavailable",
            Self::Lost => "lost",
        }
    }
}

/// Which device an engine uses, or why it uses none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// What became of the choice.
    pub state: DeviceState,
    /// The device's number and name, as `cuda:0 NVIDIA H200`; empty where none was opened.
    pub name: String,
    /// Why the processor runs the model although a device was chosen; empty otherwise.
    pub reason: String,
}

impl fmt::Display for DeviceStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            DeviceState::Cpu => out.write_str("cpu"),
            DeviceState::Waiting => out.write_str("cpu (the engine is not started)"),
            DeviceState::Active => out.write_str(&self.name),
            DeviceState::Unavailable => write!(out, "cpu ({})", self.reason),
            DeviceState::Lost => write!(out, "cpu, {} was lost ({})", self.name, self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_and_written_alike() {
        for (text, choice) in [
            ("cpu", DeviceChoice::Cpu),
            ("auto", DeviceChoice::Auto),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:63", DeviceChoice::Cuda(CUDA_ORDINAL_MAX)),
        ] {
            assert_eq!(DeviceChoice::parse(text), Some(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!(DeviceChoice::parse("cuda"), Some(DeviceChoice::Cuda(0)));
    }

    #[test]
    fn what_is_no_choice_is_refused() {
        for text in [
            "",
            "CPU",
            "gpu",
            "cuda:",
            "cuda:64",
            "cuda:+1",
            "cuda:-1",
            "cuda: 1",
            "cuda:x",
            "cuda:99999999999999999999999",
            "auto:0",
        ] {
            assert_eq!(DeviceChoice::parse(text), None, "{text}");
        }
        assert!(DeviceChoice::EXPECTED.ends_with(&CUDA_ORDINAL_MAX.to_string()));
    }

    #[test]
    fn activations_are_named() {
        let parse = DeviceActivations::parse;
        assert_eq!(parse("int8"), Some(DeviceActivations::Int8));
        assert_eq!(parse("bf16"), Some(DeviceActivations::Bf16));
        assert_eq!(parse("f32"), None);
    }

    #[test]
    fn a_status_says_what_judges_and_why() {
        let status = |state, name: &str, reason: &str| {
            let (name, reason) = (name.to_owned(), reason.to_owned());
            DeviceStatus {
                state,
                name,
                reason,
            }
            .to_string()
        };
        assert_eq!(status(DeviceState::Cpu, "", ""), "cpu");
        assert_eq!(status(DeviceState::Active, "cuda:0 A", ""), "cuda:0 A");
        assert_eq!(
            status(DeviceState::Unavailable, "", "no driver"),
            "cpu (no driver)"
        );
        assert_eq!(
            status(DeviceState::Lost, "cuda:0 A", "it fell off"),
            "cpu, cuda:0 A was lost (it fell off)"
        );
    }
}
