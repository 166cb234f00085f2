//! All figures of one task.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use trafficllm_model::{INSTRUCTION, Model, Task, TaskKind};
use trafficllm_traffic::token::{EncodeScratch, Encoder};

use super::{
    Cost, EvaluationOptions, Family, GroupReport, Lead, NOISES, TaskReport, UnknownReport,
    VariantReport, Watch, noise,
};
use crate::augment;
use crate::baselines::{self, BaselineScores, View};
use crate::batches::TokenRanges;
use crate::data::{self, Content, Item, Split, TaskData};
use crate::engine::{self, LabelScores};
use crate::error::{Result, TrainError};
use crate::evaluate::TaskEvaluation;
use crate::instructions;
use crate::metrics::{Confusion, Judged, Reliability, RiskCoverage, Scores, area_under_roc};
use crate::random::Random;
use crate::tokenizer;

/// Items that are timed.
const TIMED_ITEMS: usize = 256;
/// Rounds of timing, of which the median counts.
const TIMED_ROUNDS: usize = 3;
/// Stream of random numbers of the noises; the first of as many as there are noises.
const NOISE_STREAM: u64 = 0x40;

/// What is measured.
pub(super) struct Subject<'a> {
    pub(super) model: &'a Model,
    pub(super) task: usize,
    /// The task itself.
    pub(super) asked: &'a Task,
    pub(super) encoder: &'a Encoder,
    pub(super) options: &'a EvaluationOptions,
}

/// Whether a task of the bundle reads what a task of the data holds.
pub(super) fn same_kind(model: TaskKind, data: data::TaskKind) -> bool {
    (model == TaskKind::Flow) == (data == data::TaskKind::Flow)
}

/// One split, cut into items that the task's labels fit and others.
struct Scored<'a> {
    insiders: View<'a>,
    /// Without those whose payload stands in the training split or among the insiders.
    outsiders: Vec<&'a Item>,
    /// How many of them that were.
    outsiders_known: usize,
    /// For each insider whether its payload stands in the training split.
    repeated: Vec<bool>,
}

/// What the engine says of the insiders: labels and scores, one for each.
struct Answered<'a> {
    truths: Vec<usize>,
    repeated: &'a [bool],
    answers: Vec<LabelScores>,
}

