//! The lists of a batch: which row is what, stands where, and sees which keys.
//!
//! Rows of a batch: the tokens of all its sequences, then the query rows of all its sequences, as on the processor.

use trafficllm_kernels::KernelError;
use trafficllm_kernels::cuda::{AttentionTile, BatchRows, Class, KeyRange, QUERY_TILE, TOKEN_TILE};
use trafficllm_kernels::memory::try_hold;

use super::DeviceSequence;
use super::tasks::TaskRows;

/// Where the keys of a [`KeyRange`] stand.
const OF_BATCH: u32 = 0;
const OF_PREFIXES: u32 = 1;
const OF_BEGINNING: u32 = 2;

/// What errors call the lists.
const LISTS: &str = "lists of a batch";

/// The lists of one batch, kept from batch to batch.
#[derive(Debug, Default)]
pub(super) struct Plan {
    tokens: usize,
    row_index: Vec<u32>,
    positions: Vec<u32>,
    row_task: Vec<i32>,
    last_rows: Vec<u32>,
    query_node: Vec<u32>,
    token_tiles: Vec<AttentionTile>,
    query_tiles: Vec<AttentionTile>,
    has_lora: bool,
}

/// The sizes of one sequence with its queries.
pub(super) fn sizes_of(sequence: &DeviceSequence<'_>, tasks: &[TaskRows]) -> Class {
    let mut sizes = Class {
        tokens: sequence.tokens.len(),
        query_rows: 0,
        queries: sequence.queries.len(),
        token_tiles: sequence.tokens.len().div_ceil(TOKEN_TILE as usize),
        query_tiles: 0,
    };
    for query in sequence.queries {
        let rows = tasks.get(query.task).map_or(0, |task| task.query_rows) + query.words.len();
        sizes.query_rows += rows;
        sizes.query_tiles += rows.div_ceil(QUERY_TILE as usize);
    }
    sizes
}

impl Plan {
    /// Makes room for batches of that class.
    pub(super) fn try_reserve(&mut self, class: &Class) -> Result<(), KernelError> {
        let rows = class.tokens + class.query_rows;
        try_hold(LISTS, &mut self.row_index, rows)?;
        try_hold(LISTS, &mut self.positions, rows)?;
        try_hold(LISTS, &mut self.row_task, rows)?;
        try_hold(LISTS, &mut self.last_rows, class.queries)?;
        try_hold(LISTS, &mut self.query_node, class.queries)?;
        try_hold(LISTS, &mut self.token_tiles, class.token_tiles)?;
        try_hold(LISTS, &mut self.query_tiles, class.query_tiles)
    }

