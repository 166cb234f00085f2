//! What is missing or broken: Suricata goes on, and it is said.

use std::fs;
use std::path::Path;

use crate::daemon::{SHORT_FLOWS, hold_records};
use crate::host::{self, Host, Ran, Setup, hosts};
use crate::live::live;
use crate::network::{Wire, apart, pair};
use crate::records::Schema;
use crate::traffic;
use trafficllm_suricata::limits;

const FLOWS: usize = 13;

/// Reads a capture with a setup that disables the plugin: Suricata does what it does without.
fn disabled(host: &Host, setup: &Setup) -> Ran {
    let ran = host::read(host, setup, &traffic::capture("http.pcap"));
    assert!(ran.status.success(), "{}: {}", ran.status, ran.log);
    let flows = ran.records("flow");
    assert_eq!(flows.len(), FLOWS, "{}", ran.log);
    assert!(
        flows
            .iter()
            .all(|record| record.get("trafficllm").is_none())
    );
    ran
}

/// The one line that says why, with these words in it.
fn assert_said(ran: &Ran, words: &[&str]) {
    let lines: Vec<&str> = ran
        .log
        .lines()
        .filter(|line| line.contains("the plugin is disabled"))
        .collect();
    // On standard error, and in the log.
    assert!((1..=2).contains(&lines.len()), "not one line: {}", ran.log);
    for word in words {
        assert!(
            lines[0].contains(word),
            "expected {word:?}, found {:?}",
            lines[0]
        );
    }
}

fn bundle() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/bundle/default.tllm")).unwrap()
}

/// How many flow records are in a state.
fn in_state(records: &[serde_json::Value], name: &str) -> usize {
    let is_so = |record: &&serde_json::Value| record["trafficllm"]["state"] == name;
    records.iter().filter(is_so).count()
}

#[test]
fn without_its_library_it_is_disabled() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let ran = disabled(
            &host,
            &Setup::new().key("library", "/nowhere/libtrafficllm.so.0"),
        );
        assert_said(
            &ran,
            &[
                "libtrafficllm cannot be loaded",
                "/nowhere/libtrafficllm.so.0",
                "set trafficllm.library to its path",
            ],
        );
        // By its usual names, which are not on the loader's way here.
        let ran = disabled(&host, &Setup::new().key("library", "\"\""));
        assert_said(
            &ran,
            &[
                "libtrafficllm cannot be loaded",
                "libtrafficllm.so.0",
                "libtrafficllm.so",
            ],
        );
        // Another library.
        let ran = disabled(&host, &Setup::new().key("library", host.plugin().display()));
        assert_said(&ran, &["it is not libtrafficllm"]);
        // One of another ABI.
        let setup = Setup::new().key("library", host.shim(folder.path()).display());
        let ran = disabled(&host, &setup.clone().environment("TLLM_SHIM", "abi"));
        assert_said(
            &ran,
            &["libtrafficllm has ABI 1000, this plugin needs ABI 0"],
        );
        // Which the same shim is not, if it is not told to be.
        host::read(&host, &setup, &traffic::capture("http.pcap")).with_plugin();
        // No library at all: a file of that name.
        let text = folder.path().join("libtrafficllm.so.0");
        fs::write(&text, "not a library").unwrap();
        let ran = disabled(&host, &Setup::new().key("library", text.display()));
        assert_said(&ran, &["libtrafficllm cannot be loaded"]);
    }
}

#[test]
fn with_a_broken_bundle_it_is_disabled() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("bundle.tllm");
        let whole = bundle();
        let mut bent = whole.clone();
        let middle = bent.len() / 2;
        bent[middle] ^= 1;
        for broken in [
            &bent[..],
            &whole[..whole.len() - 1],
            &whole[..10],
            b"",
            b"not a bundle",
        ] {
            fs::write(&path, broken).unwrap();
            let ran = disabled(&host, &Setup::new().key("bundle", path.display()));
            assert_said(&ran, &["bundle ", path.to_str().unwrap()]);
        }
        fs::remove_file(&path).unwrap();
        let ran = disabled(&host, &Setup::new().key("bundle", path.display()));
        assert_said(&ran, &[path.to_str().unwrap()]);
        fs::write(&path, &whole).unwrap();
        host::read(
            &host,
            &Setup::new().key("bundle", path.display()),
            &traffic::capture("http.pcap"),
        )
        .with_plugin();
    }
}

