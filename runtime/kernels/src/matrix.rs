//! Weights as they are stored: one signed byte each, one scale per output channel.

use crate::memory::{try_copy, try_with_capacity};
use crate::{KernelError, half, limits};

/// What errors call unpacked weights.
pub(crate) const WEIGHTS: &str = "weights";

/// Largest scale: the largest finite 16-bit float, because that is how scales are stored.
const SCALE_MAX: f32 = 65_504.0;

/// A weight matrix `[rows (output channels), columns (input channels)]`; weight = `values[row, column] * scales[row]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantisedMatrix {
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// `[rows, columns]` i8, row-major, within -127 to 127.
    pub values: Vec<i8>,
    /// `[rows]` f32, each representable as a 16-bit float.
    pub scales: Vec<f32>,
}

impl QuantisedMatrix {
    /// Quantises `[rows, columns]` weights symmetrically, one scale per row: the largest magnitude over 127, rounded to a
    /// 16-bit float before it is used, so that storing the scale as one loses nothing.
    ///
    /// # Errors
    /// A wrong length, a size out of limits, a weight that is not finite or too large to be stored.
    pub fn quantise(weights: &[f32], rows: usize, columns: usize) -> Result<Self, KernelError> {
        let values_count = checked_size(rows, columns)?;
        check_length("weights", values_count, weights.len())?;
        let mut matrix = Self::unfilled(rows, columns)?;
        for weights in weights.chunks_exact(columns) {
            matrix.push_row(weights)?;
        }
        Ok(matrix)
    }

    /// A matrix that has room for its rows but does not hold them yet: see [`QuantisedMatrix::push_row`].
    ///
    /// # Errors
    /// A size out of limits, memory that the system does not give.
    pub fn unfilled(rows: usize, columns: usize) -> Result<Self, KernelError> {
        let values_count = checked_size(rows, columns)?;
        Ok(Self {
            rows,
            columns,
            values: try_with_capacity(WEIGHTS, values_count)?,
            scales: try_with_capacity(WEIGHTS, rows)?,
        })
    }

    /// Quantises the next row, `[columns]` weights.
    ///
    /// # Errors
    /// A weight that is not finite or too large to be stored.
    pub fn push_row(&mut self, weights: &[f32]) -> Result<(), KernelError> {
        let scale = row_scale(self.scales.len(), weights)?;
        self.scales.push(scale);
        // A row of zeros has scale 0; its weights divided by anything are 0.
        let divisor = if scale > 0.0 { scale } else { 1.0 };
        self.values.extend(
            weights
                .iter()
                .map(|weight| nearest((weight / divisor).clamp(-127.0, 127.0)) as i8),
        );
        Ok(())
    }

    /// The weights `[rows, columns]` f32 that the bytes stand for.
    #[must_use]
    pub fn dequantise(&self) -> Vec<f32> {
        self.values
            .chunks_exact(self.columns)
            .zip(&self.scales)
            .flat_map(|(values, scale)| values.iter().map(move |&value| f32::from(value) * scale))
            .collect()
    }

    /// A copy.
    ///
    /// # Errors
    /// [`KernelError::Memory`].
    pub(crate) fn try_clone(&self) -> Result<Self, KernelError> {
        Ok(Self {
            rows: self.rows,
            columns: self.columns,
            values: try_copy(WEIGHTS, &self.values, self.values.len())?,
            scales: try_copy(WEIGHTS, &self.scales, self.scales.len())?,
        })
    }

    /// Writes row `row` `[columns]` f32 to `output`.
    ///
    /// # Panics
    /// If `row` or the length of `output` is wrong.
    pub fn dequantise_row(&self, row: usize, output: &mut [f32]) {
        assert_eq!(output.len(), self.columns);
        let values = &self.values[row * self.columns..][..self.columns];
        for (output, &value) in output.iter_mut().zip(values) {
            *output = f32::from(value) * self.scales[row];
        }
    }

    /// Checks sizes against each other and the limits, and that every scale is finite and not negative. The fields are
    /// public so that readers can fill them in; whoever packs a matrix checks it first.
    ///
    /// # Errors
    /// What is wrong, with the row.
    pub fn validate(&self) -> Result<(), KernelError> {
        check_length(
            "quantised values",
            checked_size(self.rows, self.columns)?,
            self.values.len(),
        )?;
        check_length("scales", self.rows, self.scales.len())?;
        match self
            .scales
            .iter()
            .position(|scale| !(scale.is_finite() && *scale >= 0.0))
        {
            Some(row) => Err(KernelError::Scale {
                row,
                found: self.scales[row],
            }),
            None => Ok(()),
        }
    }
}

/// `rows * columns`, if both are within limits.
pub(crate) fn checked_size(rows: usize, columns: usize) -> Result<usize, KernelError> {
    check_size("rows", limits::ROWS_MAX, rows)?;
    check_size("columns", limits::COLUMNS_MAX, columns)?;
    // No overflow: the limits multiply to 2^36; on a 32-bit target the saturated product is refused.
    let size = rows.saturating_mul(columns);
    check_size("values", limits::VALUES_MAX, size)?;
    Ok(size)
}

fn check_size(what: &'static str, limit: usize, found: usize) -> Result<(), KernelError> {
    if (1..=limit).contains(&found) {
        Ok(())
    } else {
        Err(KernelError::Size { what, limit, found })
    }
}

pub(crate) fn check_length(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected == found {
        Ok(())
    } else {
        Err(KernelError::Length {
            what,
            expected,
            found,
        })
    }
}

