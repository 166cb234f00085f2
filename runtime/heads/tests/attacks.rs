//! The hostile heads of `plugins/attacks`, each with what becomes of it, beside a good head that must not notice.
#![cfg(feature = "cranelift")]
#![allow(clippy::unwrap_used, reason = "a test that fails may stop")]

#[path = "common/attack_list.rs"]
mod attack_list;
mod common;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use attack_list::{ATTACKS, Outcome, Outcome::*};
use common::{flow, judged, labels, plugins, station};
use trafficllm_heads::*;

/// Flows of so many packets are judged at once.
const PACKETS: [u64; 5] = [1, 100, 2, 200, 3];
/// As the good head sees them.
const GOOD: [Result<u16, Reason>; 5] = [Ok(0), Ok(1), Ok(0), Ok(1), Ok(0)];

fn good(sandbox: &Sandbox) -> Station {
    let bytes = wat::parse_file(plugins().join("examples/good.wat")).unwrap();
    station(Arc::new(sandbox.load("good", &bytes, &[]).unwrap()), 3)
}

/// Holds one attack to its outcome; gives the head back where it was loaded.
fn attack(sandbox: &Sandbox, name: &str, outcome: Outcome) {
    let bytes = wat::parse_file(plugins().join("attacks").join(format!("{name}.wat"))).unwrap();
    let loaded = sandbox.load(name, &bytes, &[]);
    let expected = match outcome {
        Refused(words) => {
            let error = loaded.map(|_| ()).unwrap_err().to_string();
            assert!(
                error.starts_with(name) && error.contains(words),
                "{name}: {error}"
            );
            return;
        }
        Faults(reason) => [Err(reason); 5],
        Harmless => GOOD,
        Forgets => [Ok(0); 5],
    };
    let mut hostile = station(Arc::new(loaded.unwrap()), 0);
    for _ in 0..3 {
        assert_eq!(judged(&mut hostile, &PACKETS), expected, "{name}");
    }
    let counters = hostile.guard().counters();
    assert_eq!(counters.flows(), 15, "{name}: {counters:?}");
    match outcome {
        Faults(reason) => {
            assert_eq!(counters.without(reason), 15, "{name}: {counters:?}");
            assert!(
                counters.faults >= 3 && counters.verdicts == 0,
                "{name}: {counters:?}"
            );
        }
        _ => assert_eq!((counters.faults, counters.verdicts), (0, 15), "{name}"),
    }
}

fn all(options: SandboxOptions) {
    let sandbox = Sandbox::new(options).unwrap();
    let mut good = good(&sandbox);
    for &(name, outcome) in ATTACKS {
        assert_eq!(judged(&mut good, &PACKETS), GOOD, "before {name}");
        attack(&sandbox, name, outcome);
        assert_eq!(judged(&mut good, &PACKETS), GOOD, "after {name}");
    }
    let counters = good.guard().counters();
    assert_eq!(counters.verdicts, counters.flows());
    assert_eq!(counters.faults, 0);
}

#[test]
fn every_attack_ends_as_expected_and_a_good_head_beside_it_does_not_notice() {
    all(SandboxOptions::default());
}

#[cfg(feature = "pulley")]
#[test]
fn every_attack_ends_the_same_in_the_interpreter() {
    all(SandboxOptions {
        execution: Execution::Interpreted,
        ..SandboxOptions::default()
    });
}

#[test]
fn every_file_of_the_folder_is_tried() {
    let entries = std::fs::read_dir(plugins().join("attacks")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|found| found == "wat"));
    let found: BTreeSet<String> = files
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let tried: BTreeSet<String> = ATTACKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, tried);
}

/// The good head with something more in it.
fn good_with(more: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(plugins().join("examples/good.wat")).unwrap();
    let end = text.rfind(')').unwrap();
    wat::parse_str(format!("{}{more})", &text[..end])).unwrap()
}

fn refusal(sandbox: &Sandbox, bytes: &[u8]) -> HeadError {
    sandbox.load("large", bytes, &[]).unwrap_err()
}

