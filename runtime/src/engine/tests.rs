//! What the outside cannot bring about: a worker that fails in the middle of its work.
#![cfg(feature = "default-bundle")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, EngineOptions, Judgement, Sink, share};
use crate::error::Error;
use crate::model::Model;
use crate::outcome::Outcome;

const NONE: u64 = u64::MAX;

fn engine(model: &Arc<Model>, workers: usize) -> Engine {
    let options = EngineOptions {
        workers,
        ..EngineOptions::default()
    };
    Engine::start(Arc::clone(model), options).unwrap()
}

#[test]
fn a_worker_that_panics_fails_its_batch_and_goes_on() {
    let model = Arc::new(Model::open_default().unwrap());
    let request = b"GET /search?q=shoes HTTP/1.1\r\n\r\n";
    for workers in [0, 1, 2] {
        let engine = engine(&model, workers);
        let mut submitter = engine.submitter();
        let mut judge = |poison| {
            engine.shared.poison.store(poison, Ordering::SeqCst);
            let (mut done, mut failed) = (Vec::new(), Vec::new());
            for id in 0..6 {
                submitter.submit_request(request, id).unwrap();
            }
            while submitter.in_flight() > 0 {
                engine.run_pending();
                submitter.wait(Duration::from_secs(60), |answer| match answer.judgement {
                    Judgement::Verdicts(verdicts) => {
                        assert_eq!(verdicts.len(), 1);
                        done.push(answer.id);
                    }
                    Judgement::Failed(message) => {
                        assert!(message.contains("a poisoned flow"), "{message}");
                        failed.push(answer.id);
                    }
                    other => panic!("{other:?}"),
                });
            }
            (done.len(), failed)
        };
        let (done, failed) = judge(3);
        assert!(failed.contains(&3), "{failed:?}");
        assert_eq!(done + failed.len(), 6);
        assert_eq!(judge(NONE), (6, Vec::new()), "the same worker, again");
        let counters = engine.counters();
        assert_eq!(counters.failed, failed.len() as u64);
        assert_eq!((counters.submitted, counters.in_flight()), (12, 0));
    }
}

struct Count(u64);

impl Sink for Count {
    fn outcome(&mut self, _outcome: &Outcome<'_>) -> ControlFlow<()> {
        self.0 += 1;
        ControlFlow::Continue(())
    }
}

#[test]
fn a_detection_ends_with_the_panic_of_a_worker_and_the_next_one_goes_on() {
    let model = Arc::new(Model::open_default().unwrap());
    let lines = "{\"request\":\"GET /search?q=shoes HTTP/1.1\"}\n".repeat(20);
    for workers in [0, 2] {
        let mut engine = engine(&model, workers);
        let mut detect = |poison| {
            engine.shared.poison.store(poison, Ordering::SeqCst);
            let mut detection = engine.detect(Count(0));
            detection.requests(lines.as_bytes())?;
            detection.finish().map(|(_, count)| count.0)
        };
        match detect(7) {
            Err(Error::Worker { message }) => assert!(message.contains("a poisoned flow")),
            other => panic!("{other:?}"),
        }
        assert_eq!(detect(NONE).unwrap(), 20);
        assert_eq!(engine.counters().in_flight(), 0);
    }
}

#[test]
fn a_worker_never_waits_into_the_deadline() {
    let model = Arc::new(Model::open_default().unwrap());
    for (batch_wait_us, deadline_us, expected_us) in
        [(500, 0, 500), (500, 1_000, 500), (501, 1_000, 500)]
    {
        let options = EngineOptions {
            batch_wait_us,
            deadline_us,
            ..EngineOptions::default()
        };
        let shared = share(Arc::clone(&model), &options).unwrap();
        assert_eq!(shared.batch_wait, Duration::from_micros(expected_us));
    }
}
