//! Weights in the layout that the chosen kernels read.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::{KernelError, Kernels, QuantisedMatrix, QuantisedRows, portable};

/// Output channels of one panel: the 32-bit lanes of the widest register.
pub(crate) const PANEL_CHANNELS: usize = 16;

/// One or more matrices, stacked along their output channels and packed for one level of kernels. Read-only.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    channels: usize,
    columns: usize,
    layout: Layout,
}

#[derive(Debug, Clone)]
enum Layout {
    Portable(QuantisedMatrix),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx512::Panels),
}

/// What a product does with its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// `output = product`.
    Store,
    /// `output += product`.
    Add,
}

impl PackedMatrix {
    /// Packs `parts` (all with the same number of columns) stacked in this order.
    ///
    /// # Errors
    /// What [`QuantisedMatrix::validate`] refuses; different numbers of columns.
    pub fn stacked(kernels: Kernels, parts: &[&QuantisedMatrix]) -> Result<Self, KernelError> {
        Self::pack(kernels, stack(parts)?)
    }

    /// Packs a gate and an up projection (of the same shape) for [`PackedMatrix::multiply_gated`]: panels of 16 channels
    /// of either in turn, so that both halves of an output are in registers at the same time.
    ///
    /// # Errors
    /// What [`QuantisedMatrix::validate`] refuses; different shapes; a number of channels that is not a multiple of 16.
    pub fn gated(
        kernels: Kernels,
        gate: &QuantisedMatrix,
        up: &QuantisedMatrix,
    ) -> Result<Self, KernelError> {
        let stacked = stack(&[gate, up])?;
        if gate.rows != up.rows {
            return Err(KernelError::Length {
                what: "rows of the up projection",
                expected: gate.rows,
                found: up.rows,
            });
        }
        if !gate.rows.is_multiple_of(PANEL_CHANNELS) {
            let expected = gate.rows.next_multiple_of(PANEL_CHANNELS);
            return Err(KernelError::Length {
                what: "rows of the gate projection",
                expected,
                found: gate.rows,
            });
        }
        let mut values = Vec::with_capacity(stacked.values.len());
        let mut scales = Vec::with_capacity(stacked.scales.len());
        for panel in (0..gate.rows).step_by(PANEL_CHANNELS) {
            for part in [gate, up] {
                values.extend_from_slice(
                    &part.values[panel * part.columns..][..PANEL_CHANNELS * part.columns],
                );
                scales.extend_from_slice(&part.scales[panel..][..PANEL_CHANNELS]);
            }
        }
        Self::pack(
            kernels,
            QuantisedMatrix {
                values,
                scales,
                ..stacked
            },
        )
    }

    fn pack(kernels: Kernels, matrix: QuantisedMatrix) -> Result<Self, KernelError> {
        let (channels, columns) = (matrix.rows, matrix.columns);
        let layout = match kernels.level() {
            #[cfg(target_arch = "x86_64")]
            crate::Level::Avx512Vnni => Layout::Avx512Vnni(avx512::Panels::new(kernels, &matrix)),
            _ => Layout::Portable(matrix),
        };
        Ok(Self {
            channels,
            columns,
            layout,
        })
    }

    /// Output channels, of all parts together.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Input channels.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.layout {
            Layout::Portable(matrix) => matrix.values.capacity() + matrix.scales.capacity() * 4,
            #[cfg(target_arch = "x86_64")]
            Layout::Avx512Vnni(panels) => panels.bytes(),
        }
    }

    /// Writes the products of `rows` with the output channels `channels` to `output`: channel `c` of row `r` goes to
    /// `output[r * stride + c]`. Every level gives the same bits.
    ///
    /// # Panics
    /// If sizes do not fit each other, or `channels` does not start at a multiple of 16.
    pub fn multiply(
        &self,
        rows: &QuantisedRows,
        channels: Range<usize>,
        output: &mut [f32],
        stride: usize,
    ) {
        self.product(rows, channels, output, stride, Epilogue::Store);
    }

    /// Adds the products of `rows` with all output channels to `output` `[rows, channels]`. Every level gives the same
    /// bits.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn multiply_add(&self, rows: &QuantisedRows, output: &mut [f32]) {
        self.product(rows, 0..self.channels, output, self.channels, Epilogue::Add);
    }

    /// For weights from [`PackedMatrix::gated`]: writes `silu(gate) * up` to `output` `[rows, channels / 2]`.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub fn multiply_gated(&self, rows: &QuantisedRows, output: &mut [f32]) {
        assert_eq!(rows.columns(), self.columns, "columns of the activations");
        assert!(
            self.channels.is_multiple_of(2 * PANEL_CHANNELS),
            "not packed as a gate"
        );
        assert_eq!(
            output.len(),
            rows.rows() * self.channels / 2,
            "size of the output"
        );
        match &self.layout {
            Layout::Portable(matrix) => portable::multiply_gated(matrix, rows, output),
            #[cfg(target_arch = "x86_64")]
            Layout::Avx512Vnni(panels) => panels.multiply_gated(rows, output),
        }
    }

    fn product(
        &self,
        rows: &QuantisedRows,
        channels: Range<usize>,
        output: &mut [f32],
        stride: usize,
        then: Epilogue,
    ) {
        if rows.rows() == 0 || channels.is_empty() {
            return;
        }
        assert_eq!(rows.columns(), self.columns, "columns of the activations");
        assert!(
            channels.start.is_multiple_of(PANEL_CHANNELS),
            "channels start inside a panel"
        );
        assert!(channels.end <= self.channels, "channels of the matrix");
        assert!(channels.end <= stride, "channels reach into the next row");
        assert!(
            (rows.rows() - 1) * stride + channels.end <= output.len(),
            "size of the output"
        );
        match &self.layout {
            Layout::Portable(matrix) => {
                portable::multiply(matrix, rows, channels, output, stride, then)
            }
            #[cfg(target_arch = "x86_64")]
            Layout::Avx512Vnni(panels) => panels.multiply(rows, channels, output, stride, then),
        }
    }
}

/// The parts as one matrix.
fn stack(parts: &[&QuantisedMatrix]) -> Result<QuantisedMatrix, KernelError> {
    let columns = parts.first().map_or(0, |part| part.columns);
    let mut stacked = QuantisedMatrix {
        rows: 0,
        columns,
        values: Vec::new(),
        scales: Vec::new(),
    };
    for part in parts {
        part.validate()?;
        if part.columns != columns {
            return Err(KernelError::Length {
                what: "columns of a stacked matrix",
                expected: columns,
                found: part.columns,
            });
        }
        stacked.rows += part.rows;
        stacked.values.extend_from_slice(&part.values);
        stacked.scales.extend_from_slice(&part.scales);
    }
    stacked.validate()?;
    Ok(stacked)
}
