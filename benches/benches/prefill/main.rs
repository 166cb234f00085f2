//! Prefill beside other engines, on random-weight models of about 10M, 135M and 0.5B parameters.
//!
//! `cargo bench -p trafficllm-benches --bench prefill` prints what this engine reaches of the processor's int8 peak and where its
//! time goes. `benches/compare.py` runs the same program as one of its workers, beside llama.cpp, OpenVINO and ONNX Runtime.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    reason = "a bench prints its figures; the loops that measure the processor's peak are instructions that Rust has no safe words for"
)]

mod model_file;
mod peak;
mod phases;
mod report;
mod shapes;
mod workers;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use trafficllm_kernels::Level;

use model_file::Format;
use shapes::{SHAPES, Shape};
use workers::{Candle, Case, Own};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where the models are kept.
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache/prefill-models"))]
    models: PathBuf,
    /// Given by `cargo bench`; without it (`cargo test --benches`) one small round shows that the bench works.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the peak, the products' and the whole prefill's share of it, and where the time goes.
    Report {
        /// Shapes, of 10M, 135M, 0.5B.
        #[arg(long, value_delimiter = ',', default_value = "10M,135M")]
        shapes: Vec<String>,
        /// Levels of kernels; all that this processor has, if absent, but the portable ones on the smallest shape only.
        #[arg(long, value_delimiter = ',')]
        levels: Vec<String>,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Prints the levels that this processor has, fastest first.
    Levels,
    /// Prints the shapes as JSON, one a line.
    Shapes,
    /// Writes a model's file if it is not there and prints its path.
    Model {
        #[arg(long)]
        shape: String,
        #[arg(long)]
        format: Format,
    },
    /// Answers each line of standard input with the seconds of one run.
    Worker {
        #[arg(long)]
        engine: EngineName,
        #[arg(long)]
        shape: String,
        #[arg(long)]
        format: Format,
        #[arg(long)]
        case: Case,
        #[arg(long)]
        level: Option<String>,
        #[arg(long, default_value_t = 1)]
        threads: usize,
        /// For candle: how many prompts a run has.
        #[arg(long, default_value_t = shapes::PROMPTS)]
        prompts: usize,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineName {
    Own,
    /// Its threads are those of `RAYON_NUM_THREADS`.
    Candle,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("prefill: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let models = &arguments.models;
    match &arguments.command {
        None => {
            let (shapes, rounds) = if arguments.bench {
                (&SHAPES[..2], 5)
            } else {
                (&SHAPES[..1], 1)
            };
            report::report(models, shapes, &available(&[])?, rounds)
        }
        Some(Command::Report {
            shapes,
            levels,
            rounds,
        }) => {
            let shapes: Vec<Shape> = shapes
                .iter()
                .map(|name| shape(name))
                .collect::<Result<_, _>>()?;
            report::report(models, &shapes, &available(levels)?, *rounds)
        }
        Some(Command::Levels) => {
            available(&[])?
                .iter()
                .for_each(|level| println!("{}", level.name()));
            Ok(())
        }
        Some(Command::Shapes) => {
            SHAPES.iter().for_each(print_shape);
            Ok(())
        }
        Some(Command::Model {
            shape: name,
            format,
        }) => {
            println!(
                "{}",
                model_file::cached(models, &shape(name)?, *format)?.display()
            );
            Ok(())
        }
        Some(Command::Worker {
            engine,
            shape: name,
            format,
            case,
            level,
            threads,
            prompts,
        }) => {
            let shape = shape(name)?;
            match engine {
                EngineName::Own => {
                    let level = Level::select(level.as_deref())?;
                    let mut own = Own::load(models, &shape, *format, level, *case, *threads)?;
                    workers::serve(|| own.run())
                }
                EngineName::Candle => {
                    let path = model_file::cached(models, &shape, *format)?;
                    let mut candle = Candle::load(&path, &shape, *case, *prompts)?;
                    workers::serve(|| candle.run())
                }
            }
        }
    }
}

fn shape(name: &str) -> Result<Shape, Failure> {
    let found = SHAPES.iter().find(|shape| shape.name == name);
    found
        .copied()
        .ok_or_else(|| format!("no shape {name}; there are 10M, 135M and 0.5B").into())
}

fn print_shape(shape: &Shape) {
    println!(
        r#"{{"name": "{}", "vocabulary": {}, "hidden": {}, "layers": {}, "heads": {}, "kv_heads": {}, "feed_forward": {}, "linear_weights": {}, "weights": {}}}"#,
        shape.name,
        shape.vocabulary,
        shape.hidden,
        shape.layers,
        shape.heads(),
        shape.kv_heads,
        shape.feed_forward,
        shape.linear_weights(),
        shape.weights()
    );
}

/// The levels of those names, or all that this processor has, fastest first.
fn available(names: &[String]) -> Result<Vec<Level>, Failure> {
    if names.is_empty() {
        let mut levels: Vec<Level> = Level::all_available().collect();
        levels.reverse();
        return Ok(levels);
    }
    names
        .iter()
        .map(|name| Ok(Level::from_name(name)?))
        .collect()
}
