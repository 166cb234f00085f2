//! Memory with values of one kind: the device's, and the host's that copies use.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::memory::{ALIGNMENT_BYTES, Allocation, PinnedAllocation};
use super::{Address, DeviceError, DeviceMemory, Stream};

/// Values in a device's memory. Clones share it; it is given back when no clone, and nothing that was asked of the device, uses it
/// any more.
#[derive(Debug, Clone)]
pub struct Buffer<T> {
    allocation: Arc<Allocation>,
    start_bytes: usize,
    length: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// That many zeros. `what` is the name that an error gives them.
    ///
    /// # Errors
    /// [`DeviceError::Memory`]: nothing is allocated then.
    pub fn zeroed(
        memory: &Arc<DeviceMemory>,
        what: &'static str,
        length: usize,
    ) -> Result<Self, DeviceError> {
        let bytes = length.saturating_mul(size_of::<T>());
        Ok(Self {
            allocation: memory.allocate(what, bytes)?,
            start_bytes: 0,
            length,
            values: PhantomData,
        })
    }

    /// A copy of these values, once it is there.
    ///
    /// # Errors
    /// [`DeviceError::Memory`], what the driver says.
    pub fn uploaded(
        stream: &mut Stream,
        what: &'static str,
        values: &[T],
    ) -> Result<Self, DeviceError> {
        let buffer = Self::zeroed(stream.memory(), what, values.len())?;
        stream.write(&buffer, values)?;
        Ok(buffer)
    }

    /// Number of values.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes of these values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }

    /// Some of the values, in the same memory.
    ///
    /// # Errors
    /// [`DeviceError::Size`] for a range that is not inside, or does not start at a multiple of 16 bytes.
    pub fn part(&self, range: Range<usize>) -> Result<Self, DeviceError> {
        if range.start > range.end || range.end > self.length {
            return Err(DeviceError::Size {
                what: "end of a part of a buffer",
                expected: self.length,
                found: range.end,
            });
        }
        let start_bytes = range.start * size_of::<T>();
        if !start_bytes.is_multiple_of(ALIGNMENT_BYTES) {
            return Err(DeviceError::Size {
                what: "start of a part of a buffer in bytes",
                expected: start_bytes.next_multiple_of(ALIGNMENT_BYTES),
                found: start_bytes,
            });
        }
        Ok(Self {
            allocation: Arc::clone(&self.allocation),
            start_bytes: self.start_bytes + start_bytes,
            length: range.len(),
            values: PhantomData,
        })
    }

    pub(super) fn allocation(&self) -> &Arc<Allocation> {
        &self.allocation
    }

    pub(super) fn address(&self) -> Address {
        self.address_at(0)
    }

    /// The address of one of the bytes, or of the end.
    pub(super) fn address_at(&self, byte: usize) -> Address {
        Address(self.allocation.address().0 + (self.start_bytes + byte) as u64)
    }
}

/// Values in the host's memory that copies can use while kernels run.
#[derive(Debug)]
pub struct Pinned<T> {
    allocation: Arc<PinnedAllocation>,
    length: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Pinned<T> {
    /// That many zeros. `what` is the name that an error gives them.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    pub fn zeroed(
        memory: &Arc<DeviceMemory>,
        what: &'static str,
        length: usize,
    ) -> Result<Self, DeviceError> {
        let bytes = length.saturating_mul(size_of::<T>());
        Ok(Self {
            allocation: memory.allocate_pinned(what, bytes)?,
            length,
            values: PhantomData,
        })
    }

    /// Number of values.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes of these values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }

    /// Reads or writes the values.
    ///
    /// # Errors
    /// [`DeviceError::Order`] where something that was asked of a stream uses them, until it has been waited for.
    pub fn with<R>(&self, then: impl FnOnce(&mut [T]) -> R) -> Result<R, DeviceError> {
        let bytes = self.bytes();
        self.allocation
            .with(|all| then(bytemuck::cast_slice_mut(&mut all[..bytes])))
    }

    pub(super) fn allocation(&self) -> &Arc<PinnedAllocation> {
        &self.allocation
    }
}
