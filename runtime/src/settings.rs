//! Settings by key and text, for hosts that embed the library and configure it from a file of their own.

use std::time::Duration;

use trafficllm_kernels::Level;
use trafficllm_model::Bundle;
use trafficllm_model::limits::{HEAD_FUEL_MAX, HEAD_MEMORY_BYTES_MAX};
use trafficllm_traffic::FlowConfig;
use trafficllm_traffic::limits::{FLOW_PACKETS_MAX, PACKET_PAYLOAD_BYTES_MAX};
use trafficllm_traffic::limits::{FLOWS_MAX, TIMEOUT_US_MAX, TIMEOUT_US_MIN};

use crate::device::{DeviceActivations, DeviceChoice, DeviceOptions};
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::heads::{HeadFile, HeadOptions};
use crate::limits::{
    BATCH_TOKENS_DEFAULT, BATCH_TOKENS_MAX, BATCH_TOKENS_MIN, BATCH_WAIT_US_MAX, DEADLINE_US_MAX,
    FLOW_HANDLES_DEFAULT, FLOW_HANDLES_MAX, HEAD_BATCH_US_MAX, QUEUE_FLOWS_DEFAULT,
    QUEUE_FLOWS_MAX, SETTING_BYTES_MAX, STOP_TIMEOUT_US_DEFAULT, STOP_TIMEOUT_US_MAX,
    WORKERS_DEFAULT, WORKERS_MAX,
};
use crate::model::Model;

const WORKERS: &str = "engine.workers";
const TASKS: &str = "engine.tasks";
const BATCH_TOKENS: &str = "engine.batch_tokens";
const QUEUE_FLOWS: &str = "engine.queue_flows";
const BATCH_WAIT: &str = "engine.batch_wait_us";
const DEADLINE: &str = "engine.deadline_us";
const MEMORY: &str = "engine.memory_bytes_max";
const DEVICE: &str = "engine.device";
const DEVICE_MEMORY: &str = "engine.device_memory_bytes_max";
const DEVICE_ACTIVATIONS: &str = "engine.device_activations";
const STOP_TIMEOUT: &str = "engine.stop_timeout_us";
const FLOW_HANDLES: &str = "engine.flows_max";
const MIN_PACKETS: &str = "flow.min_packets";
const MAX_PACKETS: &str = "flow.max_packets";
const MAX_PAYLOAD_BYTES: &str = "flow.max_payload_bytes";
const MAX_PAYLOADS: &str = "flow.max_payloads";
const CAPTURE_FLOWS: &str = "capture.max_flows";
const TCP_IDLE: &str = "capture.tcp_idle_timeout_us";
const OTHER_IDLE: &str = "capture.other_idle_timeout_us";
const ACTIVE: &str = "capture.active_timeout_us";
const CLOSED: &str = "capture.closed_timeout_us";
const CPU: &str = "model.cpu";
const MODULES: &str = "heads.modules";
const LIBRARIES: &str = "heads.libraries";
const BUNDLED: &str = "heads.bundled";
const HEAD_FUEL: &str = "heads.fuel_per_flow";
const HEAD_MEMORY: &str = "heads.memory_bytes_max";
const HEAD_FAULTS: &str = "heads.faults_in_a_row_max";
const HEAD_STATE: &str = "heads.allow_state";
const HEAD_PAYLOAD: &str = "heads.allow_payload";
const HEAD_PRECOMPILED: &str = "heads.allow_precompiled";
const HEAD_BUNDLED_REQUIRED: &str = "heads.require_bundled";
const HEAD_BATCH: &str = "heads.batch_us_max";

/// What the text of a setting is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// A whole number in decimal digits.
    Integer,
    /// Names with commas between them; the empty text is the empty list.
    List,
    /// One word.
    Text,
}

impl SettingKind {
    /// `integer`, `list` or `text`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::List => "list",
            Self::Text => "text",
        }
    }
}

/// What a setting is and what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingInfo {
    /// The name that selects it.
    pub key: &'static str,
    /// What its text is made of.
    pub kind: SettingKind,
    /// What an integer is unless set; lists and texts are empty unless set.
    pub default: u64,
    /// Smallest integer.
    pub minimum: u64,
    /// Largest integer.
    pub maximum: u64,
    /// What is counted; empty for lists and texts.
    pub unit: &'static str,
    /// What it is for, in one sentence.
    pub help: &'static str,
}

