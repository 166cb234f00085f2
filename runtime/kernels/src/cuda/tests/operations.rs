use std::sync::Arc;

use super::fake::{Fake, Launched, fake};
use crate::cuda::arguments::{
    AttentionArguments, EmbedArguments, ProductArguments, QuantiseArguments,
};
use crate::cuda::{
    Activations, Batch, BatchBounds, Buffer, Class, DeviceError, DeviceMatrix, DeviceMemory,
    EmbeddingTable, Epilogue, FactorTable, Factors, Floats, KeySources, LabelNode, LabelTable,
    Launch, LowRankRows, Norm, Operations, PackedWeights, Rotary, Rotated, RowKind, RowSet, Run,
    Stream, Then, Tiles, common,
};
use crate::{AttentionShape, Int4Matrix, QuantisedMatrix, RotaryTable, WeightMatrix};

const HIDDEN: usize = 64;
const SHAPE: AttentionShape = AttentionShape {
    heads: 6,
    kv_heads: 2,
    head_dim: 16,
};

const CLASS: Class = Class {
    tokens: 150,
    query_rows: 20,
    queries: 9,
    token_tiles: 5,
    query_tiles: 7,
};

const BOUNDS: BatchBounds = BatchBounds {
    vocabulary: 11,
    query_embeddings: 3,
    positions: 32,
    tasks: 2,
    nodes: 1,
    prefix_rows: 5,
    beginning_rows: 0,
};

fn int8(rows: usize, columns: usize) -> WeightMatrix {
    WeightMatrix::Int8(QuantisedMatrix {
        rows,
        columns,
        values: vec![1; rows * columns],
        scales: vec![1.0; rows],
    })
}

fn int4(rows: usize, columns: usize) -> WeightMatrix {
    WeightMatrix::Int4(Int4Matrix {
        rows,
        columns,
        nibbles: vec![0; rows * columns / 2],
        scales: vec![1.0; rows * columns / 32],
        minimums: vec![1.0; rows * columns / 32],
    })
}

struct Rig {
    device: Arc<Fake>,
    memory: Arc<DeviceMemory>,
    stream: Stream,
    batch: Batch,
    operations: Operations,
}

impl Rig {
    fn new(capability: (u32, u32)) -> Self {
        let (memory, device) = fake(capability, None);
        Self {
            device,
            stream: Stream::new(&memory).unwrap(),
            batch: Batch::new(&memory, CLASS, BOUNDS).unwrap(),
            operations: Operations::new(&memory),
            memory,
        }
    }

    fn run(&mut self) -> Run<'_> {
        self.operations
            .on(&mut self.stream, &self.batch, CLASS)
            .unwrap()
    }

    fn floats(&self, length: usize) -> Buffer<f32> {
        Buffer::zeroed(&self.memory, "floats", length).unwrap()
    }

    fn halves(&self, length: usize) -> Buffer<u16> {
        Buffer::zeroed(&self.memory, "halves", length).unwrap()
    }

    fn matrix(&mut self, matrix: &WeightMatrix) -> DeviceMatrix {
        let packed = PackedWeights::stacked(&[matrix]).unwrap();
        DeviceMatrix::upload(&mut self.stream, "matrix", &packed).unwrap()
    }

    fn activations(&self, kind: RowKind, rows: usize, columns: usize) -> Activations {
        Activations::new(&self.memory, kind, rows, columns, false).unwrap()
    }
}

fn arguments<T: bytemuck::Pod>(launched: &Launched) -> T {
    bytemuck::pod_read_unaligned(&launched.arguments)
}

fn assert_size(result: Result<(), DeviceError>) {
    assert!(
        matches!(result, Err(DeviceError::Size { .. })),
        "{result:?}"
    );
}

