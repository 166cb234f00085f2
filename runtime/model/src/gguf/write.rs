//! Writes a llama-family model as GGUF version 3; the same weights give the same bytes.

use trafficllm_kernels::{WeightMatrix, half};

use super::weights::layer_name;
use bytemuck::Zeroable;

use super::{ALIGNMENT_DEFAULT, BLOCK_ELEMENTS, MAGIC, Q8Block};
use crate::error::{ModelError, check_finite};
use crate::transformer::TransformerWeights;

const FILE: &str = "base.gguf";
const VERSION: u32 = 3;
/// GGML numbers of the tensor formats that are written.
const TYPE_F32: u32 = 0;
const TYPE_Q8_0: u32 = 8;
/// `general.file_type`: mostly `Q8_0`.
const FILE_TYPE_Q8_0: u32 = 7;

/// The vocabulary, in the form that other tools read it from a GGUF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerMetadata {
    /// Text of each id, byte-level: one per row of the embedding.
    pub tokens: Vec<String>,
    /// GGML's kind of each id: 1 normal, 3 control, 4 user-defined, 6 byte.
    pub token_types: Vec<i32>,
    /// Merges in rank order, each as two parts with a space between.
    pub merges: Vec<String>,
    /// The id that ends a text, if there is one.
    pub end_token: Option<u32>,
    /// The id that fills up batches, if there is one.
    pub padding_token: Option<u32>,
}

/// The bytes of a GGUF file with these weights: matrices as `Q8_0` with one scale per row, norms as
/// F32, the output matrix left out where it is tied.
///
/// # Errors
/// Weights that do not fit their configuration or `Q8_0` (rows of a multiple of 32), or a
/// vocabulary of another size.
pub fn write_llama(
    name: &str,
    weights: &TransformerWeights,
    tokenizer: &TokenizerMetadata,
) -> Result<Vec<u8>, ModelError> {
    let config = &weights.config;
    for (field, found) in [
        ("tokens", tokenizer.tokens.len()),
        ("token_types", tokenizer.token_types.len()),
    ] {
        if found != config.vocabulary {
            return Err(ModelError::invalid(
                FILE,
                format!("tokenizer {field}"),
                config.vocabulary.to_string(),
                found,
            ));
        }
    }
    let tensors = collect_tensors(weights)?;
    let metadata = metadata(name, weights, tokenizer);

    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&metadata.count.to_le_bytes());
    out.extend_from_slice(&metadata.bytes);
    let mut offset: u64 = 0;
    for tensor in &tensors {
        write_string(&mut out, &tensor.name);
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            out.extend_from_slice(&(size as u64).to_le_bytes());
        }
        out.extend_from_slice(&tensor.type_code.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        offset = (offset + tensor.data.len() as u64).next_multiple_of(ALIGNMENT_DEFAULT as u64);
    }
    for tensor in &tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT_DEFAULT), 0);
        out.extend_from_slice(&tensor.data);
    }
    // Other readers expect the last tensor to be padded too.
    out.resize(out.len().next_multiple_of(ALIGNMENT_DEFAULT), 0);
    Ok(out)
}

/// A tensor as it goes into the file.
struct OutTensor {
    name: String,
    shape: Vec<usize>,
    type_code: u32,
    data: Vec<u8>,
}

fn collect_tensors(weights: &TransformerWeights) -> Result<Vec<OutTensor>, ModelError> {
    let config = &weights.config;
    let mut tensors = vec![matrix(
        "token_embd.weight".to_owned(),
        &weights.token_embedding,
    )?];
    if let Some(output) = &weights.output {
        tensors.push(matrix("output.weight".to_owned(), output)?);
    }
    tensors.push(vector(
        "output_norm.weight".to_owned(),
        &weights.output_norm,
        config.hidden,
    )?);
    for (index, layer) in weights.layers.iter().enumerate() {
        let parts = [
            ("attn_q", &layer.query),
            ("attn_k", &layer.key),
            ("attn_v", &layer.value),
            ("attn_output", &layer.output),
            ("ffn_gate", &layer.gate),
            ("ffn_up", &layer.up),
            ("ffn_down", &layer.down),
        ];
        tensors.push(vector(
            layer_name(index, "attn_norm"),
            &layer.attention_norm,
            config.hidden,
        )?);
        tensors.push(vector(
            layer_name(index, "ffn_norm"),
            &layer.mlp_norm,
            config.hidden,
        )?);
        for (part, values) in parts {
            tensors.push(matrix(layer_name(index, part), values)?);
        }
    }
    Ok(tensors)
}

