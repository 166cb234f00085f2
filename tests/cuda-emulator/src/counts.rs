//! What a device was asked for, and what shall go wrong with it.

use std::collections::BTreeMap;

/// What a device has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels that ran, also those of graphs.
    pub launches: u64,
    /// The same by the kernel's name and defines.
    pub kernels: BTreeMap<String, u64>,
    /// Graphs that ran.
    pub graphs: u64,
    /// Copies to the device.
    pub copies_in: u64,
    /// Copies from it.
    pub copies_out: u64,
    /// Bytes of copies to the device.
    pub bytes_in: u64,
    /// Bytes of copies from it.
    pub bytes_out: u64,
    /// Copies whose end on the host is not pinned memory: on a device they hold up the caller.
    pub pageable_copies: u64,
    /// Waits for a stream.
    pub waits: u64,
    /// Allocations that were made, freed ones too.
    pub allocations: u64,
    /// Bytes of the device's memory in use now.
    pub allocated_bytes: u64,
    /// The most that were in use at once.
    pub allocated_bytes_max: u64,
    /// Bytes of pinned memory in use now.
    pub pinned_bytes: u64,
    /// Kernels that were asked for by their source.
    pub kernels_made: u64,
}

/// What shall go wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Calls until the device is lost.
    pub(crate) calls_left: Option<u64>,
    /// Why it is lost.
    pub(crate) lost: Option<String>,
    /// The next launch fails, once.
    pub(crate) launch: bool,
    /// Kernels of this name do not compile.
    pub(crate) compile: Option<String>,
}
