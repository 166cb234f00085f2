#!/bin/sh
# Builds the example heads as modules: build.sh FOLDER. clang and lld for the C ones; cargo with the target wasm32-unknown-unknown for the
# others, which are left out where there is none. The same tools give the same bytes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
for head in beaconing fusion; do
    ${CLANG:-clang} --target=wasm32 -O2 -std=c11 -Wall -Wextra -Werror -nostdlib -ffreestanding "-ffile-prefix-map=$here=." \
        "-I$here/../sdk-c" "-I$here/../../include" -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=8192 -o "$out/$head.wasm" "$here/$head.c"
done
if [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ]; then
    cd "$here/linear"
    RUSTFLAGS="-C link-arg=-zstack-size=8192 -C target-feature=+simd128 -C strip=symbols --remap-path-prefix=$here=." \
        cargo build --quiet --release --target wasm32-unknown-unknown --target-dir "$out/target"
    cp "$out/target/wasm32-unknown-unknown/release/trafficllm_head_linear.wasm" "$out/linear.wasm"
    rm -r "$out/target"
fi