impl Subject<'_> {
    fn labels(&self) -> &[String] {
        self.asked.labels()
    }

    fn name(&self) -> &str {
        self.asked.name()
    }

    fn threshold(&self) -> f32 {
        self.asked.threshold()
    }

    /// Measures everything that the options ask for.
    pub(super) fn measure(
        &self,
        outside: &BTreeMap<String, TaskData>,
        watch: &mut Watch,
    ) -> Result<TaskReport> {
        let (data, split) = (&self.options.data, self.options.split);
        let load = |split| {
            if self.name() == INSTRUCTION {
                instructions::load(split)
            } else {
                data::load(data, self.name(), split)
            }
        };
        let (train, loaded) = (load(Split::Train)?, load(split)?);
        if !same_kind(self.asked.kind(), loaded.kind) {
            return Err(TrainError::Evaluation {
                what: format!("task {}", self.name()),
                expected: "items of the kind that the bundle's task reads".into(),
                found: format!("{:?}", loaded.kind),
            });
        }
        let seen = self.learnt(&train);
        let scored = self.cut(&loaded, &seen)?;
        let (tokens, encoding_us) = self.encode_timed(&scored.insiders)?;
        let answered = self.ask(&scored, &tokens)?;
        watch.step(self.name(), count(&tokens));
        let judged = answered.judged();
        let (evaluation, confusion) = self.evaluation(&answered);
        let mut report = TaskReport {
            evaluation,
            labels: self.labels().to_vec(),
            confusion: confusion.rows(),
            reliability: Reliability::of(&judged),
            risk_coverage: RiskCoverage::of(&judged, self.threshold()),
            groups: self.groups(&answered),
            unknown: Vec::new(),
            noise: Vec::new(),
            occlusion: Vec::new(),
            baselines: Vec::new(),
            lead: None,
            cost: self.cost(&tokens, encoding_us)?,
        };
        report.unknown = self.unknown(&scored, &answered, (&loaded, &seen), outside, watch)?;
        let flows = loaded.kind == data::TaskKind::Flow;
        if self.options.noise && flows {
            report.noise = self.noise(&scored, watch)?;
        }
        if self.options.occlusion && flows {
            report.occlusion = self.occlusion(&scored, &tokens, watch)?;
        }
        if self.options.baselines {
            self.baselines(&mut report, (&train, &loaded), &seen, watch)?;
        }
        Ok(report)
    }

    /// The fingerprints of what the bundle can have been trained on: items with its labels.
    fn learnt(&self, train: &TaskData) -> HashSet<u64> {
        payloads(&View::new(train, self.labels()))
    }

    /// Cuts a split by whether the bundle knows the labels.
    fn cut<'d>(&self, loaded: &'d TaskData, seen: &HashSet<u64>) -> Result<Scored<'d>> {
        let insiders = View::new(loaded, self.labels());
        let knows = |item: &Item| self.labels().contains(&loaded.labels[item.label]);
        let mut outsiders: Vec<&Item> = loaded.items.iter().filter(|item| !knows(item)).collect();
        if let Some(first) = outsiders.first()
            && !self.options.unknown_labels
        {
            return Err(TrainError::Evaluation {
                what: format!("task {}, split {}", self.name(), self.options.split.name()),
                expected: format!(
                    "only the {} labels of the bundle (--unknown-labels takes the others as outsiders)",
                    self.labels().len()
                ),
                found: loaded.labels[first.label].clone(),
            });
        }
        if insiders.items.is_empty() {
            return Err(TrainError::Evaluation {
                what: format!("task {}, split {}", self.name(), self.options.split.name()),
                expected: "items with labels of the bundle".into(),
                found: "none".into(),
            });
        }
        let repeats = |item: &Item| {
            let fingerprint = item.content.payload_fingerprint();
            fingerprint.is_some_and(|fingerprint| seen.contains(&fingerprint))
        };
        let repeated = insiders
            .items
            .iter()
            .map(|(_, item)| repeats(item))
            .collect();
        let found = outsiders.len();
        let own = payloads(&insiders);
        outsiders.retain(|item| {
            let fingerprint = item.content.payload_fingerprint();
            !repeats(item) && fingerprint.is_none_or(|one| !own.contains(&one))
        });
        Ok(Scored {
            outsiders_known: found - outsiders.len(),
            insiders,
            outsiders,
            repeated,
        })
    }

    fn encode<'c>(&self, contents: impl Iterator<Item = &'c Content>) -> Result<Vec<Vec<u32>>> {
        let mut scratch = EncodeScratch::default();
        contents
            .map(|content| tokenizer::encode(self.encoder, content, &mut scratch))
            .collect()
    }

    /// The tokens of the insiders, and the mean time of encoding one of them, in microseconds.
    fn encode_timed(&self, insiders: &View<'_>) -> Result<(Vec<Vec<u32>>, f64)> {
        let contents = || insiders.items.iter().map(|(_, item)| &item.content);
        let tokens = self.encode(contents())?;
        let sampled: Vec<&Content> = spread(insiders.items.len(), TIMED_ITEMS)
            .map(|place| &insiders.items[place].1.content)
            .collect();
        let us = median_us(|| self.encode(sampled.iter().copied()).map(drop))?;
        Ok((tokens, us / sampled.len().max(1) as f64))
    }

    fn ask<'s>(&self, scored: &'s Scored<'_>, tokens: &[Vec<u32>]) -> Result<Answered<'s>> {
        Ok(Answered {
            truths: scored
                .insiders
                .items
                .iter()
                .map(|(truth, _)| *truth)
                .collect(),
            repeated: &scored.repeated,
            answers: engine::label_scores(self.model, self.task, tokens, self.options.threads)?,
        })
    }

    fn evaluation(&self, answered: &Answered<'_>) -> (TaskEvaluation, Confusion) {
        let (mut all, mut unseen) = (Confusion::new(self.labels()), Confusion::new(self.labels()));
        for ((truth, answer), repeated) in answered.each() {
            let abstained = answer.scores[answer.label] < self.threshold();
            all.record(truth, answer.label, abstained);
            if !repeated {
                unseen.record(truth, answer.label, abstained);
            }
        }
        let evaluation = TaskEvaluation {
            task: self.name().to_owned(),
            split: self.options.split.name().into(),
            all: all.scores(),
            unseen: unseen.scores(),
            repeated: answered
                .repeated
                .iter()
                .filter(|repeated| **repeated)
                .count() as u64,
        };
        (evaluation, all)
    }

    /// The task among the labels of each group alone.
    fn groups(&self, answered: &Answered<'_>) -> Vec<GroupReport> {
        let groups = self.options.groups_of(self.labels()).into_iter();
        groups
            .map(|prefix| {
                let places: Vec<usize> = (0..self.labels().len())
                    .filter(|&label| self.labels()[label].starts_with(prefix))
                    .collect();
                let labels: Vec<String> = places
                    .iter()
                    .map(|&label| self.labels()[label].clone())
                    .collect();
                let (mut all, mut unseen) = (Confusion::new(&labels), Confusion::new(&labels));
                let mut judged = Vec::new();
                for ((truth, answer), repeated) in answered.each() {
                    let Some(truth) = places.iter().position(|&label| label == truth) else {
                        continue;
                    };
                    let scores: Vec<f32> =
                        places.iter().map(|&label| answer.scores[label]).collect();
                    let best = engine::highest(&scores);
                    let total: f32 = scores.iter().sum();
                    let score = if total > 0.0 {
                        scores[best] / total
                    } else {
                        0.0
                    };
                    let abstained = score < self.threshold();
                    all.record(truth, best, abstained);
                    if !repeated {
                        unseen.record(truth, best, abstained);
                    }
                    judged.push(Judged {
                        score,
                        right: best == truth,
                    });
                }
                GroupReport {
                    prefix: prefix.to_owned(),
                    all: all.scores(),
                    unseen: unseen.scores(),
                    expected_calibration_error: Reliability::of(&judged).expected_calibration_error,
                    baselines: Vec::new(),
                    lead: None,
                }
            })
            .collect()
    }

    fn unknown(
        &self,
        scored: &Scored<'_>,
        answered: &Answered<'_>,
        (loaded, seen): (&TaskData, &HashSet<u64>),
        outside: &BTreeMap<String, TaskData>,
        watch: &mut Watch,
    ) -> Result<Vec<UnknownReport>> {
        let inside: Vec<f32> = answered
            .judged()
            .iter()
            .map(|judged| judged.score)
            .collect();
        let own = payloads(&scored.insiders);
        let mut reports = Vec::new();
        if self.options.unknown_labels {
            let foreign = "labels that the bundle lacks".to_owned();
            let outsiders = (&scored.outsiders[..], scored.outsiders_known);
            reports.push(self.outsiders(foreign, outsiders, loaded, &inside)?);
        }
        for (name, other) in outside {
            let kind = self.asked.kind();
            if name != self.name() && same_kind(kind, other.kind) {
                let known = |item: &&Item| {
                    let fingerprint = item.content.payload_fingerprint();
                    self.labels().contains(&other.labels[item.label])
                        || fingerprint.is_some_and(|one| seen.contains(&one) || own.contains(&one))
                };
                let items: Vec<&Item> = other.items.iter().filter(|item| !known(item)).collect();
                let left_out = other.items.len() - items.len();
                reports.push(self.outsiders(name.clone(), (&items, left_out), other, &inside)?);
            }
            watch.step(&format!("{}: outsiders from {name}", self.name()), 0);
        }
        Ok(reports)
    }

    /// How well the score tells `items` of `data` from what is inside; a report without figures where there are none.
    fn outsiders(
        &self,
        name: String,
        (items, left_out): (&[&Item], usize),
        data: &TaskData,
        inside: &[f32],
    ) -> Result<UnknownReport> {
        let tokens = self.encode(items.iter().map(|item| &item.content))?;
        let answers = engine::label_scores(self.model, self.task, &tokens, self.options.threads)?;
        let outside: Vec<f32> = answers
            .iter()
            .map(|answer| answer.scores[answer.label])
            .collect();
        let auroc = area_under_roc(inside, &outside);
        if auroc.is_none() {
            tracing::warn!(
                "{}: no outsiders from {name}: {left_out} items are known to the task",
                self.name()
            );
        }
        let mut labels: Vec<String> = items
            .iter()
            .map(|item| data.labels[item.label].clone())
            .collect();
        labels.sort();
        labels.dedup();
        let answered = |scores: &[f32]| {
            let kept = scores.iter().filter(|score| **score >= self.threshold());
            kept.count() as f64 / scores.len() as f64
        };
        Ok(UnknownReport {
            outsiders: name,
            labels,
            items: items.len() as u64,
            left_out: left_out as u64,
            auroc,
            answered_inside: answered(inside),
            answered_outside: auroc.map(|_| answered(&outside)),
        })
    }

    fn noise(&self, scored: &Scored<'_>, watch: &mut Watch) -> Result<Vec<VariantReport>> {
        let mut reports = Vec::new();
        for (stream, noise) in (NOISE_STREAM..).zip(NOISES) {
            let items = scored.insiders.items.iter().enumerate();
            let changed: Vec<Content> = items
                .map(|(place, (_, item))| match &item.content {
                    Content::Flow(flow) => {
                        let mut random = Random::stream(self.options.seed, stream, place as u64);
                        Content::Flow(augment::apply(flow, &noise, &mut random))
                    }
                    text => text.clone(),
                })
                .collect();
            let tokens = self.encode(changed.iter())?;
            reports.push(self.variant(noise::name(&noise), scored, &tokens)?);
            watch.step(
                &format!("{}: {}", self.name(), noise::name(&noise)),
                count(&tokens),
            );
        }
        Ok(reports)
    }

    fn occlusion(
        &self,
        scored: &Scored<'_>,
        tokens: &[Vec<u32>],
        watch: &mut Watch,
    ) -> Result<Vec<VariantReport>> {
        let ranges = TokenRanges::of_vocabulary();
        let mut reports = Vec::new();
        for family in Family::ALL {
            let hidden: Vec<Vec<u32>> = tokens
                .iter()
                .map(|item| family.hidden(item, &ranges))
                .collect();
            reports.push(self.variant(format!("without {}", family.name()), scored, &hidden)?);
            watch.step(
                &format!("{}: without {}", self.name(), family.name()),
                count(&hidden),
            );
        }
        Ok(reports)
    }

    fn variant(
        &self,
        name: String,
        scored: &Scored<'_>,
        tokens: &[Vec<u32>],
    ) -> Result<VariantReport> {
        let answered = self.ask(scored, tokens)?;
        let (evaluation, _) = self.evaluation(&answered);
        let reliability = Reliability::of(&answered.judged());
        let Scores {
            macro_f1,
            macro_f1_supported,
            accuracy,
            abstained,
            accuracy_answered,
            ..
        } = evaluation.all;
        Ok(VariantReport {
            name,
            macro_f1,
            macro_f1_supported,
            accuracy,
            abstained,
            accuracy_answered,
            expected_calibration_error: reliability.expected_calibration_error,
        })
    }

    fn baselines(
        &self,
        report: &mut TaskReport,
        (train, loaded): (&TaskData, &TaskData),
        seen: &HashSet<u64>,
        watch: &mut Watch,
    ) -> Result<()> {
        let mut measure = |labels: &[String], what: &str| -> Result<Vec<BaselineScores>> {
            let views = (&View::new(train, labels), &View::new(loaded, labels));
            let seeds = (self.options.seed, self.options.threads);
            // Each name that is told says that the one before it is done.
            let mut last: Option<String> = None;
            let scores = baselines::measure(views, train.kind, seen, seeds, &mut |name| {
                if let Some(done) = last.replace(format!("{}{what}: {name}", self.name())) {
                    watch.step(&done, 0);
                }
            })?;
            if let Some(done) = last {
                watch.step(&done, 0);
            }
            Ok(scores)
        };
        report.baselines = measure(self.labels(), "")?;
        report.lead = Lead::of(&report.evaluation.all, &report.baselines);
        for group in &mut report.groups {
            let labels: Vec<String> = self
                .labels()
                .iter()
                .filter(|label| label.starts_with(&group.prefix))
                .cloned()
                .collect();
            group.baselines = measure(&labels, &format!(" ({})", group.prefix))?;
            group.lead = Lead::of(&group.all, &group.baselines);
        }
        Ok(())
    }

    fn cost(&self, tokens: &[Vec<u32>], encoding_us: f64) -> Result<Cost> {
        let sampled: Vec<Vec<u32>> = spread(tokens.len(), TIMED_ITEMS)
            .map(|place| tokens[place].clone())
            .collect();
        let model_us = median_us(|| engine::logits(self.model, self.task, &sampled, 1).map(drop))?;
        Ok(Cost {
            tokens_mean: count(tokens) as f64 / tokens.len().max(1) as f64,
            tokens_max: tokens.iter().map(Vec::len).max().unwrap_or(0),
            timed_items: sampled.len(),
            encoding_us,
            model_us: model_us / sampled.len().max(1) as f64,
        })
    }
}