fn numbered(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        writeln!(text, "{}", item(number)).unwrap();
        text
    })
}

/// Each limit of a module: what takes it beyond, and that it is taken just below.
#[test]
fn a_module_with_too_much_of_something_is_refused_before_it_is_compiled() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let limit = |bytes: &[u8]| match refusal(&sandbox, bytes) {
        HeadError::Limit {
            what, limit, found, ..
        } => (what, limit, found),
        other => panic!("{other}"),
    };
    let loads = |bytes: &[u8]| drop(sandbox.load("small", bytes, &[]).unwrap());

    let exports = |count: usize| {
        good_with(&numbered(count, |number| {
            format!("(export \"{number}\" (memory 0))")
        }))
    };
    assert_eq!(limit(&exports(100_000)), ("exports", 64, 100_008));
    assert_eq!(limit(&exports(57)), ("exports", 64, 65));
    loads(&exports(56));

    // A data segment for each 60,000 bytes: all of them over the same memory.
    let huge = |bytes: usize| {
        let data = "x".repeat(60_000);
        good_with(&numbered(bytes / 60_000, |_| {
            format!("(data (i32.const 5000) \"{data}\")")
        }))
    };
    let bytes = huge(1_100_000);
    assert_eq!(limit(&bytes), ("bytes", 1 << 20, bytes.len() as u64));
    loads(&huge(960_000));

    let functions = |count: usize| good_with(&numbered(count, |_| "(func)".to_owned()));
    assert_eq!(limit(&functions(50_000)), ("functions", 4_096, 50_007));
    assert_eq!(limit(&functions(4_090)), ("functions", 4_096, 4_097));
    loads(&functions(4_089));

    let body =
        |count: usize| good_with(&format!("(func {})", "(drop (i32.const 1))".repeat(count)));
    assert!(matches!(
        limit(&body(100_000)),
        ("bytes of a function", 65_536, 300_000..)
    ));
    loads(&body(20_000));

    let locals = |count: usize| good_with(&format!("(func (local{}))", " i32".repeat(count)));
    assert_eq!(
        limit(&locals(50_000)),
        ("locals of a function", 1_024, 50_000)
    );
    assert_eq!(
        limit(&locals(1_025)),
        ("locals of a function", 1_024, 1_025)
    );
    loads(&locals(1_024));

    let globals = |count: usize| {
        good_with(&numbered(count, |_| {
            "(global (mut i32) (i32.const 0))".to_owned()
        }))
    };
    assert_eq!(limit(&globals(65)), ("globals", 64, 65));
    loads(&globals(64));
}

#[test]
fn no_bytes_are_loaded_that_are_no_module() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let good = good_with("");
    // Behind the code stand only names for debuggers: without those it is whole.
    let whole = (0..good.len()).filter(|&length| match sandbox.load("cut", &good[..length], &[]) {
        Ok(_) => true,
        Err(error) => {
            assert!(
                !matches!(error, HeadError::Fault { .. }),
                "{length}: {error}"
            );
            false
        }
    });
    assert_eq!(whole.count(), 1);
    let component = b"\0asm\x0d\0\x01\0";
    let error = refusal(&sandbox, component).to_string();
    assert!(error.contains("a component is not allowed"), "{error}");
}

#[test]
fn a_flood_of_lines_costs_its_fuel_and_leaves_a_few() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let bytes = wat::parse_file(plugins().join("attacks/log_flood.wat")).unwrap();
    let head = Arc::new(sandbox.load("log_flood", &bytes, &[]).unwrap());
    let mut hostile = station(Arc::clone(&head) as Arc<dyn Head>, 0);
    assert_eq!(judged(&mut hostile, &[1]), [Err(Reason::Fuel)]);
    // A million units of fuel are less than a thousand lines, of which sixteen are kept.
    let lost = head.log_lines_lost();
    assert!((900..1_000 - 16).contains(&lost), "{lost}");
}

