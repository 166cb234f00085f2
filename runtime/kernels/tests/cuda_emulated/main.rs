//! The CUDA kernels on the emulator, or with TLLM_CUDA_DEVICE on a device that is there; and what the emulator itself finds.

mod attention;
mod device;
mod labels;
mod low_rank;
mod own;
mod products;
mod rig;
mod rows;
mod support;
