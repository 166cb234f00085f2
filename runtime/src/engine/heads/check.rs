//! Loads a head, tries it and says what it is and what it costs.

use std::time::Instant;

use trafficllm_heads::{Answers, FlowInput, Guard, Needs, PacketInput, TaskInput, sha256};

use super::load::{Loader, conditions, read_head};
use crate::error::Error;
use crate::heads::{HeadFile, HeadOptions};
use crate::model::Model;

/// Calls that are measured.
const CALLS: usize = 200;

/// What [`check_head`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadReport {
    /// The name of its verdicts' task.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The version of the ABI that it was made for, as major and minor.
    pub abi: (u32, u32),
    /// Its labels.
    pub labels: Vec<String>,
    /// What it asks for: `hidden`, `tasks`, `packets`, `payload`, `pair`.
    pub needs: Vec<&'static str>,
    /// Values of the hidden vector that it was made for; 0: any.
    pub hidden: u32,
    /// Whether it keeps what it knows from flow to flow.
    pub is_stateful: bool,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// SHA-256 of its file, in hexadecimal digits: what a bundle's manifest vouches for.
    pub sha256: String,
    /// Bytes of what it is given for one flow, at most.
    pub input_bytes: usize,
    /// Bytes of memory of an instance after it was tried; `None` for native heads.
    pub memory_bytes: Option<usize>,
    /// The most fuel that one flow took; `None` for native heads.
    pub fuel_per_flow: Option<u64>,
    /// Half of the calls, with one flow each, took at most so many nanoseconds.
    pub call_ns: u64,
    /// Flows that it was tried with.
    pub calls: usize,
}

/// Loads a head as an engine of this model would, and tries it with made-up flows of the largest size.
///
/// # Errors
/// [`Error::Head`]: why it cannot be used. It names the file, and where an export is the matter, the export.
pub fn check_head(
    model: &Model,
    file: &HeadFile,
    is_native: bool,
    options: &HeadOptions,
) -> Result<HeadReport, Error> {
    let loader = Loader {
        options,
        model,
        workers: 1,
    };
    let (placed, bytes) = if is_native {
        let placed = loader.library(file)?;
        let bytes = std::fs::read(&file.path).map_err(|error| {
            Error::Head(format!("{}: cannot be read: {error}", file.path.display()))
        })?;
        (placed, bytes)
    } else {
        let bytes = read_head(&file.path)?;
        (loader.module_of(file, &bytes)?, bytes)
    };
    let about = placed.guard.about().clone();
    let (measured, input_bytes) = measure(&placed.guard, model, options)
        .map_err(|fault| Error::Head(format!("{}: {fault}", file.path.display())))?;
    let names = [
        (Needs::HIDDEN, "hidden"),
        (Needs::TASKS, "tasks"),
        (Needs::PACKETS, "packets"),
        (Needs::PAYLOAD, "payload"),
        (Needs::PAIR, "pair"),
    ];
    let needs = names.into_iter().filter(|(need, _)| about.needs.has(*need));
    let (file_bytes, hash) = (bytes.len() as u64, sha256(&bytes));
    Ok(HeadReport {
        abi: (about.abi >> 16, about.abi & 0xffff),
        needs: needs.map(|(_, name)| name).collect(),
        hidden: about.hidden,
        is_stateful: about.is_stateful(),
        name: about.name,
        version: about.version,
        labels: about.labels,
        file_bytes,
        sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        input_bytes,
        memory_bytes: measured.memory_bytes,
        fuel_per_flow: measured.fuel_per_flow,
        call_ns: measured.call_ns,
        calls: CALLS,
    })
}

struct Measured {
    memory_bytes: Option<usize>,
    fuel_per_flow: Option<u64>,
    call_ns: u64,
}

fn measure(
    guard: &Guard,
    model: &Model,
    options: &HeadOptions,
) -> Result<(Measured, usize), trafficllm_heads::Fault> {
    let mut conditions = conditions(model, &model.flow_config(), options);
    conditions.flows_max = 1;
    let input_bytes = conditions.input_bytes_max(guard.about().needs);
    let mut instance = guard.head().start(&conditions)?;
    let hidden: Vec<f32> = (0..conditions.model.hidden)
        .map(|number| (f64::from(number) * 0.37).sin() as f32)
        .collect();
    let uniform = |labels: usize| vec![1.0 / labels.max(1) as f32; labels];
    let scores: Vec<Vec<f32>> = {
        let tasks = conditions.model.tasks.iter();
        tasks.map(|task| uniform(task.labels.len())).collect()
    };
    let tasks = scores.iter().enumerate().map(|(task, scores)| TaskInput {
        task: task as u16,
        score: scores.first().copied().unwrap_or(0.0),
        scores,
        ..TaskInput::default()
    });
    let tasks: Vec<TaskInput<'_>> = tasks.collect();
    let packet = PacketInput {
        payload_bytes: 1_200,
        gap_us: 15_000,
        tcp_flags: 0x18,
        ..PacketInput::default()
    };
    let packets = vec![packet; conditions.packets_max];
    let payload = vec![b'x'; conditions.payload_bytes_max];
    let (mut answers, mut times, mut most_fuel) = (Answers::default(), Vec::new(), None);
    for call in 0..CALLS as u64 {
        let flow = FlowInput {
            pair: 1 + call % 7,
            start_us: 60_000_000 * call,
            duration_us: 1_000_000,
            packets_total: packets.len() as u64,
            bytes_total: 1_240 * packets.len() as u64,
            protocol: 6,
            is_complete: true,
            packets: &packets,
            hidden: &hidden,
            tasks: &tasks,
            payload: options.allows_payload.then_some(&payload[..]),
        };
        answers.clear();
        let begin = Instant::now();
        instance.judge(&[flow], &mut answers)?;
        times.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        most_fuel = most_fuel.max(instance.fuel_used());
    }
    times.sort_unstable();
    let measured = Measured {
        memory_bytes: instance.memory_bytes(),
        fuel_per_flow: most_fuel,
        call_ns: times.get(CALLS / 2).copied().unwrap_or(0),
    };
    Ok((measured, input_bytes))
}
