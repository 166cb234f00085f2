//! GGUF: what is written comes back, and other files of the format are read as they should be.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use common::{Numbers, base_gguf, config, float_weights, tokenizer_metadata};
use trafficllm_kernels::WeightMatrix;
use trafficllm_model::gguf::{
    Array, DataType, FloatWeights, Gguf, Value, load_weights, read_config, write_llama,
};

/// An F32 or F16 or Q8_0 file with the given tensors, written here from the format's description.
struct Writer {
    metadata: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Writer {
    /// The tiny model with every matrix in a number format.
    fn tiny(weights: &FloatWeights, code: u32, encode: fn(&[f32]) -> Vec<u8>) -> Self {
        let config = &weights.config;
        let mut metadata = vec![("general.architecture".to_owned(), 8, string("llama"))];
        for (key, size) in [
            ("llama.context_length", config.context),
            ("llama.embedding_length", config.hidden),
            ("llama.block_count", config.layers),
            ("llama.feed_forward_length", config.feed_forward),
            ("llama.attention.head_count", config.heads),
            ("llama.attention.head_count_kv", config.kv_heads),
        ] {
            metadata.push((key.to_owned(), 4, (size as u32).to_le_bytes().to_vec()));
        }
        let epsilon = config.rms_epsilon.to_le_bytes().to_vec();
        metadata.push((
            "llama.attention.layer_norm_rms_epsilon".to_owned(),
            6,
            epsilon,
        ));
        let (hidden, inner) = (config.hidden as u64, config.feed_forward as u64);
        let (query, key) = (config.query_size() as u64, config.key_size() as u64);
        let mut tensors = Vec::new();
        let mut matrix = |name: String, columns, rows, values: &[f32]| {
            tensors.push((name, vec![columns, rows], code, encode(values)));
        };
        matrix(
            "token_embd.weight".to_owned(),
            hidden,
            config.vocabulary as u64,
            &weights.token_embedding,
        );
        for (index, layer) in weights.layers.iter().enumerate() {
            let name = |part| format!("blk.{index}.{part}.weight");
            matrix(name("attn_q"), hidden, query, &layer.query);
            matrix(name("attn_k"), hidden, key, &layer.key);
            matrix(name("attn_v"), hidden, key, &layer.value);
            matrix(name("attn_output"), query, hidden, &layer.output);
            matrix(name("ffn_gate"), hidden, inner, &layer.gate);
            matrix(name("ffn_up"), hidden, inner, &layer.up);
            matrix(name("ffn_down"), inner, hidden, &layer.down);
        }
        let mut norm =
            |name: String, values: &[f32]| tensors.push((name, vec![hidden], 0, f32_bytes(values)));
        norm("output_norm.weight".to_owned(), &weights.output_norm);
        for (index, layer) in weights.layers.iter().enumerate() {
            norm(
                format!("blk.{index}.attn_norm.weight"),
                &layer.attention_norm,
            );
            norm(format!("blk.{index}.ffn_norm.weight"), &layer.mlp_norm);
        }
        Self { metadata, tensors }
    }

    fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, code, value) in &self.metadata {
            out.extend(string(key));
            out.extend(code.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0_u64;
        for (name, shape, code, data) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(code.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    [
        (text.len() as u64).to_le_bytes().as_slice(),
        text.as_bytes(),
    ]
    .concat()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| trafficllm_kernels::half::to_bits(*value).to_le_bytes())
        .collect()
}

/// Ordinary `Q8_0`, as other tools write it: a scale for every 32 elements.
fn q8_0_bytes(values: &[f32]) -> Vec<u8> {
    let blocks = values.chunks_exact(32).map(|block| {
        let scale = block
            .iter()
            .fold(0.0_f32, |highest, value| highest.max(value.abs()))
            / 127.0;
        let mut bytes = trafficllm_kernels::half::to_bits(scale)
            .to_le_bytes()
            .to_vec();
        bytes.extend(
            block
                .iter()
                .map(|value| (value / scale).round() as i8 as u8),
        );
        bytes
    });
    blocks.flatten().collect()
}

/// The largest difference of two lists, as a share of the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let highest = a
        .iter()
        .fold(0.0_f32, |highest, value| highest.max(value.abs()));
    a.iter()
        .zip(b)
        .fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()))
        / highest
}

