//! The limits of the token layer. Each one is enforced where it is named and tested at the limit and past it.

/// Tokens in a vocabulary, all kinds together.
pub const MAX_VOCABULARY: usize = 65_536;
/// Bytes of a `tokenizer.json`.
pub const MAX_TOKENIZER_JSON_BYTES: usize = 8 << 20;
/// Bytes that one token may stand for.
pub const MAX_TOKEN_BYTES: usize = 64;
/// Bytes that one learnt merge may stand for: longer ones would learn single messages by heart.
pub const MAX_LEARNT_TOKEN_BYTES: usize = 16;
/// Bytes of a request that are read; what comes after is not encoded.
pub const MAX_REQUEST_BYTES: usize = 8_192;
/// Bytes of an instruction that are read; what comes after is not encoded.
pub const MAX_INSTRUCTION_BYTES: usize = 1_024;
/// Tokens that there is room for, for a moment, while a flow or a request is encoded.
pub const ENCODING_TOKENS_MAX: usize = MAX_REQUEST_BYTES + 1;
const _: () = assert!(
    ENCODING_TOKENS_MAX >= MAX_PROFILE_TOKENS as usize + MAX_PROFILE_PAYLOAD_BYTES as usize
);
/// Distinct bytes of a corpus that merges are trained on (positions are 32-bit).
pub const MAX_CORPUS_BYTES: usize = 1 << 30;
/// Largest `max_packets` of a profile.
pub const MAX_PROFILE_PACKETS: u32 = 256;
/// Largest `payload_bytes_per_packet` of a profile.
pub const MAX_PROFILE_PAYLOAD_BYTES: u32 = 1_500;
/// Largest `max_tokens` and `request_tokens` of a profile.
pub const MAX_PROFILE_TOKENS: u32 = 4_096;
/// Names that a profile may mask.
pub const MAX_MASKED_NAMES: usize = 64;
/// Bytes of one masked name (RFC 1035 2.3.4: a name has at most 253 characters in text).
pub const MAX_MASKED_NAME_BYTES: usize = 253;
/// Hidden ranges that are kept apart in one payload; past it the last range grows over what lies between.
pub const MAX_MASK_RANGES: usize = 32;
/// Largest vocabulary whose table of compatible neighbours is worked out in full (2 MiB of bits); past it each pair is
/// worked out when it is met.
pub const MAX_TABLED_SYMBOLS: usize = 4_096;
