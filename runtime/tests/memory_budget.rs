//! What an engine holds in memory is counted, shown and bounded.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use common::{recorded_flows, small_model, started, with_threshold, workers};
use serde_json::Value;
use trafficllm::limits::BATCH_TOKENS_MIN;
use trafficllm::{Engine, EngineOptions, Error};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_memory_budget_is_kept_at_every_door() {
    let model = with_threshold(0.0);
    let unlimited = started(&model, EngineOptions::default());
    let empty = unlimited.memory().total_bytes();
    let with = |memory_bytes_max| EngineOptions {
        memory_bytes_max,
        ..EngineOptions::default()
    };
    let refused = |error: Option<Error>| {
        let error = error.unwrap();
        assert!(matches!(error, Error::MemoryBudget { .. }), "{error}");
    };
    refused(Engine::new(Arc::clone(&model), with(empty - 1)).err());
    let engine = Engine::new(Arc::clone(&model), with(empty)).unwrap();
    refused(engine.submitter().err());
    refused(engine.classifier().err());
    assert_eq!(engine.memory().total_bytes(), empty, "nothing was kept");
    let submitter = unlimited.submitter().unwrap();
    let one = unlimited.memory().total_bytes();
    drop(submitter);
    for (budget, fits) in [(one, true), (one - 1, false)] {
        let engine = Engine::new(Arc::clone(&model), with(budget)).unwrap();
        // One that is gone makes room for the next.
        for _ in 0..2 {
            assert_eq!(engine.submitter().is_ok(), fits);
        }
    }
    let classifier = unlimited.classifier().unwrap();
    let one = unlimited.memory().total_bytes();
    drop(classifier);
    assert_eq!(unlimited.memory().total_bytes(), empty);
    let engine = Engine::new(Arc::clone(&model), with(one)).unwrap();
    assert!(engine.classifier().is_ok());
    let engine = Engine::new(Arc::clone(&model), with(one - 1)).unwrap();
    refused(engine.classifier().err());
}

#[test]
fn the_flows_of_a_host_count_for_the_memory_budget() {
    const FLOW_BYTES: usize = 1_000;
    let (first, second) = (with_threshold(0.0), with_threshold(1.0));
    let unlimited = started(&first, EngineOptions::default());
    let empty = unlimited.memory().total_bytes();
    let model_bytes = unlimited.memory().model_bytes;
    unlimited.charge_flow_bytes(usize::MAX / 2).unwrap();
    let with_submitter = {
        let _submitter = unlimited.submitter().unwrap();
        unlimited.memory().total_bytes() - usize::MAX / 2
    };
    let options = EngineOptions {
        memory_bytes_max: with_submitter.max(empty + model_bytes) + FLOW_BYTES,
        ..EngineOptions::default()
    };
    let engine = started(&first, options.clone());
    let room = options.memory_bytes_max - empty;
    engine.charge_flow_bytes(room).unwrap();
    let Err(Error::MemoryBudget { needed_bytes, .. }) = engine.charge_flow_bytes(1) else {
        panic!("one byte more than there is");
    };
    assert_eq!(needed_bytes, options.memory_bytes_max + 1);
    assert!(engine.charge_flow_bytes(usize::MAX).is_err());
    assert_eq!(
        engine.memory().flow_bytes,
        room,
        "what was refused is not counted"
    );
    assert_eq!(engine.memory().total_bytes(), options.memory_bytes_max);
    // What flows take is not there for others, until they are freed.
    assert!(matches!(
        engine.submitter(),
        Err(Error::MemoryBudget { .. })
    ));
    assert!(matches!(
        engine.classifier(),
        Err(Error::MemoryBudget { .. })
    ));
    let refused = engine.activate(Arc::clone(&second));
    assert!(matches!(refused, Err(Error::MemoryBudget { .. })));
    engine.release_flow_bytes(room - FLOW_BYTES);
    engine.activate(second).unwrap();
    engine.run_pending();
    // The model before is gone, and so is what it took.
    engine.charge_flow_bytes(room - FLOW_BYTES).unwrap();
    engine.release_flow_bytes(room);
    assert_eq!(engine.memory().total_bytes(), empty);
    assert!(engine.submitter().is_ok());
}

#[test]
fn flows_and_submitters_that_come_at_the_same_time_stay_within_the_budget() {
    const FLOW_BYTES: usize = 10_000;
    let model = with_threshold(0.0);
    let (empty, one) = {
        let engine = started(&model, EngineOptions::default());
        let empty = engine.memory().total_bytes();
        let _submitter = engine.submitter().unwrap();
        (empty, engine.memory().total_bytes() - empty)
    };
    let options = EngineOptions {
        memory_bytes_max: empty + one + 30 * FLOW_BYTES,
        ..EngineOptions::default()
    };
    let budget = options.memory_bytes_max;
    let engine = started(&model, options);
    let charged = AtomicU64::new(0);
    thread::scope(|scope| {
        let feed = || {
            let mut flows = 0;
            for _ in 0..3_000 {
                if flows < 50 && engine.charge_flow_bytes(FLOW_BYTES).is_ok() {
                    flows += 1;
                    charged.fetch_add(1, SeqCst);
                } else if flows > 0 {
                    engine.release_flow_bytes(FLOW_BYTES);
                    flows -= 1;
                }
            }
            engine.release_flow_bytes(flows * FLOW_BYTES);
        };
        let feeders = [scope.spawn(feed), scope.spawn(feed)];
        while !feeders.iter().all(thread::ScopedJoinHandle::is_finished) {
            if let Ok(_submitter) = engine.submitter() {
                // Charges that are about to be refused are seen for a moment.
                assert!(engine.memory().total_bytes() <= budget + 2 * FLOW_BYTES);
            }
        }
    });
    assert!(charged.load(SeqCst) > 0);
    assert_eq!(engine.memory().total_bytes(), empty);
}

