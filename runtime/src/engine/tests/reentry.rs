//! Functions of the host that the work calls, and that call the engine again.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::{Count, REQUEST};
use crate::engine::{Engine, EngineOptions, Judgement, Submitter};
use crate::error::Error;
use crate::model::Model;

const LONG: Duration = Duration::from_secs(60);

fn engine() -> Arc<Engine> {
    with_workers(0)
}

fn with_workers(workers: usize) -> Arc<Engine> {
    let options = EngineOptions {
        workers,
        ..EngineOptions::default()
    };
    let model = Arc::new(Model::open_default().unwrap());
    Arc::new(Engine::new(model, options).unwrap())
}

/// Runs `work` on another thread, which is left behind where it does not return.
fn returns(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    let end = Instant::now() + LONG;
    while !thread.is_finished() {
        assert!(Instant::now() < end, "{what} does not return");
        _ = is_done.recv_timeout(Duration::from_millis(10));
    }
    thread.join().unwrap();
}

/// A submitter with flows that wait, whose answers are told to `told`.
fn submitter(engine: &Engine, flows: u64, told: impl Fn() + Send + Sync + 'static) -> Submitter {
    let mut submitter = engine.submitter_with(Box::new(told)).unwrap();
    for id in 0..flows {
        submitter.submit_request(REQUEST, id).unwrap();
    }
    submitter
}

#[test]
fn who_is_told_of_answers_may_ask_for_work_and_gets_none() {
    let engine = engine();
    returns("asking for work while being told of answers", move || {
        let own = Arc::clone(&engine);
        let found = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&found);
        let mut submitter = submitter(&engine, 3, move || {
            asked.lock().unwrap().push(own.run_pending());
        });
        assert_eq!(engine.run_pending(), 3);
        assert_eq!(*found.lock().unwrap(), [0]);
        assert_eq!(submitter.poll(|_| ()), 3);
        assert_eq!(engine.run_pending(), 0, "it is free again");
    });
}

#[test]
fn a_detection_within_the_work_is_refused_and_not_waited_for() {
    let engine = engine();
    returns("a detection while being told of answers", move || {
        let own = Arc::clone(&engine);
        let found = Arc::new(OnceLock::new());
        let asked = Arc::clone(&found);
        let begun = move || {
            let mut detection = own.detect(Count(0));
            let line = b"{\"request\":\"GET /a HTTP/1.1\"}\n";
            asked.get_or_init(|| detection.requests(line.as_slice()).map(|_| ()));
        };
        let mut submitter = submitter(&engine, 1, begun);
        assert_eq!(engine.run_pending(), 1);
        assert!(matches!(found.get(), Some(Err(Error::OwnWork))));
        assert_eq!(submitter.poll(|_| ()), 1);
    });
}

