//! Workers that the system does not let run: one that stands still in its batch, as long as the test wants.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{REQUEST, engine};
use crate::engine::{Engine, Judgement, Stopped, SubmitError, Submitter};
use crate::model::Model;

const LONG: Duration = Duration::from_secs(60);
/// The flow on which a worker stands still.
const HELD: u64 = 1_000_000;

fn model() -> Arc<Model> {
    Arc::new(Model::open_default().unwrap())
}

/// Waits until the first worker stands still in its batch, with this flow alone.
fn hold_a_worker(engine: &Engine, submitter: &mut Submitter) {
    engine.hold(Some(HELD));
    submitter.submit_request(REQUEST, HELD).unwrap();
    let end = Instant::now() + LONG;
    while engine.counters().batches == 0 {
        assert!(Instant::now() < end, "no worker takes the flow");
        thread::yield_now();
    }
}

/// Runs `work` on another thread and fails if it does not return.
fn returns(what: &str, work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        scope.spawn(move || {
            work();
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(LONG).is_ok(), "{what} does not return");
    });
}

#[test]
fn a_worker_that_stands_still_delays_no_submitter() {
    let model = model();
    let engine = engine(&model, 1);
    let mut first = engine.submitter().unwrap();
    hold_a_worker(&engine, &mut first);
    returns("submitting, polling or dropping", || {
        let mut second = engine.submitter().unwrap();
        let queued = 1_024;
        for id in 0..queued {
            second.submit_request(REQUEST, id).unwrap();
        }
        let refused = second.submit_request(REQUEST, queued);
        assert_eq!(refused, Err(SubmitError::QueueFull));
        assert_eq!(second.poll(|_| ()), 0);
        assert_eq!(second.wait(Duration::from_millis(1), |_| ()), 0);
        assert_eq!(engine.queue_depth(), 1_024);
        engine.activate(Arc::clone(&model)).unwrap();
        drop(second);
        assert_eq!(engine.queue_depth(), 0);
        // The queue is free again for others.
        for id in 0..10 {
            first.submit_request(REQUEST, id).unwrap();
        }
        assert_eq!(engine.counters().abandoned, 1_024);
    });
    engine.hold(None);
    let mut answers = 0;
    while first.in_flight() > 0 {
        answers += first.wait(LONG, |answer| {
            assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
            let generation = if answer.id == HELD { 1 } else { 2 };
            assert_eq!(answer.generation, generation);
        });
    }
    assert_eq!(answers, 11);
    let counters = engine.counters();
    assert_eq!((counters.done, counters.shed), (11, 1));
    assert_eq!((counters.submitted, counters.in_flight()), (1_036, 0));
}

#[test]
fn another_worker_does_the_work_of_one_that_stands_still() {
    let model = model();
    let engine = engine(&model, 2);
    let mut submitter = engine.submitter().unwrap();
    hold_a_worker(&engine, &mut submitter);
    for id in 0..200 {
        submitter.submit_request(REQUEST, id).unwrap();
    }
    let mut answers = 0;
    while answers < 200 {
        let more = submitter.wait(LONG, |answer| assert!(answer.id < 200));
        assert!(more > 0, "{answers} answers, and no more");
        answers += more;
    }
    engine.hold(None);
    assert_eq!(
        submitter.wait(LONG, |answer| assert_eq!(answer.id, HELD)),
        1
    );
}

