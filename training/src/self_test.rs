//! Inputs that a bundle carries to test itself: made-up flows and requests, so that nothing of the data goes into it.

use std::net::{IpAddr, Ipv4Addr};

use trafficllm_model::{Model, SelfTest};
use trafficllm_traffic::token::{EncodeScratch, Encoder};
use trafficllm_traffic::{Direction, Endpoints, Flow, PacketRecord, Payload, TcpFlags};

use crate::data::{Content, TaskKind};
use crate::engine;
use crate::error::{Result, TrainError};
use crate::random::Random;
use crate::tokenizer::encode;

/// Inputs of which the surest one is taken: a sure answer is the same with every kernel.
const CANDIDATES: u64 = 64;
const STREAM: u64 = 0x40;

/// One self-test per task of a calibrated model, the one that reads instructions last.
///
/// # Errors
/// Where the engine refuses an input.
pub fn self_tests(model: &Model, kinds: &[TaskKind], encoder: &Encoder) -> Result<Vec<SelfTest>> {
    let tasks = kinds.iter().enumerate();
    tasks
        .map(|(index, kind)| self_test(model, index, *kind, encoder))
        .collect()
}

/// A self-test of one task of a calibrated model.
///
/// # Errors
/// Where there is no such task, or the engine refuses an input.
pub fn self_test(
    model: &Model,
    index: usize,
    kind: TaskKind,
    encoder: &Encoder,
) -> Result<SelfTest> {
    let task = engine::task(model, index)?;
    let mut scratch = EncodeScratch::default();
    let mut items = Vec::new();
    for candidate in 0..CANDIDATES {
        let mut random = Random::stream(index as u64, STREAM, candidate);
        items.push(encode(encoder, &made_up(kind, &mut random), &mut scratch)?);
    }
    let verdicts = engine::verdicts(model, index, &items, 1)?;
    let surest = verdicts
        .iter()
        .zip(items)
        .max_by(|left, right| left.0.score.total_cmp(&right.0.score));
    // Every input gets a verdict.
    let (verdict, tokens) = surest.ok_or(TrainError::TaskMissing { index })?;
    Ok(SelfTest {
        tokens,
        task: task.name().to_owned(),
        label: task.labels()[verdict.label as usize].clone(),
        score: verdict.score,
    })
}

fn made_up(kind: TaskKind, random: &mut Random) -> Content {
    match kind {
        TaskKind::Request => {
            let value = [
                "1",
                "2' OR '1'='1",
                "<script>alert(1)</script>",
                "blue",
                "../../etc/passwd",
            ][random.below(5)];
            Content::Request(format!(
                "GET /item?id={}&name={value} HTTP/1.1",
                random.below(1000)
            ))
        }
        TaskKind::Instruction => {
            let question = [
                "is there a botnet in here?",
                "which malware is this",
                "what device sent that",
                "does somebody tunnel through dns?",
                "good morning",
            ][random.below(5)];
            Content::Instruction(question.to_owned())
        }
        TaskKind::Flow => Content::Flow(made_up_flow(random)),
    }
}

/// A short TCP or UDP flow with text, TLS-like or random payload.
fn made_up_flow(random: &mut Random) -> Flow {
    let is_tcp = random.chance(0.6);
    let mut flow = Flow {
        index: 0,
        endpoints: Endpoints {
            initiator: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            responder: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
            initiator_port: 40_000,
            responder_port: 80,
            protocol: if is_tcp { 6 } else { 17 },
        },
        start_ns: 0,
        end_ns: 0,
        packets: 0,
        bytes: 0,
        records: Vec::new(),
        payload: Payload::default(),
    };
    if is_tcp {
        push(&mut flow, Direction::FromInitiator, TcpFlags::SYN, 0, &[]);
        push(
            &mut flow,
            Direction::FromResponder,
            TcpFlags::SYN | TcpFlags::ACK,
            3_000,
            &[],
        );
        push(&mut flow, Direction::FromInitiator, TcpFlags::ACK, 100, &[]);
    }
    let flags = if is_tcp {
        TcpFlags::PSH | TcpFlags::ACK
    } else {
        0
    };
    let style = random.below(3);
    for packet in 0..2 + random.below(6) {
        let payload: Vec<u8> = match style {
            0 => format!(
                "GET /page/{} HTTP/1.1\r\nHost: example.org\r\n\r\n",
                random.below(1000)
            )
            .into_bytes(),
            1 => [0x17, 0x03, 0x03, 0, 40]
                .into_iter()
                .chain((0..40).map(|_| random.below(256) as u8))
                .collect(),
            _ => (0..20 + random.below(60))
                .map(|_| random.below(256) as u8)
                .collect(),
        };
        let direction = if packet % 2 == 0 {
            Direction::FromInitiator
        } else {
            Direction::FromResponder
        };
        push(
            &mut flow,
            direction,
            flags,
            random.below(50_000) as u32,
            &payload,
        );
    }
    flow
}

fn push(flow: &mut Flow, direction: Direction, flags: u8, gap_us: u32, payload: &[u8]) {
    let record = PacketRecord {
        direction,
        tcp_flags: TcpFlags(flags),
        gap_us,
        payload_bytes: payload.len() as u32,
        payload_kept: 0,
    };
    flow.push(record, payload);
    flow.packets += 1;
    flow.bytes += 40 + payload.len() as u64;
}
