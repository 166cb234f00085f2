//! A model's sizes, a batch for it, and what the tests make to launch operations on.

use std::sync::Arc;

use super::fake::{Fake, Launched, fake};
use crate::cuda::{
    Activations, Batch, BatchBounds, Buffer, Class, DeviceError, DeviceMatrix, DeviceMemory,
    Operations, PackedWeights, RowKind, Run, Stream,
};
use crate::{AttentionShape, Int4Matrix, QuantisedMatrix, WeightMatrix};

pub(super) const HIDDEN: usize = 64;
pub(super) const SHAPE: AttentionShape = AttentionShape {
    heads: 6,
    kv_heads: 2,
    head_dim: 16,
};

pub(super) const CLASS: Class = Class {
    tokens: 150,
    query_rows: 20,
    queries: 9,
    token_tiles: 5,
    query_tiles: 7,
};

pub(super) const BOUNDS: BatchBounds = BatchBounds {
    vocabulary: 11,
    query_embeddings: 3,
    positions: 32,
    tasks: 2,
    nodes: 1,
    prefix_rows: 5,
    beginning_rows: 0,
};

pub(super) fn int8(rows: usize, columns: usize) -> WeightMatrix {
    WeightMatrix::Int8(QuantisedMatrix {
        rows,
        columns,
        values: vec![1; rows * columns],
        scales: vec![1.0; rows],
    })
}

pub(super) fn int4(rows: usize, columns: usize) -> WeightMatrix {
    WeightMatrix::Int4(Int4Matrix {
        rows,
        columns,
        nibbles: vec![0; rows * columns / 2],
        scales: vec![1.0; rows * columns / 32],
        minimums: vec![1.0; rows * columns / 32],
    })
}

pub(super) struct Rig {
    pub(super) device: Arc<Fake>,
    pub(super) memory: Arc<DeviceMemory>,
    pub(super) stream: Stream,
    pub(super) batch: Batch,
    pub(super) operations: Operations,
}

impl Rig {
    pub(super) fn new(capability: (u32, u32)) -> Self {
        let (memory, device) = fake(capability, None);
        Self {
            device,
            stream: Stream::new(&memory).unwrap(),
            batch: Batch::new(&memory, CLASS, BOUNDS).unwrap(),
            operations: Operations::new(&memory),
            memory,
        }
    }

    pub(super) fn run(&mut self) -> Run<'_> {
        self.operations
            .on(&mut self.stream, &self.batch, CLASS)
            .unwrap()
    }

    pub(super) fn floats(&self, length: usize) -> Buffer<f32> {
        Buffer::zeroed(&self.memory, "floats", length).unwrap()
    }

    pub(super) fn halves(&self, length: usize) -> Buffer<u16> {
        Buffer::zeroed(&self.memory, "halves", length).unwrap()
    }

    pub(super) fn matrix(&mut self, matrix: &WeightMatrix) -> DeviceMatrix {
        let packed = PackedWeights::stacked(&[matrix]).unwrap();
        DeviceMatrix::upload(&mut self.stream, "matrix", &packed).unwrap()
    }

    pub(super) fn activations(&self, kind: RowKind, rows: usize, columns: usize) -> Activations {
        Activations::new(&self.memory, kind, rows, columns, false).unwrap()
    }
}

pub(super) fn arguments<T: bytemuck::Pod>(launched: &Launched) -> T {
    bytemuck::pod_read_unaligned(&launched.arguments)
}

pub(super) fn assert_size(result: Result<(), DeviceError>) {
    assert!(
        matches!(result, Err(DeviceError::Size { .. })),
        "{result:?}"
    );
}
