//! The device: memory, streams, graphs, and the faults that a test asks for.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use trafficllm_kernels::cuda::{
    Address, Device, DeviceError, DeviceFacts, Handle, KernelSource, Launch,
};

use crate::compile;
use crate::counts::Counts;
use crate::state::{
    INVALID_VALUE, LAUNCH_FAILED, LAUNCH_OUT_OF_RESOURCES, State, lock, refused, unknown,
};
use crate::stream::{Operation, Stream};
use crate::work::Workers;

/// What a device is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Compute capability that it says it has: which kernels it is asked for follows from that.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Order of threads and blocks: in turn with 0, shuffled with others.
    pub seed: u64,
    /// Threads of the system that run blocks of a launch.
    pub workers: usize,
    /// Whether nothing that a stream is asked for happens before somebody waits for it; else it happens at once.
    pub late: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            capability: (9, 0),
            memory_bytes: 1 << 32,
            seed: 0,
            workers: 2,
            late: false,
        }
    }
}

/// A device that runs kernels on the processor.
#[derive(Debug)]
pub struct EmulatedDevice {
    pub(crate) facts: DeviceFacts,
    pub(crate) workers: usize,
    pub(crate) late: bool,
    pub(crate) seed: AtomicU64,
    handles: AtomicU64,
    pub(crate) memory: Workers,
    pub(crate) state: Mutex<State>,
    pub(crate) streams: Mutex<HashMap<u64, Arc<Mutex<Stream>>>>,
}

