//! The page of a capture's verdicts.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use trafficllm::report::Page;
use trafficllm::report::plot::{self, Line, PlotError, Scale};

use super::Input;
use super::counts::{
    ADDRESS_LABELS_MAX, ADDRESSES_MAX, AddressCounts, Counts, LABELS_MAX, LabelCounts,
    NAME_BYTES_MAX, NAMES_MAX, SCORE_BINS, TaskCounts, Timeline,
};

/// Addresses that are shown.
const TALKERS_SHOWN: usize = 25;
/// Labels that are shown of an address.
const TALKER_LABELS_SHOWN: usize = 3;
/// Labels that a plot shows; the table beside it shows all.
const LABELS_PLOTTED: usize = 40;
/// Captures that are listed.
const CAPTURES_SHOWN: usize = 50;

pub(super) fn page(title: &str, inputs: &[Input], counts: &Counts) -> Result<String, PlotError> {
    let mut page = Page::new(title);
    overview(&mut page, counts);
    for (name, task) in &counts.tasks {
        describe_task(&mut page, name, task)?;
    }
    timeline(&mut page, &counts.timeline)?;
    talkers(&mut page, counts)?;
    losses(&mut page, inputs, counts);
    Ok(page.finish())
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1}", 100.0 * part as f64 / whole as f64)
}

