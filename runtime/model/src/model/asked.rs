//! The questions of a round, and the pass that answers them.

use super::scratch::{BUFFERS, Scratch, emptied};
use super::{Item, Model, Task, forward_error};
use crate::error::ModelError;
use crate::labels::LabelTrie;
use crate::limits::LABEL_DEPTH_MAX;
use crate::memory::try_hold;
use crate::transformer::{Query, Sequence};

/// One question: which word comes next in the label of an item, as a task reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) item: usize,
    pub(super) task: usize,
    /// Where the verdict goes.
    pub(super) verdict: usize,
    /// The node of the task's label trie that the words lead to.
    pub(super) node: usize,
    /// The probability of the words.
    pub(super) score: f32,
    words: [u32; LABEL_DEPTH_MAX],
    words_count: usize,
}

impl Asked {
    /// The question for the first word.
    pub(super) fn first(item: usize, task: usize, verdict: usize) -> Self {
        Self {
            item,
            task,
            verdict,
            node: LabelTrie::ROOT,
            score: 1.0,
            words: [0; LABEL_DEPTH_MAX],
            words_count: 0,
        }
    }

    /// The words chosen so far.
    pub(super) fn words(&self) -> &[u32] {
        &self.words[..self.words_count]
    }

    /// Adds a word that leads to this node. A path of the trie has no more words than there is room for.
    pub(super) fn choose(&mut self, word: u32, node: usize) {
        self.words[self.words_count] = word;
        self.words_count += 1;
        self.node = node;
    }

    /// Values of the query's rows where they have to be laid out: the task's own and those of the words.
    fn row_values(&self, task: &Task, hidden: usize) -> usize {
        match self.words_count {
            0 => 0,
            words => (task.query_tokens + words) * hidden,
        }
    }
}

impl Model {
    /// Leaves the answer to every question of `scratch.pending` in the scratch; `wants_states` says whether a device has to give
    /// hidden states as well.
    ///
    /// A label of several words runs its sequence again from the start for each: deep tries are rare and their labels short, so keeping
    /// keys and values between rounds would cost more memory than it saves time.
    pub(super) fn answer(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        wants_states: bool,
    ) -> Result<(), ModelError> {
        scratch.answers.clear();
        if scratch.pending.is_empty() || self.answer_on_device(items, scratch, wants_states)? {
            return Ok(());
        }
        self.answer_here(items, scratch)
    }

    #[cfg(not(feature = "cuda"))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "with a device there is something to run"
    )]
    fn answer_on_device(
        &self,
        _items: &[Item<'_>],
        _scratch: &mut Scratch,
        _wants_states: bool,
    ) -> Result<bool, ModelError> {
        Ok(false)
    }

    /// On the processor.
    fn answer_here(&self, items: &[Item<'_>], scratch: &mut Scratch) -> Result<(), ModelError> {
        let hidden = self.config().hidden;
        let pending = scratch.pending.as_slice();
        let row_values = |asked: &Asked| asked.row_values(&self.tasks[asked.task], hidden);
        let values = pending.iter().map(row_values).sum();
        try_hold(BUFFERS, &mut scratch.rows, values)?;
        try_hold(BUFFERS, &mut scratch.queries, pending.len())?;
        try_hold(
            BUFFERS,
            &mut scratch.sequences,
            sequences_of(pending).count(),
        )?;
        scratch.rows.clear();
        for asked in pending.iter().filter(|asked| !asked.words().is_empty()) {
            let task = &self.tasks[asked.task];
            scratch.rows.extend_from_slice(&task.query_embedding);
            for &word in asked.words() {
                let row = &task.label_embedding[word as usize * hidden..][..hidden];
                scratch.rows.extend_from_slice(row);
            }
        }
        let mut rows = scratch.rows.as_slice();
        let mut queries: Vec<Query<'_>> = std::mem::take(&mut scratch.queries);
        queries.extend(pending.iter().map(|asked| {
            let task = &self.tasks[asked.task];
            let own;
            (own, rows) = rows.split_at(row_values(asked));
            let embeddings = if own.is_empty() {
                &task.query_embedding
            } else {
                own
            };
            Query {
                prefix: &task.prefix,
                embeddings,
                lora: task.lora.as_ref(),
            }
        }));
        let mut rest = queries.as_slice();
        let mut sequences: Vec<Sequence<'_>> = std::mem::take(&mut scratch.sequences);
        sequences.extend(sequences_of(pending).map(|asked| {
            let queries;
            (queries, rest) = rest.split_at(asked.len());
            let tokens = asked
                .first()
                .map_or(&[][..], |asked| items[asked.item].tokens);
            Sequence {
                beginning: None,
                tokens,
                queries,
            }
        }));
        let states = &mut scratch.answers.states;
        let result = self
            .transformer
            .forward(&sequences, &mut scratch.transformer, states);
        scratch.sequences = emptied(sequences);
        scratch.queries = emptied(queries);
        result.map_err(|error| forward_error(&error))?;
        let expected = scratch.pending.len() * hidden;
        if scratch.answers.states.len() != expected {
            let found = scratch.answers.states.len();
            let message = format!("expected {expected} values of hidden state, found {found}");
            return Err(ModelError::Forward { message });
        }
        Ok(())
    }
}

/// Consecutive questions about the same item share its sequence.
pub(super) fn sequences_of(asked: &[Asked]) -> impl Iterator<Item = &[Asked]> {
    asked.chunk_by(|one, next| one.item == next.item)
}
