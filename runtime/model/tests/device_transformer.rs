//! The forward pass on a device against the processor's, without bundles: all kinds of weights, factors, prefixes, beginnings, parts.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use std::sync::Arc;

use common::{Numbers, float_weights};
use trafficllm_cuda_emulator::{EmulatedDevice, Options};
use trafficllm_kernels::{Int4Matrix, WeightMatrix};
use trafficllm_model::transformer::{
    self, DeviceBase, DeviceBeginning, DeviceQuery, DeviceSequence, DeviceTask, DeviceTransformer,
    LaneSizes, LoraFactors, Query, Sequence, TaskLora, TaskPrefix, Transformer, TransformerConfig,
    TransformerError, TransformerLane, TransformerWeights,
};
use trafficllm_model::{Activations, Device, DeviceError, DeviceOptions, LabelTrie, Level};

/// How far a state may be from the processor's, as a share of its length. Attention takes 16-bit floats: about one value in twenty then
/// becomes the next step of 8 bits, which is as much as that quantisation loses by itself. Found: 0.017 with 8 bits a weight, 0.023 with 4.
const TOLERANCE: f32 = 0.04;

const LABELS: usize = 5;

fn config() -> TransformerConfig {
    TransformerConfig {
        vocabulary: 40,
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        feed_forward: 96,
        context: 200,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    }
}

fn int8_weights(config: &TransformerConfig, seed: u64) -> TransformerWeights {
    float_weights(config, seed).quantise().unwrap()
}

/// 4 bits a weight, for every matrix.
fn int4_weights(config: &TransformerConfig, seed: u64, has_minimums: bool) -> TransformerWeights {
    let mut numbers = Numbers::new(seed);
    let mut weights = int8_weights(config, seed);
    let mut replace = |matrix: &mut WeightMatrix| {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let groups = rows * columns / 32;
        let size = 0.25 / (columns as f32).sqrt();
        let nibbles = (0..rows * columns / 2).map(|_| numbers.below(256) as u8);
        let nibbles = nibbles.collect();
        let scales: Vec<f32> = (0..groups)
            .map(|_| size * (0.5 + numbers.below(1000) as f32 / 1000.0))
            .collect();
        let minimums = if has_minimums {
            scales.iter().map(|scale| scale * 7.5).collect()
        } else {
            Vec::new()
        };
        *matrix = Int4Matrix {
            rows,
            columns,
            nibbles,
            scales,
            minimums,
        }
        .into();
    };
    replace(&mut weights.token_embedding);
    for layer in &mut weights.layers {
        for matrix in [
            &mut layer.query,
            &mut layer.key,
            &mut layer.value,
            &mut layer.output,
            &mut layer.gate,
            &mut layer.up,
            &mut layer.down,
        ] {
            replace(matrix);
        }
    }
    weights
}

/// One task's things, made up.
struct Task {
    prefix: TaskPrefix,
    query_embedding: Vec<f32>,
    label_embedding: Vec<f32>,
    lora: Option<TaskLora>,
    trie: LabelTrie,
    label_weight: Vec<f32>,
}

impl Task {
    fn random(
        config: &TransformerConfig,
        seed: u64,
        (rows, prefix_tokens, rank): (usize, usize, usize),
    ) -> Self {
        let mut numbers = Numbers::new(seed);
        let (hidden, query, key, inner) = (
            config.hidden,
            config.query_size(),
            config.key_size(),
            config.feed_forward,
        );
        let channels = [
            (hidden, query + 2 * key),
            (query, hidden),
            (hidden, 2 * inner),
            (inner, hidden),
        ];
        let lora = (rank > 0).then(|| TaskLora {
            rank,
            factors: channels.map(|(inputs, outputs)| LoraFactors {
                a: numbers.floats(config.layers * rank * inputs, 0.2),
                b: numbers.floats(config.layers * rank * outputs, 0.2),
            }),
        });
        let paths: Vec<Vec<u32>> = (0..LABELS as u32).map(|word| vec![word]).collect();
        Self {
            prefix: TaskPrefix {
                prefix_tokens,
                keys: numbers.floats(config.layers * prefix_tokens * key, 1.0),
                values: numbers.floats(config.layers * prefix_tokens * key, 1.0),
            },
            query_embedding: numbers.floats(rows * hidden, 1.0),
            label_embedding: numbers.floats(LABELS * hidden, 1.0),
            lora,
            trie: LabelTrie::new("task", &paths, LABELS).unwrap(),
            label_weight: numbers.floats(LABELS * hidden, 1.0),
        }
    }

