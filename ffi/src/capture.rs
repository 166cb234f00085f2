//! Whole capture files.

use std::ffi::{c_char, c_void};
use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::path::Path;

use trafficllm::{Endpoints, FlowInfo, Outcome, OutcomeJson, Sink, Subject};

use crate::boundary::{
    check_struct_size, copy_struct, fill_name, growing, guard, name_of, paste_struct, text,
    write_struct, write_text,
};
use crate::engine::{engine_of, tllm_engine};
use crate::fault::Fault;
use crate::model::TLLM_MODEL_ID_BYTES;
use crate::status::*;
use crate::verdict::{Apart, entries_of_outcome, read_entries, tllm_verdict, verdicts_of};

/// The subject is a flow of a capture.
pub const TLLM_SUBJECT_FLOW: u32 = 1;
/// The subject is a line of a requests file.
pub const TLLM_SUBJECT_REQUEST: u32 = 2;

/// What verdicts of a file are about.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_subject {
    /// TLLM_SUBJECT_FLOW or TLLM_SUBJECT_REQUEST.
    pub kind: u32,
    /// IP protocol number; of a request 0, as all that follows but `index`.
    pub protocol: u8,
    /// 4 or 6.
    pub ip_version: u8,
    /// Port of the side that sent the first packet.
    pub initiator_port: u16,
    /// Port of the other side.
    pub responder_port: u16,
    /// Zero.
    pub reserved0: u16,
    /// Zero.
    pub reserved1: u32,
    /// Number of the flow in its capture, in the order of first packets, or of the line in its file, from 0.
    pub index: u64,
    /// Time of the first packet in nanoseconds since the Unix epoch.
    pub start_ns: u64,
    /// Packets of the flow.
    pub packets: u64,
    /// Sum of their IP lengths in bytes.
    pub bytes: u64,
    /// Address of the side that sent the first packet, in network byte order; an IPv4 address in the first 4 bytes.
    pub initiator: [u8; 16],
    /// Address of the other side.
    pub responder: [u8; 16],
    /// Profile that made tokens of it.
    pub profile: [c_char; 64],
    /// Identity of the model that judged.
    pub model_id: [c_char; TLLM_MODEL_ID_BYTES],
    /// Zero.
    pub reserved: [u64; 2],
}

/// What was read of a file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tllm_capture_report {
    /// Packets read.
    pub packets: u64,
    /// Their captured bytes.
    pub packet_bytes: u64,
    /// Packets that became no part of a flow: not IP, broken, later fragments.
    pub packets_skipped: u64,
    /// Flows.
    pub flows: u64,
    /// Flows that were judged early because the table was full.
    pub flows_evicted: u64,
    /// Lines of a requests file.
    pub lines: u64,
    /// Lines that could not be used.
    pub bad_lines: u64,
    /// Verdicts, those that abstained included.
    pub verdicts: u64,
    /// Verdicts that abstained.
    pub abstained: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

growing!(tllm_subject = 184 or 184, tllm_capture_report = 104 or 104);

/// Takes the verdicts on one flow or request: `count` entries at `verdicts`, as far apart as the `verdict_size` that was given. Both
/// pointers are valid until the callback returns. Another value than 0 ends the reading.
///
/// It is called on the thread that called tllm_capture_detect, in the order in which flows end. It may call every function of the
/// library. It must not throw or jump out.
pub type tllm_subject_callback = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        subject: *const tllm_subject,
        verdicts: *const tllm_verdict,
        count: usize,
    ) -> i32,
>;

/// Gives outcomes to the host's callback.
struct Forward {
    callback:
        unsafe extern "C" fn(*mut c_void, *const tllm_subject, *const tllm_verdict, usize) -> i32,
    user: *mut c_void,
    generation: u64,
    profile: String,
    model_id: String,
    entries: Vec<tllm_verdict>,
    /// The subject and the entries as the host's header has them.
    subject_size: usize,
    subject: Vec<u64>,
    apart: Apart,
    is_cancelled: bool,
}

