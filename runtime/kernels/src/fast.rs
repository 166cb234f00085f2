//! The kernels of all levels but the portable one, written once for any [`Vector`](crate::vector::Vector).

pub(crate) mod attend;
pub(crate) mod int4;
pub(crate) mod int8;
pub(crate) mod low_rank;
pub(crate) mod output;
pub(crate) mod rows;