#[test]
fn a_hostile_head_is_switched_off_after_faults_in_a_row_and_can_be_switched_on_again() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let bytes = wat::parse_file(plugins().join("attacks/nan_score.wat")).unwrap();
    let mut hostile = station(Arc::new(sandbox.load("nan_score", &bytes, &[]).unwrap()), 3);
    let mut good = good(&sandbox);
    let (nan, off) = (Err(Reason::NotANumber), Err(Reason::SwitchedOff));
    assert_eq!(judged(&mut hostile, &PACKETS), [nan, nan, nan, off, off]);
    assert!(!hostile.guard().is_enabled());
    assert_eq!(judged(&mut hostile, &PACKETS), [off; 5]);
    let counters = hostile.guard().counters();
    assert_eq!((counters.faults, counters.switched_off), (3, 1));
    assert_eq!(counters.without(Reason::SwitchedOff), 7);
    assert_eq!(judged(&mut good, &PACKETS), GOOD);
    hostile.guard().set_enabled(true);
    assert_eq!(judged(&mut hostile, &[1, 1]), [nan, nan]);
    assert!(hostile.guard().is_enabled());
    assert_eq!(judged(&mut hostile, &[1, 1]), [nan, off]);
    assert_eq!(hostile.guard().counters().switched_off, 2);
}

#[test]
fn a_batch_fails_as_a_whole_where_it_is_one_call() {
    let options = SandboxOptions {
        isolation: Isolation::Call,
        ..SandboxOptions::default()
    };
    let sandbox = Sandbox::new(options).unwrap();
    let mut good = good(&sandbox);
    assert_eq!(judged(&mut good, &PACKETS), GOOD);
    // It counts calls: the five flows are one, and the next call is the first again.
    let bytes = wat::parse_file(plugins().join("attacks/leaks_memory.wat")).unwrap();
    let mut hostile = station(
        Arc::new(sandbox.load("leaks_memory", &bytes, &[]).unwrap()),
        0,
    );
    for _ in 0..3 {
        assert_eq!(judged(&mut hostile, &PACKETS), [Ok(0); 5]);
    }
    let bytes = wat::parse_file(plugins().join("attacks/endless_loop.wat")).unwrap();
    let mut hostile = station(
        Arc::new(sandbox.load("endless_loop", &bytes, &[]).unwrap()),
        0,
    );
    assert_eq!(judged(&mut hostile, &PACKETS), [Err(Reason::Fuel); 5]);
    assert_eq!(hostile.guard().counters().faults, 1);
}

#[test]
fn instances_are_counted_and_come_back() {
    let options = SandboxOptions {
        instances_max: 2,
        ..SandboxOptions::default()
    };
    let sandbox = Sandbox::new(options).unwrap();
    let (mut one, mut two) = (good(&sandbox), good(&sandbox));
    assert_eq!(judged(&mut one, &[1]), [Ok(0)]);
    assert_eq!(judged(&mut two, &[1]), [Ok(0)]);
    let text = good_with("(func)");
    assert!(matches!(
        sandbox.load("third", &text, &[]).unwrap_err(),
        HeadError::Fault {
            fault: Fault::Unavailable(_),
            ..
        }
    ));
    drop(one);
    let head = Arc::new(sandbox.load("third", &text, &[]).unwrap());
    let mut three = station(Arc::clone(&head) as Arc<dyn Head>, 0);
    let mut four = station(head, 0);
    assert_eq!(judged(&mut three, &[1]), [Ok(0)]);
    assert_eq!(judged(&mut four, &[1]), [Err(Reason::Unavailable)]);
    drop(two);
    assert_eq!(judged(&mut four, &[1]), [Ok(0)]);
}

