//! One adapter on a frozen base, more tasks, and networks out of bundles.

use std::collections::BTreeMap;

use serde_json::json;
use trafficllm_model::gguf::{FloatLayer, FloatWeights, TokenizerMetadata, write_llama};
use trafficllm_model::{
    Bundle, FileReference, Item, Level, MANIFEST_SCHEMA, Manifest, Model, Scratch, SelfTest,
    TaskKind, TaskManifest, TransformerConfig,
};

use super::*;

fn lora_config() -> NetworkConfig {
    NetworkConfig {
        lora_rank: 2,
        ..config()
    }
}

fn all_values(network: &Network) -> Vec<Vec<f32>> {
    let parameters = network.parameters.iter();
    parameters
        .map(|parameter| parameter.values().unwrap())
        .collect()
}

fn step(network: &mut Network, optimiser: &mut AdamW, seed: u64) -> StepReport {
    let objective = Objective {
        lm_weight: 0.0,
        label_smoothing: 0.1,
    };
    // Sequences of both tasks: those of the other one change nothing of it either.
    let shards = [
        shard(network.config(), &[9, 8, 7, 6], seed),
        shard(network.config(), &[5, 11], seed + 1),
    ];
    network
        .train_step(&shards, &objective, optimiser, 1e-2)
        .unwrap()
}

#[test]
fn tuning_one_task_leaves_every_other_byte_alone() {
    for config in [config(), lora_config()] {
        for task in [0, 1] {
            let mut network = Network::new(config.clone(), 2).unwrap();
            spread(&network);
            let before = all_values(&network);
            let others = network.adapter_file(1 - task).unwrap();
            network.set_trainable(Trainable::task(task)).unwrap();
            let mut optimiser = AdamW::new(AdamWConfig::default());
            for seed in 0..5 {
                step(&mut network, &mut optimiser, seed);
            }
            for ((parameter, before), moments) in network
                .parameters
                .iter()
                .zip(before)
                .zip(optimiser.moments())
            {
                let own = network.task_values(parameter, task);
                let after = parameter.values().unwrap();
                for (index, (before, after)) in before.iter().zip(&after).enumerate() {
                    let same = before.to_bits() == after.to_bits();
                    assert!(own.contains(&index) || same, "{}[{index}]", parameter.name);
                }
                assert!(
                    own.is_empty() || after[own.clone()] != before[own.clone()],
                    "{} of the task has not moved",
                    parameter.name
                );
                for kept in [&moments.first, &moments.second, &moments.average] {
                    assert_eq!(kept.len(), own.len(), "{}", parameter.name);
                }
            }
            assert_eq!(network.adapter_file(1 - task).unwrap(), others);
            let averaged = network.averaged(&optimiser).unwrap();
            assert_eq!(averaged.adapter_file(1 - task).unwrap(), others);
            assert_ne!(
                averaged.adapter_file(task).unwrap(),
                network.adapter_file(task).unwrap()
            );
            assert_eq!(
                averaged.base_tensors().unwrap(),
                network.base_tensors().unwrap()
            );
        }
    }
    let mut network = Network::new(config(), 2).unwrap();
    assert!(network.set_trainable(Trainable::task(2)).is_err());
}

