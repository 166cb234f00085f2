//! What is asked of a device, in order, and what can be asked for again as a whole.

use std::sync::Arc;

use bytemuck::Pod;

use super::memory::{Allocation, PinnedAllocation, PinnedUse};
use super::{Address, Buffer, DeviceError, DeviceMemory, Handle, Launch, Pinned};

/// Bytes that are copied at once between the device and memory that is not made for copies.
const STAGING_BYTES: usize = 4 << 20;

/// What is to stay until something that was asked for is done.
#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum Held {
    Memory(Arc<Allocation>),
    Pinned(PinnedUse),
    Graph(Arc<Captured>),
}

/// A queue of copies and kernels. What they use stays until they are done.
#[derive(Debug)]
pub struct Stream {
    memory: Arc<DeviceMemory>,
    handle: Handle,
    running: Vec<Held>,
    capturing: Option<Used>,
    staging: Option<Arc<PinnedAllocation>>,
}

/// What a graph uses.
#[derive(Debug, Default)]
struct Used {
    memory: Vec<Arc<Allocation>>,
    pinned: Vec<Arc<PinnedAllocation>>,
}

#[derive(Debug)]
struct Captured {
    memory: Arc<DeviceMemory>,
    handle: Handle,
    used: Used,
}

/// Copies and kernels that are asked for as a whole. It holds on to all that they use.
#[derive(Debug)]
pub struct Graph(Arc<Captured>);

impl Drop for Captured {
    fn drop(&mut self) {
        self.memory.device().end_graph(self.handle);
    }
}

