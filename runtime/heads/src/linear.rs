//! A linear classifier of the hidden vector: built in, and as parameters for the module `plugins/examples/linear`.

use crate::abi::{ABI, About, Answers, FlowInput, Needs, Verdict};
use crate::error::Fault;
use crate::head::{Conditions, Head, HeadInstance};
use crate::limits::{HIDDEN_MAX, LABEL_BYTES_MAX, NAME_BYTES_MAX};

/// By what the template is found in a module.
const MARK: &[u8; 24] = b"trafficllm linear head 1";
/// Mark, room, bytes that are used.
const TEMPLATE_HEAD_BYTES: usize = 32;
/// Labels that the module takes.
pub const LINEAR_LABELS_MAX: usize = 64;
/// Sums of a product: as many as wide registers hold, in the module as here.
const LANES: usize = 8;

/// Softmax over labels of weights · hidden + bias. As a [`Head`] it is the module's counterpart that is built in.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    about: About,
    threshold: f32,
    /// `[labels, hidden]`.
    weights: Vec<f32>,
    /// `[labels]`.
    bias: Vec<f32>,
}

impl Linear {
    /// A classifier of that name: weights are `[labels, hidden]`, the bias `[labels]`; below the threshold it abstains. `None` where the
    /// lists do not fit each other, a number is not finite, or something is beyond the limits of heads or [`LINEAR_LABELS_MAX`].
    #[must_use]
    pub fn new(
        (name, version): (&str, &str),
        labels: Vec<String>,
        threshold: f32,
        (weights, bias): (Vec<f32>, Vec<f32>),
    ) -> Option<Self> {
        let hidden = weights.len().checked_div(labels.len())?;
        let about = About {
            abi: ABI,
            needs: Needs::HIDDEN,
            hidden: u32::try_from(hidden).ok()?,
            name: name.to_owned(),
            version: version.to_owned(),
            labels,
        };
        let fits = weights.len() == hidden * about.labels.len()
            && bias.len() == about.labels.len()
            && (1..=HIDDEN_MAX).contains(&hidden)
            && about.labels.len() <= LINEAR_LABELS_MAX
            && name.len() <= NAME_BYTES_MAX
            && about
                .labels
                .iter()
                .all(|label| label.len() <= LABEL_BYTES_MAX);
        let is_finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
        if !fits || !is_finite(&weights) || !is_finite(&bias) || !threshold.is_finite() {
            return None;
        }
        // What a decoder refuses no host takes.
        About::decode(&about.encode()?).ok()?;
        Some(Self {
            about,
            threshold,
            weights,
            bias,
        })
    }

    /// The module with these parameters; `None` where it has no template, or one that they do not fit into.
    #[must_use]
    pub fn fill(&self, module: &[u8]) -> Option<Vec<u8>> {
        let content = self.content()?;
        let mut found = module
            .windows(MARK.len())
            .enumerate()
            .filter(|(_, bytes)| bytes == MARK);
        // Where the mark is for comparing, nothing follows it that looks like a template.
        let number =
            |at: usize| Some(u32::from_le_bytes(*module.get(at..)?.first_chunk()?) as usize);
        let at = found.find_map(|(at, _)| {
            let (room, used) = (number(at + 24)?, number(at + 28)?);
            let end = at.checked_add(TEMPLATE_HEAD_BYTES)?.checked_add(room)?;
            (used <= room && content.len() <= room && end <= module.len()).then_some(at)
        })?;
        let mut filled = module.to_vec();
        let used = u32::try_from(content.len()).ok()?.to_le_bytes();
        filled.get_mut(at + 28..at + 32)?.copy_from_slice(&used);
        let place = at + TEMPLATE_HEAD_BYTES;
        filled
            .get_mut(place..place + content.len())?
            .copy_from_slice(&content);
        Some(filled)
    }

    fn content(&self) -> Option<Vec<u8>> {
        let mut texts = Vec::new();
        let all = [&self.about.name, &self.about.version];
        for text in all.into_iter().chain(&self.about.labels) {
            texts.extend_from_slice(&u16::try_from(text.len()).ok()?.to_le_bytes());
            texts.extend_from_slice(text.as_bytes());
        }
        let weights_at = (16 + texts.len()).next_multiple_of(4);
        let mut content = self.about.hidden.to_le_bytes().to_vec();
        content.extend_from_slice(&u16::try_from(self.about.labels.len()).ok()?.to_le_bytes());
        content.extend_from_slice(&[0; 2]);
        content.extend_from_slice(&self.threshold.to_le_bytes());
        content.extend_from_slice(&u32::try_from(weights_at).ok()?.to_le_bytes());
        content.extend_from_slice(&texts);
        content.resize(weights_at, 0);
        let numbers = self.weights.iter().chain(&self.bias);
        content.extend(numbers.flat_map(|number| number.to_le_bytes()));
        Some(content)
    }
}

impl Head for Linear {
    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, conditions: &Conditions) -> Result<Box<dyn HeadInstance>, Fault> {
        conditions.check(&self.about)?;
        let scores = vec![0.0; self.bias.len()];
        Ok(Box::new(LinearInstance {
            linear: self.clone(),
            scores,
        }))
    }
}

struct LinearInstance {
    linear: Linear,
    scores: Vec<f32>,
}

impl HeadInstance for LinearInstance {
    fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault> {
        let Self { linear, scores } = self;
        let hidden = linear.about.hidden as usize;
        for flow in flows {
            if flow.hidden.len() != hidden {
                return Err(Fault::Refused {
                    export: "linear",
                    status: -3,
                });
            }
            let rows = linear.weights.chunks_exact(hidden).zip(&linear.bias);
            for (score, (row, bias)) in scores.iter_mut().zip(rows) {
                *score = bias + dot(row, flow.hidden);
            }
            let most = scores.iter().copied().fold(f32::MIN, f32::max);
            scores
                .iter_mut()
                .for_each(|score| *score = (*score - most).exp());
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|score| *score /= sum);
            let highest = |best: (usize, f32), (label, &score): (usize, &f32)| {
                if score > best.1 { (label, score) } else { best }
            };
            let (label, score) = scores.iter().enumerate().fold((0, -1.0), highest);
            answers.push(&Verdict {
                label: label as u16,
                score,
                abstained: score < linear.threshold,
                scores,
                evidence: "",
            });
        }
        Ok(())
    }
}

fn dot(row: &[f32], vector: &[f32]) -> f32 {
    let (rows, rows_rest) = row.as_chunks::<LANES>();
    let (vectors, vectors_rest) = vector.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (weights, values) in rows.iter().zip(vectors) {
        for ((sum, weight), value) in sums.iter_mut().zip(weights).zip(values) {
            *sum += weight * value;
        }
    }
    let rest = rows_rest.iter().zip(vectors_rest);
    let rest: f32 = rest.map(|(weight, value)| weight * value).sum();
    sums.iter().sum::<f32>() + rest
}
