//! As a service: forked, without privileges, in Landlock, with rules and models loaded again.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::host::{Live, Ran, Setup, hosts, send_signal};
use crate::network::{Wire, apart, pair};
use crate::records::Schema;
use crate::traffic::{self, Packet};

/// A line of /proc/PID/status.
fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name}: {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// The names of a process's threads.
fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// A process that is no child of the test, and does not outlive it.
struct KilledAtEnd(i32);

impl Drop for KilledAtEnd {
    fn drop(&mut self) {
        if Path::new(&format!("/proc/{}/exe", self.0)).exists() {
            // SAFETY: numbers.
            unsafe { libc::kill(self.0, libc::SIGKILL) };
        }
    }
}

/// Whether the kernel has Landlock: it tells its version.
fn has_landlock() -> bool {
    const CREATE_RULESET: i64 = 444;
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes nothing and makes nothing.
    let version =
        unsafe { libc::syscall(CREATE_RULESET, std::ptr::null::<u8>(), 0_usize, VERSION) };
    version >= 1
}

fn http() -> Vec<Packet> {
    traffic::read(&traffic::capture("http.pcap"))
}

/// The bundle that is compiled in, as a file.
fn bundle() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/bundle/default.tllm")
}

/// Short enough that flows end within a test.
pub(crate) const SHORT_FLOWS: &str = "\
flow-timeouts:
  default: {new: 2, established: 3, closed: 1}
  tcp: {new: 2, established: 3, closed: 1}
  udp: {new: 2, established: 3}
  icmp: {new: 2, established: 3}
";

/// Verdicts of botnet_detection, whatever it says, once per flow.
const SCORE_RULE: &str = "alert ip any any -> any any (msg:\"judged\"; trafficllm.score:botnet_detection,>=0.0; \
                          threshold: type limit, track by_flow, count 1, seconds 3600; sid:1;)";

