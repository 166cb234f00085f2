//! The sizes and the weights of a model, before packing.

use super::TransformerError;
use trafficllm_kernels::{WeightMatrix, limits};

/// Most positions of one sequence, query rows included.
pub const CONTEXT_MAX: usize = 8_192;
/// Most layers.
const LAYERS_MAX: usize = 256;
/// Largest hidden or feed-forward size.
const WIDTH_MAX: usize = limits::COLUMNS_MAX;
/// Sizes of vectors are multiples of this: the lanes of the widest kernels.
const LANES: usize = 16;

/// Sizes and constants of a llama-family decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerConfig {
    /// Number of token ids.
    pub vocabulary: usize,
    /// Size of a residual row; a multiple of 16.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of one head; a multiple of 16.
    pub head_dim: usize,
    /// Inner size of the gated MLP; a multiple of 16.
    pub feed_forward: usize,
    /// Most positions of a sequence, query rows included.
    pub context: usize,
    /// Added to the mean square in RMSNorm; above 0.
    pub rms_epsilon: f32,
    /// Base of the rotary frequencies; above 1.
    pub rope_base: f32,
}

impl TransformerConfig {
    /// Checks every size against its limits and the others.
    ///
    /// # Errors
    /// [`TransformerError::Config`] names the field, what is accepted and what was found.
    pub fn validate(&self) -> Result<(), TransformerError> {
        let ranges = [
            ("vocabulary", self.vocabulary, limits::ROWS_MAX, 1),
            ("hidden", self.hidden, WIDTH_MAX, LANES),
            ("layers", self.layers, LAYERS_MAX, 1),
            ("heads", self.heads, WIDTH_MAX / LANES, 1),
            ("kv_heads", self.kv_heads, WIDTH_MAX / LANES, 1),
            ("head_dim", self.head_dim, WIDTH_MAX, LANES),
            ("feed_forward", self.feed_forward, WIDTH_MAX, LANES),
            ("context", self.context, CONTEXT_MAX, 1),
        ];
        for (field, found, limit, multiple) in ranges {
            if !(1..=limit).contains(&found) || found % multiple != 0 {
                let expected = if multiple == 1 {
                    format!("1 to {limit}")
                } else {
                    format!("{multiple} to {limit}, a multiple of {multiple}")
                };
                return Err(TransformerError::Config {
                    field,
                    expected,
                    found: found.to_string(),
                });
            }
        }
        // No overflow: both factors are within limits that multiply to 2^28.
        if self.query_size() > WIDTH_MAX {
            return config_error(
                "heads * head_dim",
                format!("at most {WIDTH_MAX}"),
                self.query_size(),
            );
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return config_error(
                "kv_heads",
                format!("a divisor of heads ({})", self.heads),
                self.kv_heads,
            );
        }
        if !(self.rms_epsilon.is_finite() && self.rms_epsilon > 0.0) {
            return config_error(
                "rms_epsilon",
                "a finite number above 0".to_owned(),
                self.rms_epsilon,
            );
        }
        if !(self.rope_base.is_finite() && self.rope_base > 1.0) {
            return config_error(
                "rope_base",
                "a finite number above 1".to_owned(),
                self.rope_base,
            );
        }
        Ok(())
    }

    /// `heads * head_dim`: size of a query row and of the attention output.
    #[must_use]
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// `kv_heads * head_dim`: size of a key row and of a value row.
    #[must_use]
    pub fn key_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

fn config_error(
    field: &'static str,
    expected: String,
    found: impl ToString,
) -> Result<(), TransformerError> {
    Err(TransformerError::Config {
        field,
        expected,
        found: found.to_string(),
    })
}

/// Weights of one layer. Matrices are `[output channels, input channels]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    /// `[hidden]` f32.
    pub attention_norm: Vec<f32>,
    /// `[heads * head_dim, hidden]`, rows of a head in interleaved rotary order (pairs 2i, 2i+1).
    pub query: WeightMatrix,
    /// `[kv_heads * head_dim, hidden]`, as `query`.
    pub key: WeightMatrix,
    /// `[kv_heads * head_dim, hidden]`.
    pub value: WeightMatrix,
    /// `[hidden, heads * head_dim]`.
    pub output: WeightMatrix,
    /// `[hidden]` f32.
    pub mlp_norm: Vec<f32>,
    /// `[feed_forward, hidden]`.
    pub gate: WeightMatrix,
    /// `[feed_forward, hidden]`.
    pub up: WeightMatrix,
    /// `[hidden, feed_forward]`.
    pub down: WeightMatrix,
}