#[test]
fn the_gradient_on_a_frozen_base_is_the_same() {
    let run = |trainable| {
        let mut network = Network::new(lora_config(), 2).unwrap();
        spread(&network);
        network.set_trainable(trainable).unwrap();
        let mut batch = shard(network.config(), &[9, 30, 1, 17], 3);
        batch
            .sequences
            .iter_mut()
            .for_each(|sequence| sequence.task = Some(1));
        let scales = LossScales {
            label: 1.0,
            token: 0.0,
            label_smoothing: 0.1,
        };
        let (loss, tape) = ops::recorded(|| {
            network
                .loss(&batch, &scales)
                .map(|result| result.0.unwrap())
        })
        .unwrap();
        let mut store = tape.backward(&loss).unwrap();
        let parameters = network.parameters.iter();
        parameters
            .map(|parameter| {
                store
                    .take(parameter.var.as_tensor())
                    .map(|gradient| gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            })
            .collect::<Vec<_>>()
    };
    let (all, frozen) = (run(Trainable::ALL), run(Trainable::task(1)));
    let network = Network::new(lora_config(), 2).unwrap();
    for ((parameter, all), frozen) in network.parameters.iter().zip(all).zip(frozen) {
        match parameter.part {
            Part::Base => assert!(frozen.is_none(), "{}", parameter.name),
            Part::Adapters => assert_eq!(all, frozen, "{}", parameter.name),
        }
    }
}

#[test]
fn a_checkpoint_of_one_task_continues_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut network = Network::new(lora_config(), 2).unwrap();
    network.set_trainable(Trainable::task(1)).unwrap();
    let mut optimiser = AdamW::new(AdamWConfig::default());
    step(&mut network, &mut optimiser, 1);
    network
        .save(&path, Some(&optimiser), &BTreeMap::new())
        .unwrap();
    let mut restored = Network::load(&path).unwrap();
    assert_eq!(restored.network.trainable(), Trainable::task(1));
    let mut restored_optimiser = restored.optimiser.take().unwrap();
    assert_eq!(restored_optimiser, optimiser);
    let one = step(&mut network, &mut optimiser, 2);
    let other = step(&mut restored.network, &mut restored_optimiser, 2);
    assert_eq!(one, other);
    assert_eq!(all_values(&network), all_values(&restored.network));

    // The state belongs to what was trained.
    network.set_trainable(Trainable::ALL).unwrap();
    let objective = Objective {
        lm_weight: 0.0,
        label_smoothing: 0.0,
    };
    let batch = [shard(network.config(), &[5], 1)];
    let refused = network.train_step(&batch, &objective, &mut optimiser, 1e-3);
    assert!(matches!(refused, Err(NetworkError::Size { .. })));
}

#[test]
fn what_has_no_lora_is_written_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let network = Network::new(config(), 2).unwrap();
    network.save(&path, None, &BTreeMap::new()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("lora") && !text.contains("trainable"));
    let shape = crate::recipe::Recipe::default().shape;
    let json = serde_json::to_value(shape).unwrap();
    assert!(json.get("lora_rank").is_none());
    assert_eq!(
        serde_json::from_value::<crate::recipe::ShapeRecipe>(json).unwrap(),
        shape
    );
}

/// Everything of the old network that the new one should have, and the labels' logits of its tasks.
#[track_caller]
fn assert_holds(new: &Network, old: &Network) {
    assert_eq!(new.base_tensors().unwrap(), old.base_tensors().unwrap());
    for task in 0..old.config().task_labels.len() {
        assert_eq!(
            new.adapter_file(task).unwrap(),
            old.adapter_file(task).unwrap()
        );
    }
    let batch = shard(old.config(), &[9, 30, 1, 17], 3);
    assert_eq!(
        new.label_logits(&batch).unwrap(),
        old.label_logits(&batch).unwrap()
    );
}

#[test]
fn a_task_is_added_without_touching_the_others() {
    let old = Network::new(lora_config(), 2).unwrap();
    spread(&old);
    let new = old.with_task_added(4, 7).unwrap();
    assert_eq!(new.config().task_labels, [3, 5, 4]);
    assert_holds(&new, &old);
    assert_eq!(
        all_values(&new),
        all_values(&old.with_task_added(4, 7).unwrap())
    );
    assert_ne!(
        new.adapter_file(2).unwrap(),
        old.with_task_added(4, 8).unwrap().adapter_file(2).unwrap()
    );
    assert!(old.with_task_added(0, 7).is_err());
    // As a network of that task alone starts.
    let alone = NetworkConfig {
        task_labels: vec![4],
        ..lora_config()
    };
    let alone = Network::new(alone, 7).unwrap();
    assert_eq!(
        new.adapter_tensors(2).unwrap(),
        alone.adapter_tensors(0).unwrap()
    );

    let wider = new.with_labels(1, 6, 7).unwrap();
    assert_eq!(wider.config().task_labels, [3, 6, 4]);
    for task in [0, 2] {
        assert_eq!(
            wider.adapter_file(task).unwrap(),
            new.adapter_file(task).unwrap()
        );
    }
    assert_eq!(wider.base_tensors().unwrap(), new.base_tensors().unwrap());
    assert_ne!(wider.adapter_file(1).unwrap(), new.adapter_file(1).unwrap());
    // Of the task's own values the labels alone are more.
    for (more, had) in wider
        .adapter_tensors(1)
        .unwrap()
        .iter()
        .zip(new.adapter_tensors(1).unwrap())
    {
        assert_eq!(more.name, had.name);
        assert_eq!(more.values[..had.values.len()], had.values, "{}", had.name);
        let is_labels = had.name == "label.weight";
        assert_eq!(
            more.values.len() > had.values.len(),
            is_labels,
            "{}",
            had.name
        );
    }
    assert!(new.with_labels(3, 2, 7).is_err());
    assert!(new.with_labels(1, 4, 7).is_err(), "no label is taken away");
}

