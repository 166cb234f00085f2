//! The example heads, as modules and as native libraries: both must say the same. Without the feature `cranelift` the libraries alone, which is
//! what runs with AddressSanitizer: see `tests/heads.sh`.
#![cfg(all(unix, feature = "native"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that fails may stop, and says what it leaves out"
)]

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use common::{labels, plugins, run};
use tempfile::TempDir;
use trafficllm_heads::*;

/// Libraries that the tests built.
static BUILT: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// An example head as a library of this machine.
fn native(name: &str) -> NativeHead {
    let source = plugins().join("examples").join(format!("{name}.c"));
    NativeHead::load(&common::library(BUILT.path(), &source)).unwrap()
}

fn module_bytes(name: &str) -> Vec<u8> {
    std::fs::read(
        plugins()
            .join("examples/modules")
            .join(format!("{name}.wasm")),
    )
    .unwrap()
}

#[cfg(feature = "cranelift")]
fn sandbox(allows_state: bool, isolation: Isolation) -> Sandbox {
    let options = SandboxOptions {
        allows_state,
        isolation,
        ..SandboxOptions::default()
    };
    Sandbox::new(options).unwrap()
}

#[cfg(feature = "cranelift")]
fn module(name: &str, bytes: &[u8]) -> Arc<dyn Head> {
    let isolation = if name == "fusion" {
        Isolation::Call
    } else {
        Isolation::Flow
    };
    Arc::new(sandbox(true, isolation).load(name, bytes, &[]).unwrap())
}

/// A head as a library and, where there is a compiler for it, as a module.
fn both(name: &str, conditions: &Conditions) -> Vec<Station> {
    let heads: Vec<Arc<dyn Head>> = vec![
        Arc::new(native(name)),
        #[cfg(feature = "cranelift")]
        module(name, &module_bytes(name)),
    ];
    let stations = heads.into_iter().map(|head| station(head, conditions));
    stations.collect()
}

fn station(head: Arc<dyn Head>, conditions: &Conditions) -> Station {
    let guard = Guard::new(head, GuardOptions::default());
    Station::new(Arc::new(guard), Arc::new(conditions.clone()))
}

/// Label, score, whether it abstains, and evidence.
type Said = (u16, f32, bool, String);

fn said(station: &mut Station, flows: &[FlowInput<'_>]) -> Vec<Said> {
    let mut answers = Answers::default();
    station.judge(flows, &mut answers);
    let one = |answer| match answer {
        Answer::Verdict(verdict) => {
            let evidence = verdict.evidence.to_owned();
            (verdict.label, verdict.score, verdict.abstained, evidence)
        }
        Answer::None(reason) => panic!("{reason:?}"),
    };
    answers.iter().map(one).collect()
}

fn model() -> Conditions {
    let task = |name: &str, labels: &[&str]| TaskContext {
        name: name.to_owned(),
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        threshold: 0.5,
    };
    Conditions {
        model: ModelContext {
            hidden: 128,
            tasks: vec![
                task("device_type", &["camera", "plug"]),
                task("botnet_detection", &["Zeus", "normal", "Neris"]),
                task(
                    "malicious_doh_detection",
                    &["benign-dns", "tunnel", "non-doh-https"],
                ),
            ],
        },
        ..Conditions::default()
    }
}

#[test]
fn the_fusion_head_says_how_likely_it_is_that_something_is_bad() {
    let conditions = model();
    let task = |task, label, score, scores| TaskInput {
        task,
        label,
        score,
        abstained: false,
        scores,
    };
    // Botnet 0.2 + 0.1 bad, tunnel 0.5 bad: 1 - 0.7 * 0.5.
    let all = [
        task(0, 1, 0.9, &[0.1, 0.9][..]),
        task(1, 1, 0.7, &[0.2, 0.7, 0.1]),
        task(2, 1, 0.5, &[0.3, 0.5, 0.2]),
    ];
    // Only the best labels are known; the second is not sure, and counts half.
    let best = [
        task(1, 1, 0.9, &[]),
        TaskInput {
            abstained: true,
            ..task(2, 1, 0.4, &[])
        },
    ];
    let nothing = [task(0, 1, 0.9, &[])];
    let flow = |tasks| FlowInput {
        tasks,
        ..FlowInput::default()
    };
    let flows = [flow(&all[..]), flow(&best[..]), flow(&nothing[..])];
    for mut head in both("fusion", &conditions) {
        for _ in 0..2 {
            let found = said(&mut head, &flows);
            let expected = [
                (
                    1,
                    0.65,
                    false,
                    "of 2 tasks, most by malicious_doh_detection",
                ),
                (
                    0,
                    0.72,
                    false,
                    "of 2 tasks, most by malicious_doh_detection",
                ),
                (0, 0.0, true, ""),
            ];
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(
                    (found.0, found.2, &*found.3),
                    (expected.0, expected.2, expected.3)
                );
                assert!((found.1 - expected.1).abs() < 1e-6, "{found:?}");
            }
        }
        // A model without a task that tells good from bad.
        let mut other = conditions.clone();
        other.model.tasks.truncate(1);
        let mut head = Station::new(Arc::clone(head.guard()), Arc::new(other));
        let mut answers = Answers::default();
        head.judge(&flows[..1], &mut answers);
        assert_eq!(labels(&answers), [Err(Reason::Refused)]);
    }
}

