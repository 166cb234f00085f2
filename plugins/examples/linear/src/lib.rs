//! Classifies the hidden vector again: softmax over labels of weights · hidden + bias and, if a task of the model has a voice, + weight ×
//! ln of that task's probability of the label.
//!
//! The weights are no part of the program: [`PARAMETERS`] is a template that `trafficllm_heads::Linear::fill` fills in the module that was
//! built, so that fitting a head needs no compiler. Unfilled it has two labels and abstains.

#![cfg_attr(target_family = "wasm", no_std)]

use core::hint::black_box;

use trafficllm_head_sdk::{
    AboutWriter, Flow, Head, Model, NEEDS_HIDDEN, NEEDS_TASKS, VerdictWriter, export_head,
};

/// Bytes of parameters that fit.
const ROOM: usize = 24_576;
const LABELS_MAX: usize = 64;
/// Where the texts of the parameters begin.
const TEXTS_AT: usize = 20;
/// A label that the task does not have.
const UNKNOWN: u16 = u16::MAX;
/// A probability below this counts as this, where its logarithm is taken.
const PROBABILITY_MIN: f32 = 1e-6;
/// Sums of a product: as many as wide registers hold.
const LANES: usize = 8;

/// By what the template is found in a module.
const MARK: &[u8; 24] = b"trafficllm linear head 2";

/// What stands in the module: mark, room, bytes that are used, and those: `u32 hidden, u16 labels, u16 0, f32 threshold, u32 weights_at,
/// f32 weight of the task`, texts (`u16` length, bytes): name, version, the task's name (empty: none has a voice), labels; at `weights_at`, a multiple of 4: `f32[labels][hidden]`, `f32[labels]`.
#[repr(C, align(8))]
struct Parameters([u8; 32 + ROOM]);

static PARAMETERS: Parameters = Parameters(template());

const fn template() -> [u8; 32 + ROOM] {
    let mut bytes = [0; 32 + ROOM];
    let content: &[u8] = b"\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x40\x2c\x00\x00\x00\x00\x00\x00\x00\x06\x00linear\x01\x000\x00\x00\x01\x00a\x01\x00b";
    let used = 52;
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

/// The texts of the parameters, in their order.
fn texts(content: &'static [u8]) -> impl FnMut() -> &'static str {
    let mut at = TEXTS_AT;
    move || {
        let length = u16_at(content, at);
        let bytes = content.get(at + 2..at + 2 + length).unwrap_or_default();
        at += 2 + length;
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// The head.
struct Linear {
    hidden: usize,
    labels: usize,
    threshold: f32,
    /// `[labels, hidden]`, then `[labels]`, as bytes.
    weights: &'static [u8],
    bias: &'static [u8],
    /// The task that has a voice, with its weight; the number is known after `begin`.
    voice: Option<u16>,
    voice_weight: f32,
    /// `[labels]`: where the task has this head's labels.
    places: [u16; LABELS_MAX],
}

impl Linear {
    /// Finds the task that has a voice, and its labels.
    fn find_voice(&mut self, model: &Model<'_>) -> Result<(), i32> {
        let content = content();
        let mut text = texts(content);
        let (_, _, wanted) = (text(), text(), text());
        if wanted.is_empty() {
            return Ok(());
        }
        self.places = [UNKNOWN; LABELS_MAX];
        model.names(|task, label, name| {
            let task = task as u16;
            match label {
                None if self.voice.is_none() && name == wanted => self.voice = Some(task),
                Some(place) if self.voice == Some(task) => {
                    let mut text = texts(content);
                    (0..3).for_each(|_| {
                        let _ = text();
                    });
                    for known in self.places.iter_mut().take(self.labels) {
                        if text() == name {
                            *known = place as u16;
                        }
                    }
                }
                _ => {}
            }
        });
        if self.voice.is_none() {
            return Err(-4);
        }
        let known = self.places.get(..self.labels).unwrap_or_default();
        if known.contains(&UNKNOWN) {
            Err(-5)
        } else {
            Ok(())
        }
    }

    /// Adds what that task says of a flow.
    fn add_voice(&self, voice: u16, flow: &Flow<'_>, scores: &mut [f32]) -> Result<(), i32> {
        let mut answers = flow.tasks();
        let answer = answers.find(|answer| answer.number() == voice).ok_or(-6)?;
        for (score, place) in scores.iter_mut().zip(&self.places) {
            let probability = answer.scores().nth(usize::from(*place)).ok_or(-6)?;
            *score += self.voice_weight * logarithm(probability.max(PROBABILITY_MIN));
        }
        Ok(())
    }
}

impl Head for Linear {
    fn about(about: &mut AboutWriter<'_>) {
        let content = content();
        let mut text = texts(content);
        let (name, version, voice) = (text(), text(), text());
        let needs = match voice {
            "" => NEEDS_HIDDEN,
            _ => NEEDS_HIDDEN | NEEDS_TASKS,
        };
        about.start(name, version, needs, u32_at(content, 0));
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
            voice: None,
            voice_weight: f32::from_bits(u32_at(content, 16)),
            places: [0; LABELS_MAX],
        }
    }

    fn begin(&mut self, model: &Model<'_>) -> Result<(), i32> {
        let is_whole = self.weights.len() == self.labels * self.hidden * 4
            && self.bias.len() >= self.labels * 4
            && (1..=LABELS_MAX).contains(&self.labels);
        let is_mine = self.hidden == 0 || model.hidden() == self.hidden;
        if !is_whole || !is_mine {
            return Err(-1);
        }
        self.find_voice(model)
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
        if let Some(voice) = self.voice {
            self.add_voice(voice, flow, scores)?;
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

/// The natural logarithm of what is positive and not subnormal, to about seven digits: with a mantissa m from half of the root of two to the
/// root, 2 artanh((m - 1) / (m + 1)).
fn logarithm(value: f32) -> f32 {
    let bits = value.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32) >> 23;
    let m = f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3);
    let ratio = (m - 1.0) / (m + 1.0);
    let square = ratio * ratio;
    let series = [1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];
    let sum = series.iter().fold(0.0, |sum, term| sum * square + term);
    exponent as f32 * core::f32::consts::LN_2 + 2.0 * ratio * sum
}

export_head!(Linear, input_bytes: 16_384, output_bytes: 8_192, heads: 64);
