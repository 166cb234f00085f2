//! One suite for all levels: each is held against the portable reference, over shapes with ragged tails and over extreme
//! values. Products and rotary must be the same bits as the reference's; what sums or exponentiates floats must be the same bits on
//! all levels but the reference, and agree with that within `TOLERANCE` of the row's largest magnitude.

mod low_rank;
mod memory;
mod products;

use crate::{
    AttentionScratch, AttentionShape, GROUP_COLUMNS, Int4Matrix, KernelError, Kernels, KeyBlocks,
    KeysValues, Level, LowRank, PackedMatrix, QuantisedMatrix, QuantisedRows, RotaryTable,
    WeightMatrix, limits,
};

const TOLERANCE: f32 = 1e-5;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// Within -1 to 1.
    fn value(&mut self) -> f32 {
        self.next() as f32 / (1_u64 << 30) as f32 - 1.0
    }

    fn values(&mut self, count: usize, magnitude: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * magnitude).collect()
    }

    fn int8(&mut self, rows: usize, columns: usize) -> QuantisedMatrix {
        QuantisedMatrix::quantise(&self.values(rows * columns, 0.2), rows, columns).unwrap()
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> WeightMatrix {
        self.int8(rows, columns).into()
    }

    /// 4-bit weights with any nibbles; `columns` are rounded up to whole groups.
    fn int4(&mut self, rows: usize, columns: usize, minimums: bool) -> WeightMatrix {
        let columns = columns.next_multiple_of(GROUP_COLUMNS);
        let groups = rows * columns / GROUP_COLUMNS;
        Int4Matrix {
            rows,
            columns,
            nibbles: (0..rows * columns / 2).map(|_| self.next() as u8).collect(),
            scales: self.values(groups, 0.1),
            minimums: self.values(if minimums { groups } else { 0 }, 0.5),
        }
        .into()
    }

    /// Rows with everything that rows can be: ordinary, huge, tiny, zero, one value only.
    fn rows(&mut self, rows: usize, columns: usize) -> Vec<f32> {
        let mut values = Vec::new();
        for _ in 0..rows {
            let magnitude = [1.0, 1.0, 1.0, 1e15, 1e-15, 0.0][self.below(6)];
            let mut row = self.values(columns, magnitude);
            if self.below(6) == 0 {
                row.fill(0.0);
                row[self.below(columns)] = 3.0;
            }
            values.extend(row);
        }
        values
    }
}

fn portable() -> Kernels {
    Kernels::new(Level::Portable).unwrap()
}

/// Calls a test with each level but the reference that this processor has.
fn each_level(test: impl Fn(Kernels)) {
    let fast: Vec<_> = Level::all_available().skip(1).collect();
    println!("levels held against the reference: {fast:?}");
    for level in fast {
        test(Kernels::new(level).unwrap());
    }
}

/// Holds the results of a floating-point kernel `[rows, columns]` on all levels against each other; gives back the reference's.
#[track_caller]
fn assert_levels_agree(columns: usize, run: impl Fn(Kernels) -> Vec<f32>) -> Vec<f32> {
    let reference = run(portable());
    let mut first: Option<Vec<f32>> = None;
    for level in Level::all_available().skip(1) {
        let found = run(Kernels::new(level).unwrap());
        assert_close(&reference, &found, columns, TOLERANCE);
        if cfg!(target_arch = "aarch64") {
            // The reference fuses as the instructions do.
            assert_same_bits(&reference, &found);
        }
        match &first {
            Some(first) => assert_same_bits(first, &found),
            None => first = Some(found),
        }
    }
    reference
}

#[track_caller]
fn assert_same_bits(expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len());
    for (at, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_eq!(
            expected.to_bits(),
            found.to_bits(),
            "value {at}: {expected} {found}"
        );
    }
}

#[track_caller]
fn assert_close(expected: &[f32], found: &[f32], columns: usize, tolerance: f32) {
    assert_eq!(expected.len(), found.len());
    for (expected, found) in expected
        .chunks_exact(columns)
        .zip(found.chunks_exact(columns))
    {
        let largest = expected
            .iter()
            .fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (expected, found) in expected.iter().zip(found) {
            let difference = (expected - found).abs();
            assert!(
                difference <= tolerance * largest,
                "{expected} {found} of {largest}"
            );
        }
    }
}

