//! The engine's logits beside those of candle's own quantised llama on the same GGUF bytes.
//!
//! candle reads the file that we write, so this also shows that another program opens it and means the same by it: names,
//! shapes, the order of rotary pairs, grouped heads, the tied output matrix.
//!
//! Both sides multiply int8 activations by int8 weights, but round them differently: candle one scale per 32 numbers,
//! the engine one per row. Each is a few per cent from the unrounded result on these random weights, so they are that far
//! from each other. Tolerance: 8 % of the logits' standard deviation (root mean square over the vocabulary), and the same
//! best token wherever candle's margin is above that noise.

use std::io::Cursor;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use trafficllm_kernels::Level;
use trafficllm_model::gguf::{
    FloatLayer, FloatWeights, Gguf, TokenizerMetadata, load_weights, write_llama,
};
use trafficllm_model::transformer::{Scratch, Transformer, TransformerConfig};

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

fn gguf_bytes(config: &TransformerConfig) -> Vec<u8> {
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
    let weights = FloatWeights {
        config: config.clone(),
        token_embedding: numbers.matrix(config.vocabulary, hidden),
        layers,
        output_norm: numbers.around_one(hidden),
        output: None,
    };
    let tokenizer = TokenizerMetadata {
        tokens: (0..config.vocabulary)
            .map(|id| format!("token{id}"))
            .collect(),
        token_types: vec![1; config.vocabulary],
        merges: Vec::new(),
        end_token: None,
        padding_token: Some(0),
    };
    write_llama("agreement", &weights.quantise().unwrap(), &tokenizer).unwrap()
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
    let device = Device::Cpu;
    let content = gguf_file::Content::read(&mut Cursor::new(&bytes)).unwrap();
    let mut candle = ModelWeights::from_gguf(content, &mut Cursor::new(&bytes), &device).unwrap();
    let parsed = Gguf::parse("base.gguf", &bytes).unwrap();
    let weights = load_weights(&parsed).unwrap();

    let mut numbers = Numbers(7);
    for length in [1_usize, 2, 17, 90, 128] {
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
            let transformer = Transformer::new(level, &weights).unwrap();
            let all = transformer
                .logits(&tokens, &mut Scratch::default())
                .unwrap();
            let found = &all[(length - 1) * config.vocabulary..];
            let square: f32 = expected
                .iter()
                .zip(found)
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            let noise = (square / expected.len() as f32).sqrt() / deviation;
            println!(
                "{length} tokens, {}: difference {:.2} % of the deviation",
                level.name(),
                100.0 * noise
            );
            assert!(
                noise < NOISE_MAX,
                "{length} tokens, {}: {noise} of the deviation",
                level.name()
            );
            let (token, margin) = best(&expected);
            if margin > 4.0 * NOISE_MAX * deviation {
                assert_eq!(best(found).0, token, "{length} tokens, {}", level.name());
            }
        }
    }
}