#[test]
fn a_detection_goes_on_while_another_thread_is_at_work() {
    let engine = engine();
    let mut submitter = submitter(&engine, 1, || ());
    engine.hold(Some(0));
    let other = Arc::clone(&engine);
    let at_work = thread::spawn(move || other.run_pending());
    let end = Instant::now() + LONG;
    while engine.counters().batches == 0 {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    assert_eq!(engine.run_pending(), 0, "it does not wait");
    let detecting = Arc::clone(&engine);
    let detected = thread::spawn(move || {
        let mut detection = detecting.detect(Count(0));
        let lines = "{\"request\":\"GET /search?q=shoes HTTP/1.1\"}\n".repeat(3);
        // Their ids begin with 0 as well: only the first one is held.
        detection.requests(lines.as_bytes()).unwrap();
        detection.finish().unwrap().1.0
    });
    while engine.counters().submitted < 2 {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    engine.hold(None);
    assert!(at_work.join().unwrap() >= 1);
    assert_eq!(detected.join().unwrap(), 3);
    assert_eq!(submitter.wait(LONG, |_| ()), 1);
}

#[test]
fn who_is_told_of_answers_may_stop_the_engine() {
    let engine = engine();
    returns("stopping while being told of answers", move || {
        let own = Arc::clone(&engine);
        let begin = Instant::now();
        let mut submitter = submitter(&engine, 3, move || _ = own.stop(2 * LONG));
        // Another model: its flow is a batch of its own, and has none any more.
        let second = Arc::new(Model::open_default().unwrap());
        engine.activate(second).unwrap();
        submitter.submit_request(REQUEST, 3).unwrap();
        assert_eq!(engine.run_pending(), 3);
        assert!(begin.elapsed() < LONG, "it has not waited for itself");
        let mut abandoned = Vec::new();
        let answers = submitter.poll(|answer| {
            if answer.judgement == Judgement::Abandoned {
                abandoned.push(answer.id);
            }
        });
        assert_eq!((answers, abandoned), (4, vec![3]));
        assert_eq!(engine.counters().in_flight(), 0);
    });
}

#[test]
fn a_worker_that_tells_of_answers_may_stop_its_engine_and_gets_no_detection() {
    for workers in [1, 2] {
        let engine = with_workers(workers);
        let shared = Arc::clone(&engine.shared);
        returns("stopping from a worker", move || {
            let own = Arc::clone(&engine);
            let (tell, told) = mpsc::channel();
            let mut submitter = submitter(&engine, 1, move || {
                let mut detection = own.detect(Count(0));
                let line = b"{\"request\":\"GET /a HTTP/1.1\"}\n";
                let detected = detection.requests(line.as_slice()).map(|_| ());
                _ = tell.send((detected, own.stop(2 * LONG)));
            });
            let begin = Instant::now();
            engine.start().unwrap();
            // While it stops the engine it is told of that as well, and stops it again.
            let (within, stopped_within) = told.recv_timeout(LONG).unwrap();
            let (detected, stopped) = told.recv_timeout(LONG).unwrap();
            assert!(begin.elapsed() < LONG, "it has not waited for itself");
            assert!(matches!(within, Err(Error::Stopped)));
            assert!(matches!(detected, Err(Error::OwnWork)));
            assert_eq!((stopped.abandoned, stopped.running_workers), (0, 1));
            assert_eq!(stopped, stopped_within);
            assert_eq!(submitter.wait(LONG, |_| ()), 1);
        });
        // The notify function has held the engine: it goes with the last one to hold the mailbox.
        let end = Instant::now() + LONG;
        while shared.running_workers() > 0 {
            assert!(Instant::now() < end, "a worker does not end");
            thread::yield_now();
        }
    }
}

/// A log that asks for work and for numbers whenever something is said.
struct Log {
    engine: Arc<Engine>,
    said: Arc<AtomicUsize>,
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.said.fetch_add(1, SeqCst);
        assert_eq!(self.engine.run_pending(), 0);
        assert!(self.engine.memory().total_bytes() > 0);
        assert!(!self.engine.metrics(0, <_>::default()).is_empty());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// How often the log was told something while a batch failed and the engine was stopped.
fn said() -> usize {
    let engine = engine();
    let said = Arc::new(AtomicUsize::new(0));
    let log = Log {
        engine: Arc::clone(&engine),
        said: Arc::clone(&said),
    };
    returns("asking for work from the log", move || {
        let mut submitter = submitter(&engine, 3, || ());
        engine.poison(Some(1));
        tracing::subscriber::with_default(log, || {
            engine.run_pending();
            engine.stop(Duration::ZERO);
        });
        let failed = submitter.poll(|answer| {
            assert!(matches!(answer.judgement, Judgement::Failed(_)));
        });
        assert_eq!(failed, 3);
    });
    said.load(SeqCst)
}

#[test]
fn a_log_may_ask_for_work_and_gets_none() {
    // What another test says for the first time at the same moment stays silent until the next log is there.
    said();
    assert_eq!(said(), 2, "the failed batch and the stop");
}
