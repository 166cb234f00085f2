//! The layout of token ids: special tokens, typed tokens, 256 byte tokens, merges.
//!
//! Everything but the merges is fixed here, so a tokenizer file can only add merges.

use crate::flow::{Direction, TcpFlags};

/// Fills the unused end of a row where a batch needs equal lengths; no encoder makes it.
pub const PAD: u32 = 0;
/// Stands for one run of hidden payload bytes, whatever its length.
pub const MASK: u32 = 1;
/// Starts a request.
pub const REQUEST: u32 = 2;
const FIRST_FLOW: u32 = 3;
const FLOW_TOKENS: u32 = 4;
/// Stands in training for a token that is withheld from the model; no encoder makes it.
pub const DROP: u32 = FIRST_FLOW + FLOW_TOKENS;
const FIRST_TCP_PACKET: u32 = DROP + 1;
/// The flags FIN, SYN, RST, PSH and ACK are the five low bits of the flag byte; the others have no token.
const FLAG_COMBINATIONS: u32 = 32;
const FLAG_BITS: u8 = 0x1f;
const FIRST_OTHER_PACKET: u32 = FIRST_TCP_PACKET + 2 * FLAG_COMBINATIONS;
const FIRST_SIZE: u32 = FIRST_OTHER_PACKET + 2;
const FIRST_GAP: u32 = FIRST_SIZE + SIZE_BUCKETS;

/// Id of the token of byte 0; byte `b` has `FIRST_BYTE + b`.
pub const FIRST_BYTE: u32 = FIRST_GAP + GAP_BUCKETS;
/// Id of the first merge; merge number `k` (from 0) has `FIRST_MERGE + k`.
pub const FIRST_MERGE: u32 = FIRST_BYTE + 256;

/// Number of size buckets.
pub const SIZE_BUCKETS: u32 = 31 + 24 + 24 + 32 + 6;
/// Number of gap buckets: eight for each doubling, from 64 us to 268 s.
pub const GAP_BUCKETS: u32 = (GAP_OCTAVES << GAP_STEP_BITS) + 1;
/// Doublings from the shortest gap with a token to the longest that is told from longer ones.
const GAP_OCTAVES: u32 = 22;
/// Steps of a doubling, as a power of two.
const GAP_STEP_BITS: u32 = 3;
/// Shorter gaps have no token: a power of two.
const GAP_MIN_US: u64 = 64;

/// The protocols that a flow token tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Any other IP protocol.
    Other,
}

impl FlowKind {
    const ALL: [Self; FLOW_TOKENS as usize] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Other];

    /// The kind of an IP protocol number.
    #[must_use]
    pub fn of_protocol(protocol: u8) -> Self {
        match protocol {
            6 => Self::Tcp,
            17 => Self::Udp,
            1 | 58 => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// The token that starts a flow of this kind.
    #[must_use]
    pub fn token(self) -> u32 {
        FIRST_FLOW + self as u32
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }
}

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// [`PAD`].
    Pad,
    /// [`MASK`].
    Mask,
    /// [`REQUEST`].
    Request,
    /// [`DROP`].
    Drop,
    /// The start of a flow.
    Flow(FlowKind),
    /// A TCP packet; of the flags only FIN, SYN, RST, PSH and ACK.
    TcpPacket(Direction, TcpFlags),
    /// A packet of another protocol.
    OtherPacket(Direction),
    /// A size bucket.
    Size(u32),
    /// A gap bucket.
    Gap(u32),
    /// A byte or a merge: number of the symbol, the 256 bytes first.
    Symbol(u32),
}

impl Token {
    /// What `id` stands for; every number past the typed tokens is a symbol, whether a tokenizer has it or not.
    #[must_use]
    pub fn of(id: u32) -> Self {
        match id {
            PAD => Self::Pad,
            MASK => Self::Mask,
            REQUEST => Self::Request,
            DROP => Self::Drop,
            FIRST_FLOW..DROP => Self::Flow(FlowKind::ALL[(id - FIRST_FLOW) as usize]),
            FIRST_TCP_PACKET..FIRST_OTHER_PACKET => {
                let number = id - FIRST_TCP_PACKET;
                let flags = TcpFlags((number % FLAG_COMBINATIONS) as u8);
                Self::TcpPacket(direction_of(number / FLAG_COMBINATIONS), flags)
            }
            FIRST_OTHER_PACKET..FIRST_SIZE => {
                Self::OtherPacket(direction_of(id - FIRST_OTHER_PACKET))
            }
            FIRST_SIZE..FIRST_GAP => Self::Size(id - FIRST_SIZE),
            FIRST_GAP..FIRST_BYTE => Self::Gap(id - FIRST_GAP),
            _ => Self::Symbol(id - FIRST_BYTE),
        }
    }
}

