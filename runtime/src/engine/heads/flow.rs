//! What heads need of a flow, from its submission to its answers.

use trafficllm_heads::limits::EVIDENCE_BYTES_MAX;
use trafficllm_heads::{
    Answer, FlowInput, Needs, PacketInput, Reason, TaskInput, Verdict as HeadVerdict, pair_number,
};
use trafficllm_model::{Insight, TaskVerdict};
use trafficllm_traffic::{Direction, Flow};

use super::HeadSet;
use crate::engine::slot::reserve;
use crate::error::Error;

/// How large the parts of [`SlotHeads`] get. No head, no parts.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::engine) struct HeadSizes {
    pub(super) heads: usize,
    pub(super) packets: usize,
    pub(super) payload_bytes: usize,
    /// Values of hidden states that are kept until the flow's turn.
    pub(super) states: usize,
    /// Scores that are kept so.
    pub(super) scores: usize,
    pub(super) tasks: usize,
}

impl HeadSizes {
    #[cfg(test)]
    pub(in crate::engine) const NONE: Self = Self {
        heads: 0,
        packets: 0,
        payload_bytes: 0,
        states: 0,
        scores: 0,
        tasks: 0,
    };

    /// How many heads there are.
    pub(in crate::engine) fn heads(&self) -> usize {
        self.heads
    }

    pub(in crate::engine) fn bytes(&self) -> usize {
        if self.heads == 0 {
            return 0;
        }
        size_of::<SlotHeads>()
            + self.heads * (size_of::<HeadAnswer>() + EVIDENCE_BYTES_MAX)
            + self.packets * size_of::<PacketInput>()
            + self.payload_bytes
            + (self.states + self.scores) * size_of::<f32>()
            + self.tasks * size_of::<usize>()
    }

    /// What is enough for both.
    pub(in crate::engine) fn with(self, other: Self) -> Self {
        Self {
            heads: self.heads.max(other.heads),
            packets: self.packets.max(other.packets),
            payload_bytes: self.payload_bytes.max(other.payload_bytes),
            states: self.states.max(other.states),
            scores: self.scores.max(other.scores),
            tasks: self.tasks.max(other.tasks),
        }
    }
}

/// A head's answer, out of the memory of the head.
#[derive(Debug, Default)]
pub(super) struct HeadAnswer {
    pub(super) label: u16,
    pub(super) score: f32,
    pub(super) abstained: bool,
    /// Why there is no verdict.
    pub(super) reason: Option<Reason>,
    /// Has room for the longest.
    pub(super) evidence: String,
}

impl HeadAnswer {
    pub(super) fn set(&mut self, answer: Option<Answer<'_>>) {
        self.evidence.clear();
        let none = |reason| Answer::None(reason);
        match answer.unwrap_or(none(Reason::Unavailable)) {
            Answer::Verdict(HeadVerdict {
                label,
                score,
                abstained,
                evidence,
                ..
            }) => {
                self.label = label;
                self.score = score;
                self.abstained = abstained;
                self.reason = None;
                self.evidence.push_str(evidence);
            }
            Answer::None(reason) => {
                self.label = 0;
                self.score = 0.0;
                self.abstained = true;
                self.reason = Some(reason);
            }
        }
    }
}

/// A slot's part for heads. Its memory is used again and again, as the slot's own.
#[derive(Debug, Default)]
pub(in crate::engine) struct SlotHeads {
    /// There is a flow in it; a request has none.
    pub(super) is_filled: bool,
    /// Heads that keep what they know are asked where outcomes are put in order.
    pub(super) is_ordered: bool,
    pair: u64,
    start_us: u64,
    duration_us: u64,
    packets_total: u64,
    bytes_total: u64,
    protocol: u8,
    is_complete: bool,
    packets: Vec<PacketInput>,
    payload: Vec<u8>,
    /// One for each head, of which the first `answered` say something.
    pub(super) answers: Vec<HeadAnswer>,
    pub(super) answered: usize,
    /// The hidden state for each head that is asked later, by the numbers of those heads.
    states: Vec<f32>,
    /// The scores of the slot's verdicts for those heads, and where those of each verdict end.
    scores: Vec<f32>,
    scores_ends: Vec<usize>,
}

impl SlotHeads {
    /// Gives a slot's part the room that it needs; makes it where there is none.
    pub(in crate::engine) fn fit(
        part: &mut Option<Box<Self>>,
        sizes: HeadSizes,
    ) -> Result<(), Error> {
        if sizes.heads == 0 {
            return Ok(());
        }
        let part = part.get_or_insert_with(Box::default);
        reserve("a slot", &mut part.packets, sizes.packets)?;
        reserve("a slot", &mut part.payload, sizes.payload_bytes)?;
        reserve("a slot", &mut part.states, sizes.states)?;
        reserve("a slot", &mut part.scores, sizes.scores)?;
        reserve("a slot", &mut part.scores_ends, sizes.tasks)?;
        let more = sizes.heads.saturating_sub(part.answers.len());
        reserve("a slot", &mut part.answers, more)?;
        for _ in 0..more {
            let mut answer = HeadAnswer::default();
            let reserved = answer.evidence.try_reserve_exact(EVIDENCE_BYTES_MAX);
            reserved.map_err(|_| Error::Memory {
                what: "a slot",
                bytes: EVIDENCE_BYTES_MAX,
            })?;
            part.answers.push(answer);
        }
        Ok(())
    }

