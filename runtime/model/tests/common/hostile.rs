//! The broken bundles of `tests/hostile/bundles`, each with the error that it must get.

#![allow(clippy::unwrap_used, reason = "shared by tests only")]

use serde_json::{Value, json};

use crate::common::{Parts, pack, patch};

#[path = "hostile_contents.rs"]
mod contents;

/// A file name without extension, its bytes, and a part of the error's text.
pub(crate) type Case = (&'static str, Vec<u8>, &'static str);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = packed_cases();
    cases.extend(file_cases());
    cases.extend(manifest_cases());
    cases.extend(raw_manifest_cases());
    cases.extend(label_cases());
    cases.extend(contents::cases());
    cases
}

fn patched(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    patch(&mut bytes, at, new);
    bytes
}

/// The packed index.
fn packed_cases() -> Vec<Case> {
    let small = || pack(&[("bundle.json", b"{}"), ("a", b"xy")]);
    // Entry 0 starts at 16: length, 11 bytes of name, offset at 29, size at 37; entry 1 at 45:
    // length, name, offset at 48, size at 56.
    let one = |name| pack(&[("bundle.json", b"{}"), (name, b"x")]);
    let mut trailing = small();
    trailing.push(0);
    vec![
        (
            "packed-empty",
            Vec::new(),
            "bundle: magic: expected 8 bytes at offset 0, found 0",
        ),
        (
            "packed-magic",
            patched(small(), 0, b"ZIP!"),
            "bundle: magic: expected TLLMBNDL",
        ),
        (
            "packed-version",
            patched(small(), 8, &[2]),
            "bundle: version: 2 is not supported (supported: 1)",
        ),
        (
            "packed-entry-count-huge",
            patched(small(), 12, &[0xff; 4]),
            "entry count: expected at most 256, found 4294967295",
        ),
        (
            "packed-entry-count-lies",
            patched(small(), 12, &[200]),
            "length of name of entry 2: expected at most 200, found 32123",
        ),
        (
            "packed-entry-count-zero",
            patched(small(), 12, &[0]),
            "entry count: expected at least 1, found 0",
        ),
        (
            "packed-name-length-huge",
            patched(small(), 16, &[0xff; 2]),
            "length of name of entry 0: expected at most 200, found 65535",
        ),
        (
            "packed-name-not-utf8",
            patched(small(), 47, &[0xff]),
            "name of entry 1: expected UTF-8",
        ),
        (
            "packed-name-parent",
            one("../evil"),
            "name of entry 1: expected a relative path",
        ),
        (
            "packed-name-inner-parent",
            one("a/../../evil"),
            "name of entry 1: expected a relative path",
        ),
        (
            "packed-name-absolute",
            one("/etc/passwd"),
            "name of entry 1: expected a relative path",
        ),
        (
            "packed-name-backslash",
            one("..\\evil"),
            "name of entry 1: expected a relative path",
        ),
        (
            "packed-name-empty",
            one(""),
            "name of entry 1: expected a relative path",
        ),
        (
            "packed-name-nul",
            one("a\0b"),
            "name of entry 1: expected a relative path",
        ),
        (
            "packed-manifest-not-first",
            pack(&[("a", b"x"), ("bundle.json", b"{}")]),
            "name of entry 0: expected bundle.json first",
        ),
        (
            "packed-manifest-twice",
            one("bundle.json"),
            "name of entry 1: expected bundle.json first and only first",
        ),
        (
            "packed-name-twice",
            pack(&[("bundle.json", b"{}"), ("a", b"x"), ("a", b"y")]),
            "name a: expected a name that comes once",
        ),
        (
            "packed-offset-overlaps",
            patched(small(), 48, &64_u64.to_le_bytes()),
            "offset of a: expected 128",
        ),
        (
            "packed-offset-in-header",
            patched(small(), 29, &0_u64.to_le_bytes()),
            "offset of bundle.json: expected 64",
        ),
        (
            "packed-offset-misaligned",
            patched(small(), 48, &129_u64.to_le_bytes()),
            "offset of a: expected 128",
        ),
        (
            "packed-offset-overflow",
            patched(small(), 48, &[0xff; 8]),
            "offset of a: expected 128",
        ),
        (
            "packed-size-overflow",
            patched(small(), 56, &[0xff; 8]),
            "size of a: expected at most 1073741824",
        ),
        (
            "packed-size-past-end",
            patched(small(), 56, &3_u64.to_le_bytes()),
            "file a: expected 3 bytes at offset 128, found 2",
        ),
        (
            "packed-trailing-bytes",
            trailing,
            "file size: expected 130, the end of the last file, found 131",
        ),
        (
            "packed-padding",
            patched(small(), 100, &[1]),
            "bytes before a: expected zeros",
        ),
    ]
}

