//! The keywords in the real Suricata: what alerts, and what fails `suricata -T`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Key, Run, capture, detect, key_of, trees, verdict_on};
use serde_json::Value;

const ONCE: &str = "threshold: type limit, track by_flow, count 1, seconds 3600";

fn rule(sid: u32, options: &str) -> String {
    format!("alert ip any any -> any any (msg:\"rule {sid}\"; {options} sid:{sid}; rev:1;)")
}

/// How often each flow alerted a rule.
fn alerts(records: &[&Value], sid: u32) -> BTreeMap<Key, usize> {
    let mut found = BTreeMap::new();
    for record in records
        .iter()
        .filter(|record| record["alert"]["signature_id"] == sid)
    {
        *found.entry(key_of(record)).or_insert(0) += 1;
    }
    found
}

/// The flows with a verdict that a rule wants, either by their first 8 packets or, with a packet behind those that the model looks at,
/// by the whole record.
fn expected(path: &Path, is_wanted: impl Fn(&Value) -> bool, task: &str) -> BTreeMap<Key, usize> {
    let early = detect(path, &[("flow.max_packets", "8")]);
    let whole = detect(path, &[]);
    let mut found = BTreeMap::new();
    for (key, flow) in early {
        let packets = flow["packets"].as_u64().unwrap();
        let wanted = |flow: &Value| verdict_on(flow, task).is_some_and(&is_wanted);
        if (packets >= 8 && wanted(&flow)) || (packets > 20 && wanted(&whole[&key])) {
            found.insert(key, 1);
        }
    }
    found
}

#[test]
fn rules_alert_once_for_each_flow_that_they_mean() {
    let task = "botnet_detection";
    for tree in trees() {
        for name in ["http.pcap", "tls.pcapng", "ssh.pcap"] {
            let path = capture(name, Path::new(""));
            let outcomes = Run::new()
                .rule(&rule(
                    1,
                    &format!("trafficllm.label:{task},normal; {ONCE};"),
                ))
                .rule(&rule(
                    2,
                    &format!("trafficllm.label:!{task},normal; {ONCE};"),
                ))
                .rule(&rule(
                    3,
                    &format!("trafficllm.score:\"{task},>=0.7\"; {ONCE};"),
                ))
                .rule(&rule(
                    4,
                    &format!(
                        "trafficllm.label:{task},Neris; trafficllm.score:{task},<0.7; {ONCE};"
                    ),
                ))
                .key("packets", 8)
                .read(&tree, &path);
            let records = outcomes.of("alert");
            let speaks = |verdict: &Value| verdict["abstained"] == false;
            let score = |verdict: &Value| verdict["score"].as_f64().unwrap();
            let hold = |sid: u32, is_wanted: &dyn Fn(&Value) -> bool| {
                let expected = expected(&path, is_wanted, task);
                assert_eq!(
                    alerts(&records, sid),
                    expected,
                    "{} {name} {sid}\n{}",
                    tree.display(),
                    outcomes.log
                );
                expected.len()
            };
            let normal = hold(1, &|verdict| {
                speaks(verdict) && verdict["label"] == "normal"
            });
            let other = hold(2, &|verdict| {
                speaks(verdict) && verdict["label"] != "normal"
            });
            hold(3, &|verdict| score(verdict) >= 0.7);
            hold(4, &|verdict| {
                speaks(verdict) && verdict["label"] == "Neris" && score(verdict) < 0.7
            });
            assert!(normal + other > 0, "{name} has something to alert on");
            for record in records {
                assert_eq!(record["trafficllm"]["state"], "done", "{record}");
            }
        }
    }
}

#[test]
fn a_least_score_makes_labels_abstain() {
    for tree in trees() {
        let path = capture("http.pcap", Path::new(""));
        let label = "trafficllm.label:!botnet_detection,normal;";
        let count = |min_score: &str| {
            let run = Run::new()
                .key("min-score", min_score)
                .rule(&rule(1, &format!("{label} {ONCE};")));
            run.read(&tree, &path).of("alert").len()
        };
        let (all, sure, none) = (count("0"), count("0.9"), count("1"));
        assert!(all > 0 && sure < all && none == 0, "{all} {sure} {none}");
    }
}

