#!/usr/bin/env bash
# Installs the C library as a packager would, and uses it as its users do: the linker's facts about it, every example through pkg-config and
# CMake, shared and static, with gcc and clang, the C++ classes, the Debian packages; what they print is held to what the command prints.
#
# Needs Linux with glibc. cargo-c and, as root on Debian, system packages are installed where they are missing; Debian packages are tried
# by installing and removing them if run as root, else only by unpacking them.
#   TLLM_CARGO_C=FOLDER   where cargo-c is kept (~/.cache/trafficllm-cargo-c-VERSION)
#   TLLM_WORK=FOLDER      where everything is put, and left for a look; else it is temporary
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
started=$SECONDS
root=$PWD

# Of the versions that build with this project's compiler.
cargo_c_version=0.10.24
cargo_c=${TLLM_CARGO_C:-${XDG_CACHE_HOME:-$HOME/.cache}/trafficllm-cargo-c-$cargo_c_version}

fail() {
    echo "packaging: FAILED: $*" >&2
    exit 1
}

same() { # WHAT EXPECTED FOUND: two texts
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
}

install_tools() {
    local need missing=()
    for need in gcc:gcc g++:g++ clang:clang cmake:cmake make:make pkg-config:pkg-config objdump:binutils dpkg-shlibdeps:dpkg-dev xz:xz-utils; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    [ -e /usr/include/pcap/pcap.h ] || missing+=(libpcap-dev)
    if ! [ -x "$cargo_c/bin/cargo-cinstall" ]; then
        # What cargo-c is built with.
        [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            fail "not installed, and not root on Debian to install them: ${missing[*]}"
        fi
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 || fail "these packages did not install: ${missing[*]}"
    fi
    if ! [ -x "$cargo_c/bin/cargo-cinstall" ]; then
        echo "packaging: building cargo-c $cargo_c_version, once" >&2
        # Without optimisation, and in a folder of its own: it is not this project's code, and runs for a second.
        CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=symbols CARGO_TARGET_DIR="$cargo_c/build" cargo install cargo-c \
            --bin cargo-cinstall --version "=$cargo_c_version" --locked --debug --quiet --root "$cargo_c" || fail "cargo-c cannot be built"
        rm -rf "$cargo_c/build"
    fi
    export PATH=$cargo_c/bin:$PATH
}

# What the linker sees, and the promises of ffi/abi/README.md.
check_library() {
    local library=$1 abi header soname dynamic segments numbers
    abi=$(sed -n 's/^#define TLLM_ABI_VERSION \([0-9]*\)$/\1/p' include/trafficllm.h)
    dynamic=$(readelf -dW "$library")
    soname=$(sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p' <<<"$dynamic")
    same "soname, by TLLM_ABI_VERSION" "libtrafficllm.so.$abi" "$soname"
    [ "$(readlink -f "$libraries/$soname")" = "$library" ] || fail "$soname does not lead to $library"
    grep -q NODELETE <<<"$dynamic" || fail "the library is not linked with -z nodelete"
    grep -q BIND_NOW <<<"$dynamic" || fail "the library is not linked with -z now"
    ! grep -qE 'TEXTREL|R(UN)?PATH' <<<"$dynamic" || fail "the library has text relocations or a run path"
    segments=$(readelf -lW "$library")
    grep -q GNU_RELRO <<<"$segments" || fail "the library is not linked with -z relro"
    grep -q 'GNU_STACK .* RW ' <<<"$segments" || fail "the library asks for an executable stack"
    nm -D --defined-only "$library" | awk '{ print $3 }' | sort >"$work/symbols.txt"
    diff ffi/abi/symbols.txt "$work/symbols.txt" >&2 ||
        fail "the library exports something else than ffi/abi/symbols.txt; see ffi/abi/README.md, and change the list by hand"
    functions=$(wc -l <"$work/symbols.txt")
    [ "$functions" -lt 64 ] || fail "$functions exported functions: 63 at most"
    ! grep -vq '^tllm_' "$work/symbols.txt" || fail "exported symbols without the prefix tllm_"
    grep -oE '\btllm_[a-z0-9_]+\(' include/trafficllm.h | tr -d '(' | sort -u >"$work/declared.txt"
    [ -z "$(comm -23 "$work/symbols.txt" "$work/declared.txt")" ] || fail "exported and not in the header: $(comm -23 "$work/symbols.txt" "$work/declared.txt")"

    header=$(for part in MAJOR MINOR PATCH; do sed -n "s/^#define TLLM_VERSION_$part \([0-9]*\)$/\1/p" include/trafficllm.h; done | paste -sd.)
    same "version in the header, by Cargo.toml" "$(cargo pkgid -p trafficllm-ffi | sed 's/.*[#@]//; s/-.*//')" "$header"
    same "version by pkg-config" "$header" "$(trafficllm_config --modversion trafficllm)"
    diff -r include "$staged/usr/include" >&2 || fail "the installed headers are not the committed ones"
    numbers=$(sed -n 's/^Libs.private: //p' "$libraries/pkgconfig/trafficllm.pc" | tr ' ' '\n' | sort -u)
    same "what the static library needs (ffi/abi/native-static-libs.txt)" "$(cat ffi/abi/native-static-libs.txt)" "$numbers"
    same "what the static library needs, in CMake" "$(grep -v -- '^-lc$' ffi/abi/native-static-libs.txt)" \
        "$(sed -n 's/.*INTERFACE_LINK_LIBRARIES "\(.*\)").*/\1/p' ffi/cmake/trafficllm-config.cmake | tr ';' '\n' | sed 's/^/-l/' | sort)"
    # The oldest C library that it runs on: Debian 12's is 2.36.
    glibc=$(objdump -T "$library" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
}

trafficllm_config() { # pkg-config, where the library was installed under another root
    PKG_CONFIG_PATH=$libraries/pkgconfig pkg-config --define-variable=prefix="$staged/usr" "$@"
}

# Each example in its ways, all warnings on.
build_examples() {
    local warnings="-O1 -Wall -Wextra -Wpedantic -Werror" way options
    export PKG_CONFIG_PATH=$libraries/pkgconfig
    # The Makefile builds where it stands.
    for way in shared static clang; do
        mkdir -p "$work/$way"
        cp -r ffi/examples/. "$work/$way"
        case $way in
        shared) options=() ;;
        static) options=(STATIC=1) ;;
        clang) options=(CC=clang CXX=clang++) ;;
        esac
        make --silent -C "$work/$way" "PKG_CONFIG=pkg-config --define-variable=prefix=$staged/usr" CFLAGS="$warnings" CXXFLAGS="$warnings" "${options[@]}"
    done
    for way in OFF ON; do
        cmake -S ffi/examples -B "$work/cmake-$way" -DCMAKE_PREFIX_PATH="$staged/usr" -DTLLM_STATIC=$way -DCMAKE_BUILD_TYPE=Release \
            -DCMAKE_C_FLAGS="-Wall -Wextra -Wpedantic -Werror" >"$work/cmake.log" 2>&1 || fail "cmake: $(tail -20 "$work/cmake.log")"
        cmake --build "$work/cmake-$way" >"$work/cmake.log" 2>&1 || fail "cmake: $(tail -20 "$work/cmake.log")"
    done
    unset PKG_CONFIG_PATH
    # A whole static program: gcc has its own unwinder for that.
    mkdir -p "$work/whole"
    # shellcheck disable=SC2046 # words
    gcc -std=c11 -static ffi/examples/capture.c -o "$work/whole/capture" $(trafficllm_config --cflags trafficllm) \
        $(trafficllm_config --static --libs trafficllm | sed 's/-lgcc_s//')
    grep -q 'libtrafficllm\.so\.' <<<"$(ldd "$work/shared/capture")" || fail "the example was not linked with the shared library"
    grep -q 'libtrafficllm\.so\.' <<<"$(ldd "$work/cmake-OFF/capture")" || fail "CMake's example was not linked with the shared library"
    ! grep -q libtrafficllm <<<"$(ldd "$work/static/capture")" || fail "the example was not linked with the static library"
    ! grep -q libtrafficllm <<<"$(ldd "$work/cmake-ON/capture")" || fail "CMake's example was not linked with the static library"
    # A version that this is not.
    echo 'cmake_minimum_required(VERSION 3.13)
project(refused C)
find_package(trafficllm 99.0 REQUIRED)' >"$work/whole/CMakeLists.txt"
    ! cmake -S "$work/whole" -B "$work/whole/build" -DCMAKE_PREFIX_PATH="$staged/usr" >"$work/cmake.log" 2>&1 || fail "CMake took this for version 99"
    grep -q 'version: ' "$work/cmake.log" || fail "CMake did not refuse version 99 for its number: $(cat "$work/cmake.log")"
}

