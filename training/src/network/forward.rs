//! The forward pass and its losses.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::plan::Plan;
use super::{Network, Order, Parameter, Result, ShardBatch, Statistics};
use crate::ops::{self, Attention, AttentionSizes, LossSums};

/// What the weights of the rows are multiplied with, so that the shards' losses add up to the batch's mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScales {
    /// For labels.
    pub label: f32,
    /// For next tokens; 0 leaves them out.
    pub token: f32,
    /// Share of the label's target spread evenly over the task's labels.
    pub label_smoothing: f32,
}

/// The parameters as tensors in a graph.
struct Tensors<'a> {
    all: &'a [Tensor],
    order: Order,
}

impl Tensors<'_> {
    fn layer(&self, layer: usize) -> &[Tensor] {
        let start = self.order.layer(layer);
        &self.all[start..start + super::PER_LAYER]
    }
}

impl Network {
    /// The loss of a shard as a scalar with its graph (`None` if no row has a loss), and sums over its rows.
    ///
    /// # Errors
    /// If the shard does not fit the network.
    pub fn loss(
        &self,
        batch: &ShardBatch,
        scales: &LossScales,
    ) -> Result<(Option<Tensor>, Statistics)> {
        let tensors: Vec<Tensor> = self
            .parameters
            .iter()
            .map(|parameter| self.tracked(parameter))
            .collect();
        self.loss_with(&tensors, batch, scales)
    }

