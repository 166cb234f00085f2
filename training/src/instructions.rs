//! Stage 1: what analysts ask, and which task they mean. The lines are part of this program (`training/instructions`, one file per task).
//!
//! Lines with the same wording, told apart only by what was filled in or mistyped, share a number and stand in one split: what is scored is
//! whether wordings are understood that no line for training has. Training has patterns beside the lines ([`patterns`]).

mod patterns;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use trafficllm_traffic::token::canonical_instruction;

use crate::data::{Content, Item, Split, TaskData, TaskKind};
use crate::error::{Result, TrainError};
use crate::random::Random;

use patterns::{Names, Pattern};

macro_rules! files {
    ($($task:literal),* $(,)?) => {
        /// The tasks that can be asked for, with their lines; `none` are texts that ask for none of them.
        const FILES: &[(&str, &str)] = &[$(($task, include_str!(concat!("../instructions/", $task, ".jsonl")))),*];
        /// The patterns of the same tasks.
        const PATTERNS: &[(&str, &str)] = &[$(($task, include_str!(concat!("../instructions/patterns/", $task, ".jsonl")))),*];
    };
}

files!(
    "apt_attack_detection",
    "botnet_detection",
    "botnet_traffic_generation",
    "concept_drift",
    "encrypted_app_classification",
    "encrypted_app_generation",
    "encrypted_vpn_detection",
    "encrypted_vpn_generation",
    "iot_device_classification",
    "malicious_doh_detection",
    "malware_traffic_detection",
    "malware_traffic_generation",
    "none",
    "tor_behavior_detection",
    "web_attack_detection",
    "website_fingerprinting",
);

/// What may stand in the braces of patterns.
const NAMES: &str = include_str!("../instructions/names.json");
/// Keeps the lines that are drawn from patterns apart from all other random numbers.
const PATTERN_STREAM: u64 = 0x51;
/// Of so many wordings of a task, one is for choosing.
const WORDINGS_PER_CHOOSING: u64 = 5;
/// Data folders whose task goes by another name in what is asked.
const OTHER_NAMES: &[(&str, &str)] = &[("web_attack_detection", "web_attack_http")];

/// How instructions are varied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructionRecipe {
    /// Varied copies of each line, of which one is drawn at a time; 0 leaves lines as they are.
    pub variants: usize,
    /// Mean number of mistyped letters in a varied line.
    pub typing_errors: f64,
    /// Probability that a word is left out.
    pub word_dropout: f64,
    /// Lines that are drawn from each pattern; 0 leaves the patterns out.
    pub lines_of_pattern: usize,
    /// As for other tasks ([`SamplingRecipe::task_exponent`](crate::batches::SamplingRecipe)); lines are short, so more of them fit into a batch.
    pub task_exponent: f64,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    wording: u64,
    /// ISO 639-1.
    #[allow(dead_code, reason = "for readers and reviewers of the file")]
    language: String,
    text: String,
}

/// A line of a file of patterns.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternLine {
    /// ISO 639-1.
    #[allow(dead_code, reason = "for readers and reviewers of the file")]
    language: String,
    text: String,
}

/// One split of the instructions that were written out, as a task of its own.
///
/// # Errors
/// A line that is not as it should be: the files are part of the program, so only a change of them can bring it about.
pub fn load(split: Split) -> Result<TaskData> {
    let labels: Vec<String> = FILES.iter().map(|(task, _)| (*task).to_owned()).collect();
    let mut groups = BTreeSet::new();
    let mut found = Vec::new();
    for (label, (task, text)) in FILES.iter().enumerate() {
        for line in read::<Line>(task, text)? {
            let is_for_choosing =
                mixed(label as u64, line.wording).is_multiple_of(WORDINGS_PER_CHOOSING);
            if is_for_choosing == (split != Split::Train) {
                let group = format!("{task}-{:04}", line.wording);
                groups.insert(group.clone());
                found.push((label, group, line.text));
            }
        }
    }
    let groups: Vec<String> = groups.into_iter().collect();
    let items = found.into_iter().map(|(label, group, text)| Item {
        label,
        group: groups.binary_search(&group).unwrap_or_default(),
        content: Content::Instruction(text),
    });
    Ok(TaskData {
        task: trafficllm_model::INSTRUCTION.to_owned(),
        kind: TaskKind::Instruction,
        labels,
        items: items.collect(),
        groups,
    })
}

