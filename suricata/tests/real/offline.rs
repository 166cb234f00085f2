//! Captures that are read from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::host::{self, Host, Ran, Setup, hosts};
use crate::records::{self, Schema, by_key, difference, key_of_line, key_of_record};
use crate::traffic;

/// Suricata ends a flow of UDP after 300 s of silence and one of TCP after an hour, the command each after an hour: a test that compares
/// them has Suricata wait as long, and has memory enough that no flow is ended early.
const LONG_FLOWS: &str = "\
flow:
  memcap: 1gb
  hash-size: 65536
stream:
  memcap: 512mb
  reassembly:
    memcap: 512mb
flow-timeouts:
  default: {new: 3600, established: 3600, closed: 60, emergency-new: 3600, emergency-established: 3600, emergency-closed: 10}
  tcp: {new: 3600, established: 3600, closed: 60, emergency-new: 3600, emergency-established: 3600, emergency-closed: 10}
  udp: {new: 3600, established: 3600, emergency-new: 3600, emergency-established: 3600}
  icmp: {new: 3600, established: 3600, emergency-new: 3600, emergency-established: 3600}
";

/// Flows in which Suricata and the command agree, and others with what is different.
#[derive(Debug, Default)]
struct Compared {
    same: usize,
    /// Flows of the command alone, of Suricata alone, or with other verdicts: their keys and words.
    different: BTreeMap<&'static str, Vec<String>>,
}

fn compare(host: &Host, ran: &Ran, captures: &[&Path]) -> Compared {
    let records = ran.records("flow");
    assert!(!records.is_empty(), "no flow record: {}", ran.log);
    let mut records = by_key(records, key_of_record);
    let mut compared = Compared::default();
    for (key, line) in by_key(host.detect(captures), key_of_line) {
        let name = format!("{key:?}");
        let Some(record) = records.remove(&key) else {
            compared
                .different
                .entry("only the command has it")
                .or_default()
                .push(name);
            continue;
        };
        let packets =
            ["pkts_toserver", "pkts_toclient"].map(|count| record["flow"][count].as_u64().unwrap());
        let found = difference(&record["trafficllm"], &line);
        if found.is_empty() {
            compared.same += 1;
        } else if packets[0] + packets[1] != line["packets"].as_u64().unwrap() {
            let text = format!(
                "{name}: {} packets, Suricata has {packets:?}",
                line["packets"]
            );
            compared
                .different
                .entry("other packets")
                .or_default()
                .push(text);
        } else {
            let text = format!("{name}: {found:?}: {record}");
            compared
                .different
                .entry("other verdicts")
                .or_default()
                .push(text);
        }
    }
    let rest = records
        .into_iter()
        .map(|(key, record)| format!("{key:?} {}", record["trafficllm"]["state"]));
    let rest: Vec<String> = rest.collect();
    if !rest.is_empty() {
        compared.different.insert("only Suricata has it", rest);
    }
    compared
}

#[test]
fn verdicts_are_those_of_the_command() {
    for host in hosts() {
        let (schema, folder) = (Schema::read(), TempDir::new().unwrap());
        let mut flows = 0;
        for capture in traffic::captures(folder.path()) {
            // As it comes with the package: nothing is set beyond the library's path.
            let ran = host::read(&host, &Setup::new(), &capture).with_plugin();
            let compared = compare(&host, &ran, &[&capture]);
            assert!(
                compared.different.is_empty(),
                "{}: {compared:#?}",
                capture.display()
            );
            assert_eq!(
                schema.hold(&ran.eve()),
                compared.same,
                "records with the object"
            );
            assert!(
                ran.late().is_empty(),
                "reading a file, a record waits: {:?}",
                ran.late()
            );
            assert_eq!(
                (ran.metric("flows_total"), ran.metric("errors_total")),
                (compared.same as u64, 0)
            );
            flows += compared.same;
        }
        assert!(flows > 30, "{flows} flows");
        eprintln!("Suricata {}: {flows} flows alike", host.version);
    }
}