fn quantised(kernels: Kernels, input: &[f32], columns: usize) -> QuantisedRows {
    let mut rows = QuantisedRows::default();
    rows.set_group_sums(true);
    kernels.quantise(input, columns, columns, &mut rows);
    rows
}

/// Shapes with every kind of tail, and one of the default model.
fn shapes(random: &mut Random) -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![
        (1, 1, 1),
        (12, 32, 64),
        (13, 17, 5),
        (23, 33, 191),
        (48, 320, 192),
        (33, 64, 100),
    ];
    shapes.extend((0..60).map(|_| {
        (
            1 + random.below(40),
            1 + random.below(70),
            1 + random.below(130),
        )
    }));
    shapes
}

#[test]
fn quantised_rows_are_the_same_bytes() {
    each_level(quantised_rows_are_the_same_bytes_at);
}

fn quantised_rows_are_the_same_bytes_at(fast: Kernels) {
    let mut random = Random(1);
    let mut reused = QuantisedRows::default();
    for (rows, _, columns) in shapes(&mut random) {
        let padding = random.below(3);
        let input = random.rows(rows, columns + padding);
        let mut expected = QuantisedRows::default();
        portable().quantise(&input, columns + padding, columns, &mut expected);
        fast.quantise(&input, columns + padding, columns, &mut reused);
        for row in 0..rows {
            assert_eq!(expected.row(row), reused.row(row));
            let (values, scale) = expected.row(row);
            for (value, input) in values.iter().zip(&input[row * (columns + padding)..]) {
                assert!(
                    (f32::from(*value) * scale - input).abs() <= 0.5001 * scale,
                    "{value} {scale} {input}"
                );
            }
        }
        // Sums and padding too: a buffer that was another shape before leaves nothing behind.
        assert_eq!(
            (&expected.values, &expected.sums),
            (&reused.values, &reused.sums)
        );
        assert_eq!(expected.stride, reused.stride);
        let wide: Vec<i16> = reused.values.iter().copied().map(i16::from).collect();
        assert!(reused.wide.is_empty() || wide.starts_with(&reused.wide));
    }
}

#[test]
fn dequantised_rows_are_the_same_bits() {
    each_level(dequantised_rows_are_the_same_bits_at);
}

fn dequantised_rows_are_the_same_bits_at(fast: Kernels) {
    let mut random = Random(11);
    for (_, rows, columns) in shapes(&mut random) {
        let matrix = random.matrix(rows, columns);
        let all = matrix.dequantise();
        for row in [0, rows - 1] {
            for kernels in [portable(), fast] {
                let mut output = vec![f32::NAN; columns];
                kernels.dequantise_row(&matrix, row, &mut output);
                assert_same_bits(&all[row * columns..][..columns], &output);
            }
        }
    }
}

#[test]
fn norms_agree() {
    let mut random = Random(4);
    for (rows, _, columns) in shapes(&mut random) {
        let input = random.rows(rows, columns);
        let weight = random.values(columns, 2.0);
        let expected = assert_levels_agree(columns, |kernels| {
            let mut output = vec![f32::NAN; input.len()];
            kernels.rms_norm(&input, &weight, 1e-5, &mut output);
            output
        });
        for (input, output) in input
            .chunks_exact(columns)
            .zip(expected.chunks_exact(columns))
        {
            let squares = input
                .iter()
                .map(|value| f64::from(*value).powi(2))
                .sum::<f64>();
            let factor = 1.0 / (squares / columns as f64 + 1e-5).sqrt();
            for ((input, weight), output) in input.iter().zip(&weight).zip(output) {
                let exact = f64::from(*input) * factor * f64::from(*weight);
                assert!(
                    (exact - f64::from(*output)).abs() <= 1e-5 * exact.abs() + 1e-30,
                    "{exact} {output}"
                );
            }
        }
        // Fused with quantisation: the same bytes as one after the other, on the same level.
        for kernels in Level::all_available().map(|level| Kernels::new(level).unwrap()) {
            let mut normed = vec![0.0; input.len()];
            kernels.rms_norm(&input, &weight, 1e-5, &mut normed);
            let mut fused = QuantisedRows::default();
            fused.set_group_sums(true);
            kernels.rms_norm_quantise(&input, &weight, 1e-5, &mut fused);
            assert_eq!(fused, quantised(kernels, &normed, columns));
        }
    }
}

