//! Any bytes as a capture: no panic, bounded packets, offsets that grow, and an end after an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trafficllm_traffic::{CaptureReader, decode, limits};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut reader) = CaptureReader::new(bytes) else {
        return;
    };
    let mut offset = reader.offset();
    loop {
        match reader.next_packet() {
            Ok(Some(packet)) => {
                assert!(packet.bytes.len() <= limits::PACKET_BYTES_MAX);
                assert!(packet.wire_bytes as usize >= packet.bytes.len());
                let _ = decode(
                    packet.link_type,
                    packet.bytes,
                    packet.wire_bytes,
                    packet.timestamp_ns,
                );
            }
            Ok(None) => break,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(matches!(reader.next_packet(), Ok(None)));
                break;
            }
        }
        assert!(reader.offset() > offset);
        offset = reader.offset();
    }
});
