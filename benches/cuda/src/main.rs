//! Checks and measures on a device: what it can do at most, each kernel beside that, the engine from flows to verdicts, and a large llama
//! beside other engines. `tests/cuda_measure.sh` runs it.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench prints its figures; the loops that measure what the device can do are kernels of its own, launched by hand"
)]

mod ceilings;
mod engine;
mod flows;
mod labels;
mod lists;
mod random;
mod report;
mod roofline;
mod seven;
mod shapes;
mod timing;
mod worker;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use serde_json::json;
use trafficllm::DeviceChoice;
use trafficllm_kernels::cuda::{Device, OpenOptions, open};

use report::Report;
use shapes::Shape;

type Failure = Box<dyn Error + Send + Sync>;

/// How much work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Full,
    /// Shows that everything runs; the figures mean nothing.
    Tiny,
}

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
    /// `cuda:N`, or `emulated` where this was built with that feature.
    #[arg(long, global = true, default_value = "cuda:0")]
    device: String,
    /// Sizes for an emulator.
    #[arg(long, global = true)]
    tiny: bool,
    /// Measurements of each thing; medians count.
    #[arg(long, global = true, default_value_t = 7)]
    rounds: usize,
    /// Where lines of JSON are appended.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// A folder of captures.
    #[arg(long, global = true, default_value = "tests/captures")]
    captures: PathBuf,
    /// The folder of the tasks' data; without it captures take its place.
    #[arg(long, global = true, default_value = "../shared/data")]
    data: PathBuf,
}

#[derive(Subcommand)]
enum Part {
    /// Holds the device's labels to the processor's.
    Labels,
    /// Times each kernel beside its floor.
    Roofline,
    /// Times the engine, from flows to verdicts.
    Engine,
    /// Times a llama of 7 billion parameters.
    Seven {
        /// Commands of other engines' programs; each is given the shape as its last argument.
        #[arg(long = "worker")]
        workers: Vec<String>,
    },
}

fn device(name: &str) -> Result<Arc<dyn Device>, Failure> {
    #[cfg(feature = "emulated")]
    if name == "emulated" {
        let options = trafficllm_cuda_emulator::Options::default();
        return Ok(trafficllm_cuda_emulator::EmulatedDevice::new(&options));
    }
    let Some(DeviceChoice::Cuda(ordinal)) = DeviceChoice::parse(name) else {
        return Err(format!("{name}: expected cuda:N").into());
    };
    let options = OpenOptions {
        ordinal: Some(ordinal),
        ..OpenOptions::default()
    };
    Ok(open(&options)?)
}

/// Whether all that was checked is as it should be.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let (captures, data, rounds) = (&arguments.captures, &arguments.data, arguments.rounds);
    let scale = if arguments.tiny {
        Scale::Tiny
    } else {
        Scale::Full
    };
    let name = match &arguments.part {
        Part::Labels => "labels",
        Part::Roofline => "roofline",
        Part::Engine => "engine",
        Part::Seven { .. } => "seven",
    };
    let mut report = Report::new(name, arguments.json.as_deref())?;
    let device = device(&arguments.device)?;
    let facts = device.facts();
    let capability = format!("{}.{}", facts.capability.0, facts.capability.1);
    report.row(
        "device",
        json!({"device": facts.name, "capability": capability, "multiprocessors": facts.multiprocessors}),
    )?;
    let mut is_good = true;
    match &arguments.part {
        Part::Labels => is_good = labels::check(&device, captures, data, scale, &mut report)?,
        Part::Engine => engine::measure(&device, captures, data, scale, rounds, &mut report)?,
        Part::Roofline => {
            let ceilings = ceilings::measure(&*device, scale, rounds, &mut report)?;
            let shapes = if scale == Scale::Tiny {
                vec![Shape::tiny()]
            } else {
                let bundle = trafficllm::Model::default_bundle()?;
                let level = trafficllm::Model::level_from_environment()?;
                let model = trafficllm_model::Model::load(&bundle, level)?;
                vec![Shape::of("default", model.config()), Shape::llama_7b()]
            };
            for shape in &shapes {
                roofline::measure(&device, shape, scale, ceilings, rounds, &mut report)?;
            }
        }
        Part::Seven { workers } => {
            let ceilings = ceilings::measure(&*device, scale, rounds, &mut report)?;
            seven::measure(&device, scale, workers, ceilings, rounds, &mut report)?;
        }
    }
    report.row("done", json!({}))?;
    Ok(is_good)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
