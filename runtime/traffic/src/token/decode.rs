//! Token ids back to packets and text.

use super::error::TokenError;
use super::profile::Profile;
use super::tokenizer::Tokenizer;
use super::vocabulary::{FlowKind, Token, gap_range_us, size_range};
use crate::flow::{Direction, TcpFlags};

/// What the tokens of a flow say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedFlow {
    /// The protocol.
    pub kind: FlowKind,
    /// The responder's port, where the profile shows ports.
    pub responder_port: Option<u16>,
    /// The packets in order.
    pub packets: Vec<DecodedPacket>,
}

/// What the tokens of one packet say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedPacket {
    /// Who sent it.
    pub direction: Direction,
    /// FIN, SYN, RST, PSH and ACK; zero for other protocols than TCP.
    pub tcp_flags: TcpFlags,
    /// Smallest and largest payload length in bytes; both 0 for a packet without payload.
    pub payload_bytes: (u32, u32),
    /// Smallest and largest time since the packet before in microseconds.
    pub gap_us: (u64, u64),
    /// The shown start of the payload.
    pub payload: Vec<PayloadPiece>,
}

/// A part of a payload or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadPiece {
    /// Shown bytes.
    Bytes(Vec<u8>),
    /// A run of hidden bytes of unknown length.
    Mask,
}

/// The flow that token ids stand for: what [`Encoder::encode_flow`](super::Encoder::encode_flow) was given, up to buckets, masks and limits.
///
/// # Errors
/// [`TokenError::Sequence`] names the first token that cannot stand where it stands.
pub fn decode_flow(
    tokenizer: &Tokenizer,
    profile: &Profile,
    ids: &[u32],
) -> Result<DecodedFlow, TokenError> {
    let mut reader = Reader {
        tokenizer,
        ids,
        position: 0,
    };
    let kind = match reader.next() {
        Some(Token::Flow(kind)) => kind,
        _ => return Err(reader.error_before("a flow token")),
    };
    let responder_port = if profile.ports {
        Some(reader.port()?)
    } else {
        None
    };
    let mut packets = Vec::new();
    while reader.position < ids.len() {
        packets.push(reader.packet(kind)?);
    }
    Ok(DecodedFlow {
        kind,
        responder_port,
        packets,
    })
}

/// The text of a request's token ids.
///
/// # Errors
/// [`TokenError::Sequence`] names the first token that cannot stand where it stands.
pub fn decode_text(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<PayloadPiece>, TokenError> {
    let mut reader = Reader {
        tokenizer,
        ids,
        position: 0,
    };
    if reader.next() != Some(Token::Request) {
        return Err(reader.error_before("the request token"));
    }
    let pieces = reader.payload();
    if reader.position < ids.len() {
        reader.position += 1;
        return Err(reader.error_before("a byte, merge or mask token"));
    }
    Ok(pieces)
}

struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    ids: &'a [u32],
    position: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<Token> {
        self.ids.get(self.position).map(|id| Token::of(*id))
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek();
        self.position += 1;
        token
    }

    /// An error about the token that was read last.
    fn error_before(&self, expected: &'static str) -> TokenError {
        let position = self.position - 1;
        let found = match self.ids.get(position) {
            Some(id) => self
                .tokenizer
                .token_name(*id)
                .unwrap_or_else(|| format!("id {id}, past the vocabulary")),
            None => "the end".to_owned(),
        };
        TokenError::Sequence {
            position,
            expected,
            found,
        }
    }

    fn port(&mut self) -> Result<u16, TokenError> {
        let mut port = 0;
        for _ in 0..2 {
            match self.next() {
                Some(Token::Symbol(byte @ 0..256)) => port = port << 8 | byte as u16,
                _ => return Err(self.error_before("a byte of the responder's port")),
            }
        }
        Ok(port)
    }

    fn packet(&mut self, kind: FlowKind) -> Result<DecodedPacket, TokenError> {
        let (direction, tcp_flags) = match self.next() {
            Some(Token::TcpPacket(direction, flags)) if kind == FlowKind::Tcp => (direction, flags),
            Some(Token::OtherPacket(direction)) if kind != FlowKind::Tcp => {
                (direction, TcpFlags(0))
            }
            _ if kind == FlowKind::Tcp => {
                return Err(self.error_before("the next token of a TCP packet or a TCP packet"));
            }
            _ => {
                return Err(
                    self.error_before("the next token of a packet or a packet without TCP flags")
                );
            }
        };
        let mut payload_bytes = (0, 0);
        if let Some(Token::Size(bucket)) = self.peek() {
            payload_bytes = size_range(bucket);
            self.position += 1;
        }
        let mut gap_us = (0, gap_range_us(0).0 - 1);
        if let Some(Token::Gap(bucket)) = self.peek() {
            gap_us = gap_range_us(bucket);
            self.position += 1;
        }
        let start = self.position;
        let payload = self.payload();
        if payload_bytes.1 == 0 && !payload.is_empty() {
            self.position = start + 1;
            return Err(self.error_before("a packet, as one without a size has no payload"));
        }
        let shown: usize = payload.iter().map(PayloadPiece::least_bytes).sum();
        if shown as u64 > u64::from(payload_bytes.1) {
            return Err(self.error_before("no more payload than the packet's size"));
        }
        Ok(DecodedPacket {
            direction,
            tcp_flags,
            payload_bytes,
            gap_us,
            payload,
        })
    }

    fn payload(&mut self) -> Vec<PayloadPiece> {
        let mut pieces = Vec::new();
        while let Some(&id) = self.ids.get(self.position) {
            if Token::of(id) == Token::Mask {
                pieces.push(PayloadPiece::Mask);
            } else if let Some(bytes) = self.tokenizer.token_bytes(id) {
                match pieces.last_mut() {
                    Some(PayloadPiece::Bytes(all)) => all.extend_from_slice(bytes),
                    _ => pieces.push(PayloadPiece::Bytes(bytes.to_vec())),
                }
            } else {
                break;
            }
            self.position += 1;
        }
        pieces
    }
}

impl PayloadPiece {
    fn least_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Mask => 1,
        }
    }
}
