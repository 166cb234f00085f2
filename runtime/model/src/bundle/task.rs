//! What the manifest says of each task, and of the instructions.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::MANIFEST_NAME;
use super::lists::{list, lists, number};
use super::manifest::{FileReference, check_fraction, check_text, invalid};
use crate::error::{ModelError, check_limit};
use crate::limits;

/// What a task reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Any flow.
    Flow,
    /// Requests: text.
    Request,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskManifest {
    /// The name, such as `botnet_detection`.
    pub name: String,
    /// What it reads.
    pub kind: TaskKind,
    /// The labels, in the order in which verdicts count them.
    #[serde(deserialize_with = "list")]
    pub labels: Vec<String>,
    /// For each label its path in the label trie: rows of the adapter's `label.weight`.
    #[serde(deserialize_with = "lists")]
    pub label_words: Vec<Vec<u32>>,
    /// The adapter, safetensors.
    pub adapter: FileReference,
    /// Logits are divided by this before softmax.
    #[serde(deserialize_with = "number")]
    pub temperature: f32,
    /// A verdict with a lower score abstains.
    #[serde(deserialize_with = "number")]
    pub threshold: f32,
    /// What was measured: free fields.
    #[serde(default)]
    pub metrics: Value,
    /// Number of the adapter, from 1: every change of it counts on.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub version: u32,
    /// What data the adapter was made from, where it was made after the bundle: free fields.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data_statement: Value,
    /// Other adapters, which can be put to work again: in the order in which they were put aside.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "list"
    )]
    pub set_aside: Vec<AdapterVersion>,
}

/// A head: a WebAssembly module that judges flows beside the tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadManifest {
    /// The name of its verdicts' task, as the module says it.
    pub name: String,
    /// The module, as it is or precompiled.
    pub module: FileReference,
    /// The task whose hidden state it is given; empty: the first flow task that is asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task: String,
    /// Fuel for each flow.
    #[serde(default = "head_fuel")]
    pub fuel_per_flow: u64,
    /// Bytes of memory of each instance.
    #[serde(default = "head_memory")]
    pub memory_bytes_max: u64,
    /// It keeps what it knows from flow to flow; the operator has to allow that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub state: bool,
}

fn head_fuel() -> u64 {
    1_000_000
}

fn head_memory() -> u64 {
    1 << 20
}

impl HeadManifest {
    pub(super) fn check(&self, field: &str, tasks: &[TaskManifest]) -> Result<(), ModelError> {
        let name_max = limits::TASK_NAME_BYTES_MAX;
        check_text(&format!("{field}.name"), &self.name, name_max)?;
        let is_fine = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if !self.name.bytes().all(is_fine) {
            return Err(invalid(
                format!("{field}.name"),
                "a-z, 0-9 and _",
                &self.name,
            ));
        }
        let is_flow_task =
            |task: &TaskManifest| task.kind == TaskKind::Flow && task.name == self.task;
        if !self.task.is_empty() && !tasks.iter().any(is_flow_task) {
            let expected = "a flow task of the bundle";
            return Err(invalid(format!("{field}.task"), expected, &self.task));
        }
        for (name, limit, found) in [
            ("fuel_per_flow", limits::HEAD_FUEL_MAX, self.fuel_per_flow),
            (
                "memory_bytes_max",
                limits::HEAD_MEMORY_BYTES_MAX,
                self.memory_bytes_max,
            ),
        ] {
            if !(1..=limit).contains(&found) {
                let expected = format!("1 to {limit}");
                return Err(invalid(format!("{field}.{name}"), expected, found));
            }
        }
        Ok(())
    }
}

/// All of a task that changes with its adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterVersion {
    /// As [`TaskManifest::version`].
    pub version: u32,
    /// As [`TaskManifest::labels`].
    #[serde(deserialize_with = "list")]
    pub labels: Vec<String>,
    /// As [`TaskManifest::label_words`].
    #[serde(deserialize_with = "lists")]
    pub label_words: Vec<Vec<u32>>,
    /// As [`TaskManifest::adapter`].
    pub adapter: FileReference,
    /// As [`TaskManifest::temperature`].
    #[serde(deserialize_with = "number")]
    pub temperature: f32,
    /// As [`TaskManifest::threshold`].
    #[serde(deserialize_with = "number")]
    pub threshold: f32,
    /// As [`TaskManifest::metrics`].
    #[serde(default)]
    pub metrics: Value,
    /// As [`TaskManifest::data_statement`].
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data_statement: Value,
}

fn first_version() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_first_version(version: &u32) -> bool {
    *version == first_version()
}

