//! From items to verdicts. Whatever a batch needs beside its answers is kept from call to call: once the buffers have grown,
//! nothing is allocated.

use super::{Insight, Item, Model, Task, TaskLogits, TaskVerdict};
use crate::calibration::softmax;
use crate::error::ModelError;
use crate::labels::{LabelTrie, Step, highest};
use crate::memory::{self, try_hold};
use crate::transformer::{self, BatchSizes, Query, Sequence, TransformerError};

/// What errors call the buffers of a batch.
const BUFFERS: &str = "buffers of a batch";

/// Buffers of [`Model::classify`]; one per thread, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    transformer: transformer::Scratch,
    states: Vec<f32>,
    logits: Vec<f32>,
    /// Empty between calls: only their memory is kept.
    queries: Vec<Query<'static>>,
    sequences: Vec<Sequence<'static>>,
    pending: Round,
    next: Round,
}

impl Scratch {
    /// Makes room for every batch of at most `items` items that have at most `tokens` tokens in all and ask each task of the model at
    /// most once: [`Model::classify`] then allocates nothing, whatever they hold.
    ///
    /// # Errors
    /// [`ModelError::Memory`].
    pub fn try_reserve(
        &mut self,
        model: &Model,
        tokens: usize,
        items: usize,
    ) -> Result<(), ModelError> {
        let (tasks, hidden) = (model.tasks(), model.config().hidden);
        let longest = tokens.min(model.item_tokens_max());
        let query_rows = tasks.iter().map(Task::rows_max);
        let query_rows_max = query_rows.clone().max().unwrap_or(0);
        let prefix_tokens = tasks.iter().map(|task| task.prefix.prefix_tokens);
        let queries = items * tasks.len();
        let sizes = BatchSizes {
            // Labels of several words run their sequence again, so that tokens do not bound the rows: only chunks do.
            rows: usize::MAX,
            sequence_rows: longest + query_rows.sum::<usize>(),
            positions: longest + query_rows_max,
            tokens: longest,
            query_rows: query_rows_max,
            queries,
            prefixes: tasks.len(),
            prefix_tokens: prefix_tokens.max().unwrap_or(0),
            lora: tasks.iter().any(|task| task.lora.is_some()),
        };
        let transformer = &mut self.transformer;
        let reserved = transformer.try_reserve(model.transformer(), &sizes);
        reserved.map_err(|error| forward_error(&error))?;
        let children = tasks.iter().map(|task| task.trie.children_max());
        try_hold(BUFFERS, &mut self.states, queries * hidden)?;
        try_hold(BUFFERS, &mut self.logits, children.max().unwrap_or(0))?;
        try_hold(BUFFERS, &mut self.queries, queries)?;
        try_hold(BUFFERS, &mut self.sequences, queries.max(items))?;
        let deep = tasks.iter().filter(|task| task.trie.depth() > 1);
        let rows = deep.clone().map(Task::rows_max).sum::<usize>();
        for round in [&mut self.pending, &mut self.next] {
            // One row more than a label ever has: a round makes room before it knows which labels need no further word.
            let labels = items * deep.clone().count();
            round.try_reserve(labels, (items * rows + labels) * hidden)?;
        }
        Ok(())
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.states.capacity() + self.logits.capacity();
        self.transformer.bytes()
            + floats * size_of::<f32>()
            + self.queries.capacity() * size_of::<Query<'_>>()
            + self.sequences.capacity() * size_of::<Sequence<'_>>()
            + self.pending.bytes()
            + self.next.bytes()
    }
}

/// The labels that need one more word.
#[derive(Debug, Default)]
struct Round {
    labels: Vec<Pending>,
    /// `[rows of all labels, hidden]`: each label has its task's query rows and those of the words chosen so far.
    rows: Vec<f32>,
}

impl Round {
    /// Makes room for so many labels, and for so many values of all their rows.
    fn try_reserve(&mut self, labels: usize, values: usize) -> Result<(), ModelError> {
        try_hold(BUFFERS, &mut self.labels, labels)?;
        try_hold(BUFFERS, &mut self.rows, values)
    }

