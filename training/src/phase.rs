//! One phase of training: steps over drawn batches with a warm-up and cosine decay, checkpoints, and scores in between.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::batches::{AugmentRecipe, Draw, Sampler, shards};
use crate::checkpoint::CheckpointStore;
use crate::error::{Result, TrainError};
use crate::network::{Network, Objective, Sequence, ShardBatch, Trainable};
use crate::ops::Precision;
use crate::optimiser::{AdamW, AdamWConfig};
use crate::progress::Progress;

/// How one phase trains.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseRecipe {
    /// Tokens to see, query rows included; 0 leaves the phase out.
    pub tokens: u64,
    /// Tokens of one step.
    pub batch_tokens: usize,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// Share of the steps in which the learning rate rises.
    pub warmup_share: f64,
    /// Learning rate at the end, as a share of the largest.
    pub final_share: f64,
    /// Weight of the next-token loss beside the label loss.
    pub next_token_weight: f32,
    /// Share of the items whose next tokens are in that loss; with a large vocabulary it is most of a step's time.
    pub next_token_share: f64,
    /// Share of a label's target that is spread over all labels of the task.
    pub label_smoothing: f32,
    /// How items are changed.
    pub augment: AugmentRecipe,
    /// The optimiser.
    pub optimiser: AdamWConfig,
    /// How the factors of large products are rounded.
    pub precision: Precision,
}

impl PhaseRecipe {
    /// Steps of the phase.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.tokens.div_ceil(self.batch_tokens.max(1) as u64)
    }

    /// The learning rate of a step, counted from 0: linear rise, then half a cosine down to the final share.
    #[must_use]
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let steps = self.steps().max(1) as f64;
        let warmup = (steps * self.warmup_share).max(1.0);
        let rise = ((step + 1) as f64 / warmup).min(1.0);
        let fall = (step as f64 - warmup).max(0.0) / (steps - warmup).max(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * fall.min(1.0)).cos());
        self.learning_rate * rise * (self.final_share + (1.0 - self.final_share) * cosine)
    }
}

/// Gives a network its score on the data for choosing; higher is better.
pub type Score<'a> = &'a dyn Fn(&Network) -> Result<f64>;

/// A phase that is ready to run.
pub struct Phase<'a> {
    /// Its name, which is also the name of its checkpoint.
    pub name: &'a str,
    /// Keeps its random numbers apart from those of other phases.
    pub stream: u64,
    /// How it trains.
    pub recipe: &'a PhaseRecipe,
    /// What it draws from.
    pub sampler: &'a Sampler<'a>,
    /// Shards of a batch: part of the recipe, because the order of sums depends on it.
    pub shards: usize,
    /// Where its checkpoints go.
    pub checkpoints: &'a CheckpointStore,
    /// Steps between two checkpoints.
    pub checkpoint_steps: u64,
    /// How many times the network is scored, the last time after the last step; 0 never.
    pub scorings: u64,
    /// Ends the phase after so many scorings in a row without a new best one; 0 never.
    pub patience: u64,
    /// What its steps may change.
    pub trainable: Trainable,
    /// Stops before this step, as if the process had been ended there: for tests of resuming.
    pub halt_before_step: Option<u64>,
}

/// How far a phase got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    step: u64,
    /// Best score so far and the step after which it was reached.
    best: Option<(f64, u64)>,
    /// Scorings since then.
    worse: u64,
}

