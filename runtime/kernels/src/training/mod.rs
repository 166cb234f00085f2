//! f32 kernels for the trainer: matrix products and the loops around them, forward and backward.
//!
//! Every function runs on the calling thread and starts none. All instruction sets give the same bits: products are
//! fused (`mul_add`) and added up in the same order everywhere, so a training run does not depend on the processor.

mod cpu;
mod elementwise;
mod exponential;
pub mod gemm;
mod loss;
mod memory;
mod softmax;
mod update;

pub use cpu::Cpu;
pub use gemm::{GemmScratch, Matrix, Packed};
pub use memory::keep_freed_memory;
pub use update::AdamWStep;
