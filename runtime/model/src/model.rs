//! A loaded model: from token ids to labels with scores.

mod answers;
mod asked;
mod classify;
#[cfg(feature = "cuda")]
mod device;
mod insight;
mod scratch;

#[cfg(feature = "cuda")]
use std::sync::Arc;

use trafficllm_kernels::Level;

use crate::adapter::{Adapter, AdapterShape};
use crate::bundle::{Bundle, InstructionManifest, MANIFEST_NAME, SelfTest, TaskKind, TaskManifest};
use crate::error::ModelError;
use crate::gguf::{Gguf, load_weights};
use crate::labels::{Child, LabelTrie};
use crate::limits;
use crate::memory::{self, try_with_capacity};
#[cfg(feature = "cuda")]
use crate::transformer::TransformerWeights;
use crate::transformer::{TaskLora, TaskPrefix, Transformer, TransformerConfig, TransformerError};

#[cfg(feature = "cuda")]
pub use device::{DeviceModel, Lane};
pub use insight::Insight;
pub use scratch::{Scratch, emptied};

/// How far a self-test's score may be from the one in the manifest. A target without fused
/// multiply-add may round otherwise, and where an activation lies between two int8 steps that decides
/// which one it becomes; labels have to agree exactly.
pub const SELF_TEST_TOLERANCE: f32 = 0.02;

/// Lanes of the dot product: partial sums that a compiler can keep in one wide register.
const LANES: usize = 16;

/// One task of a model.
#[derive(Clone, Debug)]
pub struct Task {
    name: String,
    kind: TaskKind,
    labels: Vec<String>,
    temperature: f32,
    threshold: f32,
    trie: LabelTrie,
    prefix: TaskPrefix,
    lora: Option<TaskLora>,
    query_tokens: usize,
    /// `[query_tokens, hidden]`.
    query_embedding: Vec<f32>,
    /// `[label_words, hidden]`.
    label_weight: Vec<f32>,
    /// `[label_words, hidden]`; empty if no label has more than one word.
    label_embedding: Vec<f32>,
}

impl Task {
    /// The name, such as `botnet_detection`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it reads.
    #[must_use]
    pub fn kind(&self) -> TaskKind {
        self.kind
    }

    /// The labels; [`TaskVerdict::label`] counts them from 0.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Logits are divided by this before softmax.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// A verdict with a lower score abstains.
    #[must_use]
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// The labels as paths of label words.
    #[must_use]
    pub fn trie(&self) -> &LabelTrie {
        &self.trie
    }

    /// Bytes of the adapter's tensors.
    fn bytes(&self) -> usize {
        let tensors = [
            &self.prefix.keys,
            &self.prefix.values,
            &self.query_embedding,
            &self.label_weight,
            &self.label_embedding,
        ];
        let tensors = tensors.iter().map(|tensor| size_of_val(&tensor[..]));
        tensors.sum::<usize>() + self.lora.as_ref().map_or(0, TaskLora::bytes)
    }

    /// The most rows that the task appends to a sequence.
    fn rows_max(&self) -> usize {
        self.query_tokens + self.trie.depth() - 1
    }

    fn load(bundle: &Bundle, task: &TaskManifest, shape: AdapterShape) -> Result<Self, ModelError> {
        let file = &task.adapter.file;
        let adapter = Adapter::read(file, bundle.file(file)?, shape)?;
        let trie = LabelTrie::new(&task.name, &task.label_words, adapter.label_words)?;
        if trie.depth() > 1 && adapter.label_embedding.is_none() {
            let expected = "a tensor, as labels have more than one word";
            return Err(ModelError::missing(
                file,
                "tensor label.embedding",
                expected,
            ));
        }
        let mut labels = try_with_capacity("labels", task.labels.len())?;
        labels.extend_from_slice(&task.labels);
        Ok(Self {
            name: task.name.clone(),
            kind: task.kind,
            labels,
            temperature: task.temperature,
            threshold: task.threshold,
            trie,
            prefix: TaskPrefix {
                prefix_tokens: adapter.prefix_tokens,
                keys: adapter.prefix_key,
                values: adapter.prefix_value,
            },
            lora: adapter.lora,
            query_tokens: adapter.query_tokens,
            query_embedding: adapter.query_embedding,
            label_weight: adapter.label_weight,
            label_embedding: adapter.label_embedding.unwrap_or_default(),
        })
    }

