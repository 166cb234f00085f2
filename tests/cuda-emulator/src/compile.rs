//! Kernels as shared libraries, made by the system's C++ compiler and kept from run to run.

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libloading::Library;
use sha2::{Digest, Sha256};
use trafficllm_kernels::cuda::{HEADERS, KernelSource};

use crate::work::{RunFn, ThreadFn};

/// What the compiler is given beside the kernel's text.
const RUNTIME: [(&str, &str); 6] = [
    ("emulated.hpp", include_str!("../emulated/emulated.hpp")),
    ("emulator.hpp", include_str!("../emulated/emulator.hpp")),
    ("fibers.hpp", include_str!("../emulated/fibers.hpp")),
    ("copies.hpp", include_str!("../emulated/copies.hpp")),
    ("matrices.hpp", include_str!("../emulated/matrices.hpp")),
    ("numbers.hpp", include_str!("../emulated/numbers.hpp")),
];

/// Products and sums are rounded one by one, as on a device without contraction.
const OPTIONS: [&str; 10] = [
    // A device faults where a vector is read at an address that is no multiple of its size.
    "-fsanitize=alignment",
    "-fsanitize-undefined-trap-on-error",
    "-std=c++20",
    "-O2",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-DTLLM_EMULATED",
];

/// A kernel that can run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) function: ThreadFn,
    pub(crate) run: RunFn,
    pub(crate) argument_bytes: usize,
    /// Where the kernel says how many threads its blocks have at most.
    pub(crate) threads_max: Option<u32>,
    /// Keeps the functions alive.
    _library: Library,
}

type Made = Arc<OnceLock<Result<Arc<Kernel>, String>>>;

/// Compiles a kernel once for all devices of the process; the error is what the compiler says.
pub(crate) fn kernel(source: &KernelSource) -> Result<Arc<Kernel>, String> {
    static MADE: OnceLock<Mutex<HashMap<String, Made>>> = OnceLock::new();
    let compiler = compiler()?;
    let options: Vec<String> = OPTIONS
        .iter()
        .map(|&option| option.to_owned())
        .chain(processor_options())
        .chain(source.options())
        .collect();
    let key = key(compiler, source, &options);
    let made = {
        let mut all = MADE
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.entry(key.clone()).or_default().clone()
    };
    made.get_or_init(|| {
        let library = folder().join(format!("{key}.so"));
        if !library.exists() {
            build(compiler, source, &options, &key, &library)?;
        }
        load(source, &library).map(Arc::new)
    })
    .clone()
}

struct Compiler {
    program: OsString,
    version: String,
}

fn compiler() -> Result<&'static Compiler, String> {
    static FOUND: OnceLock<Result<Compiler, String>> = OnceLock::new();
    let find = || {
        let own = std::env::var_os("CXX");
        let programs = own.map_or_else(
            || vec!["clang++".into(), "g++".into(), "c++".into()],
            |own| vec![own],
        );
        for program in programs {
            if let Ok(output) = Command::new(&program).arg("--version").output()
                && output.status.success()
            {
                let version = String::from_utf8_lossy(&output.stdout).into_owned();
                return Ok(Compiler { program, version });
            }
        }
        Err("the emulator needs a C++ compiler: clang++, g++, or that of CXX".to_owned())
    };
    FOUND.get_or_init(find).as_ref().map_err(Clone::clone)
}

/// Faster instructions where the processor has them; none of them changes a result.
fn processor_options() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return vec!["-mavx2".to_owned(), "-mfma".to_owned()];
    }
    Vec::new()
}

fn key(compiler: &Compiler, source: &KernelSource, options: &[String]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&compiler.program.to_string_lossy());
    add(&compiler.version);
    for (name, text) in RUNTIME.iter().chain(&HEADERS) {
        add(name);
        add(text);
    }
    for option in options {
        add(option);
    }
    add(source.text());
    add(source.kernel());
    let mut key = String::new();
    for byte in &hash.finalize()[..16] {
        // Writing to a string does not fail.
        let _ = write!(key, "{byte:02x}");
    }
    key
}

/// Beside the tests' programs, or where the system keeps what is temporary.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let program = std::env::current_exe().ok();
        let target = program.as_deref().and_then(|program| {
            let deps = program.parent()?;
            deps.ends_with("deps").then(|| deps.parent()).flatten()
        });
        target
            .map_or_else(std::env::temp_dir, Path::to_owned)
            .join("emulated-kernels")
    })
}

/// Compiles in a folder of its own, and puts the library where others find it only when it is whole.
fn build(
    compiler: &Compiler,
    source: &KernelSource,
    options: &[String],
    key: &str,
    library: &Path,
) -> Result<(), String> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let own = folder().join(format!("{key}.{}.{number}", std::process::id()));
    let result = build_in(&own, compiler, source, options, library);
    // What is left behind is only a few files more.
    let _ = fs::remove_dir_all(&own);
    result
}

fn build_in(
    own: &Path,
    compiler: &Compiler,
    source: &KernelSource,
    options: &[String],
    library: &Path,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", own.display());
    fs::create_dir_all(own).map_err(failed)?;
    for (name, text) in RUNTIME.iter().chain(&HEADERS) {
        fs::write(own.join(name), text).map_err(failed)?;
    }
    let text = format!(
        "#include \"device.cuh\"\n#line 1 \"{}\"\n{}\n#include \"emulator.hpp\"\n",
        source.file(),
        source.text()
    );
    fs::write(own.join("unit.cpp"), text).map_err(failed)?;
    let output = Command::new(&compiler.program)
        .args(options)
        .args(["-o", "kernel.so", "unit.cpp"])
        .current_dir(own)
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    fs::rename(own.join("kernel.so"), library).map_err(failed)
}

fn load(source: &KernelSource, library: &Path) -> Result<Kernel, String> {
    // SAFETY: it is a kernel that was compiled by `build`: nothing runs when it is loaded.
    let library = unsafe { Library::new(library) }
        .map_err(|error| format!("{}: {error}", library.display()))?;
    let named = |suffix: &str| {
        CString::new(format!("{}{suffix}", source.kernel())).map_err(|error| error.to_string())
    };
    let text = |error: libloading::Error| error.to_string();
    // SAFETY: the macro TLLM_KERNEL of `emulated.hpp` and `emulator.hpp` define functions of these types.
    let (function, run, argument_bytes, threads_max) = unsafe {
        let function = *library
            .get::<ThreadFn>(named("_emulated")?.as_bytes_with_nul())
            .map_err(text)?;
        let run = *library
            .get::<RunFn>(c"tllm_emulated_run".to_bytes_with_nul())
            .map_err(text)?;
        let argument_bytes = library
            .get::<unsafe extern "C" fn() -> u32>(named("_argument_bytes")?.as_bytes_with_nul())
            .map_err(text)?;
        let threads_max = library
            .get::<unsafe extern "C" fn() -> u32>(named("_threads_max")?.as_bytes_with_nul());
        (
            function,
            run,
            argument_bytes() as usize,
            threads_max.ok().map(|threads_max| threads_max()),
        )
    };
    Ok(Kernel {
        name: source.to_string(),
        function,
        run,
        argument_bytes,
        threads_max,
        _library: library,
    })
}
