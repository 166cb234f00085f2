//! The GGUF container, versions 2 and 3, little endian.

use std::collections::BTreeMap;

use super::{ALIGNMENT_DEFAULT, BLOCK_BYTES, BLOCK_ELEMENTS, MAGIC};
use crate::bytes::{Reader, align_up};
use crate::error::{ModelError, check_limit};
use crate::limits;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer type of the file.
    Unsigned(u64),
    /// Any signed integer type of the file.
    Signed(i64),
    /// `float32` or `float64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Elements of one type.
    Array(Array),
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Any unsigned integer type of the file.
    Unsigned(Vec<u64>),
    /// Any signed integer type of the file.
    Signed(Vec<i64>),
    /// `float32` or `float64`.
    Float(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(Vec<String>),
}

/// The number formats of tensors that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Blocks of 32 signed bytes with an f16 scale.
    Q8_0,
}

impl DataType {
    fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            8 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Bytes of `elements` numbers of which rows hold `columns`; `None` if they do not fill blocks
    /// or overflow.
    fn size_bytes(self, elements: u64, columns: u64) -> Option<u64> {
        match self {
            Self::F32 => elements.checked_mul(4),
            Self::F16 => elements.checked_mul(2),
            Self::Q8_0 => {
                let block = BLOCK_ELEMENTS as u64;
                columns.is_multiple_of(block).then_some(())?;
                (elements / block).checked_mul(BLOCK_BYTES as u64)
            }
        }
    }
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Sizes, outermost first: `[rows, columns]` for a matrix. (The file stores them the other way
    /// round.)
    pub shape: Vec<usize>,
    /// The number format.
    pub data_type: DataType,
    /// The numbers, row after row.
    pub data: &'a [u8],
}

impl Tensor<'_> {
    /// How many numbers the tensor holds. They fit the file, so the product cannot overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A parsed GGUF file that borrows its tensors' bytes.
#[derive(Debug)]
pub struct Gguf<'a> {
    file: String,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor<'a>>,
}

/// A tensor's entry before its data has been located.
struct TensorEntry {
    name: String,
    shape: Vec<usize>,
    data_type: DataType,
    offset: u64,
    size_bytes: u64,
}

impl<'a> Gguf<'a> {
    /// Parses a whole file. `file` is the name that errors carry.
    ///
    /// # Errors
    /// Anything that breaks the format or a limit: truncation, an unknown version or number format,
    /// names that come twice, tensors that overlap, leave the file, or are not aligned.
    pub fn parse(file: &str, bytes: &'a [u8]) -> Result<Self, ModelError> {
        check_limit(
            file,
            "file size",
            limits::FILE_BYTES_MAX,
            bytes.len() as u64,
        )?;
        let mut reader = Reader::new(file, bytes);
        let version = read_header(file, &mut reader)?;
        let tensor_count = reader.u64("tensor count")?;
        check_limit(file, "tensor count", limits::GGUF_TENSORS_MAX, tensor_count)?;
        let metadata_count = reader.u64("metadata count")?;
        check_limit(
            file,
            "metadata count",
            limits::GGUF_METADATA_MAX,
            metadata_count,
        )?;

        let metadata = MetadataReader {
            file,
            reader: &mut reader,
            elements_left: limits::GGUF_ARRAY_ELEMENTS_MAX,
        }
        .read(metadata_count)?;
        let alignment = read_alignment(file, &metadata)?;
        let mut entries = Vec::new();
        for index in 0..tensor_count {
            entries.push(read_tensor_entry(file, &mut reader, index)?);
        }
        let tensors = place_tensors(file, bytes, reader.position(), alignment, entries)?;
        Ok(Self {
            file: file.to_owned(),
            version,
            metadata,
            tensors,
        })
    }

