//! Makes and evaluates model bundles: data sets, tokenizer, pre-training, task tuning, calibration, quantisation, packing.
//!
//! The way of the data: [`data`] reads labelled captures into flows, [`tokenizer`] learns merges and makes token ids,
//! [`batches`] draws from them, [`phase`] trains the network on what was drawn, [`calibrate`] fits temperatures and
//! thresholds on the quantised engine, [`pack`] writes the bundle, [`evaluate`] scores it. [`bundle`] is all of that in a row.

pub mod adapt;
pub mod adapters;
pub mod augment;
pub mod baselines;
pub mod batches;
pub mod bundle;
pub mod calibrate;
pub mod captures;
pub mod card;
pub mod checkpoint;
pub mod choose;
pub mod data;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod evaluation;
pub mod files;
pub mod head;
pub mod instructions;
pub mod metrics;
pub mod network;
pub mod ops;
pub mod optimiser;
pub mod pack;
pub mod phase;
pub mod progress;
pub mod random;
pub mod recipe;
pub mod requests;
pub mod self_test;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;
mod threads;
pub mod tokenizer;
