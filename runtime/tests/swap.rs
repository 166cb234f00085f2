//! Another model takes over while flows are under way: each is judged by the model that it was submitted to, and says which.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    FLOW_TASKS, capture, recorded_flows, small_bundle, small_model, started, with_threshold,
    workers,
};
use serde_json::Value;
use trafficllm::{
    Answer, Engine, EngineOptions, Error, Flow, Judgement, Level, Model, Outcome, Sink,
    SubmitError, Submitter,
};

const LONG: Duration = Duration::from_secs(60);

fn text(answer: &Answer<'_>) -> String {
    format!("{:?}", answer.judgement)
}

/// What a model says to each flow when it is alone.
fn expected(model: &Arc<Model>, flows: &[Flow]) -> Vec<String> {
    let engine = Engine::new(Arc::clone(model), EngineOptions::default()).unwrap();
    let mut found = vec![String::new(); flows.len()];
    let flows: Vec<&Flow> = flows.iter().collect();
    let mut classifier = engine.classifier().unwrap();
    classifier
        .classify(&flows, |index, answer| found[index] = text(answer))
        .unwrap();
    found
}

fn take_all(engine: &Engine, submitter: &mut Submitter, mut take: impl FnMut(&Answer<'_>)) {
    while submitter.in_flight() > 0 {
        engine.run_pending();
        submitter.wait(LONG, &mut take);
    }
}

#[test]
fn a_flow_is_judged_by_the_model_that_it_was_submitted_to() {
    let (first, second) = (with_threshold(0.0), with_threshold(1.0));
    let flows = recorded_flows(&first);
    let of_first = expected(&first, &flows);
    let of_second = expected(&second, &flows);
    let engine = started(&first, EngineOptions::default());
    let mut submitter = engine.submitter().unwrap();
    assert_eq!((engine.generation(), engine.model().id()), (1, first.id()));
    submitter.submit(&flows[0], 1).unwrap();
    assert_eq!(engine.activate(Arc::clone(&second)).unwrap(), 2);
    assert_eq!((engine.generation(), engine.model().id()), (2, second.id()));
    submitter.submit(&flows[0], 2).unwrap();
    assert_eq!(engine.run_pending(), 2);
    let mut found = Vec::new();
    take_all(&engine, &mut submitter, |answer| {
        assert_eq!(answer.id, answer.generation);
        assert!(answer.latency_us < 60_000_000);
        found.push((answer.model.id().to_owned(), text(answer)));
    });
    assert_eq!(
        found,
        [
            (first.id().to_owned(), of_first[0].clone()),
            (second.id().to_owned(), of_second[0].clone())
        ]
    );
    assert_ne!(of_first[0], of_second[0]);
    let counters = engine.counters();
    assert_eq!(counters.batches, 2, "a batch has one model");
    assert_eq!((counters.swaps, counters.swaps_failed), (1, 0));
}

/// Submits flows until told to stop, and compares every verdict with that of the model which the answer names.
fn submit_under_swaps(
    engine: &Engine,
    flows: &[Flow],
    expected: &HashMap<String, Vec<String>>,
    stop: &AtomicBool,
    judged: &AtomicU64,
) {
    let mut submitter = engine.submitter().unwrap();
    let mut submitted: Vec<u64> = Vec::new();
    let mut newest = 0;
    while !stop.load(SeqCst) || submitter.in_flight() > 0 {
        let before = engine.generation();
        let id = submitted.len();
        if !stop.load(SeqCst)
            && submitter
                .submit(&flows[id % flows.len()], id as u64)
                .is_ok()
        {
            submitted.push(before);
        }
        submitter.poll(|answer| {
            let id = answer.id as usize;
            assert_eq!(text(answer), expected[answer.model.id()][id % flows.len()]);
            assert!(answer.generation >= submitted[id], "a model of the past");
            newest = newest.max(answer.generation);
            judged.fetch_add(1, SeqCst);
        });
    }
    assert!(newest > 1, "swaps arrive at a submitter");
}

#[test]
fn every_verdict_is_that_of_the_model_it_names_whatever_is_swapped() {
    const SWAPS: u64 = 60;
    const FLOWS_PER_SWAP: u64 = 20;
    let models = [0.0, 0.3, 1.0].map(with_threshold);
    let flows = recorded_flows(&models[0]);
    let of_models: HashMap<String, Vec<String>> = models
        .iter()
        .map(|model| (model.id().to_owned(), expected(model, &flows)))
        .collect();
    let options = EngineOptions {
        queue_flows: 100,
        ..workers(2)
    };
    let engine = started(&models[0], options);
    let (stop, judged) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| submit_under_swaps(&engine, &flows, &of_models, &stop, &judged));
        }
        let end = Instant::now() + LONG;
        for (next, swap) in models.iter().cycle().skip(1).zip(1..=SWAPS) {
            let goal = swap * FLOWS_PER_SWAP;
            while judged.load(SeqCst) < goal && Instant::now() < end {
                thread::yield_now();
            }
            assert_eq!(engine.activate(Arc::clone(next)).unwrap(), swap + 1);
        }
        stop.store(true, SeqCst);
    });
    let counters = engine.counters();
    assert_eq!(counters.swaps, SWAPS);
    assert_eq!(counters.done, judged.load(SeqCst));
    assert_eq!(counters.submitted, counters.done + counters.shed);
    assert!(counters.done >= SWAPS * FLOWS_PER_SWAP, "{counters:?}");
    let end = Instant::now() + LONG;
    while engine.memory().retired_bytes > 0 {
        assert!(Instant::now() < end, "old models are not freed");
        thread::yield_now();
    }
}

