//! Verdicts of a device against the processor's: several tasks, deep labels, insight, batches in parts, and what happens when the device
//! has no room, refuses or is lost.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{ADAPTER, Numbers, Parts, TASK, base_gguf, random_adapter, shape};
use serde_json::json;
use trafficllm_cuda_emulator::{EmulatedDevice, Options};
use trafficllm_model::{
    Activations, Bundle, DeviceError, DeviceModel, DeviceOptions, Insight, Item, Lane, Level,
    Model, ModelError, SELF_TEST_TOLERANCE, Scratch, TaskVerdict,
};

/// How far a score may be from the processor's: attention takes 16-bit floats, and where a value then becomes another step of 8 bits, that
/// moves what follows.
const TOLERANCE: f32 = SELF_TEST_TOLERANCE;

/// Label paths of one, two and three words.
const DEEP_PATHS: &[&[u32]] = &[&[0], &[2, 1], &[2, 3, 0], &[2, 3, 2], &[4, 2], &[4, 0]];
const FLAT_PATHS: &[&[u32]] = &[&[3], &[1], &[0], &[4], &[2]];
const SECOND: &str = "adapters/second.safetensors";

/// Two tasks with factors and prefixes: one with labels of several words, one without.
fn bundle() -> Bundle {
    let mut manifest = Parts::sound().manifest;
    let mut task = |at: usize, name: &str, file: &str, paths: &[&[u32]]| {
        let mut task = manifest["tasks"][0].clone();
        let labels: Vec<String> = (0..paths.len()).map(|at| format!("{name}-{at}")).collect();
        task["name"] = json!(name);
        task["adapter"]["file"] = json!(file);
        task["labels"] = json!(labels);
        task["label_words"] = json!(paths);
        task["temperature"] = json!(4.0);
        manifest["tasks"].as_array_mut().unwrap().insert(at, task);
    };
    task(0, TASK, ADAPTER, DEEP_PATHS);
    task(1, "second_task", SECOND, FLAT_PATHS);
    manifest["tasks"].as_array_mut().unwrap().truncate(2);
    let promise = |tokens: &[u32], label: &str, score: f32| json!([{"tokens": tokens, "task": "second_task", "label": label, "score": score}]);
    manifest["self_test"] = promise(&[1], "second_task-0", 0.5);
    let files = BTreeMap::from([
        ("base.gguf".to_owned(), base_gguf()),
        ("tokenizer.json".to_owned(), b"{}".to_vec()),
        (
            ADAPTER.to_owned(),
            random_adapter(5, 7).write(shape()).unwrap(),
        ),
        (
            SECOND.to_owned(),
            random_adapter(5, 8).write(shape()).unwrap(),
        ),
    ]);
    let built = |manifest: &serde_json::Value| {
        let manifest = serde_json::from_value(manifest.clone()).unwrap();
        Bundle::build(manifest, files.clone()).unwrap()
    };
    // The promise of the self-test is what the processor says.
    let model = Model::load(&built(&manifest), Level::Portable).unwrap();
    let item = Item {
        tokens: &[3, 1, 4, 1, 5],
        tasks: &[1],
    };
    let verdict = classified(&model, &[item], &mut Scratch::default())[0];
    let label = &model.tasks()[1].labels()[verdict.label as usize];
    manifest["self_test"] = promise(item.tokens, label, verdict.score);
    built(&manifest)
}

fn model() -> Model {
    Model::load_for_device(&bundle(), Level::Portable).unwrap()
}

fn emulated() -> Arc<EmulatedDevice> {
    EmulatedDevice::new(&Options {
        capability: (8, 0),
        ..Options::default()
    })
}

fn on_device(model: &Model, device: &Arc<EmulatedDevice>) -> Arc<DeviceModel> {
    let options = DeviceOptions::default();
    let device = Arc::clone(device);
    Arc::new(DeviceModel::new(model, device, options).unwrap())
}

/// A scratch with a lane for two items of ten tokens.
fn scratch(model: &Model, device: &Arc<EmulatedDevice>) -> Scratch {
    let mut scratch = Scratch::default();
    scratch.attach(on_device(model, device).lane(10, 2).unwrap());
    scratch
}

fn classified(model: &Model, items: &[Item<'_>], scratch: &mut Scratch) -> Vec<TaskVerdict> {
    let mut verdicts = Vec::new();
    model.classify(items, scratch, &mut verdicts).unwrap();
    verdicts
}

fn inputs(count: usize) -> Vec<Vec<u32>> {
    let mut numbers = Numbers::new(11);
    let tokens = |_| {
        let length = 1 + numbers.below(10);
        (0..length).map(|_| numbers.below(16) as u32).collect()
    };
    (0..count).map(tokens).collect()
}

fn items(inputs: &[Vec<u32>]) -> Vec<Item<'_>> {
    let tasks: [&[usize]; 4] = [&[0, 1], &[1], &[0], &[]];
    let with_tasks = inputs.iter().zip(tasks.into_iter().cycle());
    with_tasks
        .map(|(tokens, tasks)| Item { tokens, tasks })
        .collect()
}

