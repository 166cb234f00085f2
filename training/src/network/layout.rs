//! Which parameters a network has, in which order and shape, and how they start.

use super::NetworkConfig;
use crate::random::Random;

/// Which part of the network a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Shared by all tasks.
    Base,
    /// Rows of tasks.
    Adapters,
}

/// Which rows of a parameter belong to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskRows {
    /// None: it is shared.
    Shared,
    /// So many in a row for each task.
    Equal(usize),
    /// One for each label.
    Labels,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Start {
    Zero,
    One,
    /// Normally distributed with this deviation.
    Normal(f64),
    /// Rows of keys and values, each half normally distributed with its own deviation.
    KeysAndValues(f64, f64),
}

/// Name, shape and treatment of a parameter.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) part: Part,
    pub(super) rows: TaskRows,
    /// Whether weight decay applies: matrices of the layers only.
    pub(super) decays: bool,
    start: Start,
}

/// Index of a parameter in the fixed order.
pub(super) struct Order {
    pub(super) layers: usize,
    pub(super) has_prefix: bool,
}

/// The name of the parameter at [`Order::TOKENS`].
pub(super) const TOKEN_TABLE: &str = "token_embd.weight";

/// Parameters of a layer, in their order.
pub(super) const PER_LAYER: usize = 6;

/// Low-rank factors of a layer, in their order: two for each of [`LORA_MATRICES`].
pub(super) const LORA_PER_LAYER: usize = 2 * LORA_MATRICES.len();

/// The matrices of a layer that have low-rank additions: their names, here and in adapter files.
pub(super) const LORA_MATRICES: [&str; 4] = ["attn_qkv", "attn_output", "ffn_gate_up", "ffn_down"];

/// Input and output channels of [`LORA_MATRICES`].
pub(super) fn lora_sizes(config: &NetworkConfig) -> [(usize, usize); 4] {
    let (hidden, feed_forward) = (config.hidden, config.feed_forward);
    [
        (hidden, hidden + 2 * config.kv_width()),
        (hidden, hidden),
        (hidden, 2 * feed_forward),
        (feed_forward, hidden),
    ]
}

impl Order {
    pub(super) const TOKENS: usize = 0;

    pub(super) fn layer(&self, layer: usize) -> usize {
        1 + layer * PER_LAYER
    }

    pub(super) fn output_norm(&self) -> usize {
        1 + self.layers * PER_LAYER
    }

    pub(super) fn queries(&self) -> usize {
        self.output_norm() + 1
    }

    pub(super) fn labels(&self) -> usize {
        self.output_norm() + 2
    }

    pub(super) fn prefix(&self, layer: usize) -> usize {
        self.output_norm() + 3 + layer
    }

    /// The first of a layer's low-rank factors.
    pub(super) fn lora(&self, layer: usize) -> usize {
        let prefixes = if self.has_prefix { self.layers } else { 0 };
        self.output_norm() + 3 + prefixes + layer * LORA_PER_LAYER
    }
}

pub(super) fn forms(config: &NetworkConfig) -> Vec<Form> {
    let (hidden, feed_forward) = (config.hidden, config.feed_forward);
    let base = |name: String, shape: Vec<usize>, decays: bool, start: Start| Form {
        name,
        shape,
        part: Part::Base,
        rows: TaskRows::Shared,
        decays,
        start,
    };
    let matrix = |name: String, out: usize, inner: usize, damping: f64| {
        base(
            name,
            vec![out, inner],
            true,
            Start::Normal(0.7 / (inner as f64).sqrt() / damping),
        )
    };
    let norm = |name: String| base(name, vec![hidden], false, Start::One);
    // Every layer adds two branches to the residual stream; this keeps its variance.
    let damping = (2.0 * config.layers as f64).sqrt();
    let mut forms = vec![base(
        TOKEN_TABLE.into(),
        vec![config.vocabulary, hidden],
        false,
        Start::Normal(0.02),
    )];
    for layer in 0..config.layers {
        forms.extend([
            norm(format!("blk.{layer}.attn_norm.weight")),
            matrix(
                format!("blk.{layer}.attn_qkv.weight"),
                hidden + 2 * config.kv_width(),
                hidden,
                1.0,
            ),
            matrix(
                format!("blk.{layer}.attn_output.weight"),
                hidden,
                hidden,
                damping,
            ),
            norm(format!("blk.{layer}.ffn_norm.weight")),
            matrix(
                format!("blk.{layer}.ffn_gate_up.weight"),
                2 * feed_forward,
                hidden,
                1.0,
            ),
            matrix(
                format!("blk.{layer}.ffn_down.weight"),
                hidden,
                feed_forward,
                damping,
            ),
        ]);
    }
    forms.push(norm("output_norm.weight".into()));
    forms.extend(adapter_forms(config));
    forms
}

