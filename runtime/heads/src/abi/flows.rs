//! What a head is told of flows.

use super::about::Needs;
use super::bytes::{Reader, Writer};
use super::{ABI, AbiError};
use crate::limits;

const MAGIC: u32 = 0x4648_4c54;
pub(crate) const FLOWS_SIZE: usize = 32;
const FLOW_SIZE: usize = 96;
const TASK_SIZE: usize = 16;
const PACKET_SIZE: usize = 12;
const BLOCK: &str = "flows";

const FLOW_COMPLETE: u32 = 1;
const FLOW_NO_PAYLOAD: u32 = 2;
const TASK_ABSTAINED: u16 = 1;

/// What a head may know of a flow; the ABI says what each field means. Slices are at most as long as [`limits`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FlowInput<'a> {
    /// The two hosts, in either direction: equal for equal hosts, else opaque; 0: not known.
    pub pair: u64,
    /// First packet, in microseconds since a moment that is the same for all flows of a run.
    pub start_us: u64,
    /// From the first packet to the last, in microseconds.
    pub duration_us: u64,
    /// All packets.
    pub packets_total: u64,
    /// Sum of the IP lengths of all packets, in bytes.
    pub bytes_total: u64,
    /// IP protocol number.
    pub protocol: u8,
    /// The packets that can be listed are all of them, whether or not they are in this input.
    pub is_complete: bool,
    /// The first packets.
    pub packets: &'a [PacketInput],
    /// The final state, after the last norm, of the last query row of the head's source task.
    pub hidden: &'a [f32],
    /// Answers of the model's tasks, by ascending task.
    pub tasks: &'a [TaskInput<'a>],
    /// First payload bytes of the listed packets; `None` where they are not allowed.
    pub payload: Option<&'a [u8]>,
}

/// A packet of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketInput {
    /// Bytes of the transport payload, as the headers say.
    pub payload_bytes: u32,
    /// Microseconds since the packet before it.
    pub gap_us: u32,
    /// Bytes of it in the flow's payload.
    pub payload_kept: u16,
    /// Whether the other side than that of the flow's first packet sent it.
    pub is_from_responder: bool,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
}

/// One task's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TaskInput<'a> {
    /// Its number in the model.
    pub task: u16,
    /// The number of its best label.
    pub label: u16,
    /// Calibrated probability of that label.
    pub score: f32,
    /// The score is below the task's threshold.
    pub abstained: bool,
    /// Probabilities of all labels; empty where they are not known.
    pub scores: &'a [f32],
}

/// Bytes that a flow takes in a block for a head with these needs.
#[must_use]
pub fn flow_bytes(flow: &FlowInput<'_>, needs: Needs) -> usize {
    let mut bytes = FLOW_SIZE;
    if needs.has(Needs::HIDDEN) {
        bytes += flow.hidden.len() * 4;
    }
    if needs.has(Needs::TASKS) {
        let tasks = flow.tasks.iter();
        bytes += tasks
            .map(|task| TASK_SIZE + task.scores.len() * 4)
            .sum::<usize>();
    }
    if needs.has(Needs::PACKETS) {
        bytes += flow.packets.len() * PACKET_SIZE;
    }
    if needs.has(Needs::PAYLOAD) {
        bytes += flow.payload.map_or(0, <[u8]>::len);
    }
    bytes.next_multiple_of(8)
}

