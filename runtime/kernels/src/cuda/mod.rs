//! Kernels on NVIDIA devices, compiled at run time for the device that is there.
//!
//! The operations are those of the CPU, and give the same bits but for attention, which takes 16-bit floats. [`Device`] is what they need
//! of a device; [`DeviceMemory`] counts what is used of its memory. What is asked of a [`Stream`] is held by it until it is done, so
//! that a [`Buffer`] may be dropped at any time. [`Operations`] checks sizes and launches; a [`Batch`] checks all numbers that kernels
//! trust.

mod arguments;
mod attend;
mod batch;
mod buffer;
mod cache;
mod calls;
mod check;
mod compile;
mod context;
mod device;
mod driver;
mod error;
mod library;
mod made;
mod memory;
mod nvrtc;
mod open;
mod operations;
mod pack;
mod process;
mod product;
mod row_operations;
mod source;
mod stream;
mod tables;
mod task_tables;
#[cfg(test)]
mod tests;
mod variants;

pub use arguments::{AttentionTile, KeyRange, LOW_RANK_MAX, LabelNode, RowSet};
pub use attend::{KeySources, KeysValuesBuffers, Tiles};
pub use batch::{Batch, BatchBounds, BatchRows, Class};
pub use buffer::{Buffer, Pinned};
pub use cache::ImageCache;
pub use compile::{Compiler, Image, Target};
pub use device::{Address, Device, DeviceFacts, Handle, Launch};
pub use error::{DeviceError, Missing};
pub use memory::DeviceMemory;
pub use open::{OpenOptions, open};
pub use operations::{Operations, Run};
pub use pack::PackedWeights;
pub use product::{LowRankRows, Rotated, Then};
pub use row_operations::{Floats, Norm};
pub use source::{HEADERS, KernelSource};
pub use stream::{Graph, Stream};
pub use tables::{Activations, DeviceMatrix, EmbeddingTable, Rotary};
pub use task_tables::{FactorTable, Factors, LabelTable};
pub use variants::{
    Define, Epilogue, HEAD_DIM_MAX, HEAD_DIMS, ProductVariant, QUERY_TILE, RowKind, TILE_ROWS,
    TOKEN_TILE, WeightKind, all_kernels, attention, common, products,
};
