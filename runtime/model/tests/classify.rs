//! Verdicts of a tiny model, compared with the same thing written the long way.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use std::collections::BTreeMap;

use common::{ADAPTER, Parts, config, float_weights, random_adapter, shape};
use serde_json::json;
use trafficllm_model::transformer::{self, Query, Sequence, TaskPrefix, Transformer};
use trafficllm_model::{Adapter, Bundle, Item, Level, Model, ModelError, Scratch, TaskVerdict};

/// Label paths of one, two and three words; word 2 is used at several depths.
const DEEP_PATHS: &[&[u32]] = &[&[0], &[2, 1], &[2, 3, 0], &[2, 3, 2], &[4, 2], &[4, 0]];
const WORDS: usize = 5;

fn model_with(paths: &[&[u32]], adapter: &Adapter, temperature: f32, threshold: f32) -> Model {
    let labels: Vec<String> = (0..paths.len())
        .map(|index| format!("label-{index}"))
        .collect();
    let bytes = Parts::sound()
        .with_file(ADAPTER, adapter.write(shape()).unwrap())
        .with("/tasks/0/labels", json!(labels))
        .with("/tasks/0/label_words", json!(paths))
        .with("/tasks/0/temperature", json!(temperature))
        .with("/tasks/0/threshold", json!(threshold))
        .with("/self_test/0/label", json!("label-0"))
        .pack();
    Model::load(&Bundle::from_bytes(bytes).unwrap(), Level::Portable).unwrap()
}

