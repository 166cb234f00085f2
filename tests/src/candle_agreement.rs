//! The engine's logits beside those of candle's own quantised llama on the same GGUF bytes.
//!
//! candle reads the file that we write, so this also shows that another program opens it and means the same by it: names,
//! shapes, the order of rotary pairs, grouped heads, the tied output matrix. And we read files that candle writes, in every
//! number format that it can quantise to: matrix by matrix against what candle itself makes of the bytes, then logits.
//!
//! Both sides multiply int8 activations by weights, but round them differently: candle one scale per 32 or 256 numbers, the
//! engine one per row; and formats that the engine does not keep as they are become int8 with a scale per row. Each is a few
//! per cent from the unrounded result on these random weights, so they are that far from each other. Tolerance: 8 % of the
//! logits' standard deviation (root mean square over the vocabulary), and the same best token wherever candle's margin is
//! above that noise.

use std::io::Cursor;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use trafficllm_kernels::{Level, QuantisedMatrix, WeightMatrix};
use trafficllm_model::gguf::{
    FloatLayer, FloatWeights, Gguf, TokenizerMetadata, load_weights, write_llama,
};
use trafficllm_model::transformer::{Scratch, Transformer, TransformerConfig, TransformerWeights};

/// Largest root mean square of the difference, as a share of the standard deviation of candle's logits.
const NOISE_MAX: f32 = 0.08;

/// Normal-ish numbers that are the same everywhere: sums of four uniform ones.
struct Numbers(u64);

impl Numbers {
    fn uniform(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Vec<f32> {
        let scale = 0.85 / (columns as f32).sqrt();
        (0..rows * columns)
            .map(|_| (0..4).map(|_| self.uniform()).sum::<f32>() * scale)
            .collect()
    }

    fn around_one(&mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| 1.0 + 0.2 * self.uniform()).collect()
    }
}

/// The shape of the default bundle.
fn config() -> TransformerConfig {
    TransformerConfig {
        vocabulary: 512,
        hidden: 192,
        layers: 4,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        feed_forward: 512,
        context: 256,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    }
}

fn float_weights(config: &TransformerConfig) -> FloatWeights {
    let mut numbers = Numbers(20_261_121);
    let (hidden, query, key, inner) = (
        config.hidden,
        config.query_size(),
        config.key_size(),
        config.feed_forward,
    );
    let layers = (0..config.layers)
        .map(|_| FloatLayer {
            attention_norm: numbers.around_one(hidden),
            query: numbers.matrix(query, hidden),
            key: numbers.matrix(key, hidden),
            value: numbers.matrix(key, hidden),
            output: numbers.matrix(hidden, query),
            mlp_norm: numbers.around_one(hidden),
            gate: numbers.matrix(inner, hidden),
            up: numbers.matrix(inner, hidden),
            down: numbers.matrix(hidden, inner),
        })
        .collect();
    FloatWeights {
        config: config.clone(),
        token_embedding: numbers.matrix(config.vocabulary, hidden),
        layers,
        output_norm: numbers.around_one(hidden),
        output: None,
    }
}

fn gguf_bytes(config: &TransformerConfig) -> Vec<u8> {
    let tokenizer = TokenizerMetadata {
        tokens: (0..config.vocabulary)
            .map(|id| format!("token{id}"))
            .collect(),
        token_types: vec![1; config.vocabulary],
        merges: Vec::new(),
        end_token: None,
        padding_token: Some(0),
    };
    write_llama(
        "agreement",
        &float_weights(config).quantise().unwrap(),
        &tokenizer,
    )
    .unwrap()
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f32>()
        / values.len() as f32)
        .sqrt()
}

fn best(values: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    (order[0], values[order[0]] - values[order[1]])
}

#[test]
fn logits_agree_with_candle_on_the_same_file() {
    let config = config();
    let bytes = gguf_bytes(&config);
    let weights = load_weights(&Gguf::parse("base.gguf", &bytes).unwrap()).unwrap();
    let worst = compare_logits("Q8_0, written here", &bytes, &weights, &[1, 2, 17, 90, 128]);
    assert!(worst < NOISE_MAX, "{worst} of the deviation");
}

