//! From items to verdicts. Once the buffers have grown, nothing is allocated.

use super::answers::Answer;
use super::asked::Asked;
use super::scratch::{BUFFERS, Scratch};
use super::{Insight, Item, Model, TaskLogits, TaskVerdict};
use crate::calibration::softmax;
use crate::error::ModelError;
use crate::labels::{LabelTrie, Step, highest};
use crate::memory::try_hold;

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
        let wants_states = insight
            .as_ref()
            .is_some_and(|insight| insight.wants_states());
        self.ask_first(items, scratch)?;
        self.answer(items, scratch, wants_states)?;
        try_hold("verdicts", verdicts, scratch.pending.len())?;
        if let Some(insight) = &mut insight {
            let tasks = pairs(items).map(|(_, task)| &self.tasks[task]);
            insight.begin(self.config().hidden, &scratch.answers.states, tasks)?;
        }
        verdicts.extend(scratch.pending.iter().map(|asked| TaskVerdict {
            item: asked.item,
            task: asked.task,
            label: 0,
            score: 0.0,
            abstained: true,
        }));
        self.step(scratch, verdicts, insight)
            .inspect_err(|_| verdicts.clear())?;
        while !scratch.pending.is_empty() {
            self.answer(items, scratch, false)
                .and_then(|()| self.step(scratch, verdicts, None))
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
        self.ask_first(items, scratch)?;
        self.answer(items, scratch, true)?;
        try_hold("logits", out, scratch.pending.len())?;
        let states = scratch.answers.states.chunks_exact(self.config().hidden);
        for ((item, task), state) in pairs(items).zip(states) {
            let mut logits = Vec::new();
            let children = self.tasks[task].trie.children(LabelTrie::ROOT);
            self.tasks[task].logits(children, state, &mut logits);
            out.push(TaskLogits { item, task, logits });
        }
        Ok(())
    }

    /// Checks the items, and asks for the first word of every label.
    fn ask_first(&self, items: &[Item<'_>], scratch: &mut Scratch) -> Result<(), ModelError> {
        for (index, item) in items.iter().enumerate() {
            self.check_item(index, item)?;
        }
        #[cfg(feature = "cuda")]
        scratch.begin_batch();
        scratch.pending.clear();
        try_hold(BUFFERS, &mut scratch.pending, pairs(items).count())?;
        let first = pairs(items).enumerate();
        let first = first.map(|(verdict, (item, task))| Asked::first(item, task, verdict));
        scratch.pending.extend(first);
        Ok(())
    }

    /// Takes the likeliest child of every question's node: either a label, which completes the verdict, or a node, from where decoding has
    /// to go on. Leaves the questions for that.
    fn step(
        &self,
        scratch: &mut Scratch,
        verdicts: &mut [TaskVerdict],
        mut insight: Option<&mut Insight>,
    ) -> Result<(), ModelError> {
        let Scratch {
            answers,
            logits,
            pending,
            next,
            ..
        } = scratch;
        next.clear();
        let deep = |asked: &&Asked| self.tasks[asked.task].trie.depth() > 1;
        try_hold(BUFFERS, next, pending.iter().filter(deep).count())?;
        for (&asked, answer) in pending.iter().zip(answers.each(self.config().hidden)) {
            let task = &self.tasks[asked.task];
            let best = self.choose(&asked, answer, logits);
            if let Some(insight) = &mut insight {
                insight.take_scores(task, logits);
            }
            let mut asked = asked;
            asked.score *= logits[best];
            let child = task.trie.children(asked.node)[best];
            match child.next {
                Step::Label(index) => {
                    let verdict = &mut verdicts[asked.verdict];
                    verdict.label = index;
                    // Absurd weights overflow to a score that is no number: such a verdict knows
                    // nothing, whatever the threshold.
                    let is_number = asked.score.is_finite();
                    verdict.score = if is_number { asked.score } else { 0.0 };
                    verdict.abstained = !is_number || asked.score < task.threshold;
                }
                Step::Node(node) => {
                    asked.choose(child.word, node);
                    next.push(asked);
                }
            }
        }
        std::mem::swap(pending, next);
        Ok(())
    }

    /// The likeliest child of a question's node; leaves the probabilities of all children.
    fn choose(&self, asked: &Asked, answer: Answer<'_>, probabilities: &mut Vec<f32>) -> usize {
        let task = &self.tasks[asked.task];
        match answer {
            Answer::State(state) => {
                task.logits(task.trie.children(asked.node), state, probabilities);
                // The choice is taken on the logits: far behind the comma two different logits can have
                // equal probabilities.
                let best = highest(probabilities);
                softmax(probabilities, task.temperature);
                best
            }
            #[cfg(feature = "cuda")]
            Answer::Choice(best, given) => {
                probabilities.clear();
                probabilities.extend_from_slice(given);
                best
            }
        }
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

/// The index of every item with each of its tasks.
fn pairs(items: &[Item<'_>]) -> impl Iterator<Item = (usize, usize)> + Clone {
    let with_tasks = items.iter().enumerate();
    with_tasks.flat_map(|(index, item)| item.tasks.iter().map(move |task| (index, *task)))
}
