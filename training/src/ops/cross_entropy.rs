//! Cross-entropy fused with the product that makes the logits, which never exist for all rows at once.
//!
//! The gradient is found on the way forward, while the logits are at hand, and only scaled on the way back.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::{Matrix, Packed};

use super::tape::apply2;
use super::{Saved, argument, matrix_sizes, read, tensor, with_kernels, with_product_kernels};

/// Rows whose logits exist at the same time.
const CHUNK_ROWS: usize = 192;

/// Sums over the rows of a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of weight x loss.
    pub loss: f64,
    /// Rows whose highest logit is the target's (counted for labels only).
    pub correct: usize,
}

/// Sum over rows of weight x cross-entropy of `hidden table^T` against the targets, as a scalar.
/// `hidden` `[rows, hidden]`, `table` `[vocabulary, hidden]`, one target and weight per row; rows of weight 0 cost nothing.
///
/// # Errors
/// If the shapes do not fit or a target is outside the table.
pub fn token_cross_entropy(
    hidden: &Tensor,
    table: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> Result<Tensor> {
    let rows: Vec<usize> = (0..weights.len())
        .filter(|&row| weights[row] != 0.0)
        .collect();
    if targets.len() != weights.len() || hidden.dim(0)? != weights.len() {
        candle_core::bail!(
            "cross-entropy: {} targets and {} weights for {:?}",
            targets.len(),
            weights.len(),
            hidden.shape()
        );
    }
    let vocabulary = table.dim(0)?;
    if let Some(&row) = rows
        .iter()
        .find(|&&row| targets[row] as usize >= vocabulary)
    {
        candle_core::bail!(
            "cross-entropy: row {row}: expected a target below {vocabulary}, found {}",
            targets[row]
        );
    }
    let operation = TokenCrossEntropy {
        targets: rows.iter().map(|&row| targets[row]).collect(),
        weights: rows.iter().map(|&row| weights[row]).collect(),
        rows,
        keep: hidden.track_op() || table.track_op(),
        gradients: Saved::default(),
    };
    apply2(hidden, table, operation)
}

struct TokenCrossEntropy {
    /// Rows that count.
    rows: Vec<usize>,
    /// Their targets.
    targets: Vec<u32>,
    /// Their weights.
    weights: Vec<f32>,
    keep: bool,
    gradients: Saved<Gradients>,
}

/// Gradients for an upstream gradient of 1.
struct Gradients {
    hidden: Vec<f32>,
    table: Vec<f32>,
}

impl Gradients {
    fn scaled(
        mut self,
        hidden: &Tensor,
        table: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = upstream.to_scalar::<f32>()?;
        if factor != 1.0 {
            with_kernels(|cpu, _| {
                cpu.scale(&mut self.hidden, factor);
                cpu.scale(&mut self.table, factor);
            });
        }
        let of_hidden = hidden
            .track_op()
            .then(|| tensor(self.hidden, hidden.shape()))
            .transpose()?;
        let of_table = table
            .track_op()
            .then(|| tensor(self.table, table.shape()))
            .transpose()?;
        Ok((of_hidden, of_table))
    }
}

impl CustomOp2 for TokenCrossEntropy {
    fn name(&self) -> &'static str {
        "token-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, width), (vocabulary, table_width)) = (matrix_sizes(l1)?, matrix_sizes(l2)?);
        if width != table_width {
            candle_core::bail!(
                "cross-entropy: expected a table of {width} columns, found {table_width}"
            );
        }
        let (hidden, table) = (argument(s1, l1)?, argument(s2, l2)?);
        let kept = usize::from(self.keep);
        let mut gradients = Gradients {
            hidden: vec![0.0; kept * rows * width],
            table: vec![0.0; kept * vocabulary * width],
        };
        let loss = self.forward(hidden, table, width, vocabulary, &mut gradients);
        if self.keep {
            self.gradients.put(gradients);
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        table: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients
            .take("token-cross-entropy")?
            .scaled(hidden, table, gradient)
    }
}

impl TokenCrossEntropy {
    fn forward(
        &self,
        hidden: &[f32],
        table: &[f32],
        width: usize,
        vocabulary: usize,
        gradients: &mut Gradients,
    ) -> f64 {
        let chunk_rows = CHUNK_ROWS.min(self.rows.len());
        let mut logits = vec![0.0; chunk_rows * vocabulary];
        let (mut chunk_hidden, mut chunk_gradient) = (Vec::new(), vec![0.0; chunk_rows * width]);
        let (mut packed, mut packed_back) = (Packed::default(), Packed::default());
        with_product_kernels(|cpu, scratch| {
            cpu.pack(
                &mut packed,
                (vocabulary, width),
                Matrix::new(table, width).t(),
            );
            if self.keep {
                cpu.pack(
                    &mut packed_back,
                    (width, vocabulary),
                    Matrix::new(table, width),
                );
            }
            let mut total = 0.0;
            let chunks = self
                .rows
                .chunks(CHUNK_ROWS)
                .zip(self.targets.chunks(CHUNK_ROWS))
                .zip(self.weights.chunks(CHUNK_ROWS));
            for ((rows, targets), weights) in chunks {
                let count = rows.len();
                chunk_hidden.clear();
                for &row in rows {
                    chunk_hidden.extend_from_slice(&hidden[row * width..(row + 1) * width]);
                }
                let logits = &mut logits[..count * vocabulary];
                let a = Matrix::new(&chunk_hidden, width);
                cpu.gemm_packed(
                    scratch,
                    (count, vocabulary, width),
                    a,
                    &packed,
                    logits,
                    vocabulary,
                    false,
                );
                total += cpu.cross_entropy(logits, vocabulary, targets, weights, 0.0);
                if !self.keep {
                    continue;
                }
                let of_logits = Matrix::new(logits, vocabulary);
                cpu.gemm_packed(
                    scratch,
                    (count, width, vocabulary),
                    of_logits,
                    &packed_back,
                    &mut chunk_gradient,
                    width,
                    false,
                );
                for (&row, values) in rows.iter().zip(chunk_gradient.chunks_exact(width)) {
                    gradients.hidden[row * width..(row + 1) * width].copy_from_slice(values);
                }
                cpu.gemm(
                    scratch,
                    (vocabulary, width, count),
                    of_logits.t(),
                    a,
                    &mut gradients.table,
                    width,
                    true,
                );
            }
            total
        })
    }
}

/// The label of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelTarget {
    /// First row of the labels that are allowed.
    pub start: usize,
    /// Row after the last.
    pub end: usize,
    /// The true one, counted from `start`.
    pub label: u32,
    /// Weight of the row's loss.
    pub weight: f32,
}

