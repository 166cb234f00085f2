//! How a run shows where it is: a bar on a terminal, plain log lines everywhere else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two log lines where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(20);

/// The progress of one stage, counted in steps.
#[derive(Debug)]
pub struct Progress {
    stage: String,
    bar: Option<ProgressBar>,
    steps: u64,
    started: Instant,
    logged: Instant,
    /// Tokens seen since the start of this process, for the rate.
    tokens: u64,
}

impl Progress {
    /// A stage of `steps` steps, of which `done` were done by an earlier process.
    #[must_use]
    pub fn new(stage: &str, steps: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            // A wrong template would only cost the looks of the bar.
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>10} [{bar:32}] {pos}/{len} {eta} {msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(stage.to_owned());
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self {
            stage: stage.to_owned(),
            bar,
            steps,
            started: now,
            logged: now,
            tokens: 0,
        }
    }

    /// Tells that `step` steps are done, `tokens` of them in the last one; `state` says how things stand.
    pub fn step(&mut self, step: u64, tokens: u64, state: impl FnOnce() -> String) {
        self.tokens += tokens;
        let last = step >= self.steps;
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(format!("{} {:.0} tokens/s", state(), self.tokens_per_s()));
                if last {
                    bar.finish();
                }
            }
            None if last || self.logged.elapsed() >= LOG_EVERY => {
                self.logged = Instant::now();
                let (stage, steps, rate) = (&self.stage, self.steps, self.tokens_per_s());
                tracing::info!(
                    "{stage}: step {step} of {steps}, {}, {rate:.0} tokens/s",
                    state()
                );
            }
            None => {}
        }
    }

    /// Tells that `step` steps are done, where steps are no tokens; `state` says how things stand.
    pub fn advance(&mut self, step: u64, state: impl FnOnce() -> String) {
        let last = step >= self.steps;
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(state());
                if last {
                    bar.finish();
                }
            }
            None if !last && self.logged.elapsed() >= LOG_EVERY => {
                self.logged = Instant::now();
                let (stage, share) = (&self.stage, step as f64 / self.steps.max(1) as f64);
                let spent_s = self.started.elapsed().as_secs_f64();
                let left_s = spent_s * (1.0 - share) / share.max(1e-9);
                tracing::info!(
                    "{stage}: {:.0} % done, {}, about {left_s:.0} s left",
                    100.0 * share,
                    state()
                );
            }
            None => {}
        }
    }

    /// Says something that is worth a line of its own.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => tracing::info!("{text}"),
        }
    }

    /// Tokens per second since this process began the stage.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}