/// Bytes of the block of these flows.
#[must_use]
pub fn flow_block_bytes(flows: &[FlowInput<'_>], needs: Needs) -> usize {
    FLOWS_SIZE
        + flows
            .iter()
            .map(|flow| flow_bytes(flow, needs))
            .sum::<usize>()
}

/// Writes a flows block with what a head asks for, and gives back its bytes; `None` where a list is longer than [`limits`] allows or there
/// is no room.
pub fn encode_flows(flows: &[FlowInput<'_>], needs: Needs, room: &mut [u8]) -> Option<usize> {
    if flows.len() > limits::FLOWS_MAX {
        return None;
    }
    let mut head = [0; FLOWS_SIZE];
    let mut fields = Writer::new(&mut head);
    fields.put(&MAGIC.to_le_bytes())?;
    fields.put(&[0; 4])?;
    fields.put(&ABI.to_le_bytes())?;
    fields.put(&(flows.len() as u32).to_le_bytes())?;
    for size in [FLOWS_SIZE, FLOW_SIZE, TASK_SIZE, PACKET_SIZE] {
        fields.put(&(size as u16).to_le_bytes())?;
    }
    let mut block = Writer::new(room);
    block.put(&head)?;
    for flow in flows {
        encode_flow(flow, needs, &mut block)?;
    }
    let length = block.at;
    block.overwrite(4, &u32::try_from(length).ok()?.to_le_bytes())?;
    Some(length)
}

fn encode_flow(flow: &FlowInput<'_>, needs: Needs, block: &mut Writer<'_>) -> Option<()> {
    let start = block.at;
    let or_nothing = |need| needs.has(need).then_some(());
    let hidden = or_nothing(Needs::HIDDEN).map_or(&[][..], |()| flow.hidden);
    let tasks = or_nothing(Needs::TASKS).map_or(&[][..], |()| flow.tasks);
    let packets = or_nothing(Needs::PACKETS).map_or(&[][..], |()| flow.packets);
    let payload = or_nothing(Needs::PAYLOAD).and(flow.payload).unwrap_or(&[]);
    let fits = hidden.len() <= limits::HIDDEN_MAX
        && tasks.len() <= limits::TASKS_MAX
        && packets.len() <= limits::PACKETS_MAX
        && payload.len() <= limits::PAYLOAD_BYTES_MAX;
    if !fits {
        return None;
    }
    let bytes = flow_bytes(flow, needs);
    let mut flags = 0;
    if flow.is_complete {
        flags |= FLOW_COMPLETE;
    }
    if needs.has(Needs::PAYLOAD) && flow.payload.is_none() {
        flags |= FLOW_NO_PAYLOAD;
    }
    let pair = or_nothing(Needs::PAIR).map_or(0, |()| flow.pair);
    // Packets first, then hidden vector, tasks, scores and, of any length, the payload: so all but that is on a multiple of 4.
    let packets_at = FLOW_SIZE;
    let hidden_at = packets_at + packets.len() * PACKET_SIZE;
    let tasks_at = hidden_at + hidden.len() * 4;
    let mut scores_at = tasks_at + tasks.len() * TASK_SIZE;
    let scores: usize = tasks.iter().map(|task| task.scores.len()).sum();
    let payload_at = scores_at + scores * 4;
    let offset = |count: usize, at: usize| (if count == 0 { 0 } else { at as u32 }).to_le_bytes();
    let mut head = [0; FLOW_SIZE];
    let mut fields = Writer::new(&mut head);
    fields.put(&(bytes as u32).to_le_bytes())?;
    fields.put(&u32::to_le_bytes(flags))?;
    for number in [
        pair,
        flow.start_us,
        flow.duration_us,
        flow.packets_total,
        flow.bytes_total,
    ] {
        fields.put(&number.to_le_bytes())?;
    }
    fields.put(&[flow.protocol, 0])?;
    fields.put(&(packets.len() as u16).to_le_bytes())?;
    fields.put(&offset(packets.len(), packets_at))?;
    fields.put(&(hidden.len() as u32).to_le_bytes())?;
    fields.put(&offset(hidden.len(), hidden_at))?;
    fields.put(&(tasks.len() as u16).to_le_bytes())?;
    fields.put(&[0; 2])?;
    fields.put(&offset(tasks.len(), tasks_at))?;
    fields.put(&(payload.len() as u32).to_le_bytes())?;
    fields.put(&offset(payload.len(), payload_at))?;
    block.put(&head)?;
    for packet in packets {
        let mut record = [0; PACKET_SIZE];
        record[..4].copy_from_slice(&packet.payload_bytes.to_le_bytes());
        record[4..8].copy_from_slice(&packet.gap_us.to_le_bytes());
        record[8..10].copy_from_slice(&packet.payload_kept.to_le_bytes());
        record[10..].copy_from_slice(&[u8::from(packet.is_from_responder), packet.tcp_flags]);
        block.put(&record)?;
    }
    block.put_f32s(hidden)?;
    for task in tasks {
        if task.scores.len() > limits::TASK_LABELS_MAX {
            return None;
        }
        let flags = if task.abstained { TASK_ABSTAINED } else { 0 };
        let mut record = [0; TASK_SIZE];
        record[..2].copy_from_slice(&task.task.to_le_bytes());
        record[2..4].copy_from_slice(&task.label.to_le_bytes());
        record[4..8].copy_from_slice(&task.score.to_le_bytes());
        record[8..10].copy_from_slice(&flags.to_le_bytes());
        record[10..12].copy_from_slice(&(task.scores.len() as u16).to_le_bytes());
        record[12..].copy_from_slice(&offset(task.scores.len(), scores_at));
        block.put(&record)?;
        scores_at += task.scores.len() * 4;
    }
    for task in tasks {
        block.put_f32s(task.scores)?;
    }
    block.put(payload)?;
    block.align(8)?;
    debug_assert_eq!(
        block.at - start,
        bytes,
        "the size that the flow says is the one it has"
    );
    Some(())
}

/// A flow of a block, with what was in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DecodedFlow {
    /// See [`FlowInput::pair`].
    pub pair: u64,
    /// See [`FlowInput::start_us`].
    pub start_us: u64,
    /// See [`FlowInput::duration_us`].
    pub duration_us: u64,
    /// See [`FlowInput::packets_total`].
    pub packets_total: u64,
    /// See [`FlowInput::bytes_total`].
    pub bytes_total: u64,
    /// See [`FlowInput::protocol`].
    pub protocol: u8,
    /// See [`FlowInput::is_complete`].
    pub is_complete: bool,
    /// Payload was asked for and is not allowed.
    pub is_payload_hidden: bool,
    /// See [`FlowInput::packets`].
    pub packets: Vec<PacketInput>,
    /// See [`FlowInput::hidden`].
    pub hidden: Vec<f32>,
    /// See [`FlowInput::tasks`].
    pub tasks: Vec<DecodedTask>,
    /// See [`FlowInput::payload`].
    pub payload: Vec<u8>,
}

/// One task's answer in a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DecodedTask {
    /// See [`TaskInput::task`].
    pub task: u16,
    /// See [`TaskInput::label`].
    pub label: u16,
    /// See [`TaskInput::score`].
    pub score: f32,
    /// See [`TaskInput::abstained`].
    pub abstained: bool,
    /// See [`TaskInput::scores`].
    pub scores: Vec<f32>,
}

