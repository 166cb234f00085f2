//! One batch on a device, for tests that launch operations on it.

use std::sync::Arc;

use bytemuck::Pod;
use trafficllm_kernels::cuda::{
    AttentionTile, Batch, BatchBounds, BatchRows, Buffer, Class, DeviceError, DeviceMemory,
    Operations, Run, Stream,
};

use crate::support;

/// What [`BatchRows`] borrows.
#[derive(Default)]
pub(crate) struct Lists {
    pub(crate) tokens: usize,
    pub(crate) row_index: Vec<u32>,
    /// Empty: all 0.
    pub(crate) positions: Vec<u32>,
    pub(crate) row_task: Vec<i32>,
    pub(crate) last_rows: Vec<u32>,
    pub(crate) query_node: Vec<u32>,
    pub(crate) token_tiles: Vec<AttentionTile>,
    pub(crate) query_tiles: Vec<AttentionTile>,
    pub(crate) bounds: BatchBounds,
}

impl Lists {
    /// Rows of which only the tasks matter. Every third row of queries is the last of its query.
    pub(crate) fn rows(tokens: usize, row_task: &[i32], tasks: usize) -> Self {
        Self {
            tokens,
            row_index: vec![0; row_task.len()],
            row_task: row_task.to_vec(),
            last_rows: (tokens as u32..row_task.len() as u32).step_by(3).collect(),
            bounds: BatchBounds {
                tasks,
                ..BatchBounds::default()
            },
            ..Self::default()
        }
    }

    /// Queries of one row each, of which only the nodes matter.
    pub(crate) fn queries(query_node: &[u32], nodes: usize) -> Self {
        let mut lists = Self::rows(0, &vec![-1; query_node.len()], 0);
        lists.last_rows = (0..query_node.len() as u32).collect();
        lists.query_node = query_node.to_vec();
        lists.bounds.nodes = nodes;
        lists
    }
}

/// A device, a batch that is there, and what launches operations. The class has room for more of everything than the batch has.
pub(crate) struct Rig {
    pub(crate) memory: Arc<DeviceMemory>,
    pub(crate) stream: Stream,
    pub(crate) class: Class,
    pub(crate) last_rows: Vec<u32>,
    batch: Batch,
    operations: Operations,
}

impl Rig {
    /// `seed` is that of the order in which threads run.
    pub(crate) fn new(seed: u64, lists: Lists) -> Self {
        let memory = DeviceMemory::new(support::device(seed), None);
        let mut stream = Stream::new(&memory).unwrap();
        let rows = lists.row_index.len();
        let class = Class {
            tokens: lists.tokens + 3,
            query_rows: rows - lists.tokens + 6,
            queries: lists.last_rows.len() + 1,
            token_tiles: lists.token_tiles.len() + 2,
            query_tiles: lists.query_tiles.len() + 1,
        };
        let bounds = BatchBounds {
            vocabulary: lists.bounds.vocabulary.max(1),
            query_embeddings: lists.bounds.query_embeddings.max(1),
            positions: lists.bounds.positions.max(1),
            ..lists.bounds
        };
        let batch = Batch::new(&memory, class, bounds).unwrap();
        let mut positions = lists.positions;
        positions.resize(rows, 0);
        let filled = BatchRows {
            tokens: lists.tokens,
            row_index: &lists.row_index,
            positions: &positions,
            row_task: &lists.row_task,
            last_rows: &lists.last_rows,
            query_node: &lists.query_node,
            token_tiles: &lists.token_tiles,
            query_tiles: &lists.query_tiles,
        };
        batch.fill(&filled, class).unwrap();
        batch.copy_in(&mut stream).unwrap();
        let operations = Operations::new(&memory);
        Self {
            memory,
            stream,
            class,
            last_rows: lists.last_rows,
            batch,
            operations,
        }
    }

    pub(crate) fn run(&mut self, launch: impl FnOnce(&mut Run<'_>) -> Result<(), DeviceError>) {
        let mut run = self
            .operations
            .on(&mut self.stream, &self.batch, self.class)
            .unwrap();
        launch(&mut run).unwrap();
        self.stream.synchronize().unwrap();
    }

    pub(crate) fn upload<T: Pod>(&mut self, values: &[T]) -> Buffer<T> {
        Buffer::uploaded(&mut self.stream, "values of a test", values).unwrap()
    }

    pub(crate) fn read<T: Pod>(&mut self, buffer: &Buffer<T>) -> Vec<T> {
        let mut values = vec![T::zeroed(); buffer.length()];
        self.stream.read(buffer, &mut values).unwrap();
        values
    }
}
