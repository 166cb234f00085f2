//! The command line: options, exit status, and nothing that the library should do.

mod ask;
mod console;
mod detect;
mod head;
mod inspect;
mod output;
mod progress;
mod report;
mod summary;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;
use trafficllm::limits::{HEAD_FUEL_MAX, HEAD_MEMORY_BYTES_MAX, WORKERS_MAX};
use trafficllm::{Bundle, DeviceChoice, Error, HeadFile, HeadOptions, Model};

/// A label, a score or an honest "don't know" for every network flow.
#[derive(Debug, Parser)]
#[command(name = "trafficllm", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Judge the flows of captures
    ///
    /// Exit status: 0 done; 1 an input could not be read to its end, or the output not be written (what was read is reported);
    /// 2 usage; 3 the model, or the device that `--device` names by its number, cannot be used.
    Detect(DetectArgs),
    /// Ask about captures in your own words
    ///
    /// Names the task that it understood, with a score, and answers with that task's verdicts and one line that sums them up.
    /// Exit status: as `detect`; 2 also where the question is not understood or the model has no adapter for it.
    Ask(AskArgs),
    /// Make a page of the verdicts that `detect --format json` wrote
    ///
    /// Exit status: 0 done; 1 an input could not be read to its end, a line was no verdict (the page is made of the others), there was
    /// nothing to show, or the page could not be written (an older page stays as it is); 2 usage.
    Report(report::ReportArgs),
    /// Look at model bundles
    #[command(subcommand)]
    Model(ModelCommand),
    /// Look at heads of one's own
    #[command(subcommand)]
    Head(HeadCommand),
}

#[derive(Debug, Subcommand)]
enum HeadCommand {
    /// Load a head as `detect` does and say what it exports, needs and costs
    ///
    /// Exit status: 0 it can be used with the model; 2 it cannot, and why; 3 the model cannot be used.
    Check {
        /// Bundle whose model the head is given, instead of the one that is compiled in
        #[arg(long, value_name = "BUNDLE")]
        model: Option<PathBuf>,
        /// The file is a native library, which is run with all rights of this process
        #[arg(long)]
        native: bool,
        /// Write one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        limits: HeadLimits,
        /// WebAssembly module or native library
        file: PathBuf,
    },
}

/// What heads are given.
#[derive(Clone, Debug, Default, Args)]
struct HeadLimits {
    /// Fuel of a WebAssembly head for each flow, about one unit for each instruction (default: 1000000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=HEAD_FUEL_MAX))]
    head_fuel: Option<u64>,
    /// Bytes of memory of each instance of a WebAssembly head (default: 1048576)
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=HEAD_MEMORY_BYTES_MAX))]
    head_memory: Option<u64>,
    /// Let WebAssembly heads keep what they know from flow to flow
    #[arg(long)]
    head_state: bool,
    /// Let heads see the first payload bytes, also what the model's profile hides
    #[arg(long)]
    head_payload: bool,
    /// Run precompiled heads whose hashes stand in the bundle: they are native code
    #[arg(long)]
    head_precompiled: bool,
}

/// Heads beside the model.
#[derive(Clone, Debug, Default, Args)]
struct HeadArgs {
    /// WebAssembly head that judges flows too; TASK is the one whose hidden state it is given (can be given several times)
    #[arg(long = "head", value_name = "FILE[:TASK]")]
    modules: Vec<String>,
    /// Native head: a library that is run with all rights of this process (can be given several times)
    #[arg(long = "native-head", value_name = "FILE[:TASK]")]
    libraries: Vec<String>,
    /// Leave out the heads of the bundle
    #[arg(long)]
    no_bundled_heads: bool,
    #[command(flatten)]
    limits: HeadLimits,
}

impl HeadLimits {
    fn options(&self) -> HeadOptions {
        let default = HeadOptions::default();
        let memory = self
            .head_memory
            .and_then(|bytes| usize::try_from(bytes).ok());
        HeadOptions {
            fuel_per_flow: self.head_fuel.unwrap_or(default.fuel_per_flow),
            memory_bytes_max: memory.unwrap_or(default.memory_bytes_max),
            allows_state: self.head_state,
            allows_payload: self.head_payload,
            allows_precompiled: self.head_precompiled,
            ..default
        }
    }
}

impl HeadArgs {
    fn options(&self) -> HeadOptions {
        let files = |texts: &[String]| texts.iter().map(|text| HeadFile::parse(text)).collect();
        HeadOptions {
            modules: files(&self.modules),
            libraries: files(&self.libraries),
            uses_bundled: !self.no_bundled_heads,
            ..self.limits.options()
        }
    }
}

/// What `detect` is told.
#[derive(Debug, Args)]
struct DetectArgs {
    /// Bundle to use, a directory or a packed file, instead of the one that is compiled in
    #[arg(long, value_name = "BUNDLE")]
    model: Option<PathBuf>,
    /// Task to ask; can be given several times (default: all tasks of the model)
    #[arg(long = "task", value_name = "NAME")]
    tasks: Vec<String>,
    /// How verdicts are written to standard output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Threads that run the model; verdicts do not depend on it (default: one per processor; with a device, 4)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=WORKERS_MAX as i64))]
    threads: Option<u16>,
    /// What runs the model: cpu, cuda:N, or auto for a CUDA device if one can be used (default: cpu)
    #[arg(long, value_name = "DEVICE", value_parser = device_choice)]
    device: Option<DeviceChoice>,
    /// Most flows open at once; beyond it the least recently active flow is judged early (default: 131072)
    #[arg(long, value_name = "N")]
    max_flows: Option<usize>,
    #[command(flatten)]
    heads: HeadArgs,
    /// pcap or pcapng, plain or gzip; `-` reads standard input; FILE.jsonl holds one HTTP request per line in the key "request"
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
}

