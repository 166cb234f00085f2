//! `trafficllm-train adapt`: field updates of a bundle.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use trafficllm_train::adapt::{self, AdaptOptions, Adapted, LOSS_MAX, ListedVersion};
use trafficllm_train::adapters::AdapterRecipe;
use trafficllm_train::data::build::{self, BuildOptions, GroupUnit};
use trafficllm_train::data::split::Shares;
use trafficllm_train::error::{Result, TrainError};
use trafficllm_train::files;

use crate::{pretty, print, threads_or_all, write};

/// What `adapt` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum AdaptCommand {
    /// Adds a task to a bundle: tunes an adapter for it on the frozen base.
    Register(TuneArguments),
    /// Tunes a task's adapter on newer data; the one before is set aside.
    Update(UpdateArguments),
    /// Puts an adapter to work again that was set aside.
    Rollback(RollbackArguments),
    /// Lists all adapters of a bundle with their versions.
    List(ListArguments),
}

#[derive(Debug, Args)]
pub(crate) struct TuneArguments {
    /// The bundle: a packed file or a folder
    #[arg(long)]
    bundle: PathBuf,
    /// Where the adapted bundle goes [default: in the place of the bundle]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Name of the task
    #[arg(long, value_name = "NAME")]
    task: String,
    /// Data folder with the task: <data>/<task>/<split>/<label>/<group>.pcap, as `data build` makes it
    #[arg(long, value_name = "FOLDER", required_unless_present = "from")]
    data: Option<PathBuf>,
    /// Instead: folder with one folder per label holding captures, as `data build` takes it; a label with one capture is cut by time
    #[arg(long, value_name = "FOLDER", conflicts_with = "data")]
    from: Option<PathBuf>,
    /// What people should know of the data; kept in the bundle
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Recipe file (JSON) for adapters in place of the default
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Folder for checkpoints: a run that was ended goes on from there
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads for scoring [default: all cores]; never changes a result
    #[arg(long)]
    threads: Option<usize>,
    /// What came of it as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    #[command(flatten)]
    tuned: TuneArguments,
    /// Data folder of before, replayed so that what the task knew is not lost
    #[arg(long, value_name = "FOLDER")]
    replay: Option<PathBuf>,
    /// What the adapter may lose of the macro-F1 on the held items of one folder, 0 to 1, if it gains on all together
    #[arg(long, value_name = "SHARE", default_value_t = LOSS_MAX)]
    loss_max: f64,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArguments {
    /// The bundle: a packed file or a folder
    #[arg(long)]
    bundle: PathBuf,
    /// Where the changed bundle goes [default: in the place of the bundle]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Name of the task
    #[arg(long, value_name = "NAME")]
    task: String,
    /// The version [default: the one that was set aside last]
    #[arg(long, value_name = "NUMBER")]
    version: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// The bundle: a packed file or a folder
    #[arg(long)]
    bundle: PathBuf,
    /// The list as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(crate) fn run(command: AdaptCommand) -> Result<()> {
    match command {
        AdaptCommand::Register(tuned) => {
            let asked = Asked::new(tuned, None)?;
            asked.report(adapt::register(&asked.options)?)
        }
        AdaptCommand::Update(UpdateArguments {
            tuned,
            replay,
            loss_max,
        }) => {
            let mut asked = Asked::new(tuned, replay)?;
            asked.options.loss_max = loss_max;
            asked.report(adapt::update(&asked.options)?)
        }
        AdaptCommand::Rollback(arguments) => {
            let RollbackArguments {
                bundle,
                out,
                task,
                version,
            } = arguments;
            let out = out.unwrap_or_else(|| bundle.clone());
            let version = adapt::roll_back(&bundle, &out, &task, version)?;
            print(&format!("{task}: version {version} is at work\n"))
        }
        AdaptCommand::List(ListArguments { bundle, json }) => {
            let listed = adapt::list(&bundle)?;
            print(&if json {
                pretty(&listed)?
            } else {
                table(&listed)
            })
        }
    }
}

/// What was asked for, and the data folder that was made for it: it is gone with this.
struct Asked {
    options: AdaptOptions,
    json: Option<PathBuf>,
    /// The folder of captures, and the data folder that was made of it.
    made: Option<(PathBuf, tempfile::TempDir)>,
}

impl Asked {
    fn new(arguments: TuneArguments, replay: Option<PathBuf>) -> Result<Self> {
        let TuneArguments {
            bundle,
            out,
            task,
            data,
            from,
            note,
            recipe,
            work,
            seed,
            threads,
            json,
        } = arguments;
        let recipe = match recipe {
            None => AdapterRecipe::default(),
            Some(path) => files::read_json(&path)?,
        };
        let made = match from {
            Some(from) => Some((from.clone(), build_data(from, &task, seed)?)),
            None => None,
        };
        let built = made.as_ref().map(|(_, made)| made.path().join(DATA));
        let data = built.or(data);
        let options = AdaptOptions {
            out: out.unwrap_or_else(|| bundle.clone()),
            bundle,
            // The arguments hold one of the two.
            data: data.unwrap_or_default(),
            replay,
            task,
            note,
            seed,
            threads: threads_or_all(threads),
            loss_max: LOSS_MAX,
            recipe,
            work,
        };
        Ok(Self {
            options,
            json,
            made,
        })
    }

