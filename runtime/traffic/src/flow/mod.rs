//! Packets of one connection gathered into a bounded, bidirectional record.

mod config;
mod key;
mod list;
mod payload;
pub mod record;
mod recorder;
mod table;
mod tcp;

pub use config::{FlowConfig, FlowCounters};
pub use payload::Payload;
pub use record::{Direction, Endpoints, Flow, PacketRecord, TcpFlags};
pub use recorder::{FlowRecorder, HostPacket, RecorderCounters};
pub use table::FlowTable;
