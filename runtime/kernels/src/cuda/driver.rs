//! The device that NVIDIA's driver gives.
//!
//! Errors that are for good ([`DeviceError::Lost`]) are told by all later calls too. What runs on the device is asked for on streams that
//! do not wait for those of others in the process; the primary context is shared with them.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{CU_MEMHOSTALLOC_PORTABLE, CUstreamCaptureMode};

use super::calls::{Fault, fault};
use super::compile::{Compiler, Target};
use super::context::Context;
use super::made::{Graph, Kernel, Stream, Table, lock};
use super::{Address, Device, DeviceError, DeviceFacts, Handle, KernelSource, Launch};

/// Most bytes of the struct that a kernel is given.
const ARGUMENT_BYTES_MAX: usize = 1024;

/// Room for a kernel's struct, zeros past its end.
#[repr(C, align(64))]
struct Arguments([u8; ARGUMENT_BYTES_MAX]);

/// A device of the driver. Fields are dropped in their order: what may still run, before what it needs.
pub(super) struct CudaDevice {
    graphs: Table<Graph>,
    streams: Table<Stream>,
    /// Fills new memory with zeros.
    zeroing: Stream,
    kernels: Table<Kernel>,
    /// The number of each kernel that was compiled. Two threads that ask for one at a time compile it once.
    compiled: Mutex<HashMap<KernelSource, Arc<Mutex<Option<Handle>>>>>,
    compiler: Arc<Compiler>,
    target: Target,
    facts: DeviceFacts,
    context: Arc<Context>,
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CudaDevice")
            .field("facts", &self.facts)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl CudaDevice {
    /// The device of a context.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn new(
        context: Context,
        facts: DeviceFacts,
        compiler: Arc<Compiler>,
        target: Target,
    ) -> Result<Self, DeviceError> {
        let context = Arc::new(context);
        Ok(Self {
            graphs: Table::new("a graph that the device does not have"),
            streams: Table::new("a stream that the device does not have"),
            zeroing: Stream::new(&context)?,
            kernels: Table::new("a kernel that the device does not have"),
            compiled: Mutex::default(),
            compiler,
            target,
            facts,
            context,
        })
    }

    /// As [`Context::check`], for calls that were to give so many bytes.
    fn check_memory(
        &self,
        call: &'static str,
        what: &'static str,
        bytes: usize,
        answer: i32,
    ) -> Result<(), DeviceError> {
        if fault(answer) == Fault::Memory {
            return Err(DeviceError::Memory {
                what,
                bytes: bytes as u64,
                left: self.context.free_bytes().unwrap_or(0),
            });
        }
        self.context.check(call, answer)
    }
}

