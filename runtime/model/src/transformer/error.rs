//! What can be wrong with weights or with a batch.

use trafficllm_kernels::KernelError;

/// Errors of the transformer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TransformerError {
    /// A size of the configuration is out of range.
    #[error("model configuration, {field}: expected {expected}, found {found}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A tensor does not have the shape that the configuration asks for.
    #[error("{tensor}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Name of the tensor, with its layer.
        tensor: String,
        /// Expected `[rows, columns]` or `[size]`.
        expected: Vec<usize>,
        /// Found shape.
        found: Vec<usize>,
    },
    /// A tensor holds NaN or infinity.
    #[error("{tensor}, value {index}: expected a finite number, found {found}")]
    NotFinite {
        /// Name of the tensor, with its layer.
        tensor: String,
        /// Index into the flattened tensor.
        index: usize,
        /// The value.
        found: f32,
    },
    /// A matrix was refused by the kernels.
    #[error("{tensor}: {source}")]
    Matrix {
        /// Name of the tensor, with its layer.
        tensor: String,
        /// Why.
        source: KernelError,
    },
    /// The kernels that were asked for cannot run here, or the system does not give memory.
    #[error(transparent)]
    Kernels(#[from] KernelError),
    /// A token id is outside the vocabulary.
    #[error(
        "sequence {sequence}, token {position}: expected an id below {vocabulary}, found {found}"
    )]
    Token {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Position of the token.
        position: usize,
        /// Number of ids.
        vocabulary: usize,
        /// The id.
        found: u32,
    },
    /// A sequence with its query rows is longer than the model's context.
    #[error("sequence {sequence}: expected at most {context} tokens and query rows, found {found}")]
    Context {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Most positions.
        context: usize,
        /// Tokens plus the longest query.
        found: usize,
    },
    /// A query or a prefix has the wrong number of values.
    #[error(
        "sequence {sequence}, query {query}: {tensor}: expected {expected} values, found {found}"
    )]
    Query {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Index of the query in the sequence.
        query: usize,
        /// Which slice.
        tensor: &'static str,
        /// What is accepted.
        expected: String,
        /// Number of values found.
        found: usize,
    },
    /// A shared beginning was made by a model of other sizes.
    #[error("sequence {sequence}: expected a beginning with keys {expected}, found {found}")]
    Beginning {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// `layers x (kv_heads x head_dim)` of the model.
        expected: String,
        /// The same of what was given.
        found: String,
    },
    /// The device failed, or has no room.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(#[from] trafficllm_kernels::cuda::DeviceError),
}
