//! Whole evaluations of a small bundle on the made-up data.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::*;
use crate::engine;
use crate::evaluate::{TaskEvaluation, score};
use crate::synthetic;
use crate::tests::bundle_on;
use crate::tokenizer::encode_split;

/// A bundle and its data, made once for all tests.
fn made() -> &'static (TempDir, PathBuf) {
    static MADE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        synthetic::write(&folder.path().join("data"), 21);
        let bundle = bundle_on(folder.path());
        (folder, bundle)
    })
}

fn options() -> EvaluationOptions {
    let (folder, bundle) = made();
    EvaluationOptions::new(bundle.clone(), folder.path().join("data"), Split::Val)
}

/// The scores of every task as making a bundle has them.
fn short(options: &EvaluationOptions) -> Vec<TaskEvaluation> {
    let bundle = Bundle::open(&options.bundle).expect("sound");
    let model = Model::load(&bundle, Level::detect()).expect("loads");
    let encoder = encoder_of(&bundle).expect("an encoder");
    let of_task = |(index, task): (usize, &Task)| {
        let load = |split| data::load(&options.data, task.name(), split).expect("data");
        let (train, scored) = (load(Split::Train), load(Split::Val));
        let seen = crate::evaluate::fingerprints(&train);
        score(&model, index, &encoder, &scored, Split::Val, &seen, 2).expect("scores")
    };
    model.tasks().iter().enumerate().map(of_task).collect()
}

fn copy_of_data() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    synthetic::write(folder.path(), 21);
    folder
}

fn move_label(data: &Path, split: &str, from: &str, to: &str) {
    let split = data.join("colours").join(split);
    std::fs::rename(split.join(from), split.join(to)).expect("renamed");
}

#[test]
fn the_scores_are_those_of_the_short_evaluation_and_of_the_engine() {
    let options = options();
    let report = run(&options).expect("a report");
    let short = short(&options);
    let long: Vec<_> = report
        .tasks
        .iter()
        .map(|task| task.evaluation.clone())
        .collect();
    assert_eq!(long, short);
    for task in &report.tasks {
        let items: u64 = task.confusion.iter().flatten().sum();
        assert_eq!(items, task.evaluation.all.items);
        let right: u64 = (0..task.labels.len())
            .map(|label| task.confusion[label][label])
            .sum();
        assert!((right as f64 / items as f64 - task.evaluation.all.accuracy).abs() < 1e-12);
        assert_eq!(
            task.reliability
                .bins
                .iter()
                .map(|bin| bin.items)
                .sum::<u64>(),
            items
        );
        let answered = 1.0 - task.evaluation.all.abstained;
        assert!((task.risk_coverage.coverage_at_threshold - answered).abs() < 1e-12);
        assert!(task.cost.model_us > 0.0 && task.cost.tokens_mean > 1.0);
    }
}