    /// Takes what the heads need of a flow.
    pub(in crate::engine) fn fill(&mut self, set: &HeadSet, flow: &Flow, is_ordered: bool) {
        self.is_filled = true;
        self.is_ordered = is_ordered;
        self.start_us = flow.start_ns / 1_000;
        self.duration_us = flow.end_ns.saturating_sub(flow.start_ns) / 1_000;
        self.packets_total = flow.packets;
        self.bytes_total = flow.bytes;
        self.protocol = flow.endpoints.protocol;
        // Of what may be listed, not of what is: that depends on which other heads there are.
        let listed = flow.records.len().min(set.flow_limits.packets);
        self.is_complete = listed as u64 == flow.packets;
        if set.needs.has(Needs::PAIR) {
            let ends = &flow.endpoints;
            let secret = set.secret(is_ordered);
            self.pair = pair_number(secret, ends.initiator, ends.responder);
        }
        // A host may have kept more than it said.
        let (wants_packets, wants_payload) = set.lists();
        if !wants_packets && !wants_payload {
            return;
        }
        let mut room = set.flow_limits.payload_bytes;
        for (record, payload) in flow.kept().take(set.flow_limits.packets) {
            let kept = if wants_payload {
                payload.get(..room).unwrap_or(payload)
            } else {
                &[]
            };
            room -= kept.len();
            self.payload.extend_from_slice(kept);
            self.packets.push(PacketInput {
                payload_bytes: record.payload_bytes,
                gap_us: record.gap_us,
                payload_kept: u16::try_from(kept.len()).unwrap_or(u16::MAX),
                is_from_responder: record.direction == Direction::FromResponder,
                tcp_flags: record.tcp_flags.0,
            });
        }
    }

    /// Empties it for another flow.
    pub(in crate::engine) fn clear(&mut self) {
        self.is_filled = false;
        self.answered = 0;
        self.pair = 0;
        self.packets.clear();
        self.payload.clear();
        self.states.clear();
        self.scores.clear();
        self.scores_ends.clear();
    }

    /// What was answered does not count.
    pub(in crate::engine) fn forget_answers(&mut self) {
        self.answered = 0;
    }

    /// Verdicts of heads.
    pub(in crate::engine) fn answered(&self) -> usize {
        self.answered
    }

    /// What a head is told; the hidden state is missing.
    pub(super) fn input<'a>(&'a self, set: &HeadSet, tasks: &'a [TaskInput<'a>]) -> FlowInput<'a> {
        FlowInput {
            pair: self.pair,
            start_us: self.start_us,
            duration_us: self.duration_us,
            packets_total: self.packets_total,
            bytes_total: self.bytes_total,
            protocol: self.protocol,
            is_complete: self.is_complete,
            packets: &self.packets,
            hidden: &[],
            tasks,
            payload: set.allows_payload.then_some(self.payload.as_slice()),
        }
    }

    /// Keeps what heads that are asked later need. `own` are the numbers of this slot's verdicts in the batch.
    pub(super) fn keep(
        &mut self,
        set: &HeadSet,
        insight: &Insight,
        verdicts: &[TaskVerdict],
        own: std::ops::Range<usize>,
        sorted: &[TaskVerdict],
    ) {
        let number_of = |task: usize| {
            let mut own = own.clone();
            own.find(|&number| verdicts[number].task == task)
        };
        for task in set.ordered_sources() {
            let state = number_of(task).map_or(&[][..], |number| insight.state(number));
            self.states.extend_from_slice(state);
        }
        if set.ordered_needs.has(Needs::TASKS) {
            for verdict in sorted {
                let scores =
                    number_of(verdict.task).map_or(&[][..], |number| insight.scores(number));
                self.scores.extend_from_slice(scores);
                self.scores_ends.push(self.scores.len());
            }
        }
    }

    /// The hidden state that was kept for the head of this number among those that are asked later and want one.
    pub(super) fn kept_state(&self, number: usize, hidden: usize) -> &[f32] {
        let start = number * hidden;
        self.states.get(start..start + hidden).unwrap_or_default()
    }

    /// The scores that were kept of the slot's verdict with this number.
    pub(super) fn kept_scores(&self, number: usize) -> &[f32] {
        let before = number.checked_sub(1);
        let start = before.map_or(0, |before| {
            self.scores_ends.get(before).copied().unwrap_or(0)
        });
        let end = self.scores_ends.get(number).copied().unwrap_or(start);
        self.scores.get(start..end).unwrap_or_default()
    }
}

/// A task's answer as a head is told it.
pub(super) fn task_input<'a>(verdict: &TaskVerdict, scores: &'a [f32]) -> TaskInput<'a> {
    TaskInput {
        // Bundles have at most 64 tasks with at most 4,096 labels.
        task: verdict.task as u16,
        label: verdict.label as u16,
        score: verdict.score,
        abstained: verdict.abstained,
        scores,
    }
}
