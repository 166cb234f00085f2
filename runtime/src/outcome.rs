//! What comes out: verdicts on flows and requests, and how many of them.

use std::collections::BTreeMap;

use trafficllm_traffic::{Endpoints, Flow};

/// One task's verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// The best label, even if the verdict abstains.
    pub label: &'a str,
    /// Index of the task in its model.
    pub task_index: u32,
    /// Index of the label in its task.
    pub label_index: u32,
    /// The calibrated probability of the label, 0 to 1.
    pub score: f32,
    /// The score is below the task's threshold: the model does not know.
    pub abstained: bool,
    /// Why, in words of the head that gave it; empty for a task of the model.
    pub evidence: &'a str,
    /// Why a head has no verdict: the name of its fault, or `switched_off`. Empty for verdicts; label and evidence are empty otherwise.
    pub reason: &'a str,
}

/// What is told of a flow beside its verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Number of the flow in its capture, from 0, in the order of first packets.
    pub index: u64,
    /// Addresses, ports and protocol; the initiator sent the first packet.
    pub endpoints: Endpoints,
    /// Time of the first packet in nanoseconds since the Unix epoch.
    pub start_ns: u64,
    /// All packets of the flow.
    pub packets: u64,
    /// Sum of the IP lengths of all packets.
    pub bytes: u64,
}

impl From<&Flow> for FlowInfo {
    fn from(flow: &Flow) -> Self {
        Self {
            index: flow.index,
            endpoints: flow.endpoints,
            start_ns: flow.start_ns,
            packets: flow.packets,
            bytes: flow.bytes,
        }
    }
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A flow of a capture.
    Flow(FlowInfo),
    /// A line of a requests file, from 0.
    Request(u64),
}

/// A flow or request with its verdicts.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Number of the capture or requests file within the detection, from 0.
    pub source: usize,
    /// The flow or request.
    pub subject: Subject,
    /// One per task that applies, in the model's order, then one per head; none where no chosen task does and there is no head.
    pub verdicts: &'a [Verdict<'a>],
}

/// How one task fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskTally {
    /// Name of the task.
    pub task: String,
    /// Verdicts, those that abstained included.
    pub verdicts: u64,
    /// Verdicts that abstained.
    pub abstained: u64,
    /// Flows and requests that the task cannot judge: a request task and a flow that does not start with an HTTP request, a flow task
    /// and a request that came without a flow.
    pub not_applicable: u64,
    /// Verdicts that did not abstain, by label.
    pub labels: BTreeMap<String, u64>,
}

/// How many verdicts a detection gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Flows.
    pub flows: u64,
    /// Requests that came as lines.
    pub requests: u64,
    /// One entry per chosen task, in the model's order, then one per head.
    pub tasks: Vec<TaskTally>,
}

impl Tally {
    /// Verdicts of all tasks.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.tasks.iter().map(|task| task.verdicts).sum()
    }

    /// Verdicts of all tasks that abstained.
    #[must_use]
    pub fn abstained(&self) -> u64 {
        self.tasks.iter().map(|task| task.abstained).sum()
    }
}
