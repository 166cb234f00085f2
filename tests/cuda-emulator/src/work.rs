//! Running a launch: its blocks shared out to workers.

use std::ffi::{CStr, c_char, c_void};
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, PoisonError};

use trafficllm_kernels::cuda::Launch;

use crate::fault::{Running, Told};
use crate::memory::Guarded;

/// As in `emulated/fibers.hpp`.
pub(crate) const STACK_BYTES: usize = 128 * 1024;
/// Shared memory starts and ends at multiples of this.
const SHARED_ALIGNMENT: usize = 1024;
const SHARED_BYTES_MAX: usize = 256 * 1024;
const ERROR_BYTES: usize = 2048;

/// What a worker is given: `Work` of `emulated/fibers.hpp`.
#[repr(C)]
pub(crate) struct Work {
    function: ThreadFn,
    arguments: *const c_void,
    blocks: *const u32,
    next: *const AtomicU32,
    stacks: *mut u8,
    shared: *mut u8,
    unfenced: *mut u16,
    error: *mut c_char,
    seed: u64,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    blocks_count: u32,
    error_bytes: u32,
}

/// One thread's way through a kernel.
pub(crate) type ThreadFn = unsafe extern "C" fn(*const c_void);
/// Runs blocks until none is left: 0, or 1 with a text.
pub(crate) type RunFn = unsafe extern "C" fn(*mut Work) -> i32;

/// What a worker works with; kept from launch to launch.
#[derive(Debug)]
struct WorkerMemory {
    threads: usize,
    /// Kept for its memory alone.
    _stacks: Guarded,
    first_stack: usize,
    shared: Guarded,
    unfenced: Vec<u16>,
    error: Vec<u8>,
}

impl WorkerMemory {
    fn new(threads: usize) -> io::Result<Self> {
        let (stacks, first_stack) = Guarded::stacks(threads, STACK_BYTES, STACK_BYTES)?;
        Ok(Self {
            threads,
            _stacks: stacks,
            first_stack,
            shared: Guarded::new(SHARED_BYTES_MAX, SHARED_ALIGNMENT)?,
            unfenced: vec![0; SHARED_BYTES_MAX / 16],
            error: vec![0; ERROR_BYTES],
        })
    }
}

/// A kernel with its arguments, ready to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) run: RunFn,
    pub(crate) function: ThreadFn,
    /// 16 bytes each, so that they are aligned.
    pub(crate) arguments: &'a [u128],
    pub(crate) launch: Launch,
    pub(crate) seed: u64,
    /// The kernel's name.
    pub(crate) name: &'a str,
}

/// Workers' memory that is not in use.
#[derive(Debug, Default)]
pub(crate) struct Workers(Mutex<Vec<WorkerMemory>>);

impl Workers {
    fn take(&self, threads: usize) -> io::Result<WorkerMemory> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(memory) if memory.threads >= threads => Ok(memory),
            _ => WorkerMemory::new(threads),
        }
    }

    fn put(&self, memory: WorkerMemory) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(memory);
    }

    /// Runs all blocks on at most `workers` threads of the system.
    ///
    /// # Safety
    /// As [`trafficllm_kernels::cuda::Device::launch`].
    pub(crate) unsafe fn run(&self, task: Task<'_>, workers: usize) -> Result<(), String> {
        let blocks = order(task.launch.grid, task.seed);
        let next = AtomicU32::new(0);
        // SAFETY: as the caller says.
        let one = || unsafe { self.run_worker(task, &blocks, &next) };
        if workers < 2 || blocks.len() < 2 {
            return one();
        }
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers.min(blocks.len()))
                .map(|_| scope.spawn(one))
                .collect();
            let own = one();
            others.into_iter().fold(own, |result, other| {
                let other = other
                    .join()
                    .unwrap_or_else(|_| Err("a worker panicked".to_owned()));
                result.and(other)
            })
        })
    }

    /// # Safety
    /// As [`Workers::run`].
    unsafe fn run_worker(
        &self,
        task: Task<'_>,
        blocks: &[u32],
        next: &AtomicU32,
    ) -> Result<(), String> {
        let mut memory = self
            .take(task.launch.threads as usize)
            .map_err(|error| format!("memory of a worker: {error}"))?;
        let shared_bytes = (task.launch.shared_bytes as usize).next_multiple_of(SHARED_ALIGNMENT);
        let mut work = Work {
            function: task.function,
            arguments: task.arguments.as_ptr().cast(),
            blocks: blocks.as_ptr(),
            next,
            stacks: std::ptr::with_exposed_provenance_mut(memory.first_stack),
            shared: std::ptr::with_exposed_provenance_mut(memory.shared.end() - shared_bytes),
            unfenced: memory.unfenced.as_mut_ptr(),
            error: memory.error.as_mut_ptr().cast(),
            seed: task.seed,
            grid: task.launch.grid,
            threads: task.launch.threads,
            shared_bytes: task.launch.shared_bytes,
            blocks_count: blocks.len() as u32,
            error_bytes: ERROR_BYTES as u32,
        };
        // SAFETY: the task outlives what is told.
        let _told = unsafe {
            Told::new(Running {
                first_stack: memory.first_stack,
                threads: memory.threads,
                kernel: task.name,
            })
        };
        // SAFETY: all memory is as large as the launch needs, and this worker's alone; what the kernel does is as the caller says.
        let failed = unsafe { (task.run)(&mut work) } != 0;
        let result = if failed {
            let text = CStr::from_bytes_until_nul(&memory.error);
            Err(text.map_or_else(
                |error| error.to_string(),
                |text| text.to_string_lossy().into_owned(),
            ))
        } else {
            Ok(())
        };
        self.put(memory);
        result
    }
}

/// The order in which blocks begin.
fn order(grid: [u32; 3], seed: u64) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..grid.iter().product()).collect();
    if seed != 0 {
        let mut random = seed;
        for end in (1..blocks.len()).rev() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            blocks.swap(end, (random >> 33) as usize % (end + 1));
        }
    }
    blocks
}
