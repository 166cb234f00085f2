//! The weights of a llama-family decoder between floats and int8 rows.

use trafficllm_kernels::{GROUP_COLUMNS, KernelError, QuantisedMatrix, WeightMatrix};

use crate::error::{ModelError, check_finite};
use crate::transformer::{LayerWeights, TransformerConfig, TransformerError, TransformerWeights};

pub(super) const TOKEN_EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
pub(super) const OUTPUT: &str = "output.weight";

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
pub(super) struct LayerShapes {
    pub(super) query: [usize; 2],
    pub(super) key: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) gate: [usize; 2],
    pub(super) down: [usize; 2],
}

impl LayerShapes {
    pub(super) fn new(config: &TransformerConfig) -> Self {
        Self {
            query: [config.query_size(), config.hidden],
            key: [config.key_size(), config.hidden],
            output: [config.hidden, config.query_size()],
            gate: [config.feed_forward, config.hidden],
            down: [config.hidden, config.feed_forward],
        }
    }
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
pub(super) fn matrix_error(
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
        KernelError::GroupScale { row, group, found } => ModelError::NotFinite {
            file: file.to_owned(),
            tensor: name.to_owned(),
            index: (first_row + row) * columns + group * GROUP_COLUMNS,
            found,
        },
        KernelError::Memory { what, bytes, .. } => ModelError::Memory { what, bytes },
        other => {
            let field = format!("tensor {name}, from row {first_row}");
            ModelError::invalid(file, field, "rows that fit int8 with a 16-bit scale", other)
        }
    }
}

pub(super) fn config_error(file: &str, error: &TransformerError) -> ModelError {
    match error {
        TransformerError::Config {
            field,
            expected,
            found,
        } => ModelError::invalid(file, *field, expected.clone(), found),
        other => ModelError::invalid(file, "model sizes", "sizes that fit together", other),
    }
}
