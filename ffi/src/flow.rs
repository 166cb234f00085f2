//! Flows that the host tells apart: it feeds their packets, one by one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use trafficllm::{Direction, Endpoints, FlowRecorder, HostPacket, RecorderCounters, TcpFlags};

use crate::boundary::{
    Growing, Output, bytes, check_struct_size, growing, guard, paste_struct, write_struct,
};
use crate::engine::{EngineState, engine_of, tllm_engine};
use crate::fault::{Fault, freed};
use crate::handle::{CHUNK_PLACES, CHUNKS_MAX, Exclusive, Table};
use crate::status::{TLLM_FLOW_FULL, TLLM_OK};

/// The packet was sent by the side that sent the flow's first packet.
pub const TLLM_FROM_INITIATOR: u8 = 0;
/// The packet was sent by the other side.
pub const TLLM_FROM_RESPONDER: u8 = 1;

/// One flow: a bounded record of its first packets. One thread at a time; any thread may free it. It needs no session.
#[derive(Debug)]
pub struct tllm_flow {
    _opaque: [u8; 0],
}

/// What is known of a flow before its first packet. Prepare it with tllm_flow_info_init; only `protocol` has to be set.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_flow_info {
    /// sizeof(tllm_flow_info), set by tllm_flow_info_init.
    pub struct_size: u32,
    /// IP protocol number: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6; any number is taken, 0 as well.
    pub protocol: u8,
    /// 4 or 6: what the addresses are; 0 if they are not told.
    pub ip_version: u8,
    /// Port of the side that sent the first packet, in host byte order; 0 where there is none. No model sees ports unless its
    /// profile says so.
    pub initiator_port: u16,
    /// Port of the other side.
    pub responder_port: u16,
    /// Zero.
    pub reserved0: u16,
    /// Zero.
    pub reserved1: u32,
    /// Address of the side that sent the first packet, in network byte order; an IPv4 address in the first 4 bytes. No model sees it.
    pub initiator: [u8; 16],
    /// Address of the other side.
    pub responder: [u8; 16],
    /// Zero.
    pub reserved: [u64; 2],
}

/// One packet. Prepare it once with tllm_packet_init and use it again and again.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_packet {
    /// sizeof(tllm_packet), set by tllm_packet_init.
    pub struct_size: u32,
    /// TLLM_FROM_INITIATOR or TLLM_FROM_RESPONDER.
    pub direction: u8,
    /// Byte 13 of the TCP header (RFC 9293 3.1); of no meaning for other protocols.
    pub tcp_flags: u8,
    /// Zero.
    pub reserved0: u16,
    /// Time in nanoseconds; from when on it is counted does not matter, only the gaps do.
    pub time_ns: u64,
    /// Length of the IP packet in bytes, as its header says.
    pub ip_bytes: u32,
    /// Length of the transport payload in bytes, as the headers say.
    pub payload_bytes: u32,
    /// The captured part of the payload; may be NULL if `payload_size` is 0. It is copied as far as it is kept.
    pub payload: *const u8,
    /// Bytes at `payload`, at most `payload_bytes`.
    pub payload_size: usize,
    /// Zero.
    pub reserved: [u64; 2],
}

/// What a flow has seen and what was lost of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_flow_stats {
    /// Packets fed.
    pub packets: u64,
    /// Sum of their `ip_bytes`.
    pub bytes: u64,
    /// Packets that are kept: the model sees only these.
    pub packets_kept: u64,
    /// Payload bytes of kept packets that found no room.
    pub payload_bytes_cut: u64,
    /// Packets whose time was before that of the packet before.
    pub time_backwards: u64,
    /// Memory of the flow in bytes.
    pub memory_bytes: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

growing!(
    tllm_flow_info = 64 or 64,
    tllm_packet = 56 or 48,
    tllm_flow_stats = 64 or 64,
);

/// A flow of the host.
pub(crate) struct FlowState {
    pub(crate) recorder: FlowRecorder,
    /// What the recorder had counted when it was last emptied: its counters go on.
    before: RecorderCounters,
    /// Verdicts of this flow are wanted as long as this lives.
    pub(crate) owner: Arc<()>,
    pub(crate) engine: Arc<EngineState>,
}

impl Drop for FlowState {
    fn drop(&mut self) {
        self.engine.packets.add(self.recorder.counters());
        self.engine.release_flow();
    }
}

const KIND: &str = "flow";
static FLOWS: Table<Box<FlowState>, CHUNKS_MAX> = Table::new(5, CHUNKS_MAX as u32 * CHUNK_PLACES);

/// The flow of a handle, for this call alone.
pub(crate) fn flow_of(
    flow: *const tllm_flow,
) -> Result<Exclusive<'static, Box<FlowState>, CHUNKS_MAX>, Fault> {
    FLOWS
        .exclusive(flow.addr())
        .map_err(|error| Fault::handle(KIND, error))
}

