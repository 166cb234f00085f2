#!/usr/bin/env bash
# Compiles every CUDA kernel for every device that there is code for, without a device.
#
#   tests/cuda_compile.sh [ARGUMENTS OF THE TEST PROGRAM]
#
# Needs NVIDIA's libnvrtc: that of TLLM_NVRTC (its path or folder) where that is set, else the one of the Python package
# nvidia-cuda-nvrtc, which is installed into a folder of its own (230 MiB) and kept there for the next run.
#
# Where it cannot be had, says so and succeeds; with TLLM_REQUIRE_NVRTC=1 it fails instead.
#   TLLM_NVRTC_TOOLS=FOLDER   in which the package has its folder, trafficllm-nvrtc-13.0 (~/.cache)
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0
# A folder of this name alone is ever removed.
tools=${TLLM_NVRTC_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}}/trafficllm-nvrtc-$version

cannot() { # WHY
    if [ "${TLLM_REQUIRE_NVRTC:-}" = 1 ]; then
        echo "cuda_compile: $1" >&2
        exit 1
    fi
    echo "cuda_compile: SKIPPED, no kernel was compiled: $1"
    exit 0
}

find_library() {
    find "$tools" -name 'libnvrtc.so.*' -not -name '*.alt.*' 2>/dev/null | head -1 | grep .
}

install_library() {
    command -v python3 >/dev/null || cannot "there is no Python to install libnvrtc with"
    rm -rf "$tools"
    python3 -m venv "$tools" >&2 || cannot "Python makes no virtual environment"
    "$tools/bin/pip" install -q --disable-pip-version-check --only-binary=:all: "nvidia-cuda-nvrtc==$version.*" >&2 ||
        cannot "the Python package nvidia-cuda-nvrtc $version did not install"
    find_library >/dev/null || cannot "the Python package nvidia-cuda-nvrtc $version has no libnvrtc"
}

if [ -z "${TLLM_NVRTC:-}" ]; then
    find_library >/dev/null || install_library
    TLLM_NVRTC=$(find_library)
    export TLLM_NVRTC
fi
export TLLM_REQUIRE_NVRTC=1
cargo test --package trafficllm-kernels --features cuda --test cuda_compile -- --nocapture "$@"
