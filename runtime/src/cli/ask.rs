//! `trafficllm ask`: a question in somebody's own words, answered with the verdicts of the task that it is about.

use std::fmt::Write as _;
use std::io::{self, Write as _, stdout};
use std::sync::Arc;

use trafficllm::{Intention, Model, Tally, TaskTally};

use super::console::{self, printable};
use super::{AskArgs, DetectArgs, Exit, Failure, Format, detect, model_failure, open_model};

/// Labels that the summary names; the rest is counted together.
const LABELS_SHOWN: usize = 5;

/// Runs the command.
pub(super) fn run(args: AskArgs) -> Result<Exit, Failure> {
    let model = Arc::new(open_model(
        args.model.as_deref(),
        args.device.unwrap_or_default(),
    )?);
    let understood = model.understand(&args.question);
    let intention = understood.map_err(|error| model_failure(args.model.as_deref(), &error))?;
    if let Some(message) = refusal(&model, &intention) {
        return Err(Failure {
            exit: Exit::Usage,
            message,
        });
    }
    console::note(&format!(
        "understood: {} (score {:.4})",
        intention.task, intention.score
    ));
    if args.captures.is_empty() {
        return say(&format!(
            "{}: ask it of a capture, or: trafficllm detect --task {} CAPTURE",
            intention.task, intention.answered_by[0]
        ));
    }
    let format = args.format;
    let detect = DetectArgs {
        model: args.model,
        tasks: intention.answered_by,
        format,
        threads: args.threads,
        device: args.device,
        max_flows: None,
        heads: super::HeadArgs::default(),
        captures: args.captures,
    };
    let (exit, tally) = detect::judge(&detect, &model)?;
    let summary = summary(&tally);
    if format == Format::Table {
        say(&summary)?;
    } else {
        // Standard output is for a program.
        console::note(&summary);
    }
    Ok(exit)
}

/// Why a question cannot be answered.
fn refusal(model: &Model, intention: &Intention) -> Option<String> {
    let mut message = if intention.asks_for_nothing() {
        format!(
            "the question asks for no task (score {:.4})",
            intention.score
        )
    } else if !intention.is_understood {
        format!(
            "the question is not understood: the nearest is {} with score {:.4}",
            intention.task, intention.score
        )
    } else if intention.answered_by.is_empty() {
        format!(
            "understood: {} (score {:.4}), for which this model has no adapter",
            intention.task, intention.score
        )
    } else {
        return None;
    };
    let known = &model.manifest().instruction;
    let known = known.iter().flat_map(|known| known.answered_by.keys());
    let known: Vec<String> = known.map(|name| printable(name)).collect();
    if !known.is_empty() {
        let _infallible = write!(message, "; it can be asked for {}", known.join(", "));
    }
    Some(message)
}

/// One line: what the verdicts of all tasks say.
fn summary(tally: &Tally) -> String {
    let told: Vec<String> = tally.tasks.iter().map(sum_up).collect();
    format!("answer: {}", told.join("; "))
}

fn sum_up(task: &TaskTally) -> String {
    let name = printable(&task.task);
    if task.verdicts == 0 {
        return format!("{name} has nothing to judge here");
    }
    let mut labels: Vec<(&str, u64)> = task
        .labels
        .iter()
        .map(|(label, number)| (label.as_str(), *number))
        .collect();
    labels.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(other.0)));
    let mut told: Vec<String> = labels
        .iter()
        .take(LABELS_SHOWN)
        .map(|(label, number)| format!("{} {number}", printable(label)))
        .collect();
    let rest: u64 = labels.iter().skip(LABELS_SHOWN).map(|(_, n)| n).sum();
    if rest > 0 {
        told.push(format!("others {rest}"));
    }
    if task.abstained > 0 {
        told.push(format!("too doubtful to say {}", task.abstained));
    }
    format!("{name} on {}: {}", task.verdicts, told.join(", "))
}

fn say(line: &str) -> Result<Exit, Failure> {
    let mut out = stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure {
            exit: Exit::Incomplete,
            message: format!("standard output: writing failed: {error}"),
        }),
        _ => Ok(Exit::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(labels: &[(&str, u64)], abstained: u64) -> TaskTally {
        TaskTally {
            task: "botnet_detection".to_owned(),
            verdicts: labels.iter().map(|(_, number)| number).sum::<u64>() + abstained,
            abstained,
            not_applicable: 0,
            labels: labels
                .iter()
                .map(|(label, number)| ((*label).to_owned(), *number))
                .collect(),
        }
    }

    #[test]
    fn the_summary_names_the_most_frequent_labels_first() {
        let task = tally(&[("Neris", 2), ("normal", 30), ("Virut", 2)], 3);
        assert_eq!(
            sum_up(&task),
            "botnet_detection on 37: normal 30, Neris 2, Virut 2, too doubtful to say 3"
        );
        let many: Vec<(String, u64)> = (0..8).map(|n| (format!("l{n}"), 8 - n)).collect();
        let many: Vec<(&str, u64)> = many.iter().map(|(l, n)| (l.as_str(), *n)).collect();
        assert!(sum_up(&tally(&many, 0)).ends_with("l4 4, others 6"));
        assert!(sum_up(&tally(&[], 0)).ends_with("has nothing to judge here"));
    }
}
