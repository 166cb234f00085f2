//! Labels a second of a large llama of random weights: flows that share their beginning, in batches and one by one, beside other engines
//! in turns. A flow's last own row is the query row, so that all run the same number of rows.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use trafficllm_kernels::cuda::Device;
use trafficllm_model::transformer::{
    DeviceBase, DeviceBeginning, DeviceQuery, DeviceSequence, DeviceTask, DeviceTransformer,
    LaneSizes, TaskPrefix, TransformerLane,
};
use trafficllm_model::{DeviceOptions, LabelTrie};

use crate::ceilings::Ceilings;
use crate::random::{Format, Random};
use crate::report::{Report, median};
use crate::shapes::Shape;
use crate::worker::Worker;
use crate::{Failure, Scale};

/// The engine that this is about, with weights of one format.
struct Own {
    name: String,
    lane: TransformerLane,
    beginning: DeviceBeginning,
    shape: Shape,
}

impl Own {
    fn load(
        device: &Arc<dyn Device>,
        shape: &Shape,
        format: Format,
        flows_max: usize,
    ) -> Result<Self, Failure> {
        let mut random = Random::new(17);
        let config = shape.config();
        let token_embedding = random.matrix(format, shape.vocabulary, shape.hidden);
        let norm = vec![1.0; shape.hidden];
        let paths: Vec<Vec<u32>> = (0..shape.labels as u32).map(|word| vec![word]).collect();
        let trie = LabelTrie::new("labels", &paths, shape.labels)?;
        let query_embedding = random.floats(shape.hidden);
        let label_weight = random.floats(shape.labels * shape.hidden);
        let task = DeviceTask {
            prefix: &TaskPrefix::default(),
            query_embedding: &query_embedding,
            label_embedding: &[],
            lora: None,
            trie: &trie,
            temperature: 1.0,
            label_weight: &label_weight,
        };
        let base = DeviceBase {
            config: &config,
            token_embedding: &token_embedding,
            output_norm: &norm,
        };
        let layers = (0..shape.layers).map(|_| random.layer(format, shape));
        let model = DeviceTransformer::new(
            Arc::clone(device),
            base,
            layers,
            &[task],
            DeviceOptions::default(),
        )?;
        let sizes = LaneSizes {
            tokens: flows_max * shape.tokens,
            query_rows: flows_max,
            queries: flows_max,
            sequences: flows_max,
            beginning_tokens: shape.shared_tokens,
        };
        let mut lane = TransformerLane::new(&Arc::new(model), &sizes)?;
        let shared = Random::new(5).below(shape.shared_tokens, shape.vocabulary);
        let beginning = lane.begin(&shared)?;
        Ok(Self {
            name: format!("own {}", format.name()),
            lane,
            beginning,
            shape: shape.clone(),
        })
    }

    /// Seconds from the flows' tokens to their labels.
    fn measure(&mut self, case: Case) -> Result<f64, Failure> {
        let rows = self.shape.tokens
            - if case.is_shared {
                self.shape.shared_tokens
            } else {
                0
            };
        let tokens =
            Random::new(case.flows as u64).below(case.flows * (rows - 1), self.shape.vocabulary);
        let queries = [DeviceQuery {
            task: 0,
            words: &[],
            node: LabelTrie::ROOT,
        }];
        let sequences: Vec<DeviceSequence<'_>> = tokens
            .chunks(rows - 1)
            .map(|tokens| DeviceSequence {
                tokens,
                queries: &queries,
            })
            .collect();
        let beginning = case.is_shared.then_some(&self.beginning);
        let mut labels = 0;
        let mut broken = 0;
        let start = Instant::now();
        self.lane.forward(&sequences, beginning, false, |decided| {
            labels += 1;
            let sum: f32 = decided.probabilities.iter().sum();
            broken += usize::from((sum - 1.0).abs() > 1e-3);
        })?;
        let seconds = start.elapsed().as_secs_f64();
        if labels != case.flows || broken > 0 {
            return Err(format!(
                "{labels} labels of {} flows, {broken} without probabilities",
                case.flows
            )
            .into());
        }
        Ok(seconds)
    }
}