/// Bytes of each part, as monitoring shows them.
fn shown_bytes(engine: &Engine) -> HashMap<String, usize> {
    let text = engine.metrics(0, <_>::default());
    let lines = text.lines();
    let parts = lines.filter_map(|line| {
        line.strip_prefix("trafficllm_memory_bytes{part=\"")?
            .split_once("\"} ")
    });
    parts
        .map(|(part, bytes)| (part.to_owned(), bytes.parse().unwrap()))
        .collect()
}

#[test]
fn monitoring_shows_all_that_is_held() {
    let look =
        |tokens: u64| small_model(|manifest| manifest.profile["max_tokens"] = Value::from(tokens));
    let (first, second) = (look(60), look(300));
    let flows = recorded_flows(&first);
    let options = EngineOptions {
        batch_tokens: BATCH_TOKENS_MIN,
        ..workers(1)
    };
    let engine = Engine::new(first, options).unwrap();
    let mut submitter = engine.submitter().unwrap();
    let _classifier = engine.classifier().unwrap();
    engine.charge_flow_bytes(1_000).unwrap();
    // A flow of the first model is under way, and no worker takes the buffers for the second one.
    submitter.submit(&flows[0], 0).unwrap();
    engine.activate(second).unwrap();
    let shown = shown_bytes(&engine);
    assert_eq!(shown.values().sum::<usize>(), engine.memory().total_bytes());
    for part in [
        "model",
        "retired",
        "spare",
        "workers",
        "classifiers",
        "queue",
        "flows",
    ] {
        assert!(shown[part] > 0, "{part}");
    }
    assert_eq!((shown.len(), shown["flows"], shown["heads"]), (8, 1_000, 0));
}

#[test]
fn the_buffers_for_a_larger_model_are_there_before_it_is() {
    let look = |tokens: u64| {
        small_model(|manifest| {
            manifest.profile["max_tokens"] = Value::from(tokens);
        })
    };
    let (first, second) = (look(60), look(300));
    let options = |workers| EngineOptions {
        workers,
        batch_tokens: BATCH_TOKENS_MIN,
        ..EngineOptions::default()
    };
    let engine = started(&first, options(0));
    let before = engine.memory();
    assert_eq!(before.spare_bytes, 0);
    engine.activate(look(60)).unwrap();
    assert_eq!(engine.memory(), before, "a model of the same size");
    engine.activate(Arc::clone(&second)).unwrap();
    assert!(engine.memory().spare_bytes > 0);
    let mut submitter = engine.submitter().unwrap();
    submitter.submit(&recorded_flows(&first)[0], 0).unwrap();
    assert_eq!(engine.run_pending(), 1);
    let after = engine.memory();
    assert_eq!(after.spare_bytes, 0);
    assert!(after.worker_bytes[0] > before.worker_bytes[0]);
    // Workers that have nothing to do take them as well.
    let engine = started(&first, options(3));
    engine.activate(second).unwrap();
    let end = Instant::now() + LONG;
    while engine.memory().spare_bytes > 0 {
        assert!(Instant::now() < end, "{:?}", engine.memory());
        thread::yield_now();
    }
    while engine.memory().worker_bytes != [after.worker_bytes[0]; 3] {
        assert!(Instant::now() < end, "{:?}", engine.memory());
        thread::yield_now();
    }
}

#[test]
fn a_classifier_takes_no_more_for_a_larger_model_than_the_budget_has() {
    let look = |tokens: u64| {
        small_model(|manifest| {
            manifest.profile["max_tokens"] = Value::from(tokens);
        })
    };
    let (first, second) = (look(60), look(300));
    let flows = recorded_flows(&first);
    let options = |memory_bytes_max| EngineOptions {
        workers: 0,
        batch_tokens: BATCH_TOKENS_MIN,
        memory_bytes_max,
        ..EngineOptions::default()
    };
    // Room that is left when the classifier meets the larger model; what it then takes.
    let judged_with = |room: Option<usize>| {
        let budget = 1 << 30;
        let engine = Engine::new(Arc::clone(&first), options(budget)).unwrap();
        let mut classifier = engine.classifier().unwrap();
        classifier.classify(&[&flows[0]], |_, _| {}).unwrap();
        engine.activate(Arc::clone(&second)).unwrap();
        // The activation's own buffers find their worker.
        engine.run_pending();
        let before = engine.memory().total_bytes();
        let charged = room.map_or(0, |room| budget - before - room);
        engine.charge_flow_bytes(charged).unwrap();
        let judged = classifier.classify(&[&flows[0]], |_, _| {});
        assert!(engine.memory().total_bytes() <= budget);
        let grown = (engine.memory().total_bytes() - charged).saturating_sub(before);
        let counters = engine.counters();
        let shed = u64::from(judged.is_err());
        assert_eq!((counters.in_flight(), counters.shed), (0, shed));
        engine.release_flow_bytes(charged);
        classifier.classify(&[&flows[0]], |_, _| {}).unwrap();
        (judged, grown)
    };
    let (judged, grown) = judged_with(None);
    judged.unwrap();
    assert!(grown > 0, "a larger model needs larger buffers");
    let (judged, _) = judged_with(Some(grown));
    judged.unwrap();
    let (judged, _) = judged_with(Some(grown - 1));
    assert_eq!(judged.unwrap_err(), trafficllm::SubmitError::NoMemory);
}
