#!/usr/bin/env bash
# Checks and measures on a machine with an NVIDIA GPU, in one call; each part takes less than ten minutes.
#   tests/cuda_measure.sh [check|roofline|engine|seven|all]     all, if nothing is named
#   tests/cuda_measure.sh build FOLDER                          the programs, for a machine that cannot build them
#   tests/cuda_measure.sh emulated                              everything at tiny sizes without a GPU: shows that it works, and measures nothing
#
# check     every kernel against the processor over random shapes, plain and under compute-sanitizer (memcheck, racecheck); labels of the
#           recorded captures and of the data against the processor's
# roofline  each kernel's time beside what the device can do at most
# engine    flows a second and the time of one flow, beside the processor
# seven     labels a second of a llama of 7 billion parameters, beside PyTorch and candle
#
# A part that cannot run says why, and the others go on. The exit status is 0 only where every part ran and every check passed; engines to compare
# with may be missing. Tables are printed, and lines of JSON are appended to WORK/measured.jsonl.
#   TLLM_MEASURE_BIN=FOLDER   programs that were built before; else they are built here
#   TLLM_DATA=FOLDER          the tasks' data (../shared/data)
#   TLLM_CUDA_DEVICE=cuda:N   the device (cuda:0)
#   TLLM_PYTHON=COMMAND       a Python that has PyTorch (python3)
#   TLLM_WORK=FOLDER          where everything is put, and left for a look; else it is temporary
#   TLLM_MEASURE_SECONDS=N    most seconds of a part (580)
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
device=${TLLM_CUDA_DEVICE:-cuda:0}
data=${TLLM_DATA:-../shared/data}
seconds=${TLLM_MEASURE_SECONDS:-580}
failed=()

say() {
    echo "cuda_measure: $*" >&2
}

fail() {
    say "FAILED: $*"
    failed+=("$*")
}

die() {
    say "$*"
    exit 2
}

# The path of the program that a cargo command makes: its last executable of this name.
built() { # NAME CARGO-ARGUMENTS...
    local name=$1
    shift
    cargo "$@" --message-format json-render-diagnostics | sed -n "s/.*\"target\":{[^}]*\"name\":\"$name\".*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -n 1
}

build() { # FOLDER
    local folder=$1 program
    mkdir -p "$folder"
    program=$(built trafficllm-cuda-measure build --release -p trafficllm-cuda-measure)
    install "$program" "$folder/cuda-measure"
    program=$(built cuda_emulated test --release --no-run -p trafficllm-kernels --features cuda --test cuda_emulated)
    install "$program" "$folder/cuda-kernels"
    if command -v nvcc >/dev/null; then
        # What it is compared with may fail to build without harm.
        if program=$(built trafficllm-candle-llama build --release --features cuda --manifest-path benches/cuda/candle/Cargo.toml) && [ -n "$program" ]; then
            install "$program" "$folder/candle-llama"
        else
            say "candle's CUDA cannot be built here: it is left out"
        fi
    else
        say "no nvcc: candle is left out"
    fi
}

# The programs' folder, in `bin`.
find_programs() {
    bin=${TLLM_MEASURE_BIN:-}
    if [ -z "$bin" ]; then
        command -v cargo >/dev/null || die "no cargo, and TLLM_MEASURE_BIN names no folder of programs"
        bin=$work/bin
        say "building"
        build "$bin"
    fi
    local name
    for name in cuda-measure cuda-kernels; do
        [ -x "$bin/$name" ] || die "no program $bin/$name: make it with tests/cuda_measure.sh build FOLDER"
    done
}

# Runs a program until the part's time is over, and keeps what it prints.
run() { # NAME COMMAND...
    local name=$1 status=0
    shift
    say "$name"
    timeout --kill-after=10 "$((until - SECONDS > 1 ? until - SECONDS : 1))" "$@" 2>&1 | tee "$work/${name//[^a-z0-9]/-}.log" || status=$?
    case $status in
    0) ;;
    124 | 137) fail "$name: it took too long" ;;
    *) fail "$name: exit status $status" ;;
    esac
}

measure() { # PART ARGUMENTS...
    local part=$1
    shift
    run "$part" "$bin/cuda-measure" "$part" --device "$device" --json "$work/measured.jsonl" --data "$data" "${scale[@]}" "$@"
}

# A test binary must have run tests.
kernels() { # NAME COMMAND...
    local name=$1 log
    shift
    run "$name" env TLLM_CUDA_DEVICE="$device" "$@" "$bin/cuda-kernels" --skip device:: --skip faults:: --test-threads 1
    log=$work/${name//[^a-z0-9]/-}.log
    grep -q '^test result: ok\. [1-9]' "$log" || fail "$name: no tests ran"
}

check() {
    local end=$until tools=2
    kernels "kernels against the processor" env
    measure labels
    if ! command -v compute-sanitizer >/dev/null; then
        fail "compute-sanitizer is not installed: memcheck and racecheck did not run"
        return
    fi
    local tool
    for tool in memcheck racecheck; do
        # What is left of the part's time is shared out.
        until=$((SECONDS + (end - SECONDS) / tools--))
        kernels "kernels under $tool" compute-sanitizer --tool "$tool" --error-exitcode 99
    done
}

roofline() {
    measure roofline
}

engine() {
    measure engine
}

seven() {
    local workers=() python=${TLLM_PYTHON:-python3}
    if $python -c 'import torch' 2>/dev/null; then
        workers+=(--worker "$python benches/compare/torch_llama.py")
    else
        say "$python has no PyTorch: it is left out"
    fi
    if [ -x "$bin/candle-llama" ]; then
        workers+=(--worker "$bin/candle-llama")
    else
        say "candle's CUDA was not built: it is left out"
    fi
    measure seven --rounds 5 "${workers[@]}"
}

# All parts at tiny sizes on the emulator, and whether what they write is whole.
emulated() {
    local program part
    program=$(built trafficllm-cuda-measure build -p trafficllm-cuda-measure --features emulated)
    bin=$work/bin
    mkdir -p "$bin"
    install "$program" "$bin/cuda-measure"
    device=emulated
    scale=(--tiny --rounds 1)
    for part in labels roofline engine seven; do
        measure "$part"
        grep -qx "{\"name\":\"done\",\"part\":\"$part\"}" "$work/measured.jsonl" || fail "$part: its lines are not whole"
    done
    ! grep -q 'NaN\|null' "$work/measured.jsonl" || fail "figures that are no numbers"
}

if [ "${1:-}" = build ]; then
    [ $# = 2 ] || die "build FOLDER"
    build "$2"
    exit 0
fi
if [ -n "${TLLM_WORK:-}" ]; then
    work=$TLLM_WORK
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
work=$(cd "$work" && pwd)
scale=()
until=$((SECONDS + seconds))
case ${1:-all} in
emulated)
    emulated
    ;;
check | roofline | engine | seven)
    find_programs
    until=$((SECONDS + seconds))
    "$1"
    ;;
all)
    find_programs
    for part in check roofline engine seven; do
        until=$((SECONDS + seconds))
        "$part"
    done
    ;;
*) die "$1: expected check, roofline, engine, seven, all, build or emulated" ;;
esac
if [ ${#failed[@]} -gt 0 ]; then
    printf 'cuda_measure: FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
say "all is well"
