//! A module that was checked against the ABI.

use std::fmt;
use std::sync::Arc;

use wasmtime::{ExternType, FuncType, InstancePre, Module, ValType};

use super::instance::{Host, Running, WasmInstance};
use super::{Sandbox, SandboxOptions};
use crate::abi::{AbiError, About, is_compatible, version_error};
use crate::error::{Fault, HeadError, REASON_CHARACTERS_MAX, shown};
use crate::head::{Conditions, Head, HeadInstance};
use crate::limits;
use crate::log::LogGate;

/// The functions of the ABI: how many i32 they take. Each gives one.
const FUNCTIONS: [(&str, usize); 7] = [
    ("tllm_head_abi", 0),
    ("tllm_head_about", 0),
    ("tllm_head_new", 2),
    ("tllm_head_input", 1),
    ("tllm_head_output", 1),
    ("tllm_head_begin", 2),
    ("tllm_head_judge", 2),
];

/// What all instances of a head share.
pub(super) struct Loaded {
    pub(super) pre: InstancePre<Host>,
    pub(super) options: SandboxOptions,
    pub(super) log: Arc<LogGate>,
}

/// A WebAssembly head.
pub struct WasmHead {
    loaded: Arc<Loaded>,
    about: About,
}

impl fmt::Debug for WasmHead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WasmHead")
            .field("about", &self.about)
            .finish_non_exhaustive()
    }
}

impl WasmHead {
    pub(super) fn new(sandbox: &Sandbox, name: &str, module: &Module) -> Result<Self, HeadError> {
        check_exports(name, module)?;
        let head = || name.to_owned();
        let pre = sandbox.linker.instantiate_pre(module);
        let pre = pre.map_err(|error| HeadError::Import {
            head: head(),
            import: module
                .imports()
                .map(|import| shown(&format!("{}.{}", import.module(), import.name()), 80))
                .collect(),
            reason: shown(&format!("{error:#}"), REASON_CHARACTERS_MAX),
        })?;
        let loaded = Arc::new(Loaded {
            pre,
            options: sandbox.options,
            log: Arc::new(LogGate::new(head())),
        });
        let about = read_about(name, &loaded)?;
        if about.is_stateful() && !sandbox.options.allows_state {
            return Err(HeadError::Forbidden {
                head: head(),
                place: "about".to_owned(),
                what: "keeping state between calls, without the operator's leave,",
            });
        }
        Ok(Self { loaded, about })
    }
}

impl Head for WasmHead {
    fn about(&self) -> &About {
        &self.about
    }

    fn start(&self, conditions: &Conditions) -> Result<Box<dyn HeadInstance>, Fault> {
        conditions.check(&self.about)?;
        let sizes = (self.about.needs, self.about.labels.len());
        let instance = WasmInstance::new(&self.loaded, sizes, conditions)?;
        Ok(Box::new(instance))
    }

    fn bytes(&self) -> usize {
        let code = self.loaded.pre.module().image_range();
        (code.end as usize).saturating_sub(code.start as usize)
    }

    fn instance_bytes_max(&self) -> usize {
        let memory = self.loaded.options.memory_bytes_max;
        // What memory was after `begin` is kept beside it, to put it back.
        let kept = if self.about.is_stateful() { 0 } else { memory };
        memory.saturating_add(kept)
    }

    fn log_lines_lost(&self) -> u64 {
        self.loaded.log.lost()
    }
}

fn check_exports(name: &str, module: &Module) -> Result<(), HeadError> {
    let wrong = |export: &str, expected: String, found: String| HeadError::Export {
        head: name.to_owned(),
        export: export.to_owned(),
        expected,
        found,
    };
    for (export, parameters) in FUNCTIONS {
        let expected = format!("a function of {parameters} i32 that gives one i32");
        match module.get_export(export) {
            None => return Err(wrong(export, expected, "none".to_owned())),
            Some(ExternType::Func(found)) if is_like(&found, parameters) => {}
            Some(found) => return Err(wrong(export, expected, described(&found))),
        }
    }
    let expected = "a 32-bit memory that is not shared".to_owned();
    match module.get_export("memory") {
        None => Err(wrong("memory", expected, "none".to_owned())),
        Some(ExternType::Memory(memory)) if !memory.is_64() && !memory.is_shared() => Ok(()),
        Some(found) => Err(wrong("memory", expected, described(&found))),
    }
}

fn is_like(found: &FuncType, parameters: usize) -> bool {
    let is_i32 = |kind: ValType| matches!(kind, ValType::I32);
    found.params().len() == parameters
        && found.results().len() == 1
        && found.params().chain(found.results()).all(is_i32)
}

fn described(found: &ExternType) -> String {
    let kind = match found {
        ExternType::Func(function) => {
            let list = |kinds: &mut dyn Iterator<Item = ValType>| {
                let kinds: Vec<String> = kinds.take(8).map(|kind| kind.to_string()).collect();
                kinds.join(", ")
            };
            return format!(
                "a function ({}) -> ({})",
                list(&mut function.params()),
                list(&mut function.results())
            );
        }
        ExternType::Global(_) => "a global",
        ExternType::Table(_) => "a table",
        ExternType::Memory(_) => "another memory",
        ExternType::Tag(_) => "a tag",
    };
    kind.to_owned()
}

/// Asks a first instance for its version and its about block.
fn read_about(name: &str, loaded: &Loaded) -> Result<About, HeadError> {
    let failed = |export| {
        move |fault| HeadError::Fault {
            head: name.to_owned(),
            export,
            fault,
        }
    };
    let wrong = |error| HeadError::About {
        head: name.to_owned(),
        error,
    };
    let mut running = Running::new(loaded).map_err(failed("(start)"))?;
    let abi = running.call("tllm_head_abi", ());
    let abi = abi.map_err(failed("tllm_head_abi"))?;
    if !is_compatible(abi) {
        return Err(wrong(version_error(abi)));
    }
    let at = running.call("tllm_head_about", ());
    let at = at.map_err(failed("tllm_head_about"))? as usize;
    let memory = running.memory.data(&running.store);
    let block = memory.get(at..).unwrap_or_default();
    let block = block.get(..limits::ABOUT_BYTES_MAX).unwrap_or(block);
    let about = About::decode(block).map_err(wrong)?;
    if about.abi != abi {
        let error = AbiError::broken("about", "abi", abi, about.abi);
        return Err(wrong(error));
    }
    Ok(about)
}
