//! Captures that are read from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::host::{self, Host, Ran, Setup, hosts};
use crate::records::{Schema, by_key, difference, key_of_line, key_of_record};
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
fn heads_of_ones_own_answer_as_in_the_command() {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/examples/modules");
    let fusion = modules.join("fusion.wasm");
    for host in hosts() {
        let (schema, folder) = (Schema::read(), TempDir::new().unwrap());
        let mut flows = 0;
        for capture in traffic::captures(folder.path()) {
            let setup = Setup::new().key("heads", format!("[{}]", fusion.display()));
            let ran = host::read(&host, &setup, &capture).with_plugin();
            let mut records = by_key(ran.records("flow"), key_of_record);
            let lines = host.detect_with(&[Path::new("--head"), &fusion], &[&capture]);
            for (key, line) in by_key(lines, key_of_line) {
                let record = records.remove(&key).unwrap();
                let found = difference(&record["trafficllm"], &line);
                assert!(found.is_empty(), "{}: {found:?}", capture.display());
                let object = &record["trafficllm"];
                assert!(object["fusion_score"].is_number(), "{object}");
                flows += 1;
            }
            schema.hold(&ran.eve());
        }
        assert!(flows > 30, "{flows} flows");
        // A head that cannot be loaded is said, and the model works without it.
        let setup = Setup::new().key("heads", "[/nowhere/head.wasm]");
        let ran = host::check(&host, &setup);
        assert!(ran.log.contains("/nowhere/head.wasm"), "{}", ran.log);
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

/// What README.md says under "verdicts differ": Suricata puts fragments together, and leaves packets out whose IP length is 0.
#[test]
fn fragments_and_packets_without_a_length_are_as_suricata_has_them() {
    for host in hosts() {
        let folder = TempDir::new().unwrap();
        let mut fragmented = 0;
        let [plain, changed] = ["plain.pcap", "changed.pcap"].map(|name| folder.path().join(name));
        for name in ["http.pcap", "ssh.pcap", "smtp.pcap"] {
            let packets = traffic::read(&traffic::capture(name));
            let (fragments, count) = traffic::fragmented(&packets);
            assert!(count > 0, "{name}: nothing is large enough");
            fragmented += count;
            traffic::write(&plain, &packets);
            traffic::write(&changed, &fragments);
            let ran = host::read(&host, &Setup::new(), &changed).with_plugin();
            let compared = compare(&host, &ran, &[&plain]);
            assert!(
                compared.different.is_empty() && compared.same > 0,
                "{name}, fragments: {compared:#?}"
            );
            Schema::read().hold(&ran.eve());

            let (all, rest) = traffic::without_length(&packets, 7);
            assert!(all.len() > rest.len() + 3);
            traffic::write(&plain, &rest);
            traffic::write(&changed, &all);
            let ran = host::read(&host, &Setup::new(), &changed).with_plugin();
            let compared = compare(&host, &ran, &[&plain]);
            assert!(
                compared.different.is_empty() && compared.same > 0,
                "{name}, no lengths: {compared:#?}"
            );
            assert_eq!(ran.metric("errors_total"), 0);
            Schema::read().hold(&ran.eve());
        }
        assert!(fragmented > 30, "{fragmented} fragmented packets");
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
        // A record waits for the newest answer on its flow; an older one may still be under way when the statistics are written.
        assert!(ran.stat("done") >= flows && ran.stat("done") <= ran.metric("submitted_total"));
        assert_eq!(ran.metric("done_total"), ran.metric("submitted_total"));
        assert!(
            ran.stat("verdicts") > 5 * flows
                && ran.stat("abstained") > 0
                && ran.stat("abstained") < ran.stat("verdicts")
        );
        assert_eq!(ran.stat("generation"), 1, "a model is active");
        assert!(ran.stat("memory") > 1 << 20, "a model takes memory");
        for name in ["flows_total", "submitted_total", "generation"] {
            let stat = ran.stat(name.trim_end_matches("_total"));
            assert_eq!(ran.metric(name), stat, "{name}");
        }
        for name in ["done_total", "verdicts_total", "abstained_total"] {
            let stat = ran.stat(name.trim_end_matches("_total"));
            assert!(ran.metric(name) >= stat && stat > 0, "{name}");
        }
        // The library's own are behind them.
        let text = std::fs::read_to_string(ran.folder.path().join("metrics.prom")).unwrap();
        assert!(
            text.lines().any(|line| line.starts_with("trafficllm_")),
            "{text}"
        );
    }
}
