//! candle's llama with random bf16 weights, asked for flows: for each line of standard input, a request `{"case": "shared" | "whole",
//! "flows": N}`, it answers with a line `{"seconds": S}` or `{"error": "..."}`.
//!
//!     trafficllm-candle-llama SHAPE_JSON     first line of the answer: {"engine": "...", "device": "..."} or {"error": "..."}
//!
//! A flow has `tokens` tokens, of which the first `shared_tokens` are the same in all flows. `whole` runs them all; `shared` continues from
//! a cache of keys and values of the shared ones, which is made once for the batch and cloned for each run. candle computes all rows in
//! every layer, and the whole output matrix for each flow's last token.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use candle_core::{D, DType, Device, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_transformers::models::llama::{Cache, Config, Llama};
use serde::Deserialize;
use serde_json::json;

type Failure = Box<dyn Error>;

#[derive(Deserialize)]
struct Sizes {
    hidden: usize,
    layers: usize,
    heads: usize,
    feed_forward: usize,
    vocabulary: usize,
    tokens: usize,
    shared_tokens: usize,
}

#[derive(Deserialize)]
struct Request {
    case: String,
    flows: usize,
}

/// Weights that are drawn when they are asked for.
struct Random;

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if name.ends_with("norm.weight") {
            return Tensor::ones(shape, dtype, device);
        }
        let deviation = (*shape.dims().last().unwrap_or(&1) as f32).powf(-0.5);
        Tensor::randn(0.0_f32, deviation, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!(
            "{name}: no shape was given"
        )))
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

struct Worker {
    sizes: Sizes,
    model: Llama,
    config: Config,
    dtype: DType,
    device: Device,
    /// By case and flows: the tokens, the first one's position, and what the shared ones left behind.
    ready: HashMap<(String, usize), (Tensor, usize, Cache)>,
}

impl Worker {
    fn new(sizes: Sizes) -> Result<Self, Failure> {
        let device = if cfg!(feature = "cuda") {
            Device::new_cuda(0)?
        } else {
            Device::Cpu
        };
        // candle has no bf16 products on the processor.
        let dtype = if device.is_cuda() {
            DType::BF16
        } else {
            DType::F32
        };
        let config = Config {
            hidden_size: sizes.hidden,
            intermediate_size: sizes.feed_forward,
            vocab_size: sizes.vocabulary,
            num_hidden_layers: sizes.layers,
            num_attention_heads: sizes.heads,
            num_key_value_heads: sizes.heads,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: sizes.tokens,
            tie_word_embeddings: false,
        };
        let weights = VarBuilder::from_backend(Box::new(Random), dtype, device.clone());
        Ok(Self {
            model: Llama::load(weights, &config)?,
            sizes,
            config,
            dtype,
            device,
            ready: HashMap::new(),
        })
    }

    /// Tokens of so many flows; all the same from flow to flow where they are shared.
    fn tokens(
        &self,
        flows: usize,
        first: usize,
        count: usize,
        shared: bool,
    ) -> Result<Tensor, Failure> {
        let vocabulary = self.sizes.vocabulary;
        let ids: Vec<u32> = (0..flows)
            .flat_map(|flow| {
                let flow = if shared { 0 } else { flow };
                (first..first + count)
                    .map(move |at| ((flow * 7919 + at * 104_729 + 13) % vocabulary) as u32)
            })
            .collect();
        Ok(Tensor::from_vec(ids, (flows, count), &self.device)?)
    }

    fn prepare(&self, case: &str, flows: usize) -> Result<(Tensor, usize, Cache), Failure> {
        let is_shared = match case {
            "shared" => true,
            "whole" => false,
            _ => return Err(format!("no case {case}").into()),
        };
        let mut cache = Cache::new(is_shared, self.dtype, &self.config, &self.device)?;
        let first = if is_shared {
            self.sizes.shared_tokens
        } else {
            0
        };
        if is_shared {
            let shared = self.tokens(flows, 0, first, true)?;
            self.model.forward(&shared, 0, &mut cache)?;
        }
        let own = self.tokens(flows, first, self.sizes.tokens - first, false)?;
        Ok((own, first, cache))
    }

    fn measure(&mut self, request: &Request) -> Result<f64, Failure> {
        let key = (request.case.clone(), request.flows);
        if !self.ready.contains_key(&key) {
            let prepared = self.prepare(&request.case, request.flows)?;
            self.run(&prepared)?;
            self.ready.insert(key.clone(), prepared);
        }
        let Some(prepared) = self.ready.get(&key) else {
            return Err("nothing was made ready".into());
        };
        self.device.synchronize()?;
        let start = Instant::now();
        self.run(prepared)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The likeliest word of each flow, copied out: so the run is over.
    fn run(&self, (tokens, first, cache): &(Tensor, usize, Cache)) -> Result<(), Failure> {
        let logits = self.model.forward(tokens, *first, &mut cache.clone())?;
        let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
        if best.len() == tokens.dims2()?.0 {
            Ok(())
        } else {
            Err("a flow without an answer".into())
        }
    }
}

fn main() -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let sizes = std::env::args().nth(1).ok_or("expected a shape as JSON")?;
    let mut worker = match Worker::new(serde_json::from_str(&sizes)?) {
        Ok(worker) => worker,
        Err(error) => {
            writeln!(out, "{}", json!({"error": error.to_string()}))?;
            return Ok(());
        }
    };
    let device = if worker.device.is_cuda() {
        "cuda:0"
    } else {
        "cpu"
    };
    let engine = format!("candle 0.11.1 {}", worker.dtype.as_str());
    writeln!(out, "{}", json!({"engine": engine, "device": device}))?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let answer = match worker.measure(&request) {
            Ok(seconds) => json!({"seconds": seconds}),
            Err(error) => json!({"error": error.to_string()}),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
