//! GGUF: what is written comes back, and other files of the format are read as they should be.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use common::writer::{Writer, string};
use common::{Numbers, base_gguf, config, float_weights, tokenizer_metadata};
use trafficllm_kernels::WeightMatrix;
use trafficllm_model::gguf::{
    DataType, FloatWeights, Gguf, Value, load_weights, read_config, write_llama,
};

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

fn elements<'a>(gguf: &Gguf<'a>, key: &str) -> Vec<Value<'a>> {
    let Value::Array(array) = gguf.metadata()[key] else {
        panic!("{key} is no array");
    };
    assert_eq!(array.len(), array.values().len());
    array.values()
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
    let tokens: Vec<Value<'_>> = tokens.iter().map(|token| Value::String(token)).collect();
    assert_eq!(elements(&gguf, "tokenizer.ggml.tokens"), tokens);
    assert_eq!(
        elements(&gguf, "tokenizer.ggml.token_type"),
        [Value::Signed(1); 16]
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
fn arrays_of_any_type_are_left_in_the_file() {
    let mut writer = Writer::tiny(&float_weights(&config(), 5), 0, f32_bytes);
    let array = |code: u32, count: u64, elements: &[u8]| {
        [&code.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
    };
    let texts = [string("a"), string("")].concat();
    let cases: [(u32, Vec<u8>, Vec<Value<'_>>); 7] = [
        (
            0,
            vec![7, 255],
            vec![Value::Unsigned(7), Value::Unsigned(255)],
        ),
        (3, vec![0xff, 0xff], vec![Value::Signed(-1)]),
        (6, 2.5_f32.to_le_bytes().to_vec(), vec![Value::Float(2.5)]),
        (7, vec![1, 0], vec![Value::Bool(true), Value::Bool(false)]),
        (8, texts, vec![Value::String("a"), Value::String("")]),
        (11, (-9_i64).to_le_bytes().to_vec(), vec![Value::Signed(-9)]),
        (12, Vec::new(), Vec::new()),
    ];
    for (code, bytes, values) in &cases {
        let value = array(*code, values.len() as u64, bytes);
        writer.metadata.push((format!("array.{code}"), 9, value));
    }
    let bytes = writer.bytes(3);
    let gguf = Gguf::parse("g", &bytes).unwrap();
    for (code, _, values) in &cases {
        assert_eq!(&elements(&gguf, &format!("array.{code}")), values, "{code}");
    }
    assert!(load_weights(&gguf).is_ok());
    for (value, expected) in [
        (array(7, 2, &[1, 2]), "bad: expected 0 or 1, found 2"),
        (
            array(8, 1, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
            "bad: expected UTF-8",
        ),
        (array(5, 1 << 20, &[0; 8]), "bad: expected 4194304 bytes"),
    ] {
        let mut writer = Writer::tiny(&float_weights(&config(), 5), 0, f32_bytes);
        writer.metadata.push(("bad".to_owned(), 9, value));
        let error = Gguf::parse("g", &writer.bytes(3)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
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
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let mut writer = Writer::tiny(&float_weights(&config(), 5), 0, f32_bytes);
        for (factor, accepted) in [(1.0_f32, true), (4.0, false)] {
            let value = factor.to_le_bytes().to_vec();
            writer.metadata.retain(|(found, ..)| found != key);
            writer.metadata.push((key.to_owned(), 6, value));
            let bytes = writer.bytes(3);
            let read = load_weights(&Gguf::parse("g", &bytes).unwrap());
            match read {
                Ok(_) => assert!(accepted, "{key}"),
                Err(error) => {
                    let expected = format!("{key}: scaled rotary is not supported");
                    assert!(
                        !accepted && error.to_string().contains(&expected),
                        "{error}"
                    );
                }
            }
        }
    }
    let factors = refused(|w| {
        w.tensors
            .push(("rope_freqs.weight".to_owned(), vec![8], 0, vec![0; 32]))
    });
    assert!(
        factors.contains("tensors: rope_freqs.weight is not supported"),
        "{factors}"
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
