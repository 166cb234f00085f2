//! What a device keeps of tasks: their rows, prefixes, factors and labels, each kind in one table for all of them.

use trafficllm_kernels::cuda::{
    Buffer, DeviceError, FactorTable, Factors, LabelNode, LabelTable, Stream,
};
use trafficllm_kernels::half;
use trafficllm_kernels::memory::try_with_capacity;

use crate::adapter::AdapterShape;
use crate::labels::LabelTrie;
use crate::transformer::{TaskLora, TaskPrefix, TransformerConfig};

/// The largest number of a 16-bit float: what is larger is cut off there.
const HALF_MAX: f32 = 65_504.0;

/// One task, to be given to a device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceTask<'a> {
    /// What its rows see besides the sequence and each other.
    pub prefix: &'a TaskPrefix,
    /// `[query rows, hidden]` f32, at least one row.
    pub query_embedding: &'a [f32],
    /// `[label words, hidden]` f32: what a chosen word feeds back; may be empty.
    pub label_embedding: &'a [f32],
    /// What is added to the products of its rows, if anything.
    pub lora: Option<&'a TaskLora>,
    /// Its labels as paths of label words.
    pub trie: &'a LabelTrie,
    /// Logits are divided by this before softmax.
    pub temperature: f32,
    /// `[label words, hidden]` f32.
    pub label_weight: &'a [f32],
}

/// Where a task's things stand in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TaskRows {
    /// Its first row among the query embeddings; those of its words follow its own.
    pub(super) first_row: u32,
    pub(super) query_rows: usize,
    pub(super) words: u32,
    /// Its first row among the prefixes of a layer.
    pub(super) first_prefix: u32,
    pub(super) prefix_rows: u32,
    /// The root of its trie.
    pub(super) first_node: u32,
    pub(super) has_lora: bool,
}

impl TaskRows {
    /// A task that does not exist: no table has such a node.
    pub(super) const MISSING: Self = Self {
        first_row: u32::MAX,
        query_rows: 0,
        words: 0,
        first_prefix: 0,
        prefix_rows: 0,
        first_node: u32::MAX,
        has_lora: false,
    };

    /// The row of a word, or one that no table has.
    pub(super) fn row_of_word(&self, word: u32) -> u32 {
        if word < self.words {
            self.first_row + self.query_rows as u32 + word
        } else {
            u32::MAX
        }
    }
}

/// The tables of all tasks.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) rows: Vec<TaskRows>,
    /// `[rows of all tasks, hidden]`: query rows and label words.
    pub(super) embeddings: Buffer<f32>,
    pub(super) embedding_rows: usize,
    /// `[layers, prefix rows of all tasks, key size]` 16-bit floats: keys and values.
    pub(super) prefixes: Option<Halves>,
    pub(super) prefix_rows: usize,
    /// `[layers]`, empty where no task has factors.
    pub(super) factors: Vec<[FactorTable; 4]>,
    pub(super) labels: LabelTable,
    /// How many children each node has.
    pub(super) node_children: Vec<u32>,
}

