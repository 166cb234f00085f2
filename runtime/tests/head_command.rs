//! Heads at the command line.
#![allow(
    clippy::unwrap_used,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use common::{SmallModel, capture, json_lines, repository, run};

fn example(name: &str) -> String {
    let path = repository().join("plugins/examples/modules").join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_head_answers_behind_the_tasks_in_every_format_and_changes_nothing_else() {
    let (model, fusion, captured) = (
        SmallModel::write(),
        example("fusion.wasm"),
        capture("http.pcap"),
    );
    let detect = |format: &str, head: bool| {
        let mut arguments = vec!["detect", "--model", model.argument(), "--format", format];
        if head {
            arguments.extend(["--head", &fusion]);
        }
        arguments.push(&captured);
        let (status, out, error) = run(&arguments);
        assert_eq!(status, 0, "{error}");
        (out, error)
    };
    let (with, summary) = detect("json", true);
    let without = json_lines(&detect("json", false).0);
    let mut lines = json_lines(&with);
    assert_eq!(lines.len(), without.len());
    for (line, expected) in lines.iter_mut().zip(&without) {
        let verdicts = line["verdicts"].as_array_mut().unwrap();
        let own = verdicts.pop().unwrap();
        assert_eq!(own["task"], "fusion");
        assert_eq!(line, expected);
    }
    assert!(summary.contains("  fusion: "), "{summary}");
    let head = |text: &str| text.lines().next().unwrap().to_owned();
    let (with, without) = (detect("csv", true).0, detect("csv", false).0);
    assert_eq!(head(&with), format!("{},evidence,reason", head(&without)));
    assert!(with.contains(",fusion,") && !without.contains("fusion"));
    assert!(detect("table", true).0.contains("  fusion"));
}

#[test]
fn what_a_head_lost_is_said() {
    let (model, fusion, captured) = (
        SmallModel::write(),
        example("fusion.wasm"),
        capture("http.pcap"),
    );
    let arguments = [
        "detect",
        "--model",
        model.argument(),
        "--format",
        "json",
        "--head-fuel",
        "1",
        "--head",
        &fusion,
        &captured,
    ];
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    let lines = json_lines(&out);
    for line in &lines {
        let own = line["verdicts"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&own["label"], &own["abstained"]),
            (&"".into(), &true.into())
        );
        assert_eq!(own["reason"], "fuel", "{own}");
    }
    let expected = format!("flows without a verdict: fuel {}", lines.len());
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_head_that_cannot_be_used_is_named_with_what_is_wrong() {
    let model = SmallModel::write();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing.wasm");
    let text = repository().join("plugins/attacks/missing_export.wat");
    std::fs::write(&path, wat::parse_file(text).unwrap()).unwrap();
    let path = path.to_str().unwrap();
    for arguments in [
        vec!["detect", "--model", model.argument(), "--head", path, "-"],
        vec!["head", "check", "--model", model.argument(), path],
    ] {
        let (status, _, error) = run(&arguments);
        assert_eq!(status, 2, "{error}");
        assert!(
            error.contains("missing.wasm: export tllm_head_output: expected a function"),
            "{error}"
        );
    }
    let (status, _, error) = run(&[
        "head",
        "check",
        "--model",
        model.argument(),
        "/nowhere.wasm",
    ]);
    assert_eq!(status, 2, "{error}");
    assert!(
        error.contains("head /nowhere.wasm: cannot be read"),
        "{error}"
    );
}

#[test]
fn check_says_what_a_head_exports_needs_and_costs() {
    let model = SmallModel::write();
    let (status, out, error) = run(&[
        "head",
        "check",
        "--model",
        model.argument(),
        &example("beaconing.wasm"),
    ]);
    assert_eq!(status, 0, "{error}");
    for part in [
        "head             beaconing",
        "labels           none, beacon",
        "needs            packets, pair",
        "state            kept",
    ] {
        assert!(out.contains(part), "{out}");
    }
    let arguments = [
        "head",
        "check",
        "--json",
        "--model",
        model.argument(),
        &example("fusion.wasm"),
    ];
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    let report = &json_lines(&out)[0];
    assert_eq!(
        (&report["name"], &report["abi"]),
        (&"fusion".into(), &"1.0".into())
    );
    assert_eq!(report["needs"], serde_json::json!(["tasks"]));
    for key in ["fuel_per_flow", "memory_bytes", "file_bytes", "input_bytes"] {
        assert!(report[key].as_u64().unwrap() > 0, "{key}: {report}");
    }
    assert!(report["fuel_per_flow"].as_u64().unwrap() <= 1_000_000);
}
