//! `trafficllm-train data`: building, inspecting and changing data sets.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use trafficllm_train::augment::Noise;
use trafficllm_train::data::PreparationError;
use trafficllm_train::data::Split;
use trafficllm_train::data::augment::{self, AugmentOptions};
use trafficllm_train::data::build::{self, BuildOptions, GroupUnit};
use trafficllm_train::data::inspect;
use trafficllm_train::data::split::Shares;
use trafficllm_train::data::windows::{self, GROUPS_MIN, WindowOptions, Windows};
use trafficllm_train::error::Result;

use crate::{pretty, print, write};

/// What `data` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Makes a task from a folder of captures: one folder per label; grouped, split, cut, without repeats.
    Build(BuildArguments),
    /// Shows what a data set holds, what stands twice in it, and how far addresses, ports or TTL alone would get.
    Inspect(InspectArguments),
    /// Writes changed copies of a split's captures: loss, reordering, delay, cut payload, other addresses.
    Augment(AugmentArguments),
    /// Cuts a task's training split by time, for tests of drift: what was there before, what came after, and the last for a test.
    Windows(WindowsArguments),
}

#[derive(Debug, Args)]
pub(crate) struct BuildArguments {
    /// Folder with one folder per label holding captures (.pcap, .pcapng, .cap, plain or .gz; folders inside are followed), or
    /// with .jsonl files of requests: {"label", "group", "request"}
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
    /// Data folder to write the task into: <out>/<task>/<split>/<label>/<group>.pcap and MANIFEST.csv
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Name of the task: lower-case letters, digits and '_', as bundles take it [default: the name of the input folder]
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// What is never divided between splits: a capture file; or, for labels with fewer files than splits, a time window
    #[arg(long, value_enum, default_value_t = GroupUnit::File)]
    split_by: GroupUnit,
    /// Time windows that a capture is cut into with --split-by window, each with as many flows
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    windows: usize,
    /// Share of each label's flows for val
    #[arg(long, default_value_t = 0.15, value_name = "SHARE")]
    val: f64,
    /// Share of each label's flows for test
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    test: f64,
    /// Seed of the choice of groups
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Packets kept of a flow
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    packets: usize,
    /// Payload bytes kept of a packet; lengths stay true
    #[arg(long, default_value_t = 400, value_name = "BYTES")]
    payload_bytes: usize,
    /// Keep items of val and test whose payload also stands in an earlier split
    #[arg(long)]
    keep_duplicates: bool,
    /// Leave out captures that cannot be read to their end, and name them, instead of ending with an error
    #[arg(long)]
    skip_broken: bool,
    /// The report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Folder with the data
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// A task; may be given more than once [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    task: Vec<String>,
    /// Merge labels that are the same up to this character, e.g. '-' for vpn-chat and vpn-email
    #[arg(long, value_name = "CHARACTER")]
    merge_at: Option<char>,
    /// All numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct AugmentArguments {
    /// Folder with the data
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The task
    #[arg(long, value_name = "NAME")]
    task: String,
    /// The split
    #[arg(long, value_enum)]
    split: Split,
    /// Data folder to write: <out>/<task>/<split>/<label>/<group>.pcap, under the same groups
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Probability that a packet is lost; at least one packet of a flow stays
    #[arg(long, default_value_t = 0.0, value_name = "PROBABILITY")]
    loss: f64,
    /// Probability that a packet is overtaken by the next one of its flow
    #[arg(long, default_value_t = 0.0, value_name = "PROBABILITY")]
    reorder: f64,
    /// Each packet is held up by 0 to this many milliseconds; none overtakes another by it
    #[arg(long, default_value_t = 0.0, value_name = "MILLISECONDS")]
    delay_ms: f64,
    /// Payload bytes kept of a packet; lengths stay true
    #[arg(long, value_name = "BYTES")]
    truncate_bytes: Option<usize>,
    /// Other addresses and client ports, for each flow its own; checksums that were right stay right. Addresses inside payload
    /// (DNS, SIP, ICMP errors) are not touched. Flows between group, broadcast or loopback addresses keep theirs where all ports
    /// between them are given out; they are counted
    #[arg(long)]
    readdress: bool,
    /// Changed copies of each flow
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    copies: usize,
    /// Seed of all changes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct WindowsArguments {
    /// Folder with the data
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The task, one of captures; the groups of a label are ordered by the time of their first packet
    #[arg(long, value_name = "NAME")]
    task: String,
    /// Folder to write, which must not be there: `before` and `after`, data folders with the same test split
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

pub(crate) fn run(command: DataCommand) -> Result<()> {
    match command {
        DataCommand::Build(arguments) => run_build(arguments),
        DataCommand::Inspect(arguments) => run_inspect(arguments),
        DataCommand::Augment(arguments) => run_augment(arguments),
        DataCommand::Windows(arguments) => run_windows(arguments),
    }
}

fn run_windows(arguments: WindowsArguments) -> Result<()> {
    let windows = windows::cut(&WindowOptions {
        data: arguments.data,
        task: arguments.task,
        out: arguments.out,
    })?;
    for label in &windows.labels_left_out {
        tracing::warn!("{label} is left out: fewer than {GROUPS_MIN} groups");
    }
    for label in &windows.labels_tied {
        tracing::warn!(
            "{label}: groups on both sides of a cut begin at the same time; their names decided"
        );
    }
    let Windows {
        before,
        after,
        test,
        ..
    } = windows;
    print(&format!(
        "groups: before {} train, {} val; after {} train, {} val; {test} test\n",
        before[0], before[1], after[0], after[1]
    ))
}

fn run_build(arguments: BuildArguments) -> Result<()> {
    let report = build::build(&BuildOptions {
        from: arguments.from,
        out: arguments.out,
        task: arguments.task,
        unit: arguments.split_by,
        windows: arguments.windows,
        shares: Shares {
            val: arguments.val,
            test: arguments.test,
        },
        seed: arguments.seed,
        packets: arguments.packets,
        payload_bytes: arguments.payload_bytes,
        keep_duplicates: arguments.keep_duplicates,
        skip_broken: arguments.skip_broken,
    })?;
    if let Some(path) = arguments.json {
        write(path, &pretty(&report)?)?;
    }
    print(&report.table())
}

/// The table is printed whatever was found; findings that make scores wrong then end the command with an error.
fn run_inspect(arguments: InspectArguments) -> Result<()> {
    let inspection = inspect::inspect(&arguments.data, &arguments.task, arguments.merge_at)?;
    if let Some(path) = arguments.json {
        write(path, &pretty(&inspection)?)?;
    }
    print(&inspection.table())?;
    match inspection.errors() {
        0 => Ok(()),
        errors => Err(PreparationError::Findings { errors }.into()),
    }
}

fn run_augment(arguments: AugmentArguments) -> Result<()> {
    let report = augment::augment(&AugmentOptions {
        data: arguments.data,
        task: arguments.task,
        split: arguments.split,
        out: arguments.out,
        noise: Noise {
            loss: arguments.loss,
            reorder: arguments.reorder,
            delay_ms: arguments.delay_ms,
            truncate_bytes: arguments.truncate_bytes,
        },
        readdress: arguments.readdress,
        copies: arguments.copies,
        seed: arguments.seed,
    })?;
    if let Some(path) = arguments.json {
        write(path, &pretty(&report)?)?;
    }
    print(&report.table())
}
