//! Tests that need no device: of sizes, order and layouts. What kernels compute is tested in `tests/cuda_emulated`.

mod batch;
mod fake;
mod layout;
mod memory;
mod operations;
mod pack;
mod products;
mod rig;
