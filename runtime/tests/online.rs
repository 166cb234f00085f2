//! Flows that come one by one: every one has one fate, whatever happens to the queue, the workers and the submitters.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    REQUEST_TASK, capture, captures, cpu_ticks, flows_of, is_alone, recorded_flows, small_model,
    started, threads, workers,
};
use trafficllm::{
    Answer, Engine, EngineCounters, EngineOptions, Flow, Judgement, Model, Outcome, Sink,
    SubmitError, Submitter,
};

const LONG: Duration = Duration::from_secs(60);

fn model() -> Arc<Model> {
    small_model(|_| ())
}

fn inline(queue_flows: usize) -> EngineOptions {
    EngineOptions {
        queue_flows,
        ..EngineOptions::default()
    }
}

fn text(answer: &Answer<'_>) -> String {
    format!("{:?}", answer.judgement)
}

/// Takes all answers that are still to come.
fn take_all(engine: &Engine, submitter: &mut Submitter, mut take: impl FnMut(&Answer<'_>)) {
    while submitter.in_flight() > 0 {
        engine.run_pending();
        submitter.wait(LONG, &mut take);
    }
}

/// The verdicts of a detection, in the order of the input.
#[derive(Default)]
struct Verdicts(Vec<String>);

impl Sink for Verdicts {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        let judgement = Judgement::Verdicts(outcome.verdicts);
        self.0.push(format!("{judgement:?}"));
        ControlFlow::Continue(())
    }
}

#[test]
fn a_flow_gets_the_verdicts_that_a_detection_gives_it() {
    let model = model();
    for options in [inline(0), workers(1), workers(3)] {
        let engine = started(&model, options);
        for path in captures().iter().filter(|path| !path.ends_with(".jsonl")) {
            let mut detection = engine.detect(Verdicts::default());
            detection.capture(File::open(path).unwrap()).unwrap();
            let expected = detection.finish().unwrap().1.0;
            let flows = flows_of(&model, path);
            assert_eq!(flows.len(), expected.len());
            let mut submitter = engine.submitter().unwrap();
            for (id, flow) in (0..).zip(&flows) {
                submitter.submit(flow, id).unwrap();
            }
            let mut found = vec![String::new(); flows.len()];
            take_all(&engine, &mut submitter, |answer| {
                found[answer.id as usize] = text(answer);
            });
            assert_eq!(found, expected, "{path}");
        }
        let counters = engine.counters();
        assert_eq!(counters.submitted, counters.done);
    }
}

#[test]
fn requests_are_judged_by_their_tasks_and_what_is_none_is_refused() {
    let model = model();
    let engine = started(&model, inline(0));
    let mut submitter = engine.submitter().unwrap();
    submitter
        .submit_request(b"GET /index HTTP/1.1\r\n\r\n", 5)
        .unwrap();
    let refused = submitter.submit_request(b"EHLO there", 6);
    assert!(matches!(refused, Err(SubmitError::NotARequest(_))));
    let mut answers = 0;
    take_all(&engine, &mut submitter, |answer| {
        answers += 1;
        let Judgement::Verdicts([verdict]) = answer.judgement else {
            panic!("expected one verdict, found {answer:?}");
        };
        assert_eq!((answer.id, verdict.task), (5, REQUEST_TASK));
    });
    assert_eq!((answers, engine.counters().submitted), (1, 1));
}