/// What `ask` is told.
#[derive(Debug, Args)]
struct AskArgs {
    /// Bundle to use, a directory or a packed file, instead of the one that is compiled in
    #[arg(long, value_name = "BUNDLE")]
    model: Option<PathBuf>,
    /// How verdicts are written to standard output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Threads that run the model; verdicts do not depend on it (default: one per processor; with a device, 4)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=WORKERS_MAX as i64))]
    threads: Option<u16>,
    /// What runs the model: cpu, cuda:N, or auto for a CUDA device if one can be used (default: cpu)
    #[arg(long, value_name = "DEVICE", value_parser = device_choice)]
    device: Option<DeviceChoice>,
    /// What you want to know, in any language: "is there a botnet in here?"
    #[arg(value_name = "QUESTION")]
    question: String,
    /// As for `detect`; without one the question is only understood
    #[arg(value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One object per flow and line
    Json,
    /// One row per flow and task
    Csv,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Say what a bundle holds
    Info {
        /// Bundle to look at, instead of the one that is compiled in
        bundle: Option<PathBuf>,
        /// Write one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check hashes, weights and self-test of a bundle
    Verify {
        /// Bundle to check, instead of the one that is compiled in
        bundle: Option<PathBuf>,
    },
}

/// How the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    /// Some input was not read to its end, or the output not written.
    Incomplete = 1,
    Usage = 2,
    Model = 3,
}

/// Why a command could not do its work: goes to standard error.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error {
            Error::UnknownTask { .. }
            | Error::Level(_)
            | Error::Setting { .. }
            | Error::Settings(_)
            | Error::Head(_)
            | Error::FlowConfig(_) => Exit::Usage,
            _ => Exit::Model,
        };
        Self {
            exit,
            message: error.to_string(),
        }
    }
}

/// Runs the command and gives its exit status.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    // Silent unless RUST_LOG asks.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Detect(args) => detect::run(&args),
        Command::Ask(args) => ask::run(args),
        Command::Report(args) => report::run(&args),
        Command::Model(ModelCommand::Info { bundle, json }) => {
            inspect::info(bundle.as_deref(), json)
        }
        Command::Model(ModelCommand::Verify { bundle }) => inspect::verify(bundle.as_deref()),
        Command::Head(HeadCommand::Check {
            model,
            native,
            json,
            limits,
            file,
        }) => head::check(model.as_deref(), (&file, native), &limits.options(), json),
    };
    let exit = result.unwrap_or_else(|failure| {
        console::error(&failure.message);
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// Opens the named bundle or the one that is compiled in. The path goes before the error: a bundle's own messages name files inside it.
fn open_bundle(path: Option<&Path>) -> Result<Bundle, Failure> {
    match path {
        Some(path) => Bundle::open(path).map_err(|error| model_failure(Some(path), &error.into())),
        None => default_bundle(),
    }
}

fn open_model(path: Option<&Path>, device: DeviceChoice) -> Result<Model, Failure> {
    let level = Model::level_from_environment()?;
    let bundle = open_bundle(path)?;
    let loaded = match device {
        DeviceChoice::Cpu => Model::load(&bundle, level),
        DeviceChoice::Auto | DeviceChoice::Cuda(_) => Model::load_for_device(&bundle, level),
    };
    loaded.map_err(|error| model_failure(path, &error))
}

fn device_choice(text: &str) -> Result<DeviceChoice, String> {
    let choice = DeviceChoice::parse(text);
    choice.ok_or_else(|| format!("expected {}", DeviceChoice::EXPECTED))
}

fn model_failure(path: Option<&Path>, error: &Error) -> Failure {
    let place = path.map_or_else(
        || "the default bundle".to_owned(),
        |path| path.display().to_string(),
    );
    Failure {
        exit: Exit::Model,
        message: format!("{place}: {error}"),
    }
}

#[cfg(feature = "default-bundle")]
fn default_bundle() -> Result<Bundle, Failure> {
    Model::default_bundle().map_err(|error| model_failure(None, &error))
}

#[cfg(not(feature = "default-bundle"))]
fn default_bundle() -> Result<Bundle, Failure> {
    let message = "this build has no default bundle: name one".to_owned();
    Err(Failure {
        exit: Exit::Usage,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_device_is_named_or_refused_as_usage() {
        let parse = |device: &str| {
            Cli::try_parse_from(["trafficllm", "detect", "--device", device, "a.pcap"])
        };
        for good in ["cpu", "auto", "cuda", "cuda:63"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "gpu", "cuda:64"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.exit_code(), Exit::Usage as i32, "{bad}");
        }
    }

    #[test]
    fn threads_are_taken_at_the_limits_and_refused_past_them() {
        let parse = |threads: &str| {
            Cli::try_parse_from(["trafficllm", "detect", "--threads", threads, "a.pcap"])
        };
        for good in ["1", &WORKERS_MAX.to_string()] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["0", &(WORKERS_MAX + 1).to_string(), "-1", "x"] {
            assert_eq!(
                parse(bad).unwrap_err().exit_code(),
                Exit::Usage as i32,
                "{bad}"
            );
        }
    }
}
