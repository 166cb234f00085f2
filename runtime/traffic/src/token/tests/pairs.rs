//! Byte-pair encoding against merging in rank order, the plain way.

use proptest::prelude::*;

use crate::token::limits;
use crate::token::vocabulary::{FIRST_BYTE, FIRST_MERGE};
use crate::token::{BytePairScratch, TokenError, Tokenizer, train_merges};

/// Merges the leftmost pair of the lowest rank until none is left.
fn naive(merges: &[(u32, u32)], text: &[u8]) -> Vec<u32> {
    let mut ids: Vec<u32> = text
        .iter()
        .map(|byte| FIRST_BYTE + u32::from(*byte))
        .collect();
    loop {
        let rank_at = |at: usize| {
            merges
                .iter()
                .position(|pair| *pair == (ids[at], ids[at + 1]))
        };
        let ranks =
            (0..ids.len().saturating_sub(1)).filter_map(|at| rank_at(at).map(|rank| (rank, at)));
        let Some((rank, at)) = ranks.min() else {
            return ids;
        };
        ids[at] = FIRST_MERGE + rank as u32;
        ids.remove(at + 1);
    }
}

fn encoded(tokenizer: &Tokenizer, text: &[u8]) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode_bytes(text, &mut BytePairScratch::default(), &mut ids);
    ids
}

fn spelled(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|id| tokenizer.token_bytes(*id).unwrap().to_vec())
        .collect()
}

/// Merges picked by `picks` among the ids so far, those left out that no text could use.
fn random_merges(letters: u32, picks: &[(u16, u16)]) -> Vec<(u32, u32)> {
    let mut merges: Vec<(u32, u32)> = Vec::new();
    let mut spellings: Vec<Vec<u8>> = Vec::new();
    let spelling_of = |spellings: &[Vec<u8>], number: u32| match number.checked_sub(letters) {
        None => vec![b'a' + number as u8],
        Some(merge) => spellings[merge as usize].clone(),
    };
    let id_of = |number: u32| match number.checked_sub(letters) {
        None => FIRST_BYTE + u32::from(b'a') + number,
        Some(merge) => FIRST_MERGE + merge,
    };
    for (left, right) in picks {
        let known = letters + merges.len() as u32;
        let (left, right) = (u32::from(*left) % known, u32::from(*right) % known);
        let text = [
            spelling_of(&spellings, left),
            spelling_of(&spellings, right),
        ]
        .concat();
        let pair = (id_of(left), id_of(right));
        if text.len() <= limits::MAX_TOKEN_BYTES && naive(&merges, &text) == [pair.0, pair.1] {
            merges.push(pair);
            spellings.push(text);
        }
    }
    merges
}

proptest! {
    #[test]
    fn learnt_merges_encode_in_rank_order(
        corpus in prop::collection::vec(prop::collection::vec(b'a'..=b'd', 0..60), 1..10),
        texts in prop::collection::vec(prop::collection::vec(b'a'..=b'e', 0..200), 1..8),
    ) {
        let merges = train_merges(corpus.iter().map(|segment| (segment.as_slice(), 2)), 720).unwrap();
        let tokenizer = Tokenizer::from_merges(merges.clone()).unwrap();
        for text in texts.iter().chain(&corpus) {
            let ids = encoded(&tokenizer, text);
            prop_assert_eq!(&ids, &naive(&merges, text));
            prop_assert_eq!(&spelled(&tokenizer, &ids), text);
        }
    }

    #[test]
    fn random_merges_encode_in_rank_order(
        letters in 1_u32..5,
        picks in prop::collection::vec((any::<u16>(), any::<u16>()), 0..80),
        texts in prop::collection::vec(prop::collection::vec(b'a'..=b'e', 0..150), 1..8),
        run_bytes in 0_usize..200,
    ) {
        let merges = random_merges(letters, &picks);
        let tokenizer = Tokenizer::from_merges(merges.clone()).unwrap();
        for text in texts.iter().chain([&vec![b'a'; run_bytes]]) {
            prop_assert_eq!(encoded(&tokenizer, text), naive(&merges, text));
        }
    }

    #[test]
    fn random_bytes_come_back(text in prop::collection::vec(any::<u8>(), 0..400)) {
        let tokenizer = super::tokenizer();
        let ids = encoded(&tokenizer, &text);
        prop_assert_eq!(spelled(&tokenizer, &ids), text);
    }
}

