//! Heads in the whole engine: whatever a head does, the model's verdicts are those that it gives alone, and go out.
#![cfg(feature = "heads")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test helper that fails is a failed test"
)]

#[path = "../heads/tests/common/attack_list.rs"]
mod attack_list;
mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use attack_list::{ATTACKS, Outcome as Fate};
use common::{FLOW_TASKS, capture, recorded_flows, small_bundle, small_model};
use trafficllm::{
    Answer, Bundle, Engine, EngineOptions, Error, Flow, FlowConfig, HeadFile, HeadOptions,
    HeadStatus, Judgement, Level, Model, Outcome, Sink, Subject, Verdict,
};
use trafficllm_heads::{
    Answer as HeadAnswer, Answers, Conditions, FlowInput, Guard, GuardOptions, Linear,
    ModelContext, Sandbox, SandboxOptions, Station,
};
use trafficllm_model::{HeadManifest, Insight, Item, Scratch};

const LONG: Duration = Duration::from_secs(60);

fn plugins() -> PathBuf {
    common::repository().join("plugins")
}

/// WebAssembly text as a module in a file of a folder.
fn module(folder: &Path, text: &Path) -> HeadFile {
    let name = text.file_stem().unwrap().to_str().unwrap();
    let path = folder.join(format!("{name}.wasm"));
    std::fs::write(&path, wat::parse_file(text).unwrap()).unwrap();
    HeadFile { path, task: None }
}

fn good(folder: &Path) -> HeadFile {
    module(folder, &plugins().join("examples/good.wat"))
}

fn example(name: &str) -> HeadFile {
    HeadFile {
        path: plugins().join("examples/modules").join(name),
        task: None,
    }
}

/// Options with these heads, which are never switched off.
fn with(modules: &[HeadFile], workers: usize) -> EngineOptions {
    EngineOptions {
        workers,
        heads: HeadOptions {
            modules: modules.to_vec(),
            faults_in_a_row_max: 0,
            allows_state: true,
            // A machine that is busy elsewhere must not decide what a test finds.
            batch_us_max: 0,
            ..HeadOptions::default()
        },
        ..EngineOptions::default()
    }
}

/// A verdict in a form that can be kept: the bits of the score, not its digits.
fn kept(verdict: &Verdict<'_>) -> String {
    format!(
        "{} {} {:08x} {} {:?} {}",
        verdict.task,
        verdict.label,
        verdict.score.to_bits(),
        verdict.abstained,
        verdict.evidence,
        verdict.reason
    )
}

#[derive(Default)]
struct Collect {
    /// The verdicts of each outcome, and the packets of its flow.
    outcomes: Vec<(u64, Vec<String>)>,
}

impl Sink for Collect {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        let packets = match &outcome.subject {
            Subject::Flow(flow) => flow.packets,
            Subject::Request(_) => 0,
        };
        let verdicts = outcome.verdicts.iter().map(kept).collect();
        self.outcomes.push((packets, verdicts));
        ControlFlow::Continue(())
    }
}

/// The outcomes of captures, and what the heads did.
fn detected(
    model: &Arc<Model>,
    options: EngineOptions,
    captures: &[Vec<u8>],
) -> (Vec<(u64, Vec<String>)>, Vec<HeadStatus>) {
    let engine = Engine::new(Arc::clone(model), options).unwrap();
    engine.start().unwrap();
    let mut detection = engine.detect(Collect::default());
    for capture in captures {
        detection.capture(capture.as_slice()).unwrap();
    }
    let (tally, sink) = detection.finish().unwrap();
    assert_eq!(tally.flows, sink.outcomes.len() as u64);
    (sink.outcomes, engine.heads())
}

fn files(names: &[&str]) -> Vec<Vec<u8>> {
    let read = |name: &&str| std::fs::read(capture(name)).unwrap();
    names.iter().map(read).collect()
}

fn without(head: &HeadStatus, reason: &str) -> u64 {
    let found = head.without.iter().find(|(name, _)| *name == reason);
    found.unwrap().1
}

