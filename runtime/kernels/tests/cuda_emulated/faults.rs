//! The emulated device as a device: streams, graphs, counts, and what goes wrong when a test asks for it.

use std::ptr::NonNull;
use std::sync::Arc;

use trafficllm_cuda_emulator::{EmulatedDevice, Options};
use trafficllm_kernels::cuda::{Address, Device, DeviceError, Handle};

use crate::own::{Given, block, own, source};
use crate::support::emulated;

/// A stream with a word of the device and one of pinned memory.
struct Word {
    device: Arc<EmulatedDevice>,
    stream: Handle,
    word: Address,
    pinned: NonNull<u32>,
}

impl Word {
    fn new(device: Arc<EmulatedDevice>) -> Self {
        let stream = device.make_stream().unwrap();
        let word = device.allocate(4).unwrap();
        let pinned = device.allocate_pinned(4).unwrap().cast();
        Self {
            device,
            stream,
            word,
            pinned,
        }
    }

    fn set(&self, value: u32) {
        // SAFETY: it is allocated, and no copy is under way.
        unsafe { self.pinned.write(value) };
    }

    fn get(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.pinned.read() }
    }

    fn copy_in(&self) -> Result<(), DeviceError> {
        // SAFETY: both are allocated until this is dropped, which waits.
        unsafe {
            self.device
                .copy_in(self.stream, self.pinned.as_ptr().cast(), self.word, 4)
        }
    }

    fn copy_out(&self) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe {
            self.device
                .copy_out(self.stream, self.word, self.pinned.as_ptr().cast(), 4)
        }
    }

    /// Adds 1 to the word.
    fn add(&self) -> Result<(), DeviceError> {
        let kernel = self.device.kernel(&own!("if (thread == 0) *to += 1;"))?;
        let given = Given {
            to: self.word,
            ..Given::default()
        };
        // SAFETY: the struct is the kernel's, and the word is there.
        unsafe {
            self.device.launch(
                self.stream,
                kernel,
                block(32, 0),
                bytemuck::bytes_of(&given),
            )
        }
    }

    fn wait(&self) -> Result<(), DeviceError> {
        self.device.synchronize(self.stream)
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        self.device.end_stream(self.stream);
        // SAFETY: both are this one's, and the stream is done.
        unsafe {
            self.device.free(self.word);
            self.device.free_pinned(self.pinned.cast(), 4);
        }
    }
}

fn late() -> Arc<EmulatedDevice> {
    EmulatedDevice::new(&Options {
        late: true,
        ..Options::default()
    })
}

#[test]
fn a_stream_does_things_in_order_at_once_or_when_it_is_waited_for() {
    for device in [emulated(0), late()] {
        let word = Word::new(device);
        word.set(5);
        word.copy_in().unwrap();
        word.add().unwrap();
        word.copy_out().unwrap();
        word.wait().unwrap();
        assert_eq!(word.get(), 6);
    }
    let word = Word::new(late());
    word.set(5);
    word.copy_in().unwrap();
    word.add().unwrap();
    word.copy_out().unwrap();
    assert_eq!(word.get(), 5);
    assert_eq!(word.device.counts().launches, 0);
    // What is written too early goes in instead.
    word.set(9);
    word.wait().unwrap();
    assert_eq!(word.get(), 10);
}

#[test]
fn a_graph_does_again_what_was_kept() {
    for device in [emulated(0), late()] {
        let word = Word::new(device);
        word.device.begin_capture(word.stream).unwrap();
        assert!(word.device.begin_capture(word.stream).is_err());
        word.copy_in().unwrap();
        word.add().unwrap();
        word.add().unwrap();
        word.copy_out().unwrap();
        assert!(word.wait().is_err());
        let graph = word.device.end_capture(word.stream).unwrap();
        assert!(word.device.end_capture(word.stream).is_err());
        assert_eq!(word.device.counts().launches, 0);
        for start in [1, 20] {
            word.set(start);
            // SAFETY: as of what was kept.
            unsafe { word.device.launch_graph(word.stream, graph).unwrap() };
            word.wait().unwrap();
            assert_eq!(word.get(), start + 2);
        }
        let counts = word.device.counts();
        assert_eq!((counts.graphs, counts.launches), (2, 4));
        assert_eq!((counts.copies_in, counts.bytes_in), (2, 8));
        assert_eq!((counts.copies_out, counts.bytes_out), (2, 8));
        assert_eq!((counts.kernels["test"], counts.pageable_copies), (4, 0));
        word.device.end_graph(graph);
        // SAFETY: it is not there any more.
        unsafe { word.device.launch_graph(word.stream, graph).unwrap_err() };
    }
}

