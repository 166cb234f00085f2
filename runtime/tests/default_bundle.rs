//! The model that is compiled in: what it claims, and that it answers.
#![cfg(feature = "default-bundle")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop a test")]

mod common;

use serde_json::Value;
use trafficllm::{Level, Model};

const TASKS: [&str; 6] = [
    "malware_traffic_detection",
    "botnet_detection",
    "encrypted_vpn_detection",
    "malicious_doh_detection",
    "iot_device_classification",
    "web_attack_http",
];

/// Flows of the captures below whose two levels may name another label: those whose best two labels are nearly as likely.
const OTHER_LABELS_MAX: usize = 2;

fn detect(level: Level, capture: &str) -> Vec<Value> {
    let output = common::command(&["detect", "--format", "json", &common::capture(capture)])
        .env("TLLM_CPU", level.name())
        .output()
        .unwrap();
    assert!(output.status.success(), "{capture}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn it_opens_knows_the_six_tasks_and_passes_its_self_test_on_every_level() {
    let bundle = Model::default_bundle().unwrap();
    assert!(bundle.to_packed().unwrap().len() <= 16 << 20);
    for level in [Level::Portable, Level::detect()] {
        // Loading runs the self-test.
        let model = Model::load(&bundle, level).unwrap();
        assert_eq!(model.task_names().collect::<Vec<_>>(), TASKS);
    }
    for task in &bundle.manifest().tasks {
        assert!(task.labels.len() >= 2, "{}", task.name);
        assert!(
            task.metrics.is_object(),
            "{}: a model without measured scores",
            task.name
        );
    }
}

#[test]
fn recorded_flows_get_one_verdict_of_each_task_that_applies() {
    for (capture, is_http) in [("http.pcap", true), ("tls.pcapng", false)] {
        let flows = detect(Level::detect(), capture);
        assert!(!flows.is_empty());
        let mut with_request = 0;
        for flow in &flows {
            let verdicts = flow["verdicts"].as_array().unwrap();
            let names: Vec<&str> = verdicts
                .iter()
                .map(|verdict| verdict["task"].as_str().unwrap())
                .collect();
            assert!(names == TASKS || names == TASKS[..5], "{names:?}");
            with_request += usize::from(names.len() == TASKS.len());
            for verdict in verdicts {
                let score = verdict["score"].as_f64().unwrap();
                assert!(score > 0.0 && score <= 1.0, "{verdict}");
            }
        }
        assert_eq!(with_request > 0, is_http, "{capture}");
    }
}

#[test]
fn the_levels_agree_on_the_labels_of_recorded_flows() {
    let mut other = Vec::new();
    for capture in ["tls.pcapng", "smtp.pcap", "ssh.pcap"] {
        let (fast, portable) = (
            detect(Level::detect(), capture),
            detect(Level::Portable, capture),
        );
        assert_eq!(fast.len(), portable.len());
        for (fast, portable) in fast.iter().zip(&portable) {
            let of = |flow: &Value| flow["verdicts"].as_array().unwrap().clone();
            for (a, b) in of(fast).iter().zip(&of(portable)) {
                if a["label"] != b["label"] {
                    other.push(format!("{capture}: {a} {b}"));
                }
            }
        }
    }
    assert!(other.len() <= OTHER_LABELS_MAX, "{other:#?}");
}
