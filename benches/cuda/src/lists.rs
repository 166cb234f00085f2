//! Batches to time kernels on: sequences of the shape's own tokens and a query row each, and rows of random floats.

use std::sync::Arc;

use trafficllm_kernels::cuda::{
    AttentionTile, Batch, BatchBounds, BatchRows, Buffer, Class, DeviceMemory, KeyRange, Stream,
    TOKEN_TILE,
};

use crate::Failure;
use crate::random::Random;
use crate::shapes::Shape;

/// Rows of keys of a task's prefix.
pub(crate) const PREFIX_ROWS: usize = 16;

/// The lists of one number of tokens, and their class.
pub(crate) struct Rows {
    pub(crate) batch: Batch,
    pub(crate) class: Class,
}

/// Random floats on the device, a block of them over and over.
pub(crate) fn fill(
    stream: &mut Stream,
    random: &mut Random,
    count: usize,
) -> Result<Buffer<f32>, Failure> {
    let block = random.floats(count.min(1 << 20));
    let values: Vec<f32> = block.iter().copied().cycle().take(count).collect();
    Ok(Buffer::uploaded(stream, "rows", &values)?)
}

/// Sequences of the shape's own tokens and a query row each, behind what they share.
pub(crate) fn rows(
    memory: &Arc<DeviceMemory>,
    stream: &mut Stream,
    shape: &Shape,
    tokens: usize,
) -> Result<Rows, Failure> {
    let own = shape.tokens - shape.shared_tokens;
    let starts: Vec<usize> = (0..tokens).step_by(own).collect();
    let queries = starts.len();
    let shared = KeyRange {
        source: 2,
        count: shape.shared_tokens as u32,
        ..KeyRange::default()
    };
    let (mut token_tiles, mut query_tiles, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for &start in &starts {
        let end = (start + own).min(tokens);
        positions.extend((0..end - start).map(|at| (shape.shared_tokens + at) as u32));
        for first in (start..end).step_by(TOKEN_TILE as usize) {
            token_tiles.push(AttentionTile {
                first_row: first as u32,
                rows: (end - first).min(TOKEN_TILE as usize) as u32,
                own_first: start as u32,
                ranges: 1,
                context: [shared, KeyRange::default(), KeyRange::default()],
            });
        }
    }
    for (query, &start) in starts.iter().enumerate() {
        let end = (start + own).min(tokens);
        let row = (tokens + query) as u32;
        positions.push((shape.shared_tokens + end - start) as u32);
        let prefix = KeyRange {
            source: 1,
            count: PREFIX_ROWS as u32,
            ..KeyRange::default()
        };
        let sequence = KeyRange {
            source: 0,
            first: start as u32,
            count: (end - start) as u32,
            reserved: 0,
        };
        query_tiles.push(AttentionTile {
            first_row: row,
            rows: 1,
            own_first: row,
            ranges: 3,
            context: [prefix, shared, sequence],
        });
    }
    let class = Class {
        tokens,
        query_rows: queries,
        queries,
        token_tiles: token_tiles.len(),
        query_tiles: query_tiles.len(),
    };
    let bounds = BatchBounds {
        vocabulary: shape.vocabulary,
        query_embeddings: 1,
        positions: shape.tokens + 1,
        tasks: 0,
        nodes: 1,
        prefix_rows: PREFIX_ROWS,
        beginning_rows: shape.shared_tokens,
    };
    let mut row_index = Random::new(3).below(tokens, shape.vocabulary);
    row_index.extend(vec![0; queries]);
    let last_rows: Vec<u32> = (tokens..tokens + queries).map(|row| row as u32).collect();
    let batch = Batch::new(memory, class, bounds)?;
    let lists = BatchRows {
        tokens,
        row_index: &row_index,
        positions: &positions,
        row_task: &vec![-1; tokens + queries],
        last_rows: &last_rows,
        query_node: &vec![0; queries],
        token_tiles: &token_tiles,
        query_tiles: &query_tiles,
    };
    batch.fill(&lists, class)?;
    batch.copy_in(stream)?;
    stream.synchronize()?;
    Ok(Rows { batch, class })
}