// SAFETY: the driver's allocations stand for the bytes that were asked for until they are freed, and it is these that are handed out.
unsafe impl Device for CudaDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        let _entered = self.context.enter()?;
        self.context.free_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let calls = &self.context.driver.calls;
        let _entered = self.context.enter()?;
        let mut address = 0;
        // The driver has no room of no bytes.
        let room = bytes.max(1);
        // SAFETY: there is room for the address, and the context is current.
        let answer = unsafe { (calls.cuMemAlloc_v2)(&raw mut address, room) };
        self.check_memory("cuMemAlloc", "device memory", bytes, answer)?;
        // SAFETY: the room was just made, and nothing else knows of it.
        let answer = unsafe { (calls.cuMemsetD8Async)(address, 0, room, self.zeroing.raw.0) };
        let zeroed = self.context.check("cuMemsetD8Async", answer);
        if let Err(error) = zeroed.and_then(|()| self.zeroing.synchronize()) {
            // SAFETY: as above, and the driver frees after what uses it.
            unsafe { (calls.cuMemFree_v2)(address) };
            return Err(error);
        }
        Ok(Address(address))
    }

    unsafe fn free(&self, address: Address) {
        if let Some(_entered) = self.context.enter_to_end() {
            // SAFETY: the caller says that it is an allocation which nothing uses.
            unsafe { (self.context.driver.calls.cuMemFree_v2)(address.0) };
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>, DeviceError> {
        let _entered = self.context.enter()?;
        let mut pointer = std::ptr::null_mut();
        let room = bytes.max(1);
        let call = self.context.driver.calls.cuMemHostAlloc;
        // SAFETY: there is room for the pointer, and the context is current.
        let answer = unsafe { call(&raw mut pointer, room, CU_MEMHOSTALLOC_PORTABLE) };
        self.check_memory("cuMemHostAlloc", "pinned memory", bytes, answer)?;
        let pointer = NonNull::new(pointer.cast::<u8>()).ok_or(DeviceError::Driver {
            call: "cuMemHostAlloc",
            code: answer,
            reason: "no address".to_owned(),
        })?;
        // SAFETY: the driver made room for so many bytes of the host's memory, and nothing else knows of it.
        unsafe { pointer.write_bytes(0, room) };
        Ok(pointer)
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _bytes: usize) {
        if let Some(_entered) = self.context.enter_to_end() {
            // SAFETY: the caller says that it is an allocation which nothing uses.
            unsafe { (self.context.driver.calls.cuMemFreeHost)(pointer.as_ptr().cast()) };
        }
    }

    fn make_stream(&self) -> Result<Handle, DeviceError> {
        Ok(self.streams.add(Stream::new(&self.context)?))
    }

    fn end_stream(&self, stream: Handle) {
        if self.context.is_own() {
            drop(self.streams.remove(stream));
        }
    }

    unsafe fn copy_in(
        &self,
        stream: Handle,
        from: *const u8,
        to: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let call = self.context.driver.calls.cuMemcpyHtoDAsync_v2;
        // SAFETY: the caller says that both ends are good until the stream has done it.
        let answer = unsafe { call(to.0, from.cast(), bytes, stream.raw.0) };
        self.context.check("cuMemcpyHtoDAsync", answer)
    }

    unsafe fn copy_out(
        &self,
        stream: Handle,
        from: Address,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let call = self.context.driver.calls.cuMemcpyDtoHAsync_v2;
        // SAFETY: the caller says that both ends are good until the stream has done it.
        let answer = unsafe { call(to.cast(), from.0, bytes, stream.raw.0) };
        self.context.check("cuMemcpyDtoHAsync", answer)
    }

    fn kernel(&self, source: &KernelSource) -> Result<Handle, DeviceError> {
        // A device that is lost says so, also of kernels that it has.
        drop(self.context.enter()?);
        let slot = {
            let mut compiled = lock(&self.compiled);
            Arc::clone(compiled.entry(source.clone()).or_default())
        };
        let mut slot = lock(&slot);
        if let Some(handle) = *slot {
            return Ok(handle);
        }
        let image = self.compiler.compile(source, self.target)?;
        let kernel = Kernel::load(&self.context, &self.facts, source, &image)?;
        Ok(*slot.insert(self.kernels.add(kernel)))
    }

    unsafe fn launch(
        &self,
        stream: Handle,
        kernel: Handle,
        launch: Launch,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        let kernel = self.kernels.get(kernel)?;
        let mut room = Arguments([0; ARGUMENT_BYTES_MAX]);
        let place = room.0.get_mut(..arguments.len());
        place
            .ok_or(DeviceError::Size {
                what: "bytes of a kernel's struct",
                expected: ARGUMENT_BYTES_MAX,
                found: arguments.len(),
            })?
            .copy_from_slice(arguments);
        if launch.shared_bytes > 0 {
            kernel.divide();
        }
        let [x, y, z] = launch.grid;
        let mut parameters = [(&raw mut room).cast()];
        // SAFETY: the kernel takes one struct, of which the driver copies as many bytes as the kernel says, before it returns; that the
        // struct is right for it, the caller says. The stream and the kernel are there while their counts are held, and the driver
        // keeps neither's address past their end: a stream's work is done before it goes, and kernels stay as long as the device.
        let answer = unsafe {
            (self.context.driver.calls.cuLaunchKernel)(
                kernel.function(),
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared_bytes,
                stream.raw.0,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check("cuLaunchKernel", answer)
    }

    fn begin_capture(&self, stream: Handle) -> Result<(), DeviceError> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        // Relaxed: this thread or another may make room, or load a kernel, meanwhile. None of that touches the stream.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is there while its count is held.
        let answer =
            unsafe { (self.context.driver.calls.cuStreamBeginCapture_v2)(stream.raw.0, mode) };
        self.context.check("cuStreamBeginCapture", answer)
    }

    fn end_capture(&self, stream: Handle) -> Result<Handle, DeviceError> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        let mut captured = std::ptr::null_mut();
        let call = self.context.driver.calls.cuStreamEndCapture;
        // SAFETY: the stream is there while its count is held, and there is room for the graph.
        let answer = unsafe { call(stream.raw.0, &raw mut captured) };
        self.context.check("cuStreamEndCapture", answer)?;
        if captured.is_null() {
            return Err(DeviceError::Order {
                what: "the end of a capture that was broken off",
            });
        }
        // SAFETY: the driver just gave it, and nothing else knows of it.
        let graph = unsafe { Graph::instantiate(&self.context, captured) }?;
        Ok(self.graphs.add(graph))
    }

    unsafe fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<(), DeviceError> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        let graph = self.graphs.get(graph)?;
        let call = self.context.driver.calls.cuGraphLaunch;
        // SAFETY: both are there while their counts are held, and the driver keeps a graph until its last run is done; what it runs, the
        // caller says is right.
        let answer = unsafe { call(graph.raw.0, stream.raw.0) };
        self.context.check("cuGraphLaunch", answer)
    }

    fn end_graph(&self, graph: Handle) {
        if self.context.is_own() {
            drop(self.graphs.remove(graph));
        }
    }

    fn synchronize(&self, stream: Handle) -> Result<(), DeviceError> {
        self.context.check_own()?;
        self.streams.get(stream)?.synchronize()
    }
}

#[cfg(test)]
pub(super) mod recorded;
#[cfg(test)]
mod tests;
