//! The two small bundles of the C programs and of the fuzz target: random weights, quick to open. They are files, since C reads them;
//! this test holds them to their source.
//!
//! `UPDATE_EXPECT=1 cargo test -p trafficllm-ffi --test bundles` writes them anew.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[allow(
    unexpected_cfgs,
    reason = "its parts that need the command are not for this crate"
)]
#[path = "../../runtime/tests/common/mod.rs"]
mod common;

use common::small_bundle;
use trafficllm_model::{Bundle, Manifest};

/// The other bundle: another identity, other labels, and a task by another name.
fn other(manifest: &mut Manifest) {
    manifest.id = "other-1".to_owned();
    for task in &mut manifest.tasks {
        task.threshold = 0.0;
        for label in &mut task.labels {
            label.insert_str(0, "other ");
        }
    }
    manifest.tasks[1].name = "third_task".to_owned();
    for test in &mut manifest.self_test {
        test.label.insert_str(0, "other ");
    }
}

fn hold(name: &str, bundle: &Bundle) {
    let path = common::repository().join("tests/c/bundles").join(name);
    let made = bundle.to_packed().unwrap();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read(&path).unwrap();
    assert!(
        found == made,
        "{} is not what the source makes: UPDATE_EXPECT=1 writes it anew",
        path.display()
    );
}

#[test]
fn the_small_bundles_are_those_of_the_source() {
    hold("small.tllm", &small_bundle(|_| ()));
    hold("other.tllm", &small_bundle(other));
}
