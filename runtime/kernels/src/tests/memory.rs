//! Room that is made beforehand is enough, and what cannot be had is an error.

use super::Random;
use crate::{
    AttentionScratch, AttentionShape, KernelError, Kernels, KeyBlocks, KeysValues, Level,
    QuantisedRows,
};

#[test]
fn reserved_buffers_are_large_enough_for_every_level() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
    };
    let mut source = Random(5);
    for level in Level::all_available() {
        let kernels = Kernels::new(level).unwrap();
        let mut quantised = QuantisedRows::default();
        quantised.set_group_sums(true);
        quantised.try_reserve(kernels, 33, 96).unwrap();
        let mut keys = KeyBlocks::default();
        keys.try_reserve(shape, 33).unwrap();
        let mut scratch = AttentionScratch::default();
        scratch.try_reserve(shape, 33 + 3 * 17).unwrap();
        let bytes = (quantised.bytes(), keys.bytes(), scratch.bytes());
        let context = source.values(17 * shape.row_size(), 1.0);
        let mut blocks = KeyBlocks::default();
        blocks.fill(shape, &context, shape.row_size(), 17);
        let part = KeysValues {
            keys: &blocks,
            values: &context,
            stride: shape.row_size(),
        };
        for (rows, columns) in [(33, 96), (1, 64), (16, 32)] {
            let values = source.values(rows * columns, 1.0);
            kernels.quantise(&values, columns, columns, &mut quantised);
            let mut own = source.values(rows * shape.row_size(), 1.0);
            keys.fill(shape, &own, shape.row_size(), rows);
            kernels.attend(shape, &[part; 3], &keys, &mut own, &mut scratch);
        }
        let after = (quantised.bytes(), keys.bytes(), scratch.bytes());
        assert_eq!(after, bytes, "{}", level.name());
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let shape = AttentionShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
    };
    let huge = usize::MAX / 1_024;
    let kernels = Kernels::new(Level::Portable).unwrap();
    let refused = [
        KeyBlocks::default().try_reserve(shape, huge),
        AttentionScratch::default().try_reserve(shape, huge),
        QuantisedRows::default().try_reserve(kernels, huge, 64),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(matches!(error, KernelError::Memory { .. }), "{error}");
    }
}