/// All weights of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerWeights {
    /// Sizes that the tensors must have.
    pub config: TransformerConfig,
    /// `[vocabulary, hidden]`.
    pub token_embedding: WeightMatrix,
    /// One per layer.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]` f32.
    pub output_norm: Vec<f32>,
    /// `[vocabulary, hidden]`; absent where the output matrix is tied to `token_embedding`.
    pub output: Option<WeightMatrix>,
}

impl LayerWeights {
    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let matrices = [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ];
        let norms = self.attention_norm.capacity() + self.mlp_norm.capacity();
        matrices.map(WeightMatrix::bytes).iter().sum::<usize>() + norms * size_of::<f32>()
    }
}

impl TransformerWeights {
    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let output = self.output.as_ref().map_or(0, WeightMatrix::bytes);
        self.layers.iter().map(LayerWeights::bytes).sum::<usize>()
            + self.token_embedding.bytes()
            + self.output_norm.capacity() * size_of::<f32>()
            + output
    }

    /// Checks the configuration, and every tensor's shape and numbers against it.
    ///
    /// # Errors
    /// The first thing that is wrong, with the tensor's name.
    pub fn validate(&self) -> Result<(), TransformerError> {
        let config = &self.config;
        config.validate()?;
        let hidden = config.hidden;
        if self.layers.len() != config.layers {
            return config_error(
                "layers",
                format!("{} (the layers given)", self.layers.len()),
                config.layers,
            );
        }
        check_matrix(
            "token_embedding".to_owned(),
            &self.token_embedding,
            config.vocabulary,
            hidden,
        )?;
        for (index, layer) in self.layers.iter().enumerate() {
            check_layer(config, index, layer)?;
        }
        check_norm("output_norm".to_owned(), &self.output_norm, hidden)?;
        match &self.output {
            Some(output) => check_matrix("output".to_owned(), output, config.vocabulary, hidden),
            None => Ok(()),
        }
    }
}

/// Checks the tensors of one layer.
pub(super) fn check_layer(
    config: &TransformerConfig,
    index: usize,
    layer: &LayerWeights,
) -> Result<(), TransformerError> {
    let (hidden, query_size, key_size) = (config.hidden, config.query_size(), config.key_size());
    let name = |tensor: &str| format!("layer {index}, {tensor}");
    check_norm(name("attention_norm"), &layer.attention_norm, hidden)?;
    check_matrix(name("query"), &layer.query, query_size, hidden)?;
    check_matrix(name("key"), &layer.key, key_size, hidden)?;
    check_matrix(name("value"), &layer.value, key_size, hidden)?;
    check_matrix(name("output"), &layer.output, hidden, query_size)?;
    check_norm(name("mlp_norm"), &layer.mlp_norm, hidden)?;
    check_matrix(name("gate"), &layer.gate, config.feed_forward, hidden)?;
    check_matrix(name("up"), &layer.up, config.feed_forward, hidden)?;
    check_matrix(name("down"), &layer.down, hidden, config.feed_forward)
}

pub(super) fn check_matrix(
    tensor: String,
    matrix: &WeightMatrix,
    rows: usize,
    columns: usize,
) -> Result<(), TransformerError> {
    if (matrix.rows(), matrix.columns()) != (rows, columns) {
        let (expected, found) = (vec![rows, columns], vec![matrix.rows(), matrix.columns()]);
        return Err(TransformerError::Shape {
            tensor,
            expected,
            found,
        });
    }
    matrix
        .validate()
        .map_err(|source| TransformerError::Matrix { tensor, source })
}

pub(super) fn check_norm(
    tensor: String,
    values: &[f32],
    size: usize,
) -> Result<(), TransformerError> {
    if values.len() != size {
        return Err(TransformerError::Shape {
            tensor,
            expected: vec![size],
            found: vec![values.len()],
        });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(TransformerError::NotFinite {
            tensor,
            index,
            found: values[index],
        }),
        None => Ok(()),
    }
}
