//! What the outside cannot bring about or see: a worker that fails in the middle of its work, where batches are cut.
#![cfg(feature = "default-bundle")]

mod fates;
mod reentry;
mod starved;
mod stopped;
mod swaps;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use trafficllm_traffic::{CaptureReader, Flow, FlowConfig, FlowTable, decode};

use super::slot::{Slot, SlotSizes, Ticket};
use super::worker::Worker;
use super::{Engine, EngineOptions, Judgement, Sink, Submitter};
use crate::error::Error;
use crate::limits::{BATCH_SUBJECTS_MAX, BATCH_TOKENS_MAX, BATCH_TOKENS_MIN};
use crate::model::Model;
use crate::outcome::Outcome;

const REQUEST: &[u8] = b"GET /search?q=shoes HTTP/1.1\r\n\r\n";

fn engine(model: &Arc<Model>, workers: usize) -> Engine {
    let options = EngineOptions {
        workers,
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::clone(model), options).unwrap();
    engine.start().unwrap();
    engine
}

#[test]
fn a_worker_that_panics_fails_its_batch_and_goes_on() {
    let model = Arc::new(Model::open_default().unwrap());
    for workers in [0, 1, 2] {
        let engine = engine(&model, workers);
        let mut submitter = engine.submitter().unwrap();
        let mut judge = |poison| {
            engine.poison(poison);
            let (mut done, mut failed) = (Vec::new(), Vec::new());
            for id in 0..6 {
                submitter.submit_request(REQUEST, id).unwrap();
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
        let (done, failed) = judge(Some(3));
        assert!(failed.contains(&3), "{failed:?}");
        assert_eq!(done + failed.len(), 6);
        assert_eq!(judge(None), (6, Vec::new()), "the same worker, again");
        let counters = engine.counters();
        assert_eq!(counters.failed, failed.len() as u64);
        assert_eq!((counters.submitted, counters.in_flight()), (12, 0));
    }
}

/// A flow of one packet.
fn flow() -> Flow {
    let text = [
        b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\x65\0\0\0".as_slice(),
        b"\x01\0\0\0\0\0\0\0\x20\0\0\0\x20\0\0\0",
        b"\x45\0\0\x20\0\0\0\0\x40\x11\0\0\x0a\0\0\x01\x0a\0\0\x02",
        b"\x30\x39\0\x35\0\x0c\0\0\x01\x02\x03\x04",
    ]
    .concat();
    let mut reader = CaptureReader::new(text.as_slice()).unwrap();
    let raw = reader.next_packet().unwrap().unwrap();
    let packet = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns).unwrap();
    let mut table = FlowTable::new(FlowConfig::default()).unwrap();
    let mut flows = Vec::new();
    table.push(&packet, &mut |flow| flows.push(flow));
    table.flush(&mut |flow| flows.push(flow));
    flows.remove(0)
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
        let engine = engine(&model, workers);
        let detect = |poison| {
            engine.poison(poison);
            let mut detection = engine.detect(Count(0));
            detection.requests(lines.as_bytes())?;
            detection.finish().map(|(_, count)| count.0)
        };
        match detect(Some(7)) {
            Err(Error::Worker { message }) => assert!(message.contains("a poisoned flow")),
            other => panic!("{other:?}"),
        }
        assert_eq!(detect(None).unwrap(), 20);
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
        let shared = Shared::new(Arc::clone(&model), model.flow_config(), &options).unwrap();
        assert_eq!(shared.batch_wait, Duration::from_micros(expected_us));
    }
}

#[test]
fn a_batch_is_cut_at_its_limits_and_not_before() {
    let model = Arc::new(Model::open_default().unwrap());
    let waiting = BATCH_SUBJECTS_MAX + 1;
    // The first batch that a worker takes from a full queue: how many flows, how many tokens, and those of one flow.
    let first_batch = |batch_tokens| {
        let options = EngineOptions {
            batch_tokens,
            queue_flows: waiting,
            ..EngineOptions::default()
        };
        let shared =
            Arc::new(Shared::new(Arc::clone(&model), model.flow_config(), &options).unwrap());
        let mut submitter = Submitter::new(&shared, waiting, true, None).unwrap();
        for id in 0..waiting as u64 {
            submitter.submit_request(REQUEST, id).unwrap();
        }
        let mut worker = Worker::new(&shared, 0).unwrap();
        let first = worker.next().unwrap();
        let tokens = first.slot().map_or(0, Slot::tokens);
        worker.gather(first, Duration::ZERO);
        (
            worker.judge.batch.len(),
            worker.judge.batch.len() * tokens,
            tokens,
        )
    };
    let (flows, _, tokens) = first_batch(BATCH_TOKENS_MAX);
    assert_eq!(flows, BATCH_SUBJECTS_MAX, "by flows");
    for batch_tokens in [BATCH_TOKENS_MIN, 20 * tokens, 20 * tokens + 1] {
        let (flows, all, one) = first_batch(batch_tokens);
        assert!(all >= batch_tokens && all - one < batch_tokens, "{flows}");
    }
    assert_eq!(first_batch(20 * tokens).0, 20);
    assert_eq!(first_batch(20 * tokens + 1).0, 21);
}

#[test]
fn a_submitter_may_move_to_another_thread_and_an_engine_be_shared() {
    fn moves<T: Send>() {}
    fn shares<T: Sync>() {}
    moves::<Submitter>();
    moves::<Engine>();
    shares::<Engine>();
}

#[test]
fn a_slot_is_as_large_as_is_reported() {
    let sizes = SlotSizes {
        flow_tokens: 10,
        request_tokens: 20,
        verdicts: 3,
        ..SlotSizes::default()
    };
    let slot = Slot::new(sizes).unwrap();
    let held = size_of::<Slot>()
        + (slot.flow_tokens.capacity() + slot.request_tokens.capacity()) * size_of::<u32>()
        + slot.verdicts.capacity() * size_of::<trafficllm_model::TaskVerdict>();
    assert!(sizes.bytes() >= held && sizes.bytes() <= held + size_of::<Ticket>() * 2);
}

#[test]
fn what_is_being_made_counts_for_the_flows_that_come_meanwhile() {
    let model = Arc::new(Model::open_default().unwrap());
    let held = model.core().bytes();
    let options = EngineOptions {
        memory_bytes_max: held + 1_000,
        ..EngineOptions::default()
    };
    let flows = model.flow_config();
    let shared = Shared::new(model, flows, &options).unwrap();
    shared.charge_flow_bytes(300).unwrap();
    let making = shared.lock_making();
    assert!(making.check_budget("a thing", 701).is_err());
    making.check_budget("a thing", 600).unwrap();
    assert!(shared.charge_flow_bytes(101).is_err());
    shared.charge_flow_bytes(100).unwrap();
    // It came to nothing.
    drop(making);
    shared.charge_flow_bytes(600).unwrap();
    assert_eq!(shared.memory().flow_bytes, 1_000);
}