#[derive(Clone, Copy)]
struct Case {
    is_shared: bool,
    flows: usize,
}

impl Case {
    fn name(self) -> &'static str {
        if self.is_shared { "shared" } else { "whole" }
    }
}

enum Contender {
    Own(Box<Own>),
    Other(Worker),
}

impl Contender {
    fn name(&self) -> String {
        match self {
            Self::Own(own) => own.name.clone(),
            Self::Other(worker) => worker.engine.clone(),
        }
    }

    fn measure(&mut self, case: Case) -> Result<(f64, String), Failure> {
        match self {
            Self::Own(own) => Ok((own.measure(case)?, String::new())),
            Self::Other(worker) => worker.measure(case.name(), case.flows),
        }
    }
}

pub(crate) fn measure(
    device: &Arc<dyn Device>,
    scale: Scale,
    workers: &[String],
    ceilings: Ceilings,
    rounds: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let is_tiny = scale == Scale::Tiny;
    let shape = if is_tiny {
        Shape::tiny()
    } else {
        Shape::llama_7b()
    };
    let counts: &[usize] = if is_tiny { &[1, 2] } else { &[1, 32, 128] };
    let flows_max = counts.iter().copied().max().unwrap_or(1);
    let mut contenders = Vec::new();
    for format in Format::ALL {
        let own = Own::load(device, &shape, format, flows_max)?;
        contenders.push(Contender::Own(Box::new(own)));
    }
    for command in workers {
        match Worker::start(command, &shape) {
            Ok(worker) => contenders.push(Contender::Other(worker)),
            Err(error) => report.left_out(command, error)?,
        }
    }
    for is_shared in [true, false] {
        for &flows in counts {
            compare(
                &mut contenders,
                &shape,
                Case { is_shared, flows },
                ceilings,
                rounds,
                report,
            )?;
        }
    }
    Ok(())
}

fn compare(
    contenders: &mut [Contender],
    shape: &Shape,
    case: Case,
    ceilings: Ceilings,
    rounds: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut times = vec![Vec::new(); contenders.len()];
    let mut settings = vec![String::new(); contenders.len()];
    let mut failed = vec![None; contenders.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for (at, contender) in contenders.iter_mut().enumerate() {
            if failed[at].is_some() {
                continue;
            }
            match contender.measure(case) {
                Ok((seconds, setting)) => {
                    settings[at] = setting;
                    if round > 0 {
                        times[at].push(seconds);
                    }
                }
                Err(error) => failed[at] = Some(error.to_string()),
            }
        }
    }
    // What runs every row of every flow, and all of the shared ones again where nothing is shared.
    let mut counted = shape.clone();
    if !case.is_shared {
        counted.shared_tokens = 0;
    }
    let operations = counted.flow_operations() * case.flows as f64;
    for (at, contender) in contenders.iter().enumerate() {
        let name = format!("{} {} flows, {}", case.name(), case.flows, contender.name());
        if let Some(error) = failed[at].take() {
            report.left_out(&name, error)?;
            if matches!(contender, Contender::Own(_)) {
                return Err(format!("{name} failed").into());
            }
            continue;
        }
        let seconds = median(&mut times[at]);
        let peak = if matches!(contender, Contender::Own(_)) {
            ceilings.int8
        } else {
            ceilings.bf16
        };
        report.row(
            &name,
            json!({
                "case": case.name(),
                "flows": case.flows,
                "engine": contender.name(),
                "setting": settings[at],
                "milliseconds": seconds * 1e3,
                "labels_per_second": case.flows as f64 / seconds,
                "share_of_peak": operations / seconds / peak,
            }),
        )?;
    }
    Ok(())
}
