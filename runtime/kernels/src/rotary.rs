//! Rotary position embedding, interleaved pairs.

use crate::KernelError;
use crate::memory::try_with_capacity;

/// Cosines and sines of every position, laid out for kernels that rotate pairs `(2i, 2i + 1)` in place.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryTable {
    pub(crate) positions: usize,
    pub(crate) head_dim: usize,
    /// `[positions, 2, head_dim]` f32: cosines, each twice; then sines, each negated and as it is.
    pub(crate) values: Vec<f32>,
}

impl RotaryTable {
    /// Angles `position * base^(-2i / head_dim)` for pair `i`, computed in f64.
    ///
    /// # Errors
    /// [`KernelError::Memory`].
    ///
    /// # Panics
    /// If `head_dim` is odd.
    pub fn new(positions: usize, head_dim: usize, base: f32) -> Result<Self, KernelError> {
        assert!(head_dim.is_multiple_of(2), "a head has pairs");
        let mut values = try_with_capacity("rotary angles", positions * 2 * head_dim)?;
        for position in 0..positions {
            let angles = (0..head_dim / 2).map(|pair| {
                let exponent = -2.0 * pair as f64 / head_dim as f64;
                position as f64 * f64::from(base).powf(exponent)
            });
            values.extend(angles.clone().flat_map(|angle| [angle.cos() as f32; 2]));
            values.extend(angles.flat_map(|angle| [-angle.sin() as f32, angle.sin() as f32]));
        }
        Ok(Self {
            positions,
            head_dim,
            values,
        })
    }

    /// Number of positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and signed sines `[head_dim]` of one position.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        self.values[position * 2 * self.head_dim..][..2 * self.head_dim].split_at(self.head_dim)
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.capacity() * 4
    }
}
