//! A build without a compiler runs what was precompiled, and says so of everything else:
//! `cargo test -p trafficllm-heads --features wasm --test no_compiler`.
#![cfg(all(feature = "wasm", not(feature = "cranelift")))]
#![allow(clippy::unwrap_used, reason = "a test that fails may stop")]

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

/// Made by a build with a compiler: `PRECOMPILED_HEAD` names a file that `tests/heads.sh` has made.
#[test]
fn what_was_precompiled_elsewhere_runs() {
    let Some(path) = std::env::var_os("PRECOMPILED_HEAD") else {
        return;
    };
    let bytes = std::fs::read(path).unwrap();
    let options = SandboxOptions {
        execution: if cfg!(feature = "pulley") {
            Execution::Interpreted
        } else {
            Execution::Native
        },
        ..SandboxOptions::default()
    };
    let sandbox = Sandbox::new(options).unwrap();
    let head = sandbox.load("good", &bytes, &[sha256(&bytes)]).unwrap();
    assert_eq!(
        judged(&mut station(std::sync::Arc::new(head), 0), &[1, 100]),
        [Ok(0), Ok(1)]
    );
}
