//! Reading and writing little-endian fields at places that are checked.

use super::{ABI, AbiError, is_compatible};

/// A block that is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) block: &'static str,
}

impl<'a> Reader<'a> {
    /// A block that begins as one should, and is as long as it says.
    pub(crate) fn whole(
        bytes: &'a [u8],
        block: &'static str,
        magic: u32,
    ) -> Result<Self, AbiError> {
        let block = Self { bytes, block };
        block.expect("magic", magic.into(), block.u32("magic", 0)?.into())?;
        block.expect("bytes", bytes.len() as u64, block.u32("bytes", 4)?.into())?;
        Ok(block)
    }

    /// The host's block is of a version that is understood.
    pub(crate) fn expect_abi(&self) -> Result<(), AbiError> {
        let abi = self.u32("abi", 8)?;
        if is_compatible(abi) {
            Ok(())
        } else {
            Err(AbiError::broken(self.block, "abi", ABI, abi))
        }
    }

    /// `count` bytes at `at`.
    pub(crate) fn slice(
        &self,
        field: &'static str,
        at: usize,
        count: usize,
    ) -> Result<&'a [u8], AbiError> {
        let found = at
            .checked_add(count)
            .and_then(|end| self.bytes.get(at..end));
        found.ok_or_else(|| {
            let expected = format!("{count} bytes at {at}");
            AbiError::broken(
                self.block,
                field,
                expected,
                format!("a block of {} bytes", self.bytes.len()),
            )
        })
    }

    pub(crate) fn u8(&self, field: &'static str, at: usize) -> Result<u8, AbiError> {
        Ok(self.array::<1>(field, at)?[0])
    }

    pub(crate) fn u16(&self, field: &'static str, at: usize) -> Result<u16, AbiError> {
        Ok(u16::from_le_bytes(self.array(field, at)?))
    }

    pub(crate) fn u32(&self, field: &'static str, at: usize) -> Result<u32, AbiError> {
        Ok(u32::from_le_bytes(self.array(field, at)?))
    }

    pub(crate) fn u64(&self, field: &'static str, at: usize) -> Result<u64, AbiError> {
        Ok(u64::from_le_bytes(self.array(field, at)?))
    }

    pub(crate) fn f32(&self, field: &'static str, at: usize) -> Result<f32, AbiError> {
        Ok(f32::from_le_bytes(self.array(field, at)?))
    }

    /// A text behind a u16 with its bytes, and where it ends.
    pub(crate) fn text(
        &self,
        field: &'static str,
        at: usize,
        lengths: std::ops::RangeInclusive<usize>,
    ) -> Result<(&'a str, usize), AbiError> {
        let length = usize::from(self.u16(field, at)?);
        if !lengths.contains(&length) {
            let expected = format!("{} to {} bytes", lengths.start(), lengths.end());
            return Err(AbiError::broken(self.block, field, expected, length));
        }
        let bytes = self.slice(field, at + 2, length)?;
        Ok((
            plain_text(self.block, field, bytes)?,
            at.saturating_add(2 + length),
        ))
    }

    /// Fails unless the field has this value.
    pub(crate) fn expect(
        &self,
        field: &'static str,
        expected: u64,
        found: u64,
    ) -> Result<(), AbiError> {
        if expected == found {
            return Ok(());
        }
        Err(AbiError::broken(self.block, field, expected, found))
    }

    /// Fails unless the value is in the range.
    pub(crate) fn expect_in(
        &self,
        field: &'static str,
        range: std::ops::RangeInclusive<usize>,
        found: usize,
    ) -> Result<(), AbiError> {
        if range.contains(&found) {
            return Ok(());
        }
        let expected = format!("{} to {}", range.start(), range.end());
        Err(AbiError::broken(self.block, field, expected, found))
    }

    fn array<const N: usize>(&self, field: &'static str, at: usize) -> Result<[u8; N], AbiError> {
        let mut found = [0; N];
        found.copy_from_slice(self.slice(field, at, N)?);
        Ok(found)
    }
}

/// UTF-8 without control characters: what reaches terminals, logs and records of a host.
pub(crate) fn plain_text<'a>(
    block: &'static str,
    field: &'static str,
    bytes: &'a [u8],
) -> Result<&'a str, AbiError> {
    let is_printable = bytes.iter().all(|byte| (0x20..0x7f).contains(byte));
    let text = std::str::from_utf8(bytes)
        .map_err(|error| AbiError::broken(block, field, "UTF-8", error))?;
    match text.chars().find(|character| character.is_control()) {
        Some(character) if !is_printable => {
            let found = format!("U+{:04X}", u32::from(character));
            Err(AbiError::broken(
                block,
                field,
                "no control characters",
                found,
            ))
        }
        _ => Ok(text),
    }
}

/// A block that is written, into room that somebody else made.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    room: &'a mut [u8],
    pub(crate) at: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(room: &'a mut [u8]) -> Self {
        Self { room, at: 0 }
    }

    /// Appends; `None` where the room is used up.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at.checked_add(bytes.len())?;
        self.room.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    pub(crate) fn put_f32s(&mut self, values: &[f32]) -> Option<()> {
        let end = self.at.checked_add(values.len().checked_mul(4)?)?;
        let room = self.room.get_mut(self.at..end)?;
        for (place, value) in room.chunks_exact_mut(4).zip(values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        self.at = end;
        Some(())
    }

    pub(crate) fn text(&mut self, text: &str) -> Option<()> {
        self.put(&u16::try_from(text.len()).ok()?.to_le_bytes())?;
        self.put(text.as_bytes())
    }

    /// Appends zeros up to a multiple of `alignment`.
    pub(crate) fn align(&mut self, alignment: usize) -> Option<()> {
        let end = self.at.next_multiple_of(alignment);
        self.room.get_mut(self.at..end)?.fill(0);
        self.at = end;
        Some(())
    }

    /// Overwrites what was written before.
    pub(crate) fn overwrite(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        let end = at.checked_add(bytes.len())?;
        self.room.get_mut(at..end)?.copy_from_slice(bytes);
        Some(())
    }
}
