//! `bundle.json`: what is in a bundle, what it was made from, and what it promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::MANIFEST_NAME;
use super::lists::{list, number, refused};
use super::names::{check_name, check_no_folder_is_a_file, check_sha256};
use super::task::{HeadManifest, INSTRUCTION, InstructionManifest, TaskManifest};
use crate::error::{ModelError, check_limit, shown};
use crate::limits;

/// The manifest schema that this crate reads and writes. Another major is refused.
pub const MANIFEST_SCHEMA: u32 = 1;

/// The whole manifest. Unknown fields are refused: a reader that skips what it does not know cannot
/// vouch for a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// The publisher's name for this model, such as `default-1`. (The model's identity is a hash:
    /// [`crate::Bundle::id`].)
    pub id: String,
    /// A title for people.
    pub name: String,
    /// When it was made, RFC 3339. Left out where bytes have to repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The model card: free fields.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub card: BTreeMap<String, Value>,
    /// The input profile; whoever makes tokens reads it.
    pub profile: Value,
    /// `tokenizer.json`.
    pub tokenizer: FileReference,
    /// The quantised base, GGUF.
    pub base: FileReference,
    /// The tasks, in the order in which verdicts count them.
    #[serde(deserialize_with = "list")]
    pub tasks: Vec<TaskManifest>,
    /// What names the task that a free text asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<InstructionManifest>,
    /// Heads that run beside the tasks.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "list"
    )]
    pub heads: Vec<HeadManifest>,
    /// How the tasks' metrics were measured.
    #[serde(default)]
    pub metrics_protocol: Value,
    /// What data the model was made from.
    #[serde(default)]
    pub data_statement: Value,
    /// The licence, an SPDX expression.
    pub licence: String,
    /// Every file but the manifest, by name.
    #[serde(deserialize_with = "files_without_duplicates")]
    pub files: BTreeMap<String, FileEntry>,
    /// Inputs with their verdicts; a model that answers otherwise is not put to work.
    #[serde(deserialize_with = "list")]
    pub self_test: Vec<SelfTest>,
}

/// A file that the manifest gives a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileReference {
    /// The name inside the bundle.
    pub file: String,
    /// Its hash, as in `files`. [`crate::Bundle::build`] fills it in.
    #[serde(default)]
    pub sha256: String,
}

