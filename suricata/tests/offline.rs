//! Captures read by the real Suricata: every flow record has the verdicts of `trafficllm detect`, in every mode.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Outcomes, Run, capture, detect, key_of, trees};
use serde_json::Value;
use tempfile::TempDir;

const CAPTURES: [&str; 7] = [
    "cooked.pcap",
    "dns-tunnel.pcap",
    "dns.pcap.gz",
    "http.pcap",
    "smtp.pcap",
    "ssh.pcap",
    "tls.pcapng",
];

/// Holds a run's flow records to what the facade says of the capture; gives the number of flows.
fn hold_to_detect(outcomes: &Outcomes, path: &Path, what: &str) -> usize {
    let mut expected = detect(path, &[]);
    let flows = expected.len();
    for record in outcomes.of("flow") {
        let key = key_of(record);
        let flow = expected.remove(&key);
        let flow = flow.unwrap_or_else(|| panic!("{what}: a flow too many or twice: {record}"));
        hold_record(record, &flow, what);
    }
    assert!(
        expected.is_empty(),
        "{what}: no record of {expected:?}\n{}",
        outcomes.log
    );
    flows
}

fn hold_record(record: &Value, flow: &Value, what: &str) {
    let object = record["trafficllm"].as_object();
    let object = object.unwrap_or_else(|| panic!("{what}: no object in {record}"));
    let verdicts = flow["verdicts"].as_array().unwrap();
    let expected_state = if verdicts.is_empty() {
        "not_applicable"
    } else {
        "done"
    };
    assert_eq!(object["state"], expected_state, "{what}: {record}");
    assert_eq!(object["final"], true, "{what}: {record}");
    assert_eq!(
        object["packets"],
        flow["packets"].as_u64().unwrap().min(20),
        "{what}"
    );
    let mut spoken = Vec::new();
    for verdict in verdicts {
        let task = verdict["task"].as_str().unwrap();
        for part in ["label", "score", "abstained"] {
            assert_eq!(
                object[&format!("{task}_{part}")],
                verdict[part],
                "{what}: {task} {part} {record}"
            );
        }
        if verdict["abstained"] == false {
            spoken.push(Value::from(format!(
                "{task}/{}",
                verdict["label"].as_str().unwrap()
            )));
        }
    }
    assert_eq!(object["labels"], Value::from(spoken), "{what}");
    assert_eq!(object.len(), 8 + 3 * verdicts.len(), "{what}: {record}");
}

#[test]
fn every_flow_record_has_the_verdicts_of_detect() {
    for tree in trees() {
        for name in CAPTURES {
            let folder = TempDir::new().unwrap();
            let path = capture(name, folder.path());
            let what = format!("{} {name}", tree.display());
            let outcomes = Run::new().read(&tree, &path);
            assert!(outcomes.is_success, "{what}: {}", outcomes.log);
            let flows = hold_to_detect(&outcomes, &path, &what);
            assert!(outcomes.late.is_empty(), "{what}: {:?}", outcomes.late);
            assert_eq!(outcomes.counter("flows"), flows as u64, "{what}");
            for nothing in [
                "untracked",
                "shed",
                "late",
                "errors",
                "packets_lost",
                "worker_panics",
            ] {
                assert_eq!(outcomes.counter(nothing), 0, "{what}: {nothing}");
            }
        }
    }
}

#[test]
fn neither_mode_nor_rules_nor_early_judgements_change_the_final_verdicts() {
    for tree in trees() {
        let folder = TempDir::new().unwrap();
        for name in ["http.pcap", "tls.pcapng"] {
            let path = capture(name, folder.path());
            let hold = |run: Run, what: &str| {
                let what = format!("{} {name} {what}", tree.display());
                hold_to_detect(&run.read(&tree, &path), &path, &what);
            };
            hold(Run::new().argument("--runmode=single"), "single");
            hold(Run::new().argument("--runmode=autofp"), "autofp");
            for packets in [0, 1, 4, 20, 1_000] {
                hold(
                    Run::new().key("packets", packets),
                    &format!("packets {packets}"),
                );
            }
            hold(Run::new().key("workers", 3), "three workers");
            hold(Run::new().key("queue-flows", 1), "a queue of one flow");
            for overload in ["retry", "pause"] {
                let run = Run::new().key("queue-flows", 1).key("overload", overload);
                hold(run, overload);
            }
            let rule =
                "alert ip any any -> any any (trafficllm.score:botnet_detection,>=0; sid:1;)";
            hold(Run::new().rule(rule), "with a rule");
        }
    }
}

