//! `trafficllm detect` over the recorded captures, as a person or a script calls it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use common::{
    FLOW_TASKS, REQUEST_TASK, SmallModel, capture, captures, command, finished, json_lines, run,
};
use serde_json::Value;

/// The keys of an object in the order in which they stand there.
fn keys(line: &str) -> Vec<String> {
    let order = |start: usize| {
        let rest = &line[start..];
        rest.find("\":")
            .map(|end| rest[..end].rsplit('"').next().unwrap().to_owned())
    };
    let flat = &line[..line.find("\"verdicts\":[").unwrap() + 10];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(end) = flat[at..].find("\":") {
        found.push(order(at).unwrap());
        at += end + 2;
    }
    found.push("verdicts".to_owned());
    found
}

#[test]
fn every_flow_is_one_object_with_the_designed_keys() {
    let model = SmallModel::write();
    let path = capture("http.pcap");
    let (status, out, error) = run(&[
        "detect",
        "--model",
        model.argument(),
        "--format",
        "json",
        &path,
    ]);
    assert_eq!(status, 0, "{error}");
    for line in out.lines() {
        let expected = [
            "capture", "flow", "proto", "src", "sport", "dst", "dport", "start", "packets",
            "bytes", "profile", "model", "verdicts",
        ];
        assert_eq!(keys(line), expected, "{line}");
    }
    let flows = json_lines(&out);
    // As many connections as the recording script made with curl, and the host's own multicast listener report.
    assert_eq!(flows.len(), 13, "{out}");
    let mut indices: Vec<u64> = flows
        .iter()
        .map(|flow| flow["flow"].as_u64().unwrap())
        .collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..13).collect::<Vec<u64>>());
    let sums = |key: &str| {
        flows
            .iter()
            .map(|flow| flow[key].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(sums("packets"), 147, "the capture's packets");
    for flow in &flows {
        assert_eq!(flow["capture"], Value::from(path.as_str()));
        assert_eq!(flow["profile"], Value::from("clean"));
        assert_eq!(flow["model"], Value::from(model.id.as_str()));
        if flow["proto"] == "icmpv6" {
            assert_eq!(
                (&flow["sport"], &flow["dport"], &flow["dst"]),
                (&0.into(), &0.into(), &"ff02::16".into())
            );
            continue;
        }
        assert_eq!(flow["proto"], Value::from("tcp"));
        assert_eq!(flow["dport"], Value::from(8080));
        let ends = (flow["src"].as_str().unwrap(), flow["dst"].as_str().unwrap());
        assert!(
            [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")].contains(&ends),
            "{ends:?}"
        );
        assert!(flow["start"].as_f64().unwrap() > 1.7e9);
        let verdicts = flow["verdicts"].as_array().unwrap();
        let tasks: Vec<&str> = verdicts
            .iter()
            .map(|verdict| verdict["task"].as_str().unwrap())
            .collect();
        assert_eq!(
            tasks,
            [FLOW_TASKS[0], FLOW_TASKS[1], REQUEST_TASK],
            "every flow starts with a request"
        );
        for verdict in verdicts {
            assert!(
                (0.0..=1.0).contains(&verdict["score"].as_f64().unwrap()),
                "{verdict}"
            );
            assert!(
                verdict["abstained"].is_boolean() && verdict["label"].is_string(),
                "{verdict}"
            );
        }
    }
}

#[test]
fn all_recorded_captures_are_read_and_counted() {
    let model = SmallModel::write();
    let paths = captures();
    let mut arguments = vec!["detect", "--model", model.argument(), "--format", "json"];
    arguments.extend(paths.iter().map(String::as_str));
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in json_lines(&out) {
        let name = line["capture"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned();
        let kind = line["proto"].as_str().unwrap_or("request").to_owned();
        *found.entry((name, kind)).or_default() += 1;
    }
    let expected = [
        (("cooked.pcap", "icmp"), 1),
        (("cooked.pcap", "icmpv6"), 1),
        (("cooked.pcap", "tcp"), 2),
        (("dns-tunnel.pcap", "udp"), 1),
        (("dns.pcap.gz", "tcp"), 1),
        (("dns.pcap.gz", "udp"), 10),
        (("http.pcap", "icmpv6"), 1),
        (("http.pcap", "tcp"), 12),
        (("requests.jsonl", "request"), 7),
        (("smtp.pcap", "tcp"), 3),
        (("ssh.pcap", "tcp"), 2),
        (("tls.pcapng", "icmpv6"), 1),
        (("tls.pcapng", "tcp"), 9),
    ];
    let expected: BTreeMap<(String, String), usize> = expected
        .into_iter()
        .map(|((name, kind), count)| ((name.to_owned(), kind.to_owned()), count))
        .collect();
    assert_eq!(found, expected);
    // 12 flows of http.pcap and 2 of cooked.pcap start with a request, and 7 requests come as lines.
    assert!(error.contains("request_task: 21 ("), "{error}");
    assert!(error.contains("does not apply to 30"), "{error}");
    assert!(error.contains("does not apply to 7"), "{error}");
    assert!(error.contains("44 flows"), "{error}");
}

#[test]
fn the_same_bytes_come_out_again_and_with_any_number_of_threads() {
    let model = SmallModel::write();
    let paths = captures();
    for format in ["json", "csv", "table"] {
        let outputs: Vec<String> = ["1", "1", "2", "3"]
            .iter()
            .map(|threads| {
                let mut arguments = vec![
                    "detect",
                    "--model",
                    model.argument(),
                    "--format",
                    format,
                    "--threads",
                    threads,
                ];
                arguments.extend(paths.iter().map(String::as_str));
                let (status, out, error) = run(&arguments);
                assert_eq!(status, 0, "{error}");
                out
            })
            .collect();
        assert!(outputs[0].len() > 1_000);
        assert!(
            outputs.iter().all(|output| *output == outputs[0]),
            "{format}"
        );
    }
}

#[test]
fn standard_input_is_read_for_a_dash() {
    let model = SmallModel::write();
    let arguments = ["detect", "--model", model.argument(), "--format", "json"];
    let from_file = run(&[&arguments[..], &[&capture("ssh.pcap")]].concat());
    let mut process = command(&[&arguments[..], &["-"]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process
        .stdin
        .take()
        .unwrap()
        .write_all(&std::fs::read(capture("ssh.pcap")).unwrap())
        .unwrap();
    let from_input = finished(process.wait_with_output().unwrap());
    assert_eq!(from_input.0, 0, "{}", from_input.2);
    assert_eq!(
        from_input
            .1
            .replace("\"-\"", &format!("\"{}\"", capture("ssh.pcap"))),
        from_file.1
    );
}

#[test]
fn tasks_can_be_chosen_and_an_unknown_one_is_a_usage_error() {
    let model = SmallModel::write();
    let path = capture("dns.pcap.gz");
    let detect = |tasks: &[&str]| {
        let mut arguments = vec!["detect", "--model", model.argument(), "--format", "json"];
        tasks
            .iter()
            .for_each(|task| arguments.extend(["--task", task]));
        arguments.push(&path);
        run(&arguments)
    };
    let (status, out, _) = detect(&[FLOW_TASKS[1]]);
    assert_eq!(status, 0);
    for flow in json_lines(&out) {
        assert_eq!(flow["verdicts"].as_array().unwrap().len(), 1);
        assert_eq!(flow["verdicts"][0]["task"], Value::from(FLOW_TASKS[1]));
    }
    // One after the other, twice, in any order: the model's order and no task twice.
    let (_, both, _) = detect(&[FLOW_TASKS[1], FLOW_TASKS[0], FLOW_TASKS[1]]);
    let (_, all, _) = detect(&[]);
    assert_eq!(both, all, "the request task applies to none of these flows");
    let (status, out, error) = detect(&["no_such_task"]);
    assert_eq!((status, out.as_str()), (2, ""));
    let expected = "error: unknown task \"no_such_task\": the model has first_task, second_task, request_task\n";
    assert_eq!(error, expected);
}

#[test]
fn what_runs_the_model_is_said_and_a_device_that_is_not_there_is_named() {
    let model = SmallModel::write();
    let input = capture("smtp.pcap");
    let detect = |further: &[&str]| {
        let first = ["detect", "--model", model.argument(), "--format", "json"];
        let arguments: Vec<&str> = first.iter().chain(further).copied().collect();
        run(&[arguments.as_slice(), &[input.as_str()]].concat())
    };
    let plain = detect(&[]);
    assert_eq!(plain.0, 0);
    assert!(!plain.2.contains("device"), "{}", plain.2);
    // No machine has so many.
    let (status, out, error) = detect(&["--device", "cuda:63"]);
    assert_eq!((status, out.as_str()), (3, ""));
    assert!(error.contains("device cuda:63: "), "{error}");
    let auto = detect(&["--device", "auto"]);
    assert_eq!(auto.0, 0, "{}", auto.2);
    let said = auto.2.lines().find(|line| line.starts_with("device: "));
    let said = said.unwrap_or_else(|| panic!("{}", auto.2));
    // With a device scores may differ in their last places.
    assert!(
        said.starts_with("device: cuda:") || auto.1 == plain.1,
        "{said}"
    );
    let (status, out, error) = detect(&["--device", "gpu"]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(error.contains("cuda:N"), "{error}");
}

#[test]
fn a_task_that_applies_to_nothing_says_so() {
    let model = SmallModel::write();
    let path = capture("ssh.pcap");
    let arguments = [
        "detect",
        "--model",
        model.argument(),
        "--task",
        REQUEST_TASK,
        "--format",
        "json",
        &path,
    ];
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    assert!(
        json_lines(&out)
            .iter()
            .all(|flow| flow["verdicts"].as_array().unwrap().is_empty())
    );
    assert!(
        error.contains("request_task: 0; does not apply to 2\n"),
        "{error}"
    );
    assert!(
        error.contains("no verdicts: no chosen task applies to what was read"),
        "{error}"
    );
}

#[test]
fn a_cut_capture_is_reported_and_what_was_read_is_judged() {
    let model = SmallModel::write();
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.pcap");
    let whole = std::fs::read(capture("http.pcap")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let cut = cut.to_str().unwrap();
    let missing = folder.path().join("missing.pcap");
    let missing = missing.to_str().unwrap();
    let good = capture("ssh.pcap");
    let (status, out, error) = run(&[
        "detect",
        "--model",
        model.argument(),
        "--format",
        "json",
        cut,
        missing,
        &good,
    ]);
    assert_eq!(status, 1, "{error}");
    let flows = json_lines(&out);
    let of = |name: &str| flows.iter().filter(|flow| flow["capture"] == name).count();
    assert!(of(cut) > 2 && of(cut) < 13, "{out}");
    assert_eq!((of(missing), of(&good)), (0, 2));
    assert!(
        error.contains(&format!("error: {cut}: offset "))
            && error.contains("the capture is cut inside"),
        "{error}"
    );
    assert!(
        error.contains(&format!("error: {missing}: opening failed: ")),
        "{error}"
    );
    assert!(error.contains("not read to the end: 2 inputs\n"), "{error}");
}

#[test]
fn an_empty_result_is_said() {
    let model = SmallModel::write();
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("no-packets.pcap");
    std::fs::write(&empty, &std::fs::read(capture("http.pcap")).unwrap()[..24]).unwrap();
    for format in ["json", "table", "csv"] {
        let arguments = [
            "detect",
            "--model",
            model.argument(),
            "--format",
            format,
            empty.to_str().unwrap(),
        ];
        let (status, out, error) = run(&arguments);
        assert_eq!(status, 0, "{error}");
        assert_eq!(
            out.lines().count(),
            usize::from(format == "csv"),
            "only CSV has a header"
        );
        assert!(
            error.contains("no verdicts: nothing that was read holds a flow or a request"),
            "{error}"
        );
    }
}

#[test]
fn a_bad_line_is_reported_and_the_next_ones_are_judged() {
    let model = SmallModel::write();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("requests.jsonl");
    let lines = [
        r#"{"request":"GET /a?b=1 HTTP/1.1\r\n\r\n","label":"normal"}"#,
        r#"{"request":"#,
        "",
        r#"{"request":"SSH-2.0-OpenSSH"}"#,
        r#"{"request":"POST /login HTTP/1.1\r\n\r\nuser=admin"}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let path = path.to_str().unwrap();
    let (status, out, error) = run(&[
        "detect",
        "--model",
        model.argument(),
        "--format",
        "json",
        path,
    ]);
    assert_eq!(status, 1, "{error}");
    let found = json_lines(&out);
    let requests: Vec<u64> = found
        .iter()
        .map(|line| line["request"].as_u64().unwrap())
        .collect();
    assert_eq!(
        requests,
        [0, 4],
        "lines count from 0, and blank and bad ones count too"
    );
    for line in out.lines() {
        assert_eq!(
            keys(line),
            ["capture", "request", "profile", "model", "verdicts"]
        );
    }
    assert!(
        found
            .iter()
            .all(|line| line["verdicts"][0]["task"] == REQUEST_TASK)
    );
    assert!(
        error.contains(&format!("error: {path}: line 2: expected a JSON object")),
        "{error}"
    );
    assert!(
        error.contains(&format!(
            "error: {path}: line 4: request: byte 0: expected an HTTP method"
        )),
        "{error}"
    );
    assert!(
        error.contains("read: 4 lines of 1 requests file, 2 bad\n"),
        "{error}"
    );
}

#[test]
fn a_full_table_judges_flows_early_and_says_so() {
    let model = SmallModel::write();
    let path = capture("dns.pcap.gz");
    let arguments = [
        "detect",
        "--model",
        model.argument(),
        "--format",
        "json",
        "--max-flows",
        "2",
        &path,
    ];
    let (status, out, error) = run(&arguments);
    assert_eq!(status, 0, "{error}");
    assert_eq!(
        json_lines(&out).len(),
        11,
        "the queries come one after the other: no flow is torn"
    );
    assert!(
        error.contains("losses: flows judged early because the table was full "),
        "{error}"
    );
    let (status, _, error) = run(&[
        "detect",
        "--model",
        model.argument(),
        "--max-flows",
        "0",
        &path,
    ]);
    assert_eq!(status, 2, "{error}");
    assert!(error.contains("max_flows: expected 1..="), "{error}");
}

#[test]
fn skipped_packets_are_counted_by_reason() {
    let model = SmallModel::write();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.pcap");
    let mut bytes = std::fs::read(capture("http.pcap")).unwrap();
    let arp = [&[0xff; 12][..], &[0x08, 0x06], &[0; 28]].concat();
    for _ in 0..3 {
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&(arp.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(arp.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&arp);
    }
    std::fs::write(&path, bytes).unwrap();
    let (status, _, error) = run(&[
        "detect",
        "--model",
        model.argument(),
        path.to_str().unwrap(),
    ]);
    assert_eq!(status, 0, "{error}");
    assert!(error.contains("skipped: 3 packets (ARP 3)\n"), "{error}");
    assert!(error.contains("read: 150 packets"), "{error}");
}

#[test]
fn a_reader_that_leaves_ends_the_command_quietly() {
    let model = SmallModel::write();
    let paths = captures();
    let mut arguments = vec!["detect", "--model", model.argument(), "--format", "json"];
    arguments.extend(paths.iter().map(String::as_str));
    let mut process = command(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stdout.take());
    let (status, _, error) = finished(process.wait_with_output().unwrap());
    assert_eq!(status, 0, "{error}");
    assert!(!error.contains("error"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let model = SmallModel::write();
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let path = capture("ssh.pcap");
    let output = command(&["detect", "--model", model.argument(), &path])
        .stdout(full)
        .output()
        .unwrap();
    let (status, _, error) = finished(output);
    assert_eq!(status, 1, "{error}");
    assert!(
        error.contains("error: standard output: writing failed: "),
        "{error}"
    );
}

#[test]
fn wrong_usage_ends_with_status_2() {
    let model = SmallModel::write();
    for arguments in [
        &["detect"][..],
        &["detect", "--format", "xml", "a.pcap"],
        &["detect", "--threads", "0", "a.pcap"],
        &["generate", "a.pcap"],
        &["model", "install"],
        &[],
    ] {
        let (status, out, error) = run(arguments);
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {error}");
        assert!(!error.is_empty());
    }
    let path = capture("ssh.pcap");
    let arguments = ["detect", "--model", model.argument(), path.as_str()];
    let (status, _, error) = finished(
        command(&arguments)
            .env("TLLM_CPU", "abacus")
            .output()
            .unwrap(),
    );
    assert_eq!(status, 2, "{error}");
    assert!(
        error.contains("TLLM_CPU") && error.contains("abacus"),
        "{error}"
    );
}

#[test]
fn no_bar_is_drawn_where_there_is_no_terminal() {
    let model = SmallModel::write();
    let path = capture("http.pcap");
    let (_, out, error) = run(&["detect", "--model", model.argument(), &path]);
    assert!(
        !out.contains('\u{1b}') && !error.contains('\u{1b}') && !error.contains('\r'),
        "{error}"
    );
}
