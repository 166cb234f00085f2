#!/bin/sh
# Makes the library of ../unit/faulty.c: faulty_library.sh NAME HEADER_DIR FOLDER
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$3"
sed -n 's/^ *ENTRY(\([a-z_]*\)).*/\1/p' "$here/../../src/Library.cc" |
    grep -vxE 'session_(poll|wait|in_flight|submit_last|free)|engine_stop' | sed 's/.*/FORWARD(&)/' >"$3/functions.inc"
# The header declares the functions as they are: here they are called otherwise.
sed -n '/^#define TLLM_/p' "$2/trafficllm.h" >"$3/trafficllm.h"
cc -std=gnu11 -O1 -Wall -Wno-builtin-declaration-mismatch -shared -fPIC -I "$3" -o "$3/$1" "$here/../unit/faulty.c" -ldl
