//! Quantised CPU kernels, chosen at run time.
//!
//! Weights are signed bytes with one scale per output channel, activations signed bytes with one scale per row, so that a
//! product accumulates exactly in 32 bits over all input channels. [`Level`] says which kernels run; [`Kernels`] and
//! [`PackedMatrix`] are the operations; `portable` holds the reference that every level is tested against:
//!
//! - products ([`PackedMatrix::multiply`], [`PackedMatrix::multiply_add`]) and rotary are the same bits on all levels;
//! - RMSNorm, SiLU and attention sum in the same order and round alike on all levels too, whatever the width of their registers;
//!   only the portable level may differ in the last bit where its target has no fused multiply-add.
//!
//! Every row's result is the same bits whatever it is batched with: sums run in an order that depends on the row alone. So a verdict
//! is the same on every processor that has one of the faster levels.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
mod fast;
pub mod half;
mod int4;
mod kernels;
pub mod level;
pub mod limits;
mod low_rank;
pub mod matrix;
pub mod memory;
mod packed;
mod portable;
mod rotary;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(feature = "training")]
pub mod training;
mod vector;

pub use attention::{AttentionScratch, AttentionShape, KeyBlocks, KeysValues};
pub use error::KernelError;
pub use int4::{GROUP_COLUMNS, Int4Matrix, WeightMatrix};
pub use kernels::Kernels;
pub use level::Level;
pub use low_rank::LowRank;
pub use matrix::QuantisedMatrix;
pub use packed::PackedMatrix;
pub use rotary::RotaryTable;
pub use rows::QuantisedRows;
