//! What the tests in the real Suricata share: where it is, how it is run, what it wrote, and what the verdicts should be.
//!
//! `TLLM_SURICATA_ROOT` names the folders, with colons between them, of unpacked Debian packages of Suricata: each with a file `run`
//! that is given the program and its arguments, or with `bin/suricata` or `usr/bin/suricata`. Without it these tests say that they
//! are left out; `TLLM_REQUIRE_SURICATA=1` makes that a failure.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "each test uses a part of it, fails by panicking, and says what it skips"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use trafficllm::{Engine, Model, Outcome, OutcomeJson, Settings, Sink};

/// The folders of Suricata; none if the tests are to be left out.
pub(crate) fn trees() -> Vec<PathBuf> {
    let roots = std::env::var_os("TLLM_SURICATA_ROOT").unwrap_or_default();
    let found: Vec<PathBuf> = std::env::split_paths(&roots)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if found.is_empty() {
        let is_required =
            std::env::var_os("TLLM_REQUIRE_SURICATA").is_some_and(|value| value == "1");
        assert!(
            !is_required,
            "TLLM_SURICATA_ROOT is not set, and TLLM_REQUIRE_SURICATA=1"
        );
        eprintln!("TLLM_SURICATA_ROOT is not set: left out");
    }
    found
}

/// A command that runs Suricata of a folder.
pub(crate) fn suricata(tree: &Path) -> Command {
    let run = tree.join("run");
    if run.is_file() {
        let mut command = Command::new(run);
        command.arg("suricata");
        return command;
    }
    let places = ["bin/suricata", "usr/bin/suricata"].map(|place| tree.join(place));
    let program = places.iter().find(|place| place.is_file());
    Command::new(program.unwrap_or_else(|| panic!("no Suricata in {}", tree.display())))
}

/// A file that cargo has built beside this test.
pub(crate) fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().join(name);
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

/// The plugin.
pub(crate) fn plugin() -> PathBuf {
    built("libtrafficllm_suricata.so")
}

/// libtrafficllm.
pub(crate) fn library() -> PathBuf {
    built("libtrafficllm_ffi.so")
}

/// A recorded capture, unpacked where Suricata does not read it packed.
pub(crate) fn capture(name: &str, folder: &Path) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/captures")
        .join(name);
    let Some(plain) = name.strip_suffix(".gz") else {
        return path;
    };
    let mut bytes = Vec::new();
    let packed = File::open(path).unwrap();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut bytes)
        .unwrap();
    let path = folder.join(plain);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A run of Suricata on a capture, or of its `-T`.
pub(crate) struct Run {
    pub(crate) folder: TempDir,
    keys: BTreeMap<String, String>,
    has_block: bool,
    rules: String,
    eve_types: Vec<&'static str>,
    arguments: Vec<String>,
}

/// What a run left behind.
pub(crate) struct Outcomes {
    /// Whether it ended well.
    pub(crate) is_success: bool,
    /// What it wrote to its log.
    pub(crate) log: String,
    /// Its EVE records.
    pub(crate) records: Vec<Value>,
    /// The late file's lines.
    pub(crate) late: Vec<Value>,
}

impl Run {
    pub(crate) fn new() -> Self {
        let library = library().display().to_string();
        Self {
            folder: TempDir::new().unwrap(),
            keys: BTreeMap::from([("library".to_owned(), library)]),
            has_block: true,
            rules: String::new(),
            eve_types: vec!["flow", "alert"],
            arguments: Vec::new(),
        }
    }

    /// Sets a key of the block.
    pub(crate) fn key(mut self, key: &str, value: impl ToString) -> Self {
        self.keys.insert(key.to_owned(), value.to_string());
        self
    }

    /// Leaves the block out.
    pub(crate) fn without_block(mut self) -> Self {
        self.has_block = false;
        self
    }

    /// Adds a rule.
    pub(crate) fn rule(mut self, rule: &str) -> Self {
        self.rules.push_str(rule);
        self.rules.push('\n');
        self
    }

    /// Has further EVE records written.
    pub(crate) fn eve(mut self, kind: &'static str) -> Self {
        self.eve_types.push(kind);
        self
    }

    /// Adds an argument of Suricata's.
    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    fn yaml(&self, tree: &Path) -> String {
        let etc = tree.join("etc/suricata");
        let (plugin, etc) = (plugin().display().to_string(), etc.display());
        let mut text = format!(
            "%YAML 1.1\n---\nplugins: [{plugin}]\nclassification-file: {etc}/classification.config\n\
             reference-config-file: {etc}/reference.config\nthreshold-file: {etc}/threshold.config\n\
             vars:\n  address-groups: {{HOME_NET: any, EXTERNAL_NET: any}}\n\
             stats: {{enabled: yes, interval: 60}}\nlogging:\n  default-log-level: notice\n\
             \x20 outputs:\n  - console: {{enabled: yes}}\n\
             app-layer:\n  protocols:\n    tls: {{enabled: yes}}\n    http: {{enabled: yes}}\n\
             \x20   dns:\n      tcp: {{enabled: yes}}\n      udp: {{enabled: yes}}\n"
        );
        // As long as trafficllm detect waits.
        let open = "new: 3600, established: 3600, bypassed: 3600";
        let urgent = "emergency-new: 3599, emergency-established: 3599, emergency-bypassed: 3599";
        for protocol in ["default", "tcp", "udp", "icmp"] {
            let head = if protocol == "default" {
                "flow-timeouts:\n"
            } else {
                ""
            };
            writeln!(
                text,
                "{head}  {protocol}: {{{open}, {urgent}, closed: 60, emergency-closed: 59}}"
            )
            .unwrap();
        }
        text.push_str("outputs:\n  - eve-log:\n      enabled: yes\n      filetype: regular\n      filename: eve.json\n      types:\n");
        for kind in &self.eve_types {
            writeln!(text, "        - {kind}").unwrap();
        }
        text.push_str("        - stats: {totals: yes, threads: no}\n");
        if self.has_block {
            text.push_str("trafficllm:\n");
            for (key, value) in &self.keys {
                writeln!(text, "  {key}: {value}").unwrap();
            }
        }
        text
    }

