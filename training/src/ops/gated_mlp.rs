//! The gated MLP in one operation: row chunks stay in the cache between its products.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use trafficllm_kernels::training::{Matrix, Packed};

use super::tape::apply3;
use super::{Saved, argument, matrix_sizes, read, tensor, with_product_kernels};

/// Rows that go through all steps together.
const CHUNK_ROWS: usize = 192;

/// `(silu(x gate^T) * (x up^T)) down^T`: `x` `[rows, hidden]`, `gate_up` `[2 * width, hidden]` (gate above up), `down`
/// `[hidden, width]`, result `[rows, hidden]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn gated_mlp(x: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let keep = x.track_op() || gate_up.track_op() || down.track_op();
    apply3(
        x,
        gate_up,
        down,
        GatedMlp {
            keep,
            gate_up: Saved::default(),
        },
    )
}

struct GatedMlp {
    /// Whether a backward pass may follow.
    keep: bool,
    /// `[rows, 2 * width]`: gate and up of the forward pass.
    gate_up: Saved<Vec<f32>>,
}

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    hidden: usize,
    width: usize,
}

impl Sizes {
    fn of(x: &Layout, gate_up: &Layout, down: &Layout) -> Result<Self> {
        let ((rows, hidden), (double, inner), (out, width)) = (
            matrix_sizes(x)?,
            matrix_sizes(gate_up)?,
            matrix_sizes(down)?,
        );
        if inner != hidden || out != hidden || double != 2 * width {
            candle_core::bail!(
                "gated-mlp: expected weights of {} x {hidden} and {hidden} x {width}, found {double} x {inner} and {out} x {width}",
                2 * width
            );
        }
        Ok(Self {
            rows,
            hidden,
            width,
        })
    }

    fn chunks(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.rows)
            .step_by(CHUNK_ROWS)
            .map(move |start| (start, CHUNK_ROWS.min(self.rows - start)))
    }
}

impl CustomOp3 for GatedMlp {
    fn name(&self) -> &'static str {
        "gated-mlp"
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
        let sizes = Sizes::of(l1, l2, l3)?;
        let Sizes {
            rows,
            hidden,
            width,
        } = sizes;
        let (x, gate_up, down) = (argument(s1, l1)?, argument(s2, l2)?, argument(s3, l3)?);
        let kept_rows = if self.keep {
            rows
        } else {
            CHUNK_ROWS.min(rows)
        };
        let mut both = vec![0.0; kept_rows * 2 * width];
        let mut activation = vec![0.0; CHUNK_ROWS.min(rows) * width];
        let mut result = vec![0.0; rows * hidden];
        let (mut packed_gate_up, mut packed_down) = (Packed::default(), Packed::default());
        with_product_kernels(|cpu, scratch| {
            cpu.pack(
                &mut packed_gate_up,
                (2 * width, hidden),
                Matrix::new(gate_up, hidden).t(),
            );
            cpu.pack(
                &mut packed_down,
                (hidden, width),
                Matrix::new(down, width).t(),
            );
            for (start, count) in sizes.chunks() {
                let kept_start = if self.keep { start } else { 0 };
                let both = &mut both[kept_start * 2 * width..(kept_start + count) * 2 * width];
                let activation = &mut activation[..count * width];
                let a = Matrix::new(&x[start * hidden..], hidden);
                cpu.gemm_packed(
                    scratch,
                    (count, 2 * width, hidden),
                    a,
                    &packed_gate_up,
                    both,
                    2 * width,
                    false,
                );
                cpu.silu_gate(both, width, activation);
                let (a, result) = (
                    Matrix::new(activation, width),
                    &mut result[start * hidden..],
                );
                cpu.gemm_packed(
                    scratch,
                    (count, hidden, width),
                    a,
                    &packed_down,
                    result,
                    hidden,
                    false,
                );
            }
        });
        if self.keep {
            self.gate_up.put(both);
        }
        Ok((CpuStorage::F32(result), Shape::from((rows, hidden))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gate_up: &Tensor,
        down: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(x.layout(), gate_up.layout(), down.layout())?;
        let mut both = self.gate_up.take("gated-mlp")?;
        let wants_weights = gate_up.track_op() || down.track_op();
        let gradient = gradient.contiguous()?;
        let mut sums = Gradients {
            x: vec![0.0; sizes.rows * sizes.hidden],
            gate_up: vec![
                0.0;
                if wants_weights {
                    2 * sizes.width * sizes.hidden
                } else {
                    0
                }
            ],
            down: vec![
                0.0;
                if wants_weights {
                    sizes.width * sizes.hidden
                } else {
                    0
                }
            ],
        };
        read(x, |x_values| {
            read(gate_up, |gate_up| {
                read(down, |down| {
                    read(&gradient, |gradient| {
                        backward(
                            sizes, x_values, gate_up, down, gradient, &mut both, &mut sums,
                        );
                        Ok(())
                    })
                })
            })
        })?;
        let of_x = x
            .track_op()
            .then(|| tensor(sums.x, x.shape()))
            .transpose()?;
        let of_gate_up = gate_up
            .track_op()
            .then(|| tensor(sums.gate_up, gate_up.shape()))
            .transpose()?;
        let of_down = down
            .track_op()
            .then(|| tensor(sums.down, down.shape()))
            .transpose()?;
        Ok((of_x, of_gate_up, of_down))
    }
}

struct Gradients {
    x: Vec<f32>,
    /// Empty if no weight's gradient is wanted.
    gate_up: Vec<f32>,
    down: Vec<f32>,
}

fn backward(
    sizes: Sizes,
    x: &[f32],
    gate_up: &[f32],
    down: &[f32],
    gradient: &[f32],
    both: &mut [f32],
    sums: &mut Gradients,
) {
    let Sizes {
        rows,
        hidden,
        width,
    } = sizes;
    let mut activation = vec![0.0; CHUNK_ROWS.min(rows) * width];
    let (mut packed_gate_up, mut packed_down) = (Packed::default(), Packed::default());
    with_product_kernels(|cpu, scratch| {
        cpu.pack(
            &mut packed_gate_up,
            (hidden, 2 * width),
            Matrix::new(gate_up, hidden),
        );
        cpu.pack(&mut packed_down, (width, hidden), Matrix::new(down, width));
        for (start, count) in sizes.chunks() {
            let both = &mut both[start * 2 * width..(start + count) * 2 * width];
            let activation = &mut activation[..count * width];
            let x = Matrix::new(&x[start * hidden..], hidden);
            let gradient = Matrix::new(&gradient[start * hidden..], hidden);
            cpu.gemm_packed(
                scratch,
                (count, width, hidden),
                gradient,
                &packed_down,
                activation,
                width,
                false,
            );
            cpu.silu_gate_backward(both, width, activation);
            let both = Matrix::new(both, 2 * width);
            let of_x = &mut sums.x[start * hidden..];
            cpu.gemm_packed(
                scratch,
                (count, hidden, 2 * width),
                both,
                &packed_gate_up,
                of_x,
                hidden,
                false,
            );
            if !sums.gate_up.is_empty() {
                cpu.gemm(
                    scratch,
                    (2 * width, hidden, count),
                    both.t(),
                    x,
                    &mut sums.gate_up,
                    hidden,
                    true,
                );
                let (a, b) = (gradient.t(), Matrix::new(activation, width));
                cpu.gemm(
                    scratch,
                    (hidden, width, count),
                    a,
                    b,
                    &mut sums.down,
                    width,
                    true,
                );
            }
        }
    });
}
