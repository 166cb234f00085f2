//! From a flow's last needed packet to its verdict, as an inline host sees it: one thread submits flows at random times and takes
//! the verdicts back, one worker judges: `cargo bench -p trafficllm-benches --bench latency`. It wants two idle cores.
//!
//! The flows are those of the shared data, where it is there, else of the recorded captures. First what one core can do, for one
//! task and for all in turns; then, at half of what the worker can do, the time from the moment a flow is due to the moment its
//! verdict is in the caller's hands. A submission that comes late because its thread was busy counts from when it was due.
//!
//! `TLLM_BENCH_MODEL` names another bundle than the default one.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that fails may stop, and prints its figures"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trafficllm::{Bundle, Engine, EngineOptions, Flow, Judgement, Model};
use trafficllm_benches::{Contender, interleaved_medians, recorded_captures, shared_captures};
use trafficllm_traffic::token::EncodeScratch;
use trafficllm_traffic::{CaptureReader, FlowTable, decode};

const ROUNDS: usize = 5;
/// Bytes of the shared data whose flows are used.
const SHARED_BYTES: usize = 4_000_000;
/// Flows of one round of the throughput.
const THROUGHPUT_FLOWS: usize = 2_000;
/// Flows that arrive in one measurement of the latency: the slowest thousandth are ten.
const LATENCY_FLOWS: usize = 10_000;
/// The share of the worker's capacity at which flows arrive.
const LOAD: f64 = 0.5;
const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// Uniform numbers above 0 and up to 1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// Moments of arrival, each independent of the others.
fn arrivals(rate: f64) -> Vec<Duration> {
    let mut numbers = Numbers(SEED);
    let mut seconds = 0.0;
    let moments = (0..LATENCY_FLOWS).map(|_| {
        seconds -= numbers.next().ln() / rate;
        Duration::from_secs_f64(seconds)
    });
    moments.collect()
}

fn flows_of(model: &Model, captures: &[Vec<u8>]) -> Vec<Flow> {
    let mut flows = Vec::new();
    for capture in captures {
        let Ok(mut reader) = CaptureReader::new(capture.as_slice()) else {
            continue;
        };
        let mut table = FlowTable::new(model.flow_config()).unwrap();
        while let Ok(Some(raw)) = reader.next_packet() {
            if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                table.push(&packet, &mut |flow| flows.push(flow));
            }
        }
        table.flush(&mut |flow| flows.push(flow));
    }
    // On a link flows of all kinds come mixed; in the files those of one kind, and so of one length, come in a row.
    let mut numbers = Numbers(SEED);
    for last in (1..flows.len()).rev() {
        flows.swap(
            last,
            (numbers.next() * (last + 1) as f64) as usize % (last + 1),
        );
    }
    flows
}

fn start(model: &Arc<Model>, workers: usize, tasks: &[String], batch_tokens: usize) -> Engine {
    let options = EngineOptions {
        workers,
        tasks: tasks.to_vec(),
        batch_tokens,
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::clone(model), options).unwrap();
    engine.start().unwrap();
    engine
}

/// Judges flows on this thread alone, encoding included.
fn judge_inline(engine: &Engine, flows: &[Flow]) {
    let mut submitter = engine.submitter().unwrap();
    let mut done = 0;
    let mut rest = flows.iter().cycle().take(THROUGHPUT_FLOWS).peekable();
    while done < THROUGHPUT_FLOWS {
        while let Some(flow) = rest.next_if(|_| submitter.in_flight() < 512) {
            submitter.submit(flow, 0).unwrap();
        }
        engine.run_pending();
        done +=
            submitter.poll(|answer| assert!(matches!(answer.judgement, Judgement::Verdicts(_))));
    }
}

/// Flows a second that the worker judges while its queue never runs empty.
fn capacity(engine: &Engine, flows: &[Flow]) -> f64 {
    let mut submitter = engine.submitter().unwrap();
    let mut all = flows.iter().cycle();
    let mut submit_and_take = |count: usize| {
        let mut done = 0;
        while done < count {
            while submitter.in_flight() < 512 {
                submitter.submit(all.next().unwrap(), 0).unwrap();
            }
            done += submitter.wait(Duration::from_secs(1), |_| ());
        }
        done
    };
    submit_and_take(THROUGHPUT_FLOWS / 4);
    let start = Instant::now();
    let done = submit_and_take(2 * THROUGHPUT_FLOWS);
    done as f64 / start.elapsed().as_secs_f64()
}