#[cfg(feature = "default-bundle")]
#[test]
fn no_hostile_head_changes_a_verdict_of_the_model_and_each_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::open_default().unwrap());
    let captures = files(&["tls.pcapng", "http.pcap"]);
    let (alone, _) = detected(&model, EngineOptions::default(), &captures);
    let tasks = model.task_names().len();
    assert!(alone.len() >= 5 && alone.iter().all(|(_, verdicts)| verdicts.len() <= tasks));
    for &(name, fate) in ATTACKS {
        let file = module(
            folder.path(),
            &plugins().join(format!("attacks/{name}.wat")),
        );
        let good = good(folder.path());
        // Only one attack asks to keep what it knows, to be refused.
        let mut options = with(&[good, file.clone()], 0);
        options.heads.allows_state = false;
        if let Fate::Refused(words) = fate {
            let error = Engine::new(Arc::clone(&model), options).err().unwrap();
            let text = error.to_string();
            assert!(matches!(error, Error::Head(_)), "{name}: {text}");
            let path = file.path.to_str().unwrap();
            assert!(
                text.contains(path) && text.contains(words),
                "{name}: {text}"
            );
            continue;
        }
        let (found, heads) = detected(&model, options, &captures);
        assert_eq!(found.len(), alone.len(), "{name}");
        for ((packets, verdicts), (_, expected)) in found.iter().zip(&alone) {
            let (own, of_heads) = verdicts.split_at(expected.len());
            assert_eq!(own, expected, "{name}");
            let label = if *packets > 10 { "yes" } else { "no" };
            assert!(of_heads[0].starts_with(&format!("good {label} ")), "{name}");
            let hostile = &of_heads[1];
            match fate {
                Fate::Faults(reason) => {
                    assert!(hostile.ends_with(reason.name()), "{name}: {hostile}");
                    assert!(hostile.contains("  00000000 true"), "{name}: {hostile}");
                }
                // Every call is its first, so it always says the same.
                Fate::Forgets => assert_eq!(hostile, found[0].1.last().unwrap(), "{name}"),
                _ => assert!(hostile.contains(&format!(" {label} ")), "{name}: {hostile}"),
            }
        }
        let (flows, hostile) = (alone.len() as u64, &heads[1]);
        assert_eq!((heads[0].verdicts, heads[0].faults), (flows, 0), "{name}");
        match fate {
            Fate::Faults(reason) => {
                assert_eq!(without(hostile, reason.name()), flows, "{name}");
                assert_eq!((hostile.verdicts, hostile.switched_off), (0, 0), "{name}");
            }
            _ => assert_eq!((hostile.verdicts, hostile.faults), (flows, 0), "{name}"),
        }
    }
}

#[test]
fn a_head_that_fails_in_a_row_is_switched_off_until_it_is_switched_on() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let division = module(folder.path(), &plugins().join("attacks/division.wat"));
    let mut options = with(&[division], 0);
    options.heads.faults_in_a_row_max = 3;
    let engine = Engine::new(Arc::clone(&model), options).unwrap();
    let flows = recorded_flows(&model);
    let mut classifier = engine.classifier().unwrap();
    let name = engine.heads()[0].name.clone();
    let mut reasons = |engine: &Engine| {
        let mut reasons = Vec::new();
        for flow in &flows[..5] {
            let take = |_, answer: &Answer<'_>| {
                let Judgement::Verdicts(verdicts) = answer.judgement else {
                    panic!("{answer:?}");
                };
                let last = verdicts.last().unwrap();
                assert_eq!((last.task, last.label), (name.as_str(), ""));
                assert!(verdicts.len() > 2 && verdicts[0].reason.is_empty());
                reasons.push(last.reason.to_owned());
            };
            classifier.classify(&[flow], take).unwrap();
        }
        assert_eq!(engine.heads()[0].verdicts, 0);
        reasons
    };
    let expected = ["trap", "trap", "trap", "switched_off", "switched_off"];
    // One of the faults is that of trying the head before the first flow, where it fails then.
    let found = reasons(&engine);
    assert_eq!(found, expected);
    let status = &engine.heads()[0];
    assert!(!status.is_enabled && status.switched_off == 1);
    engine.set_head_enabled(&name, true).unwrap();
    assert!(engine.heads()[0].is_enabled);
    assert_eq!(reasons(&engine), expected);
    assert_eq!(engine.heads()[0].switched_off, 2);
    let error = engine.set_head_enabled("other", true).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("unknown head \"other\": the engine has {name}")
    );
    let metrics = engine.metrics(0, trafficllm::RecorderCounters::default());
    let line =
        format!("trafficllm_head_without_verdict_total{{head=\"{name}\",reason=\"trap\"}} 6\n");
    assert!(metrics.contains(&line), "{metrics}");
    // With another model it has another chance, unless it was the operator who switched it off.
    engine.activate(small_model(|_| ())).unwrap();
    assert!(engine.heads()[0].is_enabled);
    engine.set_head_enabled(&name, false).unwrap();
    engine.activate(model).unwrap();
    assert!(!engine.heads()[0].is_enabled);
}

#[test]
fn heads_answer_alike_on_every_way_in_and_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let modules = [good(folder.path()), example("fusion.wasm")];
    let captures = files(&[
        "http.pcap",
        "tls.pcapng",
        "smtp.pcap",
        "ssh.pcap",
        "dns-tunnel.pcap",
    ]);
    let (first, heads) = detected(&model, with(&modules, 0), &captures);
    assert!(heads.iter().all(|head| head.verdicts == first.len() as u64));
    for workers in 1..=3 {
        let (found, _) = detected(&model, with(&modules, workers), &captures);
        assert_eq!(found, first, "{workers} workers");
    }
    // The small model makes one task of two, so that fusion sees a difference between flows.
    let flows = recorded_flows(&model);
    let engine = common::started(&model, with(&modules, 2));
    let mut classified = Vec::new();
    let all: Vec<&Flow> = flows.iter().collect();
    let take = |_, answer: &Answer<'_>| classified.push(text(answer));
    engine.classifier().unwrap().classify(&all, take).unwrap();
    let mut submitter = engine.submitter().unwrap();
    let mut submitted = vec![Vec::new(); flows.len()];
    for (id, flow) in flows.iter().enumerate() {
        while submitter.submit(flow, id as u64).is_err() {
            submitter.wait(LONG, |answer| submitted[answer.id as usize] = text(answer));
        }
    }
    while submitter.in_flight() > 0 {
        submitter.wait(LONG, |answer| submitted[answer.id as usize] = text(answer));
    }
    assert_eq!(submitted, classified);
    assert!(engine.verdicts_max() >= classified.iter().map(Vec::len).max().unwrap());
}

