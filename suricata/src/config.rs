//! The `trafficllm:` block of suricata.yaml: [`KEYS`] lists what may stand in it, [`Config`] is what comes of it.

mod keys;

pub use keys::{EVE_TYPES, KEYS, Key, Kind, markdown};

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::host::conf::Value;
use crate::limits;

/// The block's name in suricata.yaml.
pub const BLOCK: &std::ffi::CStr = c"trafficllm";

/// What becomes of a flow that finds the queue full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// It waits for its next occasion.
    Shed,
    /// It is offered again with its next packet.
    Retry,
    /// Nothing is offered until half of the queue is free.
    Pause,
}

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whether to do anything.
    pub enabled: bool,
    /// Path of the library; empty for its usual names.
    pub library: String,
    /// Path of the bundle; empty for the compiled-in one.
    pub bundle: String,
    /// Tasks to ask; empty for all.
    pub tasks: Vec<String>,
    /// Least score of a verdict that does not abstain.
    pub min_score: f32,
    /// Packets of the first judgement; 0 for none before the flow is whole.
    pub packets: u32,
    /// Rest after which a live flow is judged, in milliseconds; 0 for never.
    pub idle_ms: u64,
    /// Threads of the engine.
    pub workers: u64,
    /// Length of the queue.
    pub queue_flows: u64,
    /// Most flows followed.
    pub flows: u64,
    /// Most bytes; 0 for no budget.
    pub memory_bytes: u64,
    /// At a full queue.
    pub overload: Overload,
    /// Longest wait when reading files, in milliseconds.
    pub offline_wait_ms: u64,
    /// Longest wait at the end, in milliseconds.
    pub stop_wait_ms: u64,
    /// Records that get the object.
    pub eve_types: Vec<String>,
    /// Where late verdicts go; empty for nowhere.
    pub late_file: String,
    /// Where metrics go; empty for nowhere.
    pub metrics_file: String,
    /// How often, in seconds.
    pub metrics_interval_s: u64,
    /// How often the bundle is looked at, in seconds; 0 for never.
    pub reload_interval_s: u64,
    /// Heads: WebAssembly modules, each with the task behind a colon where one is named.
    pub heads: Vec<String>,
    /// Heads that are native libraries.
    pub native_heads: Vec<String>,
    /// Whether WebAssembly heads may keep what they know.
    pub head_state: bool,
    /// Whether the heads of the bundle are run.
    pub bundled_heads: bool,
    /// Fuel of a WebAssembly head for each flow.
    pub head_fuel: u64,
    /// Bytes of memory of each instance of a WebAssembly head.
    pub head_memory_bytes: u64,
    /// After so many faults in a row a head is switched off; 0 for never.
    pub head_faults: u64,
    /// How long a batch waits for heads, in microseconds; 0 for as long as it takes.
    pub head_wait_us: u64,
    /// Whether heads may see payload.
    pub head_payload: bool,
    /// Whether precompiled heads of the bundle are run.
    pub head_precompiled: bool,
    /// Level of instructions; empty for the best.
    pub cpu: String,
    /// What runs the model; empty for the processor.
    pub device: String,
    /// Which of the library's messages are passed on.
    pub log_level: String,
}

