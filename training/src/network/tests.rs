use std::collections::BTreeMap;
use std::ops::Range;

mod adapters;

use super::layout::{TOKEN_TABLE, normal};
use super::*;
use crate::ops;
use crate::optimiser::{AdamW, AdamWConfig};
use crate::random::Random;

fn config() -> NetworkConfig {
    NetworkConfig {
        vocabulary: 37,
        hidden: 24,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        feed_forward: 20,
        prefix_tokens: 3,
        query_tokens: 2,
        lora_rank: 0,
        scales: vec![],
        task_labels: vec![3, 5],
        norm_epsilon: 1e-5,
        rotary_base: 10000.0,
    }
}

/// A shard of flows of different lengths; the label of task 0 can be seen in the tokens.
fn shard(config: &NetworkConfig, lengths: &[usize], seed: u64) -> ShardBatch {
    let mut random = Random::new(seed);
    let mut shard = ShardBatch::default();
    for (index, &flow_rows) in lengths.iter().enumerate() {
        let label = random.below(3) as u32;
        let mut tokens: Vec<u32> = (0..flow_rows)
            .map(|_| random.below(config.vocabulary) as u32)
            .collect();
        tokens[random.below(flow_rows)] = label;
        shard.targets.extend(tokens[1..].iter().copied().chain([0]));
        shard.target_weights.extend((1..=flow_rows).map(|row| {
            if row < flow_rows {
                0.5 + row as f32
            } else {
                0.0
            }
        }));
        shard.tokens.extend(tokens);
        let task = if config.task_labels.is_empty() {
            None
        } else {
            [Some(0), Some(1), None][index % 3]
        };
        shard.sequences.push(Sequence {
            flow_rows,
            task,
            label,
            weight: 1.0 + index as f32,
        });
    }
    shard
}

/// Small initial values make for gradients that say little; this spreads them.
fn spread(network: &Network) {
    let mut random = Random::new(77);
    for parameter in &network.parameters {
        let values: Vec<f32> = (0..parameter.var.elem_count())
            .map(|_| (normal(&mut random) * 0.3) as f32)
            .collect();
        let values = Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu).unwrap();
        let start = if parameter.name.ends_with("norm.weight") {
            1.0
        } else {
            0.0
        };
        parameter.var.set(&(values + start).unwrap()).unwrap();
    }
}

