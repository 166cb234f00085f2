//! Flows and requests to token ids.

use super::error::TokenError;
use super::http::{self, Found, NotARequest};
use super::instruction::canonical_instruction;
use super::limits;
use super::mask::{HelloState, Masker, Piece, Ranges, pieces};
use super::profile::Profile;
use super::tokenizer::{BytePairScratch, Tokenizer};
use super::vocabulary::{FIRST_BYTE, FlowKind, MASK, REQUEST, gap_token, packet_token, size_token};
use crate::flow::{Flow, PacketRecord};
use crate::memory::{MemoryError, try_hold};

/// Makes tokens of flows and requests as a profile says. Immutable: one can serve any number of threads.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    profile: Profile,
    masker: Masker,
}

/// Memory that encoding needs, kept between calls; one per thread.
#[derive(Clone, Debug, Default)]
pub struct EncodeScratch {
    pairs: BytePairScratch,
    ranges: Ranges,
    /// The canonical text of a request.
    request: Vec<u8>,
    /// A request that stands in several packets.
    joined: Vec<u8>,
}

impl EncodeScratch {
    /// One that never grows, whatever is encoded with whatever profile; the ids then need room for
    /// [`limits::ENCODING_TOKENS_MAX`].
    ///
    /// # Errors
    /// The system does not give the memory.
    pub fn with_room() -> Result<Self, MemoryError> {
        let mut scratch = Self::default();
        let what = "room for encoding";
        scratch.pairs.try_reserve(limits::MAX_REQUEST_BYTES)?;
        try_hold(what, &mut scratch.request, limits::MAX_REQUEST_BYTES)?;
        try_hold(what, &mut scratch.joined, limits::MAX_REQUEST_BYTES)?;
        Ok(scratch)
    }

    /// Bytes held beside itself.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pairs.bytes() + self.request.capacity() + self.joined.capacity()
    }
}

impl Encoder {
    /// An encoder for a profile.
    ///
    /// # Errors
    /// What [`Profile::validate`] finds wrong.
    pub fn new(tokenizer: Tokenizer, profile: Profile) -> Result<Self, TokenError> {
        profile.validate()?;
        let masker = Masker::new(&profile);
        Ok(Self {
            tokenizer,
            profile,
            masker,
        })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The profile.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Puts the token ids of a flow into `ids`, at most `max_tokens`; what stood there is removed.
    ///
    /// The flow token and the packets' own tokens (direction and flags, size, gap) come first in the budget, as a later packet
    /// tells more than the end of a long payload. If not all packets of the profile fit, the last ones are left out, so that
    /// no packet stands there without its size and gap. What is left of the budget goes to the payloads in the order of
    /// their packets, each cut where the budget ends.
    ///
    /// Nothing is allocated once `scratch` and `ids` have grown to the profile's size.
    pub fn encode_flow(&self, flow: &Flow, scratch: &mut EncodeScratch, ids: &mut Vec<u32>) {
        ids.clear();
        let kind = FlowKind::of_protocol(flow.endpoints.protocol);
        ids.push(kind.token());
        if self.profile.ports {
            let port = flow.endpoints.responder_port.to_be_bytes();
            ids.extend(port.map(|byte| FIRST_BYTE + u32::from(byte)));
        }
        let (packets, mut payload_budget) = self.packets_within_budget(flow, ids.len());
        let mut hello = HelloState::default();
        let mut payloads_left = self.profile.payload_packets;
        for (record, payload) in kept(flow).take(packets) {
            push_packet_tokens(kind, record, ids);
            if payloads_left == 0 || payload.is_empty() {
                continue;
            }
            payloads_left -= 1;
            let first = ids.len();
            self.encode_payload(payload, record, &mut hello, scratch, ids);
            ids.truncate(first + payload_budget);
            payload_budget -= ids.len() - first;
        }
    }

    /// How many packets there are whose own tokens fit, and how many tokens that leaves for payloads.
    fn packets_within_budget(&self, flow: &Flow, taken: usize) -> (usize, usize) {
        let limit = flow.records.len().min(self.profile.max_packets as usize);
        let mut left = (self.profile.max_tokens as usize).saturating_sub(taken);
        for (number, record) in flow.records[..limit].iter().enumerate() {
            let own = 1
                + usize::from(record.payload_bytes > 0)
                + usize::from(gap_token(record.gap_us.into()).is_some());
            if own > left {
                return (number, left);
            }
            left -= own;
        }
        (limit, left)
    }

    fn encode_payload(
        &self,
        payload: &[u8],
        record: &PacketRecord,
        hello: &mut HelloState,
        scratch: &mut EncodeScratch,
        ids: &mut Vec<u32>,
    ) {
        let EncodeScratch { pairs, ranges, .. } = scratch;
        self.masker.payload(
            (payload, record.payload_bytes),
            record.direction,
            hello,
            self.profile.shown_limit_max(),
            ranges,
        );
        let shown_limit = self.profile.shown_limit(payload, ranges);
        pieces(payload, ranges, shown_limit, |piece| match piece {
            Piece::Shown(bytes) => self.tokenizer.encode_bytes(bytes, pairs, ids),
            Piece::Hidden => ids.push(MASK),
        });
    }

    /// Gives every run of payload bytes that [`Self::encode_flow`] would make byte-pair tokens of if the token budget had no
    /// end, for learning merges.
    pub fn flow_segments(profile: &Profile, flow: &Flow, mut take: impl FnMut(&[u8])) {
        let masker = Masker::new(profile);
        let mut ranges = Ranges::default();
        let mut hello = HelloState::default();
        let packets = kept(flow).take(profile.max_packets as usize);
        let with_payload = packets.filter(|(_, payload)| !payload.is_empty());
        for (record, payload) in with_payload.take(profile.payload_packets as usize) {
            masker.payload(
                (payload, record.payload_bytes),
                record.direction,
                &mut hello,
                profile.shown_limit_max(),
                &mut ranges,
            );
            let shown_limit = profile.shown_limit(payload, &ranges);
            pieces(payload, &ranges, shown_limit, |piece| {
                if let Piece::Shown(bytes) = piece {
                    take(bytes);
                }
            });
        }
    }

    /// Puts the token ids of an HTTP request into `ids`, at most `request_tokens`; what stood there is removed. The request is read up
    /// to [`limits::MAX_REQUEST_BYTES`] and encoded in its canonical form ([`http::canonical_request`]).
    ///
    /// # Errors
    /// [`TokenError::Request`] where the text does not start like an HTTP request; `ids` is then empty.
    pub fn encode_request(
        &self,
        request: &[u8],
        scratch: &mut EncodeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenError> {
        Ok(self.push_request(request, scratch, ids)?)
    }

    /// As [`Self::encode_request`] for the request that a flow starts with ([`http::first_request`]), and says whether there is one. Nothing is
    /// allocated once `scratch` and `ids` have grown.
    pub fn encode_first_request(
        &self,
        flow: &Flow,
        scratch: &mut EncodeScratch,
        ids: &mut Vec<u32>,
    ) -> bool {
        ids.clear();
        let mut joined = std::mem::take(&mut scratch.joined);
        let is_request = match http::find_request(flow, &mut joined) {
            None => false,
            Some(Found::InPacket(request)) => self.push_request(request, scratch, ids).is_ok(),
            Some(Found::Joined) => self.push_request(&joined, scratch, ids).is_ok(),
        };
        scratch.joined = joined;
        is_request
    }

    fn push_request<'a>(
        &self,
        request: &'a [u8],
        scratch: &mut EncodeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), NotARequest<'a>> {
        ids.clear();
        let mut text = std::mem::take(&mut scratch.request);
        text.clear();
        let read = http::push_canonical(request, &mut text);
        if read.is_ok() {
            ids.push(REQUEST);
            self.append_text(&text, scratch, ids);
            ids.truncate(self.profile.request_tokens as usize);
        }
        scratch.request = text;
        read
    }

