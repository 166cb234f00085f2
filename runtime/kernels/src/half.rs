//! 16-bit floats, as far as storing scales needs them.

/// The nearest 16-bit float (ties to even) as its bits. Values too large for the format become infinite.
#[must_use]
pub fn to_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    // From 65520 on the nearest value is infinity.
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    let rounded = if magnitude < 0x3880_0000 {
        // Subnormal: adding 0.5 moves the last kept bit, worth 2^-24, to the end of the f32 mantissa, so that the
        // addition itself rounds.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits()
    } else {
        let last_kept_bit = (magnitude >> 13) & 1;
        (magnitude - 0x3800_0000 + 0x0fff + last_kept_bit) >> 13
    };
    sign | rounded as u16
}

/// The value of a 16-bit float; exact.
#[must_use]
pub fn from_bits(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let mantissa = u32::from(bits & 0x03ff);
    let magnitude = match exponent {
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        0x1f => 0x7f80_0000 | (mantissa << 13),
        _ => ((exponent + 112) << 23) | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for bits in 0..=u16::MAX {
            let value = from_bits(bits);
            if value.is_nan() {
                assert!(from_bits(to_bits(value)).is_nan());
            } else {
                assert_eq!(to_bits(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn known_values() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(from_bits(bits), value);
        }
        assert_eq!(to_bits(65519.0), 0x7bff);
        assert_eq!(to_bits(65520.0), 0x7c00);
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        for bits in 0..0x7bff_u16 {
            let (low, high) = (from_bits(bits), from_bits(bits + 1));
            let middle = f32::midpoint(low, high);
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(to_bits(middle), even);
            assert_eq!(to_bits(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(to_bits(f32::from_bits(middle.to_bits() + 1)), bits + 1);
        }
    }
}
