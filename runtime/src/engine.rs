//! Runs a model over flows: on the caller's thread, or on workers that are gone when the engine is.

mod batch;
mod detection;
mod pool;
mod requests;

use std::ops::ControlFlow;
use std::sync::Arc;

use trafficllm_model::TaskKind;
use trafficllm_traffic::{CaptureError, FlowConfig, FlowCounters, SkipCounters};

use crate::error::Error;
use crate::limits::{BATCH_TOKENS_DEFAULT, BATCH_TOKENS_MAX, BATCH_TOKENS_MIN, WORKERS_MAX};
use crate::model::Model;
use crate::outcome::Outcome;
use batch::{Classifier, Selection};
use pool::Pool;

pub use detection::Detection;
pub use requests::LineError;

/// Settings of an [`Engine`].
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Worker threads; with 0 the caller's thread does the work.
    pub workers: usize,
    /// The tasks to ask, by name; none means all.
    pub tasks: Vec<String>,
    /// Tokens after which a batch is cut; 0 means the default. Verdicts do not depend on it.
    pub batch_tokens: usize,
    /// Settings of the flow table; `None` means those of [`Model::flow_config`].
    pub flows: Option<FlowConfig>,
}

/// Where outcomes go.
pub trait Sink {
    /// Takes one outcome. They come in the order in which the flows ended and the lines stood, whatever the number of workers.
    ///
    /// `Break` stops the detection: what is read after it is not judged.
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()>;

    /// Is told now and then how far reading has come.
    fn progress(&mut self, _progress: &Progress) {}

    /// Takes a line of a requests file that could not be used.
    fn bad_line(&mut self, _source: usize, _error: &LineError) {}
}

/// How far a detection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the current source so far, before decompression.
    pub source_bytes: u64,
    /// Flows and requests of all sources that have their outcome.
    pub outcomes: u64,
}

/// What was read of one capture.
#[derive(Debug, Default)]
pub struct CaptureReport {
    /// Packets read.
    pub packets: u64,
    /// Their captured bytes.
    pub packet_bytes: u64,
    /// Blocks of a pcapng file that hold no packet.
    pub blocks_skipped: u64,
    /// Packets that became no part of a flow, by reason.
    pub skipped: SkipCounters,
    /// What the flow table saw and lost.
    pub flows: FlowCounters,
    /// Why the capture could not be read to its end.
    pub failure: Option<CaptureError>,
}

/// What was read of one requests file.
#[derive(Debug, Default)]
pub struct RequestsReport {
    /// Lines read, without those that are blank.
    pub lines: u64,
    /// Lines that could not be used.
    pub bad_lines: u64,
    /// Why the file could not be read to its end.
    pub failure: Option<std::io::Error>,
}

enum Runner {
    /// The caller's thread.
    Inline(Box<Classifier>),
    Workers(Pool),
}

/// Runs a [`Model`]. Starting one starts its workers, dropping it ends them.
pub struct Engine {
    model: Arc<Model>,
    selection: Arc<Selection>,
    flows: FlowConfig,
    batch_tokens: usize,
    runner: Runner,
}

impl Engine {
    /// Checks the options and starts the workers.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], a setting out of its range, a thread that the system does not give.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self, Error> {
        check("workers", options.workers, 0, WORKERS_MAX)?;
        let batch_tokens = if options.batch_tokens == 0 {
            BATCH_TOKENS_DEFAULT
        } else {
            options.batch_tokens
        };
        check(
            "batch_tokens",
            batch_tokens,
            BATCH_TOKENS_MIN,
            BATCH_TOKENS_MAX,
        )?;
        let flows = options.flows.unwrap_or_else(|| model.flow_config());
        flows.validate()?;
        let selection = Arc::new(select(&model, &options.tasks)?);
        let classifier = || Classifier::new(Arc::clone(&model), Arc::clone(&selection));
        let runner = if options.workers == 0 {
            Runner::Inline(Box::new(classifier()))
        } else {
            Runner::Workers(Pool::start(options.workers, classifier)?)
        };
        Ok(Self {
            model,
            selection,
            flows,
            batch_tokens,
            runner,
        })
    }

    /// Begins a detection, whose outcomes go to `sink`.
    pub fn detect<S: Sink>(&mut self, sink: S) -> Detection<'_, S> {
        Detection::new(self, sink)
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

/// The chosen tasks as indices, in the model's order: a task that is named twice is asked once.
fn select(model: &Model, names: &[String]) -> Result<Selection, Error> {
    let known: Vec<&str> = model.task_names().collect();
    if let Some(found) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::UnknownTask {
            found: found.clone(),
            known: known.into_iter().map(str::to_owned).collect(),
        });
    }
    let mut selection = Selection::default();
    for (index, task) in model.core().tasks().iter().enumerate() {
        if names.is_empty() || names.iter().any(|name| name == task.name()) {
            match task.kind() {
                TaskKind::Flow => selection.flow.push(index),
                TaskKind::Request => selection.request.push(index),
            }
        }
    }
    Ok(selection)
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