#[test]
fn the_scores_of_all_labels_hold_the_engines_verdict() {
    let options = options();
    let bundle = Bundle::open(&options.bundle).expect("sound");
    let model = Model::load(&bundle, Level::detect()).expect("loads");
    let encoder = encoder_of(&bundle).expect("encoder");
    for (index, task) in model.tasks().iter().enumerate() {
        let data = data::load(&options.data, task.name(), Split::Val).expect("data");
        let sequences = encode_split(&encoder, &data, None).expect("tokens");
        let items: Vec<Vec<u32>> = sequences
            .into_iter()
            .map(|sequence| sequence.tokens)
            .collect();
        let verdicts = engine::verdicts(&model, index, &items, 2).expect("verdicts");
        let scores = engine::label_scores(&model, index, &items, 2).expect("scores");
        for (verdict, answer) in verdicts.iter().zip(&scores) {
            assert_eq!(verdict.label as usize, answer.label);
            assert_eq!(
                verdict.score.to_bits(),
                answer.scores[answer.label].to_bits()
            );
            assert!((answer.scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn everything_at_once_repeats_itself_on_any_number_of_threads() {
    let all = EvaluationOptions {
        baselines: true,
        noise: true,
        occlusion: true,
        ..options()
    };
    let report = run(&all).expect("a report");
    let again = run(&EvaluationOptions { threads: 3, ..all }).expect("a report");
    let timeless = |report: &EvaluationReport| -> Vec<TaskReport> {
        let tasks = report.tasks.iter().cloned();
        tasks
            .map(|mut task| {
                task.cost.encoding_us = 0.0;
                task.cost.model_us = 0.0;
                task
            })
            .collect()
    };
    assert_eq!(timeless(&report), timeless(&again));
    assert_eq!(report.protocol, again.protocol);
    let [colours, requests] = &report.tasks[..] else {
        panic!("{:?}", report.tasks);
    };
    assert_eq!(colours.noise.len(), NOISES.len());
    assert_eq!(colours.occlusion.len(), Family::ALL.len());
    assert_eq!(colours.baselines.len(), Baseline::ALL.len());
    assert!(requests.noise.is_empty() && requests.occlusion.is_empty());
    assert_eq!(requests.baselines.len(), 1);
    let best = colours
        .baselines
        .iter()
        .map(|one| one.all.macro_f1)
        .fold(0.0, f64::max);
    let lead = 100.0 * (colours.evaluation.all.macro_f1 - best);
    assert!((colours.lead.expect("measured").points - lead).abs() < 1e-9);
    page_holds_the_numbers(&report);
}

fn page_holds_the_numbers(report: &EvaluationReport) {
    let html = page(report).expect("a page");
    for task in &report.tasks {
        let all = &task.evaluation.all;
        assert!(html.contains(&format!("<td class=\"n\">{:.1}</td>", 100.0 * all.macro_f1)));
        for class in &all.per_class {
            let row = format!(
                "<td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td>",
                class.label, class.support, class.precision
            );
            assert!(html.contains(&row), "{row}");
        }
        let error = task.reliability.expected_calibration_error;
        assert!(html.contains(&format!("Expected calibration error {error:.4}.")));
        for variant in task.noise.iter().chain(&task.occlusion) {
            assert!(html.contains(&variant.name), "{}", variant.name);
        }
        for baseline in &task.baselines {
            assert!(html.contains(&baseline.name));
        }
    }
    for title in [
        "Confusion",
        "Reliability",
        "Risk over coverage",
        "F1 per label",
    ] {
        assert!(html.matches(title).count() >= report.tasks.len(), "{title}");
    }
    assert!(!html.contains("<script") && !html.contains("NaN"));
    let json = serde_json::to_string(report).expect("json");
    let read: EvaluationReport = serde_json::from_str(&json).expect("reads back");
    assert_eq!(read.protocol, report.protocol);
    assert_eq!(read.tasks.len(), report.tasks.len());
}

#[test]
fn a_hostile_label_is_escaped() {
    let report = run(&options()).expect("a report");
    let mut hostile = report;
    let label = "<img src=x onerror=alert(1)>";
    hostile.tasks[0].labels[0] = label.to_owned();
    hostile.tasks[0].evaluation.all.per_class[0].label = label.to_owned();
    hostile.tasks[0].evaluation.task = label.to_owned();
    let html = page(&hostile).expect("a page");
    assert!(!html.contains("<img"), "{html}");
    assert!(html.contains("&lt;img src=x"));
}

#[test]
fn a_group_is_scored_among_its_labels_alone() {
    let folder = copy_of_data();
    let data = folder.path();
    for split in ["train", "val"] {
        for (from, to) in [("blue", "vpn-a"), ("green", "vpn-b"), ("red", "plain")] {
            move_label(data, split, from, to);
        }
    }
    let made = tempfile::tempdir().expect("a folder");
    std::fs::rename(data, made.path().join("data")).expect("moved");
    let bundle = bundle_on(made.path());
    let options = EvaluationOptions {
        baselines: true,
        ..EvaluationOptions::new(bundle, made.path().join("data"), Split::Val)
    };
    let report = run(&options).expect("a report");
    let task = report
        .tasks
        .iter()
        .find(|task| task.evaluation.task == "colours")
        .expect("scored");
    let [group] = &task.groups[..] else {
        panic!("{:?}", task.groups);
    };
    assert_eq!(group.prefix, "vpn-");
    let labels: Vec<&str> = group
        .all
        .per_class
        .iter()
        .map(|class| class.label.as_str())
        .collect();
    assert_eq!(labels, ["vpn-a", "vpn-b"]);
    let support = |name: &str| {
        let mut classes = task.evaluation.all.per_class.iter();
        classes
            .find(|class| class.label == name)
            .expect("scored")
            .support
    };
    assert_eq!(group.all.items, support("vpn-a") + support("vpn-b"));
    // With one label less to choose from, no answer within the group gets worse.
    let right: u64 = task
        .confusion
        .iter()
        .enumerate()
        .take(3)
        .map(|(label, row)| {
            if task.labels[label].starts_with("vpn-") {
                row[label]
            } else {
                0
            }
        })
        .sum();
    assert!(group.all.accuracy * group.all.items as f64 >= right as f64 - 1e-9);
    assert_eq!(group.baselines.len(), Baseline::ALL.len());
    assert_eq!(group.baselines[0].all.items, group.all.items);
    let refused = run(&EvaluationOptions {
        groups: vec!["green".into()],
        ..options
    })
    .expect_err("one label is no group");
    assert!(refused.to_string().contains("group green"), "{refused}");
}

#[test]
fn labels_that_the_bundle_lacks_are_an_error_or_outsiders() {
    let folder = copy_of_data();
    let data = folder.path();
    for split in ["train", "val"] {
        move_label(data, split, "red", "infrared");
    }
    let options = EvaluationOptions {
        data: data.into(),
        tasks: vec!["colours".into()],
        ..options()
    };
    let refused = run(&options).expect_err("the label is unknown").to_string();
    assert!(
        refused.contains("infrared") && refused.contains("--unknown-labels"),
        "{refused}"
    );
    let report = run(&EvaluationOptions {
        unknown_labels: true,
        ..options
    })
    .expect("a report");
    let [unknown] = &report.tasks[0].unknown[..] else {
        panic!("{:?}", report.tasks[0].unknown);
    };
    assert_eq!(unknown.labels, ["infrared"]);
    assert_eq!(unknown.items + report.tasks[0].evaluation.all.items, 36);
    assert_eq!(unknown.left_out, 0);
    assert!((0.0..=1.0).contains(&unknown.auroc.expect("measured")));
    let answered = 1.0 - report.tasks[0].evaluation.all.abstained;
    assert!((unknown.answered_inside - answered).abs() < 1e-12);
}

#[test]
fn outsiders_by_label_are_without_what_is_known() {
    let folder = copy_of_data();
    let data = folder.path();
    for split in ["train", "val"] {
        move_label(data, split, "red", "infrared");
    }
    let colours = data.join("colours");
    // Six flows that stand in training under a label of the bundle, and six that stand beside them in the scored split.
    for (from, to) in [
        ("train/blue/blue-0.pcap", "trained"),
        ("val/green/green-4.pcap", "scored"),
    ] {
        let to = colours.join("val/infrared").join(format!("{to}.pcap"));
        std::fs::copy(colours.join(from), to).expect("copied");
    }
    let options = EvaluationOptions {
        data: data.into(),
        tasks: vec!["colours".into()],
        unknown_labels: true,
        ..options()
    };
    let report = run(&options).expect("a report");
    let [unknown] = &report.tasks[0].unknown[..] else {
        panic!("{:?}", report.tasks[0].unknown);
    };
    assert_eq!((unknown.items, unknown.left_out), (12, 12));
    assert!(unknown.auroc.is_some() && unknown.answered_outside.is_some());
    // Nothing but what is known: a row all the same, without figures.
    for group in 4..6 {
        let own = format!("val/infrared/red-{group}.pcap");
        std::fs::remove_file(colours.join(own)).expect("removed");
    }
    let report = run(&options).expect("a report");
    let [unknown] = &report.tasks[0].unknown[..] else {
        panic!("{:?}", report.tasks[0].unknown);
    };
    assert_eq!((unknown.items, unknown.left_out), (0, 12));
    assert_eq!((unknown.auroc, unknown.answered_outside), (None, None));
    assert!(unknown.labels.is_empty());
    let table = table(&report);
    assert!(
        table.contains("0 outsiders, 12 left out as known"),
        "{table}"
    );
    page(&report).expect("a page");
}

#[test]
fn outsiders_come_from_other_tasks_without_what_is_known() {
    let folder = copy_of_data();
    let data = folder.path();
    // Another task: a label of its own, a label that colours knows, and flows that colours was trained on.
    let shapes = data.join("shapes");
    synthetic::write(&data.join("other"), 5);
    std::fs::rename(data.join("other/colours"), &shapes).expect("moved");
    for split in ["train", "val"] {
        std::fs::rename(
            shapes.join(split).join("green"),
            shapes.join(split).join("square"),
        )
        .expect("renamed");
        std::fs::remove_dir_all(shapes.join(split).join("red")).expect("removed");
    }
    std::fs::copy(
        data.join("colours/train/red/red-0.pcap"),
        shapes.join("val/square/known.pcap"),
    )
    .expect("copied");
    let options = EvaluationOptions {
        data: data.into(),
        tasks: vec!["colours".into()],
        outside: vec!["shapes".into()],
        ..options()
    };
    let report = run(&options).expect("a report");
    let [unknown] = &report.tasks[0].unknown[..] else {
        panic!("{:?}", report.tasks[0].unknown);
    };
    assert_eq!(unknown.outsiders, "shapes");
    assert_eq!(unknown.labels, ["square"]);
    // 12 flows of the label blue, which colours knows, and 6 of the copied capture.
    assert_eq!((unknown.items, unknown.left_out), (12, 18));
    for foreign in ["requests", "colours"] {
        let outside = vec![foreign.to_owned()];
        let refused = run(&EvaluationOptions {
            outside,
            ..options.clone()
        })
        .expect_err("no outsiders");
        assert!(refused.to_string().contains(foreign), "{refused}");
    }
}

#[test]
fn an_unknown_task_is_named() {
    let options = EvaluationOptions {
        tasks: vec!["shapes".into()],
        ..options()
    };
    let refused = run(&options).expect_err("no such task").to_string();
    assert!(
        refused.contains("shapes") && refused.contains("colours"),
        "{refused}"
    );
}