#[test]
fn a_head_that_always_fails_is_switched_off_once_whatever_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let division = module(folder.path(), &plugins().join("attacks/division.wat"));
    let captures = files(&["http.pcap", "tls.pcapng", "smtp.pcap", "ssh.pcap"]);
    for workers in 0..=3_u64 {
        let mut options = with(std::slice::from_ref(&division), workers as usize);
        options.heads.faults_in_a_row_max = 3;
        let (found, heads) = detected(&model, options, &captures);
        let head = &heads[0];
        assert_eq!((head.is_enabled, head.switched_off), (false, 1));
        // Which flows those are is chance; each worker can be in one call when it is switched off.
        let failed = without(head, "trap");
        assert!((3..=3 + workers).contains(&failed), "{failed}");
        assert_eq!(
            failed + without(head, "switched_off"),
            found.len() as u64,
            "{workers} workers"
        );
    }
}

/// The verdicts of each of these flows, which a host gives one call of a classifier.
fn classified(engine: &Engine, flows: &[Flow]) -> Vec<Vec<String>> {
    let all: Vec<&Flow> = flows.iter().collect();
    let mut found = Vec::new();
    let take = |_, answer: &Answer<'_>| found.push(text(answer));
    engine.classifier().unwrap().classify(&all, take).unwrap();
    found
}

#[test]
fn a_batch_waits_for_heads_only_so_long_and_a_detection_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let flows = recorded_flows(&model);
    let count = flows.len() as u64;
    let alone = classified(
        &Engine::new(Arc::clone(&model), with(&[], 0)).unwrap(),
        &flows,
    );
    let endless = module(folder.path(), &plugins().join("attacks/endless_loop.wat"));
    let modules = [endless, example("beaconing.wasm")];
    let mut options = with(&modules, 0);
    // The endless head has half of it, and one call takes a million units of fuel: there is time for one at most.
    options.heads.batch_us_max = 2;
    options.batch_tokens = trafficllm::limits::BATCH_TOKENS_MAX;
    options.heads.faults_in_a_row_max = u32::MAX;
    let engine = Engine::new(Arc::clone(&model), options.clone()).unwrap();
    let found = classified(&engine, &flows);
    for (verdicts, expected) in found.iter().zip(&alone) {
        assert_eq!(&verdicts[..expected.len()], expected);
    }
    for head in engine.heads() {
        let late = without(&head, "late");
        assert_eq!(head.verdicts + without(&head, "fuel") + late, count);
        // A call is not begun late, and none is held against the head.
        assert_eq!(head.faults, without(&head, "fuel"));
        assert!(head.is_enabled);
    }
    let endless = &engine.heads()[0];
    assert!(without(endless, "late") > 0 && without(endless, "fuel") < count);
    let late = found.iter().filter(|verdicts| {
        let own = &verdicts[verdicts.len() - 2];
        own.ends_with(" late")
    });
    assert_eq!(late.count() as u64, without(endless, "late"));
    // A detection repeats, whatever the time.
    let (_, heads) = detected(&model, options.clone(), &files(&["http.pcap", "ssh.pcap"]));
    assert!(heads.iter().all(|head| without(head, "late") == 0));
    assert!(heads[1].verdicts > 0);
    // Without a limit of its own a batch waits no longer than for a deadline.
    options.heads.batch_us_max = 0;
    let engine = Engine::new(Arc::clone(&model), options).unwrap();
    classified(&engine, &flows);
    let heads = engine.heads();
    assert!(heads.iter().all(|head| without(head, "late") == 0));
    assert_eq!(
        (without(&heads[0], "fuel"), heads[1].verdicts),
        (count, count)
    );
}

#[test]
fn a_batch_waits_for_heads_no_longer_than_for_its_deadline() {
    const FLOWS: u64 = 200;
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let flows = recorded_flows(&model);
    let endless = module(folder.path(), &plugins().join("attacks/endless_loop.wat"));
    let mut options = with(&[endless], 0);
    options.deadline_us = 500_000;
    options.batch_tokens = trafficllm::limits::BATCH_TOKENS_MAX;
    // All of them would take many seconds.
    options.heads.fuel_per_flow = 100_000_000;
    let engine = Engine::new(Arc::clone(&model), options).unwrap();
    let mut submitter = engine.submitter().unwrap();
    for id in 0..FLOWS {
        let flow = &flows[id as usize % flows.len()];
        submitter.submit(flow, id).unwrap();
    }
    engine.run_pending();
    let (mut judged, mut expired) = (0, 0);
    submitter.poll(|answer| match answer.judgement {
        Judgement::Verdicts(verdicts) => {
            assert!(verdicts.len() > 1);
            judged += 1;
        }
        Judgement::Expired => expired += 1,
        other => panic!("{other:?}"),
    });
    assert_eq!(judged + expired, FLOWS);
    let head = &engine.heads()[0];
    let (fuel, late) = (without(head, "fuel"), without(head, "late"));
    assert_eq!(fuel + late, judged);
    assert!(
        late > 0 && fuel > 0,
        "{fuel} asked, {late} late, {expired} expired"
    );
}

