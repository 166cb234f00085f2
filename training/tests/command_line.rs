//! Wrong arguments: what is said, and the exit status.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trafficllm-train"))
        .args(arguments)
        .env("RUST_LOG", "error")
        .output()
        .expect("runs")
}

fn refused(arguments: &[&str], status: i32, expected: &str) {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    assert!(
        text.contains(expected),
        "{arguments:?}: expected {expected:?} in {text:?}"
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_arguments_are_named() {
    refused(&[], 2, "Usage");
    refused(&["bundle", "--data", "x"], 2, "--out");
    refused(
        &[
            "evaluate", "--bundle", "b", "--data", "d", "--split", "trial",
        ],
        2,
        "trial",
    );
    refused(
        &["bundle", "--data", "/no/such/folder", "--out", "o"],
        1,
        "/no/such/folder: not found",
    );
    refused(
        &["baselines", "--data", "/no/such/folder"],
        1,
        "/no/such/folder: not found",
    );
    refused(
        &[
            "evaluate",
            "--bundle",
            "/no/such.tllm",
            "--data",
            "/no/such/folder",
        ],
        1,
        "/no/such.tllm",
    );
}

#[test]
fn an_unknown_task_and_a_wrong_recipe_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let label = folder.path().join("colours/train/red");
    std::fs::create_dir_all(&label).expect("folder");
    let data = folder.path().to_string_lossy().into_owned();
    refused(
        &["bundle", "--data", &data, "--out", "o", "--tasks", "shapes"],
        1,
        "task shapes: not in",
    );
    let twice = [
        "bundle",
        "--data",
        &data,
        "--out",
        "o",
        "--tasks",
        "colours,colours",
    ];
    refused(&twice, 1, "task colours");
    let recipe = folder.path().join("recipe.json");
    std::fs::write(&recipe, "{\"vocabulary\": 512}").expect("written");
    let recipe = recipe.to_string_lossy().into_owned();
    let wrong = [
        "bundle", "--data", &data, "--out", "o", "--tasks", "colours", "--recipe", &recipe,
    ];
    refused(&wrong, 1, "recipe.json: missing field");
    refused(
        &[
            "bundle", "--data", &data, "--out", "o", "--tasks", "colours",
        ],
        1,
        "red: empty",
    );
}

#[test]
fn the_default_recipe_is_printed_as_json() {
    let output = run(&["recipe"]);
    assert!(output.status.success());
    let recipe: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(recipe["profile"]["name"], "clean");
}

#[test]
fn data_commands_say_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    refused(&["data"], 2, "Usage");
    refused(&["data", "build", "--from", &path], 2, "--out");
    refused(
        &["data", "build", "--from", &path, "--out", "o"],
        1,
        "empty; expected one folder of captures per label",
    );
    refused(
        &["data", "inspect", "--data", "/no/such/folder"],
        1,
        "/no/such/folder: not found",
    );
    let augment = [
        "data", "augment", "--data", &path, "--task", "t", "--out", "o",
    ];
    refused(&augment, 2, "--split");
    refused(
        &[&augment[..], &["--split", "val"]].concat(),
        1,
        "nothing to change",
    );
}

/// The table comes first, the exit status tells that something in it makes scores wrong.
#[test]
fn an_inspection_with_errors_prints_its_table_and_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let task = folder.path().join("task");
    std::fs::create_dir_all(&task).expect("folder");
    let line = "{\"label\":\"a\",\"group\":\"one\",\"request\":\"GET /\"}\n";
    for split in ["train", "val"] {
        std::fs::write(task.join(format!("{split}.jsonl")), line).expect("written");
    }
    let data = folder.path().to_string_lossy().into_owned();
    let json = folder.path().join("all.json");
    let output = run(&[
        "data",
        "inspect",
        "--data",
        &data,
        "--json",
        &json.to_string_lossy(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("error: group one stands in train and val"),
        "{table}"
    );
    let numbers = std::fs::read_to_string(json).expect("written");
    assert!(numbers.contains("\"same_label\": 1"), "{numbers}");
}
