//! RMS norm.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::tape::apply2;
use super::{Saved, argument, matrix_sizes, read, tensor, with_kernels};

/// `x * weight / sqrt(mean(x^2) + epsilon)` of each row: `x` `[rows, hidden]`, `weight` `[hidden]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    apply2(
        x,
        weight,
        RmsNorm {
            epsilon,
            scales: Saved::default(),
        },
    )
}

struct RmsNorm {
    epsilon: f32,
    /// The factor of each row.
    scales: Saved<Vec<f32>>,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = matrix_sizes(l1)?;
        if l2.shape().dims1()? != hidden {
            candle_core::bail!(
                "rms-norm: expected {hidden} weights, found {:?}",
                l2.shape()
            );
        }
        let (x, weight) = (argument(s1, l1)?, argument(s2, l2)?);
        let (mut result, mut scales) = (vec![0.0; rows * hidden], vec![0.0; rows]);
        with_kernels(|cpu, _| cpu.rms_norm(x, weight, self.epsilon, &mut result, &mut scales));
        self.scales.put(scales);
        Ok((CpuStorage::F32(result), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let scales = self.scales.take("rms-norm")?;
        let mut of_x = read(&gradient.contiguous()?, |gradient| Ok(gradient.to_vec()))?;
        let mut of_weight = vec![0.0; weight.elem_count()];
        read(x, |x| {
            read(weight, |weight| {
                with_kernels(|cpu, _| {
                    cpu.rms_norm_backward(x, weight, &scales, &mut of_x, &mut of_weight)
                });
                Ok(())
            })
        })?;
        Ok((
            Some(tensor(of_x, x.shape())?),
            Some(tensor(of_weight, weight.shape())?),
        ))
    }
}
