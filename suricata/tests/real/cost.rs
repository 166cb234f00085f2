//! What the plugin costs, on a large capture with and without it, in turns: `tests/suricata.sh --ignored --nocapture cost`.
//!
//! Read at full speed by one thread, so that the thread's own processor time is what a packet costs. The model is asked and never waited
//! for, as on live traffic; it runs on a thread of its own, which is not counted. `TLLM_ROUNDS` says how often (7), `TLLM_FLOWS` on how
//! many flows (24,000), `TLLM_OTHER` the path of another build of the plugin to compare with.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::host::{Live, Setup, hosts};
use crate::traffic;

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    packets_per_second: f64,
    /// Processor time of the packet thread for a packet.
    thread_ns: f64,
    /// How long the packet thread slept, in milliseconds: neither running nor waiting for a processor.
    asleep_ms: f64,
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Processor time and the time of waiting for a processor, in nanoseconds, of the thread that takes packets.
fn thread(pid: i32) -> Option<(u64, u64)> {
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let task = task.ok()?.path();
        if fs::read_to_string(task.join("comm")).ok()?.trim() != "W#01" {
            continue;
        }
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        let mut numbers = times.split(' ').map(|number| number.parse().ok());
        return Some((numbers.next()??, numbers.next()??));
    }
    None
}

fn measure(host: &crate::host::Host, setup: &Setup, capture: &Path, packets: usize) -> Taken {
    let arguments = ["--runmode=single", "-r", capture.to_str().unwrap()].map(str::to_owned);
    let mut live = Live::start(host, setup, &arguments);
    let mut last = (0, 0);
    while live.is_running() {
        last = thread(live.pid()).unwrap_or(last);
        std::thread::sleep(Duration::from_millis(1));
    }
    let ran = live.wait();
    assert!(ran.status.success(), "{}", ran.log);
    let elapsed = ran
        .log
        .split("time elapsed ")
        .nth(1)
        .and_then(|rest| rest.split('s').next());
    let elapsed: f64 = elapsed
        .unwrap_or_else(|| panic!("{}", ran.log))
        .parse()
        .unwrap();
    assert!(
        ran.log.contains(&format!("{packets} packets")),
        "{}",
        ran.log
    );
    Taken {
        packets_per_second: packets as f64 / elapsed,
        thread_ns: last.0 as f64 / packets as f64,
        asleep_ms: elapsed * 1e3 - (last.0 + last.1) as f64 / 1e6,
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "it measures"]
fn cost() {
    let rounds = number("TLLM_ROUNDS", 7);
    for host in hosts() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("large.pcap");
        let captures = ["http.pcap", "ssh.pcap", "smtp.pcap", "dns-tunnel.pcap"];
        let (packets, flows) = traffic::multiplied(&captures, number("TLLM_FLOWS", 24_000), 1_000);
        traffic::write(&path, &packets);
        let room = "flow:\n  memcap: 1gb\n  hash-size: 65536\n  prealloc: 30000\nstream:\n  memcap: 1gb\n  reassembly:\n    memcap: 1gb\n";
        let bare = Setup::new().yaml(room);
        let with = bare.clone().key("offline-wait", 0).key("stop-wait", 0);
        let still = with
            .clone()
            .key("library", host.shim(folder.path()).display())
            .environment("TLLM_SHIM", "hold");
        let rule = "alert ip any any -> any any (msg:\"x\"; trafficllm.label:botnet_detection,Zeus; trafficllm.score:botnet_detection,>=0.999; sid:1;)";
        let mut variants = vec![
            (
                "without the plugin",
                bare.clone().without_plugin().without_eve(),
            ),
            ("with it", with.clone().without_eve()),
            (
                "with it, the model stands still",
                still.clone().without_eve(),
            ),
            ("with it and a rule", with.clone().rules(rule).without_eve()),
            ("without it, EVE", bare.without_plugin()),
            ("with it, EVE", with.clone()),
        ];
        if let Some(other) = std::env::var_os("TLLM_OTHER") {
            let other = Path::new(&other);
            variants.push(("with another", with.plugin(other).without_eve()));
            let still = still.plugin(other).without_eve();
            variants.push(("with another, the model stands still", still));
        }
        let mut taken: HashMap<&str, Vec<Taken>> = HashMap::new();
        for _ in 0..rounds {
            for (name, setup) in &variants {
                let found = measure(&host, setup, &path, packets.len());
                taken.entry(name).or_default().push(found);
            }
        }
        eprintln!(
            "Suricata {}: {} packets of {flows} flows, medians of {rounds} rounds",
            host.version,
            packets.len()
        );
        for (name, _) in &variants {
            let all = &taken[name];
            let base = &taken[if name.ends_with("EVE") {
                variants[4].0
            } else {
                variants[0].0
            }];
            let more = median(
                all.iter()
                    .zip(base)
                    .map(|(with, without)| with.thread_ns - without.thread_ns),
            );
            let rate = median(
                all.iter()
                    .zip(base)
                    .map(|(with, without)| with.packets_per_second / without.packets_per_second),
            );
            eprintln!(
                "{name:35} {:9.0} packets/s ({rate:.3} of that without)  {:6.0} ns of the packet thread a packet ({more:+.0})  asleep {:4.0} ms",
                median(all.iter().map(|taken| taken.packets_per_second)),
                median(all.iter().map(|taken| taken.thread_ns)),
                median(all.iter().map(|taken| taken.asleep_ms)),
            );
        }
    }
}
