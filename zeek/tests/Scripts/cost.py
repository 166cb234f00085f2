#!/usr/bin/env python3
# See the file "COPYING" in the main distribution directory for copyright.
"""What the plugin costs Zeek: cost.py CAPTURE ROUNDS

Runs Zeek on the same capture without the plugin and with it in several ways, one after the other and again, and prints for each the
processor time of Zeek's own thread per packet, the packets per second that this allows, and the time on the clock. The model's threads have
their own time. A capture is read faster than packets come on an interface: with the queue of the default settings connections are shed.
Medians of the rounds; compare them with each other, not with those of another machine.
"""

import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
NO_WAIT = ["TrafficLLM::trace_wait=0sec", "TrafficLLM::shutdown_wait=0sec"]
ALL_JUDGED = ["TrafficLLM::trace_wait=0sec", "TrafficLLM::shutdown_wait=10min", 'TrafficLLM::settings+={"engine.queue_flows=65536"}']
WAYS = {
    "without the plugin": None,
    "plugin, not loaded": [],
    "events only": ["TrafficLLM/main", *NO_WAIT],
    "events, one task": ["TrafficLLM/main", *NO_WAIT, 'TrafficLLM::tasks+={"botnet_detection"}'],
    "all scripts": ["TrafficLLM", *NO_WAIT],
    "all scripts, nothing shed": ["TrafficLLM", *ALL_JUDGED],
    "all scripts, stalled model": ["TrafficLLM", *NO_WAIT, "TrafficLLM::workers=0"],
}


def packets(path):
    count = 0
    with open(path, "rb") as capture:
        capture.seek(24)
        while len(header := capture.read(16)) == 16:
            capture.seek(struct.unpack("<IIII", header)[2], 1)
            count += 1
    return count


def run(capture, arguments):
    """Seconds of Zeek's thread, and on the clock."""
    environment = dict(os.environ)
    if arguments is None:
        environment.pop("ZEEK_PLUGIN_PATH", None)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        process = subprocess.Popen(["zeek", "-C", "-r", capture, *(arguments or [])], cwd=folder, env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The last look at the thread is as late as can be.
        busy = 0
        while process.poll() is None:
            try:
                with open(f"/proc/{process.pid}/task/{process.pid}/stat") as stat:
                    fields = stat.read().rsplit(")", 1)[1].split()
                busy = max(busy, int(fields[11]) + int(fields[12]))
            except (OSError, IndexError):
                pass
            time.sleep(0.005)
        if process.returncode != 0:
            sys.exit(f"zeek ended with {process.returncode}: {arguments}")
        return busy / TICKS, time.monotonic() - begin


def main():
    capture, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    count = packets(capture)
    found = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, arguments in WAYS.items():
            found[name].append(run(capture, arguments))
    base = statistics.median(busy for busy, _ in found["without the plugin"])
    print(f"{count} packets, {rounds} rounds")
    print(f"{'':28} {'us/packet':>9} {'packets/s':>9} {'ratio':>6} {'clock s':>8}")
    for name, times in found.items():
        busy = statistics.median(busy for busy, _ in times)
        clock = statistics.median(clock for _, clock in times)
        print(f"{name:28} {busy / count * 1e6:9.2f} {count / busy:9.0f} {busy / base:6.2f} {clock:8.1f}")


if __name__ == "__main__":
    main()
