use super::fake::fake;
use crate::cuda::arguments::BatchHeader;
use crate::cuda::{
    AttentionTile, Batch, BatchBounds, BatchRows, Class, DeviceError, KeyRange, Stream,
};

const CLASS: Class = Class {
    tokens: 8,
    query_rows: 4,
    queries: 2,
    token_tiles: 2,
    query_tiles: 1,
};

const BOUNDS: BatchBounds = BatchBounds {
    vocabulary: 100,
    query_embeddings: 10,
    positions: 20,
    tasks: 3,
    nodes: 5,
    prefix_rows: 6,
    beginning_rows: 7,
};

fn range(source: u32, first: u32, count: u32) -> KeyRange {
    KeyRange {
        source,
        first,
        count,
        reserved: 0,
    }
}

fn tile(first_row: u32, rows: u32, own_first: u32, context: &[KeyRange]) -> AttentionTile {
    let mut tile = AttentionTile {
        first_row,
        rows,
        own_first,
        ranges: context.len() as u32,
        ..AttentionTile::default()
    };
    tile.context[..context.len()].copy_from_slice(context);
    tile
}

type Change = fn(&mut Lists);

/// A batch that is right at every limit.
#[derive(Clone)]
struct Lists {
    tokens: usize,
    row_index: Vec<u32>,
    positions: Vec<u32>,
    row_task: Vec<i32>,
    last_rows: Vec<u32>,
    query_node: Vec<u32>,
    token_tiles: Vec<AttentionTile>,
    query_tiles: Vec<AttentionTile>,
}

impl Lists {
    fn right() -> Self {
        Self {
            tokens: 8,
            row_index: vec![99, 1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3],
            positions: vec![19; 12],
            row_task: vec![-1, -1, -1, -1, -1, -1, -1, -1, 2, 2, 0, 1],
            last_rows: vec![9, 11],
            query_node: vec![4, 0],
            token_tiles: vec![
                tile(0, 8, 0, &[range(2, 0, 7)]),
                tile(4, 4, 4, &[range(0, 99, 0)]),
            ],
            query_tiles: vec![tile(
                8,
                4,
                8,
                &[range(1, 4, 2), range(0, 0, 12), range(2, 6, 1)],
            )],
        }
    }

    fn rows(&self) -> BatchRows<'_> {
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
}

fn as_words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| u32::from_ne_bytes(*word)).collect()
}

#[test]
fn a_batch_comes_to_the_device_as_it_is() {
    let (memory, _device) = fake((8, 0), None);
    let mut stream = Stream::new(&memory).unwrap();
    let batch = Batch::new(&memory, CLASS, BOUNDS).unwrap();
    let lists = Lists::right();
    batch.fill(&lists.rows(), CLASS).unwrap();
    batch.copy_in(&mut stream).unwrap();
    let early = batch.fill(&lists.rows(), CLASS);
    assert!(matches!(early, Err(DeviceError::Order { .. })));
    let mut bytes = vec![0; batch.device_bytes()];
    stream.read(&batch.device_block(), &mut bytes).unwrap();
    let header: &BatchHeader = bytemuck::from_bytes(&bytes[..64]);
    let counts = [header.rows, header.tokens, header.queries];
    assert_eq!(
        (counts, header.token_tiles, header.query_tiles),
        ([12, 8, 2], 2, 1)
    );
    let start = batch.header().0;
    let words = |address: u64, count: usize| -> Vec<u32> {
        let start = (address - start) as usize;
        as_words(&bytes[start..start + 4 * count])
    };
    let (at, tiles) = (batch.sections(), size_of::<AttentionTile>() / 4);
    let address = |section| batch.address(section).0;
    assert_eq!(words(address(at.row_index), 12), lists.row_index);
    assert_eq!(words(address(at.positions), 12), lists.positions);
    assert_eq!(words(address(at.row_task), 12)[7..9], [u32::MAX, 2]);
    assert_eq!(words(address(at.last_rows), 2), lists.last_rows);
    assert_eq!(words(address(at.query_node), 2), lists.query_node);
    assert_eq!(words(address(at.last_task), 2), [2, 1]);
    let token_tiles = as_words(bytemuck::cast_slice(&lists.token_tiles));
    assert_eq!(words(address(at.token_tiles), 2 * tiles), token_tiles);
    let query_tiles = as_words(bytemuck::cast_slice(&lists.query_tiles));
    assert_eq!(words(address(at.query_tiles), tiles), query_tiles);
}

