//! A model on a device: the same questions, answered there.

use std::sync::Arc;

use trafficllm_kernels::cuda::{Device, DeviceError, DeviceFacts};

use super::asked::{Asked, sequences_of};
use super::scratch::{BUFFERS, Scratch, emptied};
use super::{Item, Model, Task};
use crate::error::ModelError;
use crate::memory::try_hold;
use crate::transformer::{
    DeviceBase, DeviceOptions, DeviceQuery, DeviceSequence, DeviceTask, DeviceTransformer,
    LaneSizes, TransformerError, TransformerLane,
};

/// Query rows for which a lane has room in any case: batches with more of them than tokens run in parts.
const QUERY_ROWS_MIN: usize = 1_024;

/// What a device holds of one model: weights, adapters and label tries; shared by the lanes of all threads.
#[derive(Debug)]
pub struct DeviceModel {
    /// [`Model::identity`] of the model that it was made from.
    identity: Arc<()>,
    transformer: Arc<DeviceTransformer>,
    /// Sizes of all tasks together.
    tasks: usize,
    rows_max: usize,
}

impl DeviceModel {
    /// Copies a model to a device and compiles the kernels that every batch needs.
    ///
    /// # Errors
    /// [`ModelError::Device`] where the model was not loaded for a device ([`Model::load_for_device`]), its sizes are not what the kernels
    /// can work with, it takes more memory than the options allow or the device has, or the device fails.
    pub fn new(
        model: &Model,
        device: Arc<dyn Device>,
        options: DeviceOptions,
    ) -> Result<Self, ModelError> {
        let Some(weights) = &model.device_weights else {
            return Err(ModelError::Device(DeviceError::Order {
                what: "the model was not loaded for a device",
            }));
        };
        let tasks: Vec<DeviceTask<'_>> = model.tasks.iter().map(Task::for_device).collect();
        let base = DeviceBase {
            config: &weights.config,
            token_embedding: &weights.token_embedding,
            output_norm: &weights.output_norm,
        };
        let transformer = DeviceTransformer::new(device, base, &weights.layers, &tasks, options);
        Ok(Self {
            identity: Arc::clone(&model.identity),
            transformer: Arc::new(transformer.map_err(device_error)?),
            tasks: model.tasks.len(),
            rows_max: model.tasks.iter().map(Task::rows_max).sum(),
        })
    }

    /// Whether it was made from this very model.
    #[must_use]
    pub fn is_of(&self, model: &Model) -> bool {
        Arc::ptr_eq(&self.identity, &model.identity)
    }

    /// What is known of the device.
    #[must_use]
    pub fn facts(&self) -> &DeviceFacts {
        self.transformer.memory().facts()
    }

    /// Bytes of the device's memory in use by the model and by all its lanes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.transformer.bytes()
    }

    /// Makes a lane for batches of at most `items` items that have at most `tokens` tokens in all and ask each task at most once. Larger
    /// batches run in parts; only an item of more tokens is left to the processor.
    ///
    /// # Errors
    /// [`ModelError::Device`]: memory, kernels that cannot be compiled, a device that fails.
    pub fn lane(self: &Arc<Self>, tokens: usize, items: usize) -> Result<Lane, ModelError> {
        let rows = items.saturating_mul(self.rows_max);
        let query_rows = rows.min(tokens.max(QUERY_ROWS_MIN)).max(self.rows_max);
        let sizes = LaneSizes {
            tokens,
            query_rows,
            queries: items.saturating_mul(self.tasks).min(query_rows),
            sequences: items,
            beginning_tokens: 0,
        };
        Ok(Lane {
            transformer: TransformerLane::new(&self.transformer, &sizes)?,
            model: Arc::clone(self),
            queries: Vec::new(),
            sequences: Vec::new(),
        })
    }

    /// Runs the manifest's self-tests on a lane, as [`Model::self_test`] does on the processor.
    ///
    /// # Errors
    /// As [`Model::self_test`]; [`ModelError::Device`] where the device did not run them, or the lane is of another model.
    pub fn self_test(model: &Model, lane: Lane) -> Result<Lane, ModelError> {
        const MISSED: DeviceError = DeviceError::Order {
            what: "a self-test did not run on the device",
        };
        if !lane.model.is_of(model) {
            return Err(ModelError::Device(MISSED));
        }
        let mut scratch = Scratch::default();
        scratch.attach(lane);
        let tested = model.self_test_with(&mut scratch);
        if let Some(error) = scratch.take_device_error() {
            return Err(ModelError::Device(error));
        }
        tested?;
        scratch.detach().ok_or(ModelError::Device(MISSED))
    }
}