#[test]
fn flows_of_hosts_and_of_detections_are_not_in_one_batch_if_there_are_heads() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let flows = recorded_flows(&model);
    for heads in [vec![], vec![good(folder.path())]] {
        let mut options = with(&heads, 0);
        options.batch_tokens = trafficllm::limits::BATCH_TOKENS_MAX;
        let engine = Engine::new(Arc::clone(&model), options).unwrap();
        let mut submitter = engine.submitter().unwrap();
        for id in 0..5 {
            submitter.submit(&flows[0], id).unwrap();
        }
        let mut detection = engine.detect(Collect::default());
        let capture = files(&["http.pcap"]).remove(0);
        detection.capture(capture.as_slice()).unwrap();
        assert!(detection.finish().unwrap().0.flows > 5);
        let mut answers = 0;
        submitter.poll(|_| answers += 1);
        assert_eq!(answers, 5);
        assert_eq!(engine.counters().batches, 1 + heads.len() as u64);
    }
}

#[test]
fn threads_beyond_those_that_a_head_has_room_for_have_no_verdict_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let flows = recorded_flows(&model);
    let mut options = with(&[good(folder.path())], 0);
    options.heads.faults_in_a_row_max = 1;
    let engine = Engine::new(Arc::clone(&model), options).unwrap();
    // The place of the worker that there is not, and of those beside; twice, for heads that are replaced. The engine has one itself, for
    // what waits.
    let room = 2 * (1 + 1 + trafficllm::limits::HEAD_THREADS_BESIDE_WORKERS) - 1;
    let mut classifiers: Vec<_> = (0..=room).map(|_| engine.classifier().unwrap()).collect();
    let last = |classifier: &mut trafficllm::Classifier| {
        let mut reason = None;
        let take = |_, answer: &Answer<'_>| {
            let Judgement::Verdicts(verdicts) = answer.judgement else {
                panic!("{answer:?}");
            };
            reason = verdicts.last().map(|last| last.reason.to_owned());
        };
        classifier.classify(&[&flows[0]], take).unwrap();
        reason.unwrap()
    };
    let mut beyond = classifiers.pop().unwrap();
    for (number, classifier) in classifiers.iter_mut().enumerate() {
        assert_eq!(last(classifier), "", "classifier {number}");
    }
    for _ in 0..3 {
        assert_eq!(last(&mut beyond), "unavailable");
    }
    let head = &engine.heads()[0];
    assert_eq!((head.faults, head.is_enabled), (0, true));
    // Who goes leaves room.
    classifiers.pop();
    assert_eq!(last(&mut beyond), "");
}

#[test]
fn what_heads_take_counts_for_the_memory_budget() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let memory = |modules: &[HeadFile], workers| {
        let engine = common::started(&model, with(modules, workers));
        engine.memory()
    };
    let modules = [good(folder.path()), example("beaconing.wasm")];
    for workers in [1, 3] {
        let (without, with) = (memory(&[], workers), memory(&modules, workers));
        assert_eq!(without.head_bytes, 0);
        // Code of both, the memory of the one that remembers, and for each worker the other one's memory, and what it was.
        let expected = (1 + 2 * workers) * HeadOptions::MEMORY_BYTES_DEFAULT;
        let range = expected..expected + HeadOptions::MEMORY_BYTES_DEFAULT;
        assert!(range.contains(&with.head_bytes), "{}", with.head_bytes);
        for (with, without) in with.worker_bytes.iter().zip(&without.worker_bytes) {
            assert!((*without..*without + HeadOptions::MEMORY_BYTES_DEFAULT).contains(with));
        }
        // It counts before the workers have begun, too, and no more for heads that come in the others' place.
        let engine = Engine::new(Arc::clone(&model), self::with(&[], workers)).unwrap();
        for _ in 0..3 {
            engine
                .set_heads(&self::with(&modules, workers).heads)
                .unwrap();
            assert!(range.contains(&engine.memory().head_bytes));
        }
    }
    // Just enough for the model and its workers, and too little for heads on top.
    let mut options = with(&[], 2);
    options.memory_bytes_max = memory(&[], 2).total_bytes() + HeadOptions::MEMORY_BYTES_DEFAULT;
    let engine = Engine::new(Arc::clone(&model), options.clone()).unwrap();
    let error = engine.set_heads(&with(&modules, 2).heads).unwrap_err();
    assert!(matches!(error, Error::MemoryBudget { .. }), "{error}");
    assert!(engine.heads().is_empty());
    options.heads = with(&modules, 2).heads;
    let error = Engine::new(Arc::clone(&model), options.clone())
        .err()
        .unwrap();
    assert!(matches!(error, Error::MemoryBudget { .. }), "{error}");
    options.memory_bytes_max += 16 * HeadOptions::MEMORY_BYTES_DEFAULT;
    assert_eq!(Engine::new(model, options).unwrap().heads().len(), 2);
}