    fn for_device(&self) -> DeviceTask<'_> {
        DeviceTask {
            prefix: &self.prefix,
            query_embedding: &self.query_embedding,
            label_embedding: &self.label_embedding,
            lora: self.lora.as_ref(),
            trie: &self.trie,
            temperature: 2.0,
            label_weight: &self.label_weight,
        }
    }

    /// Its rows with those of words.
    fn rows(&self, words: &[u32], hidden: usize) -> Vec<f32> {
        let mut rows = self.query_embedding.clone();
        for &word in words {
            rows.extend_from_slice(&self.label_embedding[word as usize * hidden..][..hidden]);
        }
        rows
    }
}

fn tasks(config: &TransformerConfig) -> Vec<Task> {
    let sizes = [(2, 3, 3), (1, 0, 0), (18, 5, 0), (3, 2, 8)];
    let sizes = sizes.into_iter().enumerate();
    sizes
        .map(|(at, sizes)| Task::random(config, 50 + at as u64, sizes))
        .collect()
}

fn emulated(seed: u64) -> Arc<dyn Device> {
    EmulatedDevice::new(&Options {
        capability: (8, 0),
        seed,
        late: seed % 2 == 1,
        ..Options::default()
    })
}

fn on_device(
    device: Arc<dyn Device>,
    weights: &TransformerWeights,
    tasks: &[Task],
    options: DeviceOptions,
) -> Result<Arc<DeviceTransformer>, TransformerError> {
    let tasks: Vec<DeviceTask<'_>> = tasks.iter().map(Task::for_device).collect();
    let base = DeviceBase {
        config: &weights.config,
        token_embedding: &weights.token_embedding,
        output_norm: &weights.output_norm,
    };
    DeviceTransformer::new(device, base, &weights.layers, &tasks, options).map(Arc::new)
}

/// What is asked: tokens with task and words of each query.
type Asked = Vec<(Vec<u32>, Vec<(usize, Vec<u32>)>)>;

/// Sequences of different lengths, one empty, one without queries, one with many.
fn asked(seed: u64, lengths: &[usize]) -> Asked {
    let mut numbers = Numbers::new(seed);
    let sequence = |(at, length): (usize, &usize)| {
        let tokens = (0..*length).map(|_| numbers.below(40) as u32).collect();
        let queries = match at % 4 {
            0 => vec![(0, vec![]), (1, vec![]), (2, vec![]), (3, vec![])],
            1 => vec![(3, vec![1, 4]), (0, vec![2])],
            2 => vec![],
            _ => vec![(1, vec![])],
        };
        (tokens, queries)
    };
    lengths.iter().enumerate().map(sequence).collect()
}

fn on_processor(
    weights: TransformerWeights,
    tasks: &[Task],
    asked: &Asked,
    begin: &[u32],
) -> Vec<f32> {
    let hidden = weights.config.hidden;
    let transformer = Transformer::new(Level::Portable, weights).unwrap();
    let mut scratch = transformer::Scratch::default();
    let beginning = transformer.begin(begin, &mut scratch).unwrap();
    let rows: Vec<Vec<Vec<f32>>> = asked
        .iter()
        .map(|(_, queries)| {
            let rows = queries.iter();
            rows.map(|(task, words)| tasks[*task].rows(words, hidden))
                .collect()
        })
        .collect();
    let queries: Vec<Vec<Query<'_>>> = asked
        .iter()
        .zip(&rows)
        .map(|((_, queries), rows)| {
            let queries = queries.iter().zip(rows);
            queries
                .map(|((task, _), rows)| Query {
                    prefix: &tasks[*task].prefix,
                    embeddings: rows,
                    lora: tasks[*task].lora.as_ref(),
                })
                .collect()
        })
        .collect();
    let sequences: Vec<Sequence<'_>> = asked
        .iter()
        .zip(&queries)
        .map(|((tokens, _), queries)| Sequence {
            beginning: (!begin.is_empty()).then_some(&beginning),
            tokens,
            queries,
        })
        .collect();
    let mut states = Vec::new();
    transformer
        .forward(&sequences, &mut scratch, &mut states)
        .unwrap();
    states
}

