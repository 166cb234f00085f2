//! The sandbox: precompiled modules, options, fuel, and heads that keep state.
#![cfg(feature = "cranelift")]
#![allow(clippy::unwrap_used, reason = "a test that fails may stop")]

mod common;

use std::sync::Arc;

use common::{flow, judged, plugins, station};
use trafficllm_heads::*;

fn good() -> Vec<u8> {
    wat::parse_file(plugins().join("examples/good.wat")).unwrap()
}

fn sandbox(change: impl FnOnce(&mut SandboxOptions)) -> Sandbox {
    let mut options = SandboxOptions::default();
    change(&mut options);
    Sandbox::new(options).unwrap()
}

#[test]
fn a_precompiled_module_runs_if_its_hash_is_trusted() {
    let sandbox = sandbox(|_| ());
    let compiled = sandbox.precompile("good", &good()).unwrap();
    let hash = sha256(&compiled);
    let head = sandbox.load("good", &compiled, &[[0; 32], hash]).unwrap();
    let mut station = station(Arc::new(head), 0);
    assert_eq!(judged(&mut station, &[1, 100]), [Ok(0), Ok(1)]);

    for trusted in [&[][..], &[[0; 32]], &[sha256(&good())]] {
        match sandbox.load("good", &compiled, trusted).unwrap_err() {
            HeadError::NotTrusted {
                sha256,
                trusted: count,
                ..
            } => {
                let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!((sha256, count), (hex, trusted.len()));
            }
            other => panic!("{other}"),
        }
    }
    // One bit, anywhere.
    for place in (0..compiled.len()).step_by(compiled.len() / 50) {
        let mut other = compiled.clone();
        other[place] ^= 1;
        assert!(sandbox.load("good", &other, &[hash]).is_err(), "{place}");
    }
}

#[cfg(not(feature = "pulley"))]
#[test]
fn a_build_without_the_interpreter_says_so() {
    let options = SandboxOptions {
        execution: Execution::Interpreted,
        ..SandboxOptions::default()
    };
    let error = Sandbox::new(options).unwrap_err().to_string();
    assert!(error.contains("no interpreter"), "{error}");
}

#[test]
fn what_is_refused_is_not_precompiled() {
    let sandbox = sandbox(|_| ());
    for name in [
        "wrong_abi",
        "leaks_table",
        "missing_export",
        "foreign_import",
    ] {
        let bytes = wat::parse_file(plugins().join(format!("attacks/{name}.wat"))).unwrap();
        assert!(sandbox.precompile(name, &bytes).is_err(), "{name}");
    }
}

#[test]
fn fuel_is_for_each_flow_and_what_was_used_is_told() {
    let run = |fuel_per_flow: u64, flows: u64| {
        let sandbox = sandbox(|options| {
            options.isolation = Isolation::Call;
            options.fuel_per_flow = fuel_per_flow;
        });
        let head = sandbox.load("good", &good(), &[]).unwrap();
        let mut instance = head.start(&Conditions::default()).unwrap();
        let mut answers = Answers::default();
        let flows: Vec<FlowInput<'_>> = (0..flows).map(flow).collect();
        let result = instance.judge(&flows, &mut answers);
        (result, instance.fuel_used().unwrap())
    };
    let (one, two) = (run(1_000_000, 1).1, run(1_000_000, 2).1);
    // Putting back its 64 KiB is paid for as well.
    let restored = 65_536 / 64;
    assert!((20..500).contains(&(one - restored)), "{one}");
    assert!(two < one + 500, "{one} {two}");
    let little = restored + 1;
    assert_eq!(run(little, 1).0, Err(Fault::Fuel { fuel: little }));
    // What not even pays for the memory is said when it begins.
    for fuel in [restored, 10] {
        let sandbox = sandbox(|options| options.fuel_per_flow = fuel);
        let head = sandbox.load("good", &good(), &[]).unwrap();
        let Err(fault) = head.start(&Conditions::default()) else {
            panic!("{fuel} units are enough");
        };
        assert_eq!(fault, Fault::Fuel { fuel });
    }
    assert_eq!(run(one, 32).0, Ok(()));
}

