//! Learning byte-pair merges from a corpus.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::error::TokenError;
use super::json;
use super::limits;
use super::vocabulary::{FIRST_BYTE, FIRST_MERGE};

/// The end of a segment, and a position that a merge has taken up.
const NONE: u32 = u32::MAX;

/// Learns merges until the vocabulary, fixed tokens included, has `vocabulary_size` tokens or no pair stands in the corpus twice.
///
/// `corpus` is byte segments with how often each counts; merges never cross segments. At each step the pair that occurs most often
/// is merged, of equal ones the pair with the lowest ids, so the order of the segments does not matter. Of a run of equal
/// symbols only the occurrences that a merge would take count: two in `aaaa` and in `aaaaa`. Merges give the ids of their parts
/// in rank order, as [`Tokenizer::from_merges`](super::Tokenizer::from_merges) takes them.
///
/// # Errors
/// [`TokenError::Training`] where the vocabulary size or the corpus is outside the limits.
pub fn train_merges<'a>(
    corpus: impl IntoIterator<Item = (&'a [u8], u64)>,
    vocabulary_size: usize,
) -> Result<Vec<(u32, u32)>, TokenError> {
    if !(FIRST_MERGE as usize..=limits::MAX_VOCABULARY).contains(&vocabulary_size) {
        return Err(TokenError::Training {
            what: "vocabulary size",
            expected: format!("{FIRST_MERGE} to {}", limits::MAX_VOCABULARY),
            found: vocabulary_size.to_string(),
        });
    }
    let mut trainer = Trainer::new(corpus)?;
    let mut merges = Vec::new();
    while merges.len() < vocabulary_size - FIRST_MERGE as usize {
        let Some((left, right)) = trainer.most_frequent() else {
            break;
        };
        trainer.merge(left, right);
        merges.push((left + FIRST_BYTE, right + FIRST_BYTE));
    }
    Ok(merges)
}

fn check_corpus_bytes(total_bytes: usize) -> Result<(), TokenError> {
    if total_bytes <= limits::MAX_CORPUS_BYTES {
        return Ok(());
    }
    Err(TokenError::Training {
        what: "corpus",
        expected: format!(
            "at most {} bytes in distinct segments",
            limits::MAX_CORPUS_BYTES
        ),
        found: format!("{total_bytes} or more"),
    })
}

/// Two symbols as one number that sorts by the left, then the right.
type Pair = u64;

fn pair(left: u32, right: u32) -> Pair {
    u64::from(left) << 32 | u64::from(right)
}

#[derive(Default)]
struct Counted {
    /// How often the pair stands in the corpus, overlapping occurrences in runs of equal symbols included.
    count: u64,
    /// Positions of its left symbol in ascending order; some may be outdated.
    positions: Vec<u32>,
}

/// The corpus as doubly linked symbols, with the count of every pair kept up to date.
struct Trainer {
    symbols: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    weights: Vec<u64>,
    segments: Vec<u32>,
    pairs: HashMap<Pair, Counted, BuildHasherDefault<PairHasher>>,
    /// Pairs by an upper bound of their count.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
    spelling: Vec<Vec<u8>>,
}