#[test]
fn a_full_queue_sheds_says_so_and_counts_it() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = started(&model, inline(3));
    let mut submitter = engine.submitter().unwrap();
    let mut other = engine.submitter().unwrap();
    for id in 0..3 {
        submitter.submit(&flows[0], id).unwrap();
    }
    assert_eq!(
        submitter.submit(&flows[0], 3),
        Err(SubmitError::QueueFull),
        "past the limit"
    );
    assert_eq!(
        other.submit(&flows[0], 0),
        Err(SubmitError::QueueFull),
        "the queue is that of all submitters"
    );
    assert_eq!((submitter.in_flight(), other.in_flight()), (3, 0));
    assert_eq!(engine.run_pending(), 3);
    // The queue has room again, but this submitter has not taken its answers back.
    assert_eq!(submitter.submit(&flows[0], 4), Err(SubmitError::QueueFull));
    other.submit(&flows[0], 1).unwrap();
    let mut ids = Vec::new();
    submitter.poll(|answer| ids.push(answer.id));
    assert_eq!(ids, [0, 1, 2]);
    submitter.submit(&flows[0], 5).unwrap();
    assert_eq!(
        engine.counters(),
        EngineCounters {
            submitted: 8,
            done: 3,
            shed: 3,
            batches: 1,
            ..EngineCounters::default()
        }
    );
    assert_eq!(engine.counters().in_flight(), 2);
}

#[test]
fn a_flow_whose_deadline_has_passed_is_answered_without_a_run() {
    let model = model();
    let flows = recorded_flows(&model);
    let judge = |deadline_us| {
        let engine = started(
            &model,
            EngineOptions {
                deadline_us,
                ..EngineOptions::default()
            },
        );
        let mut submitter = engine.submitter().unwrap();
        submitter.submit(&flows[0], 1).unwrap();
        thread::sleep(Duration::from_millis(5));
        let judged = engine.run_pending();
        let mut fate = String::new();
        submitter.poll(|answer| fate = text(answer));
        (judged, fate, engine.counters())
    };
    let (judged, fate, counters) = judge(1_000);
    assert_eq!((judged, fate.as_str()), (0, "Expired"));
    assert_eq!((counters.expired, counters.done), (1, 0));
    for deadline_us in [0, 60_000_000] {
        let (judged, fate, counters) = judge(deadline_us);
        assert!(judged == 1 && fate.starts_with("Verdicts"), "{fate}");
        assert_eq!((counters.expired, counters.done), (0, 1));
    }
}

#[test]
fn a_submitter_that_is_dropped_abandons_its_flows_and_nobody_runs_them() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = started(&model, inline(8));
    let mut dropped = engine.submitter().unwrap();
    let mut kept = engine.submitter().unwrap();
    for id in 0..3 {
        dropped.submit(&flows[0], id).unwrap();
        kept.submit(&flows[1], id).unwrap();
    }
    let memory = engine.memory();
    drop(dropped);
    assert_eq!(engine.counters().abandoned, 3);
    assert!(engine.memory().queue_bytes < memory.queue_bytes);
    assert_eq!(engine.run_pending(), 3, "those of the other one");
    assert_eq!(kept.poll(|answer| assert!(answer.id < 3)), 3);
    assert_eq!(engine.counters().in_flight(), 0);
    // Answers that were there and not taken are abandoned as well.
    kept.submit(&flows[0], 9).unwrap();
    engine.run_pending();
    drop(kept);
    assert_eq!(
        (engine.counters().done, engine.counters().abandoned),
        (3, 4)
    );
}

#[test]
fn an_engine_that_is_dropped_sends_home_what_waits() {
    let model = model();
    let flows = recorded_flows(&model);
    for options in [inline(0), workers(2)] {
        let engine = started(&model, options);
        let mut submitter = engine.submitter().unwrap();
        for (id, flow) in (0..).zip(flows.iter().cycle().take(500)) {
            submitter.submit(flow, id).unwrap();
        }
        drop(engine);
        let mut abandoned = 0;
        let answers = submitter.wait(LONG, |answer| match answer.judgement {
            Judgement::Verdicts(_) => (),
            Judgement::Abandoned => abandoned += 1,
            other => panic!("{other:?}"),
        });
        assert_eq!((answers, submitter.in_flight()), (500, 0));
        assert_eq!(submitter.submit(&flows[0], 0), Err(SubmitError::Closed));
        let counters = submitter.counters();
        assert_eq!(counters.submitted, 501);
        assert_eq!(counters.abandoned, abandoned + 1);
        assert_eq!(counters.in_flight(), 0);
    }
}

