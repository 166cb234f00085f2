//! Flows per second from the bytes of captures to verdicts, on one thread: on the recorded captures the portable kernels and the
//! fastest ones in turns, on the shared data, where it is there, the fastest ones alone (the portable ones would take minutes):
//! `cargo bench -p trafficllm-benches --bench detect`.
//!
//! `TLLM_BENCH_MODEL` names another bundle than the default one.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that fails may stop, and prints its figures"
)]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trafficllm::{Bundle, Engine, EngineOptions, Level, Model, Outcome, Sink, Tally};
use trafficllm_benches::{Contender, interleaved_medians};

const ROUNDS: usize = 5;
/// How often the recorded captures are read in one round.
const REPEATS: usize = 4;
/// Bytes of the shared data that are read in one round: some thousand flows.
const SHARED_BYTES: u64 = 4_000_000;

struct Discard;

impl Sink for Discard {
    fn outcome(&mut self, _outcome: &Outcome<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn detect(engine: &mut Engine, captures: &[Vec<u8>], repeats: usize) -> Tally {
    let mut detection = engine.detect(Discard);
    for _ in 0..repeats {
        for capture in captures {
            detection.capture(capture.as_slice()).unwrap();
        }
    }
    detection.finish().unwrap().0
}

fn measure(name: &str, bundle: &Bundle, levels: &[Level], captures: &[Vec<u8>], repeats: usize) {
    let start = |level: &Level| {
        let model = Arc::new(Model::load(bundle, *level).unwrap());
        Engine::start(model, EngineOptions::default()).unwrap()
    };
    let mut engines: Vec<Engine> = levels.iter().map(start).collect();
    let tally = detect(&mut engines[0], captures, repeats);
    let mut contenders: Vec<Contender<'_>> = levels
        .iter()
        .zip(&mut engines)
        .map(|(level, engine)| -> Contender<'_> {
            (
                level.name(),
                Box::new(move || _ = std::hint::black_box(detect(engine, captures, repeats))),
            )
        })
        .collect();
    let medians = interleaved_medians(ROUNDS, &mut contenders);
    println!(
        "{name}: {} flows, {} verdicts, medians of {ROUNDS} rounds in turns, one thread:",
        tally.flows,
        tally.verdicts()
    );
    for ((level, _), seconds) in contenders.iter().zip(&medians) {
        let rate = tally.flows as f64 / seconds;
        println!(
            "  {level:<12}{rate:>10.0} flows/s  {:>6.2} x {}",
            medians[0] / seconds,
            levels[0].name()
        );
    }
}

fn recorded(repository: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(repository.join("tests/captures"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|found| found != "jsonl"))
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Captures of all tasks' `val` folders in turns, up to a total size; `None` where the shared data is not there.
fn shared(repository: &Path) -> Option<Vec<Vec<u8>>> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        paths.sort();
        paths
    };
    let tasks = list(&repository.join("../shared/data"));
    let mut queues: Vec<Vec<PathBuf>> = tasks
        .iter()
        .map(|task| {
            list(&task.join("val"))
                .iter()
                .flat_map(|label| list(label))
                .rev()
                .collect()
        })
        .collect();
    let (mut captures, mut total) = (Vec::new(), 0);
    while total < SHARED_BYTES && queues.iter().any(|queue| !queue.is_empty()) {
        for path in queues.iter_mut().filter_map(Vec::pop) {
            let bytes = fs::read(path).unwrap();
            total += bytes.len() as u64;
            captures.push(bytes);
        }
    }
    (!captures.is_empty()).then_some(captures)
}

fn main() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var_os("TLLM_BENCH_MODEL").map_or_else(
        || repository.join("runtime/bundle/default.tllm"),
        PathBuf::from,
    );
    let bundle = Bundle::open(&path).unwrap();
    println!("model {} from {}", bundle.id(), path.display());
    let best = Level::detect();
    let all = if best == Level::Portable {
        vec![best]
    } else {
        vec![Level::Portable, best]
    };
    measure(
        "recorded captures",
        &bundle,
        &all,
        &recorded(repository),
        REPEATS,
    );
    match shared(repository) {
        Some(captures) => measure("shared data, val", &bundle, &[best], &captures, 1),
        None => println!("shared data, val: not there, not measured"),
    }
}
