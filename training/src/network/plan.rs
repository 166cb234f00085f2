//! From a shard of a batch to rows: what each input row is, who sees whom, and which rows have a loss.

use std::sync::Arc;

use super::{Network, NetworkError, POSITIONS_MAX, Result, ShardBatch};
use crate::ops::{LabelTarget, SequenceRows};

/// Rows of a shard: the flow rows of all sequences, and apart from them the query rows of all that have a task.
pub(super) struct Plan {
    /// Row of the token table of each flow row.
    pub(super) tokens: Arc<[usize]>,
    /// Row of the query table of each query row; empty if no sequence has a task.
    pub(super) queries: Arc<[usize]>,
    /// Task of each query row.
    pub(super) query_tasks: Arc<[usize]>,
    pub(super) sequences: Arc<[SequenceRows]>,
    /// The last query row of each sequence with a task, and its task.
    pub(super) label_rows: Arc<[usize]>,
    pub(super) label_tasks: Arc<[usize]>,
    /// Its label, with the sequence's own weight.
    pub(super) labels: Vec<LabelTarget>,
    /// The sequence it belongs to.
    pub(super) label_sequences: Vec<usize>,
}

impl Network {
    /// Checks a shard and lays out its rows.
    pub(super) fn plan(&self, batch: &ShardBatch) -> Result<Plan> {
        let config = &self.config;
        self.check_batch(batch)?;
        let (mut queries, mut query_tasks) = (Vec::new(), Vec::new());
        let (mut label_rows, mut label_tasks) = (Vec::new(), Vec::new());
        let (mut labels, mut label_sequences) = (Vec::new(), Vec::new());
        let mut sequences = Vec::with_capacity(batch.sequences.len());
        let mut flow_start = 0;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let query_start = queries.len();
            if let Some(task) = sequence.task {
                let first = task * config.query_tokens;
                queries.extend(first..first + config.query_tokens);
                query_tasks.resize(queries.len(), task);
                label_rows.push(queries.len() - 1);
                label_tasks.push(task);
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
            sequences.push(SequenceRows {
                flow_start,
                flow_rows: sequence.flow_rows,
                query_start,
                query_rows: queries.len() - query_start,
                task: sequence.task.unwrap_or(0),
            });
            flow_start += sequence.flow_rows;
        }
        Ok(Plan {
            tokens: batch.tokens.iter().map(|&id| id as usize).collect(),
            queries: queries.into(),
            query_tasks: query_tasks.into(),
            sequences: sequences.into(),
            label_rows: label_rows.into(),
            label_tasks: label_tasks.into(),
            labels,
            label_sequences,
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