/// The nearest whole number, ties to even, of a magnitude far below 2^22: where floats have no more digits after the point. A library
/// call on processors without an instruction for it, this takes two additions.
fn nearest(value: f32) -> f32 {
    const NO_FRACTIONS: f32 = 1.5 * (1 << 23) as f32;
    (value + NO_FRACTIONS) - NO_FRACTIONS
}

/// The scale of one row: 0 for zeros, else the 16-bit float nearest to the largest magnitude over 127.
fn row_scale(row: usize, weights: &[f32]) -> Result<f32, KernelError> {
    if let Some(column) = weights.iter().position(|weight| !weight.is_finite()) {
        return Err(KernelError::NotFinite {
            row,
            column,
            found: weights[column],
        });
    }
    let largest = weights
        .iter()
        .fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    if largest == 0.0 {
        return Ok(0.0);
    }
    let bits = half::to_bits(largest / 127.0);
    let mut scale = half::from_bits(bits);
    // Near the smallest 16-bit floats rounding down would cut off large weights: take the next one up.
    if scale * 127.5 < largest && scale < SCALE_MAX {
        scale = half::from_bits(bits + 1);
    }
    if scale <= SCALE_MAX {
        Ok(scale)
    } else {
        Err(KernelError::Magnitude {
            row,
            limit: SCALE_MAX * 127.0,
            found: largest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_the_nearest() {
        for step in -127 * 64..=127 * 64 {
            let value = step as f32 / 64.0;
            assert_eq!(nearest(value), value.round_ties_even(), "{value}");
        }
    }

    fn quantise(weights: &[f32], rows: usize) -> Result<QuantisedMatrix, KernelError> {
        QuantisedMatrix::quantise(weights, rows, weights.len() / rows)
    }

    #[test]
    fn weights_come_back_within_half_a_step() {
        for magnitude in [1e-6_f32, 3e-5, 0.02, 1.0, 7e4, 8e6] {
            let weights: Vec<f32> = (0..256)
                .map(|at| ((at * 37 % 256) as f32 / 128.0 - 1.0) * magnitude)
                .collect();
            let matrix = quantise(&weights, 4).unwrap();
            for (at, (weight, back)) in weights.iter().zip(matrix.dequantise()).enumerate() {
                let scale = matrix.scales[at / 64];
                // Rounding the scale down can cut off half a step at the ends.
                assert!(
                    (weight - back).abs() <= 0.501 * scale,
                    "{weight} {back} {scale}"
                );
            }
        }
    }

    #[test]
    fn quantising_twice_changes_nothing() {
        let weights: Vec<f32> = (0..999)
            .map(|at| ((at * 7919 % 1000) as f32 - 500.0) * 1.3e-4)
            .collect();
        let once = quantise(&weights, 3).unwrap();
        assert_eq!(quantise(&once.dequantise(), 3).unwrap(), once);
        for scale in &once.scales {
            assert_eq!(half::from_bits(half::to_bits(*scale)), *scale);
        }
    }

    #[test]
    fn rows_of_zeros_and_single_values() {
        let matrix = quantise(&[0.0, 0.0, -3.0, 0.0], 2).unwrap();
        assert_eq!(matrix.values, [0, 0, -127, 0]);
        assert_eq!(matrix.scales[0], 0.0);
        let mut row = [9.0; 2];
        matrix.dequantise_row(1, &mut row);
        assert!((row[0] + 3.0).abs() < 2e-3 && row[1] == 0.0);
        assert_eq!(&matrix.dequantise()[2..], row);
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        for found in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = quantise(&[0.0, 1.0, 2.0, 3.0, found, 5.0], 2).unwrap_err();
            assert!(
                matches!(
                    error,
                    KernelError::NotFinite {
                        row: 1,
                        column: 1,
                        ..
                    }
                ),
                "{error}"
            );
        }
        let limit = 65_504.0 * 127.0;
        assert!(quantise(&[limit], 1).is_ok());
        let error = quantise(&[0.0, limit * 1.001], 2).unwrap_err();
        assert!(
            matches!(error, KernelError::Magnitude { row: 1, .. }),
            "{error}"
        );
        let valid = quantise(&[1.0; 6], 2).unwrap();
        for found in [f32::NAN, f32::INFINITY, -1.0] {
            let scales = vec![1.0, found];
            let error = QuantisedMatrix {
                scales,
                ..valid.clone()
            }
            .validate()
            .unwrap_err();
            assert!(
                matches!(error, KernelError::Scale { row: 1, .. }),
                "{error}"
            );
        }
        for matrix in [
            QuantisedMatrix {
                values: vec![0; 5],
                ..valid.clone()
            },
            QuantisedMatrix {
                scales: vec![0.0; 3],
                ..valid.clone()
            },
        ] {
            assert!(matches!(matrix.validate(), Err(KernelError::Length { .. })));
        }
        assert_eq!(valid.validate(), Ok(()));
    }

    /// Sizes at a limit get as far as the missing values, sizes past it do not.
    #[test]
    fn sizes_are_limited_before_anything_is_allocated() {
        let (rows, columns, values) = (limits::ROWS_MAX, limits::COLUMNS_MAX, limits::VALUES_MAX);
        for (rows, columns) in [(rows, 1), (1, columns), (rows, values / rows)] {
            let error = QuantisedMatrix::quantise(&[], rows, columns).unwrap_err();
            assert_eq!(
                error,
                KernelError::Length {
                    what: "weights",
                    expected: rows * columns,
                    found: 0
                }
            );
        }
        for (rows, columns) in [
            (rows + 1, 1),
            (1, columns + 1),
            (rows, values / rows + 1),
            (0, 1),
            (1, 0),
        ] {
            let error = QuantisedMatrix::quantise(&[], rows, columns).unwrap_err();
            assert!(matches!(error, KernelError::Size { .. }), "{error}");
        }
    }
}
