//! Suricata of a package, set up for a test, run, and read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest time for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A Suricata, and what was built to go with it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// The folder with `run` and `root`.
    tree: PathBuf,
    /// What it calls itself, "8.0.7".
    pub(crate) version: String,
    /// Where the plugin, the library and the command are.
    built: PathBuf,
    /// The library with the feature `faults`.
    faulty: PathBuf,
}

/// The Suricatas to test in; empty where there is none and none is required.
pub(crate) fn hosts() -> Vec<Host> {
    let is_required = std::env::var_os("TLLM_REQUIRE_SURICATA").is_some_and(|value| value == "1");
    let Some(trees) = std::env::var_os("TLLM_SURICATA") else {
        assert!(
            !is_required,
            "TLLM_REQUIRE_SURICATA=1, and TLLM_SURICATA names no tree: tests/suricata.sh makes them"
        );
        eprintln!(
            "SKIPPED: TLLM_SURICATA names no tree with Suricata; tests/suricata.sh runs this test"
        );
        return Vec::new();
    };
    let folder = |name: &str| {
        let found = std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set"));
        fs::canonicalize(&found).unwrap_or_else(|error| panic!("{name} {found:?}: {error}"))
    };
    let (built, faulty) = (
        folder("TLLM_SURICATA_BUILT"),
        folder("TLLM_SURICATA_FAULTS"),
    );
    let trees: Vec<PathBuf> = std::env::split_paths(&trees).collect();
    assert!(!trees.is_empty(), "TLLM_SURICATA is empty");
    let host = |tree: PathBuf| {
        let output = Command::new(tree.join("run"))
            .args(["suricata", "-V"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .split("version ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        let version = version
            .unwrap_or_else(|| panic!("{}: {text}", tree.display()))
            .to_owned();
        Host {
            tree,
            version,
            built: built.clone(),
            faulty: faulty.clone(),
        }
    };
    trees.into_iter().map(host).collect()
}

impl Host {
    pub(crate) fn plugin(&self) -> PathBuf {
        self.built.join("libtrafficllm_suricata.so")
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.built.join("libtrafficllm_ffi.so")
    }

    /// The library with a shim before it, see `shim.c`.
    pub(crate) fn shim(&self, folder: &Path) -> PathBuf {
        let run_path = format!("-Wl,-rpath,{}", self.faulty.parent().unwrap().display());
        let made = folder.join("shim.so");
        compile("shim.c", &made, &[&self.faulty, Path::new(&run_path)]);
        made
    }

    /// What `trafficllm detect --format json` prints for captures.
    pub(crate) fn detect(&self, captures: &[&Path]) -> Vec<Value> {
        self.detect_with(&[], captures)
    }

    /// The same with further arguments.
    pub(crate) fn detect_with(&self, more: &[&Path], captures: &[&Path]) -> Vec<Value> {
        let output = Command::new(self.built.join("trafficllm"))
            .args(["detect", "--format", "json"])
            .args(more)
            .args(captures)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "detect: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        lines(&String::from_utf8(output.stdout).unwrap())
    }

    /// Suricata's own program, with the arguments every run has.
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.tree.join("run"));
        command
            .arg("suricata")
            .arg("-c")
            .arg(folder.join("suricata.yaml"))
            .arg("-l")
            .arg(folder)
            .args(["-k", "none"]);
        command.env("TZ", "UTC").stdin(Stdio::null());
        command
    }
}

/// Compiles a file of this folder to a library.
pub(crate) fn compile(source: &str, made: &Path, more: &[&Path]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real");
    let output = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wall", "-o"])
        .arg(made)
        .arg(folder.join(source))
        .args(more)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// How Suricata is to be set up. Without keys the plugin has the library's path and metrics every second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Keys of the `trafficllm:` block; a later one takes the place of an earlier of the same name.
    keys: Vec<(String, String)>,
    rules: String,
    /// More of suricata.yaml.
    yaml: String,
    /// Not even loaded.
    is_without_plugin: bool,
    is_without_eve: bool,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Another build of the plugin.
    plugin: Option<PathBuf>,
    /// Plugins that are loaded before it and behind it.
    around: Option<[PathBuf; 2]>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn key(mut self, name: &str, value: impl ToString) -> Self {
        self.keys.retain(|(found, _)| found != name);
        self.keys.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn rules(mut self, rules: &str) -> Self {
        self.rules.push_str(rules);
        self.rules.push('\n');
        self
    }

    pub(crate) fn yaml(mut self, text: &str) -> Self {
        self.yaml.push_str(text);
        self.yaml.push('\n');
        self
    }

    pub(crate) fn argument(mut self, text: &str) -> Self {
        self.arguments.push(text.to_owned());
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn plugin(mut self, path: &Path) -> Self {
        self.plugin = Some(path.to_owned());
        self
    }

    pub(crate) fn around(mut self, plugins: [PathBuf; 2]) -> Self {
        self.around = Some(plugins);
        self
    }

    pub(crate) fn without_plugin(mut self) -> Self {
        self.is_without_plugin = true;
        self
    }

    pub(crate) fn without_eve(mut self) -> Self {
        self.is_without_eve = true;
        self
    }

    fn write(&self, host: &Host, folder: &Path) {
        let etc = host.tree.join("root/etc/suricata");
        let mut text = String::from("%YAML 1.1\n---\n");
        if !self.is_without_plugin {
            let mut plugins = vec![self.plugin.clone().unwrap_or_else(|| host.plugin())];
            if let Some([before, behind]) = &self.around {
                plugins.insert(0, before.clone());
                plugins.push(behind.clone());
            }
            text += "plugins:\n";
            for plugin in plugins {
                text += &format!("  - {}\n", plugin.display());
            }
            text += "trafficllm:\n";
            let defaults = [
                ("library", host.library().display().to_string()),
                (
                    "metrics-file",
                    folder.join("metrics.prom").display().to_string(),
                ),
                ("metrics-interval", "1".to_owned()),
            ];
            for (name, value) in &defaults {
                if !self.keys.iter().any(|(found, _)| found == name) {
                    text += &format!("  {name}: {value}\n");
                }
            }
            for (name, value) in &self.keys {
                text += &format!("  {name}: {value}\n");
            }
        }
        let eve = if self.is_without_eve { "no" } else { "yes" };
        text += &format!(
            "default-log-dir: {folder}\n\
             vars:\n  address-groups:\n    HOME_NET: any\n    EXTERNAL_NET: any\n\
             outputs:\n  - eve-log:\n      enabled: {eve}\n      filetype: regular\n      filename: eve.json\n      types:\n\
             \x20       - alert\n        - flow\n        - tls\n        - http\n        - dns\n        - drop\n\
             \x20       - stats:\n            totals: yes\n            threads: no\n\
             stats:\n  enabled: yes\n  interval: 1\n\
             logging:\n  default-log-level: info\n  outputs:\n  - file:\n      enabled: yes\n      level: info\n      filename: suricata.log\n\
             app-layer:\n  protocols:\n    tls:\n      enabled: yes\n    http:\n      enabled: yes\n    dns:\n      tcp:\n        enabled: yes\n      udp:\n        enabled: yes\n\
             classification-file: {etc}/classification.config\nreference-config-file: {etc}/reference.config\nthreshold-file: {folder}/threshold.config\n\
             pid-file: {folder}/pid\n\
             unix-command:\n  enabled: no\n",
            folder = folder.display(),
            etc = etc.display(),
        );
        text += &self.yaml;
        fs::write(folder.join("suricata.yaml"), text).unwrap();
        fs::write(folder.join("threshold.config"), "").unwrap();
        fs::write(folder.join("test.rules"), &self.rules).unwrap();
    }
}

/// A Suricata that has ended, and its folder.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) folder: TempDir,
    /// What it wrote to its log and to its standard output and error.
    pub(crate) log: String,
}

impl Ran {
    /// All EVE records.
    pub(crate) fn eve(&self) -> Vec<Value> {
        eve(self.folder.path())
    }

    /// Records of a type.
    pub(crate) fn records(&self, kind: &str) -> Vec<Value> {
        let all = self.eve().into_iter();
        all.filter(|record| record["event_type"] == kind).collect()
    }

    /// Lines of the late file.
    pub(crate) fn late(&self) -> Vec<Value> {
        lines(
            &fs::read_to_string(self.folder.path().join("trafficllm-late.json"))
                .unwrap_or_default(),
        )
    }

    /// A counter of the plugin in Suricata's last statistics.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let stats = self.records("stats");
        let last = stats
            .last()
            .unwrap_or_else(|| panic!("no statistics: {}", self.log));
        last["stats"]["trafficllm"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name}: {}", last["stats"]["trafficllm"]))
    }

    /// A metric of the plugin at its end, "flows_total".
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(self.folder.path(), name).unwrap_or_else(|| panic!("no metric {name}: {}", self.log))
    }

    /// Fails unless the plugin came up.
    pub(crate) fn with_plugin(self) -> Self {
        assert!(
            self.log.contains("trafficllm: libtrafficllm "),
            "the plugin did not come up: {}",
            self.log
        );
        assert!(
            !self.log.contains("disabled"),
            "the plugin is disabled: {}",
            self.log
        );
        assert!(self.status.success(), "{}: {}", self.status, self.log);
        self
    }
}