/// Reads a flows block.
///
/// # Errors
/// What breaks a rule of the ABI.
pub fn decode_flows(bytes: &[u8]) -> Result<Vec<DecodedFlow>, AbiError> {
    let block = Reader::whole(bytes, BLOCK, MAGIC)?;
    block.expect_abi()?;
    let count = block.u32("flows", 12)? as usize;
    block.expect_in("flows", 0..=limits::FLOWS_MAX, count)?;
    let mut at = usize::from(block.u16("flows_size", 16)?);
    block.expect_in("flows_size", FLOWS_SIZE..=bytes.len(), at)?;
    let size = |field, at, least| {
        let found = usize::from(block.u16(field, at)?);
        block.expect_in(field, least..=usize::from(u16::MAX), found)?;
        Ok::<usize, AbiError>(found)
    };
    let sizes = Sizes {
        flow: size("flow_size", 18, FLOW_SIZE)?,
        task: size("task_size", 20, TASK_SIZE)?,
        packet: size("packet_size", 22, PACKET_SIZE)?,
    };
    let mut flows = Vec::with_capacity(count);
    for _ in 0..count {
        let length = block.u32("flow bytes", at)? as usize;
        block.expect_in("flow bytes", sizes.flow..=bytes.len(), length)?;
        block.expect("flow bytes modulo 8", 0, (length % 8) as u64)?;
        let flow = Reader {
            bytes: block.slice("flow", at, length)?,
            block: BLOCK,
        };
        flows.push(decode_flow(&flow, &sizes)?);
        at += length;
    }
    block.expect("end", bytes.len() as u64, at as u64)?;
    Ok(flows)
}

struct Sizes {
    flow: usize,
    task: usize,
    packet: usize,
}