#[test]
fn embedding_checks_all_that_it_reads() {
    let mut rig = Rig::new((8, 0));
    let table = EmbeddingTable::upload(&mut rig.stream, &int8(11, HIDDEN)).unwrap();
    let nibbles = EmbeddingTable::upload(&mut rig.stream, &int4(11, HIDDEN)).unwrap();
    let small = EmbeddingTable::upload(&mut rig.stream, &int8(10, HIDDEN)).unwrap();
    let (queries, residual) = (rig.floats(3 * HIDDEN), rig.floats(170 * HIDDEN));
    rig.run().embed(&table, &queries, &residual).unwrap();
    let launched = rig.device.last();
    let expected = Launch {
        grid: [43, 1, 1],
        threads: 128,
        shared_bytes: 0,
    };
    assert_eq!(
        (launched.kernel.as_str(), launched.launch),
        ("embed", expected)
    );
    let found: EmbedArguments = arguments(&launched);
    assert_eq!((found.token_nibbles.0, found.token_minimums.0), (0, 0));
    assert!(found.token_values.0 != 0 && found.hidden == 64);
    rig.run().embed(&nibbles, &queries, &residual).unwrap();
    let found: EmbedArguments = arguments(&rig.device.last());
    assert!(found.token_values.0 == 0 && found.token_nibbles.0 != 0);
    assert!(found.token_minimums.0 != 0);
    let short = residual.part(0..170 * HIDDEN - 1).unwrap();
    assert_size(rig.run().embed(&table, &queries, &short));
    let short = queries.part(0..3 * HIDDEN - 1).unwrap();
    assert_size(rig.run().embed(&table, &short, &residual));
    assert_size(rig.run().embed(&small, &queries, &residual));
    assert!(EmbeddingTable::upload(&mut rig.stream, &int8(11, 6)).is_err());
}

#[test]
fn rows_are_quantised_to_where_there_is_room() {
    let mut rig = Rig::new((8, 0));
    let (input, weight) = (rig.floats(170 * 80), rig.floats(72));
    let rows = Floats {
        values: &input,
        columns: 72,
        stride: 80,
    };
    let norm = Norm {
        weight: &weight,
        epsilon: 1e-5,
    };
    let activations = rig.activations(RowKind::Int8, 170, 72);
    let mut run = rig.run();
    run.quantise(RowSet::Queries, rows, Some(norm), &activations)
        .unwrap();
    let launched = rig.device.last();
    assert_eq!(launched.launch.grid, [5, 1, 1]);
    let found: QuantiseArguments = arguments(&launched);
    let sizes = [
        found.columns,
        found.input_stride,
        found.stride,
        found.row_set,
        found.form,
    ];
    assert_eq!(sizes, [72, 80, 128, 2, 0]);
    assert!(found.group_sums.0 == 0 && found.scales.0 != 0 && found.weight.0 != 0);
    let floats = rig.activations(RowKind::Bf16, 170, 72);
    rig.run()
        .quantise(RowSet::All, rows, None, &floats)
        .unwrap();
    let found: QuantiseArguments = arguments(&rig.device.last());
    assert_eq!((found.form, found.scales.0, found.weight.0), (1, 0, 0));
    let output = rig.floats(9 * 72);
    rig.run()
        .normalise(RowSet::Last, rows, norm, &output)
        .unwrap();
    let launched = rig.device.last();
    let found: QuantiseArguments = arguments(&launched);
    assert_eq!(
        (found.form, found.stride, launched.launch.grid),
        (2, 72, [3, 1, 1])
    );

    let few = rig.activations(RowKind::Int8, 169, 72);
    let narrow = rig.activations(RowKind::Int8, 170, 0);
    let mut run = rig.run();
    assert_size(run.quantise(RowSet::Queries, rows, None, &few));
    run.quantise(RowSet::Tokens, rows, None, &few).unwrap();
    assert_size(run.quantise(RowSet::Last, rows, None, &narrow));
    assert_size(run.normalise(RowSet::Tokens, rows, norm, &output));
    let short = weight.part(0..71).unwrap();
    let norm = Norm {
        weight: &short,
        ..norm
    };
    assert_size(run.quantise(RowSet::All, rows, Some(norm), &activations));
    let odd = Floats {
        columns: 70,
        ..rows
    };
    let result = run.quantise(RowSet::All, odd, None, &activations);
    assert!(matches!(result, Err(DeviceError::Unsupported { .. })));
    let wide = Floats {
        columns: 84,
        ..rows
    };
    assert_size(run.quantise(RowSet::All, wide, None, &activations));
    let long = Floats { stride: 84, ..rows };
    assert_size(run.quantise(RowSet::All, long, None, &activations));
}

