//! Small kernels that the tests of the emulator bring themselves.

use bytemuck::{Pod, Zeroable};
use trafficllm_kernels::cuda::{Address, DeviceError, KernelSource, Launch};

use crate::support::{self, Machine};

/// What all of them are given.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Given {
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) count: u32,
    pub(crate) step: u32,
}

pub(crate) fn source(text: &'static str) -> KernelSource {
    KernelSource::from_text("test.cu", text, "test", &[])
}

/// A kernel with that body: `from`, `to`, `thread`, `shared` and `arguments` are there.
macro_rules! own {
    ($body:expr) => {
        crate::own::source(concat!(
            "#include \"device.cuh\"\n",
            "struct Given { const uint32_t* from; uint32_t* to; uint32_t count; uint32_t step; };\n",
            "TLLM_KERNEL(test, Given) {\n",
            "[[maybe_unused]] const uint32_t* from = arguments.from;\n",
            "[[maybe_unused]] uint32_t* to = arguments.to;\n",
            "[[maybe_unused]] const uint32_t thread = tllm_thread();\n",
            "[[maybe_unused]] uint32_t* shared = (uint32_t*)tllm_shared();\n",
            $body,
            "\n}\n"
        ))
    };
}
pub(crate) use own;

pub(crate) fn block(threads: u32, shared_bytes: u32) -> Launch {
    Launch {
        grid: [1, 1, 1],
        threads,
        shared_bytes,
    }
}

/// Runs one block on the emulator, and gives what it wrote: as many words as `count` says.
pub(crate) fn run(
    source: &KernelSource,
    seed: u64,
    launch: Launch,
    from: &[u32],
    count: usize,
) -> Result<Vec<u32>, DeviceError> {
    run_on(&Machine::emulated(seed), source, launch, from, count)
}

/// The same on the device that kernels are tested on: what the emulator does has to be what devices do.
pub(crate) fn run_anywhere(
    source: &KernelSource,
    seed: u64,
    launch: Launch,
    from: &[u32],
    count: usize,
) -> Result<Vec<u32>, DeviceError> {
    let machine = Machine::new(support::device(seed));
    run_on(&machine, source, launch, from, count)
}

fn run_on(
    machine: &Machine,
    source: &KernelSource,
    launch: Launch,
    from: &[u32],
    count: usize,
) -> Result<Vec<u32>, DeviceError> {
    let to = machine.zeros::<u32>(count);
    let given = Given {
        from: machine.upload(from),
        to,
        count: count as u32,
        step: 0,
    };
    machine.try_launch(source, launch, &given)?;
    Ok(machine.download(to, count))
}

/// The text of what has to go wrong.
pub(crate) fn failure(
    source: &KernelSource,
    seed: u64,
    launch: Launch,
    from: &[u32],
    count: usize,
) -> String {
    match run(source, seed, launch, from, count) {
        Ok(_) => panic!("seed {seed}: nothing was found"),
        Err(error) => error.to_string(),
    }
}
