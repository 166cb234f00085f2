//! The GGUF container, versions 2 and 3, little endian.

use std::collections::BTreeMap;

use super::data_type::DataType;
use super::metadata::{MetadataReader, Value, describe, read_name};
use super::{ALIGNMENT_DEFAULT, MAGIC};
use crate::bytes::{Reader, align_up};
use crate::error::{ModelError, check_limit};
use crate::limits;
use crate::memory::try_with_capacity;

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
    metadata: BTreeMap<String, Value<'a>>,
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

        let metadata = MetadataReader::new(file, bytes, &mut reader).read(metadata_count)?;
        let alignment = read_alignment(file, &metadata)?;
        let mut entries = try_with_capacity("index of tensors", tensor_count as usize)?;
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
    pub fn metadata(&self) -> &BTreeMap<String, Value<'a>> {
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
    pub fn string(&self, key: &str) -> Result<&'a str, ModelError> {
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

fn read_alignment(file: &str, metadata: &BTreeMap<String, Value<'_>>) -> Result<u64, ModelError> {
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
        // Below, the product is far from overflowing, whatever the format of the numbers.
        elements = elements.saturating_mul(size);
        check_limit(
            file,
            format!("elements of {name}"),
            limits::GGUF_TENSOR_ELEMENTS_MAX,
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
        supported: DataType::list(&DataType::ALL),
    })?;
    let offset = reader.u64(&format!("offset of {name}"))?;
    let size_bytes = data_type.size_bytes(elements, columns).ok_or_else(|| {
        ModelError::invalid(
            file,
            format!("shape of {name}"),
            format!(
                "rows of a multiple of {}, the block of {}",
                data_type.block_elements(),
                data_type.name()
            ),
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
    entries.sort_unstable_by_key(|entry| entry.offset);
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
