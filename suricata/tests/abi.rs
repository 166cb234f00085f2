//! The plugin's own declarations of libtrafficllm's C ABI are those of the header and of the committed layout.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![cfg(target_pointer_width = "64")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use trafficllm_suricata::library::abi;

fn repository_file(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// Of each struct its size, its alignment, and offset and size of each field.
type Layout = BTreeMap<String, (usize, usize, BTreeMap<String, (usize, usize)>)>;

fn committed_layout() -> Layout {
    let mut found = Layout::new();
    let mut current = String::new();
    for line in repository_file("ffi/abi/layout.txt").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "size", size, "alignment", alignment] => {
                current = name.to_owned();
                let head = (
                    size.parse().unwrap(),
                    alignment.parse().unwrap(),
                    BTreeMap::new(),
                );
                found.insert(current.clone(), head);
            }
            [offset, size, field] if !line.starts_with('#') => {
                let place = (offset.parse().unwrap(), size.parse().unwrap());
                found
                    .get_mut(&current)
                    .unwrap()
                    .2
                    .insert(field.to_owned(), place);
            }
            _ => {}
        }
    }
    found
}

#[test]
fn structs_are_laid_out_as_the_library_has_them() {
    let committed = committed_layout();
    let own = abi::layout();
    assert_eq!(own.len(), 8);
    for (name, size, alignment, fields) in own {
        let fields = fields
            .into_iter()
            .map(|(field, offset, size)| (field.to_owned(), (offset, size)));
        assert_eq!(
            committed[name],
            (size, alignment, fields.collect()),
            "{name}"
        );
    }
}

#[test]
fn numbers_are_those_of_the_header() {
    let header = repository_file("include/trafficllm.h");
    let constant = |name: &str| -> i64 {
        let mark = format!("#define {name} ");
        let line = header.lines().find_map(|line| line.strip_prefix(&mark));
        line.unwrap_or_else(|| panic!("{name} is not in the header"))
            .trim()
            .parse()
            .unwrap()
    };
    for (name, own) in [
        ("TLLM_ABI_VERSION", i64::from(abi::ABI_VERSION)),
        ("TLLM_OK", i64::from(abi::status::OK)),
        ("TLLM_NEED_MORE", i64::from(abi::status::NEED_MORE)),
        ("TLLM_ABSTAINED", i64::from(abi::status::ABSTAINED)),
        ("TLLM_QUEUE_FULL", i64::from(abi::status::QUEUE_FULL)),
        ("TLLM_EXPIRED", i64::from(abi::status::EXPIRED)),
        ("TLLM_ABANDONED", i64::from(abi::status::ABANDONED)),
        ("TLLM_FLOW_FULL", i64::from(abi::status::FLOW_FULL)),
        (
            "TLLM_NOT_APPLICABLE",
            i64::from(abi::status::NOT_APPLICABLE),
        ),
        ("TLLM_FROM_INITIATOR", i64::from(abi::FROM_INITIATOR)),
        ("TLLM_FROM_RESPONDER", i64::from(abi::FROM_RESPONDER)),
        ("TLLM_TASK_BYTES", abi::TASK_BYTES as i64),
        ("TLLM_LABEL_BYTES", abi::LABEL_BYTES as i64),
        ("TLLM_ANSWER_ENTRIES_MAX", abi::ANSWER_ENTRIES_MAX as i64),
        ("TLLM_ERR_HANDLE", i64::from(abi::status::ERR_HANDLE)),
        ("TLLM_ERR_BUSY", i64::from(abi::status::ERR_BUSY)),
        ("TLLM_ERR_FORKED", i64::from(abi::status::ERR_FORKED)),
        ("TLLM_ERR_PANIC", i64::from(abi::status::ERR_PANIC)),
        ("TLLM_MODEL_ID_BYTES", abi::MODEL_ID_BYTES as i64),
    ] {
        assert_eq!(constant(name), own, "{name}");
    }
}

/// What stands between a function's parentheses in the header, with single spaces.
fn parameters(header: &str, name: &str) -> Option<String> {
    let place = header
        .find(&format!("{name}("))
        .filter(|_| !name.is_empty())?;
    let rest = &header[place + name.len() + 1..];
    // Comments name functions as "tllm_x()" or "tllm_x": a declaration ends with ");".
    let end = rest.find(");")?;
    Some(rest[..end].split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn every_function_is_in_the_header() {
    let header = repository_file("include/trafficllm.h");
    let declarations = header.split_once("extern \"C\" {").unwrap().1;
    let comment = |line: &&str| !line.trim_start().starts_with(['*', '/']);
    let code: Vec<&str> = declarations.lines().filter(comment).collect();
    let code = code.join("\n");
    for (name, arguments) in abi::Functions::NAMES {
        let found =
            parameters(&code, name).unwrap_or_else(|| panic!("{name} is not in the header"));
        let count = if found == "void" {
            0
        } else {
            found.split(',').count()
        };
        assert_eq!(count, *arguments, "{name}({found})");
    }
}
