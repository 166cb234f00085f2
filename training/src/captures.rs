//! Captures to flows, the way the runtime does it: same reader, same table, same limits but that on payload.

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use trafficllm_traffic::decode::ip_offset;
use trafficllm_traffic::{
    CaptureReader, Flow, FlowConfig, FlowTable, Packet, SkipCounters, decode,
};

use crate::error::{Result, TrainError};

/// The settings under which the trainer reads flows. The runtime keeps the payload of the packets that a profile shows; baselines
/// and the search for repeated items take all.
pub const FLOW_CONFIG: FlowConfig = FlowConfig {
    max_payloads: FlowConfig::DEFAULT.max_packets,
    ..FlowConfig::DEFAULT
};

/// For who wants the flows counted and told apart but nothing of them kept.
pub const BARE_FLOW_CONFIG: FlowConfig = FlowConfig {
    max_packets: 1,
    max_payload_bytes: 0,
    max_payloads: 0,
    ..FlowConfig::DEFAULT
};

/// Reads all flows of a capture, in the order of their first packets. Packets that are no part of a flow are passed over,
/// as they are when the model is used.
///
/// # Errors
/// [`TrainError::Io`] where the file cannot be opened, [`TrainError::Capture`] where it cannot be read to its end: a
/// training set that is silently cut would be worse than none.
pub fn read_flows(path: &Path) -> Result<Vec<Flow>> {
    struct All(Vec<Flow>);
    impl Visit for All {
        fn flow(&mut self, flow: Flow) {
            self.0.push(flow);
        }
    }
    let mut all = All(Vec::new());
    walk(path, FLOW_CONFIG, &mut all)?;
    all.0.sort_by_key(|flow| flow.index);
    Ok(all.0)
}

/// One packet and the flow that it is part of.
#[derive(Clone, Copy, Debug)]
pub struct FlowPacket<'a> {
    /// [`Flow::index`] of its flow.
    pub flow: u64,
    /// Packets of the flow before it.
    pub place: u64,
    /// What its headers say.
    pub packet: Packet<'a>,
    /// The captured bytes from the IP header on, without the link layer's padding.
    pub ip: &'a [u8],
    /// How many of these bytes stand before the payload.
    pub header_bytes: usize,
    /// Bytes of the file that have been read, for a progress display.
    pub source_bytes: u64,
}

/// What [`walk`] calls.
pub trait Visit {
    /// A packet that is part of a flow, in the order of the capture.
    ///
    /// # Errors
    /// The visitor's own; they end the walk.
    fn packet(&mut self, _packet: &FlowPacket<'_>) -> Result<()> {
        Ok(())
    }

    /// A flow that has ended.
    fn flow(&mut self, _flow: Flow) {}
}

/// Reads a capture to its end and tells `visitor` of each packet with its flow, and of each flow when it has ended. Which packets
/// make a flow is decided by the runtime's own table.
///
/// # Errors
/// As for [`read_flows`], and those of the visitor.
pub fn walk(path: &Path, config: FlowConfig, visitor: &mut impl Visit) -> Result<SkipCounters> {
    let file = File::open(path).map_err(TrainError::io(path))?;
    let broken = |source| TrainError::Capture {
        path: path.into(),
        source,
    };
    let mut reader = CaptureReader::new(file).map_err(broken)?;
    let mut table = FlowTable::new(config)?;
    let mut skipped = SkipCounters::default();
    let mut open: HashMap<Key, Open> = HashMap::new();
    loop {
        let source_bytes = reader.source_bytes();
        let Some(raw) = reader.next_packet().map_err(broken)? else {
            break;
        };
        let decoded = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns)
            .and_then(|packet| Ok((packet, ip_offset(raw.link_type, raw.bytes)?)));
        let (packet, offset) = match decoded {
            Ok(found) => found,
            Err(reason) => {
                skipped.count(reason);
                continue;
            }
        };
        let before = table.counters().flows;
        table.push(&packet, &mut |flow| {
            forget(&mut open, &flow);
            visitor.flow(flow);
        });
        // The table has begun a flow, or the packet went to the one that is open under its addresses.
        let place = open.entry(key_of_packet(&packet)).or_insert(Open {
            flow: before,
            packets: 0,
        });
        place.packets += 1;
        let ip = raw.bytes.get(offset..).unwrap_or_default();
        let ip = ip.get(..packet.ip_bytes as usize).unwrap_or(ip);
        visitor.packet(&FlowPacket {
            flow: place.flow,
            place: place.packets - 1,
            packet,
            ip,
            header_bytes: header_bytes(ip, packet.payload),
            source_bytes,
        })?;
    }
    table.flush(&mut |flow| visitor.flow(flow));
    Ok(skipped)
}

