//! The floors that every published number stands beside: simple models on the same split, with addresses, ports and
//! times hidden. Each depends on the data and the seed alone, not on the threads.

mod boosted;
mod forest;
mod logistic;
mod neighbours;
mod packets;

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use forest::{Forest, ForestOptions};
pub use logistic::{Logistic, LogisticOptions, SparseVector};
pub use packets::PACKETS;

use crate::data::{self, Content, Item, Split, TaskData, TaskKind};
use crate::error::{Result, TrainError};
use crate::evaluate;
use crate::metrics::{Confusion, Scores};
use crate::threads::in_runs;

/// Byte pairs: the features of the payload model.
const PAIR_FEATURES: usize = 1 << 16;

/// A simple model to stand beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// Logistic regression on counts of payload byte pairs; for requests on byte pairs of the text.
    PayloadPairs,
    /// A random forest on the signed payload lengths of the first packets.
    LengthForest,
    /// Gradient-boosted trees on lengths, gaps and flags of the first packets.
    BoostedTrees,
    /// k nearest neighbours on the packet sequence.
    NearestNeighbours,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::PayloadPairs,
        Self::LengthForest,
        Self::BoostedTrees,
        Self::NearestNeighbours,
    ];

    /// Its short name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PayloadPairs => "payload pairs",
            Self::LengthForest => "length forest",
            Self::BoostedTrees => "boosted trees",
            Self::NearestNeighbours => "nearest neighbours",
        }
    }

    /// What it is and what it sees, in a sentence.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::PayloadPairs => {
                "multinomial logistic regression on damped counts of byte pairs in the kept payload (of a request: in its text)"
            }
            Self::LengthForest => {
                "random forest, 100 trees, on the signed payload lengths of the first 20 packets"
            }
            Self::BoostedTrees => {
                "gradient-boosted trees, one ensemble of 100 trees of depth 6 per label, on signed lengths, gaps and TCP flags of the first 20 packets, their sums and the protocol"
            }
            Self::NearestNeighbours => {
                "5 nearest neighbours by Euclidean distance between the logarithms of signed lengths and gaps of the first 20 packets"
            }
        }
    }

    /// Whether it can read such items: only the payload model reads requests.
    #[must_use]
    pub fn reads(self, kind: TaskKind) -> bool {
        kind == TaskKind::Flow || self == Self::PayloadPairs
    }

    /// Fits the model on `train` and gives its label for each item of `scored`; both count their labels alike.
    ///
    /// # Errors
    /// [`TrainError::Baseline`] where there is nothing to fit on, or the fitting failed.
    pub fn answers(
        self,
        train: &View<'_>,
        scored: &View<'_>,
        seed: u64,
        threads: usize,
    ) -> Result<Vec<usize>> {
        if train.items.is_empty() {
            return Err(TrainError::Baseline {
                name: self.name(),
                message: "expected training items, found none".into(),
            });
        }
        if scored.items.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::PayloadPairs => Ok(payload_answers(train, scored, seed)),
            Self::LengthForest => Ok(length_answers(train, scored, seed)),
            Self::BoostedTrees => boosted::answers(train, scored, seed, threads),
            Self::NearestNeighbours => neighbours::answers(train, scored, threads),
        }
    }
}

/// Some items of a split under an own list of labels.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The labels.
    pub labels: Vec<String>,
    /// The items with their places in `labels`.
    pub items: Vec<(usize, &'a Item)>,
}

impl<'a> View<'a> {
    /// The items of `data` that carry one of `labels`, whose order is kept.
    #[must_use]
    pub fn new(data: &'a TaskData, labels: &[String]) -> Self {
        let places: Vec<Option<usize>> = data
            .labels
            .iter()
            .map(|label| labels.iter().position(|wanted| wanted == label))
            .collect();
        let items = data.items.iter();
        Self {
            labels: labels.to_vec(),
            items: items
                .filter_map(|item| Some((places[item.label]?, item)))
                .collect(),
        }
    }

    fn truths(&self) -> Vec<usize> {
        self.items.iter().map(|(label, _)| *label).collect()
    }

    /// The labels that some item carries, in their order.
    fn present(&self) -> Vec<usize> {
        let present: BTreeSet<usize> = self.items.iter().map(|(label, _)| *label).collect();
        present.into_iter().collect()
    }
}

/// What a baseline scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineScores {
    /// [`Baseline::name`].
    pub name: String,
    /// [`Baseline::description`].
    pub description: String,
    /// All items.
    pub all: Scores,
    /// Without the items whose payload stands in the training split too.
    pub unseen: Scores,
}

/// The floors of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floors {
    /// The task.
    pub task: String,
    /// Items scored.
    pub items: usize,
    /// Every baseline that can read the task's items.
    pub baselines: Vec<BaselineScores>,
}

/// Fits all baselines that can read such items on `train` and scores them on `scored`; `seen` are the fingerprints of the training
/// split. `begun` is told the name of each before it is fitted.
///
/// # Errors
/// See [`Baseline::answers`].
pub fn measure(
    (train, scored): (&View<'_>, &View<'_>),
    kind: TaskKind,
    seen: &HashSet<u64>,
    (seed, threads): (u64, usize),
    begun: &mut dyn FnMut(&str),
) -> Result<Vec<BaselineScores>> {
    let mut all_scores = Vec::new();
    for baseline in Baseline::ALL
        .into_iter()
        .filter(|baseline| baseline.reads(kind))
    {
        begun(baseline.name());
        let answers = baseline.answers(train, scored, seed, threads)?;
        let mut all = Confusion::new(&scored.labels);
        let mut unseen = Confusion::new(&scored.labels);
        for ((truth, item), answer) in scored.items.iter().zip(answers) {
            all.record(*truth, answer, false);
            let fingerprint = item.content.payload_fingerprint();
            if !fingerprint.is_some_and(|fingerprint| seen.contains(&fingerprint)) {
                unseen.record(*truth, answer, false);
            }
        }
        all_scores.push(BaselineScores {
            name: baseline.name().into(),
            description: baseline.description().into(),
            all: all.scores(),
            unseen: unseen.scores(),
        });
    }
    Ok(all_scores)
}