    /// The logits of `children` for a final hidden state `[hidden]`.
    fn logits(&self, children: &[Child], state: &[f32], logits: &mut Vec<f32>) {
        let row =
            |child: &Child| &self.label_weight[child.word as usize * state.len()..][..state.len()];
        logits.clear();
        logits.extend(children.iter().map(|child| dot(row(child), state)));
    }
}

/// What to classify: one flow or one request.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its token ids, at least one.
    pub tokens: &'a [u32],
    /// The tasks to ask, as indices into [`Model::tasks`].
    pub tasks: &'a [usize],
}

/// One task's answer for one item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskVerdict {
    /// The index of the item in the call.
    pub item: usize,
    /// The index of the task in [`Model::tasks`].
    pub task: usize,
    /// The index of the label in [`Task::labels`]: the best one, even if the verdict abstains.
    pub label: u32,
    /// The calibrated probability of the label, 0 to 1.
    pub score: f32,
    /// The score is below the task's threshold.
    pub abstained: bool,
}

/// One task's logits for one item, before temperature and softmax.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskLogits {
    /// The index of the item in the call.
    pub item: usize,
    /// The index of the task in [`Model::tasks`].
    pub task: usize,
    /// One per child of the trie's root: with one word per label, one per label in label order.
    pub logits: Vec<f32>,
}

/// A bundle made ready to answer; immutable, shared by all threads.
#[derive(Debug)]
pub struct Model {
    id: String,
    transformer: Transformer,
    /// Those of the manifest, and behind them the one that reads instructions.
    tasks: Vec<Task>,
    has_instruction: bool,
    self_tests: Vec<SelfTest>,
    /// Tells it from all others, also from one of the same bundle.
    #[cfg(feature = "cuda")]
    identity: Arc<()>,
    /// What a device will be given.
    #[cfg(feature = "cuda")]
    device_weights: Option<TransformerWeights>,
}

impl Model {
    /// Makes a verified bundle ready: reads and packs the weights for `level`, reads the adapters,
    /// builds the label tries. Nothing of the bundle is borrowed.
    ///
    /// # Errors
    /// A base or an adapter that is broken, of unsupported kind or of the wrong shape; labels that
    /// make no trie.
    pub fn load(bundle: &Bundle, level: Level) -> Result<Self, ModelError> {
        let manifest = bundle.manifest();
        let base = &manifest.base.file;
        let weights = load_weights(&Gguf::parse(base, bundle.file(base)?)?)?;
        let transformer =
            Transformer::new(level, weights).map_err(|error| weights_error(base, &error))?;
        let config = transformer.config();
        let shape = AdapterShape::of(config);
        let instruction = manifest.instruction.as_ref();
        let instruction = instruction.map(InstructionManifest::as_task);
        let mut tasks = try_with_capacity("tasks", manifest.tasks.len() + 1)?;
        for task in manifest.tasks.iter().chain(&instruction) {
            let task = Task::load(bundle, task, shape)?;
            if task.rows_max() >= config.context {
                let expected = format!(
                    "fewer query rows and label words than the context, {}",
                    config.context
                );
                return Err(ModelError::invalid(
                    MANIFEST_NAME,
                    format!("task {}", task.name),
                    expected,
                    task.rows_max(),
                ));
            }
            tasks.push(task);
        }
        Ok(Self {
            id: bundle.id().to_owned(),
            transformer,
            tasks,
            has_instruction: instruction.is_some(),
            self_tests: manifest.self_test.clone(),
            #[cfg(feature = "cuda")]
            identity: Arc::default(),
            #[cfg(feature = "cuda")]
            device_weights: None,
        })
    }

    /// As [`Model::load`], and keeps the weights as they are stored as well, so that [`DeviceModel::new`] can give them to a device later:
    /// a device is opened by the process that uses it, and that may be a child of this one.
    ///
    /// # Errors
    /// As [`Model::load`].
    #[cfg(feature = "cuda")]
    pub fn load_for_device(bundle: &Bundle, level: Level) -> Result<Self, ModelError> {
        let mut model = Self::load(bundle, level)?;
        let base = &bundle.manifest().base.file;
        let mut weights = load_weights(&Gguf::parse(base, bundle.file(base)?)?)?;
        // No device makes next-token logits.
        weights.output = None;
        model.device_weights = Some(weights);
        Ok(model)
    }

