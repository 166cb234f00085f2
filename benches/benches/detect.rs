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

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trafficllm::{Bundle, Engine, EngineOptions, Level, Model, Outcome, Sink, Tally};
use trafficllm_benches::{Contender, interleaved_medians, recorded_captures, shared_captures};

const ROUNDS: usize = 5;
/// How often the recorded captures are read in one round.
const REPEATS: usize = 4;
/// Bytes of the shared data that are read in one round: some thousand flows.
const SHARED_BYTES: usize = 4_000_000;

struct Discard;

impl Sink for Discard {
    fn outcome(&mut self, _outcome: &Outcome<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn detect(engine: &Engine, captures: &[Vec<u8>], repeats: usize) -> Tally {
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
        Engine::new(model, EngineOptions::default()).unwrap()
    };
    let engines: Vec<Engine> = levels.iter().map(start).collect();
    let tally = detect(&engines[0], captures, repeats);
    let mut contenders: Vec<Contender<'_>> = levels
        .iter()
        .zip(&engines)
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
        &recorded_captures(repository).unwrap(),
        REPEATS,
    );
    let shared = shared_captures(repository, SHARED_BYTES).unwrap();
    if shared.is_empty() {
        println!("shared data, val: not there, not measured");
    } else {
        measure("shared data, val", &bundle, &[best], &shared, 1);
    }
}
