#!/usr/bin/env python3
# See the file "COPYING" in the main distribution directory for copyright.
"""Writes the scripts that stand in the README to 1.zeek, 2.zeek, ...: readme_scripts.py README.md"""

import re
import sys

scripts = re.findall(r"^```zeek\n(.*?)^```$", open(sys.argv[1]).read(), re.DOTALL | re.MULTILINE)
for number, script in enumerate(scripts, 1):
    open(f"{number}.zeek", "w").write(script)
print(len(scripts), "scripts")
