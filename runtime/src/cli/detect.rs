//! `trafficllm detect`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Write as _, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;

use trafficllm::limits::DEVICE_WORKERS;
use trafficllm::{
    Detection, DeviceChoice, DeviceOptions, DeviceState, DeviceStatus, Engine, EngineCounters,
    EngineOptions, LineError, Model, Outcome, Progress, Sink, Tally,
};

use super::console;
use super::output::Writer;
use super::progress::Bar;
use super::summary::Totals;
use super::{DetectArgs, Exit, Failure, open_model};

/// Bytes of output that are gathered before they are written.
const OUTPUT_BYTES: usize = 1 << 16;
/// Bad lines that are shown of one file; further ones are only counted.
const BAD_LINES_SHOWN: usize = 20;

/// Runs the command.
pub(super) fn run(args: &DetectArgs) -> Result<Exit, Failure> {
    let model = Arc::new(open_model(
        args.model.as_deref(),
        args.device.unwrap_or_default(),
    )?);
    judge(args, &model).map(|(exit, _)| exit)
}

/// Judges the captures with a model that was opened before.
pub(super) fn judge(args: &DetectArgs, model: &Arc<Model>) -> Result<(Exit, Tally), Failure> {
    let device = args.device.unwrap_or_default();
    let mut engine = started(args, model, device)?;
    let mut judges = engine.device_status();
    if judges.state == DeviceState::Unavailable {
        // As many threads as suit the processor.
        drop(engine);
        engine = started(args, model, DeviceChoice::Cpu)?;
    }
    let has_heads = !engine.heads().is_empty();
    let sink = Output::new(args, model, has_heads);
    let mut detection = engine.detect(sink);
    let mut totals = Totals::default();
    for path in &args.captures {
        if detection.is_stopped() {
            break;
        }
        read_input(path, &mut detection, &mut totals)?;
    }
    let (tally, mut sink) = detection.finish()?;
    sink.finish();
    console::note(&totals.describe(&tally, sink.is_closed(), sink.bar.elapsed()));
    if device != DeviceChoice::Cpu {
        if judges.state != DeviceState::Unavailable {
            judges = engine.device_status();
        }
        console::note(&describe_device(&judges, &engine.counters()));
    }
    for head in engine.heads() {
        if let Some(text) = super::head::losses(&head) {
            console::note(&text);
        }
    }
    match sink.failure {
        // Whoever reads the output has enough of it: `head` does so.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok((Exit::Done, tally)),
        Some(error) => Err(Failure {
            exit: Exit::Incomplete,
            message: format!("standard output: writing failed: {error}"),
        }),
        None if totals.is_incomplete() => Ok((Exit::Incomplete, tally)),
        None => Ok((Exit::Done, tally)),
    }
}

fn started(args: &DetectArgs, model: &Arc<Model>, device: DeviceChoice) -> Result<Engine, Failure> {
    let engine = Engine::new(Arc::clone(model), options(args, model, device))?;
    engine.start()?;
    Ok(engine)
}

/// What judged, and what it left undone.
fn describe_device(device: &DeviceStatus, counters: &EngineCounters) -> String {
    let mut text = format!("device: {device}");
    if counters.device_batches + counters.device_failures > 0 {
        let _infallible = write!(
            text,
            ", {} of {} batches",
            counters.device_batches, counters.batches
        );
    }
    if counters.device_failures > 0 {
        let _infallible = write!(text, ", {} failed", counters.device_failures);
    }
    text
}

fn options(args: &DetectArgs, model: &Model, device: DeviceChoice) -> EngineOptions {
    let threads = args.threads.map_or_else(
        || match device {
            DeviceChoice::Cpu => available_parallelism().map_or(1, usize::from),
            DeviceChoice::Auto | DeviceChoice::Cuda(_) => DEVICE_WORKERS,
        },
        usize::from,
    );
    let mut flows = model.flow_config();
    if let Some(max_flows) = args.max_flows {
        flows.max_flows = max_flows;
    }
    EngineOptions {
        // One thread is this one: no worker needs to be started and fed.
        workers: if threads == 1 {
            0
        } else {
            threads.min(trafficllm::limits::WORKERS_MAX)
        },
        tasks: args.tasks.clone(),
        batch_tokens: 0,
        flows: Some(flows),
        device: DeviceOptions {
            choice: device,
            ..DeviceOptions::default()
        },
        heads: args.heads.options(),
        ..EngineOptions::default()
    }
}