impl SettingInfo {
    const fn integer(
        key: &'static str,
        [default, minimum, maximum]: [u64; 3],
        unit: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            key,
            kind: SettingKind::Integer,
            default,
            minimum,
            maximum,
            unit,
            help,
        }
    }

    const fn words(key: &'static str, kind: SettingKind, help: &'static str) -> Self {
        Self {
            key,
            kind,
            default: 0,
            minimum: 0,
            maximum: 0,
            unit: "",
            help,
        }
    }

    /// The default as [`Settings::get`] gives it.
    #[must_use]
    pub fn default_text(&self) -> String {
        self.default_value().to_text()
    }

    fn default_value(&self) -> Value {
        match self.kind {
            SettingKind::Integer => Value::Integer(self.default),
            SettingKind::List => Value::List(Vec::new()),
            SettingKind::Text => Value::Text(String::new()),
        }
    }

    fn parse(&self, text: &str) -> Result<Value, SettingError> {
        if text.len() > SETTING_BYTES_MAX {
            return Err(SettingError::TooLong {
                key: self.key,
                limit_bytes: SETTING_BYTES_MAX,
                found_bytes: text.len(),
            });
        }
        match self.kind {
            SettingKind::Integer => self.parse_integer(text),
            SettingKind::List => self.parse_list(text),
            SettingKind::Text => self.parse_word(text),
        }
    }

    fn parse_integer(&self, text: &str) -> Result<Value, SettingError> {
        let number = text.parse().ok();
        number
            .filter(|number| (self.minimum..=self.maximum).contains(number))
            .map(Value::Integer)
            .ok_or_else(|| SettingError::Integer {
                key: self.key,
                minimum: self.minimum,
                maximum: self.maximum,
                unit: self.unit,
                found: text.to_owned(),
            })
    }

    fn parse_list(&self, text: &str) -> Result<Value, SettingError> {
        if text.trim().is_empty() {
            return Ok(Value::List(Vec::new()));
        }
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            return Err(SettingError::List {
                key: self.key,
                found: text.to_owned(),
            });
        }
        Ok(Value::List(names))
    }

    /// Whether this processor has a level, and this system a device, is asked when it is used.
    fn parse_word(&self, text: &str) -> Result<Value, SettingError> {
        let (is_known, expected) = match self.key {
            DEVICE => (DeviceChoice::parse(text).is_some(), DeviceChoice::EXPECTED),
            DEVICE_ACTIVATIONS => (
                DeviceActivations::parse(text).is_some(),
                DeviceActivations::EXPECTED,
            ),
            _ => {
                let is_level = Level::ALL.iter().any(|level| level.name() == text);
                return if text.is_empty() || is_level {
                    Ok(Value::Text(text.to_owned()))
                } else {
                    Err(SettingError::Level {
                        key: self.key,
                        known: Level::ALL.map(Level::name).join(", "),
                        found: text.to_owned(),
                    })
                };
            }
        };
        if text.is_empty() || is_known {
            return Ok(Value::Text(text.to_owned()));
        }
        Err(SettingError::Word {
            key: self.key,
            expected,
            found: text.to_owned(),
        })
    }
}