    /// Puts the token ids of an instruction in any language into `ids`, at most `request_tokens`; what stood there is removed. It is read up to
    /// [`limits::MAX_INSTRUCTION_BYTES`], in lower case and with single blanks; without a word it is no token but the first.
    pub fn encode_instruction(&self, text: &str, scratch: &mut EncodeScratch, ids: &mut Vec<u32>) {
        ids.clear();
        ids.push(REQUEST);
        let plain = canonical_instruction(text);
        self.append_text(plain.as_bytes(), scratch, ids);
        ids.truncate(self.profile.request_tokens as usize);
    }

    /// Appends the byte-pair tokens of a text with the profile's masks for texts. Of the text only the first
    /// [`limits::MAX_REQUEST_BYTES`] bytes are read; the number of tokens has no limit of its own.
    pub fn append_text(&self, text: &[u8], scratch: &mut EncodeScratch, ids: &mut Vec<u32>) {
        let text = &text[..text.len().min(limits::MAX_REQUEST_BYTES)];
        let EncodeScratch { pairs, ranges, .. } = scratch;
        self.masker.text(text, ranges);
        pieces(text, ranges, usize::MAX, |piece| match piece {
            Piece::Shown(bytes) => self.tokenizer.encode_bytes(bytes, pairs, ids),
            Piece::Hidden => ids.push(MASK),
        });
    }
}

/// The records with their kept payload, but never more than the packet's size says: a size token stands before every payload.
fn kept(flow: &Flow) -> impl Iterator<Item = (&PacketRecord, &[u8])> {
    flow.kept().map(|(record, payload)| {
        let said = payload.len().min(record.payload_bytes as usize);
        (record, &payload[..said])
    })
}

fn push_packet_tokens(kind: FlowKind, record: &PacketRecord, ids: &mut Vec<u32>) {
    ids.push(packet_token(kind, record.direction, record.tcp_flags));
    ids.extend(size_token(record.payload_bytes));
    ids.extend(gap_token(record.gap_us.into()));
}
