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
    let mut names: Vec<String> = objects
        .iter()
        .map(|object| format!("{} {}", object["type"], object["id"]))
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), objects.len(), "an object twice");
    // Each panel has a reference of its name, and each visualization a panel.
    let dashboard = objects.iter().find(|object| object["type"] == "dashboard");
    let dashboard = dashboard.unwrap();
    let panels = dashboard["attributes"]["panelsJSON"].as_str().unwrap();
    let panels: Vec<serde_json::Value> = serde_json::from_str(panels).unwrap();
    let references = dashboard["references"].as_array().unwrap();
    assert_eq!(panels.len(), references.len());
    for panel in &panels {
        let name = format!(
            "{}:{}",
            panel["panelIndex"].as_str().unwrap(),
            panel["panelRefName"].as_str().unwrap()
        );
        let is_there = references
            .iter()
            .any(|reference| reference["name"] == name.as_str());
        assert!(is_there, "no reference {name}");
    }
    let kinds = objects
        .iter()
        .filter(|object| object["type"] == "visualization");
    assert_eq!(kinds.count(), panels.len());
    let schema: serde_json::Value =
        serde_json::from_str(&file("schema/trafficllm.schema.json")).unwrap();
    for object in &objects {
        for reference in object["references"].as_array().unwrap() {
            let is_there = objects
                .iter()
                .any(|other| other["id"] == reference["id"] && other["type"] == reference["type"]);
            assert!(is_there, "{reference} is no object");
        }
        // JSON that stands in texts.
        for place in [
            "/attributes/visState",
            "/attributes/panelsJSON",
            "/attributes/optionsJSON",
            "/attributes/kibanaSavedObjectMeta/searchSourceJSON",
        ] {
            if let Some(text) = object.pointer(place) {
                let inside = serde_json::from_str::<serde_json::Value>(text.as_str().unwrap());
                assert!(inside.is_ok(), "{place} of {}: {inside:?}", object["id"]);
            }
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

/// The searches of the README beside the dashboards, and the program's own queries: every member that they name is one of the schema's.
#[test]
fn the_searches_use_fields_that_there_are() {
    let schema: serde_json::Value =
        serde_json::from_str(&file("schema/trafficllm.schema.json")).unwrap();
    let mut found = 0;
    for text in [file("dashboards/README.md"), file("dashboards/make.py")] {
        for part in text.split("trafficllm.").skip(1) {
            let name: String = part
                .chars()
                .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                .collect();
            if name.is_empty() {
                continue;
            }
            let is_known = schema["properties"].get(&name).is_some();
            let task = ["_label", "_score", "_abstained"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            // Members of a task are those of one that the README's example names.
            let is_of_task =
                task.is_some_and(|task| file("README.md").contains(&format!("{task}_label")));
            assert!(is_known || is_of_task, "{name} is no member of the object");
            found += 1;
        }
    }
    assert!(found > 10, "{found} fields");
}

/// `kibana.ndjson` is what `make.py` writes, where there is a Python to run it; `TLLM_REQUIRE_SURICATA=1` asks for one.
#[test]
fn the_dashboard_is_the_program_s() {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("make.py"), file("dashboards/make.py")).unwrap();
    let run = std::process::Command::new("python3")
        .arg(folder.path().join("make.py"))
        .status();
    let status = match run {
        Ok(status) => status,
        Err(error) => {
            let is_required =
                std::env::var_os("TLLM_REQUIRE_SURICATA").is_some_and(|value| value == "1");
            assert!(!is_required, "python3: {error}");
            eprintln!("SKIPPED: kibana.ndjson was not held to make.py: python3: {error}");
            return;
        }
    };
    assert!(status.success());
    let made = std::fs::read_to_string(folder.path().join("kibana.ndjson")).unwrap();
    assert!(
        made == file("dashboards/kibana.ndjson"),
        "kibana.ndjson is older than make.py: run it"
    );
}
