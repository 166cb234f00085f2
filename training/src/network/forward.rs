//! The forward pass and its losses.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::layout::{LORA_PER_LAYER, PER_LAYER};
use super::plan::Plan;
use super::{LORA_SCALE, Network, NetworkError, Order, Parameter, Result, ShardBatch, Statistics};
use crate::ops::{self, Attention, AttentionSizes, LossSums, QueryRows};

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

/// The matrices of a layer.
#[derive(Clone, Copy)]
struct LayerTensors<'a> {
    attention_norm: &'a Tensor,
    qkv: &'a Tensor,
    output: &'a Tensor,
    mlp_norm: &'a Tensor,
    gate_up: &'a Tensor,
    down: &'a Tensor,
    prefix: Option<&'a Tensor>,
    /// First and second factor for each of `LORA_MATRICES`; empty without.
    lora: &'a [Tensor],
}

impl<'a> Tensors<'a> {
    fn layer(&self, layer: usize, network: &Network) -> Result<LayerTensors<'a>> {
        let start = self.order.layer(layer);
        let own = &self.all[start..start + PER_LAYER];
        let [attention_norm, qkv, output, mlp_norm, gate_up, down] = own else {
            return Err(NetworkError::size(
                "parameters of a layer",
                PER_LAYER,
                own.len(),
            ));
        };
        let config = &network.config;
        let has_tasks = !config.task_labels.is_empty();
        let lora = self.order.lora(layer);
        let factors = if has_tasks && config.lora_rank > 0 {
            LORA_PER_LAYER
        } else {
            0
        };
        let has_prefix = has_tasks && config.prefix_tokens > 0;
        Ok(LayerTensors {
            attention_norm,
            qkv,
            output,
            mlp_norm,
            gate_up,
            down,
            prefix: has_prefix.then(|| &self.all[self.order.prefix(layer)]),
            lora: if factors > 0 {
                &self.all[lora..lora + factors]
            } else {
                &[]
            },
        })
    }
}