#[test]
fn a_flow_that_is_too_large_costs_no_other_and_is_no_fault() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let text = std::fs::read_to_string(plugins().join("examples/good.wat")).unwrap();
    // Asks for payload; flags of the needs stand behind magic, bytes and version.
    let text = text.replacen(
        r#""\00\00\01\00" "\00\00\00\00""#,
        r#""\00\00\01\00" "\08\00\00\00""#,
        1,
    );
    let head = Arc::new(
        sandbox
            .load("payload", &wat::parse_str(text).unwrap(), &[])
            .unwrap(),
    );
    assert!(head.about().needs.has(Needs::PAYLOAD));
    let mut station = station(head, 1);
    let (fits, does_not) = (vec![1; 1_600], vec![1; 5_000]);
    let with = |payload| FlowInput {
        payload: Some(payload),
        ..flow(100)
    };
    let mut answers = Answers::default();
    station.judge(&[with(&fits), with(&does_not), with(&fits)], &mut answers);
    assert_eq!(labels(&answers), [Ok(1), Err(Reason::TooLarge), Ok(1)]);
    assert_eq!(station.guard().counters().faults, 0);
}

#[test]
fn a_head_that_begins_anew_all_the_time_is_switched_off_and_one_that_does_so_now_and_then_is_not() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let bytes = wat::parse_file(plugins().join("attacks/leaks_growth.wat")).unwrap();
    let grows = Arc::new(sandbox.load("leaks_growth", &bytes, &[]).unwrap());
    let mut hostile = station(Arc::clone(&grows) as Arc<dyn Head>, 4);
    // Each flow but the first has it begin anew: 4 times are free, and for a fifth it has not answered enough.
    let answers = judged(&mut hostile, &[1; 40]);
    assert_eq!(answers[..5], [Ok(0); 5]);
    assert_eq!(answers[39], Err(Reason::SwitchedOff));
    let counters = hostile.guard().counters();
    assert_eq!((counters.restarts, counters.verdicts), (5, 5 + 1));
    assert_eq!((counters.faults, counters.switched_off), (0, 1));
    // Fails with every other flow.
    let text = std::fs::read_to_string(plugins().join("examples/good.wat")).unwrap();
    let score = "(f32.const 0.75)";
    assert!(text.contains(score));
    let failing = "(select (f32.const 0.75) (f32.const 9) (i64.eq (i64.load (i32.add (local.get $in) (i32.const 32))) (i64.const 1)))";
    let bytes = wat::parse_str(text.replace(score, failing)).unwrap();
    let head = Arc::new(sandbox.load("failing", &bytes, &[]).unwrap());
    let mut failing = station(Arc::clone(&head) as Arc<dyn Head>, 4);
    let alternating: Vec<u64> = (0..40).map(|flow| 1 + flow % 2).collect();
    let answers = judged(&mut failing, &alternating);
    assert_eq!(answers[..2], [Ok(0), Err(Reason::Rubbish)]);
    assert_eq!(answers[39], Err(Reason::SwitchedOff));
    // Once for 16 flows and more is nothing.
    let mut seldom = station(head, 2);
    let flows: Vec<u64> = (0..600)
        .map(|flow| if flow % 20 == 19 { 2 } else { 1 })
        .collect();
    let answers = judged(&mut seldom, &flows);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 570);
    assert!(seldom.guard().is_enabled());
    assert_eq!(seldom.guard().counters().restarts, 29);
}

#[test]
fn flows_whose_turn_comes_too_late_are_counted_and_no_fault() {
    use std::time::{Duration, Instant};
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let mut good = good(&sandbox);
    let flows = [flow(1), flow(100)];
    let mut answers = Answers::default();
    let now = Instant::now();
    good.judge_until(Some(now), &flows, &mut answers);
    let late = Err(Reason::Late);
    assert_eq!(labels(&answers), [late, late]);
    answers.clear();
    good.judge_until(Some(now + Duration::from_secs(3_600)), &flows, &mut answers);
    assert_eq!(labels(&answers), [Ok(0), Ok(1)]);
    let counters = good.guard().counters();
    assert_eq!((counters.faults, counters.verdicts), (0, 2));
    assert_eq!((counters.without(Reason::Late), counters.flows()), (2, 4));
}

