//! The README says of every key what it is, and of every counter that there is one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::Path;

use trafficllm_suricata::config;
use trafficllm_suricata::counters::SHOWN;

#[test]
fn every_key_is_in_the_table() {
    let mut table = config::markdown();
    if !table.ends_with('\n') {
        table.push('\n');
    }
    hold("keys", &table);
}

#[test]
fn every_counter_is_in_the_table() {
    let mut table = String::from("| counter | |\n|---|---|\n");
    for counter in SHOWN {
        let suffix = if counter.only_grows { "" } else { " (a level)" };
        table += &format!(
            "| `{}` | {}{suffix} |\n",
            counter.name.to_str().unwrap(),
            counter.help
        );
    }
    hold("counters", &table);
}

/// Holds what stands between two marks of the README to what it should be, or writes it.
fn hold(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (
        format!("<!-- {name}: made by tests/readme.rs -->\n"),
        format!("<!-- end of {name} -->\n"),
    );
    let (before, rest) = text
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no mark {begin}"));
    let (found, after) = rest
        .split_once(&end)
        .unwrap_or_else(|| panic!("no mark {end}"));
    if found == made {
        return;
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, format!("{before}{begin}{made}{end}{after}")).unwrap();
        return;
    }
    panic!(
        "README.md, {name}: expected\n{made}\nfound\n{found}\nUPDATE_EXPECT=1 cargo test -p trafficllm-suricata --test readme -- --test-threads=1 writes it"
    );
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn the_example_of_a_configuration_has_only_keys_that_there_are() {
    let text = file("suricata.yaml");
    let (_, block) = text.split_once("\ntrafficllm:\n").unwrap();
    let mut found = 0;
    for line in block.lines() {
        let plain = line.trim().trim_start_matches("# ");
        let key = plain
            .split_once(": ")
            .map(|(key, _)| key)
            .filter(|key| !key.contains(' '));
        if let Some(key) = key {
            assert!(config::KEYS.iter().any(|known| known.name == key), "{line}");
            found += 1;
        }
    }
    assert!(found >= 5, "{found} keys");
}

#[test]
fn the_dashboard_is_whole_and_uses_fields_that_there_are() {
    let text = file("dashboards/kibana.ndjson");
    let objects: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(objects.len() > 5);
    let schema: serde_json::Value =
        serde_json::from_str(&file("schema/trafficllm.schema.json")).unwrap();
    for object in &objects {
        for reference in object["references"].as_array().unwrap() {
            let is_there = objects
                .iter()
                .any(|other| other["id"] == reference["id"] && other["type"] == reference["type"]);
            assert!(is_there, "{reference} is no object");
        }
        for part in object.to_string().split("trafficllm.").skip(1) {
            let name: String = part
                .chars()
                .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                .collect();
            let is_known = schema["properties"].get(&name).is_some();
            let is_of_task = ["_label", "_score", "_abstained"]
                .iter()
                .any(|end| name.ends_with(end));
            assert!(is_known || is_of_task, "{name} is no member of the object");
        }
    }
}