#[derive(Default)]
struct Verdicts(Vec<String>);

impl Sink for Verdicts {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        self.0.push(format!("{outcome:?}"));
        ControlFlow::Continue(())
    }
}

#[test]
fn a_detection_ends_with_the_model_that_it_began_with() {
    let (first, second) = (with_threshold(0.0), with_threshold(1.0));
    let detect = |engine: &Engine, between: &dyn Fn()| {
        let mut detection = engine.detect(Verdicts::default());
        for name in ["http.pcap", "tls.pcapng"] {
            detection
                .capture(File::open(capture(name)).unwrap())
                .unwrap();
            between();
        }
        detection.finish().unwrap().1.0
    };
    for count in [0, 2] {
        let engine = started(&first, workers(count));
        let alone = detect(&engine, &|| ());
        let swapped = detect(&engine, &|| {
            _ = engine.activate(Arc::clone(&second)).unwrap()
        });
        assert_eq!(swapped, alone);
        assert_eq!(engine.generation(), 3);
        let of_second = detect(&engine, &|| ());
        assert_eq!(
            of_second,
            detect(&started(&second, workers(0)), &|| ()),
            "and the next one begins with the next model"
        );
        assert_ne!(of_second, alone);
    }
}

#[test]
fn a_model_that_cannot_take_over_changes_nothing_and_is_counted() {
    let first = with_threshold(0.0);
    let other_tasks = small_model(|manifest| manifest.tasks[1].name = "another_task".to_owned());
    let flows = recorded_flows(&first);
    let options = EngineOptions {
        tasks: vec![FLOW_TASKS[1].to_owned()],
        ..EngineOptions::default()
    };
    let engine = started(&first, options.clone());
    let refused = engine.activate(other_tasks);
    assert!(matches!(refused, Err(Error::UnknownTask { found, .. }) if found == FLOW_TASKS[1]));
    // Room for the model and what is there, and not for a second model: at the limit, and past it.
    let (needed, added) = {
        let _submitter = engine.submitter().unwrap();
        (engine.memory().total_bytes(), engine.memory().model_bytes)
    };
    let second = with_threshold(1.0);
    for (missing, fits) in [(0, true), (1, false)] {
        let options = EngineOptions {
            memory_bytes_max: needed + added - missing,
            ..options.clone()
        };
        let engine = started(&first, options);
        let mut submitter = engine.submitter().unwrap();
        let activated = engine.activate(Arc::clone(&second));
        if fits {
            assert_eq!(activated.unwrap(), 2);
        } else {
            let Err(Error::MemoryBudget { needed_bytes, .. }) = activated else {
                panic!("{activated:?}");
            };
            assert_eq!(needed_bytes, needed + added);
            assert_eq!((engine.generation(), engine.model().id()), (1, first.id()));
            assert_eq!(engine.memory().total_bytes(), needed);
        }
        let counters = engine.counters();
        assert_eq!(
            (counters.swaps, counters.swaps_failed),
            (u64::from(fits), u64::from(!fits))
        );
        submitter.submit(&flows[0], 1).unwrap();
        take_all(&engine, &mut submitter, |answer| {
            assert_eq!(answer.generation, engine.generation());
            assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
        });
    }
}

/// Waits for a model to be freed.
fn is_freed(model: &Weak<Model>) -> bool {
    let end = Instant::now() + LONG;
    while model.strong_count() > 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
    model.strong_count() == 0
}

