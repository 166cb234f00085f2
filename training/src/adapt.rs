//! EA-PEFT, field updates of a bundle (TrafficLLM, section on extensible adaptation): a new task, an old task on newer traffic, and back.
//!
//! The base and the adapters of other tasks stay as they are, byte for byte. A new adapter that is worse than what it would take the place of
//! is refused, and the bundle stays as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use trafficllm_model::{
    AdapterVersion, Bundle, FileReference, Level, Manifest, Model, TaskKind, TaskManifest, limits,
};
use trafficllm_traffic::token::Encoder;

use crate::adapters::{self, AdapterRecipe, TaskItems, Tuning};
use crate::batches::Sequence;
use crate::bundle::{CHECKPOINT_STEPS, placeholder_of};
use crate::calibrate::calibrate;
use crate::checkpoint::{CheckpointStore, RunIdentity};
use crate::choose::ChoosingSet;
use crate::data::{self, Split};
use crate::engine;
use crate::error::{Result, TrainError};
use crate::evaluate::encoder_of;
use crate::instructions;
use crate::metrics::{Confusion, Scores};
use crate::network::Network;
use crate::recipe::{Recipe, hash_of_json};
use crate::self_test::self_test;
use crate::tokenizer;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct AdaptOptions {
    /// The bundle to adapt.
    pub bundle: PathBuf,
    /// Where the adapted bundle goes; may be the same.
    pub out: PathBuf,
    /// The data folder, in the layout of [`crate::data`].
    pub data: PathBuf,
    /// The data folder of before, so that what the task knew is not lost. Only updates replay.
    pub replay: Option<PathBuf>,
    /// The task.
    pub task: String,
    /// What people should know of the data.
    pub note: Option<String>,
    /// The seed.
    pub seed: u64,
    /// Threads for scoring.
    pub threads: usize,
    /// How the adapter is tuned.
    pub recipe: AdapterRecipe,
    /// Where checkpoints go.
    pub work: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Adapted {
    /// The task.
    pub task: String,
    /// The new adapter's version.
    pub version: u32,
    /// The model's new identity.
    pub model: String,
    /// The new adapter on the held items of all folders.
    pub candidate: Scores,
    /// The adapter that was active before, on the same items; for a new task, the answer that is most frequent in training.
    pub active: Scores,
    /// The new adapter on the held items of each folder by itself, the one to replay last.
    pub by_folder: Vec<FolderScores>,
}

/// How adapters fare on the held items of one folder.
#[derive(Clone, Debug, Serialize)]
pub struct FolderScores {
    /// The folder.
    pub folder: String,
    /// The new adapter.
    pub candidate: Scores,
    /// The one before.
    pub active: Scores,
}

/// One line of `adapt list`.
#[derive(Clone, Debug, Serialize)]
pub struct ListedVersion {
    /// The task.
    pub task: String,
    /// The version.
    pub version: u32,
    /// Whether it is at work.
    pub active: bool,
    /// Number of labels.
    pub labels: usize,
    /// Macro-F1 where its metrics name one.
    pub macro_f1: Option<f64>,
    /// What it was made from, if it was made after the bundle.
    pub data_statement: Value,
}

/// Adds a task that the bundle does not have.
///
/// # Errors
/// A bundle or data that are not as they should be, a task that is there already, a failed training, and
/// [`TrainError::AdapterRefused`] for an adapter that is no better than always giving the most frequent label.
pub fn register(options: &AdaptOptions) -> Result<Adapted> {
    let opened = Opened::new(&options.bundle)?;
    let index = opened.manifest.tasks.len();
    if let Some(found) = opened.place(&options.task) {
        return Err(opened.wrong(&options.task, "a new task", &format!("task number {found}")));
    }
    let mut material = Material::default();
    material.read(&opened.encoder, options, &options.data, index)?;
    let network = Network::from_bundle(&opened.bundle, options.recipe.lora_rank, options.seed)?
        .with_task_added(material.labels.len(), options.seed)?;
    let trivial = material.trivial();
    let made = opened.tune(network, options, &material, index)?;
    let manifest = opened.with_task(options, &material);
    let candidate = opened.finish(manifest, made, options, &material, index)?;
    opened.settle(
        candidate,
        options,
        &material,
        index,
        &trivial,
        "the most frequent label",
    )
}

/// Tunes the adapter of a task that the bundle has on newer data.
///
/// # Errors
/// As [`register`]; [`TrainError::AdapterRefused`] for an adapter that is worse than the active one.
pub fn update(options: &AdaptOptions) -> Result<Adapted> {
    let opened = Opened::new(&options.bundle)?;
    let Some(index) = opened.place(&options.task) else {
        return Err(opened.wrong(
            &options.task,
            "a task of the bundle",
            &opened.names().join(", "),
        ));
    };
    let active = &opened.manifest.tasks[index];
    let mut material = Material {
        labels: active.labels.clone(),
        kind: Some(active.kind),
        ..Material::default()
    };
    material.read(&opened.encoder, options, &options.data, index)?;
    if let Some(replay) = &options.replay {
        material.read(&opened.encoder, options, replay, index)?;
    }
    let mut network = Network::from_bundle(&opened.bundle, options.recipe.lora_rank, options.seed)?;
    if material.labels.len() > active.labels.len() {
        network = network.with_task_renewed(index, material.labels.len(), options.seed)?;
    }
    let before = opened.model()?;
    let answers = material.answers(&before, index, options.threads)?;
    let made = opened.tune(network, options, &material, index)?;
    let manifest = opened.with_version(options, &material, index);
    let candidate = opened.finish(manifest, made, options, &material, index)?;
    opened.settle(
        candidate,
        options,
        &material,
        index,
        &answers,
        "the active adapter",
    )
}

/// Puts an adapter to work that was set aside: `version`, or the one that was set aside last. Gives back the version at work.
///
/// # Errors
/// A bundle that is not sound, a task that it does not have, no such version.
pub fn roll_back(bundle: &Path, out: &Path, task: &str, version: Option<u32>) -> Result<u32> {
    let opened = Opened::new(bundle)?;
    let Some(index) = opened.place(task) else {
        return Err(opened.wrong(task, "a task of the bundle", &opened.names().join(", ")));
    };
    let mut manifest = opened.manifest.clone();
    if !manifest.tasks[index].roll_back(version) {
        let aside = &opened.manifest.tasks[index].set_aside;
        let aside: Vec<String> = aside
            .iter()
            .map(|aside| aside.version.to_string())
            .collect();
        let found = if aside.is_empty() {
            "none".to_owned()
        } else {
            format!("versions {}", aside.join(", "))
        };
        let wanted = version.map_or_else(
            || "an adapter that was set aside".to_owned(),
            |version| format!("version {version} among those set aside"),
        );
        return Err(opened.wrong(task, &wanted, &found));
    }
    let active = manifest.tasks[index].version;
    let rolled = opened.with_self_tests(manifest, opened.files()?, index)?;
    write(&rolled, out)?;
    Ok(active)
}

/// All adapters of a bundle, the active one of each task first.
///
/// # Errors
/// A bundle that is not sound.
pub fn list(bundle: &Path) -> Result<Vec<ListedVersion>> {
    let bundle = Bundle::open(bundle)?;
    let mut listed = Vec::new();
    for task in &bundle.manifest().tasks {
        let active = [task.active()];
        for (number, version) in active.iter().chain(&task.set_aside).enumerate() {
            let macro_f1 = ["/macro_f1", "/all/macro_f1"]
                .iter()
                .find_map(|pointer| version.metrics.pointer(pointer));
            listed.push(ListedVersion {
                task: task.name.clone(),
                version: version.version,
                active: number == 0,
                labels: version.labels.len(),
                macro_f1: macro_f1.and_then(Value::as_f64),
                data_statement: version.data_statement.clone(),
            });
        }
    }
    Ok(listed)
}

/// A bundle that is to be changed.
struct Opened {
    path: PathBuf,
    bundle: Bundle,
    manifest: Manifest,
    encoder: Encoder,
}

impl Opened {
    fn new(path: &Path) -> Result<Self> {
        let bundle = Bundle::open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            manifest: bundle.manifest().clone(),
            encoder: encoder_of(&bundle)?,
            bundle,
        })
    }

    fn place(&self, task: &str) -> Option<usize> {
        self.manifest
            .tasks
            .iter()
            .position(|known| known.name == task)
    }

    fn names(&self) -> Vec<String> {
        self.manifest
            .tasks
            .iter()
            .map(|task| task.name.clone())
            .collect()
    }

    fn wrong(&self, task: &str, expected: &str, found: &str) -> TrainError {
        TrainError::BundleTask {
            path: self.path.clone(),
            task: task.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    fn model(&self) -> Result<Model> {
        Ok(Model::load(&self.bundle, Level::detect())?)
    }

    /// Every file of the bundle but the manifest.
    fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for name in self.manifest.files.keys() {
            files.insert(name.clone(), self.bundle.file(name)?.to_vec());
        }
        Ok(files)
    }

    /// The bytes of the tuned adapter.
    fn tune(
        &self,
        network: Network,
        options: &AdaptOptions,
        material: &Material,
        index: usize,
    ) -> Result<Vec<u8>> {
        let identity = RunIdentity {
            recipe: hash_of_json(&options.recipe),
            data: tokenizer::hash_sequences(material.train.iter().chain(&material.val)),
            seed: options.seed,
        };
        let checkpoints = CheckpointStore::new(options.work.as_deref(), identity)?;
        let recipe = Recipe::default();
        let tuning = Tuning {
            recipe: &options.recipe,
            shards: recipe.shards,
            seed: options.seed,
            threads: options.threads,
            checkpoints: &checkpoints,
            checkpoint_steps: CHECKPOINT_STEPS,
        };
        let items = TaskItems {
            task: index,
            name: &options.task,
            train: &material.train,
            sampling: recipe.sampling,
            val: ChoosingSet {
                labels: &material.labels,
                sequences: &material.val,
            },
        };
        let tuned = adapters::tune(network, &items, &tuning)?;
        if !tuned.is_better() {
            return Err(TrainError::AdapterRefused {
                task: options.task.clone(),
                of: "the adapter that it began with",
                active: tuned.before,
                candidate: tuned.after,
            });
        }
        Ok(tuned.network.adapter_file(index)?)
    }

    /// The manifest with a new task at its end.
    fn with_task(&self, options: &AdaptOptions, material: &Material) -> Manifest {
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
    fn with_version(&self, options: &AdaptOptions, material: &Material, index: usize) -> Manifest {
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
    fn finish(
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
        let uncalibrated = self.with_self_tests(manifest.clone(), files.clone(), index)?;
        let model = Model::load(&uncalibrated, Level::detect())?;
        let items: Vec<Vec<u32>> = material
            .val
            .iter()
            .map(|item| item.tokens.clone())
            .collect();
        let labels: Vec<u32> = material.truths().map(|label| label as u32).collect();
        let recipe = Recipe::default().calibration;
        let fitted = calibrate(&model, index, &items, &labels, &recipe, options.threads)?;
        let task = &mut manifest.tasks[index];
        (task.temperature, task.threshold) = (fitted.temperature, fitted.threshold);
        let calibrated = self.with_self_tests(manifest.clone(), files.clone(), index)?;
        let model = Model::load(&calibrated, Level::detect())?;
        let scores = material.scores(&material.answers(&model, index, options.threads)?, None);
        manifest.tasks[index].metrics = json!(scores);
        self.with_self_tests(manifest, files, index)
    }

    /// The bundle with new self-tests of one task: its answers are others now.
    fn with_self_tests(
        &self,
        mut manifest: Manifest,
        files: BTreeMap<String, Vec<u8>>,
        index: usize,
    ) -> Result<Bundle> {
        let task = manifest.tasks[index].clone();
        manifest.self_test.retain(|test| test.task != task.name);
        let mut placeholder = manifest.clone();
        if placeholder.self_test.is_empty() {
            placeholder.self_test = vec![placeholder_of(&task.name, &task.labels[0])];
        }
        let model = Model::load(&Bundle::build(placeholder, files.clone())?, Level::detect())?;
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
    fn settle(
        &self,
        candidate: Bundle,
        options: &AdaptOptions,
        material: &Material,
        index: usize,
        active: &[Answer],
        of: &'static str,
    ) -> Result<Adapted> {
        let model = Model::load(&candidate, Level::detect())?;
        model.self_test()?;
        let answers = material.answers(&model, index, options.threads)?;
        let (new, old) = (
            material.scores(&answers, None),
            material.scores(active, None),
        );
        if new.macro_f1 < old.macro_f1 {
            return Err(TrainError::AdapterRefused {
                task: options.task.clone(),
                of,
                active: old.macro_f1,
                candidate: new.macro_f1,
            });
        }
        let by_folder = material
            .folders
            .iter()
            .enumerate()
            .map(|(number, folder)| FolderScores {
                folder: folder.name.clone(),
                candidate: material.scores(&answers, Some(number)),
                active: material.scores(active, Some(number)),
            });
        let adapted = Adapted {
            task: options.task.clone(),
            version: candidate.manifest().tasks[index].version,
            model: candidate.id().to_owned(),
            by_folder: by_folder.collect(),
            candidate: new,
            active: old,
        };
        write(&candidate, &options.out)?;
        // What was written is what counts.
        Model::load(&Bundle::open(&options.out)?, Level::detect())?.self_test()?;
        Ok(adapted)
    }
}

/// The folder of adapters inside a bundle.
const ADAPTERS: &str = "adapters/";

/// Best label of an item, and whether it abstained.
type Answer = (usize, bool);

/// What an adapter is tuned on, out of one folder or two.
#[derive(Default)]
struct Material {
    /// The labels, those that the task had first.
    labels: Vec<String>,
    kind: Option<TaskKind>,
    train: Vec<Sequence>,
    val: Vec<Sequence>,
    /// The folder of each item for choosing.
    val_folder: Vec<usize>,
    folders: Vec<Folder>,
    groups: usize,
}

struct Folder {
    name: String,
    statement: Value,
}

impl Material {
    fn read(
        &mut self,
        encoder: &Encoder,
        options: &AdaptOptions,
        folder: &Path,
        index: usize,
    ) -> Result<()> {
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
        for label in &train.labels {
            if !self.labels.contains(label) {
                self.labels.push(label.clone());
            }
        }
        let statement = json!({
            "train_items": train.items.len(), "train_groups": train.groups.len(),
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
        let recipe = Recipe::default();
        self.train.extend(tokenizer::encode_train(
            encoder,
            &train,
            index,
            &recipe,
            options.seed,
        )?);
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

    /// The new adapter before it is calibrated.
    fn version(&self, options: &AdaptOptions, version: u32) -> AdapterVersion {
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

    fn truths(&self) -> impl Iterator<Item = usize> {
        self.val
            .iter()
            .map(|item| item.target.map_or(0, |target| target.label))
    }

    /// A model's answers on the items for choosing. Its labels are the first of the task's.
    fn answers(&self, model: &Model, index: usize, threads: usize) -> Result<Vec<Answer>> {
        let items: Vec<Vec<u32>> = self.val.iter().map(|item| item.tokens.clone()).collect();
        let verdicts = engine::verdicts(model, index, &items, threads)?;
        Ok(verdicts
            .iter()
            .map(|verdict| (verdict.label as usize, verdict.abstained))
            .collect())
    }

    /// Always the label that is most frequent in training.
    fn trivial(&self) -> Vec<Answer> {
        let mut counts = vec![0_u64; self.labels.len()];
        for target in self.train.iter().filter_map(|item| item.target) {
            counts[target.label] += 1;
        }
        let most = (0..counts.len()).max_by_key(|&label| (counts[label], usize::MAX - label));
        vec![(most.unwrap_or(0), false); self.val.len()]
    }

    /// The scores of answers, on the items of one folder or of all.
    fn scores(&self, answers: &[Answer], folder: Option<usize>) -> Scores {
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

/// A folder where a folder is, else a packed file.
fn write(bundle: &Bundle, out: &Path) -> Result<()> {
    if out.is_dir() {
        bundle.write_directory(out)?;
    } else {
        bundle.write_packed(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
