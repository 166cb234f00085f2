//! Every key of the block: its type, its default, its values, what it is for.

use crate::limits;

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
        "heads",
        Kind::List {
            default: "",
            words: &[],
        },
        "Heads beside the model: WebAssembly modules, as FILE or FILE:TASK with the task whose hidden state the head is given.",
    ),
    key(
        "native-heads",
        Kind::List {
            default: "",
            words: &[],
        },
        "Heads that are native libraries, which are trusted with Suricata's process.",
    ),
    key(
        "head-state",
        Kind::Switch { default: false },
        "Whether WebAssembly heads may keep what they know from flow to flow.",
    ),
    key(
        "bundled-heads",
        Kind::Switch { default: true },
        "Whether the heads of the bundle are run.",
    ),
    key(
        "head-fuel",
        number(1_000_000, [1, limits::HEAD_FUEL_MAX], "units"),
        "Fuel of a WebAssembly head for each flow, about one unit for each instruction.",
    ),
    key(
        "head-memory",
        number(1 << 20, [1, limits::HEAD_MEMORY_BYTES_MAX], "bytes"),
        "Memory of each instance of a WebAssembly head, of which each worker has one.",
    ),
    key(
        "head-faults",
        number(16, [0, 1 << 20], "faults"),
        "After so many faults in a row a head is switched off until the bundle is replaced. 0 means never.",
    ),
    key(
        "head-wait",
        number(20_000, [0, limits::HEAD_WAIT_US_MAX], "microseconds"),
        "How long the verdicts of a batch wait for heads, which then have none for its further flows. 0 means no limit.",
    ),
    key(
        "head-payload",
        Kind::Switch { default: false },
        "Whether heads may see the first payload bytes, also what the model's profile hides.",
    ),
    key(
        "head-precompiled",
        Kind::Switch { default: false },
        "Whether precompiled heads whose hashes stand in the bundle are run: they are native code.",
    ),
    key(
        "cpu",
        Kind::Text { default: "" },
        "Level of the processor's instructions to use, by the library's name; unless set, the best.",
    ),
    key(
        "device",
        Kind::Text { default: "" },
        "What runs the model: cpu, cuda:N, or auto for a CUDA device if one can be used; unless set, the processor.",
    ),
    key(
        "log-level",
        Kind::Choice {
            words: &["info", "off", "error", "warning", "debug"],
        },
        "Which of the library's own messages go to Suricata's log.",
    ),
];

impl Kind {
    /// What a value is made of, what it is unless set, and which values there are.
    #[must_use]
    pub fn words(&self) -> [String; 3] {
        let range =
            |minimum: u64, maximum: u64, unit: &str| format!("{minimum} to {maximum} {unit}");
        let quoted = |text: &str| {
            if text.is_empty() {
                "none".to_owned()
            } else {
                text.to_owned()
            }
        };
        let (kind, default, values) = match *self {
            Self::Switch { default } => {
                let word = if default { "yes" } else { "no" };
                ("switch", word.to_owned(), "yes, no".to_owned())
            }
            Self::Number {
                default,
                minimum,
                maximum,
                unit,
            } => ("number", default.to_string(), range(minimum, maximum, unit)),
            Self::Fraction {
                default,
                minimum,
                maximum,
            } => (
                "number",
                default.to_string(),
                format!("{minimum} to {maximum}"),
            ),
            Self::Bytes {
                default,
                minimum,
                maximum,
            } => {
                let values = format!("0, or {}", range(minimum, maximum, "bytes"));
                ("bytes", default.to_string(), values)
            }
            Self::Choice { words } => {
                let default = words.first().copied().unwrap_or_default();
                ("word", default.to_owned(), words.join(", "))
            }
            Self::Text { default } => ("text", quoted(default), "any".to_owned()),
            Self::List { default, words } => ("list", quoted(default), quoted(&words.join(", "))),
        };
        [kind.to_owned(), default, values]
    }
}

/// All keys as a Markdown table, for the documentation.
#[must_use]
pub fn markdown() -> String {
    let mut text =
        String::from("| key | type | default | values | what it is for |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let [kind, default, values] = key.kind.words();
        let row = format!(
            "| `{}` | {kind} | {default} | {values} | {} |\n",
            key.name, key.help
        );
        text.push_str(&row);
    }
    text
}
