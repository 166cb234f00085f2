//! What the tests of heads share.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trafficllm_heads::*;

/// The folder of heads, their kits, and attacks.
pub fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins")
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