/// The files against the manifest.
fn file_cases() -> Vec<Case> {
    let parts = Parts::without_contents;
    let mut missing = parts();
    missing.files.remove("tokenizer.json");
    let mut unlisted = parts();
    unlisted.files.insert("extra.bin".to_owned(), b"x".to_vec());
    let mut changed = parts();
    changed
        .files
        .insert("tokenizer.json".to_owned(), b"y".to_vec());
    let mut longer = parts();
    longer
        .files
        .insert("tokenizer.json".to_owned(), b"xx".to_vec());
    let folder = parts().with_file("adapters", b"x".to_vec());
    vec![
        (
            "file-missing",
            missing.pack(),
            "file tokenizer.json: expected a file that the manifest lists, found nothing",
        ),
        (
            "file-unlisted",
            unlisted.pack(),
            "index: expected only files that the manifest lists, found extra.bin",
        ),
        (
            "file-hash",
            changed.pack(),
            "tokenizer.json: sha256: expected 2d711642b726b044",
        ),
        (
            "file-size",
            longer.pack(),
            "tokenizer.json: size in bytes: expected 1, found 2",
        ),
        (
            "file-is-folder",
            folder.pack(),
            "expected folders that are not files, found adapters",
        ),
    ]
}

/// The manifest's fields.
fn manifest_cases() -> Vec<Case> {
    let case = |pointer: &str, value: Value| Parts::without_contents().with(pointer, value).pack();
    let with_field = |pointer: &str, key: &str, value: Value| {
        let mut parts = Parts::without_contents();
        parts.manifest.pointer_mut(pointer).unwrap()[key] = value;
        parts.pack()
    };
    // A bundle with an instruction adapter of which one field is another.
    let instructed = |key: &str, value: Value| {
        let mut parts = Parts::without_contents();
        let mut instruction = json!({
            "labels": ["red", "none"], "label_words": [[0], [1]], "answered_by": {},
            "adapter": parts.manifest["tasks"][0]["adapter"].clone(),
            "temperature": 1.0, "threshold": 0.5,
        });
        instruction[key] = value;
        parts.manifest["instruction"] = instruction;
        parts.pack()
    };
    // One whose task has other adapters set aside.
    let aside = |count: u32, key: &str, value: Value| {
        let mut parts = Parts::without_contents();
        let adapter = parts.manifest["tasks"][0]["adapter"].clone();
        let one = |number: u32| {
            let mut version = json!({
                "version": number + 2, "labels": ["one"], "label_words": [[0]],
                "adapter": adapter.clone(), "temperature": 1.0, "threshold": 0.5,
            });
            version[key] = value.clone();
            version
        };
        let all: Vec<Value> = (0..count).map(one).collect();
        parts.manifest["tasks"][0]["set_aside"] = json!(all);
        parts.pack()
    };
    let many: Vec<String> = (0..257).map(|number| format!("label {number}")).collect();
    let task = Parts::without_contents().manifest["tasks"][0].clone();
    let entry = json!({"sha256": "0".repeat(64), "bytes": 1});
    vec![
        (
            "manifest-schema",
            case("/schema", json!(2)),
            "bundle.json: schema: 2 is not supported (supported: 1)",
        ),
        (
            "manifest-schema-text",
            case("/schema", json!("1")),
            "expected u32",
        ),
        (
            "manifest-unknown-field",
            with_field("", "zzz", json!(1)),
            "unknown field `zzz`",
        ),
        (
            "manifest-unknown-task-field",
            with_field("/tasks/0", "zzz", json!(1)),
            "unknown field `zzz`",
        ),
        (
            "manifest-instruction-field",
            instructed("zzz", json!(1)),
            "unknown field `zzz`",
        ),
        (
            "manifest-instruction-answer",
            instructed("answered_by", json!({"red": ["zzz"]})),
            "instruction.answered_by.red: expected tasks of the bundle, found zzz",
        ),
        (
            "manifest-instruction-answer-empty",
            instructed("answered_by", json!({"red": []})),
            "instruction.answered_by.red: expected at least 1 task, found 0",
        ),
        (
            "manifest-instruction-answer-none",
            instructed("answered_by", json!({"none": ["colours"]})),
            "instruction.answered_by: expected labels that a task can answer, found none",
        ),
        (
            "manifest-instruction-labels",
            instructed("labels", json!(many)),
            "instruction.labels: expected at most 256, found 257",
        ),
        (
            "manifest-instruction-adapter",
            instructed("adapter", json!({"file": "adapters/zzz"})),
            "instruction.adapter.file: expected a file listed in `files`",
        ),
        (
            "manifest-instruction-as-task",
            case("/tasks/0/name", json!("instruction")),
            "tasks[0].name: expected another name: this one is kept for what reads instructions",
        ),
        (
            "manifest-instruction-answers-twice",
            instructed("answered_by", json!({"red": [task["name"], task["name"]]})),
            "instruction.answered_by.red: expected tasks that come once",
        ),
        (
            "manifest-instruction-answers-many",
            instructed("answered_by", json!({"red": vec!["x"; 65]})),
            "instruction.answered_by.red: expected at most 64, found 65",
        ),
        (
            "manifest-adapters-aside",
            aside(9, "metrics", json!(null)),
            "tasks[0].set_aside: expected at most 8, found 9",
        ),
        (
            "manifest-adapter-aside-version",
            aside(1, "version", json!(1)),
            "tasks[0].set_aside[0].version: expected a number that comes once, found 1",
        ),
        (
            "manifest-adapter-aside-threshold",
            aside(2, "threshold", json!(2.0)),
            "tasks[0].set_aside[0].threshold: expected 0 to 1, found 2",
        ),
        (
            "manifest-adapter-aside-file",
            aside(1, "adapter", json!({"file": "zzz"})),
            "tasks[0].set_aside[0].adapter.file: expected a file listed in `files`, found zzz",
        ),
        (
            "manifest-path-parent",
            with_field("/files", "../evil", entry.clone()),
            "files: expected a relative path",
        ),
        (
            "manifest-path-absolute",
            with_field("/files", "/evil", entry.clone()),
            "files: expected a relative path",
        ),
        (
            "manifest-lists-itself",
            with_field("/files", "bundle.json", entry),
            "files: expected files other than the manifest",
        ),
        (
            "manifest-bytes-huge",
            case("/files/base.gguf/bytes", json!(u64::MAX)),
            "files[base.gguf].bytes: expected at most 1073741824",
        ),
        (
            "manifest-hash-short",
            case("/files/base.gguf/sha256", json!("00")),
            "files[base.gguf].sha256: expected 64",
        ),
        (
            "manifest-base-unlisted",
            case("/base/file", json!("b.gguf")),
            "base.file: expected a file listed in `files`, found b.gguf",
        ),
        (
            "manifest-base-hash",
            case("/base/sha256", json!("0".repeat(64))),
            "base.sha256: expected 2d711642b726b044",
        ),
        (
            "manifest-adapter-unlisted",
            case("/tasks/0/adapter/file", json!("a")),
            "tasks[0].adapter.file: expected a file listed",
        ),
        (
            "manifest-no-tasks",
            case("/tasks", json!([])),
            "tasks: expected at least 1, found 0",
        ),
        (
            "manifest-task-twice",
            case("/tasks", json!([task, task])),
            "tasks[1].name: expected a name that comes once",
        ),
        (
            "manifest-task-name",
            case("/tasks/0/name", json!("Bad Name")),
            "tasks[0].name: expected lower-case letters",
        ),
        (
            "manifest-task-kind",
            case("/tasks/0/kind", json!("packet")),
            "unknown variant `packet`",
        ),
        (
            "manifest-temperature-zero",
            case("/tasks/0/temperature", json!(0)),
            "tasks[0].temperature: expected 0.01 to 100, found 0",
        ),
        (
            "manifest-temperature-negative",
            case("/tasks/0/temperature", json!(-1)),
            "temperature: expected 0.01 to 100, found -1",
        ),
        (
            "manifest-temperature-infinite",
            case("/tasks/0/temperature", json!(1e300)),
            "temperature: expected 0.01 to 100, found inf",
        ),
        (
            "manifest-threshold",
            case("/tasks/0/threshold", json!(1.5)),
            "tasks[0].threshold: expected 0 to 1, found 1.5",
        ),
        (
            "manifest-no-self-test",
            case("/self_test", json!([])),
            "self_test: expected at least 1, found 0",
        ),
        (
            "manifest-self-test-empty",
            case("/self_test/0/tokens", json!([])),
            "self_test[0].tokens: expected at least 1",
        ),
        (
            "manifest-self-test-task",
            case("/self_test/0/task", json!("other")),
            "self_test[0].task: expected a task of the bundle",
        ),
        (
            "manifest-self-test-label",
            case("/self_test/0/label", json!("four")),
            "self_test[0].label: expected a label of tiny_task",
        ),
        (
            "manifest-self-test-score",
            case("/self_test/0/score", json!(-0.1)),
            "self_test[0].score: expected 0 to 1",
        ),
        (
            "self-test-score",
            Parts::sound().with("/self_test/0/score", json!(0.9)).pack(),
            "self_test[0] of task tiny_task: expected one with score 0.9",
        ),
        (
            "self-test-label",
            Parts::sound()
                .with("/self_test/0/label", json!("two"))
                .pack(),
            "self_test[0] of task tiny_task: expected two",
        ),
        (
            "self-test-token",
            Parts::sound()
                .with("/self_test/0/tokens", json!([16]))
                .pack(),
            "token id: expected below 16, found 16",
        ),
        (
            "self-test-too-long",
            Parts::sound()
                .with("/self_test/0/tokens", json!(vec![1; 63]))
                .pack(),
            "tokens: expected at most 62, found 63",
        ),
    ]
}

