//! Heads of one's own: what an engine is told of them, and what it says of them. The crate `trafficllm-heads` runs them;
//! `include/trafficllm_head.h` says what they are given and what they give.

use std::path::PathBuf;

/// A head's file and the task whose hidden state it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadFile {
    /// The file.
    pub path: PathBuf,
    /// The source task, by name; `None` means the model's first flow task that is asked.
    pub task: Option<String>,
}

impl HeadFile {
    /// Reads `FILE` or `FILE:TASK`: what stands behind the last colon is a task where it consists of a-z, 0-9 and _.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let is_task = |name: &str| {
            let is_fine = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
            !name.is_empty() && name.bytes().all(is_fine)
        };
        match text.rsplit_once(':') {
            Some((path, task)) if !path.is_empty() && is_task(task) => Self {
                path: path.into(),
                task: Some(task.to_owned()),
            },
            _ => Self {
                path: text.into(),
                task: None,
            },
        }
    }
}

/// The heads of an engine, and what they are given. The bundle's own heads have their limits in the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadOptions {
    /// WebAssembly modules: untrusted, each in a sandbox of its own.
    pub modules: Vec<HeadFile>,
    /// Native libraries: trusted with the process.
    pub libraries: Vec<HeadFile>,
    /// Fuel of a module for each flow, about one unit for each instruction.
    pub fuel_per_flow: u64,
    /// Bytes of memory of each instance of a module.
    pub memory_bytes_max: usize,
    /// After so many faults in a row a head is switched off; 0 means never. A head that begins anew, after faults or because its memory
    /// grows, so often and more than once for 16 flows that it answers is switched off as well.
    pub faults_in_a_row_max: u32,
    /// Whether modules may keep what they know from flow to flow.
    pub allows_state: bool,
    /// Whether heads may see the first payload bytes, as they were sent: the profile's masks are not applied.
    pub allows_payload: bool,
    /// Whether precompiled modules are run, whose hashes stand in the bundle's manifest: they are code of this process.
    pub allows_precompiled: bool,
    /// Whether the heads of the bundle are run.
    pub uses_bundled: bool,
    /// Whether a head of the bundle that cannot be loaded refuses the model. Else it is there and has no verdict, for the reason
    /// `unavailable`, and [`HeadStatus::error`] says why.
    pub requires_bundled: bool,
    /// Most microseconds that the verdicts of a batch wait for heads, but never beyond the deadline of one of its flows; each head has
    /// an equal part of it, and flows whose turn comes later have no verdict of it, for the reason `late`. 0 means no such limit. It
    /// is for flows that hosts submit: a [`crate::Detection`] is in no hurry, and its verdicts are to repeat.
    pub batch_us_max: u64,
}

impl HeadOptions {
    /// Fuel of a module for each flow, unless set.
    pub const FUEL_DEFAULT: u64 = 1_000_000;
    /// Bytes of memory of each instance of a module, unless set.
    pub const MEMORY_BYTES_DEFAULT: usize = 1 << 20;
    /// Faults in a row, unless set.
    pub const FAULTS_DEFAULT: u32 = 16;
    /// Microseconds that a batch waits for heads, unless set.
    pub const BATCH_US_DEFAULT: u64 = 20_000;

    /// Whether a file is named.
    #[must_use]
    pub fn has_files(&self) -> bool {
        !self.modules.is_empty() || !self.libraries.is_empty()
    }
}

impl Default for HeadOptions {
    /// No head but those of the bundle.
    fn default() -> Self {
        Self {
            modules: Vec::new(),
            libraries: Vec::new(),
            fuel_per_flow: Self::FUEL_DEFAULT,
            memory_bytes_max: Self::MEMORY_BYTES_DEFAULT,
            faults_in_a_row_max: Self::FAULTS_DEFAULT,
            allows_state: false,
            allows_payload: false,
            allows_precompiled: false,
            uses_bundled: true,
            requires_bundled: false,
            batch_us_max: Self::BATCH_US_DEFAULT,
        }
    }
}

/// A head at work, and what it did since it was loaded; each number begins at 0 when heads are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadStatus {
    /// Its name: the task of its verdicts.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Its file, inside the bundle where it comes from there.
    pub file: String,
    /// The task whose hidden state it is given; empty where it asks for none.
    pub source_task: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Whether it keeps what it knows from flow to flow.
    pub is_stateful: bool,
    /// Whether it is asked. One that is not was switched off.
    pub is_enabled: bool,
    /// Verdicts, those that abstained included.
    pub verdicts: u64,
    /// Verdicts in which it abstained itself.
    pub abstained: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// How often it began anew on a thread: after a fault, or because its memory had grown.
    pub restarts: u64,
    /// How often it was switched off because of either.
    pub switched_off: u64,
    /// Lines that it logged and that were not kept.
    pub log_lines_lost: u64,
    /// Why it could not be loaded; empty where it was.
    pub error: String,
    /// Flows without a verdict of it, by reason; all reasons there are.
    pub without: Vec<(&'static str, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_file_with_or_without_a_task() {
        for (text, path, task) in [
            ("a.wasm", "a.wasm", None),
            (
                "/x/a.wasm:botnet_detection",
                "/x/a.wasm",
                Some("botnet_detection"),
            ),
            ("/x:y/a.wasm", "/x:y/a.wasm", None),
            ("a.wasm:", "a.wasm:", None),
            (":botnet", ":botnet", None),
            ("a:b:c", "a:b", Some("c")),
        ] {
            let found = HeadFile::parse(text);
            assert_eq!(found.path, PathBuf::from(path), "{text}");
            assert_eq!(found.task.as_deref(), task, "{text}");
        }
    }
}
