//! What the model tells beside its verdicts: the hidden state of a task's last query row, and the scores of all labels.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::{ADAPTER, Parts, config, float_weights, random_adapter, shape};
use serde_json::json;
use trafficllm_model::transformer::{self, Query, Sequence, TaskPrefix, Transformer};
use trafficllm_model::{Bundle, Insight, Item, Level, Model, ModelError, Scratch};

/// A model whose only task has labels of these words.
fn model(paths: &[&[u32]], seed: u64) -> Model {
    let labels: Vec<String> = (0..paths.len())
        .map(|index| format!("label-{index}"))
        .collect();
    let bytes = Parts::sound()
        .with_file(ADAPTER, random_adapter(5, seed).write(shape()).unwrap())
        .with("/tasks/0/labels", json!(labels))
        .with("/tasks/0/label_words", json!(paths))
        .with("/tasks/0/temperature", json!(2.0))
        .with("/tasks/0/threshold", json!(0.0))
        .with("/self_test/0/label", json!("label-0"))
        .pack();
    Model::load(&Bundle::from_bytes(bytes).unwrap(), Level::Portable).unwrap()
}

/// The state of the last query row, from a transformer of its own.
fn expected_state(seed: u64, tokens: &[u32]) -> Vec<f32> {
    let adapter = random_adapter(5, seed);
    let weights = float_weights(&config(), 1).quantise().unwrap();
    let transformer = Transformer::new(Level::Portable, weights).unwrap();
    let prefix = TaskPrefix {
        prefix_tokens: adapter.prefix_tokens,
        keys: adapter.prefix_key.clone(),
        values: adapter.prefix_value.clone(),
    };
    let queries = [Query {
        prefix: &prefix,
        embeddings: &adapter.query_embedding,
        lora: adapter.lora.as_ref(),
    }];
    let sequence = Sequence {
        beginning: None,
        tokens,
        queries: &queries,
    };
    let mut states = Vec::new();
    let mut scratch = transformer::Scratch::default();
    transformer
        .forward(&[sequence], &mut scratch, &mut states)
        .unwrap();
    states
}

const ITEMS: [Item<'static>; 3] = [
    Item {
        tokens: &[1, 2, 3, 4],
        tasks: &[0],
    },
    Item {
        tokens: &[5],
        tasks: &[],
    },
    Item {
        tokens: &[6, 7, 8, 9, 10, 11],
        tasks: &[0],
    },
];

#[test]
fn the_state_is_that_of_the_last_query_row_also_where_labels_have_several_words() {
    let deep: &[&[u32]] = &[&[0], &[2, 1], &[2, 3, 0], &[4, 2]];
    let flat: &[&[u32]] = &[&[3], &[1], &[0]];
    for (paths, seed) in [(flat, 3), (deep, 7), (deep, 8)] {
        let model = model(paths, seed);
        let (mut scratch, mut verdicts) = (Scratch::default(), Vec::new());
        let mut insight = Insight::new(true, true);
        model
            .classify_with(&ITEMS, &mut scratch, &mut verdicts, &mut insight)
            .unwrap();
        assert_eq!(verdicts.len(), 2);
        for (number, verdict) in verdicts.iter().enumerate() {
            let expected = expected_state(seed, ITEMS[verdict.item].tokens);
            assert_eq!(insight.state(number), expected);
        }
        assert!(insight.state(2).is_empty());
        // The verdicts are those that one gets without asking.
        let mut plain = Vec::new();
        model.classify(&ITEMS, &mut scratch, &mut plain).unwrap();
        assert_eq!(plain, verdicts);
    }
}

#[test]
fn scores_are_those_of_all_labels_and_none_where_labels_have_several_words() {
    let flat = model(&[&[3], &[1], &[0]], 3);
    let (mut scratch, mut verdicts) = (Scratch::default(), Vec::new());
    let mut insight = Insight::new(false, true);
    flat.classify_with(&ITEMS, &mut scratch, &mut verdicts, &mut insight)
        .unwrap();
    for (number, verdict) in verdicts.iter().enumerate() {
        let scores = insight.scores(number);
        assert_eq!(scores.len(), 3);
        assert_eq!(scores[verdict.label as usize], verdict.score);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(scores.iter().all(|score| *score <= verdict.score));
        assert!(insight.state(number).is_empty(), "it was not asked for");
    }
    assert!(insight.scores(2).is_empty());
    let deep = model(&[&[0], &[2, 1]], 7);
    deep.classify_with(&ITEMS, &mut scratch, &mut verdicts, &mut insight)
        .unwrap();
    assert!(insight.scores(0).is_empty() && insight.scores(1).is_empty());
}

#[test]
fn nothing_is_left_of_a_call_that_failed() {
    let model = model(&[&[3], &[1], &[0]], 3);
    let (mut scratch, mut verdicts) = (Scratch::default(), Vec::new());
    let mut insight = Insight::new(true, true);
    insight.try_reserve(&model, ITEMS.len()).unwrap();
    let held = insight.bytes();
    model
        .classify_with(&ITEMS, &mut scratch, &mut verdicts, &mut insight)
        .unwrap();
    assert_eq!(insight.bytes(), held, "there was room for it");
    let wrong = [Item {
        tokens: &[],
        tasks: &[0],
    }];
    let failed = model.classify_with(&wrong, &mut scratch, &mut verdicts, &mut insight);
    assert!(matches!(failed, Err(ModelError::Input { .. })));
    assert!(insight.state(0).is_empty() && insight.scores(0).is_empty());
}