#[test]
fn rotary_is_the_same_bits() {
    let mut random = Random(5);
    for head_dim in [2, 16, 18, 32, 64] {
        let table = RotaryTable::new(300, head_dim, 10_000.0).unwrap();
        for position in [0, 1, 17, 299] {
            let input = random.values(3 * head_dim, 1.0);
            let mut expected = input.clone();
            portable().rotate(&mut expected, &table, position);
            each_level(|fast| {
                let mut found = input.clone();
                fast.rotate(&mut found, &table, position);
                assert_same_bits(&expected, &found);
            });
            for (at, (input, output)) in input
                .chunks_exact(2)
                .zip(expected.chunks_exact(2))
                .enumerate()
            {
                let pair = at % (head_dim / 2);
                let angle = position as f64 * 10_000_f64.powf(-2.0 * pair as f64 / head_dim as f64);
                let (even, odd) = (f64::from(input[0]), f64::from(input[1]));
                let exact = [
                    even * angle.cos() - odd * angle.sin(),
                    even * angle.sin() + odd * angle.cos(),
                ];
                for (exact, output) in exact.iter().zip(output) {
                    assert!((exact - f64::from(*output)).abs() < 1e-6);
                }
            }
        }
    }
}

/// Plain attention in f64 of row `row`, head `head`.
fn exact_attention(
    shape: AttentionShape,
    context: &[(Vec<f32>, Vec<f32>)],
    rows: &[f32],
    row: usize,
    head: usize,
) -> Vec<f64> {
    let (dim, size, key_size) = (shape.head_dim, shape.row_size(), shape.key_size());
    let column = head / (shape.heads / shape.kv_heads) * dim;
    let query = &rows[row * size + head * dim..][..dim];
    let mut pairs = Vec::new();
    for (keys, values) in context {
        pairs.extend(
            keys.chunks_exact(key_size)
                .zip(values.chunks_exact(key_size)),
        );
    }
    let own = rows.chunks_exact(size).take(row + 1);
    pairs.extend(own.map(|row| row[shape.query_size()..].split_at(key_size)));
    let dot = |key: &[f32]| -> f64 {
        query
            .iter()
            .zip(&key[column..])
            .map(|(query, key)| f64::from(*query) * f64::from(*key))
            .sum()
    };
    let scores: Vec<f64> = pairs
        .iter()
        .map(|(key, _)| dot(key) / (dim as f64).sqrt())
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let weighted = |at: usize| {
        pairs
            .iter()
            .zip(&weights)
            .map(|((_, value), weight)| f64::from(value[column + at]) * weight)
            .sum::<f64>()
            / sum
    };
    (0..dim).map(weighted).collect()
}

#[test]
fn attention_agrees() {
    let mut random = Random(6);
    for case in 0..60 {
        let kv_heads = 1 + random.below(3);
        let heads = kv_heads * (1 + random.below(5));
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim: 16 * (1 + random.below(4)),
        };
        let (size, key_size) = (shape.row_size(), shape.key_size());
        let tokens = 1 + random.below([3, 20, 70][case % 3]);
        let magnitude = [0.5, 3.0, 40.0][random.below(3)];
        let rows = random.values(tokens * size, magnitude);
        let counts: Vec<usize> = (0..random.below(4)).map(|_| random.below(40)).collect();
        let mut part = |count: usize| random.values(count * key_size, magnitude);
        let context: Vec<_> = counts
            .iter()
            .map(|count| (part(*count), part(*count)))
            .collect();
        let mut own = KeyBlocks::default();
        own.fill(shape, &rows[shape.query_size()..], size, tokens);
        let mut blocks = vec![KeyBlocks::default(); context.len()];
        for ((keys, _), blocks) in context.iter().zip(&mut blocks) {
            blocks.fill(shape, keys, key_size, keys.len() / key_size);
        }
        let parts: Vec<_> = blocks
            .iter()
            .zip(&context)
            .map(|(keys, (_, values))| KeysValues {
                keys,
                values,
                stride: key_size,
            })
            .collect();
        let mut attended = vec![rows.clone()];
        portable().attend(
            shape,
            &parts,
            &own,
            &mut attended[0],
            &mut AttentionScratch::default(),
        );
        for level in Level::all_available().skip(1) {
            let mut found = rows.clone();
            Kernels::new(level).unwrap().attend(
                shape,
                &parts,
                &own,
                &mut found,
                &mut AttentionScratch::default(),
            );
            attended.push(found);
        }
        for pair in attended[1..].windows(2) {
            assert_same_bits(&pair[0], &pair[1]);
        }
        for found in attended {
            for row in 0..tokens {
                for head in 0..heads {
                    let exact = exact_attention(shape, &context, &rows, row, head);
                    let found = &found[row * size + head * shape.head_dim..][..shape.head_dim];
                    for (exact, found) in exact.iter().zip(found) {
                        // Scores of magnitude 40 x 40 x 64 carry rounding errors into the exponent.
                        let tolerance = if magnitude > 10.0 { 1e-2 } else { TOLERANCE };
                        assert!(
                            (exact - f64::from(*found)).abs() <= f64::from(tolerance * magnitude),
                            "{exact} {found}"
                        );
                    }
                }
                let kept = shape.query_size()..size;
                assert_same_bits(
                    &rows[row * size..][kept.clone()],
                    &found[row * size..][kept],
                );
            }
        }
    }
}

