//! Packets as they come, on an interface.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::{SHORT_FLOWS, hold_records};
use crate::host::{Host, Live, Ran, Setup, hosts};
use crate::network::{Wire, apart, pair};
use crate::traffic::{self, Packet};

const CAPTURES: [&str; 4] = ["http.pcap", "ssh.pcap", "smtp.pcap", "dns-tunnel.pcap"];

/// Two workers on one interface.
pub(crate) const WORKERS: &str = "\
runmode: workers
af-packet:
  - interface: tap0
    threads: 2
    cluster-id: 98
    cluster-type: cluster_flow
    ring-size: 8192
";

/// Time enough to be judged before they end, also on a machine that has other work.
const RESTING_FLOWS: &str = "\
flow-timeouts:
  default: {new: 10, established: 10, closed: 10}
  tcp: {new: 10, established: 10, closed: 10}
  udp: {new: 10, established: 10}
  icmp: {new: 10, established: 10}
";

pub(crate) fn live(host: &Host, setup: &Setup) -> Live {
    Live::capture(host, &setup.clone().yaml(WORKERS), &["--af-packet=tap0"])
}

/// What Suricata itself counted last.
fn engine_stat(ran: &Ran, path: &str) -> u64 {
    let stats = ran.records("stats");
    stats.last().unwrap()["stats"]
        .pointer(path)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no statistic {path}"))
}

/// Fails unless every packet that was sent was taken.
fn assert_all_taken(ran: &Ran, sent: usize) {
    assert_eq!(
        engine_stat(ran, "/capture/kernel_drops"),
        0,
        "Suricata was too slow"
    );
    assert_eq!(engine_stat(ran, "/decoder/pkts"), sent as u64);
}

fn flow_records(live: &Live) -> usize {
    live.eve()
        .iter()
        .filter(|record| record["event_type"] == "flow")
        .count()
}

fn flow_ids(records: &[Value]) -> BTreeSet<u64> {
    let ids: BTreeSet<u64> = records
        .iter()
        .map(|record| record["flow_id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), records.len(), "a flow twice");
    ids
}

#[test]
fn workers_judge_what_comes() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let live = live(&host, &Setup::new().key("idle", 300).yaml(RESTING_FLOWS));
            let (packets, flows) = traffic::multiplied(&CAPTURES, 400, 1_000);
            Wire::on("tap1").send_at(&packets, 4_000);
            live.until("all flows have a record", || flow_records(&live) == flows);
            let ran = live.stop().with_plugin();
            assert_all_taken(&ran, packets.len());
            assert!(ran.log.contains("W: 2"), "{}", ran.log);
            let (records, late) = (ran.records("flow"), ran.late());
            let mut states = BTreeMap::new();
            for record in &records {
                let object = &record["trafficllm"];
                let count = |name: &str| record["flow"][name].as_u64().unwrap();
                let in_flow = count("pkts_toserver") + count("pkts_toclient");
                if object["final"] == true {
                    assert_eq!(object["packets"], in_flow.min(20), "{record}");
                }
                let state = object["state"].as_str().unwrap().to_owned();
                *states.entry((state, object["final"] == true)).or_insert(0) += 1;
            }
            let judged = states.get(&("done".to_owned(), true)).copied().unwrap_or(0);
            eprintln!(
                "Suricata {}: {flows} live flows: {states:?}, {} late",
                host.version,
                late.len()
            );
            // A flow rests for longer than `idle` before Suricata ends it: hardly one comes late.
            assert!(judged * 10 >= flows * 9, "{states:?}");
            assert_eq!(
                (ran.metric("flows_total"), ran.metric("flows_active")),
                (flows as u64, 0)
            );
            assert_eq!(
                (
                    ran.metric("untracked_total"),
                    ran.metric("errors_total"),
                    ran.metric("shed_total")
                ),
                (0, 0, 0)
            );
            // What the record lacks stands in the late file.
            let late = flow_ids(&late);
            for record in &records {
                if record["trafficllm"]["final"] != true {
                    assert!(
                        late.contains(&record["flow_id"].as_u64().unwrap()),
                        "{record}"
                    );
                }
            }
            hold_records(&ran);
        });
    }
}