#[test]
fn what_a_module_says_in_messages_moves_no_terminal_and_is_short() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    // The names differ until the module is made: text with two equal ones might be refused.
    let name = |last: &str| format!("\\1b[2J\\0a{}{last}", "x".repeat(2_000));
    let exports = format!(
        "(export \"{}\" (memory 0)) (export \"{}\" (memory 0))",
        name("FIRST"),
        name("OTHER")
    );
    let mut bytes = good_with(&exports);
    let other = bytes
        .windows(5)
        .position(|found| found == b"OTHER")
        .unwrap();
    bytes[other..other + 5].copy_from_slice(b"FIRST");
    let text = refusal(&sandbox, &bytes).to_string();
    assert!(text.contains("duplicate export name"), "{text}");
    assert!(text.contains("\\u{1b}[2J\\n"), "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.chars().count() < 400, "{}", text.len());
    let import = "(module (import \"a\\1b[2J\" \"b\" (func)))";
    let text = refusal(&sandbox, &wat::parse_str(import).unwrap()).to_string();
    assert!(text.contains("import a\\u{1b}[2J.b: only"), "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");
}

#[test]
fn nothing_is_left_of_a_flow_that_was_too_large() {
    let sandbox = Sandbox::new(SandboxOptions::default()).unwrap();
    let text = std::fs::read_to_string(plugins().join("attacks/leaks_input.wat")).unwrap();
    // Asks for packets and payload, and looks behind its input.
    let text = text.replacen(
        r#""\00\00\01\00" "\00\00\00\00""#,
        r#""\00\00\01\00" "\0c\00\00\00""#,
        1,
    );
    let bytes = wat::parse_str(text).unwrap();
    let head = Arc::new(sandbox.load("behind", &bytes, &[]).unwrap());
    let needs = head.about().needs;
    assert!(needs.has(Needs::PACKETS) && needs.has(Needs::PAYLOAD));
    let mut hostile = station(head, 1);
    let packet = PacketInput {
        payload_bytes: 0x5555_5555,
        ..PacketInput::default()
    };
    let (packets, payload) = ([packet; 20], [0x55; 5_000]);
    let too_large = FlowInput {
        packets: &packets,
        payload: Some(&payload),
        ..flow(20)
    };
    let mut answers = Answers::default();
    // Its packets were written before there was no room for the payload; the next flow has none.
    hostile.judge(&[flow(1), too_large, flow(1), too_large], &mut answers);
    let large = Err(Reason::TooLarge);
    assert_eq!(labels(&answers), [Ok(0), large, Ok(0), large]);
}

/// Damaged heads: refused, or answered for within their fuel, and the good one beside them is as it was.
#[test]
fn a_damaged_head_is_refused_or_has_an_answer_for_every_flow() {
    let options = SandboxOptions {
        fuel_per_flow: 20_000,
        fuel_to_start: 200_000,
        allows_state: true,
        ..SandboxOptions::default()
    };
    let sandbox = Sandbox::new(options).unwrap();
    let mut good = good(&sandbox);
    let seeds = ["beaconing", "fusion"].map(|name| {
        std::fs::read(plugins().join(format!("examples/modules/{name}.wasm"))).unwrap()
    });
    let mut random = 4_711_u64;
    let mut next = |most: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % most
    };
    let (mut loaded, mut faults) = (0, 0);
    for case in 0..600 {
        let mut module = seeds[case % 2].clone();
        for _ in 0..=next(2) {
            let place = next(module.len());
            module[place] = next(256) as u8;
        }
        if let Ok(head) = sandbox.load("damaged", &module, &[]) {
            loaded += 1;
            let mut damaged = station(Arc::new(head), 0);
            assert_eq!(judged(&mut damaged, &PACKETS).len(), 5);
            let counters = damaged.guard().counters();
            assert_eq!(counters.flows(), 5, "{counters:?}");
            faults += usize::from(counters.faults > 0);
        }
    }
    // Not all of the damage is noticed at once, and not all is harmless.
    assert!((10..500).contains(&loaded), "{loaded}");
    assert!(faults > 0 && faults < loaded, "{faults} of {loaded}");
    assert_eq!(judged(&mut good, &PACKETS), GOOD);
}
