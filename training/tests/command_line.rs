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
