//! Counts the instructions of fixed work under callgrind and holds them against `counts.json`: a busy machine sways seconds, but not these.
//!
//!     cargo run --release -p trafficllm-instructions            # fails where a count has grown by more than 2 %
//!     cargo run --release -p trafficllm-instructions -- --update
//!
//! The work runs at the AVX2 level, the best that callgrind knows. It is done once and three times, and half of the difference counts: so
//! start and loading fall out. Counts depend on the compiler; with another one than the file's they are printed, not judged.

use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::{env, fs};

use clap::Parser;
use serde_json::{Map, Value, json};
use trafficllm::{Flow, Level, Model};
use trafficllm_model::{Item, Scratch};
use trafficllm_traffic::token::EncodeScratch;
use trafficllm_traffic::{CaptureReader, FlowTable, decode};

/// Growth that is accepted: hash tables are seeded at random, so counts move a little.
const TOLERANCE: f64 = 0.02;
/// Sequences of the fixed batch, and their lengths.
const SEQUENCES: usize = 26;
const LENGTHS: std::ops::Range<usize> = 20..134;
const LEVEL: &str = "avx2";
const WORK: [&str; 3] = ["model, one task", "model, all tasks", "captures to tokens"];

type Failure = Box<dyn Error>;

/// Counts instructions of fixed work and compares them with those on file.
#[derive(Parser)]
struct Arguments {
    /// Write the counts to the file instead of judging them.
    #[arg(long)]
    update: bool,
    /// Do a piece of work, so many times: what runs under callgrind.
    #[arg(long, num_args = 2, value_names = ["WORK", "TIMES"], hide = true)]
    work: Option<Vec<usize>>,
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[expect(clippy::print_stderr, reason = "a command says what is wrong")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.work.as_deref() {
        Some(&[work, times]) => do_work(work, times).map(|()| true),
        _ => judge(arguments.update),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command that reports")]
fn judge(update: bool) -> Result<bool, Failure> {
    if Level::from_name(LEVEL).is_err() {
        println!("SKIPPED: this processor has no {LEVEL}");
        return Ok(true);
    }
    let file = folder().join("counts.json");
    let compiler = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("--version")
        .output()?;
    let compiler = String::from_utf8(compiler.stdout)?.trim().to_owned();
    let known: Value = match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) if update => Value::Null,
        Err(error) => return Err(format!("{}: {error}", file.display()).into()),
    };
    let judged = known["compiler"] == compiler.as_str();
    let (mut counts, mut good) = (Map::new(), true);
    for (index, name) in WORK.iter().enumerate() {
        let runs = [start(index, 1)?, start(index, 3)?].map(counted);
        let [once, thrice] = runs;
        let count = (thrice? - once?) / 2;
        let before = known["instructions"][name].as_u64();
        let growth = before.map(|before| count as f64 / before as f64 - 1.0);
        let grown = growth.is_some_and(|growth| growth > TOLERANCE);
        let missing = before.is_none();
        good &= !(judged && grown || missing);
        println!(
            "{name:<20} {count:>12} instructions  {}",
            match growth {
                Some(growth) => format!(
                    "{:+.2} %{}",
                    growth * 100.0,
                    if grown { "  GROWN" } else { "" }
                ),
                None => "not on file".to_owned(),
            }
        );
        counts.insert((*name).to_owned(), json!(count));
    }
    if update {
        let text =
            serde_json::to_string_pretty(&json!({"compiler": compiler, "instructions": counts}))?;
        fs::write(&file, text + "\n")?;
        return Ok(true);
    }
    if !judged {
        println!(
            "not judged: counted with {compiler}, on file are those of {}",
            known["compiler"]
        );
    }
    Ok(good)
}

/// Starts a run of this program that does the work so many times.
fn start(work: usize, times: usize) -> Result<Child, Failure> {
    let child = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--work", &work.to_string(), &times.to_string()])
        .stderr(Stdio::piped())
        .spawn();
    Ok(child.map_err(|error| format!("valgrind: {error}"))?)
}

/// The instructions that it took.
fn counted(run: Child) -> Result<u64, Failure> {
    let output = run.wait_with_output()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, count)) if output.status.success() => Ok(count.trim().parse()?),
        _ => Err(format!("valgrind failed:\n{report}").into()),
    }
}

fn do_work(work: usize, times: usize) -> Result<(), Failure> {
    let model = Model::load(&Model::default_bundle()?, Level::from_name(LEVEL)?)?;
    if work == 2 {
        let captures = captures()?;
        let mut tokens = 0;
        for _ in 0..times {
            tokens += to_tokens(&model, &captures)?;
        }
        return if tokens > 0 {
            Ok(())
        } else {
            Err("no tokens".into())
        };
    }
    let sequences = sequences(model.core().config().vocabulary as u64);
    let tasks: Vec<usize> = if work == 0 {
        vec![0]
    } else {
        (0..model.core().tasks().len()).collect()
    };
    let item = |tokens| Item {
        tokens,
        tasks: &tasks,
    };
    let items: Vec<_> = sequences
        .iter()
        .map(|tokens| item(tokens.as_slice()))
        .collect();
    let (mut scratch, mut verdicts) = (Scratch::default(), Vec::new());
    for _ in 0..times {
        model.core().classify(&items, &mut scratch, &mut verdicts)?;
        black_box(&verdicts);
    }
    Ok(())
}

fn sequences(vocabulary: u64) -> Vec<Vec<u32>> {
    let mut state = 7_u64;
    let mut below = |end: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let mut sequence = || {
        let length = LENGTHS.start + below(LENGTHS.len() as u64) as usize;
        (0..length).map(|_| below(vocabulary) as u32).collect()
    };
    (0..SEQUENCES).map(|_| sequence()).collect()
}

/// The recorded captures, in the order of their names.
fn captures() -> Result<Vec<Vec<u8>>, Failure> {
    let entries = fs::read_dir(folder().join("../../tests/captures"))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, Failure>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found != "jsonl"));
    paths.sort();
    paths.iter().map(|path| Ok(fs::read(path)?)).collect()
}

fn to_tokens(model: &Model, captures: &[Vec<u8>]) -> Result<usize, Failure> {
    let (mut scratch, mut ids, mut tokens) = (EncodeScratch::default(), Vec::new(), 0);
    for capture in captures {
        let mut reader = CaptureReader::new(capture.as_slice())?;
        let mut table = FlowTable::new(model.flow_config())?;
        let mut encode = |flow: Flow| {
            model.encoder().encode_flow(&flow, &mut scratch, &mut ids);
            tokens += ids.len();
        };
        while let Some(raw) = reader.next_packet()? {
            if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                table.push(&packet, &mut encode);
            }
        }
        table.flush(&mut encode);
    }
    Ok(tokens)
}
