//! Parameters as plain values: out for packing, in from another network.

use super::layout::{LORA_MATRICES, lora_sizes};
use super::{LORA_SCALE, NamedValues, Network, NetworkError, Part, Result};
use crate::optimiser::AdamW;

impl Network {
    /// The base under GGUF names (`blk.0.attn_q.weight`, ...), in f32. Where two matrices are trained as one, they are taken apart.
    ///
    /// # Errors
    /// If a parameter cannot be read.
    pub fn base_tensors(&self) -> Result<Vec<NamedValues>> {
        let (hidden, kv, feed_forward) = (
            self.config.hidden,
            self.config.kv_width(),
            self.config.feed_forward,
        );
        let mut tensors = Vec::new();
        for parameter in self
            .parameters
            .iter()
            .filter(|parameter| parameter.part == Part::Base)
        {
            let values = parameter.values()?;
            let parts: &[(&str, usize)] = match parameter.name.rsplit('.').nth(1) {
                Some("attn_qkv") => &[("attn_q", hidden), ("attn_k", kv), ("attn_v", kv)],
                Some("ffn_gate_up") => &[("ffn_gate", feed_forward), ("ffn_up", feed_forward)],
                _ => &[],
            };
            if parts.is_empty() {
                tensors.push(NamedValues {
                    name: parameter.name.clone(),
                    shape: parameter.shape.clone(),
                    values,
                });
                continue;
            }
            let layer = parameter
                .name
                .splitn(3, '.')
                .take(2)
                .collect::<Vec<_>>()
                .join(".");
            let mut rest = &values[..];
            for (part, rows) in parts {
                let (values, after) = rest.split_at(rows * hidden);
                rest = after;
                let name = format!("{layer}.{part}.weight");
                tensors.push(NamedValues {
                    name,
                    shape: vec![*rows, hidden],
                    values: values.to_vec(),
                });
            }
        }
        Ok(tensors)
    }

    /// A task's adapter: `query.embedding` `[query_tokens, hidden]`, `prefix.key` and `prefix.value`
    /// `[layers, prefix_tokens, kv_heads * head_width]`, `label.weight` `[labels, hidden]`. Where the task has low-rank additions that
    /// add anything, also `lora.MATRIX.a` `[layers, rank, in]` and `lora.MATRIX.b` `[layers, rank, out]`, the scale of training written
    /// into the second.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn adapter_tensors(&self, task: usize) -> Result<Vec<NamedValues>> {
        self.check_task(task)?;
        let config = &self.config;
        let (hidden, kv, prefix_tokens) = (config.hidden, config.kv_width(), config.prefix_tokens);
        let order = self.order();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        if prefix_tokens > 0 {
            for layer in 0..config.layers {
                let rows = self.values_of_task(order.prefix(layer), task)?;
                for row in rows.chunks_exact(2 * kv) {
                    keys.extend_from_slice(&row[..kv]);
                    values.extend_from_slice(&row[kv..]);
                }
            }
        }
        let prefix_shape = vec![config.layers, prefix_tokens, kv];
        let named = |name: &str, shape: Vec<usize>, values: Vec<f32>| NamedValues {
            name: name.to_owned(),
            shape,
            values,
        };
        let mut tensors = vec![
            named(
                "query.embedding",
                vec![config.query_tokens, hidden],
                self.values_of_task(order.queries(), task)?,
            ),
            named("prefix.key", prefix_shape.clone(), keys),
            named("prefix.value", prefix_shape, values),
            named(
                "label.weight",
                vec![config.task_labels[task], hidden],
                self.values_of_task(order.labels(), task)?,
            ),
        ];
        let lora = self.lora_tensors(task)?;
        let adds = lora
            .iter()
            .filter(|tensor| tensor.name.ends_with(".b"))
            .any(|tensor| tensor.values.iter().any(|&value| value != 0.0));
        if adds {
            tensors.extend(lora);
        }
        Ok(tensors)
    }

    fn lora_tensors(&self, task: usize) -> Result<Vec<NamedValues>> {
        let config = &self.config;
        let rank = config.lora_rank;
        if rank == 0 {
            return Ok(Vec::new());
        }
        let mut tensors = Vec::new();
        for (matrix, (name, (inner, out))) in
            LORA_MATRICES.iter().zip(lora_sizes(config)).enumerate()
        {
            for (factor, kind, columns) in [(0, "a", inner), (1, "b", out)] {
                let mut values = Vec::with_capacity(config.layers * rank * columns);
                for layer in 0..config.layers {
                    let index = self.order().lora(layer) + 2 * matrix + factor;
                    values.extend(self.values_of_task(index, task)?);
                }
                if kind == "b" {
                    values.iter_mut().for_each(|value| *value *= LORA_SCALE);
                }
                tensors.push(NamedValues {
                    name: format!("lora.{name}.{kind}"),
                    shape: vec![config.layers, rank, columns],
                    values,
                });
            }
        }
        Ok(tensors)
    }

    /// A copy of the values of a parameter that belong to a task.
    pub(super) fn values_of_task(&self, index: usize, task: usize) -> Result<Vec<f32>> {
        let parameter = &self.parameters[index];
        Ok(parameter.values()?[self.task_values(parameter, task)].to_vec())
    }

    /// Takes over the base of another network (of the same sizes but for the tasks), for example after pre-training.
    ///
    /// # Errors
    /// If the sizes of the bases differ; then nothing was changed.
    pub fn copy_base_from(&mut self, other: &Self) -> Result<()> {
        let base = |network: &Self| {
            let of_base = network
                .parameters
                .iter()
                .filter(|parameter| parameter.part == Part::Base);
            of_base
                .map(|parameter| (parameter.name.clone(), parameter.shape.clone()))
                .collect::<Vec<_>>()
        };
        if base(self) != base(other) {
            return Err(NetworkError::size(
                "base",
                format!("{:?}", self.config),
                format!("{:?}", other.config),
            ));
        }
        // The base comes first in the order of the parameters.
        for (own, others) in self
            .parameters
            .iter()
            .zip(&other.parameters)
            .filter(|(own, _)| own.part == Part::Base)
        {
            own.var.set(&others.var.as_detached_tensor())?;
        }
        Ok(())
    }

    /// A network with the optimiser's moving average of the parameters in place of their last values; a plain copy if it
    /// keeps none.
    ///
    /// # Errors
    /// If the optimiser belongs to a network of other sizes.
    pub fn averaged(&self, optimiser: &AdamW) -> Result<Self> {
        let mut index = 0;
        let mut network = Self::build(self.config.clone(), |_| {
            let parameter = &self.parameters[index];
            let values = optimiser.averaged(index, parameter, &self.trained(parameter));
            index += 1;
            values
        })?;
        network.trainable = self.trainable;
        network.precision = self.precision;
        Ok(network)
    }
}
