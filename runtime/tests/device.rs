//! Engines on a device: an emulated one, which runs the kernels on the processor, and which fails where a test asks for it.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{capture, flows_of, small_bundle, started, workers};
use trafficllm::limits::{BATCH_TOKENS_MAX, DEVICE_LANE_TOKENS_MAX};
use trafficllm::{
    Answer, DeviceChoice, DeviceOptions, DeviceState, Engine, EngineOptions, Error, Flow,
    Judgement, Level, Manifest, Model, Outcome, Sink, Submitter,
};
use trafficllm_cuda_emulator::{EmulatedDevice, Options};

/// How far a score may be from the processor's: attention takes 16-bit floats, which can move an activation by one int8 step.
const TOLERANCE: f32 = 0.02;
/// How near the scores of two labels are that are as likely as each other.
const TIE: f32 = 0.002;
const LONG: Duration = Duration::from_secs(300);
/// Few enough for an emulator.
const FLOWS: usize = 6;

fn emulated() -> Arc<EmulatedDevice> {
    EmulatedDevice::new(&Options::default())
}

fn on(device: &Arc<EmulatedDevice>, choice: DeviceChoice, workers: usize) -> EngineOptions {
    EngineOptions {
        workers,
        device: DeviceOptions {
            choice,
            given: Some(Arc::clone(device) as _),
            ..DeviceOptions::default()
        },
        ..EngineOptions::default()
    }
}

const FIRST: DeviceChoice = DeviceChoice::Cuda(0);

fn small_for_device(edit: impl Fn(&mut Manifest)) -> Arc<Model> {
    Arc::new(Model::load_for_device(&small_bundle(edit), Level::detect()).unwrap())
}

/// A flow's answers: task, label, score.
type Verdicts = Vec<(String, String, f32)>;

fn some_flows(model: &Model) -> Vec<Flow> {
    let mut flows = flows_of(model, &capture("dns.pcap.gz"));
    flows.truncate(FLOWS);
    assert!(flows.len() >= 2);
    flows
}

fn verdicts_of(answer: &Answer<'_>) -> Verdicts {
    let Judgement::Verdicts(verdicts) = &answer.judgement else {
        panic!("{:?}", answer.judgement);
    };
    verdicts
        .iter()
        .map(|verdict| {
            (
                verdict.task.to_owned(),
                verdict.label.to_owned(),
                verdict.score,
            )
        })
        .collect()
}

/// Submits all flows at once and waits for their verdicts, which are in the order of the flows.
fn judged(engine: &Engine, submitter: &mut Submitter, flows: &[Flow]) -> Vec<Verdicts> {
    let mut all = vec![Verdicts::new(); flows.len()];
    for (id, flow) in flows.iter().enumerate() {
        submitter.submit(flow, id as u64).unwrap();
    }
    let mut left = flows.len();
    while left > 0 {
        engine.run_pending();
        left -= submitter.wait(LONG, |answer| {
            all[answer.id as usize] = verdicts_of(answer);
        });
    }
    all
}

fn judged_once(engine: &Engine, flows: &[Flow]) -> Vec<Verdicts> {
    judged(engine, &mut engine.submitter().unwrap(), flows)
}

fn assert_alike(found: &[Verdicts], expected: &[Verdicts]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let is_alike = (&found.0, &found.1) == (&expected.0, &expected.1);
            let is_close = (found.2 - expected.2).abs() <= TOLERANCE;
            assert!(is_alike && is_close, "{found:?} {expected:?}");
        }
    }
}

struct Kept(Vec<Verdicts>);

impl Sink for Kept {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        let verdicts = outcome.verdicts.iter();
        self.0.push(
            verdicts
                .map(|verdict| {
                    (
                        verdict.task.to_owned(),
                        verdict.label.to_owned(),
                        verdict.score,
                    )
                })
                .collect(),
        );
        ControlFlow::Continue(())
    }
}

fn detected(engine: &Engine, path: &str) -> Vec<Verdicts> {
    let mut detection = engine.detect(Kept(Vec::new()));
    detection
        .capture(std::fs::File::open(Path::new(path)).unwrap())
        .unwrap();
    detection.finish().unwrap().1.0
}

