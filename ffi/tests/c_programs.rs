//! Runs the programs of `tests/c`: C hosts of the library, one for each group of functions.
//!
//! Each is compiled without a warning and run as it is, with AddressSanitizer and UndefinedBehaviorSanitizer in its own code, and, where
//! valgrind is installed, under valgrind. It must end well and say nothing: what it or the library writes to standard output or
//! standard error is a failure. `TLLM_REQUIRE_VALGRIND=1` makes a missing valgrind a failure.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};

use common::{Compiler, Language, compilers, ffi, is_there, run};

/// The folder of the library: cargo puts it where it puts this test.
fn library_folder() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().unwrap().to_owned();
    assert!(
        folder.join("libtrafficllm_ffi.so").is_file(),
        "the library is not beside this test, in {}",
        folder.display()
    );
    folder
}

/// What the library needs of the system when it is linked statically.
const NATIVE_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lutil", "-lpthread", "-lm", "-ldl"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    Clang,
    Static,
    Sanitized,
    Valgrind,
}

struct Program {
    name: &'static str,
    /// Arguments behind the tests' folder.
    arguments: &'static [&'static str],
    /// Whether it is linked with the library, or loads it.
    is_linked: bool,
    /// Whether memory that is left counts. A child of a fork cannot free its copy of an engine that has threads in the parent.
    leaks_count: bool,
}

impl Program {
    const fn named(name: &'static str) -> Self {
        Self {
            name,
            arguments: &[],
            is_linked: true,
            leaks_count: true,
        }
    }
}

/// Compiles a program.
fn compile(program: &Program, how: How, target: &Path) {
    let folder = library_folder();
    let compiler = match how {
        How::Clang => compilers(Language::C).into_iter().find(|one| one.is_clang),
        _ => compilers(Language::C).into_iter().next(),
    };
    let Some(Compiler { command, .. }) = compiler else {
        return;
    };
    let mut compile = Command::new(command);
    compile
        .args([
            "-std=c11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
        ])
        .arg(format!(
            "-DEXPECTED_VERSION=\"{}\"",
            env!("CARGO_PKG_VERSION")
        ))
        .arg(format!(
            "-DLIBRARY=\"{}\"",
            folder.join("libtrafficllm_ffi.so").display()
        ))
        .arg("-I")
        .arg(ffi().join("../include"))
        .arg("-o")
        .arg(target)
        .arg(sources().join(program.name).with_extension("c"));
    if how == How::Sanitized {
        compile.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    }
    if program.is_linked && how == How::Static {
        compile.arg(folder.join("libtrafficllm_ffi.a"));
    } else if program.is_linked {
        let mut path = std::ffi::OsString::from("-Wl,-rpath,");
        path.push(&folder);
        compile
            .arg("-L")
            .arg(&folder)
            .arg("-ltrafficllm_ffi")
            .arg(path);
    }
    run(compile.args(NATIVE_LIBRARIES));
}

fn sources() -> PathBuf {
    ffi().join("../tests/c")
}

/// At most two programs at a time: they have threads of their own and clocks that they look at.
struct Turn;

static TURNS: (Mutex<u32>, Condvar) = (Mutex::new(2), Condvar::new());

impl Turn {
    fn take() -> Self {
        let free = TURNS
            .1
            .wait_while(TURNS.0.lock().unwrap(), |free| *free == 0);
        *free.unwrap() -= 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap() += 1;
        TURNS.1.notify_one();
    }
}

/// The command that runs a compiled program.
fn command(program: &Program, how: How, compiled: &Path) -> Command {
    let mut command = if how == How::Valgrind {
        let mut command = Command::new("valgrind");
        command.args([
            "--quiet",
            "--error-exitcode=99",
            "--leak-check=full",
            "--num-callers=30",
        ]);
        // valgrind runs one thread at a time: fairly, or who waits actively for another waits for long.
        command.args(["--fair-sched=yes", "--show-leak-kinds=definite,possible"]);
        command.arg(format!(
            "--errors-for-leak-kinds={}",
            if program.leaks_count {
                "definite,possible"
            } else {
                "none"
            }
        ));
        if !program.leaks_count {
            command.arg("--leak-check=no");
        }
        command.arg(format!(
            "--suppressions={}",
            sources().join("valgrind.supp").display()
        ));
        // It does not know the instructions of the levels above.
        command
            .env("TLLM_CPU", "avx2")
            .env("TLLM_TEST_SLOWER", "20");
        command.arg(compiled);
        command
    } else {
        Command::new(compiled)
    };
    if how == How::Sanitized {
        let leaks = if program.leaks_count { "1" } else { "0" };
        command.env("ASAN_OPTIONS", format!("detect_leaks={leaks}"));
        command.env("TLLM_TEST_SLOWER", "4");
    }
    command.arg(ffi().join("../tests")).args(program.arguments);
    command
}