    /// Makes the lists of these sequences, which all follow a beginning of so many tokens. Tasks and words that do not exist give rows
    /// that do not exist, which the batch refuses.
    pub(super) fn fill<'a>(
        &mut self,
        sequences: impl Iterator<Item = &'a DeviceSequence<'a>> + Clone,
        tasks: &[TaskRows],
        beginning: usize,
    ) {
        self.clear();
        let beginning = beginning as u32;
        for sequence in sequences.clone() {
            let first = self.row_index.len() as u32;
            self.row_index.extend_from_slice(sequence.tokens);
            let positions = (beginning..).take(sequence.tokens.len());
            self.positions.extend(positions);
            push_tiles(
                &mut self.token_tiles,
                first,
                sequence.tokens.len() as u32,
                TOKEN_TILE,
                &[range(OF_BEGINNING, 0, beginning)],
            );
        }
        self.tokens = self.row_index.len();
        self.row_task.resize(self.tokens, -1);
        let mut first_token = 0;
        for sequence in sequences {
            let tokens = sequence.tokens.len() as u32;
            for query in sequence.queries {
                let first = self.row_index.len() as u32;
                let task = tasks.get(query.task).copied().unwrap_or(TaskRows::MISSING);
                let own = (task.first_row..).take(task.query_rows);
                self.row_index.extend(own);
                let words = query.words.iter();
                self.row_index
                    .extend(words.map(|word| task.row_of_word(*word)));
                let rows = self.row_index.len() as u32 - first;
                self.positions
                    .extend((beginning + tokens..).take(rows as usize));
                let with_factors = if task.has_lora { query.task as i32 } else { -1 };
                self.row_task.resize(self.row_index.len(), with_factors);
                self.has_lora |= task.has_lora;
                self.last_rows.push((first + rows).saturating_sub(1));
                self.query_node
                    .push(task.first_node.saturating_add(query.node as u32));
                let context = [
                    range(OF_PREFIXES, task.first_prefix, task.prefix_rows),
                    range(OF_BATCH, first_token, tokens),
                    range(OF_BEGINNING, 0, beginning),
                ];
                push_tiles(&mut self.query_tiles, first, rows, QUERY_TILE, &context);
            }
            first_token += tokens;
        }
    }

    /// Whether any row has low-rank additions.
    pub(super) fn has_lora(&self) -> bool {
        self.has_lora
    }

    /// The lists.
    pub(super) fn rows(&self) -> BatchRows<'_> {
        BatchRows {
            tokens: self.tokens,
            row_index: &self.row_index,
            positions: &self.positions,
            row_task: &self.row_task,
            last_rows: &self.last_rows,
            query_node: &self.query_node,
            token_tiles: &self.token_tiles,
            query_tiles: &self.query_tiles,
        }
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        let numbers = self.row_index.capacity()
            + self.positions.capacity()
            + self.row_task.capacity()
            + self.last_rows.capacity()
            + self.query_node.capacity();
        let tiles = self.token_tiles.capacity() + self.query_tiles.capacity();
        numbers * size_of::<u32>() + tiles * size_of::<AttentionTile>()
    }

    fn clear(&mut self) {
        self.tokens = 0;
        self.has_lora = false;
        for list in [
            &mut self.row_index,
            &mut self.positions,
            &mut self.last_rows,
            &mut self.query_node,
        ] {
            list.clear();
        }
        self.row_task.clear();
        self.token_tiles.clear();
        self.query_tiles.clear();
    }
}

fn range(source: u32, first: u32, count: u32) -> KeyRange {
    KeyRange {
        source,
        first,
        count,
        reserved: 0,
    }
}

