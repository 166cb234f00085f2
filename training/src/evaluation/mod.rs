//! Everything that is measured of a bundle: one JSON with every figure and its protocol, one page with plots.
//!
//! All figures but the times come from the data, the bundle and the seed alone. The answers are those of the runtime's quantised engine.

mod noise;
mod occlusion;
mod page;
mod protocol;
mod results;
mod table;
mod task;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use trafficllm_model::{Bundle, INSTRUCTION, Level, Model, Task, TaskKind};

pub use noise::NOISES;
pub use occlusion::Family;
pub use page::page;
pub use results::{
    Cost, EvaluationReport, FORMAT, GroupReport, Lead, Protocol, TaskReport, UnknownReport,
    VariantReport,
};
pub use table::table;

use crate::baselines::Baseline;
use crate::data::{self, Split, TaskData};
use crate::error::{Result, TrainError};
use crate::evaluate::encoder_of;
use crate::progress::Progress;

/// The groups that are scored unless others are named: the honest halves of the task of services in and outside a VPN.
pub const DEFAULT_GROUPS: [&str; 2] = ["vpn-", "nonvpn-"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// The bundle: a packed file or a folder.
    pub bundle: PathBuf,
    /// The data folder.
    pub data: PathBuf,
    /// The split to score.
    pub split: Split,
    /// The tasks; all that bundle and data share where none is named.
    pub tasks: Vec<String>,
    /// Measure simple models on the same split.
    pub baselines: bool,
    /// Score under noise.
    pub noise: bool,
    /// Score without each family of tokens.
    pub occlusion: bool,
    /// Tasks of the data whose items are outsiders.
    pub outside: Vec<String>,
    /// Items with labels that the bundle lacks are outsiders; otherwise they are an error.
    pub unknown_labels: bool,
    /// Beginnings of labels among which a task is scored too; [`DEFAULT_GROUPS`] where none is named.
    pub groups: Vec<String>,
    /// Seed of noise and baselines.
    pub seed: u64,
    /// Threads; never changes a figure but the times.
    pub threads: usize,
}

impl EvaluationOptions {
    /// Scores alone, of all tasks, with nothing that takes long.
    #[must_use]
    pub fn new(bundle: PathBuf, data: PathBuf, split: Split) -> Self {
        Self {
            bundle,
            data,
            split,
            tasks: Vec::new(),
            baselines: false,
            noise: false,
            occlusion: false,
            outside: Vec::new(),
            unknown_labels: false,
            groups: Vec::new(),
            seed: 1,
            threads: 1,
        }
    }

    /// Whether a task is to be scored that is not one of the data's.
    fn asks(&self, task: &str) -> bool {
        self.tasks.is_empty() || self.tasks.iter().any(|asked| asked == task)
    }

    /// The labels' beginnings that hold at least two of `labels`: among one label there is nothing to decide.
    fn groups_of<'a>(&'a self, labels: &[String]) -> Vec<&'a str> {
        let named = self.groups.iter().map(String::as_str);
        let default = DEFAULT_GROUPS.into_iter();
        let groups: Vec<&str> = if self.groups.is_empty() {
            default.collect()
        } else {
            named.collect()
        };
        let fits = |prefix: &&str| {
            labels
                .iter()
                .filter(|label| label.starts_with(prefix))
                .count()
                >= 2
        };
        groups.into_iter().filter(fits).collect()
    }

    /// Parts of the work on one task, for the progress.
    fn steps(&self, task: &Task) -> u64 {
        let flows = task.kind() == TaskKind::Flow;
        let mut steps = 1 + self.outside.len();
        if self.noise && flows {
            steps += NOISES.len();
        }
        if self.occlusion && flows {
            steps += Family::ALL.len();
        }
        if self.baselines {
            let readers = if flows { Baseline::ALL.len() } else { 1 };
            steps += readers * (1 + self.groups_of(task.labels()).len());
        }
        steps as u64
    }
}

