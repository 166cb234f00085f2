// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace trafficllm_feed {

/** What of a packet stands behind its IP headers. */
struct Transport {
    uint16_t source_port = 0;
    uint16_t destination_port = 0;
    /** Byte 13 of the TCP header. */
    uint8_t tcp_flags = 0;
    /** Length of the payload as the headers say, in bytes. */
    uint32_t payload_bytes = 0;
    /** The captured part of it. */
    const uint8_t* payload = nullptr;
    size_t payload_size = 0;
};

/**
 * Reads the transport header as libtrafficllm's own flow table does, so that a connection fed from here gets the verdict that it gets
 * from `trafficllm detect`: checksums do not matter, TCP options may be cut off by the capture, a UDP length that cannot be gives way to
 * that of IP.
 *
 * @param protocol IP protocol number.
 * @param data What follows the IP headers.
 * @param captured Bytes at `data`.
 * @param length Bytes that follow the IP headers on the wire, as the IP header says.
 * @return Nothing where the header is broken or cut off: such a packet is no part of any flow.
 */
std::optional<Transport> read_transport(uint8_t protocol, const uint8_t* data, size_t captured, uint32_t length);

} // namespace trafficllm_feed
