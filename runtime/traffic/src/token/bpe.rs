//! Byte-pair encoding in exact rank order, in time linear in the text.
//!
//! A sequence of tokens is what rank-order merging gives exactly when each two neighbours are: when encoding the bytes of the
//! two together gives the same two tokens. So the encoder takes the longest token that is compatible with the one before it and
//! goes one token back where none is. Each position is given up at most once, so hostile text costs no more than a fixed
//! number of steps per byte. This needs every token to encode to itself, which [`BytePairs::new`] checks.

use super::error::TokenError;
use super::limits;
use super::vocabulary::{FIRST_BYTE, FIRST_MERGE};
use crate::memory::{MemoryError, try_filled, try_grow, try_hold, try_push, try_with_capacity};

/// What errors call the tables of merges.
const TABLES: &str = "tables of the tokenizer";

/// Bytes, the symbols that need no merge.
const BYTES: usize = 256;
const NONE: u32 = u32::MAX;

/// Memory that encoding needs, kept between calls.
#[derive(Clone, Debug, Default)]
pub struct BytePairScratch {
    /// One bit per position in the text: no encoding of the text so far ends here that can be continued.
    dead_ends: Vec<u64>,
}

impl BytePairScratch {
    /// Makes room for texts of so many bytes.
    pub(super) fn try_reserve(&mut self, text_bytes: usize) -> Result<(), MemoryError> {
        try_hold(
            "room for encoding",
            &mut self.dead_ends,
            text_bytes / 64 + 1,
        )
    }

    pub(super) fn bytes(&self) -> usize {
        self.dead_ends.capacity() * size_of::<u64>()
    }
}

/// Merges, prepared for encoding. Symbols are numbered from 0: the bytes, then the merges by rank.
#[derive(Debug)]
pub(super) struct BytePairs {
    /// The two symbols of each symbol; a byte has itself twice.
    parts: Vec<(u32, u32)>,
    /// Bytes of all symbols, one after the other, and where each starts.
    spelling: Vec<u8>,
    spelling_start: Vec<u32>,
    /// Length of each symbol in bytes.
    lengths: Vec<u8>,
    /// The longest symbol that starts a symbol and is shorter; `NONE` for bytes.
    shorter: Vec<u32>,
    merges: PairTable,
    trie: Trie,
    incompatible: Option<BitTable>,
}

impl BytePairs {
    /// Prepares merges, given as token ids in rank order.
    ///
    /// # Errors
    /// The first merge whose parts do not come before it, that is too long, that spells what another one spells, or that
    /// can never apply because earlier merges always come before it.
    pub(super) fn new(merges: &[(u32, u32)]) -> Result<Self, TokenError> {
        let symbols = BYTES + merges.len();
        let limit = limits::MAX_VOCABULARY - FIRST_BYTE as usize;
        if symbols > limit {
            return Err(TokenError::Field {
                field: "model.merges".to_owned(),
                expected: format!("at most {} merges", limit - BYTES),
                found: merges.len().to_string(),
            });
        }
        let mut pairs = Self {
            parts: try_with_capacity(TABLES, symbols)?,
            spelling: (0..=255).collect(),
            spelling_start: try_with_capacity(TABLES, symbols + 1)?,
            lengths: try_with_capacity(TABLES, symbols)?,
            shorter: try_with_capacity(TABLES, symbols)?,
            merges: PairTable::with_capacity(merges.len())?,
            trie: Trie::new(symbols)?,
            incompatible: None,
        };
        pairs
            .parts
            .extend((0..BYTES as u32).map(|byte| (byte, byte)));
        pairs.spelling_start.extend(0..=BYTES as u32);
        pairs.lengths.resize(BYTES, 1);
        pairs.shorter.resize(BYTES, NONE);
        for (rank, &(left, right)) in merges.iter().enumerate() {
            pairs.add(rank, left, right)?;
        }
        pairs.trie.settle();
        for symbol in BYTES as u32..symbols as u32 {
            let spelling = pairs.spelling(symbol);
            let shorter = pairs.trie.longest_match(&spelling[..spelling.len() - 1]);
            pairs.shorter.push(shorter);
        }
        if symbols <= limits::MAX_TABLED_SYMBOLS {
            pairs.incompatible = Some(pairs.incompatible_table()?);
        }
        Ok(pairs)
    }

