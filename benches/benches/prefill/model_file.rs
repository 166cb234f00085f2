//! Random-weight GGUF files that llama.cpp, candle and this project's own reader open: standard `Q8_0` and `Q4_0` blocks, each
//! with its own scale, as llama.cpp's quantiser makes them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use trafficllm_kernels::half;

use crate::shapes::{CONTEXT, HEAD_DIM, Shape};

const BLOCK: usize = 32;
const ALIGNMENT: usize = 32;
const EPSILON: f32 = 1e-5;
const ROPE_BASE: f32 = 10_000.0;

/// GGUF's numbers for kinds of metadata.
const UNSIGNED: u32 = 4;
const SIGNED: u32 = 5;
const FLOAT: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// The number format of the matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// 8 bits and a scale per 32.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits and a scale per 32.
    #[value(name = "q4_0")]
    Q4_0,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// GGML's number of the tensor type, and `general.file_type`.
    fn codes(self) -> (u32, u32) {
        match self {
            Self::Q8_0 => (8, 7),
            Self::Q4_0 => (2, 2),
        }
    }

    fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 2 + BLOCK,
            Self::Q4_0 => 2 + BLOCK / 2,
        }
    }

    fn block(self, values: &[f32; BLOCK], out: &mut Vec<u8>) {
        let largest = values
            .iter()
            .copied()
            .fold(0.0_f32, |a, b| if b.abs() > a.abs() { b } else { a });
        let bits = half::to_bits(match self {
            Self::Q8_0 => largest.abs() / 127.0,
            Self::Q4_0 => largest / -8.0,
        });
        out.extend_from_slice(&bits.to_le_bytes());
        let scale = half::from_bits(bits);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        match self {
            Self::Q8_0 => out.extend(
                values
                    .iter()
                    .map(|value| (value * inverse).round() as i8 as u8),
            ),
            Self::Q4_0 => {
                let nibble = |value: f32| (value * inverse + 8.5).clamp(0.0, 15.0) as u8;
                let (low, high) = values.split_at(BLOCK / 2);
                out.extend(
                    low.iter()
                        .zip(high)
                        .map(|(low, high)| nibble(*low) | nibble(*high) << 4),
                );
            }
        }
    }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Nearly normal with deviation 1: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: i32 = (0..4)
            .map(|part| (bits >> (16 * part) & 0xffff) as i32 - 0x8000)
            .sum();
        sum as f32 * (3.0_f32.sqrt() / 65_536.0)
    }
}

/// Normal weights of a matrix with `columns` input channels, such that a product keeps the size of its input.
pub(crate) fn random_weights(seed: u64, rows: usize, columns: usize) -> Vec<f32> {
    let mut random = Random(seed);
    let deviation = 1.0 / (columns as f32).sqrt();
    (0..rows * columns)
        .map(|_| random.normal() * deviation)
        .collect()
}

struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        push_string(&mut self.bytes, key);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, STRING);
        push_string(&mut self.bytes, value);
    }

    fn unsigned(&mut self, key: &str, value: usize) {
        self.key(key, UNSIGNED);
        self.bytes.extend_from_slice(&(value as u32).to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, FLOAT);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, count: usize) {
        self.key(key, ARRAY);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&(count as u64).to_le_bytes());
    }

    /// A vocabulary of the size of the model, as far as llama.cpp wants one: no text is ever tokenised.
    fn vocabulary(&mut self, size: usize) {
        self.string("tokenizer.ggml.model", "llama");
        self.array("tokenizer.ggml.tokens", STRING, size);
        for id in 0..size {
            push_string(&mut self.bytes, &token_text(id));
        }
        self.array("tokenizer.ggml.scores", FLOAT, size);
        for id in 0..size {
            self.bytes.extend_from_slice(&(-(id as f32)).to_le_bytes());
        }
        self.array("tokenizer.ggml.token_type", SIGNED, size);
        for id in 0..size {
            let kind: i32 = match id {
                0 => 2,
                1 | 2 => 3,
                3..=258 => 6,
                _ => 1,
            };
            self.bytes.extend_from_slice(&kind.to_le_bytes());
        }
        self.unsigned("tokenizer.ggml.unknown_token_id", 0);
        self.unsigned("tokenizer.ggml.bos_token_id", 1);
        self.unsigned("tokenizer.ggml.eos_token_id", 2);
    }
}