/// Numbers that look random, below the one that is asked for.
fn noise(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed;
    move |most| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % most
    }
}

fn call(pair: u64, start_us: u64) -> FlowInput<'static> {
    FlowInput {
        pair,
        start_us,
        duration_us: 20_000,
        packets_total: 4,
        ..FlowInput::default()
    }
}

/// Flows of host pairs, 40 each: 7 calls each minute with some jitter, 8 after half a second and, as long as nothing happens, after twice the
/// time before, 9 when it likes.
fn calls() -> Vec<FlowInput<'static>> {
    let mut next = noise(12_345);
    let (mut jitter_us, mut clock_us, mut other_us, mut wait_us) =
        (1_000_000, 1_000_000, 1_000_000, 500_000);
    let mut flows = Vec::new();
    for _ in 0..40 {
        jitter_us += 50_000_000 + next(20_000_000);
        clock_us += wait_us + next(3_000);
        other_us += 1_000_000 * (1 << next(6)) + next(1_500_000);
        wait_us = if wait_us == 8_000_000 || next(4) == 0 {
            500_000
        } else {
            2 * wait_us
        };
        flows.extend([(7, jitter_us), (8, clock_us), (9, other_us)]);
    }
    flows.sort_by_key(|flow| flow.1);
    let calls = flows.into_iter();
    calls.map(|(pair, start_us)| call(pair, start_us)).collect()
}