/// A text that is no value of a setting, or a key of none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// No setting has this key.
    #[error("unknown setting {found:?}: the nearest known one is {nearest}")]
    UnknownKey {
        /// The key that was given, shortened if it is long.
        found: String,
        /// The known key that is most like it.
        nearest: &'static str,
    },
    /// No whole number within the limits.
    #[error("{key}: expected a whole number from {minimum} to {maximum} ({unit}), found {found:?}")]
    Integer {
        /// Which setting.
        key: &'static str,
        /// Smallest allowed value.
        minimum: u64,
        /// Largest allowed value.
        maximum: u64,
        /// What is counted.
        unit: &'static str,
        /// The text that was given.
        found: String,
    },
    /// A name of a list is empty.
    #[error("{key}: expected names with commas between them, found {found:?}")]
    List {
        /// Which setting.
        key: &'static str,
        /// The text that was given.
        found: String,
    },
    /// No name of a CPU level.
    #[error("{key}: expected nothing or one of {known}, found {found:?}")]
    Level {
        /// Which setting.
        key: &'static str,
        /// The known names.
        known: String,
        /// The text that was given.
        found: String,
    },
    /// None of the words that a setting takes.
    #[error("{key}: expected nothing or {expected}, found {found:?}")]
    Word {
        /// Which setting.
        key: &'static str,
        /// The known words.
        expected: &'static str,
        /// The text that was given.
        found: String,
    },
    /// A text that no setting is that long.
    #[error("{key}: expected at most {limit_bytes} bytes, found {found_bytes}")]
    TooLong {
        /// Which setting.
        key: &'static str,
        /// The limit.
        limit_bytes: usize,
        /// Length of the text that was given.
        found_bytes: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Integer(u64),
    List(Vec<String>),
    Text(String),
}

impl Value {
    fn to_text(&self) -> String {
        match self {
            Self::Integer(number) => number.to_string(),
            Self::List(names) => names.join(","),
            Self::Text(text) => text.clone(),
        }
    }
}

/// All settings of an engine, by key. Each is checked when it is set; what depends on the model is checked with the model.
///
/// ```
/// use trafficllm::Settings;
///
/// let mut settings = Settings::default();
/// settings.set("engine.workers", "4")?;
/// assert_eq!(settings.get("engine.workers")?, "4");
/// let error = settings.set("engine.worker", "4").unwrap_err();
/// assert!(error.to_string().ends_with("the nearest known one is engine.workers"));
/// # Ok::<(), trafficllm::SettingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// One for each of [`Settings::OPTIONS`], in its order; `None` where it was not set.
    values: Vec<Option<Value>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            values: vec![None; Self::OPTIONS.len()],
        }
    }
}

impl Settings {
    /// Every setting there is.
    pub const OPTIONS: &'static [SettingInfo] = &OPTIONS;