/// What is wrong with the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// No key of that name.
    Unknown {
        /// What was found.
        found: String,
    },
    /// A key that is there twice.
    Twice(&'static str),
    /// A value that the key does not take.
    Value {
        /// Which key.
        key: &'static str,
        /// What it takes.
        expected: String,
        /// What was found.
        found: String,
    },
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { found } => {
                let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
                write!(
                    formatter,
                    "trafficllm.{found} is no key; known are {}",
                    known.join(", ")
                )
            }
            Self::Twice(key) => write!(formatter, "trafficllm.{key} is given twice"),
            Self::Value {
                key,
                expected,
                found,
            } => write!(
                formatter,
                "trafficllm.{key}: expected {expected}, found {found}"
            ),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the block as suricata.yaml has it.
    ///
    /// # Errors
    /// The first key that is none, is there twice, or has a wrong value.
    pub fn read(block: &[(String, Value)]) -> Result<Self, ConfigError> {
        for (position, (name, _)) in block.iter().enumerate() {
            let Some(key) = KEYS.iter().find(|key| key.name == name) else {
                return Err(ConfigError::Unknown {
                    found: name.clone(),
                });
            };
            if block[..position].iter().any(|(earlier, _)| earlier == name) {
                return Err(ConfigError::Twice(key.name));
            }
        }
        let block = Block(block);
        let bundle = block.text("bundle")?;
        Ok(Self {
            enabled: block.switch("enabled")?,
            library: block.text("library")?,
            bundle: if bundle == "default" {
                String::new()
            } else {
                bundle
            },
            tasks: block.list("tasks")?,
            min_score: block.fraction("min-score")? as f32,
            packets: u32::try_from(block.number("packets")?).unwrap_or(u32::MAX),
            idle_ms: block.number("idle")?,
            workers: block.number("workers")?,
            queue_flows: block.number("queue-flows")?,
            flows: block.number("flows")?,
            memory_bytes: block.bytes("memory-budget")?,
            overload: match block.choice("overload")? {
                "retry" => Overload::Retry,
                "pause" => Overload::Pause,
                _ => Overload::Shed,
            },
            offline_wait_ms: block.number("offline-wait")?,
            stop_wait_ms: block.number("stop-wait")?,
            eve_types: block.list("eve-types")?,
            late_file: block.text("late-file")?,
            metrics_file: block.text("metrics-file")?,
            metrics_interval_s: block.number("metrics-interval")?,
            reload_interval_s: block.number("reload-interval")?,
            heads: block.list("heads")?,
            native_heads: block.list("native-heads")?,
            head_state: block.switch("head-state")?,
            bundled_heads: block.switch("bundled-heads")?,
            head_fuel: block.number("head-fuel")?,
            head_memory_bytes: block.number("head-memory")?,
            head_faults: block.number("head-faults")?,
            head_wait_us: block.number("head-wait")?,
            head_payload: block.switch("head-payload")?,
            head_precompiled: block.switch("head-precompiled")?,
            cpu: block.text("cpu")?,
            device: block.text("device")?,
            log_level: block.choice("log-level")?.to_owned(),
        })
    }
}

impl Config {
    /// Holds what is written to being files, or not there yet: other things may have writers wait.
    ///
    /// # Errors
    /// The first key that names something else.
    pub fn check_files(&self, log_directory: &Path) -> Result<(), ConfigError> {
        for (key, path) in [
            ("late-file", &self.late_file),
            ("metrics-file", &self.metrics_file),
        ] {
            if path.is_empty() {
                continue;
            }
            // A metrics file is where it says, as the system has it.
            let path = match key {
                "late-file" => log_directory.join(path),
                _ => PathBuf::from(path),
            };
            // What cannot be looked at is told when it is written.
            if let Ok(found) = std::fs::metadata(&path)
                && !found.is_file()
            {
                let found = format!("{} ({})", quoted(&path.to_string_lossy()), kind_of(&found));
                return Err(wrong(key, "a file or none yet", &found));
            }
        }
        Ok(())
    }
}

fn kind_of(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// The block, read by key.
struct Block<'a>(&'a [(String, Value)]);

