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
