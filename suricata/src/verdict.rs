//! Verdicts as the plugin keeps them: numbers, with the model's names beside them once for all.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, TryLockError};

use crate::library::abi::{self, status};
use crate::library::{CallError, Model};

/// A task of a model, with its names ready for JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its name as the inside of a JSON text.
    json_name: String,
    /// Its labels, each as it is and as a JSON text.
    labels: Vec<(String, String)>,
}

impl Task {
    fn new(name: String, labels: Vec<String>) -> Self {
        let json_name = json_inside(&name);
        let labels = labels
            .into_iter()
            .map(|label| {
                let json = format!("\"{}\"", json_inside(&label));
                (label, json)
            })
            .collect();
        Self {
            name,
            json_name,
            labels,
        }
    }

    /// Its labels.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(|(label, _)| label.as_str())
    }

    /// The number of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<u16> {
        let found = self.labels().position(|label| label == name);
        found.and_then(|place| u16::try_from(place).ok())
    }
}

/// The names of one model.
#[derive(Debug)]
pub struct Names {
    /// Number of this list, from 1: no other has it.
    pub serial: u32,
    /// Identity of the model.
    pub model: String,
    /// Profile that makes tokens of flows.
    pub profile: String,
    /// Its tasks, in the model's order.
    pub tasks: Vec<Task>,
}

static SERIAL: AtomicU32 = AtomicU32::new(1);

impl Names {
    /// Reads the names of an open model.
    ///
    /// # Errors
    /// A defect of the library.
    pub fn of(model: &Model) -> Result<Self, CallError> {
        let info = model.describe()?;
        let mut tasks = Vec::new();
        for index in 0..info.tasks as usize {
            let task = model.task(index)?;
            let labels = (0..task.labels as usize).map(|label| model.label(index, label));
            let labels = labels.collect::<Result<Vec<_>, _>>()?;
            tasks.push(Task::new(abi::field_text(&task.name).to_owned(), labels));
        }
        Ok(Self::new(
            abi::field_text(&info.id).to_owned(),
            abi::field_text(&info.profile).to_owned(),
            tasks,
        ))
    }

    fn new(model: String, profile: String, tasks: Vec<Task>) -> Self {
        Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            model,
            profile,
            tasks,
        }
    }

    /// The number of a task.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<u16> {
        let found = self.tasks.iter().position(|task| task.name == name);
        found.and_then(|place| u16::try_from(place).ok())
    }

    /// For tests: a model with these tasks.
    #[cfg(test)]
    pub(crate) fn example(tasks: &[(&str, &[&str])]) -> Self {
        let tasks = tasks.iter().map(|(name, labels)| {
            let labels = labels.iter().map(|&label| label.to_owned());
            Task::new((*name).to_owned(), labels.collect())
        });
        Self::new(
            "0123456789abcdef".to_owned(),
            "clean".to_owned(),
            tasks.collect(),
        )
    }
}

/// The names of the models that were active, by identity: verdicts of the model before may still be under way.
#[derive(Debug, Default)]
pub struct KnownNames {
    models: RwLock<Vec<Arc<Names>>>,
}

/// Models whose names are kept.
const MODELS_KEPT: usize = 8;

impl KnownNames {
    /// Adds a model's names, before it can give verdicts. A model that is known moves to the end with the names it had.
    pub fn add(&self, names: Arc<Names>) {
        if let Ok(mut models) = self.models.write() {
            let known = models.iter().position(|known| known.model == names.model);
            let names = known.map_or(names, |place| models.remove(place));
            models.push(names);
            let surplus = models.len().saturating_sub(MODELS_KEPT);
            models.drain(..surplus);
        }
    }

    /// Takes a model back that could not be activated: the one before is the newest again.
    pub fn take_back(&self, model: &str, newest: Option<Arc<Names>>) {
        if let Ok(mut models) = self.models.write() {
            models.retain(|known| known.model != model);
        }
        if let Some(newest) = newest {
            self.add(newest);
        }
    }

    /// The names of the newest model.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Names>> {
        self.models.read().ok()?.last().map(Arc::clone)
    }

    #[cfg(test)]
    fn of(&self, model: &str) -> Option<Arc<Names>> {
        let models = self.models.read().ok()?;
        let found = models.iter().rev().find(|known| known.model == model);
        found.map(Arc::clone)
    }

    /// The models, if nobody changes them at the moment.
    fn try_models(&self) -> Result<RwLockReadGuard<'_, Vec<Arc<Names>>>, Changing> {
        match self.models.try_read() {
            Ok(models) => Ok(models),
            // They are whole: nothing that changes them panics half way.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Changing),
        }
    }
}

