//! The classic pcap format: a file header, then records.

use std::io::Read;

use pcap_parser::{
    PcapHeader, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified, parse_pcap_header,
};

use super::source::Window;
use super::{LinkType, Located};
use crate::error::CaptureError;
use crate::limits::PACKET_BYTES_MAX;

/// The magic numbers as they stand in a file: microseconds and nanoseconds in both byte orders, and the format of
/// Kuznetzov's patched libpcap with its longer record headers.
pub(super) const MAGICS: [[u8; 4]; 5] = [
    [0xd4, 0xc3, 0xb2, 0xa1],
    [0xa1, 0xb2, 0xc3, 0xd4],
    [0x4d, 0x3c, 0xb2, 0xa1],
    [0xa1, 0xb2, 0x3c, 0x4d],
    [0x34, 0xcd, 0xb2, 0xa1],
];
const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
const MODIFIED_RECORD_HEADER_BYTES: usize = 24;

pub(super) fn has_magic(first: &[u8]) -> bool {
    MAGICS.iter().any(|magic| magic == first)
}

pub(super) struct PcapFile {
    link_type: LinkType,
    big_endian: bool,
    modified: bool,
    fraction_ns: u64,
}

impl PcapFile {
    pub(super) fn open<R: Read>(window: &mut Window<R>) -> Result<Self, CaptureError> {
        if window.fill(FILE_HEADER_BYTES) < FILE_HEADER_BYTES {
            return Err(window.cut("pcap file header", FILE_HEADER_BYTES as u64));
        }
        let header: PcapHeader = match parse_pcap_header(window.bytes()) {
            Ok((_, header)) => header,
            Err(_) => return Err(window.cut("pcap file header", FILE_HEADER_BYTES as u64)),
        };
        if header.version_major != 2 {
            return Err(CaptureError::UnsupportedVersion {
                offset: 0,
                format: "pcap",
                expected: "2.x",
                found_major: header.version_major,
                found_minor: header.version_minor,
            });
        }
        window.consume(FILE_HEADER_BYTES);
        Ok(Self {
            // The upper half holds the length of a frame check sequence.
            link_type: LinkType((header.network.0 & 0xffff) as u16),
            big_endian: header.is_bigendian(),
            modified: header.is_modified_format(),
            fraction_ns: if header.is_nanosecond_precision() {
                1
            } else {
                1_000
            },
        })
    }

    pub(super) fn locate<R: Read>(
        &mut self,
        window: &mut Window<R>,
    ) -> Result<Option<Located>, CaptureError> {
        let header_bytes = if self.modified {
            MODIFIED_RECORD_HEADER_BYTES
        } else {
            RECORD_HEADER_BYTES
        };
        let there = window.fill(header_bytes);
        if there == 0 {
            return window.failure().map_or(Ok(None), Err);
        }
        let Some(length) = window
            .bytes()
            .get(..header_bytes)
            .and_then(|header| header[8..12].try_into().ok())
        else {
            return Err(window.cut("packet record header", header_bytes as u64));
        };
        let captured = if self.big_endian {
            u32::from_be_bytes(length)
        } else {
            u32::from_le_bytes(length)
        };
        if captured as usize > PACKET_BYTES_MAX {
            return Err(CaptureError::TooLarge {
                offset: window.offset(),
                what: "captured packet",
                limit_bytes: PACKET_BYTES_MAX as u64,
                found_bytes: u64::from(captured),
            });
        }
        let record_bytes = header_bytes + captured as usize;
        if window.fill(record_bytes) < record_bytes {
            return Err(window.cut("packet record", record_bytes as u64));
        }
        let parsed = match (self.modified, self.big_endian) {
            (true, _) => parse_pcap_frame_modified(window.bytes()),
            (false, false) => parse_pcap_frame(window.bytes()),
            (false, true) => parse_pcap_frame_be(window.bytes()),
        };
        let Ok((_, record)) = parsed else {
            return Err(window.cut("packet record", record_bytes as u64));
        };
        let bytes = window.position() + header_bytes..window.position() + record_bytes;
        let located = Located {
            link_type: self.link_type,
            wire_bytes: record.origlen.max(captured),
            timestamp_ns: u64::from(record.ts_sec) * 1_000_000_000
                + u64::from(record.ts_usec) * self.fraction_ns,
            interface: 0,
            bytes,
        };
        window.consume(record_bytes);
        Ok(Some(located))
    }
}
