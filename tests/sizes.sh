#!/usr/bin/env bash
# Sizes of what is shipped, with and without heads, as a table: tests/sizes.sh. Builds each form in release, stripped, which takes long the first
# time; `TLLM_SIZES_ONLY=WORDS` builds those rows only whose name holds one of the words.
#
# `heads`: modules are compiled when they are loaded. `heads-run`: precompiled modules, no compiler in the process. `heads-interpreted`: those, and
# the interpreter's. `embedded` is the library for appliances: no bundle compiled in, optimised for size. Numbers are bytes of the file.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
export CARGO_PROFILE_RELEASE_STRIP=symbols
bundle=$(stat -c %s runtime/bundle/default.tllm)

row() { # NAME FILE PACKAGE FEATURES [SETTING...]
    local name=$1 file=$2 package=$3 features=$4
    shift 4
    if [ -n "${TLLM_SIZES_ONLY:-}" ]; then
        local word found=
        for word in $TLLM_SIZES_ONLY; do [[ $name == *"$word"* ]] && found=1; done
        [ -n "$found" ] || return 0
    fi
    env "$@" cargo build -q --release -p "$package" --no-default-features --features "$features" >&2
    # The sections of the file say what of it is code.
    printf '| %s | %s | %s |\n' "$name" "$(stat -c %s "$target/release/$file")" "$(size -A "$target/release/$file" | awk '$1 == ".text" {print $2}')"
}

echo "| built | bytes | of them code |"
echo "|---|---|---|"
library=libtrafficllm_ffi.so
small="CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1"
row "library, no heads" $library trafficllm-ffi default-bundle
row "library, heads" $library trafficllm-ffi default-bundle,heads
row "command, no heads" trafficllm trafficllm command,default-bundle
row "command, heads" trafficllm trafficllm command,default-bundle,heads
# shellcheck disable=SC2086
{
    row "embedded library, no heads" $library trafficllm-ffi "capi" $small
    row "embedded library, heads-run" $library trafficllm-ffi "trafficllm/heads-run" $small
    row "embedded library, heads-interpreted" $library trafficllm-ffi "trafficllm/heads-interpreted" $small
}
echo
echo "The default bundle is $bundle bytes of library and command; the embedded library has none."
