//! What the tests of the C side share: the compilers, the built library, committed files.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "each test uses a part of it, fails by panicking, and says what it skips"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of the crate.
pub(crate) fn ffi() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The header as it is committed.
pub(crate) fn header_text() -> String {
    std::fs::read_to_string(ffi().join("../include/trafficllm.h")).unwrap()
}

/// Holds a committed file to what it should be, or writes it.
pub(crate) fn expect(path: &Path, made: &str, test: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, made).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    if found != made {
        let line = found.lines().zip(made.lines()).position(|(a, b)| a != b);
        let line = line.unwrap_or_else(|| found.lines().count().min(made.lines().count()));
        panic!(
            "{} is not what the source makes, from line {} on:\n  found    {:?}\n  expected {:?}\n\
             UPDATE_EXPECT=1 cargo test -p trafficllm-ffi --test {test} writes it anew",
            path.display(),
            line + 1,
            found.lines().nth(line),
            made.lines().nth(line),
        );
    }
}

/// A language of the header's readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    C,
    Cpp,
}

/// A compiler of this machine.
pub(crate) struct Compiler {
    pub(crate) command: String,
    pub(crate) is_clang: bool,
}

/// gcc and clang. gcc must be there. A missing clang is told and left out, unless `TLLM_REQUIRE_CLANG` is 1.
pub(crate) fn compilers(language: Language) -> Vec<Compiler> {
    let names = match language {
        Language::C => ["gcc", "clang"],
        Language::Cpp => ["g++", "clang++"],
    };
    assert!(is_there(names[0]), "{} is needed by this test", names[0]);
    let mut found = vec![Compiler {
        command: names[0].to_owned(),
        is_clang: false,
    }];
    if is_there(names[1]) {
        found.push(Compiler {
            command: names[1].to_owned(),
            is_clang: true,
        });
    } else {
        let is_required = std::env::var_os("TLLM_REQUIRE_CLANG").is_some_and(|value| value == "1");
        assert!(
            !is_required,
            "{} is not installed, and TLLM_REQUIRE_CLANG=1",
            names[1]
        );
        eprintln!("{} is not installed: left out", names[1]);
    }
    found
}

/// Whether a command is installed.
pub(crate) fn is_there(command: &str) -> bool {
    Command::new(command)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