/// NaN and infinity come out as NaN instead of as a plausible number, on every level.
#[test]
fn an_overflow_is_never_mistaken_for_a_result() {
    for level in Level::all_available() {
        let kernels = Kernels::new(level).unwrap();
        let packed = PackedMatrix::stacked(kernels, &[&Random(7).matrix(20, 40)]).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = Random(8).values(3 * 40, 1.0);
            input[40 + 23] = bad;
            let mut normed = QuantisedRows::default();
            kernels.rms_norm_quantise(&input, &[1.0; 40], 1e-5, &mut normed);
            for rows in [quantised(kernels, &input, 40), normed] {
                let mut output = vec![0.0; 3 * 20];
                packed.multiply(&rows, 0..20, &mut output, 20);
                assert!(output[20..40].iter().all(|value| value.is_nan()));
                assert!(
                    output[..20]
                        .iter()
                        .chain(&output[40..])
                        .all(|value| value.is_finite())
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for level in Level::all_available() {
        let kernels = Kernels::new(level).unwrap();
        let mut random = Random(9);
        let (columns, channels) = (100, 48);
        let (gate, up) = (
            random.matrix(channels, columns),
            random.matrix(channels, columns),
        );
        let packed = PackedMatrix::gated(kernels, &gate, &up).unwrap();
        let input = random.rows(40, columns);
        let weight = random.values(columns, 1.0);
        let run = |rows: &[f32]| {
            let mut quantised = QuantisedRows::default();
            kernels.rms_norm_quantise(rows, &weight, 1e-5, &mut quantised);
            let mut output = vec![0.0; rows.len() / columns * channels];
            packed.multiply_gated(&quantised, &mut output);
            output
        };
        let all = run(&input);
        for (start, end) in [(0, 1), (39, 40), (3, 8), (5, 18), (1, 40)] {
            let part = run(&input[start * columns..end * columns]);
            assert_same_bits(&all[start * channels..end * channels], &part);
        }
    }
}

#[test]
fn what_does_not_fit_is_not_packed() {
    let mut random = Random(10);
    let kernels = portable();
    let (wide, narrow) = (random.matrix(16, 9), random.matrix(16, 8));
    let error = PackedMatrix::stacked(kernels, &[&wide, &narrow]).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::Length {
                expected: 9,
                found: 8,
                ..
            }
        ),
        "{error}"
    );
    let error = PackedMatrix::gated(kernels, &wide, &random.matrix(32, 9)).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::Length {
                expected: 16,
                found: 32,
                ..
            }
        ),
        "{error}"
    );
    let odd = random.matrix(17, 9);
    assert!(matches!(
        PackedMatrix::gated(kernels, &odd, &odd),
        Err(KernelError::Length {
            expected: 32,
            found: 17,
            ..
        })
    ));
    let broken = QuantisedMatrix {
        scales: vec![f32::NAN; 16],
        ..random.int8(16, 9)
    };
    assert!(matches!(
        PackedMatrix::stacked(kernels, &[&broken.into()]),
        Err(KernelError::Scale { row: 0, .. })
    ));
    assert!(PackedMatrix::stacked(kernels, &[]).is_err());
}

