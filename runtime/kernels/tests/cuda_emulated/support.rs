//! What the tests of the kernels share.

use std::sync::Arc;

use bytemuck::Pod;
use trafficllm_cuda_emulator::{EmulatedDevice, Options};
use trafficllm_kernels::cuda::{
    Address, Device, DeviceError, Handle, KernelSource, Launch, OpenOptions, open,
};

/// Orders of threads that a kernel's result must not depend on; the first runs them in turn.
pub(crate) const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// An emulated device whose threads run in the order of that seed. Every second one has the capability for which other kernels are taken.
pub(crate) fn emulated(seed: u64) -> Arc<EmulatedDevice> {
    EmulatedDevice::new(&Options {
        seed,
        capability: if seed.is_multiple_of(2) {
            (9, 0)
        } else {
            (8, 0)
        },
        ..Options::default()
    })
}

/// Where the variable TLLM_CUDA_DEVICE names a device ("cuda:0"), that one: then kernels run where they are made for.
fn real() -> Option<Arc<dyn Device>> {
    let name = std::env::var("TLLM_CUDA_DEVICE").ok()?;
    let ordinal = name
        .strip_prefix("cuda:")
        .and_then(|number| number.parse().ok());
    let options = OpenOptions {
        ordinal: Some(ordinal.unwrap_or_else(|| panic!("TLLM_CUDA_DEVICE is {name}"))),
        ..OpenOptions::default()
    };
    Some(open(&options).unwrap())
}

/// Whether kernels run on a device that is there. It fails otherwise than the emulator, if at all.
pub(crate) fn is_real() -> bool {
    std::env::var_os("TLLM_CUDA_DEVICE").is_some()
}

/// The device that kernels are tested on.
pub(crate) fn device(seed: u64) -> Arc<dyn Device> {
    real().unwrap_or_else(|| emulated(seed))
}

/// A device with a stream, for kernels that are launched one by one. What it allocates stays until it is dropped.
pub(crate) struct Machine {
    pub(crate) device: Arc<dyn Device>,
    stream: Handle,
    allocated: std::cell::RefCell<Vec<Address>>,
}

impl Machine {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        let stream = device.make_stream().unwrap();
        Self {
            device,
            stream,
            allocated: std::cell::RefCell::default(),
        }
    }

    pub(crate) fn emulated(seed: u64) -> Self {
        Self::new(emulated(seed))
    }

    /// Zeros; the next value past the end faults (up to a multiple of 16 bytes).
    pub(crate) fn zeros<T: Pod>(&self, count: usize) -> Address {
        if count == 0 {
            return Address::default();
        }
        let address = self.device.allocate(count * size_of::<T>()).unwrap();
        self.allocated.borrow_mut().push(address);
        address
    }

    /// A copy of the values; null for none.
    pub(crate) fn upload<T: Pod>(&self, values: &[T]) -> Address {
        let address = self.zeros::<T>(values.len());
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if !bytes.is_empty() {
            // SAFETY: both have room for so many bytes, and it is waited for.
            unsafe {
                self.device
                    .copy_in(self.stream, bytes.as_ptr(), address, bytes.len())
                    .unwrap();
            }
            self.device.synchronize(self.stream).unwrap();
        }
        address
    }

    pub(crate) fn download<T: Pod>(&self, address: Address, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        if !bytes.is_empty() {
            // SAFETY: as above.
            unsafe {
                self.device
                    .copy_out(self.stream, address, bytes.as_mut_ptr(), bytes.len())
                    .unwrap();
            }
            self.device.synchronize(self.stream).unwrap();
        }
        values
    }

    /// Compiles, launches and waits. The arguments have to be the kernel's own struct, with addresses of this machine.
    pub(crate) fn try_launch<A: Pod>(
        &self,
        source: &KernelSource,
        launch: Launch,
        arguments: &A,
    ) -> Result<(), DeviceError> {
        let kernel = self.device.kernel(source)?;
        // SAFETY: as the caller says; the emulator faults where that is not so.
        unsafe {
            self.device
                .launch(self.stream, kernel, launch, bytemuck::bytes_of(arguments))?;
        }
        self.device.synchronize(self.stream)
    }

    pub(crate) fn launch<A: Pod>(&self, source: &KernelSource, launch: Launch, arguments: &A) {
        if let Err(error) = self.try_launch(source, launch, arguments) {
            panic!("{error}");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.device.end_stream(self.stream);
        for address in self.allocated.take() {
            // SAFETY: all launches were waited for.
            unsafe { self.device.free(address) };
        }
    }
}

/// The same numbers in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// Within -1 to 1.
    pub(crate) fn value(&mut self) -> f32 {
        self.next() as f32 / (1_u64 << 30) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize, magnitude: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * magnitude).collect()
    }

    /// Any bytes within -127 to 127.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<i8> {
        (0..count)
            .map(|_| self.below(255) as i8)
            .map(|byte| byte.max(-127))
            .collect()
    }
}
