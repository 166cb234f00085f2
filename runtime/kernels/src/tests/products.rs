//! Products: of 8-bit and of 4-bit weights, on registers and on tiles.

use super::*;

#[test]
fn products_are_the_same_bits() {
    each_level(|fast| {
        products_agree(fast, &mut Random(2), Random::matrix);
    });
}

#[test]
fn products_of_4_bit_weights_are_the_same_bits() {
    each_level(|fast| {
        for minimums in [false, true] {
            products_agree(fast, &mut Random(13), |random, rows, columns| {
                random.int4(rows, columns, minimums)
            });
        }
    });
}

fn products_agree(
    fast: Kernels,
    random: &mut Random,
    matrix: impl Fn(&mut Random, usize, usize) -> WeightMatrix,
) {
    for (rows, channels, columns) in shapes(random) {
        let matrix = matrix(random, channels, columns);
        let columns = matrix.columns();
        let input = random.rows(rows, columns);
        let start = random.below(channels) / 16 * 16;
        let stride = channels + random.below(3);
        let initial = random.values(rows * stride, 1.0);
        let sum_initial = random.values(rows * channels, 1.0);
        let [expected, found] = [portable(), fast].map(|kernels| {
            let packed = PackedMatrix::stacked(kernels, &[&matrix]).unwrap();
            let quantised = quantised(kernels, &input, columns);
            let (mut stored, mut added) = (initial.clone(), sum_initial.clone());
            packed.multiply(&quantised, start..channels, &mut stored, stride);
            packed.multiply_add(&quantised, &mut added);
            [stored, added]
        });
        for (expected, found) in expected.iter().zip(&found) {
            assert_same_bits(expected, found);
        }
        // And the reference is right: f64 sums of what the bytes stand for; other values are untouched.
        let weights = matrix.dequantise();
        let quantised = quantised(portable(), &input, columns);
        for row in 0..rows {
            let (values, scale) = quantised.row(row);
            for channel in 0..stride {
                let found = expected[0][row * stride + channel];
                if !(start..channels).contains(&channel) {
                    assert_eq!(found, initial[row * stride + channel]);
                    continue;
                }
                let weights = &weights[channel * columns..][..columns];
                let terms = weights
                    .iter()
                    .zip(values)
                    .map(|(weight, value)| f64::from(*weight) * f64::from(*value));
                let exact = terms.clone().sum::<f64>() * f64::from(scale);
                // Scaled nibbles and minimums are larger than the weights that they make.
                let parts = terms.map(f64::abs).sum::<f64>()
                    + values
                        .iter()
                        .map(|value| f64::from(*value).abs())
                        .sum::<f64>();
                let bound = parts * f64::from(scale) * 2e-6;
                assert!((f64::from(found) - exact).abs() <= bound, "{found} {exact}");
                let added =
                    expected[1][row * channels + channel] - sum_initial[row * channels + channel];
                assert!(
                    (added - found).abs() <= 1e-6 * found.abs().max(1.0),
                    "{added} {found}"
                );
            }
        }
    }
}

/// Where there is no AMX, a model of its tile unit stands in for it: packing, loops and writing are held against the reference all
/// the same.
#[cfg(target_arch = "x86_64")]
#[test]
fn tiles_agree_with_a_model_of_their_unit() {
    use crate::amx::{Multiply, model::Model, pack};
    use crate::fast::output::{Product, Then};
    use crate::packed::Epilogue;
    let Ok(kernels) = Kernels::new(Level::Avx512Vnni) else {
        println!("skipped: what surrounds the tiles is AVX-512");
        return;
    };
    let mut random = Random(14);
    for (rows, channels, columns) in shapes(&mut random) {
        let matrix = random.int8(channels, columns);
        let panels = pack(&matrix).unwrap();
        let quantised = quantised(kernels, &random.rows(rows, columns), columns);
        let start = random.below(channels) / 16 * 16;
        let stride = channels + random.below(3);
        let initial = random.values(rows * stride, 1.0);
        let reference = PackedMatrix::stacked(portable(), &[&matrix.into()]).unwrap();
        let mut expected = initial.clone();
        reference.multiply(&quantised, start..channels, &mut expected, stride);
        let run = |channels, output: &mut [f32], stride, then| {
            let product = Product {
                rows: &quantised,
                channels,
                output,
                stride,
                then,
            };
            // SAFETY: the model needs no instructions.
            let task = unsafe { Multiply::<Model>::new(&panels, product) };
            assert!(kernels.run(task).is_none());
        };
        let mut found = initial.clone();
        run(
            start..channels,
            &mut found,
            stride,
            Then::Plain(Epilogue::Store),
        );
        assert_same_bits(&expected, &found);
        let mut expected = initial[..rows * channels].to_vec();
        let mut found = expected.clone();
        reference.multiply_add(&quantised, &mut expected);
        run(
            0..channels,
            &mut found,
            channels,
            Then::Plain(Epilogue::Add),
        );
        assert_same_bits(&expected, &found);
        if channels.is_multiple_of(32) {
            let mut expected = vec![0.0; rows * channels / 2];
            let mut found = expected.clone();
            reference.multiply_gated(&quantised, &mut expected);
            run(0..channels, &mut found, channels / 2, Then::Gated);
            assert_close(&expected, &found, channels / 2, TOLERANCE);
        }
    }
}

/// The largest sums that the limits allow, of either sign, do not overflow.
#[test]
fn the_longest_rows_stay_exact() {
    let columns = limits::COLUMNS_MAX;
    for level in Level::all_available() {
        let kernels = Kernels::new(level).unwrap();
        for (weight, activation) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
            let matrix =
                QuantisedMatrix::quantise(&vec![weight * 127.0; 2 * columns], 2, columns).unwrap();
            let matrix = WeightMatrix::from(matrix);
            let packed = PackedMatrix::stacked(kernels, &[&matrix]).unwrap();
            let mut output = vec![0.0; 2];
            packed.multiply(
                &quantised(kernels, &vec![activation * 127.0; columns], columns),
                0..2,
                &mut output,
                2,
            );
            assert_eq!(
                output,
                [weight * activation * 127.0 * 127.0 * columns as f32; 2]
            );
        }
    }
}

#[test]
fn gated_products_agree() {
    let mut random = Random(3);
    for (rows, channels, columns) in shapes(&mut random) {
        let channels = channels.next_multiple_of(16);
        let (gate, up) = (
            random.matrix(channels, columns),
            random.matrix(channels, columns),
        );
        let magnitude = [0.1, 3.0, 1e4][random.below(3)];
        let input = random.values(rows * columns, magnitude);
        let expected = assert_levels_agree(channels, |kernels| {
            let packed = PackedMatrix::gated(kernels, &gate, &up).unwrap();
            let mut output = vec![f32::NAN; rows * channels];
            packed.multiply_gated(&quantised(kernels, &input, columns), &mut output);
            output
        });
        // And the reference is right: channel by channel from the two plain products.
        let [gates, ups] = [&gate, &up].map(|matrix| {
            let mut output = vec![0.0; rows * channels];
            let packed = PackedMatrix::stacked(portable(), &[matrix]).unwrap();
            packed.multiply(
                &quantised(portable(), &input, columns),
                0..channels,
                &mut output,
                channels,
            );
            output
        });
        for ((gate, up), output) in gates.iter().zip(&ups).zip(&expected) {
            let exact = f64::from(*gate) / (1.0 + (-f64::from(*gate)).exp()) * f64::from(*up);
            assert!(
                (exact - f64::from(*output)).abs() <= 1e-5 * exact.abs() + 1e-30,
                "{exact} {output}"
            );
        }
    }
}
