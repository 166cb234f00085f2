use std::fs;

use super::*;
use crate::synthetic;

fn data() -> tempfile::TempDir {
    let data = tempfile::tempdir().expect("a folder");
    synthetic::write(data.path(), 3);
    data
}

fn task(data: &Path, name: &str) -> TaskInspection {
    let inspection = inspect(data, &[name.to_owned()], None).expect("inspected");
    inspection.tasks.into_iter().next().expect("a task")
}

fn errors(task: &TaskInspection) -> Vec<&str> {
    let errors = task
        .findings
        .iter()
        .filter(|finding| finding.level == Level::Error);
    errors.map(|finding| finding.text.as_str()).collect()
}

#[test]
fn everything_is_counted() {
    let data = data();
    let found = task(data.path(), "colours");
    assert_eq!(errors(&found), [""; 0]);
    let [train, val] = &found.splits[..] else {
        panic!("two splits");
    };
    assert_eq!((train.groups, train.items, train.packets), (12, 72, 288));
    assert_eq!((val.groups, val.items, val.packets), (6, 36, 144));
    assert_eq!(train.distinct_payloads, 72);
    assert_eq!((train.imbalance, train.without_payload), (1.0, 0));
    assert!((train.balance - 1.0).abs() < 1e-9);
    assert_eq!(val.labels[2].by_group["red-4"], 6);
    let repeats = val.repeats.expect("counted");
    assert_eq!((repeats.same_label, repeats.other_label), (0, 0));
    assert!(train.repeats.is_none());
    let requests = task(data.path(), "requests");
    assert_eq!(requests.kind, "requests");
    assert_eq!(requests.splits[0].items, 30);
    assert_eq!(requests.shortcuts.len(), 3);
    let all = inspect(data.path(), &[], None).expect("inspected");
    assert_eq!(all.tasks.len(), 2);
    assert!(all.table().contains("colours (flows)"));
}

#[test]
fn repeats_are_told_apart_by_label() {
    let data = data();
    let path = data.path();
    let copy = |from: &str, to: &str| {
        fs::copy(
            path.join("colours").join(from),
            path.join("colours").join(to),
        )
        .expect("copied");
    };
    copy("train/red/red-0.pcap", "val/red/again.pcap");
    copy("train/red/red-1.pcap", "val/blue/other.pcap");
    let found = task(path, "colours");
    let repeats = found.splits[1].repeats.expect("counted");
    assert_eq!((repeats.same_label, repeats.other_label), (6, 6));
    assert_eq!(repeats.with_payload, 48);
    assert!((repeats.share - 12.0 / 48.0).abs() < 1e-12);
    assert!(errors(&found).is_empty(), "a repeat is a warning");
    assert_eq!(
        found
            .findings
            .iter()
            .filter(|finding| finding.text.contains("25.0 %"))
            .count(),
        1
    );
}

#[test]
fn what_makes_scores_wrong_is_an_error() {
    let data = data();
    let path = data.path().join("colours");
    fs::copy(
        path.join("train/red/red-0.pcap"),
        path.join("val/blue/red-0.pcap"),
    )
    .expect("copied");
    fs::create_dir(path.join("val/white")).expect("folder");
    fs::copy(
        path.join("val/red/red-4.pcap"),
        path.join("val/white/w.pcap"),
    )
    .expect("copied");
    fs::write(path.join("train/green/broken.pcap"), b"not a capture").expect("written");
    let whole = fs::read(path.join("train/green/green-0.pcap")).expect("read");
    fs::write(path.join("train/green/none.pcap"), &whole[..24]).expect("written");
    let found = task(data.path(), "colours");
    let errors = errors(&found);
    for expected in [
        "group red-0 stands in train and val",
        "label white stands in val and not in train",
        "broken.pcap: offset 0",
        "none.pcap: holds no flow",
    ] {
        let is_there = errors.iter().any(|error| error.contains(expected));
        assert!(is_there, "expected {expected:?} in {errors:?}");
    }
    assert_eq!(errors.len(), 4);
    let all = inspect(data.path(), &[], None).expect("inspected");
    assert_eq!(all.errors(), 4);
}

#[test]
fn the_synthetic_data_has_the_shortcuts_that_it_was_made_with() {
    let data = data();
    let found = task(data.path(), "colours");
    let feature = |name: &str| {
        let found = found
            .shortcuts
            .iter()
            .find(|shortcut| shortcut.feature == name);
        found.expect("audited").clone()
    };
    // Payloads of three lengths for three labels; one client, one server, one TTL for all.
    let length = feature("first payload length");
    assert_eq!(
        (length.accuracy, length.macro_f1, length.skill),
        (1.0, 1.0, 1.0)
    );
    assert_eq!(length.verdict, Verdict::Shortcut);
    for constant in [
        "first TTL",
        "server address",
        "initiator network (/24, /48)",
        "IP id pattern",
    ] {
        let found = feature(constant);
        assert_eq!(
            (found.values, found.known, found.skill),
            (1, 1.0, 0.0),
            "{constant}"
        );
        assert!((found.accuracy - 1.0 / 3.0).abs() < 1e-9);
        assert!((found.macro_f1 - 1.0 / 6.0).abs() < 1e-9);
        assert_eq!(found.verdict, Verdict::Weak);
    }
    // Red is the label whose responder never says anything.
    let ttl = feature("TTL of both sides");
    assert_eq!(ttl.values, 2);
    assert!((ttl.accuracy - 2.0 / 3.0).abs() < 1e-9);
    assert!((ttl.skill - 0.5).abs() < 1e-9);
}

#[test]
fn labels_can_be_merged() {
    let data = data();
    let path = data.path().join("colours");
    for split in ["train", "val"] {
        for (from, to) in [
            ("blue", "cold-blue"),
            ("green", "cold-green"),
            ("red", "warm-red"),
        ] {
            let split = path.join(split);
            fs::rename(split.join(from), split.join(to)).expect("renamed");
        }
    }
    let inspection = inspect(data.path(), &["colours".into()], Some('-')).expect("inspected");
    let labels: Vec<&str> = inspection.tasks[0].splits[0]
        .labels
        .iter()
        .map(|label| label.label.as_str())
        .collect();
    assert_eq!(labels, ["cold", "warm"]);
    assert_eq!(inspection.tasks[0].splits[0].imbalance, 2.0);
    let ttl = &inspection.tasks[0].shortcuts[6];
    assert_eq!(
        (ttl.feature.as_str(), ttl.accuracy),
        ("TTL of both sides", 1.0)
    );
}

#[test]
fn an_unknown_task_is_named() {
    let data = data();
    let error = inspect(data.path(), &["shapes".into()], None)
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("task shapes: not in") && error.contains("colours"),
        "{error}"
    );
}

#[test]
fn a_verdict_begins_at_its_skill() {
    use super::shortcuts::verdict;
    for (skill, expected) in [
        (1.0, Verdict::Shortcut),
        (SHORTCUT_SKILL, Verdict::Shortcut),
        (SHORTCUT_SKILL - 1e-9, Verdict::Leans),
        (WEAK_SKILL, Verdict::Leans),
        (WEAK_SKILL - 1e-9, Verdict::Weak),
        (-0.3, Verdict::Weak),
    ] {
        assert_eq!(verdict(skill), expected, "{skill}");
    }
}