/// Submits flows when they are due, and gives the microseconds from then to each one's verdict, ascending.
fn latencies_us(engine: &Engine, flows: &[Flow], due: &[Duration]) -> Vec<f64> {
    let mut submitter = engine.submitter().unwrap();
    let mut latencies = Vec::with_capacity(due.len());
    let mut waiting = flows.iter().cycle().zip(0..).zip(due).peekable();
    let start = Instant::now();
    while latencies.len() < due.len() {
        while let Some(((flow, id), _)) = waiting.next_if(|(_, due)| **due <= start.elapsed()) {
            submitter.submit(flow, id).unwrap();
        }
        submitter.poll(|answer| {
            assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
            let took = start.elapsed() - due[answer.id as usize];
            latencies.push(took.as_secs_f64() * 1e6);
        });
        std::hint::spin_loop();
    }
    assert_eq!(engine.counters().shed, 0);
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn percentile(ascending: &[f64], share: f64) -> f64 {
    let index = (ascending.len() as f64 * share) as usize;
    ascending[index.min(ascending.len() - 1)]
}

fn measure(name: &str, model: &Arc<Model>, flows: &[Flow]) {
    println!("{name}: {} flows", flows.len());
    let one: Vec<String> = model.task_names().take(1).map(str::to_owned).collect();
    let choices = [("one task", one), ("all tasks", Vec::new())];
    let inline: Vec<Engine> = choices
        .iter()
        .map(|(_, tasks)| start(model, 0, tasks, 0))
        .collect();
    let mut contenders: Vec<Contender<'_>> = choices
        .iter()
        .zip(&inline)
        .map(|((name, _), engine)| -> Contender<'_> {
            (name, Box::new(|| judge_inline(engine, flows)))
        })
        .collect();
    let medians = interleaved_medians(ROUNDS, &mut contenders);
    drop(contenders);
    for ((name, _), seconds) in choices.iter().zip(&medians) {
        println!(
            "  {name:<10} {:>8.0} flows/s on one core, {:.2} x the time of one task",
            THROUGHPUT_FLOWS as f64 / seconds,
            seconds / medians[0]
        );
    }
    let (mut scratch, mut tokens) = (EncodeScratch::default(), Vec::new());
    let (mut total, started) = (0, Instant::now());
    for flow in flows.iter().cycle().take(THROUGHPUT_FLOWS) {
        model.encoder().encode_flow(flow, &mut scratch, &mut tokens);
        total += tokens.len();
    }
    println!(
        "  encoding   {:>8.1} us and {} tokens a flow",
        started.elapsed().as_secs_f64() * 1e6 / THROUGHPUT_FLOWS as f64,
        total / THROUGHPUT_FLOWS
    );
    for (name, tasks) in &choices {
        let mut memory = None;
        for batch_tokens in [256, 512, 1024, 2048] {
            let engine = start(model, 1, tasks, batch_tokens);
            let capacity = capacity(&engine, flows);
            let rate = capacity * LOAD;
            let took = latencies_us(&engine, flows, &arrivals(rate));
            println!(
                "  {name:<10} batches of {batch_tokens:>4} tokens: worker {capacity:>6.0} flows/s, arrivals {rate:>6.0}/s, \
                 p50 {:>6.0} us, p99 {:>6.0} us, p99.9 {:>6.0} us",
                percentile(&took, 0.5),
                percentile(&took, 0.99),
                percentile(&took, 0.999)
            );
            memory = Some({
                let _submitter = engine.submitter().unwrap();
                engine.memory()
            });
        }
        if let Some(memory) = memory {
            println!("  {name:<10} with one submitter: {memory:?}");
        }
    }
}

fn main() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var_os("TLLM_BENCH_MODEL").map_or_else(
        || repository.join("runtime/bundle/default.tllm"),
        PathBuf::from,
    );
    let bundle = Bundle::open(&path).unwrap();
    let level = Model::level_from_environment().unwrap();
    let model = Arc::new(Model::load(&bundle, level).unwrap());
    println!("model {} on level {}", model.id(), level.name());
    let shared = flows_of(&model, &shared_captures(repository, SHARED_BYTES).unwrap());
    if shared.is_empty() {
        println!("shared data, val: not there; the recorded captures instead");
        let recorded = flows_of(&model, &recorded_captures(repository).unwrap());
        measure("recorded captures", &model, &recorded);
    } else {
        measure("shared data, val", &model, &shared);
    }
}
