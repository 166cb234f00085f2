//! Numbers without a pattern, and weights of them: speed depends on what is multiplied, as power does.

use trafficllm_kernels::{Int4Matrix, QuantisedMatrix, WeightMatrix};
use trafficllm_model::transformer::LayerWeights;

use crate::shapes::Shape;

/// What weights are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Int8,
    Int4,
}

impl Format {
    pub(crate) const ALL: [Self; 2] = [Self::Int8, Self::Int4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// A generator, the same numbers in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count.div_ceil(8))
            .flat_map(|_| self.word().to_le_bytes())
            .collect();
        bytes.truncate(count);
        bytes
    }

    /// From -1 to 1.
    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    pub(crate) fn below(&mut self, count: usize, limit: usize) -> Vec<u32> {
        (0..count)
            .map(|_| (self.word() % limit as u64) as u32)
            .collect()
    }

    /// Weights that keep the size of what they multiply about as it is.
    pub(crate) fn matrix(&mut self, format: Format, rows: usize, columns: usize) -> WeightMatrix {
        let size = (columns as f32).sqrt();
        match format {
            Format::Int8 => {
                // All values but -128 are weights.
                let bytes = self.bytes(rows * columns);
                let values = bytes
                    .into_iter()
                    .map(|byte| (byte as i8).max(-127))
                    .collect();
                let scale = scale_of(1.0 / (64.0 * size));
                let scales = vec![scale; rows];
                WeightMatrix::Int8(QuantisedMatrix {
                    rows,
                    columns,
                    values,
                    scales,
                })
            }
            Format::Int4 => WeightMatrix::Int4(Int4Matrix {
                rows,
                columns,
                nibbles: self.bytes(rows * columns / 2),
                scales: vec![scale_of(1.0 / (4.0 * size)); rows * columns / 32],
                minimums: Vec::new(),
            }),
        }
    }

    pub(crate) fn layer(&mut self, format: Format, shape: &Shape) -> LayerWeights {
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        let (query, key) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        LayerWeights {
            attention_norm: vec![1.0; hidden],
            query: self.matrix(format, query, hidden),
            key: self.matrix(format, key, hidden),
            value: self.matrix(format, key, hidden),
            output: self.matrix(format, hidden, query),
            mlp_norm: vec![1.0; hidden],
            gate: self.matrix(format, inner, hidden),
            up: self.matrix(format, inner, hidden),
            down: self.matrix(format, hidden, inner),
        }
    }
}

/// Scales are stored as 16-bit floats.
fn scale_of(scale: f32) -> f32 {
    trafficllm_kernels::half::from_bits(trafficllm_kernels::half::to_bits(scale))
}