/// The states of a lane, after its choices and probabilities have been held against them.
fn lane_states(
    lane: &mut TransformerLane,
    tasks: &[Task],
    asked: &Asked,
    beginning: Option<&DeviceBeginning>,
) -> Result<Vec<f32>, DeviceError> {
    let queries: Vec<Vec<DeviceQuery<'_>>> = asked
        .iter()
        .map(|(_, queries)| {
            let queries = queries.iter();
            queries
                .map(|(task, words)| DeviceQuery {
                    task: *task,
                    words,
                    node: 0,
                })
                .collect()
        })
        .collect();
    let sequences: Vec<DeviceSequence<'_>> = asked
        .iter()
        .zip(&queries)
        .map(|((tokens, _), queries)| DeviceSequence { tokens, queries })
        .collect();
    let mut of = queries.iter().flatten().map(|query| &tasks[query.task]);
    let mut states = Vec::new();
    lane.forward(&sequences, beginning, true, |decided| {
        let task = of.next().unwrap();
        let mut logits: Vec<f32> = task
            .label_weight
            .chunks_exact(decided.state.len())
            .map(|row| row.iter().zip(decided.state).map(|(a, b)| a * b).sum())
            .collect();
        let best = (0..LABELS)
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
            .unwrap();
        trafficllm_model::calibration::softmax(&mut logits, 2.0);
        assert_eq!((decided.best, decided.probabilities.len()), (best, LABELS));
        for (found, expected) in decided.probabilities.iter().zip(&logits) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        states.extend_from_slice(decided.state);
    })?;
    assert!(of.next().is_none(), "an answer to every query");
    Ok(states)
}

/// The largest distance of a state from the expected one, as a share of the length of that.
fn distance(found: &[f32], expected: &[f32], hidden: usize) -> f32 {
    assert_eq!(found.len(), expected.len());
    let length = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| value * value).sum::<f32>().sqrt()
    };
    let states = found
        .chunks_exact(hidden)
        .zip(expected.chunks_exact(hidden));
    let of_state = |(found, expected): (&[f32], &[f32])| {
        let mut differences = found.iter().zip(expected).map(|(a, b)| a - b);
        length(&mut differences) / length(&mut expected.iter().copied())
    };
    states.map(of_state).fold(0.0, f32::max)
}

const SIZES: LaneSizes = LaneSizes {
    tokens: 100,
    query_rows: 60,
    queries: 12,
    sequences: 4,
    beginning_tokens: 20,
};

fn check(weights: &TransformerWeights, options: DeviceOptions, sizes: &LaneSizes) {
    let config = &weights.config;
    let tasks = tasks(config);
    let model = on_device(emulated(1), weights, &tasks, options).unwrap();
    let mut lane = TransformerLane::new(&model, sizes).unwrap();
    let asked = asked(3, &[5, 20, 4, 0]);
    let found = lane_states(&mut lane, &tasks, &asked, None).unwrap();
    let expected = on_processor(weights.clone(), &tasks, &asked, &[]);
    let distance = distance(&found, &expected, config.hidden);
    assert!(distance < TOLERANCE, "{distance}");
}

#[test]
fn states_are_those_of_the_processor_whatever_the_batch() {
    let config = config();
    let weights = int8_weights(&config, 1);
    let tasks = tasks(&config);
    let model = on_device(emulated(0), &weights, &tasks, DeviceOptions::default()).unwrap();
    let mut lane = TransformerLane::new(&model, &SIZES).unwrap();
    let batches = [
        asked(1, &[5, 20, 4, 0]),
        // The same class again, with other counts.
        asked(2, &[7, 21, 0, 1]),
        // More than 64 tokens, in two tiles.
        asked(3, &[70, 9, 3, 8]),
        // In parts.
        asked(4, &[30, 60, 10, 50, 66, 1, 2, 90, 3, 3]),
    ];
    let mut graphs = Vec::new();
    for batch in &batches {
        let found = lane_states(&mut lane, &tasks, batch, None).unwrap();
        let expected = on_processor(weights.clone(), &tasks, batch, &[]);
        let distance = distance(&found, &expected, config.hidden);
        assert!(distance < TOLERANCE, "{distance}");
        graphs.push(lane.graphs());
        // Again, from graphs alone: the same bits.
        assert_eq!(lane_states(&mut lane, &tasks, batch, None).unwrap(), found);
        assert_eq!(lane.graphs(), *graphs.last().unwrap());
        // One at a time: also the same bits.
        let mut alone = Vec::new();
        for sequence in batch {
            let one = vec![sequence.clone()];
            alone.extend(lane_states(&mut lane, &tasks, &one, None).unwrap());
        }
        assert_eq!(alone, found);
    }
}

#[test]
fn weights_of_4_bits_work_too() {
    let config = config();
    let small = LaneSizes {
        tokens: 40,
        query_rows: 40,
        ..SIZES
    };
    for has_minimums in [false, true] {
        let weights = int4_weights(&config, 5, has_minimums);
        check(&weights, DeviceOptions::default(), &small);
    }
}

