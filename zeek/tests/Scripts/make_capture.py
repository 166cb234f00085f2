#!/usr/bin/env python3
# See the file "COPYING" in the main distribution directory for copyright.
"""Makes captures for the tests: make_capture.py KIND CONNECTIONS OUT.pcap [GAP_MS]

Connections begin GAP_MS after each other (1 unless said), and lie over each other. Kinds:

    mixed      HTTP, DNS, long TCP transfers and pings, over IPv4 and IPv6, and some of what follows
    http       HTTP connections of 10 packets
    same       the same between two hosts only
    fan        the same from one host to seven
    long       TCP connections of 60 packets
    dns        one question and one answer
    reversed   TCP connections whose first packet the capture lacks, so that it begins with the server's
    whole      HTTP over IPv4, and UDP datagrams of both versions, long ones in packets to fit
    fragments  the same, each packet of more than 48 bytes behind its header in fragments

The same arguments give the same bytes. Nothing of it was recorded.
"""

import random
import struct
import sys

START_US = 1_700_000_000_000_000


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ip_packet(source, destination, protocol, segment, checksum_at):
    """Addresses are 4 or 16 bytes; the segment's checksum is filled in at that place."""
    pseudo = source + destination + struct.pack(">IBBBB", len(segment), 0, 0, 0, protocol)
    if len(source) == 4:
        pseudo = source + destination + struct.pack(">BBH", 0, protocol, len(segment))
    if protocol == 1:
        pseudo = b""
    found = checksum(pseudo + segment)
    segment = segment[:checksum_at] + struct.pack(">H", found) + segment[checksum_at + 2 :]
    if len(source) == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0x4000, 64, protocol, 0) + source + destination
        return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + segment
    return struct.pack(">IHBB", 6 << 28, len(segment), protocol, 64) + source + destination + segment


def tcp_packet(source, destination, ports, sequence, acknowledge, flags, payload=b""):
    header = struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFFFFFF, acknowledge & 0xFFFFFFFF, 0x50, flags, 8192, 0, 0)
    return ip_packet(source, destination, 6, header + payload, 16)


def udp_packet(source, destination, ports, payload):
    return ip_packet(source, destination, 17, struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload, 6)


FIN, SYN, PSH, ACK = 1, 2, 8, 16


def tcp_connection(client, server, ports, requests):
    """Packets with their gaps in us: (gap, packet). `requests` are (question, answer)."""
    there, back = ports, (ports[1], ports[0])
    mine, theirs = 1000, 9000
    yield 0, tcp_packet(client, server, there, mine, 0, SYN)
    yield 900, tcp_packet(server, client, back, theirs, mine + 1, SYN | ACK)
    mine, theirs = mine + 1, theirs + 1
    yield 60, tcp_packet(client, server, there, mine, theirs, ACK)
    for question, answer in requests:
        yield 200, tcp_packet(client, server, there, mine, theirs, PSH | ACK, question)
        mine += len(question)
        yield 700, tcp_packet(server, client, back, theirs, mine, ACK)
        yield 300, tcp_packet(server, client, back, theirs, mine, PSH | ACK, answer)
        theirs += len(answer)
        yield 50, tcp_packet(client, server, there, mine, theirs, ACK)
    yield 100, tcp_packet(client, server, there, mine, theirs, FIN | ACK)
    yield 800, tcp_packet(server, client, back, theirs, mine + 1, FIN | ACK)
    yield 40, tcp_packet(client, server, there, mine + 1, theirs + 1, ACK)


def hosts(number, is_ipv6):
    client = (number >> 14) % 200 + 1, (number >> 8) % 64, number % 250 + 1
    if is_ipv6:
        prefix = bytes.fromhex("20010db8") + bytes(10)
        return prefix + bytes((0, client[2])), prefix + bytes((1, client[0]))
    return bytes((10, *client)), bytes((192, 0, 2, number % 7 + 1))


def http(number, chance, ends=None):
    client, server = ends or hosts(number, number % 5 == 4)
    page = chance.choice(("/", "/index.html", "/news?id=%d" % number, "/login", "/image%d.png" % (number % 9)))
    question = f"GET {page} HTTP/1.1\r\nHost: www.example.test\r\nUser-Agent: test/1.0\r\n\r\n".encode()
    body = bytes(chance.randrange(32, 127) for _ in range(chance.randrange(20, 400)))
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    return tcp_connection(client, server, (1025 + number % 60000, 80), [(question, answer)])


