//! Flows and requests of one model run, packed without padding.

use std::sync::Arc;

use trafficllm_model::{Item, ModelError, Scratch, TaskVerdict};

use crate::limits::BATCH_SUBJECTS_MAX;
use crate::model::Model;
use crate::outcome::Subject;

/// Indices of the chosen tasks, ascending.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) flow: Vec<usize>,
    pub(super) request: Vec<usize>,
}

impl Selection {
    /// All chosen tasks, ascending.
    pub(super) fn all(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.flow.iter().chain(&self.request).copied().collect();
        all.sort_unstable();
        all
    }
}

/// Which tasks a run of tokens is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The tokens of a flow: all flow tasks share one run of the base.
    Flow,
    /// The tokens of a request.
    Request,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BatchItem {
    /// Index into [`Batch::subjects`].
    pub(super) subject: usize,
    kind: Kind,
    /// Where the item's tokens end in [`Batch::tokens`]; they start where those of the item before end.
    end: usize,
}

/// Work for one model run, and where its answers belong.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Number of the batch in its engine, from 0.
    pub(super) sequence: u64,
    /// Source and subject, in the order of the output.
    pub(super) subjects: Vec<(usize, Subject)>,
    /// The items of one subject stand together.
    pub(super) items: Vec<BatchItem>,
    tokens: Vec<u32>,
}

impl Batch {
    pub(super) fn push_subject(&mut self, source: usize, subject: Subject) {
        self.subjects.push((source, subject));
    }

    /// Adds tokens for the subject that was pushed last.
    pub(super) fn push_item(&mut self, kind: Kind, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.items.push(BatchItem {
            subject: self.subjects.len().saturating_sub(1),
            kind,
            end: self.tokens.len(),
        });
    }

    /// Whether the batch has enough work in it.
    pub(super) fn is_full(&self, batch_tokens: usize) -> bool {
        self.tokens.len() >= batch_tokens || self.subjects.len() >= BATCH_SUBJECTS_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    fn clear(&mut self) {
        self.subjects.clear();
        self.items.clear();
        self.tokens.clear();
    }
}

/// A batch with its answers.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) batch: Batch,
    /// In the order of [`Batch::items`].
    pub(super) verdicts: Vec<TaskVerdict>,
}

impl Done {
    /// The emptied batch, for reuse of its memory.
    pub(super) fn into_empty_batch(mut self) -> Batch {
        self.batch.clear();
        self.batch
    }
}

/// A model with the buffers of one thread.
pub(super) struct Classifier {
    model: Arc<Model>,
    selection: Arc<Selection>,
    scratch: Scratch,
}

impl Classifier {
    pub(super) fn new(model: Arc<Model>, selection: Arc<Selection>) -> Self {
        Self {
            model,
            selection,
            scratch: Scratch::default(),
        }
    }

    pub(super) fn run(&mut self, batch: Batch) -> Result<Done, ModelError> {
        let mut start = 0;
        let mut items = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            let tasks = match item.kind {
                Kind::Flow => &self.selection.flow,
                Kind::Request => &self.selection.request,
            };
            items.push(Item {
                tokens: &batch.tokens[start..item.end],
                tasks,
            });
            start = item.end;
        }
        let mut verdicts = Vec::new();
        if !items.is_empty() {
            self.model
                .core()
                .classify(&items, &mut self.scratch, &mut verdicts)?;
        }
        drop(items);
        Ok(Done { batch, verdicts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_full_at_its_limits_and_not_before() {
        let mut by_tokens = Batch::default();
        assert!(by_tokens.is_empty());
        by_tokens.push_subject(0, Subject::Request(0));
        by_tokens.push_item(Kind::Request, &[1; 99]);
        assert!(!by_tokens.is_full(100) && !by_tokens.is_empty());
        by_tokens.push_item(Kind::Request, &[1]);
        assert!(by_tokens.is_full(100));
        let mut by_subjects = Batch::default();
        for line in 1..=BATCH_SUBJECTS_MAX as u64 {
            assert!(!by_subjects.is_full(100));
            by_subjects.push_subject(0, Subject::Request(line));
        }
        assert!(
            by_subjects.is_full(100),
            "subjects without tokens come out too"
        );
    }

    #[test]
    fn an_item_belongs_to_the_subject_before_it() {
        let mut batch = Batch::default();
        for (line, items) in [(0, 2), (1, 0), (2, 1)] {
            batch.push_subject(0, Subject::Request(line));
            (0..items).for_each(|_| batch.push_item(Kind::Flow, &[1, 2]));
        }
        let subjects: Vec<usize> = batch.items.iter().map(|item| item.subject).collect();
        assert_eq!(subjects, [0, 0, 2]);
        let emptied = Done {
            batch,
            verdicts: Vec::new(),
        }
        .into_empty_batch();
        assert!(emptied.is_empty() && emptied.items.is_empty() && emptied.tokens.is_empty());
    }
}
