// Classifies the flows of a capture, as classify.c does, in C++: nothing is freed by hand, and errors are exceptions.
//
//     classify-cpp CAPTURE [BUNDLE]
#include <exception>
#include <iostream>
#include <map>
#include <string>
#include <trafficllm.hpp>
#include <tuple>

#include "packets.h"

namespace {

// Both ends of a flow in one order, so that both directions find it.
using End = std::pair<std::string, unsigned>;
using Key = std::tuple<unsigned, End, End>;

End end_of(const std::uint8_t *address, unsigned port) { return {std::string(reinterpret_cast<const char *>(address), 16), port}; }

struct Entry {
    trafficllm::Flow flow;
    tllm_flow_info info;
};

void classify(const char *path, const trafficllm::Model &model) {
    trafficllm::Engine engine(model);
    trafficllm::Session session(engine);
    trafficllm::FlowInfo info(IPPROTO_TCP);
    trafficllm::Packet packet;
    std::map<Key, Entry> flows;

    char text[PCAP_ERRBUF_SIZE] = "";
    const std::unique_ptr<pcap_t, decltype(&pcap_close)> capture(
        pcap_open_offline_with_tstamp_precision(path, PCAP_TSTAMP_PRECISION_NANO, text), pcap_close);
    if (!capture) throw std::runtime_error(text);
    pcap_pkthdr *head = nullptr;
    const u_char *bytes = nullptr;
    while (pcap_next_ex(capture.get(), &head, &bytes) == 1) {
        if (!decode(capture.get(), head, bytes, &info, &packet)) continue;
        const End from = end_of(info.initiator, info.initiator_port), to = end_of(info.responder, info.responder_port);
        const Key key(info.protocol, std::min(from, to), std::max(from, to));
        auto found = flows.find(key);
        if (found == flows.end()) found = flows.emplace(key, Entry{trafficllm::Flow(engine, info), info}).first;
        const tllm_flow_info &first = found->second.info;
        packet.direction = from == end_of(first.initiator, first.initiator_port) ? TLLM_FROM_INITIATOR : TLLM_FROM_RESPONDER;
        found->second.flow.feed(packet);
    }

    trafficllm::Answers answers;
    for (const auto &[key, entry] : flows) {
        session.classify(entry.flow, answers);
        for (const trafficllm::Answer answer : answers) {
            print_flow(&entry.info);
            std::printf(" %s\n", answer.json().c_str());
        }
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: classify-cpp CAPTURE [BUNDLE]\n";
        return 2;
    }
    try {
        classify(argv[1], argc > 2 ? trafficllm::Model::open(argv[2]) : trafficllm::Model::open_default());
    } catch (const std::exception &error) {
        std::cerr << "classify-cpp: " << error.what() << '\n';
        return 1;
    }
}
