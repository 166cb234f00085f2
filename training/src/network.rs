//! The network that is trained: a llama-family decoder with query rows, prefixes and labels per task.
//!
//! A batch is cut into shards, a number fixed by the recipe. Each shard has its own graph, forward and backward, on its own
//! thread; gradients are added in the order of the shards. So results do not depend on how many processors there are.

mod checkpoint;
mod config;
mod export;
mod forward;
mod plan;
mod reference;
mod step;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use crate::ops::{Precision, Rotary};
use crate::random::Random;

pub use checkpoint::Checkpoint;
pub use config::{
    NamedValues, NetworkConfig, Objective, Sequence, ShardBatch, Statistics, StepReport, Trainable,
};
pub use forward::LossScales;

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

/// Which part of the network a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Shared by all tasks.
    Base,
    /// Rows of tasks.
    Adapters,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    One,
    /// Normally distributed with this deviation.
    Normal(f64),
    /// Rows of keys and values, each half normally distributed with its own deviation.
    KeysAndValues(f64, f64),
}

/// Name, shape and treatment of a parameter.
#[derive(Clone, Debug)]
struct Form {
    name: String,
    shape: Vec<usize>,
    part: Part,
    /// Whether weight decay applies: matrices of the layers only.
    decays: bool,
    start: Start,
}

/// A parameter.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) part: Part,
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

/// Index of a parameter in the fixed order.
struct Order {
    layers: usize,
}

/// Parameters of a layer, in their order.
const PER_LAYER: usize = 6;

impl Order {
    const TOKENS: usize = 0;

    fn layer(&self, layer: usize) -> usize {
        1 + layer * PER_LAYER
    }

    fn output_norm(&self) -> usize {
        1 + self.layers * PER_LAYER
    }

    fn queries(&self) -> usize {
        self.output_norm() + 1
    }

    fn labels(&self) -> usize {
        self.output_norm() + 2
    }

    fn prefix(&self, layer: usize) -> usize {
        self.output_norm() + 3 + layer
    }
}

fn forms(config: &NetworkConfig) -> Vec<Form> {
    let (hidden, feed_forward) = (config.hidden, config.feed_forward);
    let base = |name: String, shape: Vec<usize>, decays: bool, start: Start| Form {
        name,
        shape,
        part: Part::Base,
        decays,
        start,
    };
    let matrix = |name: String, out: usize, inner: usize, damping: f64| {
        base(
            name,
            vec![out, inner],
            true,
            Start::Normal(0.7 / (inner as f64).sqrt() / damping),
        )
    };
    let norm = |name: String| base(name, vec![hidden], false, Start::One);
    // Every layer adds two branches to the residual stream; this keeps its variance.
    let damping = (2.0 * config.layers as f64).sqrt();
    let mut forms = vec![base(
        "token_embd.weight".into(),
        vec![config.vocabulary, hidden],
        false,
        Start::Normal(0.02),
    )];
    for layer in 0..config.layers {
        forms.extend([
            norm(format!("blk.{layer}.attn_norm.weight")),
            matrix(
                format!("blk.{layer}.attn_qkv.weight"),
                hidden + 2 * config.kv_width(),
                hidden,
                1.0,
            ),
            matrix(
                format!("blk.{layer}.attn_output.weight"),
                hidden,
                hidden,
                damping,
            ),
            norm(format!("blk.{layer}.ffn_norm.weight")),
            matrix(
                format!("blk.{layer}.ffn_gate_up.weight"),
                2 * feed_forward,
                hidden,
                1.0,
            ),
            matrix(
                format!("blk.{layer}.ffn_down.weight"),
                hidden,
                feed_forward,
                damping,
            ),
        ]);
    }
    forms.push(norm("output_norm.weight".into()));
    let tasks = config.task_labels.len();
    if tasks > 0 {
        let rows = |name: String, shape: [usize; 2], start: Start| Form {
            name,
            shape: shape.to_vec(),
            part: Part::Adapters,
            decays: false,
            start,
        };
        forms.push(rows(
            "query.embedding".into(),
            [tasks * config.query_tokens, hidden],
            Start::Normal(0.02),
        ));
        forms.push(rows(
            "label.weight".into(),
            [config.labels(), hidden],
            Start::Normal(0.02),
        ));
        if config.prefix_tokens > 0 {
            let (shape, start) = (
                [tasks * config.prefix_tokens, 2 * config.kv_width()],
                Start::KeysAndValues(0.5, 0.1),
            );
            forms.extend(
                (0..config.layers).map(|layer| rows(format!("blk.{layer}.prefix"), shape, start)),
            );
        }
    }
    forms
}

/// Near enough to a normal distribution, and the same on every machine: no library functions.
fn normal(random: &mut Random) -> f64 {
    (0..12).map(|_| random.unit()).sum::<f64>() - 6.0
}

impl Network {
    /// A network with random values that depend on `seed` only; those of the base do not depend on the tasks.
    ///
    /// # Errors
    /// If the sizes do not fit each other.
    pub fn new(config: NetworkConfig, seed: u64) -> Result<Self> {
        Self::build(config, |form| {
            // The name makes the stream, so that adding a task or a layer leaves the others' values alone.
            let stream = form
                .name
                .bytes()
                .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
                });
            let mut random = Random::stream(seed, stream, 0);
            let count = form.shape.iter().product();
            Ok(match form.start {
                Start::One => vec![1.0; count],
                Start::Normal(deviation) => (0..count)
                    .map(|_| (normal(&mut random) * deviation) as f32)
                    .collect(),
                Start::KeysAndValues(keys, values) => {
                    let width = form.shape[1];
                    let deviation = |index: usize| {
                        if index % width < width / 2 {
                            keys
                        } else {
                            values
                        }
                    };
                    (0..count)
                        .map(|index| (normal(&mut random) * deviation(index)) as f32)
                        .collect()
                }
            })
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
                decays,
                ..
            } = form;
            parameters.push(Parameter {
                name,
                shape,
                part,
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
            trainable: Trainable {
                base: true,
                adapters: true,
            },
            precision: Precision::Full,
            rotary,
        })
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Which parameters steps change; both parts at first.
    pub fn set_trainable(&mut self, trainable: Trainable) {
        self.trainable = trainable;
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
        }
    }

    fn trains(&self, part: Part) -> bool {
        match part {
            Part::Base => self.trainable.base,
            Part::Adapters => self.trainable.adapters,
        }
    }
}
