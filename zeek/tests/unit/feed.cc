// See the file "COPYING" in the main distribution directory for copyright.

// The part of the plugin that knows no Zeek, held to what its headers say. Needs libtrafficllm where the dynamic linker finds it; with the
// argument "defects" the library of faulty.c in its place, FAULTY_SESSION=3 and FAULTY_STOP=1.

#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "Detector.h"
#include "Feed.h"
#include "Helper.h"
#include "Ledger.h"
#include "Transport.h"

using namespace trafficllm_feed;
using namespace std::chrono_literals;

#define CHECK(condition)                                                                                                                   \
    do                                                                                                                                     \
        if ( ! (condition) ) {                                                                                                             \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                                   \
            std::exit(1);                                                                                                                  \
        }                                                                                                                                  \
    while ( false )

namespace {

void transport_headers() {
    // TCP with 4 bytes of options and 6 of payload, of which the capture has 3.
    std::vector<uint8_t> tcp = {0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x18, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 'a', 'b', 'c'};
    auto found = read_transport(6, tcp.data(), tcp.size(), 30);
    CHECK(found && found->source_port == 40000 && found->destination_port == 443 && found->tcp_flags == 0x18);
    CHECK(found->payload_bytes == 6 && found->payload_size == 3 && memcmp(found->payload, "abc", 3) == 0);

    // Padding behind the packet is no payload.
    found = read_transport(6, tcp.data(), tcp.size(), 25);
    CHECK(found && found->payload_bytes == 1 && found->payload_size == 1);

    // The options may be cut, the header may not; a header that says more than there is is broken.
    found = read_transport(6, tcp.data(), 21, 30);
    CHECK(found && found->payload_bytes == 6 && found->payload_size == 0 && ! found->payload);
    CHECK(! read_transport(6, tcp.data(), 19, 30));
    CHECK(! read_transport(6, tcp.data(), tcp.size(), 23));
    tcp[12] = 0x40;
    CHECK(! read_transport(6, tcp.data(), tcp.size(), 30));

    // UDP: its own length where that can be, else IP's.
    std::vector<uint8_t> udp = {0, 53, 0x10, 0, 0, 10, 0, 0, 'x', 'y', 'z'};
    found = read_transport(17, udp.data(), udp.size(), 11);
    CHECK(found && found->source_port == 53 && found->payload_bytes == 2 && found->payload_size == 2 && found->tcp_flags == 0);

    for ( uint8_t impossible : {0, 7, 12} ) {
        udp[5] = impossible;
        found = read_transport(17, udp.data(), udp.size(), 11);
        CHECK(found && found->payload_bytes == 3 && found->payload_size == 3);
    }

    CHECK(! read_transport(17, udp.data(), 7, 11));

    // ICMP may be shorter than its header; other protocols are all payload.
    found = read_transport(1, udp.data(), 4, 4);
    CHECK(found && found->payload_bytes == 0 && found->payload_size == 0 && found->source_port == 0);
    found = read_transport(58, udp.data(), 11, 11);
    CHECK(found && found->payload_bytes == 3);
    found = read_transport(47, udp.data(), 11, 11);
    CHECK(found && found->payload_bytes == 11);
    found = read_transport(1, nullptr, 0, 0);
    CHECK(found && found->payload_bytes == 0);
}

void ledger() {
    Ledger<std::string> kept;
    auto one = kept.Put("one");
    auto two = kept.Put("two");
    CHECK(one != 0 && two != 0 && one != two && kept.Size() == 2);
    CHECK(*kept.Find(one) == "one" && ! kept.Find(0) && ! kept.Find(two + 1));
    CHECK(*kept.Take(one) == "one" && ! kept.Take(one) && ! kept.Find(one) && kept.Size() == 1);

    // The place is used again, the number is not.
    auto three = kept.Put("three");
    CHECK(three != one && uint32_t(three) == uint32_t(one) && ! kept.Find(one) && *kept.Find(three) == "three");

    auto four = kept.Put("four");
    std::string taken;
    kept.TakeIf([](const std::string& entry) { return entry == "four"; }, [&](std::string entry) { taken += entry; });
    CHECK(taken == "four" && ! kept.Find(four) && *kept.Find(two) == "two" && kept.Size() == 2);

    std::set<std::string> left;
    kept.Clear([&](std::string entry) { left.insert(std::move(entry)); });
    CHECK(left == (std::set<std::string>{"two", "three"}) && kept.Size() == 0 && ! kept.Find(two));
}

void helper() {
    // In their order, and all of them.
    auto done = std::make_shared<std::vector<int>>();
    Helper first;
    CHECK(Helper().Finish(0us));

    for ( int i = 0; i < 100; i++ )
        first.Run([done, i] { done->push_back(i); });

    CHECK(first.Finish(60s) && done->size() == 100);

    for ( int i = 0; i < 100; i++ )
        CHECK((*done)[i] == i);

    first.Run([done] { done->clear(); });
    CHECK(done->size() == 100);

    // One that takes long is left to itself.
    auto go = std::make_shared<std::atomic<bool>>(false);
    Helper second;
    second.Run([go] {
        while ( ! *go )
            std::this_thread::sleep_for(1ms);
    });
    CHECK(! second.Finish(1ms));
    *go = true;
    CHECK(second.Finish(60s));

    // One that has to run again lets others run in between, and is dropped at the end.
    auto runs = std::make_shared<std::atomic<int>>(0);
    auto others = std::make_shared<std::atomic<int>>(0);
    std::weak_ptr<std::atomic<int>> held = runs;
    Helper third;
    third.Repeat([runs = std::move(runs)] {
        ++*runs;
        return false;
    });

    for ( int i = 0; i < 10; i++ )
        third.Run([others] { ++*others; });

    while ( *others < 10 )
        std::this_thread::sleep_for(1ms);

    CHECK(third.Finish(60s) && held.expired());
}

/** Packets of a connection, one after the other. */
struct Source {
    uint8_t client[4] = {10, 0, 0, 1};
    uint8_t server[4] = {10, 0, 0, 2};
    uint8_t payload[64] = "GET /index.html HTTP/1.1\r\nHost: www.example.test\r\n\r\n";
    uint64_t time_ns = 0;

