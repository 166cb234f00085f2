use super::rig::{CLASS, HIDDEN, Rig, SHAPE, arguments, assert_size, int4, int8};
use crate::AttentionShape;
use crate::cuda::arguments::{AttentionArguments, EmbedArguments, QuantiseArguments};
use crate::cuda::{
    Buffer, Class, DeviceError, EmbeddingTable, Epilogue, Floats, KeySources, LabelNode,
    LabelTable, Launch, Norm, Operations, RowKind, RowSet, Tiles, common,
};

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
