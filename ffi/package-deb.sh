#!/usr/bin/env bash
# Makes the Debian packages libtrafficllm0, libtrafficllm-dev and trafficllm in the folder OUT.
#
#   ffi/package-deb.sh OUT [STAGED [COMMAND]]
#
# STAGED is what `cargo cinstall -p trafficllm-ffi --release --prefix /usr --libdir /usr/lib/MULTIARCH --destdir STAGED` installed, COMMAND the
# program `trafficllm`; what is not given is built. The same sources, compiler and SOURCE_DATE_EPOCH (unless set: the time of the last
# commit), built in folders of the same names, give the same bytes.
#   DEB_MAINTAINER="NAME <ADDRESS>"   who stands in the packages
#
# Needs cargo-c and Debian's dpkg-dev and binutils.
set -euo pipefail
umask 022
export LC_ALL=C

out=$(mkdir -p "${1:?usage: ffi/package-deb.sh OUT [STAGED [COMMAND]]}" && cd "$1" && pwd)
staged=${2:+$(cd "$2" && pwd)}
command=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."

top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
work=$top/debian # one folder per package, as dpkg-shlibdeps knows them
mkdir "$work"
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)
architecture=$(dpkg --print-architecture)
if [ -z "$staged" ]; then
    staged=$top/staged
    cargo cinstall -p trafficllm-ffi --release --locked --prefix /usr --libdir "/usr/lib/$multiarch" --destdir "$staged"
fi
if [ -z "$command" ]; then
    cargo build --release --locked -p trafficllm
    command=${CARGO_TARGET_DIR:-target}/release/trafficllm
