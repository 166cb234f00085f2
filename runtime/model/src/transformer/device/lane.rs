//! One thread's way to the device: a stream, buffers and graphs.

use std::sync::Arc;

use trafficllm_kernels::cuda::{
    Batch, BatchBounds, Class, DeviceError, Epilogue, QUERY_TILE, Stream, TILE_ROWS, TOKEN_TILE,
};

use super::answers::{Answers, Decided};
use super::classes::{class_of, sum};
use super::graphs::{GraphKey, Graphs};
use super::pass::{Buffers, Pass, Purpose};
use super::plan::{Plan, sizes_of};
use super::{DeviceBeginning, DeviceSequence, DeviceTransformer};

/// The largest batch that a lane runs at once; what is larger runs in parts, but a sequence with its queries has to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSizes {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Rows of all queries.
    pub query_rows: usize,
    /// Queries of all sequences.
    pub queries: usize,
    /// Sequences.
    pub sequences: usize,
    /// Most tokens of a shared beginning; 0 where there are none.
    pub beginning_tokens: usize,
}

impl LaneSizes {
    fn capacity(&self) -> Class {
        let tiles = |rows: usize, tile: u32| rows / tile as usize;
        Class {
            tokens: self.tokens.max(self.beginning_tokens).max(1),
            query_rows: self.query_rows.max(1),
            queries: self.queries.max(1),
            // Each sequence and each query may end inside a tile.
            token_tiles: tiles(self.tokens.max(self.beginning_tokens), TOKEN_TILE)
                + self.sequences.max(1),
            query_tiles: tiles(self.query_rows, QUERY_TILE) + self.queries.max(1),
        }
    }
}

/// One thread's stream, buffers and graphs.
#[derive(Debug)]
pub struct TransformerLane {
    model: Arc<DeviceTransformer>,
    stream: Stream,
    capacity: Class,
    beginning_rows: usize,
    plan: Plan,
    batch: Batch,
    buffers: Buffers,
    answers: Answers,
    graphs: Graphs,
    /// Something was asked of the stream whose end is not known: until it is, the memory for copies counts as in use.
    is_unfinished: bool,
}

impl TransformerLane {
    /// Makes the buffers, and compiles the kernels that such batches need.
    ///
    /// # Errors
    /// [`DeviceError::Memory`], [`DeviceError::Compile`], what the driver says.
    pub fn new(model: &Arc<DeviceTransformer>, sizes: &LaneSizes) -> Result<Self, DeviceError> {
        let (memory, tasks, base) = (&model.memory, &model.tasks, &model.base);
        let capacity = sizes.capacity();
        let bounds = BatchBounds {
            vocabulary: base.token_embedding.vocabulary(),
            query_embeddings: tasks.embedding_rows,
            positions: base.rotary.positions(),
            tasks: if tasks.factors.is_empty() {
                0
            } else {
                tasks.rows.len()
            },
            nodes: tasks.labels.nodes(),
            prefix_rows: tasks.prefix_rows,
            beginning_rows: sizes.beginning_tokens,
        };
        let mut plan = Plan::default();
        plan.try_reserve(&capacity)?;
        let lane = Self {
            stream: Stream::new(memory)?,
            capacity,
            beginning_rows: sizes.beginning_tokens,
            plan,
            batch: Batch::new(memory, capacity, bounds)?,
            buffers: Buffers::new(model, &capacity)?,
            answers: Answers::new(model, capacity.queries)?,
            graphs: Graphs::default(),
            is_unfinished: false,
            model: Arc::clone(model),
        };
        lane.prepare()?;
        Ok(lane)
    }

