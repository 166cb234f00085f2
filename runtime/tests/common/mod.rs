//! A small model with random weights, the recorded captures, and the command.
#![allow(dead_code, reason = "every test file uses its own part of this module")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "shared by tests only"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};
use trafficllm::{Bundle, Engine, EngineOptions, Level, Manifest, Model, TaskKind};
use trafficllm_model::gguf::{FloatLayer, FloatWeights, TokenizerMetadata, write_llama};
use trafficllm_model::transformer::{LoraFactors, TaskLora, TransformerConfig};
use trafficllm_model::{
    Adapter, AdapterShape, FileReference, Item, Scratch, SelfTest, TaskManifest,
};
use trafficllm_traffic::token::{Profile, Tokenizer};

pub(crate) const FLOW_TASKS: [&str; 2] = ["first_task", "second_task"];
pub(crate) const REQUEST_TASK: &str = "request_task";
const HIDDEN: usize = 64;
const HEAD: usize = 32;
const LAYERS: usize = 2;

/// Numbers from -1 to 1 that are the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
        };
        (0..count).map(|_| next()).collect()
    }
}

fn base(vocabulary: usize) -> Vec<u8> {
    let mut numbers = Numbers(7);
    let config = TransformerConfig {
        vocabulary,
        hidden: HIDDEN,
        layers: LAYERS,
        heads: 2,
        kv_heads: 1,
        head_dim: HEAD,
        feed_forward: HIDDEN,
        context: 512,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    };
    let scale = 1.5 / (HIDDEN as f32).sqrt();
    let layers = (0..LAYERS).map(|_| FloatLayer {
        attention_norm: vec![1.0; HIDDEN],
        query: numbers.floats(HIDDEN * HIDDEN, scale),
        key: numbers.floats(HEAD * HIDDEN, scale),
        value: numbers.floats(HEAD * HIDDEN, scale),
        output: numbers.floats(HIDDEN * HIDDEN, scale),
        mlp_norm: vec![1.0; HIDDEN],
        gate: numbers.floats(HIDDEN * HIDDEN, scale),
        up: numbers.floats(HIDDEN * HIDDEN, scale),
        down: numbers.floats(HIDDEN * HIDDEN, scale),
    });
    let weights = FloatWeights {
        config: config.clone(),
        layers: layers.collect(),
        token_embedding: numbers.floats(vocabulary * HIDDEN, 1.0),
        output_norm: vec![1.0; HIDDEN],
        output: None,
    };
    let metadata = TokenizerMetadata {
        tokens: (0..vocabulary).map(|id| format!("t{id}")).collect(),
        token_types: vec![1; vocabulary],
        merges: vec!["t 0".to_owned()],
        end_token: None,
        padding_token: None,
    };
    write_llama("small", &weights.quantise().unwrap(), &metadata).unwrap()
}

fn adapter(label_words: usize, seed: u64) -> Adapter {
    let mut numbers = Numbers(seed);
    Adapter {
        query_tokens: 2,
        prefix_tokens: 3,
        label_words,
        query_embedding: numbers.floats(2 * HIDDEN, 1.0),
        prefix_key: numbers.floats(LAYERS * 3 * HEAD, 1.0),
        prefix_value: numbers.floats(LAYERS * 3 * HEAD, 1.0),
        label_weight: numbers.floats(label_words * HIDDEN, 0.4),
        label_embedding: Some(numbers.floats(label_words * HIDDEN, 1.0)),
        // One task in two has low-rank additions.
        lora: (seed % 2 == 1).then(|| lora(&mut numbers)),
    }
}

fn lora(numbers: &mut Numbers) -> TaskLora {
    const RANK: usize = 4;
    let (qkv, both) = (HIDDEN + 2 * HEAD, 2 * HIDDEN);
    let channels = [HIDDEN; 4].into_iter().zip([qkv, HIDDEN, both, HIDDEN]);
    let mut factors: [LoraFactors; 4] = Default::default();
    for (of, (inputs, outputs)) in factors.iter_mut().zip(channels) {
        of.a = numbers.floats(LAYERS * RANK * inputs, 0.1);
        of.b = numbers.floats(LAYERS * RANK * outputs, 0.1);
    }
    TaskLora {
        rank: RANK,
        factors,
    }
}

