//! The tokenizer file: Hugging Face `tokenizers` JSON with a byte-level BPE model.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bpe::BytePairs;
use super::error::TokenError;
use super::limits;
use super::vocabulary::{FIRST_BYTE, FIRST_MERGE, typed_name};
use crate::memory::{MemoryError, try_filled, try_push, try_with_capacity};

/// Reads a file down to its merges as ids. Everything else in it must be what [`write`] writes.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(u32, u32)>, TokenError> {
    if bytes.len() > limits::MAX_TOKENIZER_JSON_BYTES {
        return Err(TokenError::FileTooLong {
            limit: limits::MAX_TOKENIZER_JSON_BYTES,
            found: bytes.len(),
        });
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| json_error(&error))?;
    expect("version", &file.version, "1.0")?;
    file.check_parts_without_value()?;
    file.check_byte_level()?;
    file.model.check_settings()?;
    let vocabulary = file.model.check_vocabulary()?;
    check_added_tokens(&file.added_tokens)?;
    file.model.merge_ids(&vocabulary)
}

fn json_error(error: &serde_json::Error) -> TokenError {
    let message = error.to_string();
    if let Some(rest) = message.strip_prefix(REFUSED) {
        let digits = rest.split(' ').next().unwrap_or_default();
        return TokenError::Memory(MemoryError {
            what: LISTS,
            bytes: digits.parse().unwrap_or(0),
        });
    }
    TokenError::Json {
        line: error.line(),
        column: error.column(),
        message,
    }
}

/// How a message of the JSON reader begins that stands for memory that was refused; the number of bytes follows. A file cannot make
/// such a message: what is quoted of it never comes first.
const REFUSED: &str = "memory refused: ";

/// What errors call the lists of the file.
const LISTS: &str = "lists of the tokenizer";

/// Adds what a list of the file holds next.
fn push<T, E: serde::de::Error>(list: &mut Vec<T>, value: T) -> Result<(), E> {
    let pushed = try_push(LISTS, list, value);
    pushed.map_err(|refused| E::custom(format_args!("{REFUSED}{} bytes", refused.bytes)))
}

/// The elements of a list of the file.
fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Elements<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = elements.next_element()? {
                push(&mut list, element)?;
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Elements(PhantomData))
}

/// The file of these merges.
pub(super) fn write(pairs: &BytePairs) -> Vec<u8> {
    let byte_level = ByteLevel {
        kind: "ByteLevel".to_owned(),
        add_prefix_space: false,
        trim_offsets: false,
        use_regex: false,
    };
    let added_tokens = (0..FIRST_BYTE)
        .filter_map(|id| typed_name(id).map(|content| AddedToken::new(id, content)))
        .collect();
    let spelled = |symbol: u32| spelled(pairs.spelling(symbol));
    let names = (0..FIRST_BYTE)
        .filter_map(typed_name)
        .chain((0..pairs.symbols() as u32).map(spelled));
    let merge_names =
        |(left, right): (u32, u32)| Merge(spelled(left - FIRST_BYTE), spelled(right - FIRST_BYTE));
    let file = File {
        version: "1.0".to_owned(),
        truncation: None,
        padding: None,
        added_tokens,
        normalizer: None,
        pre_tokenizer: byte_level.clone(),
        post_processor: None,
        decoder: byte_level,
        model: Model {
            kind: "BPE".to_owned(),
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: Vocabulary(names.zip(0..).collect()),
            merges: pairs.merge_ids().map(merge_names).collect(),
        },
    };
    // Writing strings and numbers to memory has no way to fail.
    let mut bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Whether these bytes are spelled like a typed token, which would give two tokens of one vocabulary the same name.
pub(super) fn is_typed_name(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'<')
        && bytes.last() == Some(&b'>')
        && (0..FIRST_BYTE).any(|id| typed_name(id).is_some_and(|name| name.as_bytes() == bytes))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    truncation: Option<Ignored>,
    padding: Option<Ignored>,
    #[serde(deserialize_with = "list")]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Ignored>,
    pre_tokenizer: ByteLevel,
    post_processor: Option<Ignored>,
    decoder: ByteLevel,
    model: Model,
}

