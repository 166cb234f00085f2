//! The activation of a gated MLP, for rows whose products are not fused with it.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::tape::apply1;
use super::{argument, matrix_sizes, read, tensor, with_kernels};

/// `silu(gate) * up` of each row: `both` `[rows, 2 * width]` (gate before up), result `[rows, width]`.
///
/// # Errors
/// If the number of columns is odd.
pub fn silu_gate(both: &Tensor) -> Result<Tensor> {
    apply1(both, SiluGate)
}

struct SiluGate;

impl CustomOp1 for SiluGate {
    fn name(&self) -> &'static str {
        "silu-gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = matrix_sizes(layout)?;
        if !columns.is_multiple_of(2) {
            candle_core::bail!("silu-gate: expected an even number of columns, found {columns}");
        }
        let width = columns / 2;
        let mut result = vec![0.0; rows * width];
        let both = argument(storage, layout)?;
        with_kernels(|cpu, _| cpu.silu_gate(both, width, &mut result));
        Ok((CpuStorage::F32(result), Shape::from((rows, width))))
    }

    fn bwd(&self, both: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = both.dim(1)? / 2;
        let mut of_both = read(both, |both| Ok(both.to_vec()))?;
        let mut of_result = read(&gradient.contiguous()?, |gradient| Ok(gradient.to_vec()))?;
        with_kernels(|cpu, _| cpu.silu_gate_backward(&mut of_both, width, &mut of_result));
        Ok(Some(tensor(of_both, both.shape())?))
    }
}
