//! Reads pcap and pcapng, plain or gzip, from any byte stream, one packet at a time and in bounded memory.

mod pcap;
mod pcapng;
mod source;

use std::io::Read;

use crate::error::CaptureError;
use pcap::PcapFile;
use pcapng::PcapNgFile;
use source::Window;

/// The link-layer header type of a packet (<https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback: address family in the capturing host's byte order.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// PPP, with or without HDLC-like framing.
    pub const PPP: Self = Self(9);
    /// Raw IP, as BSD writes it.
    pub const RAW_BSD: Self = Self(12);
    /// Raw IP, as OpenBSD writes it.
    pub const RAW_OPENBSD: Self = Self(14);
    /// PPP in HDLC-like framing.
    pub const PPP_HDLC: Self = Self(50);
    /// PPPoE session packets.
    pub const PPP_ETHER: Self = Self(51);
    /// Raw IP: the version is in the first nibble.
    pub const RAW: Self = Self(101);
    /// OpenBSD loopback: address family in network byte order.
    pub const LOOP: Self = Self(108);
    /// Linux cooked capture.
    pub const LINUX_SLL: Self = Self(113);
    /// Raw IPv4.
    pub const IPV4: Self = Self(228);
    /// Raw IPv6.
    pub const IPV6: Self = Self(229);
    /// Linux cooked capture, version 2.
    pub const LINUX_SLL2: Self = Self(276);
}

/// One captured packet; its bytes live until the next packet is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawPacket<'a> {
    /// Link type of the interface that captured it.
    pub link_type: LinkType,
    /// The captured bytes; fewer than `wire_bytes` where the capture was cut to a snapshot length.
    pub bytes: &'a [u8],
    /// Length on the wire; never below the captured length.
    pub wire_bytes: u32,
    /// Time in nanoseconds since the Unix epoch. A simple packet block has none and takes that of the packet before it.
    pub timestamp_ns: u64,
    /// Index of the interface in its section; 0 in pcap.
    pub interface: u32,
}

/// Format of a capture, found by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureFormat {
    /// The classic libpcap format.
    Pcap,
    /// The block format of Wireshark.
    PcapNg,
}

/// A packet that the format's reader found; its bytes still lie in the window.
struct Located {
    link_type: LinkType,
    wire_bytes: u32,
    timestamp_ns: u64,
    interface: u32,
    /// Packet bytes, as an absolute range of the window's buffer.
    bytes: std::ops::Range<usize>,
}

enum Format {
    Pcap(PcapFile),
    PcapNg(PcapNgFile),
}

/// Reads the packets of one capture.
///
/// After an error the reader is finished: further calls give `Ok(None)`. What was read before stays good.
///
/// ```
/// # use trafficllm_traffic::CaptureReader;
/// let mut header = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
/// header.extend([0; 12]);
/// header.extend(101_u32.to_le_bytes());
/// let mut reader = CaptureReader::new(&header[..])?;
/// assert!(reader.next_packet()?.is_none());
/// # Ok::<(), trafficllm_traffic::CaptureError>(())
/// ```
pub struct CaptureReader<R: Read> {
    window: Window<R>,
    format: Format,
    gzip: bool,
    finished: bool,
    packets: u64,
}

impl<R: Read> CaptureReader<R> {
    /// Looks at the first bytes and reads the capture's header. Gzip is found by its magic.
    ///
    /// # Errors
    /// [`CaptureError::Empty`] for no bytes, [`CaptureError::NotACapture`] for an unknown format, and what a cut or
    /// wrong header gives.
    pub fn new(reader: R) -> Result<Self, CaptureError> {
        let mut window = Window::open(reader)?;
        let gzip = window.is_gzip();
        let found_bytes = window.fill(4);
        let first: Vec<u8> = window.bytes().iter().take(4).copied().collect();
        let format = if found_bytes == 0 {
            return Err(window.failure().unwrap_or(CaptureError::Empty));
        } else if let Some(what) = cut_magic(&first) {
            return Err(window.cut(what, 4));
        } else if pcap::has_magic(&first) {
            Format::Pcap(PcapFile::open(&mut window)?)
        } else if first == pcapng::SECTION_HEADER_BYTES {
            Format::PcapNg(PcapNgFile::open(&mut window)?)
        } else {
            return Err(CaptureError::NotACapture { found: first });
        };
        Ok(Self {
            window,
            format,
            gzip,
            finished: false,
            packets: 0,
        })
    }

    /// The next packet, or `None` at the end of the capture.
    ///
    /// # Errors
    /// What stands in the way of reading on; all packets before that place have been delivered.
    pub fn next_packet(&mut self) -> Result<Option<RawPacket<'_>>, CaptureError> {
        if self.finished {
            return Ok(None);
        }
        let located = match &mut self.format {
            Format::Pcap(file) => file.locate(&mut self.window),
            Format::PcapNg(file) => file.locate(&mut self.window),
        };
        match located {
            Ok(Some(found)) => {
                self.packets += 1;
                Ok(Some(RawPacket {
                    link_type: found.link_type,
                    bytes: self.window.slice(found.bytes),
                    wire_bytes: found.wire_bytes,
                    timestamp_ns: found.timestamp_ns,
                    interface: found.interface,
                }))
            }
            Ok(None) => {
                self.finished = true;
                Ok(None)
            }
            Err(error) => {
                self.finished = true;
                Err(error)
            }
        }
    }

    /// Bytes taken from the source so far, before decompression: for a progress display beside the file's size.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        self.window.source_bytes()
    }

    /// Offset behind the last packet that was delivered, in the capture's bytes after decompression.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.window.offset()
    }

    /// Packets delivered so far.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Blocks passed over because they hold no packet (statistics, names, secrets, unknown ones); 0 in pcap.
    #[must_use]
    pub fn skipped_blocks(&self) -> u64 {
        match &self.format {
            Format::Pcap(_) => 0,
            Format::PcapNg(file) => file.skipped_blocks(),
        }
    }

    /// Format of the capture.
    #[must_use]
    pub fn format(&self) -> CaptureFormat {
        match &self.format {
            Format::Pcap(_) => CaptureFormat::Pcap,
            Format::PcapNg(_) => CaptureFormat::PcapNg,
        }
    }

    /// Whether the source is gzip.
    #[must_use]
    pub fn is_gzip(&self) -> bool {
        self.gzip
    }
}

/// Whether fewer than four bytes are the beginning of a known magic number, and of what.
fn cut_magic(first: &[u8]) -> Option<&'static str> {
    if first.len() >= 4 {
        return None;
    }
    if pcapng::SECTION_HEADER_BYTES.starts_with(first) {
        return Some("pcapng magic number");
    }
    pcap::MAGICS
        .iter()
        .any(|magic| magic.starts_with(first))
        .then_some("pcap magic number")
}

#[cfg(test)]
mod tests;
