//! Native heads: what is checked, and what becomes of their mistakes.
#![cfg(all(unix, feature = "native"))]
#![allow(clippy::unwrap_used, reason = "a test that fails may stop")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{flow, judged, labels, station};
use tempfile::TempDir;
use trafficllm_heads::*;

const HEAD: &str = r#"
#define HEAD_NAME "long_flows"
#define HEAD_VERSION "1"
#define HEAD_LABELS "short", "long"
#define HEAD_NEEDS 0
#define HEAD_HEADS_MAX 3
#include "trafficllm_head_sdk.h"
static int32_t head_judge(const struct head_flow *flow, struct head_verdict *verdict)
{
    verdict->label = flow->packets_total > 10;
    verdict->score = flow->packets_total == 99 ? __builtin_nanf("") : 0.75f;
    head_say(verdict, "packets: ");
    head_say_number(verdict, flow->packets_total);
    return flow->packets_total == 77 ? -5 : 0;
}
"#;

/// A library that a compiler of this machine makes of C.
fn library(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let source = folder.path().join(format!("{name}.c"));
    std::fs::write(&source, text).unwrap();
    common::library(folder.path(), &source)
}

fn refusal(path: &Path) -> String {
    NativeHead::load(path).unwrap_err().to_string()
}

#[test]
fn a_native_head_answers_and_its_mistakes_cost_its_own_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let head = Arc::new(NativeHead::load(&library(&folder, "long", HEAD)).unwrap());
    let mut station = station(Arc::clone(&head) as Arc<dyn Head>, 0);
    let mut answers = Answers::default();
    station.judge(&[flow(3), flow(12)], &mut answers);
    assert_eq!(labels(&answers), [Ok(0), Ok(1)]);
    let Some(Answer::Verdict(verdict)) = answers.get(1) else {
        panic!("{answers:?}")
    };
    assert_eq!((verdict.score, verdict.evidence), (0.75, "packets: 12"));
    assert_eq!(judged(&mut station, &[99]), [Err(Reason::NotANumber)]);
    assert_eq!(judged(&mut station, &[77, 1]), [Err(Reason::Refused); 2]);
    assert_eq!(judged(&mut station, &[1]), [Ok(0)]);
    // Three heads at a time, and what is freed can be had again.
    let starts = || head.start(&Conditions::default());
    for _ in 0..5 {
        let (one, two, three) = (starts(), starts(), starts());
        assert!(one.is_ok() && two.is_ok());
        assert!(matches!(three, Err(Fault::Unavailable(_))));
    }
}

#[test]
fn threads_without_room_wait_and_cost_the_head_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let head = Arc::new(NativeHead::load(&library(&folder, "room", HEAD)).unwrap());
    let guard = GuardOptions {
        faults_in_a_row_max: 1,
    };
    let guard = Arc::new(Guard::new(head as Arc<dyn Head>, guard));
    let place = || Station::new(Arc::clone(&guard), Arc::new(Conditions::default()));
    let mut with_room = [place(), place(), place()];
    for station in &mut with_room {
        assert_eq!(judged(station, &[1]), [Ok(0)]);
    }
    let mut without = place();
    for _ in 0..3 {
        let none = Err(Reason::Unavailable);
        assert_eq!(judged(&mut without, &[1, 20]), [none, none]);
    }
    let counters = guard.counters();
    assert_eq!((counters.faults, counters.verdicts), (0, 3));
    assert_eq!(counters.without(Reason::Unavailable), 6);
    assert!(guard.is_enabled());
    drop(with_room);
    assert_eq!(judged(&mut without, &[1, 20]), [Ok(0), Ok(1)]);
}

#[test]
fn a_library_that_has_changed_under_its_path_is_refused_and_goes_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = library(&folder, "swapped", HEAD);
    let label = |path: &Path| {
        let head = Arc::new(NativeHead::load(path).unwrap());
        judged(&mut station(head, 0), &[50])
    };
    assert_eq!(label(&path), [Ok(1)]);
    // The same bytes are the same code, also in a file of their own under the old path.
    let copy = folder.path().join("copy.so");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert_eq!(label(&path), [Ok(1)]);
    let newer = HEAD.replace("packets_total > 10", "packets_total > 1000");
    let newer = library(&folder, "newer", &newer);
    let beside = folder.path().join("beside.so");
    std::fs::copy(&newer, &beside).unwrap();
    std::fs::rename(&newer, &path).unwrap();
    let error = refusal(&path);
    assert!(
        error.contains(
            "swapped.so: cannot be loaded: the file has changed since this process loaded it"
        ),
        "{error}"
    );
    assert_eq!(label(&beside), [Ok(0)]);
}

