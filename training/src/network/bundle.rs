//! Networks out of bundles as they are shipped, and adapters back into them.

use trafficllm_model::gguf::{Gguf, load_weights};
use trafficllm_model::transformer::{LoraFactors, TaskLora, TransformerConfig, TransformerWeights};
use trafficllm_model::{Adapter, AdapterShape, Bundle, TaskManifest};

use super::layout::{LORA_MATRICES, TaskRows};
use super::{LORA_SCALE, Network, NetworkConfig, NetworkError, Parameter, Result};

/// What is read of a bundle.
struct Contents {
    weights: TransformerWeights,
    /// In the order of the manifest's tasks.
    adapters: Vec<Adapter>,
}

impl Network {
    /// The network of a bundle: its base as the engine runs it, the int8 weights as f32, with the adapters of all tasks in the order
    /// of the manifest. What is tuned on it is tuned on the very weights that it will run on. The new factors of tasks that have a
    /// lower LoRA rank than `lora_rank` add nothing and depend on `seed`.
    ///
    /// # Errors
    /// [`NetworkError::Bundle`] if the bundle's base or an adapter is broken; [`NetworkError::Size`] if the base is not one that can be
    /// trained here (heads that do not fill the hidden state), or if tasks differ in their numbers of query or prefix rows or have
    /// labels of several words.
    pub fn from_bundle(bundle: &Bundle, lora_rank: usize, seed: u64) -> Result<Self> {
        let contents = Contents::read(bundle)?;
        let config = contents.config(&bundle.manifest().tasks, lora_rank)?;
        // Starting values for what adapters of a lower rank lack.
        let fresh = Self::new(config.clone(), seed)?;
        let mut parameters = fresh.parameters.iter();
        Self::build(config, |form| match parameters.next() {
            Some(parameter) if parameter.name == form.name => contents.values(&fresh, parameter),
            _ => Err(NetworkError::size("parameters", &form.name, "another")),
        })
    }

    /// A task's adapter as the engine reads it.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn adapter(&self, task: usize) -> Result<Adapter> {
        let mut tensors = self.adapter_tensors(task)?;
        let mut take = |name: &str| -> Option<Vec<f32>> {
            let index = tensors.iter().position(|tensor| tensor.name == name)?;
            Some(tensors.swap_remove(index).values)
        };
        let mut needed =
            |name: &str| take(name).ok_or_else(|| NetworkError::size(name, "a tensor", "none"));
        let config = &self.config;
        let mut adapter = Adapter {
            query_tokens: config.query_tokens,
            prefix_tokens: config.prefix_tokens,
            label_words: config.task_labels[task],
            query_embedding: needed("query.embedding")?,
            prefix_key: needed("prefix.key")?,
            prefix_value: needed("prefix.value")?,
            label_weight: needed("label.weight")?,
            label_embedding: None,
            lora: None,
        };
        let mut factors: [LoraFactors; 4] = Default::default();
        for (of, matrix) in factors.iter_mut().zip(LORA_MATRICES) {
            let side = |side: &str| format!("lora.{matrix}.{side}");
            let (Some(a), Some(b)) = (take(&side("a")), take(&side("b"))) else {
                return Ok(adapter);
            };
            *of = LoraFactors { a, b };
        }
        adapter.lora = Some(TaskLora {
            rank: config.lora_rank,
            factors,
        });
        Ok(adapter)
    }

    /// A task's adapter file. The same values give the same bytes, also when they came out of such a file.
    ///
    /// # Errors
    /// If there is no such task, or the adapter is past the limits of a bundle.
    pub fn adapter_file(&self, task: usize) -> Result<Vec<u8>> {
        let config = &self.config;
        let shape = AdapterShape {
            hidden: config.hidden,
            layers: config.layers,
            key_value: config.kv_width(),
            query: config.hidden,
            feed_forward: config.feed_forward,
        };
        Ok(self.adapter(task)?.write(shape)?)
    }
}

impl Contents {
    fn read(bundle: &Bundle) -> Result<Self> {
        let manifest = bundle.manifest();
        let base = &manifest.base.file;
        let weights = load_weights(&Gguf::parse(base, bundle.file(base)?)?)?;
        let shape = AdapterShape::of(&weights.config);
        let adapters = manifest.tasks.iter().map(|task| {
            let file = &task.adapter.file;
            Ok(Adapter::read(file, bundle.file(file)?, shape)?)
        });
        let adapters = adapters.collect::<Result<_>>()?;
        Ok(Self { weights, adapters })
    }

