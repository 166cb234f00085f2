// See the file "COPYING" in the main distribution directory for copyright.

#include "Tap.h"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>

#include <utility>

#include "zeek/IP.h"
#include "zeek/iosource/Packet.h"

#include "Judge.h"

using namespace trafficllm_feed;

namespace {

/** Says what a packet is in the words of the library. False for one that is no part of a flow. */
bool read_packet(const zeek::Packet& packet, FeedPacket& found) {
    if ( ! packet.ip_hdr )
        return false;

    const auto& header = *packet.ip_hdr;
    const u_char* begin = nullptr;
    uint32_t ip_bytes = 0;

    if ( const auto* ip4 = header.IP4_Hdr() ) {
        begin = reinterpret_cast<const u_char*>(ip4);
        ip_bytes = ntohs(ip4->ip_len);
        found.ip_version = 4;
        found.source = reinterpret_cast<const uint8_t*>(&ip4->ip_src);
        found.destination = reinterpret_cast<const uint8_t*>(&ip4->ip_dst);
    }
    else if ( const auto* ip6 = header.IP6_Hdr() ) {
        begin = reinterpret_cast<const u_char*>(ip6);
        uint32_t length = ntohs(ip6->ip6_plen);
        ip_bytes = length ? length + sizeof(ip6_hdr) : 0;
        found.ip_version = 6;
        found.source = reinterpret_cast<const uint8_t*>(&ip6->ip6_src);
        found.destination = reinterpret_cast<const uint8_t*>(&ip6->ip6_dst);
    }
    else
        return false;

    const u_char* payload = header.Payload();
    auto header_bytes = static_cast<uint32_t>(payload - begin);
    size_t captured = 0;

    if ( header.Reassembled() )
        // It lies in memory of its own, and is whole.
        captured = ip_bytes > header_bytes ? ip_bytes - header_bytes : 0;
    else {
        const u_char* end = packet.data + packet.cap_len;

        if ( begin < packet.data || payload > end )
            return false;

        captured = end - payload;

        // Segmentation offload leaves the length 0.
        if ( ip_bytes == 0 )
            ip_bytes = packet.len - static_cast<uint32_t>(begin - packet.data);
    }

    if ( ip_bytes < header_bytes )
        return false;

    auto transport = read_transport(static_cast<uint8_t>(packet.proto), payload, captured, ip_bytes - header_bytes);

    if ( ! transport )
        return false;

    found.protocol = static_cast<uint8_t>(packet.proto);
    found.ip_bytes = ip_bytes;
    found.transport = *transport;
    // The time as it was captured: the one that Zeek makes of it is a floating-point number, and gaps count in microseconds.
    found.time_ns = uint64_t(packet.ts.tv_sec) * 1'000'000'000 + uint64_t(packet.ts.tv_usec) * 1'000;
    return true;
}

} // namespace

namespace plugin::TrafficLLM_Detector {

Tap::Tap(Judge& judge, zeek::Connection* conn) : judge(judge), conn(conn) { judge.Add(conn, this); }

Tap::~Tap() {
    if ( ! has_ended )
        judge.End();

    judge.Remove(conn);
}

void Tap::TapPacket(const zeek::Packet& packet, zeek::packet_analysis::PacketAction, zeek::packet_analysis::SkipReason) {
    // Whatever Zeek thinks of a packet (a bad checksum, a connection that a script wants no more of), the flow has it. The tap stays when
    // the flow is full: Zeek walks over its taps just now, and one that is taken out would be missing under its feet.
    if ( ! feed.IsOpen() || ! judge.HasEngine() )
        return;

    FeedPacket next;

    if ( ! read_packet(packet, next) )
        return;

    try {
        if ( feed.Add(judge.Engine(), next) != trafficllm::Status::flow_full )
            return;
    } catch ( const trafficllm::Error& e ) {
        judge.Refuse(e);
        return;
    }

    // Where the queue is full the flow is kept, and tried again when the connection ends.
    feed.Close();
    submitted = judge.Submit(feed, conn, Judge::Occasion::Full);

    if ( submitted )
        feed.Discard();
}

void Tap::Done() {
    if ( ! std::exchange(has_ended, true) )
        judge.End();

    if ( feed.Flow() && ! submitted )
        submitted = judge.Submit(feed, conn, Judge::Occasion::End);

    feed.Discard();
}

} // namespace plugin::TrafficLLM_Detector
