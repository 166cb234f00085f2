//! `trafficllm-train head`.

use std::fmt::Write as _;
use std::path::PathBuf;

use trafficllm_train::data::Split;
use trafficllm_train::error::Result;
use trafficllm_train::head::{self, Fitted, HeadOptions};

use crate::{pretty, print, threads_or_all, write};

/// What to do with heads.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum HeadCommand {
    /// Fits a linear head to a task of labelled flows, and writes it as a WebAssembly module
    Fit(FitArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct FitArguments {
    /// The bundle: a packed file or a folder
    #[arg(long)]
    bundle: PathBuf,
    /// Folder with the data: <task>/<split>/<label>/<group>.pcap
    #[arg(long)]
    data: PathBuf,
    /// The task of the data
    #[arg(long)]
    task: String,
    /// The module to write
    #[arg(long)]
    out: PathBuf,
    /// The bundle's task whose hidden state the head is given; the task itself for flows that the bundle was not made from [default: the
    /// best on held groups of train, but not the task itself]
    #[arg(long, value_name = "TASK")]
    from: Option<String>,
    /// Weight of the bundle's own answer to the task, where it has it; 0: the head decides alone
    #[arg(long, default_value_t = 0.5)]
    voice: f32,
    /// The head's name, as a task of the output [default: the task's with _head behind it]
    #[arg(long)]
    name: Option<String>,
    /// Below this score the head abstains
    #[arg(long, default_value_t = 0.0)]
    threshold: f32,
    /// The split to score, which decides nothing
    #[arg(long, value_enum, default_value = "val")]
    split: Split,
    /// There is no split to score
    #[arg(long, conflicts_with = "split")]
    no_scores: bool,
    /// Figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Threads [default: all cores]; never changes a result
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub(crate) fn run(command: HeadCommand) -> Result<()> {
    let HeadCommand::Fit(arguments) = command;
    let FitArguments {
        bundle,
        data,
        task,
        out,
        from,
        voice,
        name,
        threshold,
        split,
        no_scores,
        json,
        threads,
    } = arguments;
    let fitted = head::fit(&HeadOptions {
        bundle,
        data,
        task,
        from,
        voice,
        name,
        threshold,
        scored: (!no_scores).then_some(split),
        threads: threads_or_all(threads),
    })?;
    head::write(&fitted, &out)?;
    if let Some(path) = json {
        write(path, &pretty(&fitted)?)?;
    }
    print(&report(&fitted, &out.display().to_string()))
}

fn report(fitted: &Fitted, out: &str) -> String {
    let (items, groups) = fitted.fitted_on;
    let mut text = format!(
        "{out}: {} bytes, reads the state of {}; add it as {out}:{}\n",
        fitted.module.len(),
        fitted.from,
        fitted.from
    );
    // Writing to a text cannot fail.
    let _ = writeln!(
        text,
        "{}: fitted on {items} flows of {groups} groups, penalty {}, the bundle's own answer weighs {}",
        fitted.task, fitted.penalty, fitted.voice
    );
    let _ = writeln!(text, "held groups of train, linear part alone:");
    for tried in &fitted.tried {
        let _ = writeln!(
            text,
            "  {:<32}penalty {:<8}macro-F1 {:.4}",
            tried.from, tried.penalty, tried.macro_f1
        );
    }
    let Some(scores) = &fitted.scores else {
        return text;
    };
    let or_none =
        |score: Option<f64>| score.map_or_else(|| "-".into(), |score| format!("{score:.4}"));
    let bundle = scores.bundle.as_ref();
    let _ = writeln!(text, "{:<32}{:>10}{:>10}", scores.split, "bundle", "head");
    for (name, of_bundle, of_head) in [
        (
            "macro-F1",
            bundle.map(|scores| scores.macro_f1),
            scores.head.macro_f1,
        ),
        (
            "accuracy",
            bundle.map(|scores| scores.accuracy),
            scores.head.accuracy,
        ),
        (
            "macro-F1, payload not in train",
            scores.unseen.1,
            scores.unseen.0,
        ),
    ] {
        let _ = writeln!(text, "{name:<32}{:>10}{of_head:>10.4}", or_none(of_bundle));
    }
    if let Some(resampled) = scores.resampled {
        let _ = writeln!(
            text,
            "groups of {} drawn again: head less bundle {:+.4} to {:+.4} (90 %), above 0 in {:.1} %",
            scores.split,
            resampled.low,
            resampled.high,
            100.0 * resampled.better
        );
    }
    text
}
