//! The weights of a llama-family decoder: out of a GGUF file, and between floats and int8 rows.

use std::collections::BTreeSet;

use trafficllm_kernels::{KernelError, QuantisedMatrix, WeightMatrix, half};

use super::read::{DataType, Gguf, Tensor, Value};
use super::{BLOCK_BYTES, BLOCK_ELEMENTS, Q8Block};
use crate::bytes::read_f32;
use crate::error::{ModelError, check_finite, check_limit, shown};
use crate::limits;
use crate::transformer::{LayerWeights, TransformerConfig, TransformerError, TransformerWeights};

const TOKEN_EMBEDDING: &str = "token_embd.weight";
const OUTPUT_NORM: &str = "output_norm.weight";
const OUTPUT: &str = "output.weight";
/// The base of the rotary frequencies where a file names none.
const ROPE_BASE_DEFAULT: f32 = 10_000.0;

/// The GGUF name of a layer's tensor.
pub(super) fn layer_name(layer: usize, part: &str) -> String {
    format!("blk.{layer}.{part}.weight")
}

/// Float weights of a whole model, row-major `[output channels, input channels]`; what a trainer
/// holds.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatWeights {
    /// Sizes that the tensors have.
    pub config: TransformerConfig,
    /// `[vocabulary, hidden]`.
    pub token_embedding: Vec<f32>,
    /// One per layer.
    pub layers: Vec<FloatLayer>,
    /// `[hidden]`.
    pub output_norm: Vec<f32>,
    /// `[vocabulary, hidden]`; absent where the output matrix is tied to `token_embedding`.
    pub output: Option<Vec<f32>>,
}

/// Float weights of one layer; shapes as in [`LayerWeights`].
#[derive(Clone, Debug, PartialEq)]
pub struct FloatLayer {
    /// `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// `[heads * head_dim, hidden]`, in interleaved rotary order.
    pub query: Vec<f32>,
    /// `[kv_heads * head_dim, hidden]`, in interleaved rotary order.
    pub key: Vec<f32>,
    /// `[kv_heads * head_dim, hidden]`.
    pub value: Vec<f32>,
    /// `[hidden, heads * head_dim]`.
    pub output: Vec<f32>,
    /// `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// `[feed_forward, hidden]`.
    pub gate: Vec<f32>,
    /// `[feed_forward, hidden]`.
    pub up: Vec<f32>,
    /// `[hidden, feed_forward]`.
    pub down: Vec<f32>,
}

impl FloatWeights {
    /// Quantises every matrix to int8 with one scale per row; norms stay floats.
    ///
    /// # Errors
    /// Sizes out of range, tensors whose length is not that of the configuration, numbers that are
    /// not finite.
    pub fn quantise(&self) -> Result<TransformerWeights, ModelError> {
        const FILE: &str = "weights";
        let config = &self.config;
        config
            .validate()
            .map_err(|error| config_error(FILE, &error))?;
        if self.layers.len() != config.layers {
            return Err(ModelError::invalid(
                FILE,
                "layers",
                config.layers.to_string(),
                self.layers.len(),
            ));
        }
        let vocabulary = [config.vocabulary, config.hidden];
        let mut layers = Vec::with_capacity(config.layers);
        for (index, layer) in self.layers.iter().enumerate() {
            let shapes = LayerShapes::new(config);
            let matrix = |part: &str, values: &[f32], shape| {
                quantise(FILE, &layer_name(index, part), values, shape)
            };
            layers.push(LayerWeights {
                attention_norm: norm(
                    FILE,
                    &layer_name(index, "attn_norm"),
                    &layer.attention_norm,
                    config.hidden,
                )?,
                query: matrix("attn_q", &layer.query, shapes.query)?,
                key: matrix("attn_k", &layer.key, shapes.key)?,
                value: matrix("attn_v", &layer.value, shapes.key)?,
                output: matrix("attn_output", &layer.output, shapes.output)?,
                mlp_norm: norm(
                    FILE,
                    &layer_name(index, "ffn_norm"),
                    &layer.mlp_norm,
                    config.hidden,
                )?,
                gate: matrix("ffn_gate", &layer.gate, shapes.gate)?,
                up: matrix("ffn_up", &layer.up, shapes.gate)?,
                down: matrix("ffn_down", &layer.down, shapes.down)?,
            });
        }
        let output = self
            .output
            .as_deref()
            .map(|values| quantise(FILE, OUTPUT, values, vocabulary))
            .transpose()?;
        Ok(TransformerWeights {
            config: config.clone(),
            token_embedding: quantise(FILE, TOKEN_EMBEDDING, &self.token_embedding, vocabulary)?,
            layers,
            output_norm: norm(FILE, OUTPUT_NORM, &self.output_norm, config.hidden)?,
            output,
        })
    }

