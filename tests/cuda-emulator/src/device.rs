//! The device: memory, streams, graphs, and the faults that a test asks for.

use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trafficllm_kernels::cuda::{
    Address, Device, DeviceError, DeviceFacts, Handle, KernelSource, Launch,
};

use crate::compile::{self, Kernel};
use crate::counts::{Counts, Faults};
use crate::memory::Guarded;
use crate::stream::{Operation, Stream};
use crate::work::{Task, Workers};

/// Numbers of errors as the driver has them.
const INVALID_VALUE: i32 = 1;
const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
const LAUNCH_FAILED: i32 = 719;

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
    facts: DeviceFacts,
    workers: usize,
    late: bool,
    seed: AtomicU64,
    handles: AtomicU64,
    memory: Workers,
    state: Mutex<State>,
    streams: Mutex<HashMap<u64, Arc<Mutex<Stream>>>>,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    faults: Faults,
    /// Device memory by its address.
    allocations: BTreeMap<u64, Allocation>,
    pinned: BTreeMap<u64, Allocation>,
    kernels: HashMap<u64, Arc<Kernel>>,
    graphs: HashMap<u64, Arc<Vec<Operation>>>,
}

#[derive(Debug)]
struct Allocation {
    /// Freed with it.
    _memory: Guarded,
    bytes: u64,
}

/// Whether a range lies within one of the allocations.
fn holds(allocations: &BTreeMap<u64, Allocation>, first: u64, bytes: u64) -> bool {
    let before = allocations.range(..=first).next_back();
    before.is_some_and(|(start, allocation)| {
        first - start <= allocation.bytes && bytes <= allocation.bytes - (first - start)
    })
}

fn refused(call: &'static str, code: i32, reason: impl Into<String>) -> DeviceError {
    let reason = reason.into();
    DeviceError::Driver { call, code, reason }
}

