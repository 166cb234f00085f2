//! `trafficllm head check`, and what `detect` says of heads at its end.

use std::path::{Path, PathBuf};

use trafficllm::{HeadOptions, HeadStatus};

use super::console::printable;
use super::{Exit, Failure};

/// Loads a head and says what it is.
#[cfg(feature = "heads-run")]
pub(super) fn check(
    model: Option<&Path>,
    (file, is_native): (&PathBuf, bool),
    options: &HeadOptions,
    as_json: bool,
) -> Result<Exit, Failure> {
    let model = super::open_model(model, trafficllm::DeviceChoice::Cpu)?;
    // A look at a head that keeps what it knows is no leave to keep it.
    let options = HeadOptions {
        allows_state: true,
        ..options.clone()
    };
    let file = trafficllm::HeadFile {
        path: file.clone(),
        task: None,
    };
    let report = trafficllm::check_head(&model, &file, is_native, &options)?;
    let text = if as_json {
        format!("{}\n", json(&report))
    } else {
        describe(&report, &options)
    };
    super::inspect::print(&text)
}

#[cfg(not(feature = "heads-run"))]
pub(super) fn check(
    _model: Option<&Path>,
    (file, _is_native): (&PathBuf, bool),
    _options: &HeadOptions,
    _as_json: bool,
) -> Result<Exit, Failure> {
    Err(Failure {
        exit: Exit::Usage,
        message: format!("{}: this build has no heads", file.display()),
    })
}

#[cfg(feature = "heads-run")]
fn json(report: &trafficllm::HeadReport) -> serde_json::Value {
    serde_json::json!({
        "name": report.name,
        "version": report.version,
        "abi": format!("{}.{}", report.abi.0, report.abi.1),
        "labels": report.labels,
        "needs": report.needs,
        "hidden": report.hidden,
        "state": report.is_stateful,
        "file_bytes": report.file_bytes,
        "sha256": report.sha256,
        "input_bytes": report.input_bytes,
        "memory_bytes": report.memory_bytes,
        "fuel_per_flow": report.fuel_per_flow,
        "call_ns": report.call_ns,
        "calls": report.calls,
    })
}

#[cfg(feature = "heads-run")]
fn describe(report: &trafficllm::HeadReport, options: &HeadOptions) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<16} {}", printable(value));
    };
    line("head", &report.name);
    line("version", &report.version);
    line("abi", &format!("{}.{}", report.abi.0, report.abi.1));
    line("labels", &report.labels.join(", "));
    let needs = if report.needs.is_empty() {
        "nothing but the flow's summary".to_owned()
    } else {
        report.needs.join(", ")
    };
    line("needs", &needs);
    match report.hidden {
        0 => {}
        hidden => line("hidden vector", &format!("{hidden} values")),
    }
    let state = if report.is_stateful {
        "kept from flow to flow: a module needs heads.allow_state, or --head-state"
    } else {
        "none"
    };
    line("state", state);
    line(
        "file",
        &format!("{} bytes, sha256 {}", report.file_bytes, report.sha256),
    );
    line(
        "input",
        &format!("at most {} bytes for a flow", report.input_bytes),
    );
    if let Some(bytes) = report.memory_bytes {
        line(
            "memory",
            &format!("{bytes} bytes of at most {}", options.memory_bytes_max),
        );
    }
    if let Some(fuel) = report.fuel_per_flow {
        line(
            "fuel",
            &format!(
                "{fuel} of {} for a flow of the largest size",
                options.fuel_per_flow
            ),
        );
    }
    let (call_ns, calls) = (report.call_ns, report.calls);
    line(
        "time",
        &format!("{call_ns} ns for a flow, the median of {calls}"),
    );
    text
}

/// What a head lost in a run; `None` where it answered every flow.
pub(super) fn losses(head: &HeadStatus) -> Option<String> {
    let lost = head.without.iter().filter(|(_, flows)| *flows > 0);
    let lost: Vec<String> = lost
        .map(|(reason, flows)| format!("{reason} {flows}"))
        .collect();
    if lost.is_empty() {
        return None;
    }
    let error = if head.error.is_empty() {
        String::new()
    } else {
        format!("; it could not be loaded: {}", printable(&head.error))
    };
    let off = if head.is_enabled {
        ""
    } else {
        "; it was switched off"
    };
    Some(format!(
        "head {} ({}): flows without a verdict: {}{off}{error}",
        printable(&head.name),
        printable(&head.file),
        lost.join(", ")
    ))
}