/// The bytes of a list; where it is empty its offset has to be 0.
fn list<'a>(
    flow: &Reader<'a>,
    sizes: &Sizes,
    field: &'static str,
    (at, count, size, count_max): (usize, usize, usize, usize),
) -> Result<&'a [u8], AbiError> {
    flow.expect_in(field, 0..=count_max, count)?;
    let offset = flow.u32(field, at)? as usize;
    if count == 0 {
        flow.expect(field, 0, offset as u64)?;
        return Ok(&[]);
    }
    flow.expect_in(field, sizes.flow..=flow.bytes.len(), offset)?;
    flow.expect(field, 0, (offset % 4) as u64)?;
    flow.slice(field, offset, count * size)
}

fn decode_flow(flow: &Reader<'_>, sizes: &Sizes) -> Result<DecodedFlow, AbiError> {
    let flags = flow.u32("flags", 4)?;
    let number = |at| flow.u64("numbers", at);
    let (packet_count, task_count) = (flow.u16("packets", 50)?, flow.u16("tasks", 64)?);
    let hidden_count = flow.u32("hidden", 56)? as usize;
    let payload_bytes = flow.u32("payload_bytes", 72)? as usize;
    let packet_list = (
        52,
        usize::from(packet_count),
        sizes.packet,
        limits::PACKETS_MAX,
    );
    let packets = list(flow, sizes, "packets", packet_list)?.chunks_exact(sizes.packet);
    let hidden = list(
        flow,
        sizes,
        "hidden",
        (60, hidden_count, 4, limits::HIDDEN_MAX),
    )?;
    let task_list = (68, usize::from(task_count), sizes.task, limits::TASKS_MAX);
    let tasks = list(flow, sizes, "tasks", task_list)?.chunks_exact(sizes.task);
    let payload_list = (76, payload_bytes, 1, limits::PAYLOAD_BYTES_MAX);
    let payload = list(flow, sizes, "payload", payload_list)?;
    let tasks: Result<Vec<DecodedTask>, AbiError> =
        tasks.map(|task| decode_task(flow, sizes, task)).collect();
    Ok(DecodedFlow {
        pair: number(8)?,
        start_us: number(16)?,
        duration_us: number(24)?,
        packets_total: number(32)?,
        bytes_total: number(40)?,
        protocol: flow.u8("protocol", 48)?,
        is_complete: flags & FLOW_COMPLETE != 0,
        is_payload_hidden: flags & FLOW_NO_PAYLOAD != 0,
        packets: packets.map(decode_packet).collect::<Result<_, _>>()?,
        hidden: floats(hidden),
        tasks: tasks?,
        payload: payload.to_vec(),
    })
}

fn decode_packet(bytes: &[u8]) -> Result<PacketInput, AbiError> {
    let packet = Reader {
        bytes,
        block: BLOCK,
    };
    let direction = packet.u8("direction", 10)?;
    packet.expect_in("direction", 0..=1, usize::from(direction))?;
    Ok(PacketInput {
        payload_bytes: packet.u32("payload_size", 0)?,
        gap_us: packet.u32("gap_us", 4)?,
        payload_kept: packet.u16("payload_kept", 8)?,
        is_from_responder: direction == 1,
        tcp_flags: packet.u8("tcp_flags", 11)?,
    })
}

fn decode_task(flow: &Reader<'_>, sizes: &Sizes, bytes: &[u8]) -> Result<DecodedTask, AbiError> {
    let task = Reader {
        bytes,
        block: BLOCK,
    };
    let count = usize::from(task.u16("scores", 10)?);
    flow.expect_in("scores", 0..=limits::TASK_LABELS_MAX, count)?;
    let offset = task.u32("scores_offset", 12)? as usize;
    let scores = if count == 0 {
        &[][..]
    } else {
        flow.expect_in("scores_offset", sizes.flow..=flow.bytes.len(), offset)?;
        flow.expect("scores_offset modulo 4", 0, (offset % 4) as u64)?;
        flow.slice("scores", offset, count * 4)?
    };
    Ok(DecodedTask {
        task: task.u16("task", 0)?,
        label: task.u16("label", 2)?,
        score: task.f32("score", 4)?,
        abstained: task.u16("task flags", 8)? & TASK_ABSTAINED != 0,
        scores: floats(scores),
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.chunks_exact(4);
    values
        .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
        .collect()
}
