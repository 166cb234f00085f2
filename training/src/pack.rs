//! From a trained network to a bundle: quantised base, adapters, manifest, self-tests.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trafficllm_model::gguf::{FloatLayer, FloatWeights, TokenizerMetadata, write_llama};
use trafficllm_model::{
    Bundle, FileReference, InstructionManifest, MANIFEST_SCHEMA, Manifest, SelfTest, TaskKind,
    TaskManifest, TransformerConfig,
};
use trafficllm_traffic::token::Tokenizer;
use trafficllm_traffic::token::vocabulary::{FIRST_BYTE, PAD};

use crate::data;
use crate::error::{Result, TrainError};
use crate::instructions;
use crate::network::{NamedValues, Network};
use crate::recipe::Recipe;

const TOKENIZER_FILE: &str = "tokenizer.json";
const BASE_FILE: &str = "base.gguf";
/// GGML's kinds of tokens.
const TOKEN_NORMAL: i32 = 1;
const TOKEN_CONTROL: i32 = 3;

/// What a bundle says about one task besides the weights.
#[derive(Clone, Debug)]
pub struct PackedTask {
    /// The name.
    pub name: String,
    /// What it reads.
    pub kind: data::TaskKind,
    /// The labels, in the order of the network's label rows.
    pub labels: Vec<String>,
    /// Temperature; 1 before calibration.
    pub temperature: f32,
    /// Threshold; 0 before calibration.
    pub threshold: f32,
    /// What was measured.
    pub metrics: Value,
}

/// What a bundle says about itself.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The publisher's name of the model.
    pub id: String,
    /// A title.
    pub name: String,
    /// Model card: recipe, seed, sizes.
    pub card: BTreeMap<String, Value>,
    /// How the metrics were measured.
    pub metrics_protocol: Value,
    /// What data it was made from.
    pub data_statement: Value,
    /// SPDX expression.
    pub licence: String,
}

/// The files of a bundle; they do not change with calibration.
///
/// # Errors
/// Where the network's tensors are not those of a llama, or hold numbers that are not finite.
pub fn files(
    network: &Network,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    tasks: &[PackedTask],
) -> Result<BTreeMap<String, Vec<u8>>> {
    let tokenizer_json = tokenizer.to_json();
    let config = transformer_config(network, recipe);
    let weights = float_weights(network, &config)?.quantise()?;
    let metadata = tokenizer_metadata(&tokenizer_json, config.vocabulary)?;
    let base = write_llama("trafficllm", &weights, &metadata)?;
    let mut files = BTreeMap::from([
        (TOKENIZER_FILE.to_owned(), tokenizer_json),
        (BASE_FILE.to_owned(), base),
    ]);
    for (index, task) in tasks.iter().enumerate() {
        files.insert(adapter_file(&task.name), network.adapter_file(index)?);
    }
    Ok(files)
}

/// Puts a bundle together.
///
/// # Errors
/// Everything that reading the bundle back would refuse.
pub fn bundle(
    files: BTreeMap<String, Vec<u8>>,
    recipe: &Recipe,
    statement: &Statement,
    tasks: &[PackedTask],
    self_test: Vec<SelfTest>,
) -> Result<Bundle> {
    let instruction = tasks
        .iter()
        .find(|task| task.kind == data::TaskKind::Instruction);
    let tasks: Vec<&PackedTask> = tasks
        .iter()
        .filter(|task| task.kind != data::TaskKind::Instruction)
        .collect();
    let names: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
    let instruction = instruction.map(|task| InstructionManifest {
        labels: task.labels.clone(),
        label_words: label_words(task),
        answered_by: instructions::answered_by(&names),
        adapter: FileReference::new(adapter_file(&task.name)),
        temperature: task.temperature,
        threshold: task.threshold,
        metrics: task.metrics.clone(),
    });
    let task_manifest = |task: &PackedTask| TaskManifest {
        name: task.name.clone(),
        kind: match task.kind {
            data::TaskKind::Flow => TaskKind::Flow,
            data::TaskKind::Request | data::TaskKind::Instruction => TaskKind::Request,
        },
        labels: task.labels.clone(),
        label_words: label_words(task),
        adapter: FileReference::new(adapter_file(&task.name)),
        temperature: task.temperature,
        threshold: task.threshold,
        metrics: task.metrics.clone(),
        version: 1,
        data_statement: Value::Null,
        set_aside: Vec::new(),
    };
    let manifest = Manifest {
        heads: Vec::new(),
        schema: MANIFEST_SCHEMA,
        id: statement.id.clone(),
        name: statement.name.clone(),
        created: None,
        card: statement.card.clone(),
        profile: json!(recipe.profile),
        tokenizer: FileReference::new(TOKENIZER_FILE),
        base: FileReference::new(BASE_FILE),
        tasks: tasks.into_iter().map(task_manifest).collect(),
        instruction,
        metrics_protocol: statement.metrics_protocol.clone(),
        data_statement: statement.data_statement.clone(),
        licence: statement.licence.clone(),
        files: BTreeMap::new(),
        self_test,
    };
    Ok(Bundle::build(manifest, files)?)
}