#[test]
fn how_a_capture_is_read_changes_no_verdict() {
    let rule =
        "alert ip any any -> any any (msg:\"x\"; trafficllm.score:botnet_detection,>=0.0; sid:1;)";
    for host in hosts() {
        for name in ["http.pcap", "tls.pcapng", "ssh.pcap"] {
            let capture = traffic::capture(name);
            for mode in ["single", "autofp"] {
                for (packets, rules, workers) in
                    [(0, "", 1), (2, rule, 2), (8, rule, 1), (1_000, "", 3)]
                {
                    let setup = Setup::new()
                        .key("packets", packets)
                        .key("workers", workers)
                        .rules(rules);
                    let ran = host::read(
                        &host,
                        &setup.argument(&format!("--runmode={mode}")),
                        &capture,
                    )
                    .with_plugin();
                    let compared = compare(&host, &ran, &[&capture]);
                    assert!(
                        compared.different.is_empty() && compared.same > 0,
                        "{name}, {mode}, {packets} packets: {compared:#?}"
                    );
                }
            }
        }
    }
}

#[test]
fn broken_captures_break_nothing() {
    use std::os::unix::process::ExitStatusExt;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hostile/captures");
    for host in hosts() {
        let mut read = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let ran = host::read(&host, &Setup::new().key("offline-wait", 500), &path);
            let name = path.display();
            assert_eq!(ran.status.signal(), None, "{name}: {}", ran.log);
            assert!(
                !ran.log.contains("the plugin is disabled"),
                "{name}: {}",
                ran.log
            );
            Schema::read().hold(&ran.eve());
            read += ran.records("flow").len();
        }
        eprintln!("Suricata {}: {read} flows of broken captures", host.version);
    }
}

/// Larger captures, where they lie beside the checkout.
fn shared_captures() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let names = [
        "malware_traffic_detection",
        "botnet_detection",
        "encrypted_vpn_detection",
        "malicious_doh_detection",
        "iot_device_classification",
    ];
    let mut found = Vec::new();
    for name in names {
        let mut files = Vec::new();
        let labels = std::fs::read_dir(data.join(name).join("val"))
            .into_iter()
            .flatten()
            .flatten();
        for label in labels {
            let captures = std::fs::read_dir(label.path())
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            files.extend(captures.filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "pcap")
            }));
        }
        // The largest below a size that is read in seconds.
        files.retain(|path| {
            path.metadata()
                .is_ok_and(|metadata| metadata.len() < 8 << 20)
        });
        files.sort_by_key(|path| {
            std::cmp::Reverse((
                path.metadata().map_or(0, |metadata| metadata.len()),
                path.clone(),
            ))
        });
        found.extend(files.into_iter().take(2));
    }
    found
}

#[test]
fn verdicts_on_larger_captures_are_those_of_the_command() {
    let captures = shared_captures();
    if captures.is_empty() {
        eprintln!("SKIPPED: no larger captures beside the checkout");
        return;
    }
    for host in hosts() {
        let schema = Schema::read();
        let (mut same, mut different) = (0, BTreeMap::<&str, usize>::new());
        let folder = TempDir::new().unwrap();
        for capture in &captures {
            let whole = folder.path().join("whole.pcap");
            traffic::pad(capture, &whole);
            let ran = host::read(&host, &Setup::new().yaml(LONG_FLOWS), &whole).with_plugin();
            schema.hold(&ran.eve());
            let compared = compare(&host, &ran, &[&whole]);
            same += compared.same;
            for (what, flows) in &compared.different {
                eprintln!(
                    "{}: {what}: {}: {}",
                    capture.display(),
                    flows.len(),
                    flows[0]
                );
                *different.entry(what).or_default() += flows.len();
            }
        }
        eprintln!(
            "Suricata {}: {same} flows alike, different {different:?}",
            host.version
        );
        assert!(
            !different.contains_key("other verdicts"),
            "the same packets with other verdicts"
        );
        let others: usize = different.values().sum();
        assert!(
            others * 50 <= same,
            "{others} flows are others, {same} alike"
        );
    }
}

/// How often each flow has an alert of a rule.
fn alerts(ran: &Ran, rule: u64) -> BTreeMap<u64, usize> {
    let mut found = BTreeMap::new();
    for alert in ran.records("alert") {
        if alert["alert"]["signature_id"] == rule {
            *found.entry(alert["flow_id"].as_u64().unwrap()).or_default() += 1;
        }
    }
    found
}

