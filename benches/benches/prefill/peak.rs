//! How many int8 operations this processor can do: the product instruction of a level in a loop over registers.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::time::Instant;

use trafficllm_kernels::Level;

/// Times the loop runs per slice: some milliseconds.
const ITERATIONS: u64 = 1_000_000;
/// The fastest of so many slices counts: what else runs on the machine can only slow them down.
const SLICES: usize = 20;

/// Operations (a product and a sum are two) per second of one thread; `None` for levels without a product instruction.
pub(crate) fn operations_per_second(level: Level) -> Option<f64> {
    let (run, operations): (fn(u64), u64) = instruction_loop(level)?;
    run(ITERATIONS / 10);
    let slice = |_| {
        let start = Instant::now();
        run(ITERATIONS);
        (operations * ITERATIONS) as f64 / start.elapsed().as_secs_f64()
    };
    (0..SLICES).map(slice).max_by(f64::total_cmp)
}

/// The loop, and its operations per iteration.
#[cfg(target_arch = "x86_64")]
fn instruction_loop(level: Level) -> Option<(fn(u64), u64)> {
    // The level is there: the processor and its operating system have these instructions.
    match level.available().ok()?.name() {
        "amx" => Some((amx, 4 * 2 * 16 * 16 * 64)),
        "avx512vnni" => Some((avx512_vnni, 12 * 2 * 64)),
        "avxvnni" => Some((avx_vnni, 12 * 2 * 32)),
        "avx2" => Some((avx2, 6 * 2 * 16)),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_loop(_: Level) -> Option<(fn(u64), u64)> {
    None
}

/// Repeats instructions that read and write vector registers only.
#[cfg(target_arch = "x86_64")]
macro_rules! register_loop {
    ($name:ident, $document:literal, $($instruction:literal),+) => {
        #[doc = $document]
        fn $name(iterations: u64) {
            // SAFETY: `instruction_loop` gives this out only where the processor has the level. The instructions touch vector
            // registers that are declared as overwritten, a counter of their own and flags, and no memory.
            unsafe {
                asm!(
                    "2:",
                    $($instruction,)+
                    "dec {left}",
                    "jnz 2b",
                    left = inout(reg) iterations => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack),
                );
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
register_loop!(
    avx512_vnni,
    "Twelve independent sums of 64 byte products.",
    "vpdpbusd zmm0, zmm14, zmm15",
    "vpdpbusd zmm1, zmm14, zmm15",
    "vpdpbusd zmm2, zmm14, zmm15",
    "vpdpbusd zmm3, zmm14, zmm15",
    "vpdpbusd zmm4, zmm14, zmm15",
    "vpdpbusd zmm5, zmm14, zmm15",
    "vpdpbusd zmm6, zmm14, zmm15",
    "vpdpbusd zmm7, zmm14, zmm15",
    "vpdpbusd zmm8, zmm14, zmm15",
    "vpdpbusd zmm9, zmm14, zmm15",
    "vpdpbusd zmm10, zmm14, zmm15",
    "vpdpbusd zmm11, zmm14, zmm15"
);

#[cfg(target_arch = "x86_64")]
register_loop!(
    avx_vnni,
    "Twelve independent sums of 32 byte products.",
    "{{vex}} vpdpbusd ymm0, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm1, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm2, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm3, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm4, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm5, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm6, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm7, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm8, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm9, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm10, ymm14, ymm15",
    "{{vex}} vpdpbusd ymm11, ymm14, ymm15"
);

// Exact products of signed bytes need 16 bits here: `vpmaddwd` multiplies 16 of them and sums pairs, `vpaddd` adds these up.
#[cfg(target_arch = "x86_64")]
register_loop!(
    avx2,
    "Six independent sums of 16 products.",
    "vpmaddwd ymm6, ymm14, ymm15",
    "vpaddd ymm0, ymm0, ymm6",
    "vpmaddwd ymm7, ymm14, ymm15",
    "vpaddd ymm1, ymm1, ymm7",
    "vpmaddwd ymm8, ymm14, ymm15",
    "vpaddd ymm2, ymm2, ymm8",
    "vpmaddwd ymm9, ymm14, ymm15",
    "vpaddd ymm3, ymm3, ymm9",
    "vpmaddwd ymm10, ymm14, ymm15",
    "vpaddd ymm4, ymm4, ymm10",
    "vpmaddwd ymm11, ymm14, ymm15",
    "vpaddd ymm5, ymm5, ymm11"
);

/// What `ldtilecfg` reads.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Four independent sums of 16 x 16 x 64 byte products, in tiles of 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
fn amx(iterations: u64) {
    let mut config = TileConfig {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    config.row_bytes[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: `instruction_loop` gives this out only where the level is there: asking for it has made the operating system allow
    // tiles to this process. `config` is a whole palette-1 configuration that outlives the block; all tiles are declared as
    // overwritten, and `tilerelease` leaves none configured.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {left}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            left = inout(reg) iterations => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
