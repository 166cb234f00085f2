#![cfg(feature = "default-bundle")]

use std::thread;
use std::time::Duration;

use super::*;

fn generation(model: &Arc<Model>, number: u64) -> Arc<Generation> {
    let mut generation = Generation::new(Arc::clone(model), &[], None).unwrap();
    generation.number = number;
    Arc::new(generation)
}

#[test]
fn a_view_is_read_whatever_its_writer_is_doing() {
    let model = Arc::new(Model::open_default().unwrap());
    let view = View::new(generation(&model, 1));
    let found = |view: &View| view.get().map(|generation| generation.number);
    // The writer writes the other cell, ...
    let writing = lock(&view.cells[1]);
    assert_eq!(found(&view), Some(1));
    drop(writing);
    view.set(&generation(&model, 2));
    // ... or empties the one that it has left.
    let emptying = lock(&view.cells[0]);
    assert_eq!(found(&view), Some(2));
    drop(emptying);
    // Only where both are taken, as by several writers in a row, there is nothing to be had.
    let both = view.cells.each_ref().map(lock);
    assert_eq!(found(&view), None);
    drop(both);
}

#[test]
fn who_reads_a_view_sees_every_replacement_once_it_is_done_and_goes_never_back() {
    const READS: u64 = 20_000;
    let model = Arc::new(Model::open_default().unwrap());
    let view = View::new(generation(&model, 1));
    let (done, reads) = (AtomicU64::new(1), AtomicU64::new(0));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut newest = 0;
            // The writer may have its first turn late.
            while reads.fetch_add(1, SeqCst) < READS || done.load(SeqCst) == 1 {
                if reads.load(SeqCst) >= READS {
                    thread::sleep(Duration::from_micros(50));
                }
                let at_least = done.load(SeqCst);
                if let Some(found) = view.get() {
                    assert!(found.number >= at_least.max(newest));
                    newest = found.number;
                }
            }
        });
        while !reader.is_finished() {
            let number = done.load(SeqCst) + 1;
            view.set(&generation(&model, number));
            done.store(number, SeqCst);
        }
    });
    assert_eq!(view.get().unwrap().number, done.load(SeqCst));
    assert!(done.load(SeqCst) > 1);
}

#[test]
fn a_generation_is_released_when_nobody_holds_it() {
    let model = Arc::new(Model::open_default().unwrap());
    let first = Generation::new(Arc::clone(&model), &[], None).unwrap();
    let generations = Generations::new(first, 1);
    let view = generations.view();
    let held = view.get().unwrap();
    let next = Generation::new(Arc::clone(&model), &[], Some(&held)).unwrap();
    assert_eq!(next.number, 2);
    generations.replace(next, || {});
    assert_eq!((generations.number(), view.get().unwrap().number), (2, 2));
    assert!(generations.has_retired() && !generations.has_unused());
    generations.release();
    assert!(generations.has_retired(), "somebody holds it");
    drop(held);
    assert!(generations.has_unused());
    let busy = lock(&generations.known);
    generations.try_release();
    drop(busy);
    assert!(generations.has_retired(), "somebody was at the list");
    generations.try_release();
    assert!(!generations.has_retired());
    let held = generations.bytes();
    let (model_bytes, retired_bytes) = (held.model, held.retired);
    assert_eq!((model_bytes, retired_bytes), (model.core().bytes(), 0));
}