fn task(
    name: &str,
    kind: TaskKind,
    labels: &[&str],
    label_words: Vec<Vec<u32>>,
    threshold: f32,
) -> TaskManifest {
    TaskManifest {
        name: name.to_owned(),
        kind,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        label_words,
        adapter: FileReference::new(format!("adapters/{name}.safetensors")),
        temperature: 1.0,
        threshold,
        metrics: json!({ "macro_f1": 0.5 }),
        version: 1,
        data_statement: Value::Null,
        set_aside: Vec::new(),
    }
}

/// Two flow tasks, one with labels of two words, and one request task, over random weights.
pub(crate) fn small_bundle(edit: impl Fn(&mut Manifest)) -> Bundle {
    let tokenizer = Tokenizer::from_merges(Vec::new()).unwrap();
    let shape = AdapterShape {
        hidden: HIDDEN,
        layers: LAYERS,
        key_value: HEAD,
        query: HIDDEN,
        feed_forward: HIDDEN,
    };
    let mut files = BTreeMap::from([
        ("base.gguf".to_owned(), base(tokenizer.vocabulary_size())),
        ("tokenizer.json".to_owned(), tokenizer.to_json()),
    ]);
    let single = |count: u32| (0..count).map(|word| vec![word]).collect::<Vec<_>>();
    let tasks = vec![
        task(
            FLOW_TASKS[0],
            TaskKind::Flow,
            &["red", "green", "blue", "grey"],
            single(4),
            0.4,
        ),
        task(
            FLOW_TASKS[1],
            TaskKind::Flow,
            &["up", "down"],
            vec![vec![0, 2], vec![1]],
            0.0,
        ),
        task(
            REQUEST_TASK,
            TaskKind::Request,
            &["normal", "attack"],
            single(2),
            0.6,
        ),
    ];
    for (seed, task) in (11..).zip(&tasks) {
        files.insert(
            task.adapter.file.clone(),
            adapter(4, seed).write(shape).unwrap(),
        );
    }
    let self_test = |label: &str, score| SelfTest {
        tokens: vec![1, 2, 3],
        task: FLOW_TASKS[0].to_owned(),
        label: label.to_owned(),
        score,
    };
    let mut manifest = Manifest {
        schema: 1,
        id: "small-1".to_owned(),
        name: "Random weights".to_owned(),
        created: None,
        card: BTreeMap::from([("purpose".to_owned(), Value::from("tests"))]),
        profile: serde_json::to_value(Profile {
            masked_names: Vec::new(),
            ..Profile::default()
        })
        .unwrap(),
        tokenizer: FileReference::new("tokenizer.json"),
        base: FileReference::new("base.gguf"),
        tasks,
        instruction: None,
        heads: Vec::new(),
        metrics_protocol: Value::from("none"),
        data_statement: Value::from("no data"),
        licence: "MIT OR Apache-2.0".to_owned(),
        files: BTreeMap::new(),
        self_test: vec![self_test("red", 0.25)],
    };
    // What the self-test has to answer is asked from the weights themselves.
    let unproven = Bundle::build(manifest.clone(), files.clone()).unwrap();
    let core = trafficllm_model::Model::load(&unproven, Level::Portable).unwrap();
    let mut verdicts = Vec::new();
    let item = Item {
        tokens: &[1, 2, 3],
        tasks: &[0],
    };
    core.classify(&[item], &mut Scratch::default(), &mut verdicts)
        .unwrap();
    let label = &core.tasks()[0].labels()[verdicts[0].label as usize];
    manifest.self_test = vec![self_test(label, verdicts[0].score)];
    edit(&mut manifest);
    Bundle::build(manifest, files).unwrap()
}