#[test]
fn a_detection_on_a_device_gives_the_processors_verdicts() {
    let model = small_for_device(|_| ());
    let device = emulated();
    let path = capture("dns.pcap.gz");
    let expected = detected(&started(&model, workers(0)), &path);
    assert!(expected.len() >= 2);
    for workers in [0, 2] {
        let engine = started(&model, on(&device, FIRST, workers));
        let status = engine.device_status();
        assert_eq!(status.state, DeviceState::Active);
        assert!(status.name.starts_with("cuda:0 "), "{status:?}");
        assert_alike(&detected(&engine, &path), &expected);
        let counters = engine.counters();
        assert!(counters.batches > 0);
        assert_eq!(counters.device_batches, counters.batches);
        assert_eq!(counters.device_failures, 0);
        let memory = engine.memory();
        assert!(memory.device_bytes > 0);
        let text = engine.metrics(0, trafficllm::RecorderCounters::default());
        let line = format!("trafficllm_device_memory_bytes {}", memory.device_bytes);
        assert!(text.lines().any(|found| found == line), "{text}");
        assert!(text.contains("trafficllm_device_active 1\n"), "{text}");
    }
    assert_eq!(
        device.counts().allocated_bytes,
        0,
        "all of it was given back"
    );
}

#[test]
fn nothing_runs_on_a_device_before_the_start() {
    let model = small_for_device(|_| ());
    let flows = some_flows(&model);
    let device = emulated();
    let engine = Engine::new(Arc::clone(&model), on(&device, FIRST, 0)).unwrap();
    assert_eq!(engine.device_status().state, DeviceState::Waiting);
    let mut classifier = engine.classifier().unwrap();
    let mut submitter = engine.submitter().unwrap();
    let mut both = || {
        let (mut answers, all) = (Vec::new(), flows.iter().collect::<Vec<_>>());
        let take = |_, answer: &Answer<'_>| answers.push(verdicts_of(answer));
        classifier.classify(&all, take).unwrap();
        (answers, judged(&engine, &mut submitter, &flows))
    };
    let (expected, same) = both();
    assert_eq!(expected, same);
    assert_eq!(engine.counters().device_batches, 0);
    assert_eq!(
        (engine.memory().device_bytes, device.counts().launches),
        (0, 0)
    );
    engine.start().unwrap();
    engine.start().unwrap();
    let before = engine.counters().batches;
    let (classified, submitted) = both();
    assert_alike(&classified, &expected);
    assert_alike(&submitted, &expected);
    let counters = engine.counters();
    assert_eq!(counters.device_batches, counters.batches - before);
}

#[test]
fn a_device_that_is_lost_costs_no_flow_its_verdict() {
    let model = small_for_device(|_| ());
    let flows = some_flows(&model);
    let expected = judged_once(&started(&model, workers(0)), &flows);
    for workers in [0, 2] {
        let device = emulated();
        let engine = started(&model, on(&device, DeviceChoice::Auto, workers));
        let mut submitter = engine.submitter().unwrap();
        assert_alike(&judged(&engine, &mut submitter, &flows), &expected);
        let before = engine.counters();
        assert!(before.device_batches > 0);
        device.fail_after(2);
        // The processor's own, to the last bit, where the device did nothing of it.
        assert_alike(&judged(&engine, &mut submitter, &flows), &expected);
        let lost = engine.counters();
        assert!(lost.device_failures >= 1);
        let status = engine.device_status();
        assert_eq!(status.state, DeviceState::Lost);
        assert!(status.reason.contains("lost"), "{status:?}");
        assert_eq!(judged(&engine, &mut submitter, &flows), expected);
        let after = engine.counters();
        assert_eq!(after.device_batches, lost.device_batches);
        assert!(after.device_failures <= workers.max(1) as u64);
        assert_eq!((after.done, after.failed), (3 * flows.len() as u64, 0));
    }
}

