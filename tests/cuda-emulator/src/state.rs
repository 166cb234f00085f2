//! What a device holds, and what was done with it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trafficllm_kernels::cuda::DeviceError;

use crate::compile::Kernel;
use crate::counts::{Counts, Faults};
use crate::memory::Guarded;
use crate::stream::Operation;

/// Numbers of errors as the driver has them.
pub(crate) const INVALID_VALUE: i32 = 1;
pub(crate) const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
pub(crate) const LAUNCH_FAILED: i32 = 719;

/// What all addresses that a device gives are multiples of.
const ALIGNMENT: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) counts: Counts,
    pub(crate) faults: Faults,
    pub(crate) allocations: Allocations,
    pub(crate) pinned: Allocations,
    pub(crate) kernels: HashMap<u64, Arc<Kernel>>,
    pub(crate) graphs: HashMap<u64, Arc<Vec<Operation>>>,
}

/// Memory that was given out, by its address.
#[derive(Debug, Default)]
pub(crate) struct Allocations(BTreeMap<u64, Guarded>);

impl Allocations {
    pub(crate) fn add(&mut self, bytes: usize) -> io::Result<NonNull<u8>> {
        let memory = Guarded::new(bytes, ALIGNMENT)?;
        let start = memory.start();
        self.0
            .insert(start.as_ptr().expose_provenance() as u64, memory);
        Ok(start)
    }

    /// Frees it, and says how many bytes that were.
    pub(crate) fn remove(&mut self, address: u64) -> Option<u64> {
        let memory = self.0.remove(&address)?;
        Some(memory.bytes() as u64)
    }

    /// Whether a range lies within one of them.
    pub(crate) fn holds(&self, first: u64, bytes: u64) -> bool {
        let before = self.0.range(..=first).next_back();
        before.is_some_and(|(start, memory)| {
            let left = (memory.bytes() as u64).checked_sub(first - start);
            left.is_some_and(|left| bytes <= left)
        })
    }

    /// Bytes of one that somebody wrote past the end of.
    pub(crate) fn overrun(&self) -> Option<usize> {
        let spoilt = self.0.values().find(|memory| !memory.is_whole());
        spoilt.map(Guarded::bytes)
    }
}

pub(crate) fn refused(call: &'static str, code: i32, reason: impl Into<String>) -> DeviceError {
    let reason = reason.into();
    DeviceError::Driver { call, code, reason }
}

pub(crate) fn unknown(call: &'static str) -> DeviceError {
    refused(call, INVALID_VALUE, "no such handle")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