#[test]
fn memory_is_counted_and_ends() {
    let device = EmulatedDevice::new(&Options {
        memory_bytes: 1000,
        ..Options::default()
    });
    let first = device.allocate(600).unwrap();
    let refused = device.allocate(401).unwrap_err();
    assert!(
        matches!(
            refused,
            DeviceError::Memory {
                bytes: 401,
                left: 400,
                ..
            }
        ),
        "{refused}"
    );
    let second = device.allocate(400).unwrap();
    assert_eq!(device.free_bytes().unwrap(), 0);
    // SAFETY: nothing uses them.
    unsafe {
        device.free(first);
        device.free(second);
    }
    let counts = device.counts();
    assert_eq!((counts.allocations, counts.allocated_bytes), (2, 0));
    assert_eq!(counts.allocated_bytes_max, 1000);
    assert_eq!(device.free_bytes().unwrap(), 1000);
}

#[test]
fn a_copy_past_an_allocation_is_refused_and_one_of_other_host_memory_counted() {
    let word = Word::new(emulated(0));
    let mut values = [1_u32, 2];
    for (offset, bytes, fits) in [(0, 4, true), (4, 0, true), (0, 8, false), (2, 4, false)] {
        let from = Address(word.word.0 + offset);
        let stream = word.stream;
        // SAFETY: the host's side has room for 8 bytes, and the device's side is looked at.
        let result = unsafe {
            word.device
                .copy_out(stream, from, values.as_mut_ptr().cast(), bytes)
        };
        assert_eq!(result.is_ok(), fits, "{bytes} bytes at {offset}");
    }
    assert_eq!((values, word.device.counts().pageable_copies), ([0, 2], 2));
}

#[test]
fn a_lost_device_stays_lost() {
    let word = Word::new(emulated(0));
    word.device.fail_after(2);
    word.copy_in().unwrap();
    word.copy_out().unwrap();
    for _ in 0..2 {
        assert!(word.copy_in().unwrap_err().is_lost());
        assert!(word.add().unwrap_err().is_lost());
        assert!(word.wait().unwrap_err().is_lost());
        assert!(word.device.allocate(4).unwrap_err().is_lost());
        assert!(word.device.make_stream().unwrap_err().is_lost());
    }
    assert_eq!(word.device.counts().launches, 0);
}

#[test]
fn a_launch_can_be_refused_once() {
    let word = Word::new(emulated(0));
    word.device.fail_next_launch();
    let error = word.add().unwrap_err();
    assert!(!error.is_lost(), "{error}");
    word.add().unwrap();
    word.copy_out().unwrap();
    assert_eq!(word.get(), 1);
}

#[test]
fn what_does_not_compile_says_why() {
    let device = emulated(0);
    let error = device
        .kernel(&source("#include \"device.cuh\"\nnonsense"))
        .unwrap_err();
    let DeviceError::Compile { kernel, log, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(kernel, "test");
    assert!(log.contains("test.cu:2"), "{log}");
    // The name is looked for in what was compiled.
    let other = source("#include \"device.cuh\"\nstruct A { int a; };\nTLLM_KERNEL(other, A) {}");
    assert!(matches!(
        device.kernel(&other),
        Err(DeviceError::Compile { .. })
    ));
    let good = own!("to[thread] = thread;");
    device.kernel(&good).unwrap();
    device.fail_compile("test");
    assert!(matches!(
        device.kernel(&good),
        Err(DeviceError::Compile { .. })
    ));
}

#[test]
fn launches_that_a_device_would_refuse_are_refused() {
    let word = Word::new(emulated(0));
    let text =
        "#include \"device.cuh\"\nstruct A { uint64_t a; };\nTLLM_KERNEL_BOUNDS(test, A, 64, 1) {}";
    let kernel = word.device.kernel(&source(text)).unwrap();
    let launch = |grid, threads, shared_bytes, bytes: usize| {
        let launch = trafficllm_kernels::cuda::Launch {
            grid,
            threads,
            shared_bytes,
        };
        // SAFETY: the kernel reads nothing.
        unsafe {
            word.device
                .launch(word.stream, kernel, launch, &vec![0; bytes])
        }
    };
    launch([1, 1, 1], 64, 227 * 1024, 8).unwrap();
    for (grid, threads, shared_bytes, bytes) in [
        ([0, 1, 1], 64, 0, 8),
        ([1, 65_536, 1], 64, 0, 8),
        ([1, 1, 1], 0, 0, 8),
        ([1, 1, 1], 33, 0, 8),
        ([1, 1, 1], 96, 0, 8),
        ([1, 1, 1], 2048, 0, 8),
        ([1, 1, 1], 64, 227 * 1024 + 1, 8),
        ([1, 1, 1], 64, 0, 12),
    ] {
        let error = launch(grid, threads, shared_bytes, bytes).unwrap_err();
        assert!(matches!(error, DeviceError::Driver { .. }), "{error}");
    }
    let shared = [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227)];
    for (capability, kibibytes) in shared {
        let device = EmulatedDevice::new(&Options {
            capability,
            ..Options::default()
        });
        assert_eq!(device.facts().shared_bytes_max, kibibytes * 1024);
    }
}