    /// The network's sizes, if it can have them.
    fn config(&self, tasks: &[TaskManifest], lora_rank: usize) -> Result<NetworkConfig> {
        let TransformerConfig {
            vocabulary,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            rms_epsilon,
            rope_base,
            ..
        } = self.weights.config;
        if heads * head_dim != hidden {
            let found = heads * head_dim;
            return Err(NetworkError::size("width of all heads", hidden, found));
        }
        let first = self.adapters.first();
        let (query_tokens, prefix_tokens) =
            first.map_or((1, 0), |first| (first.query_tokens, first.prefix_tokens));
        let mut rank = lora_rank;
        for (adapter, task) in self.adapters.iter().zip(tasks) {
            let what = |size: &str| format!("{size} of task {}", task.name);
            for (size, expected, found) in [
                ("query rows", query_tokens, adapter.query_tokens),
                ("prefix rows", prefix_tokens, adapter.prefix_tokens),
                ("label words", task.labels.len(), adapter.label_words),
            ] {
                if found != expected {
                    return Err(NetworkError::size(what(size), expected, found));
                }
            }
            let in_order = (0..task.labels.len() as u32).map(|word| vec![word]);
            if !in_order.eq(task.label_words.iter().cloned()) {
                let expected = "one word for each label, in their order";
                return Err(NetworkError::size(what("label words"), expected, "others"));
            }
            rank = rank.max(adapter.lora.as_ref().map_or(0, |lora| lora.rank));
        }
        Ok(NetworkConfig {
            vocabulary,
            hidden,
            layers,
            heads,
            kv_heads,
            feed_forward,
            prefix_tokens,
            query_tokens,
            lora_rank: rank,
            // The base of a bundle is made; only adapters are trained on it.
            scales: Vec::new(),
            task_labels: tasks.iter().map(|task| task.labels.len()).collect(),
            norm_epsilon: rms_epsilon,
            rotary_base: rope_base,
        })
    }

    /// The values of a parameter of the network, whose own are those that it starts with.
    fn values(&self, fresh: &Network, parameter: &Parameter) -> Result<Vec<f32>> {
        if parameter.rows == TaskRows::Shared {
            let values = self.base(&parameter.name);
            return values.ok_or_else(|| NetworkError::size(&parameter.name, "a tensor", "none"));
        }
        let mut values = parameter.values()?;
        for (task, adapter) in self.adapters.iter().enumerate() {
            let own = of_adapter(adapter, &parameter.name, fresh.config());
            let place = fresh.task_values(parameter, task);
            // A lower rank fills the first rows.
            values[place][..own.len()].copy_from_slice(&own);
        }
        Ok(values)
    }

    fn base(&self, name: &str) -> Option<Vec<f32>> {
        let weights = &self.weights;
        let mut parts = name.split('.');
        let layer = match (parts.next()?, parts.next()?) {
            ("token_embd", _) => return Some(weights.token_embedding.dequantise()),
            ("output_norm", _) => return Some(weights.output_norm.clone()),
            (_, layer) => weights.layers.get(layer.parse::<usize>().ok()?)?,
        };
        let stacked = |matrices: &[&trafficllm_kernels::WeightMatrix]| {
            let matrices = matrices.iter();
            matrices.flat_map(|matrix| matrix.dequantise()).collect()
        };
        Some(match parts.next()? {
            "attn_norm" => layer.attention_norm.clone(),
            "attn_qkv" => stacked(&[&layer.query, &layer.key, &layer.value]),
            "attn_output" => stacked(&[&layer.output]),
            "ffn_norm" => layer.mlp_norm.clone(),
            "ffn_gate_up" => stacked(&[&layer.gate, &layer.up]),
            "ffn_down" => stacked(&[&layer.down]),
            _ => return None,
        })
    }
}

/// The rows of a parameter that an adapter holds.
fn of_adapter(adapter: &Adapter, name: &str, config: &NetworkConfig) -> Vec<f32> {
    let rest = match name {
        "query.embedding" => return adapter.query_embedding.clone(),
        "label.weight" => return adapter.label_weight.clone(),
        other => other.strip_prefix("blk.").unwrap_or_default(),
    };
    let (layer, kind) = rest.split_once('.').unwrap_or_default();
    let Ok(layer) = layer.parse::<usize>() else {
        return Vec::new();
    };
    let part = |values: &[f32]| {
        let size = values.len() / config.layers;
        values[layer * size..][..size].to_vec()
    };
    if kind == "prefix" {
        let (keys, values) = (part(&adapter.prefix_key), part(&adapter.prefix_value));
        let width = config.kv_width();
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        return rows
            .flat_map(|(keys, values)| [keys, values].concat())
            .collect();
    }
    let (Some(lora), Some((matrix, side))) = (
        &adapter.lora,
        kind.strip_prefix("lora_")
            .and_then(|kind| kind.split_once('.')),
    ) else {
        return Vec::new();
    };
    let Some(index) = LORA_MATRICES.iter().position(|known| *known == matrix) else {
        return Vec::new();
    };
    let LoraFactors { a, b } = &lora.factors[index];
    match side {
        "a" => part(a),
        _ => part(b).iter().map(|value| value / LORA_SCALE).collect(),
    }
}