/// The committed rules, as users are shown them.
fn example_rules() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules/trafficllm.rules");
    std::fs::read_to_string(path).unwrap()
}

const LIMIT: &str = "threshold: type limit, track by_flow, count 1, seconds 3600;";

#[test]
fn a_label_rule_alerts_once_per_flow() {
    const EARLY: usize = 8;
    const WHOLE: usize = 20;
    for host in hosts() {
        let folder = TempDir::new().unwrap();
        for (name, task, label) in [
            ("http.pcap", "botnet_detection", "Neris"),
            ("ssh.pcap", "malicious_doh_detection", "non-doh-https"),
            ("smtp.pcap", "malware_traffic_detection", "Htbot"),
        ] {
            let capture = traffic::capture(name);
            let packets = traffic::read(&capture);
            // What the model says of the first packets, by the command on captures that end there.
            let says = |verdicts: &Value| {
                let mut verdicts = verdicts.as_array().unwrap().iter();
                verdicts.any(|verdict| {
                    verdict["task"] == task
                        && verdict["label"] == label
                        && verdict["abstained"] == false
                })
            };
            let mut expected: BTreeMap<records::Key, bool> = BTreeMap::new();
            for most in [EARLY, WHOLE] {
                let (cut, sizes) = traffic::cut(&packets, most);
                let path = folder.path().join("cut.pcap");
                traffic::write(&path, &cut);
                let long: Vec<u64> = sizes.values().map(|&size| size as u64).collect();
                assert!(
                    long.iter().any(|&size| size >= most as u64) || most == WHOLE,
                    "{name}: no flow is long enough"
                );
                for line in host.detect(&[&path]) {
                    let is_reached = line["packets"].as_u64().unwrap() >= most as u64;
                    let key = key_of_line(&line);
                    *expected.entry(key).or_default() |= is_reached && says(&line["verdicts"]);
                }
            }
            let expected_flows = expected
                .values()
                .filter(|&&is_expected| is_expected)
                .count();
            assert!(expected_flows > 0, "{name}: nothing to alert on");

            let rules = format!(
                "alert ip any any -> any any (msg:\"once\"; trafficllm.label:{task},{label}; {LIMIT} sid:1;)\n\
                 alert ip any any -> any any (msg:\"every packet\"; trafficllm.label:{task},{label}; sid:2;)\n\
                 alert ip any any -> any any (msg:\"another\"; trafficllm.label:!{task},{label}; {LIMIT} sid:3;)\n\
                 alert ip any any -> any any (msg:\"score\"; trafficllm.score:{task},>=0.0; {LIMIT} sid:4;)\n\
                 alert ip any any -> any any (msg:\"no score\"; trafficllm.score:\"{task},<0.0001\"; {LIMIT} sid:5;)"
            );
            let ran = host::read(&host, &Setup::new().rules(&rules), &capture).with_plugin();
            let flows = by_key(ran.records("flow"), key_of_record);
            let once = alerts(&ran, 1);
            let mut alerted = 0;
            for (key, is_expected) in &expected {
                let record = flows
                    .get(key)
                    .unwrap_or_else(|| panic!("{name}: no record of {key:?}"));
                let count = once
                    .get(&record["flow_id"].as_u64().unwrap())
                    .copied()
                    .unwrap_or(0);
                assert_eq!(
                    count,
                    usize::from(*is_expected),
                    "{name}: alerts of {key:?}: {record}"
                );
                alerted += count;
            }
            assert_eq!(
                once.len(),
                alerted,
                "{name}: alerts on flows that are not expected"
            );
            // Each verdict of a flow, the early one and the one of the whole, may be another.
            assert!(alerts(&ran, 3).values().all(|&count| count == 1));
            let long_flows = traffic::cut(&packets, 1)
                .1
                .values()
                .filter(|&&size| size >= EARLY)
                .count();
            assert!(
                alerts(&ran, 4).len() >= long_flows,
                "{name}: a score is there with every verdict"
            );
            assert!(alerts(&ran, 4).values().all(|&count| count == 1));
            assert!(alerts(&ran, 5).is_empty());
            // Without the threshold every later packet alerts.
            let every = alerts(&ran, 2);
            assert_eq!(
                every.keys().collect::<Vec<_>>(),
                once.keys().collect::<Vec<_>>()
            );
            assert!(
                every.values().sum::<usize>() > once.len(),
                "{name}: {every:?}"
            );
            for alert in ran.records("alert") {
                assert_eq!(
                    alert["trafficllm"]["state"], "done",
                    "an alert shows the verdict: {alert}"
                );
            }
            assert!(Schema::read().hold(&ran.eve()) > 0);
        }
    }
}