/// The largest difference of the logits, as a share of the deviation of candle's, over random texts of these lengths, at
/// the reference level and at the processor's own.
fn compare_logits(
    name: &str,
    bytes: &[u8],
    weights: &TransformerWeights,
    lengths: &[usize],
) -> f32 {
    let config = &weights.config;
    let device = Device::Cpu;
    let content = gguf_file::Content::read(&mut Cursor::new(bytes)).unwrap();
    let mut candle = ModelWeights::from_gguf(content, &mut Cursor::new(bytes), &device).unwrap();
    let mut numbers = Numbers(7);
    let mut worst = 0.0_f32;
    for &length in lengths {
        let tokens: Vec<u32> = (0..length)
            .map(|_| {
                ((numbers.uniform() + 1.0) * 0.5 * config.vocabulary as f32) as u32
                    % config.vocabulary as u32
            })
            .collect();
        let input = Tensor::new(tokens.as_slice(), &device)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        // Position 0 makes candle forget the sequence before.
        let expected: Vec<f32> = candle
            .forward(&input, 0)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert_eq!(expected.len(), config.vocabulary);
        let deviation = deviation(&expected);
        assert!(
            deviation > 0.1,
            "{length} tokens: candle's logits are all alike, nothing would be compared"
        );
        for level in [Level::Portable, Level::detect()] {
            // On a thread of its own: candle configures the tile unit once for each thread and counts on nobody else using it there.
            let logits = || {
                let transformer = Transformer::new(level, weights.clone()).unwrap();
                transformer.logits(&tokens, &mut Scratch::default())
            };
            let all = std::thread::scope(|scope| scope.spawn(logits).join().unwrap()).unwrap();
            let found = &all[(length - 1) * config.vocabulary..];
            let square: f32 = expected
                .iter()
                .zip(found)
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            let noise = (square / expected.len() as f32).sqrt() / deviation;
            println!(
                "{name}, {length} tokens, {}: difference {:.2} % of the deviation",
                level.name(),
                100.0 * noise
            );
            worst = worst.max(noise);
            let (token, margin) = best(&expected);
            if margin > 4.0 * NOISE_MAX * deviation {
                assert_eq!(
                    best(found).0,
                    token,
                    "{name}, {length} tokens, {}",
                    level.name()
                );
            }
        }
    }
    worst
}

/// A shape whose matrices all have rows of a multiple of 256.
fn wide_config() -> TransformerConfig {
    TransformerConfig {
        hidden: 256,
        layers: 2,
        heads: 8,
        head_dim: 32,
        ..config()
    }
}

/// A file that candle writes: every matrix in the format that `data_type` says for its name.
fn candle_file(weights: &FloatWeights, data_type: impl Fn(&str) -> GgmlDType) -> Vec<u8> {
    let config = &weights.config;
    let device = Device::Cpu;
    let mut tensors = Vec::new();
    let mut add = |name: String, values: &[f32], shape: &[usize], kind: GgmlDType| {
        let tensor = Tensor::from_slice(values, shape, &device).unwrap();
        tensors.push((name, QTensor::quantize(&tensor, kind).unwrap()));
    };
    let (hidden, query, key) = (config.hidden, config.query_size(), config.key_size());
    let inner = config.feed_forward;
    let mut matrix = |name: String, values: &[f32], rows: usize, columns: usize| {
        let kind = data_type(&name);
        add(name, values, &[rows, columns], kind);
    };
    matrix(
        "token_embd.weight".to_owned(),
        &weights.token_embedding,
        config.vocabulary,
        hidden,
    );
    for (index, layer) in weights.layers.iter().enumerate() {
        let name = |part| format!("blk.{index}.{part}.weight");
        matrix(name("attn_q"), &layer.query, query, hidden);
        matrix(name("attn_k"), &layer.key, key, hidden);
        matrix(name("attn_v"), &layer.value, key, hidden);
        matrix(name("attn_output"), &layer.output, hidden, query);
        matrix(name("ffn_gate"), &layer.gate, inner, hidden);
        matrix(name("ffn_up"), &layer.up, inner, hidden);
        matrix(name("ffn_down"), &layer.down, hidden, inner);
    }
    for (index, layer) in weights.layers.iter().enumerate() {
        let name = |part| format!("blk.{index}.{part}.weight");
        add(
            name("attn_norm"),
            &layer.attention_norm,
            &[hidden],
            GgmlDType::F32,
        );
        add(name("ffn_norm"), &layer.mlp_norm, &[hidden], GgmlDType::F32);
    }
    add(
        "output_norm.weight".to_owned(),
        &weights.output_norm,
        &[hidden],
        GgmlDType::F32,
    );
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let metadata = candle_metadata(config);
    let metadata: Vec<(&str, &gguf_file::Value)> =
        metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.into_inner()
}

/// What files of real models carry, tokenizer arrays of every kind included.
fn candle_metadata(config: &TransformerConfig) -> Vec<(&'static str, gguf_file::Value)> {
    use gguf_file::Value;
    let text = |text: &str| Value::String(text.to_owned());
    let size = |size: usize| Value::U32(size as u32);
    let ids = 0..config.vocabulary;
    vec![
        ("general.architecture", text("llama")),
        ("general.tags", Value::Array(vec![text("a"), text("b")])),
        ("llama.vocab_size", size(config.vocabulary)),
        ("llama.context_length", size(131_072)),
        ("llama.embedding_length", size(config.hidden)),
        ("llama.block_count", size(config.layers)),
        ("llama.feed_forward_length", size(config.feed_forward)),
        ("llama.attention.head_count", size(config.heads)),
        ("llama.attention.head_count_kv", size(config.kv_heads)),
        ("llama.rope.dimension_count", size(config.head_dim)),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(config.rms_epsilon),
        ),
        ("llama.rope.freq_base", Value::F32(config.rope_base)),
        ("tokenizer.ggml.model", text("llama")),
        (
            "tokenizer.ggml.tokens",
            Value::Array(ids.clone().map(|id| text(&format!("t{id}"))).collect()),
        ),
        (
            "tokenizer.ggml.scores",
            Value::Array(ids.clone().map(|id| Value::F32(-(id as f32))).collect()),
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Array(ids.map(|_| Value::I32(1)).collect()),
        ),
        ("tokenizer.ggml.bos_token_id", size(1)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
    ]
}

