//! Untrusted heads: WebAssembly modules that can compute, and nothing else.
//!
//! Wasmtime installs no signal handler here (traps are found by checks in the code), since the handlers belong to the host's process.

#[cfg(feature = "cranelift")]
mod check;
mod head;
mod instance;

use std::fmt;

use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, Linker, Module, PoolingAllocationConfig,
    WasmFeatures,
};

use crate::error::{HeadError, REASON_CHARACTERS_MAX, shown};
use crate::limits;

pub use head::WasmHead;
use instance::Host;

/// What a module may not use. Everything else that wasmtime has by default can be computed with, and is put back after a call.
const FORBIDDEN_FEATURES: [WasmFeatures; 12] = [
    WasmFeatures::REFERENCE_TYPES,
    WasmFeatures::THREADS,
    WasmFeatures::SHARED_EVERYTHING_THREADS,
    WasmFeatures::RELAXED_SIMD,
    WasmFeatures::TAIL_CALL,
    WasmFeatures::MULTI_MEMORY,
    WasmFeatures::MEMORY64,
    WasmFeatures::EXCEPTIONS,
    WasmFeatures::FUNCTION_REFERENCES,
    WasmFeatures::GC,
    WasmFeatures::STACK_SWITCHING,
    WasmFeatures::COMPONENT_MODEL,
];

/// What a module forgets, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// One flow for each call, and everything but the verdict is forgotten: a flow's verdict depends on that flow alone.
    Flow,
    /// Flows in batches; everything is forgotten after each. A head that is badly made, or hostile, can let flows of a batch influence
    /// each other's verdicts.
    Call,
}

/// How modules run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// As code of this processor.
    Native,
    /// As bytecode in an interpreter: for processors for which there is no compiler.
    Interpreted,
}

/// What modules are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxOptions {
    /// Bytes of a module's memory.
    pub memory_bytes_max: usize,
    /// Bytes of the thread's stack that a module may use; threads need somewhat more.
    pub stack_bytes_max: usize,
    /// Fuel for each flow of a call: one unit is about one instruction, a byte that is copied or filled at once counts as one. Memory
    /// that has to be put back after the call is paid for before it: one unit for each 64 bytes.
    pub fuel_per_flow: u64,
    /// Fuel to be loaded, or started, with.
    pub fuel_to_start: u64,
    /// Instances of all heads on all threads: memory is set aside for so many, and taken when it is used.
    pub instances_max: u32,
    /// What modules forget.
    pub isolation: Isolation,
    /// Whether heads may ask to keep what they know between calls.
    pub allows_state: bool,
    /// How modules run.
    pub execution: Execution,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        Self {
            memory_bytes_max: 1 << 20,
            stack_bytes_max: 128 << 10,
            fuel_per_flow: 1_000_000,
            fuel_to_start: 10_000_000,
            instances_max: 64,
            isolation: Isolation::Flow,
            allows_state: false,
            execution: Execution::Native,
        }
    }
}

/// Where WebAssembly heads run.
pub struct Sandbox {
    engine: Engine,
    linker: Linker<Host>,
    options: SandboxOptions,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Sandbox")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Sets memory aside for all instances; none of it is used yet.
    ///
    /// # Errors
    /// Options that are beyond the limits, or that the system or this build cannot fulfil.
    pub fn new(options: SandboxOptions) -> Result<Self, HeadError> {
        let wrong = |error: wasmtime::Error| HeadError::Sandbox(format!("{error:#}"));
        if options.instances_max == 0 || options.instances_max > limits::INSTANCES_MAX {
            let expected = format!(
                "instances: 1 to {}, found {}",
                limits::INSTANCES_MAX,
                options.instances_max
            );
            return Err(HeadError::Sandbox(expected));
        }
        let config = config(&options).map_err(wrong)?;
        let engine = Engine::new(&config).map_err(wrong)?;
        let mut linker = Linker::new(&engine);
        instance::link_log(&mut linker).map_err(wrong)?;
        Ok(Self {
            engine,
            linker,
            options,
        })
    }

    /// What modules are given.
    #[must_use]
    pub fn options(&self) -> &SandboxOptions {
        &self.options
    }

    /// Loads a head: a module, or one that was precompiled and whose SHA-256 is among `trusted`. A module is checked and compiled, which
    /// can take seconds for a large one: not on a packet path. `name` is for messages.
    ///
    /// # Errors
    /// What the head exports, imports, needs or says is not what the ABI allows; the error names it.
    pub fn load(
        &self,
        name: &str,
        bytes: &[u8],
        trusted: &[[u8; 32]],
    ) -> Result<WasmHead, HeadError> {
        let module = if Engine::detect_precompiled(bytes).is_some() {
            self.deserialize(name, bytes, trusted)?
        } else {
            self.compile(name, bytes)?
        };
        WasmHead::new(self, name, &module)
    }

