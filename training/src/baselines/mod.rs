//! The floors that every published number stands beside: simple models on the same split, with addresses, ports and
//! times hidden.
//!
//! *payload*: logistic regression on counts of payload byte pairs; for requests on byte pairs of the text. *length*: a random forest on the signed payload lengths of the first packets.

mod forest;
mod logistic;

use std::path::Path;

use serde::Serialize;
use trafficllm_traffic::{Direction, Flow};

pub use forest::{Forest, ForestOptions};
pub use logistic::{Logistic, LogisticOptions, SparseVector};

use crate::data::{self, Content, Split, TaskData, TaskKind};
use crate::error::Result;
use crate::metrics::{Confusion, Scores};

/// Packets that the length model sees.
pub const LENGTHS: usize = 20;
/// Byte pairs: the features of the payload model.
const PAIR_FEATURES: usize = 1 << 16;

/// The floors of one task.
#[derive(Clone, Debug, Serialize)]
pub struct Floors {
    /// The task.
    pub task: String,
    /// Payload-bigram logistic regression.
    pub payload: Scores,
    /// Random forest on packet lengths; nothing for requests.
    pub length: Option<Scores>,
}

/// Fits both models on the training split and scores them on `split`.
///
/// # Errors
/// Where the data cannot be read; see [`data::load`].
pub fn floors(data: &Path, task: &str, split: Split, seed: u64) -> Result<Floors> {
    let train = data::load(data, task, Split::Train)?;
    let scored = data::load(data, task, split)?;
    let length = (train.kind == TaskKind::Flow).then(|| length_floor(&train, &scored, seed));
    Ok(Floors {
        task: task.into(),
        payload: payload_floor(&train, &scored, seed),
        length,
    })
}

fn payload_floor(train: &TaskData, scored: &TaskData, seed: u64) -> Scores {
    let items: Vec<SparseVector> = train
        .items
        .iter()
        .map(|item| pair_counts(&item.content))
        .collect();
    let truths: Vec<usize> = train.items.iter().map(|item| item.label).collect();
    let options = LogisticOptions {
        seed,
        ..LogisticOptions::default()
    };
    let model = Logistic::fit(&items, &truths, PAIR_FEATURES, train.labels.len(), &options);
    let mut table = Confusion::new(&train.labels);
    for item in &scored.items {
        table.record(
            item.label,
            model.predict(&pair_counts(&item.content)),
            false,
        );
    }
    table.scores()
}

fn length_floor(train: &TaskData, scored: &TaskData, seed: u64) -> Scores {
    let items: Vec<f32> = train
        .items
        .iter()
        .flat_map(|item| signed_lengths(&item.content))
        .collect();
    let truths: Vec<usize> = train.items.iter().map(|item| item.label).collect();
    let options = ForestOptions {
        seed,
        ..ForestOptions::default()
    };
    let model = Forest::fit(&items, LENGTHS, &truths, train.labels.len(), &options);
    let mut table = Confusion::new(&train.labels);
    for item in &scored.items {
        table.record(
            item.label,
            model.predict(&signed_lengths(&item.content)),
            false,
        );
    }
    table.scores()
}

/// Byte pairs of the payload, per packet. Telling the directions apart makes this model worse, not better.
fn pair_counts(content: &Content) -> SparseVector {
    let mut pairs = Vec::new();
    match content {
        Content::Request(text) | Content::Instruction(text) => {
            pairs_into(text.as_bytes(), &mut pairs);
        }
        Content::Flow(flow) => {
            for (_, payload) in flow.kept() {
                pairs_into(payload, &mut pairs);
            }
        }
    }
    SparseVector::from_counts(pairs)
}

fn pairs_into(bytes: &[u8], pairs: &mut Vec<u32>) {
    pairs.extend(
        bytes
            .windows(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])),
    );
}

/// Payload lengths of the first packets in bytes plus one, negative from the responder; 0 where there is no packet.
fn signed_lengths(content: &Content) -> [f32; LENGTHS] {
    let mut lengths = [0.0; LENGTHS];
    if let Content::Flow(Flow { records, .. }) = content {
        for (length, record) in lengths.iter_mut().zip(records) {
            let bytes = record.payload_bytes as f32 + 1.0;
            *length = if record.direction == Direction::FromInitiator {
                bytes
            } else {
                -bytes
            };
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn both_floors_learn_the_synthetic_labels() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 9);
        let colours = floors(data.path(), "colours", Split::Val, 1).expect("floors");
        assert!(colours.payload.macro_f1 > 0.95, "{:?}", colours.payload);
        assert!(colours.length.expect("flows have lengths").macro_f1 > 0.95);
        let requests = floors(data.path(), "requests", Split::Val, 1).expect("floors");
        assert!(requests.payload.macro_f1 > 0.95, "{:?}", requests.payload);
        assert!(requests.length.is_none());
    }

    #[test]
    fn pairs_never_cross_packets() {
        let mut pairs = Vec::new();
        pairs_into(b"\x01\x02\x03", &mut pairs);
        pairs_into(b"\x04\x05", &mut pairs);
        assert_eq!(pairs, [0x0102, 0x0203, 0x0405]);
    }
}
