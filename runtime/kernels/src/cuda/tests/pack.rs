use crate::cuda::{DeviceError, PackedWeights, WeightKind};
use crate::limits::{COLUMNS_MAX, ROWS_MAX};
use crate::{GROUP_COLUMNS, Int4Matrix, KernelError, QuantisedMatrix, WeightMatrix};

fn noise(at: usize) -> u32 {
    (at as u32).wrapping_mul(2_654_435_761).rotate_left(11) >> 3
}

fn int8(rows: usize, columns: usize) -> QuantisedMatrix {
    QuantisedMatrix {
        rows,
        columns,
        values: (0..rows * columns)
            .map(|at| (noise(at) % 255) as i32 as i8)
            .map(|value| value.max(-127))
            .collect(),
        scales: (0..rows).map(|row| (row + 1) as f32).collect(),
    }
}

fn int4(rows: usize, columns: usize, minimums: bool) -> Int4Matrix {
    let groups = rows * columns / GROUP_COLUMNS;
    Int4Matrix {
        rows,
        columns,
        nibbles: (0..rows * columns / 2).map(|at| noise(at) as u8).collect(),
        scales: (0..groups).map(|group| group as f32 + 0.5).collect(),
        minimums: (0..if minimums { groups } else { 0 })
            .map(|group| -(group as f32))
            .collect(),
    }
}

/// The weight and its scale where a kernel looks for them.
fn packed_int8(packed: &PackedWeights, channel: usize, column: usize) -> (i8, f32) {
    let column_tiles = packed.columns.div_ceil(128);
    let tile = channel / 128 * column_tiles + column / 128;
    let (n, k) = (channel % 128, column % 128);
    let at = tile * 16_384 + n * 128 + ((k / 16) ^ (n & 7)) * 16 + k % 16;
    (packed.weights[at] as i8, packed.scales[channel])
}

/// The nibble, its scale and its minimum.
fn packed_int4(packed: &PackedWeights, channel: usize, column: usize) -> (u8, f32, Option<f32>) {
    let column_tiles = packed.columns.div_ceil(128);
    let tile = channel / 128 * column_tiles + column / 128;
    let (n, group, k) = (channel % 128, column % 128 / 32, column % 32);
    let byte = packed.weights[tile * 8192 + group * 2048 + n * 16 + k % 16];
    let scale = (channel / 128 * (column_tiles * 4) + column / 32) * 128 + n;
    let nibble = if k < 16 { byte & 15 } else { byte >> 4 };
    let minimum = packed.minimums.get(scale).copied();
    (nibble, packed.scales[scale], minimum)
}

#[test]
fn bytes_stand_where_kernels_look_for_them() {
    for (rows, columns) in [(1, 1), (128, 128), (130, 200), (16, 384)] {
        let matrix = int8(rows, columns);
        let packed = PackedWeights::stacked(&[&matrix.clone().into()]).unwrap();
        assert_eq!((packed.kind(), packed.channels()), (WeightKind::Int8, rows));
        let (channels, padded) = (rows.next_multiple_of(128), columns.next_multiple_of(128));
        assert_eq!(packed.weights.len(), channels * padded);
        assert_eq!(packed.bytes(), channels * padded + channels * 4);
        for channel in 0..channels {
            for column in 0..padded {
                let expected = match channel < rows && column < columns {
                    true => matrix.values[channel * columns + column],
                    false => 0,
                };
                let scale = matrix.scales.get(channel).copied().unwrap_or(0.0);
                assert_eq!(packed_int8(&packed, channel, column), (expected, scale));
            }
        }
    }
}

#[test]
fn nibbles_stand_where_kernels_look_for_them() {
    for (rows, columns, minimums) in [(1, 32, true), (130, 160, false), (64, 256, true)] {
        let matrix = int4(rows, columns, minimums);
        let packed = PackedWeights::stacked(&[&matrix.clone().into()]).unwrap();
        let kind = match minimums {
            true => WeightKind::Int4Minimums,
            false => WeightKind::Int4,
        };
        assert_eq!((packed.kind(), packed.columns()), (kind, columns));
        for channel in 0..rows.next_multiple_of(128) {
            for column in 0..columns.next_multiple_of(128) {
                let expected = if channel < rows && column < columns {
                    let group = channel * matrix.groups() + column / 32;
                    let minimum = matrix.minimums.get(group).copied();
                    (
                        matrix.nibble(channel, column),
                        matrix.scales[group],
                        minimum,
                    )
                } else {
                    let minimum = minimums.then_some(0.0);
                    (if minimums { 0 } else { 8 }, 0.0, minimum)
                };
                assert_eq!(packed_int4(&packed, channel, column), expected);
            }
        }
    }
}