#[test]
fn whatever_goes_wrong_in_opening_a_model_is_counted() {
    let first = with_threshold(0.0);
    let engine = started(&first, EngineOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let missing = engine.activate_bundle(&folder.path().join("none"), Level::detect());
    assert!(missing.is_err());
    let broken = folder.path().join("broken.tllm");
    let mut bytes = small_bundle(|_| ()).to_packed().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&broken, bytes).unwrap();
    assert!(engine.activate_bundle(&broken, Level::detect()).is_err());
    let wrong = folder.path().join("wrong.tllm");
    let bundle = small_bundle(|manifest| manifest.self_test[0].score += 0.1);
    bundle.write_packed(&wrong).unwrap();
    assert!(engine.activate_bundle(&wrong, Level::detect()).is_err());
    let level = || Model::level_from_environment().and(Err(Error::Stopped));
    assert!(matches!(engine.activate_with(level), Err(Error::Stopped)));
    let panics = || engine.activate_with(|| panic!("in opening"));
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    let counters = engine.counters();
    assert_eq!((counters.swaps, counters.swaps_failed), (0, 5));
    assert_eq!((engine.generation(), engine.model().id()), (1, first.id()));
    let good = folder.path().join("good.tllm");
    small_bundle(|_| ()).write_packed(&good).unwrap();
    assert_eq!(engine.activate_bundle(&good, Level::detect()).unwrap(), 2);
    let counters = engine.counters();
    assert_eq!((counters.swaps, counters.swaps_failed), (1, 5));
}

#[test]
fn a_model_is_freed_with_its_last_flow() {
    let second = with_threshold(1.0);
    let flows = recorded_flows(&second);
    for count in [0, 1, 2] {
        let first = with_threshold(0.0);
        let engine = started(&first, workers(count));
        let freed = Arc::downgrade(&first);
        drop(first);
        let mut busy = engine.submitter().unwrap();
        // It has seen the first model, and does nothing any more.
        let mut idle = engine.submitter().unwrap();
        idle.submit(&flows[0], 0).unwrap();
        take_all(&engine, &mut idle, |_| ());
        for (id, flow) in (0..).zip(&flows) {
            busy.submit(flow, id).unwrap();
        }
        engine.activate(Arc::clone(&second)).unwrap();
        thread::sleep(Duration::from_millis(20));
        assert!(freed.strong_count() > 0, "its flows are not done");
        assert!(engine.memory().retired_bytes > 0);
        take_all(&engine, &mut busy, |answer| {
            assert_eq!(answer.generation, 1)
        });
        engine.run_pending();
        assert!(is_freed(&freed), "with {count} workers");
        assert_eq!(engine.memory().retired_bytes, 0);
    }
}

#[test]
fn a_model_is_freed_with_the_submitter_or_the_detection_that_held_it() {
    let second = with_threshold(1.0);
    let flows = recorded_flows(&second);
    for count in [0, 2] {
        let first = with_threshold(0.0);
        let engine = started(&first, workers(count));
        let freed = Arc::downgrade(&first);
        drop(first);
        let mut submitter = engine.submitter().unwrap();
        submitter.submit(&flows[0], 0).unwrap();
        let mut detection = engine.detect(Verdicts::default());
        detection
            .capture(File::open(capture("http.pcap")).unwrap())
            .unwrap();
        engine.activate(Arc::clone(&second)).unwrap();
        drop(detection);
        assert!(freed.strong_count() > 0, "a flow is under way");
        drop(submitter);
        engine.run_pending();
        assert!(is_freed(&freed), "with {count} workers");
    }
}

#[test]
fn no_submitter_frees_a_model() {
    let second = with_threshold(1.0);
    let flows = recorded_flows(&second);
    // Who frees it: where there is no worker, and where the workers have ended.
    type Free = fn(Engine);
    let frees: [(usize, Free); 4] = [
        (0, |engine| _ = engine.run_pending()),
        (0, |engine| _ = engine.activate(engine.model()).unwrap()),
        (1, |engine| _ = engine.stop(LONG)),
        (1, drop),
    ];
    for ((count, free), drops) in frees
        .into_iter()
        .flat_map(|how| [(how, false), (how, true)])
    {
        let first = with_threshold(0.0);
        let engine = started(&first, workers(count));
        let freed = Arc::downgrade(&first);
        drop(first);
        let mut submitter = engine.submitter().unwrap();
        submitter.submit(&flows[0], 0).unwrap();
        let end = Instant::now() + LONG;
        while engine.latency().count == 0 {
            assert!(Instant::now() < end, "nobody judges");
            engine.run_pending();
        }
        engine.activate(Arc::clone(&second)).unwrap();
        if count > 0 {
            engine.stop(LONG);
        }
        if drops {
            drop(submitter);
        } else {
            assert_eq!(submitter.poll(|answer| assert_eq!(answer.generation, 1)), 1);
        }
        assert_eq!(freed.strong_count(), 1, "the submitter did not free it");
        free(engine);
        assert_eq!(freed.strong_count(), 0);
    }
}

