//! What the device can do at most, measured: see `kernels/ceilings.cu`.

use std::time::Instant;

use bytemuck::{Pod, Zeroable};
use serde_json::json;
use trafficllm_kernels::cuda::{Address, Device, DeviceError, KernelSource, Launch};

use crate::report::{Report, median};
use crate::{Failure, Scale};

const TEXT: &str = include_str!("../kernels/ceilings.cu");

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CeilingArguments {
    from: Address,
    to: Address,
    count: u64,
    iterations: u32,
    seed: u32,
}

/// In units a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceilings {
    /// Read and written.
    pub(crate) bytes: f64,
    /// Of products of bytes, by the fastest instruction that the device has.
    pub(crate) int8: f64,
    /// Of 16-bit floats.
    pub(crate) bf16: f64,
}

/// One ceiling: its number in the text, and what a launch of it does.
struct Case {
    name: &'static str,
    number: u32,
    launch: Launch,
    iterations: u32,
    /// Bytes or operations of one launch.
    work: f64,
}

/// Measures all that the device has, in turns, and keeps the best of each kind.
pub(crate) fn measure(
    device: &dyn Device,
    scale: Scale,
    rounds: usize,
    report: &mut Report,
) -> Result<Ceilings, Failure> {
    let facts = device.facts();
    let is_tiny = scale == Scale::Tiny;
    // Far more than any cache holds.
    let copied: u64 = if is_tiny { 1 << 16 } else { 2 << 30 };
    let quads = copied / 16;
    let blocks = if is_tiny { 1 } else { facts.multiprocessors };
    let iterations = if is_tiny { 2 } else { 1 << 14 };
    let one = |grid, threads, shared_bytes| Launch {
        grid: [grid, 1, 1],
        threads,
        shared_bytes,
    };
    // Four blocks of four warps fill the registers of a multiprocessor.
    let (mma_blocks, mma_threads) = (blocks * 4, 128);
    let warps = f64::from(mma_blocks * mma_threads / 32);
    let turns = f64::from(iterations);
    let mma = |number, name, depth: f64| Case {
        name,
        number,
        launch: one(mma_blocks, mma_threads, 0),
        iterations,
        work: 2.0 * 16.0 * 8.0 * depth * 16.0 * warps * turns,
    };
    let wgmma = |number, name, depth: f64| Case {
        name,
        number,
        launch: one(blocks, 256, 48 << 10),
        iterations,
        work: 2.0 * 64.0 * 256.0 * depth * 4.0 * 2.0 * f64::from(blocks) * turns,
    };
    let mut cases = vec![
        Case {
            name: "copy",
            number: 0,
            launch: one(quads.div_ceil(8 * 256) as u32, 256, 0),
            iterations: 0,
            work: 2.0 * copied as f64,
        },
        mma(1, "mma int8", 32.0),
        mma(2, "mma bf16", 16.0),
    ];
    if facts.capability == (9, 0) && !is_tiny {
        cases.push(wgmma(3, "wgmma int8", 32.0));
        cases.push(wgmma(4, "wgmma bf16", 16.0));
    }
    let from = device.allocate(copied as usize)?;
    let to = device.allocate(copied as usize)?;
    let speeds = run(device, (from, to), quads, &cases, rounds);
    // SAFETY: both came from `allocate`, and `run` has waited for what used them.
    unsafe {
        device.free(from);
        device.free(to);
    }
    let speeds = speeds?;
    let best = |kind: &str| {
        let of_kind = cases
            .iter()
            .zip(&speeds)
            .filter(|(case, _)| case.name.ends_with(kind));
        of_kind.map(|(_, &speed)| speed).fold(0.0, f64::max)
    };
    for (case, &speed) in cases.iter().zip(&speeds) {
        let key = if case.number == 0 {
            "gb_per_second"
        } else {
            "tera_operations_per_second"
        };
        let unit = if case.number == 0 { 1e9 } else { 1e12 };
        report.row(
            &format!("ceiling {}", case.name),
            json!({key: speed / unit}),
        )?;
    }
    Ok(Ceilings {
        bytes: best("copy"),
        int8: best("int8"),
        bf16: best("bf16"),
    })
}

fn run(
    device: &dyn Device,
    (from, to): (Address, Address),
    count: u64,
    cases: &[Case],
    rounds: usize,
) -> Result<Vec<f64>, DeviceError> {
    let mut kernels = Vec::new();
    for case in cases {
        let source = KernelSource::from_text(
            "ceilings.cu",
            TEXT,
            "ceiling",
            &[("TLLM_CEILING", case.number)],
        );
        kernels.push(device.kernel(&source)?);
    }
    let stream = device.make_stream()?;
    let mut times = vec![Vec::new(); cases.len()];
    let mut result = Ok(());
    // The first round warms up.
    'rounds: for round in 0..=rounds {
        for ((case, &kernel), times) in cases.iter().zip(&kernels).zip(&mut times) {
            let arguments = CeilingArguments {
                from,
                to,
                count,
                iterations: case.iterations,
                seed: round as u32 + 1,
            };
            let start = Instant::now();
            // SAFETY: the struct is the one of the text; the copy stays within `count` of both buffers, and the others write a word for
            // each thread, which is less than that: at most 4 * 128 or 256 threads for each multiprocessor.
            let launched = unsafe {
                device.launch(stream, kernel, case.launch, bytemuck::bytes_of(&arguments))
            };
            result = launched.and_then(|()| device.synchronize(stream));
            if result.is_err() {
                break 'rounds;
            }
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    device.end_stream(stream);
    result?;
    let speeds = cases
        .iter()
        .zip(&mut times)
        .map(|(case, times)| case.work / median(times));
    Ok(speeds.collect())
}