#[test]
fn what_a_rule_does_not_know_fails_the_check() {
    for host in hosts() {
        let rule =
            |option: &str| format!("alert ip any any -> any any (msg:\"x\"; {option}; sid:1;)");
        for (option, said) in [
            (
                "trafficllm.label:botnet_detection,Nerys",
                "known are Htbot, Miuref, Neris, Nsis-ay, Virut, Zeus, normal",
            ),
            (
                "trafficllm.label:botnets,Neris",
                "known are malware_traffic_detection, botnet_detection",
            ),
            ("trafficllm.label:Neris", "expected [!]TASK,LABEL"),
            ("trafficllm.label", "malformed option to trafficllm.label"),
            (
                "trafficllm.score:botnets,>0.5",
                "known are malware_traffic_detection, botnet_detection",
            ),
            (
                "trafficllm.score:botnet_detection,>1.5",
                "a score from 0 to 1",
            ),
            (
                "trafficllm.score:botnet_detection,=0.5",
                "expected >, >=, < or <=",
            ),
        ] {
            let ran = host::check(&host, &Setup::new().rules(&rule(option)));
            assert!(!ran.status.success(), "{option}: -T succeeds: {}", ran.log);
            assert!(
                ran.log.contains(said),
                "{option}: expected {said:?}: {}",
                ran.log
            );
        }
        for option in [
            "trafficllm.label:botnet_detection,Neris",
            "trafficllm.label:!botnet_detection,Neris",
            "trafficllm.label:\"botnet_detection, Neris\"",
            "trafficllm.score:botnet_detection,>=0.9",
            "trafficllm.score:\"botnet_detection,0.5-0.9\"",
            "requires: keyword trafficllm.label; trafficllm.label:botnet_detection,Neris",
        ] {
            let ran = host::check(&host, &Setup::new().rules(&rule(option))).with_plugin();
            assert!(
                ran.log
                    .contains("1 rules successfully loaded, 0 rules failed"),
                "{option}: {}",
                ran.log
            );
        }
        // The rules that come with the plugin.
        let examples = example_rules();
        let count = examples
            .lines()
            .filter(|line| line.starts_with("alert ") || line.starts_with("drop "))
            .count();
        assert!(count >= 5);
        let ran = host::check(&host, &Setup::new().rules(&examples)).with_plugin();
        assert!(
            ran.log.contains(&format!(
                "{count} rules successfully loaded, 0 rules failed"
            )),
            "{}",
            ran.log
        );
    }
}

#[test]
fn without_the_plugin_rules_that_require_it_are_passed_over() {
    for host in hosts() {
        let requires = "alert ip any any -> any any (msg:\"x\"; requires: keyword trafficllm.label; trafficllm.label:a,b; sid:1;)";
        let ran = host::check(&host, &Setup::new().without_plugin().rules(requires));
        assert!(ran.status.success(), "{}", ran.log);
        assert!(
            ran.log
                .contains("missing a required keyword: keyword trafficllm.label"),
            "{}",
            ran.log
        );
        // The rules that come with the plugin all say so.
        let ran = host::check(
            &host,
            &Setup::new().without_plugin().rules(&example_rules()),
        );
        assert!(ran.status.success(), "{}", ran.log);
        let plain = "alert ip any any -> any any (msg:\"x\"; trafficllm.label:a,b; sid:1;)";
        let ran = host::check(&host, &Setup::new().without_plugin().rules(plain));
        assert!(
            !ran.status.success(),
            "a keyword that is not there: {}",
            ran.log
        );
    }
}