#[test]
fn a_sandbox_without_instances_or_with_too_many_is_not_made() {
    for (instances_max, is_made) in [(0, false), (1, true), (4_097, false)] {
        let options = SandboxOptions {
            instances_max,
            ..SandboxOptions::default()
        };
        assert_eq!(Sandbox::new(options).is_ok(), is_made, "{instances_max}");
    }
}

#[test]
fn memory_is_what_the_operator_gives() {
    let grows = |memory_bytes_max| {
        let sandbox = sandbox(|options| options.memory_bytes_max = memory_bytes_max);
        let text = std::fs::read_to_string(plugins().join("examples/good.wat")).unwrap();
        let new = "(drop (i32.const 0)) (if (result i32) (i32.lt_s (memory.grow (i32.const 3)) (i32.const 0)) (then (i32.const 0)) (else (i32.const 8)))";
        let text = text.replacen(
            "(param i32 i32) (result i32) (i32.const 8)",
            &format!("(param i32 i32) (result i32) {new}"),
            1,
        );
        let head = sandbox
            .load("grows", &wat::parse_str(text).unwrap(), &[])
            .unwrap();
        judged(&mut station(Arc::new(head), 0), &[1])
    };
    assert_eq!(grows(4 << 16), [Ok(0)]);
    assert_eq!(grows((4 << 16) - 1), [Err(Reason::Unavailable)]);
}

#[test]
fn many_threads_share_a_head_and_each_has_an_instance() {
    let sandbox = sandbox(|_| ());
    let head: Arc<dyn Head> = Arc::new(sandbox.load("good", &good(), &[]).unwrap());
    let guard = Arc::new(Guard::new(head, GuardOptions::default()));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mut station = Station::new(Arc::clone(&guard), Arc::new(Conditions::default()));
            scope.spawn(move || {
                for number in 0..500 {
                    let packets = (number + thread) % 20;
                    let expected = [Ok(u16::from(packets > 10)); 2];
                    assert_eq!(judged(&mut station, &[packets; 2]), expected);
                }
            });
        }
    });
    assert_eq!(guard.counters().verdicts, 4 * 1_000);
}

/// In place of a fault's flow, and only there, is a reason; the state of a head that keeps it is gone after one.
#[test]
fn a_head_that_keeps_state_begins_anew_after_a_fault() {
    let sandbox = sandbox(|options| options.allows_state = true);
    let text = std::fs::read_to_string(plugins().join("attacks/leaks_memory.wat")).unwrap();
    let stateful = r#""\00\00\01\00" "\00\01\00\00""#;
    let text = text.replacen(r#""\00\00\01\00" "\00\00\00\00""#, stateful, 1);
    // The third call of an instance fails.
    let count = "(i32.add (i32.load (i32.const 512)) (i32.const 1)))";
    let fails = format!(
        "{count}\n(if (i32.ge_u (i32.load (i32.const 512)) (i32.const 3)) (then unreachable))"
    );
    let head = sandbox
        .load(
            "state",
            &wat::parse_str(text.replacen(count, &fails, 1)).unwrap(),
            &[],
        )
        .unwrap();
    assert!(head.about().is_stateful());
    let mut station = station(Arc::new(head), 0);
    for _ in 0..3 {
        assert_eq!(judged(&mut station, &[1]), [Ok(0)]);
        assert_eq!(judged(&mut station, &[1, 1]), [Ok(1); 2]);
        assert_eq!(judged(&mut station, &[1]), [Err(Reason::Trap)]);
    }
}

#[test]
fn a_memory_that_cannot_be_addressed_is_refused() {
    for memory_bytes_max in [usize::MAX, usize::MAX - 65_535] {
        let options = SandboxOptions {
            memory_bytes_max,
            ..SandboxOptions::default()
        };
        let error = Sandbox::new(options).unwrap_err().to_string();
        assert!(error.contains("the sandbox cannot be made"), "{error}");
    }
}