fn overview(page: &mut Page, counts: &Counts) {
    page.section("Overview");
    let names = |counts: &BTreeMap<String, u64>| {
        let names: Vec<&str> = counts.keys().map(String::as_str).collect();
        names.join(", ")
    };
    let rows = [
        ("flows", counts.flows.to_string()),
        ("requests", counts.requests.to_string()),
        ("packets", counts.packets.to_string()),
        ("bytes", counts.bytes.to_string()),
        (
            "without a verdict, as no task applies",
            counts.unasked.to_string(),
        ),
        ("addresses", counts.addresses.len().to_string()),
        ("model", names(&counts.models)),
        ("profile", names(&counts.profiles)),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    page.table("What was judged", &["", ""], &rows);
    let rows: Vec<Vec<String>> = counts
        .tasks
        .iter()
        .map(|(name, task)| {
            let (answered, abstained) = task.totals();
            let top = task
                .labels
                .iter()
                .max_by_key(|(name, label)| (label.answered, Reverse(*name)));
            vec![
                name.clone(),
                (answered + abstained).to_string(),
                share(abstained, answered + abstained),
                top.map_or_else(String::new, |(name, label)| {
                    format!("{name} ({})", label.answered)
                }),
            ]
        })
        .collect();
    page.table(
        "Tasks",
        &["task", "verdicts", "abstained, %", "most frequent answer"],
        &rows,
    );
    let mut captures: Vec<(&String, &u64)> = counts.captures.iter().collect();
    captures.sort_by_key(|(name, count)| (Reverse(**count), *name));
    let rows: Vec<Vec<String>> = captures
        .iter()
        .take(CAPTURES_SHOWN)
        .map(|(name, count)| vec![(*name).clone(), count.to_string()])
        .collect();
    if !rows.is_empty() {
        let caption = format!("Captures, {} of {}", rows.len(), captures.len());
        page.table(&caption, &["capture", "flows or requests"], &rows);
    }
}

impl TaskCounts {
    /// Answered and abstained verdicts.
    fn totals(&self) -> (u64, u64) {
        self.labels
            .values()
            .fold((0, 0), |(answered, abstained), label| {
                (answered + label.answered, abstained + label.abstained)
            })
    }
}

fn describe_task(page: &mut Page, name: &str, task: &TaskCounts) -> Result<(), PlotError> {
    page.section(name);
    let (answered, abstained) = task.totals();
    page.paragraph(&format!(
        "{} verdicts, {abstained} of them abstained ({} %): their score is under the task's threshold, and the label is the best guess.",
        answered + abstained,
        share(abstained, answered + abstained)
    ));
    let mut labels: Vec<(&String, &LabelCounts)> = task.labels.iter().collect();
    labels.sort_by_key(|(name, label)| (Reverse(label.answered + label.abstained), *name));
    let rows: Vec<Vec<String>> = labels
        .iter()
        .map(|(name, label)| {
            let all = label.answered + label.abstained;
            vec![
                (*name).clone(),
                label.answered.to_string(),
                label.abstained.to_string(),
                share(all, answered + abstained),
                format!("{:.3}", label.score_sum / all as f64),
            ]
        })
        .collect();
    let head = ["label", "answered", "abstained", "share, %", "mean score"];
    page.table("Verdicts by label", &head, &rows);
    labels.truncate(LABELS_PLOTTED);
    let names: Vec<String> = labels.iter().map(|(name, _)| (*name).clone()).collect();
    let series = [
        (
            "answered",
            labels
                .iter()
                .map(|(_, label)| label.answered as f64)
                .collect(),
        ),
        (
            "abstained",
            labels
                .iter()
                .map(|(_, label)| label.abstained as f64)
                .collect(),
        ),
    ];
    let plot = plot::bars("Verdicts by label", &names, &series, Scale::Count)?;
    page.figure(&plot, &format!("The {} most frequent labels.", names.len()));
    let names: Vec<String> = (0..SCORE_BINS)
        .map(|bin| {
            format!(
                "{:.2} to {:.2}",
                bin as f64 / SCORE_BINS as f64,
                (bin + 1) as f64 / SCORE_BINS as f64
            )
        })
        .collect();
    let series = [
        (
            "answered",
            task.scores.iter().map(|bin| bin.0 as f64).collect(),
        ),
        (
            "abstained",
            task.scores.iter().map(|bin| bin.1 as f64).collect(),
        ),
    ];
    let plot = plot::bars("Scores", &names, &series, Scale::Count)?;
    page.figure(&plot, "Verdicts by the score of their label.");
    Ok(())
}

fn timeline(page: &mut Page, timeline: &Timeline) -> Result<(), PlotError> {
    let Some((&first, _)) = timeline.intervals.first_key_value() else {
        return Ok(());
    };
    page.section("Timeline");
    let step = timeline.interval_s;
    let points = |value: fn(&(u64, u64)) -> u64| -> Vec<(f64, f64)> {
        (0..timeline.reach())
            .map(|place| {
                let flows = timeline.intervals.get(&(first + place)).map_or(0, value);
                ((place * step) as f64, flows as f64)
            })
            .collect()
    };
    page.paragraph(&format!(
        "Flows by the time of their first packet, in intervals of {step} s; the first one begins {} s after the start of 1970 (UTC).",
        first * step
    ));
    let lines = [
        Line {
            name: "flows",
            points: points(|interval| interval.0),
        },
        Line {
            name: "with an abstained verdict",
            points: points(|interval| interval.1),
        },
    ];
    let axes = ("seconds since the first interval", "flows");
    let plot = plot::lines("Timeline", axes, ((0.0, 1.0), (0.0, 1.0)), &lines)?;
    page.figure(&plot, "All captures together.");
    Ok(())
}

/// The labels by their numbers, as `task: label`.
fn label_names(counts: &Counts) -> BTreeMap<usize, String> {
    let tasks = counts.tasks.iter();
    tasks
        .flat_map(|(task, counts)| {
            let labels = counts.labels.iter();
            labels.map(move |(name, label)| (label.number, format!("{task}: {name}")))
        })
        .collect()
}

fn talkers(page: &mut Page, counts: &Counts) -> Result<(), PlotError> {
    if counts.addresses.is_empty() {
        return Ok(());
    }
    page.section("Top talkers");
    let mut talkers: Vec<_> = counts.addresses.iter().collect();
    let flows = |one: &AddressCounts| one.started + one.taken;
    talkers.sort_by_key(|(address, one)| (Reverse(flows(one)), **address));
    talkers.truncate(TALKERS_SHOWN);
    let label_names = label_names(counts);
    let rows: Vec<Vec<String>> = talkers
        .iter()
        .map(|(address, one)| {
            let mut labels: Vec<_> = one
                .labels
                .iter()
                .filter_map(|(number, count)| Some((label_names.get(number)?, *count)))
                .collect();
            labels.sort_by_key(|(name, count)| (Reverse(*count), *name));
            let labels = labels.iter().take(TALKER_LABELS_SHOWN);
            let labels: Vec<String> = labels
                .map(|(name, count)| format!("{name} ({count})"))
                .collect();
            vec![
                address.to_string(),
                one.started.to_string(),
                one.taken.to_string(),
                one.bytes.to_string(),
                labels.join("; "),
            ]
        })
        .collect();
    let caption = format!(
        "The {} addresses with the most flows, of {}",
        rows.len(),
        counts.addresses.len()
    );
    let head = [
        "address",
        "flows started",
        "flows taken",
        "bytes",
        "most frequent answers on the flows it started",
    ];
    page.table(&caption, &head, &rows);
    let names: Vec<String> = talkers
        .iter()
        .map(|(address, _)| address.to_string())
        .collect();
    let series = [
        (
            "started",
            talkers.iter().map(|(_, one)| one.started as f64).collect(),
        ),
        (
            "taken",
            talkers.iter().map(|(_, one)| one.taken as f64).collect(),
        ),
    ];
    let plot = plot::bars("Flows by address", &names, &series, Scale::Count)?;
    page.figure(&plot, "Flows that each address started and took.");
    Ok(())
}

/// Nothing that was lost stays unsaid.
fn losses(page: &mut Page, inputs: &[Input], counts: &Counts) {
    page.section("Input");
    let rows: Vec<Vec<String>> = inputs
        .iter()
        .map(|input| {
            vec![
                input.name.clone(),
                input.lines.to_string(),
                input.bad_lines.to_string(),
                input.failure.clone().unwrap_or_default(),
            ]
        })
        .collect();
    page.table(
        "Files",
        &["file", "lines", "bad lines", "reading failed"],
        &rows,
    );
    for input in inputs {
        for (line, reason) in &input.shown {
            page.paragraph(&format!("{}, line {line}: {reason}", input.name));
        }
    }
    let lost = [
        (
            counts.losses.addresses,
            format!(
                "ends of flows are in the totals only: {ADDRESSES_MAX} addresses are counted one by one"
            ),
        ),
        (
            counts.losses.verdicts,
            format!("verdicts are not counted: {LABELS_MAX} labels are counted"),
        ),
        (
            counts.losses.names,
            format!(
                "names of captures, models or profiles are not listed: {NAMES_MAX} of each are"
            ),
        ),
        (
            counts.losses.long_names,
            format!(
                "names of captures, models or profiles, or verdicts by the name of their task or label, are not counted: they are longer than {NAME_BYTES_MAX} bytes"
            ),
        ),
        (
            counts.losses.address_labels,
            format!(
                "answers are not told of their address: {ADDRESS_LABELS_MAX} pairs of address and label are"
            ),
        ),
    ];
    for (count, what) in lost.into_iter().filter(|(count, _)| *count > 0) {
        page.paragraph(&format!("{count} {what}."));
    }
}
