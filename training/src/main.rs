//! `trafficllm-train`: makes and evaluates model bundles.

mod commands {
    pub(crate) mod adapt;
    pub(crate) mod data;
    pub(crate) mod evaluate;
    pub(crate) mod head;
    pub(crate) mod probe;
}

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::evaluate::EvaluateArguments;
use tracing_subscriber::EnvFilter;
use trafficllm_train::baselines;
use trafficllm_train::bundle::{self, BundleOptions, CHECKPOINT_STEPS};
use trafficllm_train::card;
use trafficllm_train::data::{self, Split};
use trafficllm_train::error::{Result, TrainError};
use trafficllm_train::evaluate::{self, TaskEvaluation};
use trafficllm_train::files;
use trafficllm_train::recipe::{DEFAULT_TASKS, Recipe};

/// Makes and evaluates model bundles for trafficllm.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a bundle from labelled captures: tokenizer, pre-training, tuning, calibration, quantisation, packing.
    Bundle(BundleArguments),
    /// Scores a bundle on a split, with the engine that will be used.
    Evaluate(EvaluateArguments),
    /// Measures the floors: simple models on the same split.
    Baselines(BaselineArguments),
    /// Updates a bundle in the field: a new task, newer data for an old one, and back.
    #[command(subcommand)]
    Adapt(commands::adapt::AdaptCommand),
    /// Builds, inspects and changes data sets.
    #[command(subcommand)]
    Data(commands::data::DataCommand),
    /// Fits heads that decide on top of a bundle.
    #[command(subcommand)]
    Head(commands::head::HeadCommand),
    /// Measures what reading traffic without labels is worth: adapters on that base, frozen, beside those on a random one.
    Probe(commands::probe::ProbeArguments),
    /// Prints the default recipe as JSON; `bundle --recipe` takes a changed one.
    Recipe,
}

#[derive(Debug, clap::Args)]
struct BundleArguments {
    /// Folder with the data: <task>/<split>/<label>/<group>.pcap or <task>/<split>.jsonl
    #[arg(long)]
    data: PathBuf,
    /// The packed bundle to write
    #[arg(long)]
    out: PathBuf,
    /// Folder for checkpoints: a run that was ended goes on from there
    #[arg(long)]
    work: Option<PathBuf>,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tasks of the bundle [default: the six tasks of the default bundle]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Recipe file (JSON) in place of the default recipe
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// What people should know of the model, for its card: a JSON file with an object of texts
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    /// Name of the model in its manifest
    #[arg(long, default_value = "default-1")]
    id: String,
    /// Threads for scoring [default: all cores]; never changes a result
    #[arg(long)]
    threads: Option<usize>,
    /// Scores as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct BaselineArguments {
    /// Folder with the data
    #[arg(long)]
    data: PathBuf,
    /// The split to score
    #[arg(long, value_enum, default_value_t = Split::Val)]
    split: Split,
    /// Tasks [default: the six tasks of the default bundle]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Seed of the order of items and of what trees see
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads [default: all cores]; never changes a result
    #[arg(long)]
    threads: Option<usize>,
    /// Scores as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    trafficllm_kernels::training::keep_freed_memory();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done where even standard error is closed.
            let _ = writeln!(std::io::stderr(), "trafficllm-train: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bundle(arguments) => make_bundle(arguments),
        Command::Evaluate(arguments) => commands::evaluate::run(arguments),
        Command::Baselines(arguments) => measure_floors(arguments),
        Command::Adapt(command) => commands::adapt::run(command),
        Command::Data(command) => commands::data::run(command),
        Command::Head(command) => commands::head::run(command),
        Command::Probe(arguments) => commands::probe::run(arguments),
        Command::Recipe => print(&pretty(&Recipe::default())?),
    }
}

fn make_bundle(arguments: BundleArguments) -> Result<()> {
    let BundleArguments {
        data,
        out,
        work,
        seed,
        tasks,
        recipe,
        card,
        id,
        threads,
        json,
    } = arguments;
    let tasks = tasks_or_default(tasks);
    bundle::check_tasks(&data, &tasks)?;
    let recipe = read_recipe(recipe)?;
    let remarks = card.map_or_else(|| Ok(BTreeMap::new()), |path| card::read(&path))?;
    let options = BundleOptions {
        data,
        out,
        work,
        seed,
        tasks,
        recipe,
        threads: threads_or_all(threads),
        id,
        remarks,
        checkpoint_steps: CHECKPOINT_STEPS,
        halt_before_step: None,
    };
    report(&bundle::make(&options)?, json)
}

fn measure_floors(arguments: BaselineArguments) -> Result<()> {
    let BaselineArguments {
        data,
        split,
        tasks,
        seed,
        threads,
        json,
    } = arguments;
    let present = data::tasks_of(&data)?;
    let asked = !tasks.is_empty();
    let mut floors = Vec::new();
    for task in tasks_or_default(tasks)
        .iter()
        .filter(|task| asked || present.contains(task))
    {
        tracing::info!("{task}");
        floors.push(baselines::floors(
            &data,
            task,
            split,
            seed,
            threads_or_all(threads),
        )?);
    }
    if let Some(path) = json {
        write(path, &pretty(&floors)?)?;
    }
    print(&evaluate::floors_table(&floors))
}

fn report(evaluations: &[TaskEvaluation], json: Option<PathBuf>) -> Result<()> {
    if let Some(path) = json {
        write(path, &pretty(evaluations)?)?;
    }
    print(&evaluate::table(evaluations, true))
}

fn read_recipe(path: Option<PathBuf>) -> Result<Recipe> {
    path.map_or_else(|| Ok(Recipe::default()), |path| files::read_json(&path))
}

fn tasks_or_default(tasks: Vec<String>) -> Vec<String> {
    if tasks.is_empty() {
        DEFAULT_TASKS.map(str::to_owned).to_vec()
    } else {
        tasks
    }
}

fn threads_or_all(threads: Option<usize>) -> usize {
    threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1)
}

fn pretty<T: serde::Serialize + ?Sized>(value: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|source| TrainError::Json {
            path: "output".into(),
            source,
        })
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    std::fs::write(&path, text).map_err(|source| TrainError::Io { path, source })
}

fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    written.map_err(|source| TrainError::Io {
        path: "standard output".into(),
        source,
    })
}