    /// Whether a device can be given this model.
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn is_for_device(&self) -> bool {
        self.device_weights.is_some()
    }

    /// The identity of the bundle: [`Bundle::id`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tasks, in the order of the manifest.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.tasks[..self.tasks.len() - usize::from(self.has_instruction)]
    }

    /// What names the task that a text asks for, with the index that items ask it by. Buffers with room for [`Model::tasks`] may have
    /// to grow for it.
    #[must_use]
    pub fn instruction(&self) -> Option<(usize, &Task)> {
        let last = self.tasks.len().checked_sub(1)?;
        self.has_instruction.then(|| (last, &self.tasks[last]))
    }

    /// The sizes of the base.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        self.transformer.config()
    }

    /// The base itself.
    #[must_use]
    pub fn transformer(&self) -> &Transformer {
        &self.transformer
    }

    /// Bytes of memory held by weights and adapters.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let bytes = self.transformer.bytes() + self.tasks.iter().map(Task::bytes).sum::<usize>();
        #[cfg(feature = "cuda")]
        let bytes = bytes
            + self
                .device_weights
                .as_ref()
                .map_or(0, TransformerWeights::bytes);
        bytes
    }

    /// The most tokens an item may have, whichever tasks it asks.
    #[must_use]
    pub fn item_tokens_max(&self) -> usize {
        let rows = self.tasks.iter().map(Task::rows_max).max().unwrap_or(0);
        (self.config().context - rows).min(limits::ITEM_TOKENS_MAX)
    }

    /// Runs the manifest's self-tests: labels have to agree, scores within [`SELF_TEST_TOLERANCE`].
    ///
    /// # Errors
    /// [`ModelError::SelfTest`] for the first that differs, [`ModelError::Input`] for one that
    /// cannot be run.
    pub fn self_test(&self) -> Result<(), ModelError> {
        self.self_test_with(&mut Scratch::default())
    }

    fn self_test_with(&self, scratch: &mut Scratch) -> Result<(), ModelError> {
        let mut verdicts = Vec::new();
        for (index, test) in self.self_tests.iter().enumerate() {
            // The manifest has been checked: the task is there.
            let tasks: Vec<usize> = self
                .tasks
                .iter()
                .position(|task| task.name == test.task)
                .into_iter()
                .collect();
            let item = Item {
                tokens: &test.tokens,
                tasks: &tasks,
            };
            self.classify(&[item], scratch, &mut verdicts)?;
            let Some(verdict) = verdicts.first() else {
                let found = "no verdict".to_owned();
                return Err(self_test_error(index, test, found));
            };
            let label = &self.tasks[verdict.task].labels[verdict.label as usize];
            // Written so that a score that is not a number fails.
            let close = (verdict.score - test.score).abs() <= SELF_TEST_TOLERANCE;
            if *label != test.label || !close {
                let found = format!("{label} with score {}", verdict.score);
                return Err(self_test_error(index, test, found));
            }
        }
        Ok(())
    }
}

fn weights_error(file: &str, error: &TransformerError) -> ModelError {
    let memory = match error {
        TransformerError::Kernels(source) | TransformerError::Matrix { source, .. } => {
            memory::refused(source)
        }
        _ => None,
    };
    memory
        .unwrap_or_else(|| ModelError::invalid(file, "weights", "weights that make a model", error))
}

fn self_test_error(index: usize, test: &SelfTest, found: String) -> ModelError {
    ModelError::SelfTest {
        index,
        task: test.task.clone(),
        expected: format!(
            "{} with score {} (within {SELF_TEST_TOLERANCE})",
            test.label, test.score
        ),
        found,
    }
}

fn forward_error(error: &TransformerError) -> ModelError {
    let memory = match error {
        TransformerError::Kernels(source) => memory::refused(source),
        _ => None,
    };
    memory.unwrap_or_else(|| ModelError::Forward {
        message: error.to_string(),
    })
}

/// The dot product of two rows of equal length, summed in a fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}
