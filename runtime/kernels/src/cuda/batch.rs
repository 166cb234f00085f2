//! What tells the kernels where a batch's rows begin, what they stand for and what they see: checked here, because kernels trust it.

use std::sync::Arc;

use bytemuck::{Pod, bytes_of, cast_slice};

use super::arguments::{AttentionTile, BatchHeader};
use super::check::{at_most, exactly, index, small};
use super::memory::{ALIGNMENT_BYTES, Allocation};
use super::{
    Address, Buffer, DeviceError, DeviceMemory, Pinned, QUERY_TILE, RowSet, Stream, TOKEN_TILE,
};

/// Most rows of a batch.
const ROWS_MAX: usize = 1 << 20;
/// Most keys of a source: so many of three ranges and all rows of a batch still are numbers of 32 bits.
const KEYS_MAX: usize = 1 << 30;

/// Most of everything that a batch has: a captured graph is made for one of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// Rows of tokens.
    pub tokens: usize,
    /// Rows of queries.
    pub query_rows: usize,
    /// Queries.
    pub queries: usize,
    /// Attention tiles of rows of tokens.
    pub token_tiles: usize,
    /// Attention tiles of rows of queries.
    pub query_tiles: usize,
}

impl Class {
    /// Rows in all.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens + self.query_rows
    }

    /// Whether batches of the other class are also of this one.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        self.check(other).is_ok()
    }

    pub(super) fn rows_of(&self, set: RowSet) -> usize {
        match set {
            RowSet::All => self.rows(),
            RowSet::Tokens => self.tokens,
            RowSet::Queries => self.query_rows,
            RowSet::Last => self.queries,
        }
    }

    pub(super) fn check(&self, other: &Self) -> Result<(), DeviceError> {
        at_most("rows of tokens", self.tokens, other.tokens)?;
        at_most("rows of queries", self.query_rows, other.query_rows)?;
        at_most("queries", self.queries, other.queries)?;
        at_most(
            "attention tiles of tokens",
            self.token_tiles,
            other.token_tiles,
        )?;
        at_most(
            "attention tiles of queries",
            self.query_tiles,
            other.query_tiles,
        )
    }
}

/// What the numbers of a batch are indices of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchBounds {
    /// Tokens of the embedding table.
    pub vocabulary: usize,
    /// Rows of the query embeddings.
    pub query_embeddings: usize,
    /// Positions of the rotary table.
    pub positions: usize,
    /// Entries of the tables of low-rank factors.
    pub tasks: usize,
    /// Nodes of the label table.
    pub nodes: usize,
    /// Rows of keys of the tasks' prefixes, source 1 of a [`KeyRange`](super::KeyRange).
    pub prefix_rows: usize,
    /// Rows of keys of shared beginnings, source 2.
    pub beginning_rows: usize,
}

/// One batch: rows of tokens, then rows of queries.
#[derive(Debug, Clone, Copy, Default)]
pub struct BatchRows<'a> {
    /// Rows of tokens.
    pub tokens: usize,
    /// Of each row: the token, or for rows of queries the row of the query embeddings.
    pub row_index: &'a [u32],
    /// Of each row.
    pub positions: &'a [u32],
    /// Of each row: the entry of the tables of low-rank factors, or -1.
    pub row_task: &'a [i32],
    /// The last row of each query.
    pub last_rows: &'a [u32],
    /// The node of the label table that each query asks about; empty where labels are not asked for.
    pub query_node: &'a [u32],
    /// At most 64 rows each.
    pub token_tiles: &'a [AttentionTile],
    /// At most 16 rows each.
    pub query_tiles: &'a [AttentionTile],
}

/// Where a list stands in the block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    start: usize,
    bytes: usize,
}

/// The lists of the block, in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sections {
    header: Section,
    pub(super) row_index: Section,
    pub(super) positions: Section,
    pub(super) row_task: Section,
    pub(super) last_rows: Section,
    pub(super) query_node: Section,
    /// Of each query: the entry of its last row in `row_task`.
    pub(super) last_task: Section,
    pub(super) token_tiles: Section,
    pub(super) query_tiles: Section,
    bytes: usize,
}