    fn report(&self, mut adapted: Adapted) -> Result<()> {
        // Users know the folder that they named, not the one that was made of it.
        if let (Some((from, _)), Some(first)) = (&self.made, adapted.by_folder.first_mut()) {
            first.folder = from.display().to_string();
        }
        report(&adapted, self.json.as_deref())
    }
}

/// The data folder inside a temporary one.
const DATA: &str = "data";

/// Makes a data folder of captures that lie in one folder per label, as `data build --split-by window` does.
fn build_data(from: PathBuf, task: &str, seed: u64) -> Result<tempfile::TempDir> {
    let made = tempfile::tempdir().map_err(|source| TrainError::Io {
        path: std::env::temp_dir(),
        source,
    })?;
    let report = build::build(&BuildOptions {
        from,
        out: made.path().join(DATA),
        task: Some(task.to_owned()),
        unit: GroupUnit::Window,
        windows: 10,
        shares: Shares {
            val: 0.2,
            test: 0.0,
        },
        seed,
        packets: 20,
        payload_bytes: 400,
        keep_duplicates: false,
        skip_broken: false,
    })?;
    print(&report.table())?;
    Ok(made)
}

fn report(adapted: &Adapted, json: Option<&Path>) -> Result<()> {
    if let Some(path) = json {
        write(path.to_path_buf(), &pretty(adapted)?)?;
    }
    let mut text = format!(
        "{}: version {} is at work, model {}\n{:<40}{:>10}{:>12}{:>12}\n",
        adapted.task,
        adapted.version,
        adapted.model,
        "held items of",
        "items",
        "F1 before",
        "F1 after"
    );
    let all = adapted.by_folder.len() > 1;
    let folders = adapted.by_folder.iter();
    let rows = folders.map(|folder| (folder.folder.as_str(), &folder.active, &folder.candidate));
    for (name, before, after) in
        rows.chain(all.then_some(("all", &adapted.active, &adapted.candidate)))
    {
        text.push_str(&format!(
            "{name:<40}{:>10}{:>12.4}{:>12.4}\n",
            after.items, before.macro_f1, after.macro_f1
        ));
    }
    print(&text)
}

fn table(listed: &[ListedVersion]) -> String {
    let mut text = format!(
        "{:<32}{:>8}  {:<8}{:>8}{:>10}\n",
        "task", "version", "", "labels", "macro-F1"
    );
    for line in listed {
        let state = if line.active { "active" } else { "aside" };
        let score = line
            .macro_f1
            .map_or_else(|| "-".to_owned(), |score| format!("{score:.4}"));
        text.push_str(&format!(
            "{:<32}{:>8}  {state:<8}{:>8}{score:>10}\n",
            line.task, line.version, line.labels
        ));
    }
    text
}