    fn deserialize(
        &self,
        name: &str,
        bytes: &[u8],
        trusted: &[[u8; 32]],
    ) -> Result<Module, HeadError> {
        check_size(name, bytes, limits::PRECOMPILED_BYTES_MAX)?;
        let hash = sha256(bytes);
        if !trusted.contains(&hash) {
            return Err(HeadError::NotTrusted {
                head: name.to_owned(),
                sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
                trusted: trusted.len(),
            });
        }
        // SAFETY: wasmtime runs what is in there as code of this process. The caller vouches for these very bytes by their hash, as made by
        // `precompile`; that they fit this version of wasmtime and these options is checked by wasmtime.
        let module = unsafe { Module::deserialize(&self.engine, bytes) };
        module.map_err(|error| unusable(name, &error))
    }

    #[cfg(feature = "cranelift")]
    fn compile(&self, name: &str, bytes: &[u8]) -> Result<Module, HeadError> {
        check_size(name, bytes, limits::MODULE_BYTES_MAX)?;
        let bytes = check::checked(name, bytes)?;
        Module::from_binary(&self.engine, &bytes).map_err(|error| unusable(name, &error))
    }

    #[cfg(not(feature = "cranelift"))]
    fn compile(&self, name: &str, _bytes: &[u8]) -> Result<Module, HeadError> {
        Err(HeadError::NoCompiler {
            head: name.to_owned(),
        })
    }

    /// Compiles a head for hosts without a compiler: with the same version of wasmtime and the same options, on a processor like this one
    /// (any processor, where it is interpreted).
    ///
    /// # Errors
    /// As [`Sandbox::load`].
    #[cfg(feature = "cranelift")]
    pub fn precompile(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, HeadError> {
        let module = self.compile(name, bytes)?;
        WasmHead::new(self, name, &module)?;
        module.serialize().map_err(|error| unusable(name, &error))
    }
}

/// What wasmtime says of a module may have names out of it.
fn unusable(name: &str, error: &wasmtime::Error) -> HeadError {
    HeadError::Module {
        head: name.to_owned(),
        reason: shown(&format!("{error:#}"), REASON_CHARACTERS_MAX),
    }
}

fn config(options: &SandboxOptions) -> wasmtime::Result<Config> {
    let memory_bytes = options.memory_bytes_max.checked_next_multiple_of(1 << 16);
    // More no 32-bit memory has.
    let memory_bytes = memory_bytes.filter(|&bytes| bytes as u64 <= 1 << 32);
    let memory_bytes = memory_bytes.ok_or_else(|| {
        wasmtime::Error::msg(format!(
            "memory: {} bytes are more than can be addressed",
            options.memory_bytes_max
        ))
    })?;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(options.instances_max)
        .total_memories(options.instances_max)
        .total_tables(options.instances_max)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .max_memory_size(memory_bytes)
        .table_elements(limits::TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(1 << 17)
        .table_keep_resident(1 << 12);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .consume_fuel(true)
        .max_wasm_stack(options.stack_bytes_max)
        .memory_reservation(memory_bytes as u64)
        .memory_guard_size(0)
        .guard_before_linear_memory(false)
        .signals_based_traps(false);
    for feature in FORBIDDEN_FEATURES {
        config.wasm_features(feature, false);
    }
    config.wasm_features(WasmFeatures::CUSTOM_PAGE_SIZES, true);
    // How LLVM writes calls through a table, whether or not it was told that there are reference types.
    config.wasm_features(WasmFeatures::CALL_INDIRECT_OVERLONG, true);
    #[cfg(feature = "cranelift")]
    config.cranelift_nan_canonicalization(true);
    if options.execution == Execution::Interpreted {
        if !cfg!(feature = "pulley") {
            return Err(wasmtime::Error::msg("this build has no interpreter"));
        }
        config.target(if cfg!(target_pointer_width = "64") {
            "pulley64"
        } else {
            "pulley32"
        })?;
    }
    Ok(config)
}

fn check_size(name: &str, bytes: &[u8], limit: usize) -> Result<(), HeadError> {
    if bytes.len() <= limit {
        return Ok(());
    }
    Err(HeadError::Limit {
        head: name.to_owned(),
        what: "bytes",
        limit: limit as u64,
        found: bytes.len() as u64,
    })
}

/// The hash by which precompiled heads are trusted.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