impl Trainer {
    fn new<'a>(corpus: impl IntoIterator<Item = (&'a [u8], u64)>) -> Result<Self, TokenError> {
        let mut segments: HashMap<&[u8], u64> = HashMap::new();
        let mut total_count = 0_u64;
        let mut total_bytes = 0;
        for (segment, count) in corpus {
            // With the sum of all counts times bytes in 64 bits no sum below can overflow.
            let weighted = count.checked_mul(segment.len() as u64);
            let sum = weighted.and_then(|weighted| total_count.checked_add(weighted));
            total_count = sum.ok_or_else(|| TokenError::Training {
                what: "corpus",
                expected: "counted bytes below 2^64".to_owned(),
                found: format!("a segment of {} bytes counted {count} times", segment.len()),
            })?;
            if segment.len() < 2 || count == 0 {
                continue;
            }
            let known = segments.entry(segment).or_insert(0);
            if *known == 0 {
                total_bytes += segment.len();
            }
            *known += count;
            check_corpus_bytes(total_bytes)?;
        }
        Ok(Self::link(&segments, total_bytes))
    }

    fn link(segments: &HashMap<&[u8], u64>, total_bytes: usize) -> Self {
        let mut trainer = Self {
            symbols: Vec::with_capacity(total_bytes),
            next: Vec::with_capacity(total_bytes),
            previous: Vec::with_capacity(total_bytes),
            weights: Vec::with_capacity(segments.len()),
            segments: Vec::with_capacity(total_bytes),
            pairs: HashMap::default(),
            queue: BinaryHeap::new(),
            spelling: (0..=255).map(|byte| vec![byte]).collect(),
        };
        for (number, (segment, weight)) in segments.iter().enumerate() {
            let first = trainer.symbols.len() as u32;
            let last = first + segment.len() as u32 - 1;
            trainer.weights.push(*weight);
            for (position, byte) in (first..).zip(*segment) {
                trainer.symbols.push(u32::from(*byte));
                trainer.segments.push(number as u32);
                trainer
                    .next
                    .push(if position < last { position + 1 } else { NONE });
                trainer
                    .previous
                    .push(if position > first { position - 1 } else { NONE });
            }
            for position in first..last {
                let at = position as usize;
                let found = trainer
                    .pairs
                    .entry(pair(trainer.symbols[at], trainer.symbols[at + 1]))
                    .or_default();
                found.count += weight;
                found.positions.push(position);
            }
        }
        let Self { pairs, queue, .. } = &mut trainer;
        queue.extend(
            pairs
                .iter()
                .map(|(pair, counted)| (counted.count, Reverse(*pair))),
        );
        trainer
    }

    /// The pair that merging would shorten the corpus with the most.
    fn most_frequent(&mut self) -> Option<(u32, u32)> {
        while let Some((bound, Reverse(key))) = self.queue.pop() {
            let (left, right) = ((key >> 32) as u32, key as u32);
            let exact = match self.pairs.get(&key) {
                Some(counted) if left == right => self.count_in_runs(left, &counted.positions),
                Some(counted) => counted.count,
                None => continue,
            };
            if exact < bound {
                // Counts only fall, so this bound holds until the pair comes up again.
                if exact > 1 {
                    self.queue.push((exact, Reverse(key)));
                }
            } else if exact > 1 && self.is_usable(left, right) {
                return Some((left, right));
            }
        }
        None
    }

    /// How many pairs merging a symbol with itself would take: half of each run, rounded down.
    fn count_in_runs(&self, symbol: u32, positions: &[u32]) -> u64 {
        let is_symbol =
            |position: u32| position != NONE && self.symbols[position as usize] == symbol;
        let mut count = 0;
        for &start in positions {
            if !is_symbol(start) || is_symbol(self.previous[start as usize]) {
                continue;
            }
            let mut length = 0;
            let mut position = start;
            while is_symbol(position) {
                length += 1;
                position = self.next[position as usize];
            }
            count += length / 2 * self.weights[self.segments[start as usize] as usize];
        }
        count
    }

    fn is_usable(&self, left: u32, right: u32) -> bool {
        let spelling = [
            self.spelling[left as usize].as_slice(),
            &self.spelling[right as usize],
        ]
        .concat();
        spelling.len() <= limits::MAX_LEARNT_TOKEN_BYTES && !json::is_typed_name(&spelling)
    }

    /// Merges all occurrences of a pair, from left to right, into the next symbol.
    fn merge(&mut self, left: u32, right: u32) {
        let merged = self.spelling.len() as u32;
        self.spelling.push(
            [
                self.spelling[left as usize].as_slice(),
                &self.spelling[right as usize],
            ]
            .concat(),
        );
        let Some(taken) = self.pairs.remove(&pair(left, right)) else {
            return;
        };
        // Only pairs with the new symbol come into being here; they enter the queue when their counts are complete.
        let mut born: HashMap<Pair, Counted, BuildHasherDefault<PairHasher>> = HashMap::default();
        for &position in &taken.positions {
            let at = position as usize;
            let second = self.next[at];
            if self.symbols[at] != left || second == NONE || self.symbols[second as usize] != right
            {
                continue;
            }
            let weight = self.weights[self.segments[at] as usize];
            let before = self.previous[at];
            let after = self.next[second as usize];
            self.symbols[at] = merged;
            self.symbols[second as usize] = NONE;
            self.next[at] = after;
            if before != NONE {
                let neighbour = self.symbols[before as usize];
                lessen(&mut self.pairs, &mut born, pair(neighbour, left), weight);
                add(&mut born, pair(neighbour, merged), before, weight);
            }
            if after != NONE {
                self.previous[after as usize] = position;
                let neighbour = self.symbols[after as usize];
                lessen(&mut self.pairs, &mut born, pair(right, neighbour), weight);
                add(&mut born, pair(merged, neighbour), position, weight);
            }
        }
        for (key, counted) in born {
            if counted.count > 1 {
                self.queue.push((counted.count, Reverse(key)));
                self.pairs.insert(key, counted);
            }
        }
    }
}

