//! Broken bases and adapters in bundles whose hashes are right.

#![allow(clippy::unwrap_used, reason = "shared by tests only")]

use trafficllm_model::{Adapter, AdapterShape};

use super::{Case, patched};
use crate::common::{
    ADAPTER, Parts, after, base_gguf, config, float_weights, patch, shape, tokenizer_metadata,
    uniform_adapter,
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = gguf_header_cases();
    cases.extend(gguf_tensor_cases());
    cases.extend(gguf_model_cases());
    cases.extend(adapter_cases());
    cases
}

fn with_base(bytes: Vec<u8>) -> Vec<u8> {
    Parts::sound().with_file("base.gguf", bytes).pack()
}

/// The base with `new` written `skip` bytes after the end of `needle`.
fn base_patched(needle: &[u8], skip: usize, new: &[u8]) -> Vec<u8> {
    let base = base_gguf();
    let at = after(&base, needle) + skip;
    with_base(patched(base, at, new))
}

/// The base with one name replaced by another of the same length.
fn base_renamed(old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let base = base_gguf();
    let at = after(&base, old.as_bytes()) - old.len();
    with_base(patched(base, at, new.as_bytes()))
}

/// GGUF header and metadata. A key is followed by its type (4 bytes) and its value.
fn gguf_header_cases() -> Vec<Case> {
    let tokens = b"tokenizer.ggml.tokens";
    let at = |position, new: &[u8]| with_base(patched(base_gguf(), position, new));
    vec![
        (
            "gguf-empty",
            with_base(Vec::new()),
            "base.gguf: magic: expected 4 bytes at offset 0, found 0",
        ),
        (
            "gguf-magic",
            at(0, b"GGML"),
            "base.gguf: magic: expected GGUF",
        ),
        (
            "gguf-version",
            at(4, &[1]),
            "base.gguf: version: 1 is not supported",
        ),
        (
            "gguf-big-endian",
            at(4, &[0, 0, 0, 3]),
            "base.gguf: version: 50331648 is not supported",
        ),
        (
            "gguf-tensor-count-huge",
            at(8, &[0xff; 8]),
            "tensor count: expected at most 4096",
        ),
        (
            "gguf-tensor-count-lies",
            at(8, &[13]),
            "name of tensor 11: expected a name without control characters",
        ),
        (
            "gguf-metadata-count-huge",
            at(16, &[0xff; 8]),
            "metadata count: expected at most 4096",
        ),
        (
            "gguf-key-length-huge",
            at(24, &[0xff; 8]),
            "length of metadata key 0: expected at most 256",
        ),
        (
            "gguf-key-control-character",
            at(32, &[0x1b]),
            "metadata key 0: expected a name without control characters, found \\u{1b}eneral",
        ),
        (
            "gguf-key-not-utf8",
            at(32, &[0xff]),
            "metadata key 0: expected UTF-8",
        ),
        (
            "gguf-string-length-huge",
            base_patched(b"general.name", 4, &[0xff; 8]),
            "length of general.name: expected at most 1048576",
        ),
        (
            "gguf-metadata-type",
            base_patched(b"general.name", 0, &[13]),
            "type of general.name: metadata type 13 is not supported",
        ),
        (
            "gguf-array-of-arrays",
            base_patched(tokens, 4, &[9]),
            "type of tokenizer.ggml.tokens: metadata type 9 is not supported",
        ),
        (
            "gguf-array-length-huge",
            base_patched(tokens, 8, &[0xff; 8]),
            "length of tokenizer.ggml.tokens: expected at most 8388608",
        ),
        (
            "gguf-array-length-lies",
            base_patched(tokens, 8, &[0xff, 0xff]),
            "length of tokenizer.ggml.tokens: expected at most 1048576, found 21474836489",
        ),
        (
            "gguf-bool",
            base_patched(b"add_bos_token", 4, &[2]),
            "add_bos_token: expected 0 or 1, found 2",
        ),
        (
            "gguf-key-twice",
            base_renamed("llama.attention.key_length", "llama.attention.head_count"),
            "llama.attention.head_count: expected a key that comes once",
        ),
    ]
}

