//! The shares of the processor's int8 peak, and where the time goes.

use std::path::Path;
use std::time::{Duration, Instant};

use trafficllm_kernels::Level;

use crate::Failure;
use crate::model_file::Format;
use crate::peak;
use crate::phases::{PHASES, Steps, Times};
use crate::shapes::{SHAPES, Shape};
use crate::workers::{Case, Own};

/// Largest shape that the portable kernels are asked to run.
const PORTABLE_SHAPE: &str = SHAPES[0].name;

pub(crate) fn report(
    models: &Path,
    shapes: &[Shape],
    levels: &[Level],
    rounds: usize,
) -> Result<(), Failure> {
    println!(
        "Medians of {rounds} rounds in turns; 32 prompts of 128 tokens, Q8_0, one thread (whole prefill also two).\n"
    );
    println!(
        "| shape | level | peak TOPS | products alone, of peak | prefill, all rows, of peak | tokens/s | pruned last layer, tokens/s | 2 threads |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut breakdowns = Vec::new();
    for shape in shapes {
        for &level in levels {
            if level == Level::Portable && shape.name != PORTABLE_SHAPE {
                continue;
            }
            breakdowns.push((shape, level, measure(models, shape, level, rounds)?));
        }
    }
    println!(
        "\nWhere the time goes, all rows through all layers, of the whole prefill measured beside it:\n"
    );
    for (shape, level, (times, whole)) in breakdowns {
        println!("{} on {}:", shape.name, level.name());
        for (phase, time) in PHASES.iter().zip(times) {
            println!("  {phase:<34}{:>6.1} %", 100.0 * time.as_secs_f64() / whole);
        }
        let sum: Duration = times.iter().sum();
        println!(
            "  {:<34}{:>6.1} %",
            "not in these steps",
            100.0 * (1.0 - sum.as_secs_f64() / whole)
        );
    }
    Ok(())
}

/// Prints a row of the table; gives back the phases' times and the seconds of the whole.
fn measure(
    models: &Path,
    shape: &Shape,
    level: Level,
    rounds: usize,
) -> Result<(Times, f64), Failure> {
    let load = |case, threads| Own::load(models, shape, Format::Q8_0, level, case, threads);
    let mut runs = [
        load(Case::AllRows, 1)?,
        load(Case::Prompts, 1)?,
        load(Case::Prompts, 2)?,
    ];
    let mut steps = Steps::new(*shape, level)?;
    let (mut seconds, mut products, mut peaks) =
        ([const { Vec::new() }; 3], Vec::new(), Vec::new());
    let mut times = [const { Vec::new() }; PHASES.len()];
    for round in 0..=rounds {
        let peak = peak::operations_per_second(level);
        let product = steps.products().as_secs_f64();
        let phases = steps.run();
        for (run, seconds) in runs.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            run.run()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        if round == 0 {
            // The first one warms up.
            seconds.iter_mut().for_each(Vec::clear);
            continue;
        }
        peaks.extend(peak);
        products.push(product);
        times
            .iter_mut()
            .zip(phases)
            .for_each(|(times, phase)| times.push(phase.as_secs_f64()));
    }
    let [all_rows, pruned, two_threads] = seconds.map(median);
    let tokens = Case::Prompts.tokens() as f64;
    let operations = 2.0 * shape.linear_weights() as f64 * tokens;
    let peak = peaks.into_iter().max_by(f64::total_cmp);
    let share = |seconds: f64| {
        peak.map_or_else(
            || "-".to_owned(),
            |peak| format!("{:.1} %", 100.0 * operations / seconds / peak),
        )
    };
    println!(
        "| {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} |",
        shape.name,
        level.name(),
        peak.map_or_else(|| "-".to_owned(), |peak| format!("{:.2}", peak / 1e12)),
        share(median(products)),
        share(all_rows),
        tokens / all_rows,
        tokens / pruned,
        tokens / two_threads
    );
    Ok((
        times.map(|times| Duration::from_secs_f64(median(times))),
        all_rows,
    ))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
