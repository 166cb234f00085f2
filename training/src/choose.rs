//! The score by which checkpoints are chosen: mean macro-F1 over the tasks, on the data for choosing.

use crate::batches::{Draw, Sequence};
use crate::engine::highest;
use crate::error::Result;
use crate::metrics::Confusion;
use crate::network::{Network, NetworkError};
use crate::phase::pack;
use crate::threads::in_runs;

/// Tokens that a thread takes at once.
const BATCH_TOKENS: usize = 4096;

/// The data for choosing of one task.
#[derive(Clone, Copy, Debug)]
pub struct ChoosingSet<'a> {
    /// The task's labels.
    pub labels: &'a [String],
    /// Encoded items with their targets.
    pub sequences: &'a [Sequence],
}

/// Mean macro-F1 of the network over the tasks, in its own precision, in `0..=1`.
///
/// # Errors
/// Where the network refuses a sequence.
pub fn mean_macro_f1(network: &Network, sets: &[ChoosingSet<'_>], threads: usize) -> Result<f64> {
    let mut sum = 0.0;
    for set in sets {
        let mut table = Confusion::new(set.labels);
        for (truth, answer) in answers(network, set.sequences, threads)? {
            table.record(truth, answer, false);
        }
        sum += table.scores().macro_f1;
    }
    Ok(sum / sets.len().max(1) as f64)
}

/// True and best label of each sequence.
fn answers(
    network: &Network,
    sequences: &[Sequence],
    threads: usize,
) -> Result<Vec<(usize, usize)>> {
    Ok(in_runs(sequences, threads, |run| answer_run(network, run))?)
}

fn answer_run(
    network: &Network,
    sequences: &[Sequence],
) -> std::result::Result<Vec<(usize, usize)>, NetworkError> {
    let mut answers = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|sequence| {
            tokens += sequence.tokens.len();
            tokens <= BATCH_TOKENS
        });
        let (batch, later) = rest.split_at(fits.count().max(1));
        rest = later;
        let draws: Vec<Draw> = batch
            .iter()
            .map(|sequence| Draw {
                inputs: sequence.tokens.clone(),
                originals: Vec::new(),
                target: sequence.target,
            })
            .collect();
        let logits = network.label_logits(&pack(&draws, 0.0, 0))?;
        for (sequence, row) in batch.iter().zip(logits) {
            let best = highest(&row);
            answers.push((sequence.target.map_or(0, |target| target.label), best));
        }
    }
    Ok(answers)
}