fn read_input(
    path: &Path,
    detection: &mut Detection<'_, Output>,
    totals: &mut Totals,
) -> Result<(), Failure> {
    let failure = if path.as_os_str() == "-" {
        let report = detection.capture(io::stdin().lock())?;
        totals.add_capture(&report);
        report.failure.map(|error| error.to_string())
    } else {
        match File::open(path) {
            Err(error) => {
                detection.skip_source();
                totals.add_unopened();
                Some(format!("opening failed: {error}"))
            }
            Ok(file)
                if path
                    .extension()
                    .is_some_and(|extension| extension == "jsonl") =>
            {
                let report = detection.requests(BufReader::new(file))?;
                totals.add_requests(&report);
                report
                    .failure
                    .map(|error| format!("reading failed: {error}"))
            }
            Ok(file) => {
                let report = detection.capture(file)?;
                totals.add_capture(&report);
                report.failure.map(|error| error.to_string())
            }
        }
    };
    let sink = detection.sink_mut();
    if let Some(message) = failure {
        sink.report(&format!(
            "{}: {message}",
            console::printable(&path.to_string_lossy())
        ));
    }
    sink.end_input();
    Ok(())
}

/// Takes outcomes and writes them to standard output.
struct Output {
    names: Vec<String>,
    writer: Writer,
    buffer: Vec<u8>,
    /// Why standard output takes no more.
    failure: Option<io::Error>,
    bar: Bar,
    source_bytes: u64,
    bad_lines_shown: usize,
    is_terminal: bool,
}

impl Output {
    fn new(args: &DetectArgs, model: &Model, has_heads: bool) -> Self {
        let name = |path: &PathBuf| path.to_string_lossy().into_owned();
        Self {
            names: args.captures.iter().map(name).collect(),
            writer: Writer::new(args.format, model.id(), model.profile_name(), has_heads),
            buffer: Vec::new(),
            failure: None,
            bar: Bar::new(&args.captures),
            source_bytes: 0,
            bad_lines_shown: 0,
            is_terminal: stdout().is_terminal(),
        }
    }

    fn is_closed(&self) -> bool {
        self.failure
            .as_ref()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// An error that does not end the detection.
    fn report(&self, message: &str) {
        self.bar.aside(|| console::error(message));
    }

    fn end_input(&mut self) {
        self.bar.end_input(self.source_bytes);
        self.source_bytes = 0;
        self.bad_lines_shown = 0;
    }

    fn finish(&mut self) {
        self.bar.finish();
        if self.failure.is_none() {
            self.failure = self.writer.finish(&mut self.buffer).err();
        }
        self.flush();
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() || self.failure.is_some() {
            return;
        }
        let write = || {
            let mut out = stdout().lock();
            out.write_all(&self.buffer).and_then(|()| out.flush())
        };
        // A bar and a table on the same terminal would overwrite each other.
        let written = if self.is_terminal {
            self.bar.aside(write)
        } else {
            write()
        };
        self.failure = written.err();
        self.buffer.clear();
    }
}

impl Sink for Output {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        let name = self.names.get(outcome.source).map_or("", String::as_str);
        if let Err(error) = self.writer.write(name, outcome, &mut self.buffer) {
            self.failure = Some(error);
        }
        if self.buffer.len() >= OUTPUT_BYTES {
            self.flush();
        }
        if self.failure.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn progress(&mut self, progress: &Progress) {
        self.source_bytes = progress.source_bytes;
        self.bar.update(progress);
        // Whoever reads from a live capture should not wait for a full buffer.
        self.flush();
    }

    fn bad_line(&mut self, source: usize, error: &LineError) {
        self.bad_lines_shown += 1;
        let name = console::printable(self.names.get(source).map_or("", String::as_str));
        if self.bad_lines_shown <= BAD_LINES_SHOWN {
            self.report(&format!(
                "{name}: {}",
                console::printable(&error.to_string())
            ));
        } else if self.bad_lines_shown == BAD_LINES_SHOWN + 1 {
            self.report(&format!("{name}: further bad lines are only counted"));
        }
    }
}