#[test]
fn limits_of_heads_are_held_to_their_ranges() {
    let model = small_model(|_| ());
    let engine = Engine::new(Arc::clone(&model), EngineOptions::default()).unwrap();
    for (change, name) in [
        (
            (|heads| heads.memory_bytes_max = usize::MAX) as fn(&mut HeadOptions),
            "heads.memory_bytes_max",
        ),
        (|heads| heads.memory_bytes_max = 0, "heads.memory_bytes_max"),
        (|heads| heads.fuel_per_flow = 0, "heads.fuel_per_flow"),
        (
            |heads| heads.fuel_per_flow = u64::MAX,
            "heads.fuel_per_flow",
        ),
        (
            |heads| heads.batch_us_max = trafficllm::limits::HEAD_BATCH_US_MAX + 1,
            "heads.batch_us_max",
        ),
    ] {
        let mut options = EngineOptions::default();
        change(&mut options.heads);
        let error = engine.set_heads(&options.heads).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        let error = Engine::new(Arc::clone(&model), options).err().unwrap();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_a_head_is_told_does_not_depend_on_other_heads() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    // Says whether the flow is complete, and asks for no packets.
    let good = std::fs::read_to_string(plugins().join("examples/good.wat")).unwrap();
    let flag = "(i32.and (i32.load (i32.add (local.get $in) (i32.const 4))) (i32.const 1))";
    let length = "(i64.gt_u (i64.load (i32.add (local.get $in) (i32.const 32))) (i64.const 10))";
    assert!(good.contains(length));
    let text = folder.path().join("flag.wat");
    std::fs::write(&text, good.replace(length, flag)).unwrap();
    let flag = module(folder.path(), &text);
    let said = |modules: &[HeadFile]| -> Vec<(u64, String)> {
        let mut options = with(modules, 0);
        options.flows = Some(FlowConfig {
            max_packets: 4,
            ..model.flow_config()
        });
        let captures = files(&["http.pcap", "dns-tunnel.pcap", "tls.pcapng"]);
        let (found, _) = detected(&model, options, &captures);
        let of_flag = |verdicts: &[String]| {
            let mut own = verdicts.iter().filter(|text| text.starts_with("good "));
            own.next().unwrap().clone()
        };
        let found = found.iter();
        found
            .map(|(packets, verdicts)| (*packets, of_flag(verdicts)))
            .collect()
    };
    let alone = said(std::slice::from_ref(&flag));
    // The other one asks for packets.
    assert_eq!(said(&[flag, example("beaconing.wasm")]), alone);
    for (packets, verdict) in &alone {
        let label = if *packets <= 4 { "yes" } else { "no" };
        assert!(verdict.starts_with(&format!("good {label} ")), "{packets}");
    }
    let complete = alone.iter().filter(|(packets, _)| *packets <= 4).count();
    assert!(complete > 0 && complete < alone.len(), "{complete}");
}

fn text(answer: &Answer<'_>) -> Vec<String> {
    match answer.judgement {
        Judgement::Verdicts(verdicts) => verdicts.iter().map(kept).collect(),
        other => panic!("{other:?}"),
    }
}

/// A linear head of the small model's hidden vector.
fn linear(hidden: usize) -> Linear {
    let weights = (0..3 * hidden).map(|number| ((number * 37 % 101) as f32 - 50.0) / 100.0);
    let labels = ["one", "two", "three"].map(str::to_owned).to_vec();
    let parameters = (weights.collect(), vec![0.0; 3]);
    Linear::new(("linear", "1"), labels, 0.4, parameters).unwrap()
}

#[test]
fn a_head_is_given_the_hidden_state_of_its_source_task() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let core = model.core();
    let hidden = core.config().hidden;
    let template = std::fs::read(plugins().join("examples/modules/linear.wasm")).unwrap();
    let path = folder.path().join("linear.wasm");
    std::fs::write(&path, linear(hidden).fill(&template).unwrap()).unwrap();
    let flows = recorded_flows(&model);
    let mut of_tasks = Vec::new();
    for (task, name) in FLOW_TASKS.into_iter().enumerate() {
        let file = HeadFile {
            path: path.clone(),
            task: Some(name.to_owned()),
        };
        let engine = Engine::new(Arc::clone(&model), with(&[file], 0)).unwrap();
        assert_eq!(engine.heads()[0].source_task, name);
        let mut found = Vec::new();
        let all: Vec<&Flow> = flows.iter().collect();
        let take = |_, answer: &Answer<'_>| {
            let Judgement::Verdicts(verdicts) = answer.judgement else {
                panic!("{answer:?}");
            };
            let last = verdicts.last().unwrap();
            found.push((last.label_index as u16, last.score, last.abstained));
        };
        engine.classifier().unwrap().classify(&all, take).unwrap();
        let index = core.tasks().iter().position(|known| known.name() == name);
        let expected = expected_of(&model, &flows, index.unwrap());
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.0, found.2), (expected.0, expected.2));
            assert!(
                (found.1 - expected.1).abs() < 1e-5,
                "{found:?} {expected:?}"
            );
        }
        assert!(
            found.iter().any(|found| found.0 != expected[0].0),
            "{task}: one label is no test"
        );
        of_tasks.push(expected);
    }
    assert_ne!(
        of_tasks[0], of_tasks[1],
        "the tasks have states of their own"
    );
    for wrong in ["request_task", "no_task"] {
        let file = HeadFile {
            path: path.clone(),
            task: Some(wrong.to_owned()),
        };
        let error = Engine::new(Arc::clone(&model), with(&[file], 0))
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(
            text.contains("linear.wasm") && text.contains(wrong),
            "{text}"
        );
    }
    let short = folder.path().join("short.wasm");
    std::fs::write(&short, linear(hidden - 8).fill(&template).unwrap()).unwrap();
    let file = HeadFile {
        path: short,
        task: None,
    };
    let error = Engine::new(Arc::clone(&model), with(&[file], 0))
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("made for a hidden vector of 56 values"),
        "{error}"
    );
}

