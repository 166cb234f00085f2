//! Task heads of one's own: a head takes what the model knows about a flow and returns a verdict.
//!
//! A [`Head`] is built in, a WebAssembly module (the feature `wasm`: [`Sandbox`]) or a native library (the feature `native`:
//! [`NativeHead`]). All get the same blocks, which `include/trafficllm_head.h` lays down and [`abi`] reads and writes. Whatever a head
//! does, a [`Station`] has an [`Answer`] for every flow: a head that traps, uses up its fuel or returns rubbish is said to have abstained,
//! with the [`Reason`], and after some faults in a row its [`Guard`] switches it off.
//!
//! ```
//! use std::sync::Arc;
//! use trafficllm_heads::{
//!     About, Answer, Answers, Conditions, Fault, FlowInput, Guard, GuardOptions, Head, HeadInstance, Needs, Station, Verdict,
//! };
//!
//! /// Calls a flow long or short.
//! #[derive(Debug)]
//! struct Length(About);
//! struct LengthInstance;
//!
//! impl Head for Length {
//!     fn about(&self) -> &About {
//!         &self.0
//!     }
//!     fn start(&self, _conditions: &Conditions) -> Result<Box<dyn HeadInstance>, Fault> {
//!         Ok(Box::new(LengthInstance))
//!     }
//! }
//! impl HeadInstance for LengthInstance {
//!     fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault> {
//!         for flow in flows {
//!             let label = u16::from(flow.packets_total > 100);
//!             answers.push(&Verdict { label, score: 1.0, ..Verdict::default() });
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let labels = vec!["short".to_owned(), "long".to_owned()];
//! let (name, version) = ("length".to_owned(), "1".to_owned());
//! let about = About { abi: trafficllm_heads::abi::ABI, needs: Needs::default(), hidden: 0, name, version, labels };
//! let guard = Arc::new(Guard::new(Arc::new(Length(about)), GuardOptions::default()));
//! let mut station = Station::new(guard, Arc::new(Conditions::default()));
//! let mut answers = Answers::default();
//! station.judge(&[FlowInput { packets_total: 7, ..FlowInput::default() }], &mut answers);
//! assert!(matches!(answers.get(0), Some(Answer::Verdict(Verdict { label: 0, .. }))));
//! ```
//!
//! This crate starts no thread, logs through `tracing` and never prints. Unsafe code stands in the native half, at the border to the
//! library that was loaded, and where a precompiled module is taken.

#![cfg_attr(not(any(feature = "native", feature = "wasm")), forbid(unsafe_code))]

pub mod abi;
mod error;
mod guard;
mod head;
pub mod limits;
mod linear;
#[cfg(any(feature = "native", feature = "wasm"))]
mod log;
#[cfg(feature = "native")]
mod native;
mod pair;
#[cfg(feature = "wasm")]
mod wasm;

pub use abi::{
    AbiError, About, Answer, Answers, FlowInput, ModelContext, Needs, PacketInput, TaskContext,
    TaskInput, Verdict,
};
pub use error::{Fault, HeadError};
pub use guard::{Guard, GuardCounters, GuardOptions, Reason, Station};
pub use head::{Conditions, Head, HeadInstance};
pub use linear::{LINEAR_LABELS_MAX, Linear};
#[cfg(feature = "native")]
pub use native::NativeHead;
pub use pair::pair_number;
#[cfg(feature = "wasm")]
pub use wasm::{Execution, Isolation, Sandbox, SandboxOptions, WasmHead, sha256};