/// Fits all baselines on the training split of a task and scores them on `split`.
///
/// # Errors
/// Where the data cannot be read, see [`data::load`], or a model cannot be fitted.
pub fn floors(data: &Path, task: &str, split: Split, seed: u64, threads: usize) -> Result<Floors> {
    let train = data::load(data, task, Split::Train)?;
    let scored = data::load(data, task, split)?;
    let seen = evaluate::fingerprints(&train);
    let views = (
        &View::new(&train, &train.labels),
        &View::new(&scored, &train.labels),
    );
    let mut begun = |name: &str| tracing::info!("{task}: {name}");
    Ok(Floors {
        task: task.into(),
        items: scored.items.len(),
        baselines: measure(views, train.kind, &seen, (seed, threads), &mut begun)?,
    })
}

/// Runs `work` on every part, the parts divided over the threads; the results are in the order of the parts.
fn in_threads<P: Sync, T: Send>(
    parts: &[P],
    threads: usize,
    work: impl Fn(&P) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    in_runs(parts, threads, |run| run.iter().map(&work).collect())
}

fn payload_answers(train: &View<'_>, scored: &View<'_>, seed: u64) -> Vec<usize> {
    let pairs = |(_, item): &(usize, &Item)| pair_counts(&item.content);
    let items: Vec<SparseVector> = train.items.iter().map(pairs).collect();
    let options = LogisticOptions {
        seed,
        ..LogisticOptions::default()
    };
    let truths = train.truths();
    let model = Logistic::fit(&items, &truths, PAIR_FEATURES, train.labels.len(), &options);
    let scored = scored.items.iter();
    scored.map(|item| model.predict(&pairs(item))).collect()
}

fn length_answers(train: &View<'_>, scored: &View<'_>, seed: u64) -> Vec<usize> {
    let lengths = |(_, item): &(usize, &Item)| packets::signed_lengths(&item.content);
    let items: Vec<f32> = train.items.iter().flat_map(lengths).collect();
    let options = ForestOptions {
        seed,
        ..ForestOptions::default()
    };
    let truths = train.truths();
    let model = Forest::fit(&items, PACKETS, &truths, train.labels.len(), &options);
    let scored = scored.items.iter();
    scored.map(|item| model.predict(&lengths(item))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn every_floor_learns_the_synthetic_labels_and_repeats_itself() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 9);
        let colours = floors(data.path(), "colours", Split::Val, 1, 2).expect("floors");
        assert_eq!(colours.baselines.len(), Baseline::ALL.len());
        for baseline in &colours.baselines {
            assert!(baseline.all.macro_f1 > 0.95, "{baseline:?}");
            assert_eq!(baseline.all.items as usize, colours.items);
        }
        let again = floors(data.path(), "colours", Split::Val, 1, 1).expect("floors");
        assert_eq!(again, colours, "the number of threads changes nothing");
        let requests = floors(data.path(), "requests", Split::Val, 1, 1).expect("floors");
        let names: Vec<&str> = requests
            .baselines
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["payload pairs"], "requests have no packets");
        assert!(requests.baselines[0].all.macro_f1 > 0.95, "{requests:?}");
    }

    #[test]
    fn a_view_holds_the_wanted_labels_in_their_order() {
        let folder = tempfile::tempdir().expect("a folder");
        synthetic::write(folder.path(), 9);
        let data = data::load(folder.path(), "colours", Split::Train).expect("train");
        let view = View::new(
            &data,
            &["red".to_owned(), "blue".to_owned(), "pink".to_owned()],
        );
        let of = |label: usize| data.items.iter().filter(|item| item.label == label).count();
        assert_eq!(view.items.len(), of(0) + of(2));
        assert!(
            view.items
                .iter()
                .all(|(place, item)| { view.labels[*place] == data.labels[item.label] })
        );
        assert_eq!(view.present(), [0, 1]);
        // One label in training: it is the answer to everything, from every model.
        let red = View::new(&data, &["pink".to_owned(), "red".to_owned()]);
        for baseline in Baseline::ALL {
            let answers = baseline.answers(&red, &view, 1, 2).expect("answers");
            assert!(
                answers.iter().all(|answer| *answer == 1),
                "{}",
                baseline.name()
            );
        }
    }

    #[test]
    fn nothing_to_fit_on_is_an_error() {
        let nothing = View {
            labels: vec!["a".to_owned()],
            items: Vec::new(),
        };
        for baseline in Baseline::ALL {
            let error = baseline
                .answers(&nothing, &nothing, 1, 1)
                .expect_err("nothing to fit on");
            assert!(error.to_string().contains(baseline.name()), "{error}");
        }
    }

    #[test]
    fn pairs_never_cross_packets() {
        let mut pairs = Vec::new();
        pairs_into(b"\x01\x02\x03", &mut pairs);
        pairs_into(b"\x04\x05", &mut pairs);
        assert_eq!(pairs, [0x0102, 0x0203, 0x0405]);
    }
}