    fn add(&mut self, rank: usize, left: u32, right: u32) -> Result<(), TokenError> {
        let error = |expected, found: String| TokenError::Merge {
            rank,
            left,
            right,
            expected,
            found,
        };
        let symbol = (BYTES + rank) as u32;
        let known = FIRST_BYTE..FIRST_MERGE + rank as u32;
        if !known.contains(&left) || !known.contains(&right) {
            return Err(error(
                "ids of bytes and earlier merges",
                format!("known ids {known:?}"),
            ));
        }
        let (left, right) = (left - FIRST_BYTE, right - FIRST_BYTE);
        let length =
            usize::from(self.lengths[left as usize]) + usize::from(self.lengths[right as usize]);
        if length > limits::MAX_TOKEN_BYTES {
            return Err(error(
                "a token within the length limit",
                format!("{length} bytes"),
            ));
        }
        let mut spelling = self.spelling(left).to_vec();
        spelling.extend_from_slice(self.spelling(right));
        if let Some(other) = self.trie.insert(&spelling, symbol)? {
            return Err(error(
                "a new spelling",
                format!("that of token {}", other + FIRST_BYTE),
            ));
        }
        // An earlier merge across or inside the two parts would always take their bytes first.
        if !self.compatible_below(left, right, symbol) {
            return Err(error(
                "a merge that can apply",
                "earlier merges always take its bytes".to_owned(),
            ));
        }
        self.merges.insert(left, right, symbol)?;
        self.parts.push((left, right));
        try_grow(TABLES, &mut self.spelling, spelling.len())?;
        self.spelling.extend_from_slice(&spelling);
        self.spelling_start.push(self.spelling.len() as u32);
        self.lengths.push(length as u8);
        Ok(())
    }

    /// Number of symbols, the bytes among them.
    pub(super) fn symbols(&self) -> usize {
        self.parts.len()
    }

    /// The merges in rank order, as token ids.
    pub(super) fn merge_ids(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.parts[BYTES..]
            .iter()
            .map(|(left, right)| (left + FIRST_BYTE, right + FIRST_BYTE))
    }

    /// The bytes that a symbol stands for.
    pub(super) fn spelling(&self, symbol: u32) -> &[u8] {
        let start = self.spelling_start[symbol as usize] as usize;
        let end = self.spelling_start[symbol as usize + 1] as usize;
        &self.spelling[start..end]
    }

    /// Appends the token ids of `text` to `ids`.
    pub(super) fn encode(&self, text: &[u8], scratch: &mut BytePairScratch, ids: &mut Vec<u32>) {
        let dead_ends = &mut scratch.dead_ends;
        dead_ends.clear();
        dead_ends.resize(text.len() / 64 + 1, 0);
        let first = ids.len();
        ids.reserve(text.len());
        let mut position = 0;
        let mut last = NONE;
        let mut candidate = if text.is_empty() {
            NONE
        } else {
            self.trie.longest_match(text)
        };
        while candidate != NONE {
            let end = position + usize::from(self.lengths[candidate as usize]);
            if dead_ends[end / 64] >> (end % 64) & 1 == 0
                && (last == NONE || self.compatible(last, candidate))
            {
                ids.push(candidate + FIRST_BYTE);
                position = end;
                last = candidate;
                candidate = if end < text.len() {
                    self.trie.longest_match(&text[end..])
                } else {
                    NONE
                };
                continue;
            }
            candidate = self.shorter[candidate as usize];
            if candidate == NONE && ids.len() > first {
                dead_ends[position / 64] |= 1 << (position % 64);
                ids.pop();
                position -= usize::from(self.lengths[last as usize]);
                candidate = last;
                last = ids[first..].last().map_or(NONE, |id| id - FIRST_BYTE);
            }
        }
    }

    fn compatible(&self, left: u32, right: u32) -> bool {
        match &self.incompatible {
            Some(table) => !table.get(left, right),
            None => self.compatible_below(left, right, NONE),
        }
    }