    /// The name that errors carry.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The container's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor<'a>> {
        &self.tensors
    }

    /// A tensor that has to be there.
    ///
    /// # Errors
    /// [`ModelError::Missing`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor<'a>, ModelError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::missing(&self.file, format!("tensor {name}"), "a tensor"))
    }

    /// An unsigned metadata value that has to be there.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::Invalid`] if it is of another type,
    /// [`ModelError::Limit`] past `limit`.
    pub fn unsigned(&self, key: &str, limit: usize) -> Result<usize, ModelError> {
        let value = match self.metadata.get(key) {
            Some(Value::Unsigned(value)) => *value,
            Some(Value::Signed(value)) if *value >= 0 => value.unsigned_abs(),
            Some(other) => {
                return Err(ModelError::invalid(
                    &self.file,
                    key,
                    "an unsigned number",
                    describe(other),
                ));
            }
            None => return Err(ModelError::missing(&self.file, key, "an unsigned number")),
        };
        check_limit(&self.file, key, limit, value)?;
        Ok(value as usize)
    }

    /// A floating-point metadata value.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] if it is of another type or not finite.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if (*value as f32).is_finite() => Ok(Some(*value as f32)),
            Some(other) => Err(ModelError::invalid(
                &self.file,
                key,
                "a finite number",
                describe(other),
            )),
        }
    }

    /// A text that has to be there.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::Invalid`] if it is of another type.
    pub fn string(&self, key: &str) -> Result<&str, ModelError> {
        match self.metadata.get(key) {
            Some(Value::String(value)) => Ok(value),
            Some(other) => Err(ModelError::invalid(
                &self.file,
                key,
                "a text",
                describe(other),
            )),
            None => Err(ModelError::missing(&self.file, key, "a text")),
        }
    }
}

/// A value as an error shows it: short, whatever the file holds.
fn describe(value: &Value) -> String {
    match value {
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "an array".to_owned(),
    }
}

fn read_header(file: &str, reader: &mut Reader<'_>) -> Result<u32, ModelError> {
    let magic: [u8; 4] = reader.array("magic")?;
    if magic != MAGIC {
        return Err(ModelError::invalid(
            file,
            "magic",
            "GGUF",
            format!("{magic:02x?}"),
        ));
    }
    let version = reader.u32("version")?;
    if !matches!(version, 2 | 3) {
        return Err(ModelError::Unsupported {
            file: file.to_owned(),
            field: "version".to_owned(),
            found: version.to_string(),
            supported: "2 and 3, little endian".to_owned(),
        });
    }
    Ok(version)
}

fn read_alignment(file: &str, metadata: &BTreeMap<String, Value>) -> Result<u64, ModelError> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(ALIGNMENT_DEFAULT as u64),
        Some(Value::Unsigned(value))
            if value.is_power_of_two() && *value <= limits::GGUF_ALIGNMENT_MAX as u64 =>
        {
            Ok(*value)
        }
        Some(other) => Err(ModelError::invalid(
            file,
            KEY,
            format!("a power of two up to {}", limits::GGUF_ALIGNMENT_MAX),
            describe(other),
        )),
    }
}

/// Reads the metadata section. `elements_left` bounds all arrays together: an element takes more
/// memory here than in the file.
struct MetadataReader<'r, 'a> {
    file: &'r str,
    reader: &'r mut Reader<'a>,
    elements_left: usize,
}