/// Sum over rows of weight x cross-entropy among the row's own range of labels. `hidden` `[rows, hidden]`, `table`
/// `[labels, hidden]`, one target per row; `smoothing` of each target is spread evenly over its range.
///
/// # Errors
/// If the shapes do not fit or a range is not inside the table.
pub fn label_cross_entropy(
    hidden: &Tensor,
    table: &Tensor,
    targets: Vec<LabelTarget>,
    smoothing: f32,
    sums: Arc<Mutex<LossSums>>,
) -> Result<Tensor> {
    let labels = table.dim(0)?;
    if hidden.dim(0)? != targets.len() {
        candle_core::bail!(
            "label-cross-entropy: {} targets for {:?}",
            targets.len(),
            hidden.shape()
        );
    }
    for (row, target) in targets.iter().enumerate() {
        if target.end > labels || target.start + target.label as usize >= target.end {
            candle_core::bail!(
                "label-cross-entropy: row {row}: expected a range within {labels} labels, found {target:?}"
            );
        }
    }
    let keep = hidden.track_op() || table.track_op();
    apply2(
        hidden,
        table,
        LabelCrossEntropy {
            targets,
            smoothing,
            keep,
            sums,
            gradients: Saved::default(),
        },
    )
}

struct LabelCrossEntropy {
    targets: Vec<LabelTarget>,
    smoothing: f32,
    keep: bool,
    sums: Arc<Mutex<LossSums>>,
    gradients: Saved<Gradients>,
}