/// Holds every matrix to what candle makes of the same bytes: 4-bit formats to the floats, others to the bytes that come of
/// quantising candle's floats.
fn compare_weights(name: &str, bytes: &[u8], weights: &TransformerWeights) {
    let content = gguf_file::Content::read(&mut Cursor::new(bytes)).unwrap();
    let mut compared = 0;
    let mut compare = |tensor: String, found: &WeightMatrix| {
        let read = content
            .tensor(&mut Cursor::new(bytes), &tensor, &Device::Cpu)
            .unwrap();
        let floats = read.dequantize(&Device::Cpu).unwrap();
        let expected: Vec<f32> = floats.flatten_all().unwrap().to_vec1().unwrap();
        let four_bits = matches!(
            read.dtype(),
            GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q4K
        );
        let what = format!("{name}: {tensor} as {:?}", read.dtype());
        match found {
            WeightMatrix::Int4(found) => {
                assert!(four_bits, "{what} was kept as 4 bits");
                let largest = expected
                    .iter()
                    .fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (at, (found, expected)) in found.dequantise().iter().zip(&expected).enumerate()
                {
                    let difference = (found - expected).abs();
                    // Where product and sum are one instruction the last bit can differ.
                    assert!(
                        difference <= 2.0 * f32::EPSILON * largest,
                        "{what}, element {at}: {found} is not {expected}"
                    );
                }
            }
            WeightMatrix::Int8(found) => {
                assert!(!four_bits, "{what} was not kept as 4 bits");
                let expected =
                    QuantisedMatrix::quantise(&expected, found.rows, found.columns).unwrap();
                assert!(*found == expected, "{what}");
            }
        }
        compared += 1;
    };
    compare("token_embd.weight".to_owned(), &weights.token_embedding);
    for (index, layer) in weights.layers.iter().enumerate() {
        for (part, matrix) in [
            ("attn_q", &layer.query),
            ("attn_k", &layer.key),
            ("attn_v", &layer.value),
            ("attn_output", &layer.output),
            ("ffn_gate", &layer.gate),
            ("ffn_up", &layer.up),
            ("ffn_down", &layer.down),
        ] {
            compare(format!("blk.{index}.{part}.weight"), matrix);
        }
    }
    assert_eq!(compared, 1 + 7 * weights.config.layers);
}

/// The mixture that is called `Q4_K_M`: mostly `Q4_K`, the more delicate matrices as `Q6_K`.
fn q4_k_m(tensor: &str) -> GgmlDType {
    let delicate = ["token_embd", "blk.0.attn_v", "blk.0.ffn_down"];
    if delicate.iter().any(|start| tensor.starts_with(start)) {
        GgmlDType::Q6K
    } else {
        GgmlDType::Q4K
    }
}

#[test]
fn files_that_candle_writes_are_read_as_candle_reads_them() {
    let floats = float_weights(&wide_config());
    let formats = [
        ("F32", GgmlDType::F32),
        ("F16", GgmlDType::F16),
        ("BF16", GgmlDType::BF16),
        ("Q4_0", GgmlDType::Q4_0),
        ("Q4_1", GgmlDType::Q4_1),
        ("Q5_0", GgmlDType::Q5_0),
        ("Q5_1", GgmlDType::Q5_1),
        ("Q8_0", GgmlDType::Q8_0),
        ("Q4_K", GgmlDType::Q4K),
        ("Q5_K", GgmlDType::Q5K),
        ("Q6_K", GgmlDType::Q6K),
    ];
    let files = formats
        .iter()
        .map(|&(name, kind)| (name, candle_file(&floats, |_| kind)))
        .chain([("Q4_K_M", candle_file(&floats, q4_k_m))]);
    for (name, bytes) in files {
        let weights = load_weights(&Gguf::parse(name, &bytes).unwrap()).unwrap();
        assert_eq!(weights.config.context, 8192, "the longest that is served");
        compare_weights(name, &bytes, &weights);
        let worst = compare_logits(name, &bytes, &weights, &[1, 40, 100]);
        assert!(worst < NOISE_MAX, "{name}: {worst} of the deviation");
    }
}
