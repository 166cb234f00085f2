//! Weights in the layout that the chosen kernels read.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::fast::int4::{self, Int4Panels};
use crate::fast::int8::{self, Int8Panels};
use crate::fast::output::{Product, Then};
use crate::int4::GROUP_BYTES;
use crate::matrix::WEIGHTS;
use crate::memory::try_with_capacity;
#[cfg(target_arch = "aarch64")]
use crate::vector::neon::Neon;
use crate::vector::{Task, Vector};
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2::Avx2, avx512::Avx512};
use crate::{
    GROUP_COLUMNS, Int4Matrix, KernelError, Kernels, Level, QuantisedMatrix, QuantisedRows,
    WeightMatrix, portable,
};

/// Output channels of a panel of the reference; a multiple of the lanes of every level, so that ranges of channels may start at
/// any multiple of it.
pub(crate) const PANEL_CHANNELS: usize = 16;

/// One or more matrices, stacked along their output channels and packed for one level of kernels. Read-only.
#[derive(Debug)]
pub struct PackedMatrix {
    kernels: Kernels,
    channels: usize,
    columns: usize,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    Portable(WeightMatrix),
    Int8(Int8Panels),
    Int4(Int4Panels),
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
    /// Packs `parts` (all with the same number of columns) stacked in this order. Where 4-bit and 8-bit weights are stacked, all
    /// become 8-bit ones.
    ///
    /// # Errors
    /// What [`WeightMatrix::validate`] refuses; different numbers of columns; memory that the system does not give.
    pub fn stacked(kernels: Kernels, parts: &[&WeightMatrix]) -> Result<Self, KernelError> {
        Self::pack(kernels, stack(parts)?)
    }

    /// Packs a gate and an up projection (of the same shape) for [`PackedMatrix::multiply_gated`]: panels of either in turn, so
    /// that both halves of an output are in registers at the same time.
    ///
    /// # Errors
    /// As [`PackedMatrix::stacked`]; different shapes; a number of channels that is not a multiple of 16.
    pub fn gated(
        kernels: Kernels,
        gate: &WeightMatrix,
        up: &WeightMatrix,
    ) -> Result<Self, KernelError> {
        let stacked = stack(&[gate, up])?;
        if gate.rows() != up.rows() {
            return Err(KernelError::Length {
                what: "rows of the up projection",
                expected: gate.rows(),
                found: up.rows(),
            });
        }
        if !gate.rows().is_multiple_of(PANEL_CHANNELS) {
            let expected = gate.rows().next_multiple_of(PANEL_CHANNELS);
            return Err(KernelError::Length {
                what: "rows of the gate projection",
                expected,
                found: gate.rows(),
            });
        }
        let turns = take_turns(&stacked, panel_channels(kernels))?;
        drop(stacked);
        Self::pack(kernels, turns)
    }

    fn pack(kernels: Kernels, matrix: WeightMatrix) -> Result<Self, KernelError> {
        let (channels, columns) = (matrix.rows(), matrix.columns());
        let layout = match kernels.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => match matrix {
                WeightMatrix::Int8(matrix) => Layout::Int8(amx::pack(&matrix)?),
                // The scales of groups would break a tile in two: these products stay with AVX-512.
                WeightMatrix::Int4(matrix) => Layout::Int4(Int4Panels::new::<Avx512>(&matrix)?),
            },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => panels::<Avx512>(&matrix)?,
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => panels::<Avx2<true>>(&matrix)?,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => panels::<Avx2<false>>(&matrix)?,
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => panels::<Neon<true>>(&matrix)?,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => panels::<Neon<false>>(&matrix)?,
            _ => Layout::Portable(matrix),
        };
        Ok(Self {
            kernels,
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
            Layout::Portable(matrix) => matrix.bytes(),
            Layout::Int8(panels) => panels.bytes(),
            Layout::Int4(panels) => panels.bytes(),
        }
    }

    /// Whether products need [`QuantisedRows::set_group_sums`].
    #[must_use]
    pub fn needs_group_sums(&self) -> bool {
        matches!(
            self.layout,
            Layout::Int4(_) | Layout::Portable(WeightMatrix::Int4(_))
        )
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
        self.run(Product {
            rows,
            channels: 0..self.channels,
            output,
            stride: self.channels / 2,
            then: Then::Gated,
        });
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
        self.run(Product {
            rows,
            channels,
            output,
            stride,
            then: Then::Plain(then),
        });
    }

