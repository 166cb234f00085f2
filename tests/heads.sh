#!/usr/bin/env bash
# Heads with everything that is left out of the default build: all features, then a build without a compiler that runs what was precompiled.
set -euo pipefail
cd "$(dirname "$0")/.."
made=$(mktemp -d)
trap 'rm -r "$made"' EXIT

cargo clippy -p trafficllm-heads --all-features --all-targets -- -D warnings
cargo test -p trafficllm-heads --all-features
precompile() {
    cargo run -q -p trafficllm-heads --features cranelift,pulley --example precompile -- "$1" plugins/examples/modules/beaconing.wasm "$made/$1"
}
precompile native
precompile interpreted
PRECOMPILED_HEAD="$made/native" cargo test -p trafficllm-heads --features wasm --test no_compiler -- --include-ignored
PRECOMPILED_HEAD="$made/interpreted" cargo test -p trafficllm-heads --features wasm,pulley --test no_compiler -- --include-ignored