fn eve(folder: &Path) -> Vec<Value> {
    lines(&fs::read_to_string(folder.join("eve.json")).unwrap_or_default())
}

fn metric(folder: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join("metrics.prom")).ok()?;
    let full = format!("suricata_trafficllm_{name} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&full)?.trim().parse().ok())
}

/// The JSON values of a text's lines. The last one may still be being written.
pub(crate) fn lines(text: &str) -> Vec<Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Reads a capture from a file.
pub(crate) fn read(host: &Host, setup: &Setup, capture: &Path) -> Ran {
    run(
        host,
        setup,
        &["-r".to_owned(), capture.display().to_string()],
    )
}

/// Tests the configuration, as `suricata -T` does.
pub(crate) fn check(host: &Host, setup: &Setup) -> Ran {
    run(host, setup, &["-T".to_owned()])
}

fn run(host: &Host, setup: &Setup, arguments: &[String]) -> Ran {
    let live = Live::start(host, setup, arguments);
    live.wait()
}

/// A running Suricata. It is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    child: Option<Child>,
    pub(crate) folder: Option<TempDir>,
}

impl Live {
    /// Starts it with further arguments.
    pub(crate) fn start(host: &Host, setup: &Setup, arguments: &[String]) -> Self {
        let folder = TempDir::new().unwrap();
        // A Suricata that has dropped its privileges writes here, too.
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(folder.path(), everyone).unwrap();
        setup.write(host, folder.path());
        let mut command = host.command(folder.path());
        command
            .arg("-S")
            .arg(folder.path().join("test.rules"))
            .args(&setup.arguments)
            .args(arguments);
        command.envs(setup.environment.iter().map(|(name, value)| (name, value)));
        let output = fs::File::create(folder.path().join("output")).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap();
        Self {
            child: Some(child),
            folder: Some(folder),
        }
    }

