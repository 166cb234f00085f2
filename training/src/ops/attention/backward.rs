//! The way back: probabilities are made again from the kept maxima and sums, block by block.

use candle_core::Result;
use trafficllm_kernels::training::{Cpu, GemmScratch, Matrix};

use super::{Asking, AttentionOp, Block, Columns, Gradients, Inputs, SequenceRows, Work};
use crate::ops::with_kernels;

impl AttentionOp {
    pub(super) fn backward(
        &self,
        inputs: Inputs<'_>,
        result: &[f32],
        gradient: &[f32],
        sums: &mut Gradients,
    ) -> Result<()> {
        let sizes = &self.what.sizes;
        let (width, group) = (sizes.head_width, sizes.group());
        let kept = self.softmax.take("attention")?;
        let mut work = Work::default();
        with_kernels(|cpu, scratch| {
            let mut kept_rows = 0;
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
                        &mut work.values_transposed,
                        (keys, width),
                        Matrix::new(&work.values, width).t(),
                    );
                    cpu.pack(
                        &mut work.keys_packed,
                        (width, keys),
                        Matrix::new(&work.keys, width),
                    );
                    zeroed(
                        &mut work.query_gradients,
                        self.rows(sequence) * group * width,
                    );
                    zeroed(&mut work.key_gradients, keys * width);
                    zeroed(&mut work.value_gradients, keys * width);
                    for block in self.blocks(sequence) {
                        let rows = block.count * group;
                        work.block.clear();
                        work.block_gradient.clear();
                        for row in block.start..block.start + block.count {
                            let row = self.result_row(sequence, ordinal, row);
                            let start = row * sizes.hidden() + head * group * width;
                            work.block
                                .extend_from_slice(&result[start..start + group * width]);
                            work.block_gradient
                                .extend_from_slice(&gradient[start..start + group * width]);
                        }
                        self.scores(cpu, scratch, sequence, block, &mut work);
                        let range = kept_rows..kept_rows + rows;
                        kept_rows += rows;
                        let (maxima, inverse_sums) =
                            (&kept.maxima[range.clone()], &kept.inverse_sums[range]);
                        cpu.softmax_again(
                            &mut work.scores,
                            block.width,
                            &work.limits,
                            maxima,
                            inverse_sums,
                        );
                        block_backward(cpu, scratch, width, group, block, &mut work);
                    }
                    self.scatter(cpu, sequence, head, &work, sums);
                }
            }
        });
        Ok(())
    }

    /// Turns the gradients of one sequence and key head back and puts them where they belong.
    fn scatter(
        &self,
        cpu: Cpu,
        sequence: &SequenceRows,
        head: usize,
        work: &Work,
        sums: &mut Gradients,
    ) {
        let sizes = &self.what.sizes;
        let (width, group, stride) = (sizes.head_width, sizes.group(), sizes.row_width());
        let (flow, pairs) = (sequence.flow_rows, width / 2);
        let columns = Columns::of(sizes, head);
        let scale = 1.0 / (width as f32).sqrt();
        let put = |target: &mut [f32], position: usize, first_key: usize, asks: bool| {
            let (cosines, sines) = self.what.rotary.from(position);
            let end = first_key + target.len() / stride;
            let keys = first_key * width..end * width;
            let mut turn = |gradients: &[f32], columns, scale, column| {
                cpu.rotate_backward(
                    gradients, columns, cosines, sines, pairs, scale, target, stride, column,
                );
            };
            if asks {
                turn(&work.query_gradients, group * width, scale, columns.queries);
            }
            turn(&work.key_gradients[keys.clone()], width, 1.0, columns.keys);
            let values = work.value_gradients[keys].chunks_exact(width);
            for (row, values) in target.chunks_exact_mut(stride).zip(values) {
                row[columns.values..columns.values + width].copy_from_slice(values);
            }
        };
        if !sums.flow.is_empty() {
            let end = sequence.flow_start + flow;
            let target = &mut sums.flow[sequence.flow_start * stride..end * stride];
            put(target, 0, 0, self.asking == Asking::Flow);
        }
        if self.asking == Asking::Flow {
            return;
        }
        if !sums.queries.is_empty() {
            let end = sequence.query_start + sequence.query_rows;
            let target = &mut sums.queries[sequence.query_start * stride..end * stride];
            put(target, flow, flow + sizes.prefix_tokens, true);
        }
        if sums.prefix.is_empty() {
            return;
        }
        for token in 0..sizes.prefix_tokens {
            let start =
                (sequence.task * sizes.prefix_tokens + token) * 2 * sizes.kv_width() + head * width;
            let source = (flow + token) * width..(flow + token + 1) * width;
            cpu.add_assign(
                &mut sums.prefix[start..start + width],
                &work.key_gradients[source.clone()],
            );
            let start = start + sizes.kv_width();
            cpu.add_assign(
                &mut sums.prefix[start..start + width],
                &work.value_gradients[source],
            );
        }
    }
}

/// Gradients of a block's queries, and what it adds to those of keys and values. `work.scores` holds the probabilities.
fn block_backward(
    cpu: Cpu,
    scratch: &mut GemmScratch,
    width: usize,
    group: usize,
    block: Block,
    work: &mut Work,
) {
    let rows = block.count * group;
    let probabilities = Matrix::new(&work.scores, block.width);
    let gradient = Matrix::new(&work.block_gradient, width);
    cpu.gemm(
        scratch,
        (block.width, width, rows),
        probabilities.t(),
        gradient,
        &mut work.value_gradients,
        width,
        true,
    );
    work.score_gradients.resize(rows * block.width, 0.0);
    let score_gradients = &mut work.score_gradients[..];
    cpu.gemm_packed(
        scratch,
        (rows, block.width, width),
        gradient,
        &work.values_transposed,
        score_gradients,
        block.width,
        false,
    );
    work.shifts.resize(rows, 0.0);
    cpu.row_products(&work.block, &work.block_gradient, width, &mut work.shifts);
    cpu.softmax_backward(&work.scores, block.width, &work.shifts, score_gradients);
    let score_gradients = Matrix::new(score_gradients, block.width);
    let queries = block.start * group * width..(block.start + block.count) * group * width;
    let of_queries = &mut work.query_gradients[queries.clone()];
    cpu.gemm_packed(
        scratch,
        (rows, width, block.width),
        score_gradients,
        &work.keys_packed,
        of_queries,
        width,
        false,
    );
    let queries = Matrix::new(&work.queries[queries], width);
    cpu.gemm(
        scratch,
        (block.width, width, rows),
        score_gradients.t(),
        queries,
        &mut work.key_gradients,
        width,
        true,
    );
}

fn zeroed(values: &mut Vec<f32>, length: usize) {
    values.clear();
    values.resize(length, 0.0);
}