def same(number, chance):
    return http(number, chance, hosts(0, False))


def fan(number, chance):
    return http(number, chance, (hosts(0, False)[0], hosts(number, False)[1]))


def long_transfer(number, chance):
    client, server = hosts(number, False)
    data = [(bytes([i]) * 20, bytes(chance.randrange(256) for _ in range(500))) for i in range(14)]
    return tcp_connection(client, server, (1025 + number % 60000, 4444), data)


def dns(number, chance):
    client, server = hosts(number, False)
    name = b"\3www\7example\4test\0"
    question = struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1"
    answer = struct.pack(">HHHHHH", number & 0xFFFF, 0x8180, 1, 1, 0, 0) + name + b"\0\1\0\1"
    answer += b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 300, 4) + bytes((192, 0, 2, 80))
    port = 1025 + number % 60000
    yield 0, udp_packet(client, server, (port, 53), question)
    yield 4000, udp_packet(server, client, (53, port), answer)


def ping(number, chance):
    client, server = hosts(number, False)
    for sequence in range(3):
        for kind, ends in ((8, (client, server)), (0, (server, client))):
            message = struct.pack(">BBHHH", kind, 0, 0, number & 0xFFFF, sequence) + bytes(range(48))
            yield 500_000 if kind == 8 and sequence else 900, ip_packet(*ends, 1, message, 2)


def reversed_start(number, chance):
    packets = http(number, chance)
    next(packets)
    return packets


def whole(number, chance):
    if number % 3 == 0:
        yield from http(number, chance, hosts(number, False))
        return
    is_ipv6 = number % 3 == 2
    client, server = hosts(number, is_ipv6)
    port = 1025 + number % 60000
    for size in (900, 3000, 40):
        yield 2000, udp_packet(client, server, (port, 5000), bytes(chance.randrange(256) for _ in range(size)))
        yield 900, udp_packet(server, client, (5000, port), bytes(chance.randrange(256) for _ in range(size // 2)))


def fragments(number, chance):
    for place, (gap, packet) in enumerate(whole(number, chance)):
        is_ipv6 = packet[0] >> 4 == 6
        header_bytes = 40 if is_ipv6 else 20
        data = packet[header_bytes:]
        size = 48 if len(data) < 1000 else 1400
        pieces = [(at, data[at : at + size]) for at in range(0, len(data), size)]
        if len(pieces) == 1:
            yield gap, packet
            continue
        # The last piece first in some: they need not come in their order.
        if place % 2:
            pieces.reverse()
        # At the same time: a datagram has the time of the piece that makes it whole.
        for at, piece in pieces:
            more = at + size < len(data)
            if is_ipv6:
                head = struct.pack(">BBHI", packet[6], 0, at | more, number * 16 + place + 1)
                header = packet[:4] + struct.pack(">HB", len(head) + len(piece), 44) + packet[7:40] + head
            else:
                header = packet[:2] + struct.pack(">HHH", 20 + len(piece), place + 1, at // 8 | (0x2000 if more else 0)) + packet[8:10]
                header += b"\0\0" + packet[12:20]
                header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
            yield gap, header + piece
            gap = 0


def mixed(number, chance):
    kinds = (http, dns, http, dns, long_transfer, http, dns, ping, http, reversed_start)
    return kinds[number % len(kinds)](number, chance)


KINDS = {"mixed": mixed, "http": http, "same": same, "fan": fan, "long": long_transfer, "dns": dns, "reversed": reversed_start,
         "whole": whole, "fragments": fragments}


def write(path, kind, connections, gap_ms):
    chance = random.Random(1)
    under_way = []
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))

        def flush(until):
            under_way.sort(key=lambda entry: entry[0], reverse=True)
            while under_way and under_way[-1][0] < until:
                at, _, packet = under_way.pop()
                out.write(struct.pack("<IIII", at // 1_000_000, at % 1_000_000, len(packet), len(packet)) + packet)

        for number in range(connections):
            at = START_US + number * gap_ms * 1000
            if number % 64 == 0:
                flush(at)
            for order, (gap, packet) in enumerate(KINDS[kind](number, chance)):
                at += gap
                under_way.append((at, order, packet))
        flush(START_US * 2)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in KINDS:
        sys.exit(__doc__)
    write(sys.argv[3], sys.argv[1], int(sys.argv[2]), int(sys.argv[4]) if len(sys.argv) == 5 else 1)