/// A value that is there but must not be.
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Serialize for Ignored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByteLevel {
    #[serde(rename = "type")]
    kind: String,
    add_prefix_space: bool,
    trim_offsets: bool,
    use_regex: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl AddedToken {
    fn new(id: u32, content: String) -> Self {
        Self {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocabulary,
    #[serde(deserialize_with = "list")]
    merges: Vec<Merge>,
}

/// The entries of the vocabulary in the order of the file, duplicates among them.
struct Vocabulary(Vec<(String, u32)>);

/// A merge: the names of its parts.
struct Merge(String, String);

impl File {
    fn check_parts_without_value(&self) -> Result<(), TokenError> {
        let parts = [
            ("truncation", self.truncation.is_some()),
            ("padding", self.padding.is_some()),
            ("normalizer", self.normalizer.is_some()),
            ("post_processor", self.post_processor.is_some()),
        ];
        match parts.iter().find(|(_, present)| *present) {
            Some((field, _)) => Err(field_error(*field, "null", "a value")),
            None => Ok(()),
        }
    }

    fn check_byte_level(&self) -> Result<(), TokenError> {
        expect("pre_tokenizer.type", &self.pre_tokenizer.kind, "ByteLevel")?;
        expect("decoder.type", &self.decoder.kind, "ByteLevel")?;
        // The decoder's other fields say nothing about ids.
        expect(
            "pre_tokenizer.add_prefix_space",
            &self.pre_tokenizer.add_prefix_space,
            &false,
        )?;
        expect(
            "pre_tokenizer.use_regex",
            &self.pre_tokenizer.use_regex,
            &false,
        )
    }
}

impl Model {
    fn check_settings(&self) -> Result<(), TokenError> {
        expect("model.type", &self.kind, "BPE")?;
        expect_none("model.dropout", self.dropout.as_ref())?;
        expect_none("model.unk_token", self.unk_token.as_ref())?;
        expect_none(
            "model.continuing_subword_prefix",
            self.continuing_subword_prefix.as_ref(),
        )?;
        expect_none("model.end_of_word_suffix", self.end_of_word_suffix.as_ref())?;
        expect("model.fuse_unk", &self.fuse_unk, &false)?;
        expect("model.byte_fallback", &self.byte_fallback, &false)?;
        expect("model.ignore_merges", &self.ignore_merges, &false)
    }

    /// Checks that the vocabulary is the fixed tokens and one token per merge, and gives the id of each name.
    fn check_vocabulary(&self) -> Result<HashMap<&str, u32>, TokenError> {
        let entries = &self.vocab.0;
        let expected = FIRST_MERGE as usize + self.merges.len();
        if entries.len() > limits::MAX_VOCABULARY {
            return Err(field_error(
                "model.vocab",
                format!("at most {} tokens", limits::MAX_VOCABULARY),
                entries.len(),
            ));
        }
        if entries.len() != expected {
            let expected = format!("{FIRST_MERGE} fixed tokens and one per merge, {expected}");
            return Err(field_error("model.vocab", expected, entries.len()));
        }
        let mut ids = HashMap::new();
        let reserved = ids.try_reserve(entries.len());
        reserved.map_err(|_| MemoryError {
            what: LISTS,
            bytes: entries.len() * size_of::<(&str, u32)>(),
        })?;
        let mut names: Vec<Option<&str>> = try_filled(LISTS, entries.len(), None)?;
        for (name, id) in entries {
            let field = || format!("model.vocab[{name:?}]");
            let Some(place) = names.get_mut(*id as usize) else {
                return Err(field_error(
                    field(),
                    format!("an id below {}", entries.len()),
                    id,
                ));
            };
            if let Some(other) = place {
                return Err(field_error(
                    field(),
                    "an id of its own",
                    format!("{id}, the id of {other:?}"),
                ));
            }
            *place = Some(name);
            if ids.insert(name.as_str(), *id).is_some() {
                return Err(field_error(field(), "one entry", "two"));
            }
        }
        for id in 0..FIRST_MERGE {
            let expected = typed_name(id).unwrap_or_else(|| spelled(&[(id - FIRST_BYTE) as u8]));
            if ids.get(expected.as_str()) != Some(&id) {
                let found = names[id as usize].unwrap_or_default();
                return Err(field_error(
                    format!("model.vocab, id {id}"),
                    format!("{expected:?}"),
                    format!("{found:?}"),
                ));
            }
        }
        Ok(ids)
    }

    fn merge_ids(&self, vocabulary: &HashMap<&str, u32>) -> Result<Vec<(u32, u32)>, TokenError> {
        let mut merges = try_with_capacity(LISTS, self.merges.len())?;
        for (rank, Merge(left, right)) in self.merges.iter().enumerate() {
            let field = || format!("model.merges[{rank}]");
            let id = |name: &str| {
                let id = vocabulary.get(name).copied();
                id.ok_or_else(|| {
                    field_error(field(), "two tokens of the vocabulary", format!("{name:?}"))
                })
            };
            let ids = (id(left)?, id(right)?);
            let expected = FIRST_MERGE + rank as u32;
            match vocabulary.get(format!("{left}{right}").as_str()) {
                Some(found) if *found == expected => merges.push(ids),
                Some(found) => {
                    return Err(field_error(
                        field(),
                        format!("the token with id {expected}"),
                        format!("id {found}"),
                    ));
                }
                None => {
                    let expected = format!("the token with id {expected}");
                    return Err(field_error(
                        field(),
                        expected,
                        format!("{left:?} + {right:?}, not in the vocabulary"),
                    ));
                }
            }
        }
        Ok(merges)
    }
}

fn check_added_tokens(tokens: &[AddedToken]) -> Result<(), TokenError> {
    if tokens.len() != FIRST_BYTE as usize {
        return Err(field_error(
            "added_tokens",
            format!("{FIRST_BYTE} tokens"),
            tokens.len(),
        ));
    }
    for (id, token) in (0..).zip(tokens) {
        let field = |name| format!("added_tokens[{id}].{name}");
        expect(field("id"), &token.id, &id)?;
        expect(
            field("content"),
            &token.content,
            &typed_name(id).unwrap_or_default(),
        )?;
        let flags = [
            ("single_word", token.single_word, false),
            ("lstrip", token.lstrip, false),
            ("rstrip", token.rstrip, false),
            ("normalized", token.normalized, false),
            ("special", token.special, true),
        ];
        for (name, found, expected) in flags {
            expect(field(name), &found, &expected)?;
        }
    }
    Ok(())
}

fn field_error(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl ToString,
) -> TokenError {
    TokenError::Field {
        field: field.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

fn expect<T: fmt::Debug + PartialEq<U>, U: fmt::Debug + ?Sized>(
    field: impl Into<String>,
    found: &T,
    expected: &U,
) -> Result<(), TokenError> {
    if found == expected {
        Ok(())
    } else {
        Err(field_error(
            field,
            format!("{expected:?}"),
            format!("{found:?}"),
        ))
    }
}

fn expect_none<T: fmt::Debug>(field: &str, found: Option<&T>) -> Result<(), TokenError> {
    found.map_or(Ok(()), |found| {
        Err(field_error(field, "null", format!("{found:?}")))
    })
}

/// Bytes as the byte-level alphabet writes them: printable Latin-1 characters as themselves, the other bytes, in order, as the
/// characters from U+0100.
fn spelled(bytes: &[u8]) -> String {
    let alphabet = |byte: u8| {
        let number = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
            0x00..=0x20 => 0x100 + u32::from(byte),
            0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
            0xad => 0x143,
        };
        char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    bytes.iter().map(|byte| alphabet(*byte)).collect()
}

impl Serialize for Vocabulary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, id) in &self.0 {
            map.serialize_entry(name, id)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of token names and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    push(&mut entries, entry)?;
                }
                Ok(Vocabulary(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Merge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.0, &self.1).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Merge;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("two token names, as a list or with a space between them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                let (left, right) = text
                    .split_once(' ')
                    .ok_or_else(|| E::invalid_length(1, &self))?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Merge, A::Error> {
                let left = parts
                    .next_element()?
                    .ok_or_else(|| serde::de::Error::invalid_length(0, &self))?;
                let right = parts
                    .next_element()?
                    .ok_or_else(|| serde::de::Error::invalid_length(1, &self))?;
                match parts.next_element::<IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(serde::de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(Parts)
    }
}
