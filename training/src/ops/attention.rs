//! Causal attention over packed sequences, with query rows that also see their task's learnt prefix.
//!
//! Flow rows and query rows are two operations, because nothing of a query reaches the flow: where the base is frozen, the flow rows
//! carry no gradient, and the way back runs through the query rows alone.
//!
//! The keys of a query stand in the order flow, prefix, query: what a row sees is then always the first so-many of them, so
//! prefix and causality are one limit per row. The query heads that share a key head are stacked as rows, token by token.

mod backward;
mod layout;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::{Cpu, GemmScratch, Matrix, Packed};

use super::tape::{apply1, apply2, apply3};
use super::{Saved, argument, matrix_sizes, read, tensor, with_kernels};

pub use layout::{Attention, AttentionSizes, QueryRows, Rotary, SequenceRows};

/// Stacked rows (tokens x heads that share keys) whose scores exist at the same time.
const BLOCK_ROWS: usize = 48;

/// Attention of the flow rows to those before them. `qkv` `[flow rows, (heads + 2 * kv_heads) * head_width]` holds queries,
/// keys and values of each row, before rotation. Result `[flow rows, heads * head_width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn flow_attention(qkv: &Tensor, what: Attention) -> Result<Tensor> {
    let operation = AttentionOp {
        keep: qkv.track_op(),
        what,
        asking: Asking::Flow,
        softmax: Saved::default(),
    };
    apply1(qkv, operation)
}

/// Attention of query rows to their flow, their task's prefix and the earlier rows of their query. `flow` and `queries` as in
/// [`flow_attention`]; `prefix` `[tasks * prefix_tokens, 2 * kv_heads * head_width]` keys and values, not rotated (absent if
/// `prefix_tokens` is 0). Result `[asking rows, heads * head_width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn query_attention(
    flow: &Tensor,
    queries: &Tensor,
    prefix: Option<&Tensor>,
    what: Attention,
    asking: QueryRows,
) -> Result<Tensor> {
    let keep = flow.track_op() || queries.track_op() || prefix.is_some_and(Tensor::track_op);
    let operation = AttentionOp {
        what,
        asking: Asking::Queries(asking),
        keep,
        softmax: Saved::default(),
    };
    match prefix {
        Some(prefix) => apply3(flow, queries, prefix, operation),
        None => apply2(flow, queries, operation),
    }
}

/// Which rows an operation works out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Flow,
    Queries(QueryRows),
}

struct AttentionOp {
    what: Attention,
    asking: Asking,
    keep: bool,
    softmax: Saved<SoftmaxRows>,
}

/// Maximum and inverse sum of each softmax row, in the order in which the rows are worked on.
#[derive(Default)]
struct SoftmaxRows {
    maxima: Vec<f32>,
    inverse_sums: Vec<f32>,
}

/// What goes in; empty where there is none.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    flow: &'a [f32],
    queries: &'a [f32],
    prefix: &'a [f32],
}

/// Memory for one sequence and key head.
#[derive(Default)]
struct Work {
    /// `[asking rows * group, head_width]`, rotated and divided by the root of the head's width.
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

/// Asking rows `start .. start + count` of a sequence, which see keys below `width`.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    count: usize,
    width: usize,
}

/// Rows of one sequence, key head and kind in a tensor of queries, keys and values.
struct Columns {
    /// Where the queries of the key head's group start.
    queries: usize,
    keys: usize,
    values: usize,
}

impl Columns {
    fn of(sizes: &AttentionSizes, head: usize) -> Self {
        let width = sizes.head_width;
        Self {
            queries: head * sizes.group() * width,
            keys: sizes.hidden() + head * width,
            values: sizes.hidden() + sizes.kv_width() + head * width,
        }
    }
}

impl AttentionOp {
    /// Sequences that have asking rows.
    fn sequences(&self) -> impl Iterator<Item = &SequenceRows> {
        let queries = matches!(self.asking, Asking::Queries(_));
        let sequences = self.what.sequences.iter();
        sequences.filter(move |sequence| !queries || sequence.query_rows > 0)
    }

    /// Rows of a sequence that have queries in [`Work`].
    fn rows(&self, sequence: &SequenceRows) -> usize {
        match self.asking {
            Asking::Flow => sequence.flow_rows,
            Asking::Queries(_) => sequence.query_rows,
        }
    }

    /// Keys that a sequence's rows see.
    fn keys(&self, sequence: &SequenceRows) -> usize {
        match self.asking {
            Asking::Flow => sequence.flow_rows,
            Asking::Queries(_) => {
                sequence.flow_rows + self.what.sizes.prefix_tokens + sequence.query_rows
            }
        }
    }

    fn blocks(&self, sequence: &SequenceRows) -> Vec<Block> {
        let keys = self.keys(sequence);
        let (start, count) = match self.asking {
            Asking::Flow => {
                let flow = sequence.flow_rows;
                let tokens = (BLOCK_ROWS / self.what.sizes.group()).max(1);
                let block = |start: usize| {
                    let count = tokens.min(flow - start);
                    Block {
                        start,
                        count,
                        width: start + count,
                    }
                };
                return (0..flow).step_by(tokens).map(block).collect();
            }
            Asking::Queries(QueryRows::All) => (0, sequence.query_rows),
            Asking::Queries(QueryRows::Last) => (sequence.query_rows - 1, 1),
        };
        vec![Block {
            start,
            count,
            width: keys,
        }]
    }