impl Tasks {
    /// Checks and uploads the tables.
    pub(super) fn upload(
        stream: &mut Stream,
        config: &TransformerConfig,
        tasks: &[DeviceTask<'_>],
    ) -> Result<Self, DeviceError> {
        let hidden = config.hidden;
        for task in tasks {
            check(config, task)?;
        }
        let mut rows = Vec::new();
        let of_rows = tasks
            .iter()
            .map(|task| task.query_embedding.len() + task.label_embedding.len());
        let mut embeddings = try_with_capacity("query rows", of_rows.sum())?;
        let of_words = tasks.iter().map(|task| task.label_weight.len());
        let mut label_weight = try_with_capacity("label words", of_words.sum())?;
        let (mut nodes, mut children) = (Vec::new(), Vec::new());
        let mut prefix_rows = 0;
        for task in tasks {
            rows.push(TaskRows {
                first_row: (embeddings.len() / hidden) as u32,
                query_rows: task.query_embedding.len() / hidden,
                words: (task.label_embedding.len() / hidden) as u32,
                first_prefix: prefix_rows as u32,
                prefix_rows: task.prefix.prefix_tokens as u32,
                first_node: nodes.len() as u32,
                has_lora: task.lora.is_some(),
            });
            embeddings.extend_from_slice(task.query_embedding);
            embeddings.extend_from_slice(task.label_embedding);
            prefix_rows += task.prefix.prefix_tokens;
            let first_word = (label_weight.len() / hidden) as u32;
            for node in 0..task.trie.nodes() {
                let of_node = task.trie.children(node);
                nodes.push(LabelNode {
                    first_child: children.len() as u32,
                    children: of_node.len() as u32,
                    temperature: task.temperature,
                    reserved: 0,
                });
                children.extend(of_node.iter().map(|child| first_word + child.word));
            }
            label_weight.extend_from_slice(task.label_weight);
        }
        let label_weight = Buffer::uploaded(stream, "label words", &label_weight)?;
        Ok(Self {
            rows,
            embedding_rows: embeddings.len() / hidden,
            embeddings: Buffer::uploaded(stream, "query rows", &embeddings)?,
            prefixes: upload_prefixes(stream, config, tasks, prefix_rows)?,
            prefix_rows,
            factors: upload_factors(stream, config, tasks)?,
            labels: LabelTable::upload(stream, &nodes, &children, &label_weight, hidden)?,
            node_children: nodes.iter().map(|node| node.children).collect(),
        })
    }
}

fn check(config: &TransformerConfig, task: &DeviceTask<'_>) -> Result<(), DeviceError> {
    let hidden = config.hidden;
    let size = |what, expected, found| DeviceError::Size {
        what,
        expected,
        found,
    };
    let rows = task.query_embedding.len();
    if rows == 0 || !rows.is_multiple_of(hidden) {
        let expected = rows.next_multiple_of(hidden).max(hidden);
        return Err(size("values of query rows", expected, rows));
    }
    let words = task.label_embedding.len();
    if !words.is_multiple_of(hidden) {
        let expected = words.next_multiple_of(hidden);
        return Err(size("values of label words", expected, words));
    }
    let expected = config.layers * task.prefix.prefix_tokens * config.key_size();
    for found in [task.prefix.keys.len(), task.prefix.values.len()] {
        if found != expected {
            return Err(size("values of a prefix", expected, found));
        }
    }
    let factors = task.lora.and_then(|lora| lora.mismatch(config));
    if let Some((what, _, found)) = factors {
        return Err(DeviceError::Unsupported {
            what,
            limit: "what the model's sizes ask for",
            found,
        });
    }
    let named = (0..task.trie.nodes()).flat_map(|node| task.trie.children(node));
    let words = named
        .map(|child| child.word as usize + 1)
        .max()
        .unwrap_or(0);
    if task.label_weight.len() < words * hidden {
        let found = task.label_weight.len();
        return Err(size("values of label words", words * hidden, found));
    }
    Ok(())
}

/// Keys and values, 16-bit floats.
type Halves = (Buffer<u16>, Buffer<u16>);

/// Both factors of one kind of matrix, of all layers.
type TwoFactors = (Buffer<f32>, Buffer<f32>);

/// Keys and values of all prefixes, layer by layer.
fn upload_prefixes(
    stream: &mut Stream,
    config: &TransformerConfig,
    tasks: &[DeviceTask<'_>],
    prefix_rows: usize,
) -> Result<Option<Halves>, DeviceError> {
    if prefix_rows == 0 {
        return Ok(None);
    }
    let mut halves = |of: fn(&TaskPrefix) -> &[f32]| {
        let values = config.layers * prefix_rows * config.key_size();
        let mut all = try_with_capacity("prefixes of tasks", values)?;
        for layer in 0..config.layers {
            for task in tasks {
                let size = task.prefix.prefix_tokens * config.key_size();
                let values = &of(task.prefix)[layer * size..][..size];
                let cut = values.iter().map(|value| value.clamp(-HALF_MAX, HALF_MAX));
                all.extend(cut.map(half::to_bits));
            }
        }
        Buffer::uploaded(stream, "prefixes of tasks", &all)
    };
    Ok(Some((
        halves(|prefix| &prefix.keys)?,
        halves(|prefix| &prefix.values)?,
    )))
}

/// The factors of all tasks, one table for each matrix of each layer.
fn upload_factors(
    stream: &mut Stream,
    config: &TransformerConfig,
    tasks: &[DeviceTask<'_>],
) -> Result<Vec<[FactorTable; 4]>, DeviceError> {
    const WHAT: &str = "low-rank factors";
    if tasks.iter().all(|task| task.lora.is_none()) {
        return Ok(Vec::new());
    }
    let channels = AdapterShape::of(config).lora_channels();
    // Each factor of all layers at once: a layer's are a part of it.
    let mut uploaded = Vec::new();
    for task in tasks {
        let mut of_task = Vec::new();
        for factors in task.lora.iter().flat_map(|lora| &lora.factors) {
            let a = Buffer::uploaded(stream, WHAT, &factors.a)?;
            of_task.push((a, Buffer::uploaded(stream, WHAT, &factors.b)?));
        }
        uploaded.push((task.lora.map_or(0, |lora| lora.rank), of_task));
    }
    let part = |all: &Buffer<f32>, layer: usize| {
        let size = all.length() / config.layers;
        all.part(layer * size..(layer + 1) * size)
    };
    let mut layers = Vec::new();
    for layer in 0..config.layers {
        let mut table = |matrix: usize| {
            let of_task = |(rank, factors): &(usize, Vec<TwoFactors>)| {
                let of_layer = factors.get(matrix).map(|(a, b)| {
                    Ok(Factors {
                        rank: *rank,
                        a: part(a, layer)?,
                        b: part(b, layer)?,
                    })
                });
                of_layer.transpose()
            };
            let of_tasks = uploaded.iter().map(of_task);
            let of_tasks = of_tasks.collect::<Result<Vec<_>, DeviceError>>()?;
            let (inputs, outputs) = channels[matrix];
            FactorTable::upload(stream, inputs, outputs, &of_tasks)
        };
        layers.push([table(0)?, table(1)?, table(2)?, table(3)?]);
    }
    Ok(layers)
}
