//! Any bytes as the blocks of a head: what is taken keeps the rules of `trafficllm_head.h`, and is written again as the same bytes mean.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trafficllm_heads::abi::*;
use trafficllm_heads::limits;

/// Verdicts of a head with so many labels, on so many flows.
fn verdicts(bytes: &[u8], flows: usize, labels: usize) {
    let mut answers = Answers::default();
    if decode_verdicts(bytes, flows, labels, &mut answers).is_err() {
        assert!(answers.is_empty());
        return;
    }
    assert_eq!(answers.len(), flows);
    let found: Vec<Verdict<'_>> = answers
        .iter()
        .map(|answer| match answer {
            Answer::Verdict(verdict) => verdict,
            Answer::None(reason) => panic!("{reason:?}"),
        })
        .collect();
    for verdict in &found {
        assert!(usize::from(verdict.label) < labels);
        assert!((0.0..=1.0).contains(&verdict.score));
        assert!(verdict.scores.is_empty() || verdict.scores.len() == labels);
        assert!(
            verdict
                .scores
                .iter()
                .all(|score| (0.0..=1.0).contains(score))
        );
        assert!(verdict.evidence.len() <= limits::EVIDENCE_BYTES_MAX);
        assert!(!verdict.evidence.chars().any(char::is_control));
    }
    let mut room = vec![0; verdicts_bytes_max(flows, labels)];
    let length = encode_verdicts(&found, &mut room).expect("what was read has room");
    assert_eq!(length, bytes.len());
    let mut again = Answers::default();
    decode_verdicts(&room[..length], flows, labels, &mut again).expect("what was written is right");
    assert_eq!(again, answers);
}

fn flows(bytes: &[u8]) {
    let Ok(found) = decode_flows(bytes) else {
        return;
    };
    assert!(found.len() <= limits::FLOWS_MAX);
    let tasks: Vec<Vec<TaskInput<'_>>> = found
        .iter()
        .map(|flow| {
            let task = |task: &'_ DecodedTask| (task.task, task.label, task.score, task.abstained);
            let tasks = flow.tasks.iter().map(|found| {
                let (task, label, score, abstained) = task(found);
                TaskInput {
                    task,
                    label,
                    score,
                    abstained,
                    scores: &found.scores,
                }
            });
            tasks.collect()
        })
        .collect();
    let inputs: Vec<FlowInput<'_>> = found
        .iter()
        .zip(&tasks)
        .map(|(flow, tasks)| FlowInput {
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
            payload: Some(&flow.payload),
        })
        .collect();
    let needs = Needs(31);
    let mut room = vec![0; flow_block_bytes(&inputs, needs)];
    let length = encode_flows(&inputs, needs, &mut room).expect("what was read can be written");
    let again = decode_flows(&room[..length]).expect("what was written is right");
    assert_eq!(again.len(), found.len());
    for (again, found) in again.iter().zip(&found) {
        // Bits that say nothing else than what is there; NaNs are not equal to themselves.
        assert_eq!(
            (again.pair, again.start_us, again.protocol),
            (found.pair, found.start_us, found.protocol)
        );
        assert_eq!(
            (&again.packets, &again.payload),
            (&found.packets, &found.payload)
        );
        let bits = |values: &[f32]| {
            values
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&again.hidden), bits(&found.hidden));
        assert_eq!(again.tasks.len(), found.tasks.len());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [kind, count, labels, rest @ ..] = bytes else {
        return;
    };
    match kind % 4 {
        0 => verdicts(rest, usize::from(count % 4), 1 + usize::from(labels % 6)),
        1 => flows(rest),
        2 => {
            if let Ok(about) = About::decode(rest) {
                let written = about.encode().expect("what was read can be written");
                assert_eq!(
                    About::decode(&written).expect("what was written is right"),
                    about
                );
            }
        }
        _ => {
            if let Ok(model) = ModelContext::decode(rest) {
                let mut room = vec![0; model.bytes()];
                let length = model
                    .encode(&mut room)
                    .expect("what was read can be written");
                let again =
                    ModelContext::decode(&room[..length]).expect("what was written is right");
                assert_eq!(again.tasks.len(), model.tasks.len());
            }
        }
    }
});
