//! The label trie and calibration.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use proptest::prelude::*;
use trafficllm_model::calibration::{
    Threshold, choose_threshold, fit_temperature, negative_log_likelihood, softmax,
};
use trafficllm_model::limits::TEMPERATURE_RANGE;
use trafficllm_model::{Child, LabelTrie, Step};

/// Follows a path from the root.
fn walk(trie: &LabelTrie, path: &[u32]) -> Option<Step> {
    let mut step = Step::Node(LabelTrie::ROOT);
    for word in path {
        let Step::Node(node) = step else { return None };
        let mut found = trie
            .children(node)
            .iter()
            .filter(|child| child.word == *word);
        step = found.next()?.next;
        assert!(found.next().is_none(), "word {word} twice at node {node}");
    }
    Some(step)
}

#[test]
fn one_word_per_label_gives_the_labels_in_order() {
    let trie = LabelTrie::new("t", &[vec![5], vec![0], vec![3]], 6).unwrap();
    let children: Vec<Child> = [(5, 0), (0, 1), (3, 2)]
        .map(|(word, label)| Child {
            word,
            next: Step::Label(label),
        })
        .to_vec();
    assert_eq!(trie.children(LabelTrie::ROOT), children);
    assert_eq!((trie.labels(), trie.depth()), (3, 1));
    assert!(trie.children(99).is_empty());
}

#[test]
fn shared_words_share_a_node() {
    let trie =
        LabelTrie::new("t", &[vec![1, 2], vec![0], vec![1, 0, 2], vec![1, 0, 1]], 3).unwrap();
    assert_eq!(
        trie.children(LabelTrie::ROOT)
            .iter()
            .map(|child| child.word)
            .collect::<Vec<_>>(),
        [1, 0]
    );
    assert_eq!(walk(&trie, &[1, 0, 1]), Some(Step::Label(3)));
    assert_eq!(walk(&trie, &[1, 0, 0]), None);
    assert_eq!((trie.labels(), trie.depth()), (4, 3));
}

fn paths() -> impl Strategy<Value = Vec<Vec<u32>>> {
    proptest::collection::vec(proptest::collection::vec(0_u32..4, 0..4), 0..12)
}

proptest! {
    #[test]
    fn every_label_is_where_its_path_leads(paths in paths()) {
        let starts_another = |a: usize, path: &Vec<u32>| {
            paths.iter().enumerate().any(|(b, other)| a != b && other.starts_with(path))
        };
        let conflict = paths.iter().enumerate().any(|(a, path)| path.is_empty() || starts_another(a, path));
        match LabelTrie::new("t", &paths, 4) {
            Ok(trie) => {
                prop_assert!(!conflict && !paths.is_empty());
                for (label, path) in paths.iter().enumerate() {
                    prop_assert_eq!(walk(&trie, path), Some(Step::Label(label as u32)));
                }
            }
            Err(_) => prop_assert!(conflict || paths.is_empty()),
        }
    }
}

#[test]
fn softmax_is_calm_with_large_logits_and_flattens_with_temperature() {
    let mut values = [1e30, 1e30, -1e30];
    softmax(&mut values, 1.0);
    assert_eq!(values, [0.5, 0.5, 0.0]);
    let (mut sharp, mut flat) = ([1.0, 2.0], [1.0, 2.0]);
    softmax(&mut sharp, 0.5);
    softmax(&mut flat, 5.0);
    assert!((sharp[1] - 1.0 / (1.0 + (-2.0_f32).exp())).abs() < 1e-6);
    assert!((flat[1] - 1.0 / (1.0 + (-0.2_f32).exp())).abs() < 1e-6);
    softmax(&mut [], 1.0);
}

/// Examples of which the likeliest temperature is known: with logits 0 and `gap`, and a share
/// `right` of hits, the best temperature makes the probability equal to the share.
fn examples(gap: f32, right: usize, of: usize) -> (Vec<Vec<f32>>, Vec<u32>) {
    (
        vec![vec![0.0, gap]; of],
        (0..of).map(|index| u32::from(index < right)).collect(),
    )
}

#[test]
fn the_fitted_temperature_is_the_known_optimum() {
    for (gap, right) in [(2.0, 75), (8.0, 90), (0.5, 99), (30.0, 60)] {
        let (logits, targets) = examples(gap, right, 100);
        let share = right as f32 / 100.0;
        let expected = (gap / (share / (1.0 - share)).ln())
            .clamp(*TEMPERATURE_RANGE.start(), *TEMPERATURE_RANGE.end());
        let fitted = fit_temperature(&logits, &targets).unwrap();
        assert!(
            (fitted / expected - 1.0).abs() < 1e-3,
            "{fitted} {expected}"
        );
        let best = negative_log_likelihood(&logits, &targets, fitted).unwrap();
        for other in [fitted * 0.9, fitted * 1.1] {
            assert!(negative_log_likelihood(&logits, &targets, other).unwrap() >= best);
        }
    }
    // All right: the colder the better. Worse than chance: the hotter the better.
    let (logits, targets) = examples(1.0, 10, 10);
    assert!(
        (fit_temperature(&logits, &targets).unwrap() / TEMPERATURE_RANGE.start() - 1.0).abs() < 0.5
    );
    let (logits, targets) = examples(1.0, 2, 10);
    assert!(
        (fit_temperature(&logits, &targets).unwrap() / TEMPERATURE_RANGE.end() - 1.0).abs() < 1e-3
    );
}

#[test]
fn fitting_refuses_what_makes_no_sense() {
    let refused = |logits: &[Vec<f32>], targets: &[u32], expected: &str| {
        let error = fit_temperature(logits, targets).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(negative_log_likelihood(logits, targets, 1.0).is_err());
    };
    refused(
        &[],
        &[],
        "as many targets as rows of logits, at least 1, found 0 and 0",
    );
    refused(&[vec![0.0]], &[0, 0], "found 2 and 1");
    refused(
        &[vec![0.0, 1.0]],
        &[2],
        "targets[0]: expected below 2, found 2",
    );
    refused(&[vec![]], &[0], "targets[0]: expected below 0, found 0");
    refused(
        &[vec![0.0, f32::NAN]],
        &[0],
        "logits[0]: expected finite numbers, found NaN",
    );
}

#[test]
fn the_threshold_keeps_as_many_as_it_may() {
    let scores = [0.9, 0.8, 0.7, 0.7, 0.6, 0.5];
    let correct = [true, true, true, false, true, false];
    let choose = |accuracy_min| choose_threshold(&scores, &correct, accuracy_min).unwrap();
    // 4 of 5 are right down to 0.6; of the two with 0.7 neither can stay without the other.
    assert_eq!(
        choose(0.8),
        Some(Threshold {
            threshold: 0.6,
            coverage: 5.0 / 6.0,
            accuracy: 0.8
        })
    );
    assert_eq!(
        choose(0.9),
        Some(Threshold {
            threshold: 0.8,
            coverage: 2.0 / 6.0,
            accuracy: 1.0
        })
    );
    assert_eq!(
        choose(0.5),
        Some(Threshold {
            threshold: 0.0,
            coverage: 1.0,
            accuracy: 4.0 / 6.0
        })
    );
    assert_eq!(choose_threshold(&[0.9], &[false], 0.5).unwrap(), None);
    for (scores, correct, accuracy_min) in [
        (&[][..], &[][..], 0.5),
        (&[0.5], &[], 0.5),
        (&[1.5], &[true], 0.5),
        (&[f32::NAN], &[true], 0.5),
        (&[0.5], &[true], 2.0),
    ] {
        assert!(choose_threshold(scores, correct, accuracy_min).is_err());
    }
}