fn unknown(call: &'static str) -> DeviceError {
    refused(call, INVALID_VALUE, "no such handle")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn call(&self, call: &'static str) -> Result<MutexGuard<'_, State>, DeviceError> {
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

    fn stream(
        &self,
        call: &'static str,
        stream: Handle,
    ) -> Result<Arc<Mutex<Stream>>, DeviceError> {
        let streams = lock(&self.streams);
        streams.get(&stream.0).cloned().ok_or_else(|| unknown(call))
    }

    /// Does it, or keeps it for later.
    ///
    /// # Safety
    /// As that function of [`Device`] that asks for it.
    unsafe fn ask(
        &self,
        call: &'static str,
        stream: Handle,
        operation: Operation,
    ) -> Result<(), DeviceError> {
        let stream = self.stream(call, stream)?;
        let mut stream = lock(&stream);
        if let Some(captured) = &mut stream.captured {
            captured.push(operation);
        } else if self.late {
            stream.waiting.push(operation);
        } else {
            // SAFETY: as the caller says.
            unsafe { self.run(&operation)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`EmulatedDevice::ask`].
    unsafe fn run(&self, operation: &Operation) -> Result<(), DeviceError> {
        match operation {
            Operation::Launch {
                kernel,
                launch,
                arguments,
            } => {
                {
                    let mut state = lock(&self.state);
                    state.counts.launches += 1;
                    let name = kernel.name.clone();
                    *state.counts.kernels.entry(name).or_default() += 1;
                }
                let task = Task {
                    run: kernel.run,
                    function: kernel.function,
                    arguments,
                    launch: *launch,
                    seed: self.seed.load(Ordering::Relaxed),
                };
                // SAFETY: as the caller says.
                unsafe { self.memory.run(task, self.workers) }.map_err(|text| {
                    let reason = format!("{}: {text}", kernel.name);
                    lock(&self.state).faults.lost = Some(reason.clone());
                    DeviceError::Lost {
                        call: "a launch",
                        code: LAUNCH_FAILED,
                        reason,
                    }
                })
            }
            Operation::CopyIn { from, to, bytes } => {
                let from: *const u8 = std::ptr::with_exposed_provenance(*from);
                let to: *mut u8 = std::ptr::with_exposed_provenance_mut(to.0 as usize);
                // SAFETY: `check_copy` saw that `to` is of the device; the rest is as the caller says.
                unsafe { std::ptr::copy_nonoverlapping(from, to, *bytes) };
                let counts = &mut lock(&self.state).counts;
                counts.copies_in += 1;
                counts.bytes_in += *bytes as u64;
                Ok(())
            }
            Operation::CopyOut { from, to, bytes } => {
                let from: *const u8 = std::ptr::with_exposed_provenance(from.0 as usize);
                let to: *mut u8 = std::ptr::with_exposed_provenance_mut(*to);
                // SAFETY: as above, with `from`.
                unsafe { std::ptr::copy_nonoverlapping(from, to, *bytes) };
                let counts = &mut lock(&self.state).counts;
                counts.copies_out += 1;
                counts.bytes_out += *bytes as u64;
                Ok(())
            }
            Operation::Graph(operations) => {
                lock(&self.state).counts.graphs += 1;
                operations.iter().try_for_each(|operation| {
                    // SAFETY: as the caller says of all that was kept.
                    unsafe { self.run(operation) }
                })
            }
        }
    }

    /// Whether a copy's end on the device is one allocation's.
    fn check_copy(
        &self,
        call: &'static str,
        host: usize,
        device: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let mut state = self.call(call)?;
        if !holds(&state.allocations, device.0, bytes as u64) {
            let reason = format!("{bytes} bytes at {:#x} are not of the device", device.0);
            return Err(refused(call, INVALID_VALUE, reason));
        }
        if !holds(&state.pinned, host as u64, bytes as u64) {
            state.counts.pageable_copies += 1;
        }
        Ok(())
    }

    fn check_launch(
        &self,
        kernel: &Kernel,
        launch: Launch,
        argument_bytes: usize,
    ) -> Result<(), DeviceError> {
        let bad = |reason: String| {
            let reason = format!("{}: {reason}", kernel.name);
            Err(refused("a launch", INVALID_VALUE, reason))
        };
        if argument_bytes != kernel.argument_bytes {
            let expected = kernel.argument_bytes;
            return bad(format!(
                "{argument_bytes} bytes of arguments, it takes {expected}"
            ));
        }
        let [x, y, z] = launch.grid;
        let blocks = u64::from(x) * u64::from(y) * u64::from(z);
        if blocks == 0 || blocks > u64::from(u32::MAX) || y > 65_535 || z > 65_535 {
            return bad(format!("a grid of {x} x {y} x {z} blocks"));
        }
        // A device takes other numbers too; the emulator has whole warps only.
        if launch.threads == 0 || launch.threads > 1024 || launch.threads % 32 != 0 {
            return bad(format!("blocks of {} threads", launch.threads));
        }
        if launch.shared_bytes > self.facts.shared_bytes_max {
            return bad(format!("{} bytes of shared memory", launch.shared_bytes));
        }
        if kernel.threads_max.is_some_and(|most| launch.threads > most) {
            let reason = format!("{}: blocks of {} threads", kernel.name, launch.threads);
            return Err(refused("a launch", LAUNCH_OUT_OF_RESOURCES, reason));
        }
        Ok(())
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
        let bytes = bytes as u64;
        let what = "device memory";
        let full = DeviceError::Memory { what, bytes, left };
        if bytes > left {
            return Err(full);
        }
        let memory = Guarded::new(bytes as usize, 16).map_err(|_| full)?;
        let address = memory.start().as_ptr().expose_provenance() as u64;
        let allocation = Allocation {
            _memory: memory,
            bytes,
        };
        state.allocations.insert(address, allocation);
        let counts = &mut state.counts;
        counts.allocations += 1;
        counts.allocated_bytes += bytes;
        counts.allocated_bytes_max = counts.allocated_bytes_max.max(counts.allocated_bytes);
        Ok(Address(address))
    }

    unsafe fn free(&self, address: Address) {
        let mut state = lock(&self.state);
        if let Some(allocation) = state.allocations.remove(&address.0) {
            state.counts.allocated_bytes -= allocation.bytes;
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>, DeviceError> {
        let mut state = self.call("allocate_pinned")?;
        let full = DeviceError::Memory {
            what: "pinned memory",
            bytes: bytes as u64,
            left: 0,
        };
        let memory = Guarded::new(bytes, 16).map_err(|_| full)?;
        let pointer = memory.start();
        let bytes = bytes as u64;
        state.counts.pinned_bytes += bytes;
        let allocation = Allocation {
            _memory: memory,
            bytes,
        };
        let address = pointer.as_ptr().expose_provenance() as u64;
        state.pinned.insert(address, allocation);
        Ok(pointer)
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _bytes: usize) {
        let mut state = lock(&self.state);
        let address = pointer.as_ptr().addr() as u64;
        if let Some(allocation) = state.pinned.remove(&address) {
            state.counts.pinned_bytes -= allocation.bytes;
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