#[test]
fn a_service_without_privileges_judges_and_loads_anew() {
    for host in hosts() {
        apart(|| {
            pair("tap0", "tap1");
            let shared = tempfile::TempDir::new().unwrap();
            let link = shared.path().join("bundle.tllm");
            let second = shared.path().join("second.tllm");
            fs::copy(bundle(), shared.path().join("first.tllm")).unwrap();
            fs::copy(bundle(), &second).unwrap();
            std::os::unix::fs::symlink("first.tllm", &link).unwrap();
            for path in [shared.path(), &second, &shared.path().join("first.tllm")] {
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                    .unwrap();
            }
            let security = format!(
                "run-as:\n  user: nobody\n  group: nogroup\n\
                 security:\n  limit-noproc: true\n  landlock:\n    enabled: yes\n    directories:\n\
                 \x20     write: [/tmp]\n      read: [/usr, /etc, /proc, {}, {}]\n",
                shared.path().display(),
                host.library().parent().unwrap().display(),
            );
            let setup = Setup::new()
                .key("bundle", link.display())
                // Rule reloads alone look for another bundle.
                .key("reload-interval", 0)
                .rules(SCORE_RULE)
                .yaml(SHORT_FLOWS)
                .yaml(&security);
            // The process that is started forks, and ends.
            let mut first = Live::start(
                &host,
                &setup,
                &["-D".to_owned(), "--af-packet=tap0".to_owned()],
            );
            first.until("the daemon is at work", || {
                first.log().contains("Engine started")
            });
            let pid: i32 = fs::read_to_string(first.path().join("pid"))
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            assert_ne!(pid, first.pid());
            let _end = KilledAtEnd(pid);
            first.until("the first process has ended", || {
                fs::read_to_string(format!("/proc/{}/stat", first.pid()))
                    .is_ok_and(|text| text.contains(") Z "))
            });
            assert!(!first.is_running());
            assert!(
                first.log().contains("trafficllm: libtrafficllm "),
                "{}",
                first.log()
            );

            let nobody = Command::new("id").args(["-u", "nobody"]).output().unwrap();
            let nobody = String::from_utf8(nobody.stdout).unwrap().trim().to_owned();
            assert!(
                status(pid, "Uid").split(' ').all(|id| id == nobody),
                "{}",
                status(pid, "Uid")
            );
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let processes = limits
                .lines()
                .find(|line| line.starts_with("Max processes"))
                .unwrap();
            assert_eq!(
                processes.split_whitespace().nth(2),
                Some("0"),
                "limit-noproc: {processes}"
            );
            let names = threads(pid);
            assert!(
                names.iter().any(|name| name == "trafficllm"),
                "the plugin's thread lives in the child: {names:?}"
            );
            assert!(
                names
                    .iter()
                    .filter(|name| name.starts_with("trafficllm") || name.starts_with("tllm"))
                    .count()
                    > 1,
                "{names:?}"
            );

            let wire = Wire::on("tap1");
            let last_sent = Cell::new(None);
            // Again after a while: on a machine that has other work, flows may end before their verdicts come.
            let send = || {
                let is_recent = |sent: Instant| sent.elapsed() < Duration::from_secs(10);
                if !last_sent.get().is_some_and(is_recent) {
                    wire.send_at(&http(), 2_000);
                    last_sent.set(Some(Instant::now()));
                }
            };
            send();
            // Long flows, slowly: there are packets after the verdict that an alert can be on.
            wire.send_at(&traffic::read(&traffic::capture("ssh.pcap")), 100);
            let judged = |live: &Live| {
                live.eve()
                    .iter()
                    .filter(|record| record["trafficllm"]["state"] == "done")
                    .count()
            };
            first.until("verdicts come", || {
                send();
                judged(&first) >= 10
            });
            let before = judged(&first);
            assert_eq!(first.metric("generation"), 1);

            // Rules are loaded again; the bundle is the same.
            let reload = |count: usize| {
                send_signal(pid, libc::SIGUSR2);
                first.until("rules are loaded again", || {
                    first.log().matches("rule reload complete").count() == count
                });
            };
            reload(1);
            std::thread::sleep(Duration::from_millis(1_500));
            assert_eq!(first.metric("reloads_total"), 0);
            // Another bundle behind the link takes over with the rules.
            fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("second.tllm", &link).unwrap();
            reload(2);
            first.until("the other bundle has taken over", || {
                first.metric("reloads_total") == 1
            });
            assert_eq!(first.metric("generation"), 2);
            last_sent.set(None);
            let second_model = |live: &Live| {
                live.eve()
                    .iter()
                    .any(|record| record["trafficllm"]["generation"] == 2)
            };
            first.until("verdicts of the second model come", || {
                send();
                second_model(&first) && judged(&first) > before
            });

            // A bundle that everybody may read, but not who is in Landlock: the second model goes on.
            if has_landlock() {
                let outside = tempfile::TempDir::new_in("/var/tmp").unwrap();
                let third = outside.path().join("third.tllm");
                fs::copy(bundle(), &third).unwrap();
                for path in [outside.path(), &third] {
                    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                        .unwrap();
                }
                fs::remove_file(&link).unwrap();
                std::os::unix::fs::symlink(&third, &link).unwrap();
                reload(3);
                first.until("the bundle outside is refused", || {
                    first.metric("reload_failures_total") == 1
                });
                assert_eq!(first.metric("generation"), 2);
                assert!(first.log().contains("Permission denied"), "{}", first.log());
            } else {
                eprintln!("SKIPPED: this kernel has no Landlock");
            }

            send_signal(pid, libc::SIGTERM);
            first.until("the daemon has ended", || {
                !Path::new(&format!("/proc/{pid}")).exists()
            });
            let ran = first.wait();
            assert!(ran.records("alert").len() >= 2, "{}", ran.log);
            assert!(ran.metric("done_total") > 0 && ran.metric("errors_total") == 0);
            assert!(!ran.log.contains("disabled"), "{}", ran.log);
            hold_records(&ran);
        });
    }
}

/// Every flow has an object that the schema allows, as has every late line.
pub(crate) fn hold_records(ran: &Ran) {
    let schema = Schema::read();
    let flows = ran.records("flow");
    assert!(!flows.is_empty(), "{}", ran.log);
    assert!(
        flows
            .iter()
            .all(|record| record.get("trafficllm").is_some()),
        "a flow without the object"
    );
    schema.hold(&ran.eve());
    schema.hold(&ran.late());
}
