//! One engine with one model, that runs its case once for every line it reads and answers with the seconds it took. The script
//! that compares starts one worker per engine and asks them in turns.

use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, Cursor, Write};
use std::path::Path;
use std::thread;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use clap::ValueEnum;
use trafficllm_kernels::Level;
use trafficllm_model::gguf::{Gguf, load_weights};
use trafficllm_model::transformer::{Beginning, Query, Scratch, Sequence, TaskPrefix, Transformer};

use crate::Failure;
use crate::model_file::{self, Format};
use crate::shapes::{OWN_TOKENS, PREFIX_TOKENS, PROMPT_TOKENS, PROMPTS, Shape, tokens};

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// 32 prompts of 128 tokens, the hidden state of each one's last token: the last layer is pruned, as in production.
    Prompts,
    /// The same with every row through every layer. The vocabulary is cut to 32, for else all rows would be multiplied by the
    /// whole output matrix.
    AllRows,
    /// 32 flows of 96 tokens behind 160 tokens that all share and that ran before.
    SharedPrefix,
    /// 32 flows of 160 + 96 tokens, nothing shared: what sharing saves.
    WholePrefix,
}

impl Case {
    /// Tokens per run that count: own tokens of flows.
    pub(crate) fn tokens(self) -> usize {
        match self {
            Self::Prompts | Self::AllRows => PROMPTS * PROMPT_TOKENS,
            Self::SharedPrefix | Self::WholePrefix => PROMPTS * OWN_TOKENS,
        }
    }

    fn prompt_tokens(self) -> usize {
        match self {
            Self::Prompts | Self::AllRows => PROMPT_TOKENS,
            Self::SharedPrefix => OWN_TOKENS,
            Self::WholePrefix => PREFIX_TOKENS + OWN_TOKENS,
        }
    }
}

/// Answers every line of standard input with the seconds that one run takes, after `ready`.
pub(crate) fn serve(mut run: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    run()?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        run()?;
        writeln!(out, "{}", start.elapsed().as_secs_f64())?;
        out.flush()?;
    }
    Ok(())
}

/// This project's engine.
pub(crate) struct Own {
    model: Transformer,
    beginning: Option<Beginning>,
    case: Case,
    prompts: Vec<Vec<u32>>,
    query: Vec<f32>,
    no_prefix: TaskPrefix,
    /// One per thread.
    workers: Vec<(Scratch, Vec<f32>)>,
}

impl Own {
    pub(crate) fn load(
        folder: &Path,
        shape: &Shape,
        format: Format,
        level: Level,
        case: Case,
        threads: usize,
    ) -> Result<Self, Failure> {
        let bytes = if case == Case::AllRows {
            let cut = Shape {
                vocabulary: 32,
                ..*shape
            };
            let mut bytes = Vec::new();
            model_file::write(&cut, format, &mut bytes)?;
            bytes
        } else {
            fs::read(model_file::cached(folder, shape, format)?)?
        };
        let weights = load_weights(&Gguf::parse(shape.name, &bytes)?)?;
        let model = Transformer::new(level, weights)?;
        let vocabulary = model.config().vocabulary;
        let beginning = if case == Case::SharedPrefix {
            let shared = tokens(PROMPTS, PREFIX_TOKENS, vocabulary);
            Some(model.begin(&shared, &mut Scratch::default())?)
        } else {
            None
        };
        let prompt_tokens = case.prompt_tokens();
        Ok(Self {
            beginning,
            case,
            prompts: (0..PROMPTS)
                .map(|prompt| {
                    tokens(
                        prompt,
                        prompt_tokens - usize::from(case != Case::AllRows),
                        vocabulary,
                    )
                })
                .collect(),
            query: model_file::random_weights(9, 1, model.config().hidden),
            no_prefix: TaskPrefix::default(),
            workers: (0..threads).map(|_| Default::default()).collect(),
            model,
        })
    }

    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        let Self {
            model,
            beginning,
            case,
            prompts,
            query,
            no_prefix,
            workers,
        } = self;
        let (case, beginning) = (*case, beginning.as_ref());
        let share = prompts.len() / workers.len();
        // The query row is the last of a prompt's 128 rows.
        let queries = [Query {
            prefix: no_prefix,
            embeddings: query,
            lora: None,
        }];
        if let [(scratch, states)] = &mut workers[..] {
            return Ok(run_share(
                model, case, beginning, prompts, &queries, scratch, states,
            )?);
        }
        thread::scope(|scope| {
            let running: Vec<_> = prompts
                .chunks(share)
                .zip(workers)
                .map(|(prompts, (scratch, states))| {
                    let (model, queries) = (&*model, &queries[..]);
                    scope.spawn(move || {
                        run_share(model, case, beginning, prompts, queries, scratch, states)
                    })
                })
                .collect();
            for thread in running {
                thread.join().map_err(|_| "a worker stopped")??;
            }
            Ok(())
        })
    }
}

fn run_share(
    model: &Transformer,
    case: Case,
    beginning: Option<&Beginning>,
    prompts: &[Vec<u32>],
    queries: &[Query<'_>],
    scratch: &mut Scratch,
    states: &mut Vec<f32>,
) -> Result<(), trafficllm_model::transformer::TransformerError> {
    if case == Case::AllRows {
        for tokens in prompts {
            black_box(model.logits(tokens, scratch)?);
        }
    } else {
        let sequences: Vec<Sequence<'_>> = prompts
            .iter()
            .map(|tokens| Sequence {
                beginning,
                tokens,
                queries,
            })
            .collect();
        model.forward(&sequences, scratch, states)?;
        black_box(&states);
    }
    Ok(())
}

/// candle's quantised llama: one prompt at a time, since it cannot take a batch of quantised weights.
pub(crate) struct Candle {
    /// Holds the keys and values of the shared prefix, if there is one.
    model: ModelWeights,
    prefix: usize,
    device: Device,
    prompts: Vec<Vec<u32>>,
}

impl Candle {
    /// Threads are those of `RAYON_NUM_THREADS`.
    pub(crate) fn load(
        path: &Path,
        shape: &Shape,
        case: Case,
        prompts: usize,
    ) -> Result<Self, Failure> {
        if case == Case::AllRows {
            return Err("candle always computes all rows".into());
        }
        let mut file = Cursor::new(fs::read(path)?);
        let content = gguf_file::Content::read(&mut file)?;
        let device = Device::Cpu;
        let mut model = ModelWeights::from_gguf(content, &mut file, &device)?;
        let prefix = if case == Case::SharedPrefix {
            PREFIX_TOKENS
        } else {
            0
        };
        if prefix > 0 {
            let prefix = tokens(PROMPTS, prefix, shape.vocabulary);
            model.forward(&Tensor::new(prefix.as_slice(), &device)?.unsqueeze(0)?, 0)?;
        }
        Ok(Self {
            model,
            prefix,
            device,
            prompts: (0..prompts)
                .map(|prompt| tokens(prompt, case.prompt_tokens(), shape.vocabulary))
                .collect(),
        })
    }

    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        for tokens in &self.prompts {
            let input = Tensor::new(tokens.as_slice(), &self.device)?.unsqueeze(0)?;
            if self.prefix > 0 {
                // A clone shares the weights and the prefix's keys and values, and forgets the flow afterwards.
                black_box(self.model.clone().forward(&input, self.prefix)?);
            } else {
                // Position 0 makes candle forget the prompt before.
                black_box(self.model.forward(&input, 0)?);
            }
        }
        Ok(())
    }
}
