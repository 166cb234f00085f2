//! Logits, choices and probabilities of labels on a device, against sums in the order of the CPU's classifier.

use trafficllm_kernels::cuda::{LabelNode, LabelTable};

use crate::rig::{Lists, Rig};
use crate::support::Random;

/// Largest difference of a probability.
const TOLERANCE: f32 = 1e-6;

/// A logit as the classifier sums it: 16 sums, one after the other, then what is left.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The first of the highest, unless nothing is higher than NaN in the first place.
fn highest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits
        .iter()
        .map(|logit| ((logit - highest) / temperature).exp())
        .collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Some tries' nodes and their children's words; every second word is the same as the one before.
struct Case {
    hidden: usize,
    states: Vec<f32>,
    nodes: Vec<LabelNode>,
    children: Vec<u32>,
    words: Vec<f32>,
    query_node: Vec<u32>,
}

impl Case {
    fn random(random: &mut Random, hidden: usize, children_of: &[usize], queries: usize) -> Self {
        let words_count = 50;
        let mut words = random.values(words_count * hidden, 0.3);
        for pair in words.chunks_exact_mut(2 * hidden) {
            pair.copy_within(..hidden, hidden);
        }
        let mut nodes = Vec::new();
        let mut children = Vec::new();
        for &count in children_of {
            nodes.push(LabelNode {
                first_child: children.len() as u32,
                children: count as u32,
                temperature: 0.2 + random.value().abs() * 3.0,
                ..LabelNode::default()
            });
            children.extend((0..count).map(|_| random.below(words_count) as u32));
        }
        Self {
            hidden,
            states: random.values(queries * hidden, 2.0),
            query_node: (0..queries)
                .map(|_| random.below(nodes.len()) as u32)
                .collect(),
            nodes,
            children,
            words,
        }
    }

    fn logits(&self, query: usize) -> Vec<f32> {
        let node = self.nodes[self.query_node[query] as usize];
        let state = &self.states[query * self.hidden..][..self.hidden];
        self.children[node.first_child as usize..][..node.children as usize]
            .iter()
            .map(|word| {
                dot(
                    &self.words[*word as usize * self.hidden..][..self.hidden],
                    state,
                )
            })
            .collect()
    }

    /// Checks all that a device gives; what is past the children of a node, and past the queries, stays as it was.
    fn check(&self, seed: u64) {
        const UNTOUCHED: f32 = -3.0;
        const NOT_CHOSEN: u32 = 12_345;
        let count = self.query_node.len();
        let mut rig = Rig::new(seed, Lists::queries(&self.query_node, self.nodes.len()));
        let capacity = rig.class.queries;
        assert!(capacity > count);
        let words = rig.upload(&self.words);
        let table = LabelTable::upload(
            &mut rig.stream,
            &self.nodes,
            &self.children,
            &words,
            self.hidden,
        )
        .unwrap();
        let stride = table.children_max() + 1;
        let mut states = self.states.clone();
        states.resize(capacity * self.hidden, f32::NAN);
        let states = rig.upload(&states);
        let best = vec![NOT_CHOSEN; capacity];
        let best = rig.upload(&best);
        let probabilities = vec![UNTOUCHED; capacity * stride];
        let probabilities = rig.upload(&probabilities);
        rig.run(|run| run.label_scores(&states, &table, &best, &probabilities, stride));
        let (best, probabilities) = (rig.read(&best), rig.read(&probabilities));
        for query in 0..capacity {
            let found = &probabilities[query * stride..][..stride];
            if query >= count {
                assert_eq!(best[query], NOT_CHOSEN);
                assert!(found.iter().all(|value| *value == UNTOUCHED));
                continue;
            }
            let logits = self.logits(query);
            assert_eq!(
                best[query] as usize,
                highest(&logits),
                "query {query}: {logits:?}"
            );
            let node = self.nodes[self.query_node[query] as usize];
            let (found, rest) = found.split_at(logits.len());
            assert!(rest.iter().all(|value| *value == UNTOUCHED));
            for (expected, found) in softmax(&logits, node.temperature).iter().zip(found) {
                let close = (expected - found).abs() <= TOLERANCE;
                assert!(
                    close || expected.is_nan() && found.is_nan(),
                    "{found} instead of {expected}"
                );
            }
        }
    }
}

#[test]
fn labels_agree_with_the_cpu() {
    let mut random = Random(31);
    // Fewer children than a warp has lanes, as many, more than a block takes at once; rows that are no multiple of the sums.
    for (hidden, children_of) in [
        (64, vec![1, 2, 7]),
        (20, vec![32, 33]),
        (256, vec![3, 130, 64]),
    ] {
        for seed in [0, 5] {
            Case::random(&mut random, hidden, &children_of, 9).check(seed);
        }
    }
}

/// States of NaN make all of their own probabilities NaN; infinite logits are chosen, and NaN among others is not.
#[test]
fn labels_of_states_that_are_no_numbers() {
    let mut random = Random(32);
    let mut case = Case::random(&mut random, 32, &[6, 40], 8);
    case.states[..32].fill(f32::NAN);
    case.states[3 * 32 + 5] = f32::INFINITY;
    case.states[4 * 32..5 * 32].fill(0.0);
    // NaN in one word alone, which is the first child of a node and a later one of another.
    case.words[10 * 32] = f32::NAN;
    case.children[0] = 10;
    case.children[6 + 20] = 10;
    case.query_node = vec![0, 1, 0, 1, 0, 1, 1, 0];
    case.check(0);
}