impl CustomOp2 for LabelCrossEntropy {
    fn name(&self) -> &'static str {
        "label-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((_, width), (_, table_width)) = (matrix_sizes(l1)?, matrix_sizes(l2)?);
        if width != table_width {
            candle_core::bail!(
                "label-cross-entropy: expected a table of {width} columns, found {table_width}"
            );
        }
        let (hidden, table) = (argument(s1, l1)?, argument(s2, l2)?);
        let mut gradients = Gradients {
            hidden: vec![0.0; hidden.len()],
            table: vec![0.0; table.len()],
        };
        let mut sums = LossSums::default();
        for (row, target) in self.targets.iter().enumerate() {
            let hidden = &hidden[row * width..(row + 1) * width];
            let range = target.start * width..target.end * width;
            let of_hidden = &mut gradients.hidden[row * width..(row + 1) * width];
            let (loss, correct) = self.row(
                target,
                hidden,
                &table[range.clone()],
                of_hidden,
                &mut gradients.table[range],
            );
            sums.loss += loss;
            sums.correct += usize::from(correct);
        }
        *self.sums.lock().unwrap_or_else(PoisonError::into_inner) = sums;
        if self.keep {
            self.gradients.put(gradients);
        }
        Ok((CpuStorage::F32(vec![sums.loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        table: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients
            .take("label-cross-entropy")?
            .scaled(hidden, table, gradient)
    }
}

impl LabelCrossEntropy {
    /// Loss of one row, and whether its label has the highest logit; the gradients of the row and of its labels are written and added.
    fn row(
        &self,
        target: &LabelTarget,
        hidden: &[f32],
        table: &[f32],
        of_hidden: &mut [f32],
        of_table: &mut [f32],
    ) -> (f64, bool) {
        let (labels, width) = (target.end - target.start, hidden.len());
        let mut logits = vec![0.0; labels];
        with_kernels(|cpu, scratch| {
            let (row, table) = (Matrix::new(hidden, width), Matrix::new(table, width));
            cpu.gemm(
                scratch,
                (1, labels, width),
                row,
                table.t(),
                &mut logits,
                labels,
                false,
            );
            let own = logits[target.label as usize];
            let correct = logits
                .iter()
                .enumerate()
                .all(|(label, &logit)| label == target.label as usize || logit < own);
            let loss = cpu.cross_entropy(
                &mut logits,
                labels,
                &[target.label],
                &[target.weight],
                self.smoothing,
            );
            cpu.gemm(
                scratch,
                (1, width, labels),
                Matrix::new(&logits, labels),
                table,
                of_hidden,
                width,
                false,
            );
            cpu.gemm(
                scratch,
                (labels, width, 1),
                Matrix::new(&logits, labels).t(),
                row,
                of_table,
                width,
                true,
            );
            (loss, correct)
        })
    }
}

/// Logits of one row among a range of labels, for evaluation.
pub(crate) fn label_logits(
    hidden: &Tensor,
    table: &Tensor,
    row: usize,
    start: usize,
    end: usize,
) -> Result<Vec<f32>> {
    let width = table.dim(1)?;
    read(hidden, |hidden| {
        read(table, |table| {
            let mut logits = vec![0.0; end - start];
            with_kernels(|cpu, scratch| {
                let (a, b) = (
                    Matrix::new(&hidden[row * width..], width),
                    Matrix::new(&table[start * width..], width).t(),
                );
                cpu.gemm(
                    scratch,
                    (1, end - start, width),
                    a,
                    b,
                    &mut logits,
                    end - start,
                    false,
                );
            });
            Ok(logits)
        })
    })
}
