//! The blocks of `include/trafficllm_head.h`: what a head says of itself, and what goes in and comes out.
//!
//! Decoders take any bytes: no offset or count is used before it was held against the block, and none reaches an allocation.

mod about;
mod bytes;
mod flows;
mod model;
mod verdicts;

#[cfg(any(feature = "native", feature = "wasm"))]
pub(crate) use about::version_error;
pub use about::{About, Needs};
pub use flows::{
    DecodedFlow, DecodedTask, FlowInput, PacketInput, TaskInput, decode_flows, encode_flows,
    flow_block_bytes, flow_bytes,
};
pub use model::{ModelContext, TaskContext};
pub use verdicts::{
    Answer, Answers, AnswersIter, Verdict, decode_verdicts, encode_verdicts, verdicts_bytes_max,
};

use thiserror::Error;

/// The version of this host: major in the high half, minor in the low one.
pub const ABI: u32 = 0x0001_0000;

/// The module and the name of the one function that a WebAssembly head may import.
pub const IMPORT: (&str, &str) = ("trafficllm", "tllm_head_log");

/// A block that breaks a rule of the ABI.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AbiError {
    /// A score that is not a number: counted apart, because it is what broken arithmetic gives.
    #[error("{block} block, {field}: not a number")]
    NotANumber {
        /// The block.
        block: &'static str,
        /// The field.
        field: &'static str,
    },
    /// Anything else.
    #[error("{block} block, {field}: expected {expected}, found {found}")]
    Broken {
        /// The block.
        block: &'static str,
        /// The field.
        field: &'static str,
        /// What would have been right.
        expected: String,
        /// What was there.
        found: String,
    },
}

impl AbiError {
    pub(crate) fn broken(
        block: &'static str,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Broken {
            block,
            field,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Whether a head made for `found` runs under this host: the same major version, and no minor version above this one.
#[must_use]
pub fn is_compatible(found: u32) -> bool {
    found >> 16 == ABI >> 16 && (0..=ABI & 0xffff).contains(&(found & 0xffff))
}
