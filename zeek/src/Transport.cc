// See the file "COPYING" in the main distribution directory for copyright.

#include "Transport.h"

#include <algorithm>

namespace {

constexpr uint8_t protocol_icmp = 1;
constexpr uint8_t protocol_tcp = 6;
constexpr uint8_t protocol_udp = 17;
constexpr uint8_t protocol_icmp6 = 58;

constexpr uint32_t tcp_header_bytes = 20;
constexpr uint32_t udp_header_bytes = 8;
constexpr uint32_t icmp_header_bytes = 8;

uint16_t number(const uint8_t* data) { return static_cast<uint16_t>(data[0] << 8 | data[1]); }

} // namespace

std::optional<trafficllm_feed::Transport> trafficllm_feed::read_transport(uint8_t protocol, const uint8_t* data, size_t captured,
                                                                          uint32_t length) {
    Transport found;
    uint32_t header_bytes = 0;
    // What is behind the IP packet's end is padding.
    captured = std::min<size_t>(captured, length);

    switch ( protocol ) {
        case protocol_tcp:
            if ( captured < tcp_header_bytes )
                return std::nullopt;

            header_bytes = uint32_t(data[12] >> 4) * 4;

            if ( header_bytes < tcp_header_bytes || header_bytes > length )
                return std::nullopt;

            found.source_port = number(data);
            found.destination_port = number(data + 2);
            found.tcp_flags = data[13];
            break;

        case protocol_udp: {
            if ( captured < udp_header_bytes )
                return std::nullopt;

            header_bytes = udp_header_bytes;
            found.source_port = number(data);
            found.destination_port = number(data + 2);

            // It is 0 from segmentation offload, and in a first fragment that of the whole datagram.
            uint32_t udp_length = number(data + 4);

            if ( udp_length >= udp_header_bytes && udp_length <= length )
                length = udp_length;

            break;
        }

        case protocol_icmp:
        case protocol_icmp6: header_bytes = std::min(icmp_header_bytes, length); break;

        default: break;
    }

    found.payload_bytes = length - header_bytes;

    if ( captured > header_bytes ) {
        found.payload = data + header_bytes;
        found.payload_size = std::min<size_t>(captured - header_bytes, found.payload_bytes);
    }

    return found;
}
