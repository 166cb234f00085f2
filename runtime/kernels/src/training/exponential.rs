//! The exponential as straight-line arithmetic that compilers turn into vector instructions, and sums in a fixed order.

/// Number of partial sums: one register of the widest instruction set. Part of the result: sums are added in this order.
pub(super) const LANES: usize = 16;

/// `e^x`, relative error below 2e-7, for x in -87 ..= 88; clamped outside.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let whole = shifted - ROUNDER;
    let rest = whole.mul_add(-LN2_LOW, whole.mul_add(-LN2_HIGH, x));
    let mut value = 1.987_569_1e-4_f32;
    value = value.mul_add(rest, 1.398_199_9e-3);
    value = value.mul_add(rest, 8.333_452e-3);
    value = value.mul_add(rest, 4.166_579_6e-2);
    value = value.mul_add(rest, 1.666_666_5e-1);
    value = value.mul_add(rest, 0.5);
    value = value.mul_add(rest * rest, rest) + 1.0;
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUNDER.to_bits())
        .wrapping_add(127)
        << 23;
    value * f32::from_bits(power)
}

/// Adds up the lanes, always in the same tree.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Scalar product.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] = a.mul_add(*b, lanes[lane]);
    }
    sum_lanes(lanes)
}

/// Sum.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] += value;
    }
    sum_lanes(lanes)
}

/// Largest value; minus infinity of nothing.
#[inline(always)]
pub(super) fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] {
                chunk[lane]
            } else {
                lanes[lane]
            };
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] = if *value > lanes[lane] {
            *value
        } else {
            lanes[lane]
        };
    }
    lanes.into_iter().fold(
        f32::NEG_INFINITY,
        |best, value| if value > best { value } else { best },
    )
}

/// Replaces each value by `e^(value - maximum)` and returns the sum of the results.
#[inline(always)]
pub(super) fn exp_and_sum(values: &mut [f32], maximum: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = values.as_chunks_mut::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - maximum);
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in rest.iter_mut().enumerate() {
        *value = exp(*value - maximum);
        lanes[lane] += *value;
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library_over_its_range() {
        let mut worst = 0.0_f64;
        for step in 1..175_000 {
            let x = -87.0 + step as f32 * 0.001;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1000.0) < 2e-38 && exp(1000.0).is_finite());
    }

    #[test]
    fn sums_cover_every_value_once() {
        for length in [0, 1, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..length).map(|value| value as f32).collect();
            let want: f32 = values.iter().sum();
            assert_eq!(sum(&values), want);
            assert_eq!(dot(&values, &vec![2.0; length]), 2.0 * want);
            assert_eq!(
                maximum(&values),
                values.last().copied().unwrap_or(f32::NEG_INFINITY)
            );
        }
    }
}
