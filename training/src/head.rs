//! `head fit`: a linear head for a task, out of labelled flows and what a bundle knows of them.
//!
//! The head reads the hidden state of one of the bundle's tasks, by rule of another one than the task it is fitted for: that one has learnt the
//! training flows, so its state and its scores there look better than they are. On flows that the bundle has not learnt, as those of another network or
//! of later weeks, its own task's state says more, and `from` takes it. The bundle's own answer has a voice in the head, whose weight is set and not
//! fitted, for the same reason. Source task and regularisation are chosen on held groups of the training split; another split is scored at the end and
//! decides nothing.

mod examine;
mod folds;
mod regression;

use std::path::{Path, PathBuf};

use serde::Serialize;
use trafficllm_heads::{
    Answer, Answers, Conditions, FlowInput, Head, Linear, ModelContext, TaskContext, TaskInput,
};
use trafficllm_model::{Bundle, Level, Model, TaskKind};

use crate::data::{self, Split, TaskData};
use crate::engine::highest;
use crate::error::{Result, TrainError};
use crate::evaluate;
use crate::metrics::{Confusion, Scores};
use crate::random::Random;

use examine::{Examined, examine};
use regression::{Problem, Regression};

/// The linear head's module, whose parameters are filled in.
const TEMPLATE: &[u8] = include_bytes!("../../plugins/examples/modules/linear.wasm");
/// Penalties on squared weights that are tried, the strongest first; of the mean loss of an item.
pub const PENALTIES: [f64; 5] = [3e-2, 1e-2, 3e-3, 1e-3, 3e-4];
/// The penalty with which source tasks are compared.
const PENALTY_TO_COMPARE: f64 = 3e-3;
/// Parts that the groups of the training split are divided into.
const FOLDS: usize = 5;
/// Resamples of the groups that are scored.
const RESAMPLES: u64 = 2_000;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct HeadOptions {
    /// The bundle.
    pub bundle: PathBuf,
    /// Folder with the data.
    pub data: PathBuf,
    /// The task of the data.
    pub task: String,
    /// The task of the bundle whose hidden state the head is given; `None`: chosen.
    pub from: Option<String>,
    /// Weight of the bundle's own answer to the task, 0 to 1; the linear part has the rest.
    pub voice: f32,
    /// The head's name; `None`: the task's with `_head` behind it.
    pub name: Option<String>,
    /// Below this score the head abstains.
    pub threshold: f32,
    /// The split to score, if there is one.
    pub scored: Option<Split>,
    /// Threads; never change a result.
    pub threads: usize,
}

/// How good a choice was on the held groups of the training split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// The source task.
    pub from: String,
    /// The penalty.
    pub penalty: f64,
    /// Macro-F1 of the linear part alone over the items of all held groups.
    pub macro_f1: f64,
}

/// The scores of a fitted head on flows that it was not fitted on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeadScores {
    /// The split.
    pub split: &'static str,
    /// The head.
    pub head: Scores,
    /// The bundle's own answers to the task, where it has it.
    pub bundle: Option<Scores>,
    /// Macro-F1 without the items whose payload stands in the training split too: head, bundle.
    pub unseen: (f64, Option<f64>),
    /// Head less bundle in macro-F1: the 5th and the 95th of a hundred parts when the split's groups are drawn again and again, with replacement, and
    /// the share of draws in which the head is better.
    pub resampled: Option<Resampled>,
}

/// See [`HeadScores::resampled`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Resampled {
    /// 5 % of the differences are below.
    pub low: f64,
    /// 5 % are above.
    pub high: f64,
    /// The share of differences above 0.
    pub better: f64,
}

/// A fitted head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// The head's name.
    pub name: String,
    /// The data's task.
    pub task: String,
    /// The task of the bundle whose hidden state the head has to be given.
    pub from: String,
    /// The penalty that was chosen.
    pub penalty: f64,
    /// Weight of the bundle's own answer; 0 where it has none.
    pub voice: f32,
    /// Items and groups that it was fitted on.
    pub fitted_on: (usize, usize),
    /// What was tried.
    pub tried: Vec<Tried>,
    /// The scores on another split.
    pub scores: Option<HeadScores>,
    /// The module.
    #[serde(skip)]
    pub module: Vec<u8>,
}