impl Answered<'_> {
    /// Truth, answer and whether the item repeats the training, of each item.
    fn each(&self) -> impl Iterator<Item = ((usize, &LabelScores), bool)> {
        let answers = self.truths.iter().copied().zip(&self.answers);
        answers.zip(self.repeated.iter().copied())
    }

    fn judged(&self) -> Vec<Judged> {
        let judge = |((truth, answer), _): ((usize, &LabelScores), bool)| Judged {
            score: answer.scores[answer.label],
            right: answer.label == truth,
        };
        self.each().map(judge).collect()
    }
}

/// The fingerprints of what the items carry.
fn payloads(view: &View<'_>) -> HashSet<u64> {
    let contents = view.items.iter().map(|(_, item)| &item.content);
    contents.filter_map(Content::payload_fingerprint).collect()
}

fn count(tokens: &[Vec<u32>]) -> u64 {
    tokens.iter().map(|item| item.len() as u64).sum()
}

/// At most `most` places out of `items`, evenly spread.
fn spread(items: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = items.min(most);
    (0..taken).map(move |place| place * items / taken.max(1))
}

/// The median time of the rounds in microseconds, after one that warms up.
fn median_us(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut times = Vec::with_capacity(TIMED_ROUNDS);
    for _ in 0..TIMED_ROUNDS {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TIMED_ROUNDS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_over_all_items() {
        assert!(spread(3, 10).eq([0, 1, 2]));
        assert!(spread(10, 5).eq([0, 2, 4, 6, 8]));
        assert_eq!(spread(0, 5).count(), 0);
    }
}
