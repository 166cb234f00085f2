//! Holds the workspace to the layout that ARCHITECTURE.md describes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Names of what each workspace crate is built from, without what only its tests use.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let arguments = [
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--offline",
    ];
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap().iter();
            let normal = all.filter(|dependency| dependency["kind"].is_null());
            (name_of(package), normal.map(name_of).collect())
        })
        .collect()
}

#[test]
fn the_crates_depend_on_each_other_one_way() {
    let allowed = BTreeMap::from([
        (
            "trafficllm",
            vec![
                "trafficllm-heads",
                "trafficllm-kernels",
                "trafficllm-model",
                "trafficllm-traffic",
            ],
        ),
        ("trafficllm-ffi", vec!["trafficllm"]),
        ("trafficllm-heads", vec![]),
        // What authors of heads build with sees the ABI only.
        ("trafficllm-head-sdk", vec![]),
        ("trafficllm-head-linear", vec!["trafficllm-head-sdk"]),
        ("trafficllm-kernels", vec![]),
        ("trafficllm-model", vec!["trafficllm-kernels"]),
        ("trafficllm-traffic", vec![]),
        (
            "trafficllm-train",
            vec![
                "trafficllm",
                "trafficllm-heads",
                "trafficllm-kernels",
                "trafficllm-model",
                "trafficllm-traffic",
            ],
        ),
        ("trafficllm-tests", vec![]),
        // Only tests use it, and the measuring program to try itself.
        ("trafficllm-cuda-emulator", vec!["trafficllm-kernels"]),
        // The plugin reaches the library through its C ABI, at run time.
        ("trafficllm-suricata", vec![]),
    ]);
    let found = dependencies();
    for (name, allowed) in allowed {
        let ours: Vec<&str> = found[name]
            .iter()
            .map(String::as_str)
            .filter(|other| other.starts_with("trafficllm"))
            .collect();
        let wrong: Vec<&&str> = ours
            .iter()
            .filter(|other| !allowed.contains(other))
            .collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn traffic_sees_no_tensor_and_the_model_no_packet() {
    let found = dependencies();
    let without = |name: &str, foreign: &[&str]| {
        for other in foreign {
            assert!(
                !found[name].contains(*other),
                "{name} must not depend on {other}"
            );
        }
    };
    without(
        "trafficllm-traffic",
        &["safetensors", "candle-core", "candle-nn", "bytemuck"],
    );
    without(
        "trafficllm-model",
        &[
            "pcap-parser",
            "etherparse",
            "flate2",
            "candle-core",
            "candle-nn",
        ],
    );
    without(
        "trafficllm-kernels",
        &[
            "candle-core",
            "candle-nn",
            "serde_json",
            "pcap-parser",
            "etherparse",
        ],
    );
    without(
        "trafficllm",
        &[
            "candle-core",
            "candle-nn",
            "candle-transformers",
            "rayon",
            "tokio",
        ],
    );
}

#[test]
fn only_the_kernels_may_be_unsafe() {
    for lib in [
        "runtime/src/lib.rs",
        "runtime/src/main.rs",
        "runtime/traffic/src/lib.rs",
        "runtime/model/src/lib.rs",
    ] {
        let text = std::fs::read_to_string(repository().join(lib)).unwrap();
        assert!(
            text.lines().any(|line| line == "#![forbid(unsafe_code)]"),
            "{lib}"
        );
    }
}

#[test]
fn wasmtime_comes_only_with_the_feature_that_asks_for_it() {
    let tree = |features: &[&str]| {
        let arguments = ["tree", "--offline", "--edges", "normal", "--prefix", "none"];
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .args(["-p", "trafficllm-heads"])
            .args(features)
            .current_dir(repository())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("trafficllm-heads"));
        ["wasmtime", "cranelift-codegen", "libloading"].map(|name| {
            text.lines()
                .any(|line| line.starts_with(&format!("{name} v")))
        })
    };
    assert_eq!(tree(&[]), [false, false, false]);
    assert_eq!(tree(&["--features", "native"]), [false, false, true]);
    assert_eq!(tree(&["--features", "wasm,pulley"]), [true, false, false]);
    assert_eq!(tree(&["--features", "cranelift"]), [true, true, false]);
}

#[test]
fn only_the_facade_starts_threads_and_only_the_command_reaches_the_terminal() {
    let below = [
        "runtime/traffic/src",
        "runtime/model/src",
        "runtime/kernels/src",
        "runtime/heads/src",
        "plugins/sdk-rust/src",
        "plugins/examples",
    ];
    let mut files: Vec<PathBuf> = below
        .iter()
        .flat_map(|folder| sources(&repository().join(folder)))
        .collect();
    assert!(files.len() > 20, "{files:?}");
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for word in ["thread::spawn", "thread::Builder", "thread::scope", "rayon"] {
            assert!(!code.contains(word), "{}: {word}", file.display());
        }
    }
    let facade = sources(&repository().join("runtime/src")).into_iter();
    files.extend(facade.filter(|file| {
        !file.ends_with("main.rs") && !file.components().any(|part| part.as_os_str() == "cli")
    }));
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            for word in ["println!", "eprintln!", "io::stdout", "io::stderr"] {
                assert!(!line.contains(word), "{}: {line}", file.display());
            }
        }
    }
}

/// Rust files of a folder and the folders in it, without tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == "tests" || name.ends_with("_tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_recorded_captures_are_small_and_of_every_format() {
    let entries = std::fs::read_dir(repository().join("tests/captures")).unwrap();
    let files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    let total: u64 = files
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(total < 300_000, "{total} bytes");
    for extension in ["pcap", "pcapng", "gz", "jsonl"] {
        assert!(
            files
                .iter()
                .any(|file| file.extension().is_some_and(|found| found == extension)),
            "{extension}"
        );
    }
}

#[test]
fn the_members_of_the_workspace_are_those_of_the_design() {
    let found: BTreeSet<String> = dependencies().into_keys().collect();
    let expected = [
        "trafficllm",
        "trafficllm-benches",
        "trafficllm-cuda-emulator",
        "trafficllm-cuda-measure",
        "trafficllm-ffi",
        "trafficllm-head-linear",
        "trafficllm-head-sdk",
        "trafficllm-heads",
        "trafficllm-instructions",
        "trafficllm-kernels",
        "trafficllm-model",
        "trafficllm-suricata",
        "trafficllm-tests",
        "trafficllm-traffic",
        "trafficllm-train",
    ];
    assert_eq!(found, expected.into_iter().map(str::to_owned).collect());
}
