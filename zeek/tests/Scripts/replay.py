#!/usr/bin/env python3
# See the file "COPYING" in the main distribution directory for copyright.
"""Sends a capture of make_capture.py out of an Ethernet interface, as fast as it was captured: replay.py CAPTURE INTERFACE"""

import socket
import struct
import sys
import time


def main():
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((sys.argv[2], 0))
    begin = time.monotonic()
    first = None
    sent = 0
    with open(sys.argv[1], "rb") as capture:
        capture.seek(24)
        while len(header := capture.read(16)) == 16:
            seconds, microseconds, size, _ = struct.unpack("<IIII", header)
            at = seconds + microseconds / 1e6
            first = at if first is None else first
            packet = capture.read(size)
            time.sleep(max(0, begin + at - first - time.monotonic()))
            kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
            out.send(bytes.fromhex("020000000002020000000001") + struct.pack(">H", kind) + packet)
            sent += 1
    print(f"{sent} packets sent")


if __name__ == "__main__":
    main()
