//! What comes back from a device.

use trafficllm_kernels::cuda::{Buffer, DeviceError, Pinned, Run, Stream};

use super::{DeviceSequence, DeviceTransformer};

/// What errors call it.
const ANSWERS: &str = "answers of a batch";

/// The answer to one query.
#[derive(Debug, Clone, Copy)]
pub struct Decided<'a> {
    /// The likeliest child of the query's node: the first of the highest logits.
    pub best: usize,
    /// The probabilities of all children of the node.
    pub probabilities: &'a [f32],
    /// The final hidden state `[hidden]` of the query's last row; empty unless asked for.
    pub state: &'a [f32],
}

/// What comes back from the device.
#[derive(Debug)]
pub(super) struct Answers {
    /// `[queries]`.
    best: (Buffer<u32>, Pinned<u32>),
    /// `[queries, most children of a node]`.
    probabilities: (Buffer<f32>, Pinned<f32>),
    stride: usize,
    /// `[queries, hidden]`.
    states: Pinned<f32>,
}

impl Answers {
    /// Room for that many queries.
    pub(super) fn new(model: &DeviceTransformer, queries: usize) -> Result<Self, DeviceError> {
        let memory = &model.memory;
        let stride = model.tasks.labels.children_max().max(1);
        let probabilities = queries.saturating_mul(stride);
        Ok(Self {
            best: (
                Buffer::zeroed(memory, ANSWERS, queries)?,
                Pinned::zeroed(memory, ANSWERS, queries)?,
            ),
            probabilities: (
                Buffer::zeroed(memory, ANSWERS, probabilities)?,
                Pinned::zeroed(memory, ANSWERS, probabilities)?,
            ),
            stride,
            states: Pinned::zeroed(memory, ANSWERS, queries.saturating_mul(model.config.hidden))?,
        })
    }

    /// Bytes of the device's memory.
    pub(super) fn device_bytes(&self) -> usize {
        self.best.0.bytes() + self.probabilities.0.bytes()
    }

    /// Bytes of the host's memory.
    pub(super) fn host_bytes(&self) -> usize {
        self.best.1.bytes() + self.probabilities.1.bytes() + self.states.bytes()
    }

    /// Asks for choices and probabilities of the states' queries.
    pub(super) fn score(
        &self,
        model: &DeviceTransformer,
        mut run: Run<'_>,
        states: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let (best, probabilities) = (&self.best.0, &self.probabilities.0);
        run.label_scores(
            states,
            &model.tasks.labels,
            best,
            probabilities,
            self.stride,
        )
    }

    /// Asks for the copies of all that so many queries have; of states where there are some.
    pub(super) fn copy_out(
        &self,
        stream: &mut Stream,
        model: &DeviceTransformer,
        queries: usize,
        states: Option<&Buffer<f32>>,
    ) -> Result<(), DeviceError> {
        let (best, probabilities) = (&self.best, &self.probabilities);
        stream.copy_out(&best.0.part(0..queries)?, &best.1)?;
        let count = queries * self.stride;
        stream.copy_out(&probabilities.0.part(0..count)?, &probabilities.1)?;
        if let Some(states) = states {
            let count = queries * model.config.hidden;
            stream.copy_out(&states.part(0..count)?, &self.states)?;
        }
        Ok(())
    }

    /// Gives the answers of the part of a batch that was run last.
    pub(super) fn hand_out<'s>(
        &self,
        model: &DeviceTransformer,
        sequences: impl Iterator<Item = &'s DeviceSequence<'s>>,
        wants_states: bool,
        take: &mut impl FnMut(Decided<'_>),
    ) -> Result<(), DeviceError> {
        let (tasks, hidden) = (&model.tasks, model.config.hidden);
        let queries = sequences.flat_map(|sequence| sequence.queries);
        let each = |best: &[u32], probabilities: &[f32], states: &[f32]| {
            for (at, query) in queries.enumerate() {
                let first = tasks.rows.get(query.task).map_or(0, |task| task.first_node);
                let children = tasks.node_children.get(first as usize + query.node);
                let children = children.copied().unwrap_or(0) as usize;
                let best = best.get(at).map_or(0, |best| *best as usize);
                if best >= children {
                    return Err(DeviceError::Index {
                        what: "label word of query",
                        at,
                        limit: children,
                        found: best,
                    });
                }
                let state = at * hidden..(at + 1) * hidden;
                take(Decided {
                    best,
                    probabilities: &probabilities[at * self.stride..][..children],
                    state: if wants_states { &states[state] } else { &[] },
                });
            }
            Ok(())
        };
        let (best, probabilities) = (&self.best.1, &self.probabilities.1);
        best.with(|best| {
            probabilities.with(|probabilities| {
                let states = &self.states;
                states.with(|states| each(best, probabilities, states))
            })
        })???
    }
}
