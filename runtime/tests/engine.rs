//! The engine as a library: its threads, its limits, and verdicts that depend on the flow alone.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::fs::File;
use std::io::{BufReader, Cursor};
use std::ops::ControlFlow;
use std::sync::Arc;

use common::{FLOW_TASKS, capture, captures, cpu_ticks, is_alone, small_bundle, threads};
use trafficllm::limits::{
    BATCH_TOKENS_MAX, BATCH_TOKENS_MIN, BATCH_WAIT_US_MAX, DEADLINE_US_MAX, QUEUE_FLOWS_MAX,
    WORKERS_MAX,
};
use trafficllm::{Engine, EngineOptions, Error, Level, Model, Outcome, Sink, Subject};

/// Keeps what comes, in text, and stops after a number of outcomes.
#[derive(Default)]
struct Keep {
    lines: Vec<String>,
    stop_after: Option<usize>,
}

impl Sink for Keep {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        self.lines.push(format!("{outcome:?}"));
        if self.stop_after == Some(self.lines.len()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn model() -> Arc<Model> {
    Arc::new(Model::load(&small_bundle(|_| ()), Level::Portable).unwrap())
}

fn started(model: Arc<Model>, options: EngineOptions) -> Engine {
    let engine = Engine::new(model, options).unwrap();
    engine.start().unwrap();
    engine
}

fn judge_all(engine: &Engine) -> Vec<String> {
    let mut detection = engine.detect(Keep::default());
    for path in captures() {
        let file = File::open(&path).unwrap();
        if path.ends_with(".jsonl") {
            assert_eq!(
                detection.requests(BufReader::new(file)).unwrap().bad_lines,
                0
            );
        } else {
            assert!(detection.capture(file).unwrap().failure.is_none());
        }
    }
    let (tally, keep) = detection.finish().unwrap();
    assert_eq!(tally.flows + tally.requests, keep.lines.len() as u64);
    keep.lines
}

#[test]
fn verdicts_depend_neither_on_the_batch_nor_on_the_workers() {
    let model = model();
    let judge = |workers, batch_tokens| {
        let options = EngineOptions {
            workers,
            batch_tokens,
            ..EngineOptions::default()
        };
        judge_all(&started(Arc::clone(&model), options))
    };
    let alone = judge(0, BATCH_TOKENS_MIN);
    assert_eq!(alone.len(), 51);
    for (workers, batch_tokens) in [
        (0, 500),
        (0, 0),
        (1, BATCH_TOKENS_MIN),
        (2, 100),
        (5, 300),
        (3, BATCH_TOKENS_MAX),
    ] {
        assert_eq!(
            judge(workers, batch_tokens),
            alone,
            "{workers} workers, batches of {batch_tokens} tokens"
        );
    }
}

#[test]
fn verdicts_come_from_the_model_and_follow_its_threshold() {
    let judge = |threshold: f32| {
        let bundle = small_bundle(|manifest| manifest.tasks[0].threshold = threshold);
        let model = Arc::new(Model::load(&bundle, Level::Portable).unwrap());
        let options = EngineOptions {
            tasks: vec![FLOW_TASKS[0].to_owned()],
            ..EngineOptions::default()
        };
        let engine = started(model, options);
        let mut detection = engine.detect(Keep::default());
        detection
            .capture(File::open(capture("tls.pcapng")).unwrap())
            .unwrap();
        detection.finish().unwrap().0
    };
    let sure = judge(0.0);
    assert_eq!((sure.flows, sure.verdicts(), sure.abstained()), (10, 10, 0));
    assert_eq!(sure.tasks[0].labels.values().sum::<u64>(), 10);
    let unsure = judge(1.0);
    assert_eq!(
        (unsure.flows, unsure.verdicts(), unsure.abstained()),
        (10, 10, 10)
    );
    assert!(unsure.tasks[0].labels.is_empty());
}

#[test]
fn a_sink_that_has_enough_stops_the_detection_and_the_engine_goes_on() {
    for workers in [0, 2] {
        let options = EngineOptions {
            workers,
            batch_tokens: BATCH_TOKENS_MIN,
            ..EngineOptions::default()
        };
        let engine = started(model(), options);
        let all = judge_all(&engine);
        let mut detection = engine.detect(Keep {
            stop_after: Some(3),
            ..Keep::default()
        });
        for _ in 0..50 {
            detection
                .capture(File::open(capture("http.pcap")).unwrap())
                .unwrap();
        }
        assert!(detection.is_stopped());
        assert_eq!(
            detection.finish().unwrap().1.lines.len(),
            3,
            "nothing comes after the stop"
        );
        // One that is dropped half-way leaves nothing behind either.
        let mut dropped = engine.detect(Keep::default());
        dropped
            .capture(File::open(capture("http.pcap")).unwrap())
            .unwrap();
        drop(dropped);
        assert_eq!(judge_all(&engine), all);
    }
}

#[test]
fn the_index_of_a_source_counts_those_that_could_not_be_opened() {
    let engine = started(model(), EngineOptions::default());
    struct Sources(Vec<usize>);
    impl Sink for Sources {
        fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
            assert!(matches!(outcome.subject, Subject::Flow(_)));
            self.0.push(outcome.source);
            ControlFlow::Continue(())
        }
    }
    let mut detection = engine.detect(Sources(Vec::new()));
    detection.skip_source();
    assert!(
        detection
            .capture(Cursor::new(b"no capture"))
            .unwrap()
            .failure
            .is_some()
    );
    detection
        .capture(File::open(capture("ssh.pcap")).unwrap())
        .unwrap();
    assert_eq!(detection.finish().unwrap().1.0, [2, 2]);
}

#[cfg(target_os = "linux")]
#[test]
fn opening_a_model_starts_no_thread_and_dropping_an_engine_leaves_none() {
    if !is_alone("opening_a_model_starts_no_thread_and_dropping_an_engine_leaves_none") {
        return;
    }
    let before = threads();
    let model = model();
    assert_eq!(threads(), before, "opening a model");
    let engine = started(
        model,
        EngineOptions {
            workers: 3,
            ..EngineOptions::default()
        },
    );
    assert_eq!(threads(), before + 3);
    judge_all(&engine);
    drop(engine);
    assert_eq!(threads(), before, "dropping the engine");
}

#[cfg(target_os = "linux")]
#[test]
fn idle_workers_sleep() {
    if !is_alone("idle_workers_sleep") {
        return;
    }
    let engine = started(
        model(),
        EngineOptions {
            workers: 4,
            ..EngineOptions::default()
        },
    );
    judge_all(&engine);
    let before = cpu_ticks();
    std::thread::sleep(std::time::Duration::from_millis(600));
    // Four spinning workers would take 60 ticks and more of a core each.
    assert!(
        cpu_ticks() - before <= 5,
        "idle workers take processor time"
    );
}

#[test]
fn settings_are_taken_at_their_limits_and_refused_past_them() {
    let model = model();
    let start = |workers, batch_tokens| {
        Engine::new(
            Arc::clone(&model),
            EngineOptions {
                workers,
                batch_tokens,
                ..EngineOptions::default()
            },
        )
    };
    assert!(start(WORKERS_MAX, BATCH_TOKENS_MAX).is_ok());
    assert!(start(0, BATCH_TOKENS_MIN).is_ok());
    let start_online = |queue_flows, batch_wait_us, deadline_us| {
        Engine::new(
            Arc::clone(&model),
            EngineOptions {
                queue_flows,
                batch_wait_us,
                deadline_us,
                ..EngineOptions::default()
            },
        )
    };
    assert!(start_online(QUEUE_FLOWS_MAX, BATCH_WAIT_US_MAX, DEADLINE_US_MAX).is_ok());
    for (queue_flows, batch_wait_us, deadline_us, expected) in [
        (
            QUEUE_FLOWS_MAX + 1,
            0,
            0,
            "queue_flows: expected 1 to 65536, found 65537",
        ),
        (
            1,
            BATCH_WAIT_US_MAX + 1,
            0,
            "batch_wait_us: expected 0 to 100000, found 100001",
        ),
        (
            1,
            0,
            DEADLINE_US_MAX + 1,
            "deadline_us: expected 0 to 60000000, found 60000001",
        ),
    ] {
        let refused = start_online(queue_flows, batch_wait_us, deadline_us).err();
        assert_eq!(refused.unwrap().to_string(), expected);
    }
    for (workers, batch_tokens, expected) in [
        (WORKERS_MAX + 1, 0, "workers: expected 0 to 256, found 257"),
        (
            0,
            BATCH_TOKENS_MIN - 1,
            "batch_tokens: expected 64 to 1048576, found 63",
        ),
        (
            0,
            BATCH_TOKENS_MAX + 1,
            "batch_tokens: expected 64 to 1048576, found 1048577",
        ),
    ] {
        match start(workers, batch_tokens) {
            Err(error @ Error::Setting { .. }) => assert_eq!(error.to_string(), expected),
            other => panic!("expected a refusal, found {:?}", other.map(|_| ())),
        }
    }
    let options = EngineOptions {
        tasks: vec!["other".to_owned()],
        ..EngineOptions::default()
    };
    assert!(
        matches!(Engine::new(model, options), Err(Error::UnknownTask { found, .. }) if found == "other")
    );
}