#[test]
fn lora_is_added_without_changing_an_answer() {
    for rank in [0, 2] {
        let old = NetworkConfig {
            lora_rank: rank,
            ..config()
        };
        let old = Network::new(old, 2).unwrap();
        spread(&old);
        let mut new = old.with_lora_rank(3, 5).unwrap();
        let batch = shard(old.config(), &[9, 30, 1, 17], 3);
        let logits = |network: &Network| network.label_logits(&batch).unwrap();
        for (old, new) in logits(&old).concat().iter().zip(logits(&new).concat()) {
            assert!(
                (old - new).abs() <= 1e-5 * old.abs().max(1.0),
                "{old} {new}"
            );
        }
        if rank == 0 {
            // Factors that add nothing are not written.
            assert_eq!(new.adapter_file(0).unwrap(), old.adapter_file(0).unwrap());
        }
        new.set_trainable(Trainable::task(0)).unwrap();
        let mut optimiser = AdamW::new(AdamWConfig::default());
        step(&mut new, &mut optimiser, 1);
        assert!(new.adapter(0).unwrap().lora.is_some());
        assert!(new.with_lora_rank(2, 5).is_err());
        assert!(new.with_lora_rank(65, 5).is_err());
    }
}

/// Sizes that the engine takes.
fn engine_config(lora_rank: usize) -> NetworkConfig {
    NetworkConfig {
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        feed_forward: 96,
        lora_rank,
        ..config()
    }
}

fn bundle(network: &Network) -> Bundle {
    let config = network.config();
    let tensors = network.base_tensors().unwrap();
    let values = |name: &str| {
        let found = tensors.iter().find(|tensor| tensor.name == name);
        found.unwrap().values.clone()
    };
    let layers = (0..config.layers).map(|layer| {
        let part = |name: &str| values(&format!("blk.{layer}.{name}.weight"));
        FloatLayer {
            attention_norm: part("attn_norm"),
            query: part("attn_q"),
            key: part("attn_k"),
            value: part("attn_v"),
            output: part("attn_output"),
            mlp_norm: part("ffn_norm"),
            gate: part("ffn_gate"),
            up: part("ffn_up"),
            down: part("ffn_down"),
        }
    });
    let weights = FloatWeights {
        config: TransformerConfig {
            vocabulary: config.vocabulary,
            hidden: config.hidden,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_width(),
            feed_forward: config.feed_forward,
            context: 64,
            rms_epsilon: config.norm_epsilon,
            rope_base: config.rotary_base,
        },
        token_embedding: values("token_embd.weight"),
        layers: layers.collect(),
        output_norm: values("output_norm.weight"),
        output: None,
    };
    let metadata = TokenizerMetadata {
        tokens: (0..config.vocabulary).map(|id| format!("t{id}")).collect(),
        token_types: vec![1; config.vocabulary],
        merges: vec!["t 0".to_owned()],
        end_token: None,
        padding_token: None,
    };
    let base = write_llama("test", &weights.quantise().unwrap(), &metadata).unwrap();
    let mut files = BTreeMap::from([
        ("base.gguf".to_owned(), base),
        ("tokenizer.json".to_owned(), b"{}".to_vec()),
    ]);
    let file = |task: usize| format!("adapters/task_{task}.safetensors");
    let tasks = config.task_labels.iter().enumerate().map(|(task, labels)| {
        files.insert(file(task), network.adapter_file(task).unwrap());
        TaskManifest {
            name: format!("task_{task}"),
            kind: TaskKind::Flow,
            labels: (0..*labels).map(|label| format!("label-{label}")).collect(),
            label_words: (0..*labels as u32).map(|word| vec![word]).collect(),
            adapter: FileReference::new(file(task)),
            temperature: 1.0,
            threshold: 0.0,
            metrics: json!({}),
            version: 1,
            data_statement: json!(null),
            set_aside: Vec::new(),
        }
    });
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        id: "test".to_owned(),
        name: "Test".to_owned(),
        created: None,
        card: BTreeMap::from([("purpose".to_owned(), json!("tests"))]),
        profile: json!({"name": "clean"}),
        tokenizer: FileReference::new("tokenizer.json"),
        base: FileReference::new("base.gguf"),
        tasks: tasks.collect(),
        instruction: None,
        heads: Vec::new(),
        metrics_protocol: json!("none"),
        data_statement: json!("made up"),
        licence: "MIT".to_owned(),
        files: BTreeMap::new(),
        self_test: vec![SelfTest {
            tokens: vec![1],
            task: "task_0".to_owned(),
            label: "label-0".to_owned(),
            score: 0.5,
        }],
    };
    Bundle::build(manifest, files).unwrap()
}

