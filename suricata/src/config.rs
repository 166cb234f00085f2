//! The `trafficllm:` block of suricata.yaml: every key in one table, and the settings that come of it.

use crate::host::conf::Value;
use crate::limits;

/// The block's name in suricata.yaml.
pub const BLOCK: &std::ffi::CStr = c"trafficllm";

/// What a key's value is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `yes` or `no`.
    Switch {
        /// Unless set.
        default: bool,
    },
    /// A whole number.
    Number {
        /// Unless set.
        default: u64,
        /// Smallest.
        minimum: u64,
        /// Largest.
        maximum: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A number with a point.
    Fraction {
        /// Unless set.
        default: f64,
        /// Smallest.
        minimum: f64,
        /// Largest.
        maximum: f64,
    },
    /// Bytes: a whole number, with `kb`, `mb` or `gb` behind it where wanted.
    Bytes {
        /// Unless set.
        default: u64,
        /// Smallest, unless 0.
        minimum: u64,
        /// Largest.
        maximum: u64,
    },
    /// One of some words.
    Choice {
        /// The words; the first is the default.
        words: &'static [&'static str],
    },
    /// Any text.
    Text {
        /// Unless set.
        default: &'static str,
    },
    /// A YAML list, or words with commas between them.
    List {
        /// Unless set, with commas.
        default: &'static str,
        /// The words that there are; empty where the model says that.
        words: &'static [&'static str],
    },
}

/// A key of the block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What it is for, in one or two sentences.
    pub help: &'static str,
}

const fn key(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, kind, help }
}

const fn number(default: u64, [minimum, maximum]: [u64; 2], unit: &'static str) -> Kind {
    Kind::Number {
        default,
        minimum,
        maximum,
        unit,
    }
}

/// EVE records that can get the object. `stats` records have no flow.
pub const EVE_TYPES: &[&str] = &[
    "alert",
    "anomaly",
    "dns",
    "drop",
    "fileinfo",
    "flow",
    "ftp",
    "http",
    "krb5",
    "mqtt",
    "netflow",
    "nfs",
    "quic",
    "rdp",
    "rfb",
    "sip",
    "smb",
    "smtp",
    "snmp",
    "ssh",
    "tftp",
    "tls",
    "websocket",
];