/// Manifests that are not the JSON they should be.
fn raw_manifest_cases() -> Vec<Case> {
    let parts = Parts::without_contents();
    let text = String::from_utf8(parts.manifest_bytes()).unwrap();
    let entry = format!("\"base.gguf\":{}", parts.manifest["files"]["base.gguf"]);
    let twice = text.replacen(&entry, &format!("{entry},{entry}"), 1);
    let deep = text.replacen(
        "\"made up\"",
        &format!("{}{}", "[".repeat(1000), "]".repeat(1000)),
        1,
    );
    let field_twice = text.replacen("\"schema\":1", "\"schema\":1,\"schema\":1", 1);
    assert!(twice != text && deep != text && field_twice != text);
    vec![
        (
            "json-empty",
            parts.pack_with(b""),
            "bundle.json: line 1 column 0",
        ),
        (
            "json-cut",
            parts.pack_with(&text.as_bytes()[..text.len() / 2]),
            "bundle.json: line 1",
        ),
        (
            "json-not-utf8",
            parts.pack_with(b"{\"schema\":1,\"id\":\"\xff\"}"),
            "bundle.json: line 1",
        ),
        (
            "json-nested-deep",
            parts.pack_with(deep.as_bytes()),
            "recursion limit exceeded",
        ),
        (
            "json-file-twice",
            parts.pack_with(twice.as_bytes()),
            "duplicate file base.gguf",
        ),
        (
            "json-field-twice",
            parts.pack_with(field_twice.as_bytes()),
            "duplicate field `schema`",
        ),
    ]
}