impl Block<'_> {
    /// The value of a key that the table has; `None` unless set.
    fn value(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.0.iter().find(|(found, _)| found == name)?;
        Some(value)
    }

    fn kind(name: &'static str) -> Kind {
        let found = KEYS.iter().find(|key| key.name == name);
        found.map_or(Kind::Text { default: "" }, |key| key.kind)
    }

    /// The text of a key; `None` unless set.
    fn scalar(&self, name: &'static str, expected: &str) -> Result<Option<&str>, ConfigError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.trim())),
            Some(Value::Empty) => Ok(Some("")),
            Some(Value::List(_)) => Err(wrong(name, expected, "a list")),
            Some(Value::Block) => Err(wrong(name, expected, "keys below it")),
        }
    }

    fn switch(&self, name: &'static str) -> Result<bool, ConfigError> {
        let expected = "yes or no";
        let Kind::Switch { default } = Self::kind(name) else {
            return Ok(false);
        };
        match self
            .scalar(name, expected)?
            .map(str::to_lowercase)
            .as_deref()
        {
            None => Ok(default),
            Some("yes" | "true" | "on" | "1") => Ok(true),
            Some("no" | "false" | "off" | "0") => Ok(false),
            Some(found) => Err(wrong(name, expected, &quoted(found))),
        }
    }

    /// The key's value where `parse` takes it; the default where the key is not there.
    fn parsed<T>(
        &self,
        name: &'static str,
        expected: &str,
        default: T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let Some(text) = self.scalar(name, expected)? else {
            return Ok(default);
        };
        parse(text).ok_or_else(|| wrong(name, expected, &quoted(text)))
    }

    fn number(&self, name: &'static str) -> Result<u64, ConfigError> {
        let Kind::Number {
            default,
            minimum,
            maximum,
            unit,
        } = Self::kind(name)
        else {
            return Ok(0);
        };
        let expected = format!("a whole number from {minimum} to {maximum} ({unit})");
        self.parsed(name, &expected, default, |text| {
            let found = text.parse().ok();
            found.filter(|number| (minimum..=maximum).contains(number))
        })
    }

    fn fraction(&self, name: &'static str) -> Result<f64, ConfigError> {
        let Kind::Fraction {
            default,
            minimum,
            maximum,
        } = Self::kind(name)
        else {
            return Ok(0.0);
        };
        let expected = format!("a number from {minimum} to {maximum}");
        self.parsed(name, &expected, default, |text| {
            let found = text.parse().ok();
            found.filter(|number| (minimum..=maximum).contains(number))
        })
    }

    fn bytes(&self, name: &'static str) -> Result<u64, ConfigError> {
        let Kind::Bytes {
            default,
            minimum,
            maximum,
        } = Self::kind(name)
        else {
            return Ok(0);
        };
        let expected = format!(
            "0 or {minimum} to {maximum} bytes, as a whole number with kb, mb or gb behind it where wanted"
        );
        self.parsed(name, &expected, default, |text| {
            parse_bytes(text).filter(|bytes| *bytes == 0 || (minimum..=maximum).contains(bytes))
        })
    }

    fn choice(&self, name: &'static str) -> Result<&'static str, ConfigError> {
        let Kind::Choice { words } = Self::kind(name) else {
            return Ok("");
        };
        let expected = format!("one of {}", words.join(", "));
        let default = words.first().copied().unwrap_or_default();
        self.parsed(name, &expected, default, |text| {
            let found = words.iter().find(|word| word.eq_ignore_ascii_case(text));
            found.copied()
        })
    }

    fn text(&self, name: &'static str) -> Result<String, ConfigError> {
        let Kind::Text { default } = Self::kind(name) else {
            return Ok(String::new());
        };
        let text = self.scalar(name, "a text")?.unwrap_or(default);
        if text.len() > limits::TEXT_BYTES_MAX {
            let expected = format!("at most {} bytes", limits::TEXT_BYTES_MAX);
            return Err(wrong(name, &expected, &format!("{} bytes", text.len())));
        }
        Ok(text.to_owned())
    }

    fn list(&self, name: &'static str) -> Result<Vec<String>, ConfigError> {
        let Kind::List { default, words } = Self::kind(name) else {
            return Ok(Vec::new());
        };
        let expected = if words.is_empty() {
            "a list of names".to_owned()
        } else {
            format!("a list of {}", words.join(", "))
        };
        let split = |text: &str| -> Vec<String> {
            let parts = text.split(',').map(str::trim);
            let parts = parts.filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let found = match self.value(name) {
            None => split(default),
            Some(Value::Empty) => Vec::new(),
            Some(Value::Text(text)) => split(text),
            Some(Value::List(items)) => items.iter().map(|item| item.trim().to_owned()).collect(),
            Some(Value::Block) => return Err(wrong(name, &expected, "keys below it")),
        };
        let is_wrong = |item: &&String| {
            item.is_empty()
                || item.contains(',')
                || !(words.is_empty() || words.contains(&item.as_str()))
        };
        match found.iter().find(is_wrong) {
            Some(item) => Err(wrong(name, &expected, &quoted(item))),
            None => Ok(found),
        }
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let lower = text.to_lowercase();
    let (digits, factor) = [("kb", 1_u64 << 10), ("mb", 1 << 20), ("gb", 1 << 30)]
        .into_iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, factor)))
        .unwrap_or((&lower, 1));
    digits.trim().parse::<u64>().ok()?.checked_mul(factor)
}

fn wrong(key: &'static str, expected: &str, found: &str) -> ConfigError {
    ConfigError::Value {
        key,
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}

fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(limits::SHOWN_CHARACTERS).collect();
    format!("{shown:?}")
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
