#!/usr/bin/env bash
# Heads with everything that is left out of the default build: modules built from their sources and compared with the committed ones, hostile
# modules, precompiling, a build without a compiler that runs what was precompiled, and native heads under valgrind.
#
# Needs clang and lld (installed if run as root), and for the Rust heads the target wasm32-unknown-unknown (added where rustup can have it).
# What is not there is said and left out; with TLLM_REQUIRE_WASM=1 missing clang or lld, with TLLM_REQUIRE_VALGRIND=1 a missing valgrind fails.
set -euo pipefail
cd "$(dirname "$0")/.."
made=$(mktemp -d)
trap 'rm -r "$made"' EXIT

missing=()
for tool in clang:clang wasm-ld:lld valgrind:valgrind; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 || true
fi
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ]; then
    { command -v rustup >/dev/null && timeout 120 rustup target add wasm32-unknown-unknown >&2; } ||
        echo "heads: SKIPPED, linear.wasm was not built anew: the target wasm32-unknown-unknown is not installed"
fi

cargo clippy -p trafficllm-heads --all-features --all-targets -- -D warnings
cargo test -p trafficllm-heads --all-features
precompile() {
    cargo run -q -p trafficllm-heads --all-features --example precompile -- "$1" plugins/examples/modules/beaconing.wasm "$made/$1"
}
precompile native
precompile interpreted
for execution in native interpreted; do
    PRECOMPILED_HEAD="$made/$execution" PRECOMPILED_EXECUTION=$execution \
        cargo test -p trafficllm-heads --features wasm,pulley --test no_compiler -- --include-ignored
done

if command -v valgrind >/dev/null; then
    # The C heads as libraries, and beside them as modules; code that is made at run time is checked anew. The test program's own main
    # thread is never freed, so leaks are not looked for.
    host=$(rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
    env "CARGO_TARGET_${host}_RUNNER=valgrind -q --error-exitcode=9 --leak-check=no --smc-check=all-non-file" \
        cargo test -p trafficllm-heads --all-features --test native --test abi --test examples -- --test-threads=1 --skip modules_are
elif [ "${TLLM_REQUIRE_VALGRIND:-}" = 1 ]; then
    echo "heads: valgrind is not installed" >&2
    exit 1
else
    echo "heads: SKIPPED, native heads did not run under valgrind: it is not installed"
fi
