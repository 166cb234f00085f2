#!/usr/bin/env python3
# See the file "COPYING" in the main distribution directory for copyright.
"""Copies a plugin and spoils the path in which it looks for libtrafficllm: without_library.py PLUGIN TO"""

import pathlib
import shutil
import sys

source, target = map(pathlib.Path, sys.argv[1:])
for name in ("__zeek_plugin__", "lib", "scripts"):
    found = source / name
    (shutil.copytree if found.is_dir() else shutil.copy)(found, target / name)
library = next((target / "lib").glob("*.so"))
data = library.read_bytes()
path = next(line for line in (source / "library_dir").read_text().splitlines() if line).encode()
if path not in data:
    # It looks in the system's places, which cannot be spoiled.
    sys.exit(f"{library} has no path {path}")
library.write_bytes(data.replace(path, b"/nonexistent".ljust(len(path), b"/")))