fn largest(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn gradients_are_those_of_stock_candle() {
    let with_tasks = config();
    let without_prefix = NetworkConfig {
        prefix_tokens: 0,
        query_tokens: 1,
        ..config()
    };
    let base_only = NetworkConfig {
        task_labels: vec![],
        ..config()
    };
    let with_lora = NetworkConfig {
        lora_rank: 4,
        ..config()
    };
    let one_query_row = NetworkConfig {
        query_tokens: 1,
        prefix_tokens: 0,
        ..with_lora.clone()
    };
    for config in [
        with_tasks,
        without_prefix,
        base_only,
        with_lora,
        one_query_row,
    ] {
        for token in [0.0, 0.25] {
            if token == 0.0 && config.task_labels.is_empty() {
                continue;
            }
            let network = Network::new(config.clone(), 5).unwrap();
            spread(&network);
            let batch = shard(&config, &[9, 30, 1, 17, 18], 3);
            let scales = LossScales {
                label: 0.5,
                token,
                label_smoothing: 0.1,
            };
            let (loss, statistics) = network.loss(&batch, &scales).unwrap();
            let loss = loss.unwrap();
            let reference = network.reference_loss(&batch, &scales).unwrap();
            let (found, want) = (
                loss.to_scalar::<f32>().unwrap(),
                reference.to_scalar::<f32>().unwrap(),
            );
            assert!(
                (found - want).abs() < 1e-4 * want.abs(),
                "loss {found}, expected {want}"
            );
            let parts = 0.5 * statistics.label_loss + f64::from(token) * statistics.token_loss;
            assert!(
                (parts - f64::from(want)).abs() < 1e-4 * parts.abs(),
                "parts {parts}, expected {want}"
            );
            let (own, reference) = (loss.backward().unwrap(), reference.backward().unwrap());
            for parameter in &network.parameters {
                let values = |store: &candle_core::backprop::GradStore| match store
                    .get(parameter.var.as_tensor())
                {
                    Some(gradient) => gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                    None => vec![0.0; parameter.var.elem_count()],
                };
                let (own, want) = (values(&own), values(&reference));
                let scale = largest(&want);
                assert!(
                    scale > 0.0 || parameter.name == "label.weight" || largest(&own) == 0.0,
                    "{}",
                    parameter.name
                );
                for (index, (own, want)) in own.iter().zip(&want).enumerate() {
                    let name = &parameter.name;
                    assert!(
                        (own - want).abs() <= 2e-4 * scale,
                        "{name}[{index}]: {own}, expected {want} (largest {scale})"
                    );
                }
            }
        }
    }
}

#[test]
fn skipping_rows_of_the_last_layer_changes_no_label() {
    let config = config();
    let network = Network::new(config.clone(), 5).unwrap();
    spread(&network);
    let batch = shard(&config, &[9, 30, 1, 17], 3);
    let all_rows = network.evaluate(&batch).unwrap();
    let label_rows = network
        .evaluate(&ShardBatch {
            targets: vec![],
            target_weights: vec![],
            ..batch.clone()
        })
        .unwrap();
    assert_eq!(all_rows.label_correct, label_rows.label_correct);
    assert!((all_rows.label_loss - label_rows.label_loss).abs() < 1e-5);
    assert!(all_rows.token_loss > 0.0 && label_rows.token_loss == 0.0);
    let logits = network.label_logits(&batch).unwrap();
    assert_eq!(
        logits.iter().map(Vec::len).collect::<Vec<_>>(),
        [3, 5, 0, 3]
    );
    let alone = ShardBatch {
        tokens: batch.tokens[9..39].to_vec(),
        sequences: vec![batch.sequences[1].clone()],
        ..ShardBatch::default()
    };
    let alone = network.label_logits(&alone).unwrap();
    for (packed, alone) in logits[1].iter().zip(&alone[0]) {
        assert!(
            (packed - alone).abs() < 1e-5,
            "{packed} in a batch, {alone} alone"
        );
    }
}

fn train(steps: usize, precision: Precision) -> (Vec<f64>, Network, AdamW) {
    let config = NetworkConfig {
        task_labels: vec![3],
        ..config()
    };
    let mut network = Network::new(config.clone(), 9).unwrap();
    network.set_precision(precision);
    let mut optimiser = AdamW::new(AdamWConfig {
        average_decay: Some(0.9),
        ..AdamWConfig::default()
    });
    let losses = (0..steps)
        .map(|step| {
            let mut shards = [
                shard(&config, &[12; 24], step as u64),
                shard(&config, &[7; 24], 1000 + step as u64),
            ];
            for sequence in shards.iter_mut().flat_map(|shard| &mut shard.sequences) {
                sequence.task = Some(0);
                sequence.weight = 1.0;
            }
            let objective = Objective {
                lm_weight: 0.1,
                label_smoothing: 0.0,
            };
            network
                .train_step(&shards, &objective, &mut optimiser, 1e-2)
                .unwrap()
                .statistics
                .mean_label_loss()
        })
        .collect();
    (losses, network, optimiser)
}

#[test]
fn training_is_deterministic_and_learns() {
    let (losses, network, optimiser) = train(60, Precision::Full);
    let (again, same, _) = train(60, Precision::Full);
    let bits = |losses: &[f64]| losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&losses), bits(&again));
    for (one, other) in network.parameters.iter().zip(&same.parameters) {
        assert_eq!(
            one.values().unwrap(),
            other.values().unwrap(),
            "{}",
            one.name
        );
    }
    let (first, last) = (losses[0], losses[50..].iter().sum::<f64>() / 10.0);
    assert!(
        first > 0.9 && last < 0.5 * first,
        "label loss {first} at first, {last} at the end"
    );
    let mut batch = shard(network.config(), &[12; 30], 99_999);
    batch
        .sequences
        .iter_mut()
        .for_each(|sequence| sequence.task = Some(0));
    let averaged = network.averaged(&optimiser).unwrap();
    let (last, averaged) = (
        network.evaluate(&batch).unwrap(),
        averaged.evaluate(&batch).unwrap(),
    );
    assert_ne!(last.label_loss, averaged.label_loss);
    assert!(averaged.mean_label_loss() < 0.8 * first);
    let (mixed, _, _) = train(60, Precision::Mixed);
    let mixed = mixed[50..].iter().sum::<f64>() / 10.0;
    assert!(
        mixed < 0.5 * first,
        "label loss {first} at first, {mixed} at the end in mixed precision"
    );
}

