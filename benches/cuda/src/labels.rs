//! Labels of the device beside the processor's, for every flow and every task of the default bundle. Attention has 16-bit floats on the
//! device, so what nearly ties may come out otherwise: each label that differs is shown with how far apart the processor has the two.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use trafficllm::Flow;
use trafficllm_kernels::cuda::Device;
use trafficllm_model::{DeviceModel, DeviceOptions, Insight, Item, Model, Scratch, TaskVerdict};
use trafficllm_traffic::token::EncodeScratch;

use crate::report::Report;
use crate::{Failure, Scale, flows};

/// Labels whose probabilities are nearer than this tie.
const TIE: f32 = 0.02;
const BATCH: usize = 64;

/// Counts of one source.
#[derive(Default)]
struct Found {
    flows: usize,
    verdicts: usize,
    differ: usize,
    not_ties: usize,
    largest_margin: f32,
    largest_score_difference: f32,
}

/// Whether all labels agree but for ties.
pub(crate) fn check(
    device: &Arc<dyn Device>,
    captures: &Path,
    data: &Path,
    scale: Scale,
    report: &mut Report,
) -> Result<bool, Failure> {
    let bundle = trafficllm::Model::default_bundle()?;
    let level = trafficllm::Model::level_from_environment()?;
    let whole = trafficllm::Model::load(&bundle, level)?;
    let model = Model::load_for_device(&bundle, level)?;
    let device_model = Arc::new(DeviceModel::new(
        &model,
        Arc::clone(device),
        DeviceOptions::default(),
    )?);
    let tokens = BATCH * model.item_tokens_max().min(256);
    let mut on_device = Scratch::default();
    on_device.attach(device_model.lane(tokens, BATCH)?);
    let mut is_good = true;
    for (name, mut all) in [
        ("recorded captures", flows::of_folder(&whole, captures)?),
        ("val", flows::of_data(&whole, data)?),
    ] {
        if scale == Scale::Tiny {
            all.truncate(3);
        }
        if all.is_empty() {
            report.left_out(name, "no capture is there")?;
            continue;
        }
        let found = compare(&whole, &model, &all, &mut on_device)?;
        is_good &= found.not_ties == 0;
        report.row(
            name,
            json!({
                "flows": found.flows,
                "labels": found.verdicts,
                "differ": found.differ,
                "differ_and_no_tie": found.not_ties,
                "largest_margin": found.largest_margin,
                "largest_score_difference": found.largest_score_difference,
            }),
        )?;
    }
    Ok(is_good)
}

fn compare(
    whole: &trafficllm::Model,
    model: &Model,
    all: &[Flow],
    on_device: &mut Scratch,
) -> Result<Found, Failure> {
    let tasks: Vec<usize> = (0..model.tasks().len()).collect();
    let mut encode = EncodeScratch::default();
    let mut on_processor = Scratch::default();
    let (mut theirs, mut ours) = (Insight::new(false, true), Insight::new(false, true));
    let (mut expected, mut verdicts): (Vec<TaskVerdict>, Vec<TaskVerdict>) =
        (Vec::new(), Vec::new());
    let mut found = Found::default();
    for flows in all.chunks(BATCH) {
        let mut tokens = vec![Vec::new(); flows.len()];
        for (flow, tokens) in flows.iter().zip(&mut tokens) {
            whole.encoder().encode_flow(flow, &mut encode, tokens);
        }
        let items: Vec<Item<'_>> = tokens
            .iter()
            .filter(|tokens| !tokens.is_empty())
            .map(|tokens| Item {
                tokens,
                tasks: &tasks,
            })
            .collect();
        model.classify_with(&items, &mut on_processor, &mut expected, &mut theirs)?;
        model.classify_with(&items, on_device, &mut verdicts, &mut ours)?;
        if let Some(error) = on_device.take_device_error() {
            return Err(error.into());
        }
        if !on_device.used_device() || expected.len() != verdicts.len() {
            return Err("the device was not used".into());
        }
        found.flows += items.len();
        found.verdicts += verdicts.len();
        for (at, (expected, verdict)) in expected.iter().zip(&verdicts).enumerate() {
            if expected.label == verdict.label {
                let difference = (expected.score - verdict.score).abs();
                found.largest_score_difference = found.largest_score_difference.max(difference);
                continue;
            }
            // Of labels of several words only the ways to the best are known: the difference of these.
            let scores = theirs.scores(at);
            let other = scores
                .get(verdict.label as usize)
                .copied()
                .unwrap_or(verdict.score);
            let margin = (expected.score - other).abs();
            found.differ += 1;
            found.not_ties += usize::from(margin.is_nan() || margin > TIE);
            found.largest_margin = found.largest_margin.max(margin);
        }
    }
    Ok(found)
}