#[test]
fn the_records_with_the_object_are_those_that_are_asked_for() {
    for host in hosts() {
        let kinds = |ran: &Ran| {
            let mut found: Vec<String> = Vec::new();
            for record in ran
                .eve()
                .iter()
                .filter(|record| record.get("trafficllm").is_some())
            {
                found.push(record["event_type"].as_str().unwrap().to_owned());
            }
            found.sort();
            found.dedup();
            found
        };
        let alert = "alert tcp any any -> any any (msg:\"x\"; trafficllm.score:botnet_detection,>=0.0; sid:1;)";
        for (value, expected) in [
            (None, &["alert", "flow"][..]),
            (Some("[flow]"), &["flow"]),
            (Some("alert"), &["alert"]),
            (Some("[alert, http]"), &["alert", "http"]),
        ] {
            // A request is logged with the response, after the eighth packet at the earliest: the model is asked before.
            let mut setup = Setup::new().rules(alert).key("packets", 4);
            if let Some(value) = value {
                setup = setup.key("eve-types", value);
            }
            let ran = host::read(&host, &setup, &traffic::capture("http.pcap")).with_plugin();
            let stats = ran
                .records("stats")
                .into_iter()
                .filter(|record| record.get("trafficllm").is_some())
                .count();
            assert_eq!(stats, 0);
            assert_eq!(kinds(&ran), expected, "{value:?}");
            Schema::read().hold(&ran.eve());
        }
    }
}

#[test]
fn tasks_and_scores_are_those_that_are_asked_for() {
    for host in hosts() {
        let setup = Setup::new()
            .key("tasks", "[botnet_detection]")
            .key("min-score", "0.7");
        let capture = traffic::capture("http.pcap");
        let ran = host::read(&host, &setup, &capture).with_plugin();
        let lines = by_key(host.detect(&[&capture]), key_of_line);
        let mut abstained = 0;
        for (key, record) in by_key(ran.records("flow"), key_of_record) {
            let object = record["trafficllm"].as_object().unwrap();
            let tasks: Vec<&String> = object
                .keys()
                .filter(|name| name.ends_with("_label"))
                .collect();
            assert_eq!(tasks, ["botnet_detection_label"], "{record}");
            let verdicts = lines[&key]["verdicts"].as_array().unwrap();
            let verdict = verdicts
                .iter()
                .find(|verdict| verdict["task"] == "botnet_detection")
                .unwrap();
            assert_eq!(object["botnet_detection_score"], verdict["score"]);
            let is_doubtful =
                verdict["abstained"] == true || verdict["score"].as_f64().unwrap() < 0.7;
            assert_eq!(
                object["botnet_detection_abstained"], is_doubtful,
                "{record}"
            );
            abstained += usize::from(is_doubtful && verdict["abstained"] == false);
        }
        assert!(abstained > 0, "min-score changes nothing here");
    }
}

#[test]
fn statistics_say_what_happened() {
    for host in hosts() {
        let capture = traffic::capture("http.pcap");
        let flows = host.detect(&[&capture]).len() as u64;
        let ran = host::read(&host, &Setup::new(), &capture).with_plugin();
        assert_eq!(ran.stat("flows"), flows);
        assert_eq!(
            (
                ran.stat("untracked"),
                ran.stat("shed"),
                ran.stat("errors"),
                ran.stat("late")
            ),
            (0, 0, 0, 0)
        );
        assert!(ran.stat("done") >= flows && ran.stat("done") == ran.stat("submitted"));
        assert!(
            ran.stat("verdicts") > 5 * flows
                && ran.stat("abstained") > 0
                && ran.stat("abstained") < ran.stat("verdicts")
        );
        assert_eq!(ran.stat("generation"), 1, "a model is active");
        assert!(ran.stat("memory") > 1 << 20, "a model takes memory");
        for name in [
            "flows_total",
            "done_total",
            "verdicts_total",
            "abstained_total",
            "generation",
        ] {
            assert_eq!(
                ran.metric(name),
                ran.stat(name.trim_end_matches("_total")),
                "{name}"
            );
        }
        // The library's own are behind them.
        let text = std::fs::read_to_string(ran.folder.path().join("metrics.prom")).unwrap();
        assert!(
            text.lines().any(|line| line.starts_with("trafficllm_")),
            "{text}"
        );
    }
}