/// What makes the base tell what a free text asks for (TrafficLLM, section on dual-stage tuning: stage 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructionManifest {
    /// What can be asked for, and [`NO_INTENTION`]: its labels.
    #[serde(deserialize_with = "list")]
    pub labels: Vec<String>,
    /// As [`TaskManifest::label_words`].
    #[serde(deserialize_with = "lists")]
    pub label_words: Vec<Vec<u32>>,
    /// Which tasks of the bundle answer a label; one that is not listed has no adapter here.
    #[serde(default)]
    pub answered_by: BTreeMap<String, Vec<String>>,
    /// The adapter, safetensors.
    pub adapter: FileReference,
    /// Logits are divided by this before softmax.
    #[serde(deserialize_with = "number")]
    pub temperature: f32,
    /// A text with a lower score is not understood.
    #[serde(deserialize_with = "number")]
    pub threshold: f32,
    /// What was measured: free fields.
    #[serde(default)]
    pub metrics: Value,
}

/// The name under which self-tests and errors know [`Manifest::instruction`]; no task has it.
pub const INSTRUCTION: &str = "instruction";
/// The label of a text that asks for none of the tasks.
pub const NO_INTENTION: &str = "none";

impl InstructionManifest {
    /// The same as a task that reads text.
    #[must_use]
    pub fn as_task(&self) -> TaskManifest {
        TaskManifest {
            name: INSTRUCTION.to_owned(),
            kind: TaskKind::Request,
            labels: self.labels.clone(),
            label_words: self.label_words.clone(),
            adapter: self.adapter.clone(),
            temperature: self.temperature,
            threshold: self.threshold,
            metrics: Value::Null,
            version: first_version(),
            data_statement: Value::Null,
            set_aside: Vec::new(),
        }
    }

    pub(super) fn check(&self, tasks: &[TaskManifest]) -> Result<(), ModelError> {
        check_limit(
            MANIFEST_NAME,
            "instruction.labels",
            limits::INTENTIONS_MAX,
            self.labels.len() as u64,
        )?;
        self.as_task().check(INSTRUCTION)?;
        let field = format!("{INSTRUCTION}.answered_by");
        for (label, answering) in &self.answered_by {
            if !self.labels.contains(label) || label == NO_INTENTION {
                return Err(invalid(&field, "labels that a task can answer", label));
            }
            let of_label = format!("{field}.{label}");
            let limit = limits::TASKS_MAX;
            check_limit(MANIFEST_NAME, &of_label, limit, answering.len() as u64)?;
            if (1..answering.len()).any(|place| answering[..place].contains(&answering[place])) {
                let expected = "tasks that come once";
                return Err(invalid(of_label, expected, answering.join(", ")));
            }
            if answering.is_empty() {
                return Err(invalid(format!("{field}.{label}"), "at least 1 task", 0));
            }
            let known = |name: &String| tasks.iter().any(|task| task.name == *name);
            if let Some(unknown) = answering.iter().find(|name| !known(name)) {
                return Err(invalid(
                    format!("{field}.{label}"),
                    "tasks of the bundle",
                    unknown,
                ));
            }
        }
        Ok(())
    }
}

impl TaskManifest {
    pub(super) fn check(&self, field: &str) -> Result<(), ModelError> {
        let name_field = format!("{field}.name");
        check_limit(
            MANIFEST_NAME,
            format!("length of {name_field}"),
            limits::TASK_NAME_BYTES_MAX,
            self.name.len() as u64,
        )?;
        let name_fits = !self.name.is_empty()
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !name_fits {
            return Err(invalid(
                name_field,
                "lower-case letters, digits and '_'",
                &self.name,
            ));
        }
        check_limit(
            MANIFEST_NAME,
            format!("{field}.set_aside"),
            limits::ADAPTERS_SET_ASIDE_MAX,
            self.set_aside.len() as u64,
        )?;
        let mut versions = BTreeSet::from([self.version]);
        for (index, aside) in self.set_aside.iter().enumerate() {
            let field = format!("{field}.set_aside[{index}]");
            if !versions.insert(aside.version) {
                let expected = "a number that comes once";
                return Err(invalid(format!("{field}.version"), expected, aside.version));
            }
            check_answers(
                &field,
                &aside.labels,
                &aside.label_words,
                aside.temperature,
                aside.threshold,
            )?;
        }
        check_answers(
            field,
            &self.labels,
            &self.label_words,
            self.temperature,
            self.threshold,
        )
    }

    /// The adapters with their versions, the active one first.
    pub fn adapters(&self) -> impl Iterator<Item = (u32, &FileReference)> {
        let aside = self.set_aside.iter();
        std::iter::once((self.version, &self.adapter))
            .chain(aside.map(|aside| (aside.version, &aside.adapter)))
    }

