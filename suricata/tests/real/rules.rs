//! The keywords in rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::host::{self, Ran, Setup, hosts};
use crate::records::{self, Schema, by_key, key_of_line, key_of_record};
use crate::traffic;

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

/// Tasks and labels of the verdicts that do not abstain.
fn answers(verdicts: &Value) -> BTreeSet<(String, String)> {
    let verdicts = verdicts.as_array().unwrap().iter();
    let answered = verdicts.filter(|verdict| verdict["abstained"] == false);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    answered
        .map(|verdict| (text(&verdict["task"]), text(&verdict["label"])))
        .collect()
}

#[test]
fn a_label_rule_alerts_once_per_flow() {
    const EARLY: usize = 8;
    const WHOLE: usize = 20;
    for host in hosts() {
        let folder = TempDir::new().unwrap();
        for name in ["http.pcap", "ssh.pcap", "smtp.pcap"] {
            let capture = traffic::capture(name);
            let packets = traffic::read(&capture);
            // What the model says of the first packets, by the command on captures that end there.
            let mut reached: Vec<(records::Key, Value)> = Vec::new();
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
                for mut line in host.detect(&[&path]) {
                    let key = key_of_line(&line);
                    expected.insert(key.clone(), false);
                    if line["packets"].as_u64().unwrap() >= most as u64 {
                        reached.push((key, line["verdicts"].take()));
                    }
                }
            }
            // The answer that most flows get, whichever the model gives.
            let mut flows_of: BTreeMap<(String, String), usize> = BTreeMap::new();
            for (_, verdicts) in &reached {
                for answer in answers(verdicts) {
                    *flows_of.entry(answer).or_default() += 1;
                }
            }
            let most_given = flows_of.into_iter().max_by_key(|(_, flows)| *flows);
            let (answer, _) = most_given.unwrap_or_else(|| panic!("{name}: no flow is answered"));
            for (key, verdicts) in &reached {
                if answers(verdicts).contains(&answer) {
                    expected.insert(key.clone(), true);
                }
            }
            let (task, label) = answer;
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
