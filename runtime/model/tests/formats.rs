//! Number formats of other tools' files, in the shapes of real models.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and one says what it measured"
)]

mod common;

use std::time::Instant;

use common::writer::Writer;
use common::{Numbers, config, float_weights, tokenizer_metadata};
use trafficllm_kernels::{Int4Matrix, Level, WeightMatrix, half};
use trafficllm_model::gguf::{DataType, Gguf, Value, load_weights, write_llama};
use trafficllm_model::transformer::{Scratch, Transformer, TransformerConfig, TransformerWeights};

/// The tiny model with random 4-bit matrices.
fn int4_weights() -> TransformerWeights {
    let mut weights = float_weights(&config(), 3).quantise().unwrap();
    let mut numbers = Numbers::new(11);
    let mut replace = |matrix: &mut WeightMatrix| {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let scales = numbers.floats(rows * columns / 32, 0.1);
        *matrix = WeightMatrix::from(Int4Matrix {
            rows,
            columns,
            nibbles: (0..rows * columns / 2)
                .map(|_| numbers.below(256) as u8)
                .collect(),
            scales: scales
                .iter()
                .map(|scale| half::from_bits(half::to_bits(*scale)))
                .collect(),
            minimums: Vec::new(),
        });
    };
    replace(&mut weights.token_embedding);
    for layer in &mut weights.layers {
        for matrix in [
            &mut layer.query,
            &mut layer.key,
            &mut layer.value,
            &mut layer.output,
            &mut layer.gate,
            &mut layer.up,
            &mut layer.down,
        ] {
            replace(matrix);
        }
    }
    weights
}

fn int4(matrix: &mut WeightMatrix) -> &mut Int4Matrix {
    match matrix {
        WeightMatrix::Int4(matrix) => matrix,
        WeightMatrix::Int8(_) => panic!("8-bit weights"),
    }
}

#[test]
fn four_bit_weights_come_back_without_loss() {
    let mut weights = int4_weights();
    let bytes = write_llama("tiny", &weights, &tokenizer_metadata(16)).unwrap();
    let gguf = Gguf::parse("g", &bytes).unwrap();
    assert_eq!(
        gguf.tensor("blk.0.ffn_up.weight").unwrap().data_type,
        DataType::Q4_0
    );
    assert_eq!(gguf.metadata()["general.file_type"], Value::Unsigned(2));
    assert_eq!(load_weights(&gguf).unwrap(), weights);
    // One 8-bit matrix among them stays one.
    weights.token_embedding = float_weights(&config(), 3)
        .quantise()
        .unwrap()
        .token_embedding;
    let bytes = write_llama("tiny", &weights, &tokenizer_metadata(16)).unwrap();
    assert_eq!(
        load_weights(&Gguf::parse("g", &bytes).unwrap()).unwrap(),
        weights
    );
}

#[test]
fn four_bit_weights_that_q4_0_cannot_hold_are_refused() {
    let refused = |change: fn(&mut Int4Matrix)| {
        let mut weights = int4_weights();
        change(int4(&mut weights.layers[0].up));
        write_llama("tiny", &weights, &tokenizer_metadata(16))
            .unwrap_err()
            .to_string()
    };
    let minimums = refused(|matrix| matrix.minimums = vec![0.0; matrix.scales.len()]);
    assert!(
        minimums.contains("blk.0.ffn_up.weight: expected 4-bit weights without minimums"),
        "{minimums}"
    );
    let scale = refused(|matrix| matrix.scales[3] = 0.1);
    assert!(
        scale.contains("expected 16-bit floats, found 0.1"),
        "{scale}"
    );
    let short = refused(|matrix| matrix.nibbles.truncate(16));
    assert!(short.contains("expected a whole matrix"), "{short}");
}

/// Random blocks with scales that keep the numbers near those of a trained model.
fn blocks(data_type: DataType, elements: usize, numbers: &mut u64) -> Vec<u8> {
    let mut bytes = vec![0; elements / data_type.block_elements() * data_type.block_bytes()];
    for eight in bytes.chunks_mut(8) {
        *numbers ^= *numbers << 13;
        *numbers ^= *numbers >> 7;
        *numbers ^= *numbers << 17;
        eight.copy_from_slice(&numbers.to_le_bytes()[..eight.len()]);
    }
    // Where scales stand, and what they are: numbers of about 0.02.
    let scales: &[(usize, f32)] = match data_type {
        DataType::Q4_0 => &[(0, 0.004)],
        DataType::Q5_0 => &[(0, 0.002)],
        DataType::Q8_0 => &[(0, 0.000_3)],
        DataType::Q4K => &[(0, 0.000_1), (2, 0.001)],
        DataType::Q6K => &[(208, 0.000_02)],
        other => panic!("{other:?}"),
    };
    for (index, block) in bytes.chunks_exact_mut(data_type.block_bytes()).enumerate() {
        for (at, scale) in scales {
            // Scales of neighbours differ, as in the files of other tools.
            let scale = scale * (1.0 + (index % 4) as f32 * 0.1);
            block[*at..at + 2].copy_from_slice(&half::to_bits(scale).to_le_bytes());
        }
    }
    bytes
}

