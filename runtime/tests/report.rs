//! `trafficllm report` over what `trafficllm detect` wrote.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{SmallModel, capture, command, finished, json_lines, run};

/// The verdicts of a recorded capture by the small model, as JSON Lines.
fn verdicts() -> String {
    let model = SmallModel::write();
    let path = capture("http.pcap");
    let arguments = [
        "detect",
        "--model",
        model.argument(),
        "--format",
        "json",
        &path,
    ];
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    out
}

#[test]
fn what_detect_writes_becomes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let text = verdicts();
    let (input, output) = (
        folder.path().join("v.jsonl"),
        folder.path().join("page.html"),
    );
    std::fs::write(&input, &text).unwrap();
    let arguments = [
        "report",
        input.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
    ];
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    assert!(out.is_empty());
    let flows = json_lines(&text);
    assert!(
        error.contains(&format!(
            "{} flows and 0 requests of 1 files, 0 bad lines",
            flows.len()
        )),
        "{error}"
    );
    let html = std::fs::read_to_string(&output).unwrap();
    assert!(html.contains(&format!(
        "<td>flows</td><td class=\"n\">{}</td>",
        flows.len()
    )));
    let bytes: u64 = flows
        .iter()
        .map(|flow| flow["bytes"].as_u64().unwrap())
        .sum();
    assert!(html.contains(&format!("<td>bytes</td><td class=\"n\">{bytes}</td>")));
    for verdict in flows
        .iter()
        .flat_map(|flow| flow["verdicts"].as_array().unwrap())
    {
        for key in ["task", "label"] {
            assert!(html.contains(verdict[key].as_str().unwrap()));
        }
    }
    for flow in &flows {
        assert!(html.contains(&format!("<td>{}</td>", flow["src"].as_str().unwrap())));
    }
    assert!(html.contains("Timeline") && !html.contains("<script"));
}

#[test]
fn verdicts_come_from_standard_input_too_and_bad_lines_are_told() {
    let text = verdicts() + "{\"flow\":1}\n";
    let mut child = command(&["report", "-", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let (status, out, error) = finished(child.wait_with_output().unwrap());
    let line = text.lines().count();
    assert_eq!(status, 1, "a bad line is not silent: {error}");
    assert!(
        error.contains(&format!("-, line {line}: missing field")),
        "{error}"
    );
    assert!(out.starts_with("<!DOCTYPE html>") && out.contains(&format!("-, line {line}:")));
}

#[test]
fn nothing_to_show_is_an_error_and_writes_no_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (empty, broken, output) = (path("empty.jsonl"), path("broken.jsonl"), path("page.html"));
    std::fs::write(&empty, "\n").unwrap();
    std::fs::write(&broken, "x\n").unwrap();
    for inputs in [vec![&empty], vec![&broken], vec![&empty, &broken]] {
        let mut arguments = vec!["report", "-o", &output];
        arguments.extend(inputs.iter().map(|input| input.as_str()));
        let (status, out, error) = run(&arguments);
        assert_eq!(status, 1, "{error}");
        assert!(error.contains("found none"), "{error}");
        assert!(out.is_empty() && !std::path::Path::new(&output).exists());
    }
    let missing = path("missing.jsonl");
    let (status, _, error) = run(&["report", "-o", &output, &missing]);
    assert_eq!(status, 1);
    assert!(error.contains("missing.jsonl: reading failed"), "{error}");
}

#[test]
fn a_page_never_takes_the_place_of_its_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.jsonl");
    let text = verdicts();
    std::fs::write(&path, &text).unwrap();
    let path = path.to_str().unwrap();
    let (status, _, error) = run(&["report", "-o", path, path]);
    assert_eq!(status, 2, "{error}");
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    let (status, _, error) = run(&["report", path]);
    assert_eq!(status, 2, "{error}");
    assert!(error.contains("--output"), "{error}");
}

#[test]
fn a_hard_link_and_redirections_are_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("v.jsonl"), folder.path().join("page"));
    let text = verdicts();
    std::fs::write(&path, &text).unwrap();
    std::fs::hard_link(&path, &link).unwrap();
    let (input, output) = (path.to_str().unwrap(), link.to_str().unwrap());
    let (status, _, error) = run(&["report", "-o", output, input]);
    assert_eq!(status, 2, "{error}");
    let open = || std::fs::File::open(&path).unwrap();
    let append = || std::fs::File::options().append(true).open(&path).unwrap();
    for (arguments, source, sink) in [
        (
            ["report", "-o", output, "-"],
            Stdio::from(open()),
            Stdio::piped(),
        ),
        (
            ["report", "-o", "-", input],
            Stdio::null(),
            Stdio::from(append()),
        ),
    ] {
        let mut command = command(&arguments);
        command.stdin(source).stdout(sink).stderr(Stdio::piped());
        let (status, _, error) = finished(command.spawn().unwrap().wait_with_output().unwrap());
        assert_eq!(status, 2, "{error}");
        assert!(error.contains("expected another file"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let text = verdicts();
    let mut child = command(&["report", "-", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads; the page is written once the verdicts have ended.
    drop(child.stdout.take());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let (status, _, error) = finished(child.wait_with_output().unwrap());
    assert_eq!(status, 0, "{error}");
    assert!(!error.contains("error"), "{error}");
}

#[test]
fn a_page_that_cannot_be_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("v.jsonl");
    std::fs::write(&input, verdicts()).unwrap();
    let output = folder.path().join("none/page.html");
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let (status, _, error) = run(&["report", "-o", output, input]);
    assert_eq!(status, 1, "{error}");
    assert!(error.contains("page.html: writing failed"), "{error}");
    let (_, help, _) = run(&["report", "--help"]);
    assert!(help.contains("the page could not be written"), "{help}");
}
