//! The options of the keywords, as rules write them.

use crate::limits::SHOWN_LABELS;
use crate::verdict::Names;

/// `[!]TASK,LABEL`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelOption {
    /// Whether another label is wanted.
    pub is_negated: bool,
    /// A task of the model.
    pub task: String,
    /// A label of the task.
    pub label: String,
}

/// `TASK,>0.9` and the like.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreOption {
    /// A task of the model.
    pub task: String,
    /// What the score is compared with.
    pub comparison: Comparison,
}

/// How a score is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    /// `>0.9`
    Above(f32),
    /// `>=0.9`
    AtLeast(f32),
    /// `<0.9`
    Below(f32),
    /// `<=0.9`
    AtMost(f32),
    /// `0.5-0.9`, both included
    Between(f32, f32),
}

impl LabelOption {
    /// Reads an option and holds it to the model's names.
    ///
    /// # Errors
    /// What is wrong, with what is known.
    pub fn parse(text: &str, names: &Names) -> Result<Self, String> {
        let (is_negated, task, label) = {
            let text = text.trim();
            let (is_negated, text) = match text.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, text),
            };
            let (task, label) = halves(text, "[!]TASK,LABEL")?;
            (is_negated, task, label)
        };
        let found = known_task(task, names)?;
        if found.label(label).is_none() {
            let known: Vec<&str> = found.labels().collect();
            return Err(format!(
                "task {task} has no label {label:?}; known are {}",
                listed(&known)
            ));
        }
        Ok(Self {
            is_negated,
            task: task.to_owned(),
            label: label.to_owned(),
        })
    }
}

impl ScoreOption {
    /// Reads an option and holds it to the model's names.
    ///
    /// # Errors
    /// What is wrong, with what is known.
    pub fn parse(text: &str, names: &Names) -> Result<Self, String> {
        let (task, comparison) = halves(text.trim(), "TASK,>0.9")?;
        known_task(task, names)?;
        Ok(Self {
            task: task.to_owned(),
            comparison: Comparison::parse(comparison)?,
        })
    }

    /// Whether a score is as the rule wants it.
    #[must_use]
    pub fn holds(&self, score: f32) -> bool {
        match self.comparison {
            Comparison::Above(limit) => score > limit,
            Comparison::AtLeast(limit) => score >= limit,
            Comparison::Below(limit) => score < limit,
            Comparison::AtMost(limit) => score <= limit,
            Comparison::Between(low, high) => (low..=high).contains(&score),
        }
    }
}

impl Comparison {
    fn parse(text: &str) -> Result<Self, String> {
        // The longer ones first: they begin like the others.
        for operator in [">=", "<=", ">", "<"] {
            let Some(rest) = text.strip_prefix(operator) else {
                continue;
            };
            let limit = score(rest).ok_or_else(|| unclear(text))?;
            return Ok(match operator {
                ">=" => Self::AtLeast(limit),
                "<=" => Self::AtMost(limit),
                ">" => Self::Above(limit),
                _ => Self::Below(limit),
            });
        }
        let (low, high) = text.split_once('-').ok_or_else(|| unclear(text))?;
        let (low, high) = score(low).zip(score(high)).ok_or_else(|| unclear(text))?;
        if low > high {
            return Err(unclear(text));
        }
        Ok(Self::Between(low, high))
    }
}

fn unclear(text: &str) -> String {
    format!(
        "expected >, >=, < or <= with a score from 0 to 1, or two scores as 0.5-0.9, found {text:?}"
    )
}

fn score(text: &str) -> Option<f32> {
    let found: f32 = text.trim().parse().ok()?;
    (0.0..=1.0).contains(&found).then_some(found)
}

/// What stands before and behind the first comma: task names have none.
fn halves<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), String> {
    let unquoted = text.trim_matches('"');
    let halves = unquoted.split_once(',');
    let halves = halves.map(|(task, rest)| (task.trim(), rest.trim()));
    halves
        .filter(|(task, rest)| !task.is_empty() && !rest.is_empty())
        .ok_or_else(|| format!("expected {form}, found {text:?}"))
}

fn known_task<'a>(task: &str, names: &'a Names) -> Result<&'a crate::verdict::Task, String> {
    let found = names.tasks.iter().find(|known| known.name == task);
    found.ok_or_else(|| {
        let known: Vec<&str> = names
            .tasks
            .iter()
            .map(|known| known.name.as_str())
            .collect();
        format!(
            "the model has no task {task:?}; known are {}",
            listed(&known)
        )
    })
}

fn listed(known: &[&str]) -> String {
    let shown = known.len().min(SHOWN_LABELS);
    let rest = known.len() - shown;
    let mut text = known[..shown].join(", ");
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}
