//! `trafficllm model info` and `trafficllm model verify`.

use std::fmt::Write as _;
use std::io::{self, Write as _, stdout};
use std::path::Path;

use serde_json::{Value, json};
use trafficllm::{Bundle, Manifest, Model, TaskKind};

use super::console::printable;
use super::{Exit, Failure, model_failure, open_bundle};

/// Says what a bundle holds. Its hashes are checked on the way.
pub(super) fn info(path: Option<&Path>, as_json: bool) -> Result<Exit, Failure> {
    let bundle = open_bundle(path)?;
    let text = if as_json {
        format!(
            "{}\n",
            json!({ "model": bundle.id(), "manifest": bundle.manifest() })
        )
    } else {
        describe(&bundle)
    };
    print(&text)
}

/// Checks hashes, weights and self-test.
pub(super) fn verify(path: Option<&Path>) -> Result<Exit, Failure> {
    let level = Model::level_from_environment()?;
    let bundle = open_bundle(path)?;
    let model = Model::load(&bundle, level).map_err(|error| model_failure(path, &error))?;
    let manifest = model.manifest();
    let config = model.core().config();
    let bytes: u64 = manifest.files.values().map(|file| file.bytes).sum();
    let text = format!(
        "hashes: {} files with {bytes} bytes are what bundle.json says\n\
         weights: {} layers of {} channels, {} tokens, {} tasks, on {}\n\
         self-test: {} of {} answers are right\n\
         verified: {}\n",
        manifest.files.len(),
        config.layers,
        config.hidden,
        config.vocabulary,
        manifest.tasks.len(),
        level.name(),
        manifest.self_test.len(),
        manifest.self_test.len(),
        model.id()
    );
    print(&text)
}

fn describe(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<24} {}", printable(value));
    };
    line("model", bundle.id());
    line("id", &manifest.id);
    line("name", &manifest.name);
    line(
        "created",
        manifest.created.as_deref().unwrap_or("not recorded"),
    );
    line("licence", &manifest.licence);
    line("profile", &flat(&manifest.profile));
    for (name, value) in &manifest.card {
        line(name, &flat(value));
    }
    line("data", &flat(&manifest.data_statement));
    line("protocol", &flat(&manifest.metrics_protocol));
    describe_tasks(manifest, &mut text);
    text.push_str("files\n");
    for (name, file) in &manifest.files {
        let _infallible = writeln!(
            text,
            "  {name:<44}{:>10} bytes  sha256 {}",
            file.bytes, file.sha256
        );
    }
    text
}

fn describe_tasks(manifest: &Manifest, text: &mut String) {
    text.push_str("tasks\n");
    for task in &manifest.tasks {
        let kind = match task.kind {
            TaskKind::Flow => "flows",
            TaskKind::Request => "HTTP requests",
        };
        let labels: Vec<String> = task.labels.iter().map(|label| printable(label)).collect();
        let _infallible = writeln!(text, "  {} ({kind}, {} labels)", task.name, labels.len());
        let _infallible = writeln!(text, "    labels      {}", labels.join(", "));
        let _infallible = writeln!(
            text,
            "    calibration temperature {}, threshold {}",
            task.temperature, task.threshold
        );
        if !task.metrics.is_null() {
            let _infallible = writeln!(text, "    metrics     {}", printable(&flat(&task.metrics)));
        }
    }
}

/// Longer JSON is left to `--json`.
const JSON_CHARACTERS_SHOWN: usize = 400;

/// Free fields on one line: text as it is, everything else as JSON.
fn flat(value: &Value) -> String {
    match value {
        Value::Null => "not stated".to_owned(),
        Value::String(text) => text.clone(),
        other => {
            let json = other.to_string();
            if json.chars().count() <= JSON_CHARACTERS_SHOWN {
                json
            } else {
                "(long: see --json)".to_owned()
            }
        }
    }
}

pub(super) fn print(text: &str) -> Result<Exit, Failure> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure {
            exit: Exit::Incomplete,
            message: format!("standard output: writing failed: {error}"),
        }),
        _ => Ok(Exit::Done),
    }
}
