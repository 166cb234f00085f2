//! The same network in stock candle operations, with candle's own gradients: what tests and benches compare with.
//! It starts candle's thread pools and is slow; nothing else uses it.

use candle_core::{D, Device, Tensor};
use candle_nn::rotary_emb::rope_i_slow;

use super::plan::Plan;
use super::{LORA_SCALE, LossScales, Network, Order, Result, ShardBatch};
use crate::ops::SequenceRows;

impl Network {
    /// The loss of [`Network::loss`], out of stock operations. Every parameter is tracked.
    ///
    /// # Errors
    /// If the shard does not fit the network.
    pub fn reference_loss(&self, batch: &ShardBatch, scales: &LossScales) -> Result<Tensor> {
        let plan = self.plan(batch)?;
        let (flow, queries) = self.reference_states(&plan)?;
        let mut total = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
        for (label, &row) in plan.labels.iter().zip(&*plan.label_rows) {
            let table = self.parameter(self.order().labels()).narrow(
                0,
                label.start,
                label.end - label.start,
            )?;
            let row = queries.narrow(0, row, 1)?;
            let losses = negative_log_softmax(&row.matmul(&table.t()?)?)?.squeeze(0)?;
            let own =
                (losses.get(label.label as usize)? * f64::from(1.0 - scales.label_smoothing))?;
            let all = (losses.mean(0)? * f64::from(scales.label_smoothing))?;
            total = (total + ((own + all)? * f64::from(label.weight * scales.label))?)?;
        }
        if scales.token != 0.0 && !batch.targets.is_empty() {
            let losses = negative_log_softmax(&flow.matmul(&self.parameter(Order::TOKENS).t()?)?)?;
            let targets =
                Tensor::from_slice(&batch.targets, (batch.targets.len(), 1), &Device::Cpu)?;
            let weights = Tensor::from_slice(
                &batch.target_weights,
                batch.target_weights.len(),
                &Device::Cpu,
            )?;
            let losses = (losses.gather(&targets, 1)?.squeeze(1)? * weights)?.sum_all()?;
            total = (total + (losses * f64::from(scales.token))?)?;
        }
        Ok(total)
    }

    fn parameter(&self, index: usize) -> &Tensor {
        self.parameters[index].var.as_tensor()
    }

    /// Final states of the flow rows and of the query rows.
    fn reference_states(&self, plan: &Plan) -> Result<(Tensor, Tensor)> {
        let order = self.order();
        let rows_of = |table: usize, rows: &[usize]| -> Result<Tensor> {
            let rows = Tensor::from_iter(rows.iter().map(|&row| row as u32), &Device::Cpu)?;
            Ok(self.parameter(table).index_select(&rows, 0)?)
        };
        let flow = rows_of(Order::TOKENS, &plan.tokens)?;
        let has_queries = !plan.queries.is_empty();
        let queries = if has_queries {
            rows_of(order.queries(), &plan.queries)?
        } else {
            flow.narrow(0, 0, 0)?
        };
        let flow_rows = plan.tokens.len();
        let mut x = Tensor::cat(&[&flow, &queries], 0)?;
        for layer in 0..self.config.layers {
            let first = order.layer(layer);
            let product = |input: &Tensor, index: usize, lora: usize| -> Result<Tensor> {
                let product = input.matmul(&self.parameter(index).t()?)?;
                self.reference_lora(plan, product, input, layer, lora)
            };
            let normed = self.reference_norm(&x, self.parameter(first))?;
            let qkv = product(&normed, first + 1, 0)?;
            let (mut of_flow, mut of_queries) = (Vec::new(), Vec::new());
            for sequence in &*plan.sequences {
                let (flow, queries) = self.reference_attention(&qkv, flow_rows, sequence, layer)?;
                of_flow.push(flow);
                of_queries.push(queries);
            }
            of_flow.append(&mut of_queries);
            let attended = Tensor::cat(&of_flow, 0)?;
            x = (x + product(&attended, first + 2, 1)?)?;
            let normed = self.reference_norm(&x, self.parameter(first + 3))?;
            let both = product(&normed, first + 4, 2)?;
            let width = self.config.feed_forward;
            let activation = (both.narrow(1, 0, width)?.silu()? * both.narrow(1, width, width)?)?;
            x = (x + product(&activation, first + 5, 3)?)?;
        }
        let states = self.reference_norm(&x, self.parameter(order.output_norm()))?;
        Ok((
            states.narrow(0, 0, flow_rows)?,
            states.narrow(0, flow_rows, plan.queries.len())?,
        ))
    }

