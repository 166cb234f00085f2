//! GGUF files: a reader for untrusted bytes, a deterministic writer, and the llama weights in
//! between.
//!
//! Formats of matrices, and what becomes of them ([`load_weights`]):
//!
//! | in the file | in the engine | lost |
//! |---|---|---|
//! | `Q8_0`, one scale in all blocks of a row | int8 rows, one scale each | nothing |
//! | `Q4_0`, `Q4_1`, `Q4_K` | 4 bits, a scale (and a minimum) for each 32 | nothing |
//! | other `Q8_0`, `Q5_0`, `Q5_1`, `Q5_K`, `Q6_K`, `F16`, `BF16`, `F32` | int8 rows, one scale each | up to half a step: the largest magnitude of the row / 254 |
//!
//! So a `Q4_K_M` file, which is `Q4_K` with some `Q6_K`, keeps its 4-bit matrices. Norms are `F32`, `F16`
//! or `BF16`.
//!
//! What is written is read back without loss, and other tools see ordinary `Q8_0` and `Q4_0` files.

mod blocks;
mod data_type;
mod load;
mod metadata;
mod read;
mod weights;
mod write;

pub use data_type::DataType;
pub use load::{load_weights, read_config};
pub use metadata::{Array, Value};
pub use read::{Gguf, Tensor};
pub use weights::{FloatLayer, FloatWeights};
pub use write::{TokenizerMetadata, write_llama};

/// The first four bytes of a GGUF file.
const MAGIC: [u8; 4] = *b"GGUF";
/// The tensors' alignment where the file names none.
const ALIGNMENT_DEFAULT: usize = 32;