#[test]
fn products_run_on_the_kernel_of_the_class() {
    for (capability, name) in [((8, 6), "product"), ((9, 0), "product_wgmma")] {
        let mut rig = Rig::new(capability);
        let matrix = rig.matrix(&int8(200, 72));
        let (rows, output) = (
            rig.activations(RowKind::Int8, 170, 72),
            rig.floats(170 * 200),
        );
        let mut run = rig.run();
        let then = Then::Add(&output);
        run.product(RowSet::All, &rows, &matrix, then, None)
            .unwrap();
        let launched = rig.device.last();
        assert_eq!(launched.kernel.split(' ').next(), Some(name));
        let expected = Launch {
            grid: [2, 2, 1],
            threads: 256,
            shared_bytes: 98_304,
        };
        assert_eq!(launched.launch, expected);
        let found: ProductArguments = arguments(&launched);
        let sizes = [
            found.columns,
            found.channels,
            found.output_stride,
            found.row_set,
        ];
        assert_eq!(sizes, [128, 200, 200, 0]);
        let mut run = rig.run();
        run.product(RowSet::Last, &rows, &matrix, Then::Store(&output), None)
            .unwrap();
        let launched = rig.device.last();
        assert_eq!(
            (launched.launch.grid, launched.launch.threads),
            ([2, 1, 1], 128)
        );
        assert!(
            launched.kernel.ends_with("TLLM_TILE_ROWS=16"),
            "{}",
            launched.kernel
        );
        rig.run()
            .product(RowSet::Queries, &rows, &matrix, then, None)
            .unwrap();
        assert!(rig.device.last().kernel.ends_with("TLLM_TILE_ROWS=64"));

        let short = output.part(0..170 * 200 - 1).unwrap();
        let few = rig.activations(RowKind::Int8, 169, 72);
        let wide = rig.matrix(&int8(200, 132));
        let gated = PackedWeights::gated(&int8(100, 72), &int8(100, 72)).unwrap();
        let gated = DeviceMatrix::upload(&mut rig.stream, "gated", &gated).unwrap();
        let nibbles = rig.matrix(&int4(200, 96));
        let mut run = rig.run();
        assert_size(run.product(RowSet::Queries, &rows, &matrix, Then::Add(&short), None));
        assert_size(run.product(RowSet::All, &few, &matrix, then, None));
        assert_size(run.product(RowSet::All, &rows, &wide, then, None));
        let order = |result| assert!(matches!(result, Err(DeviceError::Order { .. })));
        order(run.product(RowSet::All, &rows, &gated, then, None));
        order(run.product(RowSet::All, &rows, &matrix, Then::Gated(&output), None));
        // These rows have no group sums.
        order(run.product(RowSet::All, &rows, &nibbles, then, None));
        let half = output.part(0..170 * 100).unwrap();
        run.product(RowSet::All, &rows, &gated, Then::Gated(&half), None)
            .unwrap();
        let found: ProductArguments = arguments(&rig.device.last());
        assert_eq!((found.channels, found.output_stride), (200, 100));
    }
}

#[test]
fn rotated_products_check_heads_and_angles() {
    let mut rig = Rig::new((8, 0));
    let matrix = rig.matrix(&int8(160, 72));
    let rows = rig.activations(RowKind::Int8, 170, 72);
    let table = |rig: &mut Rig, positions, head_dim| {
        let table = RotaryTable::new(positions, head_dim, 1e4).unwrap();
        Rotary::upload(&mut rig.stream, &table).unwrap()
    };
    let rotary = table(&mut rig, 32, 16);
    let (short_angles, wide_angles) = (table(&mut rig, 31, 16), table(&mut rig, 32, 32));
    let (queries, keys) = (rig.halves(170 * 96), rig.halves(170 * 32));
    let rotated = Rotated {
        queries: &queries,
        keys: &keys,
        values: &keys,
        rotary: &rotary,
        shape: SHAPE,
        keys_only: true,
    };
    let mut run = rig.run();
    run.product(RowSet::Tokens, &rows, &matrix, Then::Rotary(rotated), None)
        .unwrap();
    let found: ProductArguments = arguments(&rig.device.last());
    let sizes = [
        found.first_channel,
        found.query_size,
        found.key_size,
        found.head_dim,
    ];
    assert_eq!(sizes, [96, 96, 32, 16]);
    let short = keys.part(0..170 * 32 - 1).unwrap();
    let wrong_heads = AttentionShape { heads: 5, ..SHAPE };
    let wrong = [
        Rotated {
            rotary: &short_angles,
            ..rotated
        },
        Rotated {
            rotary: &wide_angles,
            ..rotated
        },
        Rotated {
            keys: &short,
            ..rotated
        },
        Rotated {
            values: &short,
            ..rotated
        },
        Rotated {
            queries: &short,
            ..rotated
        },
    ];
    let mut run = rig.run();
    for rotated in wrong {
        assert_size(run.product(RowSet::All, &rows, &matrix, Then::Rotary(rotated), None));
    }
    let shape = wrong_heads;
    let then = Then::Rotary(Rotated { shape, ..rotated });
    let result = run.product(RowSet::All, &rows, &matrix, then, None);
    assert!(matches!(result, Err(DeviceError::Unsupported { .. })));
}

