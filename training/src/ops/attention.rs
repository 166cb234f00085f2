//! Causal attention over packed sequences, with query rows that also see their task's learnt prefix.
//!
//! A sequence's keys stand in the order flow, prefix, query: what a row sees is then always the first so-many of them, so
//! prefix and causality are one limit per row. The query heads that share a key head are stacked as rows, token by token.

mod backward;
mod layout;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::{Cpu, GemmScratch, Matrix, Packed};

use super::tape::{apply1, apply2};
use super::{Saved, argument, matrix_sizes, read, tensor, with_kernels};

pub use layout::{Attention, AttentionSizes, Rotary, SequenceRows};

/// Stacked rows (tokens x heads that share keys) whose scores exist at the same time.
const BLOCK_ROWS: usize = 48;

/// Attention. `qkv` `[rows, (heads + 2 * kv_heads) * head_width]` holds queries, keys and values of each row, before
/// rotation; `prefix` `[tasks * prefix_tokens, 2 * kv_heads * head_width]` keys and values, not rotated (absent if
/// `prefix_tokens` is 0). Result `[rows, heads * head_width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention(qkv: &Tensor, prefix: Option<&Tensor>, what: Attention) -> Result<Tensor> {
    let keep = qkv.track_op() || prefix.is_some_and(Tensor::track_op);
    let operation = AttentionOp {
        what,
        keep,
        softmax: Saved::default(),
    };
    match prefix {
        Some(prefix) => apply2(qkv, prefix, operation),
        None => apply1(qkv, operation),
    }
}

struct AttentionOp {
    what: Attention,
    keep: bool,
    softmax: Saved<SoftmaxRows>,
}

/// Maximum and inverse sum of each softmax row, in the order in which the rows are worked on.
#[derive(Default)]
struct SoftmaxRows {
    maxima: Vec<f32>,
    inverse_sums: Vec<f32>,
}

/// Memory for one sequence and key head.
#[derive(Default)]
struct Work {
    /// `[rows * group, head_width]`, rotated and divided by the root of the head's width.
    queries: Vec<f32>,
    /// `[keys, head_width]`, rotated but for the prefix.
    keys: Vec<f32>,
    /// `[keys, head_width]`.
    values: Vec<f32>,
    /// K^T, V, and, for the backward pass, V^T and K.
    keys_transposed: Packed,
    values_packed: Packed,
    values_transposed: Packed,
    keys_packed: Packed,
    scores: Vec<f32>,
    score_gradients: Vec<f32>,
    /// `[block rows, head_width]` of the result, and its gradient.
    block: Vec<f32>,
    block_gradient: Vec<f32>,
    limits: Vec<usize>,
    shifts: Vec<f32>,
    query_gradients: Vec<f32>,
    key_gradients: Vec<f32>,
    value_gradients: Vec<f32>,
}

/// Tokens `start .. start + count` of a sequence, which see keys below `width`.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    count: usize,
    width: usize,
}

impl AttentionOp {
    /// Blocks of a sequence; flow and query rows are never in one block.
    fn blocks(&self, sequence: &SequenceRows) -> Vec<Block> {
        let (flow, rows, keys) = (
            sequence.flow_rows,
            sequence.rows(),
            sequence.keys(&self.what.sizes),
        );
        if self.what.last_query_only {
            return (sequence.query_rows > 0)
                .then_some(Block {
                    start: rows - 1,
                    count: 1,
                    width: keys,
                })
                .into_iter()
                .collect();
        }
        let tokens = (BLOCK_ROWS / self.what.sizes.group()).max(1);
        let flow_blocks = (0..flow).step_by(tokens).map(|start| {
            let count = tokens.min(flow - start);
            Block {
                start,
                count,
                width: start + count,
            }
        });
        let query_block = (sequence.query_rows > 0).then_some(Block {
            start: flow,
            count: sequence.query_rows,
            width: keys,
        });
        flow_blocks.chain(query_block).collect()
    }

    /// How many keys each stacked row of a block sees.
    fn limits(&self, sequence: &SequenceRows, block: Block, limits: &mut Vec<usize>) {
        limits.clear();
        for token in block.start..block.start + block.count {
            let prefix = if token >= sequence.flow_rows {
                self.what.sizes.prefix_tokens
            } else {
                0
            };
            limits.extend(std::iter::repeat_n(
                token + 1 + prefix,
                self.what.sizes.group(),
            ));
        }
    }

    /// The row of the result where a token of a sequence stands.
    fn result_row(&self, sequence: &SequenceRows, ordinal: usize, token: usize) -> usize {
        if self.what.last_query_only {
            ordinal
        } else {
            sequence.start + token
        }
    }