    /// Compiles the kernels of products for all numbers of rows that there can be.
    fn prepare(&self) -> Result<(), DeviceError> {
        let model = &*self.model;
        let most = self.capacity.rows();
        let around = TILE_ROWS.into_iter().flat_map(|tile| {
            let tile = tile as usize;
            [tile - 1, tile, tile + 1]
        });
        let rows: Vec<usize> = around
            .filter(|rows| *rows <= most)
            .chain([1, most])
            .collect();
        let low_rank: &[bool] = if model.tasks.factors.is_empty() {
            &[false]
        } else {
            &[false, true]
        };
        for layer in &model.layers {
            let epilogues = [
                Epilogue::Rotary,
                Epilogue::Add,
                Epilogue::Gated,
                Epilogue::Add,
            ];
            for (matrix, epilogue) in layer.matrices().into_iter().zip(epilogues) {
                for &low_rank in low_rank {
                    let (operations, rows) = (&model.operations, rows.iter().copied());
                    operations.prepare_products(
                        matrix,
                        model.activations,
                        epilogue,
                        low_rank,
                        rows,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<DeviceTransformer> {
        &self.model
    }

    /// Bytes of the device's memory.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        let bytes = self.buffers.bytes() + self.batch.device_bytes() + self.answers.device_bytes();
        bytes as u64
    }

    /// Bytes of the host's memory.
    #[must_use]
    pub fn host_bytes(&self) -> usize {
        self.answers.host_bytes() + self.batch.pinned_bytes() + self.plan.bytes()
    }

    /// How many classes of batches have been captured and are still kept.
    #[must_use]
    pub fn graphs(&self) -> usize {
        self.graphs.count()
    }

    /// Runs sequences, which all follow the beginning where there is one, and gives the answer to every query to `take`, in order of
    /// sequences, then of queries. The result of a query is the same whatever it is batched with.
    ///
    /// # Errors
    /// [`DeviceError::Size`] for a sequence that does not fit, [`DeviceError::Index`] for tokens, tasks, words, nodes or positions that
    /// the model does not have, and whatever the device says. `take` may have been given some of the answers.
    pub fn forward(
        &mut self,
        sequences: &[DeviceSequence<'_>],
        beginning: Option<&DeviceBeginning>,
        wants_states: bool,
        mut take: impl FnMut(Decided<'_>),
    ) -> Result<(), DeviceError> {
        let mut rest = sequences;
        while !rest.is_empty() {
            let (part, sizes);
            (part, sizes, rest) = self.next_part(rest)?;
            if sizes.queries == 0 {
                continue;
            }
            let part = part.iter().filter(|sequence| !sequence.queries.is_empty());
            self.run(part.clone(), &sizes, beginning, wants_states)?;
            self.answers
                .hand_out(&self.model, part, wants_states, &mut take)?;
        }
        Ok(())
    }

    /// Runs tokens that many sequences begin with, once for all of them.
    ///
    /// # Errors
    /// As [`TransformerLane::forward`].
    pub fn begin(&mut self, tokens: &[u32]) -> Result<DeviceBeginning, DeviceError> {
        let model = Arc::clone(&self.model);
        let config = &model.config;
        if tokens.len() > self.beginning_rows {
            return Err(DeviceError::Size {
                what: "tokens of a beginning",
                expected: self.beginning_rows,
                found: tokens.len(),
            });
        }
        let rows_held = self.capacity.rows().max(self.beginning_rows);
        let sizes = (config.layers, config.key_size());
        let beginning = DeviceBeginning::new(&model.memory, sizes, tokens.len(), rows_held)?;
        if tokens.is_empty() {
            return Ok(beginning);
        }
        let sequence = DeviceSequence {
            tokens,
            queries: &[],
        };
        let class = class_of(&sizes_of(&sequence, &[]), &self.capacity);
        self.settle()?;
        self.plan.fill([sequence].iter(), &[], 0);
        self.batch.fill(&self.plan.rows(), class)?;
        self.is_unfinished = true;
        let asked = self.ask_beginning(&beginning, class);
        // Also after a refusal: part of it may have been asked.
        let done = self.settle();
        asked.and(done)?;
        Ok(beginning)
    }

    /// Waits for the end of what was asked, unless it was seen already.
    fn settle(&mut self) -> Result<(), DeviceError> {
        if self.is_unfinished {
            self.stream.synchronize()?;
            self.is_unfinished = false;
        }
        Ok(())
    }

    /// Asks for the keys and values of the tokens that the batch was filled with.
    fn ask_beginning(
        &mut self,
        beginning: &DeviceBeginning,
        class: Class,
    ) -> Result<(), DeviceError> {
        self.batch.copy_in(&mut self.stream)?;
        let operations = &self.model.operations;
        let pass = Pass {
            model: &self.model,
            buffers: &self.buffers,
            run: operations.on(&mut self.stream, &self.batch, class)?,
            purpose: Purpose::Beginning(beginning),
            has_lora: false,
        };
        pass.ask()
    }

    /// As many of the first sequences as fit, their sizes, and those that are left.
    fn next_part<'a>(
        &self,
        sequences: &'a [DeviceSequence<'a>],
    ) -> Result<(&'a [DeviceSequence<'a>], Class, &'a [DeviceSequence<'a>]), DeviceError> {
        let mut sizes = Class::default();
        let mut count = 0;
        for sequence in sequences {
            if !sequence.queries.is_empty() {
                let own = sizes_of(sequence, &self.model.tasks.rows);
                let more = sum(&sizes, &own);
                if !self.capacity.holds(&more) {
                    if sizes.queries > 0 {
                        break;
                    }
                    return Err(DeviceError::Size {
                        what: "rows of a sequence with its queries",
                        expected: self.capacity.rows(),
                        found: own.rows(),
                    });
                }
                sizes = more;
            }
            count += 1;
        }
        let (part, rest) = sequences.split_at(count);
        Ok((part, sizes, rest))
    }

    /// Runs one part and leaves its answers in the host's memory.
    fn run<'s>(
        &mut self,
        sequences: impl Iterator<Item = &'s DeviceSequence<'s>> + Clone,
        sizes: &Class,
        beginning: Option<&DeviceBeginning>,
        wants_states: bool,
    ) -> Result<(), DeviceError> {
        self.settle()?;
        let Self {
            model,
            stream,
            plan,
            batch,
            buffers,
            answers,
            graphs,
            is_unfinished,
            ..
        } = self;
        let class = class_of(sizes, &self.capacity);
        let tokens = beginning.map_or(0, DeviceBeginning::tokens);
        plan.fill(sequences, &model.tasks.rows, tokens);
        batch.fill(&plan.rows(), class)?;
        let key = GraphKey {
            class,
            has_lora: plan.has_lora(),
            wants_states,
            beginning: beginning.map(DeviceBeginning::id),
        };
        let graph = graphs.get(key, || {
            stream.capture(|stream| {
                batch.copy_in(stream)?;
                let pass = Pass {
                    model,
                    buffers,
                    run: model.operations.on(stream, batch, class)?,
                    purpose: Purpose::Queries(beginning),
                    has_lora: key.has_lora,
                };
                pass.ask()?;
                let run = model.operations.on(stream, batch, class)?;
                answers.score(model, run, &buffers.states)?;
                let states = wants_states.then_some(&buffers.states);
                answers.copy_out(stream, model, class.queries, states)
            })
        })?;
        *is_unfinished = true;
        let launched = stream.launch_graph(graph);
        // Also after a refusal: part of it may have been asked.
        let done = self.settle();
        launched.and(done)
    }
}