#[test]
fn quantised_weights_come_back_without_loss() {
    let weights = float_weights(&config(), 3).quantise().unwrap();
    let bytes = write_llama("tiny", &weights, &tokenizer_metadata(16)).unwrap();
    assert_eq!(
        load_weights(&Gguf::parse("g", &bytes).unwrap()).unwrap(),
        weights
    );
    assert_eq!(
        bytes,
        write_llama("tiny", &weights, &tokenizer_metadata(16)).unwrap()
    );
}

#[test]
fn an_untied_output_matrix_comes_back() {
    let mut floats = float_weights(&config(), 3);
    floats.output = Some(Numbers::new(8).floats(16 * 32, 1.0));
    let weights = floats.quantise().unwrap();
    let bytes = write_llama("tiny", &weights, &tokenizer_metadata(16)).unwrap();
    assert_eq!(
        load_weights(&Gguf::parse("g", &bytes).unwrap()).unwrap(),
        weights
    );
}

#[test]
fn quantising_floats_twice_changes_nothing_more() {
    let weights = float_weights(&config(), 3).quantise().unwrap();
    let floats = FloatWeights::dequantise(&weights);
    assert_eq!(
        FloatWeights::dequantise(&floats.quantise().unwrap()),
        floats
    );
    let original = float_weights(&config(), 3);
    assert!(difference(&original.token_embedding, &floats.token_embedding) < 0.5 / 127.0 * 1.01);
}

#[test]
fn metadata_and_tensors_are_those_other_tools_look_for() {
    let bytes = base_gguf();
    let gguf = Gguf::parse("g", &bytes).unwrap();
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.string("general.architecture").unwrap(), "llama");
    assert_eq!(gguf.string("tokenizer.ggml.model").unwrap(), "gpt2");
    assert_eq!(read_config(&gguf).unwrap(), config());
    let tokens: Vec<String> = (0..16).map(|id| format!("t{id}")).collect();
    assert_eq!(
        gguf.metadata()["tokenizer.ggml.tokens"],
        Value::Array(Array::String(tokens))
    );
    assert_eq!(
        gguf.metadata()["tokenizer.ggml.token_type"],
        Value::Array(Array::Signed(vec![1; 16]))
    );
    assert_eq!(gguf.tensors().len(), 11);
    let tensor = gguf.tensor("blk.0.attn_k.weight").unwrap();
    assert_eq!(
        (tensor.shape.as_slice(), tensor.data_type),
        ([16, 32].as_slice(), DataType::Q8_0)
    );
    assert_eq!((tensor.elements(), tensor.data.len()), (512, 16 * 34));
}

#[test]
fn foreign_number_formats_are_read() {
    let floats = float_weights(&config(), 5);
    let expected = floats.quantise().unwrap();
    for version in [2, 3] {
        let bytes = Writer::tiny(&floats, 0, f32_bytes).bytes(version);
        assert_eq!(
            load_weights(&Gguf::parse("g", &bytes).unwrap()).unwrap(),
            expected
        );
    }
    // Half a step of int8 for our own rounding, and what the other format lost before.
    for (code, encode, loss) in [
        (1, f16_bytes as fn(&[f32]) -> Vec<u8>, 0.001),
        (8, q8_0_bytes, 0.5 / 127.0 * 1.01),
    ] {
        let bytes = Writer::tiny(&floats, code, encode).bytes(3);
        let read =
            FloatWeights::dequantise(&load_weights(&Gguf::parse("g", &bytes).unwrap()).unwrap());
        let tolerance = 0.5 / 127.0 * 1.01 + loss;
        assert!(
            difference(&floats.token_embedding, &read.token_embedding) < tolerance,
            "{code}"
        );
        assert!(
            difference(&floats.layers[0].down, &read.layers[0].down) < tolerance,
            "{code}"
        );
    }
}