    fn check(&self, qkv: &Layout, prefix: Option<&Layout>) -> Result<usize> {
        let sizes = &self.what.sizes;
        let (rows, width) = matrix_sizes(qkv)?;
        if sizes.kv_heads == 0
            || !sizes.heads.is_multiple_of(sizes.kv_heads)
            || !sizes.head_width.is_multiple_of(2)
        {
            candle_core::bail!("attention: {sizes:?} is not a possible layout of heads");
        }
        if width != sizes.row_width() {
            candle_core::bail!(
                "attention: expected {} columns, found {width}",
                sizes.row_width()
            );
        }
        let (prefix_rows, prefix_width) =
            prefix.map_or(Ok((0, 2 * sizes.kv_width())), matrix_sizes)?;
        if prefix_width != 2 * sizes.kv_width() {
            candle_core::bail!(
                "attention: expected a prefix of {} columns, found {prefix_width}",
                2 * sizes.kv_width()
            );
        }
        for sequence in &*self.what.sequences {
            let prefix_end = if sequence.query_rows > 0 {
                (sequence.task + 1) * sizes.prefix_tokens
            } else {
                0
            };
            let end = sequence.start + sequence.rows();
            if end > rows
                || sequence.rows() > self.what.rotary.positions()
                || prefix_end > prefix_rows
            {
                candle_core::bail!(
                    "attention: {rows} rows, {} positions and {prefix_rows} prefix rows do not hold {sequence:?}",
                    self.what.rotary.positions()
                );
            }
        }
        let with_query = self
            .what
            .sequences
            .iter()
            .filter(|sequence| sequence.query_rows > 0)
            .count();
        Ok(if self.what.last_query_only {
            with_query
        } else {
            rows
        })
    }

    /// Puts queries, keys and values of one sequence and key head in place.
    fn gather(
        &self,
        cpu: Cpu,
        qkv: &[f32],
        prefix: &[f32],
        sequence: &SequenceRows,
        head: usize,
        work: &mut Work,
    ) {
        let sizes = &self.what.sizes;
        let (width, group, stride) = (sizes.head_width, sizes.group(), sizes.row_width());
        let (flow, rows, keys, pairs) = (
            sequence.flow_rows,
            sequence.rows(),
            sequence.keys(sizes),
            width / 2,
        );
        let source = &qkv[sequence.start * stride..(sequence.start + rows) * stride];
        let (cosines, sines) = self.what.rotary.from(0);
        let scale = 1.0 / (width as f32).sqrt();
        let (key_column, value_column) = (
            sizes.hidden() + head * width,
            sizes.hidden() + sizes.kv_width() + head * width,
        );
        work.queries.resize(rows * group * width, 0.0);
        work.keys.resize(keys * width, 0.0);
        work.values.resize(keys * width, 0.0);
        cpu.rotate(
            source,
            stride,
            head * group * width,
            group * width,
            cosines,
            sines,
            pairs,
            scale,
            &mut work.queries,
        );
        cpu.rotate(
            &source[..flow * stride],
            stride,
            key_column,
            width,
            cosines,
            sines,
            pairs,
            1.0,
            &mut work.keys[..flow * width],
        );
        for row in 0..flow {
            let start = row * stride + value_column;
            work.values[row * width..(row + 1) * width]
                .copy_from_slice(&source[start..start + width]);
        }
        if sequence.query_rows == 0 {
            return;
        }
        let (cosines, sines) = self.what.rotary.from(flow);
        let first_query = keys - sequence.query_rows;
        let query_source = &source[flow * stride..];
        cpu.rotate(
            query_source,
            stride,
            key_column,
            width,
            cosines,
            sines,
            pairs,
            1.0,
            &mut work.keys[first_query * width..],
        );
        for (row, target) in work.values[first_query * width..]
            .chunks_exact_mut(width)
            .enumerate()
        {
            let start = row * stride + value_column;
            target.copy_from_slice(&query_source[start..start + width]);
        }
        for token in 0..sizes.prefix_tokens {
            let start =
                (sequence.task * sizes.prefix_tokens + token) * 2 * sizes.kv_width() + head * width;
            let target = (flow + token) * width..(flow + token + 1) * width;
            work.keys[target.clone()].copy_from_slice(&prefix[start..start + width]);
            let start = start + sizes.kv_width();
            work.values[target].copy_from_slice(&prefix[start..start + width]);
        }
    }