/// Labels and their words.
fn label_cases() -> Vec<Case> {
    let early = |pointer: &str, value: Value| Parts::without_contents().with(pointer, value).pack();
    let words = |value: Value| Parts::sound().with("/tasks/0/label_words", value).pack();
    vec![
        (
            "label-twice",
            early("/tasks/0/labels", json!(["one", "one", "two"])),
            "labels: expected labels that come once, found one",
        ),
        (
            "label-control-character",
            early("/tasks/0/labels/0", json!("a\u{1b}[31m")),
            "labels: expected text without control characters",
        ),
        (
            "label-count",
            early("/tasks/0/label_words", json!([[0], [1]])),
            "label_words: expected 3 paths, one per label, found 2",
        ),
        (
            "label-none",
            early("/tasks/0/labels", json!([])),
            "tasks[0].labels: expected at least 1, found 0",
        ),
        (
            "label-word-negative",
            early("/tasks/0/label_words", json!([[0], [1], [-1]])),
            "expected u32",
        ),
        (
            "label-word-unknown",
            words(json!([[0], [1], [3]])),
            "label_words[2] of tiny_task: expected words below 3, found 3",
        ),
        (
            "label-word-huge",
            words(json!([[0], [1], [u32::MAX]])),
            "expected words below 3, found 4294967295",
        ),
        (
            "label-path-empty",
            words(json!([[0], [1], []])),
            "label_words[2] of tiny_task: expected at least 1 word",
        ),
        (
            "label-path-twice",
            words(json!([[0], [1], [1]])),
            "label_words[2] of tiny_task: expected a path of its own",
        ),
        (
            "label-path-prefix",
            words(json!([[0, 1], [1], [0]])),
            "expected paths of which none starts another",
        ),
        (
            "label-path-long",
            words(json!([[0], [1], [2, 0, 1, 2, 0, 1, 2, 0, 1]])),
            "length of label_words[2] of tiny_task: expected at most 8, found 9",
        ),
        (
            "label-embedding-missing",
            words(json!([[0], [1], [2, 0]])),
            "tensor label.embedding: expected a tensor, as labels have more than one word",
        ),
    ]
}
