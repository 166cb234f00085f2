//! Bundles as files: round trips, what is written, what a folder may hold.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod common;

use std::fs;

use common::{ADAPTER, Parts};
use trafficllm_model::{Bundle, Manifest, ModelError};

fn built() -> Bundle {
    let parts = Parts::sound();
    let manifest: Manifest = serde_json::from_value(parts.manifest.clone()).unwrap();
    Bundle::build(manifest, parts.files).unwrap()
}

#[test]
fn both_forms_come_back_with_the_same_id_and_files() {
    let bundle = built();
    let folder = tempfile::tempdir().unwrap();
    let (packed, directory) = (folder.path().join("m.tllm"), folder.path().join("m"));
    bundle.write_packed(&packed).unwrap();
    bundle.write_directory(&directory).unwrap();
    assert!(!folder.path().join("m.tllm.partial").exists());
    for path in [packed, directory] {
        let read = Bundle::open(&path).unwrap();
        assert_eq!(read.id(), bundle.id());
        assert_eq!(read.manifest(), bundle.manifest());
        assert_eq!(read.manifest_bytes(), bundle.manifest_bytes());
        for name in bundle.manifest().files.keys() {
            assert_eq!(read.file(name).unwrap(), bundle.file(name).unwrap());
        }
        assert_eq!(read.to_packed().unwrap(), bundle.to_packed().unwrap());
    }
}

#[test]
fn packing_follows_the_described_format_and_repeats() {
    let bundle = built();
    let mut entries = vec![("bundle.json", bundle.manifest_bytes())];
    entries.extend(
        bundle
            .manifest()
            .files
            .keys()
            .map(|name| (name.as_str(), bundle.file(name).unwrap())),
    );
    assert_eq!(bundle.to_packed().unwrap(), common::pack(&entries));
    assert_eq!(bundle.to_packed().unwrap(), built().to_packed().unwrap());
}

#[test]
fn the_id_is_the_start_of_the_manifests_hash() {
    let bundle = built();
    assert_eq!(bundle.id(), &common::sha256(bundle.manifest_bytes())[..16]);
}

#[test]
fn build_fills_in_sizes_and_hashes() {
    let parts = Parts::sound();
    let mut manifest: Manifest = serde_json::from_value(parts.manifest.clone()).unwrap();
    manifest.files.clear();
    for reference in [&mut manifest.base, &mut manifest.tokenizer] {
        reference.sha256.clear();
    }
    manifest.tasks[0].adapter.sha256 = "0".repeat(64);
    assert_eq!(
        Bundle::build(manifest, parts.files).unwrap().manifest(),
        built().manifest()
    );
}

#[test]
fn build_refuses_a_reference_to_nothing() {
    let mut parts = Parts::sound();
    let manifest: Manifest = serde_json::from_value(parts.manifest.clone()).unwrap();
    parts.files.remove(ADAPTER);
    let error = Bundle::build(manifest, parts.files)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tasks[0].adapter.file: expected a file listed in `files`"),
        "{error}"
    );
}

#[test]
fn a_folder_is_held_to_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    built().write_directory(folder.path()).unwrap();
    fs::write(folder.path().join("notes.txt"), "not listed, not read").unwrap();
    let bundle = Bundle::open(folder.path()).unwrap();
    assert!(matches!(
        bundle.file("notes.txt"),
        Err(ModelError::Missing { .. })
    ));

    let tokenizer = folder.path().join("tokenizer.json");
    fs::write(&tokenizer, "[]").unwrap();
    let error = Bundle::open(folder.path()).unwrap_err();
    assert!(matches!(error, ModelError::Hash { file, .. } if file == "tokenizer.json"));
    fs::write(&tokenizer, "{} ").unwrap();
    let error = Bundle::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("file size: expected at most 2, found 3"),
        "{error}"
    );
    fs::write(&tokenizer, "{").unwrap();
    let error = Bundle::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.json: size in bytes: expected 2, found 1"),
        "{error}"
    );
    fs::remove_file(&tokenizer).unwrap();
    assert!(matches!(
        Bundle::open(folder.path()),
        Err(ModelError::Io { .. })
    ));
    fs::create_dir(&tokenizer).unwrap();
    let error = Bundle::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("expected a regular file"), "{error}");
}

#[test]
fn a_folder_without_a_manifest_and_a_missing_path_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = Bundle::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("bundle.json"), "{error}");
    assert!(matches!(
        Bundle::open(&folder.path().join("none")),
        Err(ModelError::Io {
            operation: "open",
            ..
        })
    ));
}

#[test]
fn a_compiled_in_bundle_is_borrowed() {
    let bytes: &'static [u8] = Box::leak(built().to_packed().unwrap().into_boxed_slice());
    let bundle = Bundle::from_bytes(bytes).unwrap();
    let base = bundle.file("base.gguf").unwrap();
    assert!(bytes.as_ptr_range().contains(&base.as_ptr()));
}