    /// A product with what is added to its query rows, one row at a time.
    fn reference_lora(
        &self,
        plan: &Plan,
        product: Tensor,
        input: &Tensor,
        layer: usize,
        matrix: usize,
    ) -> Result<Tensor> {
        let rank = self.config.lora_rank;
        if rank == 0 || plan.queries.is_empty() {
            return Ok(product);
        }
        let flow_rows = plan.tokens.len();
        let index = self.order().lora(layer) + 2 * matrix;
        let mut rows = vec![product.narrow(0, 0, flow_rows)?];
        for (row, task) in plan.query_tasks.iter().enumerate() {
            let factor = |index| self.parameter(index).narrow(0, task * rank, rank);
            let middle = input
                .narrow(0, flow_rows + row, 1)?
                .matmul(&factor(index)?.t()?)?;
            let added = (middle.matmul(&factor(index + 1)?)? * f64::from(LORA_SCALE))?;
            rows.push((product.narrow(0, flow_rows + row, 1)? + added)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    fn reference_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm_slow(
            x,
            weight,
            self.config.norm_epsilon,
        )?)
    }

    /// Attention of one sequence: that of its flow rows and that of its query rows, `[rows, hidden]` each.
    fn reference_attention(
        &self,
        qkv: &Tensor,
        flow_rows: usize,
        sequence: &SequenceRows,
        layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let config = &self.config;
        let (heads, kv_heads, width, kv_width) = (
            config.heads,
            config.kv_heads,
            config.head_width(),
            config.kv_width(),
        );
        let (flow, rows) = (sequence.flow_rows, sequence.flow_rows + sequence.query_rows);
        let qkv = Tensor::cat(
            &[
                qkv.narrow(0, sequence.flow_start, flow)?,
                qkv.narrow(0, flow_rows + sequence.query_start, sequence.query_rows)?,
            ],
            0,
        )?;
        let part = |first: usize, heads: usize| -> Result<Tensor> {
            Ok(qkv
                .narrow(1, first, heads * width)?
                .reshape((rows, heads, width))?
                .transpose(0, 1)?
                .contiguous()?)
        };
        let query = self.reference_rotation(&part(0, heads)?)?;
        let mut key = self.reference_rotation(&part(config.hidden, kv_heads)?)?;
        let mut value = part(config.hidden + kv_width, kv_heads)?;
        let prefix_tokens = if sequence.query_rows > 0 {
            config.prefix_tokens
        } else {
            0
        };
        if prefix_tokens > 0 {
            let prefix = self.parameter(self.order().prefix(layer)).narrow(
                0,
                sequence.task * prefix_tokens,
                prefix_tokens,
            )?;
            let part = |first: usize| -> Result<Tensor> {
                let part =
                    prefix
                        .narrow(1, first, kv_width)?
                        .reshape((prefix_tokens, kv_heads, width))?;
                Ok(part.transpose(0, 1)?.contiguous()?)
            };
            key = Tensor::cat(&[&part(0)?, &key], 1)?;
            value = Tensor::cat(&[&part(kv_width)?, &value], 1)?;
        }
        let repeat = |tensor: Tensor| -> Result<Tensor> {
            let (kv_heads, keys, width) = tensor.dims3()?;
            let group = heads / kv_heads;
            Ok(tensor
                .unsqueeze(1)?
                .expand((kv_heads, group, keys, width))?
                .reshape((heads, keys, width))?)
        };
        let (key, value) = (repeat(key)?, repeat(value)?);
        let keys = prefix_tokens + rows;
        let mask = (0..rows).flat_map(|row| {
            (0..keys).map(move |key| {
                let seen = if key < prefix_tokens {
                    row >= flow
                } else {
                    key - prefix_tokens <= row
                };
                if seen { 0.0_f32 } else { f32::NEG_INFINITY }
            })
        });
        let mask = Tensor::from_iter(mask, &Device::Cpu)?.reshape((rows, keys))?;
        let scores = (query.matmul(&key.t()?.contiguous()?)? / (width as f64).sqrt())?
            .broadcast_add(&mask)?;
        let probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let attended = probabilities
            .matmul(&value)?
            .transpose(0, 1)?
            .reshape((rows, heads * width))?;
        Ok((
            attended.narrow(0, 0, flow)?,
            attended.narrow(0, flow, sequence.query_rows)?,
        ))
    }

    /// Interleaved rotary positions of `[heads, rows, width]`.
    fn reference_rotation(&self, x: &Tensor) -> Result<Tensor> {
        let (_heads, rows, width) = x.dims3()?;
        let pairs = width / 2;
        let angle = |row: usize, pair: usize| {
            row as f64 * f64::from(self.config.rotary_base).powf(-(pair as f64) / pairs as f64)
        };
        let angles = |function: fn(f64) -> f64| {
            let values =
                (0..rows * pairs).map(|index| function(angle(index / pairs, index % pairs)) as f32);
            Tensor::from_iter(values, &Device::Cpu)?.reshape((rows, pairs))
        };
        let (cosines, sines) = (angles(f64::cos)?, angles(f64::sin)?);
        let turned = rope_i_slow(&x.unsqueeze(0)?, &cosines, &sines)?;
        Ok(turned.squeeze(0)?)
    }
}

fn negative_log_softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::log_softmax(logits, D::Minus1)?.neg()?)
}