/// The names of the models are being changed: another moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changing;

/// What became of a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There are verdicts.
    Done,
    /// No task of the model applies to the flow.
    NotApplicable,
    /// Its deadline passed before its turn came.
    Expired,
    /// The engine ended before its turn came.
    Abandoned,
    /// Lost to a defect, which the engine has survived.
    Failed,
}

impl State {
    fn of(status: i32) -> Self {
        match status {
            status::OK | status::ABSTAINED => Self::Done,
            status::NOT_APPLICABLE => Self::NotApplicable,
            status::EXPIRED => Self::Expired,
            status::ABANDONED => Self::Abandoned,
            _ => Self::Failed,
        }
    }

    /// Whether the model has looked at the flow: what is not that takes the place of no verdict.
    #[must_use]
    pub fn is_judged(self) -> bool {
        matches!(self, Self::Done | Self::NotApplicable)
    }

    /// The word for it in EVE.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotApplicable => "not_applicable",
            Self::Expired => "expired",
            Self::Abandoned => "abandoned",
            Self::Failed => "failed",
        }
    }
}

/// One task's verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Number of the task in its model.
    pub task: u16,
    /// Number of the label in its task.
    pub label: u16,
    /// The calibrated probability of the label.
    pub score: f32,
    /// Whether the model, or `min-score`, does not trust it.
    pub is_abstained: bool,
}

/// The verdict of a head, which is no task of the model: with its names, ready for JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadJudgement {
    /// The head's name.
    json_name: String,
    /// The label; empty where there is no verdict.
    json_label: String,
    /// The score of the label.
    pub score: f32,
    /// Whether the head, or `min-score`, does not trust it.
    pub is_abstained: bool,
    /// Why, in the head's words.
    json_evidence: String,
    /// Why there is no verdict.
    json_reason: String,
}

impl HeadJudgement {
    fn of(entry: &abi::Verdict, min_score: f32) -> Self {
        let inside = |field: &[u8]| json_inside(abi::field_text(field));
        Self {
            json_name: inside(&entry.task_name),
            json_label: inside(&entry.label_name),
            score: entry.score,
            is_abstained: entry.status == status::ABSTAINED || entry.score < min_score,
            json_evidence: inside(&entry.evidence),
            json_reason: inside(&entry.reason),
        }
    }

    fn write_json(&self, out: &mut String) {
        let name = &self.json_name;
        // Writing to a String does not fail.
        if self.json_reason.is_empty() {
            let label = &self.json_label;
            let _ = write!(out, ",\"{name}_label\":\"{label}\"");
        }
        let _ = write!(
            out,
            ",\"{name}_score\":{:.4},\"{name}_abstained\":{}",
            self.score, self.is_abstained
        );
        for (key, text) in [
            ("evidence", &self.json_evidence),
            ("reason", &self.json_reason),
        ] {
            if !text.is_empty() {
                let _ = write!(out, ",\"{name}_{key}\":\"{text}\"");
            }
        }
    }
}

/// What the model says of a flow as far as it had come.
#[derive(Clone, Debug)]
pub struct FlowVerdict {
    /// The names of the model that judged.
    pub names: Arc<Names>,
    /// What became of it.
    pub state: State,
    /// Packets that the flow had.
    pub packets: u32,
    /// Number of the model, from 1.
    pub generation: u64,
    /// From submission to the end of its batch.
    pub latency_us: u64,
    /// One for each task that applies.
    pub judgements: Vec<Judgement>,
    /// One for each head.
    pub heads: Vec<HeadJudgement>,
}

impl FlowVerdict {
    /// Keeps an answer of the library: its entries, none of which is missing.
    ///
    /// `None` if it is of no known model. Not on a packet's way: see [`FlowVerdict::try_of`].
    #[must_use]
    pub fn of(
        answer: &[abi::Verdict],
        packets: u32,
        known: &KnownNames,
        min_score: f32,
    ) -> Option<Self> {
        Self::named(answer, packets, &known.models.read().ok()?, min_score)
    }