fn classify(model: &Model, items: &[Item<'_>]) -> Vec<TaskVerdict> {
    let mut verdicts = Vec::new();
    model
        .classify(items, &mut Scratch::default(), &mut verdicts)
        .unwrap();
    verdicts
}

/// The state after the query rows and the rows of the words chosen so far, from a transformer of
/// its own.
fn state(adapter: &Adapter, tokens: &[u32], words: &[u32]) -> Vec<f32> {
    let weights = float_weights(&config(), 1).quantise().unwrap();
    let transformer = Transformer::new(Level::Portable, weights.clone()).unwrap();
    let mut rows = adapter.query_embedding.clone();
    for &word in words {
        rows.extend(&adapter.label_embedding.as_ref().unwrap()[word as usize * 32..][..32]);
    }
    let prefix = TaskPrefix {
        prefix_tokens: adapter.prefix_tokens,
        keys: adapter.prefix_key.clone(),
        values: adapter.prefix_value.clone(),
    };
    let queries = [Query {
        prefix: &prefix,
        embeddings: &rows,
        lora: adapter.lora.as_ref(),
    }];
    let mut states = Vec::new();
    let mut scratch = transformer::Scratch::default();
    transformer
        .forward(
            &[Sequence {
                beginning: None,
                tokens,
                queries: &queries,
            }],
            &mut scratch,
            &mut states,
        )
        .unwrap();
    states
}

/// The probability of each next word after `words`, in f64, among those that some label has there.
fn next_words(
    adapter: &Adapter,
    paths: &[&[u32]],
    tokens: &[u32],
    words: &[u32],
    temperature: f64,
) -> BTreeMap<u32, f64> {
    let state = state(adapter, tokens, words);
    let mut weights = BTreeMap::new();
    for path in paths
        .iter()
        .filter(|path| path.len() > words.len() && path.starts_with(words))
    {
        let word = path[words.len()];
        let row = &adapter.label_weight[word as usize * 32..][..32];
        let logit: f64 = row
            .iter()
            .zip(&state)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum();
        weights.insert(word, (logit / temperature).exp());
    }
    let sum: f64 = weights.values().sum();
    weights
        .into_iter()
        .map(|(word, weight)| (word, weight / sum))
        .collect()
}

/// Every label's probability: the product of its words' probabilities.
fn all_probabilities(
    adapter: &Adapter,
    paths: &[&[u32]],
    tokens: &[u32],
    temperature: f64,
) -> Vec<f64> {
    let probability = |path: &[u32]| -> f64 {
        (0..path.len())
            .map(|depth| {
                next_words(adapter, paths, tokens, &path[..depth], temperature)[&path[depth]]
            })
            .product()
    };
    paths.iter().map(|path| probability(path)).collect()
}

/// The greedy walk, by looking at all labels at every depth.
fn greedy(adapter: &Adapter, paths: &[&[u32]], tokens: &[u32], temperature: f64) -> usize {
    let mut words = Vec::new();
    loop {
        if let Some(label) = paths.iter().position(|path| *path == words.as_slice()) {
            return label;
        }
        let next = next_words(adapter, paths, tokens, &words, temperature);
        let best = next.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        words.push(*best.0);
    }
}

fn inputs() -> Vec<Vec<u32>> {
    let mut numbers = common::Numbers::new(11);
    (0..40)
        .map(|_| {
            let length = 1 + numbers.below(12);
            (0..length).map(|_| numbers.below(16) as u32).collect()
        })
        .collect()
}

#[test]
fn deep_labels_agree_with_brute_force() {
    let mut seen = [0; DEEP_PATHS.len()];
    for seed in 0..6 {
        check_deep_labels(&random_adapter(WORDS, seed), &mut seen);
    }
    // The inputs are no good if they do not reach every label.
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// Compares the verdicts of all inputs and counts how often each label was given.
fn check_deep_labels(adapter: &Adapter, seen: &mut [usize]) {
    let temperature = 3.0;
    let model = model_with(DEEP_PATHS, adapter, temperature, 0.0);
    let inputs = inputs();
    let items: Vec<Item<'_>> = inputs
        .iter()
        .map(|tokens| Item {
            tokens,
            tasks: &[0],
        })
        .collect();
    let verdicts = classify(&model, &items);
    assert_eq!(verdicts.len(), items.len());
    for (index, verdict) in verdicts.iter().enumerate() {
        let tokens = &inputs[index];
        let probabilities = all_probabilities(adapter, DEEP_PATHS, tokens, f64::from(temperature));
        let sum: f64 = probabilities.iter().sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        let expected = greedy(adapter, DEEP_PATHS, tokens, f64::from(temperature));
        assert_eq!(
            (verdict.item, verdict.task, verdict.label as usize),
            (index, 0, expected)
        );
        assert!(
            (f64::from(verdict.score) - probabilities[expected]).abs() < 1e-4,
            "{verdict:?} {probabilities:?}"
        );
        seen[expected] += 1;
    }
}

#[test]
fn flat_labels_agree_with_softmax_of_the_logits() {
    let adapter = random_adapter(4, 3);
    let paths: &[&[u32]] = &[&[3], &[1], &[0]];
    let model = model_with(paths, &adapter, 2.0, 0.0);
    let inputs = inputs();
    let items: Vec<Item<'_>> = inputs
        .iter()
        .map(|tokens| Item {
            tokens,
            tasks: &[0],
        })
        .collect();
    let mut logits = Vec::new();
    model
        .classify_logits(&items, &mut Scratch::default(), &mut logits)
        .unwrap();
    for (verdict, logits) in classify(&model, &items).iter().zip(&logits) {
        let tokens = &inputs[verdict.item];
        let probabilities = all_probabilities(&adapter, paths, tokens, 2.0);
        let best = (0..3)
            .max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]))
            .unwrap();
        assert_eq!(verdict.label as usize, best);
        assert!((f64::from(verdict.score) - probabilities[best]).abs() < 1e-5);
        assert_eq!(
            (logits.item, logits.task, logits.logits.len()),
            (verdict.item, 0, 3)
        );
        let weights: Vec<f64> = logits
            .logits
            .iter()
            .map(|logit| (f64::from(*logit) / 2.0).exp())
            .collect();
        let share = weights[best] / weights.iter().sum::<f64>();
        assert!((f64::from(verdict.score) - share).abs() < 1e-5);
    }
}

#[test]
fn a_verdict_does_not_depend_on_its_batch() {
    let model = model_with(DEEP_PATHS, &random_adapter(WORDS, 7), 1.0, 0.5);
    let inputs = inputs();
    let items: Vec<Item<'_>> = inputs
        .iter()
        .map(|tokens| Item {
            tokens,
            tasks: &[0],
        })
        .collect();
    let together = classify(&model, &items);
    let mut scratch = Scratch::default();
    let mut alone = Vec::new();
    for (index, item) in items.iter().enumerate().rev() {
        model.classify(&[*item], &mut scratch, &mut alone).unwrap();
        assert_eq!(
            alone[0],
            TaskVerdict {
                item: 0,
                ..together[index]
            }
        );
        assert_eq!(alone[0].score.to_bits(), together[index].score.to_bits());
    }
    assert_eq!(classify(&model, &items), together);
}