/// Every key there is.
pub const KEYS: &[Key] = &[
    key(
        "enabled",
        Kind::Switch { default: true },
        "With no the plugin does nothing, and its keywords are not there.",
    ),
    key(
        "library",
        Kind::Text { default: "" },
        "Path of libtrafficllm.so. Unless set, libtrafficllm.so.0 and libtrafficllm.so are looked for where the system's loader looks.",
    ),
    key(
        "bundle",
        Kind::Text { default: "default" },
        "Path of the model bundle, a directory, a packed file or a link to one; default is the bundle that is compiled into the library.",
    ),
    key(
        "tasks",
        Kind::List {
            default: "",
            words: &[],
        },
        "Tasks to ask, by name; unless set, all of the model.",
    ),
    key(
        "min-score",
        Kind::Fraction {
            default: 0.0,
            minimum: 0.0,
            maximum: 1.0,
        },
        "A verdict with a score below this counts as abstained, beside the thresholds of the bundle.",
    ),
    key(
        "packets",
        number(
            limits::EARLY_PACKETS_DEFAULT,
            [0, limits::EARLY_PACKETS_MAX],
            "packets",
        ),
        "A flow is judged a first time when it has so many packets, so that rules can match it while it lives. 0 judges flows only \
         when they are whole: as many packets as the model looks at, or a flow that rests or ends.",
    ),
    key(
        "idle",
        number(
            limits::IDLE_MS_DEFAULT,
            [0, limits::IDLE_MS_MAX],
            "milliseconds",
        ),
        "A live flow that rests so long is judged as far as it has come, so that its verdict stands in its flow record; each time \
         it rests again, twice as long. 0 leaves it to the flow's end, whose verdicts come late.",
    ),
    key(
        "workers",
        number(1, [1, limits::WORKERS_MAX], "threads"),
        "Threads that run the model, beside Suricata's own.",
    ),
    key(
        "queue-flows",
        number(
            limits::QUEUE_FLOWS_DEFAULT,
            [1, limits::QUEUE_FLOWS_MAX],
            "flows",
        ),
        "Most flows that wait for a verdict; beyond it overload decides.",
    ),
    key(
        "flows",
        number(limits::FLOWS_DEFAULT, [1, limits::FLOWS_MAX], "flows"),
        "Most flows that are followed at a time; further ones get no verdict, and are counted.",
    ),
    key(
        "memory-budget",
        Kind::Bytes {
            default: 0,
            minimum: limits::BUDGET_BYTES_MIN,
            maximum: limits::BUDGET_BYTES_MAX,
        },
        "Most memory of model, workers, queues and flows together: with kb, mb or gb behind it. It bounds flows, too. 0 means none.",
    ),
    key(
        "overload",
        Kind::Choice {
            words: &["shed", "retry", "pause"],
        },
        "What becomes of a flow that finds the queue full. shed: it waits for the next occasion (the whole record, a rest, the end). \
         retry: it is offered again with its next packet. pause: live, no flow is offered, and no new one followed, until half of \
         the queue is free.",
    ),
    key(
        "offline-wait",
        number(
            limits::OFFLINE_WAIT_MS_DEFAULT,
            [0, limits::OFFLINE_WAIT_MS_MAX],
            "milliseconds",
        ),
        "When captures are read from files, how long a flow record, and with label or score rules a packet, waits for its verdict. Never \
         used on live traffic.",
    ),
    key(
        "stop-wait",
        number(
            limits::STOP_WAIT_MS_DEFAULT,
            [0, limits::STOP_WAIT_MS_MAX],
            "milliseconds",
        ),
        "When Suricata ends, how long flows that still wait are judged.",
    ),
    key(
        "eve-types",
        Kind::List {
            default: "flow,alert",
            words: EVE_TYPES,
        },
        "EVE records that get the trafficllm object.",
    ),
    key(
        "late-file",
        Kind::Text {
            default: "trafficllm-late.json",
        },
        "JSON lines with the verdicts that came after their flow's record, by flow_id; a relative path is below Suricata's log folder, an \
         empty one writes none.",
    ),
    key(
        "metrics-file",
        Kind::Text { default: "" },
        "Counters in Prometheus' text format, for node_exporter's textfile collector; an empty path writes none.",
    ),
    key(
        "metrics-interval",
        number(5, [1, 3_600], "seconds"),
        "How often metrics-file is written.",
    ),
    key(
        "reload-interval",
        number(10, [0, 86_400], "seconds"),
        "How often is looked whether bundle is another one now, which then takes over. 0 leaves it to rule reloads.",
    ),
    key(
        "cpu",
        Kind::Text { default: "" },
        "Level of the processor's instructions to use, by the library's name; unless set, the best.",
    ),
    key(
        "log-level",
        Kind::Choice {
            words: &["info", "off", "error", "warning", "debug"],
        },
        "Which of the library's own messages go to Suricata's log.",
    ),
];

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
    /// Level of instructions; empty for the best.
    pub cpu: String,
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
            cpu: block.text("cpu")?,
            log_level: block.choice("log-level")?.to_owned(),
        })
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
        let Some(text) = self.scalar(name, &expected)? else {
            return Ok(default);
        };
        let found = text.parse().ok();
        found
            .filter(|number| (minimum..=maximum).contains(number))
            .ok_or_else(|| wrong(name, &expected, &quoted(text)))
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
        let Some(text) = self.scalar(name, &expected)? else {
            return Ok(default);
        };
        let found = text.parse().ok();
        found
            .filter(|number| (minimum..=maximum).contains(number))
            .ok_or_else(|| wrong(name, &expected, &quoted(text)))
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
        let Some(text) = self.scalar(name, &expected)? else {
            return Ok(default);
        };
        parse_bytes(text)
            .filter(|bytes| *bytes == 0 || (minimum..=maximum).contains(bytes))
            .ok_or_else(|| wrong(name, &expected, &quoted(text)))
    }

    fn choice(&self, name: &'static str) -> Result<&'static str, ConfigError> {
        let Kind::Choice { words } = Self::kind(name) else {
            return Ok("");
        };
        let expected = format!("one of {}", words.join(", "));
        let Some(text) = self.scalar(name, &expected)? else {
            return Ok(words.first().copied().unwrap_or_default());
        };
        let found = words.iter().find(|word| word.eq_ignore_ascii_case(text));
        found
            .copied()
            .ok_or_else(|| wrong(name, &expected, &quoted(text)))
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
