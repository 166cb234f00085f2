//! The number formats of tensors.

/// The number formats that are read. A block is a run of numbers of one row that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of IEEE 754.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// Blocks of 32 numbers of 4 bits with a scale.
    Q4_0,
    /// Blocks of 32 numbers of 4 bits with a scale and a minimum.
    Q4_1,
    /// Blocks of 32 numbers of 5 bits with a scale.
    Q5_0,
    /// Blocks of 32 numbers of 5 bits with a scale and a minimum.
    Q5_1,
    /// Blocks of 32 signed bytes with a scale.
    Q8_0,
    /// `Q4_K`: blocks of 256 numbers of 4 bits, each 32 with a scale and a minimum of 6 bits.
    Q4K,
    /// `Q5_K`: as `Q4_K`, with numbers of 5 bits.
    Q5K,
    /// `Q6_K`: blocks of 256 numbers of 6 bits, each 16 with a scale of 8 bits.
    Q6K,
}

impl DataType {
    /// Every format that is read.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];
    /// Those without blocks.
    pub(super) const FLOATS: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// The number that stands for the format in a file.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    pub(super) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// The name that other tools use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Numbers of a block; rows hold a multiple of it.
    #[must_use]
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `elements` numbers of which rows hold `columns`; `None` if they do not fill blocks
    /// or overflow.
    pub(super) fn size_bytes(self, elements: u64, columns: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        columns.is_multiple_of(block).then_some(())?;
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// As an error shows several: `F32 (0), F16 (1)`.
    pub(super) fn list(types: &[Self]) -> String {
        let named: Vec<String> = types
            .iter()
            .map(|known| format!("{} ({})", known.name(), known.code()))
            .collect();
        named.join(", ")
    }
}