#[test]
fn low_scores_abstain_and_ties_take_the_first_label() {
    let paths: &[&[u32]] = &[&[2], &[0], &[1]];
    for (threshold, abstained) in [(0.33, false), (0.34, true)] {
        let model = model_with(paths, &common::uniform_adapter(3), 1.0, threshold);
        let verdict = classify(
            &model,
            &[Item {
                tokens: &[5],
                tasks: &[0],
            }],
        )[0];
        assert_eq!((verdict.label, verdict.abstained), (0, abstained));
        assert!((verdict.score - 1.0 / 3.0).abs() < 1e-6);
    }
}

#[test]
fn absurd_weights_abstain_with_score_zero() {
    let mut adapter = random_adapter(3, 1);
    adapter.label_weight.fill(f32::MAX);
    let model = model_with(&[&[0], &[1], &[2]], &adapter, 1.0, 0.0);
    let verdict = classify(
        &model,
        &[Item {
            tokens: &[5, 6],
            tasks: &[0],
        }],
    )[0];
    assert_eq!((verdict.score, verdict.abstained), (0.0, true));
}

#[test]
fn items_may_ask_no_task_or_one_twice() {
    let model = model_with(DEEP_PATHS, &random_adapter(WORDS, 7), 1.0, 0.5);
    assert_eq!(classify(&model, &[]), []);
    let items = [
        Item {
            tokens: &[1],
            tasks: &[],
        },
        Item {
            tokens: &[2],
            tasks: &[0, 0],
        },
    ];
    let verdicts = classify(&model, &items);
    assert_eq!(verdicts.len(), 2);
    assert_eq!((verdicts[0].item, verdicts[1].item), (1, 1));
    assert_eq!(verdicts[0], verdicts[1]);
}

#[test]
fn bad_items_are_refused_and_leave_no_verdict() {
    let model = model_with(DEEP_PATHS, &random_adapter(WORDS, 7), 1.0, 0.5);
    // A context of 64 less two query rows and two more words.
    assert_eq!(model.item_tokens_max(), 60);
    let good = Item {
        tokens: &[1; 60],
        tasks: &[0],
    };
    let bad = [
        (
            Item {
                tokens: &[],
                tasks: &[0],
            },
            "tokens: expected at least 1, found 0",
        ),
        (
            Item {
                tokens: &[1; 61],
                tasks: &[0],
            },
            "tokens: expected at most 60, found 61",
        ),
        (
            Item {
                tokens: &[1, 16],
                tasks: &[0],
            },
            "token id: expected below 16, found 16",
        ),
        (
            Item {
                tokens: &[u32::MAX],
                tasks: &[0],
            },
            "token id: expected below 16, found 4294967295",
        ),
        (
            Item {
                tokens: &[1],
                tasks: &[1],
            },
            "task: expected below 1, found 1",
        ),
    ];
    let mut scratch = Scratch::default();
    let (mut verdicts, mut logits) = (Vec::new(), Vec::new());
    for (item, expected) in bad {
        model
            .classify(&[good], &mut scratch, &mut verdicts)
            .unwrap();
        model
            .classify_logits(&[good], &mut scratch, &mut logits)
            .unwrap();
        assert_eq!((verdicts.len(), logits.len()), (1, 1));
        let error = model
            .classify(&[good, item], &mut scratch, &mut verdicts)
            .unwrap_err();
        assert!(matches!(error, ModelError::Input { item: 1, .. }));
        assert_eq!(error.to_string(), format!("item 1: {expected}"));
        assert!(
            model
                .classify_logits(&[good, item], &mut scratch, &mut logits)
                .is_err()
        );
        assert!(verdicts.is_empty() && logits.is_empty());
    }
}

