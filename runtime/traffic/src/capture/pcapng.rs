//! The pcapng format: sections of blocks, each interface with its own link type and clock.

use std::io::Read;

use pcap_parser::{PcapError, parse_option_be, parse_option_le};

use super::source::Window;
use super::{LinkType, Located};
use crate::error::CaptureError;
use crate::limits::{BLOCK_BYTES_MAX, INTERFACES_MAX, PACKET_BYTES_MAX};
use crate::memory::try_push;

/// The type of a section header block reads the same in both byte orders.
pub(super) const SECTION_HEADER_BYTES: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Type, length and the length again at the block's end.
const BLOCK_FRAME_BYTES: u32 = 12;
/// Type and length at the block's start.
const BLOCK_START_BYTES: usize = 8;
const OPTION_TIMESTAMP_RESOLUTION: u16 = 9;
const OPTION_TIMESTAMP_OFFSET: u16 = 14;

/// How an interface counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// Nanoseconds per unit.
    Multiply(u64),
    /// Units per nanosecond.
    Divide(u64),
    /// Units are seconds / 2^shift.
    Binary(u32),
}

impl Resolution {
    /// From the option's byte: a negative power of 10, or of 2 where the highest bit is set.
    fn from_option(value: u8) -> Self {
        let power = u32::from(value & 0x7f);
        if value & 0x80 != 0 {
            Self::Binary(power)
        } else if power <= 9 {
            Self::Multiply(10_u64.pow(9 - power))
        } else {
            // Finer than a u64 of units can count: every time is 0, as behind the largest shift.
            10_u64
                .checked_pow(power - 9)
                .map_or(Self::Binary(127), Self::Divide)
        }
    }

