//! Kernels on NVIDIA devices, compiled at run time for the device that is there.
//!
//! The operations are those of the CPU, and give the same bits but for attention, which takes 16-bit floats. [`Device`] is what
//! they need of a device.

mod device;
mod error;
mod source;
mod variants;

pub use device::{Address, Device, DeviceFacts, Handle, Launch};
pub use error::{DeviceError, Missing};
pub use source::{HEADERS, KernelSource};
pub use variants::{
    Define, Epilogue, HEAD_DIM_MAX, HEAD_DIMS, ProductVariant, QUERY_TILE, RowKind, TILE_ROWS,
    TOKEN_TILE, WeightKind, all_kernels, attention, common, products,
};
