//! One training step: shards in parallel, gradients added in order, one step of the optimiser.

use std::ops::Range;

use candle_core::Tensor;
use trafficllm_kernels::training::Cpu;

use super::{
    LossScales, Network, NetworkError, Objective, Order, Result, ShardBatch, Statistics, StepReport,
};
use crate::ops;
use crate::optimiser::AdamW;

/// What a shard's thread hands back.
struct ShardResult {
    loss: f64,
    statistics: Statistics,
    /// One per parameter; `None` where the parameter had no part in the loss.
    gradients: Vec<Option<Tensor>>,
}

impl Network {
    /// One step of the optimiser on a batch, cut into shards that each run on a thread of their own. The result depends on
    /// how the batch is cut, so the number of shards belongs to the recipe.
    ///
    /// # Errors
    /// If a shard does not fit the network, or the loss or gradient is not finite: then nothing was changed.
    pub fn train_step(
        &mut self,
        shards: &[ShardBatch],
        objective: &Objective,
        optimiser: &mut AdamW,
        learning_rate: f64,
    ) -> Result<StepReport> {
        let scales = scales(shards, objective);
        let results = self.run_shards(shards, &scales)?;
        let loss = results.iter().map(|result| result.loss).sum();
        let mut statistics = Statistics::default();
        for result in &results {
            statistics.add(&result.statistics);
        }
        let trained = self.all_trained();
        let mut gradients = self.sum_gradients(&results, &trained)?;
        if !trained[Order::TOKENS].is_empty() {
            for scale in &self.config.scales {
                scale.spread(&mut gradients[Order::TOKENS], self.config.hidden);
            }
        }
        let gradient_norm = gradients
            .iter()
            .map(|values| Cpu::detect().sum_of_squares(values))
            .sum::<f64>()
            .sqrt();
        for (what, found) in [("loss", loss), ("norm of the gradient", gradient_norm)] {
            if !found.is_finite() {
                return Err(NetworkError::NotFinite {
                    step: optimiser.step(),
                    what,
                    found,
                });
            }
        }
        optimiser.update(
            &self.parameters,
            &trained,
            &gradients,
            gradient_norm,
            learning_rate,
        )?;
        Ok(StepReport {
            loss,
            gradient_norm,
            statistics,
        })
    }

    fn run_shards(&self, shards: &[ShardBatch], scales: &LossScales) -> Result<Vec<ShardResult>> {
        let Some((first, others)) = shards.split_first() else {
            return Err(NetworkError::size("shards", "at least 1", 0));
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = others
                .iter()
                .map(|shard| scope.spawn(|| self.run_shard(shard, scales)))
                .collect();
            let mut results = vec![self.run_shard(first, scales)];
            for (index, thread) in threads.into_iter().enumerate() {
                results.push(
                    thread
                        .join()
                        .unwrap_or(Err(NetworkError::Shard { shard: index + 1 })),
                );
            }
            results.into_iter().collect()
        })
    }

    fn run_shard(&self, shard: &ShardBatch, scales: &LossScales) -> Result<ShardResult> {
        ops::with_precision(self.precision, || {
            let ((loss, statistics), tape) = ops::recorded(|| self.loss(shard, scales))?;
            let Some(loss) = loss else {
                return Ok(ShardResult {
                    loss: 0.0,
                    statistics,
                    gradients: vec![None; self.parameters.len()],
                });
            };
            let mut store = tape.backward(&loss)?;
            let gradients = self
                .parameters
                .iter()
                .map(|parameter| store.take(parameter.var.as_tensor()))
                .collect();
            Ok(ShardResult {
                loss: f64::from(loss.to_scalar::<f32>()?),
                statistics,
                gradients,
            })
        })
    }

    /// Sums over shards, in their order, of the values that are trained; zeros where no shard has a gradient.
    fn sum_gradients(
        &self,
        results: &[ShardResult],
        trained: &[Range<usize>],
    ) -> Result<Vec<Vec<f32>>> {
        let cpu = Cpu::detect();
        let mut sums = Vec::with_capacity(trained.len());
        for (index, range) in trained.iter().enumerate() {
            let mut sum = vec![0.0; range.len()];
            let mut first = true;
            for gradient in results
                .iter()
                .filter_map(|result| result.gradients[index].as_ref())
            {
                ops::read(gradient, |values| {
                    let values = &values[range.clone()];
                    if std::mem::take(&mut first) {
                        sum.copy_from_slice(values);
                    } else {
                        cpu.add_assign(&mut sum, values);
                    }
                    Ok(())
                })?;
            }
            sums.push(sum);
        }
        Ok(sums)
    }
}

/// Weights of single rows that make the batch's loss a weighted mean.
fn scales(shards: &[ShardBatch], objective: &Objective) -> LossScales {
    let labelled = shards
        .iter()
        .flat_map(|shard| &shard.sequences)
        .filter(|sequence| sequence.task.is_some());
    let labels: f64 = labelled.map(|sequence| f64::from(sequence.weight)).sum();
    let tokens: f64 = shards
        .iter()
        .flat_map(|shard| &shard.target_weights)
        .map(|&weight| f64::from(weight))
        .sum();
    let over = |part: f64, sum: f64| if sum > 0.0 { (part / sum) as f32 } else { 0.0 };
    LossScales {
        label: over(1.0, labels),
        token: over(f64::from(objective.lm_weight), tokens),
        label_smoothing: objective.label_smoothing,
    }
}