#[test]
fn a_failure_of_one_batch_is_counted_and_the_device_goes_on() {
    let model = small_for_device(|_| ());
    let flows = some_flows(&model);
    let device = emulated();
    let engine = started(&model, on(&device, FIRST, 0));
    let mut submitter = engine.submitter().unwrap();
    let expected = judged(&engine, &mut submitter, &flows);
    let before = engine.counters();
    assert_eq!((before.batches, before.device_batches), (1, 1));
    device.fail_next_launch();
    assert_alike(&judged(&engine, &mut submitter, &flows), &expected);
    let after = engine.counters();
    assert_eq!(
        (after.batches, after.device_batches, after.device_failures),
        (2, 1, 1)
    );
    assert_eq!(engine.device_status().state, DeviceState::Active);
    assert_alike(&judged(&engine, &mut submitter, &flows), &expected);
    let last = engine.counters();
    assert_eq!((last.device_batches, last.device_failures), (2, 1));
}

#[test]
fn batches_are_larger_on_a_device() {
    let model = small_for_device(|_| ());
    let mut flows = common::recorded_flows(&model);
    flows.truncate(10);
    let plain = started(&model, workers(0));
    let expected = judged_once(&plain, &flows);
    assert!(plain.counters().batches > 1);
    let device = emulated();
    let engine = started(&model, on(&device, FIRST, 0));
    assert_alike(&judged_once(&engine, &flows), &expected);
    let counters = engine.counters();
    assert_eq!((counters.batches, counters.device_batches), (1, 1));
    // What is set is kept.
    let options = EngineOptions {
        batch_tokens: trafficllm::limits::BATCH_TOKENS_DEFAULT,
        ..on(&device, FIRST, 0)
    };
    let engine = started(&model, options);
    assert_alike(&judged_once(&engine, &flows), &expected);
    let counters = engine.counters();
    assert_eq!(counters.batches, plain.counters().batches);
    assert_eq!(counters.device_batches, counters.batches);
}

#[test]
fn the_largest_batches_run_in_parts() {
    let model = small_for_device(|_| ());
    let flows = some_flows(&model);
    let expected = judged_once(&started(&model, workers(0)), &flows);
    let bytes = |batch_tokens, memory_bytes_max| {
        let device = emulated();
        let mut options = on(&device, FIRST, 0);
        options.batch_tokens = batch_tokens;
        options.device.memory_bytes_max = memory_bytes_max;
        let engine = started(&model, options);
        assert_alike(&judged_once(&engine, &flows), &expected);
        let counters = engine.counters();
        assert_eq!((counters.batches, counters.device_batches), (1, 1));
        engine.memory().device_bytes
    };
    // From here on a lane is as large as it gets.
    let most = bytes(DEVICE_LANE_TOKENS_MAX, 0);
    assert_eq!(bytes(BATCH_TOKENS_MAX, most), most);
}

/// What a classifier says, which asks for its buffers on the device as soon as it is made.
fn classified(engine: &Engine, flows: &[Flow]) -> Vec<Verdicts> {
    let mut classifier = engine.classifier().unwrap();
    let mut answers = Vec::new();
    let take = |_, answer: &Answer<'_>| answers.push(verdicts_of(answer));
    let flows: Vec<&Flow> = flows.iter().collect();
    classifier.classify(&flows, take).unwrap();
    answers
}

#[test]
fn a_device_that_is_lost_while_buffers_are_made_is_left() {
    let model = small_for_device(|_| ());
    let flows = some_flows(&model);
    let expected = classified(&started(&model, workers(0)), &flows);
    let device = emulated();
    let engine = started(&model, on(&device, FIRST, 0));
    assert_eq!(engine.device_status().state, DeviceState::Active);
    device.fail_after(0);
    assert_eq!(classified(&engine, &flows), expected);
    assert_eq!(engine.device_status().state, DeviceState::Lost);
    let counters = engine.counters();
    assert_eq!((counters.device_batches, counters.device_failures), (0, 1));
    assert_eq!(classified(&engine, &flows), expected);
    assert_eq!(engine.counters().device_failures, 1);
}

