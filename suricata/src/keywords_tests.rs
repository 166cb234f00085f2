//! What the keywords' options mean.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use super::*;
use crate::verdict::{Judgement, State};

fn names() -> Names {
    Names::example(&[("botnet", &["Neris", "normal", "a, b"]), ("vpn", &["chat"])])
}

fn verdict(names: &Arc<Names>, label: u16, score: f32, is_abstained: bool) -> FlowVerdict {
    FlowVerdict {
        names: Arc::clone(names),
        state: State::Done,
        packets: 8,
        generation: 1,
        latency_us: 1,
        heads: Vec::new(),
        judgements: vec![Judgement {
            task: 0,
            label,
            score,
            is_abstained,
        }],
    }
}

fn label(text: &str) -> Result<LabelOption, String> {
    LabelOption::parse(text, &names())
}

fn score(text: &str) -> Result<ScoreOption, String> {
    ScoreOption::parse(text, &names())
}

#[test]
fn labels_are_read() {
    let expected = |is_negated: bool, label: &str| LabelOption {
        is_negated,
        task: "botnet".to_owned(),
        label: label.to_owned(),
    };
    assert_eq!(label("botnet,Neris"), Ok(expected(false, "Neris")));
    assert_eq!(label(" ! botnet , Neris "), Ok(expected(true, "Neris")));
    assert_eq!(label("\"botnet,a, b\""), Ok(expected(false, "a, b")));
}

#[test]
fn what_is_unknown_is_told_with_what_is_known() {
    assert_eq!(
        label("botnet,neris").unwrap_err(),
        "task botnet has no label \"neris\"; known are Neris, normal, a, b"
    );
    assert_eq!(
        label("bot,Neris").unwrap_err(),
        "the model has no task \"bot\"; known are botnet, vpn"
    );
    for bad in ["", "botnet", "botnet,", ",Neris", "!"] {
        assert!(
            label(bad)
                .unwrap_err()
                .starts_with("expected [!]TASK,LABEL"),
            "{bad}"
        );
    }
}

#[test]
fn a_long_list_of_labels_is_cut() {
    let labels: Vec<String> = (0..SHOWN + 3).map(|number| format!("l{number}")).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let error = LabelOption::parse("t,x", &Names::example(&[("t", &labels)])).unwrap_err();
    assert!(
        error.ends_with(&format!("l{} and 3 more", SHOWN - 1)),
        "{error}"
    );
}
const SHOWN: usize = crate::limits::SHOWN_LABELS;

#[test]
fn scores_are_compared() {
    for (text, matching, others) in [
        ("botnet,>0.5", vec![0.51, 1.0], vec![0.5, 0.0]),
        ("botnet,>=0.5", vec![0.5, 1.0], vec![0.49]),
        ("botnet, < 0.5", vec![0.0, 0.49], vec![0.5]),
        ("botnet,<=0.5", vec![0.5], vec![0.51]),
        (
            "\"botnet,0.25-0.5\"",
            vec![0.25, 0.3, 0.5],
            vec![0.24, 0.51],
        ),
    ] {
        let option = score(text).unwrap();
        for found in matching {
            assert!(option.holds(found), "{text} {found}");
        }
        for found in others {
            assert!(!option.holds(found), "{text} {found}");
        }
    }
    for bad in [
        "botnet,0.5",
        "botnet,>1.1",
        "botnet,>-0.1",
        "botnet,>NaN",
        "botnet,0.5-0.4",
        "botnet,=0.5",
        "botnet",
    ] {
        assert!(score(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_label_matches_where_it_is_meant() {
    let model = Arc::new(names());
    let matches = |text: &str, label_number: u16, is_abstained: bool| {
        let asked = Asked::new(Question::Label(label(text).unwrap()));
        asked.matches(&verdict(&model, label_number, 0.9, is_abstained))
    };
    assert!(matches("botnet,Neris", 0, false));
    assert!(!matches("botnet,Neris", 1, false));
    assert!(matches("!botnet,Neris", 1, false));
    assert!(!matches("!botnet,Neris", 0, false));
    // Doubt is no label, nor another one.
    assert!(!matches("botnet,Neris", 0, true));
    assert!(!matches("!botnet,Neris", 1, true));
    // A task that did not apply says nothing.
    assert!(!matches("!vpn,chat", 0, false));
}

#[test]
fn a_rule_follows_its_label_to_the_next_model() {
    let asked = Asked::new(Question::Label(label("botnet,normal").unwrap()));
    let first = Arc::new(names());
    let second = Arc::new(Names::example(&[
        ("other", &["x"]),
        ("botnet", &["normal", "Neris"]),
    ]));
    let third = Arc::new(Names::example(&[("other", &["normal"])]));
    assert!(asked.matches(&verdict(&first, 1, 0.9, false)));
    let mut moved = verdict(&second, 0, 0.9, false);
    assert!(!asked.matches(&moved));
    moved.judgements[0].task = 1;
    assert!(asked.matches(&moved));
    assert!(!asked.matches(&verdict(&third, 0, 0.9, false)));
    assert!(asked.matches(&verdict(&first, 1, 0.9, false)));
}

#[test]
fn a_label_that_the_model_lost_is_every_other_one() {
    let asked = Asked::new(Question::Label(label("!botnet,Neris").unwrap()));
    let without = Arc::new(Names::example(&[("botnet", &["normal"])]));
    assert!(asked.matches(&verdict(&without, 0, 0.9, false)));
}
