// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include "zeek/packet_analysis/protocol/ip/SessionAdapter.h"

#include "Feed.h"

namespace zeek {
class Connection;
}

namespace plugin::TrafficLLM_Detector {

class Judge;

/** Sees the packets of one connection and submits them: as soon as more would not change the verdict, or at the connection's end. */
class Tap final : public zeek::packet_analysis::TapAnalyzer {
public:
    Tap(Judge& judge, zeek::Connection* conn);
    ~Tap() override;

    void TapPacket(const zeek::Packet& packet, zeek::packet_analysis::PacketAction action,
                   zeek::packet_analysis::SkipReason reason) override;
    void Done() override;

    /** The flow as far as it has come. */
    trafficllm_feed::Feed& Feed() { return feed; }

    /** The number of the verdict that will be the connection's, once it is under way; 0 before. */
    uint64_t Submitted() const { return submitted; }

private:
    Judge& judge;
    zeek::Connection* conn;
    trafficllm_feed::Feed feed;
    uint64_t submitted = 0;
    bool has_ended = false;
};

} // namespace plugin::TrafficLLM_Detector
