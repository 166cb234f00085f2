#!/usr/bin/env bash
# Builds the kernels for AArch64 and runs their whole suite under qemu's user-mode emulation, on a processor without the
# dot product instructions and on one with them.
#
#   tests/aarch64.sh [ARGUMENTS OF THE TEST PROGRAM]
#
# Needs an x86-64 Debian and these packages, installed if run as root: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user.
# The standard library for AArch64 comes from Debian as well (libstd-rust-dev:arm64) with the compiler it belongs to, both
# unpacked into a folder of their own (160 MiB to download, 620 MiB unpacked) and kept there for the next run; nothing of
# theirs is installed. cargo is the one that builds everything else.
#
# Where the packages cannot be had, says so and succeeds; with TLLM_REQUIRE_AARCH64=1 it fails instead.
#   TLLM_AARCH64_TOOLS=FOLDER   where the compiler is kept (~/.cache/trafficllm-aarch64)
#   TLLM_AARCH64_SUITE=SUITE    the Debian suite whose compiler is taken (forky: the first with 1.95 or later)
set -euo pipefail
cd "$(dirname "$0")/.."

tools=${TLLM_AARCH64_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/trafficllm-aarch64}
suite=${TLLM_AARCH64_SUITE:-forky}
target=aarch64-unknown-linux-gnu
sysroot=/usr/aarch64-linux-gnu
# qemu's name of a processor, and whether it has the dot product (bit 20 of its AT_HWCAP).
processors=("cortex-a53 0" "neoverse-n1 1")

cannot() { # WHY
    if [ "${TLLM_REQUIRE_AARCH64:-}" = 1 ]; then
        echo "aarch64: $1" >&2
        exit 1
    fi
    echo "aarch64: SKIPPED, the kernels were not tested on this architecture: $1"
    exit 0
}

install_host_packages() {
    local program missing=()
    for program in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64:qemu-user; do
        command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
    done
    [ -e "$sysroot/lib/crt1.o" ] || missing+=(libc6-dev-arm64-cross)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || cannot "not installed, and not root to install them: ${missing[*]}"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 ||
        cannot "these packages did not install: ${missing[*]}"
}

# The machine's own Debian mirror.
mirror() {
    sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1 | grep . ||
        sed -nE 's/^deb (\[[^]]*\] )?([^ ]+).*/\2/p' /etc/apt/sources.list 2>/dev/null | head -1 | grep .
}

# apt with its own lists of packages, for which nothing is installed.
apt_apart() { # PROGRAM ARGUMENTS...
    local program=$1
    shift
    "$program" -o Dir::Etc::sourcelist="$tools/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::parts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$tools/state" -o Dir::State::status="$tools/status" -o Dir::Cache="$tools/cache" \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 \
        -o APT::Install-Recommends=false -o APT::Sandbox::User= -o Debug::NoLocking=true \
        -o Acquire::Retries=3 -o Acquire::Languages=none "$@"
}

# What dpkg would unpack for Debian's compiler: the compiler with the libraries it runs on, its library for this machine
# (thiserror's macro is built with it), and the library for AArch64.
fetch_compiler() {
    local at runtime archive
    at=$(mirror) || cannot "no Debian mirror in /etc/apt"
    rm -rf "$tools"
    mkdir -p "$tools"/{state/lists/partial,cache/archives/partial,root}
    : >"$tools/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $at $suite main" >"$tools/sources.list"
    apt_apart apt-get update -qq >&2 || cannot "no package lists of Debian's $suite"
    runtime=$(apt_apart apt-cache depends --no-recommends libstd-rust-dev 2>/dev/null | sed -n 's/^ *Depends: \(libstd-rust-[0-9.]*\)$/\1/p' | head -1)
    [ -n "$runtime" ] || cannot "Debian's $suite has no rustc"
    {
        apt_apart apt-get install -y -qq --download-only "$runtime" &&
            (cd "$tools/cache/archives" && apt_apart apt-get download -qq rustc libstd-rust-dev:amd64 libstd-rust-dev:arm64)
    } >&2 || cannot "Debian's $suite did not give its compiler"
    for archive in "$tools"/cache/archives/*.deb; do dpkg-deb -x "$archive" "$tools/root"; done
    rm -rf "$tools/cache" "$tools/state" "$tools/root/usr/share" "$tools/root/etc" "$tools/root/var"

    # The compiler runs on its own C library: this machine's may be older.
    cat >"$tools/rustc" <<END
#!/bin/sh
exec "$tools/root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$tools/root/usr/lib/x86_64-linux-gnu" \\
    "$tools/root/usr/bin/rustc" --sysroot "$tools/root/usr" "\$@"
END
    chmod +x "$tools/rustc"
    "$tools/rustc" -vV >&2 || cannot "Debian's compiler does not run here"
    echo "$suite" >"$tools/complete"
}

[ "$(uname -sm)" = "Linux x86_64" ] || cannot "this way needs Linux on x86-64, not $(uname -sm)"
command -v apt-get dpkg-deb >/dev/null || cannot "this way needs Debian's packages"
install_host_packages
[ "$(cat "$tools/complete" 2>/dev/null)" = "$suite" ] || fetch_compiler

needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$("$tools/rustc" -vV | sed -n 's/^release: //p')
[ "$(printf '%s\n' "$needed" "$found" | sort -V | head -1)" = "$needed" ] ||
    cannot "Debian's $suite has Rust $found, and this needs $needed"

# A folder of its own: another compiler's leavings would be built again at every turn.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/aarch64"
export RUSTC="$tools/rustc" CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS RUSTC_WRAPPER
build=(cargo test --package trafficllm-kernels --features training --tests --target "$target")
"${build[@]}" --no-run

for processor in "${processors[@]}"; do
    read -r name has_dot_product <<<"$processor"
    emulator=(qemu-aarch64 -cpu "$name" -L "$sysroot")
    # That qemu gives the processor what its name says is looked at, not believed.
    capabilities=$("${emulator[@]}" -E LD_SHOW_AUXV=1 "$sysroot/lib/ld-linux-aarch64.so.1" --help | sed -n 's/^AT_HWCAP: *//p')
    if [ $((16#${capabilities#0x} >> 20 & 1)) != "$has_dot_product" ]; then
        echo "aarch64: qemu's $name has the capabilities $capabilities, not what this script takes it for" >&2
        exit 1
    fi
    echo "aarch64: on $name ($([ "$has_dot_product" = 1 ] && echo with || echo without) dot product)"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="${emulator[*]}" "${build[@]}" -- "$@"
done