impl EmulatedDevice {
    /// A device like that.
    #[must_use]
    pub fn new(options: &Options) -> Arc<Self> {
        let shared_bytes_max = match options.capability {
            (8, 0) => 163 * 1024,
            (8, _) => 99 * 1024,
            _ => 227 * 1024,
        };
        Arc::new(Self {
            facts: DeviceFacts {
                name: "emulated".to_owned(),
                ordinal: 0,
                capability: options.capability,
                multiprocessors: 2,
                memory_bytes: options.memory_bytes,
                shared_bytes_max,
            },
            workers: options.workers,
            late: options.late,
            seed: AtomicU64::new(options.seed),
            handles: AtomicU64::new(1),
            memory: Workers::default(),
            state: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    /// Runs threads in another order from now on.
    pub fn set_seed(&self, seed: u64) {
        self.seed.store(seed, Ordering::Relaxed);
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.state).counts.clone()
    }

    /// Loses the device at the call after so many more that can fail.
    pub fn fail_after(&self, calls: u64) {
        lock(&self.state).faults.calls_left = Some(calls);
    }

    /// Refuses the next launch, also one of a graph, and goes on after it.
    pub fn fail_next_launch(&self) {
        lock(&self.state).faults.launch = true;
    }

    /// Kernels of that name cannot be compiled from now on.
    pub fn fail_compile(&self, kernel: &str) {
        lock(&self.state).faults.compile = Some(kernel.to_owned());
    }

    fn handle(&self) -> Handle {
        Handle(self.handles.fetch_add(1, Ordering::Relaxed))
    }

    /// The state, unless the device is lost; counts the call.
    pub(crate) fn call(&self, call: &'static str) -> Result<MutexGuard<'_, State>, DeviceError> {
        let mut state = lock(&self.state);
        match &mut state.faults.calls_left {
            Some(0) => {
                let reason = "lost as the test asked for".to_owned();
                state.faults.lost.get_or_insert(reason);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        match &state.faults.lost {
            Some(reason) => Err(DeviceError::Lost {
                call,
                code: LAUNCH_FAILED,
                reason: reason.clone(),
            }),
            None => Ok(state),
        }
    }
}

// SAFETY: allocations are mappings of their own until they are freed.
unsafe impl Device for EmulatedDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        let state = self.call("free_bytes")?;
        Ok(self.facts.memory_bytes - state.counts.allocated_bytes)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let mut state = self.call("allocate")?;
        if bytes == 0 {
            return Err(refused("allocate", INVALID_VALUE, "0 bytes"));
        }
        let left = self.facts.memory_bytes - state.counts.allocated_bytes;
        let full = DeviceError::Memory {
            what: "device memory",
            bytes: bytes as u64,
            left,
        };
        if bytes as u64 > left {
            return Err(full);
        }
        let start = state.allocations.add(bytes).map_err(|_| full)?;
        let counts = &mut state.counts;
        counts.allocations += 1;
        counts.allocated_bytes += bytes as u64;
        counts.allocated_bytes_max = counts.allocated_bytes_max.max(counts.allocated_bytes);
        Ok(Address(start.as_ptr().addr() as u64))
    }

    unsafe fn free(&self, address: Address) {
        let mut state = lock(&self.state);
        if let Some(bytes) = state.allocations.remove(address.0) {
            state.counts.allocated_bytes -= bytes;
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>, DeviceError> {
        let mut state = self.call("allocate_pinned")?;
        let full = DeviceError::Memory {
            what: "pinned memory",
            bytes: bytes as u64,
            left: 0,
        };
        let start = state.pinned.add(bytes).map_err(|_| full)?;
        state.counts.pinned_bytes += bytes as u64;
        Ok(start)
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _bytes: usize) {
        let mut state = lock(&self.state);
        let address = pointer.as_ptr().addr() as u64;
        if let Some(bytes) = state.pinned.remove(address) {
            state.counts.pinned_bytes -= bytes;
        }
    }

    fn make_stream(&self) -> Result<Handle, DeviceError> {
        drop(self.call("make_stream")?);
        let handle = self.handle();
        lock(&self.streams).insert(handle.0, Arc::default());
        Ok(handle)
    }

    fn end_stream(&self, stream: Handle) {
        // What it still has to do is done: a failure of that has nobody to be told to.
        let _ = self.synchronize(stream);
        lock(&self.streams).remove(&stream.0);
    }

    unsafe fn copy_in(
        &self,
        stream: Handle,
        from: *const u8,
        to: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let from = from.expose_provenance();
        self.check_copy("copy_in", from, to, bytes)?;
        // SAFETY: as the caller says.
        unsafe { self.ask("copy_in", stream, Operation::CopyIn { from, to, bytes }) }
    }

    unsafe fn copy_out(
        &self,
        stream: Handle,
        from: Address,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let to = to.expose_provenance();
        self.check_copy("copy_out", to, from, bytes)?;
        // SAFETY: as the caller says.
        unsafe { self.ask("copy_out", stream, Operation::CopyOut { from, to, bytes }) }
    }

    fn kernel(&self, source: &KernelSource) -> Result<Handle, DeviceError> {
        let fails = {
            let state = self.call("kernel")?;
            state.faults.compile.as_deref() == Some(source.kernel())
        };
        let made = if fails {
            Err("refused as the test asked for".to_owned())
        } else {
            compile::kernel(source)
        };
        let kernel = made.map_err(|log| DeviceError::Compile {
            kernel: source.to_string(),
            target: "the emulator".to_owned(),
            log,
        })?;
        let handle = self.handle();
        let mut state = lock(&self.state);
        state.kernels.insert(handle.0, kernel);
        state.counts.kernels_made += 1;
        Ok(handle)
    }

    unsafe fn launch(
        &self,
        stream: Handle,
        kernel: Handle,
        launch: Launch,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        let kernel = {
            let mut state = self.call("a launch")?;
            if std::mem::take(&mut state.faults.launch) {
                let reason = "refused as the test asked for";
                return Err(refused("a launch", LAUNCH_OUT_OF_RESOURCES, reason));
            }
            let found = state.kernels.get(&kernel.0).cloned();
            found.ok_or_else(|| unknown("a launch"))?
        };
        self.check_launch(&kernel, launch, arguments.len())?;
        let arguments = arguments
            .chunks(16)
            .map(|chunk| {
                let mut bytes = [0; 16];
                bytes[..chunk.len()].copy_from_slice(chunk);
                u128::from_ne_bytes(bytes)
            })
            .collect();
        let operation = Operation::Launch {
            kernel,
            launch,
            arguments,
        };
        // SAFETY: as the caller says.
        unsafe { self.ask("a launch", stream, operation) }
    }

    fn begin_capture(&self, stream: Handle) -> Result<(), DeviceError> {
        drop(self.call("begin_capture")?);
        let stream = self.stream("begin_capture", stream)?;
        let mut stream = lock(&stream);
        if stream.captured.is_some() {
            let reason = "the stream is captured already";
            return Err(refused("begin_capture", INVALID_VALUE, reason));
        }
        stream.captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Handle) -> Result<Handle, DeviceError> {
        let stream = self.stream("end_capture", stream)?;
        let captured = lock(&stream).captured.take();
        let mut state = self.call("end_capture")?;
        let operations = captured
            .ok_or_else(|| refused("end_capture", INVALID_VALUE, "the stream is not captured"))?;
        let handle = self.handle();
        state.graphs.insert(handle.0, Arc::new(operations));
        Ok(handle)
    }

    unsafe fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<(), DeviceError> {
        let operations = {
            let mut state = self.call("launch_graph")?;
            if std::mem::take(&mut state.faults.launch) {
                let reason = "refused as the test asked for";
                return Err(refused("launch_graph", LAUNCH_OUT_OF_RESOURCES, reason));
            }
            let found = state.graphs.get(&graph.0).cloned();
            found.ok_or_else(|| unknown("launch_graph"))?
        };
        // SAFETY: as the caller says.
        unsafe { self.ask("launch_graph", stream, Operation::Graph(operations)) }
    }

    fn end_graph(&self, graph: Handle) {
        lock(&self.state).graphs.remove(&graph.0);
    }

    fn synchronize(&self, stream: Handle) -> Result<(), DeviceError> {
        self.call("synchronize")?.counts.waits += 1;
        let stream = self.stream("synchronize", stream)?;
        let mut stream = lock(&stream);
        if stream.captured.is_some() {
            let reason = "the stream is being captured";
            return Err(refused("synchronize", INVALID_VALUE, reason));
        }
        for operation in std::mem::take(&mut stream.waiting) {
            // SAFETY: who asked for it said that it may happen until the stream has done it, which is now.
            unsafe { self.run(&operation)? };
        }
        Ok(())
    }
}