/// Tensor entries. A name is followed by the number of dimensions (4 bytes), the sizes (8 each),
/// the type (4), the offset (8).
fn gguf_tensor_cases() -> Vec<Case> {
    let matrix = b"blk.0.attn_q.weight".as_slice();
    let norm = b"output_norm.weight".as_slice();
    vec![
        (
            "gguf-dimensions-many",
            base_patched(matrix, 0, &[5]),
            "dimensions of blk.0.attn_q.weight: expected at most 4, found 5",
        ),
        (
            "gguf-dimensions-none",
            base_patched(matrix, 0, &[0]),
            "dimensions of blk.0.attn_q.weight: expected at least 1",
        ),
        (
            "gguf-size-zero",
            base_patched(matrix, 4, &[0]),
            "shape of blk.0.attn_q.weight: expected sizes from 1",
        ),
        (
            "gguf-size-huge",
            base_patched(matrix, 4, &[0xff; 8]),
            "elements of blk.0.attn_q.weight: expected at most 1073741824",
        ),
        (
            "gguf-size-product-overflow",
            base_patched(matrix, 4, &[[0, 0, 0, 0, 1, 0, 0, 0]; 2].concat()),
            "elements of blk.0.attn_q.weight: expected at most",
        ),
        (
            "gguf-size-not-blocks",
            base_patched(matrix, 4, &[33]),
            "shape of blk.0.attn_q.weight: expected rows of a multiple of 32, the block of Q8_0, found 33",
        ),
        (
            "gguf-size-past-end",
            base_patched(matrix, 12, &[0, 0x10]),
            "tensor blk.0.attn_q.weight: expected 139264 bytes at offset 2848, found 6528",
        ),
        (
            "gguf-type",
            base_patched(matrix, 20, &[10]),
            "data type of blk.0.attn_q.weight: GGML type 10 is not supported (supported: F32 (0), F16 (1)",
        ),
        (
            "gguf-offset-misaligned",
            base_patched(norm, 16, &[1]),
            "offset of output_norm.weight: expected a multiple of 32",
        ),
        (
            "gguf-offset-overflow",
            base_patched(norm, 16, &[0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            "tensor output_norm.weight: expected 128 bytes",
        ),
        (
            "gguf-offset-overlaps",
            base_patched(norm, 16, &[32, 0]),
            "offset of output_norm.weight: expected at least 544",
        ),
        (
            "gguf-offset-past-end",
            base_patched(norm, 16, &[0, 0, 0, 0, 1]),
            "tensor output_norm.weight: expected 128 bytes",
        ),
        (
            "gguf-tensor-twice",
            base_renamed("blk.0.attn_q.weight", "blk.0.attn_k.weight"),
            "tensor blk.0.attn_k.weight: expected a name that comes once",
        ),
        (
            "gguf-tensor-unknown",
            base_patched(b"blk.0.attn", 0, b"X"),
            "base.gguf: tensor blk.0.attn_norm.weight: expected a tensor",
        ),
        (
            "gguf-cut",
            with_base(base_gguf()[..base_gguf().len() - 64].to_vec()),
            "base.gguf: tensor blk.0.ffn_down.weight: expected 1088 bytes",
        ),
        (
            "gguf-shape",
            base_patched(
                matrix,
                4,
                &32_u64
                    .to_le_bytes()
                    .iter()
                    .chain(&31_u64.to_le_bytes())
                    .copied()
                    .collect::<Vec<_>>(),
            ),
            "tensor blk.0.attn_q.weight: expected shape [32, 32], found [31, 32]",
        ),
    ]
}

/// What the metadata and the numbers say about the model.
fn gguf_model_cases() -> Vec<Case> {
    let size = |key: &str, value: u32| base_patched(key.as_bytes(), 4, &value.to_le_bytes());
    let written = |change: fn(&mut trafficllm_model::transformer::TransformerWeights)| {
        let mut weights = float_weights(&config(), 1).quantise().unwrap();
        change(&mut weights);
        write_llama_bytes(&weights)
    };
    let mut extra = written(|weights| weights.output = Some(weights.token_embedding.clone()));
    let at = after(&extra, b"output.weight") - 13;
    patch(&mut extra, at, b"outpux.weight");
    // The tensors' data are the last bytes: `ffn_down`, 1088 of them. A block is an f16 scale and
    // 32 bytes.
    let scale_at = base_gguf().len() - 1088;
    let mut not_a_number = base_gguf();
    patch(&mut not_a_number, scale_at, &[0x00, 0x7e]);
    let mut infinite = base_gguf();
    patch(&mut infinite, scale_at + 34 * 3, &[0x00, 0x7c]);
    vec![
        (
            "gguf-architecture",
            base_patched(b"general.architecture", 12, b"gemma"),
            "general.architecture: gemma is not supported (supported: llama)",
        ),
        (
            "gguf-alignment",
            base_patched_key("general.quantization_version", "general.alignment"),
            "general.alignment: expected a power of two",
        ),
        (
            "gguf-layers-zero",
            size("llama.block_count", 0),
            "layers: expected 1 to 256, found 0",
        ),
        (
            "gguf-layers-more",
            size("llama.block_count", 2),
            "tensor blk.1.attn_norm.weight: expected a tensor, found nothing",
        ),
        (
            "gguf-layers-huge",
            size("llama.block_count", u32::MAX),
            "llama.block_count: expected at most 16777216",
        ),
        (
            "gguf-heads-zero",
            size("llama.attention.head_count", 0),
            "llama.attention.head_count: expected at least 1",
        ),
        (
            "gguf-vocabulary",
            size("llama.vocab_size", 17),
            "tensor token_embd.weight: expected shape [17, 32], found [16, 32]",
        ),
        (
            "gguf-hidden",
            size("llama.embedding_length", 64),
            "tensor token_embd.weight: expected shape [16, 64], found [16, 32]",
        ),
        (
            "gguf-rotary-part",
            size("llama.rope.dimension_count", 8),
            "llama.rope.dimension_count: 8 is not supported",
        ),
        (
            "gguf-size-type",
            base_patched(b"llama.block_count", 0, &[6]),
            "llama.block_count: expected an unsigned number",
        ),
        (
            "gguf-key-missing",
            base_patched(b"llama.block_c", 0, b"X"),
            "llama.block_count: expected an unsigned number, found nothing",
        ),
        (
            "gguf-epsilon",
            base_patched(b"layer_norm_rms_epsilon", 4, &f32::NAN.to_le_bytes()),
            "layer_norm_rms_epsilon: expected a finite number, found NaN",
        ),
        (
            "gguf-rope-base",
            base_patched(b"llama.rope.freq_base", 4, &0.5_f32.to_le_bytes()),
            "rope_base: expected a finite number above 1",
        ),
        (
            "gguf-tensor-extra",
            with_base(extra),
            "tensors: outpux.weight is not supported",
        ),
        (
            "gguf-norm-not-a-number",
            with_base(norm_not_a_number()),
            "tensor output_norm.weight: expected finite numbers, found NaN at element 3",
        ),
        (
            "gguf-scale-not-a-number",
            with_base(not_a_number),
            "tensor blk.0.ffn_down.weight: expected finite numbers, found NaN at element 0",
        ),
        (
            "gguf-scale-infinite",
            with_base(infinite),
            "tensor blk.0.ffn_down.weight: expected finite numbers",
        ),
    ]
}

fn write_llama_bytes(weights: &trafficllm_model::transformer::TransformerWeights) -> Vec<u8> {
    trafficllm_model::gguf::write_llama("tiny", weights, &tokenizer_metadata(16)).unwrap()
}

/// The base with one metadata key renamed (and so shortened).
fn base_patched_key(old: &str, new: &str) -> Vec<u8> {
    let base = base_gguf();
    let start = after(&base, old.as_bytes()) - old.len();
    let mut out = base[..start - 8].to_vec();
    out.extend((new.len() as u64).to_le_bytes());
    out.extend(new.as_bytes());
    let end = start + old.len();
    // The value becomes 3.
    out.extend(&base[end..end + 4]);
    out.extend(3_u32.to_le_bytes());
    out.extend(&base[end + 8..]);
    with_base(out)
}

fn norm_not_a_number() -> Vec<u8> {
    let mut weights = float_weights(&config(), 1).quantise().unwrap();
    weights.output_norm[3] = 123.5;
    let mut bytes = write_llama_bytes(&weights);
    let at = after(&bytes, &123.5_f32.to_le_bytes()) - 4;
    patch(&mut bytes, at, &f32::NAN.to_le_bytes());
    bytes
}

fn without_prefix_value() -> Vec<u8> {
    let adapter = Adapter {
        lora: None,
        ..uniform_adapter(3)
    };
    let bytes = adapter.write(shape()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut kept = tensors.tensors();
    kept.retain(|(name, _)| name != "prefix.value");
    safetensors::serialize(kept, None).unwrap()
}

fn adapter_cases() -> Vec<Case> {
    let sound = || Adapter {
        label_embedding: None,
        lora: None,
        ..uniform_adapter(3)
    };
    let with = |bytes: Vec<u8>| Parts::sound().with_file(ADAPTER, bytes).pack();
    let written = |adapter: Adapter, shape| with(adapter.write(shape).unwrap());
    let renamed = |old: &str, new: &str| {
        let bytes = sound().write(shape()).unwrap();
        let at = after(&bytes, old.as_bytes()) - old.len();
        with(patched(bytes, at, new.as_bytes()))
    };
    let last = |value: f32| {
        let mut bytes = sound().write(shape()).unwrap();
        let at = bytes.len() - 4;
        patch(&mut bytes, at, &value.to_le_bytes());
        with(bytes)
    };
    let narrow = AdapterShape {
        hidden: 16,
        ..shape()
    };
    let narrow_adapter = Adapter {
        query_embedding: vec![0.0; 32],
        label_weight: vec![0.0; 48],
        ..sound()
    };
    let deep = AdapterShape {
        layers: 2,
        ..shape()
    };
    let deep_adapter = Adapter {
        prefix_key: vec![0.0; 64],
        prefix_value: vec![0.0; 64],
        ..sound()
    };
    let bytes = sound().write(shape()).unwrap();
    vec![
        (
            "adapter-empty",
            with(Vec::new()),
            "adapters/tiny_task.safetensors: header: expected a safetensors header",
        ),
        (
            "adapter-header-huge",
            with(patched(bytes.clone(), 0, &[0xff; 8])),
            "length of header: expected at most 16384",
        ),
        (
            "adapter-header-lies",
            with(patched(bytes.clone(), 0, &[9, 0])),
            "header: expected a safetensors header",
        ),
        (
            "adapter-cut",
            with(bytes[..bytes.len() - 1].to_vec()),
            "header: expected a safetensors header",
        ),
        (
            "adapter-longer",
            with([bytes.as_slice(), &[0]].concat()),
            "header: expected a safetensors header",
        ),
        (
            "adapter-tensor-unknown",
            renamed("label.weight", "label.weighs"),
            "tensors: expected the tensors of an adapter, found label.weighs",
        ),
        (
            "adapter-tensor-missing",
            with(without_prefix_value()),
            "tensor prefix.value: expected a tensor, found nothing",
        ),
        (
            "adapter-data-type",
            renamed("\"F32\"", "\"I32\""),
            "is not supported (supported: F32)",
        ),
        (
            "adapter-not-a-number",
            last(f32::NAN),
            "expected finite numbers, found NaN",
        ),
        (
            "adapter-infinite",
            last(f32::NEG_INFINITY),
            "expected finite numbers, found -inf",
        ),
        (
            "adapter-hidden",
            written(narrow_adapter, narrow),
            "tensor query.embedding: expected shape [2, 32], found [2, 16]",
        ),
        (
            "adapter-layers",
            written(deep_adapter, deep),
            "tensor prefix.key: expected shape [1, 2, 16], found [2, 2, 16]",
        ),
    ]
    .into_iter()
    .chain(lora_cases())
    .collect()
}

/// A sound adapter with low-rank additions, its tensors changed before they are written: name, shape, values.
fn with_lora_tensors(change: impl Fn(&str, &mut Vec<usize>, &mut Vec<f32>) -> bool) -> Vec<u8> {
    let bytes = uniform_adapter(3).write(shape()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut parts = Vec::new();
    for (name, view) in tensors.tensors() {
        let (mut shape, values) = (view.shape().to_vec(), view.data().as_chunks().0);
        let mut values: Vec<f32> = values.iter().map(|of| f32::from_le_bytes(*of)).collect();
        if change(&name, &mut shape, &mut values) {
            let bytes: Vec<u8> = values.iter().flat_map(|of| of.to_le_bytes()).collect();
            parts.push((name, shape, bytes));
        }
    }
    let views = parts.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    Parts::sound().with_file(ADAPTER, file).pack()
}

fn lora_cases() -> Vec<Case> {
    let value = |number: f32| {
        with_lora_tensors(move |name, _, values| {
            if name == "lora.ffn_down.b" {
                values[5] = number;
            }
            true
        })
    };
    let rank = |rank: usize| {
        with_lora_tensors(move |name, shape, values| {
            if name.starts_with("lora.") {
                shape[1] = rank;
                values.resize(shape.iter().product(), 0.0);
            }
            true
        })
    };
    let reshaped = |of: &'static str, to: [usize; 3]| {
        with_lora_tensors(move |name, shape, values| {
            if name == of {
                *shape = to.to_vec();
                values.resize(to.iter().product(), 0.0);
            }
            true
        })
    };
    vec![
        (
            "adapter-lora-not-a-number",
            value(f32::NAN),
            "expected finite numbers, found NaN",
        ),
        (
            "adapter-lora-infinite",
            value(f32::INFINITY),
            "expected finite numbers, found inf",
        ),
        (
            "adapter-lora-no-rank",
            rank(0),
            "LoRA rank: expected at least 1, found 0",
        ),
        (
            "adapter-lora-ranks-differ",
            reshaped("lora.attn_output.a", [1, 2, 32]),
            "tensor lora.attn_output.a: expected shape [1, 3, 32], found [1, 2, 32]",
        ),
        (
            "adapter-lora-channels",
            reshaped("lora.ffn_gate_up.b", [1, 3, 32]),
            "tensor lora.ffn_gate_up.b: expected shape [1, 3, 64], found [1, 3, 32]",
        ),
        (
            "adapter-lora-layers",
            reshaped("lora.attn_qkv.a", [2, 3, 32]),
            "tensor lora.attn_qkv.a: expected shape [1, 3, 32], found [2, 3, 32]",
        ),
        (
            "adapter-lora-missing",
            with_lora_tensors(|name, _, _| name != "lora.ffn_down.a"),
            "tensor lora.ffn_down.a: expected a tensor, found nothing",
        ),
        (
            "adapter-lora-unknown",
            Parts::sound()
                .with_file(ADAPTER, {
                    let bytes = uniform_adapter(3).write(shape()).unwrap();
                    let at = after(&bytes, b"lora.ffn_down.a") - 1;
                    patched(bytes, at, b"c")
                })
                .pack(),
            "tensors: expected the tensors of an adapter, found lora.ffn_down.c",
        ),
    ]
}