#[test]
fn good_rules_pass_the_test() {
    for tree in trees() {
        for options in [
            "trafficllm.label:botnet_detection,Neris;",
            "trafficllm.label:!botnet_detection,Neris;",
            "trafficllm.label:\"botnet_detection,Neris\";",
            "trafficllm.score:botnet_detection,>0.9;",
            "trafficllm.score:\"botnet_detection,0.5-0.9\";",
            "requires: keyword trafficllm.label; trafficllm.label:botnet_detection,Neris;",
        ] {
            let outcomes = Run::new().rule(&rule(1, options)).test(&tree);
            assert!(outcomes.is_success, "{options}\n{}", outcomes.log);
        }
    }
}

#[test]
fn wrong_rules_fail_the_test_with_what_is_known() {
    for tree in trees() {
        for (options, message) in [
            (
                "trafficllm.label:botnet_detection,neris;",
                "known are Htbot, Miuref, Neris",
            ),
            (
                "trafficllm.label:botnet,Neris;",
                "known are malware_traffic_detection, botnet_detection",
            ),
            (
                "trafficllm.label:botnet_detection;",
                "expected [!]TASK,LABEL",
            ),
            (
                "trafficllm.score:botnet,>0.5;",
                "known are malware_traffic_detection",
            ),
            (
                "trafficllm.score:botnet_detection,>1.5;",
                "with a score from 0 to 1",
            ),
            ("trafficllm.score:botnet_detection;", "expected TASK,>0.9"),
        ] {
            let outcomes = Run::new().rule(&rule(1, options)).test(&tree);
            assert!(!outcomes.is_success, "{options}\n{}", outcomes.log);
            assert!(
                outcomes.log.contains(message),
                "{options}\n{}",
                outcomes.log
            );
        }
        let not_asked = Run::new()
            .key("tasks", "[malware_traffic_detection]")
            .rule(&rule(1, "trafficllm.label:botnet_detection,Neris;"))
            .test(&tree);
        assert!(
            !not_asked.is_success && not_asked.log.contains("is not asked"),
            "{}",
            not_asked.log
        );
    }
}

#[test]
fn without_the_plugin_rules_that_require_it_are_skipped() {
    for tree in trees() {
        let plain = "alert ip any any -> any any (msg:\"plain\"; sid:2;)";
        let needing = rule(
            1,
            "requires: keyword trafficllm.label; trafficllm.label:botnet_detection,Neris;",
        );
        let outcomes = Run::new()
            .key("enabled", "no")
            .rule(&needing)
            .rule(plain)
            .test(&tree);
        assert!(outcomes.is_success, "{}", outcomes.log);
    }
}

#[test]
fn the_example_rules_load_and_alert_once() {
    let examples = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/rules/trafficllm.rules"
    ))
    .unwrap();
    for tree in trees() {
        let tested = Run::new().rule(&examples).test(&tree);
        assert!(
            tested.is_success && !tested.log.contains("W: "),
            "{}",
            tested.log
        );
        // The recorded captures are harmless: with lower scores the rules alert on them all the same.
        let lower = ["0.99", "0.95", "0.8"]
            .iter()
            .fold(examples.clone(), |rules, score| rules.replace(score, "0.3"));
        let path = capture("http.pcap", Path::new(""));
        let outcomes = Run::new().rule(&lower).read(&tree, &path);
        let records = outcomes.of("alert");
        for sid in [1_900_001, 1_900_005] {
            let found = alerts(&records, sid);
            assert!(!found.is_empty(), "{sid}\n{}", outcomes.log);
            assert!(found.values().all(|&times| times == 1), "{sid}: {found:?}");
        }
    }
}
