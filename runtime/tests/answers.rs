//! The ways in which answers reach who asked: by classifiers, in portions, with a call when they are there, and only while somebody
//! wants them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use common::{REQUEST_TASK, recorded_flows, small_model, started};
use trafficllm::limits::{BATCH_TOKENS_MIN, CLASSIFIER_FLOWS};
use trafficllm::{Answer, Engine, EngineOptions, Flow, Judgement, Model, SubmitError};

const LONG: Duration = Duration::from_secs(60);

fn model() -> Arc<Model> {
    small_model(|_| ())
}

fn text(answer: &Answer<'_>) -> String {
    format!("{:?}", answer.judgement)
}

#[test]
fn a_classifier_gives_the_verdicts_of_the_queue() {
    let model = model();
    let mut flows = recorded_flows(&model);
    while flows.len() <= 2 * CLASSIFIER_FLOWS {
        flows.extend_from_within(..);
    }
    let engine = started(&model, EngineOptions::default());
    let mut submitter = engine.submitter().unwrap();
    let mut expected = vec![String::new(); flows.len()];
    for (id, flow) in (0..).zip(&flows) {
        submitter.submit(flow, id).unwrap();
    }
    engine.run_pending();
    submitter.poll(|answer| expected[answer.id as usize] = text(answer));
    for batch_tokens in [0, BATCH_TOKENS_MIN, 1 << 20] {
        let options = EngineOptions {
            batch_tokens,
            workers: 1,
            ..EngineOptions::default()
        };
        let engine = Engine::new(Arc::clone(&model), options).unwrap();
        let mut classifier = engine.classifier().unwrap();
        for count in [0, 1, CLASSIFIER_FLOWS, CLASSIFIER_FLOWS + 1, flows.len()] {
            let before = engine.counters();
            let some: Vec<&Flow> = flows.iter().take(count).collect();
            let mut indices = Vec::new();
            classifier
                .classify(&some, |index, answer| {
                    assert_eq!(text(answer), expected[index]);
                    assert_eq!((answer.id, answer.generation), (index as u64, 1));
                    assert_eq!(answer.model.id(), model.id());
                    indices.push(index);
                })
                .unwrap();
            assert_eq!(indices, (0..count).collect::<Vec<_>>());
            let after = engine.counters();
            assert_eq!(after.submitted - before.submitted, count as u64);
            assert_eq!(after.done - before.done, count as u64);
        }
        let latency = engine.latency();
        assert_eq!(latency.count, engine.counters().done);
        assert_eq!(latency.counts.iter().sum::<u64>(), latency.count);
    }
}

#[test]
fn a_classifier_judges_requests_and_refuses_what_is_none() {
    let model = model();
    let engine = Engine::new(Arc::clone(&model), EngineOptions::default()).unwrap();
    let mut classifier = engine.classifier().unwrap();
    let mut answers = 0;
    classifier
        .classify_request(b"GET /index HTTP/1.1\r\n\r\n", |answer| {
            let Judgement::Verdicts([verdict]) = answer.judgement else {
                panic!("expected one verdict, found {answer:?}");
            };
            assert_eq!((answer.id, verdict.task), (0, REQUEST_TASK));
            answers += 1;
        })
        .unwrap();
    let refused = classifier.classify_request(b"EHLO there", |_| panic!("an answer"));
    assert!(matches!(refused, Err(SubmitError::NotARequest(_))));
    assert_eq!((answers, engine.counters().submitted), (1, 1));
    assert_eq!(engine.counters().done, 1);
}

#[test]
fn a_classifier_survives_the_panic_of_who_takes_its_answers() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = Engine::new(Arc::clone(&model), EngineOptions::default()).unwrap();
    let mut classifier = engine.classifier().unwrap();
    let some: Vec<&Flow> = flows.iter().take(20).collect();
    for _ in 0..5 {
        let panicking = std::panic::AssertUnwindSafe(|| {
            classifier.classify(&some, |index, _| assert!(index != 2, "enough"))
        });
        assert!(std::panic::catch_unwind(panicking).is_err());
    }
    let mut answers = 0;
    classifier.classify(&some, |_, _| answers += 1).unwrap();
    assert_eq!(answers, 20);
}

#[test]
fn a_poll_gives_at_most_so_many_answers() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = started(&model, EngineOptions::default());
    let mut submitter = engine.submitter().unwrap();
    for id in 0..10 {
        submitter.submit(&flows[0], id).unwrap();
    }
    engine.run_pending();
    let mut ids = Vec::new();
    let mut poll = |most| submitter.poll_at_most(most, |answer| ids.push(answer.id));
    assert_eq!([0, 1, 3, 4, 5, 6].map(&mut poll), [0, 1, 3, 4, 2, 0]);
    assert_eq!(ids, (0..10).collect::<Vec<_>>());
    assert_eq!(submitter.in_flight(), 0);
}

