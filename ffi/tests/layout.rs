//! The layout of every struct of the header is committed in `abi/layout.txt`, for targets with 64-bit pointers; Rust and the C
//! compilers are held to it.
//!
//! `UPDATE_EXPECT=1 cargo test -p trafficllm-ffi --test layout` writes it anew. A changed line is a new `TLLM_ABI_VERSION`; a struct
//! that has grown where its `reserved` stood is not.

#![cfg(target_pointer_width = "64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fmt::Write as _;
use std::mem::offset_of;

use common::{Compiler, Language, compilers, expect, ffi, header_text, run};
use trafficllm_ffi::*;

struct Field {
    name: &'static str,
    offset: usize,
    size: usize,
}

struct Struct {
    name: &'static str,
    size: usize,
    alignment: usize,
    fields: Vec<Field>,
}

/// The size of the type that a pointer points to: of a field, without a value of it.
fn pointee<T>(_: *const T) -> usize {
    size_of::<T>()
}

macro_rules! layout {
    ($($name:ident { $($field:ident),* })*) => {
        vec![$(Struct {
            name: stringify!($name),
            size: size_of::<$name>(),
            alignment: align_of::<$name>(),
            fields: vec![$({
                let whole = std::mem::MaybeUninit::<$name>::uninit();
                Field {
                    name: stringify!($field),
                    offset: offset_of!($name, $field),
                    // SAFETY: only the field's address is computed, inside of the struct's own memory.
                    size: pointee(unsafe { &raw const (*whole.as_ptr()).$field }),
                }
            }),*],
        }),*]
    };
}

fn structs() -> Vec<Struct> {
    layout! {
        tllm_option { key, kind, unit, help, default_value, minimum, maximum, reserved }
        tllm_model_info { id, profile, level, memory_bytes, tasks, tokens_max, reserved }
        tllm_task_info { name, kind, labels, threshold, reserved0, reserved }
        tllm_counters {
            submitted, done, shed, expired, abandoned, failed, in_flight, waiting, generation, activations, activations_failed,
            batches, worker_panics, flows, packets, packets_beyond_limit, payload_bytes_cut, time_backwards,
            device_batches, device_failures, reserved
        }
        tllm_latency { count, sum_us, median_us, p90_us, p99_us, reserved }
        tllm_memory {
            model_bytes, retired_bytes, worker_bytes, classifier_bytes, queue_bytes, flow_bytes, head_bytes, device_bytes, reserved
        }
        tllm_head {
            name, version, source_task, enabled, stateful, labels, reserved0, verdicts, abstained, faults, switched_off,
            without_verdict, log_lines_lost, missing, reserved1, reserved
        }
        tllm_flow_info {
            struct_size, protocol, ip_version, initiator_port, responder_port, reserved0, reserved1, initiator, responder, reserved
        }
        tllm_packet {
            struct_size, direction, tcp_flags, reserved0, time_ns, ip_bytes, payload_bytes, payload, payload_size, reserved
        }
        tllm_flow_stats { packets, bytes, packets_kept, payload_bytes_cut, time_backwards, memory_bytes, reserved }
        tllm_verdict {
            status, position, entries, task, label, score, id, generation, latency_us, task_name, label_name, model_id, reserved,
            reason, evidence
        }
        tllm_subject {
            kind, protocol, ip_version, initiator_port, responder_port, reserved0, reserved1, index, start_ns, packets, bytes,
            initiator, responder, profile, model_id, reserved
        }
        tllm_capture_report {
            packets, packet_bytes, packets_skipped, flows, flows_evicted, lines, bad_lines, verdicts, abstained, reserved
        }
    }
}

/// The structs of the header, each with its fields, as the header writes them.
fn declared() -> Vec<(String, Vec<String>)> {
    let header = header_text();
    let mut structs = Vec::new();
    let mut lines = header.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line
            .strip_prefix("typedef struct ")
            .and_then(|rest| rest.strip_suffix(" {"))
        else {
            continue;
        };
        let body = lines.by_ref().take_while(|line| !line.starts_with('}'));
        let fields = body.filter_map(|line| {
            let declaration = line.trim().strip_suffix(';')?;
            let named = declaration.split('[').next()?;
            let name = named.rsplit([' ', '*']).next()?;
            (!line.trim().starts_with('*')).then(|| name.to_owned())
        });
        structs.push((name.to_owned(), fields.collect()));
    }
    structs
}

