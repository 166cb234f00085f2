//! Models and heads that are replaced at the same time.

use std::sync::Arc;
use std::thread;

use super::engine;
use crate::heads::HeadOptions;
use crate::model::Model;

/// Options that can be told apart.
fn options(number: u64) -> HeadOptions {
    HeadOptions {
        fuel_per_flow: number,
        ..HeadOptions::default()
    }
}

#[test]
fn what_was_loaded_for_a_generation_that_is_no_more_is_not_installed() {
    let [first, second] = [(); 2].map(|()| Arc::new(Model::open_default().unwrap()));
    let engine = engine(&first, 0);
    let shared = &engine.shared;
    let is_current = |model: &Arc<Model>, fuel| {
        let current = shared.generations.current();
        Arc::ptr_eq(&current.model, model) && current.head_options.fuel_per_flow == fuel
    };
    // Heads are loaded for the first model, and before they are at work there is the second.
    let heads = Arc::new(options(7));
    let late = shared.successor(None, Some(&heads)).unwrap();
    assert_eq!(engine.activate(Arc::clone(&second)).unwrap(), 2);
    let installed = shared.install(shared.lock_making(), late).unwrap();
    assert_eq!(installed, None);
    assert!(is_current(&second, HeadOptions::FUEL_DEFAULT));
    assert_eq!(engine.set_heads(&heads).unwrap(), 3);
    assert!(is_current(&second, 7));
    // The other way round.
    let late = shared.successor(Some(&first), None).unwrap();
    assert_eq!(engine.set_heads(&options(8)).unwrap(), 4);
    let installed = shared.install(shared.lock_making(), late).unwrap();
    assert_eq!(installed, None);
    assert!(is_current(&second, 8));
    assert_eq!(engine.activate(Arc::clone(&first)).unwrap(), 5);
    assert!(is_current(&first, 8));
}

#[test]
fn heads_are_loaded_while_others_hold_the_lock() {
    let model = Arc::new(Model::open_default().unwrap());
    let engine = engine(&model, 0);
    let shared = &engine.shared;
    // Whoever makes a submitter or a classifier holds it: here this thread, which would wait for itself.
    let making = shared.lock_making();
    let loaded = shared.successor(None, Some(&Arc::new(options(7)))).unwrap();
    assert_eq!(shared.install(making, loaded).unwrap(), Some(2));
}

#[test]
fn a_model_that_was_activated_stays_whatever_heads_are_set_meanwhile() {
    const ROUNDS: u64 = 60;
    let models = [(); 2].map(|()| Arc::new(Model::open_default().unwrap()));
    let engine = engine(&models[0], 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                engine.set_heads(&options(round)).unwrap();
            }
        });
        for round in 1..=ROUNDS {
            let model = &models[round as usize % 2];
            engine.activate(Arc::clone(model)).unwrap();
            // Nobody else brings a model.
            let current = engine.shared.generations.current();
            assert!(Arc::ptr_eq(&current.model, model), "{round}");
        }
    });
    let current = engine.shared.generations.current();
    assert_eq!(current.head_options.fuel_per_flow, ROUNDS);
    assert_eq!(current.number, 1 + 2 * ROUNDS);
}