    /// The floats that quantised weights stand for: what the engine computes with, for comparison
    /// with other runtimes.
    #[must_use]
    pub fn dequantise(weights: &TransformerWeights) -> Self {
        let layers = weights.layers.iter().map(|layer| FloatLayer {
            attention_norm: layer.attention_norm.clone(),
            query: layer.query.dequantise(),
            key: layer.key.dequantise(),
            value: layer.value.dequantise(),
            output: layer.output.dequantise(),
            mlp_norm: layer.mlp_norm.clone(),
            gate: layer.gate.dequantise(),
            up: layer.up.dequantise(),
            down: layer.down.dequantise(),
        });
        Self {
            config: weights.config.clone(),
            token_embedding: weights.token_embedding.dequantise(),
            layers: layers.collect(),
            output_norm: weights.output_norm.clone(),
            output: weights.output.as_ref().map(WeightMatrix::dequantise),
        }
    }
}

/// `[rows, columns]` of the matrices of a layer.
struct LayerShapes {
    query: [usize; 2],
    key: [usize; 2],
    output: [usize; 2],
    gate: [usize; 2],
    down: [usize; 2],
}

impl LayerShapes {
    fn new(config: &TransformerConfig) -> Self {
        Self {
            query: [config.query_size(), config.hidden],
            key: [config.key_size(), config.hidden],
            output: [config.hidden, config.query_size()],
            gate: [config.feed_forward, config.hidden],
            down: [config.hidden, config.feed_forward],
        }
    }
}

/// Reads the sizes of a llama-family model out of the metadata.
///
/// # Errors
/// Another architecture, missing or impossible sizes, or features that the engine does not have
/// (experts, scaled rotary).
pub fn read_config(gguf: &Gguf<'_>) -> Result<TransformerConfig, ModelError> {
    let file = gguf.file();
    let architecture = gguf.string("general.architecture")?;
    if architecture != "llama" {
        return Err(unsupported(
            file,
            "general.architecture",
            shown(architecture),
            "llama",
        ));
    }
    let size = |key: &str| gguf.unsigned(key, limits::GGUF_SIZE_MAX);
    let size_or = |key, other| size_or(gguf, key, other);
    let hidden = gguf.unsigned("llama.embedding_length", limits::HIDDEN_MAX)?;
    let heads = size("llama.attention.head_count")?;
    if heads == 0 {
        return Err(ModelError::invalid(
            file,
            "llama.attention.head_count",
            "at least 1",
            0,
        ));
    }
    let head_dim = size_or("llama.attention.key_length", hidden / heads)?;
    check_limit(
        file,
        "llama.attention.key_length",
        limits::HEAD_WIDTH_MAX,
        head_dim as u64,
    )?;
    let embedding_rows = gguf.tensor(TOKEN_EMBEDDING)?.shape[0];
    let config = TransformerConfig {
        vocabulary: size_or("llama.vocab_size", embedding_rows)?,
        hidden,
        layers: size("llama.block_count")?,
        heads,
        kv_heads: size_or("llama.attention.head_count_kv", heads)?,
        head_dim,
        feed_forward: gguf.unsigned("llama.feed_forward_length", limits::FEED_FORWARD_MAX)?,
        // A model that could look further back than this engine serves is used within the engine's
        // context.
        context: size("llama.context_length")?.min(limits::ITEM_TOKENS_MAX),
        rms_epsilon: gguf
            .float("llama.attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| {
                ModelError::missing(file, "llama.attention.layer_norm_rms_epsilon", "a number")
            })?,
        rope_base: gguf
            .float("llama.rope.freq_base")?
            .unwrap_or(ROPE_BASE_DEFAULT),
    };
    check_features(gguf, head_dim)?;
    config
        .validate()
        .map_err(|error| config_error(file, &error))?;
    Ok(config)
}

/// A size that a file may leave out.
fn size_or(gguf: &Gguf<'_>, key: &str, other: usize) -> Result<usize, ModelError> {
    if gguf.metadata().contains_key(key) {
        gguf.unsigned(key, limits::GGUF_SIZE_MAX)
    } else {
        Ok(other)
    }
}