pub(crate) fn wrong(what: &str, expected: &str, found: impl ToString) -> TrainError {
    TrainError::Head {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}

/// Fits a head.
///
/// # Errors
/// Where the bundle or the data cannot be read, the task is not one of flows, a name is wrong, or the parameters do not fit into the module.
pub fn fit(options: &HeadOptions) -> Result<Fitted> {
    if !(0.0..=1.0).contains(&options.voice) {
        return Err(wrong("voice", "0 to 1", options.voice));
    }
    let bundle = Bundle::open(&options.bundle)?;
    let model = Model::load(&bundle, Level::detect())?;
    let encoder = evaluate::encoder_of(&bundle)?;
    let train = data::load(&options.data, &options.task, Split::Train)?;
    if train.kind != data::TaskKind::Flow {
        return Err(wrong("task", "a task of flows", &options.task));
    }
    let names: Vec<&str> = model.tasks().iter().map(|task| task.name()).collect();
    let own = own_task(&model, &options.task, &train.labels);
    let sources = sources(&model, own, options)?;
    tracing::info!(
        "{}: what the bundle knows of {} flows",
        options.task,
        train.items.len()
    );
    let known = examine(&model, &encoder, &train, &sources, own, options.threads)?;

    let folds = folds::folds(&train, FOLDS);
    let mut tried = Vec::new();
    let mut try_out = |place: usize, penalties: &[f64]| {
        let problem = Problem::new(&known.states[place], &train);
        let scores = held_scores(&problem, &train, &folds, penalties, options.threads);
        let from = names[sources[place]].to_owned();
        tried.extend(
            penalties
                .iter()
                .zip(&scores)
                .map(|(&penalty, &macro_f1)| Tried {
                    from: from.clone(),
                    penalty,
                    macro_f1,
                }),
        );
        scores
    };
    let mut best = (0, f64::MIN);
    if sources.len() > 1 {
        for place in 0..sources.len() {
            let score = try_out(place, &[PENALTY_TO_COMPARE])[0];
            if score > best.1 {
                best = (place, score);
            }
        }
    }
    let place = best.0;
    let scores = try_out(place, &PENALTIES);
    let mut penalty = (PENALTIES[0], scores[0]);
    for (&tried, &score) in PENALTIES.iter().zip(&scores) {
        if score > penalty.1 {
            penalty = (tried, score);
        }
    }
    let penalty = penalty.0;
    let problem = Problem::new(&known.states[place], &train);
    let all: Vec<usize> = (0..train.items.len()).collect();
    let regression = Regression::fit(&problem, &all, penalty, None);

    let voice = if own.is_some() { options.voice } else { 0.0 };
    let name = options.name.clone();
    let name = name.unwrap_or_else(|| format!("{}_head", options.task));
    let linear = linear_of(
        &regression,
        &problem,
        &name,
        &train.labels,
        (voice, own),
        options,
    )?;
    let module = linear.fill(TEMPLATE).ok_or_else(|| {
        wrong(
            "parameters",
            "24 KiB at most, which the module has room for",
            "more",
        )
    })?;
    let scores = if let Some(split) = options.scored {
        let scored = data::load(&options.data, &options.task, split)?;
        let known = examine(
            &model,
            &encoder,
            &scored,
            &sources[place..=place],
            own,
            options.threads,
        )?;
        Some(score(
            &model,
            &linear,
            &train,
            (split, &scored),
            &known,
            own,
        )?)
    } else {
        None
    };
    Ok(Fitted {
        name,
        task: options.task.clone(),
        from: names[sources[place]].to_owned(),
        penalty,
        voice,
        fitted_on: (train.items.len(), train.groups.len()),
        tried,
        scores,
        module,
    })
}

/// Writes a fitted head's module.
///
/// # Errors
/// Where the system refuses it.
pub fn write(fitted: &Fitted, out: &Path) -> Result<()> {
    std::fs::write(out, &fitted.module).map_err(TrainError::io(out))
}

/// The bundle's task of the same name, if it has the same labels, each of one word.
fn own_task(model: &Model, task: &str, labels: &[String]) -> Option<usize> {
    let mut tasks = model.tasks().iter();
    let place = tasks.position(|known| known.name() == task)?;
    let known = &model.tasks()[place];
    let mut theirs = known.labels().to_vec();
    theirs.sort();
    let mut ours = labels.to_vec();
    ours.sort();
    (known.trie().depth() == 1 && theirs == ours).then_some(place)
}

/// The tasks of the bundle whose hidden states are tried.
fn sources(model: &Model, own: Option<usize>, options: &HeadOptions) -> Result<Vec<usize>> {
    let tasks = model.tasks().iter().enumerate();
    let of_flows = tasks.filter(|(_, task)| task.kind() == TaskKind::Flow);
    let flows: Vec<usize> = of_flows.map(|(place, _)| place).collect();
    if let Some(name) = &options.from {
        let named = |&place: &usize| model.tasks()[place].name() == name;
        let found = flows.iter().copied().find(named);
        let names: Vec<&str> = flows
            .iter()
            .map(|&place| model.tasks()[place].name())
            .collect();
        let error = || wrong("source task", &names.join(", "), name);
        return Ok(vec![found.ok_or_else(error)?]);
    }
    let others: Vec<usize> = flows
        .iter()
        .copied()
        .filter(|&place| Some(place) != own)
        .collect();
    let found = if others.is_empty() { flows } else { others };
    if found.is_empty() {
        return Err(wrong("bundle", "a task of flows", "none"));
    }
    Ok(found)
}

/// Macro-F1 over the items of all held groups, for each penalty.
fn held_scores(
    problem: &Problem,
    train: &TaskData,
    folds: &[usize],
    penalties: &[f64],
    threads: usize,
) -> Vec<f64> {
    let numbers: Vec<usize> = (0..FOLDS).collect();
    let answers = crate::threads::in_runs(&numbers, threads, |some| {
        let mut answers = Vec::new();
        for &fold in some {
            let (held, fitted): (Vec<usize>, Vec<usize>) =
                (0..train.items.len()).partition(|&item| folds[item] == fold);
            let mut last: Option<Regression> = None;
            for (number, &penalty) in penalties.iter().enumerate() {
                // Weaker penalties go on from where stronger ones ended.
                let regression = Regression::fit(problem, &fitted, penalty, last.as_ref());
                let found = held
                    .iter()
                    .map(|&item| (item, regression.answer(problem, item)));
                answers.extend(found.map(|(item, answer)| (number, item, answer)));
                last = Some(regression);
            }
        }
        Ok::<_, std::convert::Infallible>(answers)
    });
    let Ok(answers) = answers;
    let mut tables = vec![Confusion::new(&train.labels); penalties.len()];
    for (number, item, answer) in answers {
        tables[number].record(train.items[item].label, answer, false);
    }
    tables.iter().map(|table| table.scores().macro_f1).collect()
}

fn linear_of(
    regression: &Regression,
    problem: &Problem,
    name: &str,
    labels: &[String],
    (voice, own): (f32, Option<usize>),
    options: &HeadOptions,
) -> Result<Linear> {
    let share = 1.0 - voice;
    let (mut weights, mut bias) = regression.unscaled(problem);
    weights
        .iter_mut()
        .chain(&mut bias)
        .for_each(|weight| *weight *= share);
    let version = env!("CARGO_PKG_VERSION");
    let linear = Linear::new(
        (name, version),
        labels.to_vec(),
        options.threshold,
        (weights, bias),
    );
    let error = || {
        let expected = "a name of a-z, 0-9 and _, at most 64 labels of at most 127 bytes, numbers";
        wrong("head", expected, format!("{name}, {} labels", labels.len()))
    };
    let linear = linear.ok_or_else(error)?;
    if own.is_none() || voice == 0.0 {
        return Ok(linear);
    }
    linear.pooled_with(&options.task, voice).ok_or_else(error)
}

/// Asks the head itself of every item of a split.
fn score(
    model: &Model,
    linear: &Linear,
    train: &TaskData,
    (split, scored): (Split, &TaskData),
    known: &Examined,
    own: Option<usize>,
) -> Result<HeadScores> {
    let context = |task: &trafficllm_model::Task| TaskContext {
        name: task.name().to_owned(),
        labels: task.labels().to_vec(),
        threshold: task.threshold(),
    };
    let conditions = Conditions {
        model: ModelContext {
            hidden: u32::try_from(model.config().hidden).unwrap_or_default(),
            tasks: model.tasks().iter().map(context).collect(),
        },
        ..Conditions::default()
    };
    let fault = |fault: trafficllm_heads::Fault| wrong("head", "verdicts", fault);
    let mut instance = linear.start(&conditions).map_err(fault)?;
    let mut answers = Answers::default();
    let own_labels: Vec<usize> = own.map_or_else(Vec::new, |own| {
        let theirs = model.tasks()[own].labels().iter();
        let place = |label| scored.labels.iter().position(|known| known == label);
        theirs
            .map(|label| place(label).unwrap_or(usize::MAX))
            .collect()
    });
    let mut found = Vec::with_capacity(scored.items.len());
    for (number, state) in known.states[0].iter().enumerate() {
        let scores = known.own_scores.get(number).map_or(&[][..], Vec::as_slice);
        let task = TaskInput {
            task: own.unwrap_or_default() as u16,
            scores,
            ..TaskInput::default()
        };
        let flow = FlowInput {
            hidden: state,
            tasks: std::slice::from_ref(&task),
            ..FlowInput::default()
        };
        answers.clear();
        instance.judge(&[flow], &mut answers).map_err(fault)?;
        let Some(Answer::Verdict(verdict)) = answers.get(0) else {
            return Err(wrong("head", "a verdict", "none"));
        };
        let bundle = (!scores.is_empty()).then(|| own_labels[highest(scores)]);
        found.push((usize::from(verdict.label), verdict.abstained, bundle));
    }
    let seen = evaluate::fingerprints(train);
    let is_unseen: Vec<bool> = scored
        .items
        .iter()
        .map(|item| {
            let print = item.content.payload_fingerprint();
            print.is_none_or(|print| !seen.contains(&print))
        })
        .collect();
    let table = |of_head: bool, counts: &[u32]| {
        let mut table = Confusion::new(&scored.labels);
        for ((item, &(head, abstained, bundle)), &count) in
            scored.items.iter().zip(&found).zip(counts)
        {
            for _ in 0..count {
                if of_head {
                    table.record(item.label, head, abstained);
                } else if let Some(bundle) = bundle {
                    table.record(item.label, bundle, false);
                }
            }
        }
        table.scores()
    };
    let once = vec![1; scored.items.len()];
    let unseen: Vec<u32> = is_unseen.iter().map(|&unseen| u32::from(unseen)).collect();
    let has_own = own.is_some();
    let resampled = has_own.then(|| {
        let differences = (0..RESAMPLES).map(|number| {
            let mut random = Random::stream(1, 0x4845_4144, number);
            let mut of_group = vec![0_u32; scored.groups.len()];
            for _ in 0..scored.groups.len() {
                of_group[random.below(scored.groups.len())] += 1;
            }
            let counts: Vec<u32> = scored
                .items
                .iter()
                .map(|item| of_group[item.group])
                .collect();
            table(true, &counts).macro_f1 - table(false, &counts).macro_f1
        });
        let mut differences: Vec<f64> = differences.collect();
        differences.sort_by(f64::total_cmp);
        let part = |share: f64| differences[(share * (RESAMPLES - 1) as f64).round() as usize];
        let better = differences
            .iter()
            .filter(|&&difference| difference > 0.0)
            .count();
        Resampled {
            low: part(0.05),
            high: part(0.95),
            better: better as f64 / RESAMPLES as f64,
        }
    });
    Ok(HeadScores {
        split: split.name(),
        head: table(true, &once),
        bundle: has_own.then(|| table(false, &once)),
        unseen: (
            table(true, &unseen).macro_f1,
            has_own.then(|| table(false, &unseen).macro_f1),
        ),
        resampled,
    })
}
