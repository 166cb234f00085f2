//! The header by itself: in every language it claims, with both compilers, without a warning.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Compiler, Language, compilers, ffi, run};

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wundef"];

/// Standards of a language, the newest one by its old name: compilers of some years know it.
fn standards(language: Language) -> &'static [&'static str] {
    match language {
        Language::C => &["c99", "c11", "c17", "c2x"],
        Language::Cpp => &["c++17", "c++20"],
    }
}

fn file_name(language: Language) -> &'static str {
    match language {
        Language::C => "one.c",
        Language::Cpp => "one.cc",
    }
}

/// Whether the compiler knows the standard. All must but the newest C, which is years younger than compilers that are in use.
fn knows(compiler: &str, standard: &str, folder: &Path) -> bool {
    let empty = folder.join("empty.c");
    std::fs::write(&empty, "int nothing;\n").unwrap();
    let known = Command::new(compiler)
        .arg(format!("-std={standard}"))
        .arg("-fsyntax-only")
        .arg(&empty)
        .output()
        .unwrap();
    known.status.success() || standard != "c2x"
}

/// Compiles a text in every standard of a language, with every compiler.
fn compile(language: Language, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join(file_name(language));
    std::fs::write(&source, text).unwrap();
    for Compiler { command, .. } in compilers(language) {
        for standard in standards(language) {
            if !knows(&command, standard, folder.path()) {
                eprintln!("{command} does not know {standard}: left out");
                continue;
            }
            run(Command::new(&command)
                .arg(format!("-std={standard}"))
                .args(WARNINGS)
                .arg("-fsyntax-only")
                .arg("-I")
                .arg(ffi().join("../include"))
                .arg(&source));
        }
    }
}

#[test]
fn it_compiles_alone() {
    for language in [Language::C, Language::Cpp] {
        compile(language, "#include \"trafficllm.h\"\n");
        compile(
            language,
            "#include \"trafficllm.h\"\nint main(void) { return TLLM_OK; }\n",
        );
    }
}

#[test]
fn it_compiles_included_twice_and_after_anything() {
    for language in [Language::C, Language::Cpp] {
        compile(
            language,
            "#include \"trafficllm.h\"\n#include \"trafficllm.h\"\n",
        );
        compile(
            language,
            "#include <stdint.h>\n#include <string.h>\n#include <errno.h>\n#include \"trafficllm.h\"\n#include <stdio.h>\n",
        );
    }
}

#[test]
fn its_names_are_its_own() {
    // Whatever the header defines begins with its prefix, so it cannot meet a name of the host.
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("one.c");
    let defined = |text: &str| {
        std::fs::write(&source, text).unwrap();
        let macros = run(Command::new("gcc")
            .args(["-std=c99", "-dM", "-E", "-I"])
            .arg(ffi().join("../include"))
            .arg(&source));
        let text = String::from_utf8(macros.stdout).unwrap();
        text.lines()
            .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
            .collect::<std::collections::BTreeSet<String>>()
    };
    let before = defined("#include <stddef.h>\n#include <stdint.h>\n");
    let after = defined("#include <stddef.h>\n#include <stdint.h>\n#include \"trafficllm.h\"\n");
    let own: Vec<&String> = after.difference(&before).collect();
    assert!(own.len() > 40, "{own:?}");
    for name in own {
        assert!(
            name.starts_with("TLLM_") || name == "TRAFFICLLM_H",
            "{name}"
        );
    }
}

#[test]
fn its_macros_can_be_tested_by_the_preprocessor() {
    compile(
        Language::C,
        "#include \"trafficllm.h\"\n\
         #if TLLM_VERSION_MAJOR < 0 || TLLM_VERSION_MINOR < 0 || TLLM_VERSION_PATCH < 0 || TLLM_ABI_VERSION < 0\n\
         #error one of them is no number\n#endif\n\
         #if TLLM_ERR_NULL != -1 || TLLM_OK != 0 || TLLM_PENDING != 1\n#error a status is no number\n#endif\n",
    );
}
