//! AdamW with decoupled weight decay, gradient clipping and a moving average of the parameters.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout};
use serde::{Deserialize, Serialize};
use trafficllm_kernels::training::{AdamWStep, Cpu};

use crate::network::{NetworkError, Parameter};

/// Settings of the optimiser; the learning rate is given at every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Decoupled weight decay, on the layers' matrices only (not on norms, embeddings, queries, prefixes or labels).
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    pub clip_norm: f64,
    /// Decay of the moving average of parameters, if one is kept. After `n` steps at most `(n + 1) / (n + 10)`, so that
    /// the first values do not linger.
    pub average_decay: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            weight_decay: 0.05,
            clip_norm: 1.0,
            average_decay: Some(0.99),
        }
    }
}

/// What the optimiser keeps of the trained values of one parameter; empty where there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    /// Empty if no average is kept.
    pub(crate) average: Vec<f32>,
}

/// The optimiser's state.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    /// In the order of the network's parameters; empty before the first step.
    moments: Vec<Moments>,
}

impl AdamW {
    /// An optimiser before its first step.
    #[must_use]
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            step: 0,
            moments: Vec::new(),
        }
    }

    /// An optimiser as a checkpoint holds it.
    pub(crate) fn restored(config: AdamWConfig, step: u64, moments: Vec<Moments>) -> Self {
        Self {
            config,
            step,
            moments,
        }
    }

    /// Settings.
    #[must_use]
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    pub(crate) fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// A parameter's values, the trained ones replaced by their moving average if one is kept.
    pub(crate) fn averaged(
        &self,
        index: usize,
        parameter: &Parameter,
        trained: &Range<usize>,
    ) -> Result<Vec<f32>, NetworkError> {
        let mut values = parameter.values()?;
        if let Some(moments) = self
            .moments
            .get(index)
            .filter(|moments| !moments.average.is_empty())
        {
            if moments.average.len() != trained.len() {
                return Err(NetworkError::size(
                    format!("average of {}", parameter.name),
                    trained.len(),
                    moments.average.len(),
                ));
            }
            values[trained.clone()].copy_from_slice(&moments.average);
        }
        Ok(values)
    }

    /// One step on the `trained` values of each parameter, which the gradients belong to.
    pub(crate) fn update(
        &mut self,
        parameters: &[Parameter],
        trained: &[Range<usize>],
        gradients: &[Vec<f32>],
        gradient_norm: f64,
        learning_rate: f64,
    ) -> Result<(), NetworkError> {
        self.prepare(parameters, trained)?;
        let config = self.config;
        self.step += 1;
        let exponent = i32::try_from(self.step).unwrap_or(i32::MAX);
        let clip = if config.clip_norm > 0.0 && gradient_norm > config.clip_norm {
            config.clip_norm / gradient_norm
        } else {
            1.0
        };
        let warm_decay = self.step as f64 / (self.step as f64 + 9.0);
        for (index, parameter) in parameters
            .iter()
            .enumerate()
            .filter(|(index, _)| !trained[*index].is_empty())
        {
            let decay = if parameter.decays {
                config.weight_decay
            } else {
                0.0
            };
            let step = AdamWStep {
                gradient_scale: clip as f32,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                step_size: (learning_rate / (1.0 - config.beta1.powi(exponent))) as f32,
                second_scale: (1.0 / (1.0 - config.beta2.powi(exponent)).sqrt()) as f32,
                epsilon: config.epsilon as f32,
                shrink: (1.0 - learning_rate * decay) as f32,
            };
            let average_decay = config
                .average_decay
                .map_or(0.0, |decay| decay.min(warm_decay)) as f32;
            let update = Update {
                step,
                average_decay,
                trained: trained[index].clone(),
                gradient: &gradients[index],
                moments: Mutex::new(&mut self.moments[index]),
            };
            parameter.var.inplace_op1(&update)?;
        }
        Ok(())
    }

    /// Makes the state at the first step, and checks it later.
    fn prepare(
        &mut self,
        parameters: &[Parameter],
        trained: &[Range<usize>],
    ) -> Result<(), NetworkError> {
        if self.moments.is_empty() {
            for (parameter, trained) in parameters.iter().zip(trained) {
                let zeros = vec![0.0; trained.len()];
                let average = if self.config.average_decay.is_some() && !trained.is_empty() {
                    parameter.values()?[trained.clone()].to_vec()
                } else {
                    Vec::new()
                };
                self.moments.push(Moments {
                    first: zeros.clone(),
                    second: zeros,
                    average,
                });
            }
        }
        let fits =
            |(moments, trained): (&Moments, &Range<usize>)| moments.first.len() == trained.len();
        if self.moments.len() != trained.len() || !self.moments.iter().zip(trained).all(fits) {
            return Err(NetworkError::size(
                "optimiser state",
                "that of this network and of what it trains",
                "that of another",
            ));
        }
        Ok(())
    }
}

/// The update of one parameter, in place.
struct Update<'a> {
    /// Which of the values.
    trained: Range<usize>,
    step: AdamWStep,
    average_decay: f32,
    gradient: &'a [f32],
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("adamw: expected f32 values");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw: expected a contiguous parameter, found {layout:?}");
        };
        let (cpu, values) = (Cpu::detect(), &mut values[start..end][self.trained.clone()]);
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments {
            first,
            second,
            average,
        } = &mut **moments;
        cpu.adamw(&self.step, values, self.gradient, first, second);
        if !average.is_empty() {
            cpu.move_average(average, values, self.average_decay);
        }
        Ok(())
    }
}