fn direction_of(number: u32) -> Direction {
    if number == 0 {
        Direction::FromInitiator
    } else {
        Direction::FromResponder
    }
}

/// The token of a packet: direction, and for TCP the flags FIN, SYN, RST, PSH and ACK.
#[must_use]
pub fn packet_token(kind: FlowKind, direction: Direction, flags: TcpFlags) -> u32 {
    let side = u32::from(direction == Direction::FromResponder);
    match kind {
        FlowKind::Tcp => {
            FIRST_TCP_PACKET + side * FLAG_COMBINATIONS + u32::from(flags.0 & FLAG_BITS)
        }
        _ => FIRST_OTHER_PACKET + side,
    }
}

/// The size token of a packet with `payload_bytes`; none for a packet without payload.
#[must_use]
pub fn size_token(payload_bytes: u32) -> Option<u32> {
    size_bucket(payload_bytes).map(|bucket| FIRST_SIZE + bucket)
}

/// The gap token of a packet that came `gap_us` after the one before; none below 64 us.
#[must_use]
pub fn gap_token(gap_us: u64) -> Option<u32> {
    gap_bucket(gap_us).map(|bucket| FIRST_GAP + bucket)
}

/// The size bucket of a payload length: exact to 31, then steps of 4, 16, 32, then doubling. None for 0.
#[must_use]
pub fn size_bucket(bytes: u32) -> Option<u32> {
    Some(match bytes {
        0 => return None,
        1..=31 => bytes - 1,
        32..=127 => 31 + (bytes - 32) / 4,
        128..=511 => 55 + (bytes - 128) / 16,
        512..=1535 => 79 + (bytes - 512) / 32,
        // 1536 is 3 << 9: thirds of a power of two double with the logarithm of a third.
        _ => (111 + (bytes / 1536).ilog2()).min(SIZE_BUCKETS - 1),
    })
}

/// Smallest and largest payload length of a size bucket in bytes; the last bucket is open to `u32::MAX`. Numbers past the
/// last bucket mean the last.
#[must_use]
pub fn size_range(bucket: u32) -> (u32, u32) {
    match bucket {
        0..31 => (bucket + 1, bucket + 1),
        31..55 => step_range(32, 4, bucket - 31),
        55..79 => step_range(128, 16, bucket - 55),
        79..111 => step_range(512, 32, bucket - 79),
        _ if bucket < SIZE_BUCKETS - 1 => (1536 << (bucket - 111), (1536 << (bucket - 110)) - 1),
        _ => (1536 << (SIZE_BUCKETS - 1 - 111), u32::MAX),
    }
}

fn step_range(start: u32, step: u32, number: u32) -> (u32, u32) {
    let low = start + step * number;
    (low, low + step - 1)
}

/// The gap bucket of a time in microseconds; none below 64 us.
#[must_use]
pub fn gap_bucket(gap_us: u64) -> Option<u32> {
    let octave = (gap_us / GAP_MIN_US).checked_ilog2()?;
    if octave >= GAP_OCTAVES {
        return Some(GAP_BUCKETS - 1);
    }
    // The gap as a floating-point number would hold it: its exponent, and the bits below the highest.
    let steps = gap_us >> (octave + GAP_MIN_US.ilog2() - GAP_STEP_BITS);
    Some((octave << GAP_STEP_BITS) + steps as u32 - (1 << GAP_STEP_BITS))
}

/// Smallest and largest gap of a bucket in microseconds; the last bucket is open to `u64::MAX`. Numbers past the last bucket
/// mean the last.
#[must_use]
pub fn gap_range_us(bucket: u32) -> (u64, u64) {
    let start = |bucket: u32| {
        let (octave, step) = (bucket >> GAP_STEP_BITS, bucket & ((1 << GAP_STEP_BITS) - 1));
        u64::from((1 << GAP_STEP_BITS) + step) << (octave + GAP_MIN_US.ilog2() - GAP_STEP_BITS)
    };
    if bucket < GAP_BUCKETS - 1 {
        (start(bucket), start(bucket + 1) - 1)
    } else {
        (start(GAP_BUCKETS - 1), u64::MAX)
    }
}