fn check(program: &Program, how: How) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if how == How::Clang && compilers(Language::C).len() < 2 {
        return;
    }
    if how == How::Valgrind && !is_there("valgrind") {
        let is_required =
            std::env::var_os("TLLM_REQUIRE_VALGRIND").is_some_and(|value| value == "1");
        assert!(
            !is_required,
            "valgrind is not installed, and TLLM_REQUIRE_VALGRIND=1"
        );
        eprintln!("valgrind is not installed: left out");
        return;
    }
    let _turn = Turn::take();
    let folder = tempfile::tempdir().unwrap();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let compiled = folder.path().join(format!("{}-{number}", program.name));
    compile(program, how, &compiled);
    let mut command = command(program, how, &compiled);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.is_empty() && error.is_empty(),
        "{command:?}: {}\n{out}{error}",
        output.status
    );
}

/// Functions that take no handle.
const WITHOUT_HANDLE: [&str; 8] = [
    "tllm_abi_version",
    "tllm_check_platform",
    "tllm_config_option",
    "tllm_log_set",
    "tllm_subject_json",
    "tllm_verdicts_json",
    "tllm_version",
    "tllm_version_number",
];

#[test]
fn every_function_is_tried_with_a_defect_and_with_wrong_handles() {
    let read = |path: &str| std::fs::read_to_string(ffi().join(path)).unwrap();
    let symbols = read("abi/symbols.txt");
    for program in ["faults.c", "handles.c"] {
        let text = read(&format!("../tests/c/{program}"));
        let takes_a_handle =
            |symbol: &&str| program == "faults.c" || !WITHOUT_HANDLE.contains(symbol);
        for symbol in symbols.lines().filter(takes_a_handle) {
            assert!(text.contains(&format!("{symbol}(")), "{program}: {symbol}");
        }
    }
}

macro_rules! programs {
    ($($name:ident $program:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn plain() {
                check(&$program, How::Plain);
            }

            #[test]
            fn compiled_by_clang() {
                check(&$program, How::Clang);
            }

            #[test]
            fn linked_statically() {
                if $program.is_linked {
                    check(&$program, How::Static);
                }
            }

            #[test]
            fn sanitized() {
                check(&$program, How::Sanitized);
            }

            #[test]
            fn under_valgrind() {
                check(&$program, How::Valgrind);
            }
        })*

        /// The programs that are run here.
        const NAMES: &[&str] = &[$($program.name),*];
    };
}

programs! {
    library Program::named("library");
    config Program::named("config");
    model Program::named("model");
    flow Program::named("flow");
    session Program::named("session");
    agree Program::named("agree");
    engine Program::named("engine");
    activate Program::named("activate");
    heads Program::named("heads");
    handles Program::named("handles");
    busy Program::named("busy");
    log Program::named("log");
    callbacks Program::named("callbacks");
    signals Program::named("signals");
    fork Program { leaks_count: false, ..Program::named("fork") };
    loading Program { is_linked: false, ..Program::named("loading") };
    // The engine that runs to the end of the program is not freed.
    loading_to_the_end Program {
        is_linked: false,
        leaks_count: false,
        arguments: &["to the end"],
        ..Program::named("loading")
    };
}

#[cfg(feature = "faults")]
mod with_faults {
    use super::*;

    #[test]
    fn the_library_has_the_faults() {
        let library = std::fs::read(library_folder().join("libtrafficllm_ffi.so")).unwrap();
        let name = b"tllm_fault_panic_after";
        assert!(
            library.windows(name.len()).any(|window| window == name),
            "another build without the feature has overwritten the library: build again"
        );
    }

    programs! {
        faults Program::named("faults");
    }

    const _: &[&str] = NAMES;
}

#[test]
fn every_program_is_run() {
    let mut found: Vec<String> = std::fs::read_dir(sources())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "faults")
        .collect();
    found.sort();
    let mut run: Vec<&str> = NAMES.to_vec();
    run.sort_unstable();
    run.dedup();
    assert_eq!(found, run);
}

/// A released library has no function that breaks it on purpose.
#[cfg(not(feature = "faults"))]
#[test]
fn the_library_has_no_faults() {
    let library = std::fs::read(library_folder().join("libtrafficllm_ffi.so")).unwrap();
    let name = b"tllm_fault_";
    assert!(!library.windows(name.len()).any(|window| window == name));
}
