//! A device's memory, and the host's that it copies from and to: how much is used, and that it is given back when nothing uses it.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};

use super::{Address, Device, DeviceError, DeviceFacts, process};

/// Kernels read and write this many bytes at once: what they are given starts at a multiple of it.
pub(super) const ALIGNMENT_BYTES: usize = 16;

/// One device with all that is made in its memory, counted against a budget where there is one.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Arc<dyn Device>,
    budget_bytes: Option<u64>,
    used_bytes: AtomicU64,
    pinned_bytes: AtomicU64,
    /// What the driver does not carry over a fork.
    process: u32,
}

impl DeviceMemory {
    /// Memory of which at most `budget_bytes` are used.
    #[must_use]
    pub fn new(device: Arc<dyn Device>, budget_bytes: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            device,
            budget_bytes,
            used_bytes: AtomicU64::new(0),
            pinned_bytes: AtomicU64::new(0),
            process: process::id(),
        })
    }

    /// A child after a fork may have the same pages of memory for copies as its parent, and its own count of who uses them.
    fn check_process(&self) -> Result<(), DeviceError> {
        if process::id() == self.process {
            return Ok(());
        }
        Err(DeviceError::Forked)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// What is known of it.
    #[must_use]
    pub fn facts(&self) -> &DeviceFacts {
        self.device.facts()
    }

    /// Most bytes that may be used.
    #[must_use]
    pub fn budget_bytes(&self) -> Option<u64> {
        self.budget_bytes
    }

    /// Bytes of the device's memory in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the host's memory in use for copies.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn allocate(
        self: &Arc<Self>,
        what: &'static str,
        bytes: usize,
    ) -> Result<Arc<Allocation>, DeviceError> {
        // Nothing of no size: an address is always one.
        let bytes = bytes.max(ALIGNMENT_BYTES);
        self.reserve(what, bytes as u64)?;
        match self.device.allocate(bytes) {
            Ok(address) => Ok(Arc::new(Allocation {
                memory: Arc::clone(self),
                address,
                bytes,
            })),
            Err(error) => {
                self.used_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
                Err(error.named(what))
            }
        }
    }

    fn reserve(&self, what: &'static str, bytes: u64) -> Result<(), DeviceError> {
        let most = self.budget_bytes.unwrap_or(u64::MAX);
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        let reserved = self
            .used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        let reserved = reserved.map_err(|used| DeviceError::Memory {
            what,
            bytes,
            left: most.saturating_sub(used),
        });
        reserved.map(|_before| ())
    }

    pub(super) fn allocate_pinned(
        self: &Arc<Self>,
        what: &'static str,
        bytes: usize,
    ) -> Result<Arc<PinnedAllocation>, DeviceError> {
        let bytes = bytes.max(ALIGNMENT_BYTES);
        let pointer = self.device.allocate_pinned(bytes);
        let pointer = pointer.map_err(|error| error.named(what))?;
        self.pinned_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Arc::new(PinnedAllocation {
            memory: Arc::clone(self),
            pointer,
            bytes,
            uses: AtomicIsize::new(0),
        }))
    }
}

/// Some of a device's memory. Buffers hold on to it, and so do streams and graphs until they are done with it.
#[derive(Debug)]
pub(super) struct Allocation {
    memory: Arc<DeviceMemory>,
    address: Address,
    bytes: usize,
}

impl Allocation {
    pub(super) fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    pub(super) fn address(&self) -> Address {
        self.address
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the address is the device's, and whatever uses it holds on to `self`: streams until they have been waited for without an
        // error, graphs as long as they can be launched.
        unsafe { self.memory.device.free(self.address) };
        let bytes = self.bytes as u64;
        self.memory.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Some of the host's memory that copies can use while kernels run.
#[derive(Debug)]
pub(super) struct PinnedAllocation {
    memory: Arc<DeviceMemory>,
    pointer: NonNull<u8>,
    bytes: usize,
    /// How many copies that were asked for use it; -1 while the host does.
    uses: AtomicIsize,
}

// SAFETY: the bytes are reached through `with` alone, by one thread at a time and by no copy meanwhile: see `uses`.
unsafe impl Send for PinnedAllocation {}
// SAFETY: as above.
unsafe impl Sync for PinnedAllocation {}

impl PinnedAllocation {
    pub(super) fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Only copies that a [`PinnedUse`] stands for may use it.
    pub(super) fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    /// The bytes, while nobody else has them.
    ///
    /// # Errors
    /// [`DeviceError::Order`], [`DeviceError::Forked`].
    pub(super) fn with<R>(&self, then: impl FnOnce(&mut [u8]) -> R) -> Result<R, DeviceError> {
        struct Back<'a>(&'a AtomicIsize);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::Release);
            }
        }
        self.memory.check_process()?;
        let taken = self
            .uses
            .compare_exchange(0, -1, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return Err(DeviceError::Order {
                what: "memory for copies is still in use",
            });
        }
        let _back = Back(&self.uses);
        // SAFETY: the device gave this many initialised bytes to this process, and `uses` keeps everybody else in it from them until `_back`
        // is dropped.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) };
        Ok(then(bytes))
    }
}

impl Drop for PinnedAllocation {
    fn drop(&mut self) {
        // SAFETY: the pointer is the device's with that size, and copies hold on to `self` until their stream was waited for without an
        // error.
        unsafe { self.memory.device.free_pinned(self.pointer, self.bytes) };
        let bytes = self.bytes as u64;
        self.memory.pinned_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// That copies which were asked for use the memory.
#[derive(Debug)]
pub(super) struct PinnedUse(Arc<PinnedAllocation>);

impl PinnedUse {
    pub(super) fn begin(pinned: &Arc<PinnedAllocation>) -> Result<Self, DeviceError> {
        pinned.memory.check_process()?;
        let more = |uses: isize| (uses >= 0).then_some(uses + 1);
        let begun = pinned
            .uses
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, more);
        match begun {
            Ok(_before) => Ok(Self(Arc::clone(pinned))),
            Err(_host) => Err(DeviceError::Order {
                what: "memory for copies is being written",
            }),
        }
    }
}

impl Drop for PinnedUse {
    fn drop(&mut self) {
        self.0.uses.fetch_sub(1, Ordering::Release);
    }
}
