//! What the tests of heads share.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use trafficllm_heads::*;

/// The folder of heads, their kits, and attacks.
pub fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins")
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

/// A C head as a library of this machine, in a folder. `HEAD_CC` and `HEAD_CFLAGS` name another compiler, and what else it is told.
pub fn library(folder: &Path, source: &Path) -> PathBuf {
    let path = folder
        .join(source.file_stem().unwrap())
        .with_extension("so");
    let include = |folder: &str| format!("-I{}", plugins().join(folder).display());
    let setting = |name| std::env::var(name).unwrap_or_default();
    let compiler = Some(setting("HEAD_CC")).filter(|name| !name.is_empty());
    run(Command::new(compiler.as_deref().unwrap_or("cc"))
        .args([
            "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
        ])
        .args(setting("HEAD_CFLAGS").split_whitespace())
        .args([include("sdk-c"), include("../include")])
        .arg("-o")
        .args([&path, source]));
    path
}

/// A flow of so many packets, none of them listed.
pub fn flow(packets_total: u64) -> FlowInput<'static> {
    FlowInput {
        packets_total,
        protocol: 6,
        ..FlowInput::default()
    }
}

/// A head's place, with a guard that switches off after so many faults.
pub fn station(head: Arc<dyn Head>, faults_in_a_row_max: u32) -> Station {
    let guard = Guard::new(
        head,
        GuardOptions {
            faults_in_a_row_max,
        },
    );
    Station::new(Arc::new(guard), Arc::new(Conditions::default()))
}

/// Labels, or reasons why there is none.
pub fn labels(answers: &Answers) -> Vec<Result<u16, Reason>> {
    let label = |answer| match answer {
        Answer::Verdict(verdict) => Ok(verdict.label),
        Answer::None(reason) => Err(reason),
    };
    answers.iter().map(label).collect()
}

/// What becomes of flows of so many packets.
pub fn judged(station: &mut Station, packets: &[u64]) -> Vec<Result<u16, Reason>> {
    let flows: Vec<FlowInput<'_>> = packets.iter().map(|&packets| flow(packets)).collect();
    let mut answers = Answers::default();
    station.judge(&flows, &mut answers);
    labels(&answers)
}