    /// Runs it on a capture.
    pub(crate) fn read(self, tree: &Path, capture: &Path) -> Outcomes {
        let capture = capture.display().to_string();
        self.argument("-r").argument(&capture).run(tree)
    }

    /// Has the configuration and the rules tested.
    pub(crate) fn test(self, tree: &Path) -> Outcomes {
        self.argument("-T").run(tree)
    }

    fn run(self, tree: &Path) -> Outcomes {
        let folder = self.folder.path();
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let yaml = file("suricata.yaml", &self.yaml(tree));
        let rules = file("test.rules", &self.rules);
        let mut command = suricata(tree);
        command
            .arg("-c")
            .arg(yaml)
            .arg("-S")
            .arg(rules)
            .arg("-l")
            .arg(folder);
        command.args(["-k", "none"]).args(&self.arguments);
        let output = command.output().unwrap();
        let log = [output.stdout, output.stderr].concat();
        Outcomes {
            is_success: output.status.success(),
            log: String::from_utf8_lossy(&log).into_owned(),
            records: json_lines(&folder.join("eve.json")),
            late: json_lines(&folder.join("trafficllm-late.json")),
        }
    }
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

impl Outcomes {
    /// The records of a kind.
    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        let is_wanted = |record: &&Value| record["event_type"] == kind;
        self.records.iter().filter(is_wanted).collect()
    }

    /// A counter of the plugin, as the last statistics have it.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let last = self
            .of("stats")
            .pop()
            .unwrap_or_else(|| panic!("no statistics:\n{}", self.log));
        let counter = &last["stats"]["trafficllm"][name];
        counter
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name}: {last}"))
    }
}

/// A flow's addresses, ports and protocol, the same for both directions.
pub(crate) type Key = (String, (IpAddr, u64), (IpAddr, u64));

fn key(protocol: &str, source: (&Value, &Value), destination: (&Value, &Value)) -> Key {
    let end = |(address, port): (&Value, &Value)| {
        let address = address.as_str().unwrap().parse().unwrap();
        (address, port.as_u64().unwrap_or(0))
    };
    let (source, destination) = (end(source), end(destination));
    (
        protocol.to_owned(),
        source.min(destination),
        source.max(destination),
    )
}

/// The key of an EVE record.
pub(crate) fn key_of(record: &Value) -> Key {
    let protocol = match record["proto"].as_str().unwrap() {
        "TCP" => "tcp",
        "UDP" => "udp",
        "ICMP" => "icmp",
        "IPv6-ICMP" => "icmpv6",
        other => other,
    };
    let source = (&record["src_ip"], &record["src_port"]);
    key(protocol, source, (&record["dest_ip"], &record["dest_port"]))
}

/// What the facade says of each flow of a capture, as `trafficllm detect --format json` prints it, with these settings.
pub(crate) fn detect(capture: &Path, settings: &[(&str, &str)]) -> BTreeMap<Key, Value> {
    struct Collect(Vec<Value>);
    impl Sink for Collect {
        fn outcome(&mut self, outcome: &Outcome<'_>) -> ControlFlow<()> {
            let text = OutcomeJson {
                capture: None,
                profile: "",
                model: "",
                outcome,
            };
            let text = text.to_string();
            self.0.push(serde_json::from_str(&text).unwrap());
            ControlFlow::Continue(())
        }
    }
    let mut all = Settings::default();
    for (key, value) in settings {
        all.set(key, value).unwrap();
    }
    let model = Arc::new(Model::open_default().unwrap());
    let options = all.engine_options(&model);
    let engine = Engine::new(model, options).unwrap();
    engine.start().unwrap();
    let mut detection = engine.detect(Collect(Vec::new()));
    detection.capture(File::open(capture).unwrap()).unwrap();
    let (_, Collect(found)) = detection.finish().unwrap();
    let flows = found.len();
    let keyed = found.into_iter().map(|flow| {
        let source = (&flow["src"], &flow["sport"]);
        let key = key(
            flow["proto"].as_str().unwrap(),
            source,
            (&flow["dst"], &flow["dport"]),
        );
        (key, flow)
    });
    let keyed: BTreeMap<Key, Value> = keyed.collect();
    assert_eq!(
        keyed.len(),
        flows,
        "flows of the capture share addresses and ports"
    );
    keyed
}

/// The verdict of a task on a flow that `detect` gave.
pub(crate) fn verdict_on<'a>(flow: &'a Value, task: &str) -> Option<&'a Value> {
    let verdicts = flow["verdicts"].as_array().unwrap();
    verdicts.iter().find(|verdict| verdict["task"] == task)
}