    /// How many keys each stacked row of a block sees.
    fn limits(&self, sequence: &SequenceRows, block: Block, limits: &mut Vec<usize>) {
        let before = self.keys(sequence) - self.rows(sequence);
        limits.clear();
        for row in block.start..block.start + block.count {
            limits.extend(std::iter::repeat_n(
                before + row + 1,
                self.what.sizes.group(),
            ));
        }
    }

    /// The row of the result where an asking row of a sequence stands.
    fn result_row(&self, sequence: &SequenceRows, ordinal: usize, row: usize) -> usize {
        match self.asking {
            Asking::Flow => sequence.flow_start + row,
            Asking::Queries(QueryRows::All) => sequence.query_start + row,
            Asking::Queries(QueryRows::Last) => ordinal,
        }
    }

    /// Rows of the result, if the shapes fit.
    fn check(
        &self,
        flow: &Layout,
        queries: Option<&Layout>,
        prefix: Option<&Layout>,
    ) -> Result<usize> {
        let sizes = &self.what.sizes;
        if sizes.kv_heads == 0
            || !sizes.heads.is_multiple_of(sizes.kv_heads)
            || !sizes.head_width.is_multiple_of(2)
        {
            candle_core::bail!("attention: {sizes:?} is not a possible layout of heads");
        }
        let rows_of = |layout: Option<&Layout>, columns: usize| -> Result<usize> {
            let (rows, width) = layout.map_or(Ok((0, columns)), matrix_sizes)?;
            if width != columns {
                candle_core::bail!("attention: expected {columns} columns, found {width}");
            }
            Ok(rows)
        };
        let flow_rows = rows_of(Some(flow), sizes.row_width())?;
        let query_rows = rows_of(queries, sizes.row_width())?;
        let prefix_rows = rows_of(prefix, 2 * sizes.kv_width())?;
        let positions = self.what.rotary.positions();
        let mut asking = 0;
        for sequence in self.sequences() {
            let flow_end = sequence.flow_start + sequence.flow_rows;
            let (mut query_end, mut prefix_end, mut rows) = (0, 0, sequence.flow_rows);
            if self.asking != Asking::Flow {
                query_end = sequence.query_start + sequence.query_rows;
                prefix_end = (sequence.task + 1) * sizes.prefix_tokens;
                rows += sequence.query_rows;
            }
            if flow_end > flow_rows
                || query_end > query_rows
                || prefix_end > prefix_rows
                || rows > positions
            {
                candle_core::bail!(
                    "attention: {flow_rows} flow rows, {query_rows} query rows, {positions} positions and {prefix_rows} prefix rows do not hold {sequence:?}"
                );
            }
            asking += 1;
        }
        Ok(match self.asking {
            Asking::Flow => flow_rows,
            Asking::Queries(QueryRows::All) => query_rows,
            Asking::Queries(QueryRows::Last) => asking,
        })
    }

    /// Puts queries, keys and values of one sequence and key head in place.
    fn gather(
        &self,
        cpu: Cpu,
        inputs: Inputs<'_>,
        sequence: &SequenceRows,
        head: usize,
        work: &mut Work,
    ) {
        let sizes = &self.what.sizes;
        let (width, group, stride) = (sizes.head_width, sizes.group(), sizes.row_width());
        let (flow, keys, pairs) = (sequence.flow_rows, self.keys(sequence), width / 2);
        let columns = Columns::of(sizes, head);
        let scale = 1.0 / (width as f32).sqrt();
        work.queries
            .resize(self.rows(sequence) * group * width, 0.0);
        work.keys.resize(keys * width, 0.0);
        work.values.resize(keys * width, 0.0);
        let Work {
            queries: query_values,
            keys: key_values,
            values,
            ..
        } = work;
        let mut put = |source: &[f32], position: usize, first_key: usize, asks: bool| {
            let (cosines, sines) = self.what.rotary.from(position);
            let rotate = |column, columns, scale, target: &mut [f32]| {
                cpu.rotate(
                    source, stride, column, columns, cosines, sines, pairs, scale, target,
                );
            };
            if asks {
                rotate(columns.queries, group * width, scale, query_values);
            }
            let end = first_key + source.len() / stride;
            rotate(
                columns.keys,
                width,
                1.0,
                &mut key_values[first_key * width..end * width],
            );
            let targets = values[first_key * width..end * width].chunks_exact_mut(width);
            for (target, row) in targets.zip(source.chunks_exact(stride)) {
                target.copy_from_slice(&row[columns.values..columns.values + width]);
            }
        };
        let flow_end = sequence.flow_start + flow;
        let flow_rows = &inputs.flow[sequence.flow_start * stride..flow_end * stride];
        put(flow_rows, 0, 0, self.asking == Asking::Flow);
        if self.asking == Asking::Flow {
            return;
        }
        let query_end = sequence.query_start + sequence.query_rows;
        let query_rows = &inputs.queries[sequence.query_start * stride..query_end * stride];
        put(query_rows, flow, flow + sizes.prefix_tokens, true);
        for token in 0..sizes.prefix_tokens {
            let start =
                (sequence.task * sizes.prefix_tokens + token) * 2 * sizes.kv_width() + head * width;
            let target = (flow + token) * width..(flow + token + 1) * width;
            work.keys[target.clone()].copy_from_slice(&inputs.prefix[start..start + width]);
            let start = start + sizes.kv_width();
            work.values[target].copy_from_slice(&inputs.prefix[start..start + width]);
        }
    }