#[test]
fn a_worker_that_waits_for_more_judges_what_comes() {
    let model = model();
    let flows = recorded_flows(&model);
    for (batch_tokens, queue_flows) in [(0, 0), (64, 1)] {
        let options = EngineOptions {
            batch_wait_us: 2_000,
            batch_tokens,
            queue_flows,
            ..workers(2)
        };
        let engine = started(&model, options);
        let mut submitter = engine.submitter().unwrap();
        let mut answers = 0;
        for flow in &flows {
            while submitter.submit(flow, 0).is_err() {
                answers += submitter.wait(LONG, |_| ());
            }
        }
        take_all(&engine, &mut submitter, |_| answers += 1);
        assert_eq!(answers, flows.len());
    }
}

/// What all threads of the load test have in common.
struct Load {
    flows: Vec<Flow>,
    expected: Vec<String>,
    stop: AtomicBool,
    /// The fates that the threads saw, by name.
    seen: [AtomicU64; 4],
}

const DONE: usize = 0;
const SHED: usize = 1;
const EXPIRED: usize = 2;
const ABANDONED: usize = 3;

/// Submits in bursts, checks every answer, and now and then goes away in the middle.
fn submit_under_load(engine: &Engine, load: &Load, thread: u64) {
    let count = |fate: usize, flows: u64| load.seen[fate].fetch_add(flows, SeqCst);
    let mut next = 0_u64;
    while !load.stop.load(SeqCst) {
        let mut submitter = engine.submitter().unwrap();
        let mut open: HashMap<u64, usize> = HashMap::new();
        for burst in 0..20 {
            for _ in 0..(thread + burst) % 40 {
                next += 1;
                let flow = (next * 7 + thread) as usize % load.flows.len();
                let id = next * 8 + thread;
                match submitter.submit(&load.flows[flow], id) {
                    Ok(()) => assert!(open.insert(id, flow).is_none()),
                    Err(SubmitError::QueueFull) => _ = count(SHED, 1),
                    Err(other) => panic!("{other}"),
                }
            }
            submitter.wait(Duration::from_millis(1), |answer| {
                // An answer comes once, to the one who asked.
                let flow = open.remove(&answer.id).unwrap();
                match answer.judgement {
                    Judgement::Verdicts(_) => {
                        assert_eq!(text(answer), load.expected[flow]);
                        count(DONE, 1);
                    }
                    Judgement::Expired => _ = count(EXPIRED, 1),
                    other => panic!("{other:?}"),
                }
            });
            assert_eq!(submitter.in_flight(), open.len());
        }
        count(ABANDONED, open.len() as u64);
    }
}