/// 135 million parameters.
fn small_config() -> TransformerConfig {
    TransformerConfig {
        vocabulary: 49_152,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        feed_forward: 1536,
        context: 2048,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    }
}

/// Half a billion parameters.
fn large_config() -> TransformerConfig {
    TransformerConfig {
        vocabulary: 151_936,
        hidden: 896,
        layers: 24,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        feed_forward: 4864,
        context: 32_768,
        rms_epsilon: 1e-6,
        rope_base: 1_000_000.0,
    }
}

/// What the quantiser of llama.cpp makes of `Q4_K_M`: rows that are no multiple of 256 fall back.
fn mixture(name: &str, config: &TransformerConfig) -> DataType {
    let down = name.contains("ffn_down");
    let columns = if down {
        config.feed_forward
    } else {
        config.hidden
    };
    let delicate =
        name.contains("attn_v") || name.contains("token_embd") || name.contains(".1.ffn_down");
    match (columns.is_multiple_of(256), delicate) {
        (true, true) => DataType::Q6K,
        (true, false) => DataType::Q4K,
        (false, true) => DataType::Q8_0,
        (false, false) => DataType::Q5_0,
    }
}

/// Memory of the process in MiB: now, and at most so far.
fn memory_mib() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        number.unwrap_or(0) / 1024
    };
    (field("VmRSS"), field("VmHWM"))
}

fn load_and_run(config: &TransformerConfig, format: &str, of: impl Fn(&str) -> DataType) {
    let mut numbers = 0x9e37_79b9_7f4a_7c15;
    let writer = Writer::model(config, |name, elements| {
        let data_type = of(name);
        (data_type.code(), blocks(data_type, elements, &mut numbers))
    });
    let bytes = writer.bytes(3);
    drop(writer);
    // Makes Linux forget the most memory so far: making the file is no part of what is measured.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let report = |what: &str, start: Instant| {
        let (now, most) = memory_mib();
        println!(
            "{} x {} {format}, file of {} MiB: {what} in {:.2} s; memory {now} MiB, at most {most}",
            config.layers,
            config.hidden,
            bytes.len() >> 20,
            start.elapsed().as_secs_f32()
        );
    };
    report("made", Instant::now());
    let start = Instant::now();
    let weights = load_weights(&Gguf::parse("g", &bytes).unwrap()).unwrap();
    report("read", start);
    let start = Instant::now();
    let transformer = Transformer::new(Level::detect(), weights).unwrap();
    report("packed", start);
    let start = Instant::now();
    let tokens: Vec<u32> = (0..16)
        .map(|at| at * 31 % config.vocabulary as u32)
        .collect();
    let logits = transformer
        .logits(&tokens, &mut Scratch::default())
        .unwrap();
    report("16 tokens", start);
    assert_eq!(logits.len(), 16 * config.vocabulary);
    assert!(logits.iter().all(|logit| logit.is_finite()), "{format}");
    let last = &logits[15 * config.vocabulary..];
    assert!(
        last.iter().any(|logit| (logit - last[0]).abs() > 1e-3),
        "{format}: all logits are alike"
    );
}

#[test]
fn shapes_of_real_models_load_and_run() {
    for config in [small_config(), large_config()] {
        // The widths are those of the models; what repeats is cut short.
        let config = TransformerConfig {
            vocabulary: 1000,
            layers: 2,
            context: 64,
            ..config
        };
        load_and_run(&config, "Q8_0", |_| DataType::Q8_0);
        load_and_run(&config, "Q4_0", |_| DataType::Q4_0);
        load_and_run(&config, "Q4_K_M", |name| mixture(name, &config));
    }
}

/// A whole model. Run alone, its figures of memory are its own:
/// `cargo test --release -p trafficllm-model --test formats whole_135m_q8_0 -- --ignored --nocapture`.
fn whole(config: TransformerConfig, format: &str, of: fn(&str, &TransformerConfig) -> DataType) {
    let config = TransformerConfig {
        context: 2048,
        ..config
    };
    load_and_run(&config, format, |name| of(name, &config));
}

#[test]
#[ignore = "takes half a gigabyte of memory"]
fn whole_135m_q8_0() {
    whole(small_config(), "Q8_0", |_, _| DataType::Q8_0);
}

#[test]
#[ignore = "takes half a gigabyte of memory"]
fn whole_135m_q4_0() {
    whole(small_config(), "Q4_0", |_, _| DataType::Q4_0);
}

#[test]
#[ignore = "takes half a gigabyte of memory"]
fn whole_135m_q4_k_m() {
    whole(small_config(), "Q4_K_M", mixture);
}

#[test]
#[ignore = "takes two gigabytes of memory"]
fn whole_500m_q8_0() {
    whole(large_config(), "Q8_0", |_, _| DataType::Q8_0);
}

#[test]
#[ignore = "takes two gigabytes of memory"]
fn whole_500m_q4_0() {
    whole(large_config(), "Q4_0", |_, _| DataType::Q4_0);
}

#[test]
#[ignore = "takes two gigabytes of memory"]
fn whole_500m_q4_k_m() {
    whole(large_config(), "Q4_K_M", mixture);
}
