//! Rows taken out of tables, and their gradients scattered back.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::tape::apply1;
use super::{argument, matrix_sizes, read, tensor};

/// The named rows of `x` `[rows, hidden]`: of a table of embeddings, or of states. A row may be named more than once.
///
/// # Errors
/// If a row is outside.
pub fn gather_rows(x: &Tensor, rows: Arc<[usize]>) -> Result<Tensor> {
    apply1(x, GatherRows { rows })
}

struct GatherRows {
    rows: Arc<[usize]>,
}

impl CustomOp1 for GatherRows {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = matrix_sizes(layout)?;
        let x = argument(storage, layout)?;
        let mut result = Vec::with_capacity(self.rows.len() * hidden);
        for &row in &*self.rows {
            if row >= rows {
                candle_core::bail!("gather-rows: expected a row below {rows}, found {row}");
            }
            result.extend_from_slice(&x[row * hidden..(row + 1) * hidden]);
        }
        Ok((
            CpuStorage::F32(result),
            Shape::from((self.rows.len(), hidden)),
        ))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let hidden = x.dim(1)?;
        let mut values = vec![0.0; x.elem_count()];
        read(&gradient.contiguous()?, |gradient| {
            for (&row, gradient) in self.rows.iter().zip(gradient.chunks_exact(hidden)) {
                add(&mut values[row * hidden..(row + 1) * hidden], gradient);
            }
            Ok(())
        })?;
        Ok(Some(tensor(values, x.shape())?))
    }
}

fn add(target: &mut [f32], source: &[f32]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += source;
    }
}