#[test]
fn with_a_wrong_key_it_is_disabled() {
    for host in hosts() {
        for (key, value, words) in [
            (
                "bundel",
                "x",
                &["trafficllm.bundel is no key", "known are", "bundle"][..],
            ),
            (
                "enabled",
                "perhaps",
                &["trafficllm.enabled: expected yes or no, found \"perhaps\""],
            ),
            (
                "packets",
                "-1",
                &["trafficllm.packets: expected a whole number from 0 to 1000"],
            ),
            (
                "packets",
                "1001",
                &["trafficllm.packets: expected a whole number from 0 to 1000"],
            ),
            (
                "workers",
                "0",
                &["trafficllm.workers: expected a whole number from 1 to 256"],
            ),
            ("workers", "[1, 2]", &["trafficllm.workers", "found a list"]),
            (
                "workers",
                "{a: b}",
                &["trafficllm.workers", "found keys below it"],
            ),
            (
                "min-score",
                "1.5",
                &["trafficllm.min-score: expected a number from 0 to 1"],
            ),
            ("memory-budget", "many", &["trafficllm.memory-budget"]),
            (
                "overload",
                "panic",
                &["trafficllm.overload: expected one of shed, retry, pause"],
            ),
            (
                "eve-types",
                "[flow, stats]",
                &["trafficllm.eve-types", "\"stats\""],
            ),
            ("tasks", "[botnets]", &["botnets"]),
            ("cpu", "z80", &["z80"]),
        ] {
            let ran = disabled(&host, &Setup::new().key(key, value));
            assert_said(&ran, words);
        }
        // Switched off: no error.
        let ran = disabled(&host, &Setup::new().key("enabled", "no"));
        assert!(
            ran.log.contains("disabled by trafficllm.enabled") && !ran.log.contains("Error"),
            "{}",
            ran.log
        );
    }
}

#[test]
fn a_bundle_that_is_bad_at_run_time_changes_nothing() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let folder = tempfile::TempDir::new().unwrap();
            let at = |name: &str| folder.path().join(name);
            let whole = bundle();
            fs::write(at("good.tllm"), &whole).unwrap();
            fs::write(at("other.tllm"), &whole).unwrap();
            fs::write(at("bad.tllm"), &whole[..whole.len() / 2]).unwrap();
            let lead_to = |name: &str| {
                std::os::unix::fs::symlink(name, at("new")).unwrap();
                fs::rename(at("new"), at("bundle.tllm")).unwrap();
            };
            lead_to("good.tllm");
            let setup = Setup::new()
                .key("bundle", at("bundle.tllm").display())
                .key("reload-interval", 1)
                .key("idle", 200)
                .yaml(SHORT_FLOWS);
            let live = live(&host, &setup);
            let wire = Wire::on("tap1");
            let sent = std::cell::Cell::new(0);
            let judge = |what: &str| {
                let (before, first) = (live.metric("done_total"), sent.get());
                sent.set(first + 50);
                wire.send_at(
                    &traffic::multiplied_from(&["http.pcap"], first..first + 50, 1_000),
                    5_000,
                );
                live.until(what, || live.metric("done_total") >= before + 50);
            };
            judge("verdicts of the first bundle come");
            assert_eq!(live.metric("generation"), 1);
            lead_to("bad.tllm");
            live.until("the bad bundle is refused", || {
                live.metric("reload_failures_total") == 1
            });
            judge("verdicts of the first bundle go on");
            assert_eq!(
                (live.metric("generation"), live.metric("reloads_total")),
                (1, 0)
            );
            // So is a folder that cannot be watched, for the plugin's own reason, and once.
            fs::create_dir(at("crowd")).unwrap();
            for number in 0..=limits::BUNDLE_FILES_MAX {
                fs::write(at("crowd").join(number.to_string()), "").unwrap();
            }
            lead_to("crowd");
            live.until("the crowd is refused", || {
                live.metric("reload_failures_total") == 2
            });
            judge("verdicts of the first bundle go on behind it");
            // A link that leads nowhere is not looked at.
            lead_to("none.tllm");
            judge("verdicts of the first bundle go on still");
            lead_to("other.tllm");
            live.until("another bundle takes over", || {
                live.metric("reloads_total") == 1
            });
            judge("verdicts of the other bundle come");
            assert_eq!(live.metric("generation"), 2);
            let ran = live.stop();
            assert!(ran.status.success(), "{}", ran.log);
            assert_eq!(
                (
                    ran.metric("reload_failures_total"),
                    ran.metric("reloads_total"),
                    ran.metric("errors_total")
                ),
                (2, 1, 0)
            );
            assert!(
                ran.log.contains("the model before goes on")
                    && ran.log.contains("more than 1024 files")
                    && ran.log.contains("has taken over"),
                "{}",
                ran.log
            );
            hold_records(&ran);
        });
    }
}