/// A flow that has not ended.
struct Open {
    flow: u64,
    packets: u64,
}

/// Protocol and both ends in ascending order.
type Key = (u8, (IpAddr, u16), (IpAddr, u16));

fn key(protocol: u8, one: (IpAddr, u16), other: (IpAddr, u16)) -> Key {
    (protocol, one.min(other), one.max(other))
}

fn key_of_packet(packet: &Packet<'_>) -> Key {
    let source = (packet.source, packet.source_port);
    let destination = (packet.destination, packet.destination_port);
    key(packet.protocol, source, destination)
}

fn forget(open: &mut HashMap<Key, Open>, flow: &Flow) {
    let ends = &flow.endpoints;
    open.remove(&key(
        ends.protocol,
        (ends.initiator, ends.initiator_port),
        (ends.responder, ends.responder_port),
    ));
}

/// Bytes of `ip` before its `payload`, which borrows from it; all where nothing of the payload was captured.
fn header_bytes(ip: &[u8], payload: &[u8]) -> usize {
    if payload.is_empty() {
        return ip.len();
    }
    (payload.as_ptr().addr())
        .saturating_sub(ip.as_ptr().addr())
        .min(ip.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn flows_come_in_order_with_their_packets() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 1);
        let flows = read_flows(&data.path().join("colours/train/blue/blue-0.pcap")).expect("flows");
        assert_eq!(flows.len(), 6);
        assert!(
            flows
                .iter()
                .all(|flow| flow.packets == 4 && flow.records.len() == 4)
        );
        assert!(flows.iter().map(|flow| flow.index).eq(0..6));
    }

    #[test]
    fn packets_are_told_with_the_flow_that_the_table_gives_them() {
        #[derive(Default)]
        struct Seen {
            packets: Vec<(u64, u64, usize)>,
            flows: Vec<Flow>,
        }
        impl Visit for Seen {
            fn packet(&mut self, packet: &FlowPacket<'_>) -> Result<()> {
                let payload = &packet.ip[packet.header_bytes..];
                assert_eq!(payload, packet.packet.payload);
                self.packets
                    .push((packet.flow, packet.place, payload.len()));
                Ok(())
            }
            fn flow(&mut self, flow: Flow) {
                self.flows.push(flow);
            }
        }
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 1);
        let path = data.path().join("colours/train/red/red-1.pcap");
        let mut seen = Seen::default();
        walk(&path, FLOW_CONFIG, &mut seen).expect("read");
        seen.flows.sort_by_key(|flow| flow.index);
        let told: Vec<_> = seen
            .flows
            .iter()
            .flat_map(|flow| {
                let kept = flow.kept().enumerate();
                kept.map(|(place, (_, payload))| (flow.index, place as u64, payload.len()))
            })
            .collect();
        assert_eq!(seen.packets, told);
        assert_eq!(seen.flows, read_flows(&path).expect("flows"));
    }

    #[test]
    fn a_cut_capture_is_an_error() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 1);
        let path = data.path().join("colours/train/blue/blue-0.pcap");
        let bytes = std::fs::read(&path).expect("read");
        std::fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
        assert!(matches!(read_flows(&path), Err(TrainError::Capture { .. })));
    }
}
