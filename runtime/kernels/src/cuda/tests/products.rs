use super::rig::{Rig, SHAPE, arguments, assert_size, int4, int8};
use crate::cuda::arguments::ProductArguments;
use crate::cuda::{
    DeviceError, DeviceMatrix, FactorTable, Factors, Floats, Launch, LowRankRows, PackedWeights,
    Rotary, Rotated, RowKind, RowSet, Then,
};
use crate::{AttentionShape, RotaryTable};

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
