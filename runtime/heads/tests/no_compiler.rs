//! A build without a compiler runs what was precompiled, and says so of everything else:
//! `cargo test -p trafficllm-heads --features wasm --test no_compiler`.
#![cfg(all(feature = "wasm", not(feature = "cranelift")))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may stop"
)]

mod common;

use common::{judged, plugins, station};
use trafficllm_heads::*;

#[test]
fn a_module_is_not_compiled() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let bytes = wat::parse_file(plugins().join("examples/good.wat")).unwrap();
    for trusted in [&[][..], &[sha256(&bytes)]] {
        let refused = sandbox.load("good", &bytes, trusted).unwrap_err();
        assert!(matches!(refused, HeadError::NoCompiler { .. }), "{refused}");
    }
}

/// `PRECOMPILED_HEAD` names what a build with a compiler made of the beaconing head, `PRECOMPILED_EXECUTION` for what: see `tests/heads.sh`.
#[test]
#[ignore = "needs a file that another build makes"]
fn what_was_precompiled_elsewhere_runs() {
    let setting =
        |name| std::env::var(name).expect("PRECOMPILED_HEAD and PRECOMPILED_EXECUTION are set");
    let bytes = std::fs::read(setting("PRECOMPILED_HEAD")).unwrap();
    let execution = match &*setting("PRECOMPILED_EXECUTION") {
        "interpreted" => Execution::Interpreted,
        _ => Execution::Native,
    };
    let options = SandboxOptions {
        execution,
        allows_state: true,
        ..SandboxOptions::default()
    };
    let sandbox = Sandbox::new(options).unwrap();
    let head = sandbox
        .load("beaconing", &bytes, &[sha256(&bytes)])
        .unwrap();
    assert_eq!(head.about().name, "beaconing");
    // It abstains, since it knows no pair: an answer all the same.
    let mut station = station(std::sync::Arc::new(head), 0);
    assert_eq!(judged(&mut station, &[1]), [Ok(0)]);
}
