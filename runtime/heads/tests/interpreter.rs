//! The interpreter beside the compiler.
#![cfg(all(feature = "cranelift", feature = "pulley"))]
#![allow(clippy::unwrap_used, reason = "a test that fails may stop")]

mod common;

use std::sync::Arc;

use common::{flow, labels, plugins};
use trafficllm_heads::*;

fn good() -> Vec<u8> {
    wat::parse_file(plugins().join("examples/good.wat")).unwrap()
}

fn module(name: &str) -> Vec<u8> {
    std::fs::read(
        plugins()
            .join("examples/modules")
            .join(format!("{name}.wasm")),
    )
    .unwrap()
}

fn sandbox(change: impl FnOnce(&mut SandboxOptions)) -> Sandbox {
    let mut options = SandboxOptions::default();
    change(&mut options);
    Sandbox::new(options).unwrap()
}

#[test]
fn what_was_precompiled_for_other_options_is_refused_though_it_is_trusted() {
    let interpreter = sandbox(|options| options.execution = Execution::Interpreted);
    let compiler = sandbox(|_| ());
    for (one, other) in [(&interpreter, &compiler), (&compiler, &interpreter)] {
        let compiled = one.precompile("good", &good()).unwrap();
        let refused = other.load("good", &compiled, &[sha256(&compiled)]);
        assert!(matches!(refused.unwrap_err(), HeadError::Module { .. }));
        assert!(one.load("good", &compiled, &[sha256(&compiled)]).is_ok());
    }
}

#[test]
fn the_interpreter_gives_the_bytes_of_the_compiler() {
    let mut all = Vec::new();
    for execution in [Execution::Native, Execution::Interpreted] {
        let sandbox = sandbox(|options| options.execution = execution);
        let linear = (0..64)
            .map(|number| (number % 13) as f32 / 13.0 - 0.5)
            .collect();
        let names = vec!["one".to_owned(), "two".to_owned()];
        let linear = Linear::new(("linear", "1"), names, 0.5, (linear, vec![0.1, -0.1])).unwrap();
        let filled = linear.fill(&module("linear")).unwrap();
        let head = sandbox.load("linear", &filled, &[]).unwrap();
        let mut conditions = Conditions::default();
        conditions.model.hidden = 32;
        let guard = Guard::new(Arc::new(head), GuardOptions::default());
        let mut station = Station::new(Arc::new(guard), Arc::new(conditions));
        let mut answers = Answers::default();
        for number in 0..40 {
            let hidden: Vec<f32> = (0..32)
                .map(|value| ((value * number) % 7) as f32 / 3.0)
                .collect();
            station.judge(
                &[FlowInput {
                    hidden: &hidden,
                    ..flow(1)
                }],
                &mut answers,
            );
        }
        assert!(labels(&answers).iter().all(Result::is_ok));
        all.push(answers);
    }
    assert_eq!(all[0], all[1]);
}