/// One thread's way to the device, for batches of one model: a stream, buffers of their full size, and graphs of the whole pass. Given to
/// [`Scratch::attach`].
#[derive(Debug)]
pub struct Lane {
    model: Arc<DeviceModel>,
    transformer: TransformerLane,
    /// Empty between calls: only their memory is kept.
    queries: Vec<DeviceQuery<'static>>,
    sequences: Vec<DeviceSequence<'static>>,
}

impl Lane {
    /// What the device holds of the model.
    #[must_use]
    pub fn model(&self) -> &Arc<DeviceModel> {
        &self.model
    }

    /// Bytes of the device's memory.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.transformer.device_bytes()
    }

    /// Bytes of the host's memory.
    #[must_use]
    pub fn host_bytes(&self) -> usize {
        self.transformer.host_bytes()
            + self.queries.capacity() * size_of::<DeviceQuery<'_>>()
            + self.sequences.capacity() * size_of::<DeviceSequence<'_>>()
    }

    /// How many classes of batches have a graph that is kept.
    #[must_use]
    pub fn graphs(&self) -> usize {
        self.transformer.graphs()
    }
}

impl Scratch {
    /// Begins another batch, on the device if there is a lane.
    pub(super) fn begin_batch(&mut self) {
        self.used_device = self.lane.is_some();
    }

    /// Remembers what went wrong, and leaves the rest of the batch to the processor.
    fn fail(&mut self, error: DeviceError) {
        self.used_device = false;
        self.answers.clear();
        if error.is_lost() {
            self.lane = None;
        }
        self.device_error.get_or_insert(error);
    }
}

impl Model {
    /// Asks the device where the scratch has a lane of this model; whether all was answered.
    pub(super) fn answer_on_device(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        wants_states: bool,
    ) -> Result<bool, ModelError> {
        // What went wrong once in a batch is not tried again in it.
        let is_to_run = |lane: &&mut Lane| scratch.used_device && lane.model.is_of(self);
        let Some(lane) = scratch.lane.as_mut().filter(is_to_run) else {
            scratch.used_device = false;
            return Ok(false);
        };
        let (pending, answers) = (scratch.pending.as_slice(), &mut scratch.answers);
        let children = |asked: &Asked| {
            let trie = &self.tasks[asked.task].trie;
            trie.children(asked.node).len()
        };
        let probabilities = pending.iter().map(children).sum();
        answers.choices.try_reserve(pending.len(), probabilities)?;
        if wants_states {
            let values = pending.len() * self.config().hidden;
            try_hold(BUFFERS, &mut answers.states, values)?;
        }
        try_hold(BUFFERS, &mut lane.queries, pending.len())?;
        try_hold(BUFFERS, &mut lane.sequences, pending.len())?;
        let mut queries: Vec<DeviceQuery<'_>> = std::mem::take(&mut lane.queries);
        queries.extend(pending.iter().map(|asked| DeviceQuery {
            task: asked.task,
            words: asked.words(),
            node: asked.node,
        }));
        let mut rest = queries.as_slice();
        let mut sequences: Vec<DeviceSequence<'_>> = std::mem::take(&mut lane.sequences);
        sequences.extend(sequences_of(pending).map(|asked| {
            let queries;
            (queries, rest) = rest.split_at(asked.len());
            let tokens = asked
                .first()
                .map_or(&[][..], |asked| items[asked.item].tokens);
            DeviceSequence { tokens, queries }
        }));
        let ran = lane
            .transformer
            .forward(&sequences, None, wants_states, |decided| {
                answers.choices.push(decided.best, decided.probabilities);
                answers.states.extend_from_slice(decided.state);
            });
        lane.sequences = emptied(sequences);
        lane.queries = emptied(queries);
        match ran {
            Ok(()) => Ok(true),
            Err(error) => {
                scratch.fail(error);
                Ok(false)
            }
        }
    }
}

impl Task {
    fn for_device(&self) -> DeviceTask<'_> {
        DeviceTask {
            prefix: &self.prefix,
            query_embedding: &self.query_embedding,
            label_embedding: &self.label_embedding,
            lora: self.lora.as_ref(),
            trie: &self.trie,
            temperature: self.temperature,
            label_weight: &self.label_weight,
        }
    }
}

fn device_error(error: TransformerError) -> ModelError {
    match error {
        TransformerError::Device(error) => ModelError::Device(error),
        other => super::forward_error(&other),
    }
}
