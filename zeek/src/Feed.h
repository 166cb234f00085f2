// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "Library.h"
#include "Transport.h"

namespace trafficllm_feed {

/** One packet of a connection, as it came. */
struct FeedPacket {
    /** IP protocol number. */
    uint8_t protocol = 0;
    /** 4 or 6. */
    uint8_t ip_version = 4;
    /** Addresses in network byte order: 4 bytes, or 16. */
    const uint8_t* source = nullptr;
    const uint8_t* destination = nullptr;
    /** Length of the IP packet in bytes, as its header says. */
    uint32_t ip_bytes = 0;
    /** Time in nanoseconds. */
    uint64_t time_ns = 0;
    Transport transport;
};

/**
 * The flow of one connection.
 *
 * Whoever sent its first packet is its initiator, whatever the host thinks of originator and responder, then or later: that is what models
 * are trained on. So the host can swap its roles without the flow noticing.
 */
class Feed {
public:
    /** Whether a packet would be looked at. */
    bool IsOpen() const { return is_open; }

    /** Packets that were added. */
    uint64_t Packets() const { return packets; }

    /** The flow, if there is one. */
    const trafficllm::Flow* Flow() const { return flow ? &*flow : nullptr; }

    /**
     * Adds a packet, the first one to a new flow of `engine`.
     *
     * @return Status::flow_full with the last packet that the flow keeps: later ones would not change its verdict; else Status::ok.
     * @throws trafficllm::Error if there cannot be such a flow: the feed is closed then.
     */
    trafficllm::Status Add(const trafficllm::Engine& engine, const FeedPacket& packet);

    /** Looks at no more packets, and keeps the flow. */
    void Close() { is_open = false; }

    /** Looks at no more packets, and gives the flow's memory back. */
    void Discard() {
        is_open = false;
        flow.reset();
    }

private:
    bool IsFromInitiator(const FeedPacket& packet) const;
    void Begin(const trafficllm::Engine& engine, const FeedPacket& packet);

    std::optional<trafficllm::Flow> flow;
    uint64_t packets = 0;
    std::array<uint8_t, 16> initiator{};
    uint16_t initiator_port = 0;
    bool is_open = true;
};

} // namespace trafficllm_feed
