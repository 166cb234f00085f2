//! From the bytes of a capture to packets, flows and traffic-domain tokens.
//!
//! The way of the data is `bytes -> capture::RawPacket -> decode::Packet -> flow::Flow -> tokens`. Every stage is
//! bounded by [`limits`] and counts what it loses; nothing here opens a file, starts a thread or prints.
#![forbid(unsafe_code)]

pub mod capture;
pub mod decode;
pub mod error;
pub mod flow;
pub mod limits;
mod memory;
pub mod token;

pub use capture::{CaptureFormat, CaptureReader, LinkType, RawPacket};
pub use decode::{Packet, Skip, SkipCounters, decode};
pub use error::{CaptureError, FlowConfigError, RecorderError};
pub use flow::{
    Direction, Endpoints, Flow, FlowConfig, FlowCounters, FlowRecorder, FlowTable, HostPacket,
    PacketRecord, Payload, RecorderCounters, TcpFlags,
};
pub use memory::MemoryError;