/// What is trained on: the lines of the training split, and lines drawn from the patterns, a group for each pattern. A drawn line that somebody
/// also wrote out is left out: it may stand among those that are scored.
///
/// # Errors
/// As [`load`]; a pattern that cannot be read.
pub fn load_train(recipe: &InstructionRecipe, seed: u64) -> Result<TaskData> {
    let mut data = load(Split::Train)?;
    if recipe.lines_of_pattern == 0 {
        return Ok(data);
    }
    let names: Names =
        serde_json::from_str(NAMES).map_err(|error| TrainError::InstructionLine {
            path: "instructions/names.json".into(),
            line: error.line(),
            reason: error.to_string(),
        })?;
    let mut written = BTreeSet::new();
    for (task, text) in FILES {
        for line in read::<Line>(task, text)? {
            written.insert(canonical_instruction(&line.text));
        }
    }
    for (label, (task, text)) in PATTERNS.iter().enumerate() {
        let folder_and_task = format!("patterns/{task}");
        for (number, line) in read::<PatternLine>(&folder_and_task, text)?
            .iter()
            .enumerate()
        {
            let pattern = Pattern::read(&line.text, &names)
                .map_err(|reason| broken(&folder_and_task, number, reason))?;
            let group = data.groups.len();
            data.groups.push(format!("{folder_and_task}-{number:04}"));
            let mut random = Random::stream(seed ^ label as u64, PATTERN_STREAM, number as u64);
            for _ in 0..recipe.lines_of_pattern {
                let drawn = pattern.draw(&mut random);
                // Once each: a pattern without alternatives would repeat itself.
                if written.insert(canonical_instruction(&drawn)) {
                    let content = Content::Instruction(drawn);
                    data.items.push(Item {
                        label,
                        group,
                        content,
                    });
                }
            }
        }
    }
    Ok(data)
}

/// Which of a bundle's tasks answer what can be asked for.
#[must_use]
pub fn answered_by(tasks: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut answered = BTreeMap::new();
    for (label, _) in FILES {
        let answers = |task: &&String| {
            task.as_str() == *label || OTHER_NAMES.contains(&(*label, task.as_str()))
        };
        let answering: Vec<String> = tasks.iter().filter(answers).cloned().collect();
        if !answering.is_empty() {
            answered.insert((*label).to_owned(), answering);
        }
    }
    answered
}

fn read<L: DeserializeOwned>(task: &str, text: &str) -> Result<Vec<L>> {
    let lines = text.lines().enumerate();
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| broken(task, number, error.to_string()))
        })
        .collect()
}

/// What is wrong with a line, which is counted from 0 here.
fn broken(task: &str, number: usize, reason: String) -> TrainError {
    TrainError::InstructionLine {
        path: format!("instructions/{task}.jsonl").into(),
        line: number + 1,
        reason,
    }
}

/// A number that is spread evenly, whatever the numbers of wordings are.
fn mixed(label: u64, wording: u64) -> u64 {
    Random::stream(label, 0x50, wording).next_u64() >> 7
}

/// A copy of an instruction as somebody else might have typed it: other numbers, a letter wrong, a word less.
#[must_use]
pub fn vary(text: &str, recipe: &InstructionRecipe, random: &mut Random) -> String {
    let plain = canonical_instruction(text);
    let words: Vec<&str> = plain.split(' ').collect();
    let kept: Vec<&str> = words
        .iter()
        .filter(|_| words.len() < 3 || !random.chance(recipe.word_dropout))
        .copied()
        .collect();
    let mut letters: Vec<char> = if kept.is_empty() { words } else { kept }
        .join(" ")
        .chars()
        .collect();
    let is_renumbered = random.chance(0.5);
    for letter in &mut letters {
        if is_renumbered && letter.is_ascii_digit() {
            *letter = char::from(b'0' + random.below(10) as u8);
        }
    }
    let errors = (recipe.typing_errors * 2.0 * random.unit()).round() as usize;
    for _ in 0..errors {
        mistype(&mut letters, random);
    }
    letters.into_iter().collect()
}

