//! What a batch needs beside its answers, kept from call to call.

use super::answers::Answers;
use super::asked::Asked;
use super::{Model, Task, forward_error};
use crate::error::ModelError;
use crate::memory::try_hold;
use crate::transformer::{self, BatchSizes, Query, Sequence};

#[cfg(feature = "cuda")]
use super::device::Lane;
#[cfg(feature = "cuda")]
use trafficllm_kernels::cuda::DeviceError;

/// What errors call the buffers of a batch.
pub(super) const BUFFERS: &str = "buffers of a batch";

/// Buffers of [`Model::classify`]; one per thread, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) transformer: transformer::Scratch,
    pub(super) answers: Answers,
    pub(super) logits: Vec<f32>,
    /// Empty between calls: only their memory is kept.
    pub(super) queries: Vec<Query<'static>>,
    pub(super) sequences: Vec<Sequence<'static>>,
    /// What is asked in this round, and in the next: labels that need one more word.
    pub(super) pending: Vec<Asked>,
    pub(super) next: Vec<Asked>,
    /// `[rows of all labels that need a further word, hidden]`: each has its task's query rows and those of the words chosen so far.
    pub(super) rows: Vec<f32>,
    #[cfg(feature = "cuda")]
    pub(super) lane: Option<Lane>,
    #[cfg(feature = "cuda")]
    pub(super) device_error: Option<DeviceError>,
    #[cfg(feature = "cuda")]
    pub(super) used_device: bool,
}

impl Scratch {
    /// Makes room for every batch of at most `items` items that have at most `tokens` tokens in all and ask each task of the model at
    /// most once: [`Model::classify`] then allocates nothing, whatever they hold.
    ///
    /// # Errors
    /// [`ModelError::Memory`].
    pub fn try_reserve(
        &mut self,
        model: &Model,
        tokens: usize,
        items: usize,
    ) -> Result<(), ModelError> {
        let (tasks, hidden) = (model.tasks(), model.config().hidden);
        let longest = tokens.min(model.item_tokens_max());
        let query_rows = tasks.iter().map(Task::rows_max);
        let query_rows_max = query_rows.clone().max().unwrap_or(0);
        let prefix_tokens = tasks.iter().map(|task| task.prefix.prefix_tokens);
        let queries = items.saturating_mul(tasks.len());
        let sizes = BatchSizes {
            // Labels of several words run their sequence again, so that tokens do not bound the rows: only chunks do.
            rows: usize::MAX,
            sequence_rows: longest + query_rows.sum::<usize>(),
            positions: longest + query_rows_max,
            tokens: longest,
            query_rows: query_rows_max,
            queries,
            prefixes: tasks.len(),
            prefix_tokens: prefix_tokens.max().unwrap_or(0),
            lora: tasks.iter().any(|task| task.lora.is_some()),
        };
        let transformer = &mut self.transformer;
        let reserved = transformer.try_reserve(model.transformer(), &sizes);
        reserved.map_err(|error| forward_error(&error))?;
        let children = tasks.iter().map(|task| task.trie.children_max());
        self.answers.try_reserve(model, items)?;
        try_hold(BUFFERS, &mut self.logits, children.max().unwrap_or(0))?;
        try_hold(BUFFERS, &mut self.queries, queries)?;
        try_hold(BUFFERS, &mut self.sequences, queries.min(items))?;
        let deep = tasks.iter().filter(|task| task.trie.depth() > 1);
        let rows = deep.clone().map(Task::rows_max).sum::<usize>();
        try_hold(BUFFERS, &mut self.pending, queries)?;
        try_hold(BUFFERS, &mut self.next, queries)?;
        try_hold(BUFFERS, &mut self.rows, items * rows * hidden)
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.logits.capacity() + self.rows.capacity();
        let asked = self.pending.capacity() + self.next.capacity();
        self.transformer.bytes()
            + self.answers.bytes()
            + floats * size_of::<f32>()
            + self.queries.capacity() * size_of::<Query<'_>>()
            + self.sequences.capacity() * size_of::<Sequence<'_>>()
            + asked * size_of::<Asked>()
            + self.lane_bytes()
    }

    #[cfg(not(feature = "cuda"))]
    #[expect(
        clippy::unused_self,
        reason = "with a device there is something to count"
    )]
    fn lane_bytes(&self) -> usize {
        0
    }
}

/// Running on a device.
#[cfg(feature = "cuda")]
impl Scratch {
    /// From now on batches of the lane's model run there.
    pub fn attach(&mut self, lane: Lane) {
        self.lane = Some(lane);
    }

    /// Takes the lane back; batches run on the processor again.
    pub fn detach(&mut self) -> Option<Lane> {
        self.lane.take()
    }

    /// The lane, if there is one; a device that is lost takes it along.
    #[must_use]
    pub fn lane(&self) -> Option<&Lane> {
        self.lane.as_ref()
    }

    /// The first error of the device since this was called last. What it left undone the processor has done.
    pub fn take_device_error(&mut self) -> Option<DeviceError> {
        self.device_error.take()
    }

    /// Whether the last batch ran on the device, all of it.
    #[must_use]
    pub fn used_device(&self) -> bool {
        self.used_device
    }

    fn lane_bytes(&self) -> usize {
        self.lane.as_ref().map_or(0, Lane::host_bytes)
    }
}

/// A vector without entries in the memory of one whose entries borrowed something, such as the [`Item`](super::Item)s of a batch that is
/// over: the standard library collects into the vector that it consumes. Should it ever stop doing so, the result is the same
/// and the test that counts allocations fails.
#[must_use]
pub fn emptied<From, To>(mut used: Vec<From>) -> Vec<To> {
    used.clear();
    used.into_iter().filter_map(|_| None).collect()
}
