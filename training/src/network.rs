//! The network that is trained: a llama-family decoder with query rows, prefixes and labels per task.
//!
//! A batch is cut into shards, a number fixed by the recipe. Each shard has its own graph, forward and backward, on its own
//! thread; gradients are added in the order of the shards. So results do not depend on how many processors there are.

mod bundle;
mod checkpoint;
mod config;
mod export;
mod forward;
mod layout;
mod plan;
mod reference;
mod scales;
mod step;
mod tasks;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use crate::ops::{Precision, Rotary};

use layout::{Form, Order, TOKEN_TABLE, forms};
pub(crate) use layout::{Part, TaskRows};

pub use checkpoint::Checkpoint;
pub(crate) use config::is_zero;
pub use config::{
    LORA_SCALE, NamedValues, NetworkConfig, Objective, Sequence, ShardBatch, Statistics,
    StepReport, Trainable, TrainedAdapters,
};
pub use forward::LossScales;
pub use scales::Scale;

/// Longest sequence, query rows included.
pub const POSITIONS_MAX: usize = 2048;

/// What can go wrong in a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A size is not what it should be.
    #[error("{what}: expected {expected}, found {found}")]
    Size {
        /// What was measured.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A checkpoint could not be read or written.
    #[error("{path}: {reason}", path = path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The loss or the gradient is not a finite number any more; the parameters were left as they were.
    #[error("step {step}: expected a finite {what}, found {found}")]
    NotFinite {
        /// Steps done before.
        step: u64,
        /// Loss or norm of the gradient.
        what: &'static str,
        /// The number.
        found: f64,
    },
    /// The thread of a shard ended early.
    #[error("shard {shard}: its thread ended without a result")]
    Shard {
        /// The shard, from 0.
        shard: usize,
    },
    /// A bundle does not hold a network that can be trained, or an adapter does not fit into a bundle.
    #[error(transparent)]
    Bundle(#[from] trafficllm_model::ModelError),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl NetworkError {
    pub(crate) fn size(
        what: impl Into<String>,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Size {
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// What the network's functions return.
pub type Result<T> = std::result::Result<T, NetworkError>;

/// A parameter.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) part: Part,
    pub(crate) rows: TaskRows,
    pub(crate) decays: bool,
    pub(crate) var: Var,
}

impl Parameter {
    /// A copy of the values.
    pub(crate) fn values(&self) -> Result<Vec<f32>> {
        Ok(self.var.flatten_all()?.to_vec1()?)
    }
}

/// Parameters and the functions over them.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    /// In a fixed order: token table, layers, output norm, then the tasks' parameters.
    parameters: Vec<Parameter>,
    trainable: Trainable,
    precision: Precision,
    rotary: Arc<Rotary>,
}

impl Network {
    /// A network with random values that depend on `seed` only; those of the base do not depend on the tasks.
    ///
    /// # Errors
    /// If the sizes do not fit each other.
    pub fn new(config: NetworkConfig, seed: u64) -> Result<Self> {
        let scales = config.scales.clone();
        Self::build(config, |form| {
            let mut values = form.initial(seed);
            if form.name == TOKEN_TABLE {
                for scale in &scales {
                    scale.smooth(&mut values, form.shape[1]);
                }
            }
            Ok(values)
        })
    }

    fn build(
        config: NetworkConfig,
        mut values: impl FnMut(&Form) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        config.check()?;
        let mut parameters = Vec::new();
        for form in forms(&config) {
            let tensor = Tensor::from_vec(values(&form)?, form.shape.as_slice(), &Device::Cpu)?;
            let Form {
                name,
                shape,
                part,
                rows,
                decays,
                ..
            } = form;
            parameters.push(Parameter {
                name,
                shape,
                part,
                rows,
                decays,
                var: Var::from_tensor(&tensor)?,
            });
        }
        let rotary = Arc::new(Rotary::new(
            config.head_width(),
            config.rotary_base,
            POSITIONS_MAX,
        ));
        Ok(Self {
            config,
            parameters,
            trainable: Trainable::ALL,
            precision: Precision::Full,
            rotary,
        })
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Which parameters steps change; all at first. An optimiser belongs to one choice.
    ///
    /// # Errors
    /// If there is no such task; then nothing was changed.
    pub fn set_trainable(&mut self, trainable: Trainable) -> Result<()> {
        if let TrainedAdapters::Task(task) = trainable.adapters {
            self.check_task(task)?;
        }
        self.trainable = trainable;
        Ok(())
    }

    /// Which parameters steps change.
    #[must_use]
    pub fn trainable(&self) -> Trainable {
        self.trainable
    }

    fn check_task(&self, task: usize) -> Result<()> {
        let tasks = self.config.task_labels.len();
        if task < tasks {
            Ok(())
        } else {
            Err(NetworkError::size("task", format!("below {tasks}"), task))
        }
    }

    /// Precision of the steps' large products; evaluation is always in full precision.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Number of values in the base and in the tasks' parameters.
    #[must_use]
    pub fn parameter_counts(&self) -> (usize, usize) {
        let count = |part| {
            let of_part = self
                .parameters
                .iter()
                .filter(|parameter| parameter.part == part);
            of_part
                .map(|parameter| parameter.shape.iter().product::<usize>())
                .sum()
        };
        (count(Part::Base), count(Part::Adapters))
    }

    fn order(&self) -> Order {
        Order {
            layers: self.config.layers,
            has_prefix: self.config.prefix_tokens > 0,
        }
    }

    /// The values of a parameter that belong to a task; none of a shared one.
    fn task_values(&self, parameter: &Parameter, task: usize) -> Range<usize> {
        let Some(&labels) = self.config.task_labels.get(task) else {
            return 0..0;
        };
        let (start, rows) = match parameter.rows {
            TaskRows::Shared => return 0..0,
            TaskRows::Equal(rows) => (task * rows, rows),
            TaskRows::Labels => (self.config.label_start(task), labels),
        };
        let width = parameter.shape[1];
        start * width..(start + rows) * width
    }

    /// The values of a parameter that steps change.
    fn trained(&self, parameter: &Parameter) -> Range<usize> {
        let all = 0..parameter.shape.iter().product();
        match (parameter.part, self.trainable.adapters) {
            (Part::Base, _) if self.trainable.base => all,
            (Part::Adapters, TrainedAdapters::All) => all,
            (Part::Adapters, TrainedAdapters::Task(task)) => self.task_values(parameter, task),
            _ => 0..0,
        }
    }

    /// [`Network::trained`] of all parameters, in their order.
    fn all_trained(&self) -> Vec<Range<usize>> {
        self.parameters
            .iter()
            .map(|parameter| self.trained(parameter))
            .collect()
    }
}