    /// Sets the value of a key; on an error nothing changes.
    ///
    /// # Errors
    /// An unknown key, a text that is no value of it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        let position = position(key)?;
        let parsed = OPTIONS[position].parse(value)?;
        self.values[position] = Some(parsed);
        Ok(())
    }

    /// The value of a key, as text that [`Settings::set`] takes.
    ///
    /// # Errors
    /// An unknown key.
    pub fn get(&self, key: &str) -> Result<String, SettingError> {
        let position = position(key)?;
        let set = self.values[position].as_ref();
        Ok(set.map_or_else(|| OPTIONS[position].default_text(), Value::to_text))
    }

    /// The settings of an engine that runs this model.
    #[must_use]
    pub fn engine_options(&self, model: &Model) -> EngineOptions {
        EngineOptions {
            workers: self.size(WORKERS),
            tasks: self.list(TASKS).to_vec(),
            // With a device the default is another.
            batch_tokens: self
                .value(BATCH_TOKENS)
                .map_or(0, |_| self.size(BATCH_TOKENS)),
            flows: Some(self.flow_config(model)),
            queue_flows: self.size(QUEUE_FLOWS),
            batch_wait_us: self.number(BATCH_WAIT),
            deadline_us: self.number(DEADLINE),
            memory_bytes_max: self.memory_bytes_max(),
            device: self.device_options(),
            heads: self.head_options(),
        }
    }

    /// The device that runs the model.
    #[must_use]
    pub fn device_options(&self) -> DeviceOptions {
        DeviceOptions {
            choice: DeviceChoice::parse(self.text(DEVICE)).unwrap_or_default(),
            memory_bytes_max: self.number(DEVICE_MEMORY),
            activations: DeviceActivations::parse(self.text(DEVICE_ACTIVATIONS))
                .unwrap_or_default(),
            ..DeviceOptions::default()
        }
    }

    /// The heads that are named, and what they are given.
    #[must_use]
    pub fn head_options(&self) -> HeadOptions {
        let files = |key| -> Vec<HeadFile> {
            let texts = self.list(key).iter();
            texts.map(|text| HeadFile::parse(text)).collect()
        };
        HeadOptions {
            modules: files(MODULES),
            libraries: files(LIBRARIES),
            fuel_per_flow: self.number(HEAD_FUEL),
            memory_bytes_max: self.size(HEAD_MEMORY),
            faults_in_a_row_max: u32::try_from(self.number(HEAD_FAULTS)).unwrap_or(u32::MAX),
            allows_state: self.number(HEAD_STATE) != 0,
            allows_payload: self.number(HEAD_PAYLOAD) != 0,
            allows_precompiled: self.number(HEAD_PRECOMPILED) != 0,
            requires_bundled: self.number(HEAD_BUNDLED_REQUIRED) != 0,
            batch_us_max: self.number(HEAD_BATCH),
            uses_bundled: self.number(BUNDLED) != 0,
        }
    }

    /// What is kept of flows, in captures and of those that a host feeds: as much as the model's profile looks at, unless set.
    #[must_use]
    pub fn flow_config(&self, model: &Model) -> FlowConfig {
        self.flow_config_over(model.flow_config())
    }

    fn flow_config_over(&self, needed: FlowConfig) -> FlowConfig {
        let or_needed = |key, needed| match self.size(key) {
            0 => needed,
            set => set,
        };
        FlowConfig {
            max_flows: self.size(CAPTURE_FLOWS),
            max_packets: or_needed(MAX_PACKETS, needed.max_packets),
            max_payload_bytes: or_needed(MAX_PAYLOAD_BYTES, needed.max_payload_bytes),
            max_payloads: or_needed(MAX_PAYLOADS, needed.max_payloads),
            tcp_idle_timeout_us: self.number(TCP_IDLE),
            other_idle_timeout_us: self.number(OTHER_IDLE),
            active_timeout_us: self.number(ACTIVE),
            closed_timeout_us: self.number(CLOSED),
        }
    }

    /// The CPU level that is asked for; where none is, what [`Model::level_from_environment`] says.
    ///
    /// # Errors
    /// A level that this processor lacks; those of [`Model::level_from_environment`].
    pub fn level(&self) -> Result<Level, Error> {
        match self.text(CPU) {
            "" => Model::level_from_environment(),
            name => Ok(Level::from_name(name)?),
        }
    }

    /// Makes a model of a verified bundle on [`Settings::level`], with what a device needs of it where one is chosen.
    ///
    /// # Errors
    /// Those of [`Settings::level`] and [`Model::load`].
    pub fn load(&self, bundle: &Bundle) -> Result<Model, Error> {
        let level = self.level()?;
        match self.device_options().choice {
            DeviceChoice::Cpu => Model::load(bundle, level),
            DeviceChoice::Auto | DeviceChoice::Cuda(_) => Model::load_for_device(bundle, level),
        }
    }

    /// Most bytes that an engine may take; 0 means no budget.
    #[must_use]
    pub fn memory_bytes_max(&self) -> usize {
        self.size(MEMORY)
    }

    /// How long an engine that is stopped goes on with what waits.
    #[must_use]
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_micros(self.number(STOP_TIMEOUT))
    }

    /// Most flows that a host may feed at the same time.
    #[must_use]
    pub fn flows_max(&self) -> usize {
        self.size(FLOW_HANDLES)
    }

    /// Fewest packets of a flow that is judged.
    #[must_use]
    pub fn min_packets(&self) -> u64 {
        self.number(MIN_PACKETS)
    }

    /// What a key was set to.
    fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(position(key).ok()?)?.as_ref()
    }

    fn number(&self, key: &str) -> u64 {
        match self.value(key) {
            Some(Value::Integer(number)) => *number,
            _ => position(key).map_or(0, |position| OPTIONS[position].default),
        }
    }

    fn size(&self, key: &str) -> usize {
        usize::try_from(self.number(key)).unwrap_or(usize::MAX)
    }

    fn list(&self, key: &str) -> &[String] {
        match self.value(key) {
            Some(Value::List(names)) => names,
            _ => &[],
        }
    }

    fn text(&self, key: &str) -> &str {
        match self.value(key) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }
}