/// What the beaconing head says of these flows, in whatever form it is.
fn both_say(flows: &[FlowInput<'_>]) -> Vec<Said> {
    let mut found: Vec<Vec<Said>> = Vec::new();
    for mut head in both("beaconing", &Conditions::default()) {
        // The first at once, the second in small calls.
        let size = if found.is_empty() { flows.len() } else { 7 };
        let calls = flows.chunks(size);
        found.push(calls.flat_map(|some| said(&mut head, some)).collect());
    }
    let first = found.swap_remove(0);
    assert!(
        found.iter().all(|other| *other == first),
        "{found:?} {first:?}"
    );
    first
}

#[test]
fn the_beaconing_head_tells_who_calls_by_a_clock() {
    let flows = calls();
    let found = both_say(&flows);
    let of = |pair: u64| {
        let both = flows.iter().zip(&found);
        let of_pair = both.filter(move |(flow, _)| flow.pair == pair);
        of_pair.map(|(_, said)| said).collect::<Vec<_>>()
    };
    let (jitter, clock, other) = (of(7), of(8), of(9));
    assert!(jitter[..5].iter().all(|said| said.2), "{jitter:?}");
    assert!(clock[..5].iter().all(|said| said.2), "{clock:?}");
    let is_beacon = |said: &&Said| said.0 == 1 && !said.2 && said.1 > 0.5;
    assert!(jitter[8..].iter().all(is_beacon), "{jitter:?}");
    assert!(clock[8..].iter().all(is_beacon), "{clock:?}");
    assert!(other.iter().all(|said| said.0 == 0), "{other:?}");
    assert!(other[10..].iter().all(|said| !said.2), "{other:?}");
    assert!(
        jitter[39]
            .3
            .contains(" s on average, within a fifth: 24 calls"),
        "{:?}",
        jitter[39]
    );
    assert!(
        clock[39]
            .3
            .contains(" s, halved or doubled: 23 of 23 distances between calls"),
        "{:?}",
        clock[39]
    );
}

/// The seconds before its flow that the evidence names flows by.
fn named_s(evidence: &str) -> Vec<f64> {
    let list = evidence.split("flows that began ").nth(1).unwrap();
    let list = list.strip_suffix(" s before").unwrap().split(' ');
    list.map(|number| number.parse().unwrap()).collect()
}

#[test]
fn the_beaconing_head_says_which_flows_made_it_think_so() {
    // A clock of two seconds, and in between a flow that has nothing to do with it.
    let starts_us = [
        0, 2_000, 4_001, 5_100, 6_001, 8_000, 10_002, 12_001, 14_003, 16_002,
    ];
    let flows: Vec<FlowInput<'_>> = starts_us
        .iter()
        .map(|start_us| call(3, 1_000_000 + 1_000 * start_us))
        .collect();
    let found = both_say(&flows);
    let last = found.last().unwrap();
    assert_eq!(last.0, 1, "{last:?}");
    let named = named_s(&last.3);
    // The call in between is named by neither of its distances.
    assert_eq!(
        named,
        [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0],
        "{last:?}"
    );
}

#[test]
fn the_beaconing_head_sees_the_clock_inside_flows_but_not_repetitions() {
    let packet = |gap_us, is_from_responder, payload_bytes| PacketInput {
        gap_us,
        is_from_responder,
        payload_bytes,
        ..PacketInput::default()
    };
    // Polls: an answer at once, the next question after a second.
    let polls: Vec<PacketInput> = (0..10)
        .flat_map(|_| [packet(1_001_000, false, 90), packet(900, true, 120)])
        .collect();
    // The same times, but it is one question again and again.
    let repeats: Vec<PacketInput> = (0..20).map(|_| packet(1_001_000, false, 90)).collect();
    for (packets, expected) in [(&polls, 1), (&repeats, 0)] {
        // Far apart, so that their beginnings say nothing.
        let flows: Vec<FlowInput<'_>> = [1_u64, 977, 2_500]
            .iter()
            .map(|start_s| FlowInput {
                packets,
                ..call(5, start_s * 1_000_000)
            })
            .collect();
        let found = both_say(&flows);
        assert_eq!(found[2].0, expected, "{found:?}");
        if expected == 1 {
            let text = "every 1.00 s, halved or doubled: 24 of 24 waits inside flows";
            assert!(found[2].3.starts_with(text), "{found:?}");
            assert_eq!(named_s(&found[2].3), [1_523.0, 2_499.0]);
        } else {
            assert!(found[2].2, "{found:?}");
        }
    }
}

#[test]
fn the_beaconing_head_sees_one_conversation_in_many_flows() {
    let mut next = noise(3);
    let mut start_us = 1_000_000;
    let mut flows: Vec<FlowInput<'_>> = Vec::new();
    for _ in 0..40 {
        flows.push(call(6, start_us));
        start_us += 20_000 + next(3_000);
    }
    let found = both_say(&flows);
    assert!(found[..23].iter().all(|said| said.0 == 0), "{found:?}");
    assert!(found[23..].iter().all(|said| said.0 == 2), "{found:?}");
    assert!(found[39].3.starts_with("40 flows in a row"), "{found:?}");
    // The same flows all at once are none.
    let at_once: Vec<FlowInput<'_>> = flows
        .iter()
        .map(|flow| call(6, 1_000_000 + flow.start_us % 1_000))
        .collect();
    assert!(both_say(&at_once).iter().all(|said| said.0 == 0));
}

#[test]
fn the_beaconing_head_takes_flows_in_any_order() {
    let mut flows: Vec<FlowInput<'_>> = calls().into_iter().filter(|flow| flow.pair == 8).collect();
    // Pairs change places, as flows do that last longer than the next.
    flows.chunks_exact_mut(2).for_each(|two| two.swap(0, 1));
    let found = both_say(&flows);
    assert!(found[10..].iter().all(|said| said.0 == 1), "{found:?}");
}

#[test]
fn the_beaconing_head_forgets_the_silent_and_stays_within_its_memory() {
    let mut station = both("beaconing", &Conditions::default()).pop().unwrap();
    // Ten thousand pairs, twenty times its room, beside one that calls each minute and so is never the oldest.
    let mut answers = Answers::default();
    let mut of_the_beacon = Vec::new();
    for minute in 0..10_u64 {
        let now_us = minute * 60_000_000;
        let crowd =
            (0..1_000).map(|number| call(1_000_000 * (minute + 1) + number * 7_919, now_us + 1));
        let flows: Vec<FlowInput<'_>> =
            std::iter::once(call(42, now_us + 2)).chain(crowd).collect();
        answers.clear();
        station.judge(&flows, &mut answers);
        let found = labels(&answers);
        assert!(found.iter().all(Result::is_ok));
        of_the_beacon.push(found[0]);
    }
    assert_eq!(of_the_beacon[9], Ok(1), "{of_the_beacon:?}");
    let counters = station.guard().counters();
    assert_eq!((counters.faults, counters.verdicts), (0, 10_010));
}

fn random_linear(hidden: usize, labels: usize) -> Linear {
    let mut random = 99_u64;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    let weights = (0..labels * hidden).map(|_| next()).collect();
    let bias = (0..labels).map(|_| next()).collect();
    let names = (0..labels).map(|label| format!("label {label}")).collect();
    Linear::new(("refitted", "7"), names, 0.9, (weights, bias)).unwrap()
}

/// The Rust head as a library of this machine.
fn linear_library() -> PathBuf {
    let target = BUILT.path().join("target");
    run(Command::new(env!("CARGO"))
        .args([
            "build",
            "--offline",
            "--quiet",
            "--release",
            "-p",
            "trafficllm-head-linear",
        ])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"),
            "--target-dir",
        ])
        .arg(&target)
        .env_remove("RUSTFLAGS"));
    target.join("release/libtrafficllm_head_linear.so")
}