/// Merges of the byte pairs 00 00, 00 01, ...: none of them can be in another's way.
fn two_byte_merges(count: u32) -> Vec<(u32, u32)> {
    (0..count)
        .map(|number| (FIRST_BYTE + number / 256, FIRST_BYTE + number % 256))
        .collect()
}

#[test]
fn both_ways_to_tell_neighbours_encode_in_rank_order() {
    let mut random = 1_u32;
    let text: Vec<u8> = (0..600)
        .map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8 % 20
        })
        .collect();
    let tabled = limits::MAX_TABLED_SYMBOLS as u32 - 256;
    for count in [tabled, tabled + 1] {
        let merges = two_byte_merges(count);
        let tokenizer = Tokenizer::from_merges(merges.clone()).unwrap();
        assert_eq!(
            encoded(&tokenizer, &text),
            naive(&merges, &text),
            "{count} merges"
        );
    }
}

#[test]
fn the_vocabulary_is_held_at_its_limit_and_past_it() {
    let most = limits::MAX_VOCABULARY as u32 - FIRST_MERGE;
    let tokenizer = Tokenizer::from_merges(two_byte_merges(most)).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), limits::MAX_VOCABULARY);
    let error = Tokenizer::from_merges(two_byte_merges(most + 1)).unwrap_err();
    assert!(
        matches!(&error, TokenError::Field { field, .. } if field == "model.merges"),
        "{error}"
    );
}

#[test]
fn a_token_is_held_at_its_length_limit_and_past_it() {
    let zero = FIRST_BYTE;
    let mut merges = vec![(zero, zero)];
    merges.extend((0..5).map(|rank| (FIRST_MERGE + rank, FIRST_MERGE + rank)));
    let tokenizer = Tokenizer::from_merges(merges.clone()).unwrap();
    assert_eq!(
        tokenizer.token_bytes(FIRST_MERGE + 5).unwrap().len(),
        limits::MAX_TOKEN_BYTES
    );
    merges.push((FIRST_MERGE + 5, zero));
    let error = Tokenizer::from_merges(merges).unwrap_err();
    assert!(
        matches!(error, TokenError::Merge { rank: 6, .. }),
        "{error}"
    );
}

#[test]
fn merges_that_cannot_be_are_refused() {
    let [a, b, c] = [b'a', b'b', b'c'].map(|byte| FIRST_BYTE + u32::from(byte));
    let cases = [
        (vec![(a, FIRST_MERGE)], "ids of bytes and earlier merges"),
        (vec![(FIRST_BYTE - 1, a)], "ids of bytes and earlier merges"),
        (vec![(a, u32::MAX)], "ids of bytes and earlier merges"),
        (vec![(a, b), (a, b)], "a new spelling"),
        (
            vec![(a, b), (FIRST_MERGE, c), (b, c), (a, FIRST_MERGE + 2)],
            "a new spelling",
        ),
        // "abc" is always taken apart as "ab" and "c".
        (
            vec![(a, b), (b, c), (a, FIRST_MERGE + 1)],
            "a merge that can apply",
        ),
    ];
    for (merges, expected) in cases {
        let last = merges.len() - 1;
        match Tokenizer::from_merges(merges) {
            Err(TokenError::Merge {
                rank,
                expected: found,
                ..
            }) => assert_eq!((rank, found), (last, expected)),
            other => panic!("expected {expected}, found {other:?}"),
        }
    }
    let mask: Vec<u32> = b"<mask>"
        .iter()
        .map(|byte| FIRST_BYTE + u32::from(*byte))
        .collect();
    let mut merges = vec![(mask[0], mask[1])];
    merges.extend((0..4).map(|rank| (FIRST_MERGE + rank, mask[rank as usize + 2])));
    let error = Tokenizer::from_merges(merges).unwrap_err();
    assert!(
        error.to_string().contains("no typed token's name"),
        "{error}"
    );
}

#[test]
fn long_hostile_text_is_encoded_like_short_text() {
    // Longest matches are wrong at every step here: "ab" first, so that "abc" and "abcd" fit only at the end.
    let tokenizer = super::tokenizer();
    for text in [
        vec![0; 1 << 20],
        b"GET /".repeat(200_000),
        b"HTTP/1.".repeat(100_000),
    ] {
        let ids = encoded(&tokenizer, &text);
        assert_eq!(spelled(&tokenizer, &ids), text);
    }
}