# "tcp SRC SPORT DST DPORT VERDICTS" of the command's objects on standard input, sorted.
flat() {
    sed -E 's/.*"proto":"([a-z0-9]+)","src":"([^"]*)","sport":([0-9]+),"dst":"([^"]*)","dport":([0-9]+),.*"verdicts":(.*)\}$/\1 \2 \3 \4 \5 \6/' | sort
}

# Of those, a line per task, as live.c prints them.
by_task() {
    awk '{
        flow = $1 " " $2 " " $3 " " $4 " " $5; rest = $0
        while (match(rest, /"task":"[^"]*","label":"[^"]*","score":[0-9.]*,"abstained":(true|false)/)) {
            split(substr(rest, RSTART, RLENGTH), part, /"[,:]*"?/)
            abstained = substr(rest, RSTART, RLENGTH) ~ /true$/ ? "?" : ""
            score = part[7]; gsub(/[^0-9.]/, "", score)
            print flow, part[3], part[5] abstained, score
            rest = substr(rest, RSTART + RLENGTH)
        }
    }' | sort
}

compare() { # WHAT FILE FILE
    diff "$2" "$3" >"$work/difference.txt" || fail "$1: $(head -c 2000 "$work/difference.txt")"
}

# The same verdicts by the command, through C, and through C++, whichever way it was linked.
run_examples() {
    local way file name output swapped
    captures=0
    for file in tests/captures/*; do
        name=$(basename "$file")
        "$command" detect --format json "$file" >"$work/expected.json" 2>"$work/expected.txt"
        [ -s "$work/expected.json" ] || fail "the command says nothing on $file"
        for way in shared static clang cmake-OFF cmake-ON whole; do
            "$work/$way/capture" "$file" >"$work/found.json" 2>"$work/found.txt" || fail "$way/capture $file: $(cat "$work/found.txt")"
            compare "$way/capture $name" "$work/expected.json" "$work/found.json"
        done
        captures=$((captures + 1))
        case $name in *.pcap | *.pcapng) ;; *) continue ;; esac
        flat <"$work/expected.json" >"$work/expected.flat"
        for way in shared static clang cmake-OFF cmake-ON; do
            for output in classify classify-cpp; do
                "$work/$way/$output" "$file" 2>"$work/found.txt" | sort >"$work/found.flat" || fail "$way/$output $file: $(cat "$work/found.txt")"
                compare "$way/$output $name" "$work/expected.flat" "$work/found.flat"
            done
        done
        # Here no flow has a second of silence, so that all of it is judged.
        [ "$name" != http.pcap ] || by_task <"$work/expected.flat" >"$work/http.tasks"
    done
    [ -s "$work/http.tasks" ] || fail "no verdicts to compare live with"
    for way in shared static clang cmake-OFF cmake-ON; do
        "$work/$way/live" tests/captures/http.pcap 2>"$work/found.txt" | sort >"$work/found.tasks" || fail "$way/live: $(cat "$work/found.txt")"
        compare "$way/live" "$work/http.tasks" "$work/found.tasks"
    done
    for way in shared static; do
        swapped=$("$work/$way/swap" runtime/bundle/default.tllm runtime/bundle/default.tllm 4 2>&1) || fail "$way/swap: $swapped"
        grep -q '; 4 swaps, 1 refused$' <<<"$swapped" || fail "$way/swap: $swapped"
        grep -q '^model 5: [1-9]' <<<"$swapped" || fail "$way/swap: $swapped"
    done
    run_live
    # What goes wrong is said, with a status.
    for name in capture classify classify-cpp live; do
        ! "$work/shared/$name" /nonexistent.pcap >"$work/found.txt" 2>&1 || fail "$name: no status for a file that is not there"
        grep -q nonexistent "$work/found.txt" || fail "$name: no text for a file that is not there"
    done
    ! "$work/shared/classify" tests/captures/http.pcap /dev/null >"$work/found.txt" 2>&1 || fail "classify: no status for a broken bundle"
    grep -q 'classify: model: .' "$work/found.txt" || fail "classify: no text for a broken bundle"
}

# The live example on the loopback interface, where it may be opened: a datagram, and then silence, in which it is judged.
run_live() {
    local process
    interface="not on an interface: not root"
    [ "$(id -u)" = 0 ] || return 0
    "$work/shared/live" -i lo 20 >"$work/live.txt" 2>&1 &
    process=$!
    for _ in $(seq 100); do
        sleep 0.1
        if ! kill -0 $process 2>/dev/null; then
            grep -qi 'permi' "$work/live.txt" || fail "live -i lo: $(cat "$work/live.txt")"
            interface="not on an interface: not allowed"
            return 0
        fi
        echo "a datagram" >/dev/udp/127.0.0.1/9
        ! grep -q '^udp 127.0.0.1 [0-9]* 127.0.0.1 9 botnet_detection ' "$work/live.txt" || break
    done
    kill -TERM $process
    wait $process || fail "live -i lo: $(tail -5 "$work/live.txt")"
    grep -q '^udp 127.0.0.1 [0-9]* 127.0.0.1 9 botnet_detection ' "$work/live.txt" || fail "live -i lo: $(tail -5 "$work/live.txt")"
    interface="live on lo"
}

# The C++ classes: as strict as compilers are, in two units of one program, and at work under the sanitizers.
check_wrapper() {
    local compiler standard flags="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wold-style-cast -Werror"
    for compiler in g++ clang++; do
        for standard in c++17 c++20; do
            # shellcheck disable=SC2086 # words
            $compiler -std=$standard $flags -fsyntax-only -include include/trafficllm.hpp -x c++ include/trafficllm.hpp 2>"$work/found.txt" ||
                fail "trafficllm.hpp, $compiler -std=$standard: $(head -20 "$work/found.txt")"
            $compiler -std=$standard -Wall -Wextra -Wpedantic -Werror -I include -fsyntax-only tests/packaging/wrapper.cpp 2>"$work/found.txt" ||
                fail "wrapper.cpp, $compiler -std=$standard: $(head -20 "$work/found.txt")"
        done
    done
    printf '#include <trafficllm.hpp>\n#ifdef CHECK\n#error leaked\n#endif\nint other() { return trafficllm::version()[0]; }\n' >"$work/other.cpp"
    # shellcheck disable=SC2046 # words
    g++ -std=c++17 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined tests/packaging/wrapper.cpp "$work/other.cpp" -o "$work/wrapper" \
        $(trafficllm_config --cflags --libs trafficllm) -pthread
    wrapper=$("$work/wrapper" tests/captures/http.pcap tests/captures/requests.jsonl runtime/bundle/default.tllm 2>&1) || fail "wrapper: $wrapper"
}

# The Debian packages: twice the same bytes, and used where they install.
check_packages() {
    local package
    ffi/package-deb.sh "$work/deb" "$staged" "$command" >"$work/packages.txt"
    ffi/package-deb.sh "$work/deb-again" "$staged" "$command" >/dev/null
    mapfile -t list <"$work/packages.txt"
    same "packages" 3 "${#list[@]}"
    for package in "${list[@]}"; do
        cmp "$package" "$work/deb-again/$(basename "$package")" || fail "$(basename "$package") is not the same when it is made again"
        ! grep -qv ' root/root ' <<<"$(dpkg-deb -c "$package")" || fail "$(basename "$package"): files of another owner than root"
    done
    packages=$(du -ck "${list[@]}" | tail -1 | cut -f1)
    if [ "$(id -u)" != 0 ]; then
        for package in "${list[@]}"; do dpkg-deb -x "$package" "$work/unpacked"; done
        "$work/unpacked/usr/bin/trafficllm" --version >/dev/null || fail "the packaged command does not run"
        tried="unpacked, not installed: not root"
        return
    fi
    # One at a time on a machine, and nobody's own installation is replaced.
    exec 9>/tmp/trafficllm-packaging.lock
    flock 9
    for package in "${list[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$(dpkg-deb -f "$package" Package)" 2>/dev/null)" != installed ] ||
            fail "$(dpkg-deb -f "$package" Package) is installed on this machine already; it is left alone"
    done
    installed=("$(dpkg-deb -f "${list[0]}" Package)" libtrafficllm-dev trafficllm)
    dpkg -i "${list[@]}" >"$work/dpkg.txt" 2>&1 || fail "dpkg -i: $(cat "$work/dpkg.txt")"
    (
        unset LD_LIBRARY_PATH
        cp -r /usr/share/doc/libtrafficllm-dev/examples "$work/installed"
        make --silent -C "$work/installed"
        grep -q 'libtrafficllm\.so\.[0-9]* => /\(usr/\)\?lib/' <<<"$(ldd "$work/installed/classify")" || fail "the example does not use the installed library"
        "$work/installed/classify" tests/captures/tls.pcapng | sort >"$work/found.flat"
        trafficllm detect --format json tests/captures/tls.pcapng 2>/dev/null | flat >"$work/expected.flat"
        [ -s "$work/expected.flat" ] || fail "the installed command says nothing"
        compare "the installed library and the installed command" "$work/expected.flat" "$work/found.flat"
        cmake -S "$work/installed" -B "$work/installed/build" >"$work/cmake.log" 2>&1 || fail "cmake: $(tail -20 "$work/cmake.log")"
        cmake --build "$work/installed/build" --target capture >"$work/cmake.log" 2>&1 || fail "cmake: $(tail -20 "$work/cmake.log")"
        "$work/installed/build/capture" tests/captures/tls.pcapng >/dev/null 2>&1 || fail "the example does not run with the installed library"
    )
    dpkg --purge "${installed[@]}" >/dev/null
    installed=()
    ! [ -e /usr/include/trafficllm.h ] || fail "the packages left something behind"
    tried="installed, used, removed"
}

installed=()
clean() {
    [ ${#installed[@]} = 0 ] || dpkg --purge "${installed[@]}" >/dev/null
    [ -n "${TLLM_WORK:-}" ] || rm -rf "$work"
}

[ "$(uname -s)" = Linux ] || fail "this needs Linux"
work=${TLLM_WORK:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
trap clean EXIT
install_tools

target=${CARGO_TARGET_DIR:-$root/target}
# In the same place each time: cargo-c builds everything again for another.
staged=$target/packaging
rm -rf "$staged"
multiarch=$(gcc -print-multiarch)
libraries=$staged/usr/lib/$multiarch
cargo cinstall -p trafficllm-ffi --release --locked --prefix /usr --libdir "/usr/lib/$multiarch" --destdir "$staged" >"$work/cinstall.txt" 2>&1 ||
    fail "cargo cinstall: $(tail -40 "$work/cinstall.txt")"
cargo build -q --release --locked -p trafficllm
command=$target/release/trafficllm
export LD_LIBRARY_PATH=$libraries

check_library "$(readlink -f "$libraries/libtrafficllm.so")"
build_examples
run_examples
check_wrapper
check_packages

echo "packaging: passed in $((SECONDS - started)) s: $functions functions, $(basename "$(readlink -f "$libraries/libtrafficllm.so")") for $glibc or later," \
    "5 examples in 6 ways alike on $captures files, $interface, ${wrapper#wrapper: }, packages of $packages KiB $tried"
