//! 4-bit weights as GGUF stores them: groups of 32 with a scale each.

use crate::matrix::{WEIGHTS, check_length, checked_size};
use crate::memory::try_filled;
use crate::{KernelError, QuantisedMatrix};

/// Input channels that share a scale.
pub const GROUP_COLUMNS: usize = 32;
/// Bytes of a group's weights.
pub(crate) const GROUP_BYTES: usize = GROUP_COLUMNS / 2;
/// What a nibble stands for without minimums: `nibble - 8`.
pub(crate) const NIBBLE_OFFSET: i32 = 8;

/// A weight matrix `[rows (output channels), columns (input channels)]` of 4 bits a weight. The weight of a nibble is
/// `nibble * scale - minimum` of its group, or `(nibble - 8) * scale` where there are no minimums.
#[derive(Debug, Clone, PartialEq)]
pub struct Int4Matrix {
    /// Output channels.
    pub rows: usize,
    /// Input channels; a multiple of 32.
    pub columns: usize,
    /// `[rows, groups, 16]`: the low nibble of byte `j` is input channel `j` of the group, the high one `j + 16`.
    pub nibbles: Vec<u8>,
    /// `[rows, groups]` f32.
    pub scales: Vec<f32>,
    /// `[rows, groups]` f32, or empty.
    pub minimums: Vec<f32>,
}

impl Int4Matrix {
    /// Groups of a row.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.columns / GROUP_COLUMNS
    }

    /// Checks sizes against each other and the limits, and that every scale and minimum is finite.
    ///
    /// # Errors
    /// What is wrong, with the row.
    pub fn validate(&self) -> Result<(), KernelError> {
        let values = checked_size(self.rows, self.columns)?;
        if !self.columns.is_multiple_of(GROUP_COLUMNS) {
            return Err(KernelError::Length {
                what: "columns of 4-bit weights",
                expected: self.columns.next_multiple_of(GROUP_COLUMNS),
                found: self.columns,
            });
        }
        let groups = values / GROUP_COLUMNS;
        check_length("bytes of 4-bit weights", values / 2, self.nibbles.len())?;
        check_length("scales of groups", groups, self.scales.len())?;
        if !self.minimums.is_empty() {
            check_length("minimums of groups", groups, self.minimums.len())?;
        }
        let bad = |values: &[f32]| values.iter().position(|value| !value.is_finite());
        for values in [&self.scales, &self.minimums] {
            if let Some(group) = bad(values) {
                return Err(KernelError::GroupScale {
                    row: group / self.groups(),
                    group: group % self.groups(),
                    found: values[group],
                });
            }
        }
        Ok(())
    }

    /// The nibble of one weight.
    pub(crate) fn nibble(&self, row: usize, column: usize) -> u8 {
        let group = row * self.groups() + column / GROUP_COLUMNS;
        let at = column % GROUP_COLUMNS;
        let byte = self.nibbles[group * GROUP_BYTES + at % GROUP_BYTES];
        if at < GROUP_BYTES {
            byte & 15
        } else {
            byte >> 4
        }
    }

    /// Writes row `row` `[columns]` f32 to `output`.
    ///
    /// # Panics
    /// If `row` or the length of `output` is wrong.
    pub fn dequantise_row(&self, row: usize, output: &mut [f32]) {
        assert_eq!(output.len(), self.columns, "size of the output");
        let first = row * self.groups();
        for (group, output) in output.chunks_exact_mut(GROUP_COLUMNS).enumerate() {
            let group = first + group;
            let bytes = &self.nibbles[group * GROUP_BYTES..][..GROUP_BYTES];
            let scale = self.scales[group];
            let (low, high) = output.split_at_mut(GROUP_BYTES);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                for (output, nibble) in [(low, byte & 15), (high, byte >> 4)] {
                    *output = match self.minimums.get(group) {
                        Some(minimum) => f32::from(nibble) * scale - minimum,
                        None => (i32::from(nibble) - NIBBLE_OFFSET) as f32 * scale,
                    };
                }
            }
        }
    }

    /// Row by row, with one row of floats in memory at a time.
    fn to_int8(&self) -> Result<QuantisedMatrix, KernelError> {
        let mut matrix = QuantisedMatrix::unfilled(self.rows, self.columns)?;
        let mut floats = try_filled(WEIGHTS, self.columns, 0.0)?;
        for row in 0..self.rows {
            self.dequantise_row(row, &mut floats);
            matrix.push_row(&floats)?;
        }
        Ok(matrix)
    }

    /// The weights `[rows, columns]` f32 that the nibbles stand for.
    #[must_use]
    pub fn dequantise(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows * self.columns];
        for (row, output) in weights.chunks_exact_mut(self.columns).enumerate() {
            self.dequantise_row(row, output);
        }
        weights
    }
}

/// A weight matrix of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightMatrix {
    /// One byte a weight, one scale a row.
    Int8(QuantisedMatrix),
    /// Half a byte a weight, one scale a group.
    Int4(Int4Matrix),
}

impl From<QuantisedMatrix> for WeightMatrix {
    fn from(matrix: QuantisedMatrix) -> Self {
        Self::Int8(matrix)
    }
}

impl From<Int4Matrix> for WeightMatrix {
    fn from(matrix: Int4Matrix) -> Self {
        Self::Int4(matrix)
    }
}

impl WeightMatrix {
    /// Output channels.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Int8(matrix) => matrix.rows,
            Self::Int4(matrix) => matrix.rows,
        }
    }

    /// Input channels.
    #[must_use]
    pub fn columns(&self) -> usize {
        match self {
            Self::Int8(matrix) => matrix.columns,
            Self::Int4(matrix) => matrix.columns,
        }
    }

    /// Checks sizes, limits and numbers.
    ///
    /// # Errors
    /// What is wrong, with the row.
    pub fn validate(&self) -> Result<(), KernelError> {
        match self {
            Self::Int8(matrix) => matrix.validate(),
            Self::Int4(matrix) => matrix.validate(),
        }
    }

    /// The weights `[rows, columns]` f32 that are stood for.
    #[must_use]
    pub fn dequantise(&self) -> Vec<f32> {
        match self {
            Self::Int8(matrix) => matrix.dequantise(),
            Self::Int4(matrix) => matrix.dequantise(),
        }
    }

    /// Writes row `row` `[columns]` f32 to `output`.
    ///
    /// # Panics
    /// If `row` or the length of `output` is wrong.
    pub fn dequantise_row(&self, row: usize, output: &mut [f32]) {
        match self {
            Self::Int8(matrix) => matrix.dequantise_row(row, output),
            Self::Int4(matrix) => matrix.dequantise_row(row, output),
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Int8(matrix) => matrix.values.capacity() + matrix.scales.capacity() * 4,
            Self::Int4(matrix) => {
                matrix.nibbles.capacity()
                    + (matrix.scales.capacity() + matrix.minimums.capacity()) * 4
            }
        }
    }

    /// As bytes with one scale a row; 4-bit weights are quantised anew, within half a step of the row's scale.
    ///
    /// # Errors
    /// A row whose scale does not fit a 16-bit float; memory that the system does not give.
    pub fn to_int8(&self) -> Result<QuantisedMatrix, KernelError> {
        match self {
            Self::Int8(matrix) => matrix.try_clone(),
            Self::Int4(matrix) => matrix.to_int8(),
        }
    }
}
