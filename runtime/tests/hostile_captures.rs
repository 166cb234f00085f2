//! Broken captures through the real command: the expected error, the expected exit status, never a panic, and never silence.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

mod common;

use common::{SmallModel, json_lines, repository, run};

/// One row of `tests/hostile/captures/expected.tsv`.
struct Case<'a> {
    name: &'a str,
    packets: &'a str,
    flows: usize,
    error: Option<&'a str>,
}

fn cases(table: &str) -> Vec<Case<'_>> {
    let rows = table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    rows.map(|row| {
        let fields: Vec<&str> = row.split('\t').collect();
        let [name, packets, flows, _skipped, error] = fields[..] else {
            panic!("a row of 5 fields: {row}")
        };
        Case {
            name,
            packets,
            flows: flows.parse().unwrap(),
            error: (error != "-").then_some(error),
        }
    })
    .collect()
}

#[test]
fn each_one_ends_as_expected() {
    let model = SmallModel::write();
    let folder = repository().join("tests/hostile/captures");
    let table = std::fs::read_to_string(folder.join("expected.tsv")).unwrap();
    let cases = cases(&table);
    assert!(cases.len() >= 30, "{} hostile captures", cases.len());
    for Case {
        name,
        packets,
        flows,
        error: expected,
    } in cases
    {
        let path = folder.join(name);
        let arguments = [
            "detect",
            "--model",
            model.argument(),
            "--format",
            "json",
            "--threads",
            "1",
            path.to_str().unwrap(),
        ];
        let (status, out, error) = run(&arguments);
        assert_eq!(status, i32::from(expected.is_some()), "{name}: {error}");
        assert_eq!(json_lines(&out).len(), flows, "{name}: {error}");
        assert!(
            error.contains(&format!("read: {packets} packet")),
            "{name}: {error}"
        );
        match expected {
            Some(expected) => assert!(
                error.contains(expected),
                "{name}: expected {expected}, found {error}"
            ),
            None => assert!(!error.contains("error:"), "{name}: {error}"),
        }
        if flows == 0 {
            assert!(
                error.contains("no verdicts: nothing that was read"),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn a_capture_cut_at_any_byte_of_its_headers_is_no_surprise() {
    let model = SmallModel::write();
    let folder = tempfile::tempdir().unwrap();
    for (name, headers_bytes) in [
        ("http.pcap", 24 + 16 + 14 + 40),
        ("tls.pcapng", 400),
        ("dns.pcap.gz", 60),
    ] {
        let whole = std::fs::read(common::capture(name)).unwrap();
        // All cuts go through one run: starting the command is what takes the time.
        let paths: Vec<String> = (0..headers_bytes)
            .map(|length| {
                let path = folder.path().join(format!("{length:03}-{name}"));
                std::fs::write(&path, &whole[..length]).unwrap();
                path.to_str().unwrap().to_owned()
            })
            .collect();
        let mut arguments = vec![
            "detect",
            "--model",
            model.argument(),
            "--format",
            "json",
            "--threads",
            "1",
        ];
        arguments.extend(paths.iter().map(String::as_str));
        let (status, _, error) = run(&arguments);
        assert_eq!(status, 1, "{error}");
        // Where a cut falls between two blocks or behind the file header nothing is missing; everywhere else it is told.
        let told = error
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert!(
            told >= headers_bytes - 4,
            "{name}: {told} of {headers_bytes} cuts are told"
        );
        assert!(
            error.contains(&format!("not read to the end: {told} inputs\n")),
            "{error}"
        );
    }
}
