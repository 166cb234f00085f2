//! The hard limits of this crate. Each one is enforced where sizes enter and tested at the limit and past it.

/// Most input channels of one matrix. A product of an unsigned and a signed byte is at most 255 x 127, so this many of
/// them still fit an `i32`, with room for the offset that the fast layout carries.
pub const COLUMNS_MAX: usize = 65_536;

/// Most output channels of one matrix (the largest vocabulary that can be loaded).
pub const ROWS_MAX: usize = 1 << 20;

/// Most values of one matrix.
pub const VALUES_MAX: usize = 1 << 30;

/// Highest rank of a low-rank addition: its coefficients of one row stay in a buffer of fixed size.
pub const LOW_RANK_MAX: usize = 64;
