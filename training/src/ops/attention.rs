//! Causal attention over packed sequences, with query rows that also see their task's learnt prefix.
//!
//! A sequence's keys stand in the order flow, prefix, query: what a row sees is then always the first so-many of them, so
//! prefix and causality are one limit per row. The query heads that share a key head are stacked as rows, token by token.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::{Cpu, GemmScratch, Matrix, Packed};

use super::tape::{apply1, apply2};
use super::{Saved, argument, matrix_sizes, read, tensor, with_kernels};

/// Stacked rows (tokens x heads that share keys) whose scores exist at the same time.
const BLOCK_ROWS: usize = 48;

/// Angles of the rotary positions: position p turns pair i by `p * base^(-i / pairs)`.
#[derive(Clone, Debug)]
pub struct Rotary {
    pairs: usize,
    /// `[positions, pairs]`.
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// Angles for positions below `positions`.
    #[must_use]
    pub fn new(head_width: usize, base: f32, positions: usize) -> Self {
        let pairs = head_width / 2;
        let frequencies: Vec<f64> = (0..pairs).map(|pair| f64::from(base).powf(-(pair as f64) / pairs as f64)).collect();
        let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency));
        let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { pairs, cosines, sines }
    }

    /// Number of positions that have angles.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cosines.len() / self.pairs.max(1)
    }

    fn from(&self, position: usize) -> (&[f32], &[f32]) {
        (&self.cosines[position * self.pairs..], &self.sines[position * self.pairs..])
    }
}

/// Sizes of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_width: usize,
    /// Learnt keys and values per task.
    pub prefix_tokens: usize,
}

impl AttentionSizes {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn hidden(&self) -> usize {
        self.heads * self.head_width
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    fn row_width(&self) -> usize {
        self.hidden() + 2 * self.kv_width()
    }
}

/// Rows of one sequence: flow rows first, then the query rows of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// First row.
    pub start: usize,
    /// Rows that see only the flow rows up to themselves.
    pub flow_rows: usize,
    /// Rows that also see the task's prefix and earlier query rows.
    pub query_rows: usize,
    /// Whose prefix the query rows see.
    pub task: usize,
}

impl SequenceRows {
    fn rows(&self) -> usize {
        self.flow_rows + self.query_rows
    }

    fn keys(&self, sizes: &AttentionSizes) -> usize {
        self.rows() + if self.query_rows > 0 { sizes.prefix_tokens } else { 0 }
    }
}

/// What is attended to what.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Sizes of the heads.
    pub sizes: AttentionSizes,
    /// Angles for at least as many positions as the longest sequence has rows.
    pub rotary: Arc<Rotary>,
    /// Sequences in the order of their rows.
    pub sequences: Arc<[SequenceRows]>,
    /// Only the last query row of each sequence that has one: the result then has one row per such sequence.
    pub last_query_only: bool,
}