impl Sink for Forward {
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
        let subject = subject_of(&outcome.subject, &self.profile, &self.model_id);
        entries_of_outcome(
            outcome.verdicts,
            self.generation,
            &self.model_id,
            &mut self.entries,
        );
        // SAFETY: the list has `subject_size` bytes.
        unsafe {
            copy_struct(
                &subject,
                self.subject.as_mut_ptr().cast(),
                self.subject_size,
            )
        };
        // SAFETY: the caller of `tllm_capture_detect` has vouched for callback and pointer; subject and entries live until it
        // returns.
        let answer = unsafe {
            (self.callback)(
                self.user,
                self.subject.as_ptr().cast(),
                self.apart.lay(&self.entries),
                self.entries.len(),
            )
        };
        self.is_cancelled = answer != 0;
        if self.is_cancelled {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Reads a file to its end and gives the verdicts on every flow to `callback`, with `user` handed on, as the command
/// `trafficllm detect` does: pcap or pcapng, plain or gzip; of a file that ends in ".jsonl" the HTTP requests in the key "request" of its
/// lines. The model that is active when it begins judges all of it. `subject_size` is sizeof(tllm_subject), `verdict_size`
/// sizeof(tllm_verdict), `report_size` sizeof(tllm_capture_report); `report` may be NULL.
/// It waits for the engine, which must have been started unless "engine.workers" is 0.
///
/// Returns TLLM_OK, or TLLM_CANCELLED if the callback ended it.
/// Errors: TLLM_ERR_NULL, TLLM_ERR_TEXT, TLLM_ERR_HANDLE, TLLM_ERR_BUSY (called from a callback of the engine's own work), TLLM_ERR_STRUCT,
/// TLLM_ERR_ARGUMENT, TLLM_ERR_IO (it cannot be opened), TLLM_ERR_CAPTURE (it cannot be read to its end: what was read was judged, and is in
/// the report all the same), TLLM_ERR_WORKER, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT (sessions), TLLM_ERR_NOT_STARTED,
/// TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
///
/// # Safety
/// `path` is NULL or ends with a NUL; the callback can be called with `user` until this returns; `report` is NULL or has room for
/// `report_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_capture_detect(
    engine: *mut tllm_engine,
    path: *const c_char,
    subject_size: usize,
    verdict_size: usize,
    callback: tllm_subject_callback,
    user: *mut c_void,
    report: *mut tllm_capture_report,
    report_size: usize,
) -> i32 {
    guard(|| {
        let callback = callback.ok_or_else(|| Fault::null("callback"))?;
        // SAFETY: the caller's promise.
        let path = unsafe { text(path, "path") }?;
        if !report.is_null() {
            check_struct_size::<tllm_capture_report>(report_size, "report")?;
        }
        check_struct_size::<tllm_subject>(subject_size, "subject_size")?;
        let apart = Apart::new(verdict_size)?;
        let state = engine_of(engine)?;
        let engine = state.get()?;
        let file = File::open(path)
            .map_err(|error| Fault::new(TLLM_ERR_IO, format!("{path}: opening failed: {error}")))?;
        let mut detection = engine.detect(Forward {
            callback,
            user,
            generation: 0,
            profile: String::new(),
            model_id: String::new(),
            entries: Vec::new(),
            subject_size,
            subject: vec![0; subject_size.div_ceil(size_of::<u64>())],
            apart,
            is_cancelled: false,
        });
        let (generation, model) = (detection.generation(), detection.model());
        let sink = detection.sink_mut();
        sink.generation = generation;
        sink.profile = model.profile_name().to_owned();
        sink.model_id = model.id().to_owned();
        let mut read = tllm_capture_report::EMPTY;
        let is_requests = Path::new(path)
            .extension()
            .is_some_and(|extension| extension == "jsonl");
        let failure = if is_requests {
            let lines = detection.requests(BufReader::new(file))?;
            read.lines = lines.lines;
            read.bad_lines = lines.bad_lines;
            lines.failure.map(|error| error.to_string())
        } else {
            let packets = detection.capture(file)?;
            read.packets = packets.packets;
            read.packet_bytes = packets.packet_bytes;
            read.packets_skipped = packets.skipped.total();
            read.flows = packets.flows.flows;
            read.flows_evicted = packets.flows.evicted;
            packets.failure.map(|error| error.to_string())
        };
        let (tally, sink) = detection.finish()?;
        read.verdicts = tally.verdicts();
        read.abstained = tally.abstained();
        if !report.is_null() {
            // SAFETY: the caller's promise.
            unsafe { write_struct(&read, report, report_size, "report") }?;
        }
        match failure {
            _ if sink.is_cancelled => Ok(TLLM_CANCELLED),
            Some(message) => Err(Fault::new(TLLM_ERR_CAPTURE, format!("{path}: {message}"))),
            None => Ok(TLLM_OK),
        }
    })
}

impl tllm_capture_report {
    const EMPTY: Self = Self {
        packets: 0,
        packet_bytes: 0,
        packets_skipped: 0,
        flows: 0,
        flows_evicted: 0,
        lines: 0,
        bad_lines: 0,
        verdicts: 0,
        abstained: 0,
        reserved: [0; 4],
    };
}

/// Writes a subject with its verdicts as the JSON object that the command `trafficllm detect --format json` writes on a line, without
/// the line's end. `capture` is the name that stands in it; NULL leaves it out. `verdict_size` is sizeof(tllm_verdict), `subject_size`
/// sizeof(tllm_subject). For `buffer`, `size` and `needed` see "Texts that come out" above.
///
/// Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT, TLLM_ERR_TEXT, TLLM_ERR_BUFFER.
///
/// # Safety
/// `capture` is NULL or ends with a NUL; `subject` is NULL or has `subject_size` readable bytes; `verdicts` is NULL or has `count` entries
/// of `verdict_size` bytes; `buffer` is NULL or has room for `size` bytes; `needed` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tllm_subject_json(
    capture: *const c_char,
    subject: *const tllm_subject,
    subject_size: usize,
    verdicts: *const tllm_verdict,
    verdict_size: usize,
    count: usize,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        let capture = if capture.is_null() {
            None
        } else {
            // SAFETY: the caller's promise.
            Some(unsafe { text(capture, "capture") }?)
        };
        if subject.is_null() {
            return Err(Fault::null("subject"));
        }
        if !subject.is_aligned() {
            return Err(Fault::argument(
                "subject: the pointer is not aligned".to_owned(),
            ));
        }
        check_struct_size::<tllm_subject>(subject_size, "subject")?;
        // SAFETY: the caller's promise.
        let (subject, entries): (tllm_subject, _) = unsafe {
            (
                paste_struct(subject.cast(), subject_size),
                read_entries(verdicts, verdict_size, count)?,
            )
        };
        let verdicts = verdicts_of(&entries)?;
        let outcome = Outcome {
            source: 0,
            subject: told(&subject)?,
            verdicts: &verdicts,
        };
        let json = OutcomeJson {
            capture,
            profile: name_of(&subject.profile)?,
            model: name_of(&subject.model_id)?,
            outcome: &outcome,
        };
        // SAFETY: the caller's promise.
        unsafe { write_text(&json.to_string(), buffer, size, needed) }
    })
}