    fn clear(&mut self) {
        self.labels.clear();
        self.rows.clear();
    }

    fn bytes(&self) -> usize {
        self.labels.capacity() * size_of::<Pending>() + self.rows.capacity() * size_of::<f32>()
    }
}

/// A label that is still being decoded.
#[derive(Clone, Copy, Debug)]
struct Pending {
    item: usize,
    task: usize,
    /// Where its verdict goes.
    verdict: usize,
    node: usize,
    score: f32,
    /// Where its rows stand in [`Round::rows`]; nowhere before the first word.
    rows_start: usize,
    rows_end: usize,
}

impl Model {
    /// Classifies items as one batch. `verdicts` is cleared and gets one entry per item and task,
    /// in the order of the call. The same item gets the same verdict, whatever else is in the
    /// batch.
    ///
    /// Nothing is allocated once `scratch` ([`Scratch::try_reserve`]) and `verdicts` have room.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an item without tokens, with too many, with an id outside the
    /// vocabulary or with a task that the model does not have; [`ModelError::Memory`]; `verdicts` is
    /// then empty.
    pub fn classify(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        verdicts: &mut Vec<TaskVerdict>,
    ) -> Result<(), ModelError> {
        self.decide(items, scratch, verdicts, None)
    }

    /// As [`Model::classify`], and tells what else the model knows of each verdict: the same verdicts, at the cost of copying what is
    /// asked for.
    ///
    /// # Errors
    /// As [`Model::classify`]; `insight` is then empty as well.
    pub fn classify_with(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        verdicts: &mut Vec<TaskVerdict>,
        insight: &mut Insight,
    ) -> Result<(), ModelError> {
        insight.clear();
        self.decide(items, scratch, verdicts, Some(&mut *insight))
            .inspect_err(|_| insight.clear())
    }

    fn decide(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        verdicts: &mut Vec<TaskVerdict>,
        mut insight: Option<&mut Insight>,
    ) -> Result<(), ModelError> {
        verdicts.clear();
        self.run_queries(items, scratch)?;
        let Scratch {
            states,
            logits,
            pending,
            ..
        } = &mut *scratch;
        let hidden = self.config().hidden;
        let deep = pairs(items).map(|(_, task)| &self.tasks[task]);
        let deep = deep.filter(|task| task.trie.depth() > 1);
        let rows = deep.clone().map(Task::rows_max).sum::<usize>();
        pending.clear();
        pending.try_reserve(deep.count(), rows * hidden)?;
        try_hold("verdicts", verdicts, pairs(items).count())?;
        if let Some(insight) = &mut insight {
            let tasks = pairs(items).map(|(_, task)| &self.tasks[task]);
            insight.begin(hidden, states, tasks)?;
        }
        for ((item, task), state) in pairs(items).zip(states.chunks_exact(hidden)) {
            let verdict = verdicts.len();
            verdicts.push(TaskVerdict {
                item,
                task,
                label: 0,
                score: 0.0,
                abstained: true,
            });
            let start = Pending {
                item,
                task,
                verdict,
                node: LabelTrie::ROOT,
                score: 1.0,
                rows_start: 0,
                rows_end: 0,
            };
            let query_rows = &self.tasks[task].query_embedding;
            self.step(start, query_rows, state, logits, verdicts, pending);
            if let Some(insight) = &mut insight {
                // The step has left probabilities there.
                insight.take_scores(&self.tasks[task], logits);
            }
        }
        while !scratch.pending.labels.is_empty() {
            self.decode_further(items, scratch, verdicts)
                .inspect_err(|_| verdicts.clear())?;
        }
        Ok(())
    }

    /// The logits at the root of each task's label trie, for calibration. `out` is cleared and gets
    /// one entry per item and task.
    ///
    /// # Errors
    /// As [`Model::classify`].
    pub fn classify_logits(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        out: &mut Vec<TaskLogits>,
    ) -> Result<(), ModelError> {
        out.clear();
        self.run_queries(items, scratch)?;
        try_hold("logits", out, pairs(items).count())?;
        let states = scratch.states.chunks_exact(self.config().hidden);
        for ((item, task), state) in pairs(items).zip(states) {
            let mut logits = Vec::new();
            let children = self.tasks[task].trie.children(LabelTrie::ROOT);
            self.tasks[task].logits(children, state, &mut logits);
            out.push(TaskLogits { item, task, logits });
        }
        Ok(())
    }

