//! What an adapter is tuned on and held against.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use serde_json::{Value, json};
use trafficllm_model::{AdapterVersion, FileReference, Model, TaskKind, TaskManifest};

use super::AdaptOptions;
use super::opened::Opened;
use crate::batches::Sequence;
use crate::data::{self, Split, TaskData};
use crate::engine;
use crate::error::{Result, TrainError};
use crate::metrics::{Confusion, Scores};
use crate::tokenizer;

/// The folder of adapters inside a bundle.
pub(super) const ADAPTERS: &str = "adapters/";

/// Best label of an item, and whether it abstained.
pub(super) type Answer = (usize, bool);

/// What an adapter is tuned on, out of one folder or two.
#[derive(Default)]
pub(super) struct Material {
    /// The labels, those that the task had first.
    pub(super) labels: Vec<String>,
    pub(super) kind: Option<TaskKind>,
    pub(super) train: Vec<Sequence>,
    pub(super) val: Vec<Sequence>,
    /// The folder of each item for choosing.
    val_folder: Vec<usize>,
    pub(super) folders: Vec<Folder>,
    groups: usize,
    /// Names of the groups of each split, and what the items of training carry as payload.
    seen: [BTreeSet<String>; 2],
    trained_on: HashSet<u64>,
    /// What the items for choosing carry, of the folders so far.
    held: Vec<Option<u64>>,
}

pub(super) struct Folder {
    pub(super) name: String,
    statement: Value,
}

impl Material {
    /// Nothing yet, for a task that a bundle has.
    pub(super) fn of_task(task: &TaskManifest) -> Self {
        Self {
            labels: task.labels.clone(),
            kind: Some(task.kind),
            ..Self::default()
        }
    }

    pub(super) fn read(
        &mut self,
        opened: &Opened,
        options: &AdaptOptions,
        folder: &Path,
        index: usize,
    ) -> Result<()> {
        let (encoder, recipe) = (&opened.encoder, &opened.recipe);
        let mut train = data::load(folder, &options.task, Split::Train)?;
        let mut val = data::load(folder, &options.task, Split::Val)?;
        let kind = match train.kind {
            data::TaskKind::Flow => TaskKind::Flow,
            data::TaskKind::Request | data::TaskKind::Instruction => TaskKind::Request,
        };
        if self.kind.is_some_and(|known| known != kind) {
            return Err(TrainError::BundleTask {
                path: folder.to_path_buf(),
                task: options.task.clone(),
                expected: format!("items of the task's kind, {:?}", self.kind.unwrap_or(kind)),
                found: format!("{kind:?}"),
            });
        }
        self.kind = Some(kind);
        self.check_apart(options, &train, &mut val)?;
        for label in &train.labels {
            if !self.labels.contains(label) {
                self.labels.push(label.clone());
            }
        }
        let mut statement = json!({
            "train_groups": train.groups.len(),
            "val_items": val.items.len(), "val_groups": val.groups.len(), "labels": train.labels,
        });
        for part in [&mut train, &mut val] {
            for item in &mut part.items {
                let label = &part.labels[item.label];
                // Every label of the folder was put there above.
                item.label = self
                    .labels
                    .iter()
                    .position(|known| known == label)
                    .unwrap_or(0);
                item.group += self.groups;
            }
            part.labels.clone_from(&self.labels);
        }
        let encoded = tokenizer::encode_train(encoder, &train, index, recipe, options.seed)?;
        statement["train_items"] = json!(encoded.len());
        self.train.extend(encoded);
        self.val
            .extend(tokenizer::encode_split(encoder, &val, Some(index))?);
        self.val_folder.resize(self.val.len(), self.folders.len());
        self.groups += train.groups.len() + val.groups.len();
        self.folders.push(Folder {
            name: folder.display().to_string(),
            statement,
        });
        Ok(())
    }

    /// What is trained on in one folder must not be held in the other, or the held items say nothing.
    fn check_apart(
        &mut self,
        options: &AdaptOptions,
        train: &TaskData,
        val: &mut TaskData,
    ) -> Result<()> {
        let groups = |data: &TaskData| data.groups.iter().cloned().collect::<BTreeSet<String>>();
        let (train_groups, val_groups) = (groups(train), groups(val));
        let [seen_train, seen_val] = &self.seen;
        let both = seen_train.intersection(&val_groups).next();
        if let Some(group) = both.or_else(|| seen_val.intersection(&train_groups).next()) {
            return Err(TrainError::GroupInTwoSplits {
                task: options.task.clone(),
                group: group.clone(),
                split: "val of the other folder".to_owned(),
            });
        }
        let payloads = |data: &TaskData| -> Vec<Option<u64>> {
            let items = data.items.iter();
            items
                .map(|item| item.content.payload_fingerprint())
                .collect()
        };
        let trained_before = std::mem::take(&mut self.trained_on);
        let known =
            |payload: &Option<u64>| payload.is_some_and(|one| trained_before.contains(&one));
        let before = val.items.len();
        val.items
            .retain(|item| !known(&item.content.payload_fingerprint()));
        let trained: HashSet<u64> = payloads(train).into_iter().flatten().collect();
        // Of the folder before, in the same way.
        let repeated = |payload: &Option<u64>| payload.is_some_and(|one| trained.contains(&one));
        let keep: Vec<bool> = self.held.iter().map(|payload| !repeated(payload)).collect();
        let dropped = keep.iter().filter(|keep| !**keep).count() + before - val.items.len();
        let mut place = keep.iter();
        self.val.retain(|_| place.next() == Some(&true));
        let mut place = keep.iter();
        self.val_folder.retain(|_| place.next() == Some(&true));
        let mut place = keep.iter();
        self.held.retain(|_| place.next() == Some(&true));
        if dropped > 0 {
            tracing::warn!(
                "{}: {dropped} held items left out: the other folder trains on the same payload",
                options.task
            );
        }
        self.held.extend(payloads(val));
        self.trained_on = trained_before.into_iter().chain(trained).collect();
        self.seen[0].extend(train_groups);
        self.seen[1].extend(val_groups);
        Ok(())
    }

