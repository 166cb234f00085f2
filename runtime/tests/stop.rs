//! The life of an engine: made, started, stopped, dropped, with flows under way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{capture, is_alone, recorded_flows, small_bundle, threads};
use trafficllm::{
    Engine, EngineOptions, Error, Flow, Judgement, Level, Model, Outcome, Sink, Stopped,
    SubmitError, Submitter,
};

const LONG: Duration = Duration::from_secs(60);

fn model() -> Arc<Model> {
    Arc::new(Model::load(&small_bundle(|_| ()), Level::detect()).unwrap())
}

fn made(model: &Arc<Model>, workers: usize) -> Engine {
    let options = EngineOptions {
        workers,
        ..EngineOptions::default()
    };
    Engine::new(Arc::clone(model), options).unwrap()
}

struct Discard;

impl Sink for Discard {
    fn outcome(&mut self, _outcome: &Outcome<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn detect(engine: &Engine) -> Result<u64, Error> {
    let mut detection = engine.detect(Discard);
    detection.capture(File::open(capture("http.pcap")).unwrap())?;
    Ok(detection.finish()?.0.flows)
}

fn submit_all(submitter: &mut Submitter, flows: &[Flow], count: usize) {
    for (id, flow) in (0..).zip(flows.iter().cycle().take(count)) {
        submitter.submit(flow, id).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn threads_begin_with_the_start_and_end_with_the_stop() {
    if !is_alone("threads_begin_with_the_start_and_end_with_the_stop") {
        return;
    }
    let before = threads();
    let model = model();
    let flows = recorded_flows(&model);
    let engine = made(&model, 3);
    let mut submitter = engine.submitter().unwrap();
    let mut classifier = engine.classifier().unwrap();
    submit_all(&mut submitter, &flows, 100);
    let mut judged = 0;
    classifier
        .classify(&[&flows[0]], |_, _| judged += 1)
        .unwrap();
    assert_eq!((threads(), judged), (before, 1), "nothing is started");
    for _ in 0..2 {
        engine.start().unwrap();
        assert_eq!(threads(), before + 3, "a second start starts nothing");
    }
    let stopped = engine.stop(LONG);
    let none = Stopped {
        abandoned: 0,
        running_workers: 0,
    };
    assert_eq!((stopped, threads()), (none, before));
    assert!(matches!(engine.start(), Err(Error::Stopped)));
    assert_eq!(threads(), before);
}

#[test]
fn a_stop_lets_what_waits_be_judged() {
    let model = model();
    let flows = recorded_flows(&model);
    for workers in [0, 1, 3] {
        let engine = made(&model, workers);
        engine.start().unwrap();
        let mut submitter = engine.submitter().unwrap();
        let mut classifier = engine.classifier().unwrap();
        submit_all(&mut submitter, &flows, 1_000);
        let stopped = engine.stop(LONG);
        assert_eq!((stopped.abandoned, stopped.running_workers), (0, 0));
        let refused = submitter.submit(&flows[0], 0);
        assert_eq!(refused, Err(SubmitError::Closed));
        let refused = classifier.classify(&[&flows[0], &flows[1]], |_, _| panic!("an answer"));
        assert_eq!(refused, Err(SubmitError::Closed));
        assert!(matches!(detect(&engine), Err(Error::Stopped)));
        let answers = submitter.poll(|answer| {
            assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
        });
        assert_eq!((answers, engine.run_pending()), (1_000, 0));
        let counters = engine.counters();
        assert_eq!((counters.submitted, counters.done), (1_003, 1_000));
        assert_eq!((counters.abandoned, counters.in_flight()), (3, 0));
    }
}

#[test]
fn a_stop_without_time_abandons_what_waits() {
    let model = model();
    let flows = recorded_flows(&model);
    for (workers, start) in [(0, true), (1, false), (2, true)] {
        let engine = made(&model, workers);
        if start {
            engine.start().unwrap();
        }
        let mut submitter = engine.submitter().unwrap();
        submit_all(&mut submitter, &flows, 1_000);
        engine.stop(Duration::ZERO);
        // The workers have seen it by now, and the last of what they had taken is home.
        let stopped = engine.stop(LONG);
        assert_eq!(stopped.running_workers, 0);
        let mut abandoned = 0;
        let answers = submitter.wait(LONG, |answer| match answer.judgement {
            Judgement::Abandoned => abandoned += 1,
            Judgement::Verdicts(_) => (),
            other => panic!("{other:?}"),
        });
        assert_eq!((answers, abandoned), (1_000, stopped.abandoned));
        if workers == 0 || !start {
            assert_eq!(abandoned, 1_000);
        }
        assert_eq!(engine.counters().in_flight(), 0);
    }
}

#[test]
fn what_is_submitted_during_a_stop_has_one_fate() {
    let model = model();
    let flows = recorded_flows(&model);
    for round in 0..20_u64 {
        let engine = made(&model, 2);
        engine.start().unwrap();
        let refused = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                let mut submitter = engine.submitter().unwrap();
                let (flows, refused) = (&flows, &refused);
                scope.spawn(move || {
                    let mut answers = 0;
                    let mut taken = 0;
                    loop {
                        match submitter.submit(&flows[taken % flows.len()], taken as u64) {
                            Ok(()) => taken += 1,
                            Err(SubmitError::QueueFull) => {
                                answers += submitter.wait(LONG, |_| ());
                                refused.fetch_add(1, SeqCst);
                            }
                            Err(SubmitError::Closed) => break,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    refused.fetch_add(1, SeqCst);
                    let end = Instant::now() + LONG;
                    while submitter.in_flight() > 0 {
                        assert!(Instant::now() < end, "{} are lost", submitter.in_flight());
                        answers += submitter.wait(Duration::from_millis(100), |_| ());
                    }
                    assert_eq!(answers, taken);
                });
            }
            thread::sleep(Duration::from_micros(300 * round));
            let timeout = if round % 2 == 0 { LONG } else { Duration::ZERO };
            let stopped = engine.stop(timeout);
            assert!(round % 2 == 1 || stopped.running_workers == 0);
        });
        let counters = engine.counters();
        assert_eq!(counters.in_flight(), 0);
        assert_eq!(
            counters.submitted,
            counters.done + counters.shed + counters.abandoned
        );
        assert!(counters.shed <= refused.load(SeqCst));
    }
}

#[test]
fn a_detection_needs_workers_that_run() {
    let model = model();
    let engine = made(&model, 2);
    assert!(matches!(detect(&engine), Err(Error::NotStarted)));
    engine.start().unwrap();
    assert_eq!(detect(&engine).unwrap(), 13);
    let inline = made(&model, 0);
    assert_eq!(detect(&inline).unwrap(), 13);
    // One that is under way ends with the engine.
    let mut detection = engine.detect(Discard);
    detection
        .capture(File::open(capture("http.pcap")).unwrap())
        .unwrap();
    engine.stop(Duration::ZERO);
    let again = detection.capture(File::open(capture("http.pcap")).unwrap());
    assert!(matches!(again, Err(Error::Stopped)));
}

#[cfg(target_os = "linux")]
#[test]
fn an_engine_that_was_not_started_is_dropped_with_what_waits() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = made(&model, 2);
    let mut submitter = engine.submitter().unwrap();
    submit_all(&mut submitter, &flows, 10);
    drop(engine);
    let answers = submitter.wait(LONG, |answer| {
        assert_eq!(answer.judgement, Judgement::Abandoned);
    });
    assert_eq!((answers, submitter.in_flight()), (10, 0));
}

#[test]
fn a_worker_may_drop_the_engine_when_it_tells_of_answers() {
    let model = model();
    let flows = recorded_flows(&model);
    let place: Arc<Mutex<Option<Engine>>> = Arc::default();
    let taken = Arc::clone(&place);
    let engine = made(&model, 2);
    engine.start().unwrap();
    let (told, is_told) = mpsc::channel();
    let mut submitter = engine
        .submitter_with(Box::new(move || {
            drop(taken.lock().unwrap().take());
            _ = told.send(());
        }))
        .unwrap();
    *place.lock().unwrap() = Some(engine);
    submitter.submit(&flows[0], 0).unwrap();
    is_told.recv_timeout(LONG).unwrap();
    assert_eq!(submitter.wait(LONG, |_| ()), 1);
    assert_eq!(submitter.submit(&flows[0], 1), Err(SubmitError::Closed));
}