/// The name of a special or typed token as it stands in `tokenizer.json`; none for bytes and merges.
#[must_use]
pub fn typed_name(id: u32) -> Option<String> {
    Some(match Token::of(id) {
        Token::Pad => "<pad>".to_owned(),
        Token::Mask => "<mask>".to_owned(),
        Token::Request => "<request>".to_owned(),
        Token::Drop => "<drop>".to_owned(),
        Token::Flow(kind) => format!("<flow:{}>", kind.name()),
        Token::TcpPacket(direction, flags) => {
            format!("<tcp:{}:{}>", side_name(direction), flag_names(flags))
        }
        Token::OtherPacket(direction) => format!("<packet:{}>", side_name(direction)),
        Token::Size(bucket) => match size_range(bucket) {
            (low, high) if low == high => format!("<size:{low}>"),
            (low, u32::MAX) => format!("<size:{low}+>"),
            (low, high) => format!("<size:{low}-{high}>"),
        },
        Token::Gap(bucket) => format!("<gap:{}us>", gap_range_us(bucket).0),
        Token::Symbol(_) => return None,
    })
}

fn side_name(direction: Direction) -> &'static str {
    match direction {
        Direction::FromInitiator => "initiator",
        Direction::FromResponder => "responder",
    }
}

fn flag_names(flags: TcpFlags) -> String {
    let names = [
        (TcpFlags::SYN, "SYN"),
        (TcpFlags::ACK, "ACK"),
        (TcpFlags::FIN, "FIN"),
        (TcpFlags::RST, "RST"),
        (TcpFlags::PSH, "PSH"),
    ];
    let set: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| flags.has(*bit))
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        "none".to_owned()
    } else {
        set.join("+")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_size_falls_into_the_range_of_its_bucket() {
        let mut last = 0;
        for bytes in 1..=70_000_u32 {
            let bucket = size_bucket(bytes).unwrap();
            let (low, high) = size_range(bucket);
            assert!(
                low <= bytes && bytes <= high,
                "{bytes} in bucket {bucket} of {low}-{high}"
            );
            assert!(
                bucket == last || bucket == last + 1,
                "{bytes} jumps from bucket {last} to {bucket}"
            );
            last = bucket;
        }
        assert_eq!(last, SIZE_BUCKETS - 1);
        assert_eq!(size_bucket(0), None);
        assert_eq!(size_bucket(u32::MAX), Some(SIZE_BUCKETS - 1));
        assert_eq!(size_range(SIZE_BUCKETS - 1), (49_152, u32::MAX));
    }

    #[test]
    fn gap_buckets_start_at_their_bounds() {
        assert_eq!(gap_bucket(0), None);
        assert_eq!(gap_bucket(63), None);
        assert_eq!(gap_bucket(u64::MAX), Some(GAP_BUCKETS - 1));
        for bucket in 0..GAP_BUCKETS {
            let (low, high) = gap_range_us(bucket);
            assert_eq!(gap_bucket(low), Some(bucket));
            assert_eq!(gap_bucket(high), Some(bucket));
            assert_eq!(gap_bucket(low - 1), bucket.checked_sub(1));
        }
    }

    #[test]
    fn every_typed_token_has_its_own_name() {
        let names: HashSet<String> = (0..FIRST_BYTE).map(|id| typed_name(id).unwrap()).collect();
        assert_eq!(names.len(), FIRST_BYTE as usize);
        assert_eq!(typed_name(FIRST_BYTE), None);
        assert!(names.contains("<tcp:responder:SYN+ACK>") && names.contains("<size:32-35>"));
        assert!(
            names.contains("<gap:72us>")
                && names.contains("<gap:1024us>")
                && names.contains("<size:49152+>")
        );
    }

    #[test]
    fn packet_tokens_tell_what_they_were_made_of() {
        for direction in [Direction::FromInitiator, Direction::FromResponder] {
            for flags in 0..=255_u8 {
                let id = packet_token(FlowKind::Tcp, direction, TcpFlags(flags));
                assert_eq!(
                    Token::of(id),
                    Token::TcpPacket(direction, TcpFlags(flags & 0x1f))
                );
            }
            let id = packet_token(FlowKind::Udp, direction, TcpFlags(0));
            assert_eq!(Token::of(id), Token::OtherPacket(direction));
        }
        for kind in FlowKind::ALL {
            assert_eq!(Token::of(kind.token()), Token::Flow(kind));
        }
    }
}