/// What the fast kernels do not check again is checked before them.
#[test]
fn sizes_that_do_not_fit_panic_before_memory_is_touched() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    for level in Level::all_available() {
        let kernels = Kernels::new(level).unwrap();
        let mut random = Random(12);
        let packed = PackedMatrix::stacked(kernels, &[&random.matrix(32, 40)]).unwrap();
        let gated =
            PackedMatrix::gated(kernels, &random.matrix(16, 40), &random.matrix(16, 40)).unwrap();
        let rows = quantised(kernels, &random.values(3 * 40, 1.0), 40);
        let other = quantised(kernels, &random.values(3 * 44, 1.0), 44);
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
        };
        let mut own = KeyBlocks::default();
        own.fill(shape, &[1.0; 3 * 16], 16, 3);
        let values = [1.0; 47];
        let short = KeysValues {
            keys: &own,
            values: &values,
            stride: 16,
        };
        let attend = |context: &[KeysValues<'_>], tokens: usize| {
            let mut rows = vec![1.0; tokens * shape.row_size()];
            kernels.attend(
                shape,
                context,
                &own,
                &mut rows,
                &mut AttentionScratch::default(),
            );
        };
        let table = RotaryTable::new(4, 16, 10_000.0).unwrap();
        let factors = LowRank {
            rank: 2,
            a: &[1.0; 80],
            b: &[1.0; 64],
        };
        let add = |factors: LowRank<'_>, inputs: usize, outputs: usize| {
            kernels.add_low_rank(factors, &vec![1.0; inputs], &mut vec![1.0; outputs]);
        };
        let gate = |inputs: usize, products: usize, outputs: usize| {
            let products = vec![1.0; products];
            let output = &mut vec![1.0; outputs];
            kernels.gate_low_rank(Some(factors), &vec![1.0; inputs], &products, output);
        };
        add(factors, 40, 32);
        gate(40, 32, 16);
        let calls: [(&str, &dyn Fn()); 17] = [
            ("inputs of a factor", &|| add(factors, 41, 32)),
            ("outputs of a factor", &|| add(factors, 40, 31)),
            ("rank", &|| {
                let (a, b) = (&[1.0; 65 * 16], &[1.0; 65 * 16]);
                add(LowRank { rank: 65, a, b }, 16, 16);
            }),
            ("gated inputs", &|| gate(39, 32, 16)),
            ("gated products", &|| gate(40, 33, 16)),
            ("gated outputs", &|| gate(40, 32, 15)),
            ("output", &|| {
                packed.multiply(&rows, 0..32, &mut [0.0; 95], 32)
            }),
            ("columns", &|| {
                packed.multiply(&other, 0..32, &mut [0.0; 96], 32)
            }),
            ("channels", &|| {
                packed.multiply(&rows, 16..33, &mut [0.0; 200], 64)
            }),
            ("stride", &|| {
                packed.multiply(&rows, 0..32, &mut [0.0; 96], 31)
            }),
            ("inside a panel", &|| {
                packed.multiply(&rows, 8..32, &mut [0.0; 96], 32)
            }),
            ("gated output", &|| {
                gated.multiply_gated(&rows, &mut [0.0; 47])
            }),
            ("norm", &|| {
                kernels.rms_norm(&[1.0; 80], &[1.0; 40], 1e-5, &mut [0.0; 79])
            }),
            ("position", &|| kernels.rotate(&mut [0.0; 32], &table, 4)),
            ("own keys", &|| attend(&[], 4)),
            ("context values", &|| attend(&[short], 3)),
            ("context parts", &|| {
                attend(
                    &[KeysValues {
                        values: &[1.0; 48],
                        ..short
                    }; 4],
                    3,
                )
            }),
        ];
        attend(
            &[KeysValues {
                values: &[1.0; 48],
                ..short
            }; 3],
            3,
        );
        for (what, call) in calls {
            assert!(
                catch_unwind(AssertUnwindSafe(call)).is_err(),
                "{what} at {level:?}"
            );
        }
    }
}