impl Sections {
    fn new(capacity: &Class) -> Self {
        let mut bytes = 0;
        let mut section = |count: usize, size: usize| {
            let section = Section {
                start: bytes,
                bytes: count * size,
            };
            bytes = (bytes + count * size).next_multiple_of(ALIGNMENT_BYTES);
            section
        };
        let (rows, queries, word) = (capacity.rows(), capacity.queries, size_of::<u32>());
        let tile = size_of::<AttentionTile>();
        let sections = Self {
            header: section(1, size_of::<BatchHeader>()),
            row_index: section(rows, word),
            positions: section(rows, word),
            row_task: section(rows, word),
            last_rows: section(queries, word),
            query_node: section(queries, word),
            last_task: section(queries, word),
            token_tiles: section(capacity.token_tiles, tile),
            query_tiles: section(capacity.query_tiles, tile),
            bytes: 0,
        };
        Self { bytes, ..sections }
    }
}

/// The lists of one batch at a time, on the host and on the device.
#[derive(Debug)]
pub struct Batch {
    capacity: Class,
    bounds: BatchBounds,
    sections: Sections,
    host: Pinned<u8>,
    device: Buffer<u8>,
}

impl Batch {
    /// Room for batches of that class, whose numbers stay in these bounds. It is empty at first.
    ///
    /// # Errors
    /// [`DeviceError::Size`] for more than 2^20 of anything, [`DeviceError::Memory`].
    pub fn new(
        memory: &Arc<DeviceMemory>,
        capacity: Class,
        bounds: BatchBounds,
    ) -> Result<Self, DeviceError> {
        const WHAT: &str = "lists of a batch";
        let most = Class {
            tokens: ROWS_MAX,
            query_rows: ROWS_MAX,
            queries: ROWS_MAX,
            token_tiles: ROWS_MAX,
            query_tiles: ROWS_MAX,
        };
        most.check(&capacity)?;
        at_most("keys of prefixes", KEYS_MAX, bounds.prefix_rows)?;
        at_most("keys of beginnings", KEYS_MAX, bounds.beginning_rows)?;
        let sections = Sections::new(&capacity);
        Ok(Self {
            capacity,
            bounds,
            sections,
            host: Pinned::zeroed(memory, WHAT, sections.bytes)?,
            device: Buffer::zeroed(memory, WHAT, sections.bytes)?,
        })
    }

    /// The largest class.
    #[must_use]
    pub fn capacity(&self) -> &Class {
        &self.capacity
    }

    /// What its numbers are indices of.
    #[must_use]
    pub fn bounds(&self) -> &BatchBounds {
        &self.bounds
    }

