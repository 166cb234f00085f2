//! What the models on packets see of a flow: lengths, directions, gaps and flags of its first packets, and never an address, a port, a
//! payload byte or a time of day.

use trafficllm_traffic::{Direction, Flow};

use crate::data::Content;

/// Packets that the models see.
pub const PACKETS: usize = 20;
/// Values of [`table_row`]: three per packet, and seven about the kept packets together.
pub(super) const TABLE_COLUMNS: usize = 3 * PACKETS + 7;
/// Values of [`sequence_row`]: two per packet.
pub(super) const SEQUENCE_COLUMNS: usize = 2 * PACKETS;

/// Payload lengths of the first packets in bytes plus one, negative from the responder; 0 where there is no packet.
pub(super) fn signed_lengths(content: &Content) -> [f32; PACKETS] {
    let mut lengths = [0.0; PACKETS];
    if let Content::Flow(Flow { records, .. }) = content {
        for (length, record) in lengths.iter_mut().zip(records) {
            let bytes = record.payload_bytes as f32 + 1.0;
            *length = if record.direction == Direction::FromInitiator {
                bytes
            } else {
                -bytes
            };
        }
    }
    lengths
}

/// A row for trees: signed lengths, gaps in microseconds and flag bits of each packet, not a number where there is no packet; then
/// protocol, packets and bytes each way, duration and the largest length. All of the kept packets only.
pub(super) fn table_row(content: &Content) -> [f64; TABLE_COLUMNS] {
    let mut row = [f64::NAN; TABLE_COLUMNS];
    let Content::Flow(flow) = content else {
        return row;
    };
    let lengths = signed_lengths(content);
    let (mut packets, mut bytes, mut duration, mut largest) = ([0.0; 2], [0.0; 2], 0.0, 0.0_f64);
    for (place, record) in flow.records.iter().take(PACKETS).enumerate() {
        row[place] = f64::from(lengths[place]);
        row[PACKETS + place] = f64::from(record.gap_us);
        row[2 * PACKETS + place] = f64::from(record.tcp_flags.0);
        let side = usize::from(record.direction == Direction::FromResponder);
        packets[side] += 1.0;
        bytes[side] += f64::from(record.payload_bytes);
        duration += f64::from(record.gap_us);
        largest = largest.max(f64::from(record.payload_bytes));
    }
    let protocol = f64::from(flow.endpoints.protocol);
    let whole = [
        protocol, packets[0], packets[1], bytes[0], bytes[1], duration, largest,
    ];
    row[3 * PACKETS..].copy_from_slice(&whole);
    row
}

/// A row for distances: per packet the logarithm of the signed length and of the gap, so that the difference between 10 and 20 bytes counts
/// as much as that between 500 and 1000. A packet that is not there lies apart from all that are.
pub(super) fn sequence_row(content: &Content) -> [f64; SEQUENCE_COLUMNS] {
    let mut row = [0.0; SEQUENCE_COLUMNS];
    let Content::Flow(flow) = content else {
        return row;
    };
    for (place, (record, signed)) in flow.records.iter().zip(signed_lengths(content)).enumerate() {
        // An empty packet has length one here, whose logarithm is 0 like that of no packet: one more keeps them apart.
        let length = f64::from(signed);
        row[2 * place] = length.signum() * (1.0 + length.abs()).ln();
        // Gaps reach over nine decades and are noisier than lengths: a quarter of their logarithm weighs about as much.
        row[2 * place + 1] = 0.25 * f64::from(record.gap_us).ln_1p();
    }
    row
}