fn vector(name: String, values: &[f32], size: usize) -> Result<OutTensor, ModelError> {
    if values.len() != size {
        let (tensor, expected, found) = (name, vec![size], vec![values.len()]);
        return Err(ModelError::Shape {
            file: FILE.to_owned(),
            tensor,
            expected,
            found,
        });
    }
    check_finite(FILE, &name, values)?;
    let data = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Ok(OutTensor {
        name,
        shape: vec![size],
        type_code: TYPE_F32,
        data,
    })
}

fn matrix(name: String, matrix: &WeightMatrix) -> Result<OutTensor, ModelError> {
    let WeightMatrix::Int8(matrix) = matrix else {
        return Err(ModelError::invalid(
            FILE,
            format!("tensor {name}"),
            "8-bit weights",
            "4-bit weights",
        ));
    };
    matrix.validate().map_err(|error| {
        ModelError::invalid(FILE, format!("tensor {name}"), "a whole matrix", error)
    })?;
    if !matrix.columns.is_multiple_of(BLOCK_ELEMENTS) {
        let expected = format!("a multiple of {BLOCK_ELEMENTS}");
        return Err(ModelError::invalid(
            FILE,
            format!("columns of {name}"),
            expected,
            matrix.columns,
        ));
    }
    let mut data = Vec::with_capacity(matrix.values.len() / BLOCK_ELEMENTS * super::BLOCK_BYTES);
    for (values, &scale) in matrix
        .values
        .chunks_exact(matrix.columns)
        .zip(&matrix.scales)
    {
        let bits = half::to_bits(scale);
        if half::from_bits(bits) != scale {
            return Err(ModelError::invalid(
                FILE,
                format!("scales of {name}"),
                "16-bit floats",
                scale,
            ));
        }
        for part in values.chunks_exact(BLOCK_ELEMENTS) {
            let mut block = Q8Block::zeroed();
            block.scale = bits.to_le_bytes();
            block.values.copy_from_slice(part);
            data.extend_from_slice(bytemuck::bytes_of(&block));
        }
    }
    Ok(OutTensor {
        name,
        shape: vec![matrix.rows, matrix.columns],
        type_code: TYPE_Q8_0,
        data,
    })
}

/// The metadata section as it is written.
#[derive(Default)]
struct MetadataWriter {
    count: u64,
    bytes: Vec<u8>,
}

fn metadata(
    name: &str,
    weights: &TransformerWeights,
    tokenizer: &TokenizerMetadata,
) -> MetadataWriter {
    let config = &weights.config;
    let mut out = MetadataWriter::default();
    out.string("general.architecture", "llama");
    out.string("general.name", name);
    out.unsigned("general.file_type", FILE_TYPE_Q8_0);
    out.unsigned("general.quantization_version", 2);
    for (key, size) in [
        ("llama.vocab_size", config.vocabulary),
        ("llama.context_length", config.context),
        ("llama.embedding_length", config.hidden),
        ("llama.block_count", config.layers),
        ("llama.feed_forward_length", config.feed_forward),
        ("llama.attention.head_count", config.heads),
        ("llama.attention.head_count_kv", config.kv_heads),
        ("llama.attention.key_length", config.head_dim),
        ("llama.attention.value_length", config.head_dim),
        ("llama.rope.dimension_count", config.head_dim),
    ] {
        // The configuration's limits are far below 2^32.
        out.unsigned(key, size as u32);
    }
    out.float("llama.attention.layer_norm_rms_epsilon", config.rms_epsilon);
    out.float("llama.rope.freq_base", config.rope_base);
    out.string("tokenizer.ggml.model", "gpt2");
    out.string("tokenizer.ggml.pre", "default");
    out.strings("tokenizer.ggml.tokens", &tokenizer.tokens);
    out.signed_array("tokenizer.ggml.token_type", &tokenizer.token_types);
    out.strings("tokenizer.ggml.merges", &tokenizer.merges);
    if let Some(token) = tokenizer.end_token {
        out.unsigned("tokenizer.ggml.eos_token_id", token);
    }
    if let Some(token) = tokenizer.padding_token {
        out.unsigned("tokenizer.ggml.padding_token_id", token);
    }
    out.bool("tokenizer.ggml.add_bos_token", false);
    out.bool("tokenizer.ggml.add_eos_token", false);
    out
}

impl MetadataWriter {
    fn key(&mut self, key: &str, type_code: u32) {
        self.count += 1;
        write_string(&mut self.bytes, key);
        self.bytes.extend_from_slice(&type_code.to_le_bytes());
    }

    fn unsigned(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(u8::from(value));
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        write_string(&mut self.bytes, value);
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        for value in values {
            write_string(&mut self.bytes, value);
        }
    }

    fn signed_array(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn array(&mut self, key: &str, type_code: u32, length: usize) {
        self.key(key, 9);
        self.bytes.extend_from_slice(&type_code.to_le_bytes());
        self.bytes.extend_from_slice(&(length as u64).to_le_bytes());
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