#[test]
fn a_stop_does_not_wait_for_a_worker_that_stands_still_and_neither_does_a_drop() {
    let model = model();
    let engine = engine(&model, 1);
    let mut submitter = engine.submitter().unwrap();
    hold_a_worker(&engine, &mut submitter);
    for id in 0..5 {
        submitter.submit_request(REQUEST, id).unwrap();
    }
    let left_behind = Stopped {
        abandoned: 5,
        running_workers: 1,
    };
    returns("stopping", || {
        let begin = Instant::now();
        assert_eq!(engine.stop(Duration::from_millis(30)), left_behind);
        assert!(
            begin.elapsed() >= Duration::from_millis(30),
            "it has waited"
        );
        assert_eq!(engine.stop(Duration::ZERO), left_behind, "again");
    });
    assert_eq!(
        submitter.submit_request(REQUEST, 9),
        Err(SubmitError::Closed)
    );
    let mut abandoned = Vec::new();
    submitter.poll(|answer| {
        assert_eq!(answer.judgement, Judgement::Abandoned);
        abandoned.push(answer.id);
    });
    assert_eq!(abandoned, [0, 1, 2, 3, 4]);
    assert_eq!(submitter.in_flight(), 1, "the flow that is held");
    let shared = Arc::clone(&engine.shared);
    returns("dropping", move || drop(engine));
    // The worker that was left behind ends by itself, and its answer still comes.
    shared.faults.hold(None);
    assert_eq!(
        submitter.wait(LONG, |answer| assert_eq!(answer.id, HELD)),
        1
    );
    let end = Instant::now() + LONG;
    while shared.running_workers() > 0 {
        assert!(Instant::now() < end, "the worker does not end");
        thread::yield_now();
    }
    let counters = submitter.counters();
    assert_eq!((counters.done, counters.abandoned), (1, 6));
    assert_eq!((counters.submitted, counters.in_flight()), (7, 0));
}

#[test]
fn a_later_stop_tells_that_the_worker_has_ended() {
    let model = model();
    let engine = engine(&model, 2);
    let mut submitter = engine.submitter().unwrap();
    hold_a_worker(&engine, &mut submitter);
    let mut first = engine.stop(Duration::from_millis(1));
    let end = Instant::now() + LONG;
    while first.running_workers == 2 && Instant::now() < end {
        // The idle one may not have had its turn yet.
        first = engine.stop(Duration::from_millis(1));
    }
    assert_eq!((first.abandoned, first.running_workers), (0, 1));
    engine.hold(None);
    let second = engine.stop(LONG);
    assert_eq!((second.abandoned, second.running_workers), (0, 0));
}

#[test]
fn a_flow_that_is_under_way_keeps_the_model_that_judges_it() {
    let model = model();
    let engine = engine(&model, 1);
    let mut submitter = engine.submitter().unwrap();
    hold_a_worker(&engine, &mut submitter);
    let next = Arc::new(Model::open_default().unwrap());
    let freed = Arc::downgrade(&model);
    drop(model);
    engine.activate(next).unwrap();
    assert!(engine.memory().retired_bytes > 0);
    returns("dropping the submitter", move || drop(submitter));
    assert_eq!(freed.strong_count(), 1, "the worker is still at it");
    engine.hold(None);
    let end = Instant::now() + LONG;
    while freed.strong_count() > 0 {
        assert!(Instant::now() < end, "the old model is not freed");
        thread::yield_now();
    }
    assert_eq!(engine.memory().retired_bytes, 0);
}

#[test]
fn answers_of_a_submitter_are_not_run_once_its_owner_is_gone() {
    let model = model();
    let engine = engine(&model, 1);
    let mut submitter = engine.submitter().unwrap();
    let flow = crate::engine::tests::flow();
    let (kept, gone) = (Arc::new(()), Arc::new(()));
    hold_a_worker(&engine, &mut submitter);
    for id in 0..4 {
        let owner = if id % 2 == 0 { &kept } else { &gone };
        submitter.submit_for(&flow, id, owner).unwrap();
    }
    drop(gone);
    let batches = AtomicU64::new(engine.counters().batches);
    engine.hold(None);
    let mut found = Vec::new();
    while submitter.in_flight() > 0 {
        submitter.wait(LONG, |answer| found.push(answer.id));
    }
    assert_eq!(found, [HELD, 0, 2]);
    assert_eq!(engine.latency().count, 3, "the others were not run");
    assert!(engine.counters().batches > batches.load(SeqCst));
    let counters = engine.counters();
    assert_eq!((counters.done, counters.abandoned), (3, 2));
    // One whose answer is there already when its owner goes does not come either.
    engine.hold(None);
    submitter.submit_for(&flow, 7, &kept).unwrap();
    let end = Instant::now() + LONG;
    while engine.latency().count < 4 {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    drop(kept);
    while submitter.in_flight() > 0 {
        assert_eq!(submitter.wait(LONG, |_| ()), 0);
    }
    assert_eq!(engine.counters().abandoned, 3);
}
