//! What a bundle knows of labelled flows.

use trafficllm_model::{Insight, Item, Model, Scratch};
use trafficllm_traffic::token::{EncodeScratch, Encoder};

use crate::data::TaskData;
use crate::error::{Result, TrainError};
use crate::threads::in_runs;
use crate::tokenizer;

/// Flows of one batch.
const BATCH: usize = 32;

/// Hidden states and scores, by item.
pub(super) struct Examined {
    /// For each source task: `[items, hidden]`.
    pub(super) states: Vec<Vec<Vec<f32>>>,
    /// The scores of all labels of the task itself; empty where the bundle does not have it.
    pub(super) own_scores: Vec<Vec<f32>>,
}

/// Runs the model over all flows.
pub(super) fn examine(
    model: &Model,
    encoder: &Encoder,
    flows: &TaskData,
    sources: &[usize],
    own: Option<usize>,
    threads: usize,
) -> Result<Examined> {
    let mut scratch = EncodeScratch::default();
    let mut tokens = Vec::with_capacity(flows.items.len());
    for item in &flows.items {
        tokens.push(tokenizer::encode(encoder, &item.content, &mut scratch)?);
    }
    let mut tasks: Vec<usize> = sources.iter().copied().chain(own).collect();
    tasks.sort_unstable();
    tasks.dedup();
    let place = |task: usize| tasks.iter().position(|&asked| asked == task);
    let rows = in_runs(&tokens, threads, |run: &[Vec<u32>]| {
        let (mut scratch, mut verdicts) = (Scratch::default(), Vec::new());
        let mut insight = Insight::new(true, true);
        let mut rows = Vec::with_capacity(run.len());
        for batch in run.chunks(BATCH) {
            let items: Vec<Item<'_>> = batch
                .iter()
                .map(|tokens| Item {
                    tokens,
                    tasks: &tasks,
                })
                .collect();
            model.classify_with(&items, &mut scratch, &mut verdicts, &mut insight)?;
            for item in 0..batch.len() {
                let at = |task| place(task).map(|place| item * tasks.len() + place);
                let states = sources.iter().filter_map(|&task| at(task));
                let states: Vec<Vec<f32>> = states
                    .map(|number| insight.state(number).to_vec())
                    .collect();
                let scores = own
                    .and_then(at)
                    .map(|number| insight.scores(number).to_vec());
                rows.push((states, scores.unwrap_or_default()));
            }
        }
        Ok::<_, TrainError>(rows)
    })?;
    let mut found = Examined {
        states: vec![Vec::with_capacity(rows.len()); sources.len()],
        own_scores: Vec::new(),
    };
    for (states, scores) in rows {
        for (all, state) in found.states.iter_mut().zip(states) {
            all.push(state);
        }
        if own.is_some() {
            found.own_scores.push(scores);
        }
    }
    Ok(found)
}
