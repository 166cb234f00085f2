//! Classifies the hidden vector again: softmax over labels of weights · hidden + bias.
//!
//! The weights are no part of the program: [`PARAMETERS`] is a template that `trafficllm_heads::Linear::fill` fills in the module that was
//! built, so that fitting a head needs no compiler. Unfilled it has two labels and abstains.

#![cfg_attr(target_family = "wasm", no_std)]

use core::hint::black_box;

use trafficllm_head_sdk::{
    AboutWriter, Flow, Head, Model, NEEDS_HIDDEN, VerdictWriter, export_head,
};

/// Bytes of parameters that fit.
const ROOM: usize = 24_576;
const LABELS_MAX: usize = 64;
/// Sums of a product: as many as wide registers hold.
const LANES: usize = 8;

/// By what the template is found in a module.
const MARK: &[u8; 24] = b"trafficllm linear head 1";

/// What stands in the module: mark, room, bytes that are used, and those: `u32 hidden, u16 labels, u16 0, f32 threshold, u32 weights_at`,
/// texts (`u16` length, bytes): name, version, labels; at `weights_at`, a multiple of 4: `f32[labels][hidden]`, `f32[labels]`.
#[repr(C, align(8))]
struct Parameters([u8; 32 + ROOM]);

static PARAMETERS: Parameters = Parameters(template());

const fn template() -> [u8; 32 + ROOM] {
    let mut bytes = [0; 32 + ROOM];
    let content: &[u8] = b"\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x40\x28\x00\x00\x00\x06\x00linear\x01\x000\x01\x00a\x01\x00b";
    let used = 48;
    let mut at = 0;
    while at < MARK.len() {
        bytes[at] = MARK[at];
        at += 1;
    }
    let (room, used): ([u8; 4], [u8; 4]) = ((ROOM as u32).to_le_bytes(), u32::to_le_bytes(used));
    at = 0;
    while at < 4 {
        bytes[24 + at] = room[at];
        bytes[28 + at] = used[at];
        at += 1;
    }
    at = 0;
    while at < content.len() {
        bytes[32 + at] = content[at];
        at += 1;
    }
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| usize::from(u16::from_le_bytes(*bytes)))
}

fn content() -> &'static [u8] {
    // The compiler must not know what it compiled in.
    let Parameters(bytes) = black_box(&PARAMETERS);
    let used = u32_at(bytes, 28) as usize;
    bytes.get(32..32 + used).unwrap_or_default()
}

/// The head.
struct Linear {
    hidden: usize,
    labels: usize,
    threshold: f32,
    /// `[labels, hidden]`, then `[labels]`, as bytes.
    weights: &'static [u8],
    bias: &'static [u8],
}

impl Head for Linear {
    fn about(about: &mut AboutWriter<'_>) {
        let content = content();
        let mut at = 16;
        let mut text = || {
            let length = u16_at(content, at);
            let bytes = content.get(at + 2..at + 2 + length).unwrap_or_default();
            at += 2 + length;
            core::str::from_utf8(bytes).unwrap_or_default()
        };
        let (name, version) = (text(), text());
        about.start(name, version, NEEDS_HIDDEN, u32_at(content, 0));
        (0..u16_at(content, 4)).for_each(|_| about.label(text()));
    }

    fn new() -> Self {
        let content = content();
        let (hidden, labels) = (u32_at(content, 0) as usize, u16_at(content, 4));
        let at = u32_at(content, 12) as usize;
        let bias_at = at + labels * hidden * 4;
        Self {
            hidden,
            labels,
            threshold: f32::from_bits(u32_at(content, 8)),
            weights: content.get(at..bias_at).unwrap_or_default(),
            bias: content.get(bias_at..).unwrap_or_default(),
        }
    }

    fn begin(&mut self, model: &Model<'_>) -> Result<(), i32> {
        let is_whole = self.weights.len() == self.labels * self.hidden * 4
            && self.bias.len() >= self.labels * 4
            && (1..=LABELS_MAX).contains(&self.labels);
        let is_mine = self.hidden == 0 || model.hidden() == self.hidden;
        if is_whole && is_mine { Ok(()) } else { Err(-1) }
    }

    fn judge(&mut self, flow: &Flow<'_>, verdict: &mut VerdictWriter<'_>) -> Result<(), i32> {
        let mut scores = [0.0_f32; LABELS_MAX];
        let scores = scores.get_mut(..self.labels).ok_or(-2)?;
        let hidden = flow.hidden_bytes();
        if hidden.len() != self.hidden * 4 {
            return Err(-3);
        }
        let rows = self.weights.chunks_exact((self.hidden * 4).max(1));
        for (score, bias) in scores.iter_mut().zip(self.bias.chunks_exact(4)) {
            *score = number(bias);
        }
        for (score, row) in scores.iter_mut().zip(rows) {
            *score += dot(row, hidden);
        }
        softmax(scores);
        let mut best = 0;
        for (label, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = label;
            }
        }
        verdict.label(best as u16, scores[best]);
        if scores[best] < self.threshold {
            verdict.abstain();
        }
        verdict.scores(scores.iter().copied());
        Ok(())
    }
}

fn number(bytes: &[u8]) -> f32 {
    bytes
        .first_chunk()
        .map_or(0.0, |bytes| f32::from_le_bytes(*bytes))
}

fn dot(row: &[u8], vector: &[u8]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (rows, vectors) = (row.chunks_exact(4 * LANES), vector.chunks_exact(4 * LANES));
    let rest = rows
        .remainder()
        .chunks_exact(4)
        .zip(vectors.remainder().chunks_exact(4));
    let rest: f32 = rest
        .map(|(weight, value)| number(weight) * number(value))
        .sum();
    for (weights, values) in rows.zip(vectors) {
        let pairs = weights.chunks_exact(4).zip(values.chunks_exact(4));
        for (sum, (weight, value)) in sums.iter_mut().zip(pairs) {
            *sum += number(weight) * number(value);
        }
    }
    sums.iter().sum::<f32>() + rest
}

fn softmax(values: &mut [f32]) {
    let most = values.iter().copied().fold(f32::MIN, f32::max);
    values
        .iter_mut()
        .for_each(|value| *value = exponential(*value - most));
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
}

/// e to the power of what is not positive, to about six digits: 2^n times a polynomial of the rest.
fn exponential(value: f32) -> f32 {
    if value < -87.0 {
        return 0.0;
    }
    let scaled = value * core::f32::consts::LOG2_E;
    let whole = (scaled - 0.5) as i32;
    let rest = (scaled - whole as f32) * core::f32::consts::LN_2;
    // The Taylor series to the seventh power: the rest is at most ln 2 / 2.
    let terms = [5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0];
    let sum = terms
        .iter()
        .fold(0.0, |sum, factorial| sum * rest + 1.0 / factorial);
    sum * f32::from_bits(((whole + 127) as u32) << 23)
}

export_head!(Linear, input_bytes: 16_384, output_bytes: 8_192, heads: 64);
