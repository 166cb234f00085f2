//! The hard limits of this crate: nothing read from a capture is believed beyond them.

/// Most captured bytes of one packet (the largest snapshot length that libpcap accepts).
pub const PACKET_BYTES_MAX: usize = 262_144;
/// Most bytes of one pcapng block that is kept in memory; blocks that are only skipped may be longer.
pub const BLOCK_BYTES_MAX: usize = 524_288;
/// Most bytes of the reader's buffer: it holds the longest kept block.
pub const READ_BUFFER_BYTES: usize = 2 * BLOCK_BYTES_MAX;
/// Bytes that the reader's buffer begins with; a longer block makes it grow.
pub const READ_BUFFER_FIRST_BYTES: usize = 64 * 1024;
/// Most interfaces of one pcapng section.
pub const INTERFACES_MAX: usize = 4096;
/// Most VLAN tags of one frame.
pub const VLAN_TAGS_MAX: usize = 4;
/// Most extension headers between an IP header and its transport header.
pub const EXTENSION_HEADERS_MAX: usize = 16;
/// Most flows that a table may be configured to hold.
pub const FLOWS_MAX: usize = 1 << 22;
/// Most packet records that a flow may be configured to keep.
pub const FLOW_PACKETS_MAX: usize = 1024;
/// Most payload bytes that a packet record may be configured to keep.
pub const PACKET_PAYLOAD_BYTES_MAX: usize = 65_535;
/// Shortest timeout of a flow in microseconds.
pub const TIMEOUT_US_MIN: u64 = 1_000;
/// Longest timeout of a flow in microseconds (30 days).
pub const TIMEOUT_US_MAX: u64 = 30 * 24 * 3600 * 1_000_000;
/// Most emptied flow records that a table keeps for reuse.
pub const RECYCLED_FLOWS_MAX: usize = 1024;
/// Most bytes of payload buffers that a table keeps for reuse.
pub const RECYCLED_PAYLOAD_BYTES_MAX: usize = 1 << 20;