impl FileReference {
    /// A reference whose hash [`crate::Bundle::build`] will fill in.
    pub fn new(file: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            sha256: String::new(),
        }
    }
}

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// One input and the verdict it must get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// The item's token ids.
    #[serde(deserialize_with = "list")]
    pub tokens: Vec<u32>,
    /// The task's name.
    pub task: String,
    /// The label it must get.
    pub label: String,
    /// The score it must get, within [`crate::SELF_TEST_TOLERANCE`].
    #[serde(deserialize_with = "number")]
    pub score: f32,
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// Another schema, fields that are unknown, missing or past a limit, names that leave the
    /// bundle, references to files that are not listed.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        check_limit(
            MANIFEST_NAME,
            "file size",
            limits::MANIFEST_BYTES_MAX,
            bytes.len() as u64,
        )?;
        // The schema is read by itself first: a newer manifest may have other fields, and the
        // schema is then what is wrong.
        let schema = serde_json::from_slice::<SchemaOnly>(bytes)
            .map_err(json_error)?
            .schema;
        if schema != MANIFEST_SCHEMA {
            return Err(ModelError::Unsupported {
                file: MANIFEST_NAME.to_owned(),
                field: "schema".to_owned(),
                found: schema.to_string(),
                supported: MANIFEST_SCHEMA.to_string(),
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(json_error)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes of `bundle.json`; the same manifest gives the same bytes.
    ///
    /// # Errors
    /// A manifest that [`Manifest::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(json_error)?;
        bytes.push(b'\n');
        check_limit(
            MANIFEST_NAME,
            "file size",
            limits::MANIFEST_BYTES_MAX,
            bytes.len() as u64,
        )?;
        Ok(bytes)
    }

    fn check(&self) -> Result<(), ModelError> {
        check_text("id", &self.id, limits::TEXT_BYTES_MAX)?;
        check_text("name", &self.name, limits::TEXT_BYTES_MAX)?;
        check_text("licence", &self.licence, limits::TEXT_BYTES_MAX)?;
        self.check_files()?;
        self.check_reference("tokenizer", &self.tokenizer)?;
        self.check_reference("base", &self.base)?;
        check_limit(
            MANIFEST_NAME,
            "tasks",
            limits::TASKS_MAX,
            self.tasks.len() as u64,
        )?;
        if self.tasks.is_empty() {
            return Err(invalid("tasks", "at least 1", 0));
        }
        let mut names = BTreeSet::new();
        for (index, task) in self.tasks.iter().enumerate() {
            let field = format!("tasks[{index}]");
            task.check(&field)?;
            self.check_reference(&format!("{field}.adapter"), &task.adapter)?;
            for (index, aside) in task.set_aside.iter().enumerate() {
                let field = format!("{field}.set_aside[{index}].adapter");
                self.check_reference(&field, &aside.adapter)?;
            }
            if task.name == INSTRUCTION {
                let expected = "another name: this one is kept for what reads instructions";
                return Err(invalid(format!("{field}.name"), expected, &task.name));
            }
            if !names.insert(&task.name) {
                return Err(invalid(
                    format!("{field}.name"),
                    "a name that comes once",
                    &task.name,
                ));
            }
        }
        check_limit(
            MANIFEST_NAME,
            "heads",
            limits::HEADS_MAX,
            self.heads.len() as u64,
        )?;
        for (index, head) in self.heads.iter().enumerate() {
            let field = format!("heads[{index}]");
            head.check(&field, &self.tasks)?;
            self.check_reference(&format!("{field}.module"), &head.module)?;
            let bytes = self
                .files
                .get(&head.module.file)
                .map_or(0, |file| file.bytes);
            let size = format!("size of {field}.module");
            check_limit(MANIFEST_NAME, size, limits::HEAD_BYTES_MAX, bytes)?;
            if head.name == INSTRUCTION || !names.insert(&head.name) {
                let expected = "a name that neither a task nor another head has";
                return Err(invalid(format!("{field}.name"), expected, &head.name));
            }
        }
        if let Some(instruction) = &self.instruction {
            instruction.check(&self.tasks)?;
            self.check_reference("instruction.adapter", &instruction.adapter)?;
        }
        self.check_self_tests()
    }

    fn labels_of(&self, task: &str) -> Option<&[String]> {
        let instruction = self.instruction.as_ref().filter(|_| task == INSTRUCTION);
        let found = self.tasks.iter().find(|known| known.name == task);
        found
            .map(|found| &found.labels[..])
            .or(instruction.map(|instruction| &instruction.labels[..]))
    }

    fn check_files(&self) -> Result<(), ModelError> {
        // The manifest itself is the one file that the map does not list.
        check_limit(
            MANIFEST_NAME,
            "files",
            limits::BUNDLE_FILES_MAX - 1,
            self.files.len() as u64,
        )?;
        let mut total: u64 = 0;
        for (name, entry) in &self.files {
            check_name(MANIFEST_NAME, "files", name)?;
            if name == MANIFEST_NAME {
                return Err(invalid("files", "files other than the manifest", name));
            }
            check_sha256(
                MANIFEST_NAME,
                &format!("files[{name}].sha256"),
                &entry.sha256,
            )?;
            check_limit(
                MANIFEST_NAME,
                format!("files[{name}].bytes"),
                limits::FILE_BYTES_MAX,
                entry.bytes,
            )?;
            total += entry.bytes;
        }
        check_limit(
            MANIFEST_NAME,
            "bytes of all files",
            limits::BUNDLE_BYTES_MAX,
            total,
        )?;
        check_no_folder_is_a_file(MANIFEST_NAME, self.files.keys())
    }

    fn check_reference(&self, field: &str, reference: &FileReference) -> Result<(), ModelError> {
        check_name(MANIFEST_NAME, &format!("{field}.file"), &reference.file)?;
        let Some(entry) = self.files.get(&reference.file) else {
            return Err(invalid(
                format!("{field}.file"),
                "a file listed in `files`",
                &reference.file,
            ));
        };
        if entry.sha256 != reference.sha256 {
            let expected = format!("{} as in `files`", entry.sha256);
            return Err(invalid(
                format!("{field}.sha256"),
                expected,
                &reference.sha256,
            ));
        }
        Ok(())
    }

    fn check_self_tests(&self) -> Result<(), ModelError> {
        check_limit(
            MANIFEST_NAME,
            "self_test",
            limits::SELF_TESTS_MAX,
            self.self_test.len() as u64,
        )?;
        if self.self_test.is_empty() {
            return Err(invalid("self_test", "at least 1", 0));
        }
        for (index, test) in self.self_test.iter().enumerate() {
            let field = format!("self_test[{index}]");
            check_limit(
                MANIFEST_NAME,
                format!("{field}.tokens"),
                limits::ITEM_TOKENS_MAX,
                test.tokens.len() as u64,
            )?;
            if test.tokens.is_empty() {
                return Err(invalid(format!("{field}.tokens"), "at least 1", 0));
            }
            let Some(labels) = self.labels_of(&test.task) else {
                return Err(invalid(
                    format!("{field}.task"),
                    "a task of the bundle",
                    &test.task,
                ));
            };
            if !labels.contains(&test.label) {
                let expected = format!("a label of {}", test.task);
                return Err(invalid(format!("{field}.label"), expected, &test.label));
            }
            check_fraction(&format!("{field}.score"), test.score)?;
        }
        Ok(())
    }
}

/// Reads the map of files and refuses a name that comes twice (a plain map would keep the last one
/// silently).
fn files_without_duplicates<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, FileEntry>, D::Error> {
    struct FilesVisitor;
    impl<'de> Visitor<'de> for FilesVisitor {
        type Value = BTreeMap<String, FileEntry>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a map from file names to sizes and hashes")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut files = BTreeMap::new();
            while let Some((name, entry)) = map.next_entry::<String, FileEntry>()? {
                if files.contains_key(&name) {
                    return Err(serde::de::Error::custom(format_args!(
                        "duplicate file {}",
                        shown(&name)
                    )));
                }
                files.insert(name, entry);
            }
            Ok(files)
        }
    }
    deserializer.deserialize_map(FilesVisitor)
}

pub(super) fn check_text(field: &str, text: &str, limit: usize) -> Result<(), ModelError> {
    check_limit(
        MANIFEST_NAME,
        format!("length of {field}"),
        limit,
        text.len() as u64,
    )?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(invalid(field, "text without control characters", text));
    }
    Ok(())
}

pub(super) fn check_fraction(field: &str, value: f32) -> Result<(), ModelError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(invalid(field, "0 to 1", value))
    }
}

pub(super) fn invalid(
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl ToString,
) -> ModelError {
    ModelError::invalid(MANIFEST_NAME, field, expected, found)
}

fn json_error(error: serde_json::Error) -> ModelError {
    let message = error.to_string();
    refused(&message).unwrap_or_else(|| ModelError::Json {
        file: MANIFEST_NAME.to_owned(),
        line: error.line(),
        column: error.column(),
        schema: MANIFEST_SCHEMA,
        message: shown(&message),
    })
}