fn adapter_forms(config: &NetworkConfig) -> Vec<Form> {
    let (tasks, hidden) = (config.task_labels.len(), config.hidden);
    if tasks == 0 {
        return Vec::new();
    }
    let form = |name: String, rows: TaskRows, columns: usize, start: Start| Form {
        name,
        shape: match rows {
            TaskRows::Equal(rows) => vec![tasks * rows, columns],
            _ => vec![config.labels(), columns],
        },
        part: Part::Adapters,
        rows,
        decays: false,
        start,
    };
    let mut forms = vec![
        form(
            "query.embedding".into(),
            TaskRows::Equal(config.query_tokens),
            hidden,
            Start::Normal(0.02),
        ),
        form(
            "label.weight".into(),
            TaskRows::Labels,
            hidden,
            Start::Normal(0.02),
        ),
    ];
    if config.prefix_tokens > 0 {
        let (rows, start) = (
            TaskRows::Equal(config.prefix_tokens),
            Start::KeysAndValues(0.5, 0.1),
        );
        forms.extend((0..config.layers).map(|layer| {
            form(
                format!("blk.{layer}.prefix"),
                rows,
                2 * config.kv_width(),
                start,
            )
        }));
    }
    if config.lora_rank > 0 {
        let rows = TaskRows::Equal(config.lora_rank);
        for layer in 0..config.layers {
            for (matrix, (inner, out)) in LORA_MATRICES.iter().zip(lora_sizes(config)) {
                // Nothing is added before the first step: the second factor is zero.
                let start = Start::Normal(1.0 / (inner as f64).sqrt());
                let name = format!("blk.{layer}.lora_{matrix}");
                forms.push(form(format!("{name}.a"), rows, inner, start));
                forms.push(form(format!("{name}.b"), rows, out, Start::Zero));
            }
        }
    }
    forms
}

impl Form {
    /// The values it starts with; they depend on the seed and on the name alone.
    pub(super) fn initial(&self, seed: u64) -> Vec<f32> {
        // The name makes the stream, so that adding a task or a layer leaves the others' values alone.
        let stream = self
            .name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
            });
        let mut random = Random::stream(seed, stream, 0);
        let count = self.shape.iter().product();
        match self.start {
            Start::Zero => vec![0.0; count],
            Start::One => vec![1.0; count],
            Start::Normal(deviation) => (0..count)
                .map(|_| (normal(&mut random) * deviation) as f32)
                .collect(),
            Start::KeysAndValues(keys, values) => {
                let width = self.shape[1];
                let deviation = |index: usize| {
                    if index % width < width / 2 {
                        keys
                    } else {
                        values
                    }
                };
                (0..count)
                    .map(|index| (normal(&mut random) * deviation(index)) as f32)
                    .collect()
            }
        }
    }
}

/// Near enough to a normal distribution, and the same on every machine: no library functions.
pub(super) fn normal(random: &mut Random) -> f64 {
    (0..12).map(|_| random.unit()).sum::<f64>() - 6.0
}