/// Attention. `qkv` `[rows, (heads + 2 * kv_heads) * head_width]` holds queries, keys and values of each row, before
/// rotation; `prefix` `[tasks * prefix_tokens, 2 * kv_heads * head_width]` keys and values, not rotated (absent if
/// `prefix_tokens` is 0). Result `[rows, heads * head_width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention(qkv: &Tensor, prefix: Option<&Tensor>, what: Attention) -> Result<Tensor> {
    let keep = qkv.track_op() || prefix.is_some_and(Tensor::track_op);
    let operation = AttentionOp { what, keep, softmax: Saved::default() };
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
        let (flow, rows, keys) = (sequence.flow_rows, sequence.rows(), sequence.keys(&self.what.sizes));
        if self.what.last_query_only {
            return (sequence.query_rows > 0).then_some(Block { start: rows - 1, count: 1, width: keys }).into_iter().collect();
        }
        let tokens = (BLOCK_ROWS / self.what.sizes.group()).max(1);
        let flow_blocks = (0..flow).step_by(tokens).map(|start| {
            let count = tokens.min(flow - start);
            Block { start, count, width: start + count }
        });
        let query_block = (sequence.query_rows > 0).then_some(Block { start: flow, count: sequence.query_rows, width: keys });
        flow_blocks.chain(query_block).collect()
    }

    /// How many keys each stacked row of a block sees.
    fn limits(&self, sequence: &SequenceRows, block: Block, limits: &mut Vec<usize>) {
        limits.clear();
        for token in block.start..block.start + block.count {
            let prefix = if token >= sequence.flow_rows { self.what.sizes.prefix_tokens } else { 0 };
            limits.extend(std::iter::repeat_n(token + 1 + prefix, self.what.sizes.group()));
        }
    }

    /// The row of the result where a token of a sequence stands.
    fn result_row(&self, sequence: &SequenceRows, ordinal: usize, token: usize) -> usize {
        if self.what.last_query_only { ordinal } else { sequence.start + token }
    }

    fn check(&self, qkv: &Layout, prefix: Option<&Layout>) -> Result<usize> {
        let sizes = &self.what.sizes;
        let (rows, width) = matrix_sizes(qkv)?;
        if sizes.kv_heads == 0 || !sizes.heads.is_multiple_of(sizes.kv_heads) || !sizes.head_width.is_multiple_of(2) {
            candle_core::bail!("attention: {sizes:?} is not a possible layout of heads");
        }
        if width != sizes.row_width() {
            candle_core::bail!("attention: expected {} columns, found {width}", sizes.row_width());
        }
        let (prefix_rows, prefix_width) = prefix.map_or(Ok((0, 2 * sizes.kv_width())), matrix_sizes)?;
        if prefix_width != 2 * sizes.kv_width() {
            candle_core::bail!("attention: expected a prefix of {} columns, found {prefix_width}", 2 * sizes.kv_width());
        }
        for sequence in &*self.what.sequences {
            let prefix_end = if sequence.query_rows > 0 { (sequence.task + 1) * sizes.prefix_tokens } else { 0 };
            let end = sequence.start + sequence.rows();
            if end > rows || sequence.rows() > self.what.rotary.positions() || prefix_end > prefix_rows {
                candle_core::bail!(
                    "attention: {rows} rows, {} positions and {prefix_rows} prefix rows do not hold {sequence:?}",
                    self.what.rotary.positions()
                );
            }
        }
        let with_query = self.what.sequences.iter().filter(|sequence| sequence.query_rows > 0).count();
        Ok(if self.what.last_query_only { with_query } else { rows })
    }

    /// Puts queries, keys and values of one sequence and key head in place.
    fn gather(&self, cpu: Cpu, qkv: &[f32], prefix: &[f32], sequence: &SequenceRows, head: usize, work: &mut Work) {
        let sizes = &self.what.sizes;
        let (width, group, stride) = (sizes.head_width, sizes.group(), sizes.row_width());
        let (flow, rows, keys, pairs) = (sequence.flow_rows, sequence.rows(), sequence.keys(sizes), width / 2);
        let source = &qkv[sequence.start * stride..(sequence.start + rows) * stride];
        let (cosines, sines) = self.what.rotary.from(0);
        let scale = 1.0 / (width as f32).sqrt();
        let (key_column, value_column) = (sizes.hidden() + head * width, sizes.hidden() + sizes.kv_width() + head * width);
        work.queries.resize(rows * group * width, 0.0);
        work.keys.resize(keys * width, 0.0);
        work.values.resize(keys * width, 0.0);
        cpu.rotate(source, stride, head * group * width, group * width, cosines, sines, pairs, scale, &mut work.queries);
        cpu.rotate(&source[..flow * stride], stride, key_column, width, cosines, sines, pairs, 1.0, &mut work.keys[..flow * width]);
        for row in 0..flow {
            let start = row * stride + value_column;
            work.values[row * width..(row + 1) * width].copy_from_slice(&source[start..start + width]);
        }
        if sequence.query_rows == 0 {
            return;
        }
        let (cosines, sines) = self.what.rotary.from(flow);
        let first_query = keys - sequence.query_rows;
        let query_source = &source[flow * stride..];
        cpu.rotate(query_source, stride, key_column, width, cosines, sines, pairs, 1.0, &mut work.keys[first_query * width..]);
        for (row, target) in work.values[first_query * width..].chunks_exact_mut(width).enumerate() {
            let start = row * stride + value_column;
            target.copy_from_slice(&query_source[start..start + width]);
        }
        for token in 0..sizes.prefix_tokens {
            let start = (sequence.task * sizes.prefix_tokens + token) * 2 * sizes.kv_width() + head * width;
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
                    cpu.pack(&mut work.keys_transposed, (keys, width), Matrix::new(&work.keys, width).t());
                    cpu.pack(&mut work.values_packed, (width, keys), Matrix::new(&work.values, width));
                    for block in self.blocks(sequence) {
                        let rows = block.count * group;
                        self.scores(cpu, scratch, sequence, block, &mut work);
                        let kept_rows = kept.maxima.len();
                        kept.maxima.resize(kept_rows + rows, 0.0);
                        kept.inverse_sums.resize(kept_rows + rows, 0.0);
                        let (maxima, sums) = (&mut kept.maxima[kept_rows..], &mut kept.inverse_sums[kept_rows..]);
                        cpu.softmax(&mut work.scores, block.width, &work.limits, maxima, sums);
                        work.block.resize(rows * width, 0.0);
                        let a = Matrix::new(&work.scores, block.width);
                        cpu.gemm_packed(scratch, (rows, width, block.width), a, &work.values_packed, &mut work.block, width, false);
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
    fn scores(&self, cpu: Cpu, scratch: &mut GemmScratch, sequence: &SequenceRows, block: Block, work: &mut Work) {
        let (width, group) = (self.what.sizes.head_width, self.what.sizes.group());
        let rows = block.count * group;
        self.limits(sequence, block, &mut work.limits);
        work.scores.resize(rows * block.width, 0.0);
        let a = Matrix::new(&work.queries[block.start * group * width..], width);
        cpu.gemm_packed(scratch, (rows, block.width, width), a, &work.keys_transposed, &mut work.scores, block.width, false);
    }

    fn backward(&self, qkv: &[f32], prefix: &[f32], result: &[f32], gradient: &[f32], sums: &mut Gradients) -> Result<()> {
        let sizes = &self.what.sizes;
        let (width, group) = (sizes.head_width, sizes.group());
        let kept = self.softmax.take("attention")?;
        let mut work = Work::default();
        with_kernels(|cpu, scratch| {
            let (mut ordinal, mut kept_rows) = (0, 0);
            for sequence in &*self.what.sequences {
                let keys = sequence.keys(sizes);
                for head in 0..sizes.kv_heads {
                    self.gather(cpu, qkv, prefix, sequence, head, &mut work);
                    cpu.pack(&mut work.keys_transposed, (keys, width), Matrix::new(&work.keys, width).t());
                    cpu.pack(&mut work.values_transposed, (keys, width), Matrix::new(&work.values, width).t());
                    cpu.pack(&mut work.keys_packed, (width, keys), Matrix::new(&work.keys, width));
                    zeroed(&mut work.query_gradients, sequence.rows() * group * width);
                    zeroed(&mut work.key_gradients, keys * width);
                    zeroed(&mut work.value_gradients, keys * width);
                    for block in self.blocks(sequence) {
                        let rows = block.count * group;
                        work.block.clear();
                        work.block_gradient.clear();
                        for token in block.start..block.start + block.count {
                            let row = self.result_row(sequence, ordinal, token);
                            let start = row * sizes.hidden() + head * group * width;
                            work.block.extend_from_slice(&result[start..start + group * width]);
                            work.block_gradient.extend_from_slice(&gradient[start..start + group * width]);
                        }
                        self.scores(cpu, scratch, sequence, block, &mut work);
                        let range = kept_rows..kept_rows + rows;
                        kept_rows += rows;
                        let (maxima, inverse_sums) = (&kept.maxima[range.clone()], &kept.inverse_sums[range]);
                        cpu.softmax_again(&mut work.scores, block.width, &work.limits, maxima, inverse_sums);
                        block_backward(cpu, scratch, width, group, block, &mut work);
                    }
                    self.scatter(cpu, sequence, head, &work, sums);
                }
                ordinal += usize::from(sequence.query_rows > 0);
            }
        });
        Ok(())
    }

    /// Turns the gradients of one sequence and key head back and puts them where they belong.
    fn scatter(&self, cpu: Cpu, sequence: &SequenceRows, head: usize, work: &Work, sums: &mut Gradients) {
        let sizes = &self.what.sizes;
        let (width, group, stride) = (sizes.head_width, sizes.group(), sizes.row_width());
        let (flow, rows, keys, pairs) = (sequence.flow_rows, sequence.rows(), sequence.keys(sizes), width / 2);
        let target = &mut sums.qkv[sequence.start * stride..(sequence.start + rows) * stride];
        let (cosines, sines) = self.what.rotary.from(0);
        let scale = 1.0 / (width as f32).sqrt();
        let (key_column, value_column) = (sizes.hidden() + head * width, sizes.hidden() + sizes.kv_width() + head * width);
        let query_column = head * group * width;
        cpu.rotate_backward(&work.query_gradients, group * width, cosines, sines, pairs, scale, target, stride, query_column);
        let flow_keys = &work.key_gradients[..flow * width];
        cpu.rotate_backward(flow_keys, width, cosines, sines, pairs, 1.0, target, stride, key_column);
        for (row, values) in work.value_gradients[..flow * width].chunks_exact(width).enumerate() {
            let start = row * stride + value_column;
            target[start..start + width].copy_from_slice(values);
        }
        if sequence.query_rows == 0 {
            return;
        }
        let (cosines, sines) = self.what.rotary.from(flow);
        let first_query = keys - sequence.query_rows;
        let target = &mut target[flow * stride..];
        let query_keys = &work.key_gradients[first_query * width..];
        cpu.rotate_backward(query_keys, width, cosines, sines, pairs, 1.0, target, stride, key_column);
        for (row, values) in work.value_gradients[first_query * width..].chunks_exact(width).enumerate() {
            let start = row * stride + value_column;
            target[start..start + width].copy_from_slice(values);
        }
        for token in 0..sizes.prefix_tokens {
            let start = (sequence.task * sizes.prefix_tokens + token) * 2 * sizes.kv_width() + head * width;
            let source = (flow + token) * width..(flow + token + 1) * width;
            cpu.add_assign(&mut sums.prefix[start..start + width], &work.key_gradients[source.clone()]);
            let start = start + sizes.kv_width();
            cpu.add_assign(&mut sums.prefix[start..start + width], &work.value_gradients[source]);
        }
    }

    fn gradients(&self, qkv: &Tensor, prefix: Option<&Tensor>, result: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        let mut sums =
            Gradients { qkv: vec![0.0; qkv.elem_count()], prefix: vec![0.0; prefix.map_or(0, Tensor::elem_count)] };
        let gradient = gradient.contiguous()?;
        read(qkv, |qkv| {
            read(result, |result| {
                read(&gradient, |gradient| match prefix {
                    Some(prefix) => read(prefix, |prefix| self.backward(qkv, prefix, result, gradient, &mut sums)),
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

/// Gradients of a block's queries, and what it adds to those of keys and values. `work.scores` holds the probabilities.
fn block_backward(cpu: Cpu, scratch: &mut GemmScratch, width: usize, group: usize, block: Block, work: &mut Work) {
    let rows = block.count * group;
    let probabilities = Matrix::new(&work.scores, block.width);
    let gradient = Matrix::new(&work.block_gradient, width);
    cpu.gemm(scratch, (block.width, width, rows), probabilities.t(), gradient, &mut work.value_gradients, width, true);
    work.score_gradients.resize(rows * block.width, 0.0);
    let score_gradients = &mut work.score_gradients[..];
    cpu.gemm_packed(scratch, (rows, block.width, width), gradient, &work.values_transposed, score_gradients, block.width, false);
    work.shifts.resize(rows, 0.0);
    cpu.row_products(&work.block, &work.block_gradient, width, &mut work.shifts);
    cpu.softmax_backward(&work.scores, block.width, &work.shifts, score_gradients);
    let score_gradients = Matrix::new(score_gradients, block.width);
    let queries = block.start * group * width..(block.start + block.count) * group * width;
    let of_queries = &mut work.query_gradients[queries.clone()];
    cpu.gemm_packed(scratch, (rows, width, block.width), score_gradients, &work.keys_packed, of_queries, width, false);
    let queries = Matrix::new(&work.queries[queries], width);
    cpu.gemm(scratch, (block.width, width, rows), score_gradients.t(), queries, &mut work.key_gradients, width, true);
}

fn zeroed(values: &mut Vec<f32>, length: usize) {
    values.clear();
    values.resize(length, 0.0);
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

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.check(l1, Some(l2))?;
        Ok(self.run(argument(s1, l1)?, argument(s2, l2)?, rows))
    }

    fn bwd(&self, qkv: &Tensor, prefix: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.gradients(qkv, Some(prefix), result, gradient)?;
        let of_prefix = prefix.track_op().then(|| tensor(gradients.prefix, prefix.shape())).transpose()?;
        Ok((Some(tensor(gradients.qkv, qkv.shape())?), of_prefix))
    }
}
