//! What can go wrong, with the place, what was expected and what was found.

use std::io;

/// Every error of this crate. `file` is a bundle's file name, or the path where one was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field holds something the format does not allow.
    #[error("{file}: {field}: expected {expected}, found {found}")]
    Invalid {
        /// The file it stands in.
        file: String,
        /// The field, key or tensor.
        field: String,
        /// What the format wants there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A count, length or size is past what this crate accepts (`limits`).
    #[error("{file}: {field}: expected at most {limit}, found {found}")]
    Limit {
        /// The file it stands in.
        file: String,
        /// The field that is too large.
        field: String,
        /// The largest value accepted.
        limit: u64,
        /// The value found.
        found: u64,
    },
    /// The file ends before something that it announces.
    #[error("{file}: {field}: expected {expected} bytes at offset {offset}, found {found}")]
    Truncated {
        /// The file that ends early.
        file: String,
        /// What was to be read.
        field: String,
        /// Where it starts, in bytes from the start of the file.
        offset: u64,
        /// Its size in bytes.
        expected: u64,
        /// The bytes that are left from `offset` on.
        found: u64,
    },
    /// A tensor has another shape than the model's sizes ask for.
    #[error("{file}: tensor {tensor}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The file it stands in.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape wanted, outermost first; for a size that is free the value found.
        expected: Vec<usize>,
        /// The shape found, outermost first.
        found: Vec<usize>,
    },
    /// A tensor holds an infinity or something that is not a number.
    #[error("{file}: tensor {tensor}: expected finite numbers, found {found} at element {index}")]
    NotFinite {
        /// The file it stands in.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The element, counted in storage order.
        index: usize,
        /// The value.
        found: f32,
    },
    /// The format is known but this part of it is not served.
    #[error("{file}: {field}: {found} is not supported (supported: {supported})")]
    Unsupported {
        /// The file it stands in.
        file: String,
        /// The field, key or tensor.
        field: String,
        /// What the file asks for.
        found: String,
        /// What would work.
        supported: String,
    },
    /// Something the file has to hold is not there.
    #[error("{file}: {field}: expected {expected}, found nothing")]
    Missing {
        /// The file where it should stand.
        file: String,
        /// The field, key, tensor or file that is missing.
        field: String,
        /// What should stand there.
        expected: String,
    },
    /// A file's bytes are not those the manifest vouches for.
    #[error("{file}: sha256: expected {expected}, found {found}")]
    Hash {
        /// The file whose bytes differ.
        file: String,
        /// The hash in the manifest, 64 hexadecimal digits.
        expected: String,
        /// The hash of the bytes found.
        found: String,
    },
    /// The manifest is not the JSON it should be.
    #[error("{file}: line {line} column {column}: expected schema {schema}, found: {message}")]
    Json {
        /// The file it stands in.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The schema that was read.
        schema: u32,
        /// What the JSON reader says.
        message: String,
    },
    /// The operating system refused.
    #[error("{file}: {operation}: {source}")]
    Io {
        /// The path.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The system does not give memory.
    #[error("{what}: expected {bytes} bytes of memory, found none")]
    Memory {
        /// What it is for.
        what: &'static str,
        /// What was asked for.
        bytes: usize,
    },
    /// An argument of a call is wrong; nothing was computed.
    #[error("item {item}: {field}: expected {expected}, found {found}")]
    Input {
        /// The index of the item in the call.
        item: usize,
        /// What is wrong with it.
        field: &'static str,
        /// What the call wants.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// The model does not give the answer that its manifest promises.
    #[error("bundle.json: self_test[{index}] of task {task}: expected {expected}, found {found}")]
    SelfTest {
        /// The index of the self-test.
        index: usize,
        /// The task.
        task: String,
        /// Label and score promised.
        expected: String,
        /// Label and score computed.
        found: String,
    },
    /// A device failed, or has no room.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(#[from] trafficllm_kernels::cuda::DeviceError),
    /// The forward pass refused its input.
    #[error("forward pass: {message}")]
    Forward {
        /// What the transformer says.
        message: String,
    },
}

impl ModelError {
    pub(crate) fn invalid(
        file: &str,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Invalid {
            file: file.to_owned(),
            field: field.into(),
            expected: expected.into(),
            found: shown(&found.to_string()),
        }
    }

    pub(crate) fn missing(
        file: &str,
        field: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Missing {
            file: file.to_owned(),
            field: field.into(),
            expected: expected.into(),
        }
    }

    pub(crate) fn io(path: &std::path::Path, operation: &'static str, source: io::Error) -> Self {
        Self::Io {
            file: path.display().to_string(),
            operation,
            source,
        }
    }
}

/// Untrusted text as an error shows it: short, on one line, without control characters.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 200;
    let mut out = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == SHOWN_CHARACTERS_MAX {
            out.push_str("...");
            break;
        }
        if character.is_control() {
            out.extend(character.escape_default())
        } else {
            out.push(character)
        }
    }
    out
}

/// Refuses `found` when it is past `limit`.
pub(crate) fn check_limit(
    file: &str,
    field: impl Into<String>,
    limit: usize,
    found: u64,
) -> Result<(), ModelError> {
    if found > limit as u64 {
        return Err(ModelError::Limit {
            file: file.to_owned(),
            field: field.into(),
            limit: limit as u64,
            found,
        });
    }
    Ok(())
}

/// Refuses infinities and not-a-numbers.
pub(crate) fn check_finite(file: &str, tensor: &str, values: &[f32]) -> Result<(), ModelError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(ModelError::NotFinite {
            file: file.to_owned(),
            tensor: tensor.to_owned(),
            index,
            found: values[index],
        }),
    }
}