impl Stream {
    /// An empty queue.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(memory: &Arc<DeviceMemory>) -> Result<Self, DeviceError> {
        Ok(Self {
            memory: Arc::clone(memory),
            handle: memory.device().make_stream()?,
            running: Vec::new(),
            capturing: None,
            staging: None,
        })
    }

    /// The memory of its device.
    #[must_use]
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Whether what is asked for is kept, and not done.
    #[must_use]
    pub fn is_capturing(&self) -> bool {
        self.capturing.is_some()
    }

    /// Copies values to a buffer of that length, and waits for it.
    ///
    /// # Errors
    /// [`DeviceError::Size`], what the driver says, also of earlier work.
    pub fn write<T: Pod>(&mut self, to: &Buffer<T>, values: &[T]) -> Result<(), DeviceError> {
        check_length(to.length(), values.len())?;
        let chunks = bytemuck::cast_slice::<T, u8>(values).chunks(STAGING_BYTES);
        for (at, chunk) in chunks.enumerate() {
            let staging = self.staging()?;
            staging.with(|bytes| bytes[..chunk.len()].copy_from_slice(chunk))?;
            let address = to.address_at(at * STAGING_BYTES);
            self.stage_in(&staging, to.allocation(), address, chunk.len())?;
            self.synchronize()?;
        }
        Ok(())
    }

    /// Copies the values of a buffer of that length, after all that was asked for before, and waits for it.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn read<T: Pod>(&mut self, from: &Buffer<T>, values: &mut [T]) -> Result<(), DeviceError> {
        check_length(from.length(), values.len())?;
        let chunks = bytemuck::cast_slice_mut::<T, u8>(values).chunks_mut(STAGING_BYTES);
        for (at, chunk) in chunks.enumerate() {
            let staging = self.staging()?;
            let address = from.address_at(at * STAGING_BYTES);
            self.stage_out(&staging, from.allocation(), address, chunk.len())?;
            self.synchronize()?;
            staging.with(|bytes| chunk.copy_from_slice(&bytes[..chunk.len()]))?;
        }
        Ok(())
    }

    /// Asks for a copy to a buffer of the same length.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn copy_in<T: Pod>(&mut self, from: &Pinned<T>, to: &Buffer<T>) -> Result<(), DeviceError> {
        check_length(to.length(), from.length())?;
        self.stage_in(from.allocation(), to.allocation(), to.address(), to.bytes())
    }

    /// Asks for a copy from a buffer to the first values of memory that has as many or more.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn copy_out<T: Pod>(
        &mut self,
        from: &Buffer<T>,
        to: &Pinned<T>,
    ) -> Result<(), DeviceError> {
        check_length(from.length(), to.length().min(from.length()))?;
        let bytes = from.bytes();
        self.stage_out(to.allocation(), from.allocation(), from.address(), bytes)
    }

    /// Keeps what `ask` asks for as a graph; nothing of it is done now.
    ///
    /// # Errors
    /// Those of `ask`, what the driver says.
    pub fn capture<E: From<DeviceError>>(
        &mut self,
        ask: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.not_capturing()?;
        let device = Arc::clone(self.memory.device());
        device.begin_capture(self.handle)?;
        self.capturing = Some(Used::default());
        let asked = ask(self);
        let ended = device.end_capture(self.handle);
        let used = self.capturing.take().unwrap_or_default();
        let graph = ended.map(|handle| {
            Graph(Arc::new(Captured {
                memory: Arc::clone(&self.memory),
                handle,
                used,
            }))
        });
        asked?;
        Ok(graph?)
    }

    /// Asks for all that a graph keeps.
    ///
    /// # Errors
    /// What the driver says, also of earlier work; [`DeviceError::Order`] while memory for its copies is in use by the host.
    pub fn launch_graph(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        self.not_capturing()?;
        let captured = &graph.0;
        self.check_memory(&captured.memory)?;
        let pinned = captured.used.pinned.iter().map(PinnedUse::begin);
        let pinned = pinned.collect::<Result<Vec<_>, _>>()?;
        self.running.extend(pinned.into_iter().map(Held::Pinned));
        self.running.push(Held::Graph(Arc::clone(captured)));
        // SAFETY: all that was kept was asked for through `launch` and the copies of a stream, whose memory the graph holds on to; `running`
        // holds on to the graph.
        unsafe {
            self.memory
                .device()
                .launch_graph(self.handle, captured.handle)
        }
    }

    /// Waits until all is done that was asked for.
    ///
    /// # Errors
    /// What went wrong in it: [`DeviceError::Lost`] where the device is of no use any more.
    pub fn synchronize(&mut self) -> Result<(), DeviceError> {
        self.not_capturing()?;
        let done = self.memory.device().synchronize(self.handle);
        // After an error what was asked for may still run, also after one of a device that is lost: this stream may not have been waited
        // for at all.
        if done.is_ok() {
            self.running.clear();
        }
        done
    }

    /// Starts a kernel that uses this memory.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    ///
    /// # Safety
    /// The arguments are the kernel's, and what it reads and writes lies in `memory`.
    pub(super) unsafe fn launch(
        &mut self,
        kernel: Handle,
        launch: Launch,
        arguments: &[u8],
        memory: &[&Arc<Allocation>],
    ) -> Result<(), DeviceError> {
        for allocation in memory {
            self.hold(allocation)?;
        }
        let device = self.memory.device();
        // SAFETY: the caller's promise, and the memory is held until the stream has been waited for without an error.
        unsafe { device.launch(self.handle, kernel, launch, arguments) }
    }

    fn stage_in(
        &mut self,
        from: &Arc<PinnedAllocation>,
        to: &Arc<Allocation>,
        address: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.hold(to)?;
        self.hold_pinned(from)?;
        let from = from.pointer().as_ptr();
        // SAFETY: callers give an address with room for `bytes` inside `to`, and `from` has as many; both are held until it is done.
        unsafe {
            self.memory
                .device()
                .copy_in(self.handle, from, address, bytes)
        }
    }

    fn stage_out(
        &mut self,
        to: &Arc<PinnedAllocation>,
        from: &Arc<Allocation>,
        address: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.hold(from)?;
        self.hold_pinned(to)?;
        let to = to.pointer().as_ptr();
        // SAFETY: as in `stage_in`.
        unsafe {
            self.memory
                .device()
                .copy_out(self.handle, address, to, bytes)
        }
    }

    fn hold(&mut self, allocation: &Arc<Allocation>) -> Result<(), DeviceError> {
        self.check_memory(allocation.memory())?;
        let allocation = Arc::clone(allocation);
        match &mut self.capturing {
            Some(used) => used.memory.push(allocation),
            None => self.running.push(Held::Memory(allocation)),
        }
        Ok(())
    }

    fn hold_pinned(&mut self, pinned: &Arc<PinnedAllocation>) -> Result<(), DeviceError> {
        self.check_memory(pinned.memory())?;
        match &mut self.capturing {
            Some(used) => used.pinned.push(Arc::clone(pinned)),
            None => self.running.push(Held::Pinned(PinnedUse::begin(pinned)?)),
        }
        Ok(())
    }

    fn staging(&mut self) -> Result<Arc<PinnedAllocation>, DeviceError> {
        self.not_capturing()?;
        if let Some(staging) = &self.staging {
            return Ok(Arc::clone(staging));
        }
        let staging = self.memory.allocate_pinned("copies", STAGING_BYTES)?;
        self.staging = Some(Arc::clone(&staging));
        Ok(staging)
    }

    fn check_memory(&self, memory: &Arc<DeviceMemory>) -> Result<(), DeviceError> {
        if Arc::ptr_eq(memory, &self.memory) {
            return Ok(());
        }
        Err(DeviceError::Order {
            what: "memory of another device than the stream's",
        })
    }

    fn not_capturing(&self) -> Result<(), DeviceError> {
        match self.is_capturing() {
            false => Ok(()),
            true => Err(DeviceError::Order {
                what: "a stream that is being captured cannot be waited for",
            }),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.synchronize().is_err() {
            // What may still be in use is never given back, rather than too early.
            std::mem::take(&mut self.running)
                .into_iter()
                .for_each(std::mem::forget);
        }
        self.memory.device().end_stream(self.handle);
    }
}

fn check_length(expected: usize, found: usize) -> Result<(), DeviceError> {
    if expected == found {
        return Ok(());
    }
    Err(DeviceError::Size {
        what: "values to be copied",
        expected,
        found,
    })
}