/// The verdicts of the linear head that is built in on states that the model gives.
fn expected_of(model: &Model, flows: &[Flow], task: usize) -> Vec<(u16, f32, bool)> {
    let core = model.core();
    let conditions = Conditions {
        model: ModelContext {
            hidden: core.config().hidden as u32,
            ..ModelContext::default()
        },
        ..Conditions::default()
    };
    let head = Arc::new(linear(core.config().hidden));
    let guard = Arc::new(Guard::new(head, GuardOptions::default()));
    let mut station = Station::new(guard, Arc::new(conditions));
    let (mut scratch, mut verdicts) = (Scratch::default(), Vec::new());
    let mut insight = Insight::new(true, false);
    let mut encoding = trafficllm_traffic::token::EncodeScratch::default();
    let mut tokens = Vec::new();
    let mut answers = Answers::default();
    for flow in flows {
        model
            .encoder()
            .encode_flow(flow, &mut encoding, &mut tokens);
        let item = Item {
            tokens: &tokens,
            tasks: &[task],
        };
        core.classify_with(&[item], &mut scratch, &mut verdicts, &mut insight)
            .unwrap();
        let input = FlowInput {
            hidden: insight.state(0),
            ..FlowInput::default()
        };
        station.judge(&[input], &mut answers);
    }
    let of = |answer: HeadAnswer<'_>| match answer {
        HeadAnswer::Verdict(verdict) => (verdict.label, verdict.score, verdict.abstained),
        HeadAnswer::None(reason) => panic!("{reason:?}"),
    };
    answers.iter().map(of).collect()
}

