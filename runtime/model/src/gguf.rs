//! GGUF files: a reader for untrusted bytes, a deterministic writer, and the llama weights in
//! between.
//!
//! A quantised row carries one scale in all of its `Q8_0` blocks, so that the engine's layout (int8
//! rows, one scale each) is read back without loss. Other tools see an ordinary `Q8_0` file.

mod read;
mod weights;
mod write;

pub use read::{Array, DataType, Gguf, Tensor, Value};
pub use weights::{FloatLayer, FloatWeights, load_weights, read_config};
pub use write::{TokenizerMetadata, write_llama};

/// Elements of a `Q8_0` block.
const BLOCK_ELEMENTS: usize = 32;
/// Bytes of a `Q8_0` block: one f16 scale, then the elements.
const BLOCK_BYTES: usize = size_of::<Q8Block>();
/// The first four bytes of a GGUF file.
const MAGIC: [u8; 4] = *b"GGUF";
/// The tensors' alignment where the file names none.
const ALIGNMENT_DEFAULT: usize = 32;

/// 32 numbers of a `Q8_0` row as they lie in the file: bytes only, so any address will do.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Q8Block {
    /// A 16-bit float, little endian: what one step of `values` is worth.
    scale: [u8; 2],
    values: [i8; BLOCK_ELEMENTS],
}
