//! The one command that makes a bundle: data, tokenizer, pre-training, tuning, calibration, quantisation, packing, scores.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trafficllm_model::{Bundle, Level, Model, SelfTest};
use trafficllm_traffic::token::{Encoder, Tokenizer};

use crate::adapters::{self, TaskItems, Tuning};
use crate::batches::{Sampler, SamplingRecipe, Sequence, TokenRanges};
use crate::calibrate::calibrate;
use crate::card;
use crate::checkpoint::{CheckpointStore, RunIdentity};
use crate::choose;
use crate::data::{self, Split, TaskData, TaskKind};
use crate::error::{Result, TrainError};
use crate::evaluate::{self, TaskEvaluation};
use crate::instructions;
use crate::network::{Network, NetworkConfig, Trainable};
use crate::pack::{self, PackedTask};
use crate::phase::{Phase, PhaseRecipe};
use crate::recipe::Recipe;
use crate::self_test::self_tests;
use crate::tokenizer;

const PRETRAIN_STREAM: u64 = 1;
const TUNE_STREAM: u64 = 2;
/// Steps between two checkpoints by default: about a minute on two cores.
pub const CHECKPOINT_STEPS: u64 = 50;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BundleOptions {
    /// The data folder.
    pub data: PathBuf,
    /// The packed bundle to write.
    pub out: PathBuf,
    /// Where checkpoints go; without it a run that ends early starts anew.
    pub work: Option<PathBuf>,
    /// The seed.
    pub seed: u64,
    /// The tasks, in the order in which the bundle will hold them.
    pub tasks: Vec<String>,
    /// The recipe.
    pub recipe: Recipe,
    /// Threads for scoring. Training runs one thread per shard of the recipe.
    pub threads: usize,
    /// The publisher's name of the model.
    pub id: String,
    /// What people should know of the model, under names that are the publisher's own: [`crate::card::read`].
    pub remarks: BTreeMap<String, String>,
    /// Steps between two checkpoints.
    pub checkpoint_steps: u64,
    /// Ends the run before this step of the tuning, as if the process had been ended there: for tests of resuming.
    pub halt_before_step: Option<u64>,
}

/// Everything that was read and encoded.
struct Prepared {
    encoder: Encoder,
    /// The tuned tasks: training splits without their items, and the splits for choosing with theirs.
    tasks: Vec<PreparedTask>,
    /// Training items with labels, of all tasks.
    labelled: Vec<Sequence>,
    /// Training items of all folders, labels ignored.
    unlabelled: Vec<Sequence>,
    data_statement: Value,
    identity: RunIdentity,
}

struct PreparedTask {
    val: TaskData,
    val_sequences: Vec<Sequence>,
    /// What the training items carry as payload.
    seen: HashSet<u64>,
}

/// Makes a bundle and gives back its scores on the split for choosing.
///
/// # Errors
/// Where the data is not as it should be, training fails, or a file cannot be written.
pub fn make(options: &BundleOptions) -> Result<Vec<TaskEvaluation>> {
    options.recipe.check()?;
    let prepared = prepare(options)?;
    let checkpoints = CheckpointStore::new(options.work.as_deref(), prepared.identity.clone())?;
    let network = train(options, &prepared, &checkpoints)?;
    finish(options, &prepared, &network)
}

fn prepare(options: &BundleOptions) -> Result<Prepared> {
    let recipe = &options.recipe;
    let mut train = Vec::new();
    let mut vals = Vec::new();
    for task in &options.tasks {
        tracing::info!("reading {task}");
        train.push(data::load(&options.data, task, Split::Train)?);
        vals.push(data::load(&options.data, task, Split::Val)?);
    }
    let others = read_others(options, &vals)?;
    if let Some(recipe) = &recipe.instructions {
        // Last: the engine counts the tasks of flows and requests from 0.
        train.push(instructions::load_train(recipe, options.seed)?);
        vals.push(instructions::load(Split::Val)?);
    }
    tracing::info!("learning byte-pair merges");
    let tokenizer = tokenizer::learn(
        &recipe.profile,
        recipe.vocabulary,
        train.iter().chain(&others),
    )?;
    let encoder = Encoder::new(tokenizer, recipe.profile.clone())?;
    let mut labelled = Vec::new();
    let mut unlabelled = Vec::new();
    let mut tasks = Vec::new();
    let data_statement = card::data_statement(&options.data, &train, &vals, &others);
    for (index, (data, val)) in train.iter().zip(vals).enumerate() {
        unlabelled.extend(tokenizer::encode_split(&encoder, data, None)?);
        labelled.extend(tokenizer::encode_train(
            &encoder,
            data,
            index,
            recipe,
            options.seed,
        )?);
        let val_sequences = tokenizer::encode_split(&encoder, &val, Some(index))?;
        tasks.push(PreparedTask {
            val,
            val_sequences,
            seen: evaluate::fingerprints(data),
        });
    }
    for data in &others {
        unlabelled.extend(tokenizer::encode_split(&encoder, data, None)?);
    }
    let all = labelled
        .iter()
        .chain(&unlabelled)
        .chain(tasks.iter().flat_map(|task| &task.val_sequences));
    let identity = RunIdentity {
        recipe: recipe.hash(),
        data: tokenizer::hash_sequences(all),
        seed: options.seed,
    };
    let tokens: usize = unlabelled
        .iter()
        .map(|sequence| sequence.tokens.len())
        .sum();
    tracing::info!(
        "{} training items with labels, {} in all with {tokens} tokens",
        labelled.len(),
        unlabelled.len()
    );
    Ok(Prepared {
        encoder,
        tasks,
        labelled,
        unlabelled,
        data_statement,
        identity,
    })
}

