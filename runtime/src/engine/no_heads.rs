//! What stands for heads in a build without them: nothing is loaded, nothing is asked.

use std::ops::Range;
use std::sync::Arc;

use trafficllm_model::{Insight, Model as CoreModel, TaskVerdict};
use trafficllm_traffic::{Flow, FlowConfig};

use super::generation::Selection;
use super::slot::{Slot, Ticket};
use crate::error::Error;
use crate::heads::{HeadOptions, HeadStatus};
use crate::model::Model;
use crate::outcome::Verdict;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeadSizes;

impl HeadSizes {
    #[cfg(test)]
    pub(super) const NONE: Self = Self;

    pub(super) fn heads(&self) -> usize {
        0
    }

    pub(super) fn bytes(&self) -> usize {
        0
    }

    pub(super) fn with(self, _other: Self) -> Self {
        self
    }
}

/// There is none.
#[derive(Debug)]
pub(super) enum HeadSet {}

impl HeadSet {
    pub(super) fn load(
        (options, _flows, _workers): (&HeadOptions, &FlowConfig, usize),
        (model, selection): (&Model, &Selection),
        _before: Option<&Self>,
    ) -> Result<Option<Arc<Self>>, Error> {
        if let Some(file) = options.modules.iter().chain(&options.libraries).next() {
            return Err(Error::Head(format!(
                "{}: this build has no heads",
                file.path.display()
            )));
        }
        let mut bundled = model.heads().iter().map(|head| &head.manifest.name);
        if let Some(head) = bundled.find(|name| options.uses_bundled && selection.has_head(name)) {
            if options.requires_bundled {
                return Err(Error::Head(format!("{head}: this build has no heads")));
            }
            tracing::warn!(
                head,
                "the bundle has heads, and this build has none: they do not answer"
            );
        }
        Ok(None)
    }

    pub(super) fn forgive(&self) {
        match *self {}
    }

    pub(super) fn bench_bytes(&self) -> usize {
        match *self {}
    }

    pub(super) fn bytes(&self) -> usize {
        match *self {}
    }

    pub(super) fn count(&self) -> usize {
        match *self {}
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    pub(super) fn sizes(&self) -> HeadSizes {
        match *self {}
    }

    pub(super) fn name_verdicts<'a>(&'a self, _part: &'a SlotHeads, _named: &mut Vec<Verdict<'a>>) {
        match *self {}
    }

    pub(super) fn statuses(&self) -> Vec<HeadStatus> {
        match *self {}
    }

    pub(super) fn set_enabled(&self, _name: &str, _is_enabled: bool) -> bool {
        match *self {}
    }
}

/// There is none.
#[derive(Debug)]
pub(super) enum SlotHeads {}

impl SlotHeads {
    pub(super) fn fit(_part: &mut Option<Box<Self>>, _sizes: HeadSizes) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn fill(&mut self, _set: &HeadSet, _flow: &Flow, _is_ordered: bool) {
        match *self {}
    }

    pub(super) fn clear(&mut self) {
        match *self {}
    }

    pub(super) fn forget_answers(&mut self) {
        match *self {}
    }

    pub(super) fn answered(&self) -> usize {
        match *self {}
    }
}

#[derive(Debug, Default)]
pub(super) struct Bench {
    _nothing: (),
}

impl Bench {
    pub(super) fn prepare(
        &mut self,
        _set: Option<&Arc<HeadSet>>,
        _core: &CoreModel,
        _items: usize,
        _flows: usize,
    ) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn start(&mut self) {}

    pub(super) fn insight(&mut self) -> Option<&mut Insight> {
        None
    }

    pub(super) fn place(&mut self, _ticket: usize, _slot: &Slot, _verdicts: Range<usize>) {}

    pub(super) fn judge(&mut self, _batch: &mut [Ticket], _verdicts: &[TaskVerdict]) {}

    pub(super) fn forget_places(&mut self) {}

    pub(super) fn head_bytes(&self) -> usize {
        0
    }

    pub(super) fn bytes(&self) -> usize {
        0
    }
}

/// There is none.
#[derive(Debug)]
pub(super) enum OrderedHeads {}

impl OrderedHeads {
    pub(super) fn new(_set: &Arc<HeadSet>) -> Option<Self> {
        None
    }

    pub(super) fn bytes(&self) -> usize {
        match *self {}
    }

    pub(super) fn judge(&mut self, _slot: &mut Slot) {
        match *self {}
    }
}
