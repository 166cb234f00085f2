//! Parameters as plain values: out for packing, in from another network.

use super::{NamedValues, Network, NetworkError, Part, Result};
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
    /// `[layers, prefix_tokens, kv_heads * head_width]`, `label.weight` `[labels, hidden]`.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn adapter_tensors(&self, task: usize) -> Result<Vec<NamedValues>> {
        let config = &self.config;
        let Some(&labels) = config.task_labels.get(task) else {
            return Err(NetworkError::size(
                "task",
                format!("below {}", config.task_labels.len()),
                task,
            ));
        };
        let (hidden, kv, queries, prefix_tokens) = (
            config.hidden,
            config.kv_width(),
            config.query_tokens,
            config.prefix_tokens,
        );
        let rows = |index: usize, start: usize, count: usize, width: usize| -> Result<Vec<f32>> {
            Ok(self.parameters[index].values()?[start * width..(start + count) * width].to_vec())
        };
        let order = self.order();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        if prefix_tokens > 0 {
            for layer in 0..config.layers {
                for row in rows(
                    order.prefix(layer),
                    task * prefix_tokens,
                    prefix_tokens,
                    2 * kv,
                )?
                .chunks_exact(2 * kv)
                {
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
        Ok(vec![
            named(
                "query.embedding",
                vec![queries, hidden],
                rows(order.queries(), task * queries, queries, hidden)?,
            ),
            named("prefix.key", prefix_shape.clone(), keys),
            named("prefix.value", prefix_shape, values),
            named(
                "label.weight",
                vec![labels, hidden],
                rows(order.labels(), config.label_start(task), labels, hidden)?,
            ),
        ])
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
            let average = optimiser.average(index, parameter)?;
            index += 1;
            average.map_or_else(|| parameter.values(), Ok)
        })?;
        network.trainable = self.trainable;
        network.precision = self.precision;
        Ok(network)
    }
}
