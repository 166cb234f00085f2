//! The blocks of the ABI: what is written is read again, and nothing that is read can do harm.
#![allow(clippy::unwrap_used, reason = "a test that fails may stop")]

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use trafficllm_heads::abi::*;
use trafficllm_heads::limits;

fn needs() -> impl Strategy<Value = Needs> {
    (0_u32..32).prop_map(Needs)
}

fn packets() -> impl Strategy<Value = Vec<PacketInput>> {
    let packet = any::<(u32, u32, u16, bool, u8)>().prop_map(|fields| PacketInput {
        payload_bytes: fields.0,
        gap_us: fields.1,
        payload_kept: fields.2,
        is_from_responder: fields.3,
        tcp_flags: fields.4,
    });
    vec(packet, 0..30)
}

fn tasks() -> impl Strategy<Value = Vec<DecodedTask>> {
    let score = 0.0_f32..=1.0;
    let task = (any::<(u16, u16, bool)>(), score.clone(), vec(score, 0..12));
    let task = task.prop_map(|((task, label, abstained), score, scores)| DecodedTask {
        task,
        label,
        score,
        abstained,
        scores,
    });
    vec(task, 0..8)
}

fn flow() -> impl Strategy<Value = DecodedFlow> {
    let numbers = any::<([u64; 5], u8)>();
    let payload = proptest::option::of(vec(any::<u8>(), 0..300));
    let lists = (packets(), vec(-9.0_f32..9.0, 0..70), tasks(), payload);
    (numbers, lists).prop_map(|((numbers, protocol), (packets, hidden, tasks, payload))| {
        let [pair, start_us, duration_us, packets_total, bytes_total] = numbers;
        DecodedFlow {
            pair,
            start_us,
            duration_us,
            packets_total,
            bytes_total,
            protocol,
            is_complete: packets_total % 2 == 0,
            is_payload_hidden: payload.is_none(),
            packets,
            hidden,
            tasks,
            payload: payload.unwrap_or_default(),
        }
    })
}

/// The flow without what was not asked for.
fn seen(flow: &DecodedFlow, needs: Needs) -> DecodedFlow {
    let mut seen = flow.clone();
    if !needs.has(Needs::HIDDEN) {
        seen.hidden.clear();
    }
    if !needs.has(Needs::TASKS) {
        seen.tasks.clear();
    }
    if !needs.has(Needs::PACKETS) {
        seen.packets.clear();
    }
    if !needs.has(Needs::PAYLOAD) {
        seen.payload.clear();
        seen.is_payload_hidden = false;
    }
    if !needs.has(Needs::PAIR) {
        seen.pair = 0;
    }
    seen
}