    fn forward(&self, qkv: &[f32], prefix: &[f32], result: &mut [f32]) -> SoftmaxRows {
        let sizes = &self.what.sizes;
        let (width, group) = (sizes.head_width, sizes.group());
        let mut kept = SoftmaxRows::default();
        let mut work = Work::default();
        with_kernels(|cpu, scratch| {
            let mut ordinal = 0;
            for sequence in &*self.what.sequences {
                let keys = sequence.keys(sizes);
                for head in 0..sizes.kv_heads {
                    self.gather(cpu, qkv, prefix, sequence, head, &mut work);
                    cpu.pack(
                        &mut work.keys_transposed,
                        (keys, width),
                        Matrix::new(&work.keys, width).t(),
                    );
                    cpu.pack(
                        &mut work.values_packed,
                        (width, keys),
                        Matrix::new(&work.values, width),
                    );
                    for block in self.blocks(sequence) {
                        let rows = block.count * group;
                        self.scores(cpu, scratch, sequence, block, &mut work);
                        let kept_rows = kept.maxima.len();
                        kept.maxima.resize(kept_rows + rows, 0.0);
                        kept.inverse_sums.resize(kept_rows + rows, 0.0);
                        let (maxima, sums) = (
                            &mut kept.maxima[kept_rows..],
                            &mut kept.inverse_sums[kept_rows..],
                        );
                        cpu.softmax(&mut work.scores, block.width, &work.limits, maxima, sums);
                        work.block.resize(rows * width, 0.0);
                        let a = Matrix::new(&work.scores, block.width);
                        cpu.gemm_packed(
                            scratch,
                            (rows, width, block.width),
                            a,
                            &work.values_packed,
                            &mut work.block,
                            width,
                            false,
                        );
                        for (offset, values) in work.block.chunks_exact(group * width).enumerate() {
                            let row = self.result_row(sequence, ordinal, block.start + offset);
                            let start = row * sizes.hidden() + head * group * width;
                            result[start..start + group * width].copy_from_slice(values);
                        }
                    }
                }
                ordinal += usize::from(sequence.query_rows > 0);
            }
        });
        kept
    }

    /// Scores and limits of a block.
    fn scores(
        &self,
        cpu: Cpu,
        scratch: &mut GemmScratch,
        sequence: &SequenceRows,
        block: Block,
        work: &mut Work,
    ) {
        let (width, group) = (self.what.sizes.head_width, self.what.sizes.group());
        let rows = block.count * group;
        self.limits(sequence, block, &mut work.limits);
        work.scores.resize(rows * block.width, 0.0);
        let a = Matrix::new(&work.queries[block.start * group * width..], width);
        cpu.gemm_packed(
            scratch,
            (rows, block.width, width),
            a,
            &work.keys_transposed,
            &mut work.scores,
            block.width,
            false,
        );
    }

    fn gradients(
        &self,
        qkv: &Tensor,
        prefix: Option<&Tensor>,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<Gradients> {
        let mut sums = Gradients {
            qkv: vec![0.0; qkv.elem_count()],
            prefix: vec![0.0; prefix.map_or(0, Tensor::elem_count)],
        };
        let gradient = gradient.contiguous()?;
        read(qkv, |qkv| {
            read(result, |result| {
                read(&gradient, |gradient| match prefix {
                    Some(prefix) => read(prefix, |prefix| {
                        self.backward(qkv, prefix, result, gradient, &mut sums)
                    }),
                    None => self.backward(qkv, &[], result, gradient, &mut sums),
                })
            })
        })?;
        Ok(sums)
    }

    fn run(&self, qkv: &[f32], prefix: &[f32], rows: usize) -> (CpuStorage, Shape) {
        let hidden = self.what.sizes.hidden();
        let mut result = vec![0.0; rows * hidden];
        let kept = self.forward(qkv, prefix, &mut result);
        if self.keep {
            self.softmax.put(kept);
        }
        (CpuStorage::F32(result), Shape::from((rows, hidden)))
    }
}

struct Gradients {
    qkv: Vec<f32>,
    prefix: Vec<f32>,
}

impl CustomOp1 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.check(layout, None)?;
        Ok(self.run(argument(storage, layout)?, &[], rows))
    }

    fn bwd(&self, qkv: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradients = self.gradients(qkv, None, result, gradient)?;
        Ok(Some(tensor(gradients.qkv, qkv.shape())?))
    }
}

impl CustomOp2 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention-with-prefix"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let rows = self.check(l1, Some(l2))?;
        Ok(self.run(argument(s1, l1)?, argument(s2, l2)?, rows))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        prefix: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.gradients(qkv, Some(prefix), result, gradient)?;
        let of_prefix = prefix
            .track_op()
            .then(|| tensor(gradients.prefix, prefix.shape()))
            .transpose()?;
        Ok((Some(tensor(gradients.qkv, qkv.shape())?), of_prefix))
    }
}
