use super::*;
use crate::limits::LOW_RANK_MAX;

/// What the factors add to a row, in f64.
fn exact(factors: LowRank<'_>, input: &[f32], outputs: usize) -> Vec<f64> {
    let mut sum = vec![0.0; outputs];
    for rank in 0..factors.rank {
        let row = &factors.a[rank * input.len()..][..input.len()];
        let coefficient: f64 = row
            .iter()
            .zip(input)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum();
        for (sum, value) in sum.iter_mut().zip(&factors.b[rank * outputs..]) {
            *sum += coefficient * f64::from(*value);
        }
    }
    sum
}

fn assert_near(exact: &[f64], found: &[f32]) {
    let largest = exact
        .iter()
        .fold(1.0_f64, |most, value| most.max(value.abs()));
    for (exact, found) in exact.iter().zip(found) {
        let difference = (exact - f64::from(*found)).abs();
        assert!(difference <= 1e-5 * largest, "{exact} {found} of {largest}");
    }
}

#[test]
fn low_rank_additions_agree() {
    let mut random = Random(21);
    for rank in [0, 1, 3, 8, LOW_RANK_MAX] {
        for (inputs, outputs) in [(16, 16), (1, 5), (40, 33), (192, 320), (200, 47)] {
            let (a, b) = (
                random.values(rank * inputs, 0.3),
                random.values(rank * outputs, 0.3),
            );
            let factors = LowRank { rank, a: &a, b: &b };
            let (input, before) = (random.values(inputs, 1.0), random.values(outputs, 1.0));
            let found = assert_levels_agree(outputs, |kernels| {
                let mut output = before.clone();
                kernels.add_low_rank(factors, &input, &mut output);
                output
            });
            let mut expected = exact(factors, &input, outputs);
            for (expected, before) in expected.iter_mut().zip(&before) {
                *expected += f64::from(*before);
            }
            assert_near(&expected, &found);
        }
    }
}

#[test]
fn gates_with_low_rank_additions_agree() {
    let mut random = Random(22);
    for rank in [0, 1, 5, LOW_RANK_MAX] {
        for (columns, channels) in [(32, 16), (64, 96), (192, 512)] {
            let (gate, up) = (
                random.matrix(channels, columns),
                random.matrix(channels, columns),
            );
            let (a, b) = (
                random.values(rank * columns, 0.3),
                random.values(rank * 2 * channels, 0.3),
            );
            let factors = LowRank { rank, a: &a, b: &b };
            let input = random.values(columns, 1.0);
            let run = |kernels: Kernels, factors| {
                let packed = PackedMatrix::gated(kernels, &gate, &up).unwrap();
                let rows = quantised(kernels, &input, columns);
                let mut products = vec![f32::NAN; 2 * channels];
                packed.multiply(&rows, 0..2 * channels, &mut products, 2 * channels);
                let mut output = vec![f32::NAN; channels];
                kernels.gate_low_rank(factors, &input, &products, &mut output);
                output
            };
            let found = assert_levels_agree(channels, |kernels| run(kernels, Some(factors)));
            let added = exact(factors, &input, 2 * channels);
            let products = [&gate, &up].map(|matrix| {
                let mut output = vec![0.0; channels];
                let packed = PackedMatrix::stacked(portable(), &[matrix]).unwrap();
                let rows = quantised(portable(), &input, columns);
                packed.multiply(&rows, 0..channels, &mut output, channels);
                output
            });
            let expected: Vec<f64> = (0..channels)
                .map(|channel| {
                    let gate = f64::from(products[0][channel]) + added[channel];
                    let up = f64::from(products[1][channel]) + added[channels + channel];
                    gate / (1.0 + (-gate).exp()) * up
                })
                .collect();
            assert_near(&expected, &found);
            // Nothing added: the same bits as the product that gates at once.
            for level in Level::all_available() {
                let kernels = Kernels::new(level).unwrap();
                let packed = PackedMatrix::gated(kernels, &gate, &up).unwrap();
                let mut output = vec![f32::NAN; channels];
                packed.multiply_gated(&quantised(kernels, &input, columns), &mut output);
                assert_same_bits(&output, &run(kernels, None));
            }
        }
    }
}
