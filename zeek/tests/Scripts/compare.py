#!/usr/bin/env python3
# See the file "COPYING" in the main distribution directory for copyright.
"""Holds the verdicts that dump.zeek printed to those of `trafficllm detect --format json`: compare.py DETECT.json VERDICTS.txt

A connection is found by its protocol, its two ends in either order, and the time of its first packet. Both sides have to have the same
connections, tasks, labels, scores to four decimals, and doubts. ICMP has no ports: Zeek tells its connections apart by type, so there one
flow of the command can be several connections, and those with more than one are left out, and counted.
"""

import collections
import json
import sys


def key(proto, source, source_port, destination, destination_port, start):
    proto = "icmp" if proto.startswith("icmp") else proto
    ends = [(source, source_port), (destination, destination_port)]
    if proto == "icmp":
        ends = [(source, 0), (destination, 0)]
    return proto, tuple(sorted(ends)), start


def read_detect(path):
    flows = {}
    skipped = 0
    for line in open(path):
        flow = json.loads(line)
        if flow["proto"] not in ("tcp", "udp", "icmp", "icmpv6"):
            # Zeek has no connections of other protocols.
            skipped += 1
            continue
        start = f"{flow['start']:.6f}"
        found = {v["task"]: (v["label"], f"{v['score']:.4f}", v["abstained"], flow["model"]) for v in flow["verdicts"]}
        flows[key(flow["proto"], flow["src"], flow["sport"], flow["dst"], flow["dport"], start)] = (found, flow["packets"])
    return flows, skipped


def read_zeek(path):
    flows = collections.defaultdict(dict)
    for line in open(path):
        proto, source, source_port, destination, destination_port, start, task, label, score, abstained, model, packets = line.split()
        flow = flows[key(proto, source, int(source_port), destination, int(destination_port), start)]
        flow[task] = (label, score, abstained == "T", model)
    return flows


def main():
    detect, skipped = read_detect(sys.argv[1])
    zeek = read_zeek(sys.argv[2])
    differences = []
    split = 0
    pairs = collections.Counter((k[0], k[1]) for k in zeek)
    for k, (verdicts, packets) in detect.items():
        if k[0] == "icmp" and pairs[(k[0], k[1])] > 1:
            split += 1
        elif k not in zeek:
            differences.append(f"no connection in Zeek: {k} of {packets} packets")
        elif zeek[k] != verdicts:
            differences.append(f"{k} of {packets} packets: the command says {verdicts}, Zeek {zeek[k]}")
    for k in zeek.keys() - detect.keys():
        if k[0] != "icmp":
            differences.append(f"no flow of the command: {k}")
    for line in differences[:20]:
        print(line)
    verdicts = sum(len(flow) for flow in zeek.values())
    print(f"{len(detect)} flows, {verdicts} verdicts, {len(differences)} differences", end="")
    print(f", {split} ICMP flows of more than one connection" if split else "", end="")
    print(f", {skipped} flows of other protocols" if skipped else "")
    sys.exit(1 if differences or not detect or not verdicts else 0)


if __name__ == "__main__":
    main()
