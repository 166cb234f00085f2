//! What can go wrong in the trainer, and where.

use std::path::PathBuf;

use trafficllm_model::ModelError;
use trafficllm_traffic::token::TokenError;
use trafficllm_traffic::{CaptureError, FlowConfigError};

use crate::network::NetworkError;

/// An error of the trainer: says where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder or file of the data layout is not there.
    #[error("{path}: not found; expected {expected}", path = path.display())]
    DataMissing {
        /// What was looked for.
        path: PathBuf,
        /// What should stand there.
        expected: &'static str,
    },
    /// A split, a label or a capture holds nothing to learn from.
    #[error("{path}: empty; expected {expected}", path = path.display())]
    DataEmpty {
        /// The folder or file.
        path: PathBuf,
        /// What should stand there.
        expected: &'static str,
    },
    /// A capture could not be read to its end.
    #[error("{path}: {source}", path = path.display())]
    Capture {
        /// The capture.
        path: PathBuf,
        /// What the reader said.
        source: CaptureError,
    },
    /// A line of a request file is not what it should be.
    #[error("{path}, line {line}: {reason}; expected an object with the texts label, group and request", path = path.display())]
    RequestLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A split holds a label that no training item has.
    #[error(
        "task {task}, split {split}: label {label} has no training data; expected one of the {known} labels of train"
    )]
    LabelUnknown {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// The label.
        label: String,
        /// How many labels the training split has.
        known: usize,
    },
    /// A leakage group stands in two splits: every number from such data would be wrong.
    #[error(
        "task {task}: group {group} stands in both train and {split}; a group belongs to exactly one split"
    )]
    GroupInTwoSplits {
        /// The task.
        task: String,
        /// The group.
        group: String,
        /// The other split.
        split: String,
    },
    /// A task was named that the data does not hold.
    #[error("task {task}: not in {path}; found {found}", path = path.display())]
    TaskUnknown {
        /// The task.
        task: String,
        /// The data folder.
        path: PathBuf,
        /// The tasks that are there.
        found: String,
    },
    /// Data could not be prepared from what was given.
    #[error(transparent)]
    Preparation(#[from] crate::data::PreparationError),
    /// A baseline could not be fitted or asked.
    #[error("baseline {name}: {message}")]
    Baseline {
        /// The baseline.
        name: &'static str,
        /// What was wrong.
        message: String,
    },
    /// An evaluation was asked for what the bundle or the data cannot give.
    #[error("evaluation: {what}: expected {expected}, found {found}")]
    Evaluation {
        /// What was asked for.
        what: String,
        /// What is needed for it.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A page's plot could not be drawn.
    #[error(transparent)]
    Plot(#[from] trafficllm::report::plot::PlotError),
    /// The tokenizer could not be trained, read or used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The flow table's settings are not valid.
    #[error("flow table: {0}")]
    FlowTable(#[from] FlowConfigError),
    /// The network could not be made, trained, read or written.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The quantised engine or the bundle refused something.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The loss is no number any more.
    #[error("{phase}, step {step}: the loss is {loss}; expected a number. Lower the learning rate")]
    Diverged {
        /// The phase.
        phase: String,
        /// The step, from 0.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// A checkpoint lacks what is needed to go on.
    #[error(
        "checkpoint of {phase}: expected step, optimiser and sizes of this run, found others; delete it to start again"
    )]
    CheckpointIncomplete {
        /// The phase.
        phase: String,
    },
    /// The phase was told to stop early.
    #[error("{phase}: halted before step {step}")]
    Halted {
        /// The phase.
        phase: String,
        /// The step, from 0.
        step: u64,
    },
    /// The network lacks a tensor that the bundle needs.
    #[error("tensor {name}: expected among the network's tensors, found none")]
    TensorMissing {
        /// The tensor.
        name: String,
    },
    /// A task that is to be new is in the bundle, or one that is to be changed is not, or of another kind.
    #[error("{path}: task {task}: expected {expected}, found {found}", path = path.display())]
    BundleTask {
        /// The bundle.
        path: PathBuf,
        /// The task.
        task: String,
        /// What was expected of it.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A new adapter is worse than what it was to take the place of; the bundle is as it was.
    #[error(
        "task {task}: expected more than the macro-F1 of {of} on the held items, {active:.4}, found {candidate:.4}: the new adapter is refused, the bundle is unchanged"
    )]
    AdapterRefused {
        /// The task.
        task: String,
        /// What it was compared with.
        of: String,
        /// The macro-F1 of that.
        active: f64,
        /// The macro-F1 of the new adapter.
        candidate: f64,
    },
    /// A head cannot be fitted as it was asked for.
    #[error("head: {what}: expected {expected}, found {found}")]
    Head {
        /// What was asked for.
        what: String,
        /// What is needed.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Labels of a task have no items to train on.
    #[error(
        "{path}: no training items of {labels}: what an adapter is not shown, it forgets; replay the data of before", path = path.display()
    )]
    LabelsUntrained {
        /// The folder of the newer data.
        path: PathBuf,
        /// The labels.
        labels: String,
    },
    /// An output cannot go where it was to go.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    Output {
        /// Where it was to go.
        path: PathBuf,
        /// What was expected there.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A number of a recipe is out of its range.
    #[error("recipe: {field}: expected {expected}, found {found}")]
    RecipeField {
        /// The field.
        field: &'static str,
        /// Its range.
        expected: &'static str,
        /// The number.
        found: String,
    },
    /// A publisher's remarks have an entry that is not theirs to write.
    #[error("{path}: {name}: expected a name of the publisher's own, found an entry that the command writes itself", path = path.display())]
    CardEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: &'static str,
    },
    /// A line of the instructions is not what it should be.
    #[error("{path}, line {line}: {reason}; expected an object with the language, the text and (but for a pattern) the wording", path = path.display())]
    InstructionLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The model has no task with this index.
    #[error("task {index}: expected a task of the model, found none")]
    TaskMissing {
        /// The index.
        index: usize,
    },
    /// A file is larger than anything that is read from such a file.
    #[error("{path}: expected at most {limit_bytes} bytes, found more", path = path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes it may have.
        limit_bytes: u64,
    },
    /// A file is not the JSON that it should be.
    #[error("{path}: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
}

impl TrainError {
    /// For `map_err` on operations of the file system.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// What the trainer's functions return.
pub type Result<T> = std::result::Result<T, TrainError>;
