#!/bin/sh
# Builds the example heads as modules: build.sh FOLDER. clang and lld for the C ones; cargo with the target wasm32-unknown-unknown for the
# others, which are left out where there is none. The same tools give the same bytes wherever the checkout lies; `modules/TOOLS` says
# which made the committed ones, and FOLDER/TOOLS which made these.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
clang=${CLANG:-clang}
"$clang" --version | sed 1q >"$out/TOOLS"
"$("$clang" -print-prog-name=wasm-ld)" --version | sed 1q >>"$out/TOOLS"
for head in beaconing fusion; do
    "$clang" --target=wasm32 -O2 -std=c11 -Wall -Wextra -Werror -nostdlib -ffreestanding "-ffile-prefix-map=$here=." \
        "-I$here/../sdk-c" "-I$here/../../include" -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=8192 -o "$out/$head.wasm" "$here/$head.c"
done
if [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ]; then
    rustc --version >>"$out/TOOLS"
    cd "$here/linear"
    # All that decides about the bytes is said here, whatever the profile of the workspace or the caller's environment is. One unit,
    # because a crate is cut into several by names that hold the checkout's path.
    env -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_RUSTFLAGS -u RUSTC_WRAPPER -u CARGO_BUILD_RUSTC_WRAPPER \
        CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=3 \
        CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_INCREMENTAL=false \
        RUSTFLAGS="-C link-arg=-zstack-size=8192 -C target-feature=+simd128 -C strip=symbols --remap-path-prefix=$here=." \
        cargo build --quiet --release --target wasm32-unknown-unknown --target-dir "$out/target"
    cp "$out/target/wasm32-unknown-unknown/release/trafficllm_head_linear.wasm" "$out/linear.wasm"
    rm -r "$out/target"
fi