/// A capture of datagrams: time in seconds, the last byte of the source's address, its port.
fn datagrams(packets: &[(u64, u8, u16)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 101] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for &(seconds, host, port) in packets {
        let payload = [0x55_u8; 40];
        let length = 28 + payload.len();
        for field in [seconds as u32, 0, length as u32, length as u32] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let mut packet = vec![0x45, 0, 0, length as u8, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend_from_slice(&[10, 0, 0, host, 192, 0, 2, 1]);
        packet.extend_from_slice(&port.to_be_bytes());
        packet.extend_from_slice(&[0, 53, 0, 8 + payload.len() as u8, 0, 0]);
        packet.extend_from_slice(&payload);
        bytes.extend_from_slice(&packet);
    }
    bytes
}

#[test]
fn a_head_that_remembers_sees_the_order_of_the_outcomes_on_any_number_of_threads() {
    let model = small_model(|_| ());
    let mut packets = Vec::new();
    for call in 0..120_u64 {
        // Host 1 calls every ten minutes, host 2 now and then, host 3 in between.
        packets.push((600 * call, 1, 2_000 + call as u16));
        packets.push((
            600 * call + 7 + (call * call * 37) % 500,
            2,
            3_000 + call as u16,
        ));
        if call % 3 == 0 {
            packets.push((600 * call + 300, 3, 4_000 + call as u16));
        }
    }
    packets.sort_unstable();
    let captures = [datagrams(&packets)];
    let modules = [example("beaconing.wasm")];
    let (first, heads) = detected(&model, with(&modules, 0), &captures);
    assert_eq!(first.len(), packets.len());
    assert!(heads[0].is_stateful && heads[0].faults == 0);
    let beacons = first.iter().filter(|(_, verdicts)| {
        let last = verdicts.last().unwrap();
        last.starts_with("beaconing beacon ") && last.contains(" false \"")
    });
    // All but the first calls of host 1, and of host 3, which calls every half an hour.
    assert!(beacons.clone().count() >= 115 + 30, "{}", beacons.count());
    assert!(first.iter().any(|(_, verdicts)| {
        verdicts
            .last()
            .unwrap()
            .contains("every 600.00 s, halved or doubled: ")
    }));
    for workers in 1..=3 {
        for _ in 0..3 {
            let (found, _) = detected(&model, with(&modules, workers), &captures);
            assert!(found == first, "{workers} workers");
        }
    }
    // Two detections of one engine know nothing of each other.
    let engine = Engine::new(Arc::clone(&model), with(&modules, 0)).unwrap();
    for _ in 0..2 {
        let mut detection = engine.detect(Collect::default());
        detection.capture(captures[0].as_slice()).unwrap();
        assert!(detection.finish().unwrap().1.outcomes == first);
    }
    let mut options = with(&modules, 0);
    options.heads.allows_state = false;
    let error = Engine::new(model, options).err().unwrap().to_string();
    assert!(
        error.contains("beaconing.wasm: about: keeping state between calls"),
        "{error}"
    );
}

#[test]
fn heads_are_swapped_under_load_and_each_answer_is_that_of_its_generation() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(|_| ());
    let flows = recorded_flows(&model);
    let sets = [vec![], vec![good(folder.path())]];
    let expected = sets.clone().map(|modules| {
        let engine = Engine::new(Arc::clone(&model), with(&modules, 0)).unwrap();
        let all: Vec<&Flow> = flows.iter().collect();
        let mut found = Vec::new();
        let take = |_, answer: &Answer<'_>| found.push(text(answer));
        engine.classifier().unwrap().classify(&all, take).unwrap();
        found
    });
    let engine = common::started(&model, with(&sets[1], 2));
    let stop = AtomicBool::new(false);
    let judged = std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| submit_under_swaps(&engine, &flows, &expected, &stop)))
            .collect();
        for round in 0..30 {
            let options = with(&sets[round % 2], 0).heads;
            assert_eq!(engine.set_heads(&options).unwrap(), round as u64 + 2);
            // One that cannot be loaded changes nothing.
            let missing = HeadFile::parse("/nowhere/head.wasm");
            let refused = with(&[missing], 0).heads;
            assert!(matches!(engine.set_heads(&refused), Err(Error::Head(_))));
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, SeqCst);
        let judged = submitters.into_iter().map(|thread| thread.join().unwrap());
        judged.fold([0; 2], |sum, found| [sum[0] + found[0], sum[1] + found[1]])
    });
    assert!(judged.iter().all(|count| *count > 20), "{judged:?}");
    assert_eq!(engine.counters().worker_panics, 0);
    assert_eq!(engine.generation(), 31);
}

/// How many flows were answered without a head, and with one.
fn submit_under_swaps(
    engine: &Engine,
    flows: &[Flow],
    expected: &[Vec<Vec<String>>; 2],
    stop: &AtomicBool,
) -> [u64; 2] {
    let mut submitter = engine.submitter().unwrap();
    let (mut id, mut judged) = (0, [0; 2]);
    while !stop.load(SeqCst) || submitter.in_flight() > 0 {
        if !stop.load(SeqCst)
            && submitter
                .submit(&flows[id % flows.len()], id as u64)
                .is_ok()
        {
            id += 1;
        }
        submitter.poll(|answer| {
            // Generation 1 has a head, 2 none, 3 has one, ...
            let has_head = answer.generation as usize % 2;
            let flow = answer.id as usize % flows.len();
            assert_eq!(
                text(answer),
                expected[has_head][flow],
                "{}",
                answer.generation
            );
            judged[has_head] += 1;
        });
    }
    judged
}

/// The small bundle with a module named in its manifest.
fn bundle_with(module: &[u8], edit: impl Fn(&mut HeadManifest)) -> Result<Bundle, Error> {
    let plain = small_bundle(|_| ());
    let mut manifest = plain.manifest().clone();
    let names = manifest.files.keys();
    let mut files: BTreeMap<String, Vec<u8>> = names
        .map(|name| (name.clone(), plain.file(name).unwrap().to_vec()))
        .collect();
    files.insert("heads/good.wasm".to_owned(), module.to_vec());
    let mut head: HeadManifest = serde_json::from_value(serde_json::json!({
        "name": "good",
        "module": { "file": "heads/good.wasm" },
    }))
    .unwrap();
    edit(&mut head);
    manifest.heads = vec![head];
    Ok(Bundle::build(manifest, files)?)
}