#[test]
fn a_short_budget_of_the_host_leaves_the_model_to_the_processor() {
    let model = small_for_device(|_| ());
    let device = emulated();
    let needed = started(&model, on(&device, FIRST, 1))
        .memory()
        .total_bytes();
    let with = |memory_bytes_max, choice| EngineOptions {
        memory_bytes_max,
        ..on(&device, choice, 1)
    };
    let engine = started(&model, with(needed, FIRST));
    assert_eq!(engine.device_status().state, DeviceState::Active);
    drop(engine);
    let engine = Engine::new(Arc::clone(&model), with(needed - 1, FIRST)).unwrap();
    let error = engine.start().unwrap_err();
    assert!(matches!(error, Error::MemoryBudget { .. }), "{error}");
    drop(engine);
    let engine = started(&model, with(needed - 1, DeviceChoice::Auto));
    let status = engine.device_status();
    assert_eq!(
        (status.state, status.reason),
        (DeviceState::Unavailable, error.to_string())
    );
    assert_eq!(device.counts().allocated_bytes, 0);
}

#[test]
fn without_workers_the_model_before_goes_with_the_next_flows() {
    let first = small_for_device(|_| ());
    let second = small_for_device(|manifest| manifest.id = "small-2".to_owned());
    let flows = some_flows(&first);
    let device = emulated();
    let engine = started(&first, on(&device, FIRST, 0));
    judged_once(&engine, &flows);
    engine.activate(second).unwrap();
    // It has a lane of the model before, and nothing to judge.
    engine.run_pending();
    assert_eq!(
        device.counts().allocated_bytes,
        engine.memory().device_bytes
    );
    judged_once(&engine, &flows);
    let counters = engine.counters();
    assert_eq!(counters.device_batches, counters.batches);
}

#[test]
fn the_default_model_gives_the_processors_labels() {
    let bundle = Model::default_bundle().unwrap();
    let model = Arc::new(Model::load_for_device(&bundle, Level::detect()).unwrap());
    let mut flows = some_flows(&model);
    flows.truncate(2);
    let expected = judged_once(&started(&model, workers(0)), &flows);
    let device = emulated();
    let engine = started(&model, on(&device, FIRST, 0));
    let found = judged_once(&engine, &flows);
    let (mut verdicts, mut ties) = (0, 0);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        // Where two labels are as likely as each other, either may come first, and the score is the same.
        let is_tie = found.1 != expected.1;
        let tolerance = if is_tie { TIE } else { TOLERANCE };
        assert_eq!(found.0, expected.0);
        assert!(
            (found.2 - expected.2).abs() <= tolerance,
            "{found:?} {expected:?}"
        );
        verdicts += 1;
        ties += usize::from(is_tie);
    }
    assert!(verdicts >= 8 && ties <= 2, "{found:?} {expected:?}");
    assert_eq!(engine.counters().device_batches, 1);
}

