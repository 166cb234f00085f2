//! The steps of a prefill one by one, made of the kernels' public operations in the order in which the engine does them, with a
//! clock around each. It is a model of the engine's pass, not the pass: how far the sum is from the whole is printed too.

use std::time::{Duration, Instant};

use trafficllm_kernels::{
    AttentionScratch, AttentionShape, KernelError, Kernels, KeyBlocks, Level, PackedMatrix,
    QuantisedMatrix, QuantisedRows, RotaryTable, WeightMatrix,
};

use trafficllm_model::transformer::{chunk_rows, tile_rows};

use crate::model_file::random_weights;
use crate::shapes::{CONTEXT, HEAD_DIM, PROMPT_TOKENS, PROMPTS, Shape};

const EPSILON: f32 = 1e-5;

/// What is told apart, in the order of [`Times`].
pub(crate) const PHASES: [&str; 8] = [
    "products",
    "gated products and SiLU",
    "norms with quantising",
    "quantising of attention and gate",
    "rotary",
    "laying out of keys",
    "attention",
    "embedding and output norm",
];

/// Time of each phase of one run.
pub(crate) type Times = [Duration; PHASES.len()];

struct Layer {
    query_key_value: PackedMatrix,
    output: PackedMatrix,
    gate_up: PackedMatrix,
    down: PackedMatrix,
}

/// Random layers of one shape, and the buffers of one thread.
pub(crate) struct Steps {
    shape: Shape,
    attention_shape: AttentionShape,
    kernels: Kernels,
    tile_rows: usize,
    embedding: WeightMatrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    rotary: RotaryTable,
    residual: Vec<f32>,
    attention_rows: Vec<f32>,
    gated: Vec<f32>,
    quantised: QuantisedRows,
    keys: KeyBlocks,
    scratch: AttentionScratch,
    normed: Vec<f32>,
}