fn mistype(letters: &mut Vec<char>, random: &mut Random) {
    if letters.len() < 4 {
        return;
    }
    let at = random.below(letters.len() - 1);
    match random.below(4) {
        0 => letters.swap(at, at + 1),
        1 => {
            letters.remove(at);
        }
        2 => letters.insert(at, letters[at]),
        _ => letters[at] = char::from(b'a' + random.below(26) as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_enough_of_every_task_and_no_text_under_two_wordings() {
        let mut texts = BTreeMap::new();
        let mut lines = 0;
        for (task, text) in FILES {
            let read: Vec<Line> = read(task, text).expect("lines");
            let wordings: BTreeSet<u64> = read.iter().map(|line| line.wording).collect();
            assert!(
                read.len() >= 250 && wordings.len() >= 100,
                "{task}: {} lines, {} wordings",
                read.len(),
                wordings.len()
            );
            lines += read.len();
            for line in read {
                let plain = canonical_instruction(&line.text);
                assert!(
                    !plain.is_empty() && line.language.len() == 2,
                    "{task}: {line:?}"
                );
                // Otherwise it would be in two splits, or in two tasks.
                let place = (*task, line.wording);
                let before = texts.insert(plain, place);
                assert_eq!(before.unwrap_or(place), place, "{task}: {line:?}");
            }
        }
        assert!(lines >= 4_000, "{lines}");
    }

    #[test]
    fn no_wording_is_in_two_splits() {
        let (train, val) = (
            load(Split::Train).expect("train"),
            load(Split::Val).expect("val"),
        );
        assert!(
            val.groups
                .iter()
                .all(|group| train.groups.binary_search(group).is_err())
        );
        let share = val.items.len() as f64 / (train.items.len() + val.items.len()) as f64;
        assert!((0.1..0.3).contains(&share), "{share}");
        for label in 0..train.labels.len() {
            assert!(
                train.items.iter().any(|item| item.label == label),
                "{label}"
            );
            assert!(
                val.items.iter().filter(|item| item.label == label).count() >= 20,
                "{label}"
            );
        }
    }

    #[test]
    fn lines_of_patterns_are_trained_on_beside_those_that_were_written() {
        let recipe = InstructionRecipe {
            variants: 0,
            typing_errors: 0.0,
            word_dropout: 0.0,
            lines_of_pattern: 2,
            task_exponent: 0.0,
        };
        let written = load(Split::Train).expect("train");
        let all = load_train(&recipe, 7).expect("patterns");
        let text = |item: &Item| match &item.content {
            Content::Instruction(text) => canonical_instruction(text),
            other => panic!("{other:?}"),
        };
        let (first, drawn) = all.items.split_at(written.items.len());
        assert!(written.items.iter().map(text).eq(first.iter().map(text)));
        for label in 0..all.labels.len() {
            let of_label = drawn.iter().filter(|item| item.label == label);
            let groups: BTreeSet<usize> = of_label.map(|item| item.group).collect();
            assert!(
                groups.len() >= 500,
                "{}: {}",
                all.labels[label],
                groups.len()
            );
        }
        let val = load(Split::Val).expect("val");
        let scored: BTreeSet<String> = val.items.iter().map(text).collect();
        assert!(drawn.iter().all(|item| !scored.contains(&text(item))));
        assert!(
            drawn
                .iter()
                .all(|item| !text(item).contains(['[', '|', '{', '}', ']']))
        );
        let again = load_train(&recipe, 7).expect("patterns");
        assert!(all.items.iter().map(text).eq(again.items.iter().map(text)));
        let other = load_train(&recipe, 8).expect("patterns");
        assert!(!all.items.iter().map(text).eq(other.items.iter().map(text)));
        let without = InstructionRecipe {
            lines_of_pattern: 0,
            ..recipe
        };
        let without = load_train(&without, 7).expect("no patterns");
        assert_eq!(without.items.len(), written.items.len());
    }

    #[test]
    fn tasks_answer_under_their_own_name_or_another() {
        let tasks = ["botnet_detection", "web_attack_http", "unheard_of"].map(str::to_owned);
        let answered = answered_by(&tasks);
        assert_eq!(answered["botnet_detection"], ["botnet_detection"]);
        assert_eq!(answered["web_attack_detection"], ["web_attack_http"]);
        assert_eq!(answered.len(), 2);
    }

    #[test]
    fn varied_lines_stay_near_and_repeat_with_the_seed() {
        let recipe = InstructionRecipe {
            variants: 4,
            typing_errors: 1.0,
            word_dropout: 0.1,
            lines_of_pattern: 0,
            task_exponent: 0.3,
        };
        let text = "Is host 10.0.0.1 part of a BOTNET?";
        let vary = |seed| vary(text, &recipe, &mut Random::new(seed));
        assert_eq!(vary(3), vary(3));
        let all: BTreeSet<String> = (0..50).map(vary).collect();
        assert!(all.len() > 20);
        assert!(all.iter().filter(|line| line.contains("botnet")).count() > 20);
        let unchanged = InstructionRecipe {
            typing_errors: 0.0,
            word_dropout: 0.0,
            ..recipe
        };
        let line = super::vary("no digits here", &unchanged, &mut Random::new(1));
        assert_eq!(line, "no digits here");
    }
}