    /// The sizes have been checked.
    fn run(&self, product: Product<'_>) {
        if self.needs_group_sums() {
            let groups = self.columns / GROUP_COLUMNS;
            assert_eq!(
                product.rows.group_sums.len(),
                product.rows.rows() * groups,
                "group sums of the activations"
            );
        }
        let left = match &self.layout {
            Layout::Portable(matrix) => return portable::multiply(matrix, product),
            #[cfg(target_arch = "x86_64")]
            Layout::Int8(panels) if self.kernels.level() == Level::Amx => {
                // SAFETY: `Kernels` of this level exist only where AMX does, with the system's permission.
                let task = unsafe { amx::Multiply::<amx::Hardware>::new(panels, product) };
                self.kernels.run(task).is_some()
            }
            Layout::Int8(panels) => {
                let task = int8::Multiply { panels, product };
                self.kernels.run(task).is_some()
            }
            Layout::Int4(panels) => {
                let task = int4::Multiply { panels, product };
                self.kernels.run(task).is_some()
            }
        };
        assert!(!left, "panels of a level without registers");
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn panels<V: Vector>(matrix: &WeightMatrix) -> Result<Layout, KernelError> {
    Ok(match matrix {
        WeightMatrix::Int8(matrix) => Layout::Int8(Int8Panels::new::<V>(matrix)?),
        WeightMatrix::Int4(matrix) => Layout::Int4(Int4Panels::new::<V>(matrix)?),
    })
}

/// Output channels of a panel: lanes of a register.
struct Lanes<'a>(&'a mut usize);

impl Task for Lanes<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, _vector: V) {
        *self.0 = V::LANES;
    }
}

fn panel_channels(kernels: Kernels) -> usize {
    let mut lanes = PANEL_CHANNELS;
    // The reference, which has no registers, keeps the panels that its loops expect.
    let _reference = kernels.run(Lanes(&mut lanes));
    lanes
}

/// The parts as one matrix.
pub(crate) fn stack(parts: &[&WeightMatrix]) -> Result<WeightMatrix, KernelError> {
    let columns = parts.first().map_or(0, |part| part.columns());
    for part in parts {
        part.validate()?;
        if part.columns() != columns {
            return Err(KernelError::Length {
                what: "columns of a stacked matrix",
                expected: columns,
                found: part.columns(),
            });
        }
    }
    let mut int4_parts = Vec::with_capacity(parts.len());
    for part in parts {
        if let WeightMatrix::Int4(part) = part {
            int4_parts.push(part);
        }
    }
    let minimums = int4_parts
        .first()
        .is_some_and(|part| !part.minimums.is_empty());
    let alike = int4_parts
        .iter()
        .all(|part| part.minimums.is_empty() != minimums);
    let stacked = if int4_parts.len() == parts.len() && alike {
        WeightMatrix::Int4(stack_int4(&int4_parts, columns)?)
    } else {
        WeightMatrix::Int8(stack_int8(parts, columns)?)
    };
    stacked.validate()?;
    Ok(stacked)
}

fn stack_int4(parts: &[&Int4Matrix], columns: usize) -> Result<Int4Matrix, KernelError> {
    Ok(Int4Matrix {
        rows: parts.iter().map(|part| part.rows).sum(),
        columns,
        nibbles: joined(parts.iter().map(|part| part.nibbles.as_slice()))?,
        scales: joined(parts.iter().map(|part| part.scales.as_slice()))?,
        minimums: joined(parts.iter().map(|part| part.minimums.as_slice()))?,
    })
}

fn joined<'a, T: Copy + 'a>(
    parts: impl Iterator<Item = &'a [T]> + Clone,
) -> Result<Vec<T>, KernelError> {
    let mut joined = try_with_capacity(WEIGHTS, parts.clone().map(<[T]>::len).sum())?;
    for part in parts {
        joined.extend_from_slice(part);
    }
    Ok(joined)
}

fn stack_int8(parts: &[&WeightMatrix], columns: usize) -> Result<QuantisedMatrix, KernelError> {
    let rows = parts.iter().map(|part| part.rows()).sum();
    let mut stacked = QuantisedMatrix::unfilled(rows, columns)?;
    for part in parts {
        let converted;
        let part = match part {
            WeightMatrix::Int8(part) => part,
            WeightMatrix::Int4(_) => {
                converted = part.to_int8()?;
                &converted
            }
        };
        stacked.values.extend_from_slice(&part.values);
        stacked.scales.extend_from_slice(&part.scales);
    }
    Ok(stacked)
}

/// The rows of the first and of the second half of a matrix, `panel` of either in turn.
pub(crate) fn take_turns(matrix: &WeightMatrix, panel: usize) -> Result<WeightMatrix, KernelError> {
    Ok(match matrix {
        WeightMatrix::Int8(matrix) => WeightMatrix::Int8(QuantisedMatrix {
            rows: matrix.rows,
            columns: matrix.columns,
            values: in_turns(&matrix.values, panel * matrix.columns)?,
            scales: in_turns(&matrix.scales, panel)?,
        }),
        WeightMatrix::Int4(matrix) => WeightMatrix::Int4(Int4Matrix {
            rows: matrix.rows,
            columns: matrix.columns,
            nibbles: in_turns(&matrix.nibbles, panel * matrix.groups() * GROUP_BYTES)?,
            scales: in_turns(&matrix.scales, panel * matrix.groups())?,
            minimums: in_turns(&matrix.minimums, panel * matrix.groups())?,
        }),
    })
}

fn in_turns<T: Copy>(values: &[T], chunk: usize) -> Result<Vec<T>, KernelError> {
    let mut turns = try_with_capacity(WEIGHTS, values.len())?;
    let (first, second) = values.split_at(values.len() / 2);
    for (first, second) in first.chunks_exact(chunk).zip(second.chunks_exact(chunk)) {
        turns.extend_from_slice(first);
        turns.extend_from_slice(second);
    }
    Ok(turns)
}
