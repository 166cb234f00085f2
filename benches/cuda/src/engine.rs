//! The whole engine from packed flows to verdicts, on the device and on the processor in turns: flows a second with more and more workers,
//! and the time of one flow by itself.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use trafficllm::{
    DeviceChoice, DeviceOptions, DeviceState, Engine, EngineOptions, Flow, Judgement, Model,
};
use trafficllm_kernels::cuda::Device;

use crate::report::{Report, median};
use crate::{Failure, Scale, flows};

/// Flows of a submitter under way at once: enough for several large batches.
const UNDER_WAY: usize = 8192;

struct Sizes {
    workers: &'static [usize],
    /// Flows of each submitter in a round.
    device_flows: usize,
    processor_flows: usize,
    single_flows: usize,
}

pub(crate) fn measure(
    device: &Arc<dyn Device>,
    captures: &Path,
    data: &Path,
    scale: Scale,
    rounds: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let sizes = match scale {
        Scale::Tiny => Sizes {
            workers: &[1],
            device_flows: 2,
            processor_flows: 4,
            single_flows: 1,
        },
        Scale::Full => Sizes {
            workers: &[1, 2, 4, 8],
            device_flows: 100_000,
            processor_flows: 2_000,
            single_flows: 200,
        },
    };
    let bundle = Model::default_bundle()?;
    let model = Arc::new(Model::load_for_device(
        &bundle,
        Model::level_from_environment()?,
    )?);
    let mut all = flows::of_data(&model, data)?;
    let source = if all.is_empty() {
        "recorded captures"
    } else {
        "val"
    };
    if all.is_empty() {
        all = flows::of_folder(&model, captures)?;
    }
    if all.is_empty() {
        return Err("no captures are there".into());
    }
    report.row("flows", json!({"source": source, "flows": all.len()}))?;
    let one: Vec<String> = model.task_names().take(1).map(str::to_owned).collect();
    for (tasks_name, tasks) in [("one task", one), ("all tasks", Vec::new())] {
        for &workers in sizes.workers {
            let places = [
                ("device", Some(device), sizes.device_flows),
                ("processor", None, sizes.processor_flows),
            ];
            let mut engines = Vec::new();
            for (place, device, count) in places {
                engines.push((
                    place,
                    start(&model, device, workers, &tasks)?,
                    count,
                    Vec::new(),
                ));
            }
            // The first round warms up.
            for round in 0..=rounds {
                for (_, engine, count, speeds) in &mut engines {
                    let speed = throughput(engine, &all, workers, *count)?;
                    if round > 0 {
                        speeds.push(speed);
                    }
                }
            }
            for (place, engine, _, speeds) in &mut engines {
                let counters = engine.counters();
                report.row(
                    &format!("{tasks_name}, {workers} workers, {place}"),
                    json!({
                        "flows_per_second": median(speeds),
                        "device_batches": counters.device_batches,
                        "device_failures": counters.device_failures,
                    }),
                )?;
                if *place == "device"
                    && (counters.device_batches == 0 || counters.device_failures > 0)
                {
                    return Err("the device did not run all batches".into());
                }
            }
        }
        for (place, device) in [("device", Some(device)), ("processor", None)] {
            let engine = start(&model, device, 0, &tasks)?;
            let mut times = single(&engine, &all, sizes.single_flows)?;
            report.row(
                &format!("{tasks_name}, one flow by itself, {place}"),
                json!({"microseconds": median(&mut times) * 1e6}),
            )?;
        }
    }
    Ok(())
}

fn start(
    model: &Arc<Model>,
    device: Option<&Arc<dyn Device>>,
    workers: usize,
    tasks: &[String],
) -> Result<Engine, Failure> {
    let options = EngineOptions {
        workers,
        tasks: tasks.to_vec(),
        queue_flows: UNDER_WAY,
        device: DeviceOptions {
            choice: device.map_or(DeviceChoice::Cpu, |_| DeviceChoice::Cuda(0)),
            given: device.cloned(),
            ..DeviceOptions::default()
        },
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::clone(model), options)?;
    engine.start()?;
    let state = engine.device_status().state;
    let expected = if device.is_some() {
        DeviceState::Active
    } else {
        DeviceState::Cpu
    };
    if state == expected {
        Ok(engine)
    } else {
        Err(format!("the device is {}", state.name()).into())
    }
}

/// Flows a second, from as many submitters as workers: each packs its flows into tokens, too.
fn throughput(
    engine: &Engine,
    flows: &[Flow],
    submitters: usize,
    count: usize,
) -> Result<f64, Failure> {
    let under_way = UNDER_WAY / submitters;
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..submitters)
            .map(|number| {
                scope.spawn(move || -> Result<(), String> {
                    let mut submitter = engine.submitter().map_err(|error| error.to_string())?;
                    let mut rest = flows
                        .iter()
                        .cycle()
                        .skip(number * 97)
                        .take(count)
                        .peekable();
                    let mut done = 0;
                    let mut is_judged = true;
                    while done < count {
                        while let Some(flow) = rest.next_if(|_| submitter.in_flight() < under_way) {
                            submitter
                                .submit(flow, 0)
                                .map_err(|error| format!("{error:?}"))?;
                        }
                        done += submitter.wait(Duration::from_secs(1), |answer| {
                            is_judged &= matches!(answer.judgement, Judgement::Verdicts(_));
                        });
                    }
                    if is_judged {
                        Ok(())
                    } else {
                        Err("a flow without a verdict".to_owned())
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| "a submitter stopped".to_owned())?
        })
    })?;
    Ok((submitters * count) as f64 / start.elapsed().as_secs_f64())
}

/// Seconds of each flow from its submission to its verdict, on this thread.
fn single(engine: &Engine, flows: &[Flow], count: usize) -> Result<Vec<f64>, Failure> {
    let mut submitter = engine.submitter()?;
    let mut times = Vec::new();
    for (at, flow) in flows.iter().cycle().take(count + count.min(20)).enumerate() {
        let start = Instant::now();
        submitter
            .submit(flow, 0)
            .map_err(|error| format!("{error:?}"))?;
        engine.run_pending();
        let mut answered = 0;
        while answered == 0 {
            answered = submitter.poll(|_| ());
        }
        // The first ones warm up.
        if at >= count.min(20) {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}
