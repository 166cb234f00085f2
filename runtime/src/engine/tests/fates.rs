//! Every flow that was counted as submitted comes to have a fate, whatever panics on its way.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::{REQUEST, flow};
use crate::engine::{Engine, EngineCounters, EngineOptions, Judgement, SubmitError};
use crate::limits::CLASSIFIER_FLOWS;
use crate::model::Model;

const LONG: Duration = Duration::from_secs(60);

fn engine(queue_flows: usize) -> Engine {
    let options = EngineOptions {
        queue_flows,
        ..EngineOptions::default()
    };
    Engine::new(Arc::new(Model::open_default().unwrap()), options).unwrap()
}

fn panics(work: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
}

#[test]
fn a_flow_whose_submission_panics_has_failed_and_its_place_is_free() {
    let engine = engine(4);
    let mut submitter = engine.submitter().unwrap();
    let (flow, owner) = (flow(), Arc::new(()));
    engine.poison_encoding(Some(7));
    for _ in 0..5 {
        panics(|| _ = submitter.submit(&flow, 7));
        panics(|| _ = submitter.submit_for(&flow, 7, &owner));
        panics(|| _ = submitter.submit_request(REQUEST, 7));
    }
    let expected = EngineCounters {
        submitted: 15,
        failed: 15,
        ..EngineCounters::default()
    };
    assert_eq!(engine.counters(), expected);
    assert_eq!((submitter.in_flight(), engine.queue_depth()), (0, 0));
    for id in 0..4 {
        submitter.submit(&flow, id).unwrap();
    }
    assert_eq!(submitter.submit(&flow, 4), Err(SubmitError::QueueFull));
    assert_eq!(engine.run_pending(), 4);
    let answers = submitter.wait(LONG, |answer| {
        assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
    });
    let counters = engine.counters();
    assert_eq!((answers, counters.submitted, counters.failed), (4, 20, 15));
    assert_eq!(counters.in_flight(), 0);
}

#[test]
fn flows_of_a_classification_that_panics_have_failed_and_none_comes_back() {
    let engine = engine(4);
    let mut classifier = engine.classifier().unwrap();
    let flow = flow();
    let flows = vec![&flow; 2 * CLASSIFIER_FLOWS];
    engine.poison_encoding(Some(2));
    panics(|| _ = classifier.classify(&flows, |_, _| ()));
    let counters = engine.counters();
    assert_eq!((counters.done, counters.in_flight()), (0, 0));
    assert_eq!(counters.failed, flows.len() as u64);
    engine.poison_encoding(Some(0));
    panics(|| _ = classifier.classify_request(REQUEST, |_| ()));
    assert_eq!(engine.counters().failed, flows.len() as u64 + 1);
    assert_eq!(engine.counters().in_flight(), 0);
    engine.poison_encoding(None);
    let mut found = Vec::new();
    classifier
        .classify(&flows, |index, answer| {
            assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
            found.push(index);
        })
        .unwrap();
    assert!(found.iter().copied().eq(0..flows.len()));
    assert_eq!(engine.counters().in_flight(), 0);
}

#[test]
fn flows_that_come_after_a_panic_of_who_takes_the_answers_have_failed() {
    let engine = engine(4);
    let mut classifier = engine.classifier().unwrap();
    let flow = flow();
    let flows = vec![&flow; 3 * CLASSIFIER_FLOWS];
    panics(|| _ = classifier.classify(&flows, |index, _| assert!(index < 2, "no more")));
    let counters = engine.counters();
    // The first batch was judged.
    assert!(counters.done > 0 && counters.failed > 0);
    assert_eq!(counters.done + counters.failed, flows.len() as u64);
    assert_eq!(counters.in_flight(), 0);
    let mut answers = 0;
    classifier.classify(&flows, |_, _| answers += 1).unwrap();
    assert_eq!(answers, flows.len());
    // An answer counts as taken when it is given.
    let mut submitter = engine.submitter().unwrap();
    submitter.submit(flows[0], 0).unwrap();
    submitter.submit(flows[0], 1).unwrap();
    engine.run_pending();
    panics(|| _ = submitter.poll(|_| panic!("no more")));
    assert_eq!(
        (submitter.in_flight(), engine.counters().in_flight()),
        (1, 1)
    );
    drop(submitter);
    assert_eq!(engine.counters().abandoned, 1);
    assert_eq!(engine.counters().in_flight(), 0);
}