impl Steps {
    pub(crate) fn new(shape: Shape, level: Level) -> Result<Self, KernelError> {
        let kernels = Kernels::new(level)?;
        let matrix = |seed: usize, rows, columns| {
            QuantisedMatrix::quantise(&random_weights(seed as u64, rows, columns), rows, columns)
                .map(WeightMatrix::from)
        };
        let layers = (0..shape.layers).map(|layer| {
            let [query, key, value, output, gate, up, down] = shape
                .matrices()
                .map(|(_, rows, columns)| matrix(layer, rows, columns));
            Ok(Layer {
                query_key_value: PackedMatrix::stacked(kernels, &[&query?, &key?, &value?])?,
                output: PackedMatrix::stacked(kernels, &[&output?])?,
                gate_up: PackedMatrix::gated(kernels, &gate?, &up?)?,
                down: PackedMatrix::stacked(kernels, &[&down?])?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>, KernelError>>()?;
        // Enough rows of the vocabulary to lie outside the caches.
        let embedding = matrix(99, shape.vocabulary.min(8192), shape.hidden)?;
        Ok(Self {
            attention_shape: AttentionShape {
                heads: shape.heads(),
                kv_heads: shape.kv_heads,
                head_dim: HEAD_DIM,
            },
            kernels,
            // The gate and the up projection together are the largest.
            tile_rows: tile_rows(
                level,
                layers
                    .iter()
                    .map(|layer| layer.gate_up.bytes())
                    .max()
                    .unwrap_or(0),
            ),
            embedding,
            layers,
            norm: vec![1.0; shape.hidden],
            rotary: RotaryTable::new(CONTEXT, HEAD_DIM, 10_000.0)?,
            residual: Vec::new(),
            attention_rows: Vec::new(),
            gated: Vec::new(),
            quantised: QuantisedRows::default(),
            keys: KeyBlocks::default(),
            scratch: AttentionScratch::default(),
            normed: vec![0.0; shape.hidden],
            shape,
        })
    }

    fn chunk_rows(&self) -> usize {
        chunk_rows(self.shape.hidden + self.attention_shape.row_size())
    }

    /// All prompts through all layers, every row.
    pub(crate) fn run(&mut self) -> Times {
        let mut times = Times::default();
        // The engine closes a chunk with the sequence that fills it.
        let per_chunk = (self.chunk_rows() / PROMPT_TOKENS).max(1);
        let mut first = 0;
        while first < PROMPTS {
            let prompts = per_chunk.min(PROMPTS - first);
            self.chunk(first, prompts, &mut times);
            first += prompts;
        }
        times
    }

    fn chunk(&mut self, first: usize, prompts: usize, times: &mut Times) {
        let (hidden, row_size) = (self.shape.hidden, self.attention_shape.row_size());
        let rows = prompts * PROMPT_TOKENS;
        self.residual.resize(rows * hidden, 0.0);
        self.attention_rows.resize(rows * row_size, 0.0);
        timed(&mut times[7], || {
            for (index, row) in self.residual.chunks_exact_mut(hidden).enumerate() {
                let token = (first * PROMPT_TOKENS + index) * 104_729 % self.embedding.rows();
                self.kernels.dequantise_row(&self.embedding, token, row);
            }
        });
        for layer in 0..self.layers.len() {
            self.project(layer, rows, times);
            self.attend(times);
            self.finish(layer, rows, times);
        }
        timed(&mut times[7], || {
            for row in self.residual.chunks_exact(PROMPT_TOKENS * hidden) {
                let last = &row[(PROMPT_TOKENS - 1) * hidden..];
                self.kernels
                    .rms_norm(last, &self.norm, EPSILON, &mut self.normed);
            }
        });
    }

    fn project(&mut self, layer: usize, rows: usize, times: &mut Times) {
        let (hidden, row_size) = (self.shape.hidden, self.attention_shape.row_size());
        let layer = &self.layers[layer];
        for start in (0..rows).step_by(self.tile_rows) {
            let end = rows.min(start + self.tile_rows);
            let residual = &self.residual[start * hidden..end * hidden];
            timed(&mut times[2], || {
                self.kernels
                    .rms_norm_quantise(residual, &self.norm, EPSILON, &mut self.quantised)
            });
            let output = &mut self.attention_rows[start * row_size..end * row_size];
            timed(&mut times[0], || {
                layer
                    .query_key_value
                    .multiply(&self.quantised, 0..row_size, output, row_size)
            });
        }
        let rotated = self.attention_shape.query_size() + self.attention_shape.key_size();
        timed(&mut times[4], || {
            for (index, row) in self.attention_rows.chunks_exact_mut(row_size).enumerate() {
                self.kernels
                    .rotate(&mut row[..rotated], &self.rotary, index % PROMPT_TOKENS);
            }
        });
    }

    fn attend(&mut self, times: &mut Times) {
        let shape = self.attention_shape;
        let row_size = shape.row_size();
        for rows in self
            .attention_rows
            .chunks_exact_mut(PROMPT_TOKENS * row_size)
        {
            timed(&mut times[5], || {
                self.keys
                    .fill(shape, &rows[shape.query_size()..], row_size, PROMPT_TOKENS)
            });
            timed(&mut times[6], || {
                self.kernels
                    .attend(shape, &[], &self.keys, rows, &mut self.scratch)
            });
        }
    }

    fn finish(&mut self, layer: usize, rows: usize, times: &mut Times) {
        let (hidden, row_size, feed_forward) = (
            self.shape.hidden,
            self.attention_shape.row_size(),
            self.shape.feed_forward,
        );
        let layer = &self.layers[layer];
        for start in (0..rows).step_by(self.tile_rows) {
            let end = rows.min(start + self.tile_rows);
            let attended = &self.attention_rows[start * row_size..end * row_size];
            let residual = &mut self.residual[start * hidden..end * hidden];
            let query_size = self.attention_shape.query_size();
            timed(&mut times[3], || {
                self.kernels
                    .quantise(attended, row_size, query_size, &mut self.quantised)
            });
            timed(&mut times[0], || {
                layer.output.multiply_add(&self.quantised, residual)
            });
            timed(&mut times[2], || {
                self.kernels
                    .rms_norm_quantise(residual, &self.norm, EPSILON, &mut self.quantised)
            });
            self.gated.resize((end - start) * feed_forward, 0.0);
            timed(&mut times[1], || {
                layer
                    .gate_up
                    .multiply_gated(&self.quantised, &mut self.gated)
            });
            timed(&mut times[3], || {
                self.kernels
                    .quantise(&self.gated, feed_forward, feed_forward, &mut self.quantised)
            });
            timed(&mut times[0], || {
                layer.down.multiply_add(&self.quantised, residual)
            });
        }
    }

    /// The products alone, of the same rows, layers and tiles: no SiLU, no norm, no attention.
    pub(crate) fn products(&mut self) -> Duration {
        let tile_rows = self.tile_rows;
        let rows = vec![0.5_f32; tile_rows * self.shape.feed_forward.max(self.shape.hidden)];
        let mut inputs = [QuantisedRows::default(), QuantisedRows::default()];
        for (columns, input) in [self.shape.hidden, self.shape.feed_forward]
            .into_iter()
            .zip(&mut inputs)
        {
            self.kernels
                .quantise(&rows[..tile_rows * columns], columns, columns, input);
        }
        let [narrow, wide] = inputs;
        let mut output =
            vec![0.0; tile_rows * 2 * self.shape.feed_forward.max(self.attention_shape.row_size())];
        let tiles = (PROMPTS * PROMPT_TOKENS) as f64 / tile_rows as f64;
        // As many tiles per layer as a chunk has.
        let per_chunk = self.chunk_rows().div_ceil(tile_rows);
        let chunks = (tiles / per_chunk as f64).ceil() as usize;
        let start = Instant::now();
        for _ in 0..chunks {
            for layer in &self.layers {
                for matrix in [
                    &layer.query_key_value,
                    &layer.output,
                    &layer.gate_up,
                    &layer.down,
                ] {
                    let input = if matrix.columns() == self.shape.hidden {
                        &narrow
                    } else {
                        &wide
                    };
                    let channels = matrix.channels();
                    for _ in 0..per_chunk {
                        matrix.multiply(
                            input,
                            0..channels,
                            &mut output[..tile_rows * channels],
                            channels,
                        );
                    }
                }
            }
        }
        // Whole chunks are a little more than all rows.
        start.elapsed().mul_f64(tiles / (chunks * per_chunk) as f64)
    }
}

fn timed(total: &mut Duration, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    *total += start.elapsed();
}
