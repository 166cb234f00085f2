//! Asks heads about the flows of a batch: one bench for each thread that runs the model.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trafficllm_heads::{Answers, FlowInput, Needs, Station, TaskInput};
use trafficllm_model::{Insight, Model as CoreModel, TaskVerdict, emptied};

use super::flow::task_input;
use super::{FLOWS_AT_ONCE, HeadSet, Stations};
use crate::engine::slot::{Slot, Ticket, reserve};
use crate::error::Error;

/// Where a flow of the batch stands.
#[derive(Clone, Debug)]
struct Place {
    ticket: usize,
    /// Numbers of its verdicts in the batch.
    verdicts: Range<usize>,
    /// The same in what heads are told.
    tasks: Range<usize>,
    /// It is of a detection.
    is_ordered: bool,
}

/// See the file's first line. Empty where the generation has no heads.
#[derive(Debug, Default)]
pub(in crate::engine) struct Bench {
    set: Option<Arc<HeadSet>>,
    insight: Insight,
    stations: Stations,
    places: Vec<Place>,
    /// Of each head, to the flows that it was just asked about.
    answers: Vec<Answers>,
    /// What each head has left of its part of the time for the batch; `None`: as long as it takes.
    left: Vec<Option<Duration>>,
    /// Empty between calls: only their memory is kept.
    tasks: Vec<TaskInput<'static>>,
    flows: Vec<FlowInput<'static>>,
}

impl Bench {
    /// Takes the heads of a generation, and makes room for batches of so many items and flows.
    pub(in crate::engine) fn prepare(
        &mut self,
        set: Option<&Arc<HeadSet>>,
        core: &CoreModel,
        items: usize,
        flows: usize,
    ) -> Result<(), Error> {
        *self = Self::default();
        let Some(set) = set else {
            return Ok(());
        };
        self.insight = Insight::new(set.needs.has(Needs::HIDDEN), set.needs.has(Needs::TASKS));
        self.insight.try_reserve(core, items)?;
        reserve("heads", &mut self.places, flows)?;
        reserve("heads", &mut self.tasks, FLOWS_AT_ONCE * core.tasks().len())?;
        reserve("heads", &mut self.flows, FLOWS_AT_ONCE)?;
        reserve("heads", &mut self.left, set.heads.len())?;
        for head in &set.heads {
            let mut answers = Answers::default();
            let labels = head.guard.about().labels.len();
            let reserved = answers.try_reserve(FLOWS_AT_ONCE, labels);
            reserved.map_err(|_| Error::Memory {
                what: "answers of a head",
                bytes: FLOWS_AT_ONCE * labels * size_of::<f32>(),
            })?;
            self.answers.push(answers);
            let station = || Station::new(Arc::clone(&head.guard), Arc::clone(&set.conditions));
            self.stations.push((!head.is_stateful()).then(station));
        }
        self.set = Some(Arc::clone(set));
        Ok(())
    }

    /// Starts the heads that have not begun on this thread.
    pub(in crate::engine) fn start(&mut self) {
        for station in self.stations.iter_mut().flatten() {
            // Where it fails this is counted, and the first flow tries again.
            let _counted = station.prepare();
        }
    }

    /// What is to be learnt of the model for the heads; `None` where that is nothing.
    pub(in crate::engine) fn insight(&mut self) -> Option<&mut Insight> {
        let set = self.set.as_ref()?;
        let needs = set.needs;
        let is_needed = needs.has(Needs::HIDDEN) || needs.has(Needs::TASKS);
        is_needed.then_some(&mut self.insight)
    }

    /// Notes a flow of the batch, with the numbers of its verdicts.
    pub(in crate::engine) fn place(&mut self, ticket: usize, slot: &Slot, verdicts: Range<usize>) {
        let part = slot.heads.as_ref().filter(|heads| heads.is_filled);
        if let Some(part) = part.filter(|_| self.set.is_some()) {
            self.places.push(Place {
                ticket,
                verdicts,
                tasks: 0..0,
                is_ordered: part.is_ordered,
            });
        }
    }

    /// Asks all heads about the flows that were noted, and gives the slots the answers.
    pub(in crate::engine) fn judge(&mut self, batch: &mut [Ticket], verdicts: &[TaskVerdict]) {
        let Some(set) = self.set.clone() else {
            return;
        };
        // A batch has flows of hosts, or those of detections, which have all the time that heads want.
        let is_patient = self.places.iter().any(|place| place.is_ordered);
        let time = (!is_patient).then(|| time_for_heads(&set, batch, &self.places));
        self.left.clear();
        self.left.resize(set.heads.len(), time.flatten());
        let mut start = 0;
        while start < self.places.len() {
            let end = self.places.len().min(start + FLOWS_AT_ONCE);
            self.ask(&set, batch, verdicts, start..end);
            self.answer(&set, batch, verdicts, start..end);
            start = end;
        }
        self.places.clear();
    }

