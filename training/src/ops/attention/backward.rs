//! The way back: probabilities are made again from the kept maxima and sums, block by block.

use candle_core::Result;
use trafficllm_kernels::training::{Cpu, GemmScratch, Matrix};

use super::{AttentionOp, Block, Gradients, SequenceRows, Work};
use crate::ops::with_kernels;

impl AttentionOp {
    pub(super) fn backward(
        &self,
        qkv: &[f32],
        prefix: &[f32],
        result: &[f32],
        gradient: &[f32],
        sums: &mut Gradients,
    ) -> Result<()> {
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
                ordinal += usize::from(sequence.query_rows > 0);
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
        let (flow, rows, keys, pairs) = (
            sequence.flow_rows,
            sequence.rows(),
            sequence.keys(sizes),
            width / 2,
        );
        let target = &mut sums.qkv[sequence.start * stride..(sequence.start + rows) * stride];
        let (cosines, sines) = self.what.rotary.from(0);
        let scale = 1.0 / (width as f32).sqrt();
        let (key_column, value_column) = (
            sizes.hidden() + head * width,
            sizes.hidden() + sizes.kv_width() + head * width,
        );
        let query_column = head * group * width;
        cpu.rotate_backward(
            &work.query_gradients,
            group * width,
            cosines,
            sines,
            pairs,
            scale,
            target,
            stride,
            query_column,
        );
        let flow_keys = &work.key_gradients[..flow * width];
        cpu.rotate_backward(
            flow_keys, width, cosines, sines, pairs, 1.0, target, stride, key_column,
        );
        for (row, values) in work.value_gradients[..flow * width]
            .chunks_exact(width)
            .enumerate()
        {
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
        cpu.rotate_backward(
            query_keys, width, cosines, sines, pairs, 1.0, target, stride, key_column,
        );
        for (row, values) in work.value_gradients[first_query * width..]
            .chunks_exact(width)
            .enumerate()
        {
            let start = row * stride + value_column;
            target[start..start + width].copy_from_slice(values);
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
