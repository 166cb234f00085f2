//! Every limit, at the limit and one past it. At the limit something else may be wrong; past it the
//! limit is what is named.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use common::{
    Numbers, Parts, base_gguf, config, pack, patch, random_adapter, shape, tokenizer_metadata,
};
use serde_json::{Value, json};
use trafficllm_model::gguf::{Gguf, read_config};
use trafficllm_model::transformer::TaskLora;
use trafficllm_model::{Adapter, Bundle, LabelTrie, Manifest, ModelError, limits};

/// Holds `check` to `limit`: it has to complain about that limit past it, and not at it.
fn held<T>(limit: usize, check: impl Fn(usize) -> Result<T, ModelError>) {
    // What a changed count makes of the bytes behind it can be past a limit of its own.
    if let Err(ModelError::Limit { field, found, .. }) = check(limit) {
        assert_ne!(found, limit as u64, "{field}: refused at the limit");
    }
    match check(limit + 1) {
        Err(ModelError::Limit {
            limit: named,
            found,
            ..
        }) => {
            assert_eq!((named, found), (limit as u64, limit as u64 + 1));
        }
        Err(other) => panic!("past {limit}: {other}"),
        Ok(_) => panic!("accepted past {limit}"),
    }
}

/// As [`held`], where at the limit nothing else is wrong.
fn held_exactly<T>(limit: usize, check: impl Fn(usize) -> Result<T, ModelError>) {
    if let Err(error) = check(limit) {
        panic!("refused at the limit: {error}");
    }
    held(limit, check);
}

fn parse(parts: &Parts) -> Result<Manifest, ModelError> {
    Manifest::parse(&parts.manifest_bytes())
}

fn parse_with(pointer: &str, value: Value) -> Result<Manifest, ModelError> {
    parse(&Parts::without_contents().with(pointer, value))
}

#[test]
fn bundle_limits() {
    held(limits::BUNDLE_FILES_MAX, |count| {
        let mut bytes = pack(&[("bundle.json", b"{}")]);
        patch(&mut bytes, 12, &(count as u32).to_le_bytes());
        Bundle::from_bytes(bytes)
    });
    // One less than in the packed index, which also has the manifest.
    held_exactly(limits::BUNDLE_FILES_MAX - 1, |count| {
        let mut parts = Parts::without_contents();
        for index in parts.files.len()..count {
            parts.files.insert(format!("file-{index}"), Vec::new());
        }
        parse(&parts.hashed())
    });
    held(limits::FILE_BYTES_MAX, |size| {
        let mut bytes = pack(&[("bundle.json", b"{}")]);
        patch(&mut bytes, 37, &(size as u64).to_le_bytes());
        Bundle::from_bytes(bytes)
    });
    held_exactly(limits::FILE_BYTES_MAX, |size| {
        parse_with("/files/base.gguf/bytes", json!(size))
    });
    held_exactly(limits::BUNDLE_BYTES_MAX, |total| {
        let mut parts = Parts::without_contents();
        for (name, size) in [
            ("base.gguf", 1 << 30),
            ("tokenizer.json", 1 << 29),
            (common::ADAPTER, total - (3 << 29)),
        ] {
            parts.manifest["files"][name]["bytes"] = json!(size);
        }
        parse(&parts)
    });
    // Zeroed memory that nobody touches costs nothing.
    held(limits::BUNDLE_BYTES_MAX, |size| {
        Bundle::from_bytes(vec![0; size])
    });
    let folder = tempfile::tempdir().unwrap();
    held(limits::BUNDLE_BYTES_MAX, |size| {
        // A sparse file; at the limit its magic is looked at, so it is made short there.
        let file = std::fs::File::create(folder.path().join("b")).unwrap();
        file.set_len(if size > limits::BUNDLE_BYTES_MAX {
            size as u64
        } else {
            0
        })
        .unwrap();
        Bundle::open(&folder.path().join("b"))
    });
}