fn token_text(id: usize) -> String {
    match id {
        0 => "<unk>".to_owned(),
        1 => "<s>".to_owned(),
        2 => "</s>".to_owned(),
        3..=258 => format!("<0x{:02X}>", id - 3),
        _ => format!("t{id}"),
    }
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn metadata(shape: &Shape, format: Format) -> Metadata {
    let mut metadata = Metadata {
        count: 0,
        bytes: Vec::new(),
    };
    metadata.string("general.architecture", "llama");
    metadata.string(
        "general.name",
        &format!("random {} {}", shape.name, format.name()),
    );
    metadata.unsigned("general.file_type", format.codes().1 as usize);
    metadata.unsigned("general.quantization_version", 2);
    for (key, value) in [
        ("vocab_size", shape.vocabulary),
        ("context_length", CONTEXT),
        ("embedding_length", shape.hidden),
        ("block_count", shape.layers),
        ("feed_forward_length", shape.feed_forward),
        ("rope.dimension_count", HEAD_DIM),
        ("attention.head_count", shape.heads()),
        ("attention.head_count_kv", shape.kv_heads),
    ] {
        metadata.unsigned(&format!("llama.{key}"), value);
    }
    metadata.float("llama.attention.layer_norm_rms_epsilon", EPSILON);
    metadata.float("llama.rope.freq_base", ROPE_BASE);
    metadata.vocabulary(shape.vocabulary);
    metadata
}

/// Name, sizes (outermost first); one size is a norm.
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        (
            "token_embd.weight".to_owned(),
            vec![shape.vocabulary, shape.hidden],
        ),
        ("output_norm.weight".to_owned(), vec![shape.hidden]),
    ];
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        tensors.push((name("attn_norm"), vec![shape.hidden]));
        tensors.push((name("ffn_norm"), vec![shape.hidden]));
        for (part, rows, columns) in shape.matrices() {
            tensors.push((name(part), vec![rows, columns]));
        }
    }
    tensors
}

fn data_bytes(format: Format, sizes: &[usize]) -> usize {
    match sizes {
        [size] => size * 4,
        sizes => sizes.iter().product::<usize>() / BLOCK * format.block_bytes(),
    }
}

/// Writes a whole file; the same shape and format give the same bytes.
pub(crate) fn write(shape: &Shape, format: Format, out: &mut impl Write) -> io::Result<()> {
    let (tensors, metadata) = (tensors(shape), metadata(shape, format));
    let mut header = b"GGUF".to_vec();
    header.extend_from_slice(&3_u32.to_le_bytes());
    header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    header.extend_from_slice(&metadata.count.to_le_bytes());
    header.extend_from_slice(&metadata.bytes);
    let mut offset = 0;
    for (name, sizes) in &tensors {
        push_string(&mut header, name);
        header.extend_from_slice(&(sizes.len() as u32).to_le_bytes());
        for &size in sizes.iter().rev() {
            header.extend_from_slice(&(size as u64).to_le_bytes());
        }
        let code = if sizes.len() == 1 {
            0
        } else {
            format.codes().0
        };
        header.extend_from_slice(&code.to_le_bytes());
        header.extend_from_slice(&(offset as u64).to_le_bytes());
        offset += data_bytes(format, sizes).next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&header)?;
    let mut data = Vec::new();
    for (index, (_, sizes)) in tensors.iter().enumerate() {
        data.clear();
        if let [rows, columns] = sizes[..] {
            let mut random = Random(index as u64 + 1);
            let deviation = 1.0 / (columns as f32).sqrt();
            for _ in 0..rows * columns / BLOCK {
                let block = std::array::from_fn(|_| random.normal() * deviation);
                format.block(&block, &mut data);
            }
        } else {
            data.extend((0..sizes[0]).flat_map(|_| 1.0_f32.to_le_bytes()));
        }
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&data)?;
    }
    Ok(())
}

/// The path of that model's file, written first if it is not there.
pub(crate) fn cached(folder: &Path, shape: &Shape, format: Format) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{}-{}.gguf", shape.name, format.name()));
    if !path.exists() {
        // Renamed when whole, so that a run that was stopped leaves no half file under that name.
        let part = path.with_extension("part");
        let mut out = BufWriter::new(File::create(&part)?);
        write(shape, format, &mut out)?;
        out.flush()?;
        fs::rename(part, &path)?;
    }
    Ok(path)
}
