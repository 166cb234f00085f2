//! What can go wrong: each error says where, what was expected and what was found.

use std::io;

use thiserror::Error;

use crate::memory::MemoryError;

/// Why a capture could not be read to its end. Offsets are in the capture's bytes, after decompression.
///
/// Packets that were delivered before the error stay good.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The source failed.
    #[error("offset {offset}: reading failed: {source}")]
    Io {
        /// Where reading stopped.
        offset: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The system does not give memory.
    #[error("offset {offset}: {source}")]
    Memory {
        /// Where reading stopped.
        offset: u64,
        /// How much was asked for, and for what.
        source: MemoryError,
    },
    /// The gzip stream is damaged or cut.
    #[error(
        "offset {offset} of the decompressed capture: the gzip stream is damaged or cut: {source}"
    )]
    Gzip {
        /// Where decompression stopped.
        offset: u64,
        /// What the decompressor said.
        source: io::Error,
    },
    /// There is not one byte.
    #[error("the capture is empty: expected a pcap or pcapng header, found 0 bytes")]
    Empty,
    /// The first bytes are of no known capture format.
    #[error("offset 0: expected a pcap or pcapng magic number, found bytes {found:02x?}")]
    NotACapture {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// The format's version is not known.
    #[error(
        "offset {offset}: expected {format} version {expected}, found {found_major}.{found_minor}"
    )]
    UnsupportedVersion {
        /// Where the header starts.
        offset: u64,
        /// `pcap` or `pcapng`.
        format: &'static str,
        /// Known versions.
        expected: &'static str,
        /// Major version found.
        found_major: u16,
        /// Minor version found.
        found_minor: u16,
    },
    /// The capture ends inside something.
    #[error(
        "offset {offset}: the capture is cut inside its {what}: expected {expected_bytes} bytes, found {found_bytes}"
    )]
    Truncated {
        /// Where the cut thing starts.
        offset: u64,
        /// What is cut.
        what: &'static str,
        /// Bytes that it should have.
        expected_bytes: u64,
        /// Bytes that are there.
        found_bytes: u64,
    },
    /// A length is beyond the limit.
    #[error(
        "offset {offset}: {what} too large: expected at most {limit_bytes} bytes, found {found_bytes}"
    )]
    TooLarge {
        /// Where the record or block starts.
        offset: u64,
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
        /// The length that the capture claims.
        found_bytes: u64,
    },
    /// A block's length cannot be.
    #[error("offset {offset}: bad block length: expected {expected}, found {found_bytes}")]
    BadBlockLength {
        /// Where the block starts.
        offset: u64,
        /// What would be right.
        expected: &'static str,
        /// The length that the block claims.
        found_bytes: u32,
    },
    /// The lengths at the two ends of a block differ.
    #[error(
        "offset {offset}: the block's two lengths differ: expected {leading_bytes} at its end, found {trailing_bytes}"
    )]
    BlockLengthMismatch {
        /// Where the block starts.
        offset: u64,
        /// Length at the start.
        leading_bytes: u32,
        /// Length at the end.
        trailing_bytes: u32,
    },
    /// A packet's captured length does not fit into its block.
    #[error(
        "offset {offset}: captured length does not fit its block: expected at most {room_bytes} bytes, found {found_bytes}"
    )]
    PacketBeyondBlock {
        /// Where the block starts.
        offset: u64,
        /// Room in the block.
        room_bytes: u64,
        /// Captured length claimed.
        found_bytes: u64,
    },
    /// The byte-order magic of a section is neither order.
    #[error(
        "offset {offset}: expected the byte-order magic 1a2b3c4d in either order, found {found:08x}"
    )]
    BadByteOrder {
        /// Where the section header starts.
        offset: u64,
        /// The bytes found, read little-endian.
        found: u32,
    },
    /// A block's content cannot be read.
    #[error(
        "offset {offset}: expected a well-formed {what}, found {found_bytes} bytes that are not"
    )]
    BadBlock {
        /// Where the block starts.
        offset: u64,
        /// What kind of block.
        what: &'static str,
        /// Its length.
        found_bytes: u64,
    },
    /// A packet names an interface that its section has not described.
    #[error(
        "offset {offset}: the packet's interface is not described: expected an index below {interfaces}, found {found}"
    )]
    UnknownInterface {
        /// Where the block starts.
        offset: u64,
        /// Interfaces described so far.
        interfaces: usize,
        /// Index found.
        found: u32,
    },
    /// A section describes too many interfaces.
    #[error(
        "offset {offset}: too many interfaces in a section: expected at most {limit}, found one more"
    )]
    TooManyInterfaces {
        /// Where the block of the surplus interface starts.
        offset: u64,
        /// The limit.
        limit: usize,
    },
}

/// A flow table's setting is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("flow setting {field}: expected {minimum}..={maximum}, found {found}")]
pub struct FlowConfigError {
    /// Name of the field of `FlowConfig`.
    pub field: &'static str,
    /// Smallest allowed value.
    pub minimum: u64,
    /// Largest allowed value.
    pub maximum: u64,
    /// The value given.
    pub found: u64,
}

/// Why there is no recorder of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecorderError {
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] FlowConfigError),
    /// The system does not give memory for the records.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
