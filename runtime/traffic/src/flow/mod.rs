//! Packets of one connection gathered into a bounded, bidirectional record.

mod config;
mod key;
mod list;
pub mod record;
mod table;
mod tcp;

pub use config::{FlowConfig, FlowCounters};
pub use record::{Direction, Endpoints, Flow, PacketRecord, TcpFlags};
pub use table::FlowTable;