fn table(structs: &[Struct]) -> String {
    let mut table = String::from(
        "# Structs of include/trafficllm.h on targets with 64-bit pointers: size and alignment of each, offset and size of\n\
         # each field, in bytes. Held to the source by ffi/tests/layout.rs.\n",
    );
    for one in structs {
        writeln!(
            table,
            "\n{} size {} alignment {}",
            one.name, one.size, one.alignment
        )
        .unwrap();
        for field in &one.fields {
            writeln!(table, "{:6} {:4}  {}", field.offset, field.size, field.name).unwrap();
        }
    }
    table
}

/// A C program that compiles only where the committed table holds.
fn program(table: &str) -> String {
    let mut program = String::from("#include \"trafficllm.h\"\n#include <stddef.h>\n");
    let mut name = "";
    for line in table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [struct_name, "size", size, "alignment", alignment] => {
                name = struct_name;
                writeln!(
                    program,
                    "_Static_assert(sizeof({name}) == {size}, \"size of {name}\");\n\
                     _Static_assert(_Alignof({name}) == {alignment}, \"alignment of {name}\");"
                )
                .unwrap();
            }
            [offset, size, field] => writeln!(
                program,
                "_Static_assert(offsetof({name}, {field}) == {offset}, \"offset of {name}.{field}\");\n\
                 _Static_assert(sizeof((({name} *)0)->{field}) == {size}, \"size of {name}.{field}\");"
            )
            .unwrap(),
            _ => panic!("layout.txt has a line of another kind: {line}"),
        }
    }
    program + "int main(void) { return 0; }\n"
}

#[test]
fn the_layout_is_the_committed_one() {
    expect(&ffi().join("abi/layout.txt"), &table(&structs()), "layout");
}

#[test]
fn the_table_has_every_struct_and_field_of_the_header() {
    let known: Vec<(String, Vec<String>)> = structs()
        .iter()
        .map(|one| {
            (
                one.name.to_owned(),
                one.fields
                    .iter()
                    .map(|field| field.name.to_owned())
                    .collect(),
            )
        })
        .collect();
    assert_eq!(declared(), known);
}

#[test]
fn structs_have_no_holes_and_grow_at_their_end() {
    // A hole would carry what happened to be in memory out to the host, and could not be given a meaning later.
    for one in structs() {
        let mut end = 0;
        for field in &one.fields {
            assert_eq!(
                field.offset, end,
                "a hole before {}.{}",
                one.name, field.name
            );
            end += field.size;
        }
        assert_eq!(end, one.size, "a hole at the end of {}", one.name);
        let last = one.fields.last().unwrap().name;
        // The texts of an option are looked at one by one: it grows as new structs do. A verdict has grown behind what was reserved.
        assert!(
            last == "reserved" || ["tllm_option", "tllm_verdict"].contains(&one.name),
            "{} ends with {last}",
            one.name
        );
    }
}

#[test]
fn c_compilers_lay_the_structs_out_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.c");
    let table = std::fs::read_to_string(ffi().join("abi/layout.txt")).unwrap();
    std::fs::write(&source, program(&table)).unwrap();
    for Compiler { command, .. } in compilers(Language::C) {
        run(std::process::Command::new(command)
            .args([
                "-std=c11",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fsyntax-only",
                "-I",
            ])
            .arg(ffi().join("../include"))
            .arg(&source));
    }
}

#[test]
fn the_program_fails_where_a_line_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.c");
    let table = std::fs::read_to_string(ffi().join("abi/layout.txt")).unwrap();
    let wrong = table.replacen("     8    8  done", "    16    8  done", 1);
    assert_ne!(wrong, table);
    std::fs::write(&source, program(&wrong)).unwrap();
    let compiled = std::process::Command::new(&compilers(Language::C)[0].command)
        .args(["-std=c11", "-fsyntax-only", "-I"])
        .arg(ffi().join("../include"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(!compiled.status.success());
    assert!(String::from_utf8_lossy(&compiled.stderr).contains("offset of tllm_counters.done"));
}