    fn nanoseconds(self, units: u64) -> u128 {
        match self {
            Self::Multiply(factor) => u128::from(units) * u128::from(factor),
            Self::Divide(divisor) => u128::from(units / divisor),
            Self::Binary(shift) => (u128::from(units) * 1_000_000_000) >> shift,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: LinkType,
    snapshot_bytes: u32,
    resolution: Resolution,
    offset_seconds: i64,
}

impl Interface {
    /// Nanoseconds since the Unix epoch, held inside what a u64 can count.
    fn timestamp_ns(&self, high: u32, low: u32) -> u64 {
        let units = (u64::from(high) << 32) | u64::from(low);
        let nanoseconds = self
            .resolution
            .nanoseconds(units)
            .min(i128::MAX as u128 / 2) as i128;
        let shifted = nanoseconds + i128::from(self.offset_seconds) * 1_000_000_000;
        u64::try_from(shifted.max(0)).unwrap_or(u64::MAX)
    }
}

/// Where a packet block keeps what; the fields are read by hand because the library's block parsers allocate a list
/// of options for each.
struct PacketFields {
    interface: u32,
    timestamp: Option<(u32, u32)>,
    captured_bytes: u32,
    wire_bytes: u32,
    /// Bytes of the block before the packet's first byte.
    header_bytes: usize,
}

pub(super) struct PcapNgFile {
    big_endian: bool,
    interfaces: Vec<Interface>,
    last_timestamp_ns: u64,
    skipped_blocks: u64,
}

impl PcapNgFile {
    pub(super) fn open<R: Read>(window: &mut Window<R>) -> Result<Self, CaptureError> {
        let mut file = Self {
            big_endian: false,
            interfaces: Vec::new(),
            last_timestamp_ns: 0,
            skipped_blocks: 0,
        };
        let (_, block_bytes) = file.block_start(window)?;
        file.section(window, block_bytes)?;
        Ok(file)
    }

    pub(super) fn skipped_blocks(&self) -> u64 {
        self.skipped_blocks
    }

    pub(super) fn locate<R: Read>(
        &mut self,
        window: &mut Window<R>,
    ) -> Result<Option<Located>, CaptureError> {
        loop {
            if window.fill(1) == 0 {
                return window.failure().map_or(Ok(None), Err);
            }
            let (block_type, block_bytes) = self.block_start(window)?;
            match block_type {
                SECTION_HEADER => self.section(window, block_bytes)?,
                INTERFACE_DESCRIPTION => self.interface(window, block_bytes)?,
                ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET => {
                    return self.packet(window, block_type, block_bytes).map(Some);
                }
                _ => self.pass_over(window, block_bytes)?,
            }
        }
    }

    /// Type and checked length of the block that starts here; nothing is consumed.
    fn block_start<R: Read>(&mut self, window: &mut Window<R>) -> Result<(u32, u32), CaptureError> {
        if window.fill(BLOCK_FRAME_BYTES as usize) < BLOCK_FRAME_BYTES as usize {
            return Err(window.cut("pcapng block", u64::from(BLOCK_FRAME_BYTES)));
        }
        let offset = window.offset();
        if window.bytes().starts_with(&SECTION_HEADER_BYTES) {
            let magic = u32::from_le_bytes(bytes_at(window.bytes(), 8));
            self.big_endian = match magic {
                BYTE_ORDER_MAGIC => false,
                _ if magic.swap_bytes() == BYTE_ORDER_MAGIC => true,
                found => return Err(CaptureError::BadByteOrder { offset, found }),
            };
        }
        let block_type = self.u32_at(window.bytes(), 0);
        let found_bytes = self.u32_at(window.bytes(), 4);
        if found_bytes < BLOCK_FRAME_BYTES {
            return Err(CaptureError::BadBlockLength {
                offset,
                expected: "at least 12",
                found_bytes,
            });
        }
        if !found_bytes.is_multiple_of(4) {
            return Err(CaptureError::BadBlockLength {
                offset,
                expected: "a multiple of 4",
                found_bytes,
            });
        }
        Ok((block_type, found_bytes))
    }

    /// Brings the whole block into the window and checks its second length.
    fn whole_block<R: Read>(
        &self,
        window: &mut Window<R>,
        what: &'static str,
        block_bytes: u32,
        least_bytes: u32,
    ) -> Result<(), CaptureError> {
        let offset = window.offset();
        if block_bytes < least_bytes {
            let found_bytes = u64::from(block_bytes);
            return Err(CaptureError::BadBlock {
                offset,
                what,
                found_bytes,
            });
        }
        if block_bytes as usize > BLOCK_BYTES_MAX {
            let (limit_bytes, found_bytes) = (BLOCK_BYTES_MAX as u64, u64::from(block_bytes));
            return Err(CaptureError::TooLarge {
                offset,
                what,
                limit_bytes,
                found_bytes,
            });
        }
        if window.fill(block_bytes as usize) < block_bytes as usize {
            return Err(window.cut(what, u64::from(block_bytes)));
        }
        let trailing_bytes = self.u32_at(window.bytes(), block_bytes as usize - 4);
        if trailing_bytes != block_bytes {
            return Err(CaptureError::BlockLengthMismatch {
                offset,
                leading_bytes: block_bytes,
                trailing_bytes,
            });
        }
        Ok(())
    }

    /// A new section: its interfaces count from 0 again.
    fn section<R: Read>(
        &mut self,
        window: &mut Window<R>,
        block_bytes: u32,
    ) -> Result<(), CaptureError> {
        let what = "section header block";
        self.whole_block(window, what, block_bytes, 28)?;
        let offset = window.offset();
        let version = [12, 14].map(|at| self.u16_at(window.bytes(), at));
        let [found_major, found_minor] = version;
        if found_major != 1 {
            return Err(CaptureError::UnsupportedVersion {
                offset,
                format: "pcapng",
                expected: "1.x",
                found_major,
                found_minor,
            });
        }
        self.interfaces.clear();
        window.consume(block_bytes as usize);
        Ok(())
    }

    fn interface<R: Read>(
        &mut self,
        window: &mut Window<R>,
        block_bytes: u32,
    ) -> Result<(), CaptureError> {
        let what = "interface description block";
        self.whole_block(window, what, block_bytes, 20)?;
        let offset = window.offset();
        if self.interfaces.len() >= INTERFACES_MAX {
            return Err(CaptureError::TooManyInterfaces {
                offset,
                limit: INTERFACES_MAX,
            });
        }
        let bytes = window.bytes();
        // Up to the length at the block's end.
        let options = bytes.get(16..block_bytes as usize - 4).unwrap_or_default();
        let interface = Interface {
            link_type: LinkType(self.u16_at(bytes, 8)),
            snapshot_bytes: self.u32_at(bytes, 12),
            resolution: Resolution::from_option(
                self.option(options, OPTION_TIMESTAMP_RESOLUTION)
                    .map_or(6, |[value]: [u8; 1]| value),
            ),
            offset_seconds: self
                .option(options, OPTION_TIMESTAMP_OFFSET)
                .map_or(0, |value| {
                    if self.big_endian {
                        i64::from_be_bytes(value)
                    } else {
                        i64::from_le_bytes(value)
                    }
                }),
        };
        try_push("interfaces", &mut self.interfaces, interface)
            .map_err(|source| CaptureError::Memory { offset, source })?;
        window.consume(block_bytes as usize);
        Ok(())
    }

    /// A block without packets may be longer than the buffer: it is passed over in steps.
    fn pass_over<R: Read>(
        &mut self,
        window: &mut Window<R>,
        block_bytes: u32,
    ) -> Result<(), CaptureError> {
        let offset = window.offset();
        let wanted = u64::from(block_bytes) - 4;
        let passed = window.skip(wanted);
        if passed < wanted || window.fill(4) < 4 {
            let found_bytes = window.offset() - offset + window.bytes().len() as u64;
            let (what, expected_bytes) = ("pcapng block", u64::from(block_bytes));
            let cut = CaptureError::Truncated {
                offset,
                what,
                expected_bytes,
                found_bytes,
            };
            return Err(window.failure().unwrap_or(cut));
        }
        let trailing_bytes = self.u32_at(window.bytes(), 0);
        if trailing_bytes != block_bytes {
            return Err(CaptureError::BlockLengthMismatch {
                offset,
                leading_bytes: block_bytes,
                trailing_bytes,
            });
        }
        window.consume(4);
        self.skipped_blocks += 1;
        Ok(())
    }

    fn packet<R: Read>(
        &mut self,
        window: &mut Window<R>,
        block_type: u32,
        block_bytes: u32,
    ) -> Result<Located, CaptureError> {
        let (what, least_bytes) = match block_type {
            SIMPLE_PACKET => ("simple packet block", 16),
            OBSOLETE_PACKET => ("obsolete packet block", 32),
            _ => ("enhanced packet block", 32),
        };
        self.whole_block(window, what, block_bytes, least_bytes)?;
        let offset = window.offset();
        let fields = self.packet_fields(window.bytes(), block_type);
        let Some(interface) = self.interfaces.get(fields.interface as usize) else {
            let (interfaces, found) = (self.interfaces.len(), fields.interface);
            return Err(CaptureError::UnknownInterface {
                offset,
                interfaces,
                found,
            });
        };
        let found_bytes = u64::from(fields.captured_bytes);
        let room_bytes = u64::from(block_bytes) - fields.header_bytes as u64 - 4;
        if found_bytes > PACKET_BYTES_MAX as u64 {
            let limit_bytes = PACKET_BYTES_MAX as u64;
            return Err(CaptureError::TooLarge {
                offset,
                what: "captured packet",
                limit_bytes,
                found_bytes,
            });
        }
        if found_bytes > room_bytes {
            return Err(CaptureError::PacketBeyondBlock {
                offset,
                room_bytes,
                found_bytes,
            });
        }
        if let Some((high, low)) = fields.timestamp {
            self.last_timestamp_ns = interface.timestamp_ns(high, low);
        }
        let start = window.position() + fields.header_bytes;
        let located = Located {
            link_type: interface.link_type,
            wire_bytes: fields.wire_bytes.max(fields.captured_bytes),
            timestamp_ns: self.last_timestamp_ns,
            interface: fields.interface,
            bytes: start..start + fields.captured_bytes as usize,
        };
        window.consume(block_bytes as usize);
        Ok(located)
    }

    fn packet_fields(&self, block: &[u8], block_type: u32) -> PacketFields {
        let word = |index: usize| self.u32_at(block, BLOCK_START_BYTES + 4 * index);
        if block_type == SIMPLE_PACKET {
            let wire_bytes = word(0);
            let limit = self
                .interfaces
                .first()
                .map_or(0, |interface| interface.snapshot_bytes);
            let captured_bytes = if limit == 0 {
                wire_bytes
            } else {
                wire_bytes.min(limit)
            };
            return PacketFields {
                interface: 0,
                timestamp: None,
                captured_bytes,
                wire_bytes,
                header_bytes: BLOCK_START_BYTES + 4,
            };
        }
        let interface = if block_type == OBSOLETE_PACKET {
            let index: [u8; 2] = bytes_at(block, BLOCK_START_BYTES);
            u32::from(if self.big_endian {
                u16::from_be_bytes(index)
            } else {
                u16::from_le_bytes(index)
            })
        } else {
            word(0)
        };
        PacketFields {
            interface,
            timestamp: Some((word(1), word(2))),
            captured_bytes: word(3),
            wire_bytes: word(4),
            header_bytes: BLOCK_START_BYTES + 20,
        }
    }

    /// The value of the first option of that code, if it has that length. Reads one option at a time: the library's block parsers
    /// make a list of all, however many a file has.
    fn option<const N: usize>(&self, mut options: &[u8], code: u16) -> Option<[u8; N]> {
        loop {
            let parsed = if self.big_endian {
                parse_option_be::<PcapError<&[u8]>>(options)
            } else {
                parse_option_le(options)
            };
            let (rest, option) = parsed.ok()?;
            if option.code.0 == code {
                return option.as_bytes().ok()?.try_into().ok();
            }
            options = rest;
        }
    }

    fn u16_at(&self, bytes: &[u8], at: usize) -> u16 {
        let value = bytes_at(bytes, at);
        if self.big_endian {
            u16::from_be_bytes(value)
        } else {
            u16::from_le_bytes(value)
        }
    }

    fn u32_at(&self, bytes: &[u8], at: usize) -> u32 {
        let value = bytes_at(bytes, at);
        if self.big_endian {
            u32::from_be_bytes(value)
        } else {
            u32::from_le_bytes(value)
        }
    }
}

/// `N` bytes from a place that has been checked to be there; zeros otherwise.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|found| found.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(resolution: u8, offset_seconds: i64) -> Interface {
        let resolution = Resolution::from_option(resolution);
        Interface {
            link_type: LinkType::RAW,
            snapshot_bytes: 0,
            resolution,
            offset_seconds,
        }
    }

    #[test]
    fn times_of_all_resolutions_are_nanoseconds() {
        assert_eq!(interface(6, 0).timestamp_ns(0, 1_500_000), 1_500_000_000);
        assert_eq!(
            interface(9, 2).timestamp_ns(1, 5),
            (1 << 32) + 5 + 2_000_000_000
        );
        assert_eq!(interface(0, 0).timestamp_ns(0, 7), 7_000_000_000);
        assert_eq!(interface(12, 0).timestamp_ns(0, 7_500), 7);
        assert_eq!(interface(0x80 | 10, 0).timestamp_ns(0, 1536), 1_500_000_000);
    }

    #[test]
    fn absurd_clocks_saturate() {
        assert_eq!(interface(127, 0).timestamp_ns(u32::MAX, u32::MAX), 0);
        assert_eq!(interface(0xff, 0).timestamp_ns(u32::MAX, u32::MAX), 0);
        assert_eq!(
            interface(0, i64::MAX).timestamp_ns(u32::MAX, u32::MAX),
            u64::MAX
        );
        assert_eq!(interface(0, i64::MIN).timestamp_ns(0, 1), 0);
        assert_eq!(interface(6, -1).timestamp_ns(0, 1_500_000), 500_000_000);
    }
}
