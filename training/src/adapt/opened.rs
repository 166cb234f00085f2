//! A bundle that is to be changed, and how it is: everything but one task stays as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trafficllm_model::{Bundle, Level, Manifest, Model, TaskKind, TaskManifest, limits};
use trafficllm_traffic::token::Encoder;

use super::material::{ADAPTERS, Answer, Material};
use super::{AdaptOptions, Adapted, Before, FolderScores};
use crate::adapters::{self, TaskItems, Tuning};
use crate::bundle::{CHECKPOINT_STEPS, placeholder_of};
use crate::calibrate::calibrate;
use crate::checkpoint::{CheckpointStore, RunIdentity};
use crate::choose::ChoosingSet;
use crate::data;
use crate::error::{Result, TrainError};
use crate::evaluate::encoder_of;
use crate::instructions;
use crate::network::Network;
use crate::recipe::{Recipe, hash_of_json};
use crate::self_test::self_test;
use crate::tokenizer;

/// A bundle that is to be changed.
pub(super) struct Opened {
    path: PathBuf,
    out: PathBuf,
    pub(super) bundle: Bundle,
    pub(super) manifest: Manifest,
    pub(super) encoder: Encoder,
    /// What the bundle was made with, where its card says so.
    pub(super) recipe: Recipe,
}

impl Opened {
    pub(super) fn new(path: &Path, out: &Path) -> Result<Self> {
        let bundle = Bundle::open(path)?;
        let card = bundle.manifest().card.get("recipe").cloned();
        let opened = Self {
            path: path.to_path_buf(),
            out: out.to_path_buf(),
            manifest: bundle.manifest().clone(),
            encoder: encoder_of(&bundle)?,
            // A bundle of another program, or of an older one.
            recipe: card
                .and_then(|card| serde_json::from_value(card).ok())
                .unwrap_or_default(),
            bundle,
        };
        opened.check_out()?;
        Ok(opened)
    }

