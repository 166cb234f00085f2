//! A device that copies, late if it is asked to, and writes down what is launched.

use std::collections::{HashMap, HashSet};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::cuda::{
    Address, Device, DeviceError, DeviceFacts, DeviceMemory, Handle, KernelSource, Launch,
};

/// Units in which memory is made: what they are a multiple of, addresses are too.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unit([u8; 64]);

#[derive(Debug, Clone)]
pub(super) struct Launched {
    pub(super) kernel: String,
    pub(super) launch: Launch,
    pub(super) arguments: Vec<u8>,
}

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct State {
    memory: HashMap<u64, Vec<Unit>>,
    pub(super) compiled: Vec<String>,
    pub(super) launched: Vec<Launched>,
    /// Copies that are done at the next wait.
    work: Vec<Work>,
    capturing: HashSet<u64>,
    pub(super) allocations: usize,
    pub(super) graphs: usize,
    /// Error of the next wait.
    pub(super) failure: Option<DeviceError>,
}

pub(super) struct Fake {
    facts: DeviceFacts,
    state: Mutex<State>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Fake")
    }
}

/// Memory of a device of that capability, and the device.
pub(super) fn fake(capability: (u32, u32), budget: Option<u64>) -> (Arc<DeviceMemory>, Arc<Fake>) {
    let device = Arc::new(Fake {
        facts: DeviceFacts {
            name: "fake".to_owned(),
            ordinal: 0,
            capability,
            multiprocessors: 4,
            memory_bytes: 1 << 30,
            shared_bytes_max: 99 * 1024,
        },
        state: Mutex::default(),
    });
    (DeviceMemory::new(device.clone(), budget), device)
}

impl State {
    /// Copies that were asked for and are not done.
    pub(super) fn copies(&self) -> usize {
        self.work.len()
    }
}

impl Fake {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Pieces of memory that were made and not given back.
    pub(super) fn live(&self) -> usize {
        self.state().memory.len()
    }

    pub(super) fn last(&self) -> Launched {
        self.state().launched.last().unwrap().clone()
    }

    fn make(&self, bytes: usize) -> u64 {
        let mut units = vec![Unit([0; 64]); bytes.div_ceil(64)];
        let address = units.as_mut_ptr() as u64;
        let mut state = self.state();
        state.allocations += 1;
        state.memory.insert(address, units);
        address
    }

    /// Copies at the next wait, or never where the stream is captured.
    fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) {
        let mut state = self.state();
        if state.capturing.contains(&stream.0) {
            return;
        }
        state.work.push(Box::new(move || {
            // SAFETY: the callers of `Device::copy_in` and `Device::copy_out` promise both until the stream has done it.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        }));
    }
}

// SAFETY: addresses are those of vectors that live until they are freed.
unsafe impl Device for Fake {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.facts.memory_bytes)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        if bytes as u64 > self.facts.memory_bytes {
            return Err(DeviceError::Memory {
                what: "device memory",
                bytes: bytes as u64,
                left: self.facts.memory_bytes,
            });
        }
        Ok(Address(self.make(bytes)))
    }

    unsafe fn free(&self, address: Address) {
        assert!(self.state().memory.remove(&address.0).is_some());
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>, DeviceError> {
        Ok(NonNull::new(self.make(bytes) as *mut u8).unwrap())
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _bytes: usize) {
        let address = pointer.as_ptr() as u64;
        assert!(self.state().memory.remove(&address).is_some());
    }

    fn make_stream(&self) -> Result<Handle, DeviceError> {
        Ok(Handle(7))
    }

    fn end_stream(&self, _stream: Handle) {}

    unsafe fn copy_in(
        &self,
        stream: Handle,
        from: *const u8,
        to: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.copy(stream, from as u64, to.0, bytes);
        Ok(())
    }

    unsafe fn copy_out(
        &self,
        stream: Handle,
        from: Address,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.copy(stream, from.0, to as u64, bytes);
        Ok(())
    }

    fn kernel(&self, source: &KernelSource) -> Result<Handle, DeviceError> {
        let mut state = self.state();
        state.compiled.push(source.to_string());
        Ok(Handle(state.compiled.len() as u64 - 1))
    }

    unsafe fn launch(
        &self,
        _stream: Handle,
        kernel: Handle,
        launch: Launch,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        let mut state = self.state();
        let kernel = state.compiled[kernel.0 as usize].clone();
        state.launched.push(Launched {
            kernel,
            launch,
            arguments: arguments.to_vec(),
        });
        Ok(())
    }

    fn begin_capture(&self, stream: Handle) -> Result<(), DeviceError> {
        assert!(self.state().capturing.insert(stream.0));
        Ok(())
    }

    fn end_capture(&self, stream: Handle) -> Result<Handle, DeviceError> {
        let mut state = self.state();
        assert!(state.capturing.remove(&stream.0));
        state.graphs += 1;
        Ok(Handle(9))
    }

    unsafe fn launch_graph(&self, _stream: Handle, graph: Handle) -> Result<(), DeviceError> {
        assert_eq!(graph, Handle(9));
        Ok(())
    }

    fn end_graph(&self, _graph: Handle) {
        self.state().graphs -= 1;
    }

    fn synchronize(&self, _stream: Handle) -> Result<(), DeviceError> {
        let mut state = self.state();
        if let Some(failure) = state.failure.take() {
            if failure.is_lost() {
                state.work.clear();
            }
            return Err(failure);
        }
        let work = std::mem::take(&mut state.work);
        drop(state);
        work.into_iter().for_each(|work| work());
        Ok(())
    }
}