#[test]
fn activations_of_16_bits_are_near_to_those_of_8() {
    let options = DeviceOptions {
        activations: Activations::Bf16,
        ..DeviceOptions::default()
    };
    // The distance is what the processor loses by 8 bits.
    check(&int8_weights(&config(), 1), options, &SIZES);
}

#[test]
fn sequences_that_follow_a_beginning_see_its_keys() {
    let config = config();
    let weights = int8_weights(&config, 1);
    let tasks = tasks(&config);
    let model = on_device(emulated(3), &weights, &tasks, DeviceOptions::default()).unwrap();
    let mut lane = TransformerLane::new(&model, &SIZES).unwrap();
    let batch = asked(6, &[5, 20, 4, 0]);
    let begins: [Vec<u32>; 2] = [(0..20).collect(), vec![7, 8, 9]];
    for begin in &begins {
        let beginning = lane.begin(begin).unwrap();
        assert_eq!(beginning.tokens(), begin.len());
        let found = lane_states(&mut lane, &tasks, &batch, Some(&beginning)).unwrap();
        let expected = on_processor(weights.clone(), &tasks, &batch, begin);
        let distance = distance(&found, &expected, config.hidden);
        assert!(distance < TOLERANCE, "{distance}");
        assert_ne!(lane_states(&mut lane, &tasks, &batch, None).unwrap(), found);
    }
    let long: Vec<u32> = vec![1; 21];
    assert!(matches!(lane.begin(&long), Err(DeviceError::Size { .. })));
}

#[test]
fn what_does_not_exist_or_fit_is_refused_and_the_lane_goes_on() {
    let config = config();
    let weights = int8_weights(&config, 1);
    let tasks = tasks(&config);
    let model = on_device(emulated(0), &weights, &tasks, DeviceOptions::default()).unwrap();
    let mut lane = TransformerLane::new(&model, &SIZES).unwrap();
    let run = |lane: &mut TransformerLane, tokens: &[u32], query: DeviceQuery<'_>| {
        let queries = [query];
        let sequence = DeviceSequence {
            tokens,
            queries: &queries,
        };
        lane.forward(&[sequence], None, false, |_| {})
    };
    let query = DeviceQuery {
        task: 0,
        words: &[],
        node: 0,
    };
    assert_eq!(run(&mut lane, &[1; 100], query), Ok(()));
    let wrong = [
        (vec![1, 40], query),
        (vec![1], DeviceQuery { task: 4, ..query }),
        (
            vec![1],
            DeviceQuery {
                words: &[5],
                ..query
            },
        ),
        (vec![1], DeviceQuery { node: 9, ..query }),
    ];
    for (tokens, query) in &wrong {
        let error = run(&mut lane, tokens, *query).unwrap_err();
        assert!(matches!(error, DeviceError::Index { .. }), "{error}");
    }
    let error = run(&mut lane, &[1; 101], query).unwrap_err();
    assert!(matches!(error, DeviceError::Size { .. }), "{error}");
    assert_eq!(run(&mut lane, &[1; 100], query), Ok(()));
}

#[test]
fn weights_and_tables_that_do_not_fit_are_refused() {
    let config = config();
    let weights = int8_weights(&config, 1);
    let make = |weights: &TransformerWeights, tasks: &[Task]| {
        on_device(emulated(0), weights, tasks, DeviceOptions::default()).unwrap_err()
    };
    let mut fewer = weights.clone();
    fewer.layers.pop();
    let error = make(&fewer, &[]).to_string();
    assert!(error.contains("layers"), "{error}");
    let mut wrong = weights.clone();
    wrong.layers[1].gate = weights.layers[1].down.clone();
    let error = make(&wrong, &[]).to_string();
    assert!(error.starts_with("layer 1, gate"), "{error}");
    let edits: [fn(&mut Task); 5] = [
        |task| task.query_embedding.clear(),
        |task| task.label_embedding.truncate(1),
        |task| task.prefix.values.truncate(1),
        |task| task.label_weight.truncate(1),
        |task| {
            let factors = task.lora.as_mut().map(|lora| &mut lora.factors[3]);
            factors.unwrap().b.pop();
        },
    ];
    for edit in edits {
        let mut tasks = tasks(&config);
        edit(&mut tasks[0]);
        let error = make(&weights, &tasks);
        assert!(matches!(error, TransformerError::Device(_)), "{error}");
    }
}