/// Prepares a tllm_flow_info: everything unknown. `size` is sizeof(tllm_flow_info).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT.
///
/// # Safety
/// `info` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_flow_info_init(info: *mut tllm_flow_info, size: usize) -> i32 {
    guard(|| {
        let fresh = tllm_flow_info {
            struct_size: u32::try_from(size).unwrap_or(0),
            protocol: 0,
            ip_version: 0,
            initiator_port: 0,
            responder_port: 0,
            reserved0: 0,
            reserved1: 0,
            initiator: [0; 16],
            responder: [0; 16],
            reserved: [0; 2],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&fresh, info, size, "info") }?;
        Ok(TLLM_OK)
    })
}

/// Prepares a tllm_packet: everything zero. `size` is sizeof(tllm_packet).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT.
///
/// # Safety
/// `packet` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_packet_init(packet: *mut tllm_packet, size: usize) -> i32 {
    guard(|| {
        let fresh = tllm_packet {
            struct_size: u32::try_from(size).unwrap_or(0),
            direction: TLLM_FROM_INITIATOR,
            tcp_flags: 0,
            reserved0: 0,
            time_ns: 0,
            ip_bytes: 0,
            payload_bytes: 0,
            payload: std::ptr::null(),
            payload_size: 0,
            reserved: [0; 2],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&fresh, packet, size, "packet") }?;
        Ok(TLLM_OK)
    })
}

/// Makes a flow without packets, that keeps as much as the engine's settings say. It may be made before the engine is started.
/// Free it with tllm_flow_free.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (`ip_version`), TLLM_ERR_LIMIT ("engine.flows_max"),
/// TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_FORKED.
///
/// # Safety
/// `info` is NULL or was prepared by tllm_flow_info_init; `flow` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_flow_new(
    engine: *const tllm_engine,
    info: *const tllm_flow_info,
    flow: *mut *mut tllm_flow,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let (endpoints, output) = unsafe { (endpoints(info)?, Output::new(flow, KIND)?) };
        let engine = engine_of(engine)?;
        engine.get()?;
        engine.take_flow()?;
        let recorder =
            FlowRecorder::new(engine.flow_config(), endpoints).map_err(trafficllm::Error::from);
        let recorder = recorder.inspect_err(|_| engine.release_flow())?;
        let made = FLOWS.insert(Box::new(FlowState {
            recorder,
            before: RecorderCounters::default(),
            owner: Arc::new(()),
            engine,
        }));
        let handle = made.map_err(|error| Fault::insert(KIND, error))?;
        output.write(std::ptr::without_provenance_mut(handle));
        Ok(TLLM_OK)
    })
}

/// Adds a packet, in the order in which they came. Returns TLLM_FLOW_FULL instead of TLLM_OK once the flow keeps no more packets: it is
/// counted all the same, and need not be fed any more. A call that fails adds nothing.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (`direction`, `payload_size`).
///
/// # Safety
/// `packet` is NULL or was prepared by tllm_packet_init, and its `payload` has `payload_size` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_flow_feed(flow: *mut tllm_flow, packet: *const tllm_packet) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let packet = unsafe { host_packet(packet) }?;
        let mut flow = flow_of(flow)?;
        let was_full = flow.recorder.is_full();
        flow.recorder.push(&packet);
        Ok(if was_full { TLLM_FLOW_FULL } else { TLLM_OK })
    })
}

/// Empties a flow for another connection, in the same memory. Verdicts of the old one that are still under way are dropped.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (`ip_version`).
///
/// # Safety
/// `info` is NULL or was prepared by tllm_flow_info_init.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_flow_reset(flow: *mut tllm_flow, info: *const tllm_flow_info) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let endpoints = unsafe { endpoints(info) }?;
        let mut flow = flow_of(flow)?;
        flow.before = *flow.recorder.counters();
        flow.recorder.reset(endpoints);
        flow.owner = Arc::new(());
        Ok(TLLM_OK)
    })
}

/// Says what a flow has seen. `size` is sizeof(tllm_flow_stats).
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT.
///
/// # Safety
/// `stats` is NULL or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_flow_describe(
    flow: *const tllm_flow,
    stats: *mut tllm_flow_stats,
    size: usize,
) -> i32 {
    guard(|| {
        let state = flow_of(flow)?;
        let (record, counters) = (state.recorder.flow(), state.recorder.counters());
        let described = tllm_flow_stats {
            packets: record.packets,
            bytes: record.bytes,
            packets_kept: record.records.len() as u64,
            payload_bytes_cut: counters.payload_bytes_cut - state.before.payload_bytes_cut,
            time_backwards: counters.time_backwards - state.before.time_backwards,
            memory_bytes: state.recorder.bytes() as u64,
            reserved: [0; 2],
        };
        // SAFETY: the caller's promise.
        unsafe { write_struct(&described, stats, size, "stats") }?;
        Ok(TLLM_OK)
    })
}

