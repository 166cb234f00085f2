//! Operations with hand-written backward passes on the project's own kernels, behind candle's custom-operation interface.
//!
//! All of them work on contiguous f32 tensors on the CPU, run on the calling thread and start no other: a batch is cut
//! into shards, and each shard has its own graph and thread. Gradients are only computed for tensors that candle tracks.

mod attention;
mod cross_entropy;
mod gated_mlp;
mod linear;
mod low_rank;
mod norm;
mod rows;
mod silu_gate;
mod tape;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor};
use serde::{Deserialize, Serialize};
use trafficllm_kernels::training::{Cpu, GemmScratch};

pub use attention::{
    Attention, AttentionSizes, QueryRows, Rotary, SequenceRows, flow_attention, query_attention,
};
pub(crate) use cross_entropy::label_logits;
pub use cross_entropy::{LabelTarget, LossSums, label_cross_entropy, token_cross_entropy};
pub use gated_mlp::gated_mlp;
pub use linear::{linear, linear_add};
pub use low_rank::low_rank;
pub use norm::rms_norm;
pub use rows::gather_rows;
pub use silu_gate::silu_gate;
pub use tape::{Tape, TapeGradients, add, recorded};

/// How factors of the large products are rounded. Sums, attention, norms, label losses and parameters are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Not at all: the same results on every processor.
    #[default]
    Full,
    /// To bf16 where the processor has instructions for it (then products take half the time), else as [`Precision::Full`].
    Mixed,
}

thread_local! {
    static SCRATCH: RefCell<GemmScratch> = RefCell::default();
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::Full) };
}

/// Runs `work` with large products of this thread in the given precision: forward and backward passes.
pub fn with_precision<R>(precision: Precision, work: impl FnOnce() -> R) -> R {
    let before = PRECISION.replace(precision);
    let result = work();
    PRECISION.set(before);
    result
}

/// Runs `work` with the kernels of this processor and this thread's scratch memory.
fn with_kernels<R>(work: impl FnOnce(Cpu, &mut GemmScratch) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(Cpu::detect(), scratch))
}

/// [`with_kernels`] for large products, which follow this thread's precision.
fn with_product_kernels<R>(work: impl FnOnce(Cpu, &mut GemmScratch) -> R) -> R {
    let cpu = match PRECISION.get() {
        Precision::Full => Cpu::detect(),
        Precision::Mixed => Cpu::bf16().unwrap_or_else(Cpu::detect),
    };
    SCRATCH.with_borrow_mut(|scratch| work(cpu, scratch))
}

/// The values of an argument of a forward pass.
fn argument<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => candle_core::bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

/// The values of a tensor whose storage is held by the caller.
fn held<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => argument(storage, layout),
        Storage::Cuda(_) | Storage::Metal(_) => candle_core::bail!("expected a tensor on the CPU"),
    }
}

/// Runs `work` on the values of a tensor.
pub(crate) fn read<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    work(held(&storage, layout)?)
}

/// Rows and columns of a matrix argument.
fn matrix_sizes(layout: &Layout) -> Result<(usize, usize)> {
    layout.shape().dims2()
}

/// A tensor of these values.
fn tensor(values: Vec<f32>, shape: &candle_core::Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// What a forward pass leaves for its backward pass.
#[derive(Debug)]
struct Saved<T>(Mutex<Option<T>>);

impl<T> Default for Saved<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Saved<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, value: T) {
        *self.lock() = Some(value);
    }

    fn take(&self, operation: &'static str) -> Result<T> {
        match self.lock().take() {
            Some(value) => Ok(value),
            None => candle_core::bail!(
                "{operation}: expected one backward pass after a forward pass, found none or a second one"
            ),
        }
    }
}