fi
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
date=$(date -u -R -d "@$SOURCE_DATE_EPOCH")
maintainer=${DEB_MAINTAINER:-libtrafficllm developers <maintainers@libtrafficllm.invalid>}
homepage=$(sed -n 's/^repository = "\(.*\)"/\1/p' Cargo.toml)
# A pre-release sorts before its release.
version=$(cargo pkgid -p trafficllm-ffi | sed 's/.*[#@]//; s/-/~/')
library=$(basename "$staged/usr/lib/$multiarch"/libtrafficllm.so.*.*.*)
soname=$(objdump -p "$staged/usr/lib/$multiarch/$library" | sed -n 's/^ *SONAME *//p')
package=libtrafficllm${soname##*.so.}
if [ "$soname" != "libtrafficllm.so.${package#libtrafficllm}" ]; then
    echo "package-deb: expected a soname libtrafficllm.so.NUMBER, found '$soname'" >&2
    exit 1
fi

# The crates that are compiled in, with their licences.
crates() { # CRATE
    cargo tree --locked -p "$1" -e normal,no-proc-macro --prefix none --no-dedupe --format '{p}|{l}' | grep -v '^trafficllm' |
        sed -E 's/ \(.*\)\|/|/; s/\|/: /; s/^/  /' | sort -u
}

documentation() { # PACKAGE CRATE: copyright and changelog, and the folder for what the package says of itself
    local folder=$work/$1/usr/share/doc/$1
    mkdir -p "$folder" "$work/$1/DEBIAN"
    {
        printf '%s\n' "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/" "Upstream-Name: libtrafficllm" "Source: $homepage" \
            "Comment:" " Crates that are compiled in, and the licences they name:"
        crates "$2"
        echo "  the standard library of Rust: MIT OR Apache-2.0"
        printf '%s\n' "" "Files: *" "Copyright: $(sed -n 's/^Copyright (c) //p' LICENSE-MIT)" "License: Expat or Apache-2.0" "" "License: Expat"
        sed '/^Copyright/d; 1,2{/^$/d}; s/^$/./; s/^/ /' LICENSE-MIT
        printf '%s\n' "" "License: Apache-2.0" " On Debian systems the text of this licence is in /usr/share/common-licenses/Apache-2.0."
    } >"$folder/copyright"
    printf 'trafficllm (%s) unstable; urgency=medium\n\n  * Made from the project'\''s sources: see %s/blob/main/CHANGELOG.md\n\n -- %s  %s\n' \
        "$version" "$homepage" "$maintainer" "$date" | gzip -9n >"$folder/changelog.gz"
}

shared_library_depends() { # FILE: what it needs of other packages
    printf 'Source: trafficllm\n\nPackage: any\nArchitecture: any\n' >"$work/control"
    (cd "$top" && dpkg-shlibdeps -O "$1" | sed -n 's/^shlibs:Depends=//p')
}

build() { # PACKAGE SECTION DEPENDS SUMMARY TEXT [MORE FIELDS]
    local root=$work/$1 size
    size=$(find "$root" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
    {
        printf '%s\n' "Package: $1" "Source: trafficllm" "Version: $version" "Architecture: $architecture" "Maintainer: $maintainer" \
            "Installed-Size: $size" "Depends: $3" "Section: $2" "Priority: optional" "Homepage: $homepage"
        [ -z "${6:-}" ] || printf '%s\n' "$6"
        printf 'Description: %s\n %s\n' "$4" "$5"
    } >"$root/DEBIAN/control"
    (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    find "$root" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$root" "$out/${1}_${version}_$architecture.deb" >/dev/null
    echo "$out/${1}_${version}_$architecture.deb"
}

# The library.
folder=usr/lib/$multiarch
install -D -m 644 "$staged/$folder/$library" "$work/$package/$folder/$library"
strip --strip-unneeded --remove-section=.comment "$work/$package/$folder/$library"
ln -s "$library" "$work/$package/$folder/$soname"
documentation "$package" trafficllm-ffi
echo "libtrafficllm ${soname##*.so.} $package (>= $version)" >"$work/$package/DEBIAN/shlibs"
echo "activate-noawait ldconfig" >"$work/$package/DEBIAN/triggers"
depends=$(shared_library_depends "$work/$package/$folder/$library")
build "$package" libs "$depends" "traffic classifier, shared library" \
    "Verdicts of a small language model on network flows, for programs that have the packets: the library with its model." \
    "Multi-Arch: same"

# What programs are compiled with.
dev=$work/libtrafficllm-dev
for file in usr/include/trafficllm.h usr/include/trafficllm.hpp "$folder/libtrafficllm.a" "$folder/pkgconfig/trafficllm.pc" \
    usr/share/cmake/trafficllm/trafficllm-config.cmake usr/share/cmake/trafficllm/trafficllm-config-version.cmake; do
    install -D -m 644 "$staged/$file" "$dev/$file"
done
strip --strip-debug --enable-deterministic-archives "$dev/$folder/libtrafficllm.a"
ln -s "$library" "$dev/$folder/libtrafficllm.so"
documentation libtrafficllm-dev trafficllm-ffi
install -D -m 644 -t "$dev/usr/share/doc/libtrafficllm-dev/examples" ffi/examples/*
build libtrafficllm-dev libdevel "$package (= $version), libc6-dev" "traffic classifier, headers and static library" \
    "The C header, the C++17 classes over it, the static library, and files for pkg-config and CMake."

# The command.
install -D -m 755 "$command" "$work/trafficllm/usr/bin/trafficllm"
strip --strip-unneeded --remove-section=.comment "$work/trafficllm/usr/bin/trafficllm"
mkdir -p "$work/trafficllm/usr/share/man/man1"
{
    printf '.TH TRAFFICLLM 1 "%s" "trafficllm %s"\n.SH NAME\ntrafficllm \\- verdicts of a language model on network flows\n' \
        "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)" "$version"
    for arguments in "" detect "model info" "model verify"; do
        printf '.SH "TRAFFICLLM%s"\n.nf\n' "${arguments:+ ${arguments^^}}"
        # shellcheck disable=SC2086 # a subcommand can be two words
        "$command" $arguments --help | sed 's/\\/\\e/g; s/-/\\-/g; s/^\([.'\'']\)/\\\&\1/'
        printf '.fi\n'
    done
} | gzip -9n >"$work/trafficllm/usr/share/man/man1/trafficllm.1.gz"
documentation trafficllm trafficllm
depends=$(shared_library_depends "$work/trafficllm/usr/bin/trafficllm")
build trafficllm net "$depends" "traffic classifier for captures" \
    "Reads captures and gives every network flow the verdicts of a small language model that is compiled in: no network, no GPU."
