//! Activations as the products take them: one signed byte each, one scale per row.

/// Bytes to which a row is padded, so that rows start on cache lines of their own.
const ROW_ALIGNMENT: usize = 64;

/// Quantised activations `[rows, columns]`; activation = `value * scale` of its row. A buffer that is written by
/// [`Kernels`](crate::Kernels) and read by [`PackedMatrix`](crate::PackedMatrix), reused without allocating.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct QuantisedRows {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Bytes from one row to the next; the bytes past `columns` are 0.
    pub(crate) stride: usize,
    /// `[rows, stride]`, within -127 to 127.
    pub(crate) values: Vec<i8>,
    /// `[rows]` f32.
    pub(crate) scales: Vec<f32>,
    /// `[rows]`: the sum of a row's values.
    pub(crate) sums: Vec<i32>,
}

impl QuantisedRows {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of values of a row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The bytes `[columns]` of one row and its scale.
    #[must_use]
    pub fn row(&self, row: usize) -> (&[i8], f32) {
        (
            &self.values[row * self.stride..][..self.columns],
            self.scales[row],
        )
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.capacity() + self.scales.capacity() * 4 + self.sums.capacity() * 4
    }

    /// Takes the shape `[rows, columns]`. Values are to be written by the caller; padding is 0.
    pub(crate) fn reset(&mut self, rows: usize, columns: usize) {
        let stride = columns.next_multiple_of(ROW_ALIGNMENT);
        if stride != self.stride || columns != self.columns {
            // Another width moves the padding: clear so that it is 0 wherever it lies now.
            self.values.clear();
        }
        self.values.resize(rows * stride, 0);
        self.scales.resize(rows, 0.0);
        self.sums.resize(rows, 0);
        (self.rows, self.columns, self.stride) = (rows, columns, stride);
    }

    /// Row by row: bytes `[columns]`, scale, sum.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = (&mut [i8], &mut f32, &mut i32)> {
        let columns = self.columns;
        self.values
            .chunks_exact_mut(self.stride.max(1))
            .zip(&mut self.scales)
            .zip(&mut self.sums)
            .map(move |((values, scale), sum)| (&mut values[..columns], scale, sum))
    }
}
