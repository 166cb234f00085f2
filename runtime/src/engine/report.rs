//! What a detection tells, and whom.

use std::ops::ControlFlow;

use trafficllm_traffic::{CaptureError, FlowCounters, SkipCounters};

use super::LineError;
use crate::outcome::Outcome;

/// Where outcomes go.
pub trait Sink {
    /// Takes one outcome. They come in the order in which the flows ended and the lines stood, whatever the number of workers.
    ///
    /// `Break` stops the detection: what is read after it is not judged.
    fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()>;

    /// Is told now and then how far reading has come.
    fn progress(&mut self, _progress: &Progress) {}

    /// Takes a line of a requests file that could not be used.
    fn bad_line(&mut self, _source: usize, _error: &LineError) {}
}

/// How far a detection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the current source so far, before decompression.
    pub source_bytes: u64,
    /// Flows and requests of all sources that have their outcome.
    pub outcomes: u64,
}

/// What was read of one capture.
#[derive(Debug, Default)]
pub struct CaptureReport {
    /// Packets read.
    pub packets: u64,
    /// Their captured bytes.
    pub packet_bytes: u64,
    /// Blocks of a pcapng file that hold no packet.
    pub blocks_skipped: u64,
    /// Packets that became no part of a flow, by reason.
    pub skipped: SkipCounters,
    /// What the flow table saw and lost.
    pub flows: FlowCounters,
    /// Why the capture could not be read to its end.
    pub failure: Option<CaptureError>,
}

/// What was read of one requests file.
#[derive(Debug, Default)]
pub struct RequestsReport {
    /// Lines read, without those that are blank.
    pub lines: u64,
    /// Lines that could not be used.
    pub bad_lines: u64,
    /// Why the file could not be read to its end.
    pub failure: Option<std::io::Error>,
}