    /// Whether no merge before `limit` joins the end of `left` with the start of `right`. Undoes the merges of the two, the
    /// latest first, and looks at each moment whether the two symbols at the border would have been merged by then.
    fn compatible_below(&self, mut left: u32, mut right: u32, mut limit: u32) -> bool {
        loop {
            if self
                .merges
                .get(left, right)
                .is_some_and(|merged| merged < limit)
            {
                return false;
            }
            if left < BYTES as u32 && right < BYTES as u32 {
                return true;
            }
            if left > right {
                limit = left;
                left = self.parts[left as usize].1;
            } else {
                // Of equal merges the left one is made first, so at the border it is still made before this one.
                limit = right + 1;
                right = self.parts[right as usize].0;
            }
        }
    }

    /// The same answer as [`Self::compatible_below`] without a limit, for all pairs: each merge `(a, b)` forbids the pairs
    /// whose left ends in `a` and whose right starts with `b` at the time of that merge.
    fn incompatible_table(&self) -> Result<BitTable, MemoryError> {
        let count = self.symbols();
        let mut starts = try_filled(TABLES, count, Vec::new())?;
        let mut ends = try_filled(TABLES, count, Vec::new())?;
        for symbol in 0..count as u32 {
            let mut inner = symbol;
            let mut parent = NONE;
            loop {
                try_push(TABLES, &mut ends[inner as usize], (symbol, parent))?;
                if inner < BYTES as u32 {
                    break;
                }
                parent = inner;
                inner = self.parts[inner as usize].1;
            }
            (inner, parent) = (symbol, NONE);
            loop {
                try_push(TABLES, &mut starts[inner as usize], (symbol, parent))?;
                if inner < BYTES as u32 {
                    break;
                }
                parent = inner;
                inner = self.parts[inner as usize].0;
            }
        }
        let mut table = BitTable::new(count)?;
        let mut row = vec![0_u64; table.words_per_row];
        for merge in BYTES as u32..count as u32 {
            let (left, right) = self.parts[merge as usize];
            row.fill(0);
            for &(symbol, parent) in &starts[right as usize] {
                if parent >= merge {
                    row[symbol as usize / 64] |= 1 << (symbol % 64);
                }
            }
            for &(symbol, parent) in &ends[left as usize] {
                if parent > merge {
                    table.add_to_row(symbol, &row);
                }
            }
        }
        Ok(table)
    }
}

/// A square of bits.
#[derive(Debug)]
struct BitTable {
    words_per_row: usize,
    bits: Vec<u64>,
}

impl BitTable {
    fn new(side: usize) -> Result<Self, MemoryError> {
        let words_per_row = side.div_ceil(64);
        Ok(Self {
            words_per_row,
            bits: try_filled(TABLES, words_per_row * side, 0)?,
        })
    }

    fn get(&self, row: u32, column: u32) -> bool {
        let word = row as usize * self.words_per_row + column as usize / 64;
        self.bits[word] >> (column % 64) & 1 == 1
    }

    fn add_to_row(&mut self, row: u32, bits: &[u64]) {
        let start = row as usize * self.words_per_row;
        for (word, more) in self.bits[start..start + self.words_per_row]
            .iter_mut()
            .zip(bits)
        {
            *word |= more;
        }
    }
}

/// All symbols by their bytes, for the longest one that starts a text.
#[derive(Debug)]
struct Trie {
    /// The node of each pair of first bytes; 0 where no merge starts with the two.
    first_two: Vec<u32>,
    next: PairTable,
    /// The symbol that ends at each node; after `settle` the longest one that ends there or before.
    symbols: Vec<u32>,
    /// The node before each node, for `settle`; 0 where the node stands for two bytes.
    before: Vec<u32>,
    /// The first byte of each node.
    first: Vec<u8>,
}

impl Trie {
    fn new(symbols: usize) -> Result<Self, MemoryError> {
        Ok(Self {
            first_two: try_filled(TABLES, BYTES * BYTES, 0)?,
            next: PairTable::with_capacity(symbols)?,
            symbols: vec![NONE],
            before: vec![0],
            first: vec![0],
        })
    }

