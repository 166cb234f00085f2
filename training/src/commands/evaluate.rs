//! `trafficllm-train evaluate`.

use std::path::{Path, PathBuf};

use trafficllm_train::data::Split;
use trafficllm_train::error::{Result, TrainError};
use trafficllm_train::evaluate::{self, TaskEvaluation};
use trafficllm_train::evaluation::{self, EvaluationOptions};

use crate::{pretty, print, threads_or_all, write};

/// What `evaluate` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct EvaluateArguments {
    /// The bundle: a packed file or a folder
    #[arg(long)]
    bundle: PathBuf,
    /// Folder with the data
    #[arg(long)]
    data: PathBuf,
    /// The split to score
    #[arg(long, value_enum, default_value_t = Split::Val)]
    split: Split,
    /// Tasks [default: all that bundle and data share]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Measure simple models on the same split too
    #[arg(long)]
    baselines: bool,
    /// Score under packet loss, reordering, delay and cut payloads too
    #[arg(long)]
    noise: bool,
    /// Score without each family of tokens too
    #[arg(long)]
    occlusion: bool,
    /// Tasks of the data whose items no label fits: how well does the score tell them?
    #[arg(long, value_delimiter = ',', value_name = "TASK")]
    outside: Vec<String>,
    /// Take items with labels that the bundle lacks as such outsiders, too; otherwise they are an error
    #[arg(long)]
    unknown_labels: bool,
    /// Score among the labels that begin so alone, too [default: vpn-, nonvpn-]
    #[arg(long = "group", value_delimiter = ',', value_name = "PREFIX")]
    groups: Vec<String>,
    /// Seed of noise and baselines
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Every figure with its protocol as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Every figure with plots as one self-contained page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Threads [default: all cores]; never changes a result
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub(crate) fn run(arguments: EvaluateArguments) -> Result<()> {
    let EvaluateArguments {
        bundle,
        data,
        split,
        tasks,
        baselines,
        noise,
        occlusion,
        outside,
        unknown_labels,
        groups,
        seed,
        json,
        html,
        threads,
    } = arguments;
    // What was measured for long should not be lost for want of a folder.
    for path in json.iter().chain(&html) {
        check_folder(path)?;
    }
    let report = evaluation::run(&EvaluationOptions {
        bundle,
        data,
        split,
        tasks,
        baselines,
        noise,
        occlusion,
        outside,
        unknown_labels,
        groups,
        seed,
        threads: threads_or_all(threads),
    })?;
    if let Some(path) = json {
        write(path, &pretty(&report)?)?;
    }
    if let Some(path) = html {
        write(path, &evaluation::page(&report)?)?;
    }
    let evaluations: Vec<TaskEvaluation> = report
        .tasks
        .iter()
        .map(|task| task.evaluation.clone())
        .collect();
    print(&evaluate::table(&evaluations, true))?;
    print(&evaluation::table(&report))
}

fn check_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        None => Path::new("/"),
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
    };
    if folder.is_dir() {
        return Ok(());
    }
    Err(TrainError::DataMissing {
        path: folder.into(),
        expected: "a folder for the output",
    })
}