#[test]
fn gate_and_up_take_turns() {
    let (gate, up) = (int8(70, 96), int8(70, 96));
    let packed = PackedWeights::gated(&gate.clone().into(), &up.clone().into()).unwrap();
    assert!(packed.is_gated && packed.channels() == 140);
    let (gate4, up4) = (int4(70, 96, true), int4(70, 96, true));
    let packed4 = PackedWeights::gated(&gate4.clone().into(), &up4.clone().into()).unwrap();
    for channel in 0..70 {
        for column in 0..96 {
            let at = channel * 96 + column;
            let expected = [gate.values[at], up.values[at]];
            let found = [0, 1].map(|turn| packed_int8(&packed, 2 * channel + turn, column).0);
            assert_eq!(found, expected);
            let expected = [&gate4, &up4].map(|matrix| matrix.nibble(channel, column));
            let found = [0, 1].map(|turn| packed_int4(&packed4, 2 * channel + turn, column).0);
            assert_eq!(found, expected);
        }
    }
    let short = int8(69, 96).into();
    assert!(PackedWeights::gated(&gate.into(), &short).is_err());
}

#[test]
fn parts_are_stacked_and_mixed_ones_become_bytes() {
    let parts: [WeightMatrix; 3] = [
        int4(100, 64, false).into(),
        int8(30, 64).into(),
        int4(20, 64, true).into(),
    ];
    let packed = PackedWeights::stacked(&[&parts[0], &parts[1], &parts[2]]).unwrap();
    assert_eq!((packed.kind(), packed.channels()), (WeightKind::Int8, 150));
    let converted: Vec<QuantisedMatrix> =
        parts.iter().map(|part| part.to_int8().unwrap()).collect();
    let rows = converted
        .iter()
        .flat_map(|part| part.values.chunks_exact(64).zip(&part.scales));
    for (channel, (row, scale)) in rows.enumerate() {
        for (column, value) in row.iter().enumerate() {
            assert_eq!(packed_int8(&packed, channel, column), (*value, *scale));
        }
    }
    let alike = PackedWeights::stacked(&[&parts[0], &parts[0]]).unwrap();
    assert_eq!((alike.kind(), alike.channels()), (WeightKind::Int4, 200));
}

#[test]
fn what_matrices_refuse_is_refused() {
    let refused = |parts: &[&WeightMatrix]| match PackedWeights::stacked(parts) {
        Err(DeviceError::Weights(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&[]), KernelError::Size { .. }));
    for (rows, columns) in [
        (0, 1),
        (1, 0),
        (ROWS_MAX + 1, 1),
        (1, COLUMNS_MAX + 1),
        (usize::MAX, usize::MAX),
    ] {
        let matrix = QuantisedMatrix {
            rows,
            columns,
            values: Vec::new(),
            scales: Vec::new(),
        };
        let error = refused(&[&matrix.into()]);
        assert!(matches!(error, KernelError::Size { .. }), "{error}");
    }
    let short = QuantisedMatrix {
        scales: vec![1.0; 2],
        ..int8(3, 4)
    };
    let error = refused(&[&short.into()]);
    assert!(matches!(error, KernelError::Length { .. }), "{error}");
    let error = refused(&[&int8(3, 4).into(), &int8(3, 8).into()]);
    assert!(matches!(error, KernelError::Length { .. }), "{error}");
    let mut bad = int4(2, 64, true);
    bad.minimums[3] = f32::NAN;
    let error = refused(&[&bad.into()]);
    assert!(matches!(
        error,
        KernelError::GroupScale {
            row: 1,
            group: 1,
            ..
        }
    ));
}
