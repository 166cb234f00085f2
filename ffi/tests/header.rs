//! The header, the list of symbols and the layout of structs are committed; these tests hold them to the source.
//!
//! `UPDATE_EXPECT=1 cargo test -p trafficllm-ffi --test header` writes them anew; the difference is what a reviewer looks at, and a
//! changed line that is not new means a new `TLLM_ABI_VERSION`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};

fn ffi() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Holds a committed file to what it should be, or writes it.
fn expect(path: &Path, made: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, made).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    if found != made {
        let line = found.lines().zip(made.lines()).position(|(a, b)| a != b);
        let line = line.unwrap_or_else(|| found.lines().count().min(made.lines().count()));
        panic!(
            "{} is not what the source makes, from line {} on:\n  found    {:?}\n  expected {:?}\n\
             UPDATE_EXPECT=1 cargo test -p trafficllm-ffi --test header writes it anew",
            path.display(),
            line + 1,
            found.lines().nth(line),
            made.lines().nth(line),
        );
    }
}

/// The order in which the header tells things.
const MODULES: [&str; 10] = [
    "status", "library", "log", "config", "model", "engine", "flow", "verdict", "session",
    "capture",
];

fn header() -> String {
    let config = cbindgen::Config::from_file(ffi().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in MODULES {
        builder = builder.with_src(ffi().join("src").join(module).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let conventions = std::fs::read_to_string(ffi().join("conventions.h")).unwrap();
    format!(
        "{conventions}\n{}",
        without_safety(&String::from_utf8(made).unwrap())
    )
}

/// The sections about safety say to Rust what the conventions say to C.
fn without_safety(header: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut is_safety = false;
    for line in header.lines() {
        if line.trim() == "* # Safety" {
            is_safety = true;
            // The blank line before it.
            if kept.last().is_some_and(|last| last.trim() == "*") {
                kept.pop();
            }
        }
        is_safety = is_safety && line.trim() != "*/";
        if !is_safety {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}

#[test]
fn the_header_is_what_the_source_makes() {
    expect(&ffi().join("../include/trafficllm.h"), &header());
}