    /// The same where nobody waits.
    ///
    /// # Errors
    /// [`Changing`]: the names cannot be read at the moment.
    pub fn try_of(
        answer: &[abi::Verdict],
        packets: u32,
        known: &KnownNames,
        min_score: f32,
    ) -> Result<Option<Self>, Changing> {
        let models = known.try_models()?;
        Ok(Self::named(answer, packets, &models, min_score))
    }

    /// A judgement that was asked for and will not come, of a model whose names are these.
    #[must_use]
    pub fn lost(names: Arc<Names>, packets: u32) -> Self {
        Self {
            names,
            state: State::Failed,
            packets,
            generation: 0,
            latency_us: 0,
            judgements: Vec::new(),
            heads: Vec::new(),
        }
    }

    fn named(
        answer: &[abi::Verdict],
        packets: u32,
        models: &[Arc<Names>],
        min_score: f32,
    ) -> Option<Self> {
        let first = answer.first()?;
        let model = abi::field_text(&first.model_id);
        // An answer without a verdict may be of no model.
        let is_nameless = State::of(first.status) != State::Done;
        let found = models.iter().rev().find(|known| known.model == model);
        let names = found.or_else(|| models.last().filter(|_| is_nameless))?;
        let names = Arc::clone(names);
        let judged = |entry: &&abi::Verdict| State::of(entry.status) == State::Done;
        let is_head = |entry: &&abi::Verdict| {
            entry.task as usize >= names.tasks.len() && entry.task_name[0] != 0
        };
        let heads = answer.iter().filter(judged).filter(is_head);
        let heads = heads.map(|entry| HeadJudgement::of(entry, min_score));
        let of_model = |entry: &&abi::Verdict| !is_head(entry);
        let judgements = answer.iter().filter(judged).filter(of_model);
        let judgements = judgements.map(|entry| Judgement {
            task: u16::try_from(entry.task).unwrap_or(u16::MAX),
            label: u16::try_from(entry.label).unwrap_or(u16::MAX),
            score: entry.score,
            is_abstained: entry.status == status::ABSTAINED || entry.score < min_score,
        });
        Some(Self {
            state: State::of(first.status),
            packets,
            generation: first.generation,
            latency_us: first.latency_us,
            judgements: judgements.collect(),
            heads: heads.collect(),
            names,
        })
    }

    /// The verdict on a task.
    #[must_use]
    pub fn on(&self, task: u16) -> Option<&Judgement> {
        self.judgements.iter().find(|found| found.task == task)
    }

    /// Writes the members of its JSON object, without braces: `"state":"done","final":true,...`. It is final if the flow had no
    /// packet after it that the model looks at.
    pub fn write_json(&self, out: &mut String, is_final: bool) {
        let Names { model, profile, .. } = &*self.names;
        // Writing to a String does not fail.
        let _ = write!(
            out,
            "\"state\":\"{}\",\"final\":{is_final},\"model\":\"{}\",\"profile\":\"{}\",\"generation\":{},\"packets\":{},\"latency_us\":{}",
            self.state.word(),
            json_inside(model),
            json_inside(profile),
            self.generation,
            self.packets,
            self.latency_us
        );
        let mut labels = String::new();
        for judgement in &self.judgements {
            let Some(task) = self.names.tasks.get(usize::from(judgement.task)) else {
                continue;
            };
            let Some((label, json_label)) = task.labels.get(usize::from(judgement.label)) else {
                continue;
            };
            let name = &task.json_name;
            let _ = write!(
                out,
                ",\"{name}_label\":{json_label},\"{name}_score\":{:.4},\"{name}_abstained\":{}",
                judgement.score, judgement.is_abstained
            );
            if !judgement.is_abstained {
                let comma = if labels.is_empty() { "" } else { "," };
                let _ = write!(labels, "{comma}\"{name}/{}\"", json_inside(label));
            }
        }
        for head in &self.heads {
            head.write_json(out);
            if !head.is_abstained {
                let comma = if labels.is_empty() { "" } else { "," };
                let (name, label) = (&head.json_name, &head.json_label);
                let _ = write!(labels, "{comma}\"{name}/{label}\"");
            }
        }
        if self.state == State::Done {
            let _ = write!(out, ",\"labels\":[{labels}]");
        }
    }
}

/// A text as it stands between the quotes of a JSON text.
#[must_use]
pub fn json_inside(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
