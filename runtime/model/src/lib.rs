//! Model bundles, weights, the quantised transformer, adapters and label decoding.
//!
//! A [`Bundle`] is verified bytes; a [`Model`] is a bundle made ready to answer. This crate sees
//! token ids, never packets; it starts no thread and prints nothing. Every byte of a bundle is
//! hostile until checked: counts, lengths and shapes are held against the file and against
//! [`limits`] before they reach an allocation.
//!
//! Where to start: [`Model::load`] and [`Model::classify`]; the format of a bundle is in
//! [`Manifest`] and [`Bundle`].

#![forbid(unsafe_code)]

mod adapter;
mod bundle;
mod bytes;
pub mod calibration;
mod error;
pub mod gguf;
mod labels;
pub mod limits;
mod memory;
mod model;
pub mod transformer;

pub use adapter::{Adapter, AdapterShape};
pub use bundle::{
    AdapterVersion, Bundle, FileEntry, FileReference, HeadManifest, INSTRUCTION,
    InstructionManifest, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest, NO_INTENTION, SelfTest,
    TaskKind, TaskManifest,
};
pub use error::ModelError;
pub use labels::{Child, LabelTrie, Step};
#[cfg(feature = "cuda")]
pub use model::{DeviceModel, Lane};
pub use model::{
    Insight, Item, Model, SELF_TEST_TOLERANCE, Scratch, Task, TaskLogits, TaskVerdict, emptied,
};
pub use trafficllm_kernels::Level;
#[cfg(feature = "cuda")]
pub use trafficllm_kernels::cuda::{Device, DeviceError, DeviceFacts};
pub use transformer::TransformerConfig;
#[cfg(feature = "cuda")]
pub use transformer::{Activations, DeviceOptions};