#[test]
fn what_an_answer_can_hold_is_known_before_the_call() {
    let large = with_threshold(0.0);
    let small = small_model(|manifest| manifest.tasks.truncate(1));
    let flows = recorded_flows(&large);
    let engine = started(&small, EngineOptions::default());
    let mut classifier = engine.classifier().unwrap();
    let mut generation_of = |prepared: Option<usize>| {
        let mut found = 0;
        classifier
            .classify(&[&flows[0]], |_, answer| {
                let Judgement::Verdicts(verdicts) = answer.judgement else {
                    panic!("{answer:?}");
                };
                assert!(prepared.is_none_or(|most| verdicts.len() <= most));
                found = answer.generation;
            })
            .unwrap();
        (found, classifier.prepare())
    };
    assert_eq!(generation_of(None), (1, 1));
    assert_eq!(engine.verdicts_max(), 1);
    engine.activate(Arc::clone(&large)).unwrap();
    assert_eq!(generation_of(Some(1)), (1, 3), "it was prepared before");
    assert_eq!(engine.verdicts_max(), 3);
    engine.activate(Arc::clone(&small)).unwrap();
    assert_eq!(generation_of(Some(3)), (2, 1));
    assert_eq!(engine.verdicts_max(), 3, "it does not get less");
    engine.activate(large).unwrap();
    assert_eq!(generation_of(Some(1)), (3, 3));
    // A request that is none uses it up as well.
    engine.activate(small).unwrap();
    let refused = classifier.classify_request(b"none", |_| panic!("an answer"));
    assert!(matches!(refused, Err(SubmitError::NotARequest(_))));
    classifier
        .classify(&[&flows[0]], |_, answer| assert_eq!(answer.generation, 5))
        .unwrap();
}

#[test]
fn a_prepared_model_is_kept_for_the_call_and_no_longer() {
    let second = with_threshold(1.0);
    let flows = recorded_flows(&second);
    for drops in [false, true] {
        let first = with_threshold(0.0);
        let engine = started(&first, EngineOptions::default());
        let freed = Arc::downgrade(&first);
        drop(first);
        let mut classifier = engine.classifier().unwrap();
        classifier.prepare();
        engine.activate(Arc::clone(&second)).unwrap();
        assert!(freed.strong_count() > 0, "the next call needs it");
        if drops {
            drop(classifier);
        } else {
            classifier.prepare();
            classifier.prepare();
            classifier
                .classify(&[&flows[0]], |_, answer| assert_eq!(answer.generation, 2))
                .unwrap();
        }
        assert!(is_freed(&freed));
    }
}

#[test]
fn slots_grow_for_a_model_that_looks_further() {
    let look = |tokens: u64| {
        small_model(|manifest| {
            manifest.profile["max_tokens"] = Value::from(tokens);
        })
    };
    let (first, second) = (look(60), look(300));
    let flows = recorded_flows(&second);
    let (of_first, of_second) = (expected(&first, &flows), expected(&second, &flows));
    assert_ne!(of_first, of_second);
    let engine = started(&first, workers(1));
    let mut submitter = engine.submitter().unwrap();
    let mut classifier = engine.classifier().unwrap();
    let before = engine.memory().queue_bytes;
    let mut judge = |expected: &[String]| {
        for (id, flow) in (0..).zip(&flows) {
            submitter.submit(flow, id).unwrap();
        }
        take_all(&engine, &mut submitter, |answer| {
            assert_eq!(text(answer), expected[answer.id as usize]);
        });
        let flows: Vec<&Flow> = flows.iter().collect();
        classifier
            .classify(&flows, |index, answer| {
                assert_eq!(text(answer), expected[index]);
            })
            .unwrap();
    };
    judge(&of_first);
    engine.activate(Arc::clone(&second)).unwrap();
    judge(&of_second);
    let after = engine.memory().queue_bytes;
    assert!(after >= before + 1_024 * 240 * 4, "{before} {after}");
    engine.activate(Arc::clone(&first)).unwrap();
    judge(&of_first);
    assert_eq!(engine.memory().queue_bytes, after, "slots do not shrink");
}

#[test]
fn an_engine_that_was_stopped_takes_no_model() {
    let first = with_threshold(0.0);
    let engine = started(&first, workers(1));
    let mut submitter = engine.submitter().unwrap();
    engine.stop(LONG);
    assert!(matches!(engine.activate(first), Err(Error::Stopped)));
    assert_eq!(engine.counters().swaps_failed, 1);
    assert_eq!(
        submitter.submit_request(b"GET / HTTP/1.1\r\n\r\n", 0),
        Err(SubmitError::Closed)
    );
    assert!(matches!(engine.submitter(), Err(Error::Stopped)));
}