/// Runs `check` on the flows as the host has them.
fn with_inputs(flows: &[DecodedFlow], check: impl FnOnce(&[FlowInput<'_>])) {
    let tasks: Vec<Vec<TaskInput<'_>>> = flows
        .iter()
        .map(|flow| {
            let tasks = flow.tasks.iter().map(|task| TaskInput {
                task: task.task,
                label: task.label,
                score: task.score,
                abstained: task.abstained,
                scores: &task.scores,
            });
            tasks.collect()
        })
        .collect();
    let inputs = flows.iter().zip(&tasks).map(|(flow, tasks)| FlowInput {
        pair: flow.pair,
        start_us: flow.start_us,
        duration_us: flow.duration_us,
        packets_total: flow.packets_total,
        bytes_total: flow.bytes_total,
        protocol: flow.protocol,
        is_complete: flow.is_complete,
        packets: &flow.packets,
        hidden: &flow.hidden,
        tasks,
        payload: (!flow.is_payload_hidden).then_some(&flow.payload[..]),
    });
    check(&inputs.collect::<Vec<_>>());
}

fn encoded(flows: &[DecodedFlow], needs: Needs) -> Vec<u8> {
    let mut bytes = Vec::new();
    with_inputs(flows, |inputs| {
        bytes = vec![0xaa; flow_block_bytes(inputs, needs)];
        let length = encode_flows(inputs, needs, &mut bytes).unwrap();
        assert_eq!(length, bytes.len());
    });
    bytes
}

fn verdict_parts() -> impl Strategy<Value = (u16, f32, bool, Option<Vec<f32>>, String)> {
    let scores = proptest::option::of(vec(0.0_f32..=1.0, 5));
    (
        0_u16..5,
        0.0_f32..=1.0,
        any::<bool>(),
        scores,
        "[ -~äß€]{0,80}",
    )
}

proptest! {
    #[test]
    fn flows_are_read_as_they_were_written(flows in vec(flow(), 0..5), needs in needs()) {
        let bytes = encoded(&flows, needs);
        let expected: Vec<DecodedFlow> = flows.iter().map(|flow| seen(flow, needs)).collect();
        prop_assert_eq!(decode_flows(&bytes).unwrap(), expected);
    }

    #[test]
    fn no_room_is_no_block(flows in vec(flow(), 1..3), needs in needs(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&flows, needs);
        with_inputs(&flows, |inputs| {
            let mut room = vec![0; cut.index(bytes.len())];
            assert_eq!(encode_flows(inputs, needs, &mut room), None);
        });
        prop_assert!(decode_flows(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_broken_flows_block_is_an_error_or_other_flows(
        flows in vec(flow(), 0..3),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = encoded(&flows, Needs(31));
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(found) = decode_flows(&bytes) {
            prop_assert!(found.len() <= limits::FLOWS_MAX);
        }
    }

    #[test]
    fn verdicts_are_read_as_they_were_written(parts in vec(verdict_parts(), 0..6)) {
        let verdicts: Vec<Verdict<'_>> = parts
            .iter()
            .map(|(label, score, abstained, scores, evidence)| Verdict {
                label: *label,
                score: *score,
                abstained: *abstained,
                scores: scores.as_deref().unwrap_or_default(),
                evidence,
            })
            .collect();
        let mut room = vec![0xaa; verdicts_bytes_max(verdicts.len(), 5)];
        let length = encode_verdicts(&verdicts, &mut room).unwrap();
        let mut answers = Answers::default();
        decode_verdicts(&room[..length], verdicts.len(), 5, &mut answers).unwrap();
        let found: Vec<Answer<'_>> = answers.iter().collect();
        let expected: Vec<Answer<'_>> = verdicts.iter().copied().map(Answer::Verdict).collect();
        prop_assert_eq!(found, expected);
        for cut in 0..length {
            prop_assert!(decode_verdicts(&room[..cut], verdicts.len(), 5, &mut answers).is_err());
            prop_assert_eq!(answers.len(), verdicts.len());
        }
        let wrong = decode_verdicts(&room[..length], verdicts.len() + 1, 5, &mut answers);
        prop_assert!(wrong.is_err());
    }

    #[test]
    fn a_broken_verdicts_block_adds_only_what_the_abi_allows(
        parts in vec(verdict_parts(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let verdicts: Vec<Verdict<'_>> = parts
            .iter()
            .map(|(label, score, abstained, _, evidence)| Verdict {
                label: *label,
                score: *score,
                abstained: *abstained,
                scores: &[],
                evidence,
            })
            .collect();
        let mut room = vec![0; verdicts_bytes_max(verdicts.len(), 5)];
        let length = encode_verdicts(&verdicts, &mut room).unwrap();
        for (place, value) in damage {
            room[place.index(length)] = value;
        }
        let mut answers = Answers::default();
        let result = decode_verdicts(&room[..length], verdicts.len(), 5, &mut answers);
        prop_assert_eq!(answers.len(), if result.is_ok() { verdicts.len() } else { 0 });
        for answer in &answers {
            let Answer::Verdict(verdict) = answer else { panic!("{answer:?}") };
            prop_assert!(verdict.label < 5 && (0.0..=1.0).contains(&verdict.score));
            prop_assert!(verdict.evidence.len() <= limits::EVIDENCE_BYTES_MAX);
            prop_assert!(!verdict.evidence.chars().any(char::is_control));
        }
    }

    #[test]
    fn a_head_says_of_itself_what_it_wrote(
        name in "[a-z0-9_]{1,63}",
        version in "[ -~]{0,63}",
        labels in proptest::collection::btree_set("[ -~äß]{1,60}", 1..9),
        (needs, hidden) in (needs(), 0_u32..=8_192),
    ) {
        let labels: Vec<String> = labels.into_iter().collect();
        let about = About { abi: ABI, needs, hidden, name, version, labels };
        let bytes = about.encode().unwrap();
        prop_assert_eq!(About::decode(&bytes).unwrap(), about.clone());
        for cut in 0..bytes.len() {
            prop_assert!(About::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn a_model_is_read_as_it_was_written(
        hidden in 0_u32..=8_192,
        tasks in vec(("[a-z_]{1,63}", vec("[ -~äß]{1,60}", 0..5), 0.0_f32..=1.0), 0..5),
    ) {
        let tasks = tasks.into_iter().map(|(name, labels, threshold)| TaskContext { name, labels, threshold });
        let model = ModelContext { hidden, tasks: tasks.collect() };
        let mut room = vec![0xaa; model.bytes()];
        prop_assert_eq!(model.encode(&mut room), Some(room.len()));
        prop_assert_eq!(ModelContext::decode(&room).unwrap(), model.clone());
        for cut in 0..room.len() {
            prop_assert!(ModelContext::decode(&room[..cut]).is_err());
            prop_assert_eq!(model.encode(&mut room.clone()[..cut]), None);
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes in vec(any::<u8>(), 0..200)) {
        let mut answers = Answers::default();
        let _ = (decode_flows(&bytes), About::decode(&bytes), ModelContext::decode(&bytes));
        prop_assert!(decode_verdicts(&bytes, 1, 1, &mut answers).is_err() || answers.len() == 1);
    }
}

#[test]
fn a_list_beyond_its_limit_is_not_written() {
    let check = |flow: FlowInput<'_>, fits: bool| {
        let needs = Needs(31);
        let mut room = vec![0; flow_block_bytes(&[flow], needs)];
        assert_eq!(encode_flows(&[flow], needs, &mut room).is_some(), fits);
    };
    let packets = vec![PacketInput::default(); limits::PACKETS_MAX + 1];
    let hidden = vec![0.0; limits::HIDDEN_MAX + 1];
    let tasks = vec![TaskInput::default(); limits::TASKS_MAX + 1];
    let payload = vec![0; limits::PAYLOAD_BYTES_MAX + 1];
    let scores = vec![0.0; limits::TASK_LABELS_MAX + 1];
    for (less, fits) in [(1, true), (0, false)] {
        let flow = FlowInput::default();
        check(
            FlowInput {
                packets: &packets[less..],
                ..flow
            },
            fits,
        );
        check(
            FlowInput {
                hidden: &hidden[less..],
                ..flow
            },
            fits,
        );
        check(
            FlowInput {
                tasks: &tasks[less..],
                ..flow
            },
            fits,
        );
        check(
            FlowInput {
                payload: Some(&payload[less..]),
                ..flow
            },
            fits,
        );
        let task = TaskInput {
            scores: &scores[less..],
            ..TaskInput::default()
        };
        check(
            FlowInput {
                tasks: &[task],
                ..flow
            },
            fits,
        );
    }
    let flows = vec![FlowInput::default(); limits::FLOWS_MAX + 1];
    let mut room = vec![0; flow_block_bytes(&flows, Needs(0))];
    assert!(encode_flows(&flows, Needs(0), &mut room).is_none());
    assert!(encode_flows(&flows[1..], Needs(0), &mut room).is_some());
}

/// The header is what authors read: its numbers are those of this crate.
#[test]
fn the_header_has_the_numbers_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include/trafficllm_head.h");
    let header = std::fs::read_to_string(path).unwrap();
    let value = |name: &str| {
        let line = format!("#define TLLM_HEAD_{name} ");
        let found = header.lines().find_map(|text| text.strip_prefix(&line));
        let text = found
            .unwrap_or_else(|| panic!("{name}"))
            .trim_end_matches('u');
        match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
            None => text.parse().unwrap(),
        }
    };
    let limits = [
        ("ABOUT_BYTES_MAX", limits::ABOUT_BYTES_MAX),
        ("LABELS_MAX", limits::LABELS_MAX),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX),
        ("LABEL_BYTES_MAX", limits::LABEL_BYTES_MAX),
        ("FLOWS_MAX", limits::FLOWS_MAX),
        ("HIDDEN_MAX", limits::HIDDEN_MAX),
        ("TASKS_MAX", limits::TASKS_MAX),
        ("TASK_LABELS_MAX", limits::TASK_LABELS_MAX),
        ("PACKETS_MAX", limits::PACKETS_MAX),
        ("PAYLOAD_BYTES_MAX", limits::PAYLOAD_BYTES_MAX),
        ("EVIDENCE_BYTES_MAX", limits::EVIDENCE_BYTES_MAX),
        ("LOG_LINES_MAX", limits::LOG_LINES_MAX as usize),
        ("LOG_BYTES_MAX", limits::LOG_BYTES_MAX),
        ("EXPORTS_MAX", limits::EXPORTS_MAX as usize),
    ];
    for (name, expected) in limits {
        assert_eq!(value(name) as usize, expected, "{name}");
    }
    let bits = [
        ("ABI", ABI),
        ("NEEDS_HIDDEN", Needs::HIDDEN.0),
        ("NEEDS_TASKS", Needs::TASKS.0),
        ("NEEDS_PACKETS", Needs::PACKETS.0),
        ("NEEDS_PAYLOAD", Needs::PAYLOAD.0),
        ("NEEDS_PAIR", Needs::PAIR.0),
        ("STATEFUL", Needs::STATEFUL.0),
        ("MAGIC_ABOUT", u32::from_le_bytes(*b"TLHA")),
        ("MAGIC_MODEL", u32::from_le_bytes(*b"TLHM")),
        ("MAGIC_FLOWS", u32::from_le_bytes(*b"TLHF")),
        ("MAGIC_VERDICTS", u32::from_le_bytes(*b"TLHV")),
    ];
    for (name, expected) in bits {
        assert_eq!(value(name), expected, "{name}");
    }
}

#[test]
fn only_hosts_that_are_not_older_take_a_head() {
    assert!(is_compatible(ABI) && is_compatible(0x0001_0000));
    for other in [0, 0xffff, ABI + 1, 0x0002_0000, 0x0000_0000, u32::MAX] {
        assert!(!is_compatible(other), "{other:#x}");
    }
}
