// See the file "COPYING" in the main distribution directory for copyright.

#include "Feed.h"

#include <cstring>

namespace {

size_t address_bytes(const trafficllm_feed::FeedPacket& packet) { return packet.ip_version == 6 ? 16 : 4; }

} // namespace

using namespace trafficllm_feed;

trafficllm::Status Feed::Add(const trafficllm::Engine& engine, const FeedPacket& packet) {
    if ( ! is_open )
        return trafficllm::Status::flow_full;

    try {
        // Prepared once; all of its fields but those below stay as they are.
        static thread_local trafficllm::Packet next;

        if ( ! flow )
            Begin(engine, packet);

        next.direction = IsFromInitiator(packet) ? TLLM_FROM_INITIATOR : TLLM_FROM_RESPONDER;
        next.tcp_flags = packet.transport.tcp_flags;
        next.time_ns = packet.time_ns;
        next.ip_bytes = packet.ip_bytes;
        next.payload_bytes = packet.transport.payload_bytes;
        next.payload = packet.transport.payload;
        next.payload_size = packet.transport.payload_size;

        auto status = flow->feed(next);
        ++packets;
        return status;
    } catch ( ... ) {
        Discard();
        throw;
    }
}

void Feed::Begin(const trafficllm::Engine& engine, const FeedPacket& packet) {
    trafficllm::FlowInfo info(packet.protocol);
    info.ip_version = packet.ip_version;
    info.initiator_port = packet.transport.source_port;
    info.responder_port = packet.transport.destination_port;
    memcpy(info.initiator, packet.source, address_bytes(packet));
    memcpy(info.responder, packet.destination, address_bytes(packet));

    memcpy(initiator.data(), packet.source, address_bytes(packet));
    initiator_port = packet.transport.source_port;
    flow.emplace(engine, info);
}

bool Feed::IsFromInitiator(const FeedPacket& packet) const {
    return packet.transport.source_port == initiator_port && memcmp(packet.source, initiator.data(), address_bytes(packet)) == 0;
}