/// Where a key stands in [`OPTIONS`].
fn position(key: &str) -> Result<usize, SettingError> {
    let found = OPTIONS.iter().position(|option| option.key == key);
    found.ok_or_else(|| {
        let shown: String = key.chars().take(KEY_CHARACTERS_SHOWN).collect();
        // Some leave the group out: the word alone counts as near as the whole key.
        let distance = |option: &&SettingInfo| {
            let word = option.key.split('.').next_back().unwrap_or_default();
            [option.key, word]
                .map(|known| strsim::levenshtein(&shown, known))
                .into_iter()
                .min()
        };
        let nearest = OPTIONS.iter().min_by_key(distance);
        SettingError::UnknownKey {
            nearest: nearest.map_or("", |option| option.key),
            found: shown,
        }
    })
}

/// As much of an unknown key is compared and shown.
const KEY_CHARACTERS_SHOWN: usize = 64;

const TIMEOUT: [u64; 2] = [TIMEOUT_US_MIN, TIMEOUT_US_MAX];
const KEPT: FlowConfig = FlowConfig::DEFAULT;

static OPTIONS: [SettingInfo; 33] = [
    SettingInfo::integer(
        WORKERS,
        [WORKERS_DEFAULT as u64, 0, WORKERS_MAX as u64],
        "threads",
        "Threads that run the model; with 0 the host's own thread does the work.",
    ),
    SettingInfo::words(
        TASKS,
        SettingKind::List,
        "The tasks to ask, by name; none means all of the model.",
    ),
    SettingInfo::integer(
        BATCH_TOKENS,
        [
            BATCH_TOKENS_DEFAULT as u64,
            BATCH_TOKENS_MIN as u64,
            BATCH_TOKENS_MAX as u64,
        ],
        "tokens",
        "Tokens after which a batch is cut, on a device 16384 unless set; verdicts do not depend on it.",
    ),
    SettingInfo::integer(
        QUEUE_FLOWS,
        [QUEUE_FLOWS_DEFAULT as u64, 1, QUEUE_FLOWS_MAX as u64],
        "flows",
        "Most flows that wait for a verdict; beyond it flows are shed.",
    ),
    SettingInfo::integer(
        BATCH_WAIT,
        [0, 0, BATCH_WAIT_US_MAX],
        "microseconds",
        "How long a worker waits for more flows to run together.",
    ),
    SettingInfo::integer(
        DEADLINE,
        [0, 0, DEADLINE_US_MAX],
        "microseconds",
        "A flow whose turn comes later than this is answered without a verdict; 0 means never.",
    ),
    SettingInfo::integer(
        MEMORY,
        [0, 0, isize::MAX as u64],
        "bytes",
        "Most memory of models, workers, queue, sessions and flows together; 0 means no budget.",
    ),
    SettingInfo::words(
        DEVICE,
        SettingKind::Text,
        "What runs the model: cpu (also where empty), cuda:N, or auto for a CUDA device if one can be used.",
    ),
    SettingInfo::integer(
        DEVICE_MEMORY,
        [0, 0, isize::MAX as u64],
        "bytes",
        "Most memory of the device that models and buffers take together; 0 means no budget.",
    ),
    SettingInfo::words(
        DEVICE_ACTIVATIONS,
        SettingKind::Text,
        "What a device multiplies its weights with: int8 (also where empty) as the processor does, or bf16.",
    ),
    SettingInfo::integer(
        STOP_TIMEOUT,
        [STOP_TIMEOUT_US_DEFAULT, 0, STOP_TIMEOUT_US_MAX],
        "microseconds",
        "How long an engine that is stopped goes on with the flows that wait.",
    ),
    SettingInfo::integer(
        FLOW_HANDLES,
        [FLOW_HANDLES_DEFAULT as u64, 1, FLOW_HANDLES_MAX as u64],
        "flows",
        "Most flows that the host may feed at the same time.",
    ),
    SettingInfo::integer(
        MIN_PACKETS,
        [1, 1, FLOW_PACKETS_MAX as u64],
        "packets",
        "Fewest packets of a flow that is judged.",
    ),
    SettingInfo::integer(
        MAX_PACKETS,
        [0, 0, FLOW_PACKETS_MAX as u64],
        "packets",
        "Most packets kept of a flow; 0 means what the model looks at.",
    ),
    SettingInfo::integer(
        MAX_PAYLOAD_BYTES,
        [0, 0, PACKET_PAYLOAD_BYTES_MAX as u64],
        "bytes",
        "Most payload kept of a packet; 0 means what the model looks at.",
    ),
    SettingInfo::integer(
        MAX_PAYLOADS,
        [0, 0, FLOW_PACKETS_MAX as u64],
        "packets",
        "Packets of a flow whose payload is sure to be kept; 0 means what the model looks at.",
    ),
    SettingInfo::integer(
        CAPTURE_FLOWS,
        [KEPT.max_flows as u64, 1, FLOWS_MAX as u64],
        "flows",
        "Most flows of a capture open at once; beyond it the least recently active is judged early.",
    ),
    SettingInfo::integer(
        TCP_IDLE,
        [KEPT.tcp_idle_timeout_us, TIMEOUT[0], TIMEOUT[1]],
        "microseconds",
        "Silence after which an open TCP flow of a capture ends.",
    ),
    SettingInfo::integer(
        OTHER_IDLE,
        [KEPT.other_idle_timeout_us, TIMEOUT[0], TIMEOUT[1]],
        "microseconds",
        "Silence after which a flow of any other protocol ends.",
    ),
    SettingInfo::integer(
        ACTIVE,
        [KEPT.active_timeout_us, TIMEOUT[0], TIMEOUT[1]],
        "microseconds",
        "Length after which a flow of a capture is cut.",
    ),
    SettingInfo::integer(
        CLOSED,
        [KEPT.closed_timeout_us, TIMEOUT[0], TIMEOUT[1]],
        "microseconds",
        "How long a closed TCP connection of a capture waits for trailing packets.",
    ),
    SettingInfo::words(
        CPU,
        SettingKind::Text,
        "The CPU level to run on, by name; empty means the one that TLLM_CPU names, or the fastest.",
    ),
    SettingInfo::words(
        MODULES,
        SettingKind::List,
        "WebAssembly heads, as FILE or FILE:TASK with the task whose hidden state the head is given.",
    ),
    SettingInfo::words(
        LIBRARIES,
        SettingKind::List,
        "Native heads, as FILE or FILE:TASK: libraries that are trusted with the process.",
    ),
    SettingInfo::integer(
        BUNDLED,
        [1, 0, 1],
        "0 or 1",
        "Whether the heads of the model's bundle are run.",
    ),
    SettingInfo::integer(
        HEAD_FUEL,
        [HeadOptions::FUEL_DEFAULT, 1, HEAD_FUEL_MAX],
        "units",
        "Fuel of a WebAssembly head for each flow, about one unit for each instruction.",
    ),
    SettingInfo::integer(
        HEAD_MEMORY,
        [
            HeadOptions::MEMORY_BYTES_DEFAULT as u64,
            1,
            HEAD_MEMORY_BYTES_MAX,
        ],
        "bytes",
        "Memory of each instance of a WebAssembly head, of which each worker has one.",
    ),
    SettingInfo::integer(
        HEAD_FAULTS,
        [HeadOptions::FAULTS_DEFAULT as u64, 0, 1 << 20],
        "faults",
        "After so many faults in a row a head is switched off; 0 means never.",
    ),
    SettingInfo::integer(
        HEAD_STATE,
        [0, 0, 1],
        "0 or 1",
        "Whether WebAssembly heads may keep what they know from flow to flow.",
    ),
    SettingInfo::integer(
        HEAD_PAYLOAD,
        [0, 0, 1],
        "0 or 1",
        "Whether heads may see the first payload bytes, also what the model's profile hides.",
    ),
    SettingInfo::integer(
        HEAD_PRECOMPILED,
        [0, 0, 1],
        "0 or 1",
        "Whether precompiled heads whose hashes stand in the bundle are run: they are native code.",
    ),
    SettingInfo::integer(
        HEAD_BUNDLED_REQUIRED,
        [0, 0, 1],
        "0 or 1",
        "Whether a head of the bundle that cannot be loaded refuses the model; else it has no verdicts.",
    ),
    SettingInfo::integer(
        HEAD_BATCH,
        [HeadOptions::BATCH_US_DEFAULT, 0, HEAD_BATCH_US_MAX],
        "microseconds",
        "How long the verdicts of a batch wait for heads, which then have none for its further flows; 0 means no limit.",
    ),
];

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
