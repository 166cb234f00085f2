//! The forward pass on a device: the same products, norms and label scores as on the processor, bit for bit but for attention, whose
//! 16-bit floats move a score by less than the tolerance of self-tests.
//!
//! [`DeviceTransformer`] is what all threads share: weights and tables. A [`TransformerLane`] is one thread's: buffers of their full size
//! from the start, and graphs of the whole pass for classes of batches.

mod answers;
mod beginning;
mod classes;
mod graphs;
mod lane;
mod pass;
mod plan;
mod tasks;
mod weights;

use std::borrow::Borrow;
use std::sync::Arc;

use trafficllm_kernels::AttentionShape;
use trafficllm_kernels::cuda::{Device, DeviceMemory, Operations, RowKind, Stream};

use super::{LayerWeights, TransformerConfig, TransformerError};
use tasks::Tasks;
use weights::{Base, Layer};

pub use answers::Decided;
pub use beginning::DeviceBeginning;
pub use lane::{LaneSizes, TransformerLane};
pub use tasks::DeviceTask;
pub use weights::DeviceBase;

/// What a device is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Most bytes of its memory that weights and all lanes take together; without a number what there is.
    pub memory_bytes_max: Option<u64>,
    /// What products multiply weights with.
    pub activations: Activations,
}

/// Rows that are multiplied with quantised weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// Bytes with a scale for each row, as on the processor.
    #[default]
    Int8,
    /// 16-bit brain floats: slower, and nothing is lost but what the weights' quantisation loses.
    Bf16,
}

impl From<Activations> for RowKind {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::Int8 => Self::Int8,
            Activations::Bf16 => Self::Bf16,
        }
    }
}

/// The rows that ask one task's question, by numbers in the tables of [`DeviceTransformer::new`].
#[derive(Debug, Clone, Copy)]
pub struct DeviceQuery<'a> {
    /// Index of the task.
    pub task: usize,
    /// The words of the label chosen so far: their rows follow the task's own.
    pub words: &'a [u32],
    /// The node of the task's label trie whose children are scored.
    pub node: usize,
}

/// One flow (or request) and the questions about it.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSequence<'a> {
    /// `[tokens]` ids; may be empty.
    pub tokens: &'a [u32],
    /// Without any, the sequence is left out.
    pub queries: &'a [DeviceQuery<'a>],
}

/// A model in a device's memory; immutable, shared by the lanes of all threads.
#[derive(Debug)]
pub struct DeviceTransformer {
    config: TransformerConfig,
    shape: AttentionShape,
    activations: RowKind,
    memory: Arc<DeviceMemory>,
    operations: Operations,
    base: Base,
    layers: Vec<Layer>,
    tasks: Tasks,
}

impl DeviceTransformer {
    /// Checks the weights, packs them and copies them to the device, layer by layer: an iterator that makes layers as they are asked for
    /// has one of them in memory at a time.
    ///
    /// # Errors
    /// As [`Transformer::new`](super::Transformer::new) for weights; [`TransformerError::Device`] for tables of tasks that do not fit the
    /// model, sizes that the kernels cannot work with, memory past the options' limit or the device's, and whatever the device says.
    pub fn new(
        device: Arc<dyn Device>,
        base: DeviceBase<'_>,
        layers: impl IntoIterator<Item: Borrow<LayerWeights>>,
        tasks: &[DeviceTask<'_>],
        options: DeviceOptions,
    ) -> Result<Self, TransformerError> {
        let config = base.config;
        let shape = AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let memory = DeviceMemory::new(device, options.memory_bytes_max);
        let operations = Operations::new(&memory);
        let mut stream = Stream::new(&memory)?;
        let base = Base::upload(&mut stream, &base)?;
        let mut uploaded = Vec::new();
        for (index, layer) in layers.into_iter().enumerate() {
            uploaded.push(Layer::upload(&mut stream, config, index, layer.borrow())?);
        }
        if uploaded.len() != config.layers {
            return Err(TransformerError::Config {
                field: "layers",
                expected: format!("{} (the layers given)", uploaded.len()),
                found: config.layers.to_string(),
            });
        }
        let tasks = Tasks::upload(&mut stream, config, tasks)?;
        operations.prepare_common()?;
        operations.prepare_attention(shape)?;
        Ok(Self {
            shape,
            activations: options.activations.into(),
            memory,
            operations,
            base,
            layers: uploaded,
            tasks,
            config: config.clone(),
        })
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The memory of the device, and what is known of it.
    #[must_use]
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Bytes of the device's memory in use by this model and by all its lanes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.memory.used_bytes()
    }
}