#[test]
fn manifest_limits() {
    held_exactly(limits::MANIFEST_BYTES_MAX, |size| {
        let mut bytes = Parts::without_contents().manifest_bytes();
        bytes.resize(size, b' ');
        Manifest::parse(&bytes)
    });
    held(limits::NAME_BYTES_MAX, |length| {
        let name = "a".repeat(length);
        Bundle::from_bytes(pack(&[("bundle.json", b"{}"), (&name, b"")]))
    });
    held_exactly(limits::NAME_BYTES_MAX, |length| {
        let mut parts = Parts::without_contents();
        parts.files.insert("a".repeat(length), Vec::new());
        parse(&parts.hashed())
    });
    held_exactly(limits::TASKS_MAX, |count| {
        let mut parts = Parts::without_contents();
        let task = parts.manifest["tasks"][0].clone();
        for index in 1..count {
            let mut task = task.clone();
            task["name"] = json!(format!("task_{index}"));
            parts.manifest["tasks"].as_array_mut().unwrap().push(task);
        }
        parse(&parts)
    });
    held_exactly(limits::TASK_NAME_BYTES_MAX, |length| {
        let name = json!("t".repeat(length));
        parse(
            &Parts::without_contents()
                .with("/tasks/0/name", name.clone())
                .with("/self_test/0/task", name),
        )
    });
    held_exactly(limits::LABEL_BYTES_MAX, |length| {
        parse_with("/tasks/0/labels/2", json!("l".repeat(length)))
    });
    for field in ["/id", "/name", "/licence"] {
        held_exactly(limits::TEXT_BYTES_MAX, |length| {
            parse_with(field, json!("t".repeat(length)))
        });
    }
    held_exactly(limits::LABELS_MAX, |count| {
        let labels: Vec<String> = (0..count).map(|index| format!("l{index}")).collect();
        let words: Vec<[usize; 1]> = (0..count).map(|index| [index]).collect();
        let parts = Parts::without_contents()
            .with("/tasks/0/labels", json!(labels))
            .with("/self_test/0/label", json!("l0"));
        parse(&parts.with("/tasks/0/label_words", json!(words)))
    });
    held_exactly(limits::SELF_TESTS_MAX, |count| {
        let mut parts = Parts::without_contents();
        parts.manifest["self_test"] = json!(vec![parts.manifest["self_test"][0].clone(); count]);
        parse(&parts)
    });
    held_exactly(limits::ITEM_TOKENS_MAX, |count| {
        parse_with("/self_test/0/tokens", json!(vec![0; count]))
    });
}

#[test]
fn temperature_range() {
    let (low, high) = (
        *limits::TEMPERATURE_RANGE.start(),
        *limits::TEMPERATURE_RANGE.end(),
    );
    for (temperature, fits) in [
        (low, true),
        (high, true),
        (low * 0.999, false),
        (high * 1.001, false),
    ] {
        assert_eq!(
            parse_with("/tasks/0/temperature", json!(temperature)).is_ok(),
            fits,
            "{temperature}"
        );
    }
}

#[test]
fn label_limits() {
    held_exactly(limits::LABELS_MAX, |count| {
        let paths: Vec<Vec<u32>> = (0..count as u32).map(|word| vec![word]).collect();
        LabelTrie::new("t", &paths, count)
    });
    held_exactly(limits::LABEL_DEPTH_MAX, |depth| {
        LabelTrie::new("t", &[vec![0; depth]], 1)
    });
}

/// An adapter of the given sizes, written and read.
fn adapter(
    query_tokens: usize,
    prefix_tokens: usize,
    label_words: usize,
) -> Result<Adapter, ModelError> {
    adapter_with_lora(query_tokens, prefix_tokens, label_words, None)
}

