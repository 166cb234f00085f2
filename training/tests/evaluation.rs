//! `trafficllm-train evaluate` with the bundle of this repository, on requests that are made up here.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

use std::path::Path;
use std::process::{Command, Output};

fn evaluate(data: &Path, more: &[&str]) -> Output {
    let bundle = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../runtime/bundle/default.tllm"
    );
    Command::new(env!("CARGO_BIN_EXE_trafficllm-train"))
        .args(["evaluate", "--bundle", bundle, "--data"])
        .arg(data)
        .args(more)
        .env("RUST_LOG", "error")
        .output()
        .expect("runs")
}

/// A split of the task `web_attack_http`: every other request is an attack.
fn write_split(data: &Path, split: &str, first: usize, label: &str) {
    let folder = data.join("web_attack_http");
    std::fs::create_dir_all(&folder).expect("folder");
    let lines: String = (first..first + 12)
        .map(|number| {
            let (label, query) = if number.is_multiple_of(2) {
                ("normal", format!("id={number}"))
            } else {
                (label, format!("id={number}'+OR+'1'%3D'1'--"))
            };
            format!(
                "{{\"label\":\"{label}\",\"group\":\"g{number}\",\"request\":\"GET /shop/item.jsp?{query} HTTP/1.1\\nHost: localhost\"}}\n"
            )
        })
        .collect();
    std::fs::write(folder.join(format!("{split}.jsonl")), lines).expect("written");
}

#[test]
fn table_json_and_page_agree() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    write_split(&data, "train", 0, "anomalous");
    write_split(&data, "val", 100, "anomalous");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (json, html) = (path("scores.json"), path("scores.html"));
    let output = evaluate(&data, &["--baselines", "--json", &json, "--html", &html]);
    let (text, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{error}");
    let scores: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("json")).expect("json");
    let task = &scores["tasks"][0];
    assert_eq!(task["task"], "web_attack_http");
    assert_eq!(task["all"]["items"], 12);
    assert_eq!(scores["protocol"]["split"], "val");
    let page = std::fs::read_to_string(&html).expect("page");
    let figure =
        |value: &serde_json::Value| format!("{:.1}", 100.0 * value.as_f64().expect("a number"));
    for value in [
        &task["all"]["macro_f1"],
        &task["baselines"][0]["all"]["macro_f1"],
    ] {
        assert!(text.contains(&figure(value)), "{text}");
        assert!(page.contains(&format!(">{}</td>", figure(value))));
    }
    let error = task["reliability"]["expected_calibration_error"]
        .as_f64()
        .expect("a number");
    assert!(text.contains(&format!("{error:.4}")) && page.contains(&format!("{error:.4}")));
}

#[test]
fn what_cannot_be_measured_or_written_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    write_split(folder.path(), "train", 0, "strange");
    write_split(folder.path(), "val", 100, "strange");
    let refused = |more: &[&str], expected: &str| {
        let output = evaluate(folder.path(), more);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(expected),
            "expected {expected:?} in {error:?}"
        );
        assert!(output.stdout.is_empty());
    };
    refused(&[], "found strange");
    refused(
        &["--tasks", "shapes"],
        "task shapes: expected a task of the bundle",
    );
    refused(&["--unknown-labels", "--group", "vpn-"], "group vpn-");
    refused(
        &["--unknown-labels", "--outside", "web_attack_http"],
        "outsiders from web_attack_http",
    );
    refused(
        &["--unknown-labels", "--html", "/no/such/folder/page.html"],
        "/no/such/folder: not found",
    );
    let output = evaluate(folder.path(), &["--unknown-labels"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("of 6 outsiders"),
        "{text}"
    );
}
