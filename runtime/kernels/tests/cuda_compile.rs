//! Compiles every kernel that the library may ask for, as the library does it, for all devices that it has code for. Needs NVIDIA's
//! libnvrtc, no device: see `tests/cuda_compile.sh`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use trafficllm_kernels::cuda::{
    Compiler, DeviceError, ImageCache, KernelSource, Missing, Target, all_kernels,
};

const TARGETS: [Target; 4] = [Target::SM_80, Target::SM_86, Target::SM_89, Target::SM_90A];

/// Bytes of shared memory that a block may have which is declared in the text: more has to be asked for at the launch.
const STATIC_SHARED_BYTES_MAX: u32 = 48 << 10;

/// None where there is no libnvrtc and none is required.
#[allow(clippy::print_stdout, reason = "says what is skipped")]
fn compiler(cache: &ImageCache) -> Option<Compiler> {
    match Compiler::open(cache) {
        Ok(compiler) => Some(compiler),
        Err(error) => {
            let is_missing = matches!(
                &error,
                DeviceError::Unavailable {
                    missing: Missing::Compiler,
                    ..
                }
            );
            let is_required =
                std::env::var_os("TLLM_REQUIRE_NVRTC").is_some_and(|value| value == "1");
            assert!(is_missing && !is_required, "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// What a kernel takes, as the compiler says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    shared_bytes: u32,
    spill_bytes: u32,
    stack_bytes: u32,
}

/// The number that stands before `unit` in a list like `8 bytes stack frame, 0 bytes spill stores`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = line.split(unit).next()?;
    if before.len() == line.len() {
        return None;
    }
    before.trim_end().rsplit([' ', ',']).next()?.parse().ok()
}

/// Reads what the compiler says of each kernel; a text may have several.
fn usages(log: &str) -> BTreeMap<String, Usage> {
    let mut usages = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            name = rest.split('\'').next().unwrap_or_default().to_owned();
        }
        let usage: &mut Usage = usages.entry(name.clone()).or_default();
        if let Some(stack) = number_before(line, "bytes stack frame") {
            usage.stack_bytes = stack;
            let spills = ["bytes spill stores", "bytes spill loads"];
            usage.spill_bytes = spills
                .iter()
                .filter_map(|unit| number_before(line, unit))
                .sum();
        }
        if let Some(registers) = number_before(line, "registers") {
            usage.registers = registers;
            usage.shared_bytes = number_before(line, "bytes smem").unwrap_or(0);
        }
    }
    usages.remove("");
    usages
}

/// Whether the compiler warns. That it runs one matrix instruction after the other, it tells as a mere information.
fn is_bad(log: &str) -> bool {
    ["warning", "Potential Performance Loss"]
        .iter()
        .any(|word| log.contains(word))
}

struct Compiled {
    kernel: String,
    target: Target,
    usage: Usage,
    time: Duration,
}

fn compile(compiler: &Compiler, source: &KernelSource, target: Target) -> Result<Compiled, String> {
    let start = Instant::now();
    let image = compiler
        .compile(source, target)
        .map_err(|error| error.to_string())?;
    let time = start.elapsed();
    let failed = |what: &str| Err(format!("{source} for {target}: {what}"));
    if !image.bytes().starts_with(b"\x7fELF") {
        return failed("no code");
    }
    let log = image.log().unwrap_or_default();
    let Some(usage) = usages(log).get(source.kernel()).copied() else {
        return failed(&format!("the compiler says nothing of the kernel:\n{log}"));
    };
    if is_bad(log) {
        return failed(log);
    }
    if usage.spill_bytes > 0 || usage.stack_bytes > 0 {
        return failed(&format!("registers do not do: {usage:?}"));
    }
    if usage.registers == 0 || usage.shared_bytes > STATIC_SHARED_BYTES_MAX {
        return failed(&format!("{usage:?}"));
    }
    Ok(Compiled {
        kernel: source.to_string(),
        target,
        usage,
        time,
    })
}

