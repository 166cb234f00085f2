//! Each kernel's time beside its floor: the larger of its bytes over the measured speed of copying and its operations over the measured
//! speed of the matrix units. Bytes are those that have to be read and written once. Weights are taken in turns from copies that no cache
//! holds; what fits into the cache as a whole, as a small model does, may be faster than its floor.

use std::sync::Arc;

use serde_json::json;
use trafficllm_kernels::RotaryTable;
use trafficllm_kernels::cuda::{
    Activations, Buffer, Class, Device, DeviceMatrix, DeviceMemory, EmbeddingTable, Epilogue,
    Floats, KeySources, LabelNode, LabelTable, Norm, Operations, PackedWeights, Rotary, Rotated,
    RowKind, RowSet, Stream, Then, Tiles,
};

use crate::ceilings::Ceilings;
use crate::lists::{PREFIX_ROWS, Rows, fill, rows};
use crate::random::{Format, Random};
use crate::report::Report;
use crate::shapes::Shape;
use crate::timing::{Timed, medians};
use crate::{Failure, Scale};

/// Copies of weights are at least as many as make this, so that each comes from memory and not from a cache.
const ROTATED_BYTES: usize = 256 << 20;
const COPIES_MAX: usize = 16;
const EPSILON: f32 = 1e-5;

/// What is known of a kernel's work.
struct Work {
    name: String,
    tokens: usize,
    bytes: f64,
    operations: f64,
    /// Operations a second.
    peak: f64,
}

struct Measured {
    work: Work,
    timed: Timed,
}

struct Bench<'a> {
    shape: &'a Shape,
    scale: Scale,
    ceilings: Ceilings,
    memory: Arc<DeviceMemory>,
    operations: Operations,
    random: Random,
    /// Rows of floats, as many as the largest batch has of the widest kind.
    wide: Buffer<f32>,
    residual: Buffer<f32>,
    norm: Buffer<f32>,
    all: Vec<Measured>,
}

pub(crate) fn measure(
    device: &Arc<dyn Device>,
    shape: &Shape,
    scale: Scale,
    ceilings: Ceilings,
    rounds: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let counts: &[usize] = if scale == Scale::Tiny {
        &[24]
    } else {
        &[128, 512, 1024, 4096, 16_384]
    };
    let memory = DeviceMemory::new(Arc::clone(device), None);
    let mut stream = Stream::new(&memory)?;
    let batches = counts
        .iter()
        .map(|&tokens| rows(&memory, &mut stream, shape, tokens))
        .collect::<Result<Vec<_>, _>>()?;
    let rows_max = batches
        .iter()
        .map(|rows| rows.class.rows())
        .max()
        .unwrap_or(0)
        .next_multiple_of(128);
    let mut random = Random::new(11);
    let widest = shape.feed_forward.max(shape.query_size()).max(shape.hidden);
    let wide = fill(&mut stream, &mut random, rows_max * widest)?;
    let residual = fill(&mut stream, &mut random, rows_max * shape.hidden)?;
    let norm = Buffer::uploaded(&mut stream, "norm", &vec![1.0; shape.hidden])?;
    let operations = Operations::new(&memory);
    operations.prepare_common()?;
    operations.prepare_attention(shape.attention())?;
    let mut bench = Bench {
        shape,
        scale,
        ceilings,
        memory,
        operations,
        random,
        wide,
        residual,
        norm,
        all: Vec::new(),
    };
    bench.products(&mut stream, &batches)?;
    bench.attention(&mut stream, &batches)?;
    bench.row_operations(&mut stream, &batches)?;
    let timed: Vec<&Timed> = bench.all.iter().map(|measured| &measured.timed).collect();
    let seconds = medians(&mut stream, rounds, &timed)?;
    for (Measured { work, .. }, seconds) in bench.all.iter().zip(seconds) {
        let (by_bytes, by_operations) = (work.bytes / ceilings.bytes, work.operations / work.peak);
        let floor = by_bytes.max(by_operations);
        report.row(
            &format!("{} {} {}", shape.name, work.name, work.tokens),
            json!({
                "shape": shape.name,
                "kernel": work.name,
                "tokens": work.tokens,
                "microseconds": seconds * 1e6,
                "floor_microseconds": floor * 1e6,
                "bound": if by_bytes > by_operations { "bytes" } else { "operations" },
                "times_floor": seconds / floor,
                "share_of_peak": work.operations / seconds / work.peak,
            }),
        )?;
    }
    Ok(())
}

