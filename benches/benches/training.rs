//! Training steps per second: the trainer's own operations beside stock candle autograd of the same network, in turns in
//! the same run, with next-token loss on 16 sequences of 256 tokens and about 3.4M parameters.
#![allow(
    clippy::print_stdout,
    reason = "a benchmark reports on standard output"
)]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use trafficllm_kernels::training::{Cpu, keep_freed_memory};
use trafficllm_train::network::{
    LossScales, Network, NetworkConfig, NetworkError, Objective, Sequence, ShardBatch,
};
use trafficllm_train::ops::Precision;
use trafficllm_train::optimiser::{AdamW, AdamWConfig};
use trafficllm_train::random::Random;

/// The target of the design.
const TOKENS_PER_SECOND_MIN: f64 = 5000.0;
const SEQUENCES: usize = 16;
const SEQUENCE_TOKENS: usize = 256;
const SHARDS: usize = 2;
const ROUNDS: usize = 3;
const STEPS_PER_ROUND: usize = 5;

fn main() -> ExitCode {
    // `cargo test --benches` runs benches too, without `--bench`: then one small round shows that they work.
    let full = std::env::args().any(|argument| argument == "--bench");
    keep_freed_memory();
    match compare(
        if full { ROUNDS } else { 1 },
        if full { SEQUENCE_TOKENS } else { 8 },
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("training: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(rounds: usize, sequence_tokens: usize) -> Result<(), NetworkError> {
    let config = NetworkConfig {
        vocabulary: 2048,
        hidden: 256,
        layers: 4,
        heads: 8,
        kv_heads: 2,
        feed_forward: 704,
        prefix_tokens: 0,
        query_tokens: 0,
        lora_rank: 0,
        scales: Vec::new(),
        task_labels: Vec::new(),
        norm_epsilon: 1e-5,
        rotary_base: 10_000.0,
    };
    let mut network = Network::new(config, 1)?;
    let mut optimiser = AdamW::new(AdamWConfig::default());
    let shards = batch(SHARDS, sequence_tokens);
    let whole = batch(1, sequence_tokens);
    let tokens = (SEQUENCES * sequence_tokens) as f64;
    let objective = Objective {
        lm_weight: 1.0,
        label_smoothing: 0.0,
    };
    let scales = LossScales {
        label: 0.0,
        token: 1.0 / (tokens as f32),
        label_smoothing: 0.0,
    };
    let (mut full, mut mixed, mut stock) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (precision, speeds) in [(Precision::Full, &mut full), (Precision::Mixed, &mut mixed)] {
            network.set_precision(precision);
            for _ in 0..STEPS_PER_ROUND {
                let start = Instant::now();
                black_box(network.train_step(&shards, &objective, &mut optimiser, 1e-3)?);
                speeds.push(tokens / start.elapsed().as_secs_f64());
            }
        }
        // Without a step of an optimiser: that favours stock candle a little.
        let start = Instant::now();
        let loss = network.reference_loss(&whole[0], &scales)?;
        black_box(loss.backward()?);
        stock.push(tokens / start.elapsed().as_secs_f64());
    }
    let (full, mixed, stock) = (median(full), median(mixed), median(stock));
    println!(
        "training, {:.2}M parameters, {SEQUENCES} x {sequence_tokens} tokens, {SHARDS} shards, {} kernels (medians)",
        network.parameter_counts().0 as f64 / 1e6,
        Cpu::bf16().unwrap_or_else(Cpu::detect).name()
    );
    println!("own operations, f32, step    {full:>8.0} tokens/s");
    println!("own operations, mixed, step  {mixed:>8.0} tokens/s");
    println!("stock candle f32, no step    {stock:>8.0} tokens/s");
    println!(
        "ratios to stock candle       {:>8.1} (f32), {:.1} (mixed)",
        full / stock,
        mixed / stock
    );
    if sequence_tokens == SEQUENCE_TOKENS {
        let verdict = if full >= TOKENS_PER_SECOND_MIN {
            "reached"
        } else {
            "missed"
        };
        println!(
            "target of {TOKENS_PER_SECOND_MIN:.0} tokens/s in f32 on two free cores: {verdict}"
        );
    }
    Ok(())
}

fn batch(shards: usize, sequence_tokens: usize) -> Vec<ShardBatch> {
    let mut random = Random::new(7);
    let mut shard = || {
        let mut shard = ShardBatch::default();
        for _ in 0..SEQUENCES / shards {
            let tokens: Vec<u32> = (0..sequence_tokens)
                .map(|_| random.below(2048) as u32)
                .collect();
            shard.targets.extend(tokens[1..].iter().copied().chain([0]));
            shard.target_weights.extend(
                (1..=sequence_tokens).map(|row| if row < sequence_tokens { 1.0 } else { 0.0 }),
            );
            shard.tokens.extend(tokens);
            shard.sequences.push(Sequence {
                flow_rows: sequence_tokens,
                task: None,
                label: 0,
                weight: 0.0,
            });
        }
        shard
    };
    (0..shards).map(|_| shard()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