/// The training splits of all other folders, without groups that any scored split holds under the same name.
fn read_others(options: &BundleOptions, vals: &[TaskData]) -> Result<Vec<TaskData>> {
    let scored: BTreeSet<&String> = vals.iter().flat_map(|val| &val.groups).collect();
    let mut others = Vec::new();
    for task in data::tasks_of(&options.data)?
        .iter()
        .filter(|task| !options.tasks.contains(task))
    {
        tracing::info!("reading {task}, without its labels");
        let mut other = data::load(&options.data, task, Split::Train)?;
        let before = other.items.len();
        other
            .items
            .retain(|item| !scored.contains(&other.groups[item.group]));
        if other.items.len() < before {
            tracing::warn!(
                "{task}: {} items left out: their group is in a scored split",
                before - other.items.len()
            );
        }
        others.push(other);
    }
    Ok(others)
}

fn train(
    options: &BundleOptions,
    prepared: &Prepared,
    checkpoints: &CheckpointStore,
) -> Result<Network> {
    let recipe = &options.recipe;
    let ranges = TokenRanges::of_vocabulary;
    let base = network_config(recipe, prepared.encoder.tokenizer(), Vec::new());
    let mut network = Network::new(base.clone(), options.seed)?;
    if recipe.pretrain.tokens > 0 {
        let sampler = Sampler::unlabelled(
            &prepared.unlabelled,
            recipe.pretrain.augment,
            ranges(),
            options.seed,
        );
        network = phase(
            "pretrain",
            PRETRAIN_STREAM,
            (recipe, &recipe.pretrain),
            &sampler,
            (checkpoints, options.checkpoint_steps),
        )
        .run(network, None)?;
    }
    let task_labels = prepared
        .tasks
        .iter()
        .map(|task| task.val.labels.len())
        .collect();
    let mut tuned = Network::new(
        NetworkConfig {
            task_labels,
            ..base
        },
        options.seed,
    )?;
    tuned.copy_base_from(&network)?;
    let sampler = Sampler::labelled(
        &prepared.labelled,
        &samplings(recipe, &prepared.tasks),
        recipe.tune.augment,
        ranges(),
        options.seed,
    );
    let tune = Phase {
        scorings: recipe.scorings,
        halt_before_step: options.halt_before_step,
        ..phase(
            "tune",
            TUNE_STREAM,
            (recipe, &recipe.tune),
            &sampler,
            (checkpoints, options.checkpoint_steps),
        )
    };
    let sets: Vec<choose::ChoosingSet<'_>> = prepared
        .tasks
        .iter()
        .map(|task| choose::ChoosingSet {
            labels: &task.val.labels,
            sequences: &task.val_sequences,
        })
        .collect();
    let score = |network: &Network| choose::mean_macro_f1(network, &sets, options.threads);
    let network = tune.run(tuned, Some(&score))?;
    tune_adapters(options, prepared, checkpoints, network, &sets)
}