fn assert_near(found: &[TaskVerdict], expected: &[TaskVerdict]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(
            (found.item, found.task, found.label),
            (expected.item, expected.task, expected.label)
        );
        let distance = (found.score - expected.score).abs();
        assert!(distance <= TOLERANCE, "{found:?} {expected:?}");
    }
}

#[test]
fn verdicts_are_those_of_the_processor_in_batches_of_any_size() {
    let (model, device) = (model(), emulated());
    let mut scratch = scratch(&model, &device);
    let inputs = inputs(24);
    let items = items(&inputs);
    let expected = classified(&model, &items, &mut Scratch::default());
    let deep = expected
        .iter()
        .filter(|verdict| verdict.task == 0 && verdict.label > 0);
    assert!(deep.count() > 2, "labels of several words are among them");
    // Far more than the lane holds at once.
    let found = classified(&model, &items, &mut scratch);
    assert!(scratch.used_device());
    assert_near(&found, &expected);
    let launches = device.counts().graphs;
    assert!(launches > 0);
    // The same bits one by one, and again.
    let mut alone = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let verdicts = classified(&model, &[*item], &mut scratch);
        alone.extend(verdicts.into_iter().map(|verdict| TaskVerdict {
            item: index,
            ..verdict
        }));
    }
    assert_eq!(alone, found);
    let graphs = scratch.lane().map(Lane::graphs);
    assert_eq!(classified(&model, &items, &mut scratch), found);
    assert_eq!(scratch.lane().map(Lane::graphs), graphs);
    assert!(scratch.take_device_error().is_none());
    // Without the lane the processor answers.
    let before = device.counts().graphs;
    assert!(scratch.detach().is_some());
    assert_eq!(classified(&model, &items, &mut scratch), expected);
    assert!(!scratch.used_device());
    assert_eq!(device.counts().graphs, before);
}

#[test]
fn insight_and_logits_come_from_the_device_too() {
    let (model, device) = (model(), emulated());
    let mut scratch = scratch(&model, &device);
    let inputs = inputs(3);
    let items = items(&inputs);
    let both = |scratch: &mut Scratch| {
        let mut insight = Insight::new(true, true);
        let (mut verdicts, mut logits) = (Vec::new(), Vec::new());
        model
            .classify_with(&items, scratch, &mut verdicts, &mut insight)
            .unwrap();
        let used = scratch.used_device();
        model.classify_logits(&items, scratch, &mut logits).unwrap();
        assert_eq!(scratch.used_device(), used);
        (verdicts, insight, logits, used)
    };
    let (verdicts, insight, logits, used) = both(&mut scratch);
    assert!(used);
    let (expected, of_processor, expected_logits, used) = both(&mut Scratch::default());
    assert!(!used);
    assert_near(&verdicts, &expected);
    for verdict in 0..verdicts.len() {
        let (found, expected) = (insight.state(verdict), of_processor.state(verdict));
        assert_eq!((found.len(), expected.len()), (32, 32));
        let largest = expected
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 0.03 * largest,
                "{found} {expected}"
            );
        }
        let (found, expected) = (insight.scores(verdict), of_processor.scores(verdict));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= TOLERANCE, "{found} {expected}");
        }
    }
    for (found, expected) in logits.iter().zip(&expected_logits) {
        assert_eq!((found.item, found.task), (expected.item, expected.task));
        for (found, expected) in found.logits.iter().zip(&expected.logits) {
            assert!((found - expected).abs() < 0.5, "{found} {expected}");
        }
    }
    assert_eq!(logits.len(), expected_logits.len());
}

#[test]
fn a_lane_answers_for_its_own_model_only() {
    let (one, other, device) = (model(), model(), emulated());
    let mut scratch = scratch(&one, &device);
    let inputs = inputs(2);
    let items = items(&inputs);
    assert_eq!(one.id(), other.id());
    classified(&other, &items, &mut scratch);
    assert!(!scratch.used_device());
    classified(&one, &items, &mut scratch);
    assert!(scratch.used_device());
    let lane = scratch.detach().unwrap();
    assert!(lane.model().is_of(&one) && !lane.model().is_of(&other));
    let error = DeviceModel::self_test(&other, lane).unwrap_err();
    assert!(
        matches!(error, ModelError::Device(DeviceError::Order { .. })),
        "{error}"
    );
    let not_for_device = Model::load(&bundle(), Level::Portable).unwrap();
    assert!(one.is_for_device() && !not_for_device.is_for_device());
    assert!(one.bytes() > not_for_device.bytes());
    let made = DeviceModel::new(&not_for_device, device, DeviceOptions::default());
    assert!(matches!(
        made,
        Err(ModelError::Device(DeviceError::Order { .. }))
    ));
}