#[test]
fn verdicts_after_the_record_come_in_the_late_file() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            // Nothing is judged before a flow is whole or ends.
            let setup = Setup::new()
                .key("idle", 0)
                .key("packets", 0)
                .yaml(SHORT_FLOWS);
            let live = live(&host, &setup);
            let (packets, flows) = traffic::multiplied(&["http.pcap", "ssh.pcap"], 200, 1_000);
            Wire::on("tap1").send_at(&packets, 10_000);
            // More than there are, where the sender was held up for so long that one became two.
            live.until("all flows have a record", || flow_records(&live) >= flows);
            live.until("late verdicts come", || {
                live.metric("flows_active") == 0 && live.metric("late_total") > 0
            });
            let ran = live.stop().with_plugin();
            let (late, records) = (ran.late(), ran.records("flow"));
            let (known, unknown): (Vec<Value>, Vec<Value>) = records
                .into_iter()
                .partition(|record| record["trafficllm"]["final"] == true);
            assert!(!known.is_empty() && !unknown.is_empty());
            let mut by_id: BTreeMap<u64, &Value> = BTreeMap::new();
            for line in &late {
                assert_eq!(
                    (&line["event_type"], &line["trafficllm"]["final"]),
                    (&"trafficllm".into(), &true.into()),
                    "{line}"
                );
                let is_new = by_id
                    .insert(line["flow_id"].as_u64().unwrap(), line)
                    .is_none();
                assert!(is_new, "twice: {line}");
            }
            assert_eq!(
                by_id.keys().copied().collect::<BTreeSet<_>>(),
                flow_ids(&unknown),
                "late verdicts are of the flows whose record has none"
            );
            for record in &unknown {
                let line = by_id[&record["flow_id"].as_u64().unwrap()];
                assert!(
                    ["pending", "unjudged"]
                        .contains(&record["trafficllm"]["state"].as_str().unwrap()),
                    "{record}"
                );
                for name in ["src_ip", "src_port", "dest_ip", "dest_port", "proto"] {
                    assert_eq!(record[name], line[name], "{name}");
                }
            }
            assert_eq!(ran.metric("late_total"), late.len() as u64);
            assert_eq!(ran.metric("late_lost_total"), 0);
            hold_records(&ran);
        });
    }
}

/// What the threads that take packets were doing, in so many looks.
#[derive(Debug, Default)]
struct Seen {
    looks: u32,
    /// Asleep for another thread, or for a time.
    waiting: u32,
    /// The same of the plugin's own thread, which does little else: it shows that waiting is seen.
    others_waiting: u32,
}

impl Seen {
    /// `None` where the system does not tell it.
    fn look(&mut self, pid: i32) -> Option<()> {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let task = task.ok()?.path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            let is_other = name.trim() == "trafficllm";
            if !is_other && !name.starts_with("W#") {
                continue;
            }
            let call = std::fs::read_to_string(task.join("syscall")).ok()?;
            let number = call.split(' ').next()?.trim().parse::<i64>().ok();
            // Where they have nothing to do they wait in poll.
            let waits = [
                libc::SYS_futex,
                libc::SYS_nanosleep,
                libc::SYS_clock_nanosleep,
            ];
            let waits = u32::from(number.is_some_and(|number| waits.contains(&number)));
            if is_other {
                self.others_waiting += waits;
            } else {
                self.looks += 1;
                self.waiting += waits;
            }
        }
        Some(())
    }
}

/// The same packets at the same rate without the plugin, with a model at work, and with one that stands still for seconds.
#[test]
fn the_rate_is_the_same_with_a_model_that_stands_still() {
    const PER_SECOND: u64 = 10_000;
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let folder = tempfile::TempDir::new().unwrap();
            let (packets, _) = traffic::multiplied(&CAPTURES, 2_000, 1_000);
            assert!(packets.len() as u64 > 3 * PER_SECOND, "{}", packets.len());
            let rule = "alert ip any any -> any any (msg:\"x\"; trafficllm.score:botnet_detection,>=0.0; \
                        threshold: type limit, track by_flow, count 1, seconds 3600; sid:1;)";
            let with = Setup::new().rules(rule).key("stop-wait", 200);
            let still = with
                .clone()
                .key("library", host.shim(folder.path()).display())
                .environment("TLLM_SHIM", "hold");
            for (name, setup) in [
                ("without the plugin", Setup::new().without_plugin()),
                ("with a model at work", with),
                ("with a model that stands still", still),
            ] {
                let live = live(&host, &setup);
                let mut seen = Seen::default();
                let is_sent = std::sync::atomic::AtomicBool::new(false);
                let started = std::time::Instant::now();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        Wire::on("tap1").send_at(&packets, PER_SECOND);
                        is_sent.store(true, std::sync::atomic::Ordering::Release);
                    });
                    while !is_sent.load(std::sync::atomic::Ordering::Acquire) {
                        if seen.look(live.pid()).is_none() {
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
                let sent = started.elapsed();
                live.until("all packets are taken", || {
                    let stats = live.eve();
                    let mut stats = stats.iter().rev();
                    let last = stats.find(|record| record["event_type"] == "stats");
                    last.and_then(|record| record["stats"].pointer("/decoder/pkts")?.as_u64())
                        >= Some(packets.len() as u64)
                });
                let ran = live.stop();
                eprintln!(
                    "Suricata {}, {name}: {} packets in {sent:?}, {seen:?}",
                    host.version,
                    packets.len()
                );
                assert_all_taken(&ran, packets.len());
                if seen.looks > 0 {
                    // Suricata's own locks are met now and then.
                    assert!(seen.waiting * 20 <= seen.looks, "{name}: {seen:?}");
                    let has_others = seen.others_waiting > 0;
                    assert_eq!(has_others, name.starts_with("with a"), "{name}: {seen:?}");
                } else {
                    eprintln!("SKIPPED: the system does not tell what a thread waits for");
                }
                if name.ends_with("at work") {
                    assert!(ran.metric("done_total") > 0);
                } else if name.ends_with("still") {
                    let submitted = ran.metric("submitted_total");
                    assert_eq!((ran.metric("done_total"), submitted > 100), (0, true));
                }
            }
        });
    }
}

