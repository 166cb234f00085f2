//! What a head costs: the same linear classifier built in, as a native library and as a module, on 1 KB of input for each flow:
//! `cargo bench -p trafficllm-benches --features heads --bench heads`.
//!
//! A module is measured with all that a call takes: writing the block, the call, reading and checking the verdict, and putting the module's
//! memory back. `one` is a flow for each call, as heads run unless the operator says otherwise; `batch` are 8 flows in one, with their
//! time divided. `grow` is the price of a head that defeats the putting back by growing its memory: it begins anew each time.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench that fails may stop"
)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use trafficllm_heads::abi::flow_block_bytes;
use trafficllm_heads::{
    Answers, Conditions, Execution, FlowInput, Guard, GuardOptions, Head, Isolation, Linear,
    NativeHead, Sandbox, SandboxOptions, Station,
};

/// With block and flow heads: 1 KB.
const HIDDEN: usize = 224;
const BATCH: usize = 8;

fn repository() -> PathBuf {
    let folder = std::env::var_os("TLLM_REPOSITORY").map(PathBuf::from);
    folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

fn linear(labels: usize) -> Linear {
    let number = |number: usize| (number * 7_919 % 1_000) as f32 / 1_000.0 - 0.5;
    let weights = (0..labels * HIDDEN).map(number).collect();
    let names = (0..labels).map(|label| format!("label {label}")).collect();
    let bias = (0..labels).map(number).collect();
    Linear::new(("linear", "1"), names, 0.5, (weights, bias)).unwrap()
}

fn native(linear: &Linear, folder: &Path) -> NativeHead {
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--offline",
            "--quiet",
            "--release",
            "-p",
            "trafficllm-head-linear",
        ])
        .arg("--target-dir")
        .arg(folder)
        .current_dir(repository())
        .status()
        .unwrap();
    assert!(status.success());
    let library = std::fs::read(folder.join("release/libtrafficllm_head_linear.so")).unwrap();
    let path = folder.join(format!("linear-{}.so", linear.about().labels.len()));
    std::fs::write(&path, linear.fill(&library).unwrap()).unwrap();
    NativeHead::load(&path).unwrap()
}

fn sandbox(isolation: Isolation, execution: Execution) -> Sandbox {
    let options = SandboxOptions {
        isolation,
        execution,
        ..SandboxOptions::default()
    };
    Sandbox::new(options).unwrap()
}

fn station(head: impl Head + 'static) -> Station {
    let mut conditions = Conditions::default();
    conditions.model.hidden = HIDDEN as u32;
    let guard = Guard::new(Arc::new(head), GuardOptions::default());
    let mut station = Station::new(Arc::new(guard), Arc::new(conditions));
    station.prepare().unwrap();
    station
}

fn main() {
    let module = repository().join("plugins/examples/modules/linear.wasm");
    let module = std::fs::read(module).unwrap();
    let good = wat::parse_file(repository().join("plugins/examples/good.wat")).unwrap();
    let grows = wat::parse_file(repository().join("plugins/attacks/leaks_growth.wat")).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("heads");
    let hidden: Vec<f32> = (0..HIDDEN)
        .map(|value| (value % 17) as f32 / 8.0 - 1.0)
        .collect();
    let flows = [FlowInput {
        hidden: &hidden,
        packets_total: 12,
        ..FlowInput::default()
    }; BATCH];
    let mut criterion = Criterion::default().configure_from_args();
    for labels in [2, 16] {
        let linear = linear(labels);
        let filled = linear.fill(&module).unwrap();
        let bytes = flow_block_bytes(&flows[..1], linear.about().needs);
        let wasm = |isolation, execution| {
            let sandbox = sandbox(isolation, execution);
            station(sandbox.load("linear", &filled, &[]).unwrap())
        };
        let mut group =
            criterion.benchmark_group(format!("linear, {labels} labels, {bytes} bytes"));
        let contenders = [
            ("built in, batch", station(linear.clone()), BATCH),
            ("native, batch", station(native(&linear, &folder)), BATCH),
            (
                "wasm, batch",
                wasm(Isolation::Call, Execution::Native),
                BATCH,
            ),
            ("built in, one", station(linear.clone()), 1),
            ("native, one", station(native(&linear, &folder)), 1),
            ("wasm, one", wasm(Isolation::Flow, Execution::Native), 1),
            (
                "interpreted, one",
                wasm(Isolation::Flow, Execution::Interpreted),
                1,
            ),
        ];
        for (name, mut station, count) in contenders {
            group.throughput(Throughput::Elements(count as u64));
            let mut answers = Answers::default();
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    answers.clear();
                    station.judge(black_box(&flows[..count]), &mut answers);
                    answers.len()
                });
            });
            assert_eq!(station.guard().counters().faults, 0);
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("a head that does next to nothing");
    for (name, bytes) in [("one", &good), ("grow", &grows)] {
        let sandbox = sandbox(Isolation::Flow, Execution::Native);
        let mut station = station(sandbox.load(name, bytes, &[]).unwrap());
        let mut answers = Answers::default();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                answers.clear();
                station.judge(black_box(&flows[..1]), &mut answers);
                answers.len()
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