impl Bench<'_> {
    fn add(&mut self, work: Work, timed: Timed) {
        self.all.push(Measured { work, timed });
    }

    fn floats<'a>(&self, values: &'a Buffer<f32>, columns: usize) -> Floats<'a> {
        Floats {
            values,
            columns,
            stride: columns,
        }
    }

    /// The four products of a layer, for weights of both formats and rows of bytes; with int8 weights also rows of 16-bit floats.
    fn products(&mut self, stream: &mut Stream, batches: &[Rows]) -> Result<(), Failure> {
        let shape = self.shape;
        let rows_max = self.residual.length() / shape.hidden;
        let zeros =
            |columns: usize| Buffer::<u16>::zeroed(&self.memory, "heads", rows_max * columns);
        let (queries, keys, values) = (
            zeros(shape.query_size())?,
            zeros(shape.key_size())?,
            zeros(shape.key_size())?,
        );
        let rotary = Rotary::upload(
            stream,
            &RotaryTable::new(shape.tokens + 1, shape.head_dim, 10_000.0)?,
        )?;
        let output = Buffer::<f32>::zeroed(
            &self.memory,
            "products",
            rows_max * shape.feed_forward.max(shape.hidden),
        )?;
        for format in Format::ALL {
            let layer = self.random.layer(format, shape);
            let packed = [
                (
                    "query key value",
                    Epilogue::Rotary,
                    PackedWeights::stacked(&[&layer.query, &layer.key, &layer.value])?,
                ),
                (
                    "attention output",
                    Epilogue::Add,
                    PackedWeights::stacked(&[&layer.output])?,
                ),
                (
                    "gate up",
                    Epilogue::Gated,
                    PackedWeights::gated(&layer.gate, &layer.up)?,
                ),
                (
                    "down",
                    Epilogue::Add,
                    PackedWeights::stacked(&[&layer.down])?,
                ),
            ];
            drop(layer);
            for (name, epilogue, packed) in packed {
                let first = DeviceMatrix::upload(stream, "weights", &packed)?;
                let copies = if self.scale == Scale::Tiny {
                    2
                } else {
                    ROTATED_BYTES.div_ceil(first.bytes()).clamp(2, COPIES_MAX)
                };
                let mut copied = vec![first];
                while copied.len() < copies {
                    copied.push(DeviceMatrix::upload(stream, "weights", &packed)?);
                }
                let (columns, channels) = (copied[0].columns(), copied[0].channels());
                let kinds: &[RowKind] = if format == Format::Int8 {
                    &[RowKind::Int8, RowKind::Bf16]
                } else {
                    &[RowKind::Int8]
                };
                for &kind in kinds {
                    let activations = Activations::new(
                        &self.memory,
                        kind,
                        rows_max,
                        columns,
                        copied[0].needs_group_sums(),
                    )?;
                    if let Some(largest) = batches.iter().max_by_key(|rows| rows.class.tokens) {
                        let input = self.floats(&self.wide, columns);
                        self.operations
                            .on(stream, &largest.batch, largest.class)?
                            .quantise(RowSet::All, input, None, &activations)?;
                    }
                    for rows in batches {
                        let tokens = rows.class.tokens;
                        self.operations.prepare_products(
                            &copied[0],
                            kind,
                            epilogue,
                            false,
                            [tokens],
                        )?;
                        let then = match epilogue {
                            Epilogue::Rotary => Then::Rotary(Rotated {
                                queries: &queries,
                                keys: &keys,
                                values: &values,
                                rotary: &rotary,
                                shape: shape.attention(),
                                keys_only: false,
                            }),
                            Epilogue::Gated => Then::Gated(&output),
                            _ => Then::Add(&output),
                        };
                        let timed = Timed::new(stream, self.scale, |stream, at| {
                            let mut run = self.operations.on(stream, &rows.batch, rows.class)?;
                            run.product(
                                RowSet::Tokens,
                                &activations,
                                &copied[at % copied.len()],
                                then,
                                None,
                            )
                        })?;
                        let row_bytes = if kind == RowKind::Int8 {
                            columns + 4
                        } else {
                            2 * columns
                        };
                        let output_bytes = match epilogue {
                            Epilogue::Rotary => 2 * channels,
                            Epilogue::Gated => 2 * channels,
                            _ => 8 * channels,
                        };
                        let row_name = if kind == RowKind::Int8 {
                            "int8"
                        } else {
                            "bf16"
                        };
                        let work = Work {
                            name: format!("{name}, {} x {row_name}", format.name()),
                            tokens,
                            bytes: (copied[0].bytes() + tokens * (row_bytes + output_bytes)) as f64,
                            operations: 2.0 * (tokens * columns * channels) as f64,
                            peak: if kind == RowKind::Int8 {
                                self.ceilings.int8
                            } else {
                                self.ceilings.bf16
                            },
                        };
                        self.add(work, timed);
                    }
                }
            }
        }
        Ok(())
    }

    fn attention(&mut self, stream: &mut Stream, batches: &[Rows]) -> Result<(), Failure> {
        let shape = self.shape;
        let (query_size, key_size) = (shape.query_size(), shape.key_size());
        let rows_max = self.residual.length() / shape.hidden;
        let mut heads = |rows: usize, size: usize| -> Result<Buffer<u16>, Failure> {
            // Magnitudes 1/2 to 2 of either sign.
            let words: Vec<u16> = self
                .random
                .bytes(2 * (rows * size).min(1 << 20))
                .chunks_exact(2)
                .map(|pair| (u16::from_le_bytes([pair[0], pair[1]]) & 0x87ff) | 0x3800)
                .collect();
            let all: Vec<u16> = words.iter().copied().cycle().take(rows * size).collect();
            Ok(Buffer::uploaded(stream, "heads", &all)?)
        };
        let queries = heads(rows_max, query_size)?;
        let own = (heads(rows_max, key_size)?, heads(rows_max, key_size)?);
        let prefix = (heads(PREFIX_ROWS, key_size)?, heads(PREFIX_ROWS, key_size)?);
        let shared = (
            heads(shape.shared_tokens.max(1), key_size)?,
            heads(shape.shared_tokens.max(1), key_size)?,
        );
        let sources = KeySources {
            own: (&own.0, &own.1),
            prefixes: Some((&prefix.0, &prefix.1)),
            beginnings: Some((&shared.0, &shared.1)),
        };
        let output = self.wide.clone();
        let own_tokens = shape.tokens - shape.shared_tokens;
        for rows in batches {
            let Class {
                tokens,
                queries: count,
                ..
            } = rows.class;
            for tiles in [Tiles::Tokens, Tiles::Queries] {
                let timed = Timed::new(stream, self.scale, |stream, _| {
                    let mut run = self.operations.on(stream, &rows.batch, rows.class)?;
                    run.attend(tiles, shape.attention(), &queries, sources, &output)
                })?;
                let lengths = (0..tokens)
                    .step_by(own_tokens)
                    .map(|start| own_tokens.min(tokens - start));
                let (name, attending, keys, seen) = match tiles {
                    Tiles::Tokens => {
                        let seen = lengths
                            .map(|length| length * shape.shared_tokens + length * (length + 1) / 2);
                        (
                            "attention of tokens",
                            tokens,
                            tokens + shape.shared_tokens,
                            seen.sum::<usize>(),
                        )
                    }
                    Tiles::Queries => {
                        let before = shape.shared_tokens + PREFIX_ROWS;
                        let seen = lengths.map(|length| length + before + 1).sum::<usize>();
                        ("attention of queries", count, tokens + count + before, seen)
                    }
                };
                let work = Work {
                    name: name.to_owned(),
                    tokens,
                    bytes: (attending * query_size * (2 + 4) + 2 * 2 * keys * key_size) as f64,
                    operations: 4.0 * (seen * query_size) as f64,
                    peak: self.ceilings.bf16,
                };
                self.add(work, timed);
            }
        }
        Ok(())
    }

    /// Embedding, norm with quantising, quantising, gathering and label scores: bytes alone count.
    fn row_operations(&mut self, stream: &mut Stream, batches: &[Rows]) -> Result<(), Failure> {
        let shape = self.shape;
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        let rows_max = self.residual.length() / hidden;
        let table = self.random.matrix(Format::Int8, shape.vocabulary, hidden);
        let table = EmbeddingTable::upload(stream, &table)?;
        let query_embeddings =
            Buffer::uploaded(stream, "query embeddings", &self.random.floats(hidden))?;
        let label_weight = Buffer::uploaded(
            stream,
            "label rows",
            &self.random.floats(shape.labels * hidden),
        )?;
        let children: Vec<u32> = (0..shape.labels as u32).collect();
        let node = LabelNode {
            first_child: 0,
            children: shape.labels as u32,
            temperature: 1.0,
            reserved: 0,
        };
        let labels = LabelTable::upload(stream, &[node], &children, &label_weight, hidden)?;
        let best = Buffer::<u32>::zeroed(&self.memory, "best", rows_max)?;
        let probabilities =
            Buffer::<f32>::zeroed(&self.memory, "probabilities", rows_max * shape.labels)?;
        let embedded = Buffer::<f32>::zeroed(&self.memory, "rows", rows_max * hidden)?;
        let narrow = Activations::new(&self.memory, RowKind::Int8, rows_max, hidden, false)?;
        let broad = Activations::new(&self.memory, RowKind::Int8, rows_max, inner, false)?;
        for rows in batches {
            let Class {
                tokens, queries, ..
            } = rows.class;
            let all = rows.class.rows();
            let cases: [(&str, usize); 5] = [
                ("embedding", all * hidden * (1 + 4)),
                ("norm and quantising", all * hidden * (4 + 1)),
                ("quantising of the gate", all * inner * (4 + 1)),
                ("gathering", queries * hidden * 8),
                ("label scores", (queries + shape.labels) * hidden * 4),
            ];
            for (case, (name, bytes)) in cases.into_iter().enumerate() {
                let timed = Timed::new(stream, self.scale, |stream, _| {
                    let mut run = self.operations.on(stream, &rows.batch, rows.class)?;
                    let residual = self.floats(&self.residual, hidden);
                    let norm = Norm {
                        weight: &self.norm,
                        epsilon: EPSILON,
                    };
                    match case {
                        0 => run.embed(&table, &query_embeddings, &embedded),
                        1 => run.quantise(RowSet::All, residual, Some(norm), &narrow),
                        2 => {
                            run.quantise(RowSet::All, self.floats(&self.wide, inner), None, &broad)
                        }
                        3 => run.gather(&self.residual, hidden, &embedded),
                        _ => run.label_scores(
                            &self.residual,
                            &labels,
                            &best,
                            &probabilities,
                            shape.labels,
                        ),
                    }
                })?;
                let work = Work {
                    name: name.to_owned(),
                    tokens,
                    bytes: bytes as f64,
                    operations: 0.0,
                    peak: self.ceilings.int8,
                };
                self.add(work, timed);
            }
        }
        Ok(())
    }
}