impl Phase<'_> {
    /// Runs the phase, or what is left of it, and gives back the network: the best one where there is a score, otherwise
    /// the last one; in both cases the moving average where the optimiser keeps one.
    ///
    /// # Errors
    /// Where a step fails, the loss stops being a number, or a checkpoint cannot be read or written.
    pub fn run(&self, start: Network, score: Option<Score<'_>>) -> Result<Network> {
        let (mut network, mut optimiser, mut state) = self.resume(start)?;
        network.set_precision(self.recipe.precision);
        network.set_trainable(self.trainable)?;
        let steps = self.recipe.steps();
        let mut best = match (score, state.best) {
            (Some(_), Some((value, step))) => self.load_best(value, step)?,
            _ => None,
        };
        let mut progress = Progress::new(self.name, steps, state.step);
        while state.step < steps && !self.is_over(&state) {
            if self.halt_before_step == Some(state.step) {
                return Err(TrainError::Halted {
                    phase: self.name.to_owned(),
                    step: state.step,
                });
            }
            self.step(&mut network, &mut optimiser, state.step, &mut progress)?;
            state.step += 1;
            if let Some(score) = score.filter(|_| self.is_scored(state.step)) {
                let candidate = averaged(&network, &optimiser)?;
                let value = score(&candidate)?;
                progress.note(&format!(
                    "{}: score {value:.4} after step {}",
                    self.name, state.step
                ));
                state.worse += 1;
                if state.best.is_none_or(|(top, _)| value > top) {
                    state.best = Some((value, state.step));
                    state.worse = 0;
                    self.checkpoints
                        .save(&self.best_name(), &candidate, None, &notes(&state))?;
                    best = Some(candidate);
                }
            }
            if state.step % self.checkpoint_steps.max(1) == 0 || state.step == steps {
                self.checkpoints
                    .save(self.name, &network, Some(&optimiser), &notes(&state))?;
            }
        }
        match best {
            Some(best) => Ok(best),
            None => averaged(&network, &optimiser),
        }
    }

    /// Whether it has not got better for long enough.
    fn is_over(&self, state: &State) -> bool {
        self.patience > 0 && state.worse >= self.patience
    }

    fn step(
        &self,
        network: &mut Network,
        optimiser: &mut AdamW,
        step: u64,
        progress: &mut Progress,
    ) -> Result<()> {
        let recipe = self.recipe;
        let query_tokens = network.config().query_tokens;
        let draws = self
            .sampler
            .batch(self.stream, step, recipe.batch_tokens, query_tokens);
        let rows: usize = draws
            .iter()
            .map(|draw| draw.inputs.len() + query_tokens)
            .sum();
        let share = if recipe.next_token_weight > 0.0 {
            recipe.next_token_share
        } else {
            0.0
        };
        let batch: Vec<ShardBatch> = shards(draws, self.shards)
            .iter()
            .map(|shard| pack(shard, share, step))
            .collect();
        let objective = Objective {
            lm_weight: recipe.next_token_weight,
            label_smoothing: recipe.label_smoothing,
        };
        let report =
            network.train_step(&batch, &objective, optimiser, recipe.learning_rate_at(step))?;
        if !report.loss.is_finite() {
            return Err(TrainError::Diverged {
                phase: self.name.to_owned(),
                step,
                loss: report.loss,
            });
        }
        progress.step(step + 1, rows as u64, || {
            let statistics = &report.statistics;
            format!(
                "label loss {:.3}, next-token loss {:.3}, gradient {:.2}",
                statistics.mean_label_loss(),
                statistics.mean_token_loss(),
                report.gradient_norm
            )
        });
        Ok(())
    }

    /// Whether the network is scored after so many steps: at equal distances, the last time at the end.
    fn is_scored(&self, done: u64) -> bool {
        let steps = self.recipe.steps();
        (1..=self.scorings).any(|number| (steps * number).div_ceil(self.scorings) == done)
    }

    fn best_name(&self) -> String {
        format!("{}-best", self.name)
    }

    fn resume(&self, start: Network) -> Result<(Network, AdamW, State)> {
        let Some(resumed) = self.checkpoints.load(self.name)? else {
            return Ok((start, AdamW::new(self.recipe.optimiser), State::default()));
        };
        let state = read_notes(&resumed.notes);
        match (state, resumed.optimiser) {
            (Some(state), Some(optimiser)) if resumed.network.config() == start.config() => {
                tracing::info!("{}: going on after step {}", self.name, state.step);
                Ok((resumed.network, optimiser, state))
            }
            _ => Err(TrainError::CheckpointIncomplete {
                phase: self.name.to_owned(),
            }),
        }
    }

    /// The best network so far. The file may be newer than the checkpoint it is read for: then the steps in between are
    /// run again and find it again.
    fn load_best(&self, value: f64, step: u64) -> Result<Option<Network>> {
        let Some(resumed) = self.checkpoints.load(&self.best_name())? else {
            return Err(TrainError::CheckpointIncomplete {
                phase: self.name.to_owned(),
            });
        };
        let found = read_notes(&resumed.notes).and_then(|state| state.best);
        match found {
            Some((found_value, found_step))
                if found_step > step || (found_value, found_step) == (value, step) =>
            {
                Ok(Some(resumed.network))
            }
            _ => Err(TrainError::CheckpointIncomplete {
                phase: self.name.to_owned(),
            }),
        }
    }
}

fn averaged(network: &Network, optimiser: &AdamW) -> Result<Network> {
    Ok(network.averaged(optimiser)?)
}