type PairCounts = HashMap<Pair, Counted, BuildHasherDefault<PairHasher>>;

fn lessen(pairs: &mut PairCounts, born: &mut PairCounts, key: Pair, weight: u64) {
    // The pair that is being merged is in neither; in a run its overlapping occurrences are lessened here in vain.
    if let Some(counted) = born.get_mut(&key).or_else(|| pairs.get_mut(&key)) {
        counted.count = counted.count.saturating_sub(weight);
    }
}

fn add(born: &mut PairCounts, key: Pair, position: u32, weight: u64) {
    let counted = born.entry(key).or_default();
    counted.count += weight;
    counted.positions.push(position);
}

/// A hash of one number; the pairs come from a corpus that the operator trusts with the whole model.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Tokenizer;
    use proptest::prelude::*;

    /// Merges learnt by counting everything anew at each step.
    fn naive_merges(corpus: &[(Vec<u8>, u64)], merges: usize) -> Vec<(u32, u32)> {
        let mut words: Vec<(Vec<u32>, u64)> = corpus
            .iter()
            .map(|(segment, count)| {
                (
                    segment
                        .iter()
                        .map(|byte| FIRST_BYTE + u32::from(*byte))
                        .collect(),
                    *count,
                )
            })
            .collect();
        let mut lengths: HashMap<u32, usize> =
            (FIRST_BYTE..FIRST_MERGE).map(|id| (id, 1)).collect();
        let mut learnt = Vec::new();
        while learnt.len() < merges {
            let mut counts: HashMap<(u32, u32), u64> = HashMap::new();
            for (word, count) in &words {
                let mut run = 0;
                for (at, two) in word.windows(2).enumerate() {
                    // In a run of equal symbols every second pair overlaps the one that is merged before it.
                    run = if two[0] == two[1] && at > 0 && word[at - 1] == two[0] {
                        run + 1
                    } else {
                        0
                    };
                    if run % 2 == 0 {
                        *counts.entry((two[0], two[1])).or_default() += count;
                    }
                }
            }
            let usable = |pair: &(u32, u32)| {
                lengths[&pair.0] + lengths[&pair.1] <= limits::MAX_LEARNT_TOKEN_BYTES
            };
            let best = counts
                .iter()
                .filter(|(pair, count)| **count > 1 && usable(pair));
            let Some((&best, _)) = best.max_by_key(|(pair, count)| (**count, Reverse(**pair)))
            else {
                break;
            };
            let id = FIRST_MERGE + learnt.len() as u32;
            lengths.insert(id, lengths[&best.0] + lengths[&best.1]);
            learnt.push(best);
            for (word, _) in &mut words {
                let mut at = 0;
                while at + 1 < word.len() {
                    if (word[at], word[at + 1]) == best {
                        word[at] = id;
                        word.remove(at + 1);
                    }
                    at += 1;
                }
            }
        }
        learnt
    }

    fn trained(corpus: &[(Vec<u8>, u64)], merges: usize) -> Vec<(u32, u32)> {
        let segments = corpus
            .iter()
            .map(|(segment, count)| (segment.as_slice(), *count));
        train_merges(segments, FIRST_MERGE as usize + merges).unwrap()
    }

    fn byte(byte: u8) -> u32 {
        FIRST_BYTE + u32::from(byte)
    }

    #[test]
    fn overlapping_runs_count_what_a_merge_would_take() {
        // "aaa" holds one mergeable "aa", so 3 of them lose against 4 of "bc".
        let corpus = [(b"aaa".to_vec(), 3), (b"bc".to_vec(), 4)];
        assert_eq!(
            trained(&corpus, 2),
            [(byte(b'b'), byte(b'c')), (byte(b'a'), byte(b'a'))]
        );
    }

    #[test]
    fn equal_counts_go_to_the_lowest_ids() {
        let corpus = [
            (b"zy".to_vec(), 5),
            (b"ab".to_vec(), 5),
            (b"ac".to_vec(), 5),
        ];
        let expected = [
            (byte(b'a'), byte(b'b')),
            (byte(b'a'), byte(b'c')),
            (byte(b'z'), byte(b'y')),
        ];
        assert_eq!(trained(&corpus, 9), expected);
    }

    #[test]
    fn merges_end_where_no_pair_stands_twice() {
        assert_eq!(trained(&[(b"abcdef".to_vec(), 1)], 10), []);
        assert_eq!(trained(&[], 10), []);
    }

    #[test]
    fn learnt_tokens_reach_their_length_limit_and_do_not_pass_it() {
        let tokenizer = Tokenizer::from_merges(trained(&[(vec![0; 400], 3)], 100)).unwrap();
        let lengths = (FIRST_MERGE..)
            .map_while(|id| tokenizer.token_bytes(id))
            .map(<[u8]>::len);
        assert_eq!(lengths.max(), Some(limits::MAX_LEARNT_TOKEN_BYTES));
    }

    #[test]
    fn no_merge_is_spelled_like_a_typed_token() {
        let tokenizer = Tokenizer::from_merges(trained(&[(b"<mask>".to_vec(), 9)], 100)).unwrap();
        assert!(
            (FIRST_MERGE..)
                .map_while(|id| tokenizer.token_bytes(id))
                .all(|bytes| bytes != b"<mask>")
        );
    }

    #[test]
    fn sizes_are_held_at_their_limits_and_past_them() {
        let corpus = || [(&b"ab"[..], 1)];
        assert!(train_merges(corpus(), FIRST_MERGE as usize).is_ok());
        assert!(train_merges(corpus(), limits::MAX_VOCABULARY).is_ok());
        for size in [0, FIRST_MERGE as usize - 1, limits::MAX_VOCABULARY + 1] {
            let error = train_merges(corpus(), size).unwrap_err();
            assert!(
                matches!(
                    error,
                    TokenError::Training {
                        what: "vocabulary size",
                        ..
                    }
                ),
                "{error}"
            );
        }
        assert!(check_corpus_bytes(limits::MAX_CORPUS_BYTES).is_ok());
        assert!(check_corpus_bytes(limits::MAX_CORPUS_BYTES + 1).is_err());
        let error = train_merges([(&b"ab"[..], u64::MAX / 2), (&b"cd"[..], 1)], 1_000).unwrap_err();
        assert!(
            matches!(error, TokenError::Training { what: "corpus", .. }),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn same_merges_as_counting_anew(
            corpus in prop::collection::vec((prop::collection::vec(b'a'..=b'c', 0..40), 1_u64..4), 0..12),
        ) {
            prop_assert_eq!(trained(&corpus, 40), naive_merges(&corpus, 40));
        }

        #[test]
        fn the_order_of_the_segments_does_not_matter(
            mut corpus in prop::collection::vec((prop::collection::vec(b'a'..=b'd', 0..40), 1_u64..4), 0..12),
        ) {
            let merges = trained(&corpus, 40);
            corpus.reverse();
            prop_assert_eq!(trained(&corpus, 40), merges);
        }
    }
}
