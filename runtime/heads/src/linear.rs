//! A linear classifier of the hidden vector: built in, and as parameters for the module `plugins/examples/linear`.

use crate::abi::{ABI, About, Answers, FlowInput, ModelContext, Needs, Verdict};
use crate::error::Fault;
use crate::head::{Conditions, Head, HeadInstance};
use crate::limits::{HIDDEN_MAX, LABEL_BYTES_MAX, NAME_BYTES_MAX};

/// By what the template is found in a module.
const MARK: &[u8; 24] = b"trafficllm linear head 2";
/// Mark, room, bytes that are used.
const TEMPLATE_HEAD_BYTES: usize = 32;
/// Labels that the module takes.
pub const LINEAR_LABELS_MAX: usize = 64;
/// A probability below this counts as this, where its logarithm is taken.
const PROBABILITY_MIN: f32 = 1e-6;
/// Bytes of the parameters before their texts.
const TEXTS_AT: usize = 20;
/// Sums of a product: as many as wide registers hold, in the module as here.
const LANES: usize = 8;

/// Softmax over labels of weights · hidden + bias and, if it is pooled with a task of the model, + weight × ln of that task's
/// probability of the label. As a [`Head`] it is the module's counterpart that is built in.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    about: About,
    threshold: f32,
    /// `[labels, hidden]`.
    weights: Vec<f32>,
    /// `[labels]`.
    bias: Vec<f32>,
    pooled: Option<Pooled>,
}

/// A task of the model that has a voice.
#[derive(Clone, Debug, PartialEq)]
struct Pooled {
    task: String,
    weight: f32,
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
            pooled: None,
        })
    }

    /// Gives a task of the model a voice of that weight: a logarithmic opinion pool, in which the weights of the linear part stand for its
    /// own. The task has to have the labels of this head, in any order, each of one word. `None` for a name that no task can have, or a weight
    /// that is no number.
    #[must_use]
    pub fn pooled_with(mut self, task: &str, weight: f32) -> Option<Self> {
        let is_fine = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        let is_name = !task.is_empty() && task.len() <= NAME_BYTES_MAX && task.bytes().all(is_fine);
        self.about.needs = Needs(self.about.needs.0 | Needs::TASKS.0);
        self.pooled = Some(Pooled {
            task: task.to_owned(),
            weight,
        });
        (is_name && weight.is_finite()).then_some(self)
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
        let none = String::new();
        let (pooled, pool_weight) = match &self.pooled {
            None => (&none, 0.0),
            Some(pooled) => (&pooled.task, pooled.weight),
        };
        let all = [&self.about.name, &self.about.version, pooled];
        for text in all.into_iter().chain(&self.about.labels) {
            texts.extend_from_slice(&u16::try_from(text.len()).ok()?.to_le_bytes());
            texts.extend_from_slice(text.as_bytes());
        }
        let weights_at = (TEXTS_AT + texts.len()).next_multiple_of(4);
        let mut content = self.about.hidden.to_le_bytes().to_vec();
        content.extend_from_slice(&u16::try_from(self.about.labels.len()).ok()?.to_le_bytes());
        content.extend_from_slice(&[0; 2]);
        content.extend_from_slice(&self.threshold.to_le_bytes());
        content.extend_from_slice(&u32::try_from(weights_at).ok()?.to_le_bytes());
        content.extend_from_slice(&f32::to_le_bytes(pool_weight));
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
        let voice = match &self.pooled {
            None => None,
            Some(pooled) => Some(Voice::new(pooled, &self.about.labels, &conditions.model)?),
        };
        let scores = vec![0.0; self.bias.len()];
        Ok(Box::new(LinearInstance {
            linear: self.clone(),
            voice,
            scores,
        }))
    }
}

/// A pooled task in the model at hand.
struct Voice {
    task: u16,
    weight: f32,
    /// `[labels]`: where the task has this head's labels.
    places: Vec<usize>,
}

impl Voice {
    fn new(pooled: &Pooled, labels: &[String], model: &ModelContext) -> Result<Self, Fault> {
        let refused = |status| Fault::Refused {
            export: "linear",
            status,
        };
        let mut tasks = model.tasks.iter().enumerate();
        let found = tasks.find(|(_, task)| task.name == pooled.task);
        let (number, task) = found.ok_or_else(|| refused(-4))?;
        let place = |label: &String| task.labels.iter().position(|known| known == label);
        let places: Option<Vec<usize>> = labels.iter().map(place).collect();
        Ok(Self {
            task: u16::try_from(number).map_err(|_| refused(-4))?,
            weight: pooled.weight,
            places: places.ok_or_else(|| refused(-5))?,
        })
    }

    /// Adds what the task says of a flow; `None` where it does not say it.
    fn add(&self, flow: &FlowInput<'_>, scores: &mut [f32]) -> Option<()> {
        let answer = flow.tasks.iter().find(|answer| answer.task == self.task)?;
        for (score, &place) in scores.iter_mut().zip(&self.places) {
            let probability = answer.scores.get(place)?.max(PROBABILITY_MIN);
            *score += self.weight * probability.ln();
        }
        Some(())
    }
}

struct LinearInstance {
    linear: Linear,
    voice: Option<Voice>,
    scores: Vec<f32>,
}

impl HeadInstance for LinearInstance {
    fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault> {
        let Self {
            linear,
            voice,
            scores,
        } = self;
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
            if let Some(voice) = voice {
                let refused = Fault::Refused {
                    export: "linear",
                    status: -6,
                };
                voice.add(flow, scores).ok_or(refused)?;
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
