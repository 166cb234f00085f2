//! Attention of tiles of rows.

use super::arguments::AttentionArguments;
use super::check::{at_least, heads, small};
use super::tables::address_of;
use super::variants::attention_shared_bytes;
use super::{Address, Buffer, DeviceError, QUERY_TILE, RowSet, Run, TOKEN_TILE, attention};
use crate::AttentionShape;

/// Heads of a block of attention of query tiles.
const BLOCK_HEADS: usize = 4;

/// Keys and values, f16 `[rows, kv_heads * head_dim]` each.
pub type KeysValuesBuffers<'a> = (&'a Buffer<u16>, &'a Buffer<u16>);

/// Where the keys and values of a layer stand.
#[derive(Debug, Clone, Copy)]
pub struct KeySources<'a> {
    /// Of the batch's rows.
    pub own: KeysValuesBuffers<'a>,
    /// Of the tasks' prefixes.
    pub prefixes: Option<KeysValuesBuffers<'a>>,
    /// Of shared beginnings.
    pub beginnings: Option<KeysValuesBuffers<'a>>,
}

/// Which rows attend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiles {
    /// Those of tokens.
    Tokens,
    /// Those of queries.
    Queries,
}

impl Tiles {
    fn rows(self) -> u32 {
        match self {
            Self::Tokens => TOKEN_TILE,
            Self::Queries => QUERY_TILE,
        }
    }
}

impl Run<'_> {
    /// Attention of tiles of rows: f32 `[rows, heads * head_dim]` from f16 queries of the same size.
    ///
    /// # Errors
    /// [`DeviceError::Size`]; [`DeviceError::Unsupported`] for heads that the kernels cannot work with; what the driver says.
    pub fn attend(
        &mut self,
        tiles: Tiles,
        shape: AttentionShape,
        queries: &Buffer<u16>,
        sources: KeySources<'_>,
        output: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        heads(shape)?;
        let (query_size, key_size) = (shape.query_size(), shape.key_size());
        self.check_rows("queries", RowSet::All, query_size, queries)?;
        self.check_rows("attention", RowSet::All, query_size, output)?;
        let bounds = self.batch.bounds();
        let rows = [
            self.batch.capacity().rows(),
            bounds.prefix_rows,
            bounds.beginning_rows,
        ];
        let (mut keys, mut values) = ([Address::default(); 3], [Address::default(); 3]);
        let mut memory = vec![queries.allocation(), output.allocation()];
        let sources = [Some(sources.own), sources.prefixes, sources.beginnings];
        for (at, (source, rows)) in sources.into_iter().zip(rows).enumerate() {
            let expected = rows.saturating_mul(key_size);
            let lengths = source.map_or([0; 2], |(keys, values)| [keys.length(), values.length()]);
            at_least("keys of a source", expected, lengths[0])?;
            at_least("values of a source", expected, lengths[1])?;
            keys[at] = address_of(source.map(|source| source.0));
            values[at] = address_of(source.map(|source| source.1));
            memory.extend(source.map(|source| source.0.allocation()));
            memory.extend(source.map(|source| source.1.allocation()));
        }
        let sections = self.batch.sections();
        let (list, count, blocks) = match tiles {
            Tiles::Tokens => (sections.token_tiles, self.class.token_tiles, shape.heads),
            Tiles::Queries => {
                let blocks = shape.heads.div_ceil(BLOCK_HEADS);
                (sections.query_tiles, self.class.query_tiles, blocks)
            }
        };
        let arguments = AttentionArguments {
            header: self.batch.header(),
            tiles: self.batch.address(list),
            queries: queries.address(),
            keys,
            values,
            output: output.address(),
            score_factor: std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt(),
            heads: small("heads", shape.heads)?,
            kv_heads: small("heads of keys", shape.kv_heads)?,
            reserved: 0,
        };
        let head_dim = small("values of a head", shape.head_dim)?;
        let grid = [small("tiles", count)?, small("heads", blocks)?, 1];
        let shared = attention_shared_bytes(head_dim, tiles.rows());
        let source = attention(head_dim, tiles.rows());
        // SAFETY: sizes are checked above against rows of the batch's capacity, and what tiles see against its bounds.
        // The lists that were checked are those which are read, as long as the batch is used on one stream: see `Batch::copy_in`.
        unsafe { self.launch(&source, grid, shared, &arguments, &memory) }
    }
}
