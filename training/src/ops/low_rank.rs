//! Products with the low-rank matrices of tasks (LoRA, arXiv:2106.09685), each row with those of its own task.
//!
//! The factors of all tasks are multiplied with all rows, and what belongs to other tasks is set to zero in between: the rows
//! are few and the ranks small, so this takes less time than grouping the rows.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::Matrix;

use super::tape::apply3;
use super::{argument, matrix_sizes, read, tensor, with_kernels};

/// `scale * (x down_task^T) up_task` of each row: `x` `[rows, in]`, `down` `[tasks * rank, in]`, `up` `[tasks * rank, out]`, `tasks`
/// the task of each row. Result `[rows, out]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn low_rank(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    rank: usize,
    scale: f32,
    tasks: Arc<[usize]>,
) -> Result<Tensor> {
    apply3(x, down, up, LowRank { rank, scale, tasks })
}

struct LowRank {
    rank: usize,
    scale: f32,
    /// Of each row.
    tasks: Arc<[usize]>,
}

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inner: usize,
    out: usize,
    /// Rows of both factors: ranks of all tasks.
    ranks: usize,
}

impl LowRank {
    fn sizes(&self, x: &Layout, down: &Layout, up: &Layout) -> Result<Sizes> {
        let ((rows, inner), (ranks, down_inner), (up_ranks, out)) =
            (matrix_sizes(x)?, matrix_sizes(down)?, matrix_sizes(up)?);
        if down_inner != inner || up_ranks != ranks {
            candle_core::bail!(
                "low-rank: expected factors of {ranks} x {inner} and {ranks} x {out}, found {ranks} x {down_inner} and {up_ranks} x {out}"
            );
        }
        if self.tasks.len() != rows {
            candle_core::bail!(
                "low-rank: expected the tasks of {rows} rows, found {}",
                self.tasks.len()
            );
        }
        if let Some(task) = self
            .tasks
            .iter()
            .find(|task| (**task + 1) * self.rank > ranks)
        {
            candle_core::bail!(
                "low-rank: expected tasks of rank {} in {ranks} rows, found task {task}",
                self.rank
            );
        }
        Ok(Sizes {
            rows,
            inner,
            out,
            ranks,
        })
    }

    /// Scales what belongs to a row's own task, and sets the rest to zero.
    fn mask(&self, sizes: Sizes, values: &mut [f32]) {
        for (row, task) in values.chunks_exact_mut(sizes.ranks).zip(&*self.tasks) {
            let own = task * self.rank..(task + 1) * self.rank;
            for (index, value) in row.iter_mut().enumerate() {
                *value = if own.contains(&index) {
                    *value * self.scale
                } else {
                    0.0
                };
            }
        }
    }

    /// `mask(x down^T)`: `[rows, ranks]`.
    fn inner_product(&self, sizes: Sizes, x: &[f32], down: &[f32]) -> Vec<f32> {
        let mut values = vec![0.0; sizes.rows * sizes.ranks];
        with_kernels(|cpu, scratch| {
            cpu.gemm(
                scratch,
                (sizes.rows, sizes.ranks, sizes.inner),
                Matrix::new(x, sizes.inner),
                Matrix::new(down, sizes.inner).t(),
                &mut values,
                sizes.ranks,
                false,
            );
        });
        self.mask(sizes, &mut values);
        values
    }

    /// Gradients of x, down and up.
    fn gradients(
        &self,
        sizes: Sizes,
        [x, down, up]: [&[f32]; 3],
        gradient: &[f32],
    ) -> [Vec<f32>; 3] {
        let Sizes {
            rows,
            inner,
            out,
            ranks,
        } = sizes;
        let middle = self.inner_product(sizes, x, down);
        let mut of_middle = vec![0.0; rows * ranks];
        let mut of_x = vec![0.0; rows * inner];
        let mut of_down = vec![0.0; ranks * inner];
        let mut of_up = vec![0.0; ranks * out];
        with_kernels(|cpu, scratch| {
            let of_result = Matrix::new(gradient, out);
            cpu.gemm(
                scratch,
                (rows, ranks, out),
                of_result,
                Matrix::new(up, out).t(),
                &mut of_middle,
                ranks,
                false,
            );
            self.mask(sizes, &mut of_middle);
            cpu.gemm(
                scratch,
                (ranks, out, rows),
                Matrix::new(&middle, ranks).t(),
                of_result,
                &mut of_up,
                out,
                false,
            );
            let of_middle = Matrix::new(&of_middle, ranks);
            cpu.gemm(
                scratch,
                (rows, inner, ranks),
                of_middle,
                Matrix::new(down, inner),
                &mut of_x,
                inner,
                false,
            );
            cpu.gemm(
                scratch,
                (ranks, inner, rows),
                of_middle.t(),
                Matrix::new(x, inner),
                &mut of_down,
                inner,
                false,
            );
        });
        [of_x, of_down, of_up]
    }
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "low-rank"
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
        let sizes = self.sizes(l1, l2, l3)?;
        let middle = self.inner_product(sizes, argument(s1, l1)?, argument(s2, l2)?);
        let up = argument(s3, l3)?;
        let mut result = vec![0.0; sizes.rows * sizes.out];
        with_kernels(|cpu, scratch| {
            cpu.gemm(
                scratch,
                (sizes.rows, sizes.out, sizes.ranks),
                Matrix::new(&middle, sizes.ranks),
                Matrix::new(up, sizes.out),
                &mut result,
                sizes.out,
                false,
            );
        });
        Ok((
            CpuStorage::F32(result),
            Shape::from((sizes.rows, sizes.out)),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(x.layout(), down.layout(), up.layout())?;
        let gradient = gradient.contiguous()?;
        let [of_x, of_down, of_up] = read(x, |x_values| {
            read(down, |down| {
                read(up, |up| {
                    read(&gradient, |gradient| {
                        Ok(self.gradients(sizes, [x_values, down, up], gradient))
                    })
                })
            })
        })?;
        let wanted = |values: Vec<f32>, of: &Tensor| {
            of.track_op()
                .then(|| tensor(values, of.shape()))
                .transpose()
        };
        Ok((wanted(of_x, x)?, wanted(of_down, down)?, wanted(of_up, up)?))
    }
}
