//! A system that has no memory for one of the engine's larger parts: an error that names it, nothing lost, and no abort.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::{recorded_flows, small_bundle};
use serde_json::Value;
use trafficllm::limits::QUEUE_FLOWS_MAX;
use trafficllm::{
    Engine, EngineOptions, Error, Flow, Judgement, Level, Model, ModelError, SubmitError,
};

/// Allocations of this size and more are counted, and may fail.
const LARGE_BYTES: usize = 1 << 14;

/// The same where a slot is to fail, which is smaller.
static COUNTED_BYTES: AtomicUsize = AtomicUsize::new(LARGE_BYTES);

/// Large allocations until one fails; none does while it is negative.
static LEFT: AtomicI64 = AtomicI64::new(-1);

struct Failing;

impl Failing {
    fn fails(bytes: usize) -> bool {
        bytes >= COUNTED_BYTES.load(SeqCst)
            && LEFT.load(SeqCst) >= 0
            && LEFT.fetch_sub(1, SeqCst) == 0
    }
}

// SAFETY: every call goes on to the system's allocator unchanged, or fails as an allocator may; counting touches no memory of the
// caller.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::fails(layout.size()) {
            return null_mut();
        }
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Self::fails(layout.size()) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Self::fails(size) {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static FAILING: Failing = Failing;

/// Lets the first large allocation of `work` fail, then the second, and so on until it comes to its end; gives back how many
/// failed and what it gave.
fn with_every_failure<T>(mut work: impl FnMut() -> Result<T, Error>) -> (i64, T) {
    for failing in 0.. {
        LEFT.store(failing, SeqCst);
        let found = work();
        let has_failed = LEFT.swap(-1, SeqCst) < 0;
        match found {
            Ok(value) => {
                assert!(!has_failed, "a failure that nobody tells of");
                return (failing, value);
            }
            Err(Error::Memory { bytes, .. } | Error::Model(ModelError::Memory { bytes, .. })) => {
                assert!(has_failed && bytes >= LARGE_BYTES, "{bytes}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!()
}

/// One test, so that no other one allocates at the same time.
#[test]
fn memory_that_is_refused_is_an_error() {
    let look = |tokens: u64| {
        let bundle = small_bundle(|manifest| {
            manifest.profile["max_tokens"] = Value::from(tokens);
        });
        Arc::new(Model::load(&bundle, Level::detect()).unwrap())
    };
    let (first, second) = (look(60), look(300));
    let flows = recorded_flows(&first);
    let options = EngineOptions {
        queue_flows: QUEUE_FLOWS_MAX,
        ..EngineOptions::default()
    };
    let (failed, engine) = with_every_failure(|| Engine::new(Arc::clone(&first), options.clone()));
    assert!(failed >= 2, "{failed}");
    let empty = engine.memory();
    let (failed, mut submitter) = with_every_failure(|| engine.submitter());
    // The lane, the free slots, the answers on both sides, and the room for encoding.
    assert_eq!(failed, 5);
    let with_one = engine.memory();
    assert!(with_one.queue_bytes > empty.queue_bytes);
    let (failed, classifier) = with_every_failure(|| engine.classifier());
    assert!(failed >= 2, "{failed}");
    drop(classifier);
    assert_eq!(engine.memory(), with_one, "failures leave nothing behind");
    let (failed, number) = with_every_failure(|| engine.activate(Arc::clone(&second)));
    assert!(failed >= 2, "{failed}");
    assert_eq!(number, 2);
    let counters = engine.counters();
    assert_eq!((counters.swaps, counters.swaps_failed), (1, failed as u64));
    submitter.submit(&flows[0], 0).unwrap();
    LEFT.store(0, SeqCst);
    assert_eq!(engine.run_pending(), 1);
    assert_eq!(LEFT.swap(-1, SeqCst), 0, "the buffers were there");
    submitter.poll(|answer| {
        assert!(matches!(answer.judgement, Judgement::Verdicts(_)));
        assert_eq!(answer.generation, 2);
    });
    let (failed, _) = with_every_failure(|| {
        let mut detection = engine.detect(Discard);
        detection.requests(b"{\"request\":\"GET / HTTP/1.1\"}\n".as_slice())?;
        detection.finish()
    });
    assert!(failed >= 1, "{failed}");
    slots_of_a_classifier_that_cannot_grow(&first, second, &flows);
}

fn slots_of_a_classifier_that_cannot_grow(first: &Arc<Model>, second: Arc<Model>, flows: &[Flow]) {
    let flows: Vec<&Flow> = flows.iter().take(7).collect();
    let options = EngineOptions {
        // All of them are one batch.
        batch_tokens: 8_192,
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::clone(first), options).unwrap();
    let mut classifier = engine.classifier().unwrap();
    engine.activate(second).unwrap();
    let mut judge = |count: usize, granted| {
        COUNTED_BYTES.store(240 * 4, SeqCst);
        LEFT.store(granted, SeqCst);
        let mut answers = 0;
        let judged = classifier.classify(&flows[..count], |_, _| answers += 1);
        let has_failed = LEFT.swap(-1, SeqCst) < 0;
        COUNTED_BYTES.store(LARGE_BYTES, SeqCst);
        assert_eq!(has_failed, granted == 0);
        (judged, answers)
    };
    // The first flow finds no room, and those after it are not tried.
    assert_eq!(judge(5, 0), (Err(SubmitError::NoMemory), 0));
    assert_eq!(engine.counters().shed, 5);
    // Five slots have grown: the sixth flow finds no room.
    assert_eq!(judge(5, 1_000), (Ok(()), 5));
    assert_eq!(judge(7, 0), (Err(SubmitError::NoMemory), 5));
    assert_eq!((engine.counters().done, engine.counters().shed), (10, 7));
    engine.stop(Duration::ZERO);
    assert_eq!(judge(7, 0), (Err(SubmitError::Closed), 0));
    let counters = engine.counters();
    assert_eq!((counters.done, counters.shed), (10, 7));
    assert_eq!((counters.abandoned, counters.in_flight()), (7, 0));
}

struct Discard;

impl trafficllm::Sink for Discard {
    fn outcome(&mut self, _: &trafficllm::Outcome<'_>) -> std::ops::ControlFlow<()> {
        std::ops::ControlFlow::Continue(())
    }
}