#[test]
fn chosen_records_get_the_object() {
    for tree in trees() {
        let path = capture("tls.pcapng", Path::new(""));
        let rule = "alert tls any any -> any any (msg:\"any\"; sid:1;)";
        let run = || Run::new().rule(rule).eve("tls").key("packets", 3);
        // A rule that looks at verdicts makes packets wait for them.
        let waiting =
            "alert ip any any -> any any (trafficllm.score:botnet_detection,>=0; sid:2; noalert;)";
        let outcomes = run()
            .rule(waiting)
            .key("eve-types", "[tls]")
            .read(&tree, &path);
        let with_object = |kind: &str| {
            let records = outcomes.of(kind);
            let with = records
                .iter()
                .filter(|record| record.get("trafficllm").is_some());
            (records.len(), with.count())
        };
        assert_eq!(with_object("flow"), (10, 0), "{}", outcomes.log);
        assert_eq!(with_object("tls"), (9, 9), "{}", outcomes.log);
        assert_eq!(with_object("alert").1, 0, "{}", outcomes.log);
        for record in outcomes.of("tls") {
            let object = &record["trafficllm"];
            assert_eq!(
                (&object["final"], &object["packets"]),
                (&false.into(), &3.into()),
                "{record}"
            );
        }
    }
}

#[test]
fn beyond_the_room_flows_are_untracked() {
    for tree in trees() {
        let path = capture("http.pcap", Path::new(""));
        let outcomes = Run::new().key("flows", 2).read(&tree, &path);
        let untracked = outcomes.counter("untracked");
        assert!(untracked > 0, "{}", outcomes.log);
        let states = outcomes
            .of("flow")
            .into_iter()
            .map(|record| record["trafficllm"]["state"].as_str().unwrap());
        let states: Vec<&str> = states.collect();
        let count = |state: &str| states.iter().filter(|found| **found == state).count() as u64;
        assert_eq!(
            (count("untracked"), count("done")),
            (untracked, 13 - untracked),
            "{states:?}"
        );
    }
}

#[test]
fn metrics_are_written() {
    for tree in trees() {
        let path = capture("http.pcap", Path::new(""));
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("trafficllm.prom");
        let outcomes = Run::new()
            .key("metrics-file", file.display())
            .read(&tree, &path);
        let text = std::fs::read_to_string(&file).unwrap();
        for line in [
            "suricata_trafficllm_flows_total 13",
            "suricata_trafficllm_generation 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line}\n{text}\n{}",
                outcomes.log
            );
        }
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut names: Vec<&str> = names.map(|line| line.split(' ').next().unwrap()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a metric stands there twice");
        assert!(all > 20, "the library's own are there too");
    }
}

#[test]
fn what_comes_late_is_in_the_late_file() {
    for tree in trees() {
        for name in ["http.pcap", "dns.pcap.gz", "tls.pcapng"] {
            let folder = TempDir::new().unwrap();
            let path = capture(name, folder.path());
            let what = format!("{} {name}", tree.display());
            let run = || Run::new().key("offline-wait", 0).key("stop-wait", 60_000);
            let outcomes = run().read(&tree, &path);
            let mut expected = detect(&path, &[]);
            let mut ids = BTreeMap::new();
            for record in outcomes.of("flow") {
                ids.insert(record["flow_id"].as_u64().unwrap(), key_of(record));
                if record["trafficllm"]["final"] == true {
                    let flow = expected.remove(&key_of(record)).unwrap();
                    hold_record(record, &flow, &what);
                }
            }
            for line in &outcomes.late {
                let key = key_of(line);
                assert_eq!(
                    ids.get(&line["flow_id"].as_u64().unwrap()),
                    Some(&key),
                    "{what}: {line}"
                );
                assert_eq!(line["event_type"], "trafficllm", "{what}");
                let flow = expected.remove(&key);
                let flow = flow.unwrap_or_else(|| panic!("{what}: it was there before: {line}"));
                hold_record(line, &flow, &what);
            }
            assert!(
                expected.is_empty(),
                "{what}: neither record nor line: {expected:?}"
            );
            assert!(!outcomes.late.is_empty(), "{what}: nothing was late");
            let without = run().key("late-file", "").read(&tree, &path);
            assert!(without.late.is_empty(), "{what}");
        }
    }
}

#[test]
fn flows_end_at_the_memory_budget() {
    for tree in trees() {
        let path = capture("http.pcap", Path::new(""));
        // The default model, one worker and the queue leave little of the smallest budget.
        let run = Run::new()
            .key("memory-budget", "16mb")
            .key("queue-flows", 1_024);
        let outcomes = run.read(&tree, &path);
        assert!(outcomes.is_success, "{}", outcomes.log);
        assert!(
            outcomes.counter("memory") <= 16 << 20,
            "{}",
            outcomes.counter("memory")
        );
        let done = outcomes
            .of("flow")
            .into_iter()
            .filter(|record| record["trafficllm"]["state"] == "done");
        assert_eq!(
            done.count() as u64,
            13 - outcomes.counter("untracked"),
            "{}",
            outcomes.log
        );
    }
}
