//! A tiny model that runs in microseconds, and tools to break it.
#![allow(dead_code, reason = "every test file uses its own part of this module")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "shared by tests only"
)]

pub(crate) mod writer;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trafficllm_model::gguf::{FloatLayer, FloatWeights, TokenizerMetadata, write_llama};
use trafficllm_model::transformer::{LoraFactors, TaskLora, TransformerConfig};
use trafficllm_model::{Adapter, AdapterShape};

pub(crate) const TASK: &str = "tiny_task";
pub(crate) const ADAPTER: &str = "adapters/tiny_task.safetensors";

/// A generator whose numbers are the same on every machine.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    /// `count` numbers from -1 to 1, times `scale`.
    pub(crate) fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count)
            .map(|_| (self.below(2001) as f32 / 1000.0 - 1.0) * scale)
            .collect()
    }
}

pub(crate) fn config() -> TransformerConfig {
    TransformerConfig {
        vocabulary: 16,
        hidden: 32,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        feed_forward: 32,
        context: 64,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    }
}

/// The matrices with low-rank additions, as the format's description names them, with their channels in [`config`].
pub(crate) const LORA_CHANNELS: [(&str, (usize, usize)); 4] = [
    ("attn_qkv", (32, 64)),
    ("attn_output", (32, 32)),
    ("ffn_gate_up", (32, 64)),
    ("ffn_down", (32, 32)),
];

pub(crate) fn shape() -> AdapterShape {
    AdapterShape::of(&config())
}

pub(crate) fn float_weights(config: &TransformerConfig, seed: u64) -> FloatWeights {
    let mut numbers = Numbers::new(seed);
    let (hidden, query, key, inner) = (
        config.hidden,
        config.query_size(),
        config.key_size(),
        config.feed_forward,
    );
    let scale = 1.5 / (hidden as f32).sqrt();
    let layers = (0..config.layers).map(|_| FloatLayer {
        attention_norm: vec![1.0; hidden],
        query: numbers.floats(query * hidden, scale),
        key: numbers.floats(key * hidden, scale),
        value: numbers.floats(key * hidden, scale),
        output: numbers.floats(hidden * query, scale),
        mlp_norm: vec![1.0; hidden],
        gate: numbers.floats(inner * hidden, scale),
        up: numbers.floats(inner * hidden, scale),
        down: numbers.floats(hidden * inner, scale),
    });
    FloatWeights {
        config: config.clone(),
        layers: layers.collect(),
        token_embedding: numbers.floats(config.vocabulary * hidden, 1.0),
        output_norm: vec![1.0; hidden],
        output: None,
    }
}

pub(crate) fn tokenizer_metadata(vocabulary: usize) -> TokenizerMetadata {
    TokenizerMetadata {
        tokens: (0..vocabulary).map(|id| format!("t{id}")).collect(),
        token_types: vec![1; vocabulary],
        merges: vec!["t 0".to_owned()],
        end_token: Some(0),
        padding_token: None,
    }
}

pub(crate) fn base_gguf() -> Vec<u8> {
    let weights = float_weights(&config(), 1).quantise().unwrap();
    write_llama("tiny", &weights, &tokenizer_metadata(16)).unwrap()
}

/// An adapter whose label rows are zeros: every label is as likely as the others, on every
/// processor.
pub(crate) fn uniform_adapter(label_words: usize) -> Adapter {
    Adapter {
        label_weight: vec![0.0; label_words * 32],
        ..random_adapter(label_words, 2)
    }
}

pub(crate) fn random_adapter(label_words: usize, seed: u64) -> Adapter {
    let mut numbers = Numbers::new(seed);
    Adapter {
        query_tokens: 2,
        prefix_tokens: 2,
        label_words,
        query_embedding: numbers.floats(2 * 32, 1.0),
        prefix_key: numbers.floats(2 * 16, 1.0),
        prefix_value: numbers.floats(2 * 16, 1.0),
        label_weight: numbers.floats(label_words * 32, 1.0),
        label_embedding: Some(numbers.floats(label_words * 32, 1.0)),
        lora: Some(random_lora(3, &mut numbers)),
    }
}

/// Low-rank additions of this rank for [`config`].
pub(crate) fn random_lora(rank: usize, numbers: &mut Numbers) -> TaskLora {
    let factors = LORA_CHANNELS.map(|(_, (inputs, outputs))| LoraFactors {
        a: numbers.floats(rank * inputs, 0.2),
        b: numbers.floats(rank * outputs, 0.2),
    });
    TaskLora { rank, factors }
}

