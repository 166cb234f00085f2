//! Which kernels there are, and which the library may ask for.

use super::source::KernelSource;

/// A name and the number that it stands for in a kernel's text.
pub type Define = (&'static str, u32);

/// Token rows of an attention tile.
pub const TOKEN_TILE: u32 = 64;
/// Query rows of an attention tile.
pub const QUERY_TILE: u32 = 16;
/// Values of heads that models of the llama family have: their kernels are compiled in tests. Any other multiple of 16 up to
/// [`HEAD_DIM_MAX`] works too.
pub const HEAD_DIMS: [u32; 7] = [16, 32, 64, 80, 96, 128, 256];
/// Most values of a head.
pub const HEAD_DIM_MAX: u32 = 256;

/// What packed weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// Bytes with a scale for each channel.
    Int8,
    /// 4 bits with a scale for each group of 32.
    Int4,
    /// 4 bits with a scale and a minimum for each group of 32.
    Int4Minimums,
}

/// What rows of activations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// Bytes with a scale for each row.
    Int8,
    /// 16-bit brain floats: only the weights are quantised.
    Bf16,
}

/// What a product does with its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `output = product`.
    Store,
    /// `output += product`.
    Add,
    /// Queries and keys rotated, values as they are, all in 16-bit floats.
    Rotary,
    /// `silu(gate) * up`.
    Gated,
}

/// One kernel of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProductVariant {
    /// The weights.
    pub weights: WeightKind,
    /// The activations.
    pub rows: RowKind,
    /// What becomes of the result.
    pub epilogue: Epilogue,
    /// Whether low-rank products are added.
    pub low_rank: bool,
    /// Rows of a block: 16, 64 or 128.
    pub tile_rows: u32,
    /// Whether the blocks use the matrix units of capability 9.0 in groups of warps.
    pub wgmma: bool,
}

/// Rows of a product's block, fewest first.
pub const TILE_ROWS: [u32; 3] = [16, 64, 128];

impl ProductVariant {
    /// The kernel for at most `rows` rows on a device of that capability.
    #[must_use]
    pub fn choose(
        weights: WeightKind,
        row_kind: RowKind,
        epilogue: Epilogue,
        low_rank: bool,
        rows: u32,
        capability: (u32, u32),
    ) -> Self {
        let tile_rows = match rows {
            0..=16 => 16,
            17..=64 => 64,
            _ => 128,
        };
        let bytes = weights == WeightKind::Int8 && row_kind == RowKind::Int8;
        Self {
            weights,
            rows: row_kind,
            epilogue,
            low_rank,
            tile_rows,
            wgmma: capability == (9, 0) && bytes && rows >= 128,
        }
    }

    /// What is compiled for it.
    #[must_use]
    pub fn source(&self) -> KernelSource {
        let epilogue = ("TLLM_EPILOGUE", self.epilogue as u32);
        let low_rank = ("TLLM_LOW_RANK", u32::from(self.low_rank));
        if self.wgmma {
            return KernelSource::product_wgmma(&[epilogue, low_rank]);
        }
        KernelSource::product(&[
            ("TLLM_WEIGHTS", self.weights as u32),
            ("TLLM_ROWS", self.rows as u32),
            epilogue,
            low_rank,
            ("TLLM_TILE_ROWS", self.tile_rows),
        ])
    }
}

/// Threads of the blocks of all kernels but those of products.
pub(super) const THREADS: u32 = 128;
/// Input channels of a tile of a product.
const TILE_COLUMNS: u32 = 128;
/// Output channels of a block of a product.
pub(super) const TILE_CHANNELS: u32 = 128;

impl ProductVariant {
    /// Threads of a block.
    pub(super) fn threads(&self) -> u32 {
        if self.tile_rows == 16 { 128 } else { 256 }
    }

    /// Bytes of shared memory of a block, as `product_tile.cuh` has them: some tiles of rows and weights at the same time.
    pub(super) fn shared_bytes(&self) -> u32 {
        let is_int8 = self.rows == RowKind::Int8;
        let rows = self.tile_rows * TILE_COLUMNS * if is_int8 { 1 } else { 2 };
        let groups = TILE_COLUMNS / 32;
        let scales = groups * TILE_CHANNELS * 4;
        let sums = if is_int8 {
            self.tile_rows * groups * 4
        } else {
            0
        };
        let weights = match self.weights {
            WeightKind::Int8 => TILE_CHANNELS * TILE_COLUMNS,
            WeightKind::Int4 => TILE_CHANNELS * TILE_COLUMNS / 2 + scales,
            WeightKind::Int4Minimums => TILE_CHANNELS * TILE_COLUMNS / 2 + 2 * scales + sums,
        };
        let stages = match (self.tile_rows, self.rows) {
            (16, _) => 4,
            (128, RowKind::Bf16) => 2,
            _ => 3,
        };
        stages * (rows + weights)
    }
}