#[test]
fn low_rank_factors_fit_matrix_rows_and_tasks() {
    let mut rig = Rig::new((8, 0));
    let (a, b) = (rig.floats(64 * 72), rig.floats(64 * 200));
    let factors = |rank: usize| Factors {
        rank,
        a: a.part(0..rank.min(64) * 72).unwrap(),
        b: b.part(0..rank.min(64) * 200).unwrap(),
    };
    let mut upload = |inputs, outputs, tasks: &[Option<Factors>]| {
        FactorTable::upload(&mut rig.stream, inputs, outputs, tasks)
    };
    let table = upload(72, 200, &[None, Some(factors(64))]).unwrap();
    let one_task = upload(72, 200, &[Some(factors(1))]).unwrap();
    assert!(matches!(
        upload(72, 200, &[Some(factors(65))]),
        Err(DeviceError::Unsupported { found: 65, .. })
    ));
    assert!(upload(76, 200, &[Some(factors(1))]).is_err());
    assert!(upload(72, 199, &[Some(factors(1))]).is_err());
    assert!(upload(70, 200, &[]).is_err());
    let other = upload(76, 200, &[None, None]).unwrap();
    drop((a, b));
    let (input, coefficients) = (rig.floats(170 * 72), rig.floats(170 * 64));
    let rows = Floats {
        values: &input,
        columns: 72,
        stride: 72,
    };
    let matrix = rig.matrix(&int8(200, 72));
    let (activations, output) = (
        rig.activations(RowKind::Int8, 170, 72),
        rig.floats(170 * 200),
    );
    let (batch, sections) = (&rig.batch, rig.batch.sections());
    let tasks = [sections.row_task, sections.last_task].map(|section| batch.address(section));
    let low_rank = |factors| {
        Some(LowRankRows {
            coefficients: &coefficients,
            factors,
        })
    };
    for (set, task) in [(RowSet::All, tasks[0]), (RowSet::Last, tasks[1])] {
        let mut run = rig.run();
        run.coefficients(set, rows, None, &table, &coefficients)
            .unwrap();
        let then = Then::Add(&output);
        run.product(set, &activations, &matrix, then, low_rank(&table))
            .unwrap();
        let launched = rig.device.last();
        assert!(launched.kernel.contains("TLLM_LOW_RANK=1"));
        assert_eq!(arguments::<ProductArguments>(&launched).row_task, task);
    }
    let mut run = rig.run();
    for wrong in [&one_task, &other] {
        assert_size(run.coefficients(RowSet::All, rows, None, wrong, &coefficients));
        let then = Then::Add(&output);
        assert_size(run.product(RowSet::All, &activations, &matrix, then, low_rank(wrong)));
    }
    let short = coefficients.part(0..169 * 64).unwrap();
    assert_size(run.coefficients(RowSet::All, rows, None, &table, &short));
}

#[test]
fn attention_takes_the_heads_that_it_can() {
    let mut rig = Rig::new((8, 0));
    let (queries, keys) = (rig.halves(170 * 96), rig.halves(170 * 32));
    let (prefix, output) = (rig.halves(5 * 32), rig.floats(170 * 96));
    let sources = KeySources {
        own: (&keys, &keys),
        prefixes: Some((&prefix, &prefix)),
        beginnings: None,
    };
    for (tiles, grid, shared) in [
        (Tiles::Tokens, [5, 6, 1], 4 * 64 * 24 * 2),
        (Tiles::Queries, [7, 2, 1], 16 * 32 * 24 * 2),
    ] {
        let mut run = rig.run();
        run.attend(tiles, SHAPE, &queries, sources, &output)
            .unwrap();
        let launched = rig.device.last();
        assert_eq!(
            (launched.launch.grid, launched.launch.shared_bytes),
            (grid, shared)
        );
        let found: AttentionArguments = arguments(&launched);
        assert_eq!((found.heads, found.kv_heads, found.keys[2].0), (6, 2, 0));
        assert_eq!(found.score_factor, std::f32::consts::LOG2_E / 4.0);
    }
    let mut run = rig.run();
    let short = prefix.part(0..5 * 32 - 1).unwrap();
    for prefixes in [None, Some((&short, &prefix)), Some((&prefix, &short))] {
        let sources = KeySources {
            prefixes,
            ..sources
        };
        assert_size(run.attend(Tiles::Queries, SHAPE, &queries, sources, &output));
    }
    let short = output.part(0..170 * 96 - 1).unwrap();
    assert_size(run.attend(Tiles::Queries, SHAPE, &queries, sources, &short));
    let refused = [(0, 16), (3, 16), (2, 0), (2, 8), (2, 24), (2, 272)];
    for (kv_heads, head_dim) in refused {
        let shape = AttentionShape {
            kv_heads,
            head_dim,
            heads: 4,
        };
        let result = rig.operations.prepare_attention(shape);
        assert!(
            matches!(result, Err(DeviceError::Unsupported { .. })),
            "{shape:?}"
        );
    }
    let shape = AttentionShape {
        head_dim: 256,
        ..SHAPE
    };
    rig.operations.prepare_attention(shape).unwrap();
    let shape = AttentionShape {
        heads: 65_536,
        kv_heads: 1,
        head_dim: 16,
    };
    assert!(rig.operations.prepare_attention(shape).is_err());
}

