//! From a shard of a batch to rows: what each input row is, who sees whom, and which rows have a loss.

use std::sync::Arc;

use super::{Network, NetworkError, POSITIONS_MAX, Result, ShardBatch};
use crate::ops::{LabelTarget, RowSource, SequenceRows};

/// Rows of a shard. Each sequence has its flow rows and then the query rows of its task.
pub(super) struct Plan {
    pub(super) sources: Arc<[RowSource]>,
    pub(super) sequences: Arc<[SequenceRows]>,
    /// The last query row of each sequence with a task.
    pub(super) label_rows: Arc<[usize]>,
    /// Its label, with the sequence's own weight.
    pub(super) labels: Vec<LabelTarget>,
    /// The sequence it belongs to.
    pub(super) label_sequences: Vec<usize>,
    /// Next token of each row; empty if there are none.
    pub(super) targets: Vec<u32>,
    /// Weight of each row's next token; 0 on query rows.
    pub(super) target_weights: Vec<f32>,
}

impl Network {
    /// Checks a shard and lays out its rows.
    pub(super) fn plan(&self, batch: &ShardBatch) -> Result<Plan> {
        let config = &self.config;
        self.check_batch(batch)?;
        let (mut sources, mut sequences) = (Vec::new(), Vec::new());
        let (mut label_rows, mut labels, mut label_sequences) =
            (Vec::new(), Vec::new(), Vec::new());
        let (mut targets, mut target_weights) = (Vec::new(), Vec::new());
        let mut token = 0;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let start = sources.len();
            let tokens = token..token + sequence.flow_rows;
            token = tokens.end;
            sources.extend(
                batch.tokens[tokens.clone()]
                    .iter()
                    .map(|&id| RowSource::Token(id as usize)),
            );
            let query_rows = if sequence.task.is_some() {
                config.query_tokens
            } else {
                0
            };
            if let Some(task) = sequence.task {
                sources.extend(
                    (0..query_rows)
                        .map(|query| RowSource::Query(task * config.query_tokens + query)),
                );
                label_rows.push(sources.len() - 1);
                label_sequences.push(index);
                let start = config.label_start(task);
                let end = start + config.task_labels[task];
                labels.push(LabelTarget {
                    start,
                    end,
                    label: sequence.label,
                    weight: sequence.weight,
                });
            }
            if !batch.targets.is_empty() {
                targets.extend_from_slice(&batch.targets[tokens.clone()]);
                target_weights.extend_from_slice(&batch.target_weights[tokens]);
                targets.resize(sources.len(), 0);
                target_weights.resize(sources.len(), 0.0);
            }
            let task = sequence.task.unwrap_or(0);
            sequences.push(SequenceRows {
                start,
                flow_rows: sequence.flow_rows,
                query_rows,
                task,
            });
        }
        Ok(Plan {
            sources: sources.into(),
            sequences: sequences.into(),
            label_rows: label_rows.into(),
            labels,
            label_sequences,
            targets,
            target_weights,
        })
    }

    fn check_batch(&self, batch: &ShardBatch) -> Result<()> {
        let config = &self.config;
        let rows: usize = batch
            .sequences
            .iter()
            .map(|sequence| sequence.flow_rows)
            .sum();
        if rows != batch.tokens.len() || rows == 0 {
            return Err(NetworkError::size(
                "tokens of the sequences",
                format!("{} (at least 1)", batch.tokens.len()),
                rows,
            ));
        }
        if batch.targets.len() != batch.target_weights.len()
            || !(batch.targets.is_empty() || batch.targets.len() == rows)
        {
            let found = format!("{} and {}", batch.targets.len(), batch.target_weights.len());
            return Err(NetworkError::size(
                "targets and their weights",
                format!("{rows} or none"),
                found,
            ));
        }
        if let Some(id) = batch
            .tokens
            .iter()
            .chain(&batch.targets)
            .find(|&&id| id as usize >= config.vocabulary)
        {
            return Err(NetworkError::size(
                "token id",
                format!("below {}", config.vocabulary),
                id,
            ));
        }
        let longest = POSITIONS_MAX - config.query_tokens;
        for sequence in &batch.sequences {
            if !(1..=longest).contains(&sequence.flow_rows) {
                return Err(NetworkError::size(
                    "tokens of a sequence",
                    format!("1 to {longest}"),
                    sequence.flow_rows,
                ));
            }
            if let Some(task) = sequence.task {
                let Some(&labels) = config.task_labels.get(task) else {
                    return Err(NetworkError::size(
                        "task",
                        format!("below {}", config.task_labels.len()),
                        task,
                    ));
                };
                if sequence.label as usize >= labels {
                    return Err(NetworkError::size(
                        format!("label of task {task}"),
                        format!("below {labels}"),
                        sequence.label,
                    ));
                }
            }
        }
        Ok(())
    }
}
