//! k nearest neighbours on packet sequences, by the crate `smartcore`: what comparing with every training flow gives.

use smartcore::algorithm::neighbour::KNNAlgorithmName;
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::neighbors::knn_classifier::{KNNClassifier, KNNClassifierParameters};

use super::packets::sequence_row;
use super::{View, in_threads};
use crate::error::{Result, TrainError};

/// Neighbours that vote.
const NEIGHBOURS: usize = 5;
/// Items that a thread asks for at once.
const BATCH_ITEMS: usize = 64;

/// The label that most of the nearest training items carry, the first in label order among equals.
pub(super) fn answers(train: &View<'_>, scored: &View<'_>, threads: usize) -> Result<Vec<usize>> {
    let failed = |error: smartcore::error::Failed| TrainError::Baseline {
        name: "nearest neighbours",
        message: error.to_string(),
    };
    let rows = |items: &[_]| -> Vec<Vec<f64>> {
        let items = items.iter();
        items
            .map(|(_, item): &(usize, &crate::data::Item)| sequence_row(&item.content).to_vec())
            .collect()
    };
    let labels: Vec<u32> = train.items.iter().map(|(label, _)| *label as u32).collect();
    let known = DenseMatrix::from_2d_vec(&rows(&train.items)).map_err(failed)?;
    // In forty dimensions a tree of covers looks at nearly everything, and costs more than looking.
    let parameters = KNNClassifierParameters::default()
        .with_k(NEIGHBOURS.min(train.items.len()))
        .with_algorithm(KNNAlgorithmName::LinearSearch);
    let model = KNNClassifier::fit(&known, &labels, parameters).map_err(failed)?;
    let batches: Vec<_> = scored.items.chunks(BATCH_ITEMS).collect();
    let answers = in_threads(&batches, threads, |batch| {
        let asked = DenseMatrix::from_2d_vec(&rows(batch)).map_err(failed)?;
        model.predict(&asked).map_err(failed)
    })?;
    Ok(answers
        .into_iter()
        .flatten()
        .map(|label| label as usize)
        .collect())
}
