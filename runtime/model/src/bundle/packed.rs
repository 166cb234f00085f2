//! The packed form: an index, then the files at 64-byte boundaries.
//!
//! Magic `TLLMBNDL`; version, u32; entry count, u32; per entry: name length, u16; name; offset,
//! u64; size, u64; then the data in the order of the entries. All numbers are little endian. The
//! first entry is the manifest. There is exactly one way to pack a bundle: whatever lies elsewhere,
//! overlaps or follows is refused.

use std::collections::BTreeMap;
use std::ops::Range;

use super::MANIFEST_NAME;
use super::names::check_name;
use crate::bytes::{Reader, align_up};
use crate::error::{ModelError, check_limit};
use crate::limits;

/// What errors call a packed file.
pub(crate) const FILE: &str = "bundle";
const MAGIC: [u8; 8] = *b"TLLMBNDL";
const VERSION: u32 = 1;
/// Files start at multiples of this.
const ALIGNMENT: u64 = 64;
/// Bytes of the header before the entries.
const HEADER_BYTES: u64 = 16;
/// Bytes of an entry besides its name.
const ENTRY_BYTES: u64 = 18;

/// Where every file lies. The manifest is among them.
pub(crate) fn read_index(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, ModelError> {
    check_limit(
        FILE,
        "file size",
        limits::BUNDLE_BYTES_MAX,
        bytes.len() as u64,
    )?;
    let mut reader = Reader::new(FILE, bytes);
    let magic: [u8; 8] = reader.array("magic")?;
    if magic != MAGIC {
        return Err(ModelError::invalid(
            FILE,
            "magic",
            "TLLMBNDL",
            magic.escape_ascii(),
        ));
    }
    let version = reader.u32("version")?;
    if version != VERSION {
        return Err(ModelError::Unsupported {
            file: FILE.to_owned(),
            field: "version".to_owned(),
            found: version.to_string(),
            supported: VERSION.to_string(),
        });
    }
    let count = reader.u32("entry count")?;
    check_limit(
        FILE,
        "entry count",
        limits::BUNDLE_FILES_MAX,
        u64::from(count),
    )?;
    if count == 0 {
        return Err(ModelError::invalid(FILE, "entry count", "at least 1", 0));
    }
    let mut entries = Vec::new();
    for index in 0..count {
        entries.push(read_entry(&mut reader, index)?);
    }
    place_entries(bytes, reader.position() as u64, entries)
}

struct Entry {
    name: String,
    offset: u64,
    size: u64,
}

fn read_entry(reader: &mut Reader<'_>, index: u32) -> Result<Entry, ModelError> {
    let field = format!("name of entry {index}");
    let length = reader.u16(&field)?;
    check_limit(
        FILE,
        format!("length of {field}"),
        limits::NAME_BYTES_MAX,
        u64::from(length),
    )?;
    let name = std::str::from_utf8(reader.take(u64::from(length), &field)?)
        .map_err(|error| ModelError::invalid(FILE, field.as_str(), "UTF-8", error))?;
    check_name(FILE, &field, name)?;
    let name = name.to_owned();
    if (index == 0) != (name == MANIFEST_NAME) {
        return Err(ModelError::invalid(
            FILE,
            field,
            "bundle.json first and only first",
            name,
        ));
    }
    let offset = reader.u64(&format!("offset of {name}"))?;
    let size = reader.u64(&format!("size of {name}"))?;
    check_limit(
        FILE,
        format!("size of {name}"),
        limits::FILE_BYTES_MAX,
        size,
    )?;
    Ok(Entry { name, offset, size })
}

/// Holds every entry to the one place where the writer would have put it.
fn place_entries(
    bytes: &[u8],
    header_end: u64,
    entries: Vec<Entry>,
) -> Result<BTreeMap<String, Range<usize>>, ModelError> {
    let file_bytes = bytes.len() as u64;
    let mut end = header_end;
    let mut ranges = BTreeMap::new();
    for Entry { name, offset, size } in entries {
        let start = align_up(end, ALIGNMENT).unwrap_or(u64::MAX);
        if offset != start {
            let expected = format!("{start}, the next free multiple of {ALIGNMENT}");
            return Err(ModelError::invalid(
                FILE,
                format!("offset of {name}"),
                expected,
                offset,
            ));
        }
        if start <= file_bytes
            && bytes[end as usize..start as usize]
                .iter()
                .any(|&byte| byte != 0)
        {
            return Err(ModelError::invalid(
                FILE,
                format!("bytes before {name}"),
                "zeros up to its offset",
                "other bytes",
            ));
        }
        end = start.saturating_add(size);
        if end > file_bytes {
            return Err(ModelError::Truncated {
                file: FILE.to_owned(),
                field: format!("file {name}"),
                offset,
                expected: size,
                found: file_bytes.saturating_sub(offset),
            });
        }
        let range = offset as usize..end as usize;
        if ranges.insert(name.clone(), range).is_some() {
            return Err(ModelError::invalid(
                FILE,
                format!("name {name}"),
                "a name that comes once",
                "it twice",
            ));
        }
    }
    if end != file_bytes {
        return Err(ModelError::invalid(
            FILE,
            "file size",
            format!("{end}, the end of the last file"),
            file_bytes,
        ));
    }
    Ok(ranges)
}

/// Packs files; the manifest is the first.
pub(crate) fn write(entries: &[(&str, &[u8])]) -> Result<Vec<u8>, ModelError> {
    let index_bytes: u64 = entries
        .iter()
        .map(|(name, _)| ENTRY_BYTES + name.len() as u64)
        .sum();
    let mut end = HEADER_BYTES + index_bytes;
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for (name, data) in entries {
        let offset = end.next_multiple_of(ALIGNMENT);
        // Names have been held to NAME_BYTES_MAX.
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&(data.len() as u64).to_le_bytes());
        end = offset + data.len() as u64;
    }
    check_limit(FILE, "file size", limits::BUNDLE_BYTES_MAX, end)?;
    for (_, data) in entries {
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        out.extend_from_slice(data);
    }
    Ok(out)
}