#[test]
fn the_linear_head_says_the_same_built_in_as_a_module_and_as_a_library() {
    let linear = random_linear(128, 10);
    let mut conditions = Conditions::default();
    conditions.model.hidden = 128;
    let heads = all_forms(&linear);

    let hidden: Vec<Vec<f32>> = (0..50)
        .map(|flow| {
            (0..128)
                .map(|value| ((flow * 131 + value * 17) % 97) as f32 / 24.0 - 2.0)
                .collect()
        })
        .collect();
    let flows = hidden.iter().map(|hidden| FlowInput {
        hidden,
        ..FlowInput::default()
    });
    let flows: Vec<FlowInput<'_>> = flows.collect();
    let mut all = Vec::new();
    for head in heads {
        let (mut head, mut answers) = (station(head, &conditions), Answers::default());
        head.judge(&flows, &mut answers);
        all.push(answers);
    }
    let mut kinds = [0, 0];
    for number in 0..flows.len() {
        let verdict = |answers: &Answers| match answers.get(number) {
            Some(Answer::Verdict(verdict)) => {
                (verdict.label, verdict.abstained, verdict.scores.to_vec())
            }
            other => panic!("{other:?}"),
        };
        let expected = verdict(&all[0]);
        assert!((expected.2.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        kinds[usize::from(expected.1)] += 1;
        for other in &all[1..] {
            let found = verdict(other);
            assert_eq!((found.0, found.1), (expected.0, expected.1));
            let differences = found
                .2
                .iter()
                .zip(&expected.2)
                .map(|(one, two)| (one - two).abs());
            assert!(
                differences.fold(0.0, f32::max) < 1e-5,
                "{found:?} {expected:?}"
            );
        }
    }
    assert!(kinds[0] > 5 && kinds[1] > 5, "{kinds:?}");
}

/// Built in, as a library and, where there is a compiler, as a module.
fn all_forms(linear: &Linear) -> Vec<Arc<dyn Head>> {
    let library = std::fs::read(linear_library()).unwrap();
    let name = format!("{}.so", linear.about().name);
    let path = BUILT.path().join(name);
    std::fs::write(&path, linear.fill(&library).unwrap()).unwrap();
    let heads: Vec<Arc<dyn Head>> = vec![
        Arc::new(linear.clone()),
        Arc::new(NativeHead::load(&path).unwrap()),
        #[cfg(feature = "cranelift")]
        module("linear", &linear.fill(&module_bytes("linear")).unwrap()),
    ];
    assert!(heads.iter().all(|head| head.about() == linear.about()));
    heads
}

#[test]
fn a_task_of_the_model_has_a_voice_in_the_linear_head() {
    // Without weights the voice alone speaks, with an eighth of its weight: probabilities to the power of an eighth.
    let labels = ["normal", "Zeus", "Neris"].map(str::to_owned).to_vec();
    let named = |name| {
        Linear::new(
            (name, "1"),
            labels.clone(),
            0.0,
            (vec![0.0; 24], vec![0.0; 3]),
        )
    };
    let pooled = named("pooled")
        .unwrap()
        .pooled_with("botnet_detection", 0.125)
        .unwrap();
    let mut conditions = model();
    conditions.model.hidden = 8;
    // The model has Zeus, normal, Neris.
    let scores = [[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [1e-7, 3e-5, 0.999_97]];
    for head in all_forms(&pooled) {
        let mut head = station(head, &conditions);
        let mut answers = Answers::default();
        for scores in &scores {
            let tasks = [0, 1].map(|task| TaskInput {
                task,
                scores: if task == 1 { scores } else { &[] },
                ..TaskInput::default()
            });
            let flow = FlowInput {
                hidden: &[1.0; 8],
                tasks: &tasks,
                ..FlowInput::default()
            };
            answers.clear();
            head.judge(&[flow], &mut answers);
            let Some(Answer::Verdict(verdict)) = answers.get(0) else {
                panic!("{answers:?}")
            };
            let power = |score: f32| score.max(1e-6).powf(0.125);
            let expected = [power(scores[1]), power(scores[0]), power(scores[2])];
            let sum: f32 = expected.iter().sum();
            for (found, expected) in verdict.scores.iter().zip(expected) {
                assert!((found - expected / sum).abs() < 1e-6, "{verdict:?}");
            }
        }
        // The task was not asked.
        answers.clear();
        let flow = FlowInput {
            hidden: &[1.0; 8],
            ..FlowInput::default()
        };
        head.judge(&[flow], &mut answers);
        assert_eq!(common::labels(&answers), [Err(Reason::Refused)]);
    }
    // A model without the task, or whose task has other labels.
    let other = named("other")
        .unwrap()
        .pooled_with("device_type", 0.5)
        .unwrap();
    let missing = named("missing")
        .unwrap()
        .pooled_with("no_such_task", 0.5)
        .unwrap();
    for head in all_forms(&other).into_iter().chain(all_forms(&missing)) {
        let mut answers = Answers::default();
        station(head, &conditions).judge(&[FlowInput::default()], &mut answers);
        assert_eq!(common::labels(&answers), [Err(Reason::Refused)]);
    }
    for (task, weight) in [("", 0.5), ("Task", 0.5), ("task", f32::NAN)] {
        assert!(named("none").unwrap().pooled_with(task, weight).is_none());
    }
}

#[cfg(feature = "cranelift")]
#[test]
fn an_unfitted_linear_head_abstains_and_one_for_another_model_is_not_started() {
    let sandbox = sandbox(false, Isolation::Flow);
    let mut conditions = Conditions::default();
    conditions.model.hidden = 64;
    let unfitted = sandbox
        .load("linear", &module_bytes("linear"), &[])
        .unwrap();
    assert_eq!(unfitted.about().labels, ["a", "b"]);
    let hidden = random_linear(128, 2).fill(&module_bytes("linear")).unwrap();
    let other = sandbox.load("linear", &hidden, &[]).unwrap();
    let mut station = station(Arc::new(other), &conditions);
    let mut answers = Answers::default();
    station.judge(&[FlowInput::default()], &mut answers);
    assert_eq!(labels(&answers), [Err(Reason::Model)]);
}

#[test]
fn parameters_are_refused_where_they_do_not_fit() {
    let module = module_bytes("linear");
    assert!(random_linear(128, 40).fill(&module).is_some());
    assert!(
        random_linear(1_024, 40).fill(&module).is_none(),
        "160 KB into 24 KB"
    );
    assert!(
        random_linear(8, 2).fill(&module_bytes("fusion")).is_none(),
        "no template"
    );
    assert!(
        random_linear(8, 2)
            .fill(&module[..module.len() / 2])
            .is_none(),
        "half a template"
    );
    let make = |labels: usize, weights: Vec<f32>, bias: usize| {
        let labels = (0..labels).map(|label| label.to_string()).collect();
        Linear::new(("name", "1"), labels, 0.5, (weights, vec![0.0; bias]))
    };
    assert!(make(2, vec![0.0; 8], 2).is_some());
    assert!(make(2, vec![0.0; 7], 2).is_none());
    assert!(make(2, vec![0.0; 8], 3).is_none());
    assert!(make(0, vec![], 0).is_none());
    assert!(make(65, vec![0.0; 65], 65).is_none());
    assert!(make(64, vec![0.0; 64], 64).is_some());
    assert!(make(2, vec![f32::NAN; 8], 2).is_none());
}

#[cfg(feature = "cranelift")]
#[test]
fn the_modules_are_what_the_sources_make() {
    let is_there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !is_there("clang") || !is_there("wasm-ld") {
        let is_required = std::env::var_os("TLLM_REQUIRE_WASM").is_some_and(|value| value == "1");
        assert!(
            !is_required,
            "clang and lld are not installed, and TLLM_REQUIRE_WASM=1"
        );
        eprintln!("clang and lld are not installed: the modules are taken as they are");
        return;
    }
    let built = tempfile::tempdir().unwrap();
    run(Command::new(plugins().join("examples/build.sh"))
        .arg(built.path())
        .env_remove("CARGO_TARGET_DIR"));
    let tools = |folder: &std::path::Path| std::fs::read_to_string(folder.join("TOOLS")).unwrap();
    let (ours, theirs) = (
        tools(built.path()),
        tools(&plugins().join("examples/modules")),
    );
    for (name, is_of_rust) in [("beaconing", false), ("fusion", false), ("linear", true)] {
        let Ok(made) = std::fs::read(built.path().join(format!("{name}.wasm"))) else {
            assert!(is_of_rust, "{name}.wasm was not made");
            eprintln!(
                "the target wasm32-unknown-unknown is not installed: linear.wasm is taken as it is"
            );
            continue;
        };
        // The last line is the Rust compiler; those before are what C is built with.
        let tool = |text: &str| {
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if is_of_rust {
                lines.get(2..).map(<[String]>::to_vec)
            } else {
                lines.get(..2).map(<[String]>::to_vec)
            }
        };
        if tool(&ours) == tool(&theirs) {
            assert_eq!(
                sha256(&made),
                sha256(&module_bytes(name)),
                "{name}.wasm is not what these sources make: run plugins/examples/build.sh plugins/examples/modules"
            );
        } else {
            eprintln!(
                "{name}.wasm was made with {theirs}, and this is {ours}: not compared byte by byte"
            );
        }
        // Another compiler makes other bytes; what a head says of itself, and its size, are those of the source.
        let sandbox = sandbox(true, Isolation::Flow);
        let made_head = sandbox.load(name, &made, &[]).unwrap();
        let committed = sandbox.load(name, &module_bytes(name), &[]).unwrap();
        assert_eq!(made_head.about(), committed.about());
        assert!(made.len() < 48 << 10, "{name}: {} bytes", made.len());
    }
}
