//! Captures to flows, the way the runtime does it: same reader, same table, same limits but that on payload.

use std::fs::File;
use std::path::Path;

use trafficllm_traffic::{CaptureReader, Flow, FlowConfig, FlowTable, decode};

use crate::error::{Result, TrainError};

/// Reads all flows of a capture, in the order of their first packets. Packets that are no part of a flow are passed over,
/// as they are when the model is used.
///
/// # Errors
/// [`TrainError::Io`] where the file cannot be opened, [`TrainError::Capture`] where it cannot be read to its end: a
/// training set that is silently cut would be worse than none.
pub fn read_flows(path: &Path) -> Result<Vec<Flow>> {
    let file = File::open(path).map_err(TrainError::io(path))?;
    let broken = |source| TrainError::Capture {
        path: path.into(),
        source,
    };
    let mut reader = CaptureReader::new(file).map_err(broken)?;
    // The runtime keeps the payload of the packets that a profile shows; baselines and the search for repeated items take all.
    let default = FlowConfig::default();
    let mut table = FlowTable::new(FlowConfig {
        max_payloads: default.max_packets,
        ..default
    })?;
    let mut flows = Vec::new();
    while let Some(raw) = reader.next_packet().map_err(broken)? {
        if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
            table.push(&packet, &mut |flow| flows.push(flow));
        }
    }
    table.flush(&mut |flow| flows.push(flow));
    flows.sort_by_key(|flow| flow.index);
    Ok(flows)
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
    fn a_cut_capture_is_an_error() {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 1);
        let path = data.path().join("colours/train/blue/blue-0.pcap");
        let bytes = std::fs::read(&path).expect("read");
        std::fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
        assert!(matches!(read_flows(&path), Err(TrainError::Capture { .. })));
    }
}