#[test]
fn heads_of_the_bundle_are_run_unless_the_operator_says_otherwise() {
    let wasm = wat::parse_file(plugins().join("examples/good.wat")).unwrap();
    let bundle = bundle_with(&wasm, |_| ()).unwrap();
    let model = Arc::new(Model::load(&bundle, Level::detect()).unwrap());
    let names = |options: EngineOptions| -> Vec<String> {
        let engine = Engine::new(Arc::clone(&model), options).unwrap();
        engine.heads().into_iter().map(|head| head.name).collect()
    };
    assert_eq!(names(EngineOptions::default()), ["good"]);
    let tasks = |tasks: &[&str]| EngineOptions {
        tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
        ..EngineOptions::default()
    };
    assert_eq!(names(tasks(&["first_task", "good"])), ["good"]);
    assert!(names(tasks(&["first_task"])).is_empty());
    let mut off = EngineOptions::default();
    off.heads.uses_bundled = false;
    assert!(names(off).is_empty());
    // A model without them replaces it, and comes back.
    let engine = Engine::new(Arc::clone(&model), EngineOptions::default()).unwrap();
    engine.activate(small_model(|_| ())).unwrap();
    assert!(engine.heads().is_empty());
    engine.activate(Arc::clone(&model)).unwrap();
    assert_eq!(engine.heads().len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let same = with(&[good(folder.path())], 0);
    let error = Engine::new(Arc::clone(&model), same)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("expected one that no task and no other head has, found good"),
        "{error}"
    );
    for (edit, words) in [
        (
            (|head| head.name = "first_task".to_owned()) as fn(&mut HeadManifest),
            "heads[0].name",
        ),
        (
            |head| head.task = "request_task".to_owned(),
            "heads[0].task",
        ),
        (|head| head.fuel_per_flow = 0, "heads[0].fuel_per_flow"),
        (
            |head| head.module.file = "heads/other.wasm".to_owned(),
            "heads[0].module.file",
        ),
    ] {
        let error = bundle_with(&wasm, edit).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
    let other = bundle_with(&wasm, |head| head.name = "better".to_owned()).unwrap();
    let words = "name: expected better, as bundle.json has it, found good";
    works_without_its_head(&other, "better", words);
}

/// A bundle whose head cannot be used: the model works, and the head has no verdicts, unless the operator insists on it.
fn works_without_its_head(bundle: &Bundle, name: &str, words: &str) {
    let model = Arc::new(Model::load(bundle, Level::detect()).unwrap());
    let plain = small_model(|_| ());
    let captures = files(&["http.pcap", "tls.pcapng"]);
    let mut options = EngineOptions::default();
    options.heads.faults_in_a_row_max = 1;
    let (alone, _) = detected(&plain, options.clone(), &captures);
    let (found, heads) = detected(&model, options.clone(), &captures);
    assert_eq!(heads.len(), 1);
    let flows = found.len() as u64;
    let head = &heads[0];
    assert!(head.error.contains(words), "{}", head.error);
    assert_eq!((head.name.as_str(), head.faults), (name, 0));
    assert_eq!(without(head, "unavailable"), flows);
    assert!(head.is_enabled);
    for ((_, verdicts), (_, expected)) in found.iter().zip(&alone) {
        let (last, own) = verdicts.split_last().unwrap();
        assert_eq!(own, expected);
        assert!(last.starts_with(&format!("{name}  ")), "{last}");
        assert!(last.ends_with(" unavailable"), "{last}");
    }
    // A running engine takes it as well.
    let engine = Engine::new(plain, options.clone()).unwrap();
    engine.activate(Arc::clone(&model)).unwrap();
    assert!(!engine.heads()[0].error.is_empty());
    options.heads.requires_bundled = true;
    let error = Engine::new(Arc::clone(&model), options.clone())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains(words), "{error}");
    assert!(engine.set_heads(&options.heads).is_err());
}

#[test]
fn precompiled_heads_run_only_from_the_bundle_and_with_the_operators_leave() {
    let wasm = wat::parse_file(plugins().join("examples/good.wat")).unwrap();
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let precompiled = sandbox.precompile("good", &wasm).unwrap();
    let bundle = bundle_with(&precompiled, |_| ()).unwrap();
    works_without_its_head(&bundle, "good", "is not among the 0 trusted ones");
    let model = Arc::new(Model::load(&bundle, Level::detect()).unwrap());
    let mut options = EngineOptions::default();
    options.heads.allows_precompiled = true;
    let (found, heads) = detected(&model, options, &files(&["http.pcap"]));
    assert_eq!(heads[0].verdicts, found.len() as u64);
    // A file that no bundle vouches for.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.cwasm");
    std::fs::write(&path, &precompiled).unwrap();
    let mut options = with(&[HeadFile { path, task: None }], 0);
    options.heads.allows_precompiled = true;
    let refused = Engine::new(small_model(|_| ()), options)
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("good.cwasm: precompiled"), "{refused}");
}

#[test]
fn the_command_runs_the_heads_of_a_bundle_unless_told_otherwise() {
    let wasm = wat::parse_file(plugins().join("examples/good.wat")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("with-head.tllm");
    let bundle = bundle_with(&wasm, |_| ()).unwrap();
    bundle.write_packed(&path).unwrap();
    let path = path.to_str().unwrap();
    let captured = capture("http.pcap");
    let detect = |more: &[&str]| {
        let mut arguments = vec!["detect", "--model", path, "--format", "json"];
        arguments.extend(more);
        arguments.push(&captured);
        let (status, out, error) = common::run(&arguments);
        assert_eq!(status, 0, "{error}");
        out
    };
    assert!(detect(&[]).contains("\"good\""));
    assert!(!detect(&["--no-bundled-heads"]).contains("\"good\""));
}
