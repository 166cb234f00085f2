//! A cursor over untrusted bytes: every read is checked against what is left.

use crate::error::ModelError;
use crate::memory::try_with_capacity;

/// Reads little-endian fields front to back.
pub(crate) struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self {
            file,
            bytes,
            position: 0,
        }
    }

    /// Bytes from the start of the file.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `length` bytes.
    pub(crate) fn take(&mut self, length: u64, field: &str) -> Result<&'a [u8], ModelError> {
        let found = self.remaining() as u64;
        if length > found {
            return Err(ModelError::Truncated {
                file: self.file.to_owned(),
                field: field.to_owned(),
                offset: self.position as u64,
                expected: length,
                found,
            });
        }
        let start = self.position;
        self.position += length as usize;
        Ok(&self.bytes[start..self.position])
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    pub(crate) fn u16(&mut self, field: &str) -> Result<u16, ModelError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }
}

/// Rounds `value` up to a multiple of `alignment`; `None` past the end of the number range.
pub(crate) fn align_up(value: u64, alignment: u64) -> Option<u64> {
    value.checked_next_multiple_of(alignment)
}

/// Four little-endian bytes per value; the length of `bytes` is a multiple of four.
pub(crate) fn read_f32(bytes: &[u8]) -> Result<Vec<f32>, ModelError> {
    let (numbers, _) = bytes.as_chunks();
    let mut values = try_with_capacity("numbers of a tensor", numbers.len())?;
    values.extend(numbers.iter().map(|number| f32::from_le_bytes(*number)));
    Ok(values)
}
