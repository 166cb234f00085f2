//! What can be wrong with a tokenizer file, a profile, a request or a sequence of tokens.

use thiserror::Error;

use crate::memory::MemoryError;

/// An error of the token layer: where, what was expected, what was found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The tokenizer file is longer than is read.
    #[error("tokenizer: expected at most {limit} bytes, found {found}")]
    FileTooLong {
        /// The limit in bytes.
        limit: usize,
        /// The length in bytes.
        found: usize,
    },
    /// The system does not give memory.
    #[error("tokenizer: {0}")]
    Memory(#[from] MemoryError),
    /// The tokenizer file is not JSON of the expected shape.
    #[error("tokenizer: line {line}, column {column}: {message}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the JSON reader says.
        message: String,
    },
    /// A field of the tokenizer file has another value than it must have.
    #[error("tokenizer: {field}: expected {expected}, found {found}")]
    Field {
        /// Path of the field.
        field: String,
        /// What must stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A merge cannot be used.
    #[error("tokenizer: merge {rank} ({left} + {right}): expected {expected}, found {found}")]
    Merge {
        /// Number of the merge, from 0.
        rank: usize,
        /// Id of its left part.
        left: u32,
        /// Id of its right part.
        right: u32,
        /// What a merge must be.
        expected: &'static str,
        /// What this one is.
        found: String,
    },
    /// A field of a profile is out of its range.
    #[error("profile: {field}: expected {expected}, found {found}")]
    Profile {
        /// Name of the field.
        field: &'static str,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A corpus or a vocabulary size that merges cannot be trained with.
    #[error("training merges: {what}: expected {expected}, found {found}")]
    Training {
        /// What is wrong.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Text that is no HTTP request.
    #[error("request: byte {position}: expected {expected}, found {found}")]
    Request {
        /// Offset in bytes.
        position: usize,
        /// What must stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// Token ids that no flow or text encodes to.
    #[error("token {position}: expected {expected}, found {found}")]
    Sequence {
        /// Place in the sequence, from 0.
        position: usize,
        /// What may stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
}
