//! `trafficllm-train probe`: what reading traffic without labels is worth by itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use trafficllm_train::bundle::{self, BundleOptions, CHECKPOINT_STEPS};
use trafficllm_train::error::{Result, TrainError};
use trafficllm_train::evaluate::TaskEvaluation;

use crate::{pretty, print, read_recipe, tasks_or_default, threads_or_all, write};

#[derive(Debug, Args)]
pub(crate) struct ProbeArguments {
    /// Folder with the data: <task>/<split>/<label>/<group>.pcap or <task>/<split>.jsonl
    #[arg(long)]
    data: PathBuf,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tasks [default: the six tasks of the default bundle]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Recipe file (JSON) in place of the default recipe
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Threads for scoring [default: all cores]; never changes a result
    #[arg(long)]
    threads: Option<usize>,
    /// Scores as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The scores of one base.
#[derive(serde::Serialize)]
struct Probed {
    base: &'static str,
    scores: Vec<TaskEvaluation>,
}

/// Tunes adapters on a frozen base that has read traffic, and on one that has not.
pub(crate) fn run(arguments: ProbeArguments) -> Result<()> {
    let tasks = tasks_or_default(arguments.tasks);
    bundle::check_tasks(&arguments.data, &tasks)?;
    let mut recipe = read_recipe(arguments.recipe)?;
    // No label has moved the base: what adapters find in it is what it has read.
    recipe.tune.tokens = 0;
    recipe.instructions = None;
    recipe.adapters.get_or_insert_default();
    let folder = tempfile::tempdir().map_err(|source| TrainError::Io {
        path: std::env::temp_dir(),
        source,
    })?;
    let mut probed = Vec::new();
    for (base, tokens) in [("read traffic", recipe.pretrain.tokens), ("random", 0)] {
        let mut recipe = recipe.clone();
        recipe.pretrain.tokens = tokens;
        tracing::info!("adapters on a frozen base: {base}");
        let scores = bundle::make(&BundleOptions {
            data: arguments.data.clone(),
            out: folder.path().join("probe.tllm"),
            work: None,
            seed: arguments.seed,
            tasks: tasks.clone(),
            recipe,
            threads: threads_or_all(arguments.threads),
            id: "probe".to_owned(),
            remarks: BTreeMap::new(),
            checkpoint_steps: CHECKPOINT_STEPS,
            halt_before_step: None,
        })?;
        probed.push(Probed { base, scores });
    }
    if let Some(path) = arguments.json {
        write(path, &pretty(&probed)?)?;
    }
    print(&table(&probed))
}

fn table(probed: &[Probed]) -> String {
    let mut text = format!("{:<30}", "macro-F1, frozen base");
    for of in probed {
        text.push_str(&format!("{:>14}", of.base));
    }
    text.push('\n');
    for (number, first) in probed[0].scores.iter().enumerate() {
        text.push_str(&format!("{:<30}", first.task));
        for of in probed {
            text.push_str(&format!("{:>14.1}", 100.0 * of.scores[number].all.macro_f1));
        }
        text.push('\n');
    }
    text
}
