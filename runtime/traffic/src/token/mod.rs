//! Flows and requests as tokens of one vocabulary, and back.
//!
//! A flow is `<flow:...>`, then per packet a token for direction and TCP flags, a size token where it carries payload, a gap
//! token where it came 64 us or more after the packet before, and byte-pair tokens of its payload. A request is
//! `<request>` and the byte-pair tokens of its canonical text. What the [`Profile`] hides never reaches a token.

mod bpe;
mod decode;
mod encode;
mod error;
mod http;
mod instruction;
mod json;
pub mod limits;
mod mask;
mod profile;
mod tokenizer;
mod train;
pub mod vocabulary;

#[cfg(test)]
mod tests;

pub use decode::{DecodedFlow, DecodedPacket, PayloadPiece, decode_flow, decode_text};
pub use encode::{EncodeScratch, Encoder};
pub use error::TokenError;
pub use http::{canonical_request, first_request};
pub use instruction::canonical_instruction;
pub use profile::Profile;
pub use tokenizer::{BytePairScratch, Tokenizer};
pub use train::train_merges;
