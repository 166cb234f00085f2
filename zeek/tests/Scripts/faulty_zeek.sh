#!/bin/sh
# Zeek with the library of ../unit/faulty.c in the place of the real one. Defects are ordered by the environment.
name=$(library_name.sh)
folder=$PWD/faulty
[ -e "$folder/$name" ] || faulty_library.sh "$name" "$(cat "$ZEEK_PLUGIN_PATH/header_dir")" "$folder" || exit 1
FAULTY_LIBRARY=$(cat "$ZEEK_PLUGIN_PATH/library_dir")/$name LD_LIBRARY_PATH=$folder exec zeek "$@"