#[test]
fn numbers_that_point_outside_are_refused() {
    let (memory, _device) = fake((8, 0), None);
    let batch = Batch::new(&memory, CLASS, BOUNDS).unwrap();
    let changes: [(&str, Change); 19] = [
        ("token 3", |lists| lists.row_index[3] = 100),
        ("query embedding 0", |lists| lists.row_index[8] = 10),
        ("position 11", |lists| lists.positions[11] = 20),
        ("task of row 8", |lists| lists.row_task[8] = 3),
        ("task of row 0", |lists| lists.row_task[0] = -2),
        ("last row of query 1", |lists| lists.last_rows[1] = 12),
        ("node of query 0", |lists| lists.query_node[0] = 5),
        ("rows of attention tile 0", |lists| {
            lists.token_tiles[0].rows = 0
        }),
        ("rows of attention tile 0", |lists| {
            lists.token_tiles[0].rows = 65
        }),
        ("rows of attention tile 0", |lists| {
            lists.query_tiles[0].rows = 17
        }),
        ("last row of attention tile 0", |lists| {
            lists.query_tiles[0].rows = 5
        }),
        ("last row of attention tile 1", |lists| {
            lists.token_tiles[1].first_row = u32::MAX
        }),
        ("first own key of attention tile 1", |lists| {
            lists.token_tiles[1].own_first = 5
        }),
        ("ranges of attention tile 0", |lists| {
            lists.query_tiles[0].ranges = 4
        }),
        ("source of keys of attention tile 0", |lists| {
            lists.token_tiles[0].context[0].source = 3
        }),
        ("last key of attention tile 0", |lists| {
            lists.token_tiles[0].context[0].count = 8
        }),
        ("last key of attention tile 0", |lists| {
            lists.query_tiles[0].context[0].first = 5
        }),
        ("last key of attention tile 0", |lists| {
            lists.query_tiles[0].context[1].count = 13
        }),
        ("last key of attention tile 0", |lists| {
            lists.query_tiles[0].context[2].first = u32::MAX
        }),
    ];
    for (what, change) in changes {
        let mut lists = Lists::right();
        change(&mut lists);
        let error = batch.fill(&lists.rows(), CLASS).unwrap_err();
        assert!(
            matches!(error, DeviceError::Index { .. }),
            "{what}: {error}"
        );
        assert!(
            error.to_string().starts_with(&format!("{what}:")),
            "{what}: {error}"
        );
    }
}

#[test]
fn too_much_of_anything_is_refused() {
    let (memory, _device) = fake((8, 0), None);
    let batch = Batch::new(&memory, CLASS, BOUNDS).unwrap();
    let lists = Lists::right();
    let smaller = [
        Class { tokens: 7, ..CLASS },
        Class {
            query_rows: 3,
            ..CLASS
        },
        Class {
            queries: 1,
            ..CLASS
        },
        Class {
            token_tiles: 1,
            ..CLASS
        },
        Class {
            query_tiles: 0,
            ..CLASS
        },
    ];
    for class in smaller {
        let error = batch.fill(&lists.rows(), class).unwrap_err();
        assert!(matches!(error, DeviceError::Size { .. }), "{error}");
        assert!(CLASS.holds(&class) && !class.holds(&CLASS));
    }
    let larger = Class {
        queries: 3,
        ..CLASS
    };
    assert!(batch.fill(&lists.rows(), larger).is_err());
    let changes: [Change; 4] = [
        |lists| lists.tokens = 13,
        |lists| lists.positions.truncate(11),
        |lists| lists.row_task.truncate(11),
        |lists| lists.query_node.truncate(1),
    ];
    for change in changes {
        let mut lists = Lists::right();
        change(&mut lists);
        let error = batch.fill(&lists.rows(), CLASS).unwrap_err();
        assert!(matches!(error, DeviceError::Size { .. }), "{error}");
    }
    let mut lists = Lists::right();
    lists.query_node.clear();
    batch.fill(&lists.rows(), CLASS).unwrap();
    batch.fill(&BatchRows::default(), Class::default()).unwrap();
    // The limits of what a batch can be made for.
    let limit = Class {
        queries: 1 << 20,
        ..CLASS
    };
    Batch::new(&memory, limit, BOUNDS).unwrap();
    let past = Class {
        queries: (1 << 20) + 1,
        ..CLASS
    };
    assert!(matches!(
        Batch::new(&memory, past, BOUNDS),
        Err(DeviceError::Size { .. })
    ));
    let limit = BatchBounds {
        prefix_rows: 1 << 30,
        ..BOUNDS
    };
    Batch::new(&memory, CLASS, limit).unwrap();
    let past = BatchBounds {
        prefix_rows: (1 << 30) + 1,
        ..BOUNDS
    };
    assert!(matches!(
        Batch::new(&memory, CLASS, past),
        Err(DeviceError::Size { .. })
    ));
}
