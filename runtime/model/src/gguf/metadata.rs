//! The metadata section of a GGUF file.

use std::collections::BTreeMap;

use crate::bytes::Reader;
use crate::error::{ModelError, check_limit};
use crate::limits;

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer type of the file.
    Unsigned(u64),
    /// Any signed integer type of the file.
    Signed(i64),
    /// `float32` or `float64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    String(&'a str),
    /// Elements of one type.
    Array(Array<'a>),
}

/// A metadata array, checked and left where it lies in the file: the vocabulary of a large model is a
/// million texts, and an engine with a tokenizer of its own needs none of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    type_code: u32,
    length: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The elements, all of one kind.
    #[must_use]
    pub fn values(&self) -> Vec<Value<'a>> {
        let mut reader = Reader::new("", self.bytes);
        let mut elements = MetadataReader::new("", self.bytes, &mut reader);
        // Nothing ends early: the elements were read once when the file was.
        (0..self.length)
            .map_while(|_| elements.value("", self.type_code).ok())
            .collect()
    }
}

/// A value as an error shows it: short, whatever the file holds.
pub(super) fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "an array".to_owned(),
    }
}

/// Reads the metadata section. `elements_left` bounds all arrays together: it takes time to look at
/// each text of one.
pub(super) struct MetadataReader<'r, 'f, 'a> {
    file: &'f str,
    /// What `reader` reads. The reader's own slices live no longer than the file's name.
    bytes: &'a [u8],
    reader: &'r mut Reader<'f>,
    elements_left: usize,
}

impl<'r, 'f, 'a> MetadataReader<'r, 'f, 'a> {
    /// `reader` stands somewhere in `bytes`.
    pub(super) fn new(file: &'f str, bytes: &'a [u8], reader: &'r mut Reader<'f>) -> Self {
        Self {
            file,
            bytes,
            reader,
            elements_left: limits::GGUF_ARRAY_ELEMENTS_MAX,
        }
    }

    pub(super) fn read(&mut self, count: u64) -> Result<BTreeMap<String, Value<'a>>, ModelError> {
        let mut metadata = BTreeMap::new();
        for index in 0..count {
            let key = read_name(self.file, self.reader, &format!("metadata key {index}"))?;
            let type_code = self.reader.u32(&format!("type of {key}"))?;
            let value = self.value(&key, type_code)?;
            if metadata.contains_key(&key) {
                return Err(ModelError::invalid(
                    self.file,
                    key,
                    "a key that comes once",
                    "it twice",
                ));
            }
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, type_code: u32) -> Result<Value<'a>, ModelError> {
        Ok(match type_code {
            0 | 2 | 4 | 10 => Value::Unsigned(self.unsigned(key, type_code)?),
            1 | 3 | 5 | 11 => Value::Signed(self.signed(key, type_code)?),
            6 | 12 => Value::Float(self.float(key, type_code)?),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(key)?),
            9 => Value::Array(self.array(key)?),
            _ => return Err(unknown_type(self.file, key, type_code)),
        })
    }

    /// Checks every element without keeping any.
    fn array(&mut self, key: &str) -> Result<Array<'a>, ModelError> {
        let type_code = self.reader.u32(&format!("element type of {key}"))?;
        let count = self.reader.u64(&format!("length of {key}"))?;
        check_limit(
            self.file,
            format!("length of {key}"),
            self.elements_left,
            count,
        )?;
        self.elements_left -= count as usize;
        let start = self.reader.position();
        match type_code {
            7 => {
                for _ in 0..count {
                    self.bool(key)?;
                }
            }
            8 => {
                for _ in 0..count {
                    self.string(key)?;
                }
            }
            _ => {
                let size_bytes = number_bytes(type_code)
                    .ok_or_else(|| unknown_type(self.file, key, type_code))?;
                // No overflow: the limit of elements is far below.
                self.reader.take(count * size_bytes, key)?;
            }
        }
        Ok(Array {
            type_code,
            length: count as usize,
            bytes: &self.bytes[start..self.reader.position()],
        })
    }

    fn unsigned(&mut self, key: &str, type_code: u32) -> Result<u64, ModelError> {
        Ok(match type_code {
            0 => u64::from(self.reader.array::<1>(key)?[0]),
            2 => u64::from(self.reader.u16(key)?),
            4 => u64::from(self.reader.u32(key)?),
            _ => self.reader.u64(key)?,
        })
    }

    fn signed(&mut self, key: &str, type_code: u32) -> Result<i64, ModelError> {
        Ok(match type_code {
            1 => i64::from(i8::from_le_bytes(self.reader.array(key)?)),
            3 => i64::from(i16::from_le_bytes(self.reader.array(key)?)),
            5 => i64::from(i32::from_le_bytes(self.reader.array(key)?)),
            _ => i64::from_le_bytes(self.reader.array(key)?),
        })
    }

    fn float(&mut self, key: &str, type_code: u32) -> Result<f64, ModelError> {
        Ok(match type_code {
            6 => f64::from(f32::from_le_bytes(self.reader.array(key)?)),
            _ => f64::from_le_bytes(self.reader.array(key)?),
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool, ModelError> {
        match self.reader.array::<1>(key)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(ModelError::invalid(self.file, key, "0 or 1", other)),
        }
    }

    fn string(&mut self, key: &str) -> Result<&'a str, ModelError> {
        let length = read_length(self.file, self.reader, key, limits::GGUF_STRING_BYTES_MAX)?;
        self.reader.take(length, key)?;
        let end = self.reader.position();
        text(self.file, key, &self.bytes[end - length as usize..end])
    }
}

/// Bytes of a number of the file.
fn number_bytes(type_code: u32) -> Option<u64> {
    match type_code {
        0 | 1 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn unknown_type(file: &str, key: &str, type_code: u32) -> ModelError {
    ModelError::Unsupported {
        file: file.to_owned(),
        field: format!("type of {key}"),
        found: format!("metadata type {type_code}"),
        supported: "0 to 12; arrays of anything but arrays".to_owned(),
    }
}

/// The length of a text whose bytes follow.
fn read_length(
    file: &str,
    reader: &mut Reader<'_>,
    field: &str,
    limit: usize,
) -> Result<u64, ModelError> {
    let length = reader.u64(field)?;
    check_limit(file, format!("length of {field}"), limit, length)?;
    Ok(length)
}

fn text<'b>(file: &str, field: &str, bytes: &'b [u8]) -> Result<&'b str, ModelError> {
    std::str::from_utf8(bytes).map_err(|error| ModelError::invalid(file, field, "UTF-8", error))
}

/// A key or a tensor's name; errors about what it names will show it.
pub(super) fn read_name(
    file: &str,
    reader: &mut Reader<'_>,
    field: &str,
) -> Result<String, ModelError> {
    let length = read_length(file, reader, field, limits::GGUF_NAME_BYTES_MAX)?;
    let name = text(file, field, reader.take(length, field)?)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(ModelError::invalid(
            file,
            field,
            "a name without control characters",
            name,
        ));
    }
    Ok(name.to_owned())
}
