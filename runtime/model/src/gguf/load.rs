//! A llama-family decoder out of a GGUF file.

use std::collections::BTreeSet;

use trafficllm_kernels::memory::try_with_capacity;
use trafficllm_kernels::{Int4Matrix, KernelError, QuantisedMatrix, WeightMatrix};

use super::blocks::{self, FloatBlock, Int4Block};
use super::data_type::DataType;
use super::metadata::Value;
use super::read::{Gguf, Tensor};
use super::weights::{
    LayerShapes, OUTPUT, OUTPUT_NORM, TOKEN_EMBEDDING, config_error, layer_name, matrix_error,
};
use crate::error::{ModelError, check_finite, check_limit, shown};
use crate::limits;
use crate::transformer::{LayerWeights, TransformerConfig, TransformerWeights};

/// The base of the rotary frequencies where a file names none.
const ROPE_BASE_DEFAULT: f32 = 10_000.0;

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
    let key = "llama.rope.scaling.type";
    match gguf.metadata().get(key) {
        Some(Value::String("none")) => return Ok(()),
        None => {}
        Some(_) => return Err(unsupported(file, key, "scaled rotary".to_owned(), "none")),
    }
    // Without a type these mean linear scaling; the second is the older name of the first.
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        // 0 stands for no factor.
        if gguf
            .float(key)?
            .is_some_and(|factor| factor != 0.0 && factor != 1.0)
        {
            return Err(unsupported(file, key, "scaled rotary".to_owned(), "1"));
        }
    }
    Ok(())
}