/// The engine's logits of each sequence's task, and the network's.
fn both_logits(bundle: &Bundle, network: &Network, level: Level) -> Vec<(Vec<f32>, Vec<f32>)> {
    let lengths = [9, 30, 1, 17, 18, 40, 3, 25];
    let mut batch = shard(network.config(), &lengths, 3);
    for (index, sequence) in batch.sequences.iter_mut().enumerate() {
        sequence.task = Some(index % 2);
    }
    let model = Model::load(bundle, level).unwrap();
    let mut start = 0;
    let items = batch.sequences.iter().map(|sequence| {
        let tokens = &batch.tokens[start..start + sequence.flow_rows];
        start += sequence.flow_rows;
        Item {
            tokens,
            tasks: [&[0], &[1]][sequence.task.unwrap()],
        }
    });
    let mut found = Vec::new();
    model
        .classify_logits(
            &items.collect::<Vec<_>>(),
            &mut Scratch::default(),
            &mut found,
        )
        .unwrap();
    let found = found.into_iter().map(|answer| answer.logits);
    found.zip(network.label_logits(&batch).unwrap()).collect()
}

fn highest(logits: &[f32]) -> usize {
    let best = |best: usize, (index, value): (usize, &f32)| {
        if *value > logits[best] { index } else { best }
    };
    logits.iter().enumerate().fold(0, best)
}

#[test]
fn a_network_from_a_bundle_answers_as_the_engine_does() {
    for rank in [0, 3] {
        let network = Network::new(engine_config(rank), 5).unwrap();
        spread_lightly(&network);
        let bundle = bundle(&network);
        let read = Network::from_bundle(&bundle, 0, 1).unwrap();
        assert_eq!(read.config(), network.config());
        for task in [0, 1] {
            assert_eq!(
                read.adapter_file(task).unwrap(),
                network.adapter_file(task).unwrap(),
                "an adapter comes back as it was"
            );
        }
        for level in Level::all_available() {
            for (engine, network) in both_logits(&bundle, &read, level) {
                // The engine rounds activations to bytes.
                let largest = largest(&network);
                for (engine, network) in engine.iter().zip(&network) {
                    let difference = (engine - network).abs();
                    assert!(
                        difference <= 0.05 * largest,
                        "{engine} {network} of {largest} at {level:?}"
                    );
                }
                let best = highest(&network);
                let others = network
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index != best);
                let second = others.fold(f32::NEG_INFINITY, |most, (_, value)| most.max(*value));
                if network[best] - second > 0.1 * largest {
                    assert_eq!(highest(&engine), best);
                }
            }
        }
        // Without its LoRA the network is another one.
        if rank > 0 {
            let plain = network.adapter(0).unwrap();
            assert_eq!(plain.lora.as_ref().unwrap().rank, rank);
            let without = bundle_without_lora(&bundle, &network);
            let with = both_logits(&bundle, &read, Level::detect());
            let without = both_logits(&without, &read, Level::detect());
            assert!(
                with.iter()
                    .zip(&without)
                    .any(|((with, _), (without, _))| with != without)
            );
        }
        // Room for LoRA beside what is there changes no answer.
        let wider = Network::from_bundle(&bundle, 4, 1).unwrap();
        assert_eq!(wider.config().lora_rank, 4);
        let batch = shard(read.config(), &[9, 30], 3);
        let [one, other] = [&read, &wider].map(|network| network.label_logits(&batch).unwrap());
        for (one, other) in one.concat().iter().zip(other.concat()) {
            assert!((one - other).abs() <= 1e-5 * one.abs().max(1.0));
        }
    }
}