#[test]
fn a_model_that_stands_still_holds_nothing_up() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let folder = tempfile::TempDir::new().unwrap();
            let release = folder.path().join("release");
            for overload in ["shed", "retry", "pause"] {
                let _ = std::fs::remove_file(&release);
                let setup = Setup::new()
                    .key("library", host.shim(folder.path()).display())
                    .key("queue-flows", 16)
                    .key("overload", overload)
                    .key("idle", 300)
                    .rules("alert ip any any -> any any (msg:\"x\"; trafficllm.score:botnet_detection,>=0.0; sid:1;)")
                    .environment("TLLM_SHIM", "hold")
                    .environment("TLLM_SHIM_RELEASE", release.to_str().unwrap())
                    .yaml(SHORT_FLOWS);
                let live = live(&host, &setup);
                let (packets, flows) = traffic::multiplied(&CAPTURES, 300, 1_000);
                let wire = Wire::on("tap1");
                wire.send_at(&packets, 10_000);
                // The worker stands in its first batch all the while, and every flow has its record.
                live.until("all flows have a record", || flow_records(&live) >= flows);
                live.until("metrics are written", || {
                    live.metric("flows_total") >= flows as u64
                });
                assert_eq!(live.metric("done_total"), 0, "{overload}");
                assert!(
                    live.metric("shed_total") > 0 || live.metric("untracked_total") > 0,
                    "{overload}: a queue of 16 is full"
                );
                assert!(live.metric("queue") <= 16);
                let states: BTreeSet<String> = live
                    .eve()
                    .iter()
                    .filter(|record| record["event_type"] == "flow")
                    .map(|record| record["trafficllm"]["state"].as_str().unwrap().to_owned())
                    .collect();
                assert!(
                    states
                        .iter()
                        .all(|state| ["pending", "shed", "unjudged", "untracked"]
                            .contains(&state.as_str())),
                    "{overload}: {states:?}"
                );
                // The model goes on: so do the verdicts.
                std::fs::write(&release, "").unwrap();
                let next = std::cell::Cell::new(flows);
                live.until("verdicts come again", || {
                    let first = next.replace(next.get() + 20);
                    wire.send_at(
                        &traffic::multiplied_from(&CAPTURES, first..first + 20, 1_000),
                        1_000,
                    );
                    live.metric("done_total") > 16
                });
                live.until("every place is free again", || {
                    live.metric("flows_active") == 0
                });
                let ran = live.stop().with_plugin();
                assert_eq!(engine_stat(&ran, "/capture/kernel_drops"), 0);
                hold_records(&ran);
            }
        });
    }
}

#[test]
fn suricata_ends_while_the_model_stands_still() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let folder = tempfile::TempDir::new().unwrap();
            let setup = Setup::new()
                .key("library", host.shim(folder.path()).display())
                .key("stop-wait", 200)
                .environment("TLLM_SHIM", "hold")
                .yaml(SHORT_FLOWS);
            let live = live(&host, &setup);
            let (packets, _) = traffic::multiplied(&CAPTURES, 100, 1_000);
            Wire::on("tap1").send_at(&packets, 10_000);
            live.until("the engine has flows", || {
                live.metric("submitted_total") > 50
            });
            let ran = live.stop().with_plugin();
            assert_eq!(ran.metric("done_total"), 0);
            hold_records(&ran);
        });
    }
}

#[test]
fn an_end_under_load_is_an_end() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let (packets, _) = traffic::multiplied(&CAPTURES, 1_000, 100);
            for round in 0..4_u64 {
                let live = live(
                    &host,
                    &Setup::new()
                        .key("packets", 2)
                        .key("idle", 100)
                        .yaml(SHORT_FLOWS),
                );
                let is_over = std::sync::atomic::AtomicBool::new(false);
                let wire = Wire::on("tap1");
                let ran = std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut rest: &[Packet] = &packets;
                        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                            let (now, later) = rest.split_at(rest.len().min(100));
                            wire.send_at(now, 20_000);
                            rest = if later.is_empty() { &packets } else { later };
                        }
                    });
                    live.until("verdicts come", || live.metric("done_total") > 0);
                    std::thread::sleep(Duration::from_millis(300 * round));
                    let ran = live.stop();
                    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
                    ran
                });
                let ran = ran.with_plugin();
                assert!(!ran.log.contains("panicked"), "{}", ran.log);
                // Everything that was asked came to some end, and was written.
                assert_eq!(ran.metric("queue"), 0);
                assert_eq!(ran.metric("late_total"), ran.late().len() as u64);
                hold_records(&ran);
            }
        });
    }
}