#[test]
fn counters_add_up_under_load() {
    const FLOWS: u64 = 10_000;
    let model = model();
    let flows = recorded_flows(&model);
    let mut expected = vec![String::new(); flows.len()];
    {
        let engine = started(&model, inline(0));
        let mut submitter = engine.submitter().unwrap();
        for (id, flow) in (0..).zip(&flows) {
            submitter.submit(flow, id).unwrap();
        }
        take_all(&engine, &mut submitter, |answer| {
            expected[answer.id as usize] = text(answer);
        });
    }
    let load = Load {
        flows,
        expected,
        stop: AtomicBool::new(false),
        seen: Default::default(),
    };
    let engine = started(
        &model,
        EngineOptions {
            queue_flows: 24,
            deadline_us: 20_000,
            ..workers(2)
        },
    );
    thread::scope(|scope| {
        for thread in 0..4 {
            let (engine, load) = (&engine, &load);
            scope.spawn(move || submit_under_load(engine, load, thread));
        }
        let mut before = EngineCounters::default();
        let end = Instant::now() + LONG;
        while before.submitted < FLOWS && Instant::now() < end {
            let now = engine.counters();
            let fates = |counters: &EngineCounters| {
                [
                    counters.done,
                    counters.shed,
                    counters.expired,
                    counters.abandoned,
                    counters.failed,
                ]
            };
            let pairs = fates(&now).into_iter().zip(fates(&before));
            assert!(now.submitted >= before.submitted);
            assert!(pairs.into_iter().all(|(now, before)| now >= before));
            assert!(fates(&now).iter().sum::<u64>() <= now.submitted);
            before = now;
            thread::sleep(Duration::from_millis(1));
        }
        load.stop.store(true, SeqCst);
    });
    let counters = engine.counters();
    let seen = load.seen.each_ref().map(|count| count.load(SeqCst));
    assert_eq!(
        [
            counters.done,
            counters.shed,
            counters.expired,
            counters.abandoned
        ],
        seen
    );
    assert_eq!((counters.in_flight(), counters.failed), (0, 0));
    assert!(counters.submitted >= FLOWS, "{counters:?}");
    assert!(
        counters.done > 0 && counters.shed > 0 && counters.abandoned > 0,
        "the load reaches every limit: {counters:?}"
    );
}

#[test]
fn memory_is_known() {
    let model = model();
    let engine = started(&model, inline(100));
    let empty = engine.memory();
    assert!(empty.model_bytes > 100_000, "{empty:?}");
    let mut one = engine.submitter().unwrap();
    let with_one = engine.memory().queue_bytes - empty.queue_bytes;
    let profile = model.encoder().profile();
    let tokens = (profile.max_tokens + profile.request_tokens) as usize;
    assert!(with_one >= 100 * tokens * 4 && with_one < 100 * (tokens * 4 + 1_000));
    let _two = engine.submitter().unwrap();
    assert_eq!(
        engine.memory().queue_bytes - empty.queue_bytes,
        2 * with_one
    );
    for flow in &flows_of(&model, &capture("tls.pcapng")) {
        one.submit(flow, 0).unwrap();
    }
    engine.run_pending();
    assert!(empty.worker_bytes[0] > 10_000, "{empty:?}");
    assert_eq!(engine.memory().worker_bytes, empty.worker_bytes);
}

#[cfg(target_os = "linux")]
#[test]
fn dropping_a_busy_engine_leaves_no_thread() {
    if !is_alone("dropping_a_busy_engine_leaves_no_thread") {
        return;
    }
    let before = threads();
    let model = model();
    let flows = recorded_flows(&model);
    let engine = started(&model, workers(3));
    let mut submitter = engine.submitter().unwrap();
    assert_eq!(threads(), before + 3, "a submitter has no thread");
    for (id, flow) in (0..).zip(flows.iter().cycle().take(1_000)) {
        submitter.submit(flow, id).unwrap();
    }
    drop(engine);
    assert_eq!(threads(), before);
}

#[cfg(target_os = "linux")]
#[test]
fn workers_sleep_while_submitters_have_nothing() {
    if !is_alone("workers_sleep_while_submitters_have_nothing") {
        return;
    }
    let model = model();
    let flows = recorded_flows(&model);
    let options = EngineOptions {
        batch_wait_us: 1_000,
        deadline_us: 1_000_000,
        ..workers(4)
    };
    let engine = started(&model, options);
    let mut submitter = engine.submitter().unwrap();
    for flow in &flows {
        submitter.submit(flow, 0).unwrap();
    }
    take_all(&engine, &mut submitter, |_| ());
    let before = cpu_ticks();
    thread::sleep(Duration::from_millis(300));
    submitter.wait(Duration::from_millis(100), |_| ());
    // Four spinning workers would take 30 ticks and more of a core each.
    assert!(
        cpu_ticks() - before <= 3,
        "idle workers take processor time"
    );
}
