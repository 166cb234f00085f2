//! A loaded model: from token ids to labels with scores.

use trafficllm_kernels::Level;

use crate::adapter::{Adapter, AdapterShape};
use crate::bundle::{Bundle, MANIFEST_NAME, SelfTest, TaskKind, TaskManifest};
use crate::calibration::softmax;
use crate::error::ModelError;
use crate::gguf::{Gguf, load_weights};
use crate::labels::{Child, LabelTrie, Step, highest};
use crate::limits;
use crate::transformer::{self, Query, Sequence, TaskPrefix, Transformer, TransformerConfig};

/// How far a self-test's score may be from the one in the manifest. Kernels sum floats in different
/// orders, and where an activation lies between two int8 steps that decides which one it becomes;
/// labels have to agree exactly.
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
        Ok(Self {
            name: task.name.clone(),
            kind: task.kind,
            labels: task.labels.clone(),
            temperature: task.temperature,
            threshold: task.threshold,
            trie,
            prefix: TaskPrefix {
                prefix_tokens: adapter.prefix_tokens,
                keys: adapter.prefix_key,
                values: adapter.prefix_value,
            },
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

/// Buffers of [`Model::classify`]; one per thread, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    transformer: transformer::Scratch,
    states: Vec<f32>,
    logits: Vec<f32>,
}

/// A bundle made ready to answer; immutable, shared by all threads.
#[derive(Debug)]
pub struct Model {
    id: String,
    transformer: Transformer,
    tasks: Vec<Task>,
    self_tests: Vec<SelfTest>,
}

/// A label that is still being decoded.
struct Pending {
    item: usize,
    task: usize,
    /// Where its verdict goes.
    verdict: usize,
    node: usize,
    score: f32,
    /// The task's query rows and those of the words chosen so far, `[rows, hidden]`.
    rows: Vec<f32>,
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
        let transformer = Transformer::new(level, &weights).map_err(|error| {
            ModelError::invalid(base, "weights", "weights that make a model", error)
        })?;
        let config = transformer.config();
        let shape = AdapterShape {
            hidden: config.hidden,
            layers: config.layers,
            key_value: config.key_size(),
        };
        let mut tasks = Vec::with_capacity(manifest.tasks.len());
        for task in &manifest.tasks {
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
            self_tests: manifest.self_test.clone(),
        })
    }

    /// The identity of the bundle: [`Bundle::id`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tasks, in the order of the manifest.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
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

    /// The most tokens an item may have, whichever tasks it asks.
    #[must_use]
    pub fn item_tokens_max(&self) -> usize {
        let rows = self.tasks.iter().map(Task::rows_max).max().unwrap_or(0);
        (self.config().context - rows).min(limits::ITEM_TOKENS_MAX)
    }

    /// Classifies items as one batch. `verdicts` is cleared and gets one entry per item and task,
    /// in the order of the call. The same item gets the same verdict, whatever else is in the
    /// batch.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an item without tokens, with too many, with an id outside the
    /// vocabulary or with a task that the model does not have; `verdicts` is then empty.
    pub fn classify(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        verdicts: &mut Vec<TaskVerdict>,
    ) -> Result<(), ModelError> {
        verdicts.clear();
        self.run_queries(items, scratch)?;
        let hidden = self.config().hidden;
        let mut pending = Vec::new();
        let Scratch { states, logits, .. } = &mut *scratch;
        let pairs = items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| item.tasks.iter().map(move |task| (index, *task)));
        for ((item, task), state) in pairs.zip(states.chunks_exact(hidden)) {
            let verdict = verdicts.len();
            verdicts.push(TaskVerdict {
                item,
                task,
                label: 0,
                score: 0.0,
                abstained: true,
            });
            let start = Pending {
                item,
                task,
                verdict,
                node: LabelTrie::ROOT,
                score: 1.0,
                rows: Vec::new(),
            };
            self.step(start, state, logits, verdicts, &mut pending);
        }
        while !pending.is_empty() {
            pending = self
                .decode_further(items, pending, scratch, verdicts)
                .inspect_err(|_| verdicts.clear())?;
        }
        Ok(())
    }

    /// The logits at the root of each task's label trie, for calibration. `out` is cleared and gets
    /// one entry per item and task.
    ///
    /// # Errors
    /// As [`Model::classify`].
    pub fn classify_logits(
        &self,
        items: &[Item<'_>],
        scratch: &mut Scratch,
        out: &mut Vec<TaskLogits>,
    ) -> Result<(), ModelError> {
        out.clear();
        self.run_queries(items, scratch)?;
        let pairs = items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| item.tasks.iter().map(move |task| (index, *task)));
        for ((item, task), state) in pairs.zip(scratch.states.chunks_exact(self.config().hidden)) {
            let mut logits = Vec::new();
            self.tasks[task].logits(
                self.tasks[task].trie.children(LabelTrie::ROOT),
                state,
                &mut logits,
            );
            out.push(TaskLogits { item, task, logits });
        }
        Ok(())
    }

    /// Runs the manifest's self-tests: labels have to agree, scores within [`SELF_TEST_TOLERANCE`].
    ///
    /// # Errors
    /// [`ModelError::SelfTest`] for the first that differs, [`ModelError::Input`] for one that
    /// cannot be run.
    pub fn self_test(&self) -> Result<(), ModelError> {
        let mut scratch = Scratch::default();
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
            self.classify(&[item], &mut scratch, &mut verdicts)?;
            let Some(verdict) = verdicts.first() else {
                return Err(self_test_error(index, test, "no verdict".to_owned()));
            };
            let label = &self.tasks[verdict.task].labels[verdict.label as usize];
            // Written so that a score that is not a number fails.
            let close = (verdict.score - test.score).abs() <= SELF_TEST_TOLERANCE;
            if *label != test.label || !close {
                return Err(self_test_error(
                    index,
                    test,
                    format!("{label} with score {}", verdict.score),
                ));
            }
        }
        Ok(())
    }

    /// Checks the items and leaves the final state of every item's every query, `[queries,
    /// hidden]`, in the scratch.
    fn run_queries(&self, items: &[Item<'_>], scratch: &mut Scratch) -> Result<(), ModelError> {
        for (index, item) in items.iter().enumerate() {
            self.check_item(index, item)?;
        }
        let queries: Vec<Vec<Query<'_>>> = items
            .iter()
            .map(|item| {
                item.tasks
                    .iter()
                    .map(|&task| self.query(task, None))
                    .collect()
            })
            .collect();
        let sequences: Vec<Sequence<'_>> = items
            .iter()
            .zip(&queries)
            .map(|(item, queries)| Sequence {
                beginning: None,
                tokens: item.tokens,
                queries,
            })
            .collect();
        self.forward(&sequences, scratch)
    }

    /// Runs one more row for every label that is not decoded yet. The sequence runs again from its
    /// start: deep tries are rare and their labels short, so keeping keys and values between rounds
    /// would cost more memory than it saves time.
    fn decode_further(
        &self,
        items: &[Item<'_>],
        pending: Vec<Pending>,
        scratch: &mut Scratch,
        verdicts: &mut [TaskVerdict],
    ) -> Result<Vec<Pending>, ModelError> {
        let queries: Vec<[Query<'_>; 1]> = pending
            .iter()
            .map(|label| [self.query(label.task, Some(&label.rows))])
            .collect();
        let sequences: Vec<Sequence<'_>> = pending
            .iter()
            .zip(&queries)
            .map(|(label, queries)| Sequence {
                beginning: None,
                tokens: items[label.item].tokens,
                queries,
            })
            .collect();
        self.forward(&sequences, scratch)?;
        drop(sequences);
        drop(queries);
        let Scratch { states, logits, .. } = scratch;
        let mut next = Vec::new();
        for (label, state) in pending
            .into_iter()
            .zip(states.chunks_exact(self.config().hidden))
        {
            self.step(label, state, logits, verdicts, &mut next);
        }
        Ok(next)
    }

    /// Takes the likeliest child: either a label, which completes the verdict, or a node, from
    /// where decoding has to go on.
    fn step(
        &self,
        mut label: Pending,
        state: &[f32],
        logits: &mut Vec<f32>,
        verdicts: &mut [TaskVerdict],
        pending: &mut Vec<Pending>,
    ) {
        let task = &self.tasks[label.task];
        let children = task.trie.children(label.node);
        task.logits(children, state, logits);
        // The choice is taken on the logits: far behind the comma two different logits can have
        // equal probabilities.
        let best = highest(logits);
        softmax(logits, task.temperature);
        label.score *= logits[best];
        match children[best].next {
            Step::Label(index) => {
                let verdict = &mut verdicts[label.verdict];
                verdict.label = index;
                // Absurd weights overflow to a score that is no number: such a verdict knows
                // nothing, whatever the threshold.
                let is_number = label.score.is_finite();
                verdict.score = if is_number { label.score } else { 0.0 };
                verdict.abstained = !is_number || label.score < task.threshold;
            }
            Step::Node(node) => {
                label.node = node;
                if label.rows.is_empty() {
                    label.rows.extend_from_slice(&task.query_embedding);
                }
                let word = children[best].word as usize;
                label
                    .rows
                    .extend_from_slice(&task.label_embedding[word * state.len()..][..state.len()]);
                pending.push(label);
            }
        }
    }

    fn query<'a>(&'a self, task: usize, rows: Option<&'a [f32]>) -> Query<'a> {
        let task = &self.tasks[task];
        Query {
            prefix: &task.prefix,
            embeddings: rows.unwrap_or(&task.query_embedding),
        }
    }

    fn forward(&self, sequences: &[Sequence<'_>], scratch: &mut Scratch) -> Result<(), ModelError> {
        let Scratch {
            transformer,
            states,
            ..
        } = scratch;
        states.clear();
        self.transformer
            .forward(sequences, transformer, states)
            .map_err(|error| ModelError::Forward {
                message: error.to_string(),
            })?;
        let queries: usize = sequences
            .iter()
            .map(|sequence| sequence.queries.len())
            .sum();
        let expected = queries * self.config().hidden;
        if states.len() != expected {
            let message = format!(
                "expected {expected} values of hidden state, found {}",
                states.len()
            );
            return Err(ModelError::Forward { message });
        }
        Ok(())
    }

    fn check_item(&self, index: usize, item: &Item<'_>) -> Result<(), ModelError> {
        let input = |field, expected: String, found: String| ModelError::Input {
            item: index,
            field,
            expected,
            found,
        };
        if item.tokens.is_empty() {
            return Err(input("tokens", "at least 1".to_owned(), "0".to_owned()));
        }
        let tokens_max = self.item_tokens_max();
        if item.tokens.len() > tokens_max {
            return Err(input(
                "tokens",
                format!("at most {tokens_max}"),
                item.tokens.len().to_string(),
            ));
        }
        let vocabulary = self.config().vocabulary;
        if let Some(id) = item.tokens.iter().find(|id| **id as usize >= vocabulary) {
            return Err(input(
                "token id",
                format!("below {vocabulary}"),
                id.to_string(),
            ));
        }
        if let Some(task) = item.tasks.iter().find(|task| **task >= self.tasks.len()) {
            return Err(input(
                "task",
                format!("below {}", self.tasks.len()),
                task.to_string(),
            ));
        }
        Ok(())
    }
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
