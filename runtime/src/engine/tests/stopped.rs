//! Who is at something when the engine is stopped learns of it: no flow is left without an answer, and nobody is left asleep.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{REQUEST, engine, flow};
use crate::engine::{Engine, Judgement, SubmitError, Submitter};
use crate::model::Model;

const LONG: Duration = Duration::from_secs(60);
/// The flow on which a thread stands still.
const HELD: u64 = 1_000_000;

/// An engine whose one worker stands still in a batch, with a flow of this submitter.
fn held(notify: Box<dyn Fn() + Send + Sync>) -> (Engine, Submitter) {
    let engine = engine(&Arc::new(Model::open_default().unwrap()), 1);
    let mut submitter = engine.submitter_with(notify).unwrap();
    engine.hold(Some(HELD));
    submitter.submit_request(REQUEST, HELD).unwrap();
    until("no worker takes the flow", || engine.counters().batches > 0);
    (engine, submitter)
}

fn until(what: &str, is_done: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !is_done() {
        assert!(Instant::now() < end, "{what}");
        thread::yield_now();
    }
}

#[test]
fn a_flow_that_comes_into_the_lane_after_the_stop_is_answered_and_told_of() {
    for workers in [0, 1] {
        let engine = Arc::new(engine(&Arc::new(Model::open_default().unwrap()), workers));
        let (told, is_told) = mpsc::channel();
        let mut submitter = engine
            .submitter_with(Box::new(move || _ = told.send(thread::current().id())))
            .unwrap();
        engine.hold_encoding(Some(HELD));
        let submitting = thread::spawn(move || {
            let submitted = submitter.submit(&flow(), HELD);
            (submitter, submitted)
        });
        // The submitter has seen that flows are taken, and the system does not let it run.
        until("nothing is submitted", || engine.counters().submitted == 1);
        let stopped = engine.stop(Duration::ZERO);
        let stopped = (stopped, engine.stop(LONG)).1;
        assert_eq!((stopped.abandoned, stopped.running_workers), (0, 0));
        assert_eq!(is_told.try_iter().count(), 1, "of the stop");
        engine.hold_encoding(None);
        let submitter_thread = submitting.thread().id();
        let (mut submitter, submitted) = submitting.join().unwrap();
        assert_eq!(submitted, Ok(()));
        assert_eq!(is_told.try_iter().collect::<Vec<_>>(), [submitter_thread]);
        assert_eq!(submitter.in_flight(), 1);
        let answers = submitter.poll(|answer| {
            assert_eq!((answer.id, answer.judgement), (HELD, Judgement::Abandoned));
        });
        assert_eq!((answers, submitter.in_flight()), (1, 0));
        assert_eq!(submitter.submit(&flow(), 1), Err(SubmitError::Closed));
        let counters = engine.counters();
        assert_eq!((counters.submitted, counters.abandoned), (2, 2));
        assert_eq!(counters.in_flight(), 0);
    }
}

#[test]
fn a_host_that_waits_to_be_told_is_told_of_the_stop_once() {
    let (told, is_told) = mpsc::channel();
    let (engine, mut submitter) = held(Box::new(move || _ = told.send(())));
    assert_eq!(is_told.try_iter().count(), 0);
    engine.stop(Duration::ZERO);
    assert_eq!(is_told.try_iter().count(), 1);
    assert_eq!((submitter.poll(|_| ()), submitter.in_flight()), (0, 1));
    engine.stop(Duration::ZERO);
    assert_eq!(is_told.try_iter().count(), 0, "a second stop is no news");
    engine.hold(None);
    is_told.recv_timeout(LONG).unwrap();
    assert_eq!(submitter.poll(|answer| assert_eq!(answer.id, HELD)), 1);
}

#[test]
fn who_sleeps_for_an_answer_returns_at_the_stop_and_may_sleep_again() {
    let (engine, mut submitter) = held(Box::new(|| ()));
    let sleeping = thread::spawn(move || {
        let begin = Instant::now();
        assert_eq!(submitter.wait(2 * LONG, |_| ()), 0);
        assert!(
            begin.elapsed() < LONG,
            "it has not slept for all of the time"
        );
        submitter
    });
    thread::sleep(Duration::from_millis(20));
    engine.stop(Duration::ZERO);
    let mut submitter = sleeping.join().unwrap();
    // The answer may still come: a sleep that begins now is for that.
    let begin = Instant::now();
    assert_eq!(submitter.wait(Duration::from_millis(30), |_| ()), 0);
    assert!(begin.elapsed() >= Duration::from_millis(30));
    engine.hold(None);
    assert_eq!(
        submitter.wait(LONG, |answer| assert_eq!(answer.id, HELD)),
        1
    );
}

#[test]
fn who_sleeps_for_an_answer_returns_when_the_engine_is_dropped() {
    let (engine, mut submitter) = held(Box::new(|| ()));
    // A stop that gives up on the worker, before anybody sleeps.
    engine.stop(Duration::ZERO);
    let shared = Arc::clone(&engine.shared);
    let sleeping = thread::spawn(move || submitter.wait(LONG, |_| ()));
    drop(engine);
    shared.faults.hold(None);
    assert_eq!(sleeping.join().unwrap(), 1);
}