/// What starting an engine gives that chooses a device by its number.
fn refusal(model: &Arc<Model>, options: EngineOptions) -> String {
    let engine = Engine::new(Arc::clone(model), options).unwrap();
    match engine.start() {
        Err(error @ Error::Device { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Why the processor runs the model of an engine whose device is `auto`.
fn reason(model: &Arc<Model>, options: EngineOptions) -> String {
    let engine = started(model, options);
    let flows = some_flows(model);
    assert_eq!(judged_once(&engine, &flows[..1]).len(), 1);
    assert_eq!(engine.counters().device_batches, 0);
    let status = engine.device_status();
    assert_eq!(status.state, DeviceState::Unavailable);
    status.reason
}

#[test]
fn what_is_missing_is_said() {
    let model = small_for_device(|_| ());
    let no_driver = EngineOptions {
        device: DeviceOptions {
            choice: DeviceChoice::Cuda(63),
            ..DeviceOptions::default()
        },
        ..EngineOptions::default()
    };
    // No machine has so many devices, and most have no driver.
    let error = refusal(&model, no_driver);
    assert!(
        error.starts_with("device cuda:63: no CUDA device: "),
        "{error}"
    );
    let plain = common::small_model(|_| ());
    let device = emulated();
    let error = refusal(&plain, on(&device, FIRST, 1));
    assert!(error.contains("load_for_device"), "{error}");
    assert_eq!(
        error,
        format!(
            "device cuda:0: {}",
            reason(&plain, on(&device, DeviceChoice::Auto, 1))
        )
    );
}

#[test]
fn kernels_that_cannot_be_compiled_leave_the_model_to_the_processor() {
    let model = small_for_device(|_| ());
    let broken = || {
        let device = emulated();
        device.fail_compile("attend");
        device
    };
    let error = refusal(&model, on(&broken(), FIRST, 0));
    assert!(error.contains("attend"), "{error}");
    let reason = reason(&model, on(&broken(), DeviceChoice::Auto, 0));
    assert!(reason.contains("attend"), "{reason}");
}

#[test]
fn the_memory_of_a_device_is_bounded() {
    let model = small_for_device(|_| ());
    let device = emulated();
    let needed = started(&model, on(&device, FIRST, 2)).memory().device_bytes;
    assert_eq!(device.counts().allocated_bytes, 0);
    let with = |memory_bytes_max, choice| {
        let mut options = on(&device, choice, 2);
        options.device.memory_bytes_max = memory_bytes_max;
        options
    };
    let engine = started(&model, with(needed, FIRST));
    assert_eq!(engine.memory().device_bytes, needed);
    drop(engine);
    let error = refusal(&model, with(needed - 1, FIRST));
    assert!(error.contains("bytes of device memory"), "{error}");
    let text = reason(&model, with(needed - 1, DeviceChoice::Auto));
    assert!(error.ends_with(&text), "{error} {text}");
    let small = EmulatedDevice::new(&Options {
        memory_bytes: needed / 2,
        ..Options::default()
    });
    let error = refusal(&model, on(&small, FIRST, 2));
    assert!(error.contains("bytes of device memory"), "{error}");
    assert_eq!(
        small.counts().allocated_bytes,
        0,
        "failures leave nothing behind"
    );
}

#[test]
fn a_new_model_is_on_the_device_before_it_judges() {
    let first = small_for_device(|_| ());
    let second = small_for_device(|manifest| manifest.id = "small-2".to_owned());
    let plain = common::small_model(|manifest| manifest.id = "small-3".to_owned());
    let flows = some_flows(&first);
    let device = emulated();
    let engine = started(&first, on(&device, FIRST, 1));
    let (one, allocated) = (
        engine.memory().device_bytes,
        device.counts().allocated_bytes,
    );
    let mut submitter = engine.submitter().unwrap();
    let expected = judged(&engine, &mut submitter, &flows);
    // By number: what the device cannot run is refused, and nothing changes.
    let error = engine.activate(Arc::clone(&plain)).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error}");
    assert_eq!(
        (engine.generation(), engine.counters().swaps_failed),
        (1, 1)
    );
    assert_eq!(engine.activate(Arc::clone(&second)).unwrap(), 2);
    assert_alike(&judged(&engine, &mut submitter, &flows), &expected);
    let counters = engine.counters();
    assert_eq!(
        (counters.device_batches, counters.device_failures),
        (counters.batches, 0)
    );
    let until = std::time::Instant::now() + LONG;
    while engine.memory().device_bytes != one || device.counts().allocated_bytes > allocated {
        assert!(
            std::time::Instant::now() < until,
            "the model before stays on the device"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_new_model_that_the_device_cannot_run_is_left_to_the_processor() {
    let first = small_for_device(|_| ());
    let plain = common::small_model(|manifest| manifest.id = "small-3".to_owned());
    let flows = some_flows(&first);
    let device = emulated();
    let engine = started(&first, on(&device, DeviceChoice::Auto, 0));
    let expected = judged_once(&engine, &flows);
    engine.activate(plain).unwrap();
    let status = engine.device_status();
    assert_eq!(status.state, DeviceState::Unavailable);
    assert!(status.to_string().starts_with("cpu ("), "{status}");
    let before = engine.counters().device_batches;
    assert_alike(&judged_once(&engine, &flows), &expected);
    assert_eq!(engine.counters().device_batches, before);
    engine.activate(first).unwrap();
    assert_eq!(engine.device_status().state, DeviceState::Active);
    assert_alike(&judged_once(&engine, &flows), &expected);
    assert_eq!(engine.counters().device_batches, before + 1);
}