fn notes(state: &State) -> BTreeMap<String, String> {
    let mut notes = BTreeMap::from([("step".to_owned(), state.step.to_string())]);
    if let Some((value, step)) = state.best {
        // The bits, not the digits: a resumed run must compare with the very same number.
        notes.insert("best_score_bits".to_owned(), value.to_bits().to_string());
        notes.insert("best_step".to_owned(), step.to_string());
        notes.insert("worse".to_owned(), state.worse.to_string());
    }
    notes
}

fn read_notes(notes: &BTreeMap<String, String>) -> Option<State> {
    let number = |name: &str| notes.get(name).and_then(|text| text.parse::<u64>().ok());
    let best = number("best_score_bits")
        .zip(number("best_step"))
        .map(|(bits, step)| (f64::from_bits(bits), step));
    Some(State {
        step: number("step")?,
        best,
        worse: number("worse").unwrap_or(0),
    })
}

/// Packs drawn items one after the other. So large a share of them, evenly spread and another one at each step, have next-token targets.
#[must_use]
pub fn pack(draws: &[Draw], next_token_share: f64, step: u64) -> ShardBatch {
    let mut shard = ShardBatch::default();
    let before = |number: u64| (number as f64 * next_token_share).floor();
    for (number, draw) in (step..).zip(draws) {
        shard.tokens.extend(&draw.inputs);
        if next_token_share > 0.0 {
            let has_targets = before(number) < before(number + 1);
            shard
                .targets
                .extend(draw.originals.iter().skip(1).chain([&0]));
            shard
                .target_weights
                .extend((1..=draw.inputs.len()).map(|next| {
                    if has_targets && next < draw.inputs.len() {
                        1.0
                    } else {
                        0.0
                    }
                }));
        }
        shard.sequences.push(Sequence {
            flow_rows: draw.inputs.len(),
            task: draw.target.map(|target| target.task),
            label: draw.target.map_or(0, |target| target.label as u32),
            weight: if draw.target.is_some() { 1.0 } else { 0.0 },
        });
    }
    shard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batches::Target;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let recipe = PhaseRecipe {
            tokens: 1000,
            batch_tokens: 10,
            warmup_share: 0.1,
            final_share: 0.1,
            learning_rate: 1.0,
            ..crate::recipe::Recipe::default().tune
        };
        assert_eq!(recipe.steps(), 100);
        assert!((recipe.learning_rate_at(0) - 0.1).abs() < 1e-9);
        assert!((recipe.learning_rate_at(9) - 1.0).abs() < 1e-9);
        assert!(
            (recipe.learning_rate_at(55) - 0.55).abs() < 1e-9,
            "half way down"
        );
        assert!(recipe.learning_rate_at(99) < 0.101 && recipe.learning_rate_at(99) > 0.1);
    }

    #[test]
    fn packing_shifts_the_targets_by_one_and_skips_the_last() {
        let draws = [
            Draw {
                inputs: vec![3, 0, 5],
                originals: vec![3, 4, 5],
                target: Some(Target { task: 1, label: 2 }),
            },
            Draw {
                inputs: vec![7],
                originals: vec![7],
                target: None,
            },
        ];
        let shard = pack(&draws, 1.0, 5);
        assert_eq!(shard.tokens, [3, 0, 5, 7]);
        assert_eq!(shard.targets, [4, 5, 0, 0]);
        assert_eq!(shard.target_weights, [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(
            shard.sequences[0],
            Sequence {
                flow_rows: 3,
                task: Some(1),
                label: 2,
                weight: 1.0
            }
        );
        assert_eq!(
            shard.sequences[1],
            Sequence {
                flow_rows: 1,
                task: None,
                label: 0,
                weight: 0.0
            }
        );
        assert!(pack(&draws, 0.0, 5).targets.is_empty());
    }

    #[test]
    fn the_said_share_of_the_items_has_targets_and_each_in_its_turn() {
        let draw = Draw {
            inputs: vec![3, 4],
            originals: vec![3, 4],
            target: None,
        };
        let draws = vec![draw; 8];
        let mut times = [0; 8];
        for step in 0..4 {
            let weights = pack(&draws, 0.25, step).target_weights;
            assert_eq!(weights.iter().sum::<f32>(), 2.0, "step {step}");
            for (times, of_draw) in times.iter_mut().zip(weights.chunks_exact(2)) {
                *times += usize::from(of_draw[0] == 1.0);
                assert_eq!(of_draw[1], 0.0, "the last token has no next one");
            }
        }
        assert_eq!(times, [1; 8]);
    }
}
