#!/usr/bin/env bash
# Makes a folder with Suricata and all that it needs to run, of Debian packages: nothing is installed, no chroot is needed.
#
#   suricata/tests/tree.sh FOLDER SUITE        then   FOLDER/run suricata -V
#
# SUITE is a suite of Debian that has Suricata 8.0: trixie-backports, forky. The packages come from the mirror that the machine's own apt
# uses (about 60 MiB to download, 200 MiB unpacked). A folder that is complete is left as it is; one that has files and was not made by
# this script is never touched. Status 3: the packages cannot be had.
set -euo pipefail

[ $# = 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=$2
mkdir -p "$(dirname "$1")"
goal=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")

cannot() { # WHY
    echo "tree.sh: $1" >&2
    exit 3
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
    "$program" -o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::parts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$folder/apt/state" -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt/cache" \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Install-Recommends=false -o APT::Sandbox::User= \
        -o Debug::NoLocking=true -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 -o Acquire::Languages=none "$@"
}

[ "$(cat "$goal/complete" 2>/dev/null)" != "$suite" ] || exit 0
if [ -e "$goal" ] || [ -L "$goal" ]; then
    if [ ! -d "$goal" ] || { [ ! -f "$goal/complete" ] || [ ! -x "$goal/run" ] || [ ! -d "$goal/root" ]; } && [ -n "$(ls -A "$goal")" ]; then
        echo "tree.sh: $goal is there, and was not made by this script: it is left as it is" >&2
        exit 2
    fi
fi
[ "$(uname -sm)" = "Linux x86_64" ] || cannot "this way needs Linux on x86-64, not $(uname -sm)"
command -v apt-get dpkg-deb >/dev/null || cannot "this way needs Debian's packages"
at=$(mirror) || cannot "no Debian mirror in /etc/apt"
# Beside its goal until it is whole: nobody sees a part of it.
folder=$(mktemp -d "$goal.XXXXXX")
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -p "$folder"/apt/{state/lists/partial,cache/archives/partial} "$folder/root"
: >"$folder/apt/status"
signed="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
echo "deb $signed $at ${suite%-backports} main" >"$folder/apt/sources.list"
[ "$suite" = "${suite%-backports}" ] || echo "deb $signed $at $suite main" >>"$folder/apt/sources.list"
apt_apart apt-get update -qq >&2 || cannot "no package lists of Debian's $suite"
apt_apart apt-get install -y -qq --download-only -t "$suite" suricata >&2 || cannot "Debian's $suite did not give Suricata"
for archive in "$folder"/apt/cache/archives/*.deb; do dpkg-deb -x "$archive" "$folder/root"; done
rm -rf "$folder/apt" "$folder/root/usr/share/doc" "$folder/root/usr/share/locale" "$folder/root/usr/share/man" "$folder/root/usr/share/perl"

# On its own C library: this machine's may be older.
cat >"$folder/run" <<'SCRIPT'
#!/bin/sh
root=$(cd "${0%/*}" && pwd)/root
program=$1
shift
libraries=$root/usr/lib/x86_64-linux-gnu
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries:$root/usr/lib" "$root/usr/bin/$program" "$@"
SCRIPT
chmod +x "$folder/run"
"$folder/run" suricata -V >&2 || cannot "Debian's Suricata does not run here"
echo "$suite" >"$folder/complete"
# A tree of another suite makes room.
[ ! -d "$goal" ] || rm -rf "$goal"
mv -T "$folder" "$goal"