    /// Losses without gradients. Single-threaded: call it from several threads.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    pub fn evaluate(&self, batch: &ShardBatch) -> Result<Statistics> {
        let scales = LossScales {
            label: 1.0,
            token: 1.0,
            label_smoothing: 0.0,
        };
        Ok(self.loss_with(&self.detached(), batch, &scales)?.1)
    }

    /// For each sequence the logits of its task's labels (empty without a task). Single-threaded: call it from several threads.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    pub fn label_logits(&self, batch: &ShardBatch) -> Result<Vec<Vec<f32>>> {
        let plan = self.plan(batch)?;
        let mut logits = vec![Vec::new(); batch.sequences.len()];
        if plan.label_rows.is_empty() {
            return Ok(logits);
        }
        let tensors = self.detached();
        let hidden = self.hidden(&tensors, &plan, true)?;
        let table = &tensors[self.order().labels()];
        for (row, (&sequence, label)) in plan.label_sequences.iter().zip(&plan.labels).enumerate() {
            logits[sequence] = ops::label_logits(&hidden, table, row, label.start, label.end)?;
        }
        Ok(logits)
    }

    /// The parameter in the graph if it is trained, else its bare values.
    fn tracked(&self, parameter: &Parameter) -> Tensor {
        if self.trains(parameter.part) {
            parameter.var.as_tensor().clone()
        } else {
            parameter.var.as_detached_tensor()
        }
    }

    fn detached(&self) -> Vec<Tensor> {
        self.parameters
            .iter()
            .map(|parameter| parameter.var.as_detached_tensor())
            .collect()
    }

    fn loss_with(
        &self,
        tensors: &[Tensor],
        batch: &ShardBatch,
        scales: &LossScales,
    ) -> Result<(Option<Tensor>, Statistics)> {
        let plan = self.plan(batch)?;
        let mut statistics = Statistics::default();
        let wants_tokens =
            scales.token != 0.0 && plan.target_weights.iter().any(|&weight| weight != 0.0);
        let wants_labels = !plan.labels.is_empty();
        if !wants_tokens && !wants_labels {
            return Ok((None, statistics));
        }
        let hidden = self.hidden(tensors, &plan, !wants_tokens)?;
        let mut total = None;
        if wants_labels {
            let rows = if wants_tokens {
                ops::gather_rows(&hidden, plan.label_rows.clone())?
            } else {
                hidden.clone()
            };
            total = Some(self.label_loss(tensors, &rows, &plan, scales, &mut statistics)?);
        }
        if wants_tokens {
            let weights: Vec<f32> = plan
                .target_weights
                .iter()
                .map(|weight| weight * scales.token)
                .collect();
            let loss = ops::token_cross_entropy(
                &hidden,
                &tensors[Order::TOKENS],
                &plan.targets,
                &weights,
            )?;
            statistics.token_loss = f64::from(loss.to_scalar::<f32>()?) / f64::from(scales.token);
            statistics.token_weight = plan
                .target_weights
                .iter()
                .map(|&weight| f64::from(weight))
                .sum();
            total = Some(match total {
                Some(labels) => ops::add(&labels, &loss)?,
                None => loss,
            });
        }
        Ok((total, statistics))
    }

    fn label_loss(
        &self,
        tensors: &[Tensor],
        rows: &Tensor,
        plan: &Plan,
        scales: &LossScales,
        statistics: &mut Statistics,
    ) -> Result<Tensor> {
        let mut targets = plan.labels.clone();
        for target in &mut targets {
            target.weight *= scales.label;
        }
        let sums = Arc::new(Mutex::new(LossSums::default()));
        let table = &tensors[self.order().labels()];
        let loss = ops::label_cross_entropy(
            rows,
            table,
            targets,
            scales.label_smoothing,
            Arc::clone(&sums),
        )?;
        let sums = *sums.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.label_loss = if scales.label == 0.0 {
            0.0
        } else {
            sums.loss / f64::from(scales.label)
        };
        statistics.label_correct = sums.correct;
        statistics.label_rows = plan
            .labels
            .iter()
            .filter(|label| label.weight > 0.0)
            .count();
        statistics.label_weight = plan
            .labels
            .iter()
            .map(|label| f64::from(label.weight))
            .sum();
        Ok(loss)
    }

    /// Hidden states after the final norm: of all rows, or of the label rows only (then the last layer skips the others).
    fn hidden(&self, tensors: &[Tensor], plan: &Plan, label_rows_only: bool) -> Result<Tensor> {
        let config = &self.config;
        let tensors = Tensors {
            all: tensors,
            order: self.order(),
        };
        let has_tasks = !config.task_labels.is_empty();
        let queries = has_tasks.then(|| &tensors.all[tensors.order.queries()]);
        let mut x = ops::embed(
            &tensors.all[Order::TOKENS],
            queries,
            Arc::clone(&plan.sources),
        )?;
        let has_prefix = has_tasks && config.prefix_tokens > 0;
        for layer in 0..config.layers {
            let [attention_norm, qkv, output, mlp_norm, gate_up, down] = tensors.layer(layer)
            else {
                return Err(super::NetworkError::size(
                    "parameters of a layer",
                    super::PER_LAYER,
                    tensors.layer(layer).len(),
                ));
            };
            let last_query_only = label_rows_only && layer + 1 == config.layers;
            let attention = Attention {
                sizes: AttentionSizes {
                    heads: config.heads,
                    kv_heads: config.kv_heads,
                    head_width: config.head_width(),
                    prefix_tokens: if has_prefix { config.prefix_tokens } else { 0 },
                },
                rotary: Arc::clone(&self.rotary),
                sequences: Arc::clone(&plan.sequences),
                last_query_only,
            };
            let prefix = has_prefix.then(|| &tensors.all[tensors.order.prefix(layer)]);
            let rows = ops::linear(
                &ops::rms_norm(&x, attention_norm, config.norm_epsilon)?,
                qkv,
            )?;
            let attended = ops::attention(&rows, prefix, attention)?;
            if last_query_only {
                x = ops::gather_rows(&x, Arc::clone(&plan.label_rows))?;
            }
            x = ops::linear_add(&attended, output, &x)?;
            let gated = ops::gated_mlp(
                &ops::rms_norm(&x, mlp_norm, config.norm_epsilon)?,
                gate_up,
                down,
            )?;
            x = ops::add(&x, &gated)?;
        }
        Ok(ops::rms_norm(
            &x,
            &tensors.all[tensors.order.output_norm()],
            config.norm_epsilon,
        )?)
    }
}