    FeedPacket Next(bool is_from_client, uint32_t bytes) {
        FeedPacket packet;
        packet.protocol = 6;
        packet.source = is_from_client ? client : server;
        packet.destination = is_from_client ? server : client;
        packet.ip_bytes = 40 + bytes;
        packet.time_ns = time_ns += 1'000'000;
        packet.transport.source_port = is_from_client ? 40000 : 80;
        packet.transport.destination_port = is_from_client ? 80 : 40000;
        packet.transport.tcp_flags = 0x18;
        packet.transport.payload_bytes = bytes;
        packet.transport.payload = payload;
        packet.transport.payload_size = bytes;
        return packet;
    }
};

/** Waits for what was asked for last. */
Change settle(Detector& detector) {
    std::optional<Change> last;

    while ( detector.ChangesUnderWay() > 0 ) {
        CHECK(detector.WaitForChange(60s));

        while ( auto change = detector.TakeChange() )
            last = change;
    }

    return *last;
}

void detection() {
    Detector detector;
    CHECK(! detector.IsReady() && ! detector.TakeChange() && ! detector.WaitForChange(0us));

    // What is refused leaves nothing behind.
    detector.Configure({"/nonexistent/model.tllm", {}});
    auto change = settle(detector);
    CHECK(! change.problem.empty() && change.model.empty() && change.bundle == "/nonexistent/model.tllm" && ! detector.IsReady());

    detector.Configure({"", {{"engine.workers", "2"}, {"flow.max_packets", "8"}, {"flow.min_packets", "2"}}});
    change = settle(detector);
    CHECK(change.problem.empty() && ! change.model.empty() && detector.IsReady());
    auto model = change.model;

    // Too short; full; and told apart by direction only.
    Source source;
    Feed feed;
    CHECK(feed.IsOpen() && ! feed.Flow());
    CHECK(feed.Add(detector.Engine(), source.Next(true, 52)) == trafficllm::Status::ok);
    CHECK(detector.Submit(*feed.Flow(), 1) == trafficllm::Status::need_more);

    for ( int i = 1; i < 8; i++ )
        CHECK(feed.Add(detector.Engine(), source.Next(i % 2 == 0, 52)) == trafficllm::Status::ok);

    CHECK(feed.Add(detector.Engine(), source.Next(true, 52)) == trafficllm::Status::flow_full && feed.Packets() == 9);
    feed.Close();
    CHECK(feed.Add(detector.Engine(), source.Next(true, 52)) == trafficllm::Status::flow_full && feed.Packets() == 9);

    std::vector<std::string> answers;
    auto take = [&](const trafficllm::Answer& answer) {
        std::string text = std::to_string(answer.id());

        for ( auto verdict : answer )
            text += " " + std::string(verdict.label());

        answers.push_back(text);
    };
    auto judge = [&](const Feed& what, uint64_t id) {
        CHECK(detector.Submit(*what.Flow(), id) == trafficllm::Status::ok);

        while ( answers.empty() )
            detector.Wait(60s, take);

        auto text = answers.front();
        answers.clear();
        return text;
    };
    auto first = judge(feed, 7);
    CHECK(first.rfind("7 ", 0) == 0);

    // The one that sends first is the initiator, whichever end that is.
    Source swapped;
    std::swap(swapped.client, swapped.server);
    Feed other;

    for ( int i = 0; i < 9; i++ ) {
        auto packet = swapped.Next(i % 2 == 0, 52);
        std::swap(packet.transport.source_port, packet.transport.destination_port);
        other.Add(detector.Engine(), packet);
    }

    CHECK(judge(other, 7) == first);

    // A descriptor tells of an answer; now and then it is readable without one.
    CHECK(detector.Submit(*feed.Flow(), 8) == trafficllm::Status::ok);
    pollfd waiting{detector.Descriptors().at(0), POLLIN, 0};

    while ( answers.empty() ) {
        CHECK(poll(&waiting, 1, 60'000) == 1);
        detector.Poll(SIZE_MAX, take);
    }

    answers.clear();

    // A refused change leaves everything as it is; others come one after the other, with flows under way, and none is lost.
    detector.Configure({"", {{"engine.workers", "many"}}});
    change = settle(detector);
    CHECK(! change.problem.empty() && change.model == model && detector.IsReady());

    std::set<uint64_t> open;
    uint64_t id = 100;

    for ( int round = 0; round < 12; round++ ) {
        detector.Configure({"", {{"engine.workers", round % 3 == 0 ? "1" : "2"}}});

        while ( detector.ChangesUnderWay() > 0 ) {
            if ( open.size() < 500 && detector.Submit(*feed.Flow(), ++id) == trafficllm::Status::ok )
                open.insert(id);

            detector.Poll(SIZE_MAX, [&](const trafficllm::Answer& answer) { CHECK(open.erase(answer.id()) == 1); });
            detector.TakeChange();
        }
    }

    CHECK(id > 112);

    while ( ! open.empty() ) {
        detector.Poll(SIZE_MAX, [&](const trafficllm::Answer& answer) { CHECK(open.erase(answer.id()) == 1); });
        std::this_thread::sleep_for(1ms);
    }

    // Waiting for answers of an engine that was replaced, and for those of its successor.
    for ( int i = 0; i < 20; i++ )
        if ( detector.Submit(*feed.Flow(), ++id) == trafficllm::Status::ok )
            open.insert(id);

    detector.Configure({"", {{"engine.workers", "1"}, {"flow.min_packets", "3"}}});
    CHECK(settle(detector).problem.empty());

    for ( int i = 0; i < 20; i++ )
        if ( detector.Submit(*feed.Flow(), ++id) == trafficllm::Status::ok )
            open.insert(id);

    CHECK(open.size() > 20);

    while ( ! open.empty() )
        CHECK(detector.Wait(60s, [&](const trafficllm::Answer& answer) { CHECK(open.erase(answer.id()) == 1); }));

    // With nothing under way nothing is waited for.
    CHECK(! detector.Wait(3600s, take));

    // Engines that were replaced go once they have answered everything.
    for ( int i = 0; detector.Descriptors().size() > 1; i++ ) {
        CHECK(i < 60'000);
        detector.DropRetired([](int descriptor) { CHECK(descriptor >= 0); });
        std::this_thread::sleep_for(1ms);
    }

    // The end, with flows under way.
    for ( int i = 0; i < 100; i++ )
        static_cast<void>(detector.Submit(*feed.Flow(), ++id));

    detector.Stop(60s);
    CHECK(! detector.IsReady() && detector.Submit(*feed.Flow(), 1) == trafficllm::Status::pending);
    CHECK(! detector.Wait(1s, take));
}

Feed full_feed(const Detector& detector) {
    Source source;
    Feed feed;

    while ( feed.Add(detector.Engine(), source.Next(true, 52)) != trafficllm::Status::flow_full ) {
    }

    feed.Close();
    return feed;
}

/** With the library of faulty.c: sessions break when answers are taken for the third time, and engines do not end. */
void defects() {
    Detector detector;
    detector.Configure({"", {{"engine.workers", "1"}}});
    CHECK(settle(detector).problem.empty());

    size_t answered = 0;
    std::vector<uint64_t> lost;
    auto take = [&](const trafficllm::Answer&) { ++answered; };
    auto mend = [&] {
        detector.Mend([](int descriptor) { CHECK(descriptor >= 0); },
                      [&](uint64_t session, const std::string& problem) {
                          CHECK(! problem.empty());
                          lost.push_back(session);
                      });
    };
    auto feed = full_feed(detector);
    uint64_t id = 0;

    // Two answers of each session are taken; the third breaks it.
    for ( size_t session = 1; session <= Detector::losses_max + 1; session++ ) {
        CHECK(detector.IsReady() && detector.SessionNumber() == session);

        for ( int i = 0; i < 3; i++ ) {
            CHECK(detector.Submit(*feed.Flow(), ++id) == trafficllm::Status::ok);
            CHECK(detector.Wait(60s, take) == (i < 2));
        }

        // Until it is mended it does nothing, and does not fail again.
        CHECK(detector.Submit(*feed.Flow(), ++id) == trafficllm::Status::pending);
        CHECK(detector.Poll(SIZE_MAX, take) == 0 && ! detector.Wait(60s, take));
        mend();
        CHECK(lost.size() == session && lost.back() == session && answered == session * 2);
        mend();
        CHECK(lost.size() == session);
    }

    // That was too often: the engine is given up. The same settings bring another one.
    CHECK(! detector.IsReady() && detector.SessionNumber() == 0 && detector.Descriptors().empty());
    detector.Configure({"", {{"engine.workers", "1"}}});
    auto change = settle(detector);
    CHECK(change.problem.empty() && ! change.model.empty() && detector.IsReady());

    // The one before has not ended, and nor do others. They hold nothing up, until there are too many.
    size_t taken = 0;

    for ( size_t i = 0; i < Detector::engines_max; i++ ) {
        detector.Configure({"", {{"engine.workers", "1"}, {"flow.min_packets", std::to_string(1 + i)}}});
        change = settle(detector);

        if ( ! change.problem.empty() )
            break;

        ++taken;
    }

    CHECK(taken == Detector::engines_max - 2 && change.problem.find("have not ended") != std::string::npos && detector.IsReady());
    auto other = full_feed(detector);
    CHECK(detector.Submit(*other.Flow(), ++id) == trafficllm::Status::ok && detector.Wait(60s, take));
    detector.Stop(1ms);
}

/** With the same library: the second submission is a defect that ends its session and its flow. */
void defect_in_submission() {
    CHECK(setenv("FAULTY_SESSION", "0", 1) == 0 && setenv("FAULTY_SUBMIT", "2", 1) == 0);
    Detector detector;
    detector.Configure({"", {{"engine.workers", "1"}}});
    CHECK(settle(detector).problem.empty());

    size_t answered = 0;
    std::vector<uint64_t> lost;
    auto take = [&](const trafficllm::Answer&) { ++answered; };
    auto mend = [&] { detector.Mend([](int) {}, [&](uint64_t session, const std::string&) { lost.push_back(session); }); };
    auto submit = [&](const Feed& feed) {
        try {
            return detector.Submit(*feed.Flow(), 1);
        } catch ( const trafficllm::Error& e ) {
            return e.status();
        }
    };
    auto broken = full_feed(detector);
    auto feed = full_feed(detector);
    CHECK(submit(feed) == trafficllm::Status::ok && detector.Wait(60s, take) && answered == 1);
    CHECK(submit(broken) == trafficllm::Status::error_panic);
    CHECK(submit(feed) == trafficllm::Status::pending);
    mend();
    CHECK(lost == std::vector<uint64_t>{1} && detector.SessionNumber() == 2);

    // The flow costs no other session.
    CHECK(submit(feed) == trafficllm::Status::ok);
    CHECK(submit(broken) == trafficllm::Status::error_panic);
    mend();
    CHECK(lost.size() == 1 && detector.SessionNumber() == 2 && detector.Wait(60s, take) && answered == 2);
    detector.Stop(60s);
}

/** With the same library: losses are counted until there were answers enough without one. */
void healing() {
    Detector detector;
    detector.Configure({"", {{"engine.workers", "1"}, {"engine.tasks", "botnet_detection"}}});
    CHECK(settle(detector).problem.empty());

    auto feed = full_feed(detector);
    size_t answered = 0;
    auto answer = [&](size_t count) {
        for ( size_t submitted = answered = 0; answered < count; ) {
            while ( submitted < count && submitted - answered < 64 && detector.Submit(*feed.Flow(), 1) == trafficllm::Status::ok )
                ++submitted;

            CHECK(detector.Wait(60s, [&](const trafficllm::Answer&) { ++answered; }));
        }
    };
    auto lose = [&] {
        CHECK(setenv("FAULTY_EMPTY", "1", 1) == 0 && detector.Poll(SIZE_MAX, [](const trafficllm::Answer&) {}) == 0);
        CHECK(unsetenv("FAULTY_EMPTY") == 0);
        detector.Mend([](int) {}, [](uint64_t, const std::string&) {});
    };

    for ( bool is_healed : {true, false} ) {
        for ( size_t i = 0; i < Detector::losses_max; i++ )
            lose();

        CHECK(detector.IsReady());
        answer(is_healed ? Detector::answers_healed : Detector::answers_healed - 1);
        lose();
        CHECK(detector.IsReady() == is_healed);

        if ( is_healed )
            // That one does not count for what comes.
            answer(Detector::answers_healed);
    }

    detector.Stop(60s);
}

} // namespace

int main(int count, char** arguments) {
    if ( count > 1 && std::string(arguments[1]) == "defects" ) {
        load_library();
        defects();
        defect_in_submission();
        healing();
        std::printf("feed with defects: passed\n");
        return 0;
    }

    transport_headers();
    ledger();
    helper();
    load_library();
    detection();
    std::printf("feed: passed\n");
    return 0;
}