/// Tunes each task's adapter alone on the frozen base, where the recipe says so.
fn tune_adapters(
    options: &BundleOptions,
    prepared: &Prepared,
    checkpoints: &CheckpointStore,
    mut network: Network,
    sets: &[choose::ChoosingSet<'_>],
) -> Result<Network> {
    let Some(recipe) = &options.recipe.adapters else {
        return Ok(network);
    };
    let samplings = samplings(&options.recipe, &prepared.tasks);
    let tuning = Tuning {
        recipe,
        shards: options.recipe.shards,
        seed: options.seed,
        threads: options.threads,
        checkpoints,
        checkpoint_steps: options.checkpoint_steps,
    };
    for (index, (task, val)) in prepared.tasks.iter().zip(sets).enumerate() {
        let items = TaskItems {
            task: index,
            name: &task.val.task,
            train: &prepared.labelled,
            sampling: samplings[index],
            val: *val,
        };
        network = adapters::tune(network, &items, &tuning)?.network;
    }
    Ok(network)
}

/// How each task is drawn from.
fn samplings(recipe: &Recipe, tasks: &[PreparedTask]) -> Vec<SamplingRecipe> {
    let kinds = tasks.iter().map(|task| task.val.kind);
    kinds.map(|kind| recipe.sampling_of(kind)).collect()
}

fn phase<'a>(
    name: &'a str,
    stream: u64,
    (recipe, phase): (&Recipe, &'a PhaseRecipe),
    sampler: &'a Sampler<'a>,
    checkpoints: (&'a CheckpointStore, u64),
) -> Phase<'a> {
    Phase {
        name,
        stream,
        recipe: phase,
        sampler,
        shards: recipe.shards,
        checkpoints: checkpoints.0,
        checkpoint_steps: checkpoints.1,
        scorings: 0,
        patience: 0,
        trainable: Trainable::ALL,
        halt_before_step: None,
    }
}

fn network_config(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    task_labels: Vec<usize>,
) -> NetworkConfig {
    let shape = recipe.shape;
    NetworkConfig {
        vocabulary: tokenizer.vocabulary_size(),
        hidden: shape.hidden,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        feed_forward: shape.feed_forward,
        prefix_tokens: shape.prefix_tokens,
        query_tokens: shape.query_tokens,
        lora_rank: shape.lora_rank,
        task_labels,
        scales: TokenRanges::of_vocabulary().scales(),
        norm_epsilon: 1e-5,
        rotary_base: 10_000.0,
    }
}

/// Quantises, calibrates and scores with the engine, then writes the bundle and reads it back.
fn finish(
    options: &BundleOptions,
    prepared: &Prepared,
    network: &Network,
) -> Result<Vec<TaskEvaluation>> {
    tracing::info!("quantising and calibrating");
    let mut tasks: Vec<PackedTask> = prepared.tasks.iter().map(uncalibrated).collect();
    let statement = card::statement(
        options,
        &prepared.identity.data,
        prepared.data_statement.clone(),
        network.config(),
    );
    let files = pack::files(
        network,
        prepared.encoder.tokenizer(),
        &options.recipe,
        &tasks,
    )?;
    let pack = |tasks: &[PackedTask], self_test| {
        pack::bundle(files.clone(), &options.recipe, &statement, tasks, self_test)
    };
    let load = |bundle: &Bundle| Model::load(bundle, Level::detect());

    let model = load(&pack(&tasks, vec![placeholder(&tasks)])?)?;
    for (index, (packed, task)) in tasks.iter_mut().zip(&prepared.tasks).enumerate() {
        let items: Vec<Vec<u32>> = task
            .val_sequences
            .iter()
            .map(|sequence| sequence.tokens.clone())
            .collect();
        let labels: Vec<u32> = task
            .val
            .items
            .iter()
            .map(|item| item.label as u32)
            .collect();
        let fitted = calibrate(
            &model,
            index,
            &items,
            &labels,
            &options.recipe.calibration,
            options.threads,
        )?;
        (packed.temperature, packed.threshold) = (fitted.temperature, fitted.threshold);
    }
    let model = load(&pack(&tasks, vec![placeholder(&tasks)])?)?;
    let mut evaluations = Vec::with_capacity(tasks.len());
    for (index, (packed, task)) in tasks.iter_mut().zip(&prepared.tasks).enumerate() {
        let evaluation = evaluate::score(
            &model,
            index,
            &prepared.encoder,
            &task.val,
            Split::Val,
            &task.seen,
            options.threads,
        )?;
        packed.metrics = json!(evaluation);
        evaluations.push(evaluation);
    }
    let kinds: Vec<TaskKind> = tasks.iter().map(|task| task.kind).collect();
    let bundle = pack(&tasks, self_tests(&model, &kinds, &prepared.encoder)?)?;
    bundle.write_packed(&options.out)?;
    // What was written is what counts: opened, verified and tested as a user would.
    load(&Bundle::open(&options.out)?)?.self_test()?;
    tracing::info!("{}: model {}", options.out.display(), bundle.id());
    Ok(evaluations)
}

fn uncalibrated(task: &PreparedTask) -> PackedTask {
    PackedTask {
        name: task.val.task.clone(),
        kind: task.val.kind,
        labels: task.val.labels.clone(),
        temperature: 1.0,
        threshold: 0.0,
        metrics: Value::Null,
    }
}

/// The placeholder for the first of some tasks.
fn placeholder(tasks: &[PackedTask]) -> SelfTest {
    tasks.first().map_or_else(
        || placeholder_of("", ""),
        |task| placeholder_of(&task.name, &task.labels[0]),
    )
}

/// A manifest needs a self-test; this one stands there until there is a calibrated model to make the real ones with.
pub(crate) fn placeholder_of(task: &str, label: &str) -> SelfTest {
    SelfTest {
        tokens: vec![0],
        task: task.to_owned(),
        label: label.to_owned(),
        score: 0.0,
    }
}

/// Refuses tasks that come twice or are none of the data's.
///
/// # Errors
/// [`TrainError::TaskUnknown`] for the first.
pub fn check_tasks(data: &Path, tasks: &[String]) -> Result<()> {
    let present = data::tasks_of(data)?;
    for (index, task) in tasks.iter().enumerate() {
        if !present.contains(task) || tasks[..index].contains(task) {
            return Err(TrainError::TaskUnknown {
                task: task.clone(),
                path: data.into(),
                found: present.join(", "),
            });
        }
    }
    Ok(())
}
