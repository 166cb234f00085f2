//! Gradient-boosted trees on lengths, gaps and flags: one ensemble of the crate `forust-ml` (the algorithm of XGBoost: second-order
//! boosting over histograms) for each label against the others.

use forust_ml::{GradientBooster, Matrix};

use super::packets::{TABLE_COLUMNS, table_row};
use super::{View, in_threads};
use crate::error::{Result, TrainError};

/// Trees of each ensemble.
const ROUNDS: usize = 100;
/// Depth of each tree.
const DEPTH: usize = 6;
/// How much of its answer each tree adds.
const LEARNING_RATE: f32 = 0.2;
/// Share of the items, and of the features, that each tree sees.
const SAMPLED: f32 = 0.8;
/// Bins of a feature's histogram.
const BINS: u16 = 128;

/// Fits one ensemble per label on `train` and gives the label with the highest log-odds for each item of `scored`.
pub(super) fn answers(
    train: &View<'_>,
    scored: &View<'_>,
    seed: u64,
    threads: usize,
) -> Result<Vec<usize>> {
    let train_columns = columns(train);
    let scored_columns = columns(scored);
    let train_rows = Matrix::new(&train_columns, train.items.len(), TABLE_COLUMNS);
    let scored_rows = Matrix::new(&scored_columns, scored.items.len(), TABLE_COLUMNS);
    let labels = train.present();
    if let [only] = labels[..] {
        return Ok(vec![only; scored.items.len()]);
    }
    let odds = in_threads(&labels, threads, |&label| {
        let of_label = |item: &(usize, _)| f64::from(u8::from(item.0 == label));
        let truths: Vec<f64> = train.items.iter().map(of_label).collect();
        let mut booster = GradientBooster::default()
            .set_iterations(ROUNDS)
            .set_max_depth(DEPTH)
            .set_learning_rate(LEARNING_RATE)
            .set_subsample(SAMPLED)
            .set_colsample_bytree(f64::from(SAMPLED))
            .set_nbins(BINS)
            .set_initialize_base_score(true)
            .set_parallel(false)
            .set_seed(seed);
        booster
            .fit_unweighted(&train_rows, &truths, None)
            .map_err(|error| TrainError::Baseline {
                name: "boosted trees",
                message: error.to_string(),
            })?;
        Ok(booster.predict(&scored_rows, false))
    })?;
    Ok((0..scored.items.len())
        .map(|item| {
            let mut best = 0;
            for (index, odds_of_label) in odds.iter().enumerate() {
                if odds_of_label[item] > odds[best][item] {
                    best = index;
                }
            }
            labels[best]
        })
        .collect())
}

/// The features of all items, one column after the other.
fn columns(view: &View<'_>) -> Vec<f64> {
    let rows: Vec<_> = view
        .items
        .iter()
        .map(|(_, item)| table_row(&item.content))
        .collect();
    (0..TABLE_COLUMNS)
        .flat_map(|column| rows.iter().map(move |row| row[column]))
        .collect()
}