    /// The active adapter with all that changes with it.
    #[must_use]
    pub fn active(&self) -> AdapterVersion {
        AdapterVersion {
            version: self.version,
            labels: self.labels.clone(),
            label_words: self.label_words.clone(),
            adapter: self.adapter.clone(),
            temperature: self.temperature,
            threshold: self.threshold,
            metrics: self.metrics.clone(),
            data_statement: self.data_statement.clone(),
        }
    }

    /// Puts another adapter to work; the active one is set aside.
    pub fn activate(&mut self, version: AdapterVersion) {
        self.set_aside.push(self.active());
        let AdapterVersion {
            version,
            labels,
            label_words,
            adapter,
            temperature,
            threshold,
            metrics,
            data_statement,
        } = version;
        (self.version, self.adapter) = (version, adapter);
        (self.labels, self.label_words) = (labels, label_words);
        (self.temperature, self.threshold) = (temperature, threshold);
        (self.metrics, self.data_statement) = (metrics, data_statement);
    }

    /// Puts an adapter that was set aside to work again: `version`, or the one that was set aside last. Whether there is such a one.
    pub fn roll_back(&mut self, version: Option<u32>) -> bool {
        let wanted = |aside: &AdapterVersion| version.is_none_or(|wanted| wanted == aside.version);
        let Some(place) = self.set_aside.iter().rposition(wanted) else {
            return false;
        };
        let aside = self.set_aside.remove(place);
        self.activate(aside);
        true
    }
}

fn check_answers(
    field: &str,
    labels: &[String],
    label_words: &[Vec<u32>],
    temperature: f32,
    threshold: f32,
) -> Result<(), ModelError> {
    check_limit(
        MANIFEST_NAME,
        format!("{field}.labels"),
        limits::LABELS_MAX,
        labels.len() as u64,
    )?;
    if labels.is_empty() {
        return Err(invalid(format!("{field}.labels"), "at least 1", 0));
    }
    let mut seen = BTreeSet::new();
    for label in labels {
        check_text(&format!("{field}.labels"), label, limits::LABEL_BYTES_MAX)?;
        if !seen.insert(label) {
            return Err(invalid(
                format!("{field}.labels"),
                "labels that come once",
                label,
            ));
        }
    }
    if label_words.len() != labels.len() {
        let expected = format!("{} paths, one per label", labels.len());
        return Err(invalid(
            format!("{field}.label_words"),
            expected,
            label_words.len(),
        ));
    }
    if !limits::TEMPERATURE_RANGE.contains(&temperature) {
        let range = limits::TEMPERATURE_RANGE;
        let expected = format!("{} to {}", range.start(), range.end());
        return Err(invalid(
            format!("{field}.temperature"),
            expected,
            temperature,
        ));
    }
    check_fraction(&format!("{field}.threshold"), threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u32, label: &str) -> AdapterVersion {
        AdapterVersion {
            version: number,
            labels: vec![label.to_owned()],
            label_words: vec![vec![0]],
            adapter: FileReference::new(format!("adapters/a.v{number}.safetensors")),
            temperature: 1.0,
            threshold: 0.5,
            metrics: Value::from(number),
            data_statement: Value::from(label),
        }
    }

    /// A task with its first adapter.
    fn first() -> TaskManifest {
        InstructionManifest {
            labels: vec!["first".to_owned()],
            label_words: vec![vec![0]],
            answered_by: BTreeMap::new(),
            adapter: FileReference::new("adapters/a.safetensors"),
            temperature: 2.0,
            threshold: 0.25,
            metrics: Value::Null,
        }
        .as_task()
    }

    #[test]
    fn adapters_are_put_to_work_and_set_aside_whole() {
        let mut task = first();
        let first = task.active();
        assert!(!task.roll_back(None), "there is none to go back to");
        task.activate(version(2, "second"));
        task.activate(version(3, "third"));
        assert_eq!(task.active(), version(3, "third"));
        assert_eq!(task.set_aside, [first.clone(), version(2, "second")]);
        assert!(task.roll_back(None));
        assert_eq!(task.active(), version(2, "second"));
        assert_eq!(task.set_aside, [first.clone(), version(3, "third")]);
        assert!(task.roll_back(Some(1)) && !task.roll_back(Some(9)));
        assert_eq!(task.active(), first);
        let versions: Vec<u32> = task.adapters().map(|(version, _)| version).collect();
        assert_eq!(versions, [1, 3, 2]);
    }

    #[test]
    fn a_first_version_is_written_as_before_there_were_any() {
        let task = first();
        let json = serde_json::to_value(&task).expect("JSON");
        for absent in ["version", "data_statement", "set_aside"] {
            assert!(json.get(absent).is_none(), "{absent}");
        }
        let again: TaskManifest = serde_json::from_value(json).expect("a task");
        assert_eq!(again, task);
    }
}