    /// Bytes of the device's memory held.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        self.device.bytes()
    }

    /// Bytes of the host's memory for copies held.
    #[must_use]
    pub fn pinned_bytes(&self) -> usize {
        self.host.bytes()
    }

    /// Takes a batch of that class, once every number of it has been checked; it is there after [`Batch::copy_in`].
    ///
    /// # Errors
    /// [`DeviceError::Size`] for too much of anything or lists of other lengths, [`DeviceError::Index`] for a number that is out of
    /// bounds, [`DeviceError::Order`] while an earlier batch may still be copied. The batch of before stays then.
    pub fn fill(&self, batch: &BatchRows<'_>, class: Class) -> Result<(), DeviceError> {
        self.capacity.check(&class)?;
        let rows = batch.row_index.len();
        at_most("rows of tokens", rows, batch.tokens)?;
        class.check(&Class {
            tokens: batch.tokens,
            query_rows: rows - batch.tokens,
            queries: batch.last_rows.len(),
            token_tiles: batch.token_tiles.len(),
            query_tiles: batch.query_tiles.len(),
        })?;
        self.check(batch)?;
        let header = BatchHeader {
            rows: small("rows", rows)?,
            tokens: small("tokens", batch.tokens)?,
            queries: small("queries", batch.last_rows.len())?,
            token_tiles: small("tiles", batch.token_tiles.len())?,
            query_tiles: small("tiles", batch.query_tiles.len())?,
            reserved: [0; 11],
        };
        let sections = &self.sections;
        self.host.with(|bytes| {
            put(bytes, sections.header, bytes_of(&header));
            put(bytes, sections.row_index, cast_slice(batch.row_index));
            put(bytes, sections.positions, cast_slice(batch.positions));
            put(bytes, sections.row_task, cast_slice(batch.row_task));
            put(bytes, sections.last_rows, cast_slice(batch.last_rows));
            put(bytes, sections.query_node, cast_slice(batch.query_node));
            for (at, row) in batch.last_rows.iter().enumerate() {
                let task = batch.row_task[*row as usize];
                put(bytes, sections.last_task.at::<i32>(at), bytes_of(&task));
            }
            put(bytes, sections.token_tiles, cast_slice(batch.token_tiles));
            put(bytes, sections.query_tiles, cast_slice(batch.query_tiles));
        })
    }

    /// Asks for the copy to the device. A batch is used on one stream alone: on another one, kernels may read some lists of one copy and some
    /// of the next.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy_in(&self, stream: &mut Stream) -> Result<(), DeviceError> {
        stream.copy_in(&self.host, &self.device)
    }

    fn check(&self, batch: &BatchRows<'_>) -> Result<(), DeviceError> {
        let rows = batch.row_index.len();
        let bounds = &self.bounds;
        let (tokens, queries) = batch.row_index.split_at(batch.tokens);
        index("token", tokens, bounds.vocabulary)?;
        index("query embedding", queries, bounds.query_embeddings)?;
        exactly("positions", rows, batch.positions.len())?;
        index("position", batch.positions, bounds.positions)?;
        exactly("tasks of rows", rows, batch.row_task.len())?;
        let tasks = batch.row_task.iter().enumerate();
        for (at, task) in tasks.filter(|(_, task)| **task != -1) {
            // A negative number is a large one here.
            let found = task.cast_unsigned() as usize;
            index("task of row", &[task.cast_unsigned()], bounds.tasks).map_err(
                |_out_of_bounds| DeviceError::Index {
                    what: "task of row",
                    at,
                    limit: bounds.tasks,
                    found,
                },
            )?;
        }
        index("last row of query", batch.last_rows, rows)?;
        if !batch.query_node.is_empty() {
            exactly(
                "nodes of queries",
                batch.last_rows.len(),
                batch.query_node.len(),
            )?;
            index("node of query", batch.query_node, bounds.nodes)?;
        }
        self.check_tiles(batch.token_tiles, rows, TOKEN_TILE)?;
        self.check_tiles(batch.query_tiles, rows, QUERY_TILE)
    }

    fn check_tiles(
        &self,
        tiles: &[AttentionTile],
        rows: usize,
        rows_max: u32,
    ) -> Result<(), DeviceError> {
        let sources = [rows, self.bounds.prefix_rows, self.bounds.beginning_rows];
        for (at, tile) in tiles.iter().enumerate() {
            let error = |what, limit: usize, found: u64| DeviceError::Index {
                what,
                at,
                limit,
                found: usize::try_from(found).unwrap_or(usize::MAX),
            };
            if !(1..=rows_max).contains(&tile.rows) {
                let limit = rows_max as usize + 1;
                return Err(error("rows of attention tile", limit, u64::from(tile.rows)));
            }
            let end = u64::from(tile.first_row) + u64::from(tile.rows);
            if end > rows as u64 {
                return Err(error("last row of attention tile", rows, end - 1));
            }
            if tile.own_first > tile.first_row {
                let (limit, found) = (tile.first_row as usize + 1, u64::from(tile.own_first));
                return Err(error("first own key of attention tile", limit, found));
            }
            let Some(ranges) = tile.context.get(..tile.ranges as usize) else {
                let limit = tile.context.len() + 1;
                return Err(error(
                    "ranges of attention tile",
                    limit,
                    u64::from(tile.ranges),
                ));
            };
            for range in ranges {
                let Some(limit) = sources.get(range.source as usize) else {
                    let (limit, found) = (sources.len(), u64::from(range.source));
                    return Err(error("source of keys of attention tile", limit, found));
                };
                let end = u64::from(range.first) + u64::from(range.count);
                if range.count > 0 && end > *limit as u64 {
                    return Err(error("last key of attention tile", *limit, end - 1));
                }
            }
        }
        Ok(())
    }

    pub(super) fn sections(&self) -> &Sections {
        &self.sections
    }

    pub(super) fn header(&self) -> Address {
        self.address(self.sections.header)
    }

    pub(super) fn address(&self, section: Section) -> Address {
        self.device.address_at(section.start)
    }

    #[cfg(test)]
    pub(super) fn device_block(&self) -> Buffer<u8> {
        self.device.clone()
    }

    pub(super) fn allocation(&self) -> &Arc<Allocation> {
        self.device.allocation()
    }
}

impl Section {
    /// One value of the list.
    fn at<T: Pod>(self, index: usize) -> Self {
        Self {
            start: self.start + index * size_of::<T>(),
            bytes: size_of::<T>(),
        }
    }
}

/// Counts were checked: lists are at most as long as their section.
fn put(block: &mut [u8], section: Section, bytes: &[u8]) {
    block[section.start..section.start + section.bytes][..bytes.len()].copy_from_slice(bytes);
}
