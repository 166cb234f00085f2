//! The runtime's quantised engine over many encoded items: what is calibrated and scored is what will be used.

use trafficllm_model::calibration::softmax;
use trafficllm_model::{Item, Model, ModelError, Scratch, Task, TaskLogits, TaskVerdict};

use crate::error::{Result, TrainError};
use crate::threads::in_runs;

/// Items that the engine takes as one batch.
const BATCH_ITEMS: usize = 32;

/// The task with an index: one of flows or requests, or the one that reads instructions.
///
/// # Errors
/// [`TrainError::TaskMissing`] where the model has no such task.
pub fn task(model: &Model, index: usize) -> Result<&Task> {
    let of_traffic = model.tasks().get(index);
    let instruction = model.instruction().filter(|(last, _)| *last == index);
    of_traffic
        .or(instruction.map(|(_, task)| task))
        .ok_or(TrainError::TaskMissing { index })
}

/// The logits of one task for each item, in the order of the items.
///
/// # Errors
/// Where the engine refuses an item.
pub fn logits(
    model: &Model,
    task: usize,
    items: &[Vec<u32>],
    threads: usize,
) -> Result<Vec<Vec<f32>>> {
    over_batches(items, threads, |batch, scratch| {
        let mut out: Vec<TaskLogits> = Vec::new();
        model.classify_logits(&as_items(batch, &[task]), scratch, &mut out)?;
        Ok(out.into_iter().map(|answer| answer.logits).collect())
    })
}

/// The verdicts of one task for each item, in the order of the items.
///
/// # Errors
/// Where the engine refuses an item.
pub fn verdicts(
    model: &Model,
    task: usize,
    items: &[Vec<u32>],
    threads: usize,
) -> Result<Vec<TaskVerdict>> {
    over_batches(items, threads, |batch, scratch| {
        let mut out = Vec::new();
        model.classify(&as_items(batch, &[task]), scratch, &mut out)?;
        Ok(out)
    })
}

/// One task's answer for one item with the scores of all labels.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelScores {
    /// The best label, as [`verdicts`] gives it.
    pub label: usize,
    /// The calibrated probability of each label, in label order; that of the best one is the verdict's score to the bit.
    pub scores: Vec<f32>,
}

/// The answers of one task for each item with the scores of all labels, in the order of the items.
///
/// # Errors
/// [`TrainError::Evaluation`] for a task with labels of several words, which have no probabilities but along one path; where the engine
/// refuses an item.
pub fn label_scores(
    model: &Model,
    task: usize,
    items: &[Vec<u32>],
    threads: usize,
) -> Result<Vec<LabelScores>> {
    let asked = self::task(model, task)?;
    if asked.trie().depth() > 1 {
        return Err(TrainError::Evaluation {
            what: format!("scores of all labels of {}", asked.name()),
            expected: "labels of one word".into(),
            found: format!("labels of up to {} words", asked.trie().depth()),
        });
    }
    let answers = logits(model, task, items, threads)?.into_iter();
    Ok(answers
        .map(|mut scores| {
            // The choice is taken on the logits, as the engine does: different logits can have equal probabilities.
            let label = highest(&scores);
            softmax(&mut scores, asked.temperature());
            // Absurd weights overflow to scores that are no numbers: such an answer knows nothing.
            for score in scores.iter_mut().filter(|score| !score.is_finite()) {
                *score = 0.0;
            }
            LabelScores { label, scores }
        })
        .collect())
}

/// The place of the highest value, the first among equals.
pub(crate) fn highest(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

fn as_items<'a>(batch: &'a [Vec<u32>], tasks: &'a [usize]) -> Vec<Item<'a>> {
    batch.iter().map(|tokens| Item { tokens, tasks }).collect()
}

/// Cuts the items into one run per thread and each run into batches. An item's answer does not depend on its batch, so the
/// number of threads changes nothing but the time.
fn over_batches<T: Send>(
    items: &[Vec<u32>],
    threads: usize,
    answer: impl Fn(&[Vec<u32>], &mut Scratch) -> std::result::Result<Vec<T>, ModelError> + Sync,
) -> Result<Vec<T>> {
    in_runs(items, threads, |run| {
        let mut scratch = Scratch::default();
        let mut answers = Vec::with_capacity(run.len());
        for batch in run.chunks(BATCH_ITEMS) {
            answers.extend(answer(batch, &mut scratch)?);
        }
        Ok(answers)
    })
}
