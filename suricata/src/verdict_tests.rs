//! Answers of the library become verdicts, and verdicts JSON.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use crate::library::abi::{Verdict, status};

fn known() -> KnownNames {
    let known = KnownNames::default();
    known.add(Arc::new(Names::example(&[
        ("first", &["a", "b"]),
        ("se\"cond", &["x\\y", "z"]),
    ])));
    known
}

fn entry(task: u32, label: u32, score: f32, status: i32) -> Verdict {
    let mut entry = Verdict {
        status,
        task,
        label,
        score,
        generation: 3,
        latency_us: 77,
        ..Verdict::ZERO
    };
    entry.model_id[..16].copy_from_slice(b"0123456789abcdef");
    entry
}

#[test]
fn an_answer_keeps_what_was_judged() {
    let answer = [
        entry(0, 1, 0.75, status::OK),
        entry(1, 0, 0.2, status::ABSTAINED),
    ];
    let verdict = FlowVerdict::of(&answer, 9, &known(), 0.0).unwrap();
    assert_eq!(
        (verdict.state, verdict.packets, verdict.generation),
        (State::Done, 9, 3)
    );
    assert_eq!(verdict.on(0).unwrap().label, 1);
    assert!(!verdict.on(0).unwrap().is_abstained);
    assert!(verdict.on(1).unwrap().is_abstained);
    assert_eq!(verdict.on(2), None);
}

#[test]
fn heads_are_told_by_their_own_names_with_evidence_and_reasons() {
    let fill = |field: &mut [u8], text: &str| field[..text.len()].copy_from_slice(text.as_bytes());
    let mut beacon = entry(2, 1, 0.9, status::OK);
    fill(&mut beacon.task_name, "beaconing");
    fill(&mut beacon.label_name, "beacon");
    fill(&mut beacon.evidence, "12 calls \"a\"");
    let mut failed = entry(3, 0, 0.0, status::ABSTAINED);
    fill(&mut failed.task_name, "mine");
    fill(&mut failed.reason, "fuel");
    let answer = [entry(0, 1, 0.75, status::OK), beacon, failed];
    let verdict = FlowVerdict::of(&answer, 9, &known(), 0.0).unwrap();
    assert_eq!((verdict.judgements.len(), verdict.heads.len()), (1, 2));
    let mut text = String::new();
    verdict.write_json(&mut text, true);
    let expected = concat!(
        r#""first_label":"b","first_score":0.7500,"first_abstained":false,"#,
        r#""beaconing_label":"beacon","beaconing_score":0.9000,"beaconing_abstained":false,"#,
        r#""beaconing_evidence":"12 calls \"a\"","mine_score":0.0000,"mine_abstained":true,"mine_reason":"fuel","#,
        r#""labels":["first/b","beaconing/beacon"]"#
    );
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn a_score_below_the_least_abstains() {
    let answer = [entry(0, 1, 0.75, status::OK)];
    let is_abstained = |min_score: f32| {
        let verdict = FlowVerdict::of(&answer, 1, &known(), min_score).unwrap();
        verdict.judgements[0].is_abstained
    };
    assert!(!is_abstained(0.75));
    assert!(is_abstained(0.76));
}

#[test]
fn an_answer_without_verdicts_has_a_state() {
    for (status, state) in [
        (status::NOT_APPLICABLE, State::NotApplicable),
        (status::EXPIRED, State::Expired),
        (status::ABANDONED, State::Abandoned),
        (-18, State::Failed),
    ] {
        let answer = [Verdict {
            status,
            ..Verdict::ZERO
        }];
        let verdict = FlowVerdict::of(&answer, 1, &known(), 0.0).unwrap();
        assert_eq!((verdict.state, verdict.judgements.len()), (state, 0));
        let mut text = String::new();
        verdict.write_json(&mut text, true);
        assert!(!text.contains("labels"), "{text}");
    }
}

#[test]
fn nobody_waits_for_names_that_are_changed() {
    let known = known();
    let answer = [entry(0, 1, 0.75, status::OK)];
    let changing = known.models.write().unwrap();
    let tried = FlowVerdict::try_of(&answer, 9, &known, 0.0);
    assert_eq!(tried.unwrap_err(), Changing);
    drop(changing);
    let verdict = FlowVerdict::try_of(&answer, 9, &known, 0.0).unwrap();
    assert_eq!(verdict.unwrap().on(0).unwrap().label, 1);
    let mut stranger = entry(0, 1, 0.75, status::OK);
    stranger.model_id[0] = b'f';
    assert!(
        FlowVerdict::try_of(&[stranger], 9, &known, 0.0)
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_lost_judgement_has_failed() {
    let names = known().newest().unwrap();
    let lost = FlowVerdict::lost(names, 9);
    assert!(!lost.state.is_judged());
    let mut text = String::new();
    lost.write_json(&mut text, false);
    assert!(
        text.starts_with("\"state\":\"failed\",\"final\":false"),
        "{text}"
    );
}

#[test]
fn an_answer_of_an_unknown_model_is_none() {
    let mut stranger = entry(0, 1, 0.75, status::OK);
    stranger.model_id[0] = b'f';
    assert!(FlowVerdict::of(&[stranger], 1, &known(), 0.0).is_none());
    assert!(FlowVerdict::of(&[], 1, &known(), 0.0).is_none());
}

#[test]
fn json_is_flat_and_escaped() {
    let answer = [entry(0, 1, 0.75, status::OK), entry(1, 0, 0.5, status::OK)];
    let verdict = FlowVerdict::of(&answer, 9, &known(), 0.0).unwrap();
    let mut text = String::from("{");
    verdict.write_json(&mut text, false);
    text.push('}');
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "state": "done", "final": false, "model": "0123456789abcdef", "profile": "clean", "generation": 3, "packets": 9,
        "latency_us": 77, "first_label": "b", "first_score": 0.75, "first_abstained": false, "se\"cond_label": "x\\y",
        "se\"cond_score": 0.5, "se\"cond_abstained": false, "labels": ["first/b", "se\"cond/x\\y"]
    });
    assert_eq!(json, expected);
}

#[test]
fn numbers_beyond_the_names_are_left_out() {
    let answer = [entry(7, 1, 0.75, status::OK), entry(0, 9, 0.75, status::OK)];
    let verdict = FlowVerdict::of(&answer, 9, &known(), 0.0).unwrap();
    let mut text = String::new();
    verdict.write_json(&mut text, true);
    assert!(text.ends_with("\"labels\":[]"), "{text}");
}

#[test]
fn some_models_are_remembered() {
    let known = known();
    let first = known.newest().unwrap();
    for number in 0..MODELS_KEPT {
        let mut names = Names::example(&[("first", &["a"])]);
        names.model = format!("model {number}");
        known.add(Arc::new(names));
    }
    assert!(known.of(&first.model).is_none());
    assert!(known.of("model 0").is_some());
    assert_eq!(known.newest().unwrap().model, "model 7");
    // A model that comes back has the names that it had.
    let again = Names::example(&[("first", &["a"])]);
    let before = known.of("model 0").unwrap().serial;
    known.add(Arc::new(Names {
        model: "model 0".to_owned(),
        ..again
    }));
    assert_eq!(known.newest().unwrap().serial, before);
    known.take_back("model 0", known.of("model 7"));
    assert!(known.of("model 0").is_none());
    assert_eq!(known.newest().unwrap().model, "model 7");
}

#[test]
fn control_letters_are_escaped() {
    assert_eq!(json_inside("a\u{1}\n\"\\é"), "a\\u0001\\u000a\\\"\\\\é");
}
