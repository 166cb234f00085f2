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