/// Reads all weights; the [module](super) says what becomes of each number format. Nothing but the
/// weights themselves and one row of floats is held in memory besides the file.
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
    // A tensor that nothing reads (a bias, `rope_freqs.weight`, experts) means that the file is another
    // model than the one that would run.
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
        let reading = DataType::FLOATS
            .contains(&tensor.data_type)
            .then(|| Reading::of(tensor.data_type));
        let Some(Reading::Floats(dequantise)) = reading else {
            return Err(unsupported(
                file,
                &format!("data type of {name}"),
                tensor.data_type.name().to_owned(),
                &DataType::list(&DataType::FLOATS),
            ));
        };
        let mut values = vec![0.0; size];
        dequantise(tensor.data, &mut values);
        check_finite(file, &name, &values)?;
        self.used.insert(name);
        Ok(values)
    }

    fn matrix(&mut self, name: String, shape: [usize; 2]) -> Result<WeightMatrix, ModelError> {
        let tensor = self.checked(&name, &shape)?;
        let read = match Reading::of(tensor.data_type) {
            Reading::Int4(read) => read(tensor.data, shape),
            Reading::Floats(dequantise) => read_int8(tensor, shape, dequantise),
        };
        let matrix = read
            .map_err(|(row, error)| matrix_error(self.gguf.file(), &name, error, row, shape[1]))?;
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

/// A complaint of the kernels, and the row that they counted as 0.
type RowError = (usize, KernelError);

/// An empty vector with room for numbers of a matrix.
fn room<T>(count: usize) -> Result<Vec<T>, RowError> {
    try_with_capacity("weights of a file", count).map_err(|error| (0, error))
}

/// Reads blocks that are kept as they are; `data` holds exactly `shape`.
fn read_int4<B: Int4Block>(data: &[u8], shape: [usize; 2]) -> Result<WeightMatrix, RowError> {
    let [rows, columns] = shape;
    let groups = rows * columns / blocks::BLOCK_ELEMENTS;
    let minimums = if B::HAS_MINIMUMS { groups } else { 0 };
    let mut matrix = Int4Matrix {
        rows,
        columns,
        nibbles: room(rows * columns / 2)?,
        scales: room(groups)?,
        minimums: room(minimums)?,
    };
    // A block has no alignment to miss, and the file's reader has counted whole ones.
    let blocks: &[B] = bytemuck::cast_slice(data);
    for block in blocks {
        block.append_to(&mut matrix);
    }
    matrix.validate().map_err(|error| (0, error))?;
    Ok(matrix.into())
}

/// Reads rows into bytes with one scale a row, with one row of floats in memory at a time; the tensor
/// has this shape.
fn read_int8(
    tensor: &Tensor<'_>,
    shape: [usize; 2],
    dequantise: Dequantise,
) -> Result<WeightMatrix, RowError> {
    let [rows, columns] = shape;
    let data_type = tensor.data_type;
    let row_bytes = columns / data_type.block_elements() * data_type.block_bytes();
    let mut matrix = QuantisedMatrix::unfilled(rows, columns).map_err(|error| (0, error))?;
    let mut floats = room(columns)?;
    floats.resize(columns, 0.0);
    for bytes in tensor.data.chunks_exact(row_bytes) {
        if data_type == DataType::Q8_0 && keep_q8_0(bytes, &mut matrix) {
            continue;
        }
        dequantise(bytes, &mut floats);
        matrix.push_row(&floats).map_err(|error| (0, error))?;
    }
    Ok(matrix.into())
}

/// Appends a row of `Q8_0` as it is, if all of its blocks carry the same scale and nothing in it is
/// outside of what [`QuantisedMatrix`] holds. Says whether it did.
fn keep_q8_0(bytes: &[u8], matrix: &mut QuantisedMatrix) -> bool {
    let blocks: &[blocks::Q8_0] = bytemuck::cast_slice(bytes);
    let scale = blocks
        .first()
        .map_or(0.0, |block| blocks::float(block.scale));
    let one_scale = blocks.windows(2).all(|two| two[0].scale == two[1].scale);
    let symmetric = blocks.iter().all(|block| !block.values.contains(&i8::MIN));
    let kept = one_scale && symmetric && scale.is_finite() && scale >= 0.0;
    if kept {
        matrix.scales.push(scale);
        matrix
            .values
            .extend(blocks.iter().flat_map(|block| block.values));
    }
    kept
}

/// Writes the numbers of whole blocks to a slice that has room for exactly them.
type Dequantise = fn(&[u8], &mut [f32]);

/// How the numbers of a matrix are read.
enum Reading {
    /// Kept as they are.
    Int4(fn(&[u8], [usize; 2]) -> Result<WeightMatrix, RowError>),
    /// Through floats.
    Floats(Dequantise),
}

impl Reading {
    fn of(data_type: DataType) -> Self {
        match data_type {
            DataType::Q4_0 => Self::Int4(read_int4::<blocks::Q4_0>),
            DataType::Q4_1 => Self::Int4(read_int4::<blocks::Q4_1>),
            DataType::Q4K => Self::Int4(read_int4::<blocks::Q4K>),
            DataType::F32 => {
                Self::Floats(|bytes, output| numbers(bytes, output, f32::from_le_bytes))
            }
            DataType::F16 => Self::Floats(|bytes, output| numbers(bytes, output, blocks::float)),
            DataType::BF16 => Self::Floats(|bytes, output| {
                numbers(bytes, output, |[low, high]| {
                    f32::from_le_bytes([0, 0, low, high])
                });
            }),
            DataType::Q5_0 => Self::Floats(dequantise::<blocks::Q5_0>),
            DataType::Q5_1 => Self::Floats(dequantise::<blocks::Q5_1>),
            DataType::Q8_0 => Self::Floats(dequantise::<blocks::Q8_0>),
            DataType::Q5K => Self::Floats(dequantise::<blocks::Q5K>),
            DataType::Q6K => Self::Floats(dequantise::<blocks::Q6K>),
        }
    }
}

fn numbers<const BYTES: usize>(
    bytes: &[u8],
    output: &mut [f32],
    number: impl Fn([u8; BYTES]) -> f32,
) {
    for (output, bytes) in output.iter_mut().zip(bytes.as_chunks().0) {
        *output = number(*bytes);
    }
}

fn dequantise<B: FloatBlock>(bytes: &[u8], output: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    for (block, output) in blocks.iter().zip(output.chunks_exact_mut(B::ELEMENTS)) {
        block.dequantise(output);
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
