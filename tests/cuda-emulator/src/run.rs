//! Doing what a stream was asked for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use trafficllm_kernels::cuda::{Address, DeviceError, Handle, Launch};

use crate::compile::Kernel;
use crate::device::EmulatedDevice;
use crate::state::{INVALID_VALUE, LAUNCH_FAILED, LAUNCH_OUT_OF_RESOURCES, lock, refused, unknown};
use crate::stream::{Operation, Stream};
use crate::work::Task;

impl EmulatedDevice {
    pub(crate) fn stream(
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
    pub(crate) unsafe fn ask(
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
    pub(crate) unsafe fn run(&self, operation: &Operation) -> Result<(), DeviceError> {
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
                    name: &kernel.name,
                };
                // SAFETY: as the caller says.
                let result = unsafe { self.memory.run(task, self.workers) };
                let mut state = lock(&self.state);
                let result = result.and_then(|()| match state.allocations.overrun() {
                    Some(bytes) => Err(format!("writes past the end of {bytes} bytes")),
                    None => Ok(()),
                });
                result.map_err(|text| {
                    let reason = format!("{}: {text}", kernel.name);
                    state.faults.lost = Some(reason.clone());
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
    pub(crate) fn check_copy(
        &self,
        call: &'static str,
        host: usize,
        device: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let mut state = self.call(call)?;
        if !state.allocations.holds(device.0, bytes as u64) {
            let reason = format!("{bytes} bytes at {:#x} are not of the device", device.0);
            return Err(refused(call, INVALID_VALUE, reason));
        }
        if !state.pinned.holds(host as u64, bytes as u64) {
            state.counts.pageable_copies += 1;
        }
        Ok(())
    }

    pub(crate) fn check_launch(
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
        if launch.threads == 0 || launch.threads > 1024 || !launch.threads.is_multiple_of(32) {
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