    fn forward(&self, inputs: Inputs<'_>, result: &mut [f32]) -> SoftmaxRows {
        let sizes = &self.what.sizes;
        let (width, group) = (sizes.head_width, sizes.group());
        let mut kept = SoftmaxRows::default();
        let mut work = Work::default();
        with_kernels(|cpu, scratch| {
            for (ordinal, sequence) in self.sequences().enumerate() {
                let keys = self.keys(sequence);
                for head in 0..sizes.kv_heads {
                    self.gather(cpu, inputs, sequence, head, &mut work);
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
        flow: &Tensor,
        queries: Option<&Tensor>,
        prefix: Option<&Tensor>,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<Gradients> {
        // Flow rows of a frozen base want none; empty then.
        let zeros = |tensor: Option<&Tensor>| {
            let tracked = tensor.filter(|tensor| tensor.track_op());
            vec![0.0; tracked.map_or(0, Tensor::elem_count)]
        };
        let mut sums = Gradients {
            flow: zeros(Some(flow)),
            queries: zeros(queries),
            prefix: zeros(prefix),
        };
        let gradient = gradient.contiguous()?;
        read(flow, |flow| {
            read_or_none(queries, |queries| {
                read_or_none(prefix, |prefix| {
                    let inputs = Inputs {
                        flow,
                        queries,
                        prefix,
                    };
                    read(result, |result| {
                        read(&gradient, |gradient| {
                            self.backward(inputs, result, gradient, &mut sums)
                        })
                    })
                })
            })
        })?;
        Ok(sums)
    }

    fn run(&self, inputs: Inputs<'_>, rows: usize) -> (CpuStorage, Shape) {
        let hidden = self.what.sizes.hidden();
        let mut result = vec![0.0; rows * hidden];
        let kept = self.forward(inputs, &mut result);
        if self.keep {
            self.softmax.put(kept);
        }
        (CpuStorage::F32(result), Shape::from((rows, hidden)))
    }
}

/// Runs `work` on the values of a tensor, or on none.
fn read_or_none<R>(tensor: Option<&Tensor>, work: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    match tensor {
        Some(tensor) => read(tensor, work),
        None => work(&[]),
    }
}

/// Empty where a gradient is not wanted.
struct Gradients {
    flow: Vec<f32>,
    queries: Vec<f32>,
    prefix: Vec<f32>,
}

/// A gradient as a tensor, if it was wanted.
fn wanted(values: Vec<f32>, of: &Tensor) -> Result<Option<Tensor>> {
    of.track_op()
        .then(|| tensor(values, of.shape()))
        .transpose()
}

impl CustomOp1 for AttentionOp {
    fn name(&self) -> &'static str {
        "flow-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.check(layout, None, None)?;
        let inputs = Inputs {
            flow: argument(storage, layout)?,
            queries: &[],
            prefix: &[],
        };
        Ok(self.run(inputs, rows))
    }

    fn bwd(&self, qkv: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradients = self.gradients(qkv, None, None, result, gradient)?;
        wanted(gradients.flow, qkv)
    }
}

impl CustomOp2 for AttentionOp {
    fn name(&self) -> &'static str {
        "query-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let rows = self.check(l1, Some(l2), None)?;
        let inputs = Inputs {
            flow: argument(s1, l1)?,
            queries: argument(s2, l2)?,
            prefix: &[],
        };
        Ok(self.run(inputs, rows))
    }

    fn bwd(
        &self,
        flow: &Tensor,
        queries: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.gradients(flow, Some(queries), None, result, gradient)?;
        Ok((
            wanted(gradients.flow, flow)?,
            wanted(gradients.queries, queries)?,
        ))
    }
}

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "query-attention-with-prefix"
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
        let rows = self.check(l1, Some(l2), Some(l3))?;
        let inputs = Inputs {
            flow: argument(s1, l1)?,
            queries: argument(s2, l2)?,
            prefix: argument(s3, l3)?,
        };
        Ok(self.run(inputs, rows))
    }

    fn bwd(
        &self,
        flow: &Tensor,
        queries: &Tensor,
        prefix: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradients = self.gradients(flow, Some(queries), Some(prefix), result, gradient)?;
        Ok((
            wanted(gradients.flow, flow)?,
            wanted(gradients.queries, queries)?,
            wanted(gradients.prefix, prefix)?,
        ))
    }
}
