//! File names inside a bundle, and checksums.

use sha2::{Digest, Sha256};

use crate::error::{ModelError, check_limit};
use crate::limits;

/// Refuses names that could leave the bundle's directory or mean different files on different
/// systems: only relative paths of ASCII letters, digits, `.`, `_`, `-` and `/`, without empty, `.`
/// or `..` parts.
pub(crate) fn check_name(file: &str, field: &str, name: &str) -> Result<(), ModelError> {
    check_limit(
        file,
        format!("length of {field}"),
        limits::NAME_BYTES_MAX,
        name.len() as u64,
    )?;
    let characters_fit = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    let parts_fit = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !(characters_fit && parts_fit) {
        let expected = "a relative path of letters, digits, '.', '_', '-' and '/' without '..'";
        return Err(ModelError::invalid(file, field, expected, name));
    }
    Ok(())
}

/// Refuses a set of names (sorted) of which one is a folder of another: they could not lie in one
/// directory.
pub(crate) fn check_no_folder_is_a_file<'a>(
    file: &str,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), ModelError> {
    let all: std::collections::BTreeSet<&str> = names.clone().map(String::as_str).collect();
    for name in names {
        for (slash, _) in name.match_indices('/') {
            if all.contains(&name[..slash]) {
                return Err(ModelError::invalid(
                    file,
                    format!("name {name}"),
                    "folders that are not files",
                    &name[..slash],
                ));
            }
        }
    }
    Ok(())
}

/// The hash of `bytes`, 64 lower-case hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Refuses anything but 64 lower-case hexadecimal digits.
pub(crate) fn check_sha256(file: &str, field: &str, text: &str) -> Result<(), ModelError> {
    let fits = text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !fits {
        return Err(ModelError::invalid(
            file,
            field,
            "64 lower-case hexadecimal digits",
            text,
        ));
    }
    Ok(())
}