#[test]
fn last_rows_and_labels_fit_queries() {
    let mut rig = Rig::new((8, 0));
    let words = rig.floats(4 * HIDDEN);
    let node = |first_child, children| LabelNode {
        first_child,
        children,
        temperature: 1.0,
        reserved: 0,
    };
    let mut upload = |nodes: &[LabelNode], children: &[u32], hidden| {
        LabelTable::upload(&mut rig.stream, nodes, children, &words, hidden)
    };
    let table = upload(&[node(1, 2)], &[0, 3, 1], HIDDEN).unwrap();
    assert!(upload(&[], &[0], HIDDEN).is_err());
    assert!(upload(&[node(0, 0)], &[0], HIDDEN).is_err());
    assert!(upload(&[node(0, 1)], &[0], 6).is_err());
    for (node, child) in [
        (node(1, 2), 0),
        (node(0, 1), 4),
        (node(u32::MAX, u32::MAX), 0),
    ] {
        let result = upload(&[node], &[child, 0], HIDDEN);
        assert!(
            matches!(result, Err(DeviceError::Index { .. })),
            "{result:?}"
        );
    }
    let (from, states) = (rig.floats(170 * HIDDEN), rig.floats(9 * HIDDEN));
    rig.run().gather(&from, HIDDEN, &states).unwrap();
    assert_eq!(rig.device.last().launch.grid, [3, 1, 1]);
    assert_size(rig.run().gather(&states, HIDDEN, &from));
    let best = Buffer::<u32>::zeroed(&rig.memory, "best", 9).unwrap();
    let probabilities = rig.floats(18);
    let mut run = rig.run();
    run.label_scores(&states, &table, &best, &probabilities, 2)
        .unwrap();
    assert_eq!(rig.device.last().launch.grid, [9, 1, 1]);
    let mut run = rig.run();
    assert_size(run.label_scores(&states, &table, &best, &probabilities, 1));
    assert_size(run.label_scores(&states, &table, &best, &probabilities, 3));
    let short = best.part(0..8).unwrap();
    assert_size(run.label_scores(&states, &table, &short, &probabilities, 2));
    let short = states.part(0..9 * HIDDEN - 1).unwrap();
    assert_size(run.label_scores(&short, &table, &best, &probabilities, 2));
}

#[test]
fn nothing_is_compiled_while_a_graph_is_captured() {
    let mut rig = Rig::new((9, 0));
    let (from, to) = (rig.floats(170 * 4), rig.floats(9 * 4));
    let Rig {
        operations,
        stream,
        batch,
        device,
        ..
    } = &mut rig;
    let mut capture = |operations: &Operations| {
        stream.capture(|stream| operations.on(stream, batch, CLASS)?.gather(&from, 4, &to))
    };
    let early = capture(operations);
    assert!(matches!(early, Err(DeviceError::Order { .. })));
    operations.prepare_common().unwrap();
    operations.prepare_common().unwrap();
    assert_eq!(device.state().compiled.len(), common().len(), "each once");
    capture(operations).unwrap();
    assert_eq!(device.state().compiled.len(), common().len());
    let matrix = rig.matrix(&int8(8, 8));
    let (rows, epilogue) = (RowKind::Int8, Epilogue::Store);
    let counts = [1, 16, 20, 64, 65, 128, 900];
    rig.operations
        .prepare_products(&matrix, rows, epilogue, false, counts)
        .unwrap();
    // Tiles of 16, 64 and 128 rows, and from 128 rows on the other kernel.
    assert_eq!(rig.device.state().compiled.len(), common().len() + 4);
    // A larger class than the batch's, and one with nothing in it.
    let larger = Class {
        tokens: 151,
        ..CLASS
    };
    assert!(
        rig.operations
            .on(&mut rig.stream, &rig.batch, larger)
            .is_err()
    );
    let launched = rig.device.state().launched.len();
    let empty = Class::default();
    let mut run = rig
        .operations
        .on(&mut rig.stream, &rig.batch, empty)
        .unwrap();
    run.gather(&from, 4, &to).unwrap();
    assert_eq!(rig.device.state().launched.len(), launched);
}