/// Opens a bundle, runs its self-tests and measures what the options ask for.
///
/// # Errors
/// Where the bundle is not sound, no task of it is in the data, the data cannot be read, or something was asked for that the bundle or the
/// data cannot give.
pub fn run(options: &EvaluationOptions) -> Result<EvaluationReport> {
    let bundle = Bundle::open(&options.bundle)?;
    let level = Level::detect();
    let model = Model::load(&bundle, level)?;
    model.self_test()?;
    let encoder = encoder_of(&bundle)?;
    let chosen = chosen_tasks(&model, options)?;
    let outside = load_outside(&model, &chosen, options)?;
    let instruction = model
        .instruction()
        .filter(|_| options.split == Split::Val && options.asks(INSTRUCTION));
    let of_data = chosen.iter().map(|&task| (task, &model.tasks()[task]));
    let asked: Vec<(usize, &Task)> = of_data.chain(instruction).collect();
    let steps = asked.iter().map(|(_, task)| options.steps(task));
    let mut watch = Watch::new(steps.sum());
    let mut tasks = Vec::with_capacity(asked.len());
    for (task, asked) in asked {
        let subject = task::Subject {
            model: &model,
            task,
            asked,
            encoder: &encoder,
            options,
        };
        tasks.push(subject.measure(&outside, &mut watch)?);
    }
    Ok(EvaluationReport {
        protocol: protocol::protocol(&bundle, level, options),
        tasks,
    })
}

/// The places of the tasks to score.
fn chosen_tasks(model: &Model, options: &EvaluationOptions) -> Result<Vec<usize>> {
    let present = data::tasks_of(&options.data)?;
    let names: Vec<&str> = model.tasks().iter().map(Task::name).collect();
    let has_instruction = model.instruction().is_some();
    for task in &options.tasks {
        let is_instruction = has_instruction && task == INSTRUCTION;
        if !(is_instruction || names.contains(&task.as_str())) {
            return Err(TrainError::Evaluation {
                what: format!("task {task}"),
                expected: "a task of the bundle".into(),
                found: names.join(", "),
            });
        }
    }
    let asked = |name: &str| {
        if options.tasks.is_empty() {
            present.iter().any(|task| task == name)
        } else {
            options.tasks.iter().any(|task| task == name)
        }
    };
    let chosen: Vec<usize> = (0..names.len())
        .filter(|&task| asked(names[task]))
        .collect();
    let is_instruction_asked =
        has_instruction && options.tasks.iter().any(|task| task == INSTRUCTION);
    if chosen.is_empty() && !is_instruction_asked {
        return Err(TrainError::DataEmpty {
            path: options.data.clone(),
            expected: "at least one task of the bundle",
        });
    }
    for group in &options.groups {
        let of_group = |&&task: &&usize| {
            let labels = model.tasks()[task].labels().iter();
            labels
                .filter(|label| label.starts_with(group.as_str()))
                .count()
                >= 2
        };
        if chosen.iter().filter(of_group).count() == 0 {
            return Err(TrainError::Evaluation {
                what: format!("group {group}"),
                expected: "a task with at least two labels that begin so".into(),
                found: "none".into(),
            });
        }
    }
    Ok(chosen)
}

/// The tasks whose items are outsiders. Each has to be outside of some scored task that reads the same kind of items.
fn load_outside(
    model: &Model,
    chosen: &[usize],
    options: &EvaluationOptions,
) -> Result<BTreeMap<String, TaskData>> {
    let mut outside = BTreeMap::new();
    for name in &options.outside {
        let loaded = data::load(&options.data, name, options.split)?;
        let fits = chosen.iter().any(|&task| {
            let task = &model.tasks()[task];
            task.name() != name && task::same_kind(task.kind(), loaded.kind)
        });
        if !fits {
            return Err(TrainError::Evaluation {
                what: format!("outsiders from {name}"),
                expected: "another scored task that reads the same kind of items".into(),
                found: "none".into(),
            });
        }
        outside.insert(name.clone(), loaded);
    }
    Ok(outside)
}

/// The progress over all parts, with an estimate of the time that is left.
struct Watch {
    progress: Progress,
    steps: u64,
    done: u64,
    started: Instant,
}

impl Watch {
    fn new(steps: u64) -> Self {
        Self {
            progress: Progress::new("evaluate", steps, 0),
            steps,
            done: 0,
            started: Instant::now(),
        }
    }

    /// A part is done, with so many tokens.
    fn step(&mut self, part: &str, tokens: u64) {
        self.done += 1;
        let left = self.steps.saturating_sub(self.done) as f64;
        let left_s = self.started.elapsed().as_secs_f64() / self.done as f64 * left;
        let state = || format!("{part} done, about {left_s:.0} s left");
        self.progress.step(self.done, tokens, state);
    }
}

#[cfg(test)]
mod tests;
