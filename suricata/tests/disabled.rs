//! Whatever is wrong with the plugin's configuration, Suricata says so in one line and goes on without it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::path::Path;

use common::{Run, capture, trees};
use tempfile::TempDir;

#[test]
fn suricata_goes_on_without_the_plugin() {
    for tree in trees() {
        let folder = TempDir::new().unwrap();
        let broken = folder.path().join("bundle");
        std::fs::write(&broken, b"no bundle").unwrap();
        for (run, message) in [
            (
                Run::new().without_block(),
                "suricata.yaml has no block trafficllm",
            ),
            (
                Run::new().key("enabled", "no"),
                "disabled by trafficllm.enabled",
            ),
            (
                Run::new().key("library", "/nowhere.so"),
                "there is no such file",
            ),
            (
                Run::new().key("library", broken.display()),
                "libtrafficllm cannot be loaded",
            ),
            (Run::new().key("bundle", "/nowhere"), "bundle /nowhere: "),
            (Run::new().key("bundle", broken.display()), "bundle /"),
            (
                Run::new().key("tasks", "nothing"),
                "unknown task \"nothing\"",
            ),
            (Run::new().key("worker", 1), "trafficllm.worker is no key"),
            (
                Run::new().key("workers", 0),
                "trafficllm.workers: expected a whole number from 1 to 256",
            ),
            (
                Run::new().key("min-score", 2),
                "trafficllm.min-score: expected a number from 0 to 1",
            ),
            (
                Run::new().key("memory-budget", "1kb"),
                "trafficllm.memory-budget: expected 0 or",
            ),
            (
                Run::new().key("overload", "block"),
                "expected one of shed, retry, pause",
            ),
            (
                Run::new().key("eve-types", "[stats]"),
                "trafficllm.eve-types: expected a list of",
            ),
            (
                Run::new().key("workers", "{a: 1}"),
                "trafficllm.workers: expected",
            ),
            (Run::new().key("cpu", "abacus"), "abacus"),
        ] {
            let path = capture("ssh.pcap", Path::new(""));
            let outcomes = run.read(&tree, &path);
            let what = format!("{} {message}\n{}", tree.display(), outcomes.log);
            assert!(
                outcomes.is_success && outcomes.log.contains(message),
                "{what}"
            );
            let lines = outcomes
                .log
                .lines()
                .filter(|line| line.contains("trafficllm: "));
            let lines = lines.filter(|line| !line.contains("Initializing"));
            assert_eq!(lines.count(), 1, "{what}");
            let flows = outcomes.of("flow");
            assert_eq!(flows.len(), 2, "{what}");
            assert!(
                flows.iter().all(|flow| flow.get("trafficllm").is_none()),
                "{what}"
            );
        }
    }
}
