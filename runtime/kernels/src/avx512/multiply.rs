//! Byte products: unsigned weights times signed activations, 4 input channels per 32-bit lane.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};
use std::ops::Range;

use super::math::{first_lanes, gated};
use crate::packed::{Epilogue, PANEL_CHANNELS};
use crate::{Kernels, QuantisedMatrix, QuantisedRows};

/// Input channels that one instruction takes per lane.
const STEP_COLUMNS: usize = 4;
/// Bytes of one step of one panel.
const STEP_BYTES: usize = PANEL_CHANNELS * STEP_COLUMNS;
/// What is added to a signed weight to make it unsigned, as the instruction wants it.
const OFFSET: i32 = 128;

const STORE: u8 = 0;
const ADD: u8 = 1;
const GATED: u8 = 2;

/// Weights packed into panels of 16 output channels: `[panels, steps, 16 channels, 4 input channels]` u8.
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    /// Input channels / 4, rounded up.
    steps: usize,
    /// Register-wide, so that panels lie on cache lines.
    lines: Vec<Line>,
    /// `[panels * 16]` f32; 0 past the last channel.
    scales: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([u8; STEP_BYTES]);

impl Panels {
    /// Packs a valid matrix. Taking [`Kernels`] makes sure that the instructions exist.
    pub(crate) fn new(kernels: Kernels, matrix: &QuantisedMatrix) -> Self {
        super::assert_available(kernels);
        let steps = matrix.columns.div_ceil(STEP_COLUMNS);
        let panels = matrix.rows.div_ceil(PANEL_CHANNELS);
        // Padding stands for weight 0.
        let mut lines = vec![Line([OFFSET as u8; STEP_BYTES]); panels * steps];
        for (channel, values) in matrix.values.chunks_exact(matrix.columns).enumerate() {
            let lines = &mut lines[channel / PANEL_CHANNELS * steps..][..steps];
            for (line, values) in lines.iter_mut().zip(values.chunks(STEP_COLUMNS)) {
                let start = channel % PANEL_CHANNELS * STEP_COLUMNS;
                for (byte, value) in line.0[start..].iter_mut().zip(values) {
                    *byte = value.cast_unsigned() ^ OFFSET as u8;
                }
            }
        }
        let mut scales = matrix.scales.clone();
        scales.resize(panels * PANEL_CHANNELS, 0.0);
        Self {
            steps,
            lines,
            scales,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lines.capacity() * STEP_BYTES + self.scales.capacity() * 4
    }

    /// See [`PackedMatrix::multiply`](crate::PackedMatrix::multiply), which checks the sizes.
    pub(crate) fn multiply(
        &self,
        rows: &QuantisedRows,
        channels: Range<usize>,
        output: &mut [f32],
        stride: usize,
        then: Epilogue,
    ) {
        for channel in channels.clone().step_by(2 * PANEL_CHANNELS) {
            let width = (channels.end - channel).min(2 * PANEL_CHANNELS);
            let strip = Strip {
                channel,
                width,
                output: &mut output[channel..],
                stride,
            };
            // SAFETY: `Panels` exist only where the instructions do.
            unsafe {
                match (then, width > PANEL_CHANNELS) {
                    (Epilogue::Store, true) => self.strip::<2, STORE>(rows, strip),
                    (Epilogue::Store, false) => self.strip::<1, STORE>(rows, strip),
                    (Epilogue::Add, true) => self.strip::<2, ADD>(rows, strip),
                    (Epilogue::Add, false) => self.strip::<1, ADD>(rows, strip),
                }
            }
        }
    }

    /// See [`PackedMatrix::multiply_gated`](crate::PackedMatrix::multiply_gated), which checks the sizes.
    pub(crate) fn multiply_gated(&self, rows: &QuantisedRows, output: &mut [f32]) {
        let stride = self.scales.len() / 2;
        for channel in (0..self.scales.len()).step_by(2 * PANEL_CHANNELS) {
            let output = &mut output[channel / 2..];
            let strip = Strip {
                channel,
                width: 2 * PANEL_CHANNELS,
                output,
                stride,
            };
            // SAFETY: `Panels` exist only where the instructions do.
            unsafe { self.strip::<2, GATED>(rows, strip) };
        }
    }

    /// One or two panels with all rows: the panels stay in the first cache while the rows pass.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
    fn strip<const PANELS: usize, const THEN: u8>(
        &self,
        rows: &QuantisedRows,
        mut strip: Strip<'_>,
    ) {
        let mut row = 0;
        while row < rows.rows() {
            let left = rows.rows() - row;
            row += match left {
                12.. => self.tile::<12, PANELS, THEN>(rows, row, &mut strip),
                8.. => self.tile::<8, PANELS, THEN>(rows, row, &mut strip),
                4.. => self.tile::<4, PANELS, THEN>(rows, row, &mut strip),
                2.. => self.tile::<2, PANELS, THEN>(rows, row, &mut strip),
                _ => self.tile::<1, PANELS, THEN>(rows, row, &mut strip),
            };
        }
    }

    /// `ROWS` rows from `row` with the strip's panels, accumulated in registers. Gives back `ROWS`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
    fn tile<const ROWS: usize, const PANELS: usize, const THEN: u8>(
        &self,
        rows: &QuantisedRows,
        row: usize,
        strip: &mut Strip<'_>,
    ) -> usize {
        let steps = self.steps;
        let lines = &self.lines[strip.channel / PANEL_CHANNELS * steps..][..PANELS * steps];
        let activations = &rows.values[row * rows.stride..][..ROWS * rows.stride];
        assert!(steps * STEP_COLUMNS <= rows.stride);
        // Weights are 128 too large; what that adds to a product is known beforehand and taken off here.
        let mut sums = [[_mm512_set1_epi32(0); PANELS]; ROWS];
        for (sums, sum) in sums.iter_mut().zip(&rows.sums[row..row + ROWS]) {
            *sums = [_mm512_set1_epi32(-OFFSET * sum); PANELS];
        }
        let (weights, activations, stride) = (lines.as_ptr(), activations.as_ptr(), rows.stride);
        for step in 0..steps {
            let mut panels = [_mm512_set1_epi32(0); PANELS];
            for (panel, weight) in panels.iter_mut().enumerate() {
                // SAFETY: `lines` holds `PANELS * steps` of them.
                *weight = unsafe { _mm512_loadu_si512(weights.add(panel * steps + step).cast()) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `activations` holds `ROWS * stride` bytes, and a row has at least 4 for every step.
                let activation = unsafe {
                    activations
                        .add(row * stride + step * STEP_COLUMNS)
                        .cast::<i32>()
                        .read_unaligned()
                };
                let activation = _mm512_set1_epi32(activation);
                for (sum, weight) in sums.iter_mut().zip(&panels) {
                    *sum = _mm512_dpbusd_epi32(*sum, *weight, activation);
                }
            }
        }
        let mut row_scales = [0.0; ROWS];
        row_scales.copy_from_slice(&rows.scales[row..row + ROWS]);
        self.finish::<ROWS, PANELS, THEN>(&sums, &row_scales, row, strip);
        ROWS
    }

    /// Scales the sums and writes them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
    fn finish<const ROWS: usize, const PANELS: usize, const THEN: u8>(
        &self,
        sums: &[[__m512i; PANELS]; ROWS],
        row_scales: &[f32; ROWS],
        row: usize,
        strip: &mut Strip<'_>,
    ) {
        let mut channel_scales = [_mm512_set1_ps(0.0); PANELS];
        for (panel, scales) in channel_scales.iter_mut().enumerate() {
            let from = &self.scales[strip.channel + panel * PANEL_CHANNELS..][..PANEL_CHANNELS];
            // SAFETY: `from` has 16 values.
            *scales = unsafe { _mm512_loadu_ps(from.as_ptr()) };
        }
        // Checked once, so that the loop below unrolls and the sums stay in registers.
        let output_width = if THEN == GATED {
            PANEL_CHANNELS
        } else {
            strip.width
        };
        assert!((1..=PANELS * PANEL_CHANNELS).contains(&output_width));
        let output = &mut strip.output[row * strip.stride..];
        assert!((ROWS - 1) * strip.stride + output_width <= output.len());
        for (row, sums) in sums.iter().enumerate() {
            let row_scale = _mm512_set1_ps(row_scales[row]);
            let mut products = [_mm512_set1_ps(0.0); PANELS];
            for (panel, product) in products.iter_mut().enumerate() {
                // The order of the reference, so that the bits agree.
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[panel]), channel_scales[panel]);
                *product = _mm512_mul_ps(scaled, row_scale);
            }
            // SAFETY: row `row` starts within `output` and has `output_width` values there, as asserted.
            unsafe {
                let output = output.as_mut_ptr().add(row * strip.stride);
                if THEN == GATED {
                    _mm512_storeu_ps(output, gated(products[0], products[PANELS - 1]));
                } else {
                    for (panel, product) in products.iter().enumerate() {
                        let width = output_width - (panel * PANEL_CHANNELS).min(output_width);
                        write::<THEN>(output.add(panel * PANEL_CHANNELS), width, *product);
                    }
                }
            }
        }
    }
}

/// Where the products with one or two panels go.
struct Strip<'a> {
    /// First output channel.
    channel: usize,
    /// Number of output channels.
    width: usize,
    /// From the first channel of the first row on.
    output: &'a mut [f32],
    /// From one row to the next.
    stride: usize,
}

/// Stores the first `width` lanes at `output`, or adds them to it.
///
/// # Safety
/// `output` must point to `width` values, or to 16 where `width` is more.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write<const THEN: u8>(output: *mut f32, width: usize, lanes: __m512) {
    // SAFETY: only the first `width` values are read and written.
    unsafe {
        if width >= PANEL_CHANNELS {
            let lanes = if THEN == ADD {
                _mm512_add_ps(_mm512_loadu_ps(output), lanes)
            } else {
                lanes
            };
            _mm512_storeu_ps(output, lanes);
        } else {
            let mask = first_lanes(width);
            let lanes = if THEN == ADD {
                _mm512_add_ps(_mm512_maskz_loadu_ps(mask, output), lanes)
            } else {
                lanes
            };
            _mm512_mask_storeu_ps(output, mask, lanes);
        }
    }
}
