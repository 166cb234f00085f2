//! Files that people hand over, read under a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Result, TrainError};

/// Bytes of a recipe, or of any other small file of JSON, 1 MiB: the longest takes some kilobytes.
pub const JSON_BYTES_MAX: u64 = 1 << 20;

/// Reads a small file of JSON: a recipe, remarks for a card.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::FileTooLarge`] past [`JSON_BYTES_MAX`], [`TrainError::Json`] where it is not what it should be.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read(path, JSON_BYTES_MAX)?;
    serde_json::from_slice(&text).map_err(|source| TrainError::Json {
        path: path.into(),
        source,
    })
}

/// Reads a file of at most `limit_bytes`. A larger one is refused by its length; one that has no length or grows, when it gets there.
pub(crate) fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let too_large = || TrainError::FileTooLarge {
        path: path.into(),
        limit_bytes,
    };
    let file = File::open(path).map_err(TrainError::io(path))?;
    let length = file.metadata().map_err(TrainError::io(path))?.len();
    if length > limit_bytes {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(TrainError::io(path))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(too_large());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn a_recipe_may_be_as_long_as_the_limit_and_no_longer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("recipe.json");
        let mut text = serde_json::to_vec(&Recipe::default()).expect("JSON");
        text.resize(JSON_BYTES_MAX as usize, b' ');
        std::fs::write(&path, &text).expect("written");
        let recipe: Recipe = read_json(&path).expect("at the limit");
        assert_eq!(recipe, Recipe::default());
        text.push(b' ');
        std::fs::write(&path, &text).expect("written");
        let error = read_json::<Recipe>(&path).expect_err("past the limit");
        assert!(
            matches!(&error, TrainError::FileTooLarge { limit_bytes, .. } if *limit_bytes == JSON_BYTES_MAX),
            "{error}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_without_a_length_is_held_to_the_limit_too() {
        let endless = Path::new("/dev/zero");
        let error = read(endless, 1_000).expect_err("past the limit");
        assert!(matches!(error, TrainError::FileTooLarge { .. }), "{error}");
        assert_eq!(read(Path::new("/dev/null"), 0).expect("empty"), b"");
    }
}
