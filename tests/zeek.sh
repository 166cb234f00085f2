#!/usr/bin/env bash
# The Zeek package: its layout, the syntax of its scripts, and its part without Zeek with gcc and clang, always; and in a real Zeek, where
# there is one, its btests, its verdicts against those of the command on every recorded capture, an interface, its leaks and its cost.
#
# Needs Linux, gcc, clang and python3 with venv; btest and zeekscript are taken from PyPI where they are missing. For the interface it needs
# to be root, or a user who may make user namespaces.
#   ZEEK_ROOT=FOLDER             where Zeek is installed, if its zeek-config is not on the PATH
#   TLLM_ZEEK_CONNECTIONS=N      connections of the leak check (3,000)
#   TLLM_ZEEK_ROUNDS=N           rounds of the measurement of cost (1)
#   TLLM_ZEEK_COST_CONNECTIONS=N connections of its capture, of 12.3 packets each (10,000)
#   TLLM_ZEEK_ONLY=leaks|cost    only that, in a real Zeek
#   TLLM_REQUIRE_ZEEK=1          a Zeek that is not there is an error
#   TLLM_WORK=FOLDER             where everything is put, and left for a look; else it is temporary
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
started=$SECONDS
root=$PWD
package=$root/zeek

fail() {
    echo "zeek: FAILED: $*" >&2
    exit 1
}

# Python programs from PyPI, or none.
python_tool() { # COMMAND PACKAGE
    command -v "$1" >/dev/null && return 0
    if ! [ -x "$work/venv/bin/$1" ]; then
        { [ -d "$work/venv" ] || python3 -m venv "$work/venv"; } >/dev/null 2>&1 &&
            "$work/venv/bin/pip" install -q --disable-pip-version-check "$2" >"$work/pip.txt" 2>&1 || return 1
    fi
    export PATH=$PATH:$work/venv/bin
    command -v "$1" >/dev/null
}

check_layout() {
    local name version listed
    for name in CHANGES CMakeLists.txt COPYING README.md VERSION configure zkg.meta scripts/__load__.zeek scripts/__preload__.zeek \
        scripts/TrafficLLM/__load__.zeek src/trafficllm.bif tests/btest.cfg; do
        [ -s "$package/$name" ] || fail "zeek/$name is missing or empty"
    done
    version=$(cat "$package/VERSION")
    grep -qE '^[0-9]+\.[0-9]+\.[0-9]+$' <<<"$version" || fail "zeek/VERSION is no version: $version"
    grep -q "^$version | " <(head -1 "$package/CHANGES") || fail "zeek/CHANGES does not begin with $version"
    grep -q '^    libtrafficllm >=' "$package/zkg.meta" || fail "zeek/zkg.meta does not name the library"
    python3 - "$package/zkg.meta" <<'PYTHON' || fail "zeek/zkg.meta"
import configparser, sys
meta = configparser.ConfigParser(interpolation=None)
meta.read(sys.argv[1])
for key in ("description", "tags", "plugin_dir", "build_command", "test_command", "depends", "external_depends"):
    assert meta["package"][key].strip(), key
PYTHON
    # What is compiled and installed is what is there.
    listed=$(grep -oE '(src|scripts)/[A-Za-z_/-]+\.(cc|bif|zeek)' "$package/CMakeLists.txt" | sort)
    [ "$listed" = "$(cd "$package" && find src scripts -name '*.cc' -o -name '*.bif' -o -name '*.zeek' | sort)" ] ||
        fail "zeek/CMakeLists.txt does not list what is in zeek/src and zeek/scripts"
    # The plugin sees the library's headers, and nothing else of the project.
    ! grep -rnE '#include "(\.\./|ffi/|runtime/)' "$package/src" >&2 || fail "zeek/src reaches out of its folder"
    # What the plugin calls is forwarded.
    while read -r name; do
        grep -q "FORWARD .*tllm_$name(" "$package/src/Library.cc" || fail "zeek/src/Library.cc does not forward tllm_$name"
    done < <(sed -n 's/^ *ENTRY(\([a-z_]*\)).*/\1/p' "$package/src/Library.cc")
}

