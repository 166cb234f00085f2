//! What heads cost in the whole engine, in turns within one run: a detection without heads, with one that looks at the scores, and with
//! one that remembers. The first is the built-in path: its instructions are held by the gate in `benches/instructions`.
//!
//! `cargo bench -p trafficllm-benches --features heads --bench engine_heads`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that fails may stop, and says what it found"
)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use trafficllm::{Engine, EngineOptions, HeadFile, HeadOptions, Model, Outcome, Sink};

/// Turns of each variant.
const TURNS: usize = 31;

struct Count(u64);

impl Sink for Count {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        self.0 += outcome.verdicts.len() as u64;
        ControlFlow::Continue(())
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn engine(model: &Arc<Model>, module: Option<&str>) -> Engine {
    let folder = repository().join("plugins/examples/modules");
    let modules = module.map(|name| HeadFile {
        path: folder.join(name),
        task: None,
    });
    let options = EngineOptions {
        heads: HeadOptions {
            modules: modules.into_iter().collect(),
            allows_state: true,
            ..HeadOptions::default()
        },
        ..EngineOptions::default()
    };
    Engine::new(Arc::clone(model), options).unwrap()
}

/// Nanoseconds for each flow.
fn turn(engine: &Engine, captures: &[Vec<u8>]) -> f64 {
    let begin = Instant::now();
    let mut detection = engine.detect(Count(0));
    for capture in captures {
        detection.capture(capture.as_slice()).unwrap();
    }
    let (tally, _) = detection.finish().unwrap();
    begin.elapsed().as_nanos() as f64 / tally.flows as f64
}

fn main() {
    let model = Arc::new(Model::open_default().unwrap());
    let captures = [
        "http.pcap",
        "tls.pcapng",
        "smtp.pcap",
        "ssh.pcap",
        "dns-tunnel.pcap",
    ];
    let captures =
        captures.map(|name| std::fs::read(repository().join("tests/captures").join(name)).unwrap());
    let variants = [
        ("without heads", None),
        ("without heads, again", None),
        ("fusion (scores of all labels)", Some("fusion.wasm")),
        ("beaconing (keeps state)", Some("beaconing.wasm")),
    ];
    let engines = variants.map(|(_, module)| engine(&model, module));
    let mut times = vec![Vec::new(); variants.len()];
    for round in 0..=TURNS {
        for (engine, times) in engines.iter().zip(&mut times) {
            let time = turn(engine, &captures);
            // The first turn fills the caches.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|times| {
            times.sort_unstable_by(f64::total_cmp);
            times[times.len() / 2]
        })
        .collect();
    println!(
        "one thread, {}, {TURNS} turns each, median",
        model.level().name()
    );
    for ((name, _), median) in variants.iter().zip(&medians) {
        let ratio = median / medians[0];
        println!(
            "{name:<32} {:>9.1} us for each flow, {ratio:.4} of the first",
            median / 1_000.0
        );
    }
}