    /// Whether there is something to learn of every label: what an adapter is not shown, it forgets.
    pub(super) fn check_labels(&self, folder: &Path) -> Result<()> {
        let has = |items: &[Sequence], label: usize| {
            let mut targets = items.iter().filter_map(|item| item.target);
            targets.any(|target| target.label == label)
        };
        let lacking = |items: &[Sequence]| -> Vec<&str> {
            let labels = self.labels.iter().enumerate();
            let lacking = labels.filter(|(label, _)| !has(items, *label));
            lacking.map(|(_, name)| name.as_str()).collect()
        };
        let untrained = lacking(&self.train);
        if !untrained.is_empty() {
            return Err(TrainError::LabelsUntrained {
                path: folder.to_path_buf(),
                labels: untrained.join(", "),
            });
        }
        if self.val.is_empty() {
            return Err(TrainError::DataEmpty {
                path: folder.to_path_buf(),
                expected: "held items: a split `val`",
            });
        }
        let unheld = lacking(&self.val);
        if !unheld.is_empty() {
            tracing::warn!(
                "no held items, so nothing is known of {}",
                unheld.join(", ")
            );
        }
        Ok(())
    }

    /// The kind of the items.
    pub(super) fn data_kind(&self) -> data::TaskKind {
        match self.kind {
            Some(TaskKind::Request) => data::TaskKind::Request,
            _ => data::TaskKind::Flow,
        }
    }

    /// The new adapter before it is calibrated.
    pub(super) fn version(&self, options: &AdaptOptions, version: u32) -> AdapterVersion {
        let mut statement = json!({
            "folders": self.folders.iter().map(|folder| &folder.statement).collect::<Vec<_>>(),
            "items_sha256": tokenizer::hash_sequences(self.train.iter().chain(&self.val)),
            "recipe": options.recipe,
            "seed": options.seed,
            "trainer": format!("trafficllm-train {}", env!("CARGO_PKG_VERSION")),
        });
        if let Some(note) = &options.note {
            statement["note"] = json!(note);
        }
        AdapterVersion {
            version,
            labels: self.labels.clone(),
            label_words: (0..self.labels.len() as u32)
                .map(|word| vec![word])
                .collect(),
            adapter: FileReference::new(format!(
                "{ADAPTERS}{}.v{version}.safetensors",
                options.task
            )),
            temperature: 1.0,
            threshold: 0.0,
            metrics: Value::Null,
            data_statement: statement,
        }
    }

    pub(super) fn truths(&self) -> impl Iterator<Item = usize> {
        self.val
            .iter()
            .map(|item| item.target.map_or(0, |target| target.label))
    }

    /// A model's answers on the items for choosing. Its labels are the first of the task's.
    pub(super) fn answers(
        &self,
        model: &Model,
        index: usize,
        threads: usize,
    ) -> Result<Vec<Answer>> {
        let items: Vec<Vec<u32>> = self.val.iter().map(|item| item.tokens.clone()).collect();
        let verdicts = engine::verdicts(model, index, &items, threads)?;
        Ok(verdicts
            .iter()
            .map(|verdict| (verdict.label as usize, verdict.abstained))
            .collect())
    }

    /// Always the label that is most frequent in training.
    pub(super) fn trivial(&self) -> Vec<Answer> {
        let mut counts = vec![0_u64; self.labels.len()];
        for target in self.train.iter().filter_map(|item| item.target) {
            counts[target.label] += 1;
        }
        let most = (0..counts.len()).max_by_key(|&label| (counts[label], usize::MAX - label));
        vec![(most.unwrap_or(0), false); self.val.len()]
    }

    /// The scores of answers, on the items of one folder or of all.
    pub(super) fn scores(&self, answers: &[Answer], folder: Option<usize>) -> Scores {
        let mut table = Confusion::new(&self.labels);
        for ((truth, &(answer, abstained)), &of) in self.truths().zip(answers).zip(&self.val_folder)
        {
            if folder.is_none_or(|folder| folder == of) {
                table.record(truth, answer, abstained);
            }
        }
        table.scores()
    }
}
