//! Writes captures of raw IP packets.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use trafficllm_traffic::{LinkType, limits};

/// Magic number of a pcap file with times in nanoseconds, in the writer's byte order.
const MAGIC_NS: u32 = 0xA1B2_3C4D;
const VERSION_MAJOR: u16 = 2;
const VERSION_MINOR: u16 = 4;

/// Writes a little-endian pcap file with nanoseconds and link type 101
/// (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html>).
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    output: W,
}

impl PcapWriter<BufWriter<File>> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::new(BufWriter::new(File::create_new(path)?))
    }
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file header.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(mut output: W) -> io::Result<Self> {
        output.write_all(&MAGIC_NS.to_le_bytes())?;
        output.write_all(&VERSION_MAJOR.to_le_bytes())?;
        output.write_all(&VERSION_MINOR.to_le_bytes())?;
        for word in [
            0,
            0,
            limits::PACKET_BYTES_MAX as u32,
            u32::from(LinkType::RAW.0),
        ] {
            output.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { output })
    }

    /// Adds a packet: the captured bytes from its IP header on, and its length on the wire.
    ///
    /// # Errors
    /// A time after 2106, which the format cannot tell, and those of the output.
    pub fn push(&mut self, time_ns: u64, ip: &[u8], wire_bytes: u32) -> io::Result<()> {
        let time_s = u32::try_from(time_ns / 1_000_000_000).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("packet time {time_ns} ns: expected one before the year 2106"),
            )
        })?;
        let captured = ip.len() as u32;
        let fraction_ns = (time_ns % 1_000_000_000) as u32;
        for word in [time_s, fraction_ns, captured, wire_bytes.max(captured)] {
            self.output.write_all(&word.to_le_bytes())?;
        }
        self.output.write_all(ip)
    }

    /// Writes what is still held back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trafficllm_traffic::CaptureReader;

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = PcapWriter::new(Vec::new()).expect("begun");
        let packets: [(u64, &[u8], u32); 3] = [
            (1_700_000_000_123_456_789, b"\x45first", 1500),
            (0, b"", 0),
            (
                u64::from(u32::MAX) * 1_000_000_000 + 999_999_999,
                b"\x60",
                1,
            ),
        ];
        for (time_ns, bytes, wire_bytes) in packets {
            writer.push(time_ns, bytes, wire_bytes).expect("written");
        }
        let file = writer.finish().expect("finished");
        let mut reader = CaptureReader::new(&file[..]).expect("a capture");
        for (time_ns, bytes, wire_bytes) in packets {
            let raw = reader.next_packet().expect("read").expect("a packet");
            assert_eq!(
                (raw.timestamp_ns, raw.bytes, raw.wire_bytes),
                (time_ns, bytes, wire_bytes)
            );
            assert_eq!(raw.link_type, LinkType::RAW);
        }
        assert!(reader.next_packet().expect("read").is_none());
    }

    #[test]
    fn a_time_that_the_format_cannot_tell_is_refused() {
        let mut writer = PcapWriter::new(Vec::new()).expect("begun");
        let error = writer
            .push((u64::from(u32::MAX) + 1) * 1_000_000_000, b"", 0)
            .expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
