//! Heads that keep what they know, in a detection.

use std::sync::Arc;

use trafficllm_heads::{Answers, Needs, Station, TaskInput};
use trafficllm_model::emptied;

use super::flow::task_input;
use super::set::PlacedHead;
use super::{HeadSet, Stations};
use crate::engine::slot::Slot;

/// The heads that keep what they know, for one detection: they see its flows in the order of its outcomes.
#[derive(Debug)]
pub(in crate::engine) struct OrderedHeads {
    set: Arc<HeadSet>,
    stations: Stations,
    answers: Answers,
    /// Empty between calls: only its memory is kept.
    tasks: Vec<TaskInput<'static>>,
}

impl OrderedHeads {
    /// `None` where no head keeps anything.
    pub(in crate::engine) fn new(set: &Arc<HeadSet>) -> Option<Self> {
        let station = |head: &PlacedHead| {
            let station = || Station::new(Arc::clone(&head.guard), Arc::clone(&set.conditions));
            head.is_stateful().then(station)
        };
        let stations: Stations = set.heads.iter().map(station).collect();
        stations.iter().any(Option::is_some).then(|| Self {
            set: Arc::clone(set),
            stations,
            answers: Answers::default(),
            tasks: Vec::new(),
        })
    }

    /// Bytes that they can take.
    pub(in crate::engine) fn bytes(&self) -> usize {
        let heads = self.set.heads.iter().filter(|head| head.is_stateful());
        let bytes = heads.map(|head| head.guard.head().instance_bytes_max());
        bytes.fold(0, usize::saturating_add)
    }

    /// Asks them about a flow that the model and the other heads have judged.
    pub(in crate::engine) fn judge(&mut self, slot: &mut Slot) {
        let Self {
            set,
            stations,
            answers,
            ..
        } = self;
        let (verdicts, Some(part)) = (&slot.verdicts, slot.heads.as_deref_mut()) else {
            return;
        };
        if !part.is_filled || part.answered == 0 {
            return;
        }
        answers.clear();
        let mut tasks: Vec<TaskInput<'_>> = std::mem::take(&mut self.tasks);
        if set.ordered_needs.has(Needs::TASKS) {
            let numbered = verdicts.iter().enumerate();
            tasks.extend(
                numbered.map(|(number, verdict)| task_input(verdict, part.kept_scores(number))),
            );
        }
        let mut flow = part.input(set, &tasks);
        let mut states = 0;
        for (head, station) in set.heads.iter().zip(&mut *stations) {
            let Some(station) = station else { continue };
            flow.hidden = &[];
            if head.source.is_some() {
                flow.hidden = part.kept_state(states, set.hidden());
                states += 1;
            }
            station.judge(std::slice::from_ref(&flow), answers);
        }
        self.tasks = emptied(tasks);
        let mut answered = 0;
        for (answer, station) in part.answers.iter_mut().zip(&*stations) {
            if station.is_some() {
                answer.set(answers.get(answered));
                answered += 1;
            }
        }
    }
}