    /// Adds a symbol of two or more bytes. Gives back the symbol that already has these bytes, if any.
    fn insert(&mut self, spelling: &[u8], symbol: u32) -> Result<Option<u32>, MemoryError> {
        let start = usize::from(spelling[0]) << 8 | usize::from(spelling[1]);
        let mut node = self.first_two[start];
        if node == 0 {
            node = self.add_node(0, spelling[0])?;
            self.first_two[start] = node;
        }
        for &byte in &spelling[2..] {
            node = match self.next.get(node, u32::from(byte)) {
                Some(next) => next,
                None => {
                    let next = self.add_node(node, spelling[0])?;
                    self.next.insert(node, u32::from(byte), next)?;
                    next
                }
            };
        }
        let place = &mut self.symbols[node as usize];
        if *place != NONE {
            return Ok(Some(*place));
        }
        *place = symbol;
        Ok(None)
    }

    fn add_node(&mut self, before: u32, first: u8) -> Result<u32, MemoryError> {
        let node = self.symbols.len() as u32;
        try_push(TABLES, &mut self.symbols, NONE)?;
        try_push(TABLES, &mut self.before, before)?;
        try_push(TABLES, &mut self.first, first)?;
        Ok(node)
    }

    /// Gives every node the longest symbol on the way to it, so that a walk needs to look only where it ends.
    fn settle(&mut self) {
        for node in 1..self.symbols.len() {
            if self.symbols[node] == NONE {
                // A node is made after the one before it, so that one is already settled.
                let before = self.before[node] as usize;
                self.symbols[node] = if before == 0 {
                    u32::from(self.first[node])
                } else {
                    self.symbols[before]
                };
            }
        }
        self.before = Vec::new();
        self.first = Vec::new();
    }

    /// The longest symbol that `text`, which is not empty, starts with.
    fn longest_match(&self, text: &[u8]) -> u32 {
        let first = text[0];
        let Some(&second) = text.get(1) else {
            return u32::from(first);
        };
        let mut node = self.first_two[usize::from(first) << 8 | usize::from(second)];
        if node == 0 {
            return u32::from(first);
        }
        for &byte in &text[2..] {
            match self.next.get(node, u32::from(byte)) {
                Some(next) => node = next,
                None => break,
            }
        }
        self.symbols[node as usize]
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    left: u32,
    right: u32,
    value: u32,
}

/// Pairs of numbers to numbers: open addressing, at most a quarter full.
#[derive(Debug)]
struct PairTable {
    slots: Vec<Slot>,
    used: usize,
}

const FREE: Slot = Slot {
    left: NONE,
    right: NONE,
    value: NONE,
};

impl PairTable {
    fn with_capacity(pairs: usize) -> Result<Self, MemoryError> {
        Ok(Self {
            slots: try_filled(TABLES, (pairs.max(16) * 4).next_power_of_two(), FREE)?,
            used: 0,
        })
    }

    fn start(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        // The high half of the product depends on all bits of both numbers.
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
            ^ (left as usize).wrapping_mul(0x85eb_ca6b)
    }

    fn get(&self, left: u32, right: u32) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut place = self.start(left, right) & mask;
        loop {
            let slot = self.slots[place & mask];
            if slot.left == left && slot.right == right {
                return Some(slot.value);
            }
            if slot.value == NONE {
                return None;
            }
            place += 1;
        }
    }

    fn insert(&mut self, left: u32, right: u32, value: u32) -> Result<(), MemoryError> {
        if (self.used + 1) * 4 > self.slots.len() {
            let grown = try_filled(TABLES, self.slots.len() * 2, FREE)?;
            for slot in std::mem::replace(&mut self.slots, grown) {
                if slot.value != NONE {
                    self.place(slot);
                }
            }
        }
        self.used += 1;
        self.place(Slot { left, right, value });
        Ok(())
    }

    fn place(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut place = self.start(slot.left, slot.right) & mask;
        while self.slots[place].value != NONE {
            place = (place + 1) & mask;
        }
        self.slots[place] = slot;
    }
}
