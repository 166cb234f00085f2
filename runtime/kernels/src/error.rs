//! What can go wrong before a kernel runs. Kernels themselves do not fail: sizes are checked when memory is made.

/// Errors of this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice does not have the number of values that its shape asks for.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// What was measured.
        what: &'static str,
        /// Number of values that the shape asks for.
        expected: usize,
        /// Number of values that were given.
        found: usize,
    },
    /// A size is zero or above its limit (see [`crate::limits`]).
    #[error("{what}: expected 1 to {limit}, found {found}")]
    Size {
        /// What was measured.
        what: &'static str,
        /// Largest size that is accepted.
        limit: usize,
        /// Size that was given.
        found: usize,
    },
    /// A weight is NaN or infinite.
    #[error("row {row}, column {column}: expected a finite weight, found {found}")]
    NotFinite {
        /// Output channel.
        row: usize,
        /// Input channel.
        column: usize,
        /// The weight.
        found: f32,
    },
    /// A row holds a weight so large that its scale does not fit the 16-bit float in which scales are stored.
    #[error("row {row}: expected weights of at most {limit:e}, found {found:e}")]
    Magnitude {
        /// Output channel.
        row: usize,
        /// Largest magnitude that can be stored.
        limit: f32,
        /// Largest magnitude of the row.
        found: f32,
    },
    /// A scale is negative, NaN or infinite.
    #[error("row {row}: expected a finite scale of zero or more, found {found}")]
    Scale {
        /// Output channel.
        row: usize,
        /// The scale.
        found: f32,
    },
    /// A scale or minimum of a group of 4-bit weights is NaN or infinite.
    #[error("row {row}, group {group}: expected a finite scale and minimum, found {found}")]
    GroupScale {
        /// Output channel.
        row: usize,
        /// Group of 32 input channels.
        group: usize,
        /// The scale or minimum.
        found: f32,
    },
    /// The system does not give memory.
    #[error("{bytes} bytes for {what}: {message}")]
    Memory {
        /// What it is for.
        what: &'static str,
        /// What was asked for.
        bytes: usize,
        /// What the system says.
        message: String,
    },
    /// No kernels have this name.
    #[error("TLLM_CPU: expected one of {known}, found {found:?}")]
    UnknownLevel {
        /// The names of all levels.
        known: String,
        /// The name that was asked for.
        found: String,
    },
    /// The processor lacks what the asked kernels need.
    #[error("TLLM_CPU: {level} kernels need {missing}, which this processor does not have")]
    LevelUnavailable {
        /// Name of the level.
        level: &'static str,
        /// First instruction set that is missing.
        missing: &'static str,
    },
}
