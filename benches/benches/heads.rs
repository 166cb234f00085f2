//! What a head costs: the same linear classifier built in, as a native library and as a module, on 1 KB of input for each flow:
//! `cargo bench -p trafficllm-benches --features heads --bench heads`.
//!
//! A module is measured with all that a call takes: writing the block, the call, reading and checking the verdict, and putting the module's
//! memory back. `one` is a flow for each call, as heads run unless the operator says otherwise; `batch` are 8 flows in one, with their
//! time divided. `grow` is the price of a head that defeats the putting back by growing its memory: it begins anew each time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that fails may stop, and prints its figures"
)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use trafficllm_benches::{Contender, interleaved_medians};
use trafficllm_heads::abi::flow_block_bytes;
use trafficllm_heads::{
    Answers, Conditions, Execution, FlowInput, Guard, GuardOptions, Head, Isolation, Linear,
    NativeHead, Sandbox, SandboxOptions, Station,
};

/// With block and flow heads: 1 KB.
const HIDDEN: usize = 224;
const BATCH: usize = 8;
const ROUNDS: usize = 201;
const CALLS: usize = 50;

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

fn station(head: Arc<dyn Head>) -> Station {
    let mut conditions = Conditions::default();
    conditions.model.hidden = HIDDEN as u32;
    // Never switched off, though one of them begins anew with every flow.
    let options = GuardOptions {
        faults_in_a_row_max: 0,
    };
    let guard = Guard::new(head, options);
    let mut station = Station::new(Arc::new(guard), Arc::new(conditions));
    station.prepare().unwrap();
    station
}

/// Rounds of so many calls each, all contenders in turns; tells nanoseconds for each flow.
fn measure(title: &str, contenders: Vec<(&str, Station, usize)>, flows: &[FlowInput<'_>]) {
    let counts: Vec<usize> = contenders.iter().map(|(_, _, count)| *count).collect();
    let mut contenders: Vec<Contender<'_>> = contenders
        .into_iter()
        .map(|(name, mut station, count)| {
            let mut answers = Answers::default();
            let work = move || {
                for _ in 0..CALLS {
                    answers.clear();
                    station.judge(black_box(&flows[..count]), &mut answers);
                }
                assert_eq!(station.guard().counters().faults, 0);
            };
            (name, Box::new(work) as Box<dyn FnMut()>)
        })
        .collect();
    println!("{title}");
    let medians = interleaved_medians(ROUNDS, &mut contenders);
    for (((name, _), median_s), count) in contenders.iter().zip(medians).zip(counts) {
        let per_flow_ns = median_s * 1e9 / (CALLS * count) as f64;
        println!("  {name:<20} {per_flow_ns:>9.0} ns");
    }
}

fn main() {
    let module = repository().join("plugins/examples/modules/linear.wasm");
    let module = std::fs::read(module).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("heads");
    let hidden: Vec<f32> = (0..HIDDEN)
        .map(|value| (value % 17) as f32 / 8.0 - 1.0)
        .collect();
    let flows = [FlowInput {
        hidden: &hidden,
        packets_total: 12,
        ..FlowInput::default()
    }; BATCH];
    for labels in [2, 16] {
        let linear = linear(labels);
        let filled = linear.fill(&module).unwrap();
        let bytes = flow_block_bytes(&flows[..1], linear.about().needs);
        let wasm = |isolation, execution| {
            let sandbox = sandbox(isolation, execution);
            station(Arc::new(sandbox.load("linear", &filled, &[]).unwrap()))
        };
        let native: Arc<dyn Head> = Arc::new(native(&linear, &folder));
        let built_in: Arc<dyn Head> = Arc::new(linear);
        let contenders = vec![
            ("built in, batch", station(Arc::clone(&built_in)), BATCH),
            ("native, batch", station(Arc::clone(&native)), BATCH),
            (
                "wasm, batch",
                wasm(Isolation::Call, Execution::Native),
                BATCH,
            ),
            (
                "interpreted, batch",
                wasm(Isolation::Call, Execution::Interpreted),
                BATCH,
            ),
            ("built in, one", station(built_in), 1),
            ("native, one", station(native), 1),
            ("wasm, one", wasm(Isolation::Flow, Execution::Native), 1),
            (
                "interpreted, one",
                wasm(Isolation::Flow, Execution::Interpreted),
                1,
            ),
        ];
        let title = format!("linear, {labels} labels, {bytes} bytes, each flow:");
        measure(&title, contenders, &flows);
    }
    let small = |name: &str, pages: &str| {
        let text = std::fs::read_to_string(repository().join(name)).unwrap();
        let text = text.replacen("(memory (export \"memory\") 1)", pages, 1);
        let sandbox = sandbox(Isolation::Flow, Execution::Native);
        let bytes = wat::parse_str(text).unwrap();
        station(Arc::new(sandbox.load(name, &bytes, &[]).unwrap()))
    };
    let good = "plugins/examples/good.wat";
    let contenders = vec![
        (
            "64 KB put back",
            small(good, "(memory (export \"memory\") 1)"),
            1,
        ),
        (
            "36 KB put back",
            small(good, "(memory (export \"memory\") 36864 (pagesize 1))"),
            1,
        ),
        (
            "grow",
            small(
                "plugins/attacks/leaks_growth.wat",
                "(memory (export \"memory\") 1)",
            ),
            1,
        ),
    ];
    measure(
        "a head that does next to nothing, each flow:",
        contenders,
        &flows,
    );
}