#[test]
fn an_answer_that_does_not_fit_stays_and_goes_with_its_owner() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = started(&model, EngineOptions::default());
    let mut submitter = engine.submitter().unwrap();
    let owners: Vec<Arc<()>> = (0..3).map(|_| Arc::new(())).collect();
    for (id, owner) in (0..).zip(&owners) {
        submitter.submit_for(&flows[0], id, owner).unwrap();
    }
    engine.run_pending();
    let mut offered = 0;
    let refused = |verdicts: usize| {
        assert!(verdicts > 0);
        offered += 1;
        false
    };
    assert_eq!(submitter.poll_while(refused, |_| panic!("taken")), 0);
    assert_eq!((offered, submitter.in_flight()), (1, 3));
    assert_eq!(engine.counters().done, 0, "what was not taken has no fate");
    let mut owners = owners.into_iter();
    drop(owners.next());
    let mut ids = Vec::new();
    let taken = submitter.poll_while(|_| true, |answer| ids.push(answer.id));
    assert_eq!((taken, ids.as_slice()), (2, [1, 2].as_slice()));
    let counters = engine.counters();
    assert_eq!((counters.done, counters.abandoned), (2, 1));
}

#[test]
fn answers_come_only_while_their_owner_is_there() {
    let model = model();
    let flows = recorded_flows(&model);
    let engine = started(&model, EngineOptions::default());
    let mut submitter = engine.submitter().unwrap();
    let owners: Vec<Arc<()>> = (0..3).map(|_| Arc::new(())).collect();
    for (id, owner) in (0..).zip(&owners) {
        submitter.submit_for(&flows[0], id, owner).unwrap();
    }
    submitter.submit(&flows[0], 3).unwrap();
    let mut owners = owners.into_iter();
    drop(owners.next());
    assert_eq!(engine.run_pending(), 3, "one was not run");
    drop(owners.next());
    let mut ids = Vec::new();
    assert_eq!(submitter.poll(|answer| ids.push(answer.id)), 2);
    assert_eq!(
        (ids.as_slice(), submitter.in_flight()),
        ([2, 3].as_slice(), 0)
    );
    let counters = engine.counters();
    assert_eq!((counters.done, counters.abandoned), (2, 2));
    assert_eq!((counters.submitted, counters.in_flight()), (4, 0));
}

#[test]
fn who_polls_only_when_told_misses_no_answer() {
    const FLOWS: u64 = 3_000;
    let model = model();
    let flows = recorded_flows(&model);
    let options = EngineOptions {
        workers: 3,
        batch_tokens: BATCH_TOKENS_MIN,
        ..EngineOptions::default()
    };
    let engine = started(&model, options);
    let told = Arc::new((Mutex::new(false), Condvar::new()));
    let calls = Arc::new(AtomicU64::new(0));
    let mut submitter = {
        let (told, calls) = (Arc::clone(&told), Arc::clone(&calls));
        let notify = move || {
            calls.fetch_add(1, SeqCst);
            *told.0.lock().unwrap() = true;
            told.1.notify_one();
            // A call that fails is the caller's own affair.
            assert!(
                calls.load(SeqCst) % 50 != 7,
                "a defect in the caller's code"
            );
        };
        engine.submitter_with(Box::new(notify)).unwrap()
    };
    let (mut submitted, mut answers) = (0, 0);
    while answers < FLOWS {
        while submitted < FLOWS && submitter.in_flight() < 20 {
            let flow = &flows[submitted as usize % flows.len()];
            submitter.submit(flow, submitted).unwrap();
            submitted += 1;
        }
        let waited = told
            .1
            .wait_timeout_while(told.0.lock().unwrap(), LONG, |told| !*told);
        let (mut is_told, waited) = waited.unwrap();
        assert!(!waited.timed_out(), "{answers} answers, and nobody is told");
        *is_told = false;
        drop(is_told);
        answers += submitter.poll(|_| ()) as u64;
    }
    assert!(calls.load(SeqCst) > 10);
    assert_eq!(engine.counters().done, FLOWS);
    // Without an answer nobody is told.
    let before = calls.load(SeqCst);
    thread::sleep(Duration::from_millis(5));
    assert_eq!((submitter.poll(|_| ()), calls.load(SeqCst)), (0, before));
}