#[test]
fn tasks_keep_the_order_of_the_manifest_and_their_own_adapters() {
    let mut parts = Parts::sound();
    let mut second = parts.manifest["tasks"][0].clone();
    second["name"] = json!("second_task");
    second["kind"] = json!("request");
    second["adapter"]["file"] = json!("adapters/second.safetensors");
    parts.manifest["tasks"].as_array_mut().unwrap().push(second);
    let adapters = [random_adapter(3, 20), random_adapter(3, 21)];
    parts
        .files
        .insert(ADAPTER.to_owned(), adapters[0].write(shape()).unwrap());
    parts.files.insert(
        "adapters/second.safetensors".to_owned(),
        adapters[1].write(shape()).unwrap(),
    );
    let manifest = serde_json::from_value(parts.hashed().manifest).unwrap();
    let files = BTreeMap::from([
        ("base.gguf".to_owned(), common::base_gguf()),
        ("tokenizer.json".to_owned(), b"{}".to_vec()),
        (ADAPTER.to_owned(), adapters[0].write(shape()).unwrap()),
        (
            "adapters/second.safetensors".to_owned(),
            adapters[1].write(shape()).unwrap(),
        ),
    ]);
    let model = Model::load(&Bundle::build(manifest, files).unwrap(), Level::Portable).unwrap();
    let names: Vec<&str> = model.tasks().iter().map(|task| task.name()).collect();
    assert_eq!(names, [common::TASK, "second_task"]);
    let paths: &[&[u32]] = &[&[0], &[1], &[2]];
    let tokens = [3, 1, 4, 1, 5];
    let verdicts = classify(
        &model,
        &[Item {
            tokens: &tokens,
            tasks: &[1, 0],
        }],
    );
    for (verdict, task) in verdicts.iter().zip([1, 0]) {
        let probabilities = all_probabilities(&adapters[task], paths, &tokens, 1.0);
        assert_eq!(verdict.task, task);
        assert!((f64::from(verdict.score) - probabilities[verdict.label as usize]).abs() < 1e-5);
    }
}

#[test]
fn the_fastest_level_gives_the_same_labels() {
    let adapter = random_adapter(WORDS, 7);
    let portable = model_with(DEEP_PATHS, &adapter, 3.0, 0.5);
    let bytes = Parts::sound()
        .with_file(ADAPTER, adapter.write(shape()).unwrap())
        .with("/tasks/0/labels", json!(["a", "b", "c", "d", "e", "f"]))
        .with("/tasks/0/label_words", json!(DEEP_PATHS))
        .with("/tasks/0/temperature", json!(3.0))
        .with("/self_test/0/label", json!("a"))
        .pack();
    let fastest = Model::load(&Bundle::from_bytes(bytes).unwrap(), Level::detect()).unwrap();
    let inputs = inputs();
    let items: Vec<Item<'_>> = inputs
        .iter()
        .map(|tokens| Item {
            tokens,
            tasks: &[0],
        })
        .collect();
    for (a, b) in classify(&portable, &items)
        .iter()
        .zip(classify(&fastest, &items))
    {
        assert_eq!(a.label, b.label);
        assert!((a.score - b.score).abs() <= trafficllm_model::SELF_TEST_TOLERANCE);
    }
}

#[test]
fn with_room_for_a_batch_no_buffer_grows_whatever_it_holds() {
    let adapter = random_adapter(WORDS, 3);
    let model = model_with(DEEP_PATHS, &adapter, 1.0, 0.0);
    let tokens: Vec<u32> = (0..60).map(|at| at * 5 % 16).collect();
    let (items_max, tokens_max) = (40, 120);
    let mut scratch = Scratch::default();
    scratch.try_reserve(&model, tokens_max, items_max).unwrap();
    let bytes = scratch.bytes();
    let mut verdicts = Vec::new();
    for length in [1, 2, 3, 17, model.item_tokens_max().min(60)] {
        for count in [1, items_max.min(tokens_max / length)] {
            let item = Item {
                tokens: &tokens[..length],
                tasks: &[0],
            };
            let items = vec![item; count];
            model.classify(&items, &mut scratch, &mut verdicts).unwrap();
            assert_eq!(verdicts.len(), count);
            assert_eq!(scratch.bytes(), bytes, "{count} items of {length} tokens");
        }
    }
    assert!(
        scratch
            .try_reserve(&model, tokens_max, usize::MAX / 1_024)
            .is_err()
    );
}
