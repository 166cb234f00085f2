//! Lists and numbers of the manifest, read so that what is wrong with them is told as everything else.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::ModelError;
use crate::memory::try_push;

/// What errors call the lists.
const LISTS: &str = "lists of the manifest";

/// How a message of the JSON reader begins that stands for memory that was refused; the number of bytes follows. A file cannot make
/// such a message: what is quoted of it never comes first.
const REFUSED: &str = "memory refused: ";

/// The error that a message of the JSON reader stands for, if it is one of this module.
pub(super) fn refused(message: &str) -> Option<ModelError> {
    let rest = message.strip_prefix(REFUSED)?;
    let digits = rest.split(' ').next().unwrap_or_default();
    Some(ModelError::Memory {
        what: LISTS,
        bytes: digits.parse().unwrap_or(0),
    })
}

fn push<T, E: Error>(list: &mut Vec<T>, value: T) -> Result<(), E> {
    try_push(LISTS, list, value).map_err(|error| match error {
        ModelError::Memory { bytes, .. } => E::custom(format_args!("{REFUSED}{bytes} bytes")),
        other => E::custom(other),
    })
}

/// A number of single precision. Read with double precision: whether the reader refuses what single precision cannot hold depends on
/// features that other crates of a build ask for.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    f64::deserialize(deserializer).map(|value| value as f32)
}

/// A list of anything.
pub(super) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
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

/// A list of lists.
pub(super) fn lists<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Vec<T>>, D::Error> {
    struct Inner<T>(Vec<T>);
    impl<'de, T: Deserialize<'de>> Deserialize<'de> for Inner<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            list(deserializer).map(Self)
        }
    }
    struct Elements<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
        type Value = Vec<Vec<T>>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
            let mut lists = Vec::new();
            while let Some(Inner(inner)) = elements.next_element()? {
                push(&mut lists, inner)?;
            }
            Ok(lists)
        }
    }
    deserializer.deserialize_seq(Elements(PhantomData))
}