    /// Whether the adapted bundle can go where it is to go: in the place of the bundle, or where nothing is, or over a packed file.
    fn check_out(&self) -> Result<()> {
        if self.out == self.path {
            return Ok(());
        }
        let wrong = |expected: &str, found: &str| TrainError::Output {
            path: self.out.clone(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        if self.out.is_dir() {
            return Err(wrong(
                "a file, or a folder that is not there yet",
                "a folder",
            ));
        }
        if self.path.is_dir() && self.out.exists() {
            return Err(wrong("a folder that is not there yet", "a file"));
        }
        let folder = self.out.parent().unwrap_or(Path::new(""));
        if !folder.as_os_str().is_empty() && !folder.is_dir() {
            return Err(wrong("a place in a folder", "no such folder"));
        }
        Ok(())
    }

    /// Writes the adapted bundle in the form of the one that was read, unless that has changed since.
    pub(super) fn write(&self, adapted: &Bundle) -> Result<()> {
        if self.out == self.path && Bundle::open(&self.path)?.id() != self.bundle.id() {
            return Err(TrainError::Output {
                path: self.out.clone(),
                expected: format!("the bundle as it was read, {}", self.bundle.id()),
                found: "another one: somebody else has changed it".to_owned(),
            });
        }
        if self.path.is_dir() {
            adapted.write_directory(&self.out)?;
            self.remove_dropped(adapted)
        } else {
            Ok(adapted.write_packed(&self.out)?)
        }
    }

    /// Removes the files of adapters that the bundle has no more.
    fn remove_dropped(&self, adapted: &Bundle) -> Result<()> {
        for name in self.manifest.files.keys() {
            if !adapted.manifest().files.contains_key(name) {
                let path = self.out.join(name);
                if path.is_file() {
                    std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
                }
            }
        }
        Ok(())
    }

    /// Holds a manifest to what bundles take, before there is an adapter.
    pub(super) fn check(&self, manifest: &Manifest, index: usize) -> Result<()> {
        let mut tried = manifest.clone();
        // Any file that is there stands for the one that is to be made.
        tried.tasks[index].adapter = self.manifest.base.clone();
        for task in &mut tried.tasks {
            let files = &self.manifest.files;
            task.set_aside
                .retain(|aside| files.contains_key(&aside.adapter.file));
        }
        let tried = without_self_tests(tried, index);
        tried.to_bytes()?;
        Ok(())
    }

    pub(super) fn place(&self, task: &str) -> Option<usize> {
        self.manifest
            .tasks
            .iter()
            .position(|known| known.name == task)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.manifest
            .tasks
            .iter()
            .map(|task| task.name.clone())
            .collect()
    }

    pub(super) fn wrong(&self, task: &str, expected: &str, found: &str) -> TrainError {
        TrainError::BundleTask {
            path: self.path.clone(),
            task: task.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    pub(super) fn model(&self) -> Result<Model> {
        Ok(Model::load(&self.bundle, Level::detect())?)
    }

    /// Every file of the bundle but the manifest.
    pub(super) fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for name in self.manifest.files.keys() {
            files.insert(name.clone(), self.bundle.file(name)?.to_vec());
        }
        Ok(files)
    }

    /// The bytes of the tuned adapter.
    pub(super) fn tune(
        &self,
        network: Network,
        options: &AdaptOptions,
        material: &Material,
        index: usize,
    ) -> Result<Vec<u8>> {
        let identity = RunIdentity {
            // An adapter is of the base that it was tuned on.
            recipe: hash_of_json(&(
                &options.recipe,
                self.bundle.id(),
                &options.task,
                &material.labels,
            )),
            data: tokenizer::hash_sequences(material.train.iter().chain(&material.val)),
            seed: options.seed,
        };
        let checkpoints = CheckpointStore::new(options.work.as_deref(), identity)?;
        let tuning = Tuning {
            recipe: &options.recipe,
            shards: self.recipe.shards,
            seed: options.seed,
            threads: options.threads,
            checkpoints: &checkpoints,
            checkpoint_steps: CHECKPOINT_STEPS,
        };
        let items = TaskItems {
            task: index,
            name: &options.task,
            train: &material.train,
            sampling: self.recipe.sampling_of(material.data_kind()),
            val: ChoosingSet {
                labels: &material.labels,
                sequences: &material.val,
            },
        };
        let tuned = adapters::tune(network, &items, &tuning)?;
        if !tuned.is_better() {
            return Err(TrainError::AdapterRefused {
                task: options.task.clone(),
                of: "the adapter that it began with".to_owned(),
                active: tuned.before,
                candidate: tuned.after,
            });
        }
        Ok(tuned.network.adapter_file(index)?)
    }

    /// The manifest with a new task at its end.
    pub(super) fn with_task(&self, options: &AdaptOptions, material: &Material) -> Manifest {
        let mut manifest = self.manifest.clone();
        let version = material.version(options, 1);
        manifest.tasks.push(TaskManifest {
            name: options.task.clone(),
            kind: material.kind.unwrap_or(TaskKind::Flow),
            labels: version.labels,
            label_words: version.label_words,
            adapter: version.adapter,
            temperature: version.temperature,
            threshold: version.threshold,
            metrics: Value::Null,
            version: version.version,
            data_statement: version.data_statement,
            set_aside: Vec::new(),
        });
        let names: Vec<String> = manifest
            .tasks
            .iter()
            .map(|task| task.name.clone())
            .collect();
        if let Some(instruction) = &mut manifest.instruction {
            let mut answered = instructions::answered_by(&names);
            answered.retain(|label, _| instruction.labels.contains(label));
            instruction.answered_by = answered;
        }
        manifest
    }

    /// The manifest with another adapter of a task at work.
    pub(super) fn with_version(
        &self,
        options: &AdaptOptions,
        material: &Material,
        index: usize,
    ) -> Manifest {
        let mut manifest = self.manifest.clone();
        let task = &mut manifest.tasks[index];
        let newest = task
            .adapters()
            .map(|(version, _)| version)
            .max()
            .unwrap_or(0);
        while task.set_aside.len() >= limits::ADAPTERS_SET_ASIDE_MAX {
            let oldest = task.set_aside.remove(0);
            tracing::warn!(
                "{}: version {} is dropped, the oldest of those set aside",
                task.name,
                oldest.version
            );
        }
        task.activate(material.version(options, newest + 1));
        manifest
    }

    /// The bundle with the tuned adapter: calibrated, with self-tests and metrics.
    pub(super) fn finish(
        &self,
        mut manifest: Manifest,
        adapter: Vec<u8>,
        options: &AdaptOptions,
        material: &Material,
        index: usize,
    ) -> Result<Bundle> {
        let mut files = self.files()?;
        files.insert(manifest.tasks[index].adapter.file.clone(), adapter);
        let used: Vec<&str> = manifest
            .tasks
            .iter()
            .flat_map(|task| task.adapters().map(|(_, file)| file.file.as_str()))
            .chain(
                manifest
                    .instruction
                    .iter()
                    .map(|instruction| instruction.adapter.file.as_str()),
            )
            .chain([
                manifest.base.file.as_str(),
                manifest.tokenizer.file.as_str(),
            ])
            .collect();
        files.retain(|name, _| !name.starts_with(ADAPTERS) || used.contains(&name.as_str()));
        let model = untested(manifest.clone(), files.clone(), index)?;
        let items: Vec<Vec<u32>> = material
            .val
            .iter()
            .map(|item| item.tokens.clone())
            .collect();
        let labels: Vec<u32> = material.truths().map(|label| label as u32).collect();
        let recipe = &self.recipe.calibration;
        let fitted = calibrate(&model, index, &items, &labels, recipe, options.threads)?;
        let task = &mut manifest.tasks[index];
        (task.temperature, task.threshold) = (fitted.temperature, fitted.threshold);
        let model = untested(manifest.clone(), files.clone(), index)?;
        let scores = material.scores(&material.answers(&model, index, options.threads)?, None);
        manifest.tasks[index].metrics = json!(scores);
        self.with_self_tests(manifest, files, index)
    }

    /// The bundle with new self-tests of one task: its answers are others now.
    pub(super) fn with_self_tests(
        &self,
        mut manifest: Manifest,
        files: BTreeMap<String, Vec<u8>>,
        index: usize,
    ) -> Result<Bundle> {
        let task = manifest.tasks[index].clone();
        let model = untested(manifest.clone(), files.clone(), index)?;
        manifest.self_test.retain(|test| test.task != task.name);
        let kind = match task.kind {
            TaskKind::Flow => data::TaskKind::Flow,
            TaskKind::Request => data::TaskKind::Request,
        };
        manifest
            .self_test
            .push(self_test(&model, index, kind, &self.encoder)?);
        Ok(Bundle::build(manifest, files)?)
    }

    /// Holds the new adapter against what it would take the place of, and writes the bundle.
    pub(super) fn settle(
        &self,
        candidate: Bundle,
        options: &AdaptOptions,
        material: &Material,
        index: usize,
        before: &Before,
    ) -> Result<Adapted> {
        let model = Model::load(&candidate, Level::detect())?;
        model.self_test()?;
        let answers = material.answers(&model, index, options.threads)?;
        let scores = |answers: &[Answer], folder| material.scores(answers, folder);
        let (new, old) = (scores(&answers, None), scores(&before.answers, None));
        let refused = |of: String, active: f64, candidate: f64| TrainError::AdapterRefused {
            task: options.task.clone(),
            of,
            active,
            candidate,
        };
        let least = old.macro_f1.max(before.macro_f1_min);
        if new.macro_f1 <= least {
            return Err(refused(before.name.to_owned(), least, new.macro_f1));
        }
        let by_folder: Vec<FolderScores> = material
            .folders
            .iter()
            .enumerate()
            .map(|(number, folder)| FolderScores {
                folder: folder.name.clone(),
                candidate: scores(&answers, Some(number)),
                active: scores(&before.answers, Some(number)),
            })
            .collect();
        for folder in &by_folder {
            let (active, candidate) = (folder.active.macro_f1, folder.candidate.macro_f1);
            let loss_max = options.loss_max;
            if candidate < active - loss_max {
                let of = format!("{} in {} less {loss_max}", before.name, folder.folder);
                return Err(refused(of, active - loss_max, candidate));
            }
        }
        let adapted = Adapted {
            task: options.task.clone(),
            version: candidate.manifest().tasks[index].version,
            model: candidate.id().to_owned(),
            by_folder,
            candidate: new,
            active: old,
        };
        self.write(&candidate)?;
        // What was written is what counts.
        Model::load(&Bundle::open(&self.out)?, Level::detect())?.self_test()?;
        Ok(adapted)
    }
}

/// A manifest without the self-tests of one task, whose answers are others now; with a placeholder where there would be none.
fn without_self_tests(mut manifest: Manifest, index: usize) -> Manifest {
    let task = &manifest.tasks[index];
    manifest.self_test.retain(|test| test.task != task.name);
    if manifest.self_test.is_empty() {
        manifest.self_test = vec![placeholder_of(&task.name, &task.labels[0])];
    }
    manifest
}

/// The model of a bundle that has no self-tests of one task yet.
fn untested(manifest: Manifest, files: BTreeMap<String, Vec<u8>>, index: usize) -> Result<Model> {
    let bundle = Bundle::build(without_self_tests(manifest, index), files)?;
    Ok(Model::load(&bundle, Level::detect())?)
}