/// Frees a flow, on any thread. Its verdicts that are still under way are dropped, and counted as abandoned, unless it was submitted
/// with tllm_session_submit_last. NULL is nothing to do.
///
/// The last flow or session of an engine whose handle was freed gives back the engine's memory, which takes a while: free the engine
/// after them where that matters.
///
/// Returns TLLM_OK; TLLM_RUNNING if a call is just using it.
/// Errors: TLLM_ERR_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn tllm_flow_free(flow: *mut tllm_flow) -> i32 {
    guard(|| {
        if flow.is_null() {
            return Ok(TLLM_OK);
        }
        freed(FLOWS.remove(flow.addr()), KIND)
    })
}

/// A struct that the host has filled: the part that this library knows, after its size and the rest were checked.
///
/// # Safety
/// `pointer` is NULL, misaligned, or points to a u32 with the struct's size and so many readable bytes.
unsafe fn read_struct<T: Growing>(pointer: *const T, name: &str) -> Result<T, Fault> {
    if pointer.is_null() {
        return Err(Fault::null(name));
    }
    if !pointer.is_aligned() {
        return Err(Fault::argument(format!(
            "{name}: the pointer is not aligned"
        )));
    }
    // SAFETY: the caller's promise.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size == size_of::<T>() {
        // SAFETY: the struct has the bytes of a `T` by the caller's promise, and is valid for any bytes.
        return Ok(unsafe { pointer.read() });
    }
    check_struct_size::<T>(size, name)?;
    if let Some(unknown) = size.checked_sub(size_of::<T>()) {
        // SAFETY: the struct has `size` bytes by the caller's promise.
        let rest = unsafe { bytes(pointer.cast::<u8>().add(size_of::<T>()), unknown, name) }?;
        if rest.iter().any(|&byte| byte != 0) {
            return Err(Fault::structure(format!(
                "{name}: a field of a newer header is set that this library does not know"
            )));
        }
    }
    // SAFETY: as above.
    Ok(unsafe { paste_struct(pointer.cast(), size) })
}

/// # Safety
/// As [`read_struct`].
unsafe fn endpoints(info: *const tllm_flow_info) -> Result<Endpoints, Fault> {
    // SAFETY: the caller's promise.
    let info = unsafe { read_struct(info, "info") }?;
    if (info.reserved0, info.reserved1, info.reserved) != (0, 0, [0; 2]) {
        return Err(Fault::structure(
            "info: a reserved field is not zero".to_owned(),
        ));
    }
    let [a, b, c, d, ..] = info.initiator;
    let [e, f, g, h, ..] = info.responder;
    let (initiator, responder) = match info.ip_version {
        0 => (
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ),
        4 => (
            IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            IpAddr::V4(Ipv4Addr::new(e, f, g, h)),
        ),
        6 => (
            IpAddr::V6(Ipv6Addr::from(info.initiator)),
            IpAddr::V6(Ipv6Addr::from(info.responder)),
        ),
        other => {
            return Err(Fault::argument(format!(
                "info.ip_version: expected 0, 4 or 6, found {other}"
            )));
        }
    };
    Ok(Endpoints {
        initiator,
        responder,
        initiator_port: info.initiator_port,
        responder_port: info.responder_port,
        protocol: info.protocol,
    })
}

/// # Safety
/// As [`read_struct`], and the payload has `payload_size` readable bytes.
unsafe fn host_packet<'a>(packet: *const tllm_packet) -> Result<HostPacket<'a>, Fault> {
    // SAFETY: the caller's promise.
    let packet = unsafe { read_struct(packet, "packet") }?;
    if (packet.reserved0, packet.reserved) != (0, [0; 2]) {
        return Err(Fault::structure(
            "packet: a reserved field is not zero".to_owned(),
        ));
    }
    let direction = match packet.direction {
        TLLM_FROM_INITIATOR => Direction::FromInitiator,
        TLLM_FROM_RESPONDER => Direction::FromResponder,
        other => {
            return Err(Fault::argument(format!(
                "packet.direction: expected 0 or 1, found {other}"
            )));
        }
    };
    if packet.payload_size > packet.payload_bytes as usize {
        return Err(Fault::argument(format!(
            "packet.payload_size: expected at most payload_bytes = {}, found {}",
            packet.payload_bytes, packet.payload_size
        )));
    }
    Ok(HostPacket {
        direction,
        time_ns: packet.time_ns,
        ip_bytes: packet.ip_bytes,
        payload_bytes: packet.payload_bytes,
        tcp_flags: TcpFlags(packet.tcp_flags),
        // SAFETY: the caller's promise.
        payload: unsafe { bytes(packet.payload, packet.payload_size, "packet.payload") }?,
    })
}