#[test]
fn a_worker_that_panics_costs_its_batch() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("many.pcap");
        let (packets, flows) = traffic::multiplied(&["http.pcap", "ssh.pcap"], 300, 1_000);
        traffic::write(&path, &packets);
        let setup = Setup::new()
            .key("library", host.shim(folder.path()).display())
            .environment("TLLM_SHIM", "poison");
        let ran = host::read(&host, &setup, &path);
        assert!(ran.status.success(), "{}", ran.log);
        let (panics, errors, done) = (
            ran.metric("worker_panics_total"),
            ran.metric("errors_total"),
            ran.metric("done_total"),
        );
        eprintln!(
            "Suricata {}: {panics} panics, {errors} errors, {done} done",
            host.version
        );
        assert!(panics >= 2, "{}", ran.log);
        assert!(
            errors >= panics && done > 10 * errors,
            "{errors} errors, {done} done"
        );
        let records = ran.records("flow");
        assert_eq!(records.len(), flows);
        let state = |name: &str| in_state(&records, name);
        assert!(state("done") * 10 > flows * 9, "{} done", state("done"));
        assert_eq!(state("done") + state("failed"), flows, "{records:?}");
        Schema::read().hold(&ran.eve());
    }
}

#[test]
fn more_flows_than_there_is_room_for_are_counted() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("many.pcap");
        let (packets, flows) = traffic::multiplied(&["http.pcap"], 500, 10);
        traffic::write(&path, &packets);
        for (key, value) in [("flows", "100"), ("memory-budget", "BUDGET")] {
            // A budget with room for some flows: what was taken with all of them, and a little less.
            let setup = Setup::new().key("queue-flows", 16_384);
            let ran = host::read(&host, &setup, &path).with_plugin();
            let fixed = fs::read_to_string(ran.folder.path().join("metrics.prom")).unwrap();
            let number = |name: &str| {
                let line = fixed.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.trim().parse::<f64>().ok())
                    .unwrap_or(0.0)
            };
            assert!(number("suricata_trafficllm_memory ") > 0.0, "{fixed}");
            let budget = number("suricata_trafficllm_memory ") as u64 / 1_024 - 512;
            let value = value.replace("BUDGET", &format!("{budget}kb"));
            let ran = host::read(&host, &setup.key(key, &value), &path);
            assert!(ran.status.success(), "{}", ran.log);
            assert!(!ran.log.contains("disabled"), "{key} {value}: {}", ran.log);
            let records = ran.records("flow");
            assert_eq!(records.len(), flows);
            let state = |name: &str| in_state(&records, name);
            assert!(state("untracked") > 0, "{key} {value}: {}", state("done"));
            assert!(state("done") > 0, "{key} {value}");
            assert_eq!(
                ran.metric("untracked_total"),
                state("untracked") as u64,
                "{key} {value}"
            );
            if key == "memory-budget" {
                assert!(
                    ran.metric("memory") <= budget * 1_024,
                    "{} of {budget} KiB",
                    ran.metric("memory")
                );
            }
            Schema::read().hold(&ran.eve());
        }
        // Not even room for the model.
        let ran = disabled(
            &host,
            &Setup::new()
                .key("memory-budget", "16mb")
                .key("queue-flows", 65_536),
        );
        assert_said(&ran, &["memory"]);
    }
}

#[test]
fn files_that_cannot_be_written_are_said() {
    for host in hosts() {
        let setup = Setup::new()
            .key("late-file", "/nowhere/late.json")
            .key("metrics-file", "/nowhere/metrics.prom");
        apart(|| {
            pair("tap0", "tap1");
            let live = live(
                &host,
                &setup
                    .clone()
                    .key("packets", 0)
                    .key("idle", 0)
                    .yaml(SHORT_FLOWS),
            );
            let (packets, _) = traffic::multiplied(&["http.pcap"], 20, 1_000);
            Wire::on("tap1").send_at(&packets, 5_000);
            live.until("late verdicts are lost", || {
                let stats = live.eve();
                let last = stats
                    .iter()
                    .rev()
                    .find(|record| record["event_type"] == "stats");
                last.is_some_and(|record| {
                    record["stats"]["trafficllm"]["late_lost"]
                        .as_u64()
                        .unwrap_or(0)
                        > 0
                })
            });
            let ran = live.stop().with_plugin();
            for name in [
                "late-file /nowhere/late.json",
                "metrics-file /nowhere/metrics.prom",
            ] {
                let lines = ran.log.lines().filter(|line| line.contains(name)).count();
                // Once, on standard error and in the log.
                assert!(
                    (1..=2).contains(&lines),
                    "{name}: {lines} lines: {}",
                    ran.log
                );
            }
            assert!(!ran.records("flow").is_empty());
        });
    }
}

