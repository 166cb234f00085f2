//! Products on a device: with rows of bytes the same bits as the CPU's, with bf16 rows within what sums in f32 may lose.

mod bf16;
mod rotated;
mod rows;

use trafficllm_kernels::PackedMatrix;
use trafficllm_kernels::cuda::{PackedWeights, RowKind, RowSet, Then, WeightKind};

use crate::support::Random;
use rows::{
    Additions, FEW, KINDS, MANY, MORE, Rows, SOME, UNTOUCHED, assert_rows, kernels, matrix,
};

#[test]
fn products_are_the_same_bits() {
    let mut random = Random(51);
    // Fewer tiles of columns than stages, as many, and more; channels that fill no tile, and an odd number of them.
    let shapes = [
        (FEW, 16, 32),
        (SOME, 200, 416),
        (MORE, 37, 672),
        (MANY, 257, 160),
        (FEW, 130, 672),
    ];
    for kind in KINDS {
        for (counts, channels, columns) in shapes {
            let mut rows = Rows::new(&mut random, counts, columns);
            let weights = matrix(&mut random, kind, channels, columns);
            let packed = rows.upload(&PackedWeights::stacked(&[&weights]).unwrap());
            let expected = rows.expected(&[&weights]);
            for set in [RowSet::All, RowSet::Tokens, RowSet::Queries, RowSet::Last] {
                let activations = rows.activations(set, RowKind::Int8);
                let before = vec![UNTOUCHED; expected.len()];
                let output = rows.rig.upload(&before);
                rows.product(set, &activations, &packed, Then::Store(&output), None);
                let found = rows.rig.read(&output);
                assert_rows(&found, &expected, &before, rows.rows_of(set), channels);
            }
        }
    }
}

#[test]
fn added_products_are_the_same_bits() {
    let mut random = Random(52);
    let cases = [
        (WeightKind::Int8, FEW, 80, RowSet::Last, true),
        (WeightKind::Int8, MANY, 145, RowSet::All, false),
        (WeightKind::Int8, MANY, 272, RowSet::All, true),
        (WeightKind::Int4, MORE, 208, RowSet::Queries, true),
        (WeightKind::Int4Minimums, SOME, 31, RowSet::Tokens, true),
    ];
    for (kind, counts, channels, set, has_additions) in cases {
        let mut rows = Rows::new(&mut random, counts, 224);
        let weights = matrix(&mut random, kind, channels, 224);
        let packed = rows.upload(&PackedWeights::stacked(&[&weights]).unwrap());
        let activations = rows.activations(set, RowKind::Int8);
        let before = random.values(rows.rig.class.rows() * channels, 3.0);
        let output = rows.rig.upload(&before);
        let additions =
            has_additions.then(|| Additions::new(&mut random, &mut rows, set, channels));
        let low_rank = additions.as_ref().map(Additions::rows);
        rows.product(set, &activations, &packed, Then::Add(&output), low_rank);
        let mut expected = rows.expected(&[&weights]);
        expected
            .iter_mut()
            .zip(&before)
            .for_each(|(expected, before)| *expected += before);
        if let Some(additions) = &additions {
            for row in rows.rows_of(set) {
                additions.add(&rows, set, row, &mut expected[row * channels..][..channels]);
            }
        }
        let found = rows.rig.read(&output);
        assert_rows(&found, &expected, &before, rows.rows_of(set), channels);
    }
}

#[test]
fn gated_products_are_the_same_bits() {
    let mut random = Random(53);
    let cases = [
        (WeightKind::Int8, MANY, 96, false),
        (WeightKind::Int8, MORE, 80, true),
        (WeightKind::Int4, SOME, 48, true),
        (WeightKind::Int4Minimums, FEW, 144, false),
    ];
    for (kind, counts, width, has_additions) in cases {
        let set = RowSet::All;
        let mut rows = Rows::new(&mut random, counts, 288);
        let [gate, up] = [(); 2].map(|()| matrix(&mut random, kind, width, 288));
        let packed = rows.upload(&PackedWeights::gated(&gate, &up).unwrap());
        let activations = rows.activations(set, RowKind::Int8);
        let before = vec![UNTOUCHED; rows.rig.class.rows() * width];
        let output = rows.rig.upload(&before);
        let additions =
            has_additions.then(|| Additions::new(&mut random, &mut rows, set, 2 * width));
        let low_rank = additions.as_ref().map(Additions::rows);
        rows.product(set, &activations, &packed, Then::Gated(&output), low_rank);
        let reference = PackedMatrix::gated(kernels(), &gate, &up).unwrap();
        let quantised = rows.quantised(kernels());
        let mut expected = vec![0.0; before.len()];
        reference.multiply_gated(&quantised, &mut expected);
        if let Some(additions) = &additions {
            let mut products = vec![0.0; 2 * before.len()];
            reference.multiply(&quantised, 0..2 * width, &mut products, 2 * width);
            for row in rows.rows_of(set) {
                let factors = rows.task(set, row).map(|task| additions.of(task));
                let input = &rows.input[row * rows.columns..][..rows.columns];
                let products = &products[row * 2 * width..][..2 * width];
                let output = &mut expected[row * width..][..width];
                kernels().gate_low_rank(factors, input, products, output);
            }
        }
        let found = rows.rig.read(&output);
        assert_rows(&found, &expected, &before, rows.rows_of(set), width);
    }
}
