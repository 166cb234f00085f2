//! EA-PEFT, field updates of a bundle (TrafficLLM, section on extensible adaptation): a new task, an old task on newer traffic, and back.
//!
//! The base and the adapters of other tasks stay as they are, byte for byte. A new adapter that is worse than what it would take the place of
//! is refused, and the bundle stays as it was.

mod material;
mod opened;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use trafficllm_model::Bundle;

use self::material::{Answer, Material};
use self::opened::Opened;
use crate::adapters::AdapterRecipe;
use crate::error::Result;
use crate::metrics::Scores;
use crate::network::Network;
use crate::recipe::in_range;

/// What an adapter may lose by default: less than what one item of a rare label moves the macro-F1 by.
pub const LOSS_MAX: f64 = 0.02;

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
    /// What the adapter may lose of the macro-F1 on the held items of one folder, if it gains on all together: [`LOSS_MAX`], or more
    /// where newer traffic counts for more; 0 to 1.
    pub loss_max: f64,
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
/// [`AdapterRefused`](crate::error::TrainError::AdapterRefused) for an adapter that is no better than guessing.
pub fn register(options: &AdaptOptions) -> Result<Adapted> {
    options.recipe.check()?;
    let opened = Opened::new(&options.bundle, &options.out)?;
    let index = opened.manifest.tasks.len();
    if let Some(found) = opened.place(&options.task) {
        return Err(opened.wrong(&options.task, "a new task", &format!("task number {found}")));
    }
    let mut material = Material::default();
    material.read(&opened, options, &options.data, index)?;
    material.check_labels(&options.data)?;
    let manifest = opened.with_task(options, &material);
    // What the bundle cannot take is told before the tuning, not after it.
    opened.check(&manifest, index)?;
    let network = Network::from_bundle(&opened.bundle, options.recipe.lora_rank, options.seed)?
        .with_task_added(material.labels.len(), options.seed)?;
    let made = opened.tune(network, options, &material, index)?;
    let candidate = opened.finish(manifest, made, options, &material, index)?;
    let before = Before {
        answers: material.trivial(),
        // Who guesses among all labels gets about so much.
        macro_f1_min: 1.0 / material.labels.len() as f64,
        name: "guessing, or of the most frequent label",
    };
    opened.settle(candidate, options, &material, index, &before)
}

/// Tunes the adapter of a task that the bundle has on newer data.
///
/// # Errors
/// As [`register`]; a share out of its range; labels of the task without training items: without them it would forget them; a group that is trained on in one folder
/// and held in the other; [`AdapterRefused`](crate::error::TrainError::AdapterRefused) for an adapter that is no better than the active one, or worse by more than
/// [`AdaptOptions::loss_max`] on the held items of one folder.
pub fn update(options: &AdaptOptions) -> Result<Adapted> {
    options.recipe.check()?;
    // Said of "no number" too, which every comparison would let through.
    let is_share = (0.0..=1.0).contains(&options.loss_max);
    in_range(
        "loss_max",
        is_share,
        "a share from 0 to 1",
        &options.loss_max,
    )?;
    let opened = Opened::new(&options.bundle, &options.out)?;
    let Some(index) = opened.place(&options.task) else {
        return Err(opened.wrong(
            &options.task,
            "a task of the bundle",
            &opened.names().join(", "),
        ));
    };
    let active = &opened.manifest.tasks[index];
    let mut material = Material::of_task(active);
    material.read(&opened, options, &options.data, index)?;
    if let Some(replay) = &options.replay {
        material.read(&opened, options, replay, index)?;
    }
    material.check_labels(&options.data)?;
    let manifest = opened.with_version(options, &material, index);
    opened.check(&manifest, index)?;
    let network = Network::from_bundle(&opened.bundle, options.recipe.lora_rank, options.seed)?
        .with_labels(index, material.labels.len(), options.seed)?;
    let before = Before {
        answers: material.answers(&opened.model()?, index, options.threads)?,
        macro_f1_min: 0.0,
        name: "the active adapter",
    };
    let made = opened.tune(network, options, &material, index)?;
    let candidate = opened.finish(manifest, made, options, &material, index)?;
    opened.settle(candidate, options, &material, index, &before)
}

/// Puts an adapter to work that was set aside: `version`, or the one that was set aside last. Gives back the version at work.
///
/// # Errors
/// A bundle that is not sound, a task that it does not have, no such version.
pub fn roll_back(bundle: &Path, out: &Path, task: &str, version: Option<u32>) -> Result<u32> {
    let opened = Opened::new(bundle, out)?;
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
    opened.write(&rolled)?;
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

/// What a new adapter has to be better than.
struct Before {
    answers: Vec<Answer>,
    /// What it has to reach whatever the answers score.
    macro_f1_min: f64,
    name: &'static str,
}

#[cfg(test)]
mod tests;