    /// Forgets flows that were noted, of a batch that failed.
    pub(in crate::engine) fn forget_places(&mut self) {
        self.places.clear();
    }

    fn ask(
        &mut self,
        set: &HeadSet,
        batch: &[Ticket],
        verdicts: &[TaskVerdict],
        places: Range<usize>,
    ) {
        let Self {
            insight,
            stations,
            answers,
            left,
            ..
        } = self;
        let places = &mut self.places[places];
        let mut tasks: Vec<TaskInput<'_>> = std::mem::take(&mut self.tasks);
        if set.needs.has(Needs::TASKS) {
            for place in &mut *places {
                let start = tasks.len();
                let own = place.verdicts.clone();
                tasks.extend(
                    own.map(|number| task_input(&verdicts[number], insight.scores(number))),
                );
                tasks[start..].sort_unstable_by_key(|task| task.task);
                place.tasks = start..tasks.len();
            }
        }
        let part = |place: &Place| {
            batch[place.ticket]
                .slot()
                .and_then(|slot| slot.heads.as_deref())
        };
        let mut flows: Vec<FlowInput<'_>> = std::mem::take(&mut self.flows);
        flows.extend(places.iter().map(|place| {
            part(place).map_or_else(FlowInput::default, |part| {
                part.input(set, &tasks[place.tasks.clone()])
            })
        }));
        for (number, (head, station)) in set.heads.iter().zip(stations).enumerate() {
            for (flow, place) in flows.iter_mut().zip(&*places) {
                let own = place.verdicts.clone();
                let found = head.source.and_then(|source| {
                    let mut own = own.clone();
                    own.find(|&number| verdicts[number].task == source)
                });
                flow.hidden = found.map_or(&[], |number| insight.state(number));
            }
            let answers = &mut answers[number];
            answers.clear();
            let begin = left[number].map(|left| (Instant::now(), left));
            let until = begin.and_then(|(now, left)| now.checked_add(left));
            if let Some(station) = station {
                station.judge_until(until, &flows, answers);
            } else {
                let is_later = |place: &Place| part(place).is_some_and(|part| part.is_ordered);
                let flows = flows.iter().zip(&*places);
                let flows = flows.map(|(flow, place)| (!is_later(place)).then_some(flow));
                set.ask_shared(number, until, flows, answers);
            }
            if let Some((begin, before)) = begin {
                left[number] = Some(before.saturating_sub(begin.elapsed()));
            }
        }
        self.flows = emptied(flows);
        self.tasks = emptied(tasks);
    }

    fn answer(
        &mut self,
        set: &HeadSet,
        batch: &mut [Ticket],
        verdicts: &[TaskVerdict],
        places: Range<usize>,
    ) {
        for (index, place) in self.places[places].iter().enumerate() {
            let slot = batch[place.ticket].slot_mut();
            let Some((part, sorted)) = slot.and_then(|slot| {
                let sorted = &slot.verdicts;
                slot.heads.as_deref_mut().map(|part| (part, sorted))
            }) else {
                continue;
            };
            for (answer, answers) in part.answers.iter_mut().zip(&self.answers) {
                answer.set(answers.get(index));
            }
            part.answered = set.heads.len();
            if part.is_ordered {
                part.keep(set, &self.insight, verdicts, place.verdicts.clone(), sorted);
            }
        }
    }

    /// Bytes that the heads at work here can take.
    pub(in crate::engine) fn head_bytes(&self) -> usize {
        self.set.as_ref().map_or(0, |set| set.bench_bytes())
    }

    /// Bytes held beside.
    pub(in crate::engine) fn bytes(&self) -> usize {
        self.insight.bytes()
            + self.places.capacity() * size_of::<Place>()
            + self.tasks.capacity() * size_of::<TaskInput<'_>>()
            + self.flows.capacity() * size_of::<FlowInput<'_>>()
            + self.left.capacity() * size_of::<Option<Duration>>()
    }
}

/// What each head has of the time that these flows can wait; `None`: they can wait as long as it takes.
fn time_for_heads(set: &HeadSet, batch: &[Ticket], places: &[Place]) -> Option<Duration> {
    let slots = places.iter().filter_map(|place| batch[place.ticket].slot());
    let deadline = slots.filter_map(|slot| slot.deadline).min();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let time = set.batch_time.into_iter().chain(left).min()?;
    Some(time / u32::try_from(set.heads.len().max(1)).unwrap_or(u32::MAX))
}