/// A bundle before it is packed: the manifest as plain JSON, so that a test can put anything into
/// it.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) manifest: Value,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    /// A sound bundle with one task of three labels.
    pub(crate) fn sound() -> Self {
        let adapter = Adapter {
            label_embedding: None,
            lora: None,
            ..uniform_adapter(3)
        };
        let files = BTreeMap::from([
            ("base.gguf".to_owned(), base_gguf()),
            ("tokenizer.json".to_owned(), b"{}".to_vec()),
            (ADAPTER.to_owned(), adapter.write(shape()).unwrap()),
        ]);
        let manifest = json!({
            "schema": 1,
            "id": "tiny-1",
            "name": "A tiny model",
            "card": {"purpose": "tests"},
            "profile": {"name": "clean"},
            "tokenizer": {"file": "tokenizer.json"},
            "base": {"file": "base.gguf"},
            "tasks": [{
                "name": TASK,
                "kind": "flow",
                "labels": ["one", "two", "three"],
                "label_words": [[0], [1], [2]],
                "adapter": {"file": ADAPTER},
                "temperature": 1.0,
                "threshold": 0.25,
                "metrics": {"macro_f1": 0.5},
            }],
            "metrics_protocol": "none",
            "data_statement": "made up",
            "licence": "MIT",
            "self_test": [{"tokens": [1, 2, 3], "task": TASK, "label": "one", "score": 0.333}],
        });
        Self { manifest, files }.hashed()
    }

    /// A sound manifest over files that are not: for what is refused before the files are looked
    /// into.
    pub(crate) fn without_contents() -> Self {
        let mut parts = Self::sound();
        for bytes in parts.files.values_mut() {
            *bytes = b"x".to_vec();
        }
        parts.hashed()
    }

    /// Writes sizes and hashes of the files into the manifest.
    pub(crate) fn hashed(mut self) -> Self {
        let files: serde_json::Map<String, Value> = self
            .files
            .iter()
            .map(|(name, bytes)| {
                (
                    name.clone(),
                    json!({"sha256": sha256(bytes), "bytes": bytes.len()}),
                )
            })
            .collect();
        for pointer in ["/tokenizer", "/base", "/tasks/0/adapter"] {
            let file = self
                .manifest
                .pointer(&format!("{pointer}/file"))
                .and_then(Value::as_str)
                .map(str::to_owned);
            if let Some(entry) = file.and_then(|file| files.get(&file)) {
                self.manifest.pointer_mut(pointer).unwrap()["sha256"] = entry["sha256"].clone();
            }
        }
        self.manifest["files"] = Value::Object(files);
        self
    }

    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Self {
        *self.manifest.pointer_mut(pointer).unwrap() = value;
        self
    }

    pub(crate) fn with_file(mut self, name: &str, bytes: Vec<u8>) -> Self {
        self.files.insert(name.to_owned(), bytes);
        self.hashed()
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.manifest).unwrap()
    }

    pub(crate) fn pack(&self) -> Vec<u8> {
        self.pack_with(&self.manifest_bytes())
    }

    pub(crate) fn pack_with(&self, manifest: &[u8]) -> Vec<u8> {
        let mut entries = vec![("bundle.json", manifest)];
        entries.extend(
            self.files
                .iter()
                .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
        );
        pack(&entries)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Packs whatever it is given: written from the format's description, and without any check.
pub(crate) fn pack(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut end: usize = 16
        + entries
            .iter()
            .map(|(name, _)| 18 + name.len())
            .sum::<usize>();
    let mut out = b"TLLMBNDL".to_vec();
    out.extend(1_u32.to_le_bytes());
    out.extend((entries.len() as u32).to_le_bytes());
    for (name, data) in entries {
        let offset = end.next_multiple_of(64);
        out.extend((name.len() as u16).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((offset as u64).to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        end = offset + data.len();
    }
    for (_, data) in entries {
        out.resize(out.len().next_multiple_of(64), 0);
        out.extend(*data);
    }
    out
}

/// Where `needle` ends in `haystack`.
pub(crate) fn after(haystack: &[u8], needle: &[u8]) -> usize {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
        .expect("the needle is there")
        + needle.len()
}

/// Overwrites bytes.
pub(crate) fn patch(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}
