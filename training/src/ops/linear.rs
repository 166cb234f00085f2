//! Products with a weight matrix.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::Matrix;

use super::tape::{apply2, apply3};
use super::{argument, matrix_sizes, read, tensor, with_product_kernels};

/// `x w^T`: `x` `[rows, in]`, `w` `[out, in]`, result `[rows, out]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    apply2(x, w, Linear)
}

/// `residual + x w^T`: `residual` `[rows, out]`, the others as in [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_add(x: &Tensor, w: &Tensor, residual: &Tensor) -> Result<Tensor> {
    apply3(x, w, residual, Linear)
}

struct Linear;

fn sizes(x: &Layout, w: &Layout) -> Result<(usize, usize, usize)> {
    let ((rows, inner), (columns, w_inner)) = (matrix_sizes(x)?, matrix_sizes(w)?);
    if inner != w_inner {
        candle_core::bail!("linear: expected a weight of {inner} columns, found {w_inner}");
    }
    Ok((rows, columns, inner))
}

/// Gradients of x and w, each only if tracked.
fn gradients(
    x: &Tensor,
    w: &Tensor,
    gradient: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gradient = gradient.contiguous()?;
    let (rows, columns, inner) = sizes(x.layout(), w.layout())?;
    read(&gradient, |gradient| {
        let of_x = if x.track_op() {
            let mut values = vec![0.0; rows * inner];
            read(w, |w| {
                with_product_kernels(|cpu, scratch| {
                    let (a, b) = (Matrix::new(gradient, columns), Matrix::new(w, inner));
                    cpu.gemm(
                        scratch,
                        (rows, inner, columns),
                        a,
                        b,
                        &mut values,
                        inner,
                        false,
                    );
                });
                Ok(())
            })?;
            Some(tensor(values, x.shape())?)
        } else {
            None
        };
        let of_w = if w.track_op() {
            let mut values = vec![0.0; columns * inner];
            read(x, |x| {
                with_product_kernels(|cpu, scratch| {
                    let (a, b) = (Matrix::new(gradient, columns).t(), Matrix::new(x, inner));
                    cpu.gemm(
                        scratch,
                        (columns, inner, rows),
                        a,
                        b,
                        &mut values,
                        inner,
                        false,
                    );
                });
                Ok(())
            })?;
            Some(tensor(values, w.shape())?)
        } else {
            None
        };
        Ok((of_x, of_w))
    })
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, columns, inner) = sizes(l1, l2)?;
        let (x, w) = (argument(s1, l1)?, argument(s2, l2)?);
        let mut result = vec![0.0; rows * columns];
        with_product_kernels(|cpu, scratch| {
            let (a, b) = (Matrix::new(x, inner), Matrix::new(w, inner).t());
            cpu.gemm(
                scratch,
                (rows, columns, inner),
                a,
                b,
                &mut result,
                columns,
                false,
            );
        });
        Ok((CpuStorage::F32(result), Shape::from((rows, columns))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, w, gradient)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, columns, inner) = sizes(l1, l2)?;
        if matrix_sizes(l3)? != (rows, columns) {
            candle_core::bail!(
                "linear-add: expected a residual of {rows} x {columns}, found {:?}",
                l3.shape()
            );
        }
        let (x, w) = (argument(s1, l1)?, argument(s2, l2)?);
        let mut result = argument(s3, l3)?.to_vec();
        with_product_kernels(|cpu, scratch| {
            let (a, b) = (Matrix::new(x, inner), Matrix::new(w, inner).t());
            cpu.gemm(
                scratch,
                (rows, columns, inner),
                a,
                b,
                &mut result,
                columns,
                true,
            );
        });
        Ok((CpuStorage::F32(result), Shape::from((rows, columns))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        residual: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_w) = gradients(x, w, gradient)?;
        Ok((of_x, of_w, residual.track_op().then(|| gradient.clone())))
    }
}