    /// Checks the items and leaves the final state of every item's every query, `[queries,
    /// hidden]`, in the scratch.
    fn run_queries(&self, items: &[Item<'_>], scratch: &mut Scratch) -> Result<(), ModelError> {
        for (index, item) in items.iter().enumerate() {
            self.check_item(index, item)?;
        }
        try_hold(BUFFERS, &mut scratch.queries, pairs(items).count())?;
        try_hold(BUFFERS, &mut scratch.sequences, items.len())?;
        let mut queries: Vec<Query<'_>> = std::mem::take(&mut scratch.queries);
        queries.extend(pairs(items).map(|(_, task)| {
            let Task {
                prefix,
                query_embedding,
                lora,
                ..
            } = &self.tasks[task];
            Query {
                prefix,
                embeddings: query_embedding,
                lora: lora.as_ref(),
            }
        }));
        let mut sequences: Vec<Sequence<'_>> = std::mem::take(&mut scratch.sequences);
        let mut rest = queries.as_slice();
        sequences.extend(items.iter().map(|item| {
            let queries;
            (queries, rest) = rest.split_at(item.tasks.len());
            Sequence {
                beginning: None,
                tokens: item.tokens,
                queries,
            }
        }));
        let result = self.forward(&sequences, &mut scratch.transformer, &mut scratch.states);
        scratch.sequences = emptied(sequences);
        scratch.queries = emptied(queries);
        result
    }

    /// Runs one more row for every label that is not decoded yet. The sequence runs again from its
    /// start: deep tries are rare and their labels short, so keeping keys and values between rounds
    /// would cost more memory than it saves time.
    fn decode_further(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        verdicts: &mut [TaskVerdict],
    ) -> Result<(), ModelError> {
        let Scratch {
            transformer,
            states,
            logits,
            pending,
            next,
            ..
        } = scratch;
        next.clear();
        let more = pending.labels.len();
        let hidden = self.config().hidden;
        // One more row each, but never more than its task's longest label has.
        let values = pending.labels.iter().map(|label| {
            let longest = self.tasks[label.task].rows_max() * hidden;
            (label.rows_end - label.rows_start + hidden).min(longest)
        });
        next.try_reserve(more, values.sum())?;
        try_hold(BUFFERS, &mut scratch.queries, more)?;
        try_hold(BUFFERS, &mut scratch.sequences, more)?;
        let mut queries: Vec<Query<'_>> = std::mem::take(&mut scratch.queries);
        queries.extend(pending.labels.iter().map(|label| Query {
            prefix: &self.tasks[label.task].prefix,
            embeddings: &pending.rows[label.rows_start..label.rows_end],
            lora: self.tasks[label.task].lora.as_ref(),
        }));
        let mut sequences: Vec<Sequence<'_>> = std::mem::take(&mut scratch.sequences);
        let labels = pending.labels.iter().zip(&queries);
        sequences.extend(labels.map(|(label, query)| Sequence {
            beginning: None,
            tokens: items[label.item].tokens,
            queries: std::slice::from_ref(query),
        }));
        let result = self.forward(&sequences, transformer, states);
        scratch.sequences = emptied(sequences);
        scratch.queries = emptied(queries);
        result?;
        let states = states.chunks_exact(self.config().hidden);
        for (&label, state) in pending.labels.iter().zip(states) {
            let rows = &pending.rows[label.rows_start..label.rows_end];
            self.step(label, rows, state, logits, verdicts, next);
        }
        std::mem::swap(pending, next);
        Ok(())
    }

    /// Takes the likeliest child: either a label, which completes the verdict, or a node, from
    /// where decoding has to go on. `rows` are those that the state comes from.
    fn step(
        &self,
        mut label: Pending,
        rows: &[f32],
        state: &[f32],
        logits: &mut Vec<f32>,
        verdicts: &mut [TaskVerdict],
        next: &mut Round,
    ) {
        let task = &self.tasks[label.task];
        let children = task.trie.children(label.node);
        task.logits(children, state, logits);
        // The choice is taken on the logits: far behind the comma two different logits can have
        // equal probabilities.
        let best = highest(logits);
        softmax(logits, task.temperature);
        label.score *= logits[best];
        match children[best].next {
            Step::Label(index) => {
                let verdict = &mut verdicts[label.verdict];
                verdict.label = index;
                // Absurd weights overflow to a score that is no number: such a verdict knows
                // nothing, whatever the threshold.
                let is_number = label.score.is_finite();
                verdict.score = if is_number { label.score } else { 0.0 };
                verdict.abstained = !is_number || label.score < task.threshold;
            }
            Step::Node(node) => {
                label.node = node;
                label.rows_start = next.rows.len();
                next.rows.extend_from_slice(rows);
                let word = children[best].word as usize;
                next.rows
                    .extend_from_slice(&task.label_embedding[word * state.len()..][..state.len()]);
                label.rows_end = next.rows.len();
                next.labels.push(label);
            }
        }
    }

    /// Replaces `states` by the final states of all queries, `[queries, hidden]`.
    fn forward(
        &self,
        sequences: &[Sequence<'_>],
        scratch: &mut transformer::Scratch,
        states: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        states.clear();
        self.transformer
            .forward(sequences, scratch, states)
            .map_err(|error| forward_error(&error))?;
        let queries: usize = sequences
            .iter()
            .map(|sequence| sequence.queries.len())
            .sum();
        let expected = queries * self.config().hidden;
        if states.len() != expected {
            let message = format!(
                "expected {expected} values of hidden state, found {}",
                states.len()
            );
            return Err(ModelError::Forward { message });
        }
        Ok(())
    }

    fn check_item(&self, index: usize, item: &Item<'_>) -> Result<(), ModelError> {
        let input = |field, expected: String, found: String| ModelError::Input {
            item: index,
            field,
            expected,
            found,
        };
        if item.tokens.is_empty() {
            return Err(input("tokens", "at least 1".to_owned(), "0".to_owned()));
        }
        let tokens_max = self.item_tokens_max();
        if item.tokens.len() > tokens_max {
            return Err(input(
                "tokens",
                format!("at most {tokens_max}"),
                item.tokens.len().to_string(),
            ));
        }
        let vocabulary = self.config().vocabulary;
        if let Some(id) = item.tokens.iter().find(|id| **id as usize >= vocabulary) {
            return Err(input(
                "token id",
                format!("below {vocabulary}"),
                id.to_string(),
            ));
        }
        if let Some(task) = item.tasks.iter().find(|task| **task >= self.tasks.len()) {
            return Err(input(
                "task",
                format!("below {}", self.tasks.len()),
                task.to_string(),
            ));
        }
        Ok(())
    }
}

fn forward_error(error: &TransformerError) -> ModelError {
    let memory = match error {
        TransformerError::Kernels(source) => memory::refused(source),
        _ => None,
    };
    memory.unwrap_or_else(|| ModelError::Forward {
        message: error.to_string(),
    })
}

/// The index of every item with each of its tasks.
fn pairs(items: &[Item<'_>]) -> impl Iterator<Item = (usize, usize)> + Clone {
    let with_tasks = items.iter().enumerate();
    with_tasks.flat_map(|(index, item)| item.tasks.iter().map(move |task| (index, *task)))
}

/// A vector without entries in the memory of one whose entries borrowed something, such as the [`Item`]s of a batch that is
/// over: the standard library collects into the vector that it consumes. Should it ever stop doing so, the result is the same
/// and the test that counts allocations fails.
#[must_use]
pub fn emptied<From, To>(mut used: Vec<From>) -> Vec<To> {
    used.clear();
    used.into_iter().filter_map(|_| None).collect()
}