/// Each label is one word of its own.
fn label_words(task: &PackedTask) -> Vec<Vec<u32>> {
    let words = 0..task.labels.len() as u32;
    words.map(|word| vec![word]).collect()
}

fn adapter_file(task: &str) -> String {
    format!("adapters/{task}.safetensors")
}

/// The sizes as the engine wants them. The context has room for the longest item, all rows of a task, and then some.
fn transformer_config(network: &Network, recipe: &Recipe) -> TransformerConfig {
    let config = network.config();
    let longest = recipe.profile.max_tokens.max(recipe.profile.request_tokens) as usize;
    TransformerConfig {
        vocabulary: config.vocabulary,
        hidden: config.hidden,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_width(),
        feed_forward: config.feed_forward,
        context: (longest + 16).next_power_of_two(),
        rms_epsilon: config.norm_epsilon,
        rope_base: config.rotary_base,
    }
}

/// Tensors by name, each taken once.
struct Tensors(BTreeMap<String, NamedValues>);

impl Tensors {
    fn new(tensors: Vec<NamedValues>) -> Self {
        Self(
            tensors
                .into_iter()
                .map(|tensor| (tensor.name.clone(), tensor))
                .collect(),
        )
    }

    fn take(&mut self, name: &str) -> Result<NamedValues> {
        self.0
            .remove(name)
            .ok_or_else(|| TrainError::TensorMissing { name: name.into() })
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        Ok(self.take(name)?.values)
    }
}

fn float_weights(network: &Network, config: &TransformerConfig) -> Result<FloatWeights> {
    let mut tensors = Tensors::new(network.base_tensors()?);
    let mut layers = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        let mut part = |name: &str| tensors.values(&format!("blk.{layer}.{name}.weight"));
        layers.push(FloatLayer {
            attention_norm: part("attn_norm")?,
            query: part("attn_q")?,
            key: part("attn_k")?,
            value: part("attn_v")?,
            output: part("attn_output")?,
            mlp_norm: part("ffn_norm")?,
            gate: part("ffn_gate")?,
            up: part("ffn_up")?,
            down: part("ffn_down")?,
        });
    }
    Ok(FloatWeights {
        config: config.clone(),
        token_embedding: tensors.values("token_embd.weight")?,
        layers,
        output_norm: tensors.values("output_norm.weight")?,
        output: None,
    })
}

/// The vocabulary as GGUF wants it, out of `tokenizer.json`.
fn tokenizer_metadata(tokenizer_json: &[u8], vocabulary: usize) -> Result<TokenizerMetadata> {
    let json_error = |source| TrainError::Json {
        path: TOKENIZER_FILE.into(),
        source,
    };
    let json: Value = serde_json::from_slice(tokenizer_json).map_err(json_error)?;
    let mut tokens = vec![String::new(); vocabulary];
    let place = |tokens: &mut Vec<String>, text: &str, id: Option<u64>| {
        if let Some(token) = id.and_then(|id| tokens.get_mut(id as usize)) {
            text.clone_into(token);
        }
    };
    for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        place(&mut tokens, text, id.as_u64());
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        place(
            &mut tokens,
            added["content"].as_str().unwrap_or_default(),
            added["id"].as_u64(),
        );
    }
    let merges = json["model"]["merges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|merge| match merge {
            Value::Array(parts) => parts
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(" "),
            other => other.as_str().unwrap_or_default().to_owned(),
        });
    let kind = |id: usize| {
        if (id as u32) < FIRST_BYTE {
            TOKEN_CONTROL
        } else {
            TOKEN_NORMAL
        }
    };
    Ok(TokenizerMetadata {
        token_types: (0..vocabulary).map(kind).collect(),
        merges: merges.collect(),
        tokens,
        end_token: None,
        padding_token: Some(PAD),
    })
}
