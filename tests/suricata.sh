#!/usr/bin/env bash
# The Suricata plugin in the real Suricata: gets Suricata 8.0 of Debian's suites, builds the plugin, the library and the command, and runs
# suricata/tests/real in each Suricata.
#
#   tests/suricata.sh [ARGUMENTS OF THE TEST PROGRAM]
#
# Needs Linux on x86-64 with Debian's apt. Suricata is unpacked into a folder, not installed (suricata/tests/tree.sh); iproute2 and gcc are
# installed where they are missing, if run as root. What needs a network namespace is skipped where the system gives none.
#
# Where no Suricata can be had, says so and succeeds; with TLLM_REQUIRE_SURICATA=1 it fails instead.
#   TLLM_SURICATA_FOLDER=FOLDER   where the trees are kept (~/.cache/trafficllm-suricata)
#   TLLM_SURICATA_SUITES="A B"    Debian's suites to take it from ("forky trixie-backports"): those that have an 8.0 are used
set -euo pipefail
# What is relative is so to where the script was called.
case ${CARGO_TARGET_DIR:-/} in
/*) ;;
*) export CARGO_TARGET_DIR=$PWD/$CARGO_TARGET_DIR ;;
esac
cd "$(dirname "$0")/.."
started=$SECONDS
folder=${TLLM_SURICATA_FOLDER:-${XDG_CACHE_HOME:-$HOME/.cache}/trafficllm-suricata}

cannot() { # WHY
    if [ "${TLLM_REQUIRE_SURICATA:-}" = 1 ]; then
        echo "suricata: $1" >&2
        exit 1
    fi
    echo "suricata: SKIPPED, the plugin was not tested in Suricata: $1"
    exit 0
}

install_tools() {
    local need missing=()
    for need in ip:iproute2 cc:gcc gzip:gzip; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || cannot "not installed, and not root to install them: ${missing[*]}"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 || cannot "these packages did not install: ${missing[*]}"
}

trees=() versions=()
for suite in ${TLLM_SURICATA_SUITES:-forky trixie-backports}; do
    suricata/tests/tree.sh "$folder/$suite" "$suite" || {
        echo "suricata: no tree of $suite" >&2
        continue
    }
    version=$("$folder/$suite/run" suricata -V | sed -n 's/.*version \([0-9.]*\).*/\1/p')
    case $version in
    8.0.*) trees+=("$folder/$suite") versions+=("$version") ;;
    *) echo "suricata: $suite has $version, which the plugin does not know" >&2 ;;
    esac
done
[ ${#trees[@]} -gt 0 ] || cannot "no suite gave a Suricata 8.0"
install_tools

target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build -q --release -p trafficllm -p trafficllm-ffi -p trafficllm-suricata
# In a folder of its own: the library with faults has the same name. It needs no heads, and so no compiler of theirs.
cargo build -q --release -p trafficllm-ffi --no-default-features --features default-bundle,faults --target-dir "$target/faults"

TLLM_SURICATA=$(IFS=:; echo "${trees[*]}")
export TLLM_SURICATA TLLM_REQUIRE_SURICATA=1 TLLM_SURICATA_BUILT=$target/release TLLM_SURICATA_FAULTS=$target/faults/release/libtrafficllm_ffi.so
# One at a time: they measure nothing, but many Suricatas at once are slow enough to miss packets.
cargo test -q -p trafficllm-suricata --test real -- --test-threads=1 "$@"
echo "suricata: passed in $((SECONDS - started)) s, in Suricata ${versions[*]}"
