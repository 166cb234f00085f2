//! A label, a calibrated score or an honest "don't know" for every network flow, from one model bundle.
//!
//! [`Model`] is an opened and verified bundle; it starts no thread and is shared by all. [`Engine`] runs it, on the caller's
//! thread or on workers of its own that are gone when it is dropped. A [`Detection`] takes captures and request files and gives
//! every flow's [`Outcome`] to a [`Sink`], in an order that depends on the input alone. A [`Submitter`] takes single flows of a
//! host that must not wait, sheds them when the queue is full, and gives back each [`Answer`] with the caller's number.
//!
//! ```no_run
//! use std::{fs::File, ops::ControlFlow, path::Path, sync::Arc};
//! use trafficllm::{Engine, EngineOptions, Model, Outcome, Sink};
//!
//! struct Print;
//! impl Sink for Print {
//!     fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
//!         for verdict in outcome.verdicts {
//!             println!("{:?}: {} {}", outcome.subject, verdict.task, verdict.label);
//!         }
//!         ControlFlow::Continue(())
//!     }
//! }
//!
//! let model = Arc::new(Model::open(Path::new("model.tllm"))?);
//! let engine = Engine::new(model, EngineOptions::default())?;
//! engine.start()?;
//! let mut detection = engine.detect(Print);
//! let report = detection.capture(File::open("traffic.pcap")?)?;
//! let (tally, _sink) = detection.finish()?;
//! assert_eq!(report.flows.flows, tally.flows);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This crate logs through `tracing` and never prints.

#![forbid(unsafe_code)]

mod device;
mod engine;
mod error;
mod heads;
mod instruction;
pub mod json;
pub mod limits;
mod metrics;
mod model;
mod outcome;
#[cfg(feature = "report")]
pub mod report;
mod settings;

pub use device::{DeviceActivations, DeviceChoice, DeviceOptions, DeviceState, DeviceStatus};
#[cfg(feature = "heads-run")]
pub use engine::heads::{HeadReport, check_head};
pub use engine::{
    Answer, CaptureReport, Classifier, Detection, Engine, EngineCounters, EngineMemory,
    EngineOptions, Judgement, Latency, LineError, Progress, RequestsReport, Sink, Stopped,
    SubmitError, Submitter, WORKER_NAME,
};
pub use error::Error;
pub use heads::{HeadFile, HeadOptions, HeadStatus};
pub use instruction::Intention;
pub use json::{OutcomeJson, VerdictsJson};
pub use model::Model;
pub use outcome::{FlowInfo, Outcome, Subject, Tally, TaskTally, Verdict};
pub use settings::{SettingError, SettingInfo, SettingKind, Settings};
pub use trafficllm_kernels::Level;
pub use trafficllm_model::limits::TASKS_MAX;
pub use trafficllm_model::{Bundle, Manifest, ModelError, TaskKind};
pub use trafficllm_traffic::{
    CaptureError, Direction, Endpoints, Flow, FlowConfig, FlowConfigError, FlowCounters,
    FlowRecorder, HostPacket, RecorderCounters, RecorderError, Skip, SkipCounters, TcpFlags,
};
