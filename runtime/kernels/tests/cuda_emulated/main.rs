//! The CUDA kernels on the emulator, or with TLLM_CUDA_DEVICE on a device that is there; and what the emulator itself finds.

mod device;
mod support;