check_scripts() {
    local script
    if ! python_tool zeek-script zeekscript; then
        syntax="syntax of scripts NOT CHECKED: no zeek-script, and PyPI has none for us"
        return
    fi
    for script in "$package"/scripts/*.zeek "$package"/scripts/*/*.zeek "$package"/tests/*/*.zeek; do
        zeek-script parse "$script" >"$work/parse.txt" 2>&1 || fail "$script: $(tail -5 "$work/parse.txt")"
        ! grep -q 'ERROR\|MISSING' "$work/parse.txt" || fail "$script: $(grep -m 3 'ERROR\|MISSING' "$work/parse.txt")"
        scripts=$((scripts + 1))
    done
    syntax="$scripts scripts parsed"
}

# The library and a file for pkg-config, as an installation has them.
stage_library() {
    local target=${CARGO_TARGET_DIR:-$root/target}
    abi=$(sed -n 's/^#define TLLM_ABI_VERSION \([0-9]*\)$/\1/p' include/trafficllm.h)
    cargo build -q --release --locked -p trafficllm-ffi -p trafficllm
    command=$target/release/trafficllm
    mkdir -p "$work/prefix/lib/pkgconfig"
    cp "$target/release/libtrafficllm_ffi.so" "$work/prefix/lib/libtrafficllm.so.$abi"
    cat >"$work/prefix/lib/pkgconfig/trafficllm.pc" <<CONFIG
libdir=$work/prefix/lib
Name: libtrafficllm
Description: built in place
Version: 0.1.0
Libs: -L$work/prefix/lib -ltrafficllm
Cflags: -I$root/include
CONFIG
    export PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig
    host_free=(-std=c++20 -Wall -Wextra -Wpedantic -Wshadow -Werror "-DTRAFFICLLM_ABI=\"$abi\"" -I include -I "$package/src" "$package/tests/unit/feed.cc"
        "$package"/src/{Detector,Feed,Helper,Library,Transport}.cc -pthread -ldl)
}

# What needs no Zeek: compiled with both compilers against the C header, and run, with the sanitizers too.
check_host_free() {
    local way
    g++ -O2 "${host_free[@]}" -o "$work/feed-gcc"
    clang++ -O2 "${host_free[@]}" -o "$work/feed-clang"
    g++ -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined "${host_free[@]}" -o "$work/feed-asan"
    for way in gcc clang asan; do
        LD_LIBRARY_PATH=$work/prefix/lib "$work/feed-$way" >"$work/found.txt" 2>&1 || fail "feed-$way: $(tail -20 "$work/found.txt")"
    done

    # And with a library that has defects.
    "$package/tests/Scripts/faulty_library.sh" "libtrafficllm.so.$abi" include "$work/faulty"
    for way in gcc clang asan; do
        FAULTY_LIBRARY=$work/prefix/lib/libtrafficllm.so.$abi FAULTY_SESSION=3 FAULTY_STOP=1 LD_LIBRARY_PATH=$work/faulty \
            "$work/feed-$way" defects >"$work/found.txt" 2>&1 || fail "feed-$way with defects: $(tail -20 "$work/found.txt")"
    done
    # The functions that are forwarded stay inside.
    ! nm -D --defined-only "$work/feed-gcc" | grep -q ' tllm_' || fail "forwarded functions are visible"
}

find_zeek() {
    [ -z "${ZEEK_ROOT:-}" ] || export PATH=$ZEEK_ROOT/bin:$PATH
    command -v zeek-config >/dev/null && command -v zeek >/dev/null
}

build_plugin() { # FOLDER CMAKE-ARGUMENT...
    local folder=$1
    shift
    mkdir -p "$folder"
    cp -r "$package"/. "$folder"
    rm -rf "$folder/build"
    (cd "$folder" && ./configure "$@" && cmake --build build -j "$(nproc)") >"$work/build.txt" 2>&1 || fail "the plugin does not build: $(tail -40 "$work/build.txt")"
    ! grep -i 'warning:' "$work/build.txt" >&2 || fail "the plugin builds with warnings"
}

run_btests() {
    python_tool btest btest || fail "there is a Zeek, and no btest, and PyPI has none for us"
    export TRAFFICLLM_HEAD=$PWD/plugins/examples/modules/fusion.wasm
    (cd "$work/package/tests" && btest -j "$(nproc)" -d) >"$work/btest.txt" 2>&1 || fail "btest: $(tail -60 "$work/btest.txt")"
    btests=$(sed -n 's/^all \([0-9]*\) tests successful$/\1/p' "$work/btest.txt")
    [ -n "$btests" ] || fail "btest: $(tail -5 "$work/btest.txt")"
}

# The same verdicts as the command's.
compare_verdicts() {
    local file capture folder kind
    for kind in mixed long reversed; do
        "$package/tests/Scripts/make_capture.py" $kind 300 "$work/$kind.pcap"
    done
    for file in tests/captures/*.pcap tests/captures/*.pcapng tests/captures/*.pcap.gz "$work"/{mixed,long,reversed}.pcap; do
        capture=$(readlink -f "$file")
        folder=$work/compare/$(basename "$file")
        mkdir -p "$folder"
        case $file in *.gz) gzip -dc "$capture" >"$folder/in.pcap" && capture=$folder/in.pcap ;; esac
        "$command" detect --format json "$capture" >"$folder/detect.json" 2>/dev/null
        (cd "$folder" && ZEEK_PLUGIN_PATH=$plugin zeek -C -r "$capture" "$package/tests/Scripts/dump.zeek") >"$folder/zeek.txt" 2>&1 ||
            fail "zeek on $file: $(tail "$folder/zeek.txt")"
        "$package/tests/Scripts/compare.py" "$folder/detect.json" "$folder/verdicts.txt" >"$folder/compared.txt" ||
            fail "$file: the verdicts are not those of the command: $(cat "$folder/compared.txt")"
        captures=$((captures + 1))
        verdicts=$((verdicts + $(grep -oE '[0-9]+ verdicts' "$folder/compared.txt" | cut -d' ' -f1)))
    done
}

# Packets of an interface, in a network of its own: nobody waits for verdicts, and all come of what Zeek was given.
check_interface() {
    local apart=(unshare -n) found
    "${apart[@]}" true 2>/dev/null || apart=(unshare -rn)
    if ! "${apart[@]}" ip link add tllm0 type veth peer name tllm1 2>/dev/null; then
        interface="an interface NOT TRIED: we may make no network"
        return
    fi
    "$package/tests/Scripts/make_capture.py" mixed 600 "$work/interface.pcap" 4
    mkdir -p "$work/interface"
    found=$(cd "$work/interface" && ZEEK_PLUGIN_PATH=$plugin "${apart[@]}" "$package/tests/Scripts/interface.sh" "$work/interface.pcap" 2>"$work/interface.txt") ||
        fail "zeek on an interface: $(tail -20 "$work/interface.txt")"
    [[ $found =~ ^([0-9]+)\ connections,\ ([0-9]+)\ judged,\ some\ while\ packets\ came:\ T,\ 0\ not\ judged$'\n'([0-9]+)\ sent,\ ([0-9]+)\ received,\ ([0-9]+)\ dropped$ ]] ||
        fail "on an interface: $found"
    [ "${BASH_REMATCH[1]}" = "${BASH_REMATCH[2]}" ] || fail "on an interface: $found"
    # What the system dropped is not the plugin's: connections may be missing then, and only then.
    if [ "${BASH_REMATCH[5]}" = 0 ]; then
        [ "${BASH_REMATCH[1]}" = 600 ] && [ "${BASH_REMATCH[4]}" -ge "${BASH_REMATCH[3]}" ] || fail "on an interface: $found"
    else
        [ "${BASH_REMATCH[1]}" -gt 0 ] && [ "${BASH_REMATCH[1]}" -le 600 ] || fail "on an interface: $found"
        echo "zeek: the system dropped ${BASH_REMATCH[5]} of ${BASH_REMATCH[3]} packets of the interface" >&2
    fi
    interface="${BASH_REMATCH[1]} connections on an interface judged"
}

# Under AddressSanitizer and its look for leaks. Zeek leaves things behind itself at its end, the same number however many connections there
# were: so what counts is that three times as many connections leave no more behind, and that nothing was used after it was freed.
check_leaks() {
    local count left=() connections=${TLLM_ZEEK_CONNECTIONS:-3000}
    build_plugin "$work/asan" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS="-fsanitize=address -fno-omit-frame-pointer"
    for count in $((connections / 3)) "$connections"; do
        "$package/tests/Scripts/make_capture.py" mixed "$count" "$work/leaks.pcap"
        mkdir -p "$work/leaks-$count"
        (
            cd "$work/leaks-$count"
            # The sanitizer takes the place of dlopen(3), which then does not know where the plugin looks.
            LD_LIBRARY_PATH=$work/prefix/lib LD_PRELOAD=$(gcc -print-file-name=libasan.so) ZEEK_PLUGIN_PATH=$work/asan/build \
                ASAN_OPTIONS=detect_odr_violation=0:exitcode=0:symbolize=0 zeek -C -r "$work/leaks.pcap" TrafficLLM TrafficLLM::trace_wait=0sec \
                TrafficLLM::shutdown_wait=60sec 'TrafficLLM::settings+={"engine.queue_flows=65536"}' >zeek.txt 2>&1
        ) || fail "zeek under AddressSanitizer: $(tail -20 "$work/leaks-$count/zeek.txt")"
        ! grep -E 'ERROR: AddressSanitizer|runtime error' "$work/leaks-$count/zeek.txt" >&2 || fail "AddressSanitizer, $work/leaks-$count/zeek.txt"
        # Zeek itself always leaves some: without them nobody has looked.
        grep -q '^SUMMARY: AddressSanitizer: .* leaked in' "$work/leaks-$count/zeek.txt" || fail "no leak check: $(tail -5 "$work/leaks-$count/zeek.txt")"
        left+=("$(sed -n 's/^SUMMARY: AddressSanitizer: .* leaked in \([0-9]*\) allocation(s)\.$/\1/p' "$work/leaks-$count/zeek.txt")")
        judged=$(zeek-cut uid <"$work/leaks-$count/trafficllm.log" | sort -u | wc -l)
        [ "$judged" = "$count" ] || fail "of $count connections $judged were judged"
    done
    # A leak in every hundredth connection would be seen.
    [ $((${left[1]:-0} - ${left[0]:-0})) -lt $((connections / 150 + 100)) ] ||
        fail "$((connections / 3)) connections leave ${left[0]} allocations behind, $connections ${left[1]}"
    leaks="$connections connections leave ${left[1]:-0} allocations behind, a third of them ${left[0]:-0}"
}

measure_cost() {
    "$package/tests/Scripts/make_capture.py" mixed "${TLLM_ZEEK_COST_CONNECTIONS:-10000}" "$work/cost.pcap"
    ZEEK_PLUGIN_PATH=$plugin "$package/tests/Scripts/cost.py" "$work/cost.pcap" "${TLLM_ZEEK_ROUNDS:-1}" | tee "$work/cost.txt"
}

[ "$(uname -s)" = Linux ] || fail "this needs Linux"
work=${TLLM_WORK:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
trap '[ -n "${TLLM_WORK:-}" ] || rm -rf "$work"' EXIT
scripts=0 captures=0 verdicts=0 btests=0 abi="" leaks="" syntax="" interface=""

if [ -n "${TLLM_ZEEK_ONLY:-}" ]; then
    stage_library
    find_zeek || fail "no zeek-config on the PATH, and ZEEK_ROOT is not set"
    unset ZEEK_PLUGIN_PATH
    case $TLLM_ZEEK_ONLY in
    leaks) check_leaks ;;
    cost)
        build_plugin "$work/package"
        plugin=$work/package/build
        measure_cost
        ;;
    *) fail "TLLM_ZEEK_ONLY is leaks or cost, not $TLLM_ZEEK_ONLY" ;;
    esac
    echo "zeek: passed in $((SECONDS - started)) s: only $TLLM_ZEEK_ONLY: ${leaks:-see above}"
    exit 0
fi

check_layout
check_scripts
stage_library
check_host_free
always="layout, $syntax, the part without Zeek with gcc, clang and sanitizers"

if ! find_zeek; then
    [ -z "${TLLM_REQUIRE_ZEEK:-}" ] || fail "no zeek-config on the PATH, and ZEEK_ROOT is not set"
    echo "zeek: passed in $((SECONDS - started)) s: $always"
    echo "zeek: SKIPPED: everything in a real Zeek: no zeek-config on the PATH, and ZEEK_ROOT is not set"
    exit 0
fi

build_plugin "$work/package"
plugin=$work/package/build
unset ZEEK_PLUGIN_PATH
run_btests
compare_verdicts
check_interface
check_leaks
measure_cost
echo "zeek: passed in $((SECONDS - started)) s: $always; in $(zeek --version): $btests btests, $verdicts verdicts on $captures captures as the command's, $interface, $leaks"