#[test]
fn every_kernel_compiles_for_every_device_without_spills() {
    let Some(compiler) = compiler(&ImageCache::None) else {
        return;
    };
    let work: Vec<(KernelSource, Target)> = TARGETS
        .into_iter()
        .flat_map(|target| {
            let sources = all_kernels(target.capability()).into_iter();
            sources.map(move |source| (source, target))
        })
        .collect();
    let count = work.len();
    let left = Mutex::new(work);
    let results = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = left.lock().expect("lock").pop();
                    let Some((source, target)) = next else {
                        break;
                    };
                    let result = compile(&compiler, &source, target);
                    results.lock().expect("lock").push(result);
                }
            });
        }
    });
    let (compiled, failed): (Vec<_>, Vec<_>) = results
        .into_inner()
        .expect("lock")
        .into_iter()
        .partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    let mut compiled: Vec<Compiled> = compiled.into_iter().filter_map(Result::ok).collect();
    let (major, minor) = compiler.version();
    println!(
        "{} of {count} kernels compiled by libnvrtc {major}.{minor} in {:.0} s; the heaviest of each target:",
        compiled.len(),
        start.elapsed().as_secs_f64()
    );
    compiled.sort_by_key(|one| std::cmp::Reverse((one.usage.registers, one.usage.shared_bytes)));
    for target in TARGETS {
        for one in compiled.iter().filter(|one| one.target == target).take(6) {
            let Usage {
                registers,
                shared_bytes,
                ..
            } = one.usage;
            let seconds = one.time.as_secs_f64();
            println!(
                "{target:7} {registers:3} registers {shared_bytes:6} bytes shared {seconds:5.1} s  {}",
                one.kernel
            );
        }
    }
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n\n")
    );
    assert_eq!(compiled.len(), count);
}

const SMALL: &str =
    "extern \"C\" __global__ void small(float* to) { to[threadIdx.x] = TLLM_VALUE; }";

fn small(value: u32) -> KernelSource {
    KernelSource::from_text("small.cu", SMALL, "small", &[("TLLM_VALUE", value)])
}

/// Devices that have no code of their own get text, which the driver compiles.
#[test]
fn newer_devices_get_text() {
    let Some(compiler) = compiler(&ImageCache::None) else {
        return;
    };
    let common = trafficllm_kernels::cuda::common();
    for target in [Target::COMPUTE_80, Target::COMPUTE_90] {
        let image = compiler.compile(&common[1], target).expect("text");
        let text = std::str::from_utf8(image.bytes()).expect("text");
        let architecture = target.name().replace("compute", "sm");
        assert!(text.contains(&format!(".target {architecture}")), "{text}");
        assert!(text.ends_with('\0'));
    }
}

#[test]
fn what_does_not_compile_is_told_in_the_compilers_words() {
    let Some(compiler) = compiler(&ImageCache::None) else {
        return;
    };
    let source = KernelSource::from_text("wrong.cu", "int a = nothing;", "wrong", &[("N", 3)]);
    let error = compiler
        .compile(&source, Target::SM_80)
        .expect_err("an error");
    let DeviceError::Compile {
        kernel,
        target,
        log,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((kernel.as_str(), target.as_str()), ("wrong N=3", "sm_80"));
    assert!(log.contains("wrong.cu") && log.contains("nothing"), "{log}");
}

#[test]
fn what_was_compiled_is_kept_and_what_was_damaged_is_compiled_again() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = ImageCache::Folder(folder.path().join("kernels"));
    let Some(first) = compiler(&cache) else {
        return;
    };
    let made = first.compile(&small(1), Target::SM_80).expect("compiled");
    assert!(made.log().is_some());
    // Another process finds it, for this very source and target alone.
    let second = compiler(&cache).expect("compiler");
    let kept = second.compile(&small(1), Target::SM_80).expect("kept");
    assert_eq!((kept.log(), kept.bytes()), (None, made.bytes()));
    for (source, target) in [(small(2), Target::SM_80), (small(1), Target::SM_86)] {
        let other = second.compile(&source, target).expect("compiled");
        assert!(other.log().is_some());
        assert_ne!(other.bytes(), made.bytes());
    }
    for entry in std::fs::read_dir(folder.path().join("kernels")).expect("folder") {
        let file = std::fs::File::options()
            .write(true)
            .open(entry.expect("entry").path());
        file.expect("file").set_len(100).expect("cut");
    }
    let again = second.compile(&small(1), Target::SM_80).expect("compiled");
    assert_eq!((again.log().is_some(), again.bytes()), (true, made.bytes()));
    assert_eq!(
        second
            .compile(&small(1), Target::SM_80)
            .expect("kept")
            .log(),
        None
    );
}

/// The reading of what the compiler says, so that a change of its words does not hide spills.
#[test]
fn spills_are_read() {
    let log = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'a' for 'sm_80'\n\
        ptxas info    : Function properties for a\n    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem, 400 bytes cmem[0]\n\
        ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
        ptxas info    : Function properties for b\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 8 registers, 360 bytes cmem[0]\n";
    assert!(!is_bad(log));
    let serialised = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to";
    for told in ["ptxas warning : Stack size", serialised] {
        assert!(is_bad(&format!("{log}{told}\n")), "{told}");
    }
    let usages = usages(log);
    let a = Usage {
        registers: 255,
        shared_bytes: 4096,
        spill_bytes: 16,
        stack_bytes: 8,
    };
    let b = Usage {
        registers: 8,
        ..Usage::default()
    };
    assert_eq!(
        usages.into_iter().collect::<Vec<_>>(),
        [("a".to_owned(), a), ("b".to_owned(), b)]
    );
}