/// Refuses what some llama-family models have and the engine does not.
fn check_features(gguf: &Gguf<'_>, head_dim: usize) -> Result<(), ModelError> {
    let file = gguf.file();
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        let found = size_or(gguf, key, head_dim)?;
        if found != head_dim {
            return Err(unsupported(
                file,
                key,
                found.to_string(),
                &format!("the head size, {head_dim}"),
            ));
        }
    }
    if size_or(gguf, "llama.expert_count", 0)? != 0 {
        return Err(unsupported(
            file,
            "llama.expert_count",
            "experts".to_owned(),
            "0",
        ));
    }
    match gguf.metadata().get("llama.rope.scaling.type") {
        None => {}
        Some(Value::String(kind)) if kind == "none" => {}
        Some(_) => {
            return Err(unsupported(
                file,
                "llama.rope.scaling.type",
                "scaled rotary".to_owned(),
                "none",
            ));
        }
    }
    Ok(())
}

/// Reads all weights. Matrices whose `Q8_0` blocks carry one scale per row are taken as they are;
/// rows of other `Q8_0`, F16 and F32 matrices are quantised anew.
///
/// # Errors
/// As [`read_config`]; tensors that are missing, unknown or of the wrong shape; numbers that are
/// not finite.
pub fn load_weights(gguf: &Gguf<'_>) -> Result<TransformerWeights, ModelError> {
    let config = read_config(gguf)?;
    let shapes = LayerShapes::new(&config);
    let mut loader = Loader {
        gguf,
        used: BTreeSet::new(),
    };
    let token_embedding = loader.matrix(
        TOKEN_EMBEDDING.to_owned(),
        [config.vocabulary, config.hidden],
    )?;
    let mut layers = Vec::new();
    for layer in 0..config.layers {
        layers.push(LayerWeights {
            attention_norm: loader.vector(layer_name(layer, "attn_norm"), config.hidden)?,
            query: loader.matrix(layer_name(layer, "attn_q"), shapes.query)?,
            key: loader.matrix(layer_name(layer, "attn_k"), shapes.key)?,
            value: loader.matrix(layer_name(layer, "attn_v"), shapes.key)?,
            output: loader.matrix(layer_name(layer, "attn_output"), shapes.output)?,
            mlp_norm: loader.vector(layer_name(layer, "ffn_norm"), config.hidden)?,
            gate: loader.matrix(layer_name(layer, "ffn_gate"), shapes.gate)?,
            up: loader.matrix(layer_name(layer, "ffn_up"), shapes.gate)?,
            down: loader.matrix(layer_name(layer, "ffn_down"), shapes.down)?,
        });
    }
    let output_norm = loader.vector(OUTPUT_NORM.to_owned(), config.hidden)?;
    let output = if gguf.tensors().contains_key(OUTPUT) {
        Some(loader.matrix(OUTPUT.to_owned(), [config.vocabulary, config.hidden])?)
    } else {
        None
    };
    // A tensor that nothing reads (a bias, rotary factors) means that the file is another model
    // than the one that would run.
    if let Some(name) = gguf
        .tensors()
        .keys()
        .find(|name| !loader.used.contains(name.as_str()))
    {
        return Err(unsupported(
            gguf.file(),
            "tensors",
            name.clone(),
            "the tensors of a plain llama decoder",
        ));
    }
    Ok(TransformerWeights {
        config,
        token_embedding,
        layers,
        output_norm,
        output,
    })
}

/// Reads tensors and remembers which.
struct Loader<'g, 'a> {
    gguf: &'g Gguf<'a>,
    used: BTreeSet<String>,
}

impl Loader<'_, '_> {
    fn vector(&mut self, name: String, size: usize) -> Result<Vec<f32>, ModelError> {
        let file = self.gguf.file();
        let tensor = self.checked(&name, &[size])?;
        let values = match tensor.data_type {
            DataType::F32 => read_f32(tensor.data),
            DataType::F16 => read_f16(tensor.data),
            DataType::Q8_0 => {
                return Err(unsupported(
                    file,
                    &format!("data type of {name}"),
                    "Q8_0".to_owned(),
                    "F32, F16",
                ));
            }
        };
        check_finite(file, &name, &values)?;
        self.used.insert(name);
        Ok(values)
    }