/// A small bundle in a file of its own folder.
pub(crate) struct SmallModel {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) id: String,
}

impl SmallModel {
    pub(crate) fn write() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.tllm");
        let bundle = small_bundle(|_| ());
        bundle.write_packed(&path).unwrap();
        Self {
            _folder: folder,
            path,
            id: bundle.id().to_owned(),
        }
    }

    pub(crate) fn argument(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A recorded capture.
pub(crate) fn capture(name: &str) -> String {
    repository()
        .join("tests/captures")
        .join(name)
        .to_str()
        .unwrap()
        .to_owned()
}

/// All recorded captures, in the order of their names.
pub(crate) fn captures() -> Vec<String> {
    let entries = std::fs::read_dir(repository().join("tests/captures")).unwrap();
    let mut paths: Vec<String> = entries
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    paths.sort();
    assert!(
        paths.len() >= 8,
        "the recorded captures are missing: {paths:?}"
    );
    paths
}

/// The command, with nothing of the caller's environment that changes it.
#[cfg(feature = "command")]
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trafficllm"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(std::process::Stdio::null());
    command
}

/// Exit status, standard output and standard error of a run.
#[cfg(feature = "command")]
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    finished(command(arguments).output().unwrap())
}

pub(crate) fn finished(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, error) = (text(output.stdout), text(output.stderr));
    assert!(!error.contains("panicked"), "{error}");
    let status = output
        .status
        .code()
        .unwrap_or_else(|| panic!("ended by a signal: {error}"));
    (status, out, error)
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Whether this process runs the test `name` alone. If not, it has now been run so, and passed: threads and processor time of other
/// tests would count as its own.
pub(crate) fn is_alone(name: &str) -> bool {
    const VARIABLE: &str = "TLLM_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1"])
        .env(VARIABLE, "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

/// Threads of this process.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Processor time of this process so far, in ticks of a hundredth of a second.
pub(crate) fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The flows of a capture, in the order in which a detection gives their outcomes.
pub(crate) fn flows_of(model: &Model, path: &str) -> Vec<trafficllm::Flow> {
    use trafficllm_traffic::{CaptureReader, FlowTable, decode};
    let bytes = std::fs::read(path).unwrap();
    let mut reader = CaptureReader::new(bytes.as_slice()).unwrap();
    let mut table = FlowTable::new(model.flow_config()).unwrap();
    let mut flows = Vec::new();
    while let Some(raw) = reader.next_packet().unwrap() {
        if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
            table.push(&packet, &mut |flow| flows.push(flow));
        }
    }
    table.flush(&mut |flow| flows.push(flow));
    flows
}

/// The flows of all recorded captures.
pub(crate) fn recorded_flows(model: &Model) -> Vec<trafficllm::Flow> {
    let paths = captures();
    let captures = paths.iter().filter(|path| !path.ends_with(".jsonl"));
    captures.flat_map(|path| flows_of(model, path)).collect()
}

/// The small model with another manifest, on the fastest level.
pub(crate) fn small_model(edit: impl Fn(&mut Manifest)) -> Arc<Model> {
    Arc::new(Model::load(&small_bundle(edit), Level::detect()).unwrap())
}

/// A model that abstains from everything where this is 1, and from nothing where it is 0.
pub(crate) fn with_threshold(threshold: f32) -> Arc<Model> {
    small_model(|manifest| {
        for task in &mut manifest.tasks {
            task.threshold = threshold;
        }
    })
}

/// An engine at work.
pub(crate) fn started(model: &Arc<Model>, options: EngineOptions) -> Engine {
    let engine = Engine::new(Arc::clone(model), options).unwrap();
    engine.start().unwrap();
    engine
}

pub(crate) fn workers(workers: usize) -> EngineOptions {
    EngineOptions {
        workers,
        ..EngineOptions::default()
    }
}