#[test]
fn self_tests_run_on_the_lane() {
    let (model, device) = (model(), emulated());
    let lane = on_device(&model, &device).lane(10, 2).unwrap();
    let before = device.counts().graphs;
    let lane = DeviceModel::self_test(&model, lane).unwrap();
    assert_eq!(device.counts().graphs, before + 1);
    device.fail_next_launch();
    let error = DeviceModel::self_test(&model, lane).unwrap_err();
    assert!(matches!(error, ModelError::Device(_)), "{error}");
}

#[test]
fn a_refused_launch_leaves_one_batch_to_the_processor() {
    let (model, device) = (model(), emulated());
    let mut scratch = scratch(&model, &device);
    let inputs = inputs(6);
    let items = items(&inputs);
    let on_device = classified(&model, &items, &mut scratch);
    let on_processor = classified(&model, &items, &mut Scratch::default());
    device.fail_next_launch();
    assert_eq!(classified(&model, &items, &mut scratch), on_processor);
    assert!(!scratch.used_device());
    let error = scratch.take_device_error().unwrap();
    assert!(!error.is_lost(), "{error}");
    assert_eq!(scratch.take_device_error(), None);
    assert_eq!(classified(&model, &items, &mut scratch), on_device);
    assert!(scratch.used_device());
    // An item that is too long for the lane is the processor's as well.
    let long = Item {
        tokens: &[1; 11],
        tasks: &[1],
    };
    classified(&model, &[long], &mut scratch);
    let error = scratch.take_device_error().unwrap();
    assert!(matches!(error, DeviceError::Size { .. }), "{error}");
    assert!(scratch.lane().is_some());
}

#[test]
fn a_device_that_is_lost_at_any_call_costs_no_verdict() {
    let model = model();
    let inputs = inputs(3);
    let items = items(&inputs);
    let expected = classified(&model, &items, &mut Scratch::default());
    for calls in [0, 1, 2, 5, 20] {
        let device = emulated();
        let mut scratch = scratch(&model, &device);
        device.fail_after(calls);
        assert_near(&classified(&model, &items, &mut scratch), &expected);
        // What was done in time stands; sooner or later it is seen.
        while scratch.lane().is_some() {
            assert_near(&classified(&model, &items, &mut scratch), &expected);
        }
        let error = scratch.take_device_error().unwrap();
        assert!(error.is_lost(), "{error}");
        assert_eq!(classified(&model, &items, &mut scratch), expected);
        assert_eq!(scratch.take_device_error(), None);
    }
}

#[test]
fn memory_past_the_limit_or_the_device_is_refused() {
    let (model, device) = (model(), emulated());
    let all = on_device(&model, &device);
    let of_model = all.bytes();
    let lane = all.lane(10, 2).unwrap();
    let with_lane = all.bytes();
    assert_eq!(with_lane - of_model, lane.device_bytes());
    assert!(lane.host_bytes() > 0);
    drop(lane);
    assert_eq!(all.bytes(), of_model);
    drop(all);
    assert_eq!(device.counts().allocated_bytes, 0);
    let within = |bytes: u64| {
        let options = DeviceOptions {
            memory_bytes_max: Some(bytes),
            ..DeviceOptions::default()
        };
        DeviceModel::new(&model, emulated(), options).map(Arc::new)
    };
    let refused = |error: ModelError| {
        assert!(
            matches!(error, ModelError::Device(DeviceError::Memory { .. })),
            "{error}"
        );
    };
    let enough = within(with_lane).unwrap();
    let lane = enough.lane(10, 2).unwrap();
    refused(enough.lane(10, 2).unwrap_err());
    drop(lane);
    enough.lane(10, 2).unwrap();
    refused(within(with_lane - 1).unwrap().lane(10, 2).unwrap_err());
    within(of_model).unwrap();
    refused(within(of_model - 1).unwrap_err());
    let small = EmulatedDevice::new(&Options {
        memory_bytes: of_model - 1,
        ..Options::default()
    });
    refused(DeviceModel::new(&model, small, DeviceOptions::default()).unwrap_err());
}

#[test]
fn a_kernel_that_cannot_be_compiled_is_an_error() {
    let (model, device) = (model(), emulated());
    let held = on_device(&model, &device);
    device.fail_compile("product");
    let error = held.lane(10, 2).unwrap_err();
    assert!(
        matches!(error, ModelError::Device(DeviceError::Compile { .. })),
        "{error}"
    );
}

/// The default model's self-tests, whose scores were made with rows of bytes.
#[test]
fn the_default_model_passes_its_self_tests_with_both_kinds_of_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../bundle/default.tllm");
    let bundle = Bundle::open(std::path::Path::new(path)).unwrap();
    let model = Model::load_for_device(&bundle, Level::detect()).unwrap();
    for activations in [Activations::Int8, Activations::Bf16] {
        let options = DeviceOptions {
            activations,
            ..DeviceOptions::default()
        };
        let on_device = DeviceModel::new(&model, emulated(), options).unwrap();
        let lane = Arc::new(on_device).lane(256, 1).unwrap();
        DeviceModel::self_test(&model, lane).unwrap();
    }
}