#[test]
fn a_byte_of_minus_128_is_requantised_not_kept() {
    let floats = float_weights(&config(), 5);
    let mut writer = Writer::tiny(&floats, 8, q8_0_bytes);
    // The first row of the embedding: one block, scale 0.5, one element -128 and the others 64.
    let block = [
        trafficllm_kernels::half::to_bits(0.5)
            .to_le_bytes()
            .as_slice(),
        &[0x80],
        &[64; 31],
    ]
    .concat();
    writer.tensors[0].3[..34].copy_from_slice(&block);
    let weights = load_weights(&Gguf::parse("g", &writer.bytes(3)).unwrap()).unwrap();
    let mut row = [0.0; 32];
    weights.token_embedding.dequantise_row(0, &mut row);
    let WeightMatrix::Int8(embedding) = &weights.token_embedding else {
        panic!("8-bit weights became others");
    };
    assert_eq!(embedding.values[0], -127);
    assert!(
        (row[0] + 64.0).abs() < 0.1 && (row[1] - 32.0).abs() < 0.3,
        "{row:?}"
    );
}

#[test]
fn what_the_engine_does_not_have_is_refused() {
    let refused = |change: fn(&mut Writer)| {
        let mut writer = Writer::tiny(&float_weights(&config(), 5), 0, f32_bytes);
        change(&mut writer);
        load_weights(&Gguf::parse("g", &writer.bytes(3)).unwrap())
            .unwrap_err()
            .to_string()
    };
    let number = |value: u32| value.to_le_bytes().to_vec();
    assert_eq!(number(1).len(), 4);
    let experts = refused(|w| {
        w.metadata.push((
            "llama.expert_count".to_owned(),
            4,
            8_u32.to_le_bytes().to_vec(),
        ))
    });
    assert!(
        experts.contains("llama.expert_count: experts is not supported"),
        "{experts}"
    );
    let scaled = refused(|w| {
        w.metadata
            .push(("llama.rope.scaling.type".to_owned(), 8, string("linear")))
    });
    assert!(
        scaled.contains("scaled rotary is not supported"),
        "{scaled}"
    );
    let bias = refused(|w| {
        w.tensors
            .push(("blk.0.attn_q.bias".to_owned(), vec![32], 0, vec![0; 128]))
    });
    assert!(
        bias.contains("tensors: blk.0.attn_q.bias is not supported"),
        "{bias}"
    );
    let stacked = refused(|w| w.tensors[1].0 = "blk.0.attn_qkv.weight".to_owned());
    assert!(
        stacked.contains("tensor blk.0.attn_q.weight: expected a tensor, found nothing"),
        "{stacked}"
    );
}

#[test]
fn writing_refuses_what_it_could_not_read_back() {
    let weights = float_weights(&config(), 3).quantise().unwrap();
    assert!(write_llama("tiny", &weights, &tokenizer_metadata(15)).is_err());
    let mut broken = weights.clone();
    broken.output_norm[0] = f32::INFINITY;
    assert!(write_llama("tiny", &broken, &tokenizer_metadata(16)).is_err());
    // 0.1 is no 16-bit float: the scale could not be stored without loss.
    broken = weights;
    if let WeightMatrix::Int8(embedding) = &mut broken.token_embedding {
        embedding.scales[0] = 0.1;
    }
    let error = write_llama("tiny", &broken, &tokenizer_metadata(16))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("scales of token_embd.weight: expected 16-bit floats"),
        "{error}"
    );
    let mut floats = float_weights(&config(), 3);
    floats.layers[0].gate.pop();
    let error = floats.quantise().unwrap_err().to_string();
    assert!(
        error.contains("tensor blk.0.ffn_gate.weight: expected shape [32, 32], found [1023]"),
        "{error}"
    );
}