/// Values that move the answers without making them chaotic.
fn spread_lightly(network: &Network) {
    let mut random = Random::new(78);
    for parameter in network
        .parameters
        .iter()
        .filter(|parameter| parameter.part == Part::Adapters)
    {
        let deviation = if parameter.name.contains("lora") {
            0.08
        } else {
            0.5
        };
        let values: Vec<f32> = (0..parameter.var.elem_count())
            .map(|_| (normal(&mut random) * deviation) as f32)
            .collect();
        let values = Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu).unwrap();
        parameter.var.set(&values).unwrap();
    }
}

fn bundle_without_lora(with: &Bundle, network: &Network) -> Bundle {
    let manifest = with.manifest().clone();
    let shape =
        trafficllm_model::AdapterShape::of(Model::load(with, Level::Portable).unwrap().config());
    let mut files: BTreeMap<String, Vec<u8>> = manifest
        .files
        .keys()
        .map(|name| (name.clone(), with.file(name).unwrap().to_vec()))
        .collect();
    for (task, of) in manifest.tasks.iter().enumerate() {
        let adapter = trafficllm_model::Adapter {
            lora: None,
            ..network.adapter(task).unwrap()
        };
        files.insert(of.adapter.file.clone(), adapter.write(shape).unwrap());
    }
    Bundle::build(manifest, files).unwrap()
}

#[test]
fn bundles_that_cannot_be_trained_are_refused() {
    let network = Network::new(engine_config(0), 5).unwrap();
    let sound = bundle(&network);
    assert!(Network::from_bundle(&sound, 64, 1).is_ok());
    assert!(matches!(
        Network::from_bundle(&sound, 65, 1),
        Err(NetworkError::Size { .. })
    ));
    let files = || -> BTreeMap<String, Vec<u8>> {
        let names = sound.manifest().files.keys();
        names
            .map(|name| (name.clone(), sound.file(name).unwrap().to_vec()))
            .collect()
    };
    let mut manifest = sound.manifest().clone();
    manifest.tasks[1].label_words.swap(0, 1);
    let swapped = Bundle::build(manifest, files()).unwrap();
    assert!(matches!(
        Network::from_bundle(&swapped, 0, 1),
        Err(NetworkError::Size { .. })
    ));
    let mut broken = files();
    broken.insert("base.gguf".to_owned(), b"GGUF".to_vec());
    let broken = Bundle::build(sound.manifest().clone(), broken).unwrap();
    assert!(matches!(
        Network::from_bundle(&broken, 0, 1),
        Err(NetworkError::Bundle(_))
    ));
}

#[test]
fn tuning_on_a_bundle_changes_the_engines_answers_of_that_task_only() {
    let network = Network::new(engine_config(0), 5).unwrap();
    spread_lightly(&network);
    let before = bundle(&network);
    let mut tuned = Network::from_bundle(&before, 2, 1).unwrap();
    tuned.set_trainable(Trainable::task(1)).unwrap();
    let mut optimiser = AdamW::new(AdamWConfig::default());
    for seed in 0..4 {
        step(&mut tuned, &mut optimiser, seed);
    }
    let mut files: BTreeMap<String, Vec<u8>> = before
        .manifest()
        .files
        .keys()
        .map(|name| (name.clone(), before.file(name).unwrap().to_vec()))
        .collect();
    let file = &before.manifest().tasks[1].adapter.file;
    files.insert(file.clone(), tuned.adapter_file(1).unwrap());
    let after = Bundle::build(before.manifest().clone(), files).unwrap();
    let old = both_logits(&before, &tuned, Level::detect());
    let new = both_logits(&after, &tuned, Level::detect());
    for (index, ((old, _), (new, network))) in old.iter().zip(&new).enumerate() {
        assert_eq!(old == new, index % 2 == 0, "sequence {index}");
        let largest = largest(network);
        for (engine, network) in new.iter().zip(network) {
            assert!(
                (engine - network).abs() <= 0.05 * largest,
                "{engine} {network}"
            );
        }
    }
}
