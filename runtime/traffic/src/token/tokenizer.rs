//! Bytes to token ids and back, and the tokenizer file.

use super::bpe::BytePairs;
use super::error::TokenError;
use super::json;
use super::vocabulary::{FIRST_BYTE, Token};

pub use super::bpe::BytePairScratch;

/// A vocabulary: the fixed tokens of [`super::vocabulary`] and byte-pair merges.
///
/// Immutable: one can serve any number of threads, each with its own [`BytePairScratch`].
#[derive(Debug)]
pub struct Tokenizer {
    pairs: BytePairs,
}

impl Tokenizer {
    /// A tokenizer from merges in rank order, each as the ids of its two parts; merge `k` gets the id
    /// [`FIRST_MERGE`](super::vocabulary::FIRST_MERGE)` + k`.
    ///
    /// # Errors
    /// [`TokenError::Merge`] names the first merge that names later ids, is too long, spells what another one spells, spells the
    /// name of a typed token or can never apply; [`TokenError::Field`] where there are too many.
    pub fn from_merges(merges: Vec<(u32, u32)>) -> Result<Self, TokenError> {
        let pairs = BytePairs::new(&merges)?;
        for (rank, &(left, right)) in merges.iter().enumerate() {
            let name = pairs.spelling(256 + rank as u32);
            if json::is_typed_name(name) {
                return Err(TokenError::Merge {
                    rank,
                    left,
                    right,
                    expected: "a spelling that is no typed token's name",
                    found: String::from_utf8_lossy(name).into_owned(),
                });
            }
        }
        Ok(Self { pairs })
    }

    /// Reads a `tokenizer.json` of the Hugging Face `tokenizers` format: a byte-level BPE model whose vocabulary has this
    /// crate's layout. Nothing else is accepted, as this reader would encode it differently than it says.
    ///
    /// # Errors
    /// Says which field has what value and what it must be.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenError> {
        Self::from_merges(json::read(bytes)?)
    }

    /// The tokenizer as `tokenizer.json`. The same merges give the same bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        json::write(&self.pairs)
    }

    /// Number of ids: every id below it is a token.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        FIRST_BYTE as usize + self.pairs.symbols()
    }

    /// The merges in rank order as ids of their parts.
    #[must_use]
    pub fn merges(&self) -> Vec<(u32, u32)> {
        self.pairs.merge_ids().collect()
    }

    /// Appends the byte-pair tokens of `bytes` to `ids`: exactly what merging in rank order gives. Linear in `bytes` whatever they
    /// are; allocates only where `scratch` or `ids` are too small.
    pub fn encode_bytes(&self, bytes: &[u8], scratch: &mut BytePairScratch, ids: &mut Vec<u32>) {
        self.pairs.encode(bytes, scratch, ids);
    }

    /// The bytes that a byte or merge token stands for; none for typed tokens and ids past the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        match Token::of(id) {
            Token::Symbol(symbol) if (symbol as usize) < self.pairs.symbols() => {
                Some(self.pairs.spelling(symbol))
            }
            _ => None,
        }
    }

    /// The token as people read it: the name of a typed token, the escaped bytes of others; none past the vocabulary.
    #[must_use]
    pub fn token_name(&self, id: u32) -> Option<String> {
        super::vocabulary::typed_name(id).or_else(|| {
            self.token_bytes(id)
                .map(|bytes| bytes.escape_ascii().to_string())
        })
    }
}
