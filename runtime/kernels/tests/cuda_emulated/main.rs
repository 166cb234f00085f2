//! The CUDA kernels on the emulator, or with TLLM_CUDA_DEVICE on a device that is there; and what the emulator itself finds (`device` and
//! `faults`: leave these out where kernels run on a device).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod attention;
mod device;
mod faults;
mod labels;
mod low_rank;
mod matrices;
mod own;
mod products;
mod rig;
mod rows;
mod support;
