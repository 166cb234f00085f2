//! Rows taken out of tables, and their gradients scattered back.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::tape::{apply1, apply2};
use super::{argument, matrix_sizes, read, tensor};

/// Where an input row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSource {
    /// A row of the token table.
    Token(usize),
    /// A row of the query table.
    Query(usize),
}

/// Input rows `[rows, hidden]` out of the token table `[vocabulary, hidden]` and, if there are tasks, the query table
/// `[queries, hidden]`.
///
/// # Errors
/// If a row is outside its table.
pub fn embed(
    tokens: &Tensor,
    queries: Option<&Tensor>,
    sources: Arc<[RowSource]>,
) -> Result<Tensor> {
    match queries {
        Some(queries) => apply2(tokens, queries, Embed { sources }),
        None => apply1(tokens, Embed { sources }),
    }
}

struct Embed {
    sources: Arc<[RowSource]>,
}

impl Embed {
    fn gather(
        &self,
        hidden: usize,
        tokens: &[f32],
        queries: &[f32],
    ) -> Result<(CpuStorage, Shape)> {
        let mut result = Vec::with_capacity(self.sources.len() * hidden);
        for source in &*self.sources {
            let (table, row) = match *source {
                RowSource::Token(row) => (tokens, row),
                RowSource::Query(row) => (queries, row),
            };
            let Some(values) = table.get(row * hidden..(row + 1) * hidden) else {
                candle_core::bail!(
                    "embed: expected a row below {}, found {source:?}",
                    table.len() / hidden
                );
            };
            result.extend_from_slice(values);
        }
        Ok((
            CpuStorage::F32(result),
            Shape::from((self.sources.len(), hidden)),
        ))
    }

    /// The gradient of one table: rows that `row_of` finds in it.
    fn scatter(
        &self,
        table: &Tensor,
        gradient: &Tensor,
        row_of: impl Fn(RowSource) -> Option<usize>,
    ) -> Result<Option<Tensor>> {
        if !table.track_op() {
            return Ok(None);
        }
        let hidden = table.dim(1)?;
        let mut values = vec![0.0; table.elem_count()];
        read(&gradient.contiguous()?, |gradient| {
            for (source, gradient) in self.sources.iter().zip(gradient.chunks_exact(hidden)) {
                if let Some(row) = row_of(*source) {
                    add(&mut values[row * hidden..(row + 1) * hidden], gradient);
                }
            }
            Ok(())
        })?;
        Ok(Some(tensor(values, table.shape())?))
    }
}

fn add(target: &mut [f32], source: &[f32]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += source;
    }
}

fn token_row(source: RowSource) -> Option<usize> {
    match source {
        RowSource::Token(row) => Some(row),
        RowSource::Query(_) => None,
    }
}

fn query_row(source: RowSource) -> Option<usize> {
    match source {
        RowSource::Token(_) => None,
        RowSource::Query(row) => Some(row),
    }
}

impl CustomOp1 for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.gather(matrix_sizes(layout)?.1, argument(storage, layout)?, &[])
    }

    fn bwd(&self, tokens: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.scatter(tokens, gradient, token_row)
    }
}

impl CustomOp2 for Embed {
    fn name(&self) -> &'static str {
        "embed-with-queries"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((_, hidden), (_, query_hidden)) = (matrix_sizes(l1)?, matrix_sizes(l2)?);
        if hidden != query_hidden {
            candle_core::bail!("embed: expected queries of {hidden} columns, found {query_hidden}");
        }
        self.gather(hidden, argument(s1, l1)?, argument(s2, l2)?)
    }

    fn bwd(
        &self,
        tokens: &Tensor,
        queries: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((
            self.scatter(tokens, gradient, token_row)?,
            self.scatter(queries, gradient, query_row)?,
        ))
    }
}

/// The named rows of `x` `[rows, hidden]`, each at most once.
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
