//! What can go wrong while data is prepared, and where.

use std::path::PathBuf;

/// Why data could not be prepared from what was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreparationError {
    /// A setting is outside its range.
    #[error("--{name}: expected {expected}, found {found}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// Something stands where the result is to be written.
    #[error("{path}: already there; choose another folder or remove it first", path = path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// The result would lie inside its own input.
    #[error("{out}: lies inside the input {from}; choose a folder outside of it", out = out.display(), from = from.display())]
    OutputInsideInput {
        /// The folder to write.
        out: PathBuf,
        /// The folder to read.
        from: PathBuf,
    },
    /// A capture that stands under no label.
    #[error("{path}: a capture outside of a label's folder; expected <folder>/<label>/{name}", path = path.display(), name = name)]
    Unlabelled {
        /// The capture.
        path: PathBuf,
        /// Its name.
        name: String,
    },
    /// Captures and requests in one task.
    #[error("{path}: holds both captures ({capture}) and requests ({requests}); a task has one kind", path = path.display(), capture = capture.display(), requests = requests.display())]
    TwoKinds {
        /// The input.
        path: PathBuf,
        /// The first capture.
        capture: PathBuf,
        /// The first file of requests.
        requests: PathBuf,
    },
    /// A label cannot be divided: a group is never cut.
    #[error(
        "label {label}: {found} {unit}, expected at least {expected}, one for each split; {hint}"
    )]
    TooFewGroups {
        /// The label.
        label: String,
        /// Groups that it has.
        found: usize,
        /// What a group is: captures, time windows, groups of requests.
        unit: &'static str,
        /// Splits that need one.
        expected: usize,
        /// What can be done.
        hint: &'static str,
    },
    /// Groups that several labels share leave one of them without a part in a split.
    #[error(
        "label {label}: nothing left for {split}: its groups are shared with other labels; try another seed or other shares"
    )]
    LabelWithoutSplit {
        /// The label.
        label: String,
        /// The split that it has nothing in.
        split: &'static str,
    },
    /// All items of a split were repeated from training.
    #[error(
        "{split}: nothing left: the payload of all {dropped} items also stands in train; --keep-duplicates keeps them"
    )]
    AllDuplicates {
        /// The split.
        split: &'static str,
        /// Items dropped.
        dropped: u64,
    },
    /// Fewer than two labels: nothing to tell apart.
    #[error("{path}: expected at least 2 labels with data, found {found}", path = path.display())]
    TooFewLabels {
        /// The input.
        path: PathBuf,
        /// Labels found.
        found: usize,
    },
    /// Too few labels have enough groups to be cut by time.
    #[error(
        "{path}: expected at least 2 labels with {groups} groups, found {found}; too few groups: {left_out}", path = path.display()
    )]
    TooFewLabelsToCut {
        /// The split.
        path: PathBuf,
        /// Groups that a label must have.
        groups: usize,
        /// Labels that have so many.
        found: usize,
        /// The others.
        left_out: String,
    },
    /// A label that no bundle can hold.
    #[error("label {label:?}: expected {expected}, found {found}")]
    Label {
        /// The label.
        label: String,
        /// What bundles take.
        expected: &'static str,
        /// What is wrong with it.
        found: String,
    },
    /// More labels than a bundle can hold.
    #[error("{path}: expected at most {limit} labels, found {found}", path = path.display())]
    TooManyLabels {
        /// The input.
        path: PathBuf,
        /// The most that bundles take.
        limit: usize,
        /// Labels found.
        found: usize,
    },
    /// The name of the input folder, which a task would get, is none that a bundle can take.
    #[error("{path}: the folder's name is to be the task's: expected {expected}, found {found:?}; name the task with --task", path = path.display())]
    TaskOfFolder {
        /// The input folder.
        path: PathBuf,
        /// What bundles take.
        expected: &'static str,
        /// The folder's name.
        found: String,
    },
    /// A task of requests where captures are needed.
    #[error("task {task}: holds HTTP requests; expected captures")]
    NoCaptures {
        /// The task.
        task: String,
    },
    /// An inspection has found what makes the numbers from the data wrong.
    #[error("{errors} findings that make scores from this data wrong; see the lines marked error")]
    Findings {
        /// How many.
        errors: usize,
    },
    /// No change was asked for.
    #[error(
        "nothing to change; expected at least one of --loss, --reorder, --delay-ms, --truncate-bytes, --readdress"
    )]
    NoChange,
    /// The manifest beside the tasks cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What the CSV reader or writer says.
        source: csv::Error,
    },
}
