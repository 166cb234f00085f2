//! Where in `struct Packet_` of Suricata 8.0 things stand, and the check of it when the plugin is loaded.

use super::symbols::Packet;
use super::{Host, packet};

/// `Packet.proto`: protocol behind all IP headers.
pub const PROTOCOL: usize = 44;
/// `Packet.flow`.
pub const FLOW: usize = 64;
/// `Packet.flow_hash`.
pub const FLOW_HASH: usize = 72;
/// `Packet.ts`: seconds in the low 44 bits, microseconds in the high 20.
pub const TIME: usize = 80;
/// `Packet.l3.type`.
pub const IP_TYPE: usize = 192;
/// `Packet.l3.hdrs`.
pub const IP_HEADER: usize = 200;
/// `Packet.l4.hdrs`.
pub const TRANSPORT_HEADER: usize = 240;
/// `Packet.payload`.
pub const PAYLOAD: usize = 272;
/// `Packet.payload_len`.
pub const PAYLOAD_BYTES: usize = 280;
/// `Packet.pkt_src`.
pub const SOURCE: usize = 283;
/// `Packet.pktlen`.
pub const BYTES: usize = 284;
/// `Packet.ext_pkt`.
pub const BYTES_POINTER: usize = 288;
/// `Packet.livedev`.
pub const DEVICE: usize = 296;

/// Bytes of the test packet: more than any packet has room for beside itself, so that they are pointed to.
const TEST_BYTES: usize = 60_000;
const TEST_TIME: packet::Time = packet::Time {
    seconds: 0x0abc_def0_1234,
    microseconds: 765_432,
};
/// `PKT_SRC_DECODER_VXLAN`.
const TEST_SOURCE: u8 = 9;

/// A field that does not stand where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the field in Suricata.
    pub field: &'static str,
    /// Where it was looked for.
    pub offset: usize,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} does not stand at offset {} of a packet",
            self.field, self.offset
        )
    }
}

/// Makes a packet, sets through Suricata's functions what they can set, and reads it at the offsets. The headers between are
/// checked with every packet ([`packet::View::of`]): their places must agree with each other before one is read.
///
/// # Errors
/// The first field that is elsewhere.
pub fn check(host: &Host) -> Result<(), Mismatch> {
    let symbols = host.symbols();
    // SAFETY: it takes nothing; NULL is asked for below.
    let packet = unsafe { (symbols.packet_new)() };
    if packet.is_null() {
        return Err(Mismatch {
            field: "the packet itself",
            offset: 0,
        });
    }
    let bytes: Vec<u8> = (0..TEST_BYTES).map(|place| (place % 251) as u8).collect();
    let mut device = [0_u8; 1];
    let device = device.as_mut_ptr();
    // SAFETY: the packet was just made, and is this function's alone. Its bytes are copied; the device is only kept as a number, and
    // is set back before the packet is freed.
    unsafe {
        (symbols.packet_set_time)(packet, TEST_TIME.packed());
        (symbols.packet_set_source)(packet, i32::from(TEST_SOURCE));
        (symbols.packet_set_device)(packet, device.cast());
        let copied = (symbols.packet_copy)(packet, bytes.as_ptr(), bytes.len() as u32);
        let result = compare(packet, &bytes, device, copied == 0);
        (symbols.packet_set_device)(packet, std::ptr::null_mut());
        (symbols.packet_free)(packet);
        result
    }
}

/// # Safety
/// `packet` is a live packet of at least 300 bytes.
unsafe fn compare(
    packet: *const Packet,
    bytes: &[u8],
    device: *const u8,
    is_copied: bool,
) -> Result<(), Mismatch> {
    let expect = |is_there: bool, field, offset| {
        if is_there {
            Ok(())
        } else {
            Err(Mismatch { field, offset })
        }
    };
    // SAFETY: all places are within the packet; the pointer to the bytes is only followed where the length before it and the
    // pointer behind it stand where they should.
    unsafe {
        let time: u64 = packet::read(packet, TIME);
        expect(time == TEST_TIME.packed(), "ts", TIME)?;
        let source: u8 = packet::read(packet, SOURCE);
        expect(source == TEST_SOURCE, "pkt_src", SOURCE)?;
        let found: *const u8 = packet::read(packet, DEVICE);
        expect(found == device, "livedev", DEVICE)?;
        let length: u32 = packet::read(packet, BYTES);
        expect(is_copied && length as usize == bytes.len(), "pktlen", BYTES)?;
        let start: *const u8 = packet::read(packet, BYTES_POINTER);
        expect(!start.is_null(), "ext_pkt", BYTES_POINTER)?;
        let found = std::slice::from_raw_parts(start, bytes.len());
        expect(found == bytes, "ext_pkt", BYTES_POINTER)?;
        for (field, offset) in [
            ("flow", FLOW),
            ("l3.hdrs", IP_HEADER),
            ("l4.hdrs", TRANSPORT_HEADER),
            ("payload", PAYLOAD),
        ] {
            let nothing: *const u8 = packet::read(packet, offset);
            expect(nothing.is_null(), field, offset)?;
        }
    }
    Ok(())
}