#[test]
fn a_head_gets_as_many_flows_at_once_as_it_has_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("#define HEAD_OUTPUT_BYTES 1024\n{HEAD}");
    let head = NativeHead::load(&library(&folder, "small", &text)).unwrap();
    // 264 bytes are the most for a verdict here: three fit, two are what halving comes to.
    assert_eq!(head.start(&Conditions::default()).unwrap().flows_max(), 2);
    let mut station = station(Arc::new(head), 0);
    assert_eq!(
        judged(&mut station, &[1, 20, 1, 20, 1]),
        [Ok(0), Ok(1), Ok(0), Ok(1), Ok(0)]
    );
    let text = format!("#define HEAD_OUTPUT_BYTES 256\n{HEAD}");
    let head = NativeHead::load(&library(&folder, "none", &text)).unwrap();
    assert_eq!(
        judged(&mut common::station(Arc::new(head), 0), &[1]),
        [Err(Reason::Unavailable)]
    );
}

#[test]
fn only_files_that_nobody_else_can_change_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = library(&folder, "long", HEAD);
    let mode =
        |bits| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bits)).unwrap();
    for bits in [0o775, 0o757] {
        mode(bits);
        let error = refusal(&path);
        assert!(
            error.contains(&format!("others may write to it (mode {bits:04o})")),
            "{error}"
        );
    }
    mode(0o755);
    NativeHead::load(&path).unwrap();
    assert!(refusal(Path::new("libhead.so")).contains("not absolute"));
    assert!(refusal(folder.path()).contains("not a file"));
    assert!(refusal(&folder.path().join("missing.so")).contains("No such file"));
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    assert!(refusal(&text).contains("cannot be loaded"));
}

#[test]
fn a_library_that_is_no_head_or_of_another_version_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let empty = library(&folder, "empty", "int nothing;");
    assert!(refusal(&empty).contains("export tllm_head_abi: expected a function, found none"));
    let without = format!("#define tllm_head_judge not_the_name\n{HEAD}");
    let without = library(&folder, "without", &without);
    assert!(refusal(&without).contains("export tllm_head_judge: expected a function, found none"));
    let version =
        "#include \"trafficllm_head.h\"\n#undef TLLM_HEAD_ABI\n#define TLLM_HEAD_ABI 0x20000u\n";
    let version = library(&folder, "version", &format!("{version}{HEAD}"));
    assert!(refusal(&version).contains("abi: expected 1.0 to 1.0, found 2.0"));
    let name = HEAD.replace("long_flows", "long flows");
    let name = library(&folder, "name", &name);
    assert!(refusal(&name).contains("name: expected a-z, 0-9 and _, found long flows"));
}

#[test]
fn a_native_head_logs_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let log = r#"
static void (*log_line)(uint32_t, const char *, uint32_t);
HEAD_EXPORT(tllm_head_log_to) void tllm_head_log_to(void (*log)(uint32_t, const char *, uint32_t));
void tllm_head_log_to(void (*log)(uint32_t, const char *, uint32_t)) { log_line = log; }
"#;
    let text = HEAD.replace("sdk.h\"\n", &format!("sdk.h\"\n{log}"));
    let text = text.replace(
        "    head_say(",
        "    for (int line = 0; line < 50; line++) log_line(1, \"line\\n\", 5);\n    head_say(",
    );
    let head = Arc::new(NativeHead::load(&library(&folder, "log", &text)).unwrap());
    let mut station = station(Arc::clone(&head) as Arc<dyn Head>, 0);
    assert_eq!(judged(&mut station, &[1]), [Ok(0)]);
    assert_eq!(head.log_lines_lost(), 50 - 16);
}
