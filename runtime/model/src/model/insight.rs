//! What the model knows of an item beside its verdicts, for those who decide further.

use super::{Model, Task};
use crate::error::ModelError;
use crate::memory::try_hold;

/// What errors call the buffers here.
const BUFFERS: &str = "hidden states and scores";

/// What [`Model::classify_with`] gives beside the verdicts; kept from call to call.
///
/// A task reads an item with its query rows behind the item's last token; the hidden state is that of the last of these rows in the last
/// layer, after the last norm: what the first word of the task's label is decided from. It is f32 and has no unit. The rows of the
/// tokens themselves have no final state, as the last layer runs for query rows only; nor do the rows of further label words count here.
/// Tasks have different states of the same item.
#[derive(Debug, Default)]
pub struct Insight {
    wants_states: bool,
    wants_scores: bool,
    hidden: usize,
    /// `[verdicts, hidden]`.
    states: Vec<f32>,
    /// The scores of all verdicts, one behind the other.
    scores: Vec<f32>,
    /// `[verdicts]`: where the scores of each end.
    scores_ends: Vec<usize>,
}

impl Insight {
    /// One that asks for hidden states, for scores of all labels, or for both.
    #[must_use]
    pub fn new(wants_states: bool, wants_scores: bool) -> Self {
        Self {
            wants_states,
            wants_scores,
            ..Self::default()
        }
    }

    /// Whether hidden states are asked for.
    pub(super) fn wants_states(&self) -> bool {
        self.wants_states
    }

    /// Makes room for so many items, each of which asks each task of the model at most once: [`Model::classify_with`] then allocates
    /// nothing for what is asked here.
    ///
    /// # Errors
    /// [`ModelError::Memory`].
    pub fn try_reserve(&mut self, model: &Model, items: usize) -> Result<(), ModelError> {
        let tasks = model.tasks();
        let labels = tasks.iter().map(|task| task.labels().len()).sum::<usize>();
        self.hold(items * tasks.len(), items * labels, model.config().hidden)
    }

    fn hold(&mut self, verdicts: usize, scores: usize, hidden: usize) -> Result<(), ModelError> {
        if self.wants_states {
            try_hold(BUFFERS, &mut self.states, verdicts * hidden)?;
        }
        if self.wants_scores {
            try_hold(BUFFERS, &mut self.scores, scores)?;
            try_hold(BUFFERS, &mut self.scores_ends, verdicts)?;
        }
        Ok(())
    }

    /// The hidden state `[hidden]` that the verdict of this number in the last call comes from; empty where states were not asked for.
    #[must_use]
    pub fn state(&self, verdict: usize) -> &[f32] {
        let start = verdict.saturating_mul(self.hidden);
        let end = start.saturating_add(self.hidden);
        self.states.get(start..end).unwrap_or_default()
    }

    /// Calibrated probabilities of all labels `[labels]` for the verdict of this number in the last call; empty where scores were not
    /// asked for, or where a label of the task has more than one word, so that only the way to the best one is decided.
    #[must_use]
    pub fn scores(&self, verdict: usize) -> &[f32] {
        let before = verdict.checked_sub(1);
        let start = before.map_or(Some(0), |before| self.scores_ends.get(before).copied());
        let end = self.scores_ends.get(verdict).copied();
        let range = start.zip(end).map(|(start, end)| start..end);
        range
            .and_then(|range| self.scores.get(range))
            .unwrap_or_default()
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.states.capacity() + self.scores.capacity()) * size_of::<f32>()
            + self.scores_ends.capacity() * size_of::<usize>()
    }

    /// Forgets the last call; takes the states of a new one, `[verdicts, hidden]`, and makes room for its scores.
    pub(super) fn begin<'t>(
        &mut self,
        hidden: usize,
        states: &[f32],
        tasks: impl Iterator<Item = &'t Task> + Clone,
    ) -> Result<(), ModelError> {
        self.clear();
        let labels = tasks.clone().map(|task| task.labels().len()).sum();
        self.hold(tasks.count(), labels, hidden)?;
        self.hidden = hidden;
        if self.wants_states {
            self.states.extend_from_slice(states);
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.states.clear();
        self.scores.clear();
        self.scores_ends.clear();
    }

    /// Takes the probabilities at the root of the next verdict's label trie.
    pub(super) fn take_scores(&mut self, task: &Task, probabilities: &[f32]) {
        if !self.wants_scores {
            return;
        }
        // With one word per label a child's index is its label's.
        if task.trie().depth() == 1 {
            let is_number = |score: &f32| score.is_finite();
            let scores = probabilities.iter().copied();
            // Absurd weights overflow; the verdict then says 0 as well.
            self.scores
                .extend(scores.map(|score| if is_number(&score) { score } else { 0.0 }));
        }
        self.scores_ends.push(self.scores.len());
    }
}
