//! A device for tests where there is none: runs the CUDA kernels on the processor, compiled as C++.
//!
//! Every thread of a block is a fiber (see `emulated/fibers.hpp`), and what a warp or a block does together happens when the last of its
//! threads has come. A seed shuffles who runs first, so that what lacks a barrier gives another result with another seed. What waits
//! for what never comes, or reads and writes past the end of memory, is found; how long anything takes is not.
//!
//! Not modelled: caches and the order in which other blocks see writes, bank conflicts, registers and occupancy, plain stores that wgmma
//! would not see without a fence, and the last bits of `ex2.approx` and of sums in the matrix units.
#![cfg(all(unix, feature = "cuda"))]

mod compile;
mod counts;
mod device;
mod fault;
mod memory;
mod run;
mod state;
mod stream;
mod work;

pub use counts::Counts;
pub use device::{EmulatedDevice, Options};