    /// Starts it on an interface, and waits until it takes packets.
    pub(crate) fn capture(host: &Host, setup: &Setup, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let live = Self::start(host, setup, &arguments);
        live.until("the engine has started", || {
            live.log().contains("Engine started")
        });
        live
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    pub(crate) fn log(&self) -> String {
        log_in(self.path())
    }

    pub(crate) fn eve(&self) -> Vec<Value> {
        eve(self.path())
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(self.path(), name).unwrap_or(0)
    }

    /// Whether the process is there.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Waits for something that must come.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            if Instant::now() > deadline {
                let metrics =
                    fs::read_to_string(self.path().join("metrics.prom")).unwrap_or_default();
                let metrics: Vec<&str> = metrics
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .collect();
                let stats = self
                    .eve()
                    .into_iter()
                    .rfind(|record| record["event_type"] == "stats");
                let flow = stats.map(|record| record["stats"]["flow"].to_string());
                panic!(
                    "{what}: not so after {PATIENCE:?}: {metrics:#?} {flow:?} {}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    /// Ends it as an operator does, and waits.
    pub(crate) fn stop(self) -> Ran {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// Waits until it ends.
    pub(crate) fn wait(mut self) -> Ran {
        let deadline = Instant::now() + PATIENCE;
        let mut child = self.child.take().unwrap();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "Suricata has not ended after {PATIENCE:?}: {}",
                    log_in(self.path())
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let folder = self.folder.take().unwrap();
        Ran {
            status,
            log: log_in(folder.path()),
            folder,
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn send_signal(pid: i32, signal: i32) {
    // SAFETY: numbers; the process is a child of this test.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "signal {signal} to {pid}");
}

pub(crate) fn log_in(folder: &Path) -> String {
    let read = |name: &str| {
        fs::read(folder.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    };
    read("output") + &read("suricata.log")
}