    fn matrix(&mut self, name: String, shape: [usize; 2]) -> Result<WeightMatrix, ModelError> {
        let file = self.gguf.file();
        let tensor = self.checked(&name, &shape)?;
        let matrix = match tensor.data_type {
            DataType::F32 => quantise(file, &name, &read_f32(tensor.data), shape)?,
            DataType::F16 => quantise(file, &name, &read_f16(tensor.data), shape)?,
            DataType::Q8_0 => read_q8_0(file, &name, tensor.data, shape)?,
        };
        self.used.insert(name);
        Ok(matrix)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<&Tensor<'_>, ModelError> {
        let tensor = self.gguf.tensor(name)?;
        if tensor.shape != shape {
            return Err(ModelError::Shape {
                file: self.gguf.file().to_owned(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        Ok(tensor)
    }
}

/// Reads rows of `Q8_0` blocks; `data` holds exactly `shape`.
fn read_q8_0(
    file: &str,
    name: &str,
    data: &[u8],
    shape: [usize; 2],
) -> Result<WeightMatrix, ModelError> {
    let [rows, columns] = shape;
    let row_bytes = columns / BLOCK_ELEMENTS * BLOCK_BYTES;
    let mut matrix = QuantisedMatrix {
        rows,
        columns,
        values: Vec::with_capacity(rows * columns),
        scales: Vec::with_capacity(rows),
    };
    for (row, bytes) in data.chunks_exact(row_bytes).enumerate() {
        // `row_bytes` is a whole number of blocks, and a block has no alignment to miss.
        let blocks: &[Q8Block] = bytemuck::cast_slice(bytes);
        let scale = blocks.first().map_or(0.0, scale_of);
        let one_scale = blocks.windows(2).all(|two| two[0].scale == two[1].scale);
        let symmetric = blocks.iter().all(|block| !block.values.contains(&i8::MIN));
        if one_scale && symmetric && scale.is_finite() && scale >= 0.0 {
            matrix.scales.push(scale);
            matrix
                .values
                .extend(blocks.iter().flat_map(|block| block.values));
            continue;
        }
        let floats: Vec<f32> = blocks
            .iter()
            .flat_map(|block| block.values.map(|value| f32::from(value) * scale_of(block)))
            .collect();
        let requantised = QuantisedMatrix::quantise(&floats, 1, columns)
            .map_err(|error| matrix_error(file, name, error, row, columns))?;
        matrix.scales.extend(requantised.scales);
        matrix.values.extend(requantised.values);
    }
    Ok(matrix.into())
}

fn scale_of(block: &Q8Block) -> f32 {
    half::from_bits(u16::from_le_bytes(block.scale))
}

fn read_f16(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(2)
        .map(|c| half::from_bits(u16::from_le_bytes([c[0], c[1]])))
        .collect()
}

fn quantise(
    file: &str,
    name: &str,
    values: &[f32],
    shape: [usize; 2],
) -> Result<WeightMatrix, ModelError> {
    if shape[0] * shape[1] != values.len() {
        return Err(length_error(file, name, &shape, values.len()));
    }
    QuantisedMatrix::quantise(values, shape[0], shape[1])
        .map(WeightMatrix::from)
        .map_err(|error| matrix_error(file, name, error, 0, shape[1]))
}

fn norm(file: &str, name: &str, values: &[f32], size: usize) -> Result<Vec<f32>, ModelError> {
    if values.len() != size {
        return Err(length_error(file, name, &[size], values.len()));
    }
    check_finite(file, name, values)?;
    Ok(values.to_vec())
}

fn length_error(file: &str, name: &str, shape: &[usize], found: usize) -> ModelError {
    ModelError::Shape {
        file: file.to_owned(),
        tensor: name.to_owned(),
        expected: shape.to_vec(),
        found: vec![found],
    }
}

/// Says where in the file the kernels' complaint is; `first_row` is the row that they counted as 0.
fn matrix_error(
    file: &str,
    name: &str,
    error: KernelError,
    first_row: usize,
    columns: usize,
) -> ModelError {
    match error {
        KernelError::NotFinite { row, column, found } => ModelError::NotFinite {
            file: file.to_owned(),
            tensor: name.to_owned(),
            index: (first_row + row) * columns + column,
            found,
        },
        other => {
            let field = format!("tensor {name}, from row {first_row}");
            ModelError::invalid(file, field, "rows that fit int8 with a 16-bit scale", other)
        }
    }
}

fn config_error(file: &str, error: &TransformerError) -> ModelError {
    match error {
        TransformerError::Config {
            field,
            expected,
            found,
        } => ModelError::invalid(file, *field, expected.clone(), found),
        other => ModelError::invalid(file, "model sizes", "sizes that fit together", other),
    }
}

fn unsupported(file: &str, field: &str, found: String, supported: &str) -> ModelError {
    ModelError::Unsupported {
        file: file.to_owned(),
        field: field.to_owned(),
        found,
        supported: supported.to_owned(),
    }
}