#[test]
fn a_session_that_ends_is_replaced() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("many.pcap");
        let (packets, flows) = traffic::multiplied(&["http.pcap", "ssh.pcap"], 300, 1_000);
        traffic::write(&path, &packets);
        for mode in ["end-submit", "end-poll"] {
            let setup = Setup::new()
                .key("library", host.shim(folder.path()).display())
                .environment("TLLM_SHIM", mode);
            // The shim ends the process where a session that has ended is used.
            let ran = host::read(&host, &setup, &path).with_plugin();
            let errors = ran.metric("errors_total");
            assert!(
                (1..=flows as u64 / 4).contains(&errors),
                "{mode}: {errors} errors"
            );
            let records = ran.records("flow");
            assert_eq!(records.len(), flows);
            let state = |name: &str| in_state(&records, name);
            // A flow whose submission was the defect can be judged no more; what was under way has failed.
            let (done, lost) = (state("done"), state("failed") + state("unjudged"));
            assert_eq!(done + lost, flows, "{mode}: {records:?}");
            assert!(done * 4 > flows * 3, "{mode}: {done} of {flows} done");
            // The defect is at the fiftieth submission: most are in another session.
            assert!(
                ran.metric("done_total") > 200,
                "{mode}: {}",
                ran.metric("done_total")
            );
            Schema::read().hold(&ran.eve());
        }
    }
}

#[test]
fn a_flow_that_ends_costs_no_session() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("many.pcap");
        let (packets, flows) = traffic::multiplied(&["http.pcap", "ssh.pcap"], 300, 1_000);
        traffic::write(&path, &packets);
        // All of it is under way at once: a session that ended would cost many of them.
        let setup = Setup::new()
            .key("library", host.shim(folder.path()).display())
            .key("queue-flows", 16_384)
            .environment("TLLM_SHIM", "end-flow");
        let ran = host::read(&host, &setup, &path).with_plugin();
        let records = ran.records("flow");
        assert_eq!(records.len(), flows);
        let is_done = |record: &&serde_json::Value| record["trafficllm"]["state"] == "done";
        // The one flow's submissions failed; it may have had a verdict before.
        let done = records.iter().filter(is_done).count();
        let errors = ran.metric("errors_total");
        assert!((flows - 1..=flows).contains(&done), "{done} of {flows}");
        assert!((1..=3).contains(&errors), "{errors} errors");
        Schema::read().hold(&ran.eve());
    }
}

#[test]
fn a_thread_that_hangs_at_the_end_is_left() {
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let setup = Setup::new()
            .key("library", host.shim(folder.path()).display())
            .environment("TLLM_SHIM", "hang");
        let ran = host::read(&host, &setup, &traffic::capture("http.pcap")).with_plugin();
        assert!(ran.log.contains("shim: it hangs"), "{}", ran.log);
        assert_eq!(ran.records("flow").len(), FLOWS);
        Schema::read().hold(&ran.eve());
    }
}

#[test]
fn packets_of_another_layout_end_the_plugin_and_nothing_else() {
    const SAID: &str = "the headers of packets do not stand where this plugin knows them";
    for host in hosts() {
        let folder = tempfile::TempDir::new().unwrap();
        let around = ["before.so", "behind.so"].map(|name| folder.path().join(name));
        host::compile("bend.c", &around[0], &[]);
        host::compile("bend.c", &around[1], &[Path::new("-DBEHIND")]);
        // On one thread, where the plugin sees as many bent packets before the first good one as were bent.
        let bent = |packets: u64| {
            let setup = Setup::new()
                .argument("--runmode=single")
                .around(around.clone())
                .environment("TLLM_BEND", &packets.to_string());
            let ran = host::read(&host, &setup, &traffic::capture("http.pcap"));
            assert!(ran.status.success(), "{}: {}", ran.status, ran.log);
            assert_eq!(ran.records("flow").len(), FLOWS, "{}", ran.log);
            ran
        };
        let with_object = |ran: &Ran| {
            let records = ran.records("flow").into_iter();
            let judged = records.filter(|record| record["trafficllm"]["state"] == "done");
            judged.count()
        };
        // Some odd packets are no reason.
        let ran = bent(limits::LAYOUT_FAILURES_MAX - 1).with_plugin();
        assert!(with_object(&ran) > 0);
        for packets in [limits::LAYOUT_FAILURES_MAX, u64::MAX] {
            let ran = bent(packets);
            assert_said(&ran, &[SAID]);
            assert_eq!(with_object(&ran), 0);
        }
    }
}
