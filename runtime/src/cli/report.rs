//! `trafficllm report`: the verdicts of `trafficllm detect --format json` as one self-contained page.

mod counts;
mod destination;
mod page;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, stdin};
use std::path::{Path, PathBuf};

use clap::Args;

use super::console::{self, printable};
use super::{Exit, Failure};
use counts::Counts;

/// Longest line that is read; a longer one is a bad line.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Bad lines that are shown of one file; further ones are only counted.
const BAD_LINES_SHOWN: usize = 20;
/// What is kept of the reason why a line is bad; a reason can hold a text of the line.
const REASON_BYTES_MAX: usize = 512;

/// What `report` is told.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Where the page goes; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Title of the page
    #[arg(long, default_value = "Verdicts")]
    title: String,
    /// JSON Lines of `detect --format json`; `-` reads standard input
    #[arg(required = true, value_name = "VERDICTS")]
    inputs: Vec<PathBuf>,
}

/// What was read of one file.
struct Input {
    name: String,
    lines: u64,
    bad_lines: u64,
    /// The first bad lines and why, at most [`BAD_LINES_SHOWN`].
    shown: Vec<(u64, String)>,
    /// Why it could not be read to its end.
    failure: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: &ReportArgs) -> Result<Exit, Failure> {
    refuse_own_output(args)?;
    let mut counts = Counts::default();
    let inputs: Vec<Input> = args
        .inputs
        .iter()
        .map(|path| read_input(path, &mut counts))
        .collect();
    for input in &inputs {
        tell(input);
    }
    let bad_lines: u64 = inputs.iter().map(|input| input.bad_lines).sum();
    if counts.flows + counts.requests == 0 {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(incomplete(format!(
            "{}: expected at least one verdict of `detect --format json`, found none in {} lines: no page was written",
            printable(&names.join(", ")),
            inputs.iter().map(|input| input.lines).sum::<u64>()
        )));
    }
    let page =
        page::page(&args.title, &inputs, &counts).map_err(|error| incomplete(error.to_string()))?;
    write(&args.output, &page)?;
    console::note(&format!(
        "{} flows and {} requests of {} files, {bad_lines} bad lines",
        counts.flows,
        counts.requests,
        inputs.len()
    ));
    let failed = inputs.iter().any(|input| input.failure.is_some());
    Ok(if failed || bad_lines > 0 {
        Exit::Incomplete
    } else {
        Exit::Done
    })
}

fn incomplete(message: String) -> Failure {
    Failure {
        exit: Exit::Incomplete,
        message,
    }
}

/// The page would take the place of verdicts that nobody has elsewhere.
fn refuse_own_output(args: &ReportArgs) -> Result<(), Failure> {
    let same = |path: &&PathBuf| destination::is_same_file(path, &args.output);
    match args.inputs.iter().find(same) {
        None => Ok(()),
        Some(path) => Err(Failure {
            exit: Exit::Usage,
            message: format!(
                "{}: expected another file for the page than for the verdicts",
                shown(path)
            ),
        }),
    }
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

fn read_input(path: &Path, counts: &mut Counts) -> Input {
    let mut input = Input {
        name: path.to_string_lossy().into_owned(),
        lines: 0,
        bad_lines: 0,
        shown: Vec::new(),
        failure: None,
    };
    let failure = if path.as_os_str() == "-" {
        read_lines(stdin().lock(), &mut input, counts)
    } else {
        File::open(path).and_then(|file| read_lines(BufReader::new(file), &mut input, counts))
    };
    input.failure = failure.err().map(|error| error.to_string());
    input
}

fn read_lines(mut source: impl BufRead, input: &mut Input, counts: &mut Counts) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let taken = source.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if taken == 0 {
            return Ok(());
        }
        input.lines += 1;
        let is_whole = line.last() == Some(&b'\n');
        let text = line.trim_ascii();
        let added = if !is_whole && line.len() > LINE_BYTES_MAX {
            source.skip_until(b'\n')?;
            Err(format!(
                "expected at most {LINE_BYTES_MAX} bytes, found more"
            ))
        } else if text.is_empty() {
            Ok(())
        } else {
            counts.add(text)
        };
        if let Err(reason) = added {
            input.bad_lines += 1;
            if input.shown.len() < BAD_LINES_SHOWN {
                input.shown.push((input.lines, cut(reason)));
            }
        }
    }
}

fn cut(mut reason: String) -> String {
    if reason.len() > REASON_BYTES_MAX {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        reason.push('…');
    }
    reason
}

/// Says what could not be read.
fn tell(input: &Input) {
    let name = printable(&input.name);
    for (line, reason) in &input.shown {
        console::error(&format!("{name}, line {line}: {}", printable(reason)));
    }
    if input.bad_lines > input.shown.len() as u64 {
        console::error(&format!("{name}: {} bad lines in all", input.bad_lines));
    }
    if let Some(failure) = &input.failure {
        console::error(&format!("{name}: reading failed: {failure}"));
    }
}

fn write(path: &Path, page: &str) -> Result<(), Failure> {
    match destination::write(path, page.as_bytes()) {
        // Who closed the pipe has read what was wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(incomplete(format!(
            "{}: writing failed: {error}",
            shown(path)
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