fn adapter_with_lora(
    query_tokens: usize,
    prefix_tokens: usize,
    label_words: usize,
    rank: Option<usize>,
) -> Result<Adapter, ModelError> {
    let mut numbers = Numbers::new(1);
    let lora = rank.map(|rank| common::random_lora(rank, &mut numbers));
    let adapter = Adapter {
        query_tokens,
        prefix_tokens,
        label_words,
        query_embedding: numbers.floats(query_tokens * 32, 1.0),
        prefix_key: numbers.floats(prefix_tokens * 16, 1.0),
        prefix_value: numbers.floats(prefix_tokens * 16, 1.0),
        label_weight: numbers.floats(label_words * 32, 1.0),
        label_embedding: None,
        lora,
    };
    let read = Adapter::read("a", &unchecked(&adapter), shape());
    let written = adapter.write(shape());
    assert_eq!(read.is_ok(), written.is_ok());
    assert!(written.is_err() || read.as_ref().is_ok_and(|read| *read == adapter));
    read
}

/// The adapter's file, written by nobody who knows the limits.
fn unchecked(adapter: &Adapter) -> Vec<u8> {
    let bytes = |values: &[f32]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut parts = vec![
        (
            "query.embedding".to_owned(),
            vec![adapter.query_tokens, 32],
            bytes(&adapter.query_embedding),
        ),
        (
            "prefix.key".to_owned(),
            vec![1, adapter.prefix_tokens, 16],
            bytes(&adapter.prefix_key),
        ),
        (
            "prefix.value".to_owned(),
            vec![1, adapter.prefix_tokens, 16],
            bytes(&adapter.prefix_value),
        ),
        (
            "label.weight".to_owned(),
            vec![adapter.label_words, 32],
            bytes(&adapter.label_weight),
        ),
    ];
    for (matrix, (inputs, outputs)) in common::LORA_CHANNELS {
        let Some(lora) = &adapter.lora else { break };
        let index = TaskLora::NAMES.iter().position(|name| *name == matrix);
        let factors = &lora.factors[index.unwrap()];
        for (side, channels, values) in [("a", inputs, &factors.a), ("b", outputs, &factors.b)] {
            let name = format!("lora.{matrix}.{side}");
            parts.push((name, vec![1, lora.rank, channels], bytes(values)));
        }
    }
    let view = |shape: &Vec<usize>, bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap()
    };
    let views = parts
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), view(shape, bytes)));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn adapter_limits() {
    held_exactly(limits::QUERY_TOKENS_MAX, |count| adapter(count, 2, 3));
    held_exactly(limits::PREFIX_TOKENS_MAX, |count| adapter(1, count, 3));
    held_exactly(limits::LABEL_WORDS_MAX, |count| adapter(1, 2, count));
    held(limits::ADAPTER_BYTES_MAX, |size| {
        Adapter::read("a", &vec![0; size], shape())
    });
    held_exactly(limits::ADAPTER_HEADER_BYTES_MAX, |length| {
        let bytes = random_adapter(3, 1).write(shape()).unwrap();
        let header_bytes = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let (header, tensors) = bytes[8..].split_at(header_bytes);
        let mut padded = (length as u64).to_le_bytes().to_vec();
        padded.extend_from_slice(header);
        padded.resize(8 + length, b' ');
        padded.extend_from_slice(tensors);
        Adapter::read("a", &padded, shape())
    });
    held_exactly(limits::LORA_RANK_MAX, |rank| {
        adapter_with_lora(1, 2, 3, Some(rank))
    });
    let error = adapter_with_lora(1, 2, 3, Some(0)).unwrap_err().to_string();
    assert!(error.contains("LoRA rank: expected at least 1"), "{error}");
    assert!(adapter(1, 0, 1).is_ok());
    for (query_tokens, label_words, expected) in [
        (0, 1, "query tokens: expected at least 1"),
        (1, 0, "label words: expected at least 1"),
    ] {
        let error = adapter(query_tokens, 2, label_words)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Parses the base with the field at `position` overwritten.
fn parse_base(position: usize, new: &[u8]) -> Result<(), ModelError> {
    let mut bytes = base_gguf();
    patch(&mut bytes, position, new);
    Gguf::parse("g", &bytes).map(|_| ())
}

#[test]
fn gguf_limits() {
    let base = base_gguf();
    let after = |needle: &str| common::after(&base, needle.as_bytes());
    held(limits::FILE_BYTES_MAX, |size| {
        Gguf::parse("g", &vec![0; size]).map(|_| ())
    });
    held(limits::GGUF_TENSORS_MAX, |count| {
        parse_base(8, &(count as u64).to_le_bytes())
    });
    held(limits::GGUF_METADATA_MAX, |count| {
        parse_base(16, &(count as u64).to_le_bytes())
    });
    held(limits::GGUF_NAME_BYTES_MAX, |length| {
        parse_base(24, &(length as u64).to_le_bytes())
    });
    held(limits::GGUF_NAME_BYTES_MAX, |length| {
        parse_base(
            after("token_embd.weight") - 17 - 8,
            &(length as u64).to_le_bytes(),
        )
    });
    held(limits::GGUF_STRING_BYTES_MAX, |length| {
        parse_base(after("general.name") + 4, &(length as u64).to_le_bytes())
    });
    held(limits::GGUF_ARRAY_ELEMENTS_MAX, |count| {
        parse_base(
            after("tokenizer.ggml.tokens") + 8,
            &(count as u64).to_le_bytes(),
        )
    });
    held(limits::GGUF_DIMENSIONS_MAX, |count| {
        parse_base(after("blk.0.attn_q.weight"), &(count as u32).to_le_bytes())
    });
    held(limits::GGUF_TENSOR_ELEMENTS_MAX, |size| {
        parse_base(
            after("output_norm.weight") + 4,
            &(size as u64).to_le_bytes(),
        )
    });
    let with_size = |key: &str, size: usize| {
        let mut bytes = base.clone();
        patch(&mut bytes, after(key) + 4, &(size as u32).to_le_bytes());
        read_config(&Gguf::parse("g", &bytes)?)
    };
    for (key, limit) in [
        ("llama.context_length", limits::GGUF_SIZE_MAX),
        ("llama.embedding_length", limits::HIDDEN_MAX),
        ("llama.feed_forward_length", limits::FEED_FORWARD_MAX),
        ("llama.attention.key_length", limits::HEAD_WIDTH_MAX),
    ] {
        held(limit, |size| with_size(key, size));
    }
}

#[test]
fn gguf_arrays_share_one_limit() {
    // The vocabulary's 16 texts have been read when the 16 types come.
    let base = base_gguf();
    let at = common::after(&base, b"tokenizer.ggml.token_type") + 8;
    held(limits::GGUF_ARRAY_ELEMENTS_MAX - 16, |count| {
        parse_base(at, &(count as u64).to_le_bytes())
    });
}

#[test]
fn gguf_alignment() {
    // The vocabulary's size can be left out, so its place can be used: the name has as many
    // characters.
    let with = |alignment: u32| {
        let mut bytes = base_gguf();
        let at = common::after(&bytes, b"llama.vocab_size");
        let mut out = bytes[..at - 16 - 8].to_vec();
        out.extend(17_u64.to_le_bytes());
        out.extend(b"general.alignment");
        out.extend(&bytes[at..at + 4]);
        out.extend(alignment.to_le_bytes());
        out.extend(bytes.drain(at + 8..));
        Gguf::parse("g", &out)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let at_limit = with(limits::GGUF_ALIGNMENT_MAX as u32).unwrap_err();
    assert!(!at_limit.contains("general.alignment"), "{at_limit}");
    let past = with(limits::GGUF_ALIGNMENT_MAX as u32 * 2).unwrap_err();
    assert!(
        past.contains("general.alignment: expected a power of two up to 4096, found 8192"),
        "{past}"
    );
    assert_eq!(tokenizer_metadata(config().vocabulary).tokens.len(), 16);
}