#[test]
fn a_checkpoint_continues_bit_for_bit() {
    let folder = std::env::temp_dir().join(format!("trafficllm-checkpoint-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("state.safetensors");
    let (_, mut network, mut optimiser) = train(3, Precision::Full);
    let metadata = BTreeMap::from([
        ("phase".to_owned(), "tune".to_owned()),
        ("seed".to_owned(), "9".to_owned()),
    ]);
    network.save(&path, Some(&optimiser), &metadata).unwrap();
    let first_bytes = std::fs::read(&path).unwrap();
    let mut restored = Network::load(&path).unwrap();
    assert_eq!(restored.metadata, metadata);
    let mut restored_optimiser = restored.optimiser.take().unwrap();
    assert_eq!(restored_optimiser, optimiser);
    restored
        .network
        .save(&path, Some(&restored_optimiser), &metadata)
        .unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        first_bytes,
        "saving what was loaded gives the same bytes"
    );
    let objective = Objective {
        lm_weight: 0.3,
        label_smoothing: 0.0,
    };
    let mut batch = [shard(network.config(), &[8, 5], 1)];
    batch[0]
        .sequences
        .iter_mut()
        .for_each(|sequence| sequence.task = Some(0));
    let one = network
        .train_step(&batch, &objective, &mut optimiser, 1e-3)
        .unwrap();
    let other = restored
        .network
        .train_step(&batch, &objective, &mut restored_optimiser, 1e-3)
        .unwrap();
    assert_eq!(one, other);

    let mut broken = first_bytes.clone();
    broken.truncate(first_bytes.len() - 5);
    std::fs::write(&path, &broken).unwrap();
    assert!(matches!(
        Network::load(&path),
        Err(NetworkError::Checkpoint { .. })
    ));
    std::fs::write(
        &path,
        String::from_utf8_lossy(&first_bytes[8..200]).as_bytes(),
    )
    .unwrap();
    assert!(matches!(
        Network::load(&path),
        Err(NetworkError::Checkpoint { .. })
    ));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn only_what_is_trainable_changes() {
    let config = NetworkConfig {
        lora_rank: 2,
        ..config()
    };
    for trainable in [Trainable::ADAPTERS, Trainable::BASE, Trainable::ALL] {
        let mut network = Network::new(config.clone(), 2).unwrap();
        spread(&network);
        let before: Vec<Vec<f32>> = network
            .parameters
            .iter()
            .map(|parameter| parameter.values().unwrap())
            .collect();
        network.set_trainable(trainable).unwrap();
        let mut optimiser = AdamW::new(AdamWConfig::default());
        let objective = Objective {
            lm_weight: 0.3,
            label_smoothing: 0.0,
        };
        let batch = [shard(&config, &[9, 8, 7, 6], 1)];
        network
            .train_step(&batch, &objective, &mut optimiser, 1e-2)
            .unwrap();
        for (parameter, before) in network.parameters.iter().zip(before) {
            let changed = parameter.values().unwrap() != before;
            let trains = match parameter.part {
                Part::Base => trainable.base,
                Part::Adapters => trainable.adapters == TrainedAdapters::All,
            };
            assert_eq!(changed, trains, "{} with {trainable:?}", parameter.name);
        }
    }
}

#[test]
fn exported_tensors_hold_every_value_once() {
    let config = config();
    let network = Network::new(config.clone(), 4).unwrap();
    let base = network.base_tensors().unwrap();
    let count: usize = base.iter().map(|tensor| tensor.values.len()).sum();
    assert_eq!(count, network.parameter_counts().0);
    let find = |name: &str| base.iter().find(|tensor| tensor.name == name).unwrap();
    let qkv = network
        .parameters
        .iter()
        .find(|parameter| parameter.name == "blk.1.attn_qkv.weight")
        .unwrap()
        .values()
        .unwrap();
    assert_eq!(find("blk.1.attn_q.weight").values, qkv[..24 * 24]);
    assert_eq!(find("blk.1.attn_k.weight").values, qkv[24 * 24..32 * 24]);
    assert_eq!(find("blk.1.attn_v.weight").shape, [8, 24]);
    assert_eq!(find("blk.0.ffn_up.weight").shape, [20, 24]);
    let adapters: Vec<_> = (0..2)
        .map(|task| network.adapter_tensors(task).unwrap())
        .collect();
    let count: usize = adapters
        .iter()
        .flatten()
        .map(|tensor| tensor.values.len())
        .sum();
    assert_eq!(count, network.parameter_counts().1);
    assert_eq!(adapters[1][1].shape, [2, 3, 8]);
    assert_eq!(adapters[1][3].shape, [5, 24]);
    assert!(network.adapter_tensors(2).is_err());

    let mut other = Network::new(
        NetworkConfig {
            task_labels: vec![2],
            ..config.clone()
        },
        1,
    )
    .unwrap();
    other.copy_base_from(&network).unwrap();
    assert_eq!(other.base_tensors().unwrap(), base);
    let mut smaller = Network::new(
        NetworkConfig {
            feed_forward: 10,
            ..config
        },
        1,
    )
    .unwrap();
    assert!(smaller.copy_base_from(&network).is_err());
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let config = config();
    let network = Network::new(config.clone(), 4).unwrap();
    let good = shard(&config, &[5, 6], 1);
    assert!(network.evaluate(&good).is_ok());
    let changes: [fn(&mut ShardBatch); 8] = [
        |batch| batch.tokens[3] = 37,
        |batch| batch.targets[3] = 37,
        |batch| batch.sequences[0].flow_rows = 4,
        |batch| batch.sequences[0].task = Some(2),
        |batch| batch.sequences[0].label = 3,
        |batch| batch.targets.truncate(3),
        |batch| batch.tokens.truncate(3),
        |batch| *batch = ShardBatch::default(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut batch = good.clone();
        change(&mut batch);
        assert!(
            matches!(network.evaluate(&batch), Err(NetworkError::Size { .. })),
            "change {index}"
        );
    }
    let long = |tokens| ShardBatch {
        tokens: vec![1; tokens],
        sequences: vec![Sequence {
            flow_rows: tokens,
            task: None,
            label: 0,
            weight: 0.0,
        }],
        ..ShardBatch::default()
    };
    assert!(network.evaluate(&long(POSITIONS_MAX - 2)).is_ok());
    assert!(matches!(
        network.evaluate(&long(POSITIONS_MAX - 1)),
        Err(NetworkError::Size { .. })
    ));
    for change in [
        NetworkConfig {
            heads: 5,
            ..config.clone()
        },
        NetworkConfig {
            kv_heads: 4,
            ..config.clone()
        },
        NetworkConfig {
            query_tokens: 0,
            ..config.clone()
        },
        NetworkConfig {
            hidden: 0,
            ..config.clone()
        },
        NetworkConfig {
            task_labels: vec![0],
            ..config
        },
    ] {
        assert!(matches!(
            Network::new(change, 1),
            Err(NetworkError::Size { .. })
        ));
    }
}

#[test]
fn mixed_precision_stays_near_full_precision() {
    let config = config();
    let network = Network::new(config.clone(), 5).unwrap();
    spread(&network);
    let batch = shard(&config, &[9, 30, 1, 17, 18], 3);
    let scales = LossScales {
        label: 0.5,
        token: 0.25,
        label_smoothing: 0.1,
    };
    let run = |precision| {
        ops::with_precision(precision, || {
            let loss = network.loss(&batch, &scales).unwrap().0.unwrap();
            let store = loss.backward().unwrap();
            let gradients: Vec<f32> = network
                .parameters
                .iter()
                .flat_map(|parameter| {
                    store
                        .get(parameter.var.as_tensor())
                        .unwrap()
                        .flatten_all()
                        .unwrap()
                        .to_vec1()
                        .unwrap()
                })
                .collect();
            (loss.to_scalar::<f32>().unwrap(), gradients)
        })
    };
    let ((full_loss, full), (mixed_loss, mixed)) = (run(Precision::Full), run(Precision::Mixed));
    assert!(
        (full_loss - mixed_loss).abs() < 0.02 * full_loss,
        "{full_loss} and {mixed_loss}"
    );
    let product = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    let cosine = product(&full, &mixed) / (product(&full, &full) * product(&mixed, &mixed)).sqrt();
    assert!(cosine > 0.999, "cosine of the gradients {cosine}");
    // The switch does something exactly where the processor has the instructions.
    assert_eq!(
        full != mixed,
        trafficllm_kernels::training::Cpu::bf16().is_some()
    );
    assert_eq!(
        run(Precision::Full).0.to_bits(),
        full_loss.to_bits(),
        "the precision does not linger"
    );
}

/// Tokens 10 to 29 in order, of which three on each side are near.
fn config_with_scale() -> NetworkConfig {
    NetworkConfig {
        scales: vec![Scale {
            tokens: 10..30,
            reach: 3,
        }],
        ..config()
    }
}

fn rows(network: &Network) -> Vec<Vec<f32>> {
    let mut parameters = network.parameters.iter();
    let table = parameters.find(|parameter| parameter.name == TOKEN_TABLE);
    let values = table.unwrap().values().unwrap();
    let width = network.config().hidden;
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

#[test]
fn rows_of_a_scale_start_near_their_neighbours() {
    let network = Network::new(config_with_scale(), 5).unwrap();
    let rows = rows(&network);
    let distance = |a: usize, b: usize| -> f32 {
        let pairs = rows[a].iter().zip(&rows[b]);
        pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>()
    };
    let of = |range: Range<usize>, step: usize| -> f32 {
        let count = range.len() as f32;
        range.map(|row| distance(row, row + step)).sum::<f32>() / count
    };
    let (near, far, others) = (of(10..29, 1), of(10..22, 8), of(0..9, 1));
    assert!(near < 0.5 * far, "{near} beside {far}");
    assert!(near < 0.5 * others, "{near} beside {others}");
}

#[test]
fn a_row_of_a_scale_learns_with_its_neighbours_and_no_other_does() {
    let mut network = Network::new(config_with_scale(), 5).unwrap();
    let before = rows(&network);
    let mut optimiser = AdamW::new(AdamWConfig {
        weight_decay: 0.0,
        ..AdamWConfig::default()
    });
    let objective = Objective {
        lm_weight: 0.0,
        label_smoothing: 0.0,
    };
    let sequence = Sequence {
        flow_rows: 1,
        task: Some(0),
        label: 1,
        weight: 1.0,
    };
    let batch = ShardBatch {
        tokens: vec![20],
        targets: vec![0],
        target_weights: vec![0.0],
        sequences: vec![sequence],
    };
    network
        .train_step(&[batch], &objective, &mut optimiser, 1e-2)
        .unwrap();
    let after = rows(&network);
    let moved: Vec<usize> = (0..37).filter(|&row| after[row] != before[row]).collect();
    assert_eq!(moved, [17, 18, 19, 20, 21, 22, 23]);
}

#[test]
fn a_scale_outside_of_the_vocabulary_or_of_itself_is_refused() {
    for (tokens, reach) in [(10..10, 0), (30..38, 2), (10..30, 21)] {
        let scaled = NetworkConfig {
            scales: vec![Scale { tokens, reach }],
            ..config()
        };
        let error = Network::new(scaled, 5).err().unwrap().to_string();
        assert!(error.contains("tokens of a scale"), "{error}");
    }
}