/// Which of `LORA_MATRICES` is meant.
#[derive(Clone, Copy)]
enum Lora {
    Qkv,
    Output,
    GateUp,
    Down,
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
        let Some(hidden) = self.states(&tensors, &plan, false)?.labels else {
            return Ok(logits);
        };
        let table = &tensors[self.order().labels()];
        for (row, (&sequence, label)) in plan.label_sequences.iter().zip(&plan.labels).enumerate() {
            logits[sequence] = ops::label_logits(&hidden, table, row, label.start, label.end)?;
        }
        Ok(logits)
    }

    /// The parameter in the graph if it is trained, else its bare values.
    fn tracked(&self, parameter: &Parameter) -> Tensor {
        if !self.trained(parameter).is_empty() {
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
            scales.token != 0.0 && batch.target_weights.iter().any(|&weight| weight != 0.0);
        let wants_labels = !plan.labels.is_empty();
        if !wants_tokens && !wants_labels {
            return Ok((None, statistics));
        }
        let states = self.states(tensors, &plan, wants_tokens)?;
        let mut total = None;
        if let Some(rows) = &states.labels {
            total = Some(self.label_loss(tensors, rows, &plan, scales, &mut statistics)?);
        }
        if let Some(hidden) = &states.flow {
            let weights: Vec<f32> = batch
                .target_weights
                .iter()
                .map(|weight| weight * scales.token)
                .collect();
            let loss = ops::token_cross_entropy(
                hidden,
                &tensors[Order::TOKENS],
                &batch.targets,
                &weights,
            )?;
            statistics.token_loss = f64::from(loss.to_scalar::<f32>()?) / f64::from(scales.token);
            statistics.token_weight = batch
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

    /// Hidden states after the final norm. Without `wants_flow` the last layer makes only keys and values of the flow rows.
    fn states(&self, tensors: &[Tensor], plan: &Plan, wants_flow: bool) -> Result<States> {
        let config = &self.config;
        let tensors = Tensors {
            all: tensors,
            order: self.order(),
        };
        let mut flow = ops::gather_rows(&tensors.all[Order::TOKENS], Arc::clone(&plan.tokens))?;
        let mut queries = if plan.queries.is_empty() {
            None
        } else {
            let table = &tensors.all[tensors.order.queries()];
            Some(ops::gather_rows(table, Arc::clone(&plan.queries))?)
        };
        for index in 0..config.layers {
            let layer = tensors.layer(index, self)?;
            let is_last = index + 1 == config.layers;
            let flow_qkv = ops::linear(
                &ops::rms_norm(&flow, layer.attention_norm, config.norm_epsilon)?,
                layer.qkv,
            )?;
            if let Some(rows) = queries {
                queries = Some(self.query_layer(plan, layer, &flow_qkv, &rows, is_last)?);
            }
            if is_last && !wants_flow {
                break;
            }
            let attended = ops::flow_attention(&flow_qkv, self.attention(plan))?;
            flow = ops::linear_add(&attended, layer.output, &flow)?;
            let gated = ops::gated_mlp(
                &ops::rms_norm(&flow, layer.mlp_norm, config.norm_epsilon)?,
                layer.gate_up,
                layer.down,
            )?;
            flow = ops::add(&flow, &gated)?;
        }
        let norm = &tensors.all[tensors.order.output_norm()];
        let normed = |rows: &Tensor| ops::rms_norm(rows, norm, config.norm_epsilon);
        Ok(States {
            flow: if wants_flow {
                Some(normed(&flow)?)
            } else {
                None
            },
            labels: queries.as_ref().map(normed).transpose()?,
        })
    }

    fn attention(&self, plan: &Plan) -> Attention {
        let config = &self.config;
        Attention {
            sizes: AttentionSizes {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_width: config.head_width(),
                prefix_tokens: config.prefix_tokens,
            },
            rotary: Arc::clone(&self.rotary),
            sequences: Arc::clone(&plan.sequences),
        }
    }

    /// One layer of the query rows; the last one of each query if `is_last`.
    fn query_layer(
        &self,
        plan: &Plan,
        layer: LayerTensors<'_>,
        flow_qkv: &Tensor,
        rows: &Tensor,
        is_last: bool,
    ) -> Result<Tensor> {
        let epsilon = self.config.norm_epsilon;
        let normed = ops::rms_norm(rows, layer.attention_norm, epsilon)?;
        let qkv = ops::linear(&normed, layer.qkv)?;
        let qkv = self.with_lora(qkv, &normed, layer, Lora::Qkv, &plan.query_tasks)?;
        let (asking, tasks) = if is_last {
            (QueryRows::Last, &plan.label_tasks)
        } else {
            (QueryRows::All, &plan.query_tasks)
        };
        let attended =
            ops::query_attention(flow_qkv, &qkv, layer.prefix, self.attention(plan), asking)?;
        let gathered = if is_last {
            ops::gather_rows(rows, Arc::clone(&plan.label_rows))?
        } else {
            rows.clone()
        };
        let rows = ops::linear_add(&attended, layer.output, &gathered)?;
        let rows = self.with_lora(rows, &attended, layer, Lora::Output, tasks)?;
        let normed = ops::rms_norm(&rows, layer.mlp_norm, epsilon)?;
        if layer.lora.is_empty() {
            let gated = ops::gated_mlp(&normed, layer.gate_up, layer.down)?;
            return Ok(ops::add(&rows, &gated)?);
        }
        let both = ops::linear(&normed, layer.gate_up)?;
        let both = self.with_lora(both, &normed, layer, Lora::GateUp, tasks)?;
        let activation = ops::silu_gate(&both)?;
        let rows = ops::linear_add(&activation, layer.down, &rows)?;
        self.with_lora(rows, &activation, layer, Lora::Down, tasks)
    }

    /// `result` with the low-rank product of `input` added, each row's with its own task's factors.
    fn with_lora(
        &self,
        result: Tensor,
        input: &Tensor,
        layer: LayerTensors<'_>,
        which: Lora,
        tasks: &Arc<[usize]>,
    ) -> Result<Tensor> {
        let Some([a, b]) = layer.lora.as_chunks().0.get(which as usize) else {
            return Ok(result);
        };
        let rank = self.config.lora_rank;
        let added = ops::low_rank(input, a, b, rank, LORA_SCALE, Arc::clone(tasks))?;
        Ok(ops::add(&result, &added)?)
    }
}

/// What the losses look at.
struct States {
    /// Of all flow rows, if they are wanted.
    flow: Option<Tensor>,
    /// Of the last query row of each sequence with a task; `None` if there is no such sequence.
    labels: Option<Tensor>,
}