/// Appends tiles of at most `most` rows for rows that see this context and those of their own that come before them.
fn push_tiles(
    tiles: &mut Vec<AttentionTile>,
    first: u32,
    rows: u32,
    most: u32,
    context: &[KeyRange],
) {
    let mut ranges = [range(OF_BATCH, 0, 0); 3];
    let mut count = 0;
    let seen = context.iter().filter(|range| range.count > 0);
    for (slot, range) in ranges.iter_mut().zip(seen) {
        *slot = *range;
        count += 1;
    }
    for start in (0..rows).step_by(most as usize) {
        tiles.push(AttentionTile {
            first_row: first + start,
            rows: most.min(rows - start),
            own_first: first,
            ranges: count,
            context: ranges,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::DeviceQuery;
    use super::*;

    /// The first task has two rows, three words, a prefix and factors, the second seventeen rows and nothing else.
    const TASKS: [TaskRows; 2] = [
        TaskRows {
            first_row: 0,
            query_rows: 2,
            words: 3,
            first_prefix: 4,
            prefix_rows: 5,
            first_node: 0,
            has_lora: true,
        },
        TaskRows {
            first_row: 5,
            query_rows: 17,
            words: 0,
            first_prefix: 0,
            prefix_rows: 0,
            first_node: 2,
            has_lora: false,
        },
    ];

    fn queries() -> [DeviceQuery<'static>; 2] {
        let query = |task, words, node| DeviceQuery { task, words, node };
        [query(0, &[2], 1), query(1, &[], 0)]
    }

    fn planned(beginning: usize) -> Plan {
        let tokens: Vec<u32> = (0..70).collect();
        let queries = queries();
        let sequences = [
            DeviceSequence {
                tokens: &tokens,
                queries: &queries,
            },
            DeviceSequence {
                tokens: &[],
                queries: &queries[..1],
            },
        ];
        let mut sizes = Class::default();
        for sequence in &sequences {
            sizes = super::super::classes::sum(&sizes, &sizes_of(sequence, &TASKS));
        }
        let mut plan = Plan::default();
        plan.try_reserve(&sizes).unwrap();
        let bytes = plan.bytes();
        plan.fill(sequences.iter(), &TASKS, beginning);
        assert_eq!(plan.bytes(), bytes, "the sizes are those of the lists");
        let rows = plan.rows();
        assert_eq!(
            (rows.tokens, rows.row_index.len()),
            (sizes.tokens, sizes.tokens + sizes.query_rows)
        );
        assert_eq!(rows.last_rows.len(), sizes.queries);
        assert_eq!(rows.token_tiles.len(), sizes.token_tiles);
        assert_eq!(rows.query_tiles.len(), sizes.query_tiles);
        plan
    }

    #[test]
    fn rows_have_their_index_position_and_task() {
        let plan = planned(10);
        let rows = plan.rows();
        assert_eq!(rows.row_index[..3], [0, 1, 2]);
        // Two rows of the first task, its word 2, then the second task's first.
        assert_eq!(rows.row_index[70..74], [0, 1, 4, 5]);
        assert_eq!(rows.row_index[90..], [0, 1, 4]);
        assert_eq!(rows.positions[..2], [10, 11]);
        assert_eq!(rows.positions[70..75], [80, 81, 82, 80, 81]);
        assert_eq!(rows.positions[90..], [10, 11, 12]);
        assert_eq!(rows.row_task[69..74], [-1, 0, 0, 0, -1]);
        assert_eq!(rows.last_rows, [72, 89, 92]);
        assert_eq!(rows.query_node, [1, 2, 1]);
        assert!(plan.has_lora());
    }

    #[test]
    fn tiles_see_what_comes_before_them_and_no_empty_range() {
        let plan = planned(0);
        let rows = plan.rows();
        let seen = |tile: &AttentionTile| {
            let context = &tile.context[..tile.ranges as usize];
            let context = context
                .iter()
                .map(|range| (range.source, range.first, range.count));
            (
                tile.first_row,
                tile.rows,
                tile.own_first,
                context.collect::<Vec<_>>(),
            )
        };
        let tiles: Vec<_> = rows.token_tiles.iter().map(seen).collect();
        assert_eq!(tiles, [(0, 64, 0, vec![]), (64, 6, 0, vec![])]);
        let tiles: Vec<_> = rows.query_tiles.iter().map(seen).collect();
        let expected = [
            (70, 3, 70, vec![(1, 4, 5), (0, 0, 70)]),
            (73, 16, 73, vec![(0, 0, 70)]),
            (89, 1, 73, vec![(0, 0, 70)]),
            (90, 3, 90, vec![(1, 4, 5)]),
        ];
        assert_eq!(tiles, expected);
        let plan = planned(7);
        let rows = plan.rows();
        assert_eq!(seen(&rows.token_tiles[1]), (64, 6, 0, vec![(2, 0, 7)]));
        let own = vec![(1, 4, 5), (0, 0, 70), (2, 0, 7)];
        assert_eq!(seen(&rows.query_tiles[0]), (70, 3, 70, own));
    }

    #[test]
    fn what_does_not_exist_becomes_a_row_that_does_not() {
        let queries = [DeviceQuery {
            task: 0,
            words: &[3],
            node: 0,
        }];
        let sequence = DeviceSequence {
            tokens: &[1],
            queries: &queries,
        };
        let mut plan = Plan::default();
        plan.fill([sequence].iter(), &TASKS, 0);
        assert_eq!(plan.rows().row_index, [1, 0, 1, u32::MAX]);
        let queries = [DeviceQuery {
            task: 2,
            words: &[],
            node: 0,
        }];
        let sequence = DeviceSequence {
            tokens: &[1],
            queries: &queries,
        };
        plan.fill([sequence].iter(), &TASKS, 0);
        assert_eq!(plan.rows().query_node, [u32::MAX]);
    }
}