impl MetadataReader<'_, '_> {
    fn read(&mut self, count: u64) -> Result<BTreeMap<String, Value>, ModelError> {
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

    fn value(&mut self, key: &str, type_code: u32) -> Result<Value, ModelError> {
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

    fn array(&mut self, key: &str) -> Result<Array, ModelError> {
        let type_code = self.reader.u32(&format!("element type of {key}"))?;
        let count = self.reader.u64(&format!("length of {key}"))?;
        check_limit(
            self.file,
            format!("length of {key}"),
            self.elements_left,
            count,
        )?;
        self.elements_left -= count as usize;
        // Vectors grow as elements are really read: a lying count ends at the end of the file.
        Ok(match type_code {
            0 | 2 | 4 | 10 => Array::Unsigned(
                (0..count)
                    .map(|_| self.unsigned(key, type_code))
                    .collect::<Result<_, _>>()?,
            ),
            1 | 3 | 5 | 11 => Array::Signed(
                (0..count)
                    .map(|_| self.signed(key, type_code))
                    .collect::<Result<_, _>>()?,
            ),
            6 | 12 => Array::Float(
                (0..count)
                    .map(|_| self.float(key, type_code))
                    .collect::<Result<_, _>>()?,
            ),
            7 => Array::Bool(
                (0..count)
                    .map(|_| self.bool(key))
                    .collect::<Result<_, _>>()?,
            ),
            8 => Array::String(
                (0..count)
                    .map(|_| self.string(key))
                    .collect::<Result<_, _>>()?,
            ),
            _ => return Err(unknown_type(self.file, key, type_code)),
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

    fn string(&mut self, key: &str) -> Result<String, ModelError> {
        read_string(self.file, self.reader, key, limits::GGUF_STRING_BYTES_MAX)
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

fn read_string(
    file: &str,
    reader: &mut Reader<'_>,
    field: &str,
    limit: usize,
) -> Result<String, ModelError> {
    let length = reader.u64(field)?;
    check_limit(file, format!("length of {field}"), limit, length)?;
    let bytes = reader.take(length, field)?;
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ModelError::invalid(file, field, "UTF-8", error))?;
    Ok(text.to_owned())
}

/// A key or a tensor's name; errors about what it names will show it.
fn read_name(file: &str, reader: &mut Reader<'_>, field: &str) -> Result<String, ModelError> {
    let name = read_string(file, reader, field, limits::GGUF_NAME_BYTES_MAX)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(ModelError::invalid(
            file,
            field,
            "a name without control characters",
            name,
        ));
    }
    Ok(name)
}

fn read_tensor_entry(
    file: &str,
    reader: &mut Reader<'_>,
    index: u64,
) -> Result<TensorEntry, ModelError> {
    let name = read_name(file, reader, &format!("name of tensor {index}"))?;
    let dimension_count = reader.u32(&format!("dimensions of {name}"))?;
    check_limit(
        file,
        format!("dimensions of {name}"),
        limits::GGUF_DIMENSIONS_MAX,
        u64::from(dimension_count),
    )?;
    if dimension_count == 0 {
        return Err(ModelError::invalid(
            file,
            format!("dimensions of {name}"),
            "at least 1",
            0,
        ));
    }
    let mut shape = Vec::with_capacity(dimension_count as usize);
    let mut elements: u64 = 1;
    for _ in 0..dimension_count {
        let size = reader.u64(&format!("shape of {name}"))?;
        if size == 0 {
            return Err(ModelError::invalid(
                file,
                format!("shape of {name}"),
                "sizes from 1",
                0,
            ));
        }
        // An element takes at least one byte, so a tensor with more elements than a file may have
        // bytes cannot be in the file.
        elements = elements.saturating_mul(size);
        check_limit(
            file,
            format!("elements of {name}"),
            limits::FILE_BYTES_MAX,
            elements,
        )?;
        shape.push(size as usize);
    }
    let columns = shape[0] as u64;
    shape.reverse();
    let code = reader.u32(&format!("data type of {name}"))?;
    let data_type = DataType::from_code(code).ok_or_else(|| ModelError::Unsupported {
        file: file.to_owned(),
        field: format!("data type of {name}"),
        found: format!("GGML type {code}"),
        supported: "F32 (0), F16 (1), Q8_0 (8)".to_owned(),
    })?;
    let offset = reader.u64(&format!("offset of {name}"))?;
    let size_bytes = data_type.size_bytes(elements, columns).ok_or_else(|| {
        ModelError::invalid(
            file,
            format!("shape of {name}"),
            format!("rows of a multiple of {BLOCK_ELEMENTS}"),
            columns,
        )
    })?;
    Ok(TensorEntry {
        name,
        shape,
        data_type,
        offset,
        size_bytes,
    })
}

/// Finds the tensors' bytes, which start at the next aligned position after the header.
fn place_tensors<'a>(
    file: &str,
    bytes: &'a [u8],
    header_bytes: usize,
    alignment: u64,
    mut entries: Vec<TensorEntry>,
) -> Result<BTreeMap<String, Tensor<'a>>, ModelError> {
    let file_bytes = bytes.len() as u64;
    let data_start = align_up(header_bytes as u64, alignment).unwrap_or(u64::MAX);
    entries.sort_by_key(|entry| entry.offset);
    let mut tensors = BTreeMap::new();
    let mut free_from: u64 = 0;
    for entry in entries {
        let TensorEntry {
            name,
            shape,
            data_type,
            offset,
            size_bytes,
        } = entry;
        if !offset.is_multiple_of(alignment) {
            return Err(ModelError::invalid(
                file,
                format!("offset of {name}"),
                format!("a multiple of {alignment}"),
                offset,
            ));
        }
        if offset < free_from {
            return Err(ModelError::invalid(
                file,
                format!("offset of {name}"),
                format!("at least {free_from} (the tensor before it ends there)"),
                offset,
            ));
        }
        let start = data_start.saturating_add(offset);
        let end = start.saturating_add(size_bytes);
        if end > file_bytes {
            return Err(ModelError::Truncated {
                file: file.to_owned(),
                field: format!("tensor {name}"),
                offset: start,
                expected: size_bytes,
                found: file_bytes.saturating_sub(start),
            });
        }
        free_from = offset + size_bytes;
        let data = &bytes[start as usize..end as usize];
        if tensors
            .insert(
                name.clone(),
                Tensor {
                    shape,
                    data_type,
                    data,
                },
            )
            .is_some()
        {
            return Err(ModelError::invalid(
                file,
                format!("tensor {name}"),
                "a name that comes once",
                "it twice",
            ));
        }
    }
    Ok(tensors)
}