/// Bytes of shared memory of a block of attention, as `attention.cuh` has them: some blocks of keys and of values at the same time.
pub(super) fn attention_shared_bytes(head_dim: u32, tile: u32) -> u32 {
    let heads_apart = tile == QUERY_TILE;
    let key_block = match head_dim {
        0..=64 if heads_apart => 32,
        0..=64 => 64,
        65..=192 if !heads_apart => 32,
        _ => 16,
    };
    let buffers = match head_dim {
        _ if !heads_apart => 4,
        0..=176 => 16,
        _ => 8,
    };
    buffers * key_block * (head_dim + 8) * 2
}

/// The kernel of attention for tiles of [`TOKEN_TILE`] or [`QUERY_TILE`] rows.
#[must_use]
pub fn attention(head_dim: u32, tile: u32) -> KernelSource {
    KernelSource::attend(&[("TLLM_HEAD_DIM", head_dim), ("TLLM_TILE", tile)])
}

/// The kernels that every model needs.
#[must_use]
pub fn common() -> [KernelSource; 5] {
    [
        KernelSource::rows("embed"),
        KernelSource::rows("quantise"),
        KernelSource::rows("gather"),
        KernelSource::low_rank_coefficients(),
        KernelSource::label_scores(),
    ]
}

/// All kernels of products that a device of that capability may be asked for.
pub fn products(capability: (u32, u32)) -> impl Iterator<Item = ProductVariant> {
    let weights = [WeightKind::Int8, WeightKind::Int4, WeightKind::Int4Minimums];
    let epilogues = [
        Epilogue::Store,
        Epilogue::Add,
        Epilogue::Rotary,
        Epilogue::Gated,
    ];
    let mut variants = Vec::new();
    for weights in weights {
        for rows in [RowKind::Int8, RowKind::Bf16] {
            for epilogue in epilogues {
                for low_rank in [false, true] {
                    for most in TILE_ROWS {
                        variants.push(ProductVariant::choose(
                            weights, rows, epilogue, low_rank, most, capability,
                        ));
                        // Classes of more than 64 and fewer than 128 rows.
                        variants.push(ProductVariant::choose(
                            weights,
                            rows,
                            epilogue,
                            low_rank,
                            most - 1,
                            capability,
                        ));
                    }
                }
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    variants.retain(|variant| seen.insert(*variant));
    variants.into_iter()
}

/// Every kernel that a device of that capability may be asked for, with the usual sizes of heads.
#[must_use]
pub fn all_kernels(capability: (u32, u32)) -> Vec<KernelSource> {
    let attention = HEAD_DIMS
        .into_iter()
        .flat_map(|head_dim| [TOKEN_TILE, QUERY_TILE].map(|tile| attention(head_dim, tile)));
    let products = products(capability).map(|variant| variant.source());
    common()
        .into_iter()
        .chain(attention)
        .chain(products)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a class of any number of rows is given is in the list.
    #[test]
    fn the_list_is_complete_and_has_nothing_twice() {
        for capability in [(8, 0), (8, 6), (8, 9), (9, 0)] {
            let listed: Vec<ProductVariant> = products(capability).collect();
            let sources = all_kernels(capability);
            for (at, source) in sources.iter().enumerate() {
                assert!(!sources[..at].contains(source), "{source} twice");
            }
            for rows in [1, 16, 17, 64, 65, 127, 128, 129, 4096] {
                for known in &listed {
                    let (weights, row_kind) = (known.weights, known.rows);
                    let variant = ProductVariant::choose(
                        weights,
                        row_kind,
                        known.epilogue,
                        known.low_rank,
                        rows,
                        capability,
                    );
                    assert!(listed.contains(&variant), "{rows} rows: {variant:?}");
                    assert!(sources.contains(&variant.source()));
                }
            }
            let wgmma = sources
                .iter()
                .filter(|source| source.file() == "product_wgmma.cu");
            assert_eq!(wgmma.count(), if capability == (9, 0) { 8 } else { 0 });
        }
    }
}