fn subject_of(subject: &Subject, profile: &str, model_id: &str) -> tllm_subject {
    let mut told = tllm_subject {
        kind: TLLM_SUBJECT_REQUEST,
        protocol: 0,
        ip_version: 0,
        initiator_port: 0,
        responder_port: 0,
        reserved0: 0,
        reserved1: 0,
        index: 0,
        start_ns: 0,
        packets: 0,
        bytes: 0,
        initiator: [0; 16],
        responder: [0; 16],
        profile: [0; 64],
        model_id: [0; TLLM_MODEL_ID_BYTES],
        reserved: [0; 2],
    };
    fill_name(&mut told.profile, profile);
    fill_name(&mut told.model_id, model_id);
    match subject {
        Subject::Request(line) => told.index = *line,
        Subject::Flow(flow) => {
            let ends = flow.endpoints;
            told.kind = TLLM_SUBJECT_FLOW;
            told.protocol = ends.protocol;
            told.ip_version = if ends.initiator.is_ipv6() { 6 } else { 4 };
            told.initiator_port = ends.initiator_port;
            told.responder_port = ends.responder_port;
            told.index = flow.index;
            told.start_ns = flow.start_ns;
            told.packets = flow.packets;
            told.bytes = flow.bytes;
            told.initiator = address_bytes(ends.initiator);
            told.responder = address_bytes(ends.responder);
        }
    }
    told
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(six) => six.octets(),
        IpAddr::V4(four) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&four.octets());
            bytes
        }
    }
}

fn told(subject: &tllm_subject) -> Result<Subject, Fault> {
    let address = |bytes: [u8; 16]| match subject.ip_version {
        6 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
    };
    match subject.kind {
        TLLM_SUBJECT_REQUEST => Ok(Subject::Request(subject.index)),
        TLLM_SUBJECT_FLOW => Ok(Subject::Flow(FlowInfo {
            index: subject.index,
            endpoints: Endpoints {
                initiator: address(subject.initiator),
                responder: address(subject.responder),
                initiator_port: subject.initiator_port,
                responder_port: subject.responder_port,
                protocol: subject.protocol,
            },
            start_ns: subject.start_ns,
            packets: subject.packets,
            bytes: subject.bytes,
        })),
        other => Err(Fault::argument(format!(
            "subject.kind: expected TLLM_SUBJECT_FLOW or TLLM_SUBJECT_REQUEST, found {other}"
        ))),
    }
}
